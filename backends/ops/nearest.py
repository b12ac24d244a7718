"""`implicit` (language.md 2.9.4): the state nearest to what is kept, as an objective sees nearness.

M minimises objective(M) + |M - kept|^2 / (2 rate), so M = kept - rate write(e(M)), where e are the
errors there: those of what the memory says, with `write` their outer products with what was seen,
or the gradient of an array itself. That is an equation in the errors alone, as many numbers as the
memory says, e = e(kept - rate write(e)): solved by Newton's method, a step halved until it lowers
what is minimised, as the reference does, for each sample by itself.

The derivative is that of the implicit function: with J the derivative of e - e(..) at the solution,
what reaches e goes on to the equation as -J'^-1 of it, whatever led there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlc.diagnostics import Unsettled

from . import by_hand

ROUNDS = 100
HALVINGS = 40
BENDS = tuple(4.0**i for i in range(-2, 14))
DOWN = 0.2  # of the fall that the slope promises (Armijo); a step that is exact has half of it

Errors = Callable[..., tuple[Tensor, Sequence[Tensor]]]


@dataclass
class Equation:
    """`errors`: arrays -> (the objective [*lead], the errors). `kept`, `rates`: of each array.
    `seen`: of each array [.., r, n] what was seen, or None where its error is the gradient itself.
    The first `lead` axes are samples; the first `block` stand apart in the errors.
    """

    errors: Errors
    kept: Sequence[Tensor]
    rates: Sequence[Tensor | float]
    seen: Sequence[Tensor | None]
    lead: int
    block: int

    def nothing(self) -> list[Tensor]:
        made = []
        for k, x in zip(self.kept, self.seen, strict=True):
            shape = k.shape if x is None else (*k.shape[:-2], x.shape[-2], k.shape[-2])
            made.append(k.new_zeros(shape))
        return made

    def write(self, c: Sequence[Tensor]) -> list[Tensor]:
        return [e if x is None else e.mT @ x for e, x in zip(c, self.seen, strict=True)]

    def arrays(self, c: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(self.kept, self.rates, self.write(c), strict=True)
        return [k - r * w for k, r, w in parts]

    def look(self, c: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What is minimised [*lead], and the errors, if the errors written are these."""
        value, found = self.errors(*self.arrays(c))
        total = value.expand(c[0].shape[: self.lead])
        for r, w in zip(self.rates, self.write(c), strict=True):
            total = total + self.over(r * w.square()) / 2
        same = [
            torch.as_tensor(e, dtype=x.dtype, device=x.device).expand(x.shape)
            for e, x in zip(found, c, strict=True)
        ]
        return total, same

    def over(self, x: Tensor) -> Tensor:
        """The sum of each sample."""
        return x.flatten(self.lead).sum(-1)

    def product(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """[*lead]: how two writes meet, in the rates' own measure."""
        parts = zip(self.rates, self.write(a), self.write(b), strict=True)
        return torch.stack([self.over(r * x * y) for r, x, y in parts]).sum(0)

    def flat(self, c: Sequence[Tensor]) -> Tensor:
        """[blocks, numbers of a block]."""
        return torch.cat([x.flatten(self.block).flatten(0, self.block - 1) for x in c], -1)

    def shaped(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        sizes = [x.flatten(self.block).shape[-1] for x in like]
        return [p.reshape(x.shape) for p, x in zip(torch.split(flat, sizes, -1), like, strict=True)]

    def slope(self, c: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """What is minimised, the errors, and the derivative of e - e(..), of each block."""
        with torch.enable_grad(), by_hand.plainly():
            at = self.flat(c).detach().requires_grad_()
            value, found = self.look(self.shaped(at, c))
            made = self.flat(found)
            one = torch.eye(at.shape[1], dtype=at.dtype, device=at.device)
            rows = None
            if made.requires_grad:
                (rows,) = torch.autograd.grad(
                    made, at, one.unsqueeze(1).expand(-1, *at.shape), is_grads_batched=True,
                    allow_unused=True,
                )  # fmt: skip
        whole = one.expand(at.shape[0], -1, -1)
        whole = whole if rows is None else whole - rows.detach().movedim(0, 1)
        return value.detach(), [e.detach() for e in found], whole


@torch.compiler.disable  # type: ignore[untyped-decorator]
def nearest(
    errors: Errors,
    kept: Sequence[Tensor],
    rates: Sequence[Tensor | float],
    seen: Sequence[Tensor | None],
    lead: int,
    block: int,
) -> list[Tensor]:
    """The arrays that minimise `errors(*arrays)[0] + sum of |array - kept|^2 / (2 rate)`."""
    equation = Equation(errors, kept, rates, seen, lead, block)
    wanted = torch.is_grad_enabled()
    with torch.no_grad():
        c = settled(equation)
    if wanted:
        _, found = equation.look(c)
        gap = equation.flat(c) - equation.flat(found)
        if gap.requires_grad:
            _, _, whole = equation.slope(c)
            flat = _Root.apply(equation.flat(c), whole, gap)  # type: ignore[no-untyped-call]
            c = equation.shaped(flat, c)
    return equation.arrays(c)


def settled(q: Equation) -> list[Tensor]:
    """Newton's method; what has settled stays as it is, and so does what is not a number."""
    c = q.nothing()
    lead = c[0].shape[: q.lead]
    done = torch.zeros(lead, dtype=torch.bool, device=c[0].device)
    eps = torch.finfo(c[0].dtype).eps
    for _ in range(ROUNDS):
        value, e, whole = q.slope(c)
        gap = [x - y for x, y in zip(c, e, strict=True)]
        move, slope = downwards(q, whole, gap)
        small = largest(q, move) <= 1e4 * eps * torch.maximum(largest(q, c), largest(q, e))
        last = small | ~torch.isfinite(value) | ~torch.isfinite(largest(q, move))
        c = down(q, c, move, value, slope, done, last, eps)
        done = done | last
        if bool(done.all()):
            return c
    raise Unsettled(ROUNDS)


def downwards(q: Equation, whole: Tensor, gap: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Newton's step and its slope; where it does not lead down, one bent towards the gradient's
    (Levenberg), further and further.
    """
    one = torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
    move = q.shaped(-solution(whole, q.flat(gap)), gap)
    slope = q.product(gap, move)
    for bend in BENDS:
        up = slope > 0
        if not bool(up.any()):
            break
        bent = q.shaped(-solution(whole + bend * one, q.flat(gap)), gap)
        move = [torch.where(beside(up, m), b, m) for b, m in zip(bent, move, strict=True)]
        slope = torch.where(up, q.product(gap, move), slope)
    return move, slope


def down(
    q: Equation, c: list[Tensor], move: list[Tensor], value: Tensor, slope: Tensor, done: Tensor,
    last: Tensor, eps: float,
) -> list[Tensor]:  # fmt: skip
    """The step, halved where it does not lower what is minimised by enough."""
    share = torch.ones_like(value)
    room = 1e3 * eps * (1 + value.abs())

    def there() -> list[Tensor]:
        moved = torch.where(done, torch.zeros_like(share), share)
        return [torch.where(beside(moved != 0, x), x + beside(moved, m) * m, x)
                for x, m in zip(c, move, strict=True)]  # fmt: skip

    for _ in range(HALVINGS):
        new = there()
        found, _ = q.look(new)
        fine = done | last | (found <= value + DOWN * share * slope + room)
        if bool(fine.all()):
            return new
        share = torch.where(fine, share, share / 2)
    return there()


def solution(matrix: Tensor, right: Tensor) -> Tensor:
    """Of each block; where there is none, no number."""
    found: Tensor = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))[0].squeeze(-1)
    return found


def largest(q: Equation, parts: Sequence[Tensor]) -> Tensor:
    """[*lead]"""
    found = [x.abs().flatten(q.lead).amax(-1) for x in parts if x.numel()]
    return torch.stack(found).amax(0)


def beside(x: Tensor, like: Tensor) -> Tensor:
    return x[(..., *[None] * (like.ndim - x.ndim))]


class _Root(torch.autograd.Function):
    """The solution; backwards, the derivative of the implicit function."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, whole: Tensor, gap: Tensor) -> Tensor:
        ctx.save_for_backward(whole)
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second derivative through an `implicit` step that is solved by Newton's "
                "method: use the reference interpreter"
            )
        (whole,) = ctx.saved_tensors
        return None, None, -solution(whole.mT, grad)
