"""What solves `learn exact` where its objective is one that is known: attention, least squares.

    sum(exp(scale * dot(past(k), q)) * length(past(v) - z)^2)

is least at the softmax-weighted mean of the values (class vii), and

    c sum_i f_ti w_i |M k_i - v_i|^2 + d sum(ridge M^2)

at M_t = G_t (H_t + (d / c) diag(ridge))^-1, G_t = sum_i f_ti w_i v_i k_i', H_t = sum_i f_ti w_i
k_i k_i', f_ti being what `fade` leaves of tick i at tick t (class iii; memory-family.md B4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .backward import constant, mul
from .plan import Attention, Squares
from .system import ALL, Box, Slot, State, Term

# ---- attention ----------------------------------------------------------------------------------


def attention(box: Box, state: State) -> Attention | None:
    """The softmax that solves the state's objective, or None where it is of another form."""
    if state.form.kind != "vector" or state.per or state.rule.objective is None:
        return None
    if box.read is None or box.read.op != "state":
        return None
    return match_attention(state.rule.objective, state, box)


def match_attention(objective: Term, state: State, box: Box) -> Attention | None:
    match objective:
        case Term(
            op="sum",
            info=None,
            args=(Term(op="mul", args=(Term(op="exp", args=(score,)), distance)),),
        ):
            value = match_distance(distance, state, box)
            scale, dot = match_score(score)
            if value is None or dot is None:
                return None
            a, b = dot.args
            key, query = (a, b) if a.op == "past" else (b, a)
            if key.op != "past" or query.op == "past" or key.shape[0] != value.shape[0]:
                return None
            if any(
                t.op in ("past", "state", "apply")
                for t in [*query.walk(), *key.args[0].walk(), *value.args[0].walk()]
            ):
                return None
            slots: tuple[Slot, Slot] = (key.info, value.info)
            window = None if slots[0].window == ALL else slots[0].window
            return Attention(
                query, key.args[0], value.args[0], scale, window, slots[0].path, slots[1].path
            )
    return None


def match_distance(term: Term, state: State, box: Box) -> Term | None:
    """`length(past(v) - z)^2`, either way round."""
    match term:
        case Term(
            op="pow",
            args=(
                Term(op="length", info=2, args=(Term(op="sub", args=(a, b)),)),
                Term(op="const", info=2),
            ),
        ):
            value, z = (a, b) if a.op == "past" else (b, a)
            if (
                value.op == "past"
                and z.op == "state"
                and z.info.box is box
                and z.info.name == state.name
            ):
                return value
    return None


def match_score(term: Term) -> tuple[float, Term | None]:
    """scale * dot(..), with constant factors."""
    match term:
        case Term(op="dot"):
            return 1.0, term
        case Term(op="div", args=(inner, Term(op="const", info=c))):
            scale, dot = match_score(inner)
            return scale / c, dot
        case (
            Term(op="mul", args=(Term(op="const", info=c), inner))
            | Term(op="mul", args=(inner, Term(op="const", info=c)))
        ):
            scale, dot = match_score(inner)
            return scale * c, dot
    return math.nan, None


# ---- least squares ------------------------------------------------------------------------------


def squares(box: Box, state: State) -> Squares | None:
    """The sums that solve the state's objective, or None where it is of another form."""
    objective = state.rule.objective
    if objective is None or state.form.kind != "matrix" or state.per:
        return None
    data = ridge = None
    for scale, part in parts(objective, 1.0):
        found = data_part(box, state, scale, part)
        if found is not None and data is None:
            data = found
            continue
        beside = ridge_part(box, state, scale, part)
        if beside is None or ridge is not None:
            return None
        ridge = beside
    if data is None or ridge is None:
        return None
    key, value, weight, keep = data
    return Squares(key, value, weight, keep, ridge)


def parts(term: Term, scale: float) -> Iterator[tuple[float, Term]]:
    """A sum as its summands, each with a number before it."""
    match term:
        case Term(op="add", args=(a, b)):
            yield from parts(a, scale)
            yield from parts(b, scale)
        case (
            Term(op="mul", args=(Term(op="const", info=c), a))
            | Term(op="mul", args=(a, Term(op="const", info=c)))
        ):
            yield from parts(a, scale * c)
        case Term(op="div", args=(a, Term(op="const", info=c))):
            yield from parts(a, scale / c)
        case _:
            yield scale, term


def factors(term: Term) -> Iterator[Term]:
    if term.op == "mul":
        for a in term.args:
            yield from factors(a)
    else:
        yield term


def data_part(
    box: Box, state: State, scale: float, part: Term
) -> tuple[Term, Term, Term, Term | None] | None:
    """(k, v, w, f): the pairs, how much each counts, and what is kept from tick to tick."""
    if part.op != "sum" or part.info is not None or part.args[0].shape != (ALL,):
        return None
    pair = keep = None
    weight = constant(scale, part)
    for factor in factors(part.args[0]):
        match factor:
            case Term(op="fade", args=(a,)) if keep is None:
                keep = a
            case Term(op="past", args=(a,)) if not a.shape:
                weight = mul(weight, a)
            case Term(op="const"):
                weight = mul(weight, factor)
            case _:
                found = distance(box, state, factor)
                if found is None or pair is not None:
                    return None
                pair = found
    return None if pair is None else (*pair, weight, keep)


def distance(box: Box, state: State, term: Term) -> tuple[Term, Term] | None:
    """(k, v) of `length(M(past(k)) - past(v))^2`, or of the sum of the squares."""
    match term:
        case (
            Term(op="pow", args=(Term(op="length", info=2, args=(error,)), Term(info=2)))
            | Term(op="sum", info=1, args=(Term(op="pow", args=(error, Term(info=2))),))
        ):
            pass
        case _:
            return None
    if error.op != "sub":
        return None
    said, value = error.args if error.args[0].op == "apply" else error.args[::-1]
    if said.op != "apply" or said.info.box is not box or said.info.name != state.name:
        return None
    key = said.args[0]
    if key.op != "past" or value.op != "past" or key.shape[0] != ALL or value.shape[0] != ALL:
        return None
    return key.args[0], value.args[0]


def ridge_part(box: Box, state: State, scale: float, part: Term) -> Term | None:
    """d ridge, one number or one an input channel, of `d sum(ridge * M^2)`."""
    if part.op != "sum" or part.info is not None:
        return None
    ridge, squared = constant(scale, part), 0.0
    for factor in factors(part.args[0]):
        match factor:
            case Term(op="pow", args=(Term(op="state", info=handle), Term(op="const", info=2))):
                squared += 2 if handle.box is box and handle.name == state.name else math.nan
            case Term(op="state", info=handle):
                squared += 1 if handle.box is box and handle.name == state.name else math.nan
            case Term(shape=shape) if shape in ((), (state.form.sizes[0],)):
                ridge = mul(ridge, factor)
            case _:
                return None
    return ridge if squared == 2 else None
