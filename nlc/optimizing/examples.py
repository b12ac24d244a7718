"""What goes through a layer, for rules that ask for it: each product `W x` of a linear layer is one
example, with the gradient that comes back at it (2.9.6).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.runtime.examples import Pair, Products, means


class Examples(Products):
    """Of one linear layer, since the last step. The layer forgets it when its optimizer is gone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        handle = layer.register_forward_hook(Seeing(weakref.ref(self)))
        weakref.finalize(self, handle.remove).atexit = False

    def __call__(self) -> Pair:
        """`input` and `surprise`."""
        return means(*self.rows(self.layer.weight))


class Seeing:
    """The hook of a layer. In a copy of the layer, which no optimizer serves, it sees nothing."""

    def __init__(self, of: weakref.ref[Examples] | None = None) -> None:
        self.of = of

    def __call__(self, layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        examples = self.of() if self.of is not None else None
        if examples is not None and torch.is_grad_enabled() and output.requires_grad:
            examples.note(inputs[0], output, layer.weight)

    def __reduce__(self) -> tuple[Any, ...]:
        return Seeing, ()
