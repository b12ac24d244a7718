"""STAGE: normal forms -> which memories are one, and with which gates.

Two forms of one kind are the same family if the gates of the one can be solved for so that all
numbers are those of the other, and neither has a freedom that the other lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from random import Random

import sympy

from .normal import LENGTH, Normal
from .symbols import Expr, symbol

OF_TARGET = ("write", "whole")  # the numbers that a scaled target multiplies
FRACTIONS = ("alpha", "mu", "gamma", "keep")
SCALE = symbol("scale of the target")


@dataclass(frozen=True)
class Substitution:
    """One memory in terms of another: what the other's gates are to be, and by what its target is
    multiplied.
    """

    gates: Mapping[str, Expr]
    scale: Expr
    key: str = "k"
    target: str = "v"

    def __str__(self) -> str:
        parts = [f"{n} = {text(x, self.key)}" for n, x in self.gates.items() if str(x) != n]
        if self.scale != 1:
            parts.append(f"{self.target} = {text(self.scale * symbol(self.target), self.key)}")
        where = [text(below, self.key) + " < " + text(above, self.key) for below, above in self.met]
        return ", ".join(parts) + (f", where {' and '.join(where)}" if where else "")

    @property
    def met(self) -> list[tuple[Expr, Expr]]:
        """What must lie below what: a gate that is divided by a difference is no gate beyond it."""
        made = [*self.gates.values(), self.scale]
        found = dict.fromkeys(pair for x in made for pair in differences(x))
        return list(found)


def differences(x: Expr) -> Iterator[tuple[Expr, Expr]]:
    """The factors below the line that are a difference: what is taken, and from what."""
    _, factors = upright(sympy.fraction(sympy.factor(x))[1])[1].as_coeff_mul()
    for factor in factors:
        terms = sympy.Add.make_args(upright(factor.as_base_exp()[0])[1])
        taken = [t for t in terms if t.as_coeff_Mul()[0] < 0]
        if taken:
            yield -sympy.Add(*taken), sympy.Add(*(t for t in terms if t not in taken))


def text(x: Expr, key: str) -> str:
    """As the language writes it."""
    top, bottom = sympy.fraction(sympy.factor(x.subs(LENGTH, symbol(f"length({key})") ** 2)))
    (sign, above), (other, below) = upright(top), upright(bottom)
    shown = sympy.sstr(sign * other * above / below, order="rev-lex")
    return str(shown).replace("**", "^").replace("*", " * ").replace("/", " / ")


def upright(x: Expr) -> tuple[Expr, Expr]:
    """A sign, and a product whose factors are above zero for small gates: `2 - eta`."""
    number, factors = sympy.factor(x).as_coeff_mul()
    sign, made = (-1, [-number]) if number < 0 else (1, [number])
    for factor in factors:
        below = factor.subs({s: sympy.Rational(1, 20) for s in factor.free_symbols}) < 0
        sign, factor = (-sign, -factor) if below else (sign, factor)
        made.append(factor)
    return sympy.Integer(sign), sympy.Mul(*made)


def same(a: Normal, b: Normal) -> Substitution | None:
    """How b's gates give all that a does; None if they do not, or if one of the two can do more."""
    if a.kind != b.kind or a.numbers.keys() != b.numbers.keys():
        return None
    if freedom(a) != freedom(b):
        return None
    for fixed in choices(a, b):
        found = with_fixed(a, b, fixed)
        if found is not None:
            return found
    return None


def choices(a: Normal, b: Normal) -> Iterator[tuple[str, ...]]:
    """Which of b's gates, and its target (`SCALE`), are taken as they are: as many as can be."""
    shared = [n for n, shape in b.gates.items() if a.gates.get(n) == shape]
    names = [str(SCALE), *shared]
    for count in range(len(names), -1, -1):
        yield from combinations(names, count)


def with_fixed(a: Normal, b: Normal, fixed: tuple[str, ...]) -> Substitution | None:
    other = {n: symbol(n if n in fixed else f"other {n}") for n in b.gates}
    scale = sympy.Integer(1) if str(SCALE) in fixed else SCALE
    theirs = {n: symbol(n) for n in b.gates}
    numbers = {
        n: x.subs({theirs[g]: s for g, s in other.items()}, simultaneous=True)
        for n, x in b.numbers.items()
    }
    unknown = [s for n, s in other.items() if n not in fixed] + ([scale] if scale is SCALE else [])
    found = solution(a.numbers, numbers, unknown, scale)
    if found is None:
        return None
    gates = {n: found.get(s, s) for n, s in other.items()}
    value = found.get(SCALE, sympy.Integer(1))
    if a.steady and value.free_symbols or not fits(a, b, gates, value) or not meant(gates):
        return None
    return Substitution(gates, value, a.key, a.target)


def solution(
    a: Mapping[str, Expr], b: Mapping[str, Expr], unknown: list[sympy.Symbol], scale: Expr
) -> dict[sympy.Symbol, Expr] | None:
    """The unknown as functions of a's gates, where there is one answer."""
    gaps = [sympy.cancel(b[n] * (scale if n in OF_TARGET else 1) - a[n]) for n in a]
    open_ = [g for g in gaps if g != 0]
    if not unknown:
        return None if open_ else {}
    if any(not g.free_symbols & {*unknown} for g in open_):
        return None
    for found in sympy.solve(open_, unknown, dict=True):
        answers = {s: sympy.simplify(x) for s, x in found.items()}
        closed = not any(x.free_symbols & {*unknown} for x in answers.values())
        if len(answers) == len(unknown) and closed and answers.get(SCALE) != 0:
            return answers
    return None


def fits(a: Normal, b: Normal, gates: Mapping[str, Expr], scale: Expr) -> bool:
    """One number may not be made of numbers a channel, nor one channel's of another's."""
    shapes = {symbol(n): shape for n, shape in a.gates.items()}
    for name, x in gates.items():
        if not {shapes.get(s, ()) for s in x.free_symbols} <= {(), b.gates[name]}:
            return False
    wide = {shapes.get(s, ()) for s in scale.free_symbols} - {()}
    return not wide or "one strength a value channel" in a.kind


def meant(gates: Mapping[str, Expr]) -> bool:
    """Whether small gates come from small gates: none is below zero, and no fraction above one."""
    draw = Random(1)
    for _ in range(3):
        for name, x in gates.items():
            at = {s: sympy.Rational(draw.randint(100, 300), 1000) for s in x.free_symbols}
            at |= {
                s: sympy.Rational(draw.randint(900, 999), 1000) for s in at if s.name in FRACTIONS
            }
            value = x.subs(at)
            if value < 0 or (name in FRACTIONS and value > 1):
                return False
    return True


def freedom(form: Normal) -> int:
    """How many of its numbers can be chosen: the rank of what they are to the gates."""
    gates = [*map(symbol, form.gates), SCALE]
    numbers = [x * SCALE if n in OF_TARGET else x for n, x in form.numbers.items()]
    draw = Random(0)
    names = sorted({s for x in numbers for s in x.free_symbols} | {*gates}, key=lambda s: s.name)
    at = {s: sympy.Rational(draw.randint(100, 900), 1000) for s in names}
    slopes = [[x.diff(g).subs(at) for g in gates] for x in numbers]
    return int(sympy.Matrix(slopes).rank()) if slopes else 0
