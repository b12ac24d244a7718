"""Gradients that pass for training and not for the levels on tokens that learn the model's own loss (2.10.1).

Both are taken over one graph. A gate is the identity; while a switch is thrown, the gradient stops at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Switch:
    """Thrown while a level on tokens takes its gradient. One for each model: its calls are not interleaved."""

    def __init__(self) -> None:
        self.thrown = False

    @contextmanager
    def throw(self) -> Iterator[None]:
        outer, self.thrown = self.thrown, True
        try:
            yield
        finally:
            self.thrown = outer


class Gate(torch.autograd.Function):
    """Tensors as they are; their gradients, unless the switch is thrown."""

    @staticmethod
    def forward(ctx: Any, switch: Switch, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.switch = switch
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.switch.thrown:
            return (None,) * (1 + len(grads))
        return (None, *grads)


def gated(switch: Switch, *tensors: Tensor) -> tuple[Tensor, ...]:
    return Gate.apply(switch, *tensors)  # type: ignore[no-any-return, no-untyped-call]
