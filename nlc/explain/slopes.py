"""The Jacobian of an error in what the memory says: what decides the class of a rule.

In: the surprise e of one example and its product y = M @ k. Out: de/dy, where it can be written
down, and between which slopes it stays for every y (memory-family.md B2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from math import inf

from ..array_rules import one_number
from ..backward import Underivable, add, constant, div, make, mul, neg, power, sub
from ..derive import affine
from ..rules import Example
from ..system import Term
from .bounds import Interval, Scope
from .tidy import Product, Tidy


class Kind(Enum):
    """What the Jacobian is, as a function of the prediction."""

    NONE = "0"
    NUMBER = "one number times I"
    ROWS = "one number for each row of a window"
    DIAGONAL = "one number for each output"
    FULL = "a matrix, the same for every prediction"
    BENDS = "one number for each output, of its own prediction"
    LENGTH = "symmetric, of the length of the error"
    OTHER = "a matrix that depends on the prediction"


ONE = Interval(1, 1)
CONSTANT = (Kind.NONE, Kind.NUMBER, Kind.ROWS, Kind.DIAGONAL, Kind.FULL)


@dataclass(frozen=True, eq=False)
class Jacobian:
    """`term`: the numbers, or the slope. All slopes lie between `scale * low` and `scale * high`;
    `scale` None: nothing is known. `assumes`: what has to be above 0 for it.
    """

    kind: Kind
    term: Term | None = None
    scale: Term | None = None
    slopes: Interval = ONE
    assumes: tuple[Term, ...] = ()

    @property
    def constant(self) -> bool:
        return self.kind in CONSTANT


class Curved(Exception):
    """No function of each entry alone, or one that jumps."""


def jacobian(example: Example, tidy: Tidy) -> Jacobian:
    e, y = example.surprise, example.output
    if not uses(e, y):
        return Jacobian(Kind.NONE)
    line = affine(e, y)
    if line is not None and line.factor is not None:
        return of_factor(tidy.of(line.factor), y)
    try:
        return bending(e, y, tidy)
    except (Curved, Underivable):
        pass
    try:
        return of_length(e, y, tidy)
    except (Curved, Underivable):
        return Jacobian(Kind.FULL if linear(e, y) else Kind.OTHER)


def of_factor(factor: Term, y: Term) -> Jacobian:
    """Of an error `factor * y + rest`."""
    if uses(factor, y):
        return Jacobian(Kind.OTHER)
    one = one_number(factor)
    if one is not None:
        return Jacobian(Kind.NUMBER, one, one)
    if factor.shape[-1:] == (1,):
        rows = len(y.shape) > 1 and y.shape[0] < 0
        return Jacobian(Kind.ROWS if rows else Kind.NUMBER, factor, factor)
    return Jacobian(Kind.DIAGONAL, factor, factor)


def uses(term: Term, y: Term) -> bool:
    return any(t is y for t in term.walk())


LINEAR = {"add", "sub", "neg", "sum", "mean", "expand", "sum_to", "column", "squeeze", "reshape"}
LINEAR |= {"transpose", "stop"}

PRODUCTS = ("mul", "dot", "matmul", "outer")


def linear(term: Term, *of: Term) -> bool:
    """Whether the term is affine in these together, entries mixed or not."""

    def moves(t: Term) -> bool:
        return any(uses(t, y) for y in of)

    if any(term is y for y in of) or not moves(term):
        return True
    moved = [a for a in term.args if moves(a)]
    if term.op in LINEAR:
        return all(linear(a, *of) for a in moved)
    if term.op in PRODUCTS or term.op == "div" and moved == [term.args[0]]:
        return len(moved) == 1 and linear(moved[0], *of)
    return False


# ---- slopes, entry by entry ----------------------------------------------------------------------


def bending(e: Term, y: Term, tidy: Tidy) -> Jacobian:
    assumed: list[Term] = []
    slope = tidy.of(derivative(e, y, tidy, assumed))
    if not uses(slope, y):
        return replace(of_factor(slope, y), assumes=tuple(assumed))
    scale, slopes = between(slope, y, tidy)
    return Jacobian(Kind.BENDS, slope, scale, slopes, tuple(assumed))


Slope = Callable[[Term], Term]
SLOPES: dict[str, Slope] = {
    "exp": lambda x: make("exp", x),
    "log": lambda x: div(constant(1.0, x), x),
    "sqrt": lambda x: div(constant(0.5, x), make("sqrt", x)),
    "abs": lambda x: make("sign", x),
    "sin": lambda x: make("cos", x),
    "cos": lambda x: neg(make("sin", x)),
    "sigmoid": lambda x: mul(make("sigmoid", x), sub(constant(1.0, x), make("sigmoid", x))),
    "tanh": lambda x: sub(constant(1.0, x), power(make("tanh", x), 2)),
    "softplus": lambda x: make("sigmoid", x),
    "relu": lambda x: make("gt", x, constant(0.0, x)),
    "gelu": lambda x: make("gelu_slope", x),
    "silu": lambda x: make("silu_slope", x),
    "smooth_abs": lambda x: make("smooth_sign", x),
    "smooth_sign": lambda x: mul(
        constant(1e-6, x), power(add(power(x, 2), constant(1e-6, x)), -1.5)
    ),
}  # fmt: skip


def derivative(t: Term, y: Term, tidy: Tidy, assumed: list[Term], off: Term | None = None) -> Term:
    """dt/dy, entry by entry; `off`: what is not 0 here, so that its sign does not jump."""
    if t is y:
        return constant(1.0, t)
    if not uses(t, y):
        return constant(0.0, t)

    def of(x: Term) -> Term:
        return derivative(x, y, tidy, assumed, off)

    match t.op:
        case "add" | "sub":
            a, b = (of(x) for x in t.args)
            return add(a, b) if t.op == "add" else sub(a, b)
        case "neg":
            return neg(of(t.args[0]))
        case "expand":
            return of(t.args[0])
        case "mul":
            a, b = t.args
            return add(mul(of(a), b), mul(a, of(b)))
        case "div":
            a, b = t.args
            return sub(div(of(a), b), div(mul(a, of(b)), mul(b, b)))
        case "pow" if t.args[1].op == "const":
            x, n = t.args[0], float(t.args[1].info)
            return mul(of(x), mul(constant(n, t), power(x, n - 1)))
        case "sign" if t.args[0] is off:
            return constant(0.0, t)
        case "where" if not uses(t.args[0], y):
            return make("where", t.args[0], of(t.args[1]), of(t.args[2]), shape=t.shape)
        case "where":
            return of_cases(t, y, tidy, assumed)
    if t.op in SLOPES:
        return mul(of(t.args[0]), SLOPES[t.op](t.args[0]))
    raise Curved


def of_cases(t: Term, y: Term, tidy: Tidy, assumed: list[Term]) -> Term:
    """A slope on each side of a bound, where the two sides meet at it."""
    condition, a, b = t.args
    moving, bound, inside_first = sides(condition, y)
    size = moving.op == "abs"
    x = moving.args[0] if size else moving
    above = Tidy(lambda u: u is bound or tidy.positive(u))
    for at in (bound, neg(bound)) if size else (bound,):
        one, other = (bare(above.of(put(branch, x, at))) for branch in (a, b))
        if uses(one, y) or uses(other, y) or one is not other:
            raise Curved
    known = tidy.surely(bound) or any(u is bound for u in assumed)
    if (size or moving.op == "argument") and not known:
        assumed.append(bound)
    outside = x if size else None  # beyond the bound x is not 0
    inner, outer = (a, b) if inside_first else (b, a)
    slopes = {
        id(inner): derivative(inner, y, tidy, assumed),
        id(outer): derivative(outer, y, tidy, assumed, outside),
    }
    return make("where", condition, slopes[id(a)], slopes[id(b)], shape=t.shape)


def sides(condition: Term, y: Term) -> tuple[Term, Term, bool]:
    """What moves, the bound, and whether the first case is the one below it."""
    if condition.op not in ("lt", "le", "gt", "ge"):
        raise Curved
    a, b = condition.args
    below = condition.op in ("lt", "le")
    if uses(a, y) and not uses(b, y):
        return a, b, below
    if uses(b, y) and not uses(a, y):
        return b, a, not below
    raise Curved


def bare(term: Term) -> Term:
    return bare(term.args[0]) if term.op == "expand" else term


def put(term: Term, x: Term, value: Term) -> Term:
    """The term with `value` in the place of x."""
    if term is x:
        return value
    if not uses(term, x):
        return term
    args = tuple(put(a, x, value) for a in term.args)
    return Term(term.op, args, term.shape, term.info, term.form, term.span)


def between(slope: Term, y: Term, tidy: Tidy) -> tuple[Term | None, Interval]:
    """(scale, interval): the slope is scale times something in the interval, for every y."""
    number, factors = common(tidy.factors(slope), tidy)
    fixed = tuple(f for f in factors if not uses(f[0], y))
    moving = tuple(f for f in factors if uses(f[0], y))
    scale = bare(tidy.built(1.0, fixed, slope)) if fixed else constant(1.0, slope)
    rest = unsquared(tidy.built(number, moving, slope), tidy)
    found = Scope().interval(rest)
    if not found.known:
        return None, found
    return scale, found


def common(product: Product, tidy: Tidy) -> Product:
    """A case that is 0 lets the other's factors out."""
    number, factors = product
    if len(factors) == 1 and factors[0][1] == 1 and factors[0][0].op == "where":
        c, a, b = factors[0][0].args
        for one, other in ((a, b), (b, a)):
            if other.op == "const" and other.info == 0 and one.op != "const":
                inner, own = tidy.factors(one)
                flag = (1.0, 0.0) if one is a else (0.0, 1.0)
                ends = (tidy.number(x, c) for x in flag)
                case = tidy.same(make("where", c, *ends, shape=c.shape))
                return number * inner, (*own, (case, 1.0))
    return number, factors


