"""What is left, at each tick of a span, of the start state and of each write of the span.

Per batch element, C ticks, keep_t the fraction kept, momentum_t the fraction of the last write
repeated (Gated DeltaNet 2412.06464, GLA, KDA, Titans 2501.00663, MDN 2605.05838):

    W_t = keep_t W_{t-1} + S_t          S_t = momentum_t S_{t-1} + r_t x_t'

    W_t = A_t W_0 + F_t S_0 + sum_{j<=t} L_tj r_j x_j'

    D_ti = prod_{i<r<=t} keep_r         N_ij = prod_{j<r<=i} momentum_r
    A_t = D_t0    L = D N over the ticks    F_t = sum_{1<=i<=t} D_ti N_i0

Without momentum L = D and F is absent. With one keep for each input channel, A and L have a
channel axis, and L is never made: only its sums against pairs of vectors are.

Products are multiplied, not exponentials of sums of logarithms and not quotients, so that a keep
of exactly zero (or below) has its exact value and gradient, and nothing can overflow.

The state is [..., m, s]: W alone (s = n), or W beside S (s = 2 n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from . import by_hand, kernels

Tables = Tensor | tuple["Tables", ...] | None


def each(tables: Tables, own: int, change: Callable[[Tensor, int], Any]) -> Any:
    """The same tree of tables, each changed; `own`: how many axes of its own each has."""
    if isinstance(tables, tuple):
        return tuple(each(t, own, change) for t in tables)
    return None if tables is None else change(tables, own)


def _unbound(retention: Any, many: int, lead: int) -> list[Any]:
    """What lacks the axis is the same for all."""

    def parts(table: Tensor, own: int) -> Sequence[Tensor]:
        return table.unbind(0) if table.ndim == own + lead + 1 else (table,) * many

    def of(tables: Any, own: int) -> Sequence[Any]:
        if isinstance(tables, tuple):
            found = [of(t, own) for t in tables]
            return list(zip(*found, strict=True)) if found else ((),) * many
        return (None,) * many if tables is None else parts(tables, own)

    names = {n: of(getattr(retention, n), own) for n, own in retention.OWN.items()}
    return [replace(retention, **{n: v[i] for n, v in names.items()}) for i in range(many)]


class View(Enum):
    """Which state a query of tick t meets."""

    AFTER = "W_t"
    RETAINED = "keep_t W_{t-1}"
    BEFORE = "W_{t-1}"


class Retention(Protocol):
    """How a span carries its start state and its writes through its ticks: a dataclass of tables.

    OWN  for each of its fields that are tables, how many axes of their own they have
    """

    OWN: ClassVar[dict[str, int]]

    def carry(self, u: Tensor, view: View) -> Tensor:
        """[..., C, s]: what u_t [..., C, n] has to meet in the start state."""

    def pairs(self, u: Tensor, x: Tensor, view: View) -> Tensor:
        """[..., C, C]: u_t' x_j, weighted by what is left at t of the write of j; else 0."""

    def tail(self, x: Tensor) -> Tensor:
        """[..., C, s]: x_j [..., C, n] weighted by what is left of its write at the end."""

    def left(self) -> tuple[Tensor, ...]:
        """What is left at the end of the start state, for `faded`."""

    def far(self, u: Tensor, view: View, w: Tensor, s: Tensor | None) -> Tensor:
        """[..., C, m]: what u_t meets of the start state."""

    def back(
        self, u: Tensor, view: View, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> Tensor:
        """[..., C, n]: what u_t [..., C, m] meets of the state from the other side, W' u."""

    def end(
        self, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """W and S at the end of the span, for what was written, [..., C, m] and [..., C, n]."""

    def unbound(self, many: int, lead: int) -> list[Retention]:
        """Of `many` spans, on an axis before their `lead` leading axes, each by itself."""

    def rows(self, many: int) -> Retention:
        """The same, where each tick makes `many` writes, one after the other in x."""

    def asked(self, many: int) -> Retention:
        """The same, where each tick asks `many` times, one after the other in u."""


def faded(state: Tensor, left: Sequence[Tensor]) -> Tensor:
    """[..., m, s]: the start state as it is at the end of a span, without the writes of the span.

    left is nothing (all is kept), A, or A, F and N_C0, each [..., 1, 1] or [..., 1, n].
    """
    if not left:
        return state
    if len(left) == 1:
        return state * left[0]
    w, s = state.chunk(2, -1)
    return torch.cat((w * left[0] + s * left[1], s * left[2]), -1)


def times(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; for one leading axis the plain batched product, which saves the views of the other."""
    if a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0]:
        return torch.bmm(a, b)
    return a @ b


def unit_solve(lower: Tensor, right: Tensor) -> Tensor:
    """(I + lower)^-1 right, by substitution; only what is below lower's diagonal is read."""
    solved: Tensor = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    return solved


class _Inverse(torch.autograd.Function):
    """(I + A)^-1 of a strictly lower A; A's own upper part is neither read nor masked.

    Its derivative from its own value: two products, in place of another solve and two masks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(lower: Tensor) -> Tensor:
        return _inverse(lower)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inverse: Tensor = ctx.saved_tensors[0]
        return -(inverse.mT @ grad @ inverse.mT)


def unit_inverse(lower: Tensor) -> Tensor:
    """(I + lower)^-1 for strictly lower triangular [..., C, C]."""
    if torch.compiler.is_compiling():
        # The tracer warns about every autograd.Function, and users turn warnings into errors.
        return _inverse(lower)
    inverse: Tensor = _Inverse.apply(lower)  # type: ignore[no-untyped-call]
    return inverse


def _inverse(lower: Tensor) -> Tensor:
    return unit_solve(lower, torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device))


def products(factor: Tensor) -> Tensor:
    """[..., C + 1, C + 1] from [..., C]: at (t, i) the product of factor_r over i < r <= t.

    It is the inverse of I with -factor below its diagonal.
    """
    if not by_hand.allowed():
        return _products(factor)
    if kernels.ready(factor.shape[-1] + 1, factor):
        return kernels.products(factor, _products)
    table: Tensor = by_hand.Products.apply(factor, _products)  # type: ignore[no-untyped-call]
    return table


def _products(factor: Tensor) -> Tensor:
    return unit_inverse(torch.diag_embed(-factor, -1))


def plus(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a + b @ c."""
    if a.ndim == b.ndim == c.ndim == 3 and a.shape[0] == b.shape[0] == c.shape[0]:
        return torch.baddbmm(a, b, c)
    return a + b @ c


@dataclass(frozen=True)
class ScalarRetention:
    """One keep a tick, with or without momentum.

    keep    [..., C], or None where it is 1
    writes  [..., C + 1, C]    L_tj
    start   [..., C + 1, 1]    A_t, and F_t with momentum, for t = 0 .. C; nothing where all are 1
    last    [..., C, 1]        L_Cj, and N_Cj; nothing where all are 1
    rest    [..., 1, 1]        A_C, and F_C and N_C0; nothing where all are 1
    table   [..., C + 1, C + 1]  all of these as one, where they are parts of one
    """

    keep: Tensor | None
    writes: Tensor
    start: tuple[Tensor, ...] = ()
    last: tuple[Tensor, ...] = ()
    rest: tuple[Tensor, ...] = ()
    table: Tensor | None = None
    queries: int = 1

    OWN: ClassVar[dict[str, int]] = {
        "keep": 1, "writes": 2, "start": 2, "last": 2, "rest": 2, "table": 2,
    }  # fmt: skip

    def _at(self, table: Tensor, view: View) -> Tensor:
        found = self._of_tick(table, view)
        return found if self.queries == 1 else found.repeat_interleave(self.queries, -2)

    def _of_tick(self, table: Tensor, view: View) -> Tensor:
        if view is View.AFTER:
            return table[..., 1:, :]
        before = table[..., :-1, :]
        if view is View.BEFORE or self.keep is None:
            return before
        return self.keep.unsqueeze(-1) * before

    def at(self, view: View) -> tuple[Tensor, ...]:
        """What is left of each write, of the start, and of its momentum, where a query meets it."""
        return tuple(self._at(part, view) for part in (self.writes, *self.start))

    def carry(self, u: Tensor, view: View) -> Tensor:
        return _beside([u * self._at(part, view) for part in self.start] or [u])

    def far(self, u: Tensor, view: View, w: Tensor, s: Tensor | None) -> Tensor:
        if not self.start:
            return times(u, w.mT)
        left, *of_momentum = (self._at(part, view) for part in self.start)
        if s is None:
            return _met(u, left, w)
        if w.shape[-2] < w.shape[-1]:
            return torch.addcmul(times(u, w.mT) * left, times(u, s.mT), of_momentum[0])
        return plus(_met(u, left, w), u * of_momentum[0], s.mT)

    def pairs(self, u: Tensor, x: Tensor, view: View) -> Tensor:
        return times(u, x.mT) * self._at(self.writes, view)

    def back(
        self, u: Tensor, view: View, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> Tensor:
        far = self.far(u, view, w.mT, None if s is None else s.mT)
        return plus(far, self.pairs(u, wrote, view), x)

    def tail(self, x: Tensor) -> Tensor:
        return _beside([x * part for part in self.last] or [x])

    def states(self, view: View, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor) -> Tensor:
        """[..., C, m, n]: W at every tick."""
        written = (wrote.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        states = torch.unflatten(times(self._at(self.writes, view), written), -1, w.shape[-2:])
        if not self.start:
            return states + w.unsqueeze(-3)
        for left, start in zip(self.start, (w, s), strict=False):
            if start is not None:
                states = torch.addcmul(
                    states, self._at(left, view).unsqueeze(-1), start.unsqueeze(-3)
                )
        return states

    def end(
        self, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        if not self.last:
            return plus(w, wrote.mT, x), None
        if kernels.ready(x.shape[-2], x, wrote, w, s):
            return kernels.end(_ended, w, s, x, wrote, self.last, self.rest)
        if s is None:
            return plus(w * self.rest[0], wrote.mT, x * self.last[0]), None
        given = (w, s, x, wrote, *self.last, *self.rest)
        if not by_hand.allowed() or any(t.ndim != 3 or len(t) != len(x) for t in given):
            return _ended(*given)
        end: tuple[Tensor, Tensor] = by_hand.Ended.apply(_ended, *given)  # type: ignore[no-untyped-call]
        return end

    def rows(self, many: int) -> ScalarRetention:
        last = tuple(part.repeat_interleave(many, -2) for part in self.last)
        writes = self.writes.repeat_interleave(many, -1)
        return replace(self, writes=writes, last=last, table=None)

    def asked(self, many: int) -> ScalarRetention:
        return replace(self, queries=many)

    def left(self) -> tuple[Tensor, ...]:
        return self.rest

    def unbound(self, many: int, lead: int) -> list[Retention]:
        return _unbound(self, many, lead)


def _ended(
    w: Tensor, s: Tensor, x: Tensor, wrote: Tensor, last: Tensor, last_s: Tensor, rest: Tensor,
    rest_s: Tensor, of_s: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The formula on top, at the end of the span."""
    faded = torch.addcmul(w * rest, s, rest_s)
    return plus(faded, wrote.mT, x * last), plus(s * of_s, wrote.mT, x * last_s)


def _met(u: Tensor, left: Tensor, w: Tensor) -> Tensor:
    """left_t W u_t, weighted where there are fewer numbers."""
    if w.shape[-2] < w.shape[-1]:
        return times(u, w.mT) * left
    return times(u * left, w.mT)


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def kept(keep: Tensor | None, like: Tensor) -> ScalarRetention:
    """keep [..., C], or None for 1; like [..., C, n] tells C, dtype and device."""
    if keep is None:
        ticks = like.shape[-2]
        ones = torch.ones(ticks + 1, ticks, dtype=like.dtype, device=like.device)
        return ScalarRetention(None, ones.tril(-1))
    if keep.shape[-1] == 1:
        one, column = torch.ones_like(keep).unsqueeze(-1), keep.unsqueeze(-1)
        writes = torch.cat((torch.zeros_like(one), one), -2)
        return ScalarRetention(keep, writes, (torch.cat((one, column), -2),), (one,), (column,))
    return of_table(keep, products(keep))


def of_table(keep: Tensor | None, table: Tensor) -> ScalarRetention:
    """table [..., C + 1, C + 1]: at (t, i) what is left at t of what was there at i."""
    start, writes = torch.split(table, [1, table.shape[-1] - 1], -1)
    last = (writes[..., -1, :, None],)
    return ScalarRetention(keep, writes, (start,), last, (start[..., -1:, :],), table)


def kept_with_momentum(keep: Tensor | None, momentum: Tensor) -> ScalarRetention:
    """keep [..., C], or None for 1; momentum [..., C]."""
    of_keep = products(torch.ones_like(momentum) if keep is None else keep)
    of_momentum = products(momentum)
    both = of_keep[..., 1:] @ of_momentum[..., 1:, :]
    first, writes = torch.split(both, [1, momentum.shape[-1]], -1)
    start = of_keep[..., :1].expand_as(first), first
    end = of_momentum[..., -1:, :].expand(*writes.shape[:-2], 1, -1)
    last = writes[..., -1, :, None], end[..., 1:].mT
    rest = start[0][..., -1:, :], first[..., -1:, :], end[..., :1]
    return ScalarRetention(keep, writes, start, last, rest)


@dataclass(frozen=True)
class ChannelRetention:
    """One keep for each input channel, by halving: no weight is above 1 if no keep is.

    With t in the right half of a block and j in its left half, what is left at t of the write of
    j is a product of one number of t (from the middle to t) and one of j (from j to the middle).

    keep    [..., C, n]
    before  [..., C, n]    the product over the ticks before t
    after   [..., C, n]    the product over the ticks after j
    whole   [..., 1, n]    the product over all
    halves  for blocks of 2, 4, 8, ... ticks, each [..., blocks, half, n]: the same two products
            inside a half, before t in the right and after j in the left
    """

    keep: Tensor
    before: Tensor
    after: Tensor
    whole: Tensor
    halves: tuple[tuple[Tensor, Tensor], ...]

    OWN: ClassVar[dict[str, int]] = {"keep": 2, "before": 2, "after": 2, "whole": 2, "halves": 3}

    def _seen(self, u: Tensor, view: View) -> Tensor:
        return u if view is View.BEFORE else u * self.keep

    def carry(self, u: Tensor, view: View) -> Tensor:
        return self._seen(u, view) * self.before

    def pairs(self, u: Tensor, x: Tensor, view: View) -> Tensor:
        ticks = u.shape[-2]
        table = self._earlier(self._seen(u, view), x)[..., :ticks, :ticks]
        if view is not View.AFTER:
            return table
        return table + torch.diag_embed((u * x).sum(-1))

    def _earlier(self, u: Tensor, x: Tensor) -> Tensor:
        """[..., ticks, ticks]: the pairs j < t, with the products over j < r < t."""
        missing = (0, 0, 0, (1 << len(self.halves)) - u.shape[-2])
        u, x = functional.pad(u, missing), functional.pad(x, missing)
        table = u.new_zeros(*u.shape[:-1], 1, 1)
        for before, after in self.halves:
            blocks = (-1, 2, before.shape[-2])
            right = torch.unflatten(u, -2, blocks).select(-3, 1) * before
            left = torch.unflatten(x, -2, blocks).select(-3, 0) * after
            table = _join(table, right @ left.mT)
        return table.squeeze(-3)

    def back(
        self, u: Tensor, view: View, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> Tensor:
        return self.carry(times(u, w), view) + self.back_from(u, view, x, wrote)

    def back_from(self, u: Tensor, view: View, x: Tensor, wrote: Tensor) -> Tensor:
        """[..., C, n]: what u_t meets of the writes, where what is left of x_j is of its own."""
        met = times(u, wrote.mT)
        own = met.diagonal(0, -2, -1).unsqueeze(-1) * x
        ticks = u.shape[-2]
        missing = (1 << len(self.halves)) - ticks
        met, x = (functional.pad(met, (0, missing) * 2), functional.pad(x, (0, 0, 0, missing)))
        found = torch.zeros_like(x)
        for before, after in self.halves:
            half = before.shape[-2]
            blocks = torch.unflatten(torch.unflatten(met, -1, (-1, 2, half)), -4, (-1, 2, half))
            corner = blocks[..., 1, :, :, 0, :].diagonal(0, -4, -2).movedim(-1, -3)
            left = torch.unflatten(x, -2, (-1, 2, half)).select(-3, 0) * after
            right = before * (corner @ left)
            found = found + functional.pad(right, (0, 0, half, 0)).flatten(-3, -2)
        found = self._seen(found[..., :ticks, :], view)
        return found + own if view is View.AFTER else found

    def tail(self, x: Tensor) -> Tensor:
        return x * self.after

    def left(self) -> tuple[Tensor, ...]:
        return (self.whole,)

    def far(self, u: Tensor, view: View, w: Tensor, s: Tensor | None) -> Tensor:
        return times(self.carry(u, view), w.mT)

    def end(
        self, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return plus(w * self.whole, wrote.mT, self.tail(x)), None

    def unbound(self, many: int, lead: int) -> list[Retention]:
        return _unbound(self, many, lead)

    def rows(self, many: int) -> ManyAtATick:
        return ManyAtATick(self, many)

    def asked(self, many: int) -> ManyAtATick:
        return ManyAtATick(self, 1, many)


@dataclass(frozen=True)
class ManyAtATick:
    """A retention by channel where a tick writes, or asks, several times."""

    one: ChannelRetention
    writes: int = 1
    queries: int = 1

    OWN: ClassVar[dict[str, int]] = {}

    def carry(self, u: Tensor, view: View) -> Tensor:
        parts = [self.one.carry(p, view) for p in _each(u, self.queries)]
        return torch.stack(parts, -2).flatten(-3, -2)

    def pairs(self, u: Tensor, x: Tensor, view: View) -> Tensor:
        rows = [
            torch.stack([self.one.pairs(p, w, view) for w in _each(x, self.writes)], -1).flatten(-2)
            for p in _each(u, self.queries)
        ]
        return torch.stack(rows, -2).flatten(-3, -2)

    def back(
        self, u: Tensor, view: View, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> Tensor:
        written = list(zip(_each(x, self.writes), _each(wrote, self.writes), strict=True))
        parts = [
            self.one.carry(times(p, w), view)
            + sum(self.one.back_from(p, view, *pair) for pair in written)
            for p in _each(u, self.queries)
        ]
        return torch.stack(parts, -2).flatten(-3, -2)

    def tail(self, x: Tensor) -> Tensor:
        return torch.stack([self.one.tail(w) for w in _each(x, self.writes)], -2).flatten(-3, -2)

    def left(self) -> tuple[Tensor, ...]:
        return self.one.left()

    def far(self, u: Tensor, view: View, w: Tensor, s: Tensor | None) -> Tensor:
        return times(self.carry(u, view), w.mT)

    def end(
        self, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return plus(w * self.one.whole, wrote.mT, self.tail(x)), None

    def unbound(self, many: int, lead: int) -> list[Retention]:
        parts = self.one.unbound(many, lead)
        return [replace(self, one=part) for part in parts]  # type: ignore[arg-type]

    def rows(self, many: int) -> ManyAtATick:
        return replace(self, writes=many)

    def asked(self, many: int) -> ManyAtATick:
        return replace(self, queries=many)


def _each(x: Tensor, many: int) -> tuple[Tensor, ...]:
    """[..., C many, n] -> as many [..., C, n]."""
    return torch.unflatten(x, -2, (-1, many)).unbind(-2)


def _join(table: Tensor, corner: Tensor) -> Tensor:
    """[..., b, 2h, 2h] from the diagonal blocks [..., 2b, h, h] and the corners below them."""
    first, second = _halved(table)
    top = functional.pad(first, (0, corner.shape[-1]))
    return torch.cat((top, torch.cat((corner, second), -1)), -2)


def _halved(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 2b, h, n] -> the left and the right halves of b larger blocks."""
    left, right = torch.unflatten(blocks, -3, (-1, 2)).unbind(-3)
    return left, right


def kept_by_channel(keep: Tensor) -> ChannelRetention:
    """keep [..., C, n]; short spans are made a power of two long by ticks that keep all."""
    ticks = keep.shape[-2]
    missing = (1 << max(ticks - 1, 0).bit_length()) - ticks
    whole = functional.pad(keep, (0, 0, 0, missing), value=1.0).unsqueeze(-2)
    before = after = torch.ones_like(whole)
    halves = []
    while whole.shape[-3] > 1:
        (w, whole), (b, before), (a, after) = _halved(whole), _halved(before), _halved(after)
        halves.append((before, a))
        before, after = torch.cat((b, w * before), -2), torch.cat((a * whole, after), -2)
        whole = w * whole
    before, after = (v.squeeze(-3)[..., :ticks, :] for v in (before, after))
    return ChannelRetention(keep, before, after, whole.squeeze(-3), tuple(halves))
