"""A matrix that is written by amounts of rank one, T ticks at a time.

    pred_t = P_t x_t                P_t = W_{t-1}, or keep_t W_{t-1} with after_retain
    r_t    = -rate_t (e_t + erase_t pred_t)
    S_t    = momentum_t S_{t-1} + r_t x_t'                 (without momentum: r_t x_t')
    W_t    = keep_t W_{t-1} + S_t

    W [..., m, n]    x [..., T, n]    e [..., T, m]    rate, keep, momentum, erase [..., T]

erase = 0, e = -v: linear attention, RetNet, Mamba2, GLA, a frozen gradient. erase = 1, e = -v: the
delta rule, gated (2412.06464), by channel (KDA), by output (Longhorn), with momentum (Titans
2501.00663 with a matrix memory, MDN 2605.05838). erase = 1, e = surprise: DGD (2512.24695).

In a span the r_t depend on each other through one unit lower-triangular system (UT transform,
2406.06484; with momentum 2605.05838). With c_t what x_t meets in the start state and G_tj what it
meets in the write of j (retention.py),

    (I + diag(rate erase) G) R = -rate (E + erase c W_0')

and W_t q_t = (c W_0')_t + sum_{j<=t} G_tj r_j with c and G made of q in place of x. R is affine in
the start state, R = U + Y W_0'; U, Y, every G and every read are made for all chunks at once, and
from chunk to chunk only R and the state at the end are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from . import by_hand, fla, kernels, scanned
from .retention import (
    ManyAtATick,
    Retention,
    ScalarRetention,
    View,
    each,
    faded,
    kept,
    kept_by_channel,
    kept_with_momentum,
    of_table,
    plus,
    times,
)
from .ticks import Number as Number
from .ticks import Ticks, Writes, column, solve
from .written import Written

CHUNK = 32
BY_OUTPUT = 16  # where each output has a system of its own
# Vectors of each kind that a scan holds at once, beside what a gradient needs: on a CPU what a
# cache holds, elsewhere what fills the device.
BLOCK, WIDE = 8192, 262144


class Still:
    """What is the same in every round in which the writes of a span are looked for: what is asked
    of the start state, and how queries meet what is written.

    alike  the streams that a round has from outside
    """

    def __init__(self, alike: Sequence[Tensor]) -> None:
        self.alike = {id(t): t for t in alike}
        self.made: dict[tuple[object, ...], Tensor] = {}

    def once(self, make: Callable[[], Tensor], view: View, *of: Tensor) -> Tensor:
        """What `make` makes of streams, once if all are from outside."""
        if not all(id(t) in self.alike for t in of):
            return make()
        place = (view, *map(id, of))
        if place not in self.made:
            self.made[place] = make()
        return self.made[place]


@dataclass(frozen=True)
class Span:
    """A span whose amounts are known: it answers reads at every tick without making a state.

    w, s   [..., m, n]    the state at the start; s is None without momentum
    x      [..., T, n]
    wrote  [..., T, m]    r_t
    """

    retention: Retention
    w: Tensor
    s: Tensor | None
    x: Tensor
    wrote: Tensor
    last: Tensor | None = None  # W_T, where it is known
    still: Still | None = None

    def read(self, q: Tensor, before_write: bool = False) -> Tensor:
        """[..., T, m]: W_t q_t, or W_{t-1} q_t, for q [..., T, n]."""
        return self._read(q, View.BEFORE if before_write else View.AFTER)

    def retained(self, q: Tensor) -> Tensor:
        """[..., T, m]: keep_t W_{t-1} q_t, for q [..., T, n]."""
        return self._read(q, View.RETAINED)

    def back(self, e: Tensor, before_write: bool = False) -> Tensor:
        """[..., T, n]: W_t' e_t, or W_{t-1}' e_t, for e [..., T, m]."""
        return self._back(e, View.BEFORE if before_write else View.AFTER)

    def retained_back(self, e: Tensor) -> Tensor:
        """[..., T, n]: keep_t W_{t-1}' e_t, for e [..., T, m]."""
        return self._back(e, View.RETAINED)

    def _back(self, e: Tensor, view: View) -> Tensor:
        if e.ndim > self.w.ndim:
            rows = replace(self, retention=self.retention.asked(e.shape[-2]))
            return torch.unflatten(rows._back(e.flatten(-3, -2), view), -2, e.shape[-3:-1])
        with state_arithmetic(self.x):
            u = e.to(self.x.dtype)
            return self.retention.back(u, view, self.w, self.s, self.x, self.wrote).to(e.dtype)

    def _read(self, q: Tensor, view: View) -> Tensor:
        if q.ndim > self.w.ndim:
            rows = replace(self, retention=self.retention.asked(q.shape[-2]), still=None)
            return torch.unflatten(rows._read(q.flatten(-3, -2), view), -2, q.shape[-3:-1])
        with state_arithmetic(self.x):
            u = q.to(self.x.dtype)
            if view is View.BEFORE and self.x.shape[-2] == 1:
                return times(u, self.w.mT).to(q.dtype)  # the one tick has not written yet
            if isinstance(self.retention, ScalarRetention) and self._by_kernels(q):
                tables = self.retention.at(view)
                return kernels.read(q, self.x, self.wrote, self.w, self.s, *tables)
            return plus(*self._met(u, view), self.wrote).to(q.dtype)

    def _met(self, u: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """What u_t meets of the start state, and of each write."""

        def far() -> Tensor:
            return self.retention.far(u, view, self.w, self.s)

        def pairs() -> Tensor:
            return self.retention.pairs(u, self.x, view)

        if self.still is None:
            return far(), pairs()
        return self.still.once(far, view, u), self.still.once(pairs, view, u, self.x)

    def _by_kernels(self, q: Tensor) -> bool:
        if q.shape != self.x.shape:
            return False
        return kernels.ready(self.x.shape[-2], self.x, q, self.wrote, self.w, self.s)

    def states(self, before_write: bool = False) -> Tensor:
        """[..., T, m, n]: W_t, or W_{t-1}."""
        if isinstance(self.retention, ScalarRetention):
            view = View.BEFORE if before_write else View.AFTER
            with state_arithmetic(self.x):
                return self.retention.states(view, self.w, self.s, self.x, self.wrote)
        n = self.w.shape[-1]
        every = torch.eye(n, dtype=self.x.dtype, device=self.x.device)
        return self.read(every.expand(*self.x.shape[:-1], n, n), before_write).mT

    def end(self) -> tuple[Tensor, Tensor | None]:
        """(W_T, S_T), S_T None without momentum."""
        if self.last is not None:
            return self.last, None
        with state_arithmetic(self.x):
            return self.retention.end(self.w, self.s, self.x, self.wrote)

    def rows(self, first: int, last: int) -> Span:
        """The same span for some of the rows of W only."""
        s = None if self.s is None else self.s[..., first:last, :]
        wrote = self.wrote[..., first:last]
        return Span(self.retention, self.w[..., first:last, :], s, self.x, wrote)

    def member(self, i: int, members: int) -> Span:
        """One of several matrices that are side by side on the first axis; what is left of writes
        is for each of them, or for all alike.
        """
        size = self.x.shape[0]
        first, rows = i * (size // members), size // members
        return self._each(
            lambda t, own: t.narrow(0, first, rows) if t.ndim > own and t.shape[0] == size else t
        )

    def pick(self, i: int) -> Span:
        """One of several matrices stacked on the first axis, whose gates do not have it."""
        s = None if self.s is None else self.s[i]
        return Span(self.retention, self.w[i], s, self.x[i], self.wrote[i])

    def held(self, hold: Callable[..., tuple[Tensor, ...]]) -> Span:
        """The same span, all that it keeps passed through `hold` at once: what is asked of it is
        not.
        """
        kept: list[Tensor] = []
        self._each(lambda t, own: kept.append(t))
        passed = iter(hold(*kept))
        return self._each(lambda t, own: next(passed))

    def _each(self, change: Callable[[Tensor, int], Any]) -> Span:
        """Every array that it keeps, changed."""
        w, s, x, wrote = each((self.w, self.s, self.x, self.wrote), 2, change)
        return Span(_each_table(self.retention, change), w, s, x, wrote)


def side_by_side(spans: Sequence[Span]) -> Span:
    """Spans of one length, as one, each after the other on the first axis."""
    lead = spans[0].x.shape[:-2]
    kept: list[list[Tensor]] = [[] for _ in spans]
    for span, arrays in zip(spans, kept, strict=True):
        span._each(lambda t, own, arrays=arrays: arrays.append(t))  # type: ignore[misc]
    together = zip(*kept, strict=True)

    def joined(first: Tensor, own: int) -> Tensor:
        parts = next(together)
        if first.ndim == own and all(t is first for t in parts):
            return first
        return torch.cat([t.expand(*lead, *t.shape[t.ndim - own :]) for t in parts])

    return spans[0]._each(joined)


def _each_table(retention: Retention, change: Callable[[Tensor, int], Any]) -> Retention:
    if isinstance(retention, ManyAtATick):
        one = _each_table(retention.one, change)
        return replace(retention, one=one)  # type: ignore[arg-type]
    own = retention.OWN
    changed = {n: each(getattr(retention, n), k, change) for n, k in own.items()}
    return replace(retention, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Start:
    """A span whose writes are not known yet, nor what is kept if `retention` is None (`channels`:
    by input channel). `like` tells its leading axes and its ticks.
    """

    retention: Retention | None
    w: Tensor
    s: Tensor | None
    like: Tensor
    momentum: Tensor | None = None  # where `retention` is None
    still: Still | None = None
    channels: bool = False

    def each(self, change: Callable[[Tensor, int], Any]) -> Start:
        """Every array that its spans keep, changed."""
        w, s = each((self.w, self.s), 2, change)
        retention = None if self.retention is None else _each_table(self.retention, change)
        momentum = None if self.momentum is None else change(self.momentum, 1)
        return replace(self, retention=retention, w=w, s=s, momentum=momentum)

    def span(self, x: Tensor, wrote: Tensor, keep: Tensor | None = None) -> Span:
        """The span in which tick t writes wrote_t x_t': [..., T, m] and [..., T, n], or as many
        of each at a tick as they have rows, [..., T, r, m] and [..., T, r, n].
        """
        retention = self.retention or self.left(keep, x)
        if x.ndim > self.like.ndim:
            retention = retention.rows(x.shape[-2])
            return Span(retention, self.w, self.s, x.flatten(-3, -2), wrote.flatten(-3, -2))
        still = None if self.retention is None else self.still
        return Span(retention, self.w, self.s, x, wrote, still=still)

    def left(self, keep: Tensor | None, x: Tensor) -> Retention:
        if self.channels and keep is not None:
            return kept_by_channel(keep)
        if self.momentum is None:
            return kept(keep, x)
        return kept_with_momentum(keep, self.momentum)

    def nothing(self) -> tuple[Tensor, ...]:
        """Writes of nought, x and wrote; and all kept, where that is not known."""
        *lead, m, n = self.w.shape
        ticks = self.like.shape[-2]
        new = self.w.new_zeros
        none = new(*lead, ticks, n), new(*lead, ticks, m)
        all_kept = new(*lead, ticks, *([n] if self.channels else [])) + 1
        return none if self.retention is not None else (*none, all_kept)


def begin(
    W0: Tensor,
    like: Tensor,
    keep: Number | None = 1.0,
    momentum: Number | None = None,
    S0: Tensor | None = None,
    retention: Retention | None = None,
    channels: bool = False,
) -> Start:
    """The start of a span for which `solved` finds the writes. Arguments as in `span`; `like` is
    any stream [..., T, *] with all the leading axes; keep None: as `solved` will find.
    """
    with state_arithmetic(like):
        given = Ticks(like, like, 1.0, 1.0 if keep is None else keep, momentum, 0.0)
        w, s, ticks = widened(W0, S0, given)
        if keep is not None:
            return Start(retention or ticks.retention(), w, s, ticks.x)
        row = None if ticks.momentum is None else ticks.row(ticks.momentum)
        return Start(None, w, s, ticks.x, row, channels=channels)


def retained(keep: Number, momentum: Number | None = None, channels: bool = False) -> Retention:
    """What is left of each write of a span; at least one is a tensor. keep [..., T], or, with
    `channels`, [..., T, n]; momentum [..., T].
    """
    known = keep if isinstance(keep, Tensor) else momentum
    assert isinstance(known, Tensor)
    like = known if channels else known.unsqueeze(-1)
    with state_arithmetic(like):
        return widened(like, None, Ticks(like, like, 1.0, keep, momentum, 0.0))[2].retention()


def repeated(retention: Retention, members: int) -> Retention:
    """The same for matrices that are side by side on the first axis."""
    if members == 1:
        return retention
    return _each_table(
        retention, lambda t, own: t.repeat(members, *[1] * own) if t.ndim == own + 1 else t
    )


def span(
    W0: Tensor,
    x: Tensor,
    e: Tensor,
    rate: Number,
    keep: Number = 1.0,
    momentum: Number | None = None,
    S0: Tensor | None = None,
    erase: Number = 0.0,
    after_retain: bool = False,
    retention: Retention | None = None,
) -> Span:
    """One chunk, exactly; the formula is on top of the file.

    W0, S0     [..., m, n], the two alike; S0 is nought if not given
    x, e       [..., T, n], [..., T, m], with all the leading axes; the others may lack some
    rate       a number, [..., T], or [..., T, m] with as many axes as x: one an output channel
    keep       a number, [..., T], or, without momentum, [..., T, n] with as many axes as x
    momentum   None, a number, or [..., T]
    erase      a number, [..., T], or [..., T, m] as rate
    retention  what is left of each write, in place of keep and momentum
    """
    with state_arithmetic(x):
        w, s, ticks = widened(W0, S0, Ticks(x, e, rate, keep, momentum, erase))
        if _is_delta_rule(ticks, w, s, after_retain):
            return _delta_rules([(ticks, w)], retention or ticks.retention())[0]
        return _alone(ticks.over(x.shape[0]), w, s, _view(after_retain), retention)


def spans(
    *parts: tuple[Tensor, Tensor, Tensor], rate: Tensor, erase: Number, retention: Retention
) -> list[Span]:
    """`span` of each W0, x and e, whose gates are the same."""
    with state_arithmetic(parts[0][1]):
        given = [widened(w, None, Ticks(x, e, rate, 1.0, None, erase)) for w, x, e in parts]
        if all(_is_delta_rule(ticks, w, s, False) for w, s, ticks in given):
            return _delta_rules([(ticks, w) for w, _, ticks in given], retention)
    return [span(*part, rate, erase=erase, retention=retention) for part in parts]


def scan(
    W0: Tensor,
    q: Tensor,
    x: Tensor,
    e: Tensor,
    rate: Number,
    keep: Number = 1.0,
    momentum: Number | None = None,
    S0: Tensor | None = None,
    erase: Number = 0.0,
    after_retain: bool = False,
    chunk: int = CHUNK,
    before_write: bool = False,
    aim: bool = False,
    turned: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y [..., T, m], W_T, S_T) with y_t = W_t q_t, or W_{t-1} q_t with before_write.

    Arguments as in `span`; q [..., T, n]; with `aim`, e is what is wanted, minus the error; with
    `turned`, W' is read, q [..., T, m] and y [..., T, n]. No result depends on the chunk, but for
    rounding.
    """
    with state_arithmetic(x):
        if momentum is None and S0 is None and not (before_write or turned):
            whole_scan = fla.Scan(W0, q, x, e, rate, keep, erase, after_retain, aim)
            if fla.takes(whole_scan):
                return *fla.scan(whole_scan, _without_fla(whole_scan, chunk)), None
        e = -e if aim else e
        w, s, ticks = widened(W0, S0, Ticks(x, e, rate, keep, momentum, erase))
        view, time = _view(after_retain), x.shape[-2]
        if time == 1:
            return _one_tick(ticks, w, s, q, view, before_write, turned)
        reads = []
        read = partial(Span.back if turned else Span.read, before_write=before_write)
        chunk = min(chunk, BY_OUTPUT) if ticks.by_output else chunk
        block = WIDE if x.is_cuda else BLOCK
        whole = s is None and not turned and by_hand.allowed() and not kernels.ready(chunk, x, w)
        sizes = _blocks(time, chunk, math.prod(x.shape[:-2]), block)
        for size, part, asked in zip(
            sizes, ticks.split(sizes), torch.split(q, sizes, -2), strict=True
        ):
            if size % chunk or size < 2 * chunk:
                rest = _alone(part, w, s, view)
                reads.append(read(rest, asked))
                w, s = rest.end()
                continue
            if whole and _has_numbers_for_gates(part):
                kind = scanned.Kind(float(part.erase), after_retain, before_write)
                answer, w = _scanned(part, asked, w, kind, chunk)
                reads.append(answer)
                continue
            spans, w, s = _chunks(part.chunks(chunk), w, s, view)
            asked = torch.unflatten(asked, -2, (-1, chunk))
            reads.append(read(spans, asked).flatten(-3, -2))
        return reads[0] if len(reads) == 1 else torch.cat(reads, -2), w, s


def _without_fla(asked: fla.Scan, chunk: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same scan of given tensors in float32, which can be derived again."""
    numbers = [None if isinstance(g, Tensor) else g for g in (asked.rate, asked.keep)]
    erase, retained, aim, half = asked.erase, asked.retained, asked.aim, asked.q.dtype

    def plain(
        w: Tensor, q: Tensor, x: Tensor, e: Tensor, *gates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rate, keep = (n if g is None else g for n, g in zip(numbers, gates, strict=True))
        assert rate is not None and keep is not None
        q, x, e = q.float(), x.float(), e.float()
        y, end, _ = scan(w, q, x, e, rate, keep, None, None, erase, retained, chunk, aim=aim)
        return y.to(half), end

    return plain


def _blocks(time: int, chunk: int, rows: int, most: int) -> list[int]:
    """Ticks made at once: whole chunks, of at most so many vectors, and what is left."""
    whole = time - time % chunk if time >= 2 * chunk else 0
    block = chunk * max(8, most // max(rows * chunk, 1))
    sizes = [block] * (whole // block)
    if whole % block == chunk and sizes:
        sizes[-1] += chunk
    elif whole % block:
        sizes.append(whole % block)
    return [*sizes, time - whole] if whole < time or not time else sizes


def _one_tick(
    ticks: Ticks, old: Tensor, s: Tensor | None, q: Tensor, view: View, before_write: bool,
    turned: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The recurrence as it stands on top, which for a stream of single tokens is the fastest."""
    x = ticks.x
    retained = column(ticks.keep, x) * old
    error = ticks.e
    if isinstance(ticks.erase, Tensor) or ticks.erase != 0:
        probe = retained if view is View.RETAINED else old
        error = error + column(ticks.erase, x) * (x @ probe.mT)
    written = (-column(ticks.rate, x) * error).mT @ x
    if s is not None and ticks.momentum is not None:
        s = written = column(ticks.momentum, x) * s + written
    new = retained + written
    asked = old if before_write else new
    return (q.to(x.dtype) @ (asked if turned else asked.mT)).to(q.dtype), new, s


def _is_delta_rule(ticks: Ticks, w: Tensor, s: Tensor | None, after_retain: bool) -> bool:
    """Whether what is written can be found by hand."""
    rate, x = ticks.rate, ticks.x
    plain = s is None and not after_retain and x.ndim == 3 and w.shape[0] == x.shape[0]
    erases = not isinstance(ticks.erase, Tensor) and ticks.erase != 0
    if not plain or not erases or not isinstance(rate, Tensor) or rate.ndim != 2:
        return False
    return by_hand.allowed() and not kernels.ready(x.shape[-2], x, w)


def _delta_rules(parts: Sequence[tuple[Ticks, Tensor]], retention: Retention) -> list[Span]:
    """Spans that all have these gates."""
    ticks = parts[0][0]
    if not isinstance(retention, ScalarRetention) or retention.keep is None:
        return [_alone(t.over(len(w)), w, None, View.BEFORE, retention) for t, w in parts]
    if ticks.x.shape[1] == 1:
        return [_one_write(t.over(len(w)), w, retention) for t, w in parts]
    erase, rate, table = ticks.erase, ticks.rate, retention.table
    assert isinstance(erase, float | int) and isinstance(rate, Tensor)
    if table is None:
        table = torch.cat((*retention.start, retention.writes), -1)
    table = table if table.ndim == 3 else table.unsqueeze(0)
    rows = max(len(rate), len(table))

    def plain(rate: Tensor, table: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        left, made = of_table(None, table), list[Tensor]()
        for w, x, e in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            given = Ticks(x, e, rate, 1.0, None, erase).over(len(x))
            one = _alone(given, w, None, View.BEFORE, left)
            made += [one.wrote, one.end()[0]]
        return tuple(made)

    given = [v for t, w in parts for v in (w, t.x, t.e)]
    gates = by_hand.over(rate, rows), by_hand.over(table, rows)
    made = Written.apply(plain, float(erase), *gates, *given)  # type: ignore[no-untyped-call]
    left = replace(retention, table=None)
    ends = zip(parts, made[::2], made[1::2], strict=True)
    return [Span(left, w, None, t.x, wrote, end) for (t, w), wrote, end in ends]


def _one_write(ticks: Ticks, w: Tensor, retention: ScalarRetention) -> Span:
    """A span of one tick depends on no write before it."""
    rest = retention.rest[0]
    keep = by_hand.over(rest if rest.ndim == 3 else rest.unsqueeze(0), w.shape[0])
    error = ticks.e + ticks.erase * torch.bmm(ticks.x, w.mT)
    wrote = error * -column(ticks.rate, ticks.x)
    return Span(retention, w, None, ticks.x, wrote, torch.baddbmm(w * keep, wrote.mT, ticks.x))


def _has_numbers_for_gates(ticks: Ticks) -> bool:
    """One a tick, or one for all; erase one for all."""
    gates, axes = (ticks.rate, ticks.keep), ticks.x.ndim - 1
    numbers = all(not isinstance(g, Tensor) or g.ndim <= axes for g in gates)
    return numbers and not isinstance(ticks.erase, Tensor)


def _scanned(
    ticks: Ticks, asked: Tensor, w: Tensor, kind: scanned.Kind, chunk: int
) -> tuple[Tensor, Tensor]:
    """Whole chunks by `Scanned`: what is read [..., T, m], and the state at the end."""
    lead, new = ticks.x.shape[:-2], ticks.x.new_full

    def by_chunk(value: Tensor, own: int = 0) -> Tensor:
        """[..., T, *] -> [chunks, batch, C, *]."""
        time, *rest = value.shape[value.ndim - own - 1 :]
        every = value.expand(*lead, time, *rest)
        return every.reshape(math.prod(lead), -1, chunk, *rest).transpose(0, 1).contiguous()

    def plain(
        w: Tensor, q: Tensor, x: Tensor, e: Tensor, rate: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, x, e, rate = (t.transpose(0, 1) for t in (q, x, e, rate))
        left = 1.0 if keep is None else keep.transpose(0, 1)
        given = Ticks(x, e, rate, left, None, kind.erase)
        spans, end, _ = _chunks(given, w, None, _view(kind.retained))
        return spans.read(q, kind.before).transpose(0, 1), end

    rate, keep, left = ticks.rate, ticks.keep, None
    rate = by_chunk(rate) if isinstance(rate, Tensor) else new((1, 1, 1), rate)
    if isinstance(keep, Tensor) or keep != 1.0:
        left = by_chunk(keep) if isinstance(keep, Tensor) else new((1, 1, chunk), keep)
    start = w.expand(*lead, *w.shape[-2:]).reshape(-1, *w.shape[-2:])
    given = by_chunk(asked.to(start.dtype), 1), by_chunk(ticks.x, 1), by_chunk(ticks.e, 1)
    y, end = scanned.Scanned.apply(plain, kind, start, *given, rate, left)  # type: ignore[no-untyped-call]
    read = y.transpose(0, 1).reshape(*lead, -1, y.shape[-1])
    return read.to(asked.dtype), end.view(*lead, *end.shape[1:])


def _alone(
    ticks: Ticks, w: Tensor, s: Tensor | None, view: View, retention: Retention | None = None
) -> Span:
    given = retention
    if given is not None and isinstance(given, ScalarRetention) and given.writes.ndim == 3:
        given = repeated(given, ticks.x.shape[-3] // given.writes.shape[0])
    writes = ticks.writes(view, given)
    return Span(writes.retention, w, s, writes.x, writes.to(w, s))


def _chunks(
    ticks: Ticks, w: Tensor, s: Tensor | None, view: View
) -> tuple[Span, Tensor, Tensor | None]:
    """The spans of all chunks, on an axis before time, and the state at the end."""
    writes = ticks.writes(view)
    if not writes.by_output:
        fixed, slope = (writes.amount, None) if writes.erase is None else writes.affine()
        return chained(writes.retention, w, s, writes.x, fixed, slope)
    return chained(writes.retention, w, s, writes.x, writes.amount, None, writes)


def chained(
    retention: Retention,
    w: Tensor,
    s: Tensor | None,
    x: Tensor,
    fixed: Tensor,
    slope: Tensor | None,
    alone: Writes | None = None,
) -> tuple[Span, Tensor, Tensor | None]:
    """The spans of chunks [..., N, C, *] that write fixed + slope state', and the state at the end;
    `alone`: what is written with one system for each output, in place of `slope`.
    """
    state = w if s is None else torch.cat((w, s), -1)
    tail = retention.tail(x)
    chunks, kind = tail.shape[:-2], state.shape[-2:]
    state = state.expand(*chunks[:-1], *kind).reshape(-1, *kind)
    left = [_rows(v.expand(*chunks, *v.shape[-2:])) for v in retention.left()]
    if alone is not None:
        start, wrote, state = _one_by_one(alone, state, _rows(tail), left)
    else:
        slope = None if slope is None else _rows(slope)
        chain: Callable[..., tuple[Tensor, Tensor, Tensor]] = _chained
        if by_hand.allowed():
            chain = partial(_chain(state, fixed, len(left)).apply, _chained)
        start, wrote, state = chain(state, _rows(fixed), slope, _rows(tail), *left)
    start, wrote = start.view(*chunks, *kind), wrote.view_as(fixed)
    has_momentum = s is not None
    spans = Span(retention, *_parts(start, has_momentum), x, wrote)
    return spans, *_parts(state.view(*chunks[:-1], *kind), has_momentum)


def _chain(state: Tensor, fixed: Tensor, tables: int) -> type[torch.autograd.Function]:
    """Who goes from chunk to chunk."""
    by_kernels = tables < 2 and kernels.ready(fixed.shape[-2], state, fixed)
    by_kernels = by_kernels and kernels.chains(state.shape[-1])
    return kernels.Chained if by_kernels else by_hand.Chained


def _chained(
    state: Tensor, fixed: Tensor, slope: Tensor | None, tail: Tensor, *left: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states that chunks start from, what they write, and the last state: `by_hand.Chained`."""
    starts, wrote = [], []
    for c in range(tail.shape[1]):
        starts.append(state)
        amount = fixed[:, c]
        if slope is not None:
            amount = torch.baddbmm(amount, slope[:, c], state.mT)
        wrote.append(amount)
        state = torch.baddbmm(faded(state, [v[:, c] for v in left]), amount.mT, tail[:, c])
    return torch.stack(starts, 1), torch.stack(wrote, 1), state


def _one_by_one(
    writes: Writes, state: Tensor, tail: Tensor, left: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one system for each output: too large to be kept solved for any state."""
    system = writes.system()
    systems = system.reshape(-1, *system.shape[-4:])
    parts = [_rows(v) for v in (writes.amount, writes.strength(), writes.met())]
    every = zip(*(v.unbind(1) for v in (systems, *parts, tail, *left)), strict=True)
    starts, wrote = [], []
    for own, amount, strength, met, last, *rest in every:
        starts.append(state)
        wrote.append(solve(own, amount - strength * times(met, state.mT)))
        state = torch.baddbmm(faded(state, rest), wrote[-1].mT, last)
    return torch.stack(starts, 1), torch.stack(wrote, 1), state


def _rows(value: Tensor) -> Tensor:
    """[..., N, a, b] -> [batch, N, a, b]."""
    return value.reshape(-1, *value.shape[-3:])


def _view(after_retain: bool) -> View:
    return View.RETAINED if after_retain else View.BEFORE


def _parts(state: Tensor, has_momentum: bool) -> tuple[Tensor, Tensor | None]:
    if not has_momentum:
        return state, None
    w, s = state.chunk(2, -1)
    return w, s


def widened(W0: Tensor, S0: Tensor | None, ticks: Ticks) -> tuple[Tensor, Tensor | None, Ticks]:
    """The state, S nought where it is not given, and the ticks in one type, float32 or wider."""
    types = {W0.dtype, *(v.dtype for v in ticks.tensors())}
    wide = reduce(torch.promote_types, types, torch.float32)
    if types != {wide}:
        ticks = ticks.each(lambda value, axis: value.to(wide))
    w = W0.to(wide)
    if S0 is None:
        return w, None if ticks.momentum is None else torch.zeros_like(w), ticks
    return w, S0.to(wide), ticks


def state_arithmetic(at: Tensor | torch.device) -> AbstractContextManager[Any]:
    """States keep their precision under autocast."""
    device = at.device if isinstance(at, Tensor) else at
    if not under_autocast(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def under_autocast(device: torch.device) -> bool:
    """Dynamo of torch 2.11 cannot trace the question whether `meta`, which has none, has it."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
