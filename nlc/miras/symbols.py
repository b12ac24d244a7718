"""STAGE: terms -> sympy. A term over arrays becomes an array of scalar expressions, entry by entry.

Arrays are numpy arrays of expressions, so broadcasting is that of the language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import sympy

from ..system import Box, Lambda, Term

Expr = Any  # of sympy, which tells no types
Array = Any  # a numpy array of expressions, or of floats
PAIRS = 2  # of a window, however long: more would say nothing new
POINTS = 3


def number(x: float) -> Expr:
    return sympy.Integer(int(x)) if float(x).is_integer() else sympy.Rational(str(x))


def symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)


class Unknown(Exception):
    """A term that is not written in symbols here; the message says which."""


def named(name: str, shape: tuple[int, ...]) -> Array:
    """An array of symbols: `v@0`, `v@1`; one number is the name alone."""
    made = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        made[at] = symbol("@".join([name, *map(str, at)]))
    return made


def generic(x: Any) -> Expr:
    """The expression for any entry: the index of a channel is left out."""
    x = sympy.sympify(x)
    return x.subs({s: symbol(s.name.split("@")[0]) for s in x.free_symbols if "@" in s.name})


def single(x: Expr) -> Array:
    made = np.empty((), dtype=object)
    made[()] = x
    return made


class Evaluator:
    """Terms to arrays of expressions, or of floats if `entries` is FLOATS. `given`: by the name of
    an input, or by the identity of a term. `lines`: what the plain lines of the body are bound to.
    """

    def __init__(
        self,
        given: Mapping[Any, Array],
        lines: Mapping[str, Term] | None = None,
        entries: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.given = given
        self.lines = lines or {}
        self.entries = ENTRIES if entries is None else entries
        self.known: dict[int, Array] = {}

    def of(self, term: Term) -> Array:
        if id(term) not in self.known:
            self.known[id(term)] = np.asarray(self.fresh(term), dtype=object)
        return self.known[id(term)]

    def fresh(self, term: Term) -> Array:
        if id(term) in self.given:
            return self.given[id(term)]
        match term.op:
            case "const":
                return single(self.entries["number"](term.info))
            case "local":
                return self.of(self.lines[term.info])
            case "input" | "argument":
                return self.given[term.info]
            case "past":
                name = term.args[0].info
                return np.stack([self.given[f"{name} before"], self.given[name]])
        args = [self.of(a) for a in term.args]
        if term.op in self.entries:
            return np.frompyfunc(self.entries[term.op], len(args), 1)(*args)
        if term.op in WHOLE:
            return WHOLE[term.op](term, *args)
        raise Unknown(f"`{term.op}`")


Point = Callable[[str, tuple[int, ...]], Array]


def streams(box: Box, point: Point) -> dict[str, Array]:
    """A value for each input, and for what it was a tick before."""
    now = {n: point(n, shape) for n, shape in box.inputs}
    return now | {f"{n} before": point(f"{n} before", shape) for n, shape in box.inputs}


def point(number: int) -> Point:
    """A place where functions are compared: floats that depend on the number and on the name."""

    def of(name: str, shape: tuple[int, ...]) -> Array:
        draw = Random(f"{number} {name}")
        made = np.array([draw.gauss(0, 1) for _ in range(math.prod(shape))], dtype=object)
        return made.reshape(shape) if shape else single(abs(made[0]))  # bounds are lengths

    return of


def where(c: Any, a: Expr, b: Expr) -> Expr:
    return sympy.Piecewise((a, c), (b, True))


BOTH: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "pow": lambda a, b: a**b, "neg": lambda a: -a, "abs": abs,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b, "stop": lambda x: x,
}  # fmt: skip
ENTRIES = BOTH | {
    "number": number, "sign": sympy.sign, "sqrt": sympy.sqrt, "exp": sympy.exp, "log": sympy.log,
    "sqrt_slope": lambda x: 1 / (2 * sympy.sqrt(x)), "where": where,
}  # fmt: skip
FLOATS = BOTH | {
    "number": float, "sign": lambda x: float((x > 0) - (x < 0)), "sqrt": math.sqrt,
    "exp": math.exp, "log": math.log, "max": max, "min": min, "eq": lambda a, b: a == b,
    "where": lambda c, a, b: a if c else b,
    "smooth_abs": lambda x: math.sqrt(x * x + 1e-6),
    "smooth_sign": lambda x: x / math.sqrt(x * x + 1e-6),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}  # fmt: skip


def total(term: Term, x: Array) -> Array:
    return x.sum(-1) if term.info == 1 else single(x.sum())


def length(x: Array, p: float) -> Array:
    sizes: Array = np.frompyfunc(abs, 1, 1)(x)
    total: Array = np.sum(sizes**p, axis=-1)
    return total ** (1 / p)


def slope_of_length(term: Term, x: Array) -> Array:
    p = term.info
    if p != 2:
        raise Unknown(f"the slope of a length of order {p}")
    return x / np.asarray(length(x, p), dtype=object)[..., None]


def unit(term: Term, x: Array) -> Array:
    return x / np.asarray(((x * x).sum(-1) + 1e-30) ** 0.5, dtype=object)[..., None]


def softmax(term: Term, x: Array) -> Array:
    made: Array = np.asarray(np.frompyfunc(math.exp, 1, 1)(x), dtype=object)
    return made / made.sum(-1, keepdims=True)


def sum_to(term: Term, x: Array) -> Array:
    """Undo broadcasting: lead axes that the argument has not, and those where it has one entry."""
    shape = term.shape
    x = x.sum(tuple(range(x.ndim - len(shape)))) if x.ndim > len(shape) else x
    thin = tuple(i for i, n in enumerate(shape) if n == 1 and np.asarray(x).shape[i] != 1)
    return np.asarray(x, dtype=object).sum(thin, keepdims=True) if thin else x


WHOLE: dict[str, Callable[..., Array]] = {
    "sum": total,
    "dot": lambda t, a, b: np.asarray((a * b).sum(-1), dtype=object),
    "length": lambda t, x: length(x, t.info),
    "length_slope": slope_of_length,
    "unit": unit,
    "softmax": softmax,
    "column": lambda t, x: x[..., None],
    "squeeze": lambda t, x: x[..., 0],
    "transpose": lambda t, x: np.swapaxes(x, -1, -2),
    "expand": lambda t, x: np.broadcast_to(x, tuple(n if n >= 0 else PAIRS for n in t.shape)),
    "sum_to": sum_to,
}


def fingerprint(value: Callable[[Point], Array]) -> str:
    """What a function is at a few points: the same for all texts that say the same function."""
    made = [value(point(i)) for i in range(POINTS)]
    return " ".join(f"{x:.9g}" for values in made for x in values.flat)


def link_text(link: Lambda) -> str:
    shapes = {t.info: t.shape for t in link.body.walk() if t.op == "argument"}

    def value(at: Point) -> Array:
        return Evaluator({n: at(n, shape) for n, shape in shapes.items()}, None, FLOATS).of(
            link.body
        )

    return fingerprint(value)
