"""Gradients that add up until their level fires.

The gradient of W in y = x W' is g' x, with g what comes to y: as large as W, for one tick as for
many. So x and g wait as rows, and are multiplied when the level fires, or once they take more room
than W does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..ops.retention import times

Met = tuple[str, Tensor, Tensor]  # a product: the path of W, x, and y


@dataclass(frozen=True)
class Sum:
    """The gradient of one array [batch, .., m, n] so far.

    whole     what has been added up; None: nothing yet
    seen      [batch, .., ticks, n]: x of the ticks that wait
    surprise  [batch, .., ticks, m]: g of the same
    """

    whole: Tensor | None = None
    seen: tuple[Tensor, ...] = ()
    surprise: tuple[Tensor, ...] = ()
    ticks: int = 0  # that wait

    def plus(self, grad: Tensor) -> Sum:
        return replace(self, whole=grad if self.whole is None else self.whole + grad)

    def after(self, seen: Tensor, surprise: Tensor) -> Sum:
        """The same after ticks that asked for a product."""
        ticks, n, m = self.ticks + seen.shape[-2], seen.shape[-1], surprise.shape[-1]
        rows = (*self.seen, seen.detach()), (*self.surprise, surprise)
        waiting = Sum(self.whole, *rows, ticks)
        return Sum(waiting.total()) if ticks * (m + n) > m * n else waiting

    def total(self) -> Tensor:
        if not self.seen:
            assert self.whole is not None
            return self.whole
        seen, surprise = (
            parts[0] if len(parts) == 1 else torch.cat(parts, -2)
            for parts in (self.seen, self.surprise)
        )
        made = times(surprise.mT, seen)
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        return made if self.whole is None else self.whole + made

    def tensors(self) -> dict[str, Tensor]:
        """By name, as it is saved."""
        rows = {"seen": self.seen, "surprise": self.surprise}
        found = {name: torch.cat(parts, -2) for name, parts in rows.items() if parts}
        return found if self.whole is None else {"sum": self.whole, **found}


def owed(
    sums: dict[str, Sum], paths: Sequence[str], grads: Sequence[Tensor | None],
    met: Sequence[Met], came: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """To the sums: the gradients of arrays, and what came to products with them."""
    for path, grad in zip(paths, grads, strict=True):
        if grad is not None:
            sums[path] = sums.get(path, Sum()).plus(grad)
    for (path, x, _), grad in zip(met, came, strict=True):
        if grad is not None:
            sums[path] = sums.get(path, Sum()).after(x, grad)


def summed(tensors: dict[str, Tensor]) -> Sum:
    """What `tensors` told of."""
    seen, surprise = tensors.get("seen"), tensors.get("surprise")
    if seen is None or surprise is None:
        return Sum(tensors.get("sum"))
    return Sum(tensors.get("sum"), (seen,), (surprise,), seen.shape[-2])
