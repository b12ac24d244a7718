"""The scan of recurrence.py where one number is kept at a tick and there is no momentum, its
derivative by hand.

Everything but the states is made for all chunks at once. From chunk to chunk go, forwards, the
state and what is written, and backwards what comes to them:

    R_c = U_c + Y_c S_c'            S_{c+1} = a_c S_c + R_c' T_c        (U, Y: the UT transform)
    dR_c += T_c G_c'                G_{c-1} = dS_c + a_c G_c + dR_c' Y_c

With P the products of keep, P_ti over i < r <= t, a query of tick t meets P_t0 S_c and P_tj r_j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .by_hand import Plain, again, dot, product_table, products_back


@dataclass(frozen=True)
class Kind:
    """erase: how much of what is read is taken back before a write: a number. retained: what is
    taken back has faded first. before: a tick reads before its own write.
    """

    erase: float
    retained: bool
    before: bool

    def met(self, table: Tensor) -> Tensor:
        """Of products [., C + 1, C + 1], those that a write meets [., C, C + 1]."""
        return table[:, 1:] if self.retained else table[:, :-1]

    def asked(self, table: Tensor) -> Tensor:
        """Those that a read meets."""
        return table[:, :-1] if self.before else table[:, 1:]


class Scanned(torch.autograd.Function):
    """y [N, b, C, m] and W_T, for N chunks of C ticks: w [b, m, n]; q, x [N, b, C, n];
    e [N, b, C, m]; rate [N, b, C], or [1, 1, 1] for all; keep [N, b, C], [1, 1, C] for all chunks,
    or None for 1.
    """

    @staticmethod
    def forward(
        ctx: Any, plain: Plain, kind: Kind, w: Tensor, q: Tensor, x: Tensor, e: Tensor,
        rate: Tensor, keep: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.plain, ctx.kind, ctx.shape = plain, kind, x.shape[:3]
        given = w, q, x, e, rate, keep
        q, x, e, r = map(_rows, (q, x, e, rate.unsqueeze(-1)))
        table = _table(keep, x)
        met, asked = kind.met(table), kind.asked(table)
        raw, inverse, R, Y = (
            _solved(kind, x, e, r, met) if kind.erase else (None, None, e * -r, None)
        )
        S = _chained(ctx.shape, w, R, Y, x, table)
        pairs = torch.bmm(q, x.mT)
        seen = pairs * asked[..., 1:]
        y = torch.bmm(q * asked[..., :1], _rows(S[:-1]).mT).baddbmm_(seen, R)
        ctx.save_for_backward(*given, table, raw, inverse, Y, pairs, seen, R, S)
        return y.view(*ctx.shape, -1), S[-1].clone()

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        w, q, x, e, rate, keep, table, raw, inverse, Y, pairs, seen, R, S = ctx.saved_tensors
        given = w, q, x, e, rate, keep
        if torch.is_grad_enabled():
            return None, None, *again(ctx.plain, given, [of_y, of_end])
        kind: Kind = ctx.kind
        q, x, e, r, of_y = map(_rows, (q, x, e, rate.unsqueeze(-1), of_y))
        S = _rows(S[:-1])
        of_table = torch.zeros_like(table) if ctx.needs_input_grad[7] else None

        # what was read: y = (asked_0 q) S' + (asked (q x')) R
        asked = kind.asked(table)
        of_seen, of_far = torch.bmm(of_y, R.mT), torch.bmm(of_y, S)
        of_pairs = of_seen * asked[..., 1:]
        if of_table is not None:
            _add(kind.asked(of_table), (of_far * q).sum(-1, keepdim=True), of_seen.mul_(pairs))
        of_S = S.new_empty(ctx.shape[0] + 1, *of_end.shape)
        torch.bmm(of_y.mT, q * asked[..., :1], out=_rows(of_S[:-1]))
        of_R = torch.bmm(seen.mT, of_y)
        of_q = of_far.mul_(asked[..., :1]).baddbmm_(of_pairs, x)
        of_x = torch.bmm(of_pairs.mT, q)

        # what goes from chunk to chunk
        G, of_w = _chained_back(ctx.shape, of_end, of_S, of_R, Y, x, table)
        of_tail = torch.bmm(R, G)
        of_x.addcmul_(of_tail, table[:, -1, 1:, None])
        if of_table is not None:
            of_table[:, -1] += torch.cat((dot(G, S).squeeze(-1), (of_tail * x).sum(-1)), -1)

        # what was written
        if kind.erase:
            back = torch.bmm(inverse.mT, of_R)
            of_e, of_r = _solved_back(kind, (raw, R, S), x, e, r, table, back, of_x, of_table)
        else:
            of_e, of_r = of_R * -r, -(of_R * e).sum(-1, keepdim=True)
        made = of_w, *(g.view(*ctx.shape, -1) for g in (of_q, of_x, of_e))
        of_keep = None if of_table is None else products_back(of_table, table)
        return None, None, *made, _as(of_r.squeeze(-1), rate), _as(of_keep, keep)


# ---- what is written, for any start state --------------------------------------------------------


def _solved(
    kind: Kind, x: Tensor, e: Tensor, r: Tensor, met: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x x', (I + system)^-1, and U and Y made of it: the start state goes as -r erase met_0 x."""
    raw = torch.bmm(x, x.mT)
    system = (raw * met[..., 1:]).mul_(r * kind.erase)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
    rated = inverse * -r.mT
    U = torch.bmm(rated, e)
    return raw, inverse, U, torch.bmm(rated.mul_(met[..., :1].mT * kind.erase), x)


