"""Writes that are affine in a matrix: all of a span from one triangular system.

At a tick R rows x_i are written by amounts

    r_i = rest_i + sum_j factor_ij P p_j          P = W_{t-1}, or keep_t W_{t-1}

that may ask the state for other vectors than they write along (Comba 2506.02475, RWKV-7
2503.14456), or for several (DeltaProduct 2502.10297). With c what the p of all ticks meet of the
start state and G what they meet of each write (retention.py), both weighted by the factors,

    (I - G) r = rest + c
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .recurrence import Number, Span, Start
from .retention import View, unit_solve


def affine(
    start: Start,
    rows: Sequence[Tensor],
    rest: Sequence[Tensor | None],
    asked: Sequence[Tensor],
    factors: Sequence[Sequence[Number | None]],
    retained: bool = False,
) -> Span:
    """The span that is written so.

    rows      R of [..., T, n]
    rest      for each [..., T, m], or None where it is nought
    asked     J of [..., T, n]
    factors   for each row J of [..., T] or a number, or None where it is nought
    retained  whether the state is asked after it has faded
    """
    x, p = (torch.stack(tuple(t), -2).to(start.w.dtype) for t in (rows, asked))
    view = View.RETAINED if retained else View.BEFORE
    assert start.retention is not None
    retention = start.retention.rows(len(rows))
    asking = retention.asked(len(asked))
    flat, along = p.flatten(-3, -2), x.flatten(-3, -2)
    weights = _weights(factors, p)
    met = _weighed(weights, asking.far(flat, view, start.w, start.s))
    system = _weighed(weights, asking.pairs(flat, along, view))
    amounts = unit_solve(-system, met + _rests(rest, x, start.w.shape[-2]))
    return Span(retention, start.w, start.s, along, amounts)


def _weights(factors: Sequence[Sequence[Number | None]], p: Tensor) -> Tensor:
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
