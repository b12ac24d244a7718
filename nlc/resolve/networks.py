"""`(F + A)(x)`: a network that is made of states is called, layer by layer (language.md 2.3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import syntax as S
from ..system import Form, Handle, Term
from ..text import Span
from .functions import Stop
from .shapes import told
from .values import StateFamily, StateValue, Value

if TYPE_CHECKING:
    from .bodies import Body


def apply_network(body: Body, network: Term, args: list[Value], expr: S.Call) -> Value:
    form = network.form
    assert form is not None
    if len(args) != 1 or len(expr.arguments) != 1:
        message = f"a network takes one input and is given {len(expr.arguments)}"
        return body.error("NL107", message, expr.span)
    at = expr.arguments[0].value.span
    x = body.array(args[0], at)
    if not x.shape or x.shape[-1] != form.ins:
        given = told(x.shape) if x.shape else "a number"
        body.error(
            "NL602", f"this network takes vectors of {form.ins} and is given {given}", at
        )  # fmt: skip
        raise Stop()
    return Layers(body, network, expr.span).said(form, x)


class Layers:
    def __init__(self, body: Body, network: Term, span: Span) -> None:
        self.body, self.network, self.span = body, network, span

    def said(self, form: Form, x: Term) -> Term:
        """What a form says of a vector, as `M(x)` does."""
        match form.kind:
            case "mlp":
                y = self.product("W1", x)
                for i in range(2, len(form.sizes)):
                    y = self.product(f"W{i}", self.each(form.act, y))
                return y
            case "matrix":
                return self.product(form.arrays[0].name, x)
            case "gated_mlp":
                gate = self.each("silu", self.product("W1", x))
                return self.product("W2", self.each("mul", gate, self.product("W3", x)))
        assert form.inner is not None, "a form of several arrays"
        y = self.said(form.inner, x)
        return self.each("add", x, y) if form.kind == "residual" else self.each("layer_norm", y)

    def each(self, op: str, *args: Term) -> Term:
        return self.body.term(op, args, args[0].shape, span=self.span)

    def product(self, name: str, x: Term) -> Term:
        array = self.array(self.network, name)
        m, n = array.shape
        turned = self.body.term("transpose", (array,), (n, m), span=self.span)
        return self.body.term("matmul", (x, turned), (*x.shape[:-1], m), span=self.span)

    def array(self, network: Term, name: str) -> Term:
        """One array of it: what is done to the network is done to each."""
        form = network.form
        if form is None:
            return network
        shape = next(a.shape for a in form.arrays if a.name == name)
        if network.op == "state":
            if self.is_one_a_head(network.info):
                self.refuse(f"`{network.info.name}` is one memory a head")
            handle = replace(network.info, array=name)
            return self.body.term("state", (), shape, handle, span=network.span)
        if network.op not in ("add", "sub", "mul", "neg", "stop"):
            self.refuse("this network is neither a state nor a sum of states")
        args = tuple(self.array(a, name) for a in network.args)
        return self.body.term(network.op, args, shape, network.info, span=network.span)

    def is_one_a_head(self, handle: Handle) -> bool:
        there = [*self.body.env.values(), *self.body.resolver.states_of(handle.box, False).values()]
        families = [v for f in there if isinstance(f, StateFamily) for v in f.members.values()]
        return any(
            v.per and v.handle.box is handle.box and v.handle.name == handle.name
            for v in [*there, *families]
            if isinstance(v, StateValue)
        )

    def refuse(self, why: str) -> None:
        message = f"{why}, and is called by its own name alone"
        self.body.error("NL103", message, self.span)
        raise Stop()
