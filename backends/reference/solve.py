"""What is solved and not stepped: `learn exact` and `learn implicit` (2.9.4)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlc.diagnostics import InternalError, Unsettled
from nlc.system import Term

from ..ops.nearest import BENDS, DOWN, HALVINGS, ROUNDS
from .arrays import joint
from .evaluate import Scope
from .frames import Arrays, Frame
from .gates import OWN, learning

if TYPE_CHECKING:
    from .boxes import Run

Objective = Callable[[Arrays], Tensor]
EPS = torch.finfo(torch.float64).eps


def exact(run: Run, frame: Frame, name: str, role: str) -> Arrays:
    """The state that minimises the objective, as a function of the pasts and this tick's inputs."""
    box = frame.box
    if box is None:
        raise InternalError("nothing to solve")
    state = box.state(name)
    objective = state.rule.objective
    if objective is None:
        raise InternalError(f"`{name}` is solved and has no objective")
    parts = weighted_distances(objective, name)
    if parts is not None:
        return {"": weighted_mean(run, frame, role, parts)}

    def value(at: Arrays) -> Tensor:
        return Scope(run, frame, role, {name: at}, objective=True).array(objective).sum()

    zeros = {a.name: torch.zeros(state.shape(a), dtype=torch.float64) for a in state.form.arrays}
    return minimise(value, zeros, run.recording)


# ---- sums of weighted squared distances: the weighted mean (attention) -------------------------


def weighted_distances(objective: Term, name: str) -> list[tuple[Term | None, Term]] | None:
    """`sum(w * length(v - z)^2)`, or a sum of such: the pairs (w, v)."""
    parts = []
    for term in addends(objective):
        if term.op != "sum" or term.info is not None:
            return None
        inner = term.args[0]
        weight, square = (inner.args[0], inner.args[1]) if inner.op == "mul" else (None, inner)
        point = distance_to(square, name)
        if point is None or names(point, name) or weight is not None and names(weight, name):
            return None
        parts.append((weight, point))
    return parts


def addends(term: Term) -> list[Term]:
    if term.op != "add":
        return [term]
    return [*addends(term.args[0]), *addends(term.args[1])]


def distance_to(term: Term, name: str) -> Term | None:
    """v, if the term is `length(v - z)^2` or `length(z - v)^2`."""
    if term.op != "pow" or term.args[1].op != "const" or term.args[1].info != 2:
        return None
    base = term.args[0]
    if base.op != "length" or base.info != 2 or base.args[0].op != "sub":
        return None
    left, right = base.args[0].args
    if is_state(right, name):
        return left
    return right if is_state(left, name) else None


def is_state(term: Term, name: str) -> bool:
    return term.op == "state" and term.info.name == name and not term.info.foreign


def names(term: Term, name: str) -> bool:
    return any(t.op in ("state", "apply") and t.info.name == name for t in term.walk())


def weighted_mean(
    run: Run, frame: Frame, role: str, parts: list[tuple[Term | None, Term]]
) -> Tensor:
    """What is in every weight does not count, so the largest exponent is 0: no `exp` is too large,
    and nor is its derivative.
    """
    scope = Scope(run, frame, role, objective=True)
    found = []
    for weight, point in parts:
        v = scope.array(point)
        terms = [] if weight is None else factors_of(weight)
        factors = [t for t in terms if t.op != "exp"]
        exponents = [t for t in terms if t.op == "exp"]
        one = torch.ones((), dtype=torch.float64)
        share = prod((scope.array(t) for t in factors), start=one)
        power = sum((scope.array(t.args[0]) for t in exponents), start=0 * one)
        shape = joint(joint(share.shape, power.shape), v.shape[:-1])
        found.append((v, share.expand(shape), power.expand(shape)))
    powers = [p[s != 0].reshape(-1).detach() for _, s, p in found]
    largest = torch.cat([*powers, torch.full((1,), -torch.inf).double()]).max()
    largest = torch.where(largest.isfinite(), largest, 0.0)
    total, weights = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for v, share, power in found:
        least = power - largest
        w = share * torch.exp(torch.where(share != 0, least, least.clamp(max=600.0)))
        total = total + (w.unsqueeze(-1) * v).sum(tuple(range(w.ndim)))
        weights = weights + w.sum()
    return total / weights


