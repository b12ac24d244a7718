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
memory-family.md B4, B5); with c_t what x_t meets in the start state and G_tj what it meets in the
write of j (retention.py),

    (I + diag(rate erase) G) R = -rate (E + erase c W_0')

and W_t q_t = (c W_0')_t + sum_{j<=t} G_tj r_j with c and G made of q in place of x. R is affine in
the start state, R = U + Y W_0', so a whole chunk is one matrix step, W_0 (end + Y' X) + U' X with
X the x_j as they are left at the end: all but these steps is done for all chunks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .retention import (
    Retention,
    View,
    kept,
    kept_by_channel,
    kept_with_momentum,
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
        view = View.BEFORE if before_write else View.AFTER
        with _state_arithmetic(self.x):
            u = q.to(self.x.dtype)
            near = self.retention.pairs(u, self.x, view) @ self.wrote
            return (near + self.retention.carry(u, view) @ self.state.mT).to(q.dtype)

    def end(self) -> tuple[Tensor, Tensor | None]:
        """(W_T, S_T), S_T None without momentum."""
        with _state_arithmetic(self.x):
            return _parts(self.last_state(), self.has_momentum)

    def last_state(self) -> Tensor:
        """[..., m, s]."""
        return self.retention.end(self.state) + self.wrote.mT @ self.retention.tail(self.x)


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
        return _solve(self.system(), self.amount - self.strength() * (self.met() @ state.mT))

    def affine(self) -> tuple[Tensor, Tensor]:
        """(U [..., C, m], Y [..., C, s]) with R = U + Y state'."""
        assert self.erase is not None
        inverse = unit_inverse(self.system())
        return inverse @ self.amount, inverse @ (-self.erase.unsqueeze(-1) * self.met())


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
        return _Writes(self._retention(), self.x, amount, self._strength(), view)

    def _retention(self) -> Retention:
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
    has_momentum = ticks.momentum is not None
    if writes.by_output:
        states, wrote = _one_by_one(writes, state)
    else:
        states, wrote = _all_at_once(writes, state, has_momentum)
    starts, last = states
    return Span(writes.retention, starts, writes.x, wrote, has_momentum), last


def _all_at_once(
    writes: _Writes, state: Tensor, has_momentum: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    tail = writes.retention.tail(writes.x)
    if writes.erase is None and not has_momentum:
        step = writes.retention.end(tail.new_ones(1, tail.shape[-1]))
        states = _march(torch.addcmul, state, step, writes.amount.mT @ tail)
        return states, writes.amount
    step = writes.retention.end(torch.eye(tail.shape[-1], dtype=tail.dtype, device=tail.device))
    if writes.erase is None:
        return _march(torch.baddbmm, state, step, writes.amount.mT @ tail), writes.amount
    fixed, slope = writes.affine()
    states = _march(torch.baddbmm, state, step + slope.mT @ tail, fixed.mT @ tail)
    return states, fixed + slope @ states[0].mT


def _march(
    advance: Callable[[Tensor, Tensor, Tensor], Tensor], state: Tensor, step: Tensor, write: Tensor
) -> tuple[Tensor, Tensor]:
    """(the start states of the chunks [..., N, m, s], the last state)."""
    lead, kind = write.shape[:-3], write.shape[-2:]
    steps = step.expand(*write.shape[:-2], *step.shape[-2:])
    state = state.expand(*lead, *kind).reshape(-1, *kind)
    starts = []
    for one_step, one_write in zip(_by_chunk(steps), _by_chunk(write), strict=True):
        starts.append(state)
        state = advance(one_write, state, one_step)
    return torch.stack(starts, 1).view(write.shape), state.view(*lead, *kind)


def _by_chunk(value: Tensor) -> tuple[Tensor, ...]:
    """[..., N, a, b] -> N times [batch, a, b]."""
    return value.reshape(-1, *value.shape[-3:]).unbind(1)


def _one_by_one(writes: _Writes, state: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """One rate an output channel: a system for each, too large to be kept solved for any state."""
    tail = writes.retention.tail(writes.x)
    step = writes.retention.end(torch.eye(tail.shape[-1], dtype=tail.dtype, device=tail.device))
    steps = step.expand(*tail.shape[:-2], *step.shape[-2:]).unbind(-3)
    systems = writes.system().unbind(-4)
    chunks = (v.unbind(-3) for v in (writes.amount, writes.strength(), writes.met(), tail))
    starts, wrote = [], []
    for system, move, amount, strength, met, left in zip(systems, steps, *chunks, strict=True):
        starts.append(state)
        wrote.append(_solve(system, amount - strength * (met @ state.mT)))
        state = state @ move + wrote[-1].mT @ left
    starts[0] = starts[0].expand(state.shape)
    return (torch.stack(starts, -3), state), torch.stack(wrote, -3)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """[..., C, m]: (I + system) R = right, with [..., C, C] or a system a column [..., m, C, C]."""
    if system.ndim == right.ndim:
        return unit_solve(system, right)
    return unit_solve(system, right.mT.unsqueeze(-1)).squeeze(-1).mT


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