def unsquared(term: Term, tidy: Tidy) -> Term:
    """`x^2 (x^2 + c)^p` is `(x^2 + c)^(p + 1) - c (x^2 + c)^p`, of which the range can be read."""
    addends = tidy.addends(term)
    made = []
    for number, factors in addends:
        square = next((f for f in factors if f[1] == 2), None)
        base = next((f for f in factors if square is not None and over(f[0], square[0])), None)
        if square is None or base is None:
            made.append((number, factors))
            continue
        rest = tuple(f for f in factors if f is not square and f is not base)
        made.append((number, (*rest, (base[0], base[1] + 1))))
        shift = next(a for a in base[0].args if a.op == "const").info
        made.append((-number * shift, (*rest, base)))
    return tidy.total([p for p in made if p[0]], term)


def over(base: Term, x: Term) -> bool:
    """Whether the base is x^2 and a number above 0."""
    if base.op != "add":
        return False
    squares = [a for a in base.args if a.op == "pow" and a.args[0] is x and a.args[1].info == 2]
    shifts = [a for a in base.args if a.op == "const" and a.info > 0]
    return len(squares) == len(shifts) == 1


# ---- slopes of an error that only its length bends -----------------------------------------------


def of_length(e: Term, y: Term, tidy: Tidy) -> Jacobian:
    """e = h(|r|) r / |r| with r = y - target: de/dy has the eigenvalues h' along r and h(|r|) / |r|
    across it, both between the bounds of h' if h(0) = 0.
    """
    r = error_of(e, y)
    if r is None:
        raise Curved
    rho = Term("argument", (), (), "|r|", None, y.span)
    h = tidy.of(along(e, r, rho)[1])
    assumed: list[Term] = []
    slope = tidy.of(derivative(h, rho, tidy, assumed))
    known = Tidy(lambda u: any(u is a for a in assumed) or tidy.positive(u))
    if known.of(put(h, rho, constant(0.0, h))).info != 0:
        raise Curved
    if not uses(slope, rho):
        raise Curved
    scale, slopes = between(slope, rho, tidy)
    return Jacobian(Kind.LENGTH, None, scale, slopes, tuple(assumed))


