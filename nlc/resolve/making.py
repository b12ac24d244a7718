"""Functions that make something at their call: weights of the owner (2.3.1), and what remembers
past ticks (2.12).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..system import ALL, Shape, Slot, Term, Weight
from .functions import FunctionCall
from .shapes import told
from .values import Value, is_known

EPS, BASE = 1e-6, 10000.0  # of `norm` and `rope`, if a call does not say


def weight(
    call: FunctionCall,
    part: str,
    shape: Shape,
    kind: str,
    std: float = 0.0,
    value: float | None = None,
) -> Term:
    """A new weight at this place in the text."""
    body = call.body
    path = body.prefix + body.unique(
        f"{body.where}.{part}" if body.where and body.where != part else part
    )
    made = Weight(
        path,
        shape,
        kind,
        call.name,
        "normal" if value is None else "constant",
        std,
        value or 0.0,
        body.loops,
        body.box,
        body.resolver.place(call.span),
    )
    made = body.resolver.add_weight(made)
    return body.term("weight", (), shape, made, span=call.span)


def linear(call: FunctionCall) -> Value:
    x, m = call.array(0), call.size(1)
    n = call.last(x)
    w = weight(
        call,
        "linear" if call.name == "linear" else "unembed",
        (m, n),
        "matrices" if call.name == "linear" else "tables",
        n**-0.5,
    )
    return call.make([x, w], (*x.shape[:-1], m), op="linear")


def norm(call: FunctionCall) -> Value:
    x = call.array(0)
    gain = weight(call, "norm", (call.last(x),), "vectors", value=1.0)
    return call.make([x, gain], x.shape, positive(call, "eps", EPS), op="rms_norm")


def layernorm(call: FunctionCall) -> Value:
    x = call.array(0)
    n = call.last(x)
    gain = weight(call, "gain", (n,), "vectors", value=1.0)
    bias = weight(call, "bias", (n,), "vectors", value=0.0)
    return call.make([x, gain, bias], x.shape, op="layer_norm")


def embed(call: FunctionCall) -> Value:
    ids, rows, n = call.array(0), call.size(1), call.size(2)
    return call.make([ids, weight(call, "embed", (rows, n), "tables", 1.0)], (*ids.shape, n))


def learned(call: FunctionCall) -> Value:
    shape = tuple(
        call.size(i, least=0) for i in range(len(call.args))
    )  # of none too: no persistent pairs
    start = call.named.get("start", 0)
    if isinstance(start, Term) and start.op == "normal":
        return weight(call, "learned", shape, "vectors", float(start.info))
    if not isinstance(start, (int, float)):
        raise call.fail("NL107", "the start of `learned` is a number or `normal(s)`")
    return weight(call, "learned", shape, "vectors", value=float(start))


def slot(call: FunctionCall, window: int, chance: float = 0.0) -> Slot:
    body = call.body
    part = call.name if call.name == "past" else f"{call.name}_past"
    path = body.prefix + body.unique(f"{body.where}.{part}" if body.where else part)
    return Slot(path, call.name, window, body.box, chance)


def conv(call: FunctionCall) -> Value:
    x, taps = call.array(0), call.size(1)
    w = weight(call, "conv", (call.last(x), taps), "vectors", taps**-0.5)
    return call.make([x, w], x.shape, slot(call, taps - 1))


def past(call: FunctionCall) -> Value:
    x = call.array(0)
    window = ALL
    if len(call.args) > 1 and call.args[1] != math.inf:
        window = -call.size(1)
    return call.make([x], (window, *x.shape), slot(call, ALL if window == ALL else -window))


def fade(call: FunctionCall) -> Value:
    a = call.array(0)
    if a.shape:
        raise call.fail("NL602", f"`fade` takes a number a tick, and is given {told(a.shape)}")
    return call.make([a], (ALL,), slot(call, ALL))


def rope(call: FunctionCall) -> Value:
    x = call.array(0)
    if call.last(x) % 2:
        raise call.fail("NL601", f"`rope` turns pairs, and {x.shape[-1]} is odd", at=0)
    return call.make([x], x.shape, positive(call, "base", BASE))


def positive(call: FunctionCall, name: str, usual: float) -> float:
    """A setting of a function, known when compiled."""
    value = call.named.get(name, call.args[1] if len(call.args) > 1 else usual)
    if not is_known(value) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        message = f"the {name} of `{call.name}` is a number above 0, known when compiled"
        raise call.fail("NL107", message, f"{usual:g}, if it is not given")
    return float(value)


def dropout(call: FunctionCall) -> Value:
    x, p = call.array(0), call.args[1]
    if not is_known(p) or not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise call.fail(
            "NL107",
            "the chance of `dropout` is a number from 0 to below 1, known when compiled",
            at=1,
        )
    return call.make([x], x.shape, slot(call, 0, float(p)))


# name -> (least, most arguments, named ones, function)
MAKERS: dict[str, tuple[int, int, tuple[str, ...], Callable[[FunctionCall], Value]]] = {
    "linear": (2, 2, (), linear), "unembed": (2, 2, (), linear), "norm": (1, 2, ("eps",), norm),
    "layernorm": (1, 1, (), layernorm), "embed": (3, 3, (), embed),
    "learned": (1, 9, ("start",), learned),
    "conv": (2, 2, (), conv), "past": (1, 2, (), past), "fade": (1, 1, (), fade),
    "rope": (1, 2, ("base",), rope),
    "dropout": (2, 2, (), dropout),
}  # fmt: skip
