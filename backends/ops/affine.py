"""Writes that are affine in a matrix: all of a span from one triangular system.

At a tick R rows x_i are written by amounts

    r_i = rest_i + sum_j factor_ij P p_j          P = W_{t-1}, or keep_t W_{t-1}

that may ask the state for other vectors than they write along (Comba 2506.02475, RWKV-7
2503.14456), or for several (DeltaProduct 2502.10297). With c what the p of all ticks meet of the
start state and G what they meet of each write (retention.py), both weighted by the factors,

    (I - G) r = rest + c

whose solution, affine in the start state, is made for all chunks at once; from chunk to chunk only
the amounts and the state at the end are (recurrence.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .recurrence import CHUNK, Number, Span, chained, state_arithmetic, widened
from .retention import Retention, View, each, unit_inverse, unit_solve
from .ticks import Ticks

Factors = Sequence[Sequence[Number | None]]


def affine(
    W0: Tensor,
    rows: Sequence[Tensor],
    rest: Sequence[Tensor | None],
    asked: Sequence[Tensor],
    factors: Factors,
    keep: Number = 1.0,
    momentum: Number | None = None,
    S0: Tensor | None = None,
    retained: bool = False,
) -> Span:
    """The span that is written so; no result depends on its chunks, but for rounding.

    rows      R of [..., T, n]
    rest      for each [..., T, m], or None where it is nought
    asked     J of [..., T, n]
    factors   for each row J of [..., T] or a number, or None where it is nought
    retained  whether the state is asked after it has faded
    The others as in `recurrence.span`.
    """
    with state_arithmetic(rows[0]):
        given = Ticks(rows[0], rows[0], 1.0, keep, momentum, 0.0)
        w, s, ticks = widened(W0, S0, given)
        view = View.RETAINED if retained else View.BEFORE
        x, p = (torch.stack(tuple(t), -2).to(w.dtype) for t in (rows, asked))
        known = [None if r is None else r.to(w.dtype) for r in rest]
        writes = _Writes(x, p, known, factors, view)
        time = rows[0].shape[-2]
        whole = time - time % CHUNK if time >= 2 * CHUNK else 0
        if not whole:
            return writes.alone(ticks.retention(), w, s)
        first, *more = ticks.split([whole, time - whole] if whole < time else [whole])
        begun, *left = writes.split(whole)
        chunks = begun.chunks(CHUNK)
        fixed, slope, retention = chunks.affine(first.chunks(CHUNK).retention(), w.shape[-2])
        made, w, s = chained(retention, w, s, chunks.along, fixed, slope)
        after = left[0].alone(more[0].retention(), w, s) if left else None
        return Chunks(retention, made.w, made.s, made.x, made.wrote, after=after, ended=(w, s))


@dataclass(frozen=True)
class Chunks(Span):
    """The spans of whole chunks, on an axis before time, and of the ticks after them."""

    after: Span | None = None
    ended: tuple[Tensor, Tensor | None] | None = None

    def _read(self, q: Tensor, view: View) -> Tensor:
        return self._over(q, lambda span, part: span._read(part, view))

    def _back(self, e: Tensor, view: View) -> Tensor:
        return self._over(e, lambda span, part: span._back(part, view))

    def end(self) -> tuple[Tensor, Tensor | None]:
        assert self.ended is not None
        return self.ended if self.after is None else self.after.end()

    @property
    def _whole(self) -> Span:
        return Span(self.retention, self.w, self.s, self.x, self.wrote)

    def _over(self, asked: Tensor, answer: Callable[[Span, Tensor], Tensor]) -> Tensor:
        axis, many = self.w.ndim - 3, self.w.shape[-3]
        whole = many * CHUNK
        head = torch.unflatten(asked.narrow(axis, 0, whole), axis, (many, CHUNK))
        made = answer(self._whole, head).flatten(axis, axis + 1)
        if self.after is None:
            return made
        rest = answer(self.after, asked.narrow(axis, whole, asked.shape[axis] - whole))
        return torch.cat((made, rest), axis)

    def _each(self, change: Callable[[Tensor, int], Any]) -> Span:
        whole = self._whole._each(change)
        after = None if self.after is None else self.after._each(change)
        ended = each(self.ended, 2, change)
        kept = whole.retention, whole.w, whole.s, whole.x, whole.wrote
        return Chunks(*kept, after=after, ended=ended)


@dataclass(frozen=True)
class _Writes:
    """What is written, before a state is known: x [..., T, R, n] and p [..., T, J, n]."""

    x: Tensor
    p: Tensor
    rest: Sequence[Tensor | None]
    factors: Factors
    view: View

    @property
    def along(self) -> Tensor:
        return self.x.flatten(-3, -2)

    def alone(self, retention: Retention, w: Tensor, s: Tensor | None) -> Span:
        """A span by itself."""
        weights, system, asking, retention = self.system(retention)
        met = _weighed(weights, asking.far(self.p.flatten(-3, -2), self.view, w, s))
        amounts = unit_solve(system, met + _rests(self.rest, self.x, w.shape[-2]))
        return Span(retention, w, s, self.along, amounts)

    def affine(self, retention: Retention, m: int) -> tuple[Tensor, Tensor, Retention]:
        """(U, Y) with amounts U + Y state', and what is left of writes."""
        weights, system, asking, retention = self.system(retention)
        inverse = unit_inverse(system)
        met = _weighed(weights, asking.carry(self.p.flatten(-3, -2), self.view))
        return inverse @ _rests(self.rest, self.x, m), inverse @ met, retention

    def system(self, one: Retention) -> tuple[Tensor, Tensor, Retention, Retention]:
        retention = one.rows(self.x.shape[-2])
        asking = retention.asked(self.p.shape[-2])
        weights = _weights(self.factors, self.p)
        pairs = asking.pairs(self.p.flatten(-3, -2), self.along, self.view)
        return weights, -_weighed(weights, pairs), asking, retention

    def each(self, change: Callable[[Tensor, int], Tensor]) -> _Writes:
        """Every array, changed; it is told the axis of time."""

        def gate(factor: Number | None) -> Number | None:
            if not isinstance(factor, Tensor):
                return factor
            return change(factor, -1)

        rest = [None if r is None else change(r, -2) for r in self.rest]
        factors = [[gate(f) for f in line] for line in self.factors]
        return _Writes(change(self.x, -3), change(self.p, -3), rest, factors, self.view)

    def split(self, whole: int) -> list[_Writes]:
        time = self.x.shape[-3]
        parts = [(0, whole), (whole, time - whole)]
        return [self.each(lambda t, axis, a=a, n=n: t.narrow(axis, a, n)) for a, n in parts if n]  # type: ignore[misc]

    def chunks(self, chunk: int) -> _Writes:
        return self.each(lambda t, axis: torch.unflatten(t, axis, (-1, chunk)))


def _weights(factors: Factors, p: Tensor) -> Tensor:
    """[..., T, R, J]."""
    ticks = p.shape[:-2]

    def whole(factor: Number | None) -> Tensor:
        if isinstance(factor, Tensor):
            return factor.to(p.dtype).expand(ticks)
        return p.new_full((), factor or 0.0).expand(ticks)

    return torch.stack([torch.stack([whole(f) for f in line], -1) for line in factors], -2)


def _weighed(weights: Tensor, asked: Tensor) -> Tensor:
    """[..., T J, *] -> [..., T R, *]."""
    by_tick = torch.unflatten(asked, -2, (-1, weights.shape[-1]))
    return (weights @ by_tick).flatten(-3, -2)


def _rests(rest: Sequence[Tensor | None], x: Tensor, m: int) -> Tensor:
    none = x.new_zeros(*x.shape[:-2], m)
    return torch.stack([none if r is None else r.to(x.dtype) for r in rest], -2).flatten(-3, -2)
