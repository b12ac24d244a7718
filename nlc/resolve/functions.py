"""The functions of the language (2.12): from terms to a typed term, or a diagnostic.

A function here is `f(call: FunctionCall) -> Value`; `TABLE` has them all. Functions that make
weights or remember the past are in `making`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from ..system import Form, Shape, Term
from ..text import Span
from .shapes import broadcast, told
from .values import Inexact, StateValue, Value, is_known

if TYPE_CHECKING:
    from .bodies import Body

LARGEST = 1.7e308

ELEMENTWISE = (
    "exp", "log", "sqrt", "abs", "sign", "sin", "cos", "floor", "sigmoid", "softplus", "silu",
    "gelu", "tanh", "relu", "smooth_abs", "smooth_sign",
)  # fmt: skip

ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "pow": lambda a, b: power(a, b),
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "gt": lambda a, b: int(a > b),
    "ge": lambda a, b: int(a >= b),
    "eq": lambda a, b: int(a == b),
    "min": min,
    "max": max,
    "mod": lambda a, b: a % b,
}

NUMBERS: dict[str, Callable[[float], float]] = {
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "abs": abs,
    "sin": math.sin, "cos": math.cos,
    "floor": math.floor, "tanh": math.tanh, "neg": lambda a: -a,
    "sign": lambda a: (a > 0) - (a < 0), "relu": lambda a: max(a, 0),
}  # fmt: skip


class Stop(Exception):
    """Ends the typing of one call after its mistake has been reported; never leaves this folder."""


@dataclass
class FunctionCall:
    """One call of a built-in function: its arguments in order, and where they stand."""

    body: Body
    name: str
    args: list[Value]
    named: dict[str, Value]
    spans: list[Span]
    span: Span

    def fail(self, code: str, message: str, help: str = "", at: int | None = None) -> Stop:
        self.body.error(code, message, self.span if at is None else self.spans[at], help)
        return Stop()

    def make(self, args: list[Term], shape: Shape, info: object = None, op: str = "") -> Term:
        return self.body.term(op or self.name, tuple(args), shape, info, span=self.span)

    def array(self, i: int) -> Term:
        """Argument i as one array."""
        return self.body.array(self.args[i], self.spans[i])

    def arrays(self) -> list[Term]:
        return [self.array(i) for i in range(len(self.args))]

    def size(self, i: int, least: int = 1) -> int:
        return self.body.size(self.args[i], self.spans[i], least)

    def joint(self, terms: list[Term]) -> Shape:
        """The broadcast shape of all the terms."""
        shape: Shape = ()
        for i, term in enumerate(terms):
            wider = broadcast(shape, term.shape)
            if wider is None:
                raise self.fail(
                    "NL602",
                    f"`{self.name}` is given {told(shape)} and {told(term.shape)}, which do not "
                    "fit",
                    at=i,
                )
            shape = wider
        return shape

    def last(self, term: Term, at: int = 0) -> int:
        """The size of the last axis."""
        if not term.shape:
            raise self.fail(
                "NL602", f"`{self.name}` acts on the last axis, and this is a number", at=at
            )
        return term.shape[-1]


def elementwise(call: FunctionCall) -> Value:
    if len(call.args) == 1 and is_known(call.args[0]) and call.name in NUMBERS:
        return folded(call, NUMBERS[call.name])
    x = call.body.whole(call.args[0], call.spans[0])
    return call.body.term(call.name, (x,), x.shape, form=x.form, span=call.span)


def folded(call: FunctionCall, f: Callable[..., float]) -> Value:
    try:
        value = f(*call.args)
    except OverflowError:
        raise call.fail("NL502", f"`{call.span.text}` is too large for a number") from None
    except (ValueError, ZeroDivisionError, TypeError):
        raise call.fail("NL502", f"`{call.span.text}` is not a number") from None
    if isinstance(value, complex) or value != value:
        raise call.fail("NL502", f"`{call.span.text}` is not a number")
    if abs(value) > LARGEST and all(abs(a) <= LARGEST for a in call.args if is_number(a)):
        raise call.fail("NL502", f"`{call.span.text}` is too large for a number")
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    return is_known(value)


def power(a: float, b: float) -> float:
    """Whole where it can be, and never larger than a number may be."""
    if isinstance(a, int) and isinstance(b, int) and b > 0 and abs(a) > 1:
        if b * math.log2(abs(a)) > math.log2(LARGEST):
            raise OverflowError
        return int(a**b)
    if isinstance(a, int) and b < 0:
        a = float(a)
    value: float = a**b
    return value


def joined(call: FunctionCall) -> Value:
    if call.name in ARITHMETIC and all(is_known(a) for a in call.args):
        return folded(call, ARITHMETIC[call.name])
    terms = call.arrays()
    return call.make(terms, call.joint(terms))


def where(call: FunctionCall) -> Value:
    """Of a condition that is known, what it chooses: a setting that is off costs nothing."""
    condition = call.args[0]
    if not is_number(condition):
        return joined(call)
    place = 1 if condition else 2
    terms = call.arrays()
    if call.joint(terms) != terms[place].shape:
        return joined(call)
    return call.args[place] if is_known(call.args[place]) else terms[place]


def binary(body: Body, op: str, left: Value, right: Value, span: Span, spans: list[Span]) -> Value:
    """An operator between two values (2.5.2), folded where both are numbers."""
    call = FunctionCall(body, op, [left, right], {}, spans, span)
    if is_known(left) and is_known(right):
        return quotient(call) if op == "div" else folded(call, ARITHMETIC[op])
    if op == "div" and is_known(right) and right == 0:
        raise call.fail("NL502", f"`{call.span.text}` divides by zero")
    a, b = body.whole(left, spans[0]), body.whole(right, spans[1])
    if a.form or b.form:
        return network(call, op, a, b)
    shape = broadcast(a.shape, b.shape)
    if shape is None:
        sign = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "^"}.get(op, op)
        raise call.fail(
            "NL602", f"`{sign}` is given {told(a.shape)} and {told(b.shape)}, which do not fit",
            "axes are matched from the last; an axis of 1 stretches (`column` adds one)",
        )  # fmt: skip
    return call.make([a, b], shape)


def quotient(call: FunctionCall) -> Value:
    a, b = call.args
    assert isinstance(a, (int, float)) and isinstance(b, (int, float))
    if b == 0:
        raise call.fail("NL502", f"`{call.span.text}` divides by zero")
    if isinstance(a, int) and isinstance(b, int):
        if a % b == 0:
            return a // b
        out = Inexact(a / b)
        out.span, out.parts = call.span, (a, b)
        return out
    return a / b


def network(call: FunctionCall, op: str, a: Term, b: Term) -> Value:
    """Between states of one form, and with numbers, + - * go array by array (2.3.2)."""
    form = a.form or b.form
    numbers = [t for t in (a, b) if t.form is None]
    if (
        op not in ("add", "sub", "mul")
        or (a.form and b.form and a.form != b.form)
        or any(t.shape for t in numbers)
    ):
        raise call.fail(
            "NL602",
            "networks are added, subtracted and multiplied array by array, with others of one "
            "form or with numbers",
        )
    return call.body.term(op, (a, b), (), form=form, span=call.span)


def matmul(body: Body, left: Value, right: Value, span: Span, spans: list[Span]) -> Value:
    call = FunctionCall(body, "matmul", [left, right], {}, spans, span)
    a, b = call.arrays()
    if not a.shape or not b.shape:
        raise call.fail("NL602", "`@` is the product of matrices; use `*` with a number")
    inner = b.shape[-2] if len(b.shape) > 1 else b.shape[0]
    lead = broadcast(a.shape[:-2], b.shape[:-2])
    if a.shape[-1] != inner or lead is None:
        raise call.fail(
            "NL602", f"`@` is given {told(a.shape)} and {told(b.shape)}, which do not fit"
        )
    rows = a.shape[-2:-1]
    columns = b.shape[-1:] if len(b.shape) > 1 else ()
    return call.make([a, b], (*lead, *rows, *columns))


def reduce(call: FunctionCall) -> Value:
    if len(call.args) > 1 and call.args[1] != 1:
        raise call.fail(
            "NL107",
            f"`{call.name}(x, 1)` takes the last axis only; no other axis can be named",
            at=1,
        )
    if len(call.args) == 1:
        x = call.body.whole(call.args[0], call.spans[0])
        if x.form:
            raise call.fail("NL602", f"`{call.name}` takes one array, and this is a network")
        return call.make([x], ())
    x = call.array(0)
    call.last(x)
    return call.make([x], x.shape[:-1], 1)


def dot(call: FunctionCall) -> Value:
    terms = call.arrays()
    shape = call.joint(terms)
    if not shape:
        raise call.fail("NL602", "`dot` acts on the last axis, and these are numbers")
    return call.make(terms, shape[:-1])


def outer(call: FunctionCall) -> Value:
    a, b = call.arrays()
    lead = broadcast(a.shape[:-1], b.shape[:-1])
    if lead is None or not a.shape or not b.shape:
        raise call.fail(
            "NL602", f"`outer` is given {told(a.shape)} and {told(b.shape)}; it takes two vectors"
        )
    return call.make([a, b], (*lead, a.shape[-1], b.shape[-1]))


def length(call: FunctionCall) -> Value:
    p = call.named.get("p", call.args[1] if len(call.args) > 1 else 2)
    if not is_known(p):
        raise call.fail("NL107", "the power of `length` is a number known when compiled")
    x = call.array(0)
    call.last(x)
    return call.make([x], x.shape[:-1], p)


def on_last(call: FunctionCall) -> Value:
    x = call.array(0)
    call.last(x)
    return call.make([x], x.shape)


def to_number(call: FunctionCall) -> Value:
    return call.make([call.array(0)], ())


def square(call: FunctionCall) -> Value:
    a, b = call.arrays()
    if len(b.shape) < 2 or b.shape[-1] != b.shape[-2] or not a.shape or a.shape[-1] != b.shape[-1]:
        raise call.fail(
            "NL602",
            f"`solve(a, b)` is x with x @ b = a; a is {told(a.shape)} and b is {told(b.shape)}",
        )
    return call.make([a, b], a.shape)


def eye(call: FunctionCall) -> Value:
    n = call.last(call.array(0))
    return call.make([], (n, n), n)


def top(call: FunctionCall) -> Value:
    x, k = call.array(0), call.size(1)
    n = call.last(x)
    if 0 <= n < k:
        raise call.fail("NL602", f"`top` is asked for {k} of {n} numbers", at=1)
    return call.make([x], x.shape, k)


def matrix_like(call: FunctionCall) -> Value:
    x = call.array(0)
    if len(x.shape) < 2:
        raise call.fail("NL602", f"`{call.name}` takes a matrix and is given {told(x.shape)}")
    if call.name == "transpose":
        return call.make([x], (*x.shape[:-2], x.shape[-1], x.shape[-2]))
    return call.make([x], x.shape)


def split(call: FunctionCall) -> Value:
    x, h = call.array(0), call.size(1)
    n = call.last(x)
    if n % h:
        message = f"{n} does not divide by {h} in `{call.span.text}`"
        help = "the last axis is cut into equal parts"
        call.body.error("NL601", message, call.span, help, once=(n, h))
        raise Stop()
    return call.make([x], (*x.shape[:-1], h, n // h), h)


def join(call: FunctionCall) -> Value:
    x = call.array(0)
    if len(x.shape) < 2:
        raise call.fail(
            "NL602", f"`join` makes one axis of the last two, and is given {told(x.shape)}"
        )
    return call.make([x], (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def column(call: FunctionCall) -> Value:
    x = call.array(0)
    return call.make([x], (*x.shape, 1))


def squeeze(call: FunctionCall) -> Value:
    x = call.array(0)
    if call.last(x) != 1:
        raise call.fail("NL602", f"`squeeze` drops a last axis of 1, and is given {told(x.shape)}")
    return call.make([x], x.shape[:-1])


def stack(call: FunctionCall) -> Value:
    terms = call.arrays()
    shape = call.joint(terms)
    return call.make(terms, (*shape, len(terms)))


def concat(call: FunctionCall) -> Value:
    terms = call.arrays()
    for i, t in enumerate(terms):
        call.last(t, i)
    lead: Shape | None = ()
    for t in terms:
        lead = None if lead is None else broadcast(lead, t.shape[:-1])
    if lead is None:
        raise call.fail("NL602", "`concat` joins the last axis; the axes before it do not fit")
    return call.make(terms, (*lead, sum(t.shape[-1] for t in terms)))


def reshape(call: FunctionCall) -> Value:
    x = call.array(0)
    shape = tuple(call.size(i) for i in range(1, len(call.args)))
    if math.prod(shape) != math.prod(x.shape) or any(n < 0 for n in x.shape):
        raise call.fail("NL602", f"`reshape` is given {told(x.shape)} and asked for {told(shape)}")
    return call.make([x], shape)


def dim(call: FunctionCall) -> Value:
    n = call.last(call.array(0))
    if n < 0:
        raise call.fail("NL601", "the length of a past is not known when compiled")
    return n


def range_(call: FunctionCall) -> Value:
    n = call.size(0)
    return call.make([], (n,), n)


def cross_entropy(call: FunctionCall) -> Value:
    logits, label = call.arrays()
    call.last(logits)
    if logits.shape[:-1] != label.shape:
        raise call.fail(
            "NL602",
            f"`cross_entropy` takes logits and an id each; they are {told(logits.shape)} and "
            f"{told(label.shape)}",
        )
    return call.make([logits, label], logits.shape[:-1])


def passing(call: FunctionCall) -> Value:
    """stop, across: the value as it is."""
    x = call.body.whole(call.args[0], call.spans[0])
    if call.name == "across" and (x.form or x.shape):
        raise call.fail(
            "NL603",
            f"`across` adds one number an array, and this is {told(x.shape)}: wrap it in `sum`",
        )
    return call.body.term(call.name, (x,), x.shape, form=x.form, span=call.span)


def next_(call: FunctionCall) -> Value:
    x = call.array(0)
    if x.op != "input":
        raise call.fail("NL305", "`next` takes a stream that the flow is given, as it is", at=0)
    return call.make([x], x.shape)


def start(call: FunctionCall) -> Value:
    return call.body.start_function(call)


# name -> (least, most arguments, named ones, function)
TABLE: dict[str, tuple[int, int, tuple[str, ...], Callable[[FunctionCall], Value]]] = {
    **dict.fromkeys(ELEMENTWISE, (1, 1, (), elementwise)),
    **dict.fromkeys(("min", "max", "mod"), (2, 2, (), joined)),
    "clip": (3, 3, (), joined), "where": (3, 3, (), where),
    "sum": (1, 2, (), reduce), "mean": (1, 2, (), reduce),
    "dot": (2, 2, (), dot), "outer": (2, 2, (), outer), "length": (1, 2, ("p",), length),
    "unit": (1, 1, (), on_last), "softmax": (1, 1, (), on_last), "frobenius": (1, 1, (), to_number),
    "solve": (2, 2, (), square), "eye": (1, 1, (), eye), "qr": (1, 1, (), matrix_like),
    "top": (2, 2, (), top),
    "split": (2, 2, (), split), "join": (1, 1, (), join), "column": (1, 1, (), column),
    "squeeze": (1, 1, (), squeeze),
    "stack": (1, 64, (), stack), "concat": (1, 64, (), concat), "reshape": (2, 9, (), reshape),
    "transpose": (1, 1, (), matrix_like), "dim": (1, 1, (), dim), "range": (1, 1, (), range_),
    "cross_entropy": (2, 2, (), cross_entropy), "stop": (1, 1, (), passing),
    "across": (1, 1, (), passing),
    "next": (1, 1, (), next_),
    "zeros": (0, 0, (), start), "normal": (1, 1, (), start), "fresh": (1, 1, (), start),
}  # fmt: skip


def apply_state(body: Body, value: StateValue, x: Term, span: Span, at: Span) -> Term:
    """`M(x)`: a matrix, a table or a network is called; a state `per heads` row by row (2.3.2,
    2.4.2).
    """
    form, per = value.form, value.per
    name = value.handle.name
    shape = x.shape
    if form.core.kind == "table":
        if per and shape[-len(per) :] != per:
            body.error(
                "NL602", f"`{name}` is one table a head, {list(per)}, and is given {told(shape)}",
                at, "a number for each head",
            )  # fmt: skip
            raise Stop()
        return body.term("apply", (x,), (*shape, form.sizes[-1]), value.handle, span=span)
    n, m = form.ins, form.outs
    if n is None or m is None:
        body.error("NL602", f"`{name}` is {article(form)} and cannot be called", span)
        raise Stop()
    if not shape or shape[-1] != n:
        body.error(
            "NL602",
            f"`{name}` takes vectors of {n} and is given {shape[-1] if shape else 'a number'} "
            f"(`{at.text}` is {told(shape)})",
            at, body.better_argument(name, (*per, n)),
        )  # fmt: skip
        raise Stop()
    lead = shape[:-1]
    if per and lead[-len(per) :] != per:
        body.error(
            "NL602",
            f"`{name}` is one memory a head, {list(per)}, and is given {told(shape)}",
            at,
            "split the input into heads",
        )
        raise Stop()
    rows = lead[: len(lead) - len(per)]
    if not per and any(r > 0 for r in rows) and body.writes_each_token():
        body.error(
            "NL604",
            f"`{name}` is one memory and is given {rows[-1]} rows",
            at,
            "say `per heads` for one memory a head",
            once=("NL604", value.handle.box.span, name),
        )
        raise Stop()
    return body.term("apply", (x,), (*lead, m), value.handle, span=span)


def article(form: Form) -> str:
    return f"a {form.kind}" + (f" of {form.sizes[-1]}" if form.kind == "vector" else "")
