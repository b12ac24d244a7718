"""What goes through a layer, for rules that ask for it: each product `W x` of a linear layer is one
example, with the gradient that comes back at it (2.9.6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backends.runtime.examples import Pair, means, note


class Examples:
    """Of one linear layer, since the last step."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.pairs: list[Pair] = []
        layer.register_forward_hook(self.seen)

    def seen(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() and output.requires_grad:
            note(self.pairs, inputs[0], output)

    def __call__(self) -> Pair:
        """`input` and `surprise`."""
        return means(self.pairs, self.layer.weight)

    def forget(self) -> None:
        self.pairs.clear()
