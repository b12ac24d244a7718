"""The rules of differentiation: for each operation, the cotangents of its arguments from the
cotangent of its value.

Terms in, terms out; simple products with 0 and 1 are folded so that what is shown is what a person
would write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .resolve.shapes import broadcast
from .system import Shape, Term


class Underivable(Exception):
    """No rule of ours derives this; its message says what. Never leaves the compiler: another
    lowering is sought.
    """


def constant(value: float, at: Term) -> Term:
    return Term("const", (), (), value, None, at.span)


def make(op: str, *args: Term, shape: Shape | None = None, info: Any = None) -> Term:
    if shape is None:
        wide: Shape | None = ()
        for a in args:
            wide = None if wide is None else broadcast(wide, a.shape)
        assert wide is not None
        shape = wide
    return Term(op, args, shape, info, None, args[0].span)


def is_number(term: Term, value: float) -> bool:
    return term.op == "const" and term.info == value


def mul(a: Term, b: Term) -> Term:
    if a.op == "const" and b.op == "const":
        return constant(a.info * b.info, a)
    if is_number(a, 1):
        return b
    if is_number(b, 1):
        return a
    if b.op == "const":
        a, b = b, a
    if a.op == "const" and b.op == "mul" and b.args[0].op == "const":
        return mul(constant(a.info * b.args[0].info, a), b.args[1])
    if is_number(a, -1):
        return neg(b)
    return make("mul", a, b)


def neg(a: Term) -> Term:
    if a.op == "const":
        return constant(-a.info, a)
    return a.args[0] if a.op == "neg" else make("neg", a)


def add(a: Term, b: Term) -> Term:
    return make("add", a, b)


def sub(a: Term, b: Term) -> Term:
    return make("sub", a, b)


def div(a: Term, b: Term) -> Term:
    if a.op == "const" and b.op == "const" and b.info:
        return constant(a.info / b.info, a)
    return a if is_number(b, 1) else make("div", a, b)


def power(a: Term, n: float) -> Term:
    if n == 0:
        return constant(1.0, a)
    return a if n == 1 else make("pow", a, constant(n, a), shape=a.shape)


def column(a: Term) -> Term:
    """A last axis of 1, unless the term is a number that fits anything."""
    return a if a.op == "const" else make("column", a, shape=(*a.shape, 1))


def sum_to(part: Term, shape: Shape) -> Term:
    """Undo broadcasting: add up the axes along which the argument was stretched."""
    if part.shape == shape or part.op == "const":
        return part
    wide = broadcast(part.shape, shape)
    if wide == shape:
        return make("expand", part, shape=shape)
    return make("sum_to", part, shape=shape)


Rule = Callable[[Term, Term], tuple[Term | None, ...]]


def chain(derivative: Callable[[Term], Term]) -> Rule:
    """For a function of one argument, element by element: the cotangent times the derivative at the
    argument.
    """
    return lambda t, bar: (mul(bar, derivative(t)),)


def function(op: str) -> Callable[[Term], Term]:
    """The derivative as an operation of its own, at the argument."""
    return lambda t: make(op, t.args[0])


def d_mul(t: Term, bar: Term) -> tuple[Term | None, ...]:
    a, b = t.args
    return mul(bar, b), mul(bar, a)


def d_div(t: Term, bar: Term) -> tuple[Term | None, ...]:
    a, b = t.args
    return div(bar, b), neg(div(mul(bar, a), mul(b, b)))


def d_pow(t: Term, bar: Term) -> tuple[Term | None, ...]:
    a, n = t.args
    if n.op != "const":
        raise Underivable("a power that is not a number")
    if not 0 < n.info < 1:
        return mul(bar, mul(constant(n.info, t), power(a, n.info - 1))), None
    nought, zero = make("eq", a, constant(0.0, a), shape=a.shape), constant(0.0, a)
    other = make("where", nought, constant(1.0, a), a, shape=a.shape)
    slope = mul(constant(n.info, t), power(other, n.info - 1))
    return mul(bar, make("where", nought, zero, slope, shape=a.shape)), None  # 0 at 0 (2.12)


def root_slope(t: Term) -> Term | None:
    """n x^(n - 1), if the term is what `d_pow` makes of it for a power below 1."""
    match t:
        case Term(
            op="where",
            args=(
                Term(op="eq") as nought,
                Term(op="const"),
                Term(op="mul", args=(n, Term(op="pow", args=(Term(op="where") as other, less)))),
            ),
        ) if other.args[0] is nought:
            return mul(n, power(other.args[2], less.info))
    return None


def d_where(t: Term, bar: Term) -> tuple[Term | None, ...]:
    c = t.args[0]
    zero = constant(0.0, t)
    return (
        None,
        make("where", c, bar, zero, shape=t.shape),
        make("where", c, zero, bar, shape=t.shape),
    )


def d_choice(above: str, least: str) -> Rule:
    """The larger or smaller one has all of it; of two that are equal each has half, as in torch."""

    def rule(t: Term, bar: Term) -> tuple[Term | None, ...]:
        a, b = t.args
        half = constant(0.5, t)
        first = mul(half, add(make(above, a, b), make(least, a, b)))
        return mul(bar, first), mul(bar, sub(constant(1.0, t), first))

    return rule


def d_clip(t: Term, bar: Term) -> tuple[Term | None, ...]:
    """At a bound it is still x."""
    x, low, high = t.args
    within = mul(bar, mul(make("ge", x, low), make("le", x, high)))
    return within, mul(bar, make("lt", x, low)), mul(bar, make("gt", x, high))


def d_sum(t: Term, bar: Term) -> tuple[Term | None, ...]:
    return (
        (make("expand", column(bar) if t.info == 1 else bar, shape=t.args[0].shape),)
        if bar.op != "const"
        else (bar,)
    )


def d_mean(t: Term, bar: Term) -> tuple[Term | None, ...]:
    shape = t.args[0].shape
    count = 1
    for n in shape if t.info is None else shape[-1:]:
        count *= n
    return d_sum(t, div(bar, constant(float(count), t)))


def d_dot(t: Term, bar: Term) -> tuple[Term | None, ...]:
    a, b = t.args
    return mul(column(bar), b), mul(column(bar), a)


def d_length(t: Term, bar: Term) -> tuple[Term | None, ...]:
    return (mul(column(bar), make("length_slope", t.args[0], info=t.info)),)


def d_layer_norm(t: Term, bar: Term) -> tuple[Term | None, ...]:
    if len(t.args) > 1:
        raise Underivable("a layer norm with gain and bias inside an objective")
    return (
        make(
            "layer_norm_back",
            bar if bar.shape else make("expand", bar, shape=t.shape),
            t.args[0],
            shape=t.shape,
        ),
    )


def d_softmax(t: Term, bar: Term) -> tuple[Term | None, ...]:
    inner = make("dot", bar, t, shape=t.shape[:-1])
    return (mul(t, sub(bar, column(inner))),)


def d_unit(t: Term, bar: Term) -> tuple[Term | None, ...]:
    along = mul(t, column(make("dot", bar, t, shape=t.shape[:-1])))
    norm = make(
        "sqrt", add(make("dot", t.args[0], t.args[0], shape=t.shape[:-1]), constant(1e-30, t))
    )
    return (div(sub(bar, along), column(norm)),)


def d_matmul(t: Term, bar: Term) -> tuple[Term | None, ...]:
    """Y = A B: A' = Y' B^T and B' = A^T Y', a vector a row on the left, a column on the right."""
    a, b = t.args
    if bar.shape != t.shape:
        bar = make("expand", bar, shape=t.shape)
    if len(a.shape) == len(b.shape) == 1:
        return mul(bar, b), mul(bar, a)
    if len(a.shape) == 1:
        return product(b, bar), make("outer", a, bar, shape=(*a.shape, *bar.shape))
    if len(b.shape) == 1:
        outer = make("outer", bar, b, shape=(*bar.shape, *b.shape))
        return outer, product(transposed(a), bar)
    return product(bar, transposed(b)), product(transposed(a), bar)


def product(a: Term, b: Term) -> Term:
    """A matrix by a matrix, or by a column."""
    shape = a.shape[:-1] if len(b.shape) == 1 else (*a.shape[:-1], b.shape[-1])
    if len(b.shape) > 1 and len(b.shape) > len(a.shape):
        shape = (*b.shape[:-2], *shape)
    return make("matmul", a, b, shape=shape)


def transposed(a: Term) -> Term:
    if a.op == "transpose":
        return a.args[0]
    return make("transpose", a, shape=(*a.shape[:-2], a.shape[-1], a.shape[-2]))


def d_dropout(t: Term, bar: Term) -> tuple[Term | None, ...]:
    """The same entries fall: a draw belongs to its place, which is the slot's."""
    bar = bar if bar.shape == t.shape else make("expand", bar, shape=t.shape)
    return (make("dropout", bar, shape=t.shape, info=t.info),)


