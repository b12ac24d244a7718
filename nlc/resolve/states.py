"""States: their forms and starts (2.3)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from .. import syntax as S
from ..system import (
    Form,
    Handle,
    Shape,
    Term,
)
from .bodies import Body
from .functions import ELEMENTWISE, Stop
from .shapes import broadcast, told
from .values import (
    POISON,
    Builtin,
    Poison,
    StateFamily,
    StateValue,
)

if TYPE_CHECKING:
    pass
from .work import FORMS, Draft, Stage, Work


class States(Stage):
    """States as they are declared."""

    def declare(self, body: Body, node: S.State, work: Work) -> None:
        name = node.name.id
        box = body.box
        assert box is not None
        if name in body.fixed or isinstance(body.env.get(name), (StateValue, StateFamily)):
            body.error("NL102", f"`{node.name.text or name}` is given twice", node.name.span)
            return
        form = self.form(body, node.form)
        body.fixed.add(name)
        if form is None:
            body.env[name] = POISON
            return
        per: Shape = ()
        if node.per is not None:
            try:
                per = (body.size(body.value(node.per), node.per.span),)
            except Stop:
                body.env[name] = POISON
                return
        names = [f"{name}.{m.id}" for m in node.members] or [name]
        values = {n: StateValue(Handle(box, n), form, per) for n in names}
        if node.members:
            body.env[name] = StateFamily(
                name, {m.id: values[f"{name}.{m.id}"] for m in node.members}
            )
        else:
            body.env[name] = values[name]
        start = self.start(body, node, form, per)
        braces = list(node.body.statements) if node.body else []
        for n in names:
            draft = Draft(
                n,
                name if node.members else None,
                form,
                per,
                start,
                braces,
                body.env.copy(),
                node.span,
            )
            work.drafts.append(draft)
            work.order.append(f"state:{n}")

    def form(self, body: Body, expr: S.Expr) -> Form | None:
        try:
            return self.read_form(body, expr)
        except Stop:
            return None

    def read_form(self, body: Body, expr: S.Expr) -> Form:
        if not (isinstance(expr, S.Call) and isinstance(expr.function, S.Name)):
            body.error(
                "NL103",
                f"`{expr.span.text}` is no form of state",
                expr.span,
                f"forms are {', '.join(FORMS)}",
            )
            raise Stop()
        kind = expr.function.id
        if kind not in FORMS:
            near = get_close_matches(kind, FORMS, n=1)
            body.error(
                "NL103",
                f"`{kind}` is no form of state" + (f"; did you mean `{near[0]}`?" if near else ""),
                expr.function.span,
                f"forms are {', '.join(FORMS)}",
            )
            raise Stop()
        args = [a for a in expr.arguments if a.name is None]
        named = {a.name.id: a for a in expr.arguments if a.name is not None}
        if kind in ("residual", "layernorm"):
            return self.wrapped(body, kind, args, expr)
        if kind == "like":
            return self.like(body, args, expr)
        act = self.activation(body, named.pop("act", None)) if kind == "mlp" else "gelu"
        if named:
            body.error("NL107", f"`{kind}` has no setting `{next(iter(named))}`", expr.span)
            raise Stop()
        sizes = tuple(body.size(body.value(a.value), a.value.span) for a in args)
        return self.sized(body, kind, sizes, act, expr)

    def sized(self, body: Body, kind: str, sizes: Shape, act: str, expr: S.Expr) -> Form:
        wanted = {
            "vector": (1, 1),
            "matrix": (2, 2),
            "table": (2, 2),
            "mlp": (2, 256),
            "gated_mlp": (2, 2),
        }[kind]
        if not wanted[0] <= len(sizes) <= wanted[1]:
            body.error(
                "NL107",
                f"`{kind}` takes {wanted[0]}{' or more' if wanted[1] > 9 else ''} sizes and is "
                f"given {len(sizes)}",
                expr.span,
            )
            raise Stop()
        if kind == "mlp" and len(sizes) == 2:
            sizes = (*sizes, sizes[0])
        return Form(kind, sizes, act)

    def wrapped(self, body: Body, kind: str, args: list[S.Argument], expr: S.Expr) -> Form:
        if len(args) != 1:
            body.error("NL107", f"`{kind}` wraps one network", expr.span)
            raise Stop()
        inner = self.read_form(body, args[0].value)
        if inner.core.kind not in ("mlp", "gated_mlp", "matrix"):
            body.error("NL602", f"`{kind}` wraps a network, not a {inner.kind}", args[0].value.span)
            raise Stop()
        if kind == "residual" and inner.ins != inner.outs:
            body.error(
                "NL602",
                f"`residual` adds its input, so {inner.ins} in must be {inner.outs} out",
                expr.span,
            )
            raise Stop()
        return Form(kind, inner.sizes, inner.act, inner)

    def like(self, body: Body, args: list[S.Argument], expr: S.Expr) -> Form:
        value = body.value(args[0].value) if len(args) == 1 else POISON
        term = body.array(value, expr.span)
        return Form("like", term.shape)

    def activation(self, body: Body, arg: S.Argument | None) -> str:
        if arg is None:
            return "gelu"
        value = body.value(arg.value)
        if isinstance(value, Builtin) and value.name in ELEMENTWISE:
            return value.name
        if not isinstance(value, Poison):
            body.error(
                "NL103",
                f"`{arg.value.span.text}` is no activation",
                arg.value.span,
                f"one of {', '.join(ELEMENTWISE)}",
            )
        raise Stop()

    def start(self, body: Body, node: S.State, form: Form, per: Shape) -> Term | None:
        if node.start is None:
            return None
        body.starting = True
        value = body.value(node.start)
        body.starting = False
        if isinstance(value, Poison):
            return None
        if isinstance(value, StateValue):
            if value.form != form or value.per != per:
                body.error(
                    "NL602",
                    f"`{node.name.id}` starts from `{node.start.span.text}`, which has another "
                    "form",
                    node.start.span,
                )
            return body.term("copy", (), (), value.handle, form=form, span=node.start.span)
        try:
            term = body.whole(value, node.start.span)
        except Stop:
            return None
        special = term.args[0].op if term.op == "fresh" else term.op
        wanted = (*per, *form.arrays[0].shape)
        if special not in ("zeros", "normal", "copy") and (
            not form.single or broadcast(term.shape, wanted) != wanted
        ):
            body.error(
                "NL602",
                f"`{node.name.id}` is {told(wanted)} and starts from {told(term.shape)}",
                node.start.span,
            )
            return None
        return term
