"""What a span writes where every write depends on those before it: a fixed point.

The writes of a span are a function of themselves, w = ticks(w), in which tick t looks only at
earlier ticks. So iterating (Picard, memory-family.md B6.0) makes tick t exact after t rounds at
most, whatever the function; where writes are small beside what they meet, a few rounds do. One
round is what published code calls the gradient at the chunk's start.

The derivative is that of the fixed point, found the same way: with J the derivative of `ticks`,
what reaches the writes is (I - J')^-1 of what is asked of them. So only one round is kept for it,
however many were run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .recurrence import Span, Start

Writes = Sequence[tuple[Tensor, ...]]
Ticks = Callable[..., Writes]


def amount(
    rate: Tensor | float, e: Tensor, erase: Tensor | float = 0.0, met: Tensor | None = None
) -> Tensor:
    """-rate (e + erase met), for e and met [..., T, m] or [..., T, r, m]; rate and erase are a
    number or [..., T].
    """

    def beside(gate: Tensor | float) -> Tensor | float:
        if not isinstance(gate, Tensor):
            return gate
        return gate.reshape(*gate.shape, *[1] * (e.ndim - gate.ndim))

    total = e if met is None else e + beside(erase) * met
    return -beside(rate) * total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def solved(ticks: Ticks, starts: Sequence[Start], rounds: int | None = None) -> tuple[Span, ...]:
    """The spans whose writes are those that `ticks` makes of the spans.

    ticks   spans -> for each of them what is written, (x [..., T, n], wrote [..., T, m]), with
            what is kept [..., T] if its start does not know; it may look at W_{t-1} only
    rounds  None: until no write changes, for each sample by itself. A number: exactly so many, and
            the derivative is that of these
    """
    first = [start.nothing() for start in starts]
    sizes = [len(writes) for writes in first]
    guess = [t for writes in first for t in writes]
    length = starts[0].like.shape[-2]

    def spans(flat: Sequence[Tensor]) -> tuple[Span, ...]:
        parts = iter(flat)
        return tuple(
            start.span(*islice(parts, size)) for start, size in zip(starts, sizes, strict=True)
        )

    def once(flat: Sequence[Tensor]) -> list[Tensor]:
        made = [t for writes in ticks(*spans(flat)) for t in writes]
        return [t.to(g.dtype) for t, g in zip(made, flat, strict=True)]

    if rounds is not None:
        for _ in range(rounds):
            guess = once(guess)
        return spans(guess)
    wanted = torch.is_grad_enabled()
    guess = once(guess)
    wanted = wanted and any(t.requires_grad for t in guess)
    with torch.no_grad():
        time = starts[0].like.ndim - 2
        found = _settled(once, [t.detach() for t in guess], length - 1, time)
    if not wanted:
        return spans(found)
    asked = [t.detach().requires_grad_() for t in found]
    made = once(asked)
    return spans(_FixedPoint.apply(asked, made, length, *made))  # type: ignore[no-untyped-call]


class _FixedPoint(torch.autograd.Function):
    """The identity on what one round has made; backwards, the sum over all rounds."""

    @staticmethod
    def forward(
        ctx: Any, asked: list[Tensor], made: list[Tensor], length: int, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.round = asked, made, length
        return tuple(v.view_as(v) for v in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second derivative through a memory that is solved to its fixed point: "
                "give the model a number of `rounds`, or use the reference interpreter"
            )
        asked, made, length = ctx.round
        live = [i for i, t in enumerate(made) if t.requires_grad]

        def once(flat: list[Tensor]) -> list[Tensor]:
            back = torch.autograd.grad(
                [made[i] for i in live], asked, [flat[i] for i in live], retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
            return [g if b is None else g + b for g, b in zip(grads, back, strict=True)]

        return (None, None, None, *_settled(once, list(grads), length))


def _settled(
    once: Callable[[list[Tensor]], list[Tensor]],
    flat: list[Tensor],
    length: int,
    time: int | None = None,
) -> list[Tensor]:
    """Rounds until nothing changes: `length` of them are exact. What has settled stays as it is,
    each sample by itself, so that no other of its batch has a say in its numbers; and, with an axis
    of time, each tick with those before it, so that none that follows has.
    """
    settled: Tensor | None = None
    for _ in range(length):
        new = once(flat)
        same = _unchanged(flat, new, time)
        if settled is not None:
            known = [_rows(settled, n, time) for n in new]
            pairs = zip(known, flat, new, strict=True)
            new = [n if o.shape != n.shape else torch.where(s, o, n) for s, o, n in pairs]
            same |= settled
        flat, settled = new, same
        if bool(settled.all()):
            break
    return flat


def _unchanged(old: list[Tensor], new: list[Tensor], time: int | None) -> Tensor:
    """[batch, ticks], or [batch, 1]: whether every array changed by no more than rounding would, up
    to the tick; what is not a number has settled.
    """
    ticks = 1 if time is None else new[0].shape[time]
    same = torch.ones(new[0].shape[0], ticks, dtype=torch.bool, device=new[0].device)
    for o, n in zip(old, new, strict=True):
        if o.shape != n.shape:
            return torch.zeros_like(same)  # several writes a tick, where the first guess has one
        if n.numel():
            gap, size = (_largest(x, time) for x in ((n - o).abs(), n.abs()))
            same &= ~(gap > tolerance(n.dtype) * size)
    return same


def _largest(x: Tensor, time: int | None) -> Tensor:
    """[batch, ticks]: the largest entry up to each tick; [batch, 1]: of all."""
    if time is None:
        return x.flatten(1).amax(1, keepdim=True)
    rows = x.movedim(time, 1).flatten(2) if x.ndim > 2 else x.unsqueeze(-1)
    return torch.cummax(rows.amax(-1), 1).values


def tolerance(dtype: torch.dtype) -> float:
    """What a sum of a few hundred terms loses to rounding: 1e-12 in float64, 1e-6 in float32."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def _rows(settled: Tensor, like: Tensor, time: int | None) -> Tensor:
    shape = [settled.shape[0], *[1] * (like.ndim - 1)]
    if time is not None:
        shape[time] = settled.shape[1]
    return settled.view(shape)