def _solved_back(
    kind: Kind, made: tuple[Tensor, Tensor, Tensor], x: Tensor, e: Tensor, r: Tensor,
    table: Tensor, back: Tensor, of_x: Tensor, of_table: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What comes to e and rate; what comes to x and the table is added to theirs. back: what comes
    to R before the inverse; with v = e + erase met_0 x S', R = (I + system)^-1 (-r v).
    """
    raw, R, S = made
    met = kind.met(table)
    of_system = torch.bmm(back, R.mT).mul_(-kind.erase)  # by rate, met and raw alone
    if kind.retained:
        of_system = of_system.tril_(-1)
    weighed, far = of_system * raw, torch.bmm(back, S)
    met_far = (far * x).sum(-1, keepdim=True).mul_(kind.erase)
    of_r = (weighed * met[..., 1:]).sum(-1, keepdim=True)
    of_r -= (back * e).sum(-1, keepdim=True) + met_far * met[..., :1]
    if of_table is not None:
        _add(kind.met(of_table), met_far.mul_(-r), weighed.mul_(r))
    of_raw = of_system.mul_(met[..., 1:]).mul_(r)
    of_x.addcmul_(far, met[..., :1] * r, value=-kind.erase).baddbmm_(of_raw + of_raw.mT, x)
    return back.mul_(-r), of_r


# ---- from chunk to chunk -------------------------------------------------------------------------


def _chained(
    shape: tuple[int, int, int], w: Tensor, R: Tensor, Y: Tensor | None, x: Tensor, table: Tensor
) -> Tensor:
    """States [N + 1, b, m, n], the last that at the end; Y of each is added to what is written."""
    tail, left = _at_the_end(shape, x, table)
    S = w.new_empty(shape[0] + 1, *w.shape)
    S[0] = w
    states, wrote = S.unbind(0), R.view(*shape, -1).unbind(0)
    asked = None if Y is None else Y.view(*shape, -1).unbind(0)
    for c, (s, end, r) in enumerate(zip(states, states[1:], wrote, strict=False)):
        if asked is not None:
            r.baddbmm_(asked[c], s.mT)
        torch.mul(s, left[c], out=end).baddbmm_(r.mT, tail[c])
    return S


def _chained_back(
    shape: tuple[int, int, int], of_end: Tensor, of_S: Tensor, of_R: Tensor, Y: Tensor | None,
    x: Tensor, table: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What comes to the states after each chunk, and to the first; that to R is added to of_R.
    of_S [N + 1, b, m, n]: of the reads, and room for of_end.
    """
    tail, left = _at_the_end(shape, x, table)
    of_S[-1] = of_end
    states, wrote = of_S.unbind(0), of_R.view(*shape, -1).unbind(0)
    asked = None if Y is None else Y.view(*shape, -1).unbind(0)
    for c in reversed(range(shape[0])):
        wrote[c].baddbmm_(tail[c], states[c + 1].mT)
        states[c].addcmul_(states[c + 1], left[c])
        if asked is not None:
            states[c].baddbmm_(wrote[c].mT, asked[c])
    return _rows(of_S[1:]), states[0]


def _at_the_end(
    shape: tuple[int, int, int], x: Tensor, table: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """x as the end of its chunk meets it, and what is left there of the state, for each chunk."""
    tail = (x * table[:, -1, 1:, None]).view(*shape, -1).unbind(0)
    left = table[:, -1, :1, None]
    return tail, left.view(shape[0], -1, 1, 1).unbind(0) if len(left) > 1 else (left,) * shape[0]


# ---- small ---------------------------------------------------------------------------------------


def _rows(t: Tensor) -> Tensor:
    """[N, b, ...] -> [N b, ...]."""
    return t.flatten(0, 1)


def _as(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    """Rows [N b, C] as the gate has them, which may be one for all."""
    if grad is None or like is None:
        return None
    return (
        grad.view_as(like) if grad.numel() == like.numel() else grad.sum_to_size(1, *like.shape[2:])
    )


def _add(of_part: Tensor, first: Tensor, rest: Tensor) -> None:
    """To a part of a table: what comes to its first column, and to the others."""
    of_part[..., :1] += first
    of_part[..., 1:] += rest


def _table(keep: Tensor | None, x: Tensor) -> Tensor:
    """[N b, C + 1, C + 1], or [1, ...] where it is one for all."""
    if keep is not None:
        return product_table(_rows(keep))
    ticks = x.shape[1] + 1
    return torch.ones(1, ticks, ticks, dtype=x.dtype, device=x.device).tril_()
