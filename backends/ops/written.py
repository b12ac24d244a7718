"""What spans of the delta rule write, and its derivative by hand: several with the same gates at
once, as all that is made of the gates is then made together.

    met = left * (x W')            v = e + erase met
    system = rate erase before * (x x')
    R = (I + system)^-1 (-rate v)          W_C = rest W + R' (last * x)

`left`, `before`, `last` and `rest` are parts of one table D of what is kept (retention.py): its
first column, what is right of it, its last row, and their corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .by_hand import Plain, again


@dataclass(frozen=True)
class Gates:
    """Of g rows: rate [g, C, 1], and the parts of the table D [g, C + 1, C + 1]."""

    rate: Tensor
    before: Tensor  # [g, C, C]
    left: Tensor  # [g, C, 1]
    last: Tensor  # [g, C, 1]
    rest: Tensor  # [g, 1, 1]

    @staticmethod
    def of(rate: Tensor, table: Tensor, many: int = 1) -> Gates:
        """For a batch of so many times as many rows, in which they repeat."""
        if many > 1:
            rate, table = torch.cat([rate] * many), torch.cat([table] * many)
        ticks = rate.shape[1]
        start, writes = torch.split_with_sizes(table, [1, ticks], -1)
        left, rest = torch.split_with_sizes(start, [ticks, 1], -2)
        before, last = torch.split_with_sizes(writes, [ticks, 1], -2)
        return Gates(rate.unsqueeze(-1), before, left, last.mT, rest)

    def each(self, rate: Tensor, table: Tensor, parts: Sequence[Tensor]) -> list[Gates]:
        """For each part."""
        rows, few = [x.shape[0] for x in parts[1::3]], rate.shape[0]
        most = self if max(rows) == few else Gates.of(rate, table, max(rows) // few)
        return [most if n == max(rows) else most.first(n) for n in rows]

    def first(self, rows: int) -> Gates:
        return Gates(*(gate[:rows] for gate in vars(self).values()))


class Written(torch.autograd.Function):
    """For each part w [b, m, n], x [b, C, n], e [b, C, m] what is written and the state at the end,
    one after the other. rate [g, C] and table [g, C + 1, C + 1] repeat along each batch.
    """

    @staticmethod
    def forward(
        ctx: Any, plain: Plain, erase: float, rate: Tensor, table: Tensor, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        threes, gates = _threes(parts), Gates.of(rate, table)
        each = gates.each(rate, table, parts)
        made, kept = [], []
        raw = _joined([torch.bmm(x, x.mT) for _, x, _ in threes])
        strength = gates.before * (gates.rate * erase)  # what a tick erases of each before it
        eye = torch.eye(rate.shape[1], dtype=raw.dtype, device=raw.device)
        inverse = torch.linalg.solve_triangular(
            _times(raw, strength), eye, upper=False, unitriangular=True
        )
        for (w, x, e), gate, own in zip(threes, each, _apart(inverse, parts), strict=True):
            met = torch.bmm(x, w.mT)
            error = torch.addcmul(e, met, gate.left, value=erase)
            wrote = torch.bmm(own, error.mul_(gate.rate)).neg_()
            made += [wrote, torch.baddbmm(w * gate.rest, wrote.mT, x * gate.last)]
            kept += [met, wrote]
        ctx.plain, ctx.erase, ctx.count = plain, erase, len(parts)
        ctx.save_for_backward(rate, table, *parts, raw, inverse, *kept)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *came: Tensor) -> tuple[Tensor | None, ...]:
        rate, table, *rest = ctx.saved_tensors
        parts, (raw, inverse, *kept) = rest[: ctx.count], rest[ctx.count :]
        if torch.is_grad_enabled():
            return None, None, *again(ctx.plain, [rate, table, *parts], came)
        threes, gates = _threes(parts), Gates.of(rate, table)
        each = gates.each(rate, table, parts)
        inverses, rights, systems = _apart(inverse, parts), [], []
        for i, ((_, x, _), gate) in enumerate(zip(threes, each, strict=True)):
            of_wrote = torch.baddbmm(came[2 * i], x * gate.last, came[2 * i + 1].mT)
            rights.append(torch.bmm(inverses[i].mT, of_wrote))
            systems.append(torch.bmm(rights[i], kept[2 * i + 1].mT))
        system, strength = _joined(systems), gates.rate * -ctx.erase
        of_raw = _times(system, gates.before * strength)
        raws = _apart(of_raw + of_raw.mT, parts)
        found: list[Tensor | None] = []
        errors, starts, tails, ends = [], [], [], []
        for i, ((w, x, e), gate) in enumerate(zip(threes, each, strict=True)):
            (met, wrote), of_end, of_right = kept[2 * i : 2 * i + 2], came[2 * i + 1], rights[i]
            errors.append((of_right * e).sum(-1))
            starts.append((of_right * met).sum(-1))
            of_e = of_right.mul_(gate.rate).neg_()
            of_met = of_e * gate.left
            of_tail = torch.bmm(wrote, of_end)
            of_x = torch.baddbmm(of_tail * gate.last, of_met, w, alpha=ctx.erase)
            of_x.baddbmm_(raws[i], x)
            of_w = torch.baddbmm(of_end * gate.rest, of_met.mT, x, alpha=ctx.erase)
            found += [of_w, of_x, of_e]
            tails.append((of_tail * x).sum(-1))
            ends.append((of_end * w).sum((-2, -1)))
        of_system, of_start = _summed([system.mul_(raw)], rate), _summed(starts, rate)
        of_rate = _summed(errors, rate).neg_()
        of_rate.addcmul_(of_start, gates.left.squeeze(-1), value=-ctx.erase)
        of_rate.sub_((of_system * gates.before).sum(-1), alpha=ctx.erase)
        of_table = torch.empty_like(table)
        to = Gates.of(of_rate, of_table)
        torch.mul(of_system, strength, out=to.before)
        torch.mul(of_start.unsqueeze(-1), strength, out=to.left)
        to.last.copy_(_summed(tails, rate).unsqueeze(-1))
        to.rest.copy_(_summed(ends, rate).view(-1, 1, 1))
        return None, None, of_rate, of_table, *found


def _times(x: Tensor, gate: Tensor) -> Tensor:
    """Rows of gates repeat along the batch."""
    return (x.view(-1, *gate.shape) * gate).view_as(x)


def _summed(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Over all that share a row of gates."""
    together = _joined(parts)
    return together.view(-1, like.shape[0], *together.shape[1:]).sum(0)


def _threes(parts: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _apart(joined: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(joined, [x.shape[0] for x in parts[1::3]])
