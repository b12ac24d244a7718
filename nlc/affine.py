"""Writes that are affine in one matrix, whatever they ask it for: what each asks, and how much of
the answer is written (memory-family.md B2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .backward import constant, div, make, mul, neg
from .derive import added, substitute
from .plan import AffineWrite, ArrayRule
from .system import Assign, Box, Line, Term, line_terms


def affine_writes(box: Box, arrays: tuple[ArrayRule, ...]) -> tuple[AffineWrite, ...]:
    """What is written to the box's one matrix, if all of it is affine in that; else nothing."""
    state = box.states[0]
    learn = state.rule.learn.get("")
    alone = len(box.states) == 1 and state.form.kind == "matrix" and not state.per
    if not alone or touches_state(box, box.lines):
        return ()
    if learn is not None and learn.steps > 1:
        return ()
    made = [affine_write(rule) for rule in arrays]
    known = [w for w in made if w is not None]
    return tuple(known) if len(known) == len(made) and any(w.reads for w in known) else ()


def affine_write(rule: ArrayRule) -> AffineWrite | None:
    given = rule.rule.rate, rule.rule.erase, rule.rule.momentum
    rate, erase, momentum = (t and substitute(t, rule.settings) for t in given)
    numbers = [t for t in (erase, momentum) if t is not None]
    gates = [t for t in (rate, rule.keep, *numbers) if t is not None]
    if len(rule.input.shape) != 1 or any(map(reads_state, (rule.input, *gates))):
        return None
    found = reads_of(rule.surprise)
    if found is None or any(t.shape for t in numbers) or rate is None:
        return None
    if erase is not None:
        found = Reads(found.rest, (*found.found, (erase, rule.input)))
    if rate.shape == rule.input.shape:  # one number an input channel
        made = found.each(neg)
        return AffineWrite(mul(rate, rule.input), made.rest, made.found)
    made = found.each(lambda t: neg(mul(t, rate)))
    return AffineWrite(rule.input, made.rest, made.found) if not rate.shape else None


def touches_state(box: Box, lines: tuple[Line, ...]) -> bool:
    """Whether a plain line reads the box's own state."""
    return any(
        t.op in ("apply", "state") and t.info.box is box
        for root in line_terms(lines)
        for t in root.walk()
    )


def touched(term: Term, lines: Mapping[str, Term]) -> bool:
    """Whether a window is one of a state's own readings, by a line or not."""
    return any(
        t.op in ("apply", "state")
        or t.op == "local"
        and (t.info not in lines or touched(lines[str(t.info)], lines))
        for t in term.walk()
    )


def values_of(box: Box) -> dict[str, Term]:
    """The plain lines of a box, by name."""
    return {line.name: line.value for line in box.lines if isinstance(line, Assign)}


# ---- one vector ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reads:
    """rest + the sum of factor * M(asked), each factor a number."""

    rest: Term | None
    found: tuple[tuple[Term, Term], ...] = ()

    def each(self, f: Callable[[Term], Term]) -> Reads:
        """Of f that is linear in its argument."""
        rest = None if self.rest is None else f(self.rest)
        return Reads(rest, tuple((f(factor), asked) for factor, asked in self.found))


def reads_of(term: Term) -> Reads | None:
    """A vector as what it asks of one matrix M, or None where it is not affine in that."""
    if not reads_state(term):
        return Reads(term)
    if term.op == "product":
        return Reads(None, ((constant(1.0, term), term.args[0]),))
    if term.op == "matmul" and len(term.shape) == 1 and not reads_state(term.args[1]):
        return matrix_times(term.args[0], term.args[1])
    if term.op == "neg":
        made = reads_of(term.args[0])
        return None if made is None else made.each(neg)
    if term.op in ("add", "sub"):
        a, b = (reads_of(a) for a in term.args)
        return sum_of(a, b, neg if term.op == "sub" else None)
    if term.op in ("mul", "div"):
        return times_a_number(term, reads_of)
    return None


def matrix_times(matrix: Term, x: Term) -> Reads | None:
    """`matrix @ x` of a sum of outer products: u k' x = (k' x) u."""
    if matrix.op == "outer" and not reads_state(matrix.args[1]):
        met = make("sum", mul(matrix.args[1], x), shape=(), info=1)
        made = reads_of(matrix.args[0])
        return None if made is None else made.each(lambda t: mul(t, met))
    if matrix.op == "neg":
        made = matrix_times(matrix.args[0], x)
        return None if made is None else made.each(neg)
    if matrix.op in ("add", "sub"):
        a, b = (matrix_times(part, x) for part in matrix.args)
        return sum_of(a, b, neg if matrix.op == "sub" else None)
    if matrix.op in ("mul", "div"):
        return times_a_number(matrix, lambda t: matrix_times(t, x))
    return None


def sum_of(a: Reads | None, b: Reads | None, sign: Callable[[Term], Term] | None) -> Reads | None:
    if a is None or b is None:
        return None
    b = b if sign is None else b.each(sign)
    return Reads(added(a.rest, b.rest), (*a.found, *b.found))


def times_a_number(term: Term, of: Callable[[Term], Reads | None]) -> Reads | None:
    whole, number = term.args
    if term.op == "mul" and not reads_state(whole):
        whole, number = number, whole
    if number.shape or reads_state(number):
        return None
    made = of(whole)
    f = mul if term.op == "mul" else div
    return None if made is None else made.each(lambda t: f(t, number))


def reads_state(term: Term) -> bool:
    """Inside `stop` too: a constant to the gradient is none to the state."""
    return any(t.op in ("product", "product_back", "array", "apply", "state") for t in term.walk())