def error_of(e: Term, y: Term) -> Term | None:
    """The one difference that y stands in."""
    users = {id(t): t for t in e.walk() if any(a is y for a in t.args)}
    found = list(users.values())
    return found[0] if len(found) == 1 and found[0].op in ("add", "sub") else None


def along(t: Term, r: Term, rho: Term) -> tuple[bool, Term]:
    """(whether it points along r, its size there). Fails on all else."""
    if t is r:
        return True, rho
    if not uses(t, r):
        one = one_number(t)
        if one is None:
            raise Curved
        return False, one
    match t.op:
        case "length" if t.args[0] is r and t.info in (None, 2):
            return False, rho
        case "length_slope" if t.args[0] is r and t.info in (None, 2):
            return True, constant(1.0, t)
        case "expand" | "column" | "neg":
            vector, x = along(t.args[0], r, rho)
            return vector, neg(x) if t.op == "neg" else x
        case "mul" | "div":
            (a, x), (b, z) = (along(u, r, rho) for u in t.args)
            if a and b or b and t.op == "div":
                raise Curved
            return a or b, mul(x, z) if t.op == "mul" else div(x, z)
        case "add" | "sub":
            (a, x), (b, z) = (along(u, r, rho) for u in t.args)
            if a != b:
                raise Curved
            return a, add(x, z) if t.op == "add" else sub(x, z)
        case "pow" if t.args[1].op == "const":
            a, x = along(t.args[0], r, rho)
            if not a:
                return False, power(x, float(t.args[1].info))
        case "where":
            (c, bound), *cases = (along(u, r, rho) for u in t.args)
            (a, x), (b, z) = cases
            if not c and not (a or b):
                return False, make("where", bound, x, z, shape=())
            if not c and (a or is_zero(x)) and (b or is_zero(z)):
                return True, make("where", bound, x, z, shape=())
        case "lt" | "le" | "gt" | "ge":
            (a, x), (b, z) = (along(u, r, rho) for u in t.args)
            if not a and not b:
                return False, make(t.op, x, z, shape=())
    raise Curved


def is_zero(term: Term) -> bool:
    return term.op == "const" and term.info == 0


__all__ = ["Jacobian", "Kind", "inf", "jacobian"]
