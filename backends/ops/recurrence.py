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

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from itertools import repeat

import torch
from torch import Tensor

from .retention import (
    Retention,
    View,
    faded,
    kept,
    kept_by_channel,
    kept_with_momentum,
    times,
    unit_inverse,
    unit_solve,
)

Number = Tensor | float

CHUNK = 32


@dataclass(frozen=True)
class Span:
    """A span whose amounts are known: it answers reads at every tick without making a state.

    state  [..., m, s]    W at the start, beside S if there is momentum
    x      [..., T, n]
    wrote  [..., T, m]    r_t
    """

    retention: Retention
    state: Tensor
    x: Tensor
    wrote: Tensor
    has_momentum: bool

    def read(self, q: Tensor, before_write: bool = False) -> Tensor:
        """[..., T, m]: W_t q_t, or W_{t-1} q_t, for q [..., T, n]."""
        return self._read(q, View.BEFORE if before_write else View.AFTER)

    def retained(self, q: Tensor) -> Tensor:
        """[..., T, m]: keep_t W_{t-1} q_t, for q [..., T, n]."""
        return self._read(q, View.RETAINED)

    def back(self, e: Tensor, retained: bool = False) -> Tensor:
        """[..., T, n]: W_{t-1}' e_t, or keep_t W_{t-1}' e_t, for e [..., T, m]."""
        view = View.RETAINED if retained else View.BEFORE
        if e.ndim > self.state.ndim:
            rows = replace(self, retention=self.retention.asked(e.shape[-2]))
            return rows.back(e.flatten(-3, -2), retained).unflatten(-2, e.shape[-3:-1])
        with _state_arithmetic(self.x):
            u = e.to(self.x.dtype)
            near = times(self.retention.pairs(u, self.wrote, view), self.x)
            far = times(self.retention.carry(u, view), _turned(self.state, self.has_momentum))
            return (near + far).to(e.dtype)

    def _read(self, q: Tensor, view: View) -> Tensor:
        if q.ndim > self.state.ndim:
            rows = replace(self, retention=self.retention.asked(q.shape[-2]))
            return rows._read(q.flatten(-3, -2), view).unflatten(-2, q.shape[-3:-1])
        with _state_arithmetic(self.x):
            u = q.to(self.x.dtype)
            near = times(self.retention.pairs(u, self.x, view), self.wrote)
            return (near + times(self.retention.carry(u, view), self.state.mT)).to(q.dtype)

    def end(self) -> tuple[Tensor, Tensor | None]:
        """(W_T, S_T), S_T None without momentum."""
        with _state_arithmetic(self.x):
            return _parts(self.last_state(), self.has_momentum)

    def rows(self, first: int, last: int) -> Span:
        """The same span for some of the rows of W only."""
        return replace(
            self, state=self.state[..., first:last, :], wrote=self.wrote[..., first:last]
        )

    def member(self, i: int, members: int) -> Span:
        """One of several matrices that are side by side on the first axis, gates and all."""

        def part(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(
                t.chunk(members)[i] if t.shape[0] == self.x.shape[0] else t for t in tensors
            )

        return self.held(part)

    def pick(self, i: int) -> Span:
        """One of several matrices stacked on the first axis, whose gates do not have it."""
        return replace(self, state=self.state[i], x=self.x[i], wrote=self.wrote[i])

    def held(self, hold: Callable[..., tuple[Tensor, ...]]) -> Span:
        """The same span, all that it keeps passed through `hold` at once: what is asked of it is
        not.
        """
        kept = {f.name: getattr(self.retention, f.name) for f in fields(self.retention)}  # type: ignore[arg-type]
        names = [n for n, v in kept.items() if isinstance(v, Tensor)]
        *tables, state, x, wrote = hold(*(kept[n] for n in names), self.state, self.x, self.wrote)
        retention = replace(self.retention, **dict(zip(names, tables, strict=True)))  # type: ignore[type-var]
        return Span(retention, state, x, wrote, self.has_momentum)

    def last_state(self) -> Tensor:
        """[..., m, s]."""
        start = faded(self.state, self.retention.left())
        return start + times(self.wrote.mT, self.retention.tail(self.x))


@dataclass(frozen=True)
class Start:
    """A span whose writes are not known yet, nor what is kept if `retention` is None. `like` tells
    its leading axes and its ticks.
    """

    retention: Retention | None
    state: Tensor
    has_momentum: bool
    like: Tensor

    def span(self, x: Tensor, wrote: Tensor, keep: Tensor | None = None) -> Span:
        """The span in which tick t writes wrote_t x_t': [..., T, m] and [..., T, n], or as many
        of each at a tick as they have rows, [..., T, r, m] and [..., T, r, n].
        """
        retention = self.retention or kept(keep, x)
        if x.ndim > self.like.ndim:
            retention = retention.rows(x.shape[-2])
            x, wrote = x.flatten(-3, -2), wrote.flatten(-3, -2)
        return Span(retention, self.state, x, wrote, self.has_momentum)

    def nothing(self) -> tuple[Tensor, ...]:
        """Writes of nought, x and wrote; and all kept, where that is not known."""
        *lead, m, s = self.state.shape
        ticks = self.like.shape[-2]
        n = s // 2 if self.has_momentum else s
        new = self.state.new_zeros
        none = new(*lead, ticks, n), new(*lead, ticks, m)
        return none if self.retention is not None else (*none, new(*lead, ticks) + 1)


def begin(
    W0: Tensor,
    like: Tensor,
    keep: Number | None = 1.0,
    momentum: Number | None = None,
    S0: Tensor | None = None,
) -> Start:
    """The start of a span for which `solved` finds the writes. Arguments as in `span`; `like` is
    any stream [..., T, *] with all the leading axes; keep None: as `solved` will find.
    """
    with _state_arithmetic(like):
        given = _Ticks(like, like, 1.0, 1.0 if keep is None else keep, momentum, 0.0)
        state, ticks = _widened(W0, S0, given)
        retention = None if keep is None else ticks.retention()
        return Start(retention, state, momentum is not None, ticks.x)


@dataclass(frozen=True)
class _Writes:
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

    def to(self, state: Tensor) -> Tensor:
        """R [..., C, m], for a start state."""
        if self.erase is None:
            return self.amount
        return _solved(self.system(), self.amount, self.strength(), self.met(), state)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(U [..., C, m], Y [..., C, s]) with R = U + Y state'."""
        assert self.erase is not None
        inverse = unit_inverse(self.system())
        return inverse @ self.amount, inverse @ (-self.erase.unsqueeze(-1) * self.met())

    def by_chunk(self) -> list[Callable[[Tensor], Tensor]]:
        """For each chunk what makes R [batch, C, m] of its start state [batch, m, s]."""
        if self.erase is None:
            return [partial(_known, amount) for amount in _by_chunk(self.amount)]
        if not self.by_output:
            fixed, slope = self.affine()
            pairs = zip(_by_chunk(fixed), _by_chunk(slope), strict=True)
            return [partial(_affine, u, y) for u, y in pairs]
        # One system for each output is too large to be kept solved for any state.
        system = self.system()
        systems = system.reshape(-1, *system.shape[-4:]).unbind(1)
        parts = (self.amount, self.strength(), self.met())
        return [partial(_solved, *of) for of in zip(systems, *map(_by_chunk, parts), strict=True)]


@dataclass(frozen=True)
class _Ticks:
    """What arrives at each tick; time is the axis before the last where there are channels."""

    x: Tensor
    e: Tensor
    rate: Number
    keep: Number
    momentum: Number | None
    erase: Number

    def each(self, change: Callable[[Tensor, int], Tensor]) -> _Ticks:
        def gate(value: Number) -> Number:
            if not isinstance(value, Tensor):
                return value
            return change(value, -2 if value.ndim == self.x.ndim else -1)

        momentum = None if self.momentum is None else gate(self.momentum)
        x, e = change(self.x, -2), change(self.e, -2)
        return _Ticks(x, e, gate(self.rate), gate(self.keep), momentum, gate(self.erase))

    def part(self, start: int, stop: int) -> _Ticks:
        if (start, stop) == (0, self.x.shape[-2]):
            return self
        return self.each(lambda value, axis: value.narrow(axis, start, stop - start))

    def chunks(self, chunk: int) -> _Ticks:
        """Time split in two: chunks, ticks of a chunk."""
        return self.each(lambda value, axis: torch.unflatten(value, axis, (-1, chunk)))

    def writes(self, view: View) -> _Writes:
        amount = -_column(self.rate, self.x) * self.e
        return _Writes(self.retention(), self.x, amount, self._strength(), view)

    def retention(self) -> Retention:
        if isinstance(self.keep, Tensor) and self.keep.ndim == self.x.ndim:
            assert self.momentum is None, "one keep for each channel does not go with momentum"
            return kept_by_channel(self.keep)
        all_kept = not isinstance(self.keep, Tensor) and self.keep == 1.0
        keep = None if all_kept else self._row(self.keep)
        if self.momentum is None:
            return kept(keep, self.x)
        return kept_with_momentum(keep, self._row(self.momentum))

    def _strength(self) -> Tensor | None:
        """rate erase, or None where nothing is erased."""
        if not isinstance(self.erase, Tensor):
            return None if self.erase == 0.0 else self._row(self.rate * self.erase)
        if isinstance(self.rate, Tensor) and self.rate.ndim == self.x.ndim:
            return self.rate * self.erase.unsqueeze(-1)
        return self.rate * self.erase

    def _row(self, value: Number) -> Tensor:
        """A number is the same at all ticks."""
        return value if isinstance(value, Tensor) else self.x.new_full(self.x.shape[-2:-1], value)


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
) -> Span:
    """One chunk, exactly; the formula is on top of the file.

    W0, S0     [..., m, n], the two alike; S0 is nought if not given
    x, e       [..., T, n], [..., T, m], with all the leading axes; the others may lack some
    rate       a number, [..., T], or [..., T, m] with as many axes as x: one an output channel
    keep       a number, [..., T], or, without momentum, [..., T, n] with as many axes as x
    momentum   None, a number, or [..., T]
    erase      a number or [..., T]
    """
    with _state_arithmetic(x):
        state, ticks = _widened(W0, S0, _Ticks(x, e, rate, keep, momentum, erase))
        return _alone(ticks, state, _view(after_retain))


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y [..., T, m], W_T, S_T) with y_t = W_t q_t, or W_{t-1} q_t with before_write.

    Arguments as in `span`; q [..., T, n]. No result depends on the chunk, but for rounding.
    """
    with _state_arithmetic(x):
        state, ticks = _widened(W0, S0, _Ticks(x, e, rate, keep, momentum, erase))
        view, time = _view(after_retain), x.shape[-2]
        has_momentum = momentum is not None
        if time == 1:
            y, state = _one_tick(ticks, state, q, view, before_write)
            return y, *_parts(state, has_momentum)
        reads = []
        whole = time - time % chunk if time >= 2 * chunk else 0
        if whole:
            spans, state = _chunks(ticks.part(0, whole).chunks(chunk), state, view)
            asked = torch.unflatten(q.narrow(-2, 0, whole), -2, (-1, chunk))
            reads.append(spans.read(asked, before_write).flatten(-3, -2))
        if whole < time or not time:
            rest = _alone(ticks.part(whole, time), state, view)
            reads.append(rest.read(q.narrow(-2, whole, time - whole), before_write))
            state = rest.last_state()
        y = reads[0] if len(reads) == 1 else torch.cat(reads, -2)
        return y, *_parts(state, has_momentum)


def _one_tick(
    ticks: _Ticks, state: Tensor, q: Tensor, view: View, before_write: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence as it stands on top, which for a stream of single tokens is the fastest."""
    x = ticks.x
    old, s = _parts(state, ticks.momentum is not None)
    retained = _column(ticks.keep, x) * old
    error = ticks.e
    if isinstance(ticks.erase, Tensor) or ticks.erase != 0:
        probe = retained if view is View.RETAINED else old
        error = error + _column(ticks.erase, x) * (x @ probe.mT)
    written = (-_column(ticks.rate, x) * error).mT @ x
    if s is None or ticks.momentum is None:
        new = end = retained + written
    else:
        written = _column(ticks.momentum, x) * s + written
        new = retained + written
        end = torch.cat((new, written), -1)
    return (q.to(x.dtype) @ (old if before_write else new).mT).to(q.dtype), end


