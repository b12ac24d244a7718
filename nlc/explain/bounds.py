"""Between which numbers a term lies, whatever the streams are.

In: a term, and where its names come from. Out: an interval that is proven, by the ranges of the
functions alone: an input is looked up at its call, a line at its place, and what is not known lies
between -infinity and infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, inf, isinf, log, prod, sqrt, tanh

from ..system import Assign, Box, Line, Shape, System, Term, line_terms


@dataclass(frozen=True, slots=True)
class Interval:
    low: float = -inf
    high: float = inf

    def __add__(self, other: Interval) -> Interval:
        return Interval(plus(self.low, other.low, -inf), plus(self.high, other.high, inf))

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        ends = [times(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def known(self) -> bool:
        return not (isinf(self.low) and isinf(self.high))


def plus(a: float, b: float, unknown: float) -> float:
    return unknown if isinf(a) and isinf(b) and a != b else a + b


def times(a: float, b: float) -> float:
    """An infinite end is only a number as large as one likes, so nought times it is nought."""
    return 0.0 if a == 0 or b == 0 else a * b


ANY, UNIT, UP = Interval(), Interval(0, 1), Interval(0, inf)
RANGES: Mapping[str, Interval] = {
    "sigmoid": UNIT, "softmax": UNIT, "top": UNIT, "tanh": Interval(-1, 1), "sign": Interval(-1, 1),
    "sin": Interval(-1, 1), "cos": Interval(-1, 1), "unit": Interval(-1, 1), "relu": UP,
    "exp": UP, "softplus": UP, "abs": UP, "sqrt": UP, "length": UP, "frobenius": UP,
    "smooth_abs": Interval(1e-3, inf), "smooth_sign": Interval(-1, 1), "count": Interval(1, inf),
    "position": UP, "lt": UNIT, "le": UNIT, "gt": UNIT, "ge": UNIT, "eq": UNIT,
    "length_slope": Interval(-1, 1), "zeros": Interval(0, 0), "squares": UP,
    "sqrt_slope": UP,
}  # fmt: skip
GROWS: Mapping[str, Callable[[float], float]] = {
    "sigmoid": lambda x: 1 / (1 + exp(-x)) if x > -500 else 0.0,
    "tanh": tanh,
    "exp": lambda x: exp(x) if x < 500 else inf,
    "softplus": lambda x: log(1 + exp(x)) if x < 500 else x,
    "sqrt": lambda x: sqrt(max(x, 0.0)),
    "relu": lambda x: max(x, 0.0),
    "log": lambda x: log(x) if x > 0 else -inf,
}
SAME = {"stop", "column", "squeeze", "expand", "split", "join", "reshape", "transpose", "past"}
SAME |= {"item", "index", "next", "fresh"}


@dataclass
class Scope:
    """Where the names of a body come from. `box` None: the flow. Without a system, from nowhere."""

    box: Box | None = None
    system: System | None = None
    seen: frozenset[tuple[int, str]] = field(default=frozenset())

    def interval(self, term: Term) -> Interval:
        args = term.args
        match term.op:
            case "const":
                return Interval(float(term.info), float(term.info))
            case "input" | "local":
                return self.named(term, Scope.interval, ANY)
            case "add":
                return self.interval(args[0]) + self.interval(args[1])
            case "sub":
                return self.interval(args[0]) + -self.interval(args[1])
            case "neg":
                return -self.interval(args[0])
            case "mul":
                return self.product(*args)
            case "div":
                return self.interval(args[0]) * raised(self.interval(args[1]), -1)
            case "pow" if args[1].op == "const":
                return raised(self.interval(args[0]), float(args[1].info))
            case "where":
                return self.interval(args[1]) | self.interval(args[2])
            case "abs":
                return absolute(self.interval(args[0]))
            case "max" | "min" | "clip":
                return self.chosen(term)
            case "dot" if args[0] is args[1]:
                return UP
            case "sum" | "mean":
                return self.added(term)
            case "squares":
                return raised(self.length(args[0]), 2)
        if term.op in SAME and args:
            return self.interval(args[0])
        if term.op in GROWS:
            inner = self.interval(args[0])
            grows = GROWS[term.op]
            return Interval(
                RANGES.get(term.op, ANY).low if isinf(inner.low) else grows(inner.low),
                RANGES.get(term.op, ANY).high if isinf(inner.high) else grows(inner.high),
            )
        return RANGES.get(term.op, ANY)

    def product(self, a: Term, b: Term) -> Interval:
        found = self.interval(a) * self.interval(b)
        if a is b:
            return Interval(max(found.low, 0.0), found.high)
        whole = b.op == "sub" and b.args[0].op == "const" and b.args[0].info == 1 and b.args[1] is a
        inside = self.interval(a)
        if whole and inside.low >= 0 and inside.high <= 1:  # x (1 - x)
            return Interval(0, 0.25)
        return found

    def chosen(self, term: Term) -> Interval:
        a, b = (self.interval(t) for t in term.args[:2])
        if term.op == "clip":
            high = self.interval(term.args[2])
            x = Interval(max(a.low, b.low), max(a.high, b.high))
            return Interval(min(x.low, high.low), min(x.high, high.high))
        pick = max if term.op == "max" else min
        return Interval(pick(a.low, b.low), pick(a.high, b.high))

    def added(self, term: Term) -> Interval:
        one = self.interval(term.args[0])
        if term.op == "mean":
            return one
        shape = term.args[0].shape if term.info is None else term.args[0].shape[-1:]
        return one * (many(shape) | Interval(1, 1) if min(shape, default=1) < 0 else many(shape))

    # ---- lengths ---------------------------------------------------------------------------------

    def length(self, term: Term) -> Interval:
        """Of the vectors on the last axis."""
        args = term.args
        match term.op:
            case "unit":
                return UNIT
            case "softmax":
                return UNIT
            case "neg" | "stop" | "rope" | "past" | "expand" | "item" | "next":
                return self.length(args[0])
            case "input" | "local":
                found = self.named(term, Scope.length, UP)
                if found != UP:
                    return found
            case "split":
                return Interval(0, self.length(args[0]).high)
            case "join":
                heads = many(args[0].shape[-2:-1]).high
                return Interval(0, self.length(args[0]).high * sqrt(heads))
            case "mul" | "div":
                for vector, number in (args, args[::-1]) if term.op == "mul" else (args,):
                    if number.shape[-1:] in ((), (1,)) and vector.shape[-1:] not in ((), (1,)):
                        scale = self.interval(number)
                        scale = raised(scale, -1) if term.op == "div" else scale
                        return self.length(vector) * absolute(scale)
        each = absolute(self.interval(term))
        width = sqrt(many(term.shape[-1:]).high)
        return Interval(each.low * width, times(each.high, width))

    # ---- names -----------------------------------------------------------------------------------

    def named(
        self, term: Term, ask: Callable[[Scope, Term], Interval], unknown: Interval
    ) -> Interval:
        """What a name can be: all values that lines give it, or what the call gives."""
        key = (id(self.box), term.info)
        if key in self.seen:
            return unknown  # `x += ..` under repeat
        inner = Scope(self.box, self.system, self.seen | {key})
        if term.op == "local":
            values = [v for n, v in assigned(self.lines) if n == term.info]
            found = [ask(inner, v) for v in values]
        else:
            given = self.argument(term.info)
            found = [] if given is None else [ask(inner.outer(), given)]
        if not found:
            return unknown
        made = found[0]
        for other in found[1:]:
            made |= other
        return made

    @property
    def lines(self) -> tuple[Line, ...]:
        if self.box is not None:
            return self.box.lines
        return () if self.system is None else self.system.flow.lines

    def outer(self) -> Scope:
        parent = None if self.box is None else self.box.parent
        return Scope(parent, self.system, self.seen)

    def argument(self, name: str) -> Term | None:
        """What the one call of this box gives for an input."""
        box = self.box
        if box is None:
            return None
        around: Iterable[Term] = ()
        if box.parent is not None:
            around = box.parent.terms()
        elif self.system is not None:
            flow = self.system.flow
            around = (t for r in [*line_terms(flow.lines), flow.result] for t in r.walk())
        call = next((t for t in around if t.op == "call" and t.info is box), None)
        names = [n for n, _ in box.inputs]
        return None if call is None else call.args[names.index(name)]


def assigned(lines: tuple[Line, ...]) -> Iterable[tuple[str, Term]]:
    for line in lines:
        if isinstance(line, Assign):
            yield line.name, line.value
        else:
            yield from assigned(line.lines)


def many(shape: Shape) -> Interval:
    n = float(prod(abs(s) for s in shape))
    return Interval(n, n)


def absolute(x: Interval) -> Interval:
    low = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
    return Interval(low, x.size)


def raised(x: Interval, n: float) -> Interval:
    """x^n, where it is a number."""
    if n == int(n) and n % 2 == 0:
        x = absolute(x)
    if n > 0:
        if x.low < 0 and n != int(n):
            x = Interval(max(x.low, 0.0), max(x.high, 0.0))
        return Interval(power(x.low, n), power(x.high, n))
    if x.low < 0 < x.high or x.low < 0 and n != int(n):
        return ANY
    ends = sorted((power(x.low, n), power(x.high, n)))
    if x.high <= 0 and x.low < 0 and power(x.high, n) == inf:
        return Interval(-inf, power(x.low, n))
    return Interval(*ends)


def power(x: float, n: float) -> float:
    if x == 0:
        return 0.0 if n > 0 else inf
    if isinf(x):
        return 0.0 if n < 0 else inf if x > 0 or n % 2 == 0 else -inf
    return float(x**n)


__all__ = ["Interval", "Scope"]
