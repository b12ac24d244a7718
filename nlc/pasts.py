"""What solves `learn exact` where its objective is one that is known: attention, least squares.

    sum(w * exp(scale * dot(past(k), q)) * length(past(v) - z)^2) +
    sum(exp(scale * dot(K, q)) * length(V - z)^2)

is least at the softmax-weighted mean of the values (class vii; w and the pairs K, V of no past need
not be there), and

    c sum_i f_ti w_i |M k_i - v_i|^2 + d sum(ridge M^2)

at M_t = G_t (H_t + (d / c) diag(ridge))^-1, G_t = sum_i f_ti w_i v_i k_i', H_t = sum_i f_ti w_i
k_i k_i', f_ti being what `fade` leaves of tick i at tick t (class iii; memory-family.md B4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from .backward import constant, mul
from .plan import Attention, Beside, Squares
from .system import ALL, Assign, Box, State, Term

# ---- attention ----------------------------------------------------------------------------------


def attention(box: Box, state: State) -> Attention | None:
    """The softmax that solves the state's objective, or None where it is of another form."""
    if state.form.kind != "vector" or state.per or state.rule.objective is None:
        return None
    if box.read is None or box.read.op != "state":
        return None
    return match_attention(state.rule.objective, state, box)


def match_attention(objective: Term, state: State, box: Box) -> Attention | None:
    """Sums over pairs; those of no past stand beside the others."""
    past = beside = None
    summands = list(parts(objective, 1.0))
    if len({scale for scale, _ in summands}) > 1 or summands[0][0] <= 0:
        return None
    for _, part in summands:
        found = match_pairs(part, state, box)
        if found is None:
            return None
        score, key, query, value, weight = found
        if key.op == "past" and past is None:
            past = found
        elif key.op != "past" and beside is None and weight is None:
            beside = Beside(key, value, score)
        else:
            return None
        if past is not None and not same(past[2], query):
            return None
    if past is None:
        return None
    scale, key, query, value, weight = past
    key_slot, value_slot = key.info, value.info
    if any(names_state(t) for t in (query, key.args[0], value.args[0])):
        return None
    window = None if key_slot.window == ALL else key_slot.window
    if weight is not None and window is None:
        return None
    paths = key_slot.path, value_slot.path
    return Attention(query, key.args[0], value.args[0], scale, window, *paths, weight, beside)


def same(a: Term, b: Term) -> bool:
    return a is b or a.op == b.op in ("input", "local") and a.info == b.info


def names_state(term: Term) -> bool:
    return any(t.op in ("past", "state", "apply") for t in term.walk())


def match_pairs(
    part: Term, state: State, box: Box
) -> tuple[float, Term, Term, Term, Term | None] | None:
    """`sum(w * exp(scale * dot(k, q)) * length(v - z)^2)` as scale, k, q, v, w."""
    if part.op != "sum" or part.info is not None:
        return None
    score = value = weight = None
    for factor in factors(part.args[0]):
        away = match_distance(factor, state, box)
        if away is not None and value is None:
            value = away
        elif factor.op == "exp" and score is None and match_score(factor.args[0])[1] is not None:
            score = factor.args[0]
        else:
            weight = factor if weight is None else mul(weight, factor)
    if score is None or value is None:
        return None
    scale, dot = match_score(score)
    assert dot is not None
    key, query = dot.args if len(dot.args[0].shape) >= len(dot.args[1].shape) else dot.args[::-1]
    of_past = key.op == "past" and value.op == "past"
    lines = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
    if len(query.shape) != 1 or key.shape[:-1] != value.shape[:-1] or query.op == "past":
        return None
    if not of_past and (names_state(key) or names_state(value)):
        return None
    if len(key.shape) not in ((2, 3) if of_past else (2,)):
        return None
    if weight is not None and not (of_past and weighs(weight, key, lines)):
        return None
    return scale, key, query, value, weight


def weighs(weight: Term, key: Term, lines: Mapping[str, Term]) -> bool:
    """Whether the weights have a row for each tick of the window, and no gradient where 0."""
    several = len(weight.shape) == len(key.shape) - 1
    fits = several and weight.shape[1:] in ((), (1,), key.shape[1:2])
    return fits and weight.shape[:1] == key.shape[:1] and (positive(weight) or even(weight, lines))


def positive(term: Term) -> bool:
    if term.op in ("mul", "div", "add", "column", "expand", "past"):
        return all(map(positive, term.args))
    return term.op in ("exp", "sigmoid", "softplus") or term.op == "const" and term.info > 0


def even(term: Term, lines: Mapping[str, Term]) -> bool:
    """Whether no gradient goes through the term."""
    if term.op in ("lt", "le", "gt", "ge", "eq", "sign", "floor", "top"):
        return not any(t.op in ("state", "apply") for t in term.walk())
    if term.op == "local":
        return even(lines[str(term.info)], lines)
    if not term.args:
        return term.op in ("const", "position", "range", "eye")
    return all(even(a, lines) for a in term.args)


def match_distance(term: Term, state: State, box: Box) -> Term | None:
    """v of `length(v - z)^2`, either way round."""
    match term:
        case Term(
            op="pow",
            args=(
                Term(op="length", info=2, args=(Term(op="sub", args=(a, b)),)),
                Term(op="const", info=2),
            ),
        ):
            value, z = (a, b) if b.op == "state" else (b, a)
            if z.op == "state" and z.info.box is box and z.info.name == state.name:
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
