"""What arrives at each tick of a span, and what is to be written, before any state is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .retention import (
    Retention,
    ScalarRetention,
    View,
    kept,
    kept_by_channel,
    kept_with_momentum,
    plus,
    unit_inverse,
    unit_solve,
)

Number = Tensor | float


@dataclass(frozen=True)
class Writes:
    """What is to be written, before the start state is known.

    amount  [..., C, m]    -rate e
    erase   rate erase: [..., C], or one an output channel [..., C, m]; None: nothing is solved
    """

    retention: Retention
    x: Tensor
    amount: Tensor
    erase: Tensor | None
    view: View

    @property
    def by_output(self) -> bool:
        return self.erase is not None and self.erase.ndim == self.x.ndim

    def system(self) -> Tensor:
        """Strictly lower [..., C, C], or [..., m, C, C]; the unit diagonal is left out."""
        assert self.erase is not None
        met = self.retention.pairs(self.x, self.x, self.view)
        if self.by_output:
            return self.erase.mT.unsqueeze(-1) * met.unsqueeze(-3)
        return self.erase.unsqueeze(-1) * met

    def met(self) -> Tensor:
        """[..., C, s]: c_t."""
        return self.retention.carry(self.x, self.view)

    def strength(self) -> Tensor:
        """[..., C, 1] or [..., C, m]: rate erase, beside the amounts."""
        assert self.erase is not None
        return self.erase if self.by_output else self.erase.unsqueeze(-1)

    def to(self, w: Tensor, s: Tensor | None) -> Tensor:
        """R [..., C, m], for a start state."""
        if self.erase is None:
            return self.amount
        if s is None and self._by_kernels():
            fixed, slope = self.affine()
            return plus(fixed, slope, w.mT)
        far = self.retention.far(self.x, self.view, w, s)
        return solve(self.system(), self.amount - self.strength() * far)

    def _by_kernels(self) -> bool:
        """Whether kernels solve it: one keep a tick, no momentum."""
        if not isinstance(self.retention, ScalarRetention) or len(self.retention.start) > 1:
            return False
        ticks = self.x.shape[-2]
        return not self.by_output and kernels.ready(ticks, self.x, self.amount, self.erase)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(U [..., C, m], Y [..., C, s]) with R = U + Y state'."""
        assert self.erase is not None
        if self._by_kernels():
            assert isinstance(self.retention, ScalarRetention)
            tables = self.retention.at(self.view)
            return kernels.affine(self.x, self.amount, self.strength(), *tables)
        inverse = unit_inverse(self.system())
        return inverse @ self.amount, inverse @ (-self.erase.unsqueeze(-1) * self.met())


@dataclass(frozen=True)
class Ticks:
    """What arrives at each tick; time is the axis before the last where there are channels."""

    x: Tensor
    e: Tensor
    rate: Number
    keep: Number
    momentum: Number | None
    erase: Number

    def tensors(self) -> list[Tensor]:
        every = self.x, self.e, self.rate, self.keep, self.momentum, self.erase
        return [value for value in every if isinstance(value, Tensor)]

    def each(self, change: Callable[[Tensor, int], Tensor]) -> Ticks:
        def gate(value: Number) -> Number:
            if not isinstance(value, Tensor):
                return value
            return change(value, -2 if value.ndim == self.x.ndim else -1)

        momentum = None if self.momentum is None else gate(self.momentum)
        x, e = change(self.x, -2), change(self.e, -2)
        return Ticks(x, e, gate(self.rate), gate(self.keep), momentum, gate(self.erase))

    def split(self, sizes: list[int]) -> list[Ticks]:
        if len(sizes) == 1:
            return [self]
        parts: list[list[Tensor]] = [[] for _ in sizes]

        def cut(value: Tensor, axis: int) -> Tensor:
            for part, piece in zip(parts, torch.split(value, sizes, axis), strict=True):
                part.append(piece)
            return value

        self.each(cut)
        left = [iter(part) for part in parts]
        return [self.each(lambda value, axis, p=p: next(p)) for p in left]  # type: ignore[misc]

    def chunks(self, chunk: int) -> Ticks:
        """Time split in two: chunks, ticks of a chunk."""
        return self.each(lambda value, axis: torch.unflatten(value, axis, (-1, chunk)))

    def over(self, batch: int) -> Ticks:
        """Gates that have a part of the batch, for all of it."""

        def gate(value: Any) -> Any:
            if self.x.ndim != 3 or not isinstance(value, Tensor) or value.ndim < 2:
                return value
            many = batch // value.shape[0]
            return value if many < 2 else torch.cat([value] * many)

        rate, keep, erase = gate(self.rate), gate(self.keep), gate(self.erase)
        return Ticks(self.x, self.e, rate, keep, gate(self.momentum), erase)

    def writes(self, view: View, retention: Retention | None = None) -> Writes:
        amount = -column(self.rate, self.x) * self.e
        return Writes(retention or self.retention(), self.x, amount, self._strength(), view)

    def retention(self) -> Retention:
        if isinstance(self.keep, Tensor) and self.keep.ndim == self.x.ndim:
            assert self.momentum is None, "one keep for each channel does not go with momentum"
            return kept_by_channel(self.keep)
        all_kept = not isinstance(self.keep, Tensor) and self.keep == 1.0
        keep = None if all_kept else self.row(self.keep)
        if self.momentum is None:
            return kept(keep, self.x)
        return kept_with_momentum(keep, self.row(self.momentum))

    def _strength(self) -> Tensor | None:
        """rate erase, or None where nothing is erased."""
        if not isinstance(self.erase, Tensor):
            return None if self.erase == 0.0 else self.row(self.rate * self.erase)
        if self.erase.ndim == self.x.ndim:
            return column(self.rate, self.x) * self.erase
        if isinstance(self.rate, Tensor) and self.rate.ndim == self.x.ndim:
            return self.rate * self.erase.unsqueeze(-1)
        return self.rate * self.erase

    @property
    def by_output(self) -> bool:
        """Whether something is erased at one rate an output channel."""
        gates = (self.rate, self.erase)
        wide = any(isinstance(g, Tensor) and g.ndim == self.x.ndim for g in gates)
        return wide and (isinstance(self.erase, Tensor) or self.erase != 0.0)

    def row(self, value: Number) -> Tensor:
        """A number is the same at all ticks."""
        return value if isinstance(value, Tensor) else self.x.new_full(self.x.shape[-2:-1], value)


def solve(system: Tensor, right: Tensor) -> Tensor:
    """[..., C, m]: (I + system) R = right, with [..., C, C] or a system a column [..., m, C, C]."""
    if system.ndim == right.ndim:
        return unit_solve(system, right)
    return unit_solve(system, right.mT.unsqueeze(-1)).squeeze(-1).mT


def column(value: Number, x: Tensor) -> Number:
    """A gate [..., T] or [..., T, m] beside a sequence [..., T, m]."""
    if not isinstance(value, Tensor) or value.ndim == x.ndim:
        return value
    return value.unsqueeze(-1)