def _alone(ticks: _Ticks, state: Tensor, view: View) -> Span:
    writes = ticks.writes(view)
    has_momentum = ticks.momentum is not None
    return Span(writes.retention, state, writes.x, writes.to(state), has_momentum)


def _chunks(ticks: _Ticks, state: Tensor, view: View) -> tuple[Span, Tensor]:
    """The spans of all chunks, on an axis before time, and the state at the end."""
    writes = ticks.writes(view)
    tail = writes.retention.tail(writes.x)
    chunks, kind = tail.shape[:-2], state.shape[-2:]
    left = [_by_chunk(v.expand(*chunks, *v.shape[-2:])) for v in writes.retention.left()]
    lefts = zip(*left, strict=True) if left else repeat(())
    state = state.expand(*chunks[:-1], *kind).reshape(-1, *kind)
    starts, wrote = [], []
    for amounts, last, left_of in zip(writes.by_chunk(), _by_chunk(tail), lefts, strict=False):
        starts.append(state)
        wrote.append(amounts(state))
        state = torch.baddbmm(faded(state, left_of), wrote[-1].mT, last)
    start = torch.stack(starts, 1).view(*chunks, *kind)
    amount = writes.amount if writes.erase is None else torch.stack(wrote, 1).view_as(writes.amount)
    spans = Span(writes.retention, start, writes.x, amount, ticks.momentum is not None)
    return spans, state.view(*chunks[:-1], *kind)


