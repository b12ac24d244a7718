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

from .by_hand import Plain, again, product_table, products_back


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
        solved = _solved(kind, x, e, r, met) if kind.erase else None
        S, R = _chained(ctx.shape, w, e * -r if solved is None else solved[-1], x, table)
        pairs = torch.bmm(q, x.mT)
        seen = pairs * asked[..., 1:]
        y = torch.bmm(q * asked[..., :1], _rows(S[:-1]).mT).baddbmm_(seen, _rows(R))
        ctx.save_for_backward(*given, table, *(solved or ()), pairs, seen, R, S)
        return y.view(*ctx.shape, -1), S[-1].clone()

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        w, q, x, e, rate, keep, table, *solved, pairs, seen, R, S = ctx.saved_tensors
        given = w, q, x, e, rate, keep
        if torch.is_grad_enabled():
            return None, None, *again(ctx.plain, given, [of_y, of_end])
        kind: Kind = ctx.kind
        q, x, e, r, of_y = map(_rows, (q, x, e, rate.unsqueeze(-1), of_y))
        R, S = _rows(R), _rows(S[:-1])
        of_table = torch.zeros_like(table) if ctx.needs_input_grad[7] else None

        # what was read: y = (asked_0 q) S' + (asked (q x')) R
        asked = kind.asked(table)
        of_seen, of_far = torch.bmm(of_y, R.mT), torch.bmm(of_y, S)
        of_pairs = of_seen * asked[..., 1:]
        if of_table is not None:
            _add(kind.asked(of_table), (of_far * q).sum(-1, keepdim=True), of_seen.mul_(pairs))
        of_S, of_R = torch.bmm(of_y.mT, q * asked[..., :1]), torch.bmm(seen.mT, of_y)
        of_q = of_far.mul_(asked[..., :1]).baddbmm_(of_pairs, x)
        of_x = torch.bmm(of_pairs.mT, q)

        # what goes from chunk to chunk
        G, of_w = _chained_back(ctx.shape, of_end, of_S, of_R, x, table, solved)
        of_tail = torch.bmm(R, G)
        of_x.addcmul_(of_tail, table[:, -1, 1:, None])
        if of_table is not None:
            rest = (G * S).sum((-2, -1)).unsqueeze(-1)
            of_table[:, -1] += torch.cat((rest, (of_tail * x).sum(-1)), -1)

        # what was written
        if kind.erase:
            of_e, of_r = _solved_back(kind, solved, x, r, table, of_R, S, of_x, of_table)
        else:
            of_e, of_r = of_R * -r, -(of_R * e).sum(-1, keepdim=True)
        made = of_w, *(g.view(*ctx.shape, -1) for g in (of_q, of_x, of_e))
        of_keep = None if of_table is None else products_back(of_table, table)
        return None, None, *made, _as(of_r.squeeze(-1), rate), _as(of_keep, keep)


# ---- what is written, for any start state --------------------------------------------------------


def _solved(
    kind: Kind, x: Tensor, e: Tensor, r: Tensor, met: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x x', (I + system)^-1, [e, erase met_0 x], and [U, Y] made of it."""
    raw = torch.bmm(x, x.mT)
    system = (raw * met[..., 1:]).mul_(r * kind.erase)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
    right = torch.cat((e, x * (met[..., :1] * kind.erase)), -1)
    return raw, inverse, right, torch.bmm(inverse, right * -r)


def _solved_back(
    kind: Kind, solved: list[Tensor], x: Tensor, r: Tensor, table: Tensor, of_R: Tensor, S: Tensor,
    of_x: Tensor, of_table: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What comes to e and rate; what comes to x and the table is added to theirs."""
    raw, inverse, right, made = solved
    met, m = kind.met(table), of_R.shape[-1]
    of_given = torch.bmm(inverse.mT, torch.cat((of_R, torch.bmm(of_R, S)), -1))
    of_system = torch.bmm(of_given, made.mT).mul_(-kind.erase)  # by rate, met and raw alone
    if kind.retained:
        of_system = of_system.tril_(-1)
    weighed = of_system * raw
    of_r = (weighed * met[..., 1:]).sum(-1, keepdim=True)
    of_r -= (of_given * right).sum(-1, keepdim=True)
    of_e, of_xa = torch.split(of_given.mul_(-r), [m, x.shape[-1]], -1)
    if of_table is not None:
        first = (of_xa * x).sum(-1, keepdim=True) * kind.erase
        _add(kind.met(of_table), first, weighed.mul_(r))
    of_raw = of_system.mul_(met[..., 1:]).mul_(r)
    of_x.addcmul_(of_xa, met[..., :1], value=kind.erase).baddbmm_(of_raw + of_raw.mT, x)
    return of_e, of_r


# ---- from chunk to chunk -------------------------------------------------------------------------


def _chained(
    shape: tuple[int, int, int], w: Tensor, made: Tensor, x: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """States [N + 1, b, m, n], the last that at the end, and what is written [N, b, C, m]."""
    m, n = w.shape[-2:]
    made, tail, left = made.view(*shape, -1), *_at_the_end(shape, x, table)
    S, R = w.new_empty(shape[0] + 1, *w.shape), made
    S[0] = w
    if made.shape[-1] > m:
        U, Y = torch.split(made, [m, n], -1)
        R = made.new_empty(*shape, m)
    for c in range(shape[0]):
        if R is not made:
            torch.baddbmm(U[c], Y[c], S[c].mT, out=R[c])
        torch.mul(S[c], left[c], out=S[c + 1]).baddbmm_(R[c].mT, tail[c])
    return S, R


def _chained_back(
    shape: tuple[int, int, int], of_end: Tensor, of_S: Tensor, of_R: Tensor, x: Tensor,
    table: Tensor, solved: list[Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What comes to the states after each chunk, and to the first; that to R is added to of_R."""
    tail, left = _at_the_end(shape, x, table)
    of_S, of_R = of_S.view(shape[0], *of_end.shape), of_R.view(*shape, -1)
    Y = solved[-1].view(*shape, -1)[..., of_R.shape[-1] :] if solved else None
    G, g = torch.empty_like(of_S), of_end
    for c in reversed(range(shape[0])):
        G[c] = g
        of_R[c].baddbmm_(tail[c], G[c].mT)
        g = torch.addcmul(of_S[c], g, left[c])
        if Y is not None:
            g.baddbmm_(of_R[c].mT, Y[c])
    return _rows(G), g


def _at_the_end(
    shape: tuple[int, int, int], x: Tensor, table: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x as the end of its chunk meets it, and what is left there of the state, for each chunk."""
    tail = (x * table[:, -1, 1:, None]).view(*shape, -1)
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