def d_transpose(t: Term, bar: Term) -> tuple[Term | None, ...]:
    return (transposed(bar) if bar.shape else bar,)


VJP: dict[str, Rule] = {
    "add": lambda t, bar: (bar, bar),
    "sub": lambda t, bar: (bar, neg(bar)),
    "neg": lambda t, bar: (neg(bar),),
    "mul": d_mul,
    "div": d_div,
    "pow": d_pow,
    "where": d_where,
    "clip": d_clip,
    "max": d_choice("gt", "ge"),
    "min": d_choice("lt", "le"),
    "sum": d_sum,
    "mean": d_mean,
    "dot": d_dot,
    "length": d_length,
    "matmul": d_matmul,
    "transpose": d_transpose,
    "layer_norm": d_layer_norm,
    "softmax": d_softmax,
    "unit": d_unit,
    "exp": chain(lambda t: t),
    "log": lambda t, bar: (div(bar, t.args[0]),),
    "sqrt": chain(function("sqrt_slope")),
    "abs": chain(lambda t: make("sign", t.args[0])),
    "sin": chain(lambda t: make("cos", t.args[0])),
    "cos": chain(lambda t: neg(make("sin", t.args[0]))),
    "sigmoid": chain(lambda t: mul(t, sub(constant(1.0, t), t))),
    "tanh": chain(lambda t: sub(constant(1.0, t), mul(t, t))),
    "softplus": chain(lambda t: make("sigmoid", t.args[0])),
    "relu": chain(lambda t: make("gt", t.args[0], constant(0.0, t))),
    "gelu": chain(function("gelu_slope")),
    "silu": chain(function("silu_slope")),
    "smooth_abs": chain(lambda t: make("smooth_sign", t.args[0])),
    "column": lambda t, bar: (make("squeeze", bar, shape=t.args[0].shape) if bar.shape else bar,),
    "join": lambda t, bar: (make("reshape", bar, shape=t.args[0].shape) if bar.shape else bar,),
    "split": lambda t, bar: (make("reshape", bar, shape=t.args[0].shape) if bar.shape else bar,),
    "reshape": lambda t, bar: (make("reshape", bar, shape=t.args[0].shape) if bar.shape else bar,),
    "dropout": d_dropout,
    # the gradient of these is zero everywhere (NL403)
    **{
        op: (lambda t, bar: tuple(None for _ in t.args))
        for op in ("sign", "floor", "top", "lt", "le", "gt", "ge", "eq")
    },
}
