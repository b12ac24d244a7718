"""The gradient that training has for an array which a level on tokens writes, as rows of ticks.

A firing adds what is a constant to training (`first order`), so W has the same gradient before it
and after it: the sum of g' x over all products y = x W' of a call, with g what comes to y. Rows of
x and g wait (sums.py) and are multiplied together, where autograd would make a matrix as large as W
for each span, and add it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import by_hand
from ..ops.recurrence import under_autocast
from ..ops.retention import times
from .sums import Sum


class Rows:
    """What waits for one array: a sum for each backward pass, as one may be left before its end."""

    def __init__(self) -> None:
        self.sums: dict[int, Sum] = {}

    def after(self, seen: Tensor, surprise: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        self.sums[task] = self.sums.get(task, Sum()).after(seen, surprise)

    def total(self, grad: Tensor | None) -> Tensor | None:
        """With what came to the array itself."""
        waiting = self.sums.pop(torch._C._current_graph_task_id(), None)
        if waiting is None:
            return grad
        return waiting.total() if grad is None else waiting.plus(grad).total()


class Begun(torch.autograd.Function):
    """W at the start of a call: where its gradient goes back to, all of its products are known."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return W.view_as(W)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.rows.total(grad), None


class Asked(torch.autograd.Function):
    """y = x W'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(x, W)
        return plain(x, W)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *by_hand.again(plain, [x, W], [grad]), None
        ctx.rows.after(x, grad)
        return times(grad, W) if ctx.needs_input_grad[0] else None, None, None


def plain(x: Tensor, W: Tensor) -> Tensor:
    return times(x, W.mT)


class Learned:
    """The arrays of a call whose gradients wait, by path: each as it stands, and its rows."""

    def __init__(self, arrays: dict[str, Tensor] | None = None, paths: Iterable[str] = ()) -> None:
        self.rows: dict[str, tuple[Tensor, Rows]] = {}
        for path in paths:
            self.begin(arrays or {}, path)

    def begin(self, arrays: dict[str, Tensor], path: str) -> None:
        """A start, or what a call before has left: nothing has been asked of it in this call."""
        if torch.is_grad_enabled() and arrays[path].requires_grad and by_hand.allowed():
            rows = Rows()
            arrays[path] = Begun.apply(arrays[path], rows)  # type: ignore[no-untyped-call]
            self.rows[path] = arrays[path], rows

    def waiting(self, arrays: dict[str, Tensor]) -> Iterator[tuple[str, Rows]]:
        """Of arrays as they stand."""
        for path, (standing, rows) in self.rows.items():
            if standing is arrays[path]:
                yield path, rows

    def moved(self, path: str, W: Tensor, amount: Tensor) -> Tensor:
        """W + amount."""
        new = W + amount
        standing, rows = self.rows.get(path, (None, None))
        if standing is W and rows is not None and not amount.requires_grad:
            self.rows[path] = new, rows
        return new

    def product(self, path: str, x: Tensor, W: Tensor) -> Tensor:
        """x W' for every tick."""
        standing, rows = self.rows.get(path, (None, None))
        if standing is not W or x.shape[:-2] != W.shape[:-2] or x.dtype != W.dtype:
            return plain(x, W)
        if under_autocast(x.device) or not torch.is_grad_enabled():
            return plain(x, W)
        made: Tensor = Asked.apply(x, W, rows)  # type: ignore[no-untyped-call]
        return made
