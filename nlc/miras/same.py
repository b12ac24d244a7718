"""STAGE: normal forms -> which memories are one, and with which gates.

Two forms of one kind are the same family if the gates of the one can be solved for so that all
numbers are those of the other, and neither has a freedom that the other lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        return ", ".join(parts)


def text(x: Expr, key: str) -> str:
    """As the language writes it."""
    top, bottom = sympy.fraction(sympy.factor(x.subs(LENGTH, symbol(f"length({key})") ** 2)))
    if bottom.could_extract_minus_sign():
        top, bottom = -top, -bottom
    shown = sympy.sstr(sympy.factor(top) / bottom, order="rev-lex")
    return str(shown).replace("**", "^").replace("*", " * ").replace("/", " / ")


def same(a: Normal, b: Normal) -> Substitution | None:
    """How b's gates give all that a does; None if they do not, or if one of the two can do more."""
    if a.kind != b.kind or a.numbers.keys() != b.numbers.keys():
        return None
    if freedom(a) != freedom(b):
        return None
    inside = {n: symbol(f"other {n}") for n in b.gates}
    b_numbers = {
        n: x.subs({symbol(g): s for g, s in inside.items()}, simultaneous=True)
        for n, x in b.numbers.items()
    }
    for scale in (sympy.Integer(1), SCALE):
        found = solution(a.numbers, b_numbers, inside, scale)
        if found is None:
            continue
        value = found.get(SCALE, scale)
        if a.steady and value.free_symbols:
            continue
        gates = {n: found[s] for n, s in inside.items() if s in found}
        if meant(gates):
            return Substitution(gates, value, a.key, a.target)
    return None


def meant(gates: Mapping[str, Expr]) -> bool:
    """Whether small gates come from small gates: none is below zero, and no fraction above one."""
    draw = Random(1)
    for _ in range(3):
        for name, x in gates.items():
            at = {s: sympy.Rational(draw.randint(100, 300), 1000) for s in x.free_symbols}
            at |= {s: sympy.Rational(draw.randint(900, 999), 1000) for s in at if s.name in FRACTIONS}
            value = x.subs(at)
            if value < 0 or (name in FRACTIONS and value > 1):
                return False
    return True


def solution(
    a: Mapping[str, Expr], b: Mapping[str, Expr], inside: Mapping[str, sympy.Symbol], scale: Expr
) -> dict[sympy.Symbol, Expr] | None:
    """The other's gates as functions of our own."""
    gaps = [b[n] * (scale if n in OF_TARGET else 1) - a[n] for n in a]
    open_ = [g for g in map(sympy.cancel, gaps) if g != 0]
    unknown = [s for s in (*inside.values(), SCALE) if any(g.has(s) for g in open_)]
    if not open_:
        return {}
    if not unknown:
        return None
    for found in sympy.solve(open_, unknown, dict=True):
        answers = {s: sympy.simplify(x) for s, x in found.items()}
        theirs = {*inside.values(), SCALE}
        if len(answers) == len(unknown) and not any(x.free_symbols & theirs for x in answers.values()):
            if answers.get(SCALE) != 0:
                return answers
    return None


def freedom(form: Normal) -> int:
    """How many of its numbers can be chosen: the rank of what they are to the gates."""
    gates = [*map(symbol, form.gates), SCALE]
    numbers = [x * SCALE if n in OF_TARGET else x for n, x in form.numbers.items()]
    draw = Random(0)
    names = sorted({s for x in numbers for s in x.free_symbols} | {*gates}, key=lambda s: s.name)
    at = {s: sympy.Rational(draw.randint(100, 900), 1000) for s in names}
    slopes = [[x.diff(g).subs(at) for g in gates] for x in numbers]
    return int(sympy.Matrix(slopes).rank()) if slopes else 0