def _by_chunk(value: Tensor) -> tuple[Tensor, ...]:
    """[..., N, a, b] -> N times [batch, a, b]."""
    return value.reshape(-1, *value.shape[-3:]).unbind(1)


def _known(amount: Tensor, state: Tensor) -> Tensor:
    return amount


def _affine(fixed: Tensor, slope: Tensor, state: Tensor) -> Tensor:
    return torch.baddbmm(fixed, slope, state.mT)


def _solved(system: Tensor, amount: Tensor, strength: Tensor, met: Tensor, state: Tensor) -> Tensor:
    return _solve(system, amount - strength * times(met, state.mT))


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """[..., C, m]: (I + system) R = right, with [..., C, C] or a system a column [..., m, C, C]."""
    if system.ndim == right.ndim:
        return unit_solve(system, right)
    return unit_solve(system, right.mT.unsqueeze(-1)).squeeze(-1).mT


def _turned(state: Tensor, has_momentum: bool) -> Tensor:
    """[..., s, n]: W', below it S' if there is momentum, for what meets the two side by side."""
    if not has_momentum:
        return state
    return torch.cat(state.chunk(2, -1), -2)


def _column(value: Number, x: Tensor) -> Number:
    """A gate [..., T] or [..., T, m] beside a sequence [..., T, m]."""
    if not isinstance(value, Tensor) or value.ndim == x.ndim:
        return value
    return value.unsqueeze(-1)


def _view(after_retain: bool) -> View:
    return View.RETAINED if after_retain else View.BEFORE


def _parts(state: Tensor, has_momentum: bool) -> tuple[Tensor, Tensor | None]:
    if not has_momentum:
        return state, None
    w, s = state.chunk(2, -1)
    return w, s


def _widened(W0: Tensor, S0: Tensor | None, ticks: _Ticks) -> tuple[Tensor, _Ticks]:
    """The state [..., m, s] and the ticks in one type, float32 or wider."""
    given = [W0, *(v for v in vars(ticks).values() if isinstance(v, Tensor))]
    wide = reduce(torch.promote_types, (v.dtype for v in given), torch.float32)
    ticks = ticks.each(lambda value, axis: value.to(wide))
    state = W0.to(wide)
    if ticks.momentum is None:
        return state, ticks
    momentum = torch.zeros_like(state) if S0 is None else S0.to(wide)
    return torch.cat((state, momentum), -1), ticks


def _state_arithmetic(x: Tensor) -> torch.autocast:
    """States keep their precision under autocast."""
    return torch.autocast(x.device.type, enabled=False)
