"""The products that a gradient passes through, for optimizers that ask for their `input` and
`surprise` (language.md 2.9.6): each `W x` of a weight made by `linear` is one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pair = tuple[Tensor, Tensor]


class Examples:
    """Of the weights that are watched, by name: input [examples, n] and surprise [examples, m] of
    every product since they were last forgotten.
    """

    def __init__(self) -> None:
        self.pairs: dict[str, list[Pair]] = {}

    def watch(self, name: str) -> None:
        self.pairs.setdefault(name, [])

    def of(self, name: str, weight: Tensor) -> Pair:
        return means(self.pairs[name], weight)

    def forget(self, name: str) -> None:
        """In place: a backward pass that is still to come writes here too."""
        self.pairs[name].clear()


class Watching(TorchFunctionMode):
    """Writes down the products of a run. A tick that has no label yet is not looked at: `on`."""

    def __init__(self, examples: Examples, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.on = True
        self.lists = {id(weights[n]): pairs for n, pairs in examples.pairs.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is F.linear and self.on and made.requires_grad:
            pairs = self.lists.get(id(args[1]))
            if pairs is not None:
                note(pairs, args[0], made)
        return made


def note(pairs: list[Pair], x: Tensor, made: Tensor) -> None:
    """A product: its surprise comes with the backward pass; on no way to the loss it has none."""
    seen = rows(x.detach())

    def surprised(grad: Tensor) -> None:
        pairs.append((seen, rows(grad.detach())))

    made.register_hook(surprised)  # type: ignore[no-untyped-call]


def means(pairs: list[Pair], weight: Tensor) -> Pair:
    """input and surprise, divided so that `surprise' input` and `input' input` are means: with a
    loss that is a mean over n examples, input / sqrt(n) and surprise sqrt(n).
    """
    if not pairs:
        m, n = weight.shape[-2:]
        return weight.new_zeros(0, n), weight.new_zeros(0, m)
    x, s = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    root = x.shape[0] ** 0.5
    return x / root, s * root


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