def factors_of(term: Term) -> list[Term]:
    if term.op != "mul":
        return [term]
    return [*factors_of(term.args[0]), *factors_of(term.args[1])]


# ---- Newton's method ---------------------------------------------------------------------------


def minimise(
    objective: Objective,
    start: Arrays,
    recording: bool,
    scale: Arrays | None = None,
    tolerance: float = 1e-13,
) -> Arrays:
    """One step for a quadratic objective, more for others; then as a function of all it depends on.

    A step is halved until it lowers the objective; where Newton's does not lead down, it is bent
    towards the gradient times `scale`, further and further (Levenberg). A step taken from the
    solution, with its graph, has the right derivatives of first order; two have those of second
    order. For a quadratic objective one has all.
    """
    point = {n: a.detach() for n, a in start.items()}
    steps = 0
    for _ in range(ROUNDS):
        value, grad, step = newton(objective, point, False)
        slope = along(grad, step)
        for bend in BENDS:
            if not slope > 0:
                break
            _, _, step = newton(objective, point, False, bend, scale)
            slope = along(grad, step)
        steps += 1
        if largest(step) <= tolerance * (1 + largest(point)):
            point = {n: a + step[n] for n, a in point.items()}
            break
        point = lowered(objective, point, step, float(value), slope)
    else:
        raise Unsettled(ROUNDS)
    if recording:
        for _ in range(1 if steps <= 2 else 2):
            _, _, step = newton(objective, point, True)
            point = {n: a + step[n] for n, a in point.items()}
    return point


def lowered(
    objective: Objective, point: Arrays, step: Arrays, value: float, slope: float
) -> dict[str, Tensor]:
    """The point after the step, halved while it does not lower the objective by enough (Armijo)."""
    share, room = 1.0, 1e3 * EPS * (1 + abs(value))
    for _ in range(HALVINGS):
        there = {n: (a + share * step[n]).detach() for n, a in point.items()}
        with torch.no_grad():
            found = float(objective(there))
        if found <= value + DOWN * share * slope + room:
            break
        share /= 2
    return there


def largest(arrays: Arrays) -> float:
    return max(float(a.abs().max()) for a in arrays.values())


def along(grad: Arrays, step: Arrays) -> float:
    return sum(float((g * step[n]).sum()) for n, g in grad.items())


def newton(
    objective: Objective,
    point: Arrays,
    create: bool,
    bend: float = 0.0,
    scale: Arrays | None = None,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The value, the gradient, and Newton's step."""
    with torch.enable_grad(), learning(OWN):
        flat = torch.cat([a.reshape(-1) for a in point.values()])
        at = flat.detach().requires_grad_() if not flat.requires_grad else flat
        value = objective(unflatten(at, point))
        grad = torch.autograd.grad(value, at, create_graph=True)[0]
        matrix = torch.zeros(at.numel(), at.numel(), dtype=at.dtype)
        if grad.requires_grad:
            one = torch.eye(at.numel(), dtype=at.dtype)
            (rows,) = torch.autograd.grad(
                grad, at, one, create_graph=create, retain_graph=True, allow_unused=True,
                is_grads_batched=True,
            )  # fmt: skip
            matrix = matrix if rows is None else rows
        if bend:
            wide = {n: torch.ones_like(a) * (1.0 if scale is None else scale[n])
                    for n, a in point.items()}  # fmt: skip
            matrix = matrix + torch.diag(bend / torch.cat([x.reshape(-1) for x in wide.values()]))
        step = -solved(matrix, grad)
    found = unflatten(step if create else step.detach(), point)
    return value.detach(), unflatten(grad.detach(), point), found


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The shortest solution where there are several."""
    answer: Tensor
    answer, bad = torch.linalg.solve_ex(matrix, right)
    if int(bad) or not bool(torch.isfinite(answer).all()):
        answer = torch.linalg.pinv(matrix) @ right
    return answer


def unflatten(flat: Tensor, like: Arrays) -> dict[str, Tensor]:
    out, at = {}, 0
    for name, a in like.items():
        out[name] = flat[at : at + a.numel()].reshape(a.shape)
        at += a.numel()
    return out
