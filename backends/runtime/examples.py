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

from ..gates import is_own

Pair = tuple[Tensor, Tensor]


class Products:
    """Of one weight: those that its present gradient came through. A gradient that is cleared by
    whatever means takes them along.
    """

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.latest = -1  # backward pass

    def note(self, x: Tensor, made: Tensor, weight: Tensor) -> None:
        """Its surprise comes with the backward pass; on no way to the loss it has none."""
        seen = rows(x.detach())

        def surprised(grad: Tensor) -> None:
            if not is_own():
                return  # of a level on tokens, in a graph that it shares with training
            self.begin(torch._C._current_graph_task_id(), weight.grad)
            self.pairs.append((seen, rows(grad.detach())))

        made.register_hook(surprised)  # type: ignore[no-untyped-call]

    def begin(self, one: int, grad: Tensor | None) -> None:
        """The gradient is what it was before this pass: within one, surprises come before it."""
        if one != self.latest:
            self.latest = one
            if self.pairs and self.cleared(grad):
                self.forget()

    def cleared(self, grad: Tensor | None) -> bool:
        """Gone, or zero where the surprises were not."""
        if grad is None:
            return True
        return not bool(grad.any()) and any(bool(s.any()) for _, s in self.pairs)

    def forget(self) -> None:
        """A backward pass that is still to come writes here too."""
        self.pairs.clear()

    def rows(self, weight: Tensor) -> Pair:
        """input [examples, n] and surprise [examples, m]."""
        if not self.pairs:
            m, n = weight.shape[-2:]
            return weight.new_zeros(0, n), weight.new_zeros(0, m)
        x, s = (torch.cat(parts) for parts in zip(*self.pairs, strict=True))
        return x, s


def means(x: Tensor, s: Tensor) -> Pair:
    """input and surprise, divided so that `surprise' input` and `input' input` are means: with a
    loss that is a mean over n examples, input / sqrt(n) and surprise sqrt(n).
    """
    root = max(x.shape[0], 1) ** 0.5
    return x / root, s * root


class Examples:
    """Of the weights that are watched, by name: input [examples, n] and surprise [examples, m] of
    every product since they were last forgotten.
    """

    def __init__(self) -> None:
        self.products: dict[str, Products] = {}

    def watch(self, name: str) -> None:
        self.products.setdefault(name, Products())

    def of(self, name: str, weight: Tensor) -> Pair:
        """None for a weight without a gradient: those that are left are of one that is cleared."""
        if weight.grad is None:
            self.forget(name)
        return self.products[name].rows(weight)

    def forget(self, name: str) -> None:
        self.products[name].forget()


class Watching(TorchFunctionMode):
    """Writes down the products of a run. A tick that has no label yet is not looked at: `on`."""

    def __init__(self, examples: Examples, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.on = True
        self.products = {id(weights[n]): found for n, found in examples.products.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is F.linear and self.on and made.requires_grad:
            found = self.products.get(id(args[1]))
            if found is not None:
                found.note(args[0], made, args[1])
        return made


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
