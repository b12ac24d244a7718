"""How states change: objectives, retention, writes (2.8, 2.9)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import (
    Array,
    Lambda,
    Rule,
    Shape,
    State,
    Term,
)
from ..text import Span
from .bodies import Body
from .functions import Stop
from .shapes import broadcast, told
from .values import (
    Declared,
    Poison,
    StateFamily,
)

if TYPE_CHECKING:
    pass
from .learning import Learning
from .work import RULE_NODES, Draft, Placed, Work


class Rules(Learning):
    """The lines that hold for a state, as one rule."""

    def state(self, body: Body, draft: Draft, work: Work) -> State:
        rule = self.rule(body, draft, work)
        assert body.box is not None
        memory = body.box.name if body.box.kind == "memory" else ""
        return State(draft.name, draft.form, draft.per, draft.start, rule, draft.span, memory)

    def effective(self, draft: Draft, work: Work, optimizer: bool) -> list[Placed]:
        """The lines that hold for this state: its own in braces win over the block's (2.3.5)."""
        own = [Placed(n, ChainMap()) for n in draft.nodes if isinstance(n, RULE_NODES)]
        kinds = {type(p.node) for p in own}
        if S.Set in kinds:
            return own
        replaced: set[type] = set(kinds)
        if kinds & {S.Write, S.Objective, S.Learn}:
            replaced.add(S.Set)
        if S.Write in kinds:
            replaced |= {S.Objective, S.Learn}
        if kinds & {S.Objective, S.Learn}:
            replaced.add(S.Write)
        shared = [p for p in work.rules if type(p.node) not in replaced]
        if optimizer:  # the block's `write` and `retain` are those of the weight it serves (2.9.6)
            shared = []
        return own + shared

    def rule(self, body: Body, draft: Draft, work: Work) -> Rule:
        assert body.box is not None
        placed = self.effective(draft, work, body.box.kind == "optimizer")
        extra: dict[str, Any] = {}
        if draft.family:
            family = body.env[draft.family]
            assert isinstance(family, StateFamily)
            extra[draft.family] = family.members[draft.name.split(".", 1)[1]]
        by = {type(p.node): p for p in placed}
        self.exclusive(body, by)
        body.where = draft.name
        parts: dict[str, Any] = {}
        if S.Objective in by:
            parts |= self.objective(body, by[S.Objective], extra)
        if S.Retain in by:
            parts |= self.retain(body, by[S.Retain], extra, draft)
        if S.Write in by:
            parts["write"] = self.amount(body, by[S.Write], extra, draft)
            parts["after_retain"] = by[S.Write].node.after_retain
        if S.Set in by:
            parts["set"] = self.amount(body, by[S.Set], extra, draft)
        learns = [p for p in placed if isinstance(p.node, S.Learn)]
        if learns:
            parts["learn"] = self.learn(body, learns, extra, draft)
        return Rule(**parts)

    def exclusive(self, body: Body, by: Mapping[type, Placed]) -> None:
        """NL204: `set` gives the whole state, `write` the whole amount."""
        if S.Set in by:
            for kind, word in (
                (S.Retain, "retain"),
                (S.Objective, "objective"),
                (S.Learn, "learn"),
                (S.Write, "write"),
            ):
                if kind in by:
                    what = "has nothing to keep" if kind is S.Retain else "has nothing to add"
                    body.error(
                        "NL204",
                        f"`set` gives the whole state; `{word}` beside it {what}",
                        by[kind].node.span,
                    )
        elif S.Write in by:
            for kind, word in ((S.Objective, "objective"), (S.Learn, "learn")):
                if kind in by:
                    body.error(
                        "NL204",
                        f"`write` gives the whole amount; `{word}` beside it has nothing to add",
                        by[kind].node.span,
                    )

    def objective(self, body: Body, placed: Placed, extra: Mapping[str, Any]) -> dict[str, Any]:
        node = placed.node
        with self.resolver.objective():
            value = self.in_env(body, placed, node.value, extra)
        parts = {"after_retain": node.after_retain, "once": node.once}
        try:
            term = body.whole(value, node.value.span)
        except Stop:
            return parts
        if term.shape or term.form:
            body.error(
                "NL603",
                f"an objective is one number a tick and this is {told(term.shape)}",
                node.value.span,
                "wrap it in `sum` (of two matrices `dot` is a vector: `sum(m * grad)`)",
            )
            return parts
        return {**parts, "objective": term}

    def retain(
        self, body: Body, placed: Placed, extra: Mapping[str, Any], draft: Draft
    ) -> dict[str, Any]:
        node = placed.node
        value = self.in_env(body, placed, node.value, extra)
        parts: dict[str, Any] = {}
        try:
            parts["retain"] = self.fits(
                body, body.array(value, node.value.span), draft, node.value.span
            )
        except Stop:
            return parts
        for word in ("through", "onto"):
            expr = getattr(node, word)
            if expr is not None:
                parts[word] = {
                    a.name: self.function(body, placed, expr, a, extra) for a in draft.form.arrays
                }
        return parts

    def fits(self, body: Body, term: Term, draft: Draft, span: Span) -> Term:
        """A fraction kept: one a memory (or head), an input channel, or (a column) an output
        channel (2.5.4).
        """
        per, form = draft.per, draft.form
        own = term.shape[len(per) :] if per and term.shape[: len(per)] == per else term.shape
        ins = (
            form.sizes[-1]
            if form.kind in ("vector", "like", "table") and form.sizes
            else (form.ins or 1)
        )
        outs = form.outs or (form.sizes[0] if form.sizes else 1)
        allowed: list[Shape] = [(), (1,), (ins,), (outs, 1), (1, 1)]
        if form.single:
            allowed.append(form.arrays[0].shape)
        if own not in allowed:
            body.error(
                "NL602",
                f"`retain` is given {told(term.shape)}; `{draft.name}` takes a number"
                + (f", one for each of {per[0]} heads" if per else "")
                + f", one an input channel [{ins}], or a column [{outs}, 1]",
                span,
            )
            raise Stop()
        return term

    def amount(
        self, body: Body, placed: Placed, extra: Mapping[str, Any], draft: Draft
    ) -> Term | None:
        """The `e` of `write e` or `set e`, of the state's own shape."""
        value = self.in_env(body, placed, placed.node.value, extra)
        try:
            term = body.whole(value, placed.node.value.span)
        except Stop:
            return None
        wanted = (*draft.per, *draft.form.arrays[0].shape)
        fits = (
            term.form == draft.form
            if not draft.form.single
            else broadcast(term.shape, wanted) == wanted
        )
        if not fits:
            what = "a network" if term.form else told(term.shape)
            body.error(
                "NL602",
                f"`{draft.name}` is {told(wanted) if draft.form.single else 'a network'} and is "
                f"given {what}",
                placed.node.value.span,
            )
            return None
        return term

    def function(
        self, body: Body, placed: Placed, expr: S.Expr, array: Array, extra: Mapping[str, Any]
    ) -> Lambda:
        """`through f` and `onto f(setting)`: f takes the array first (2.9.3)."""
        fexpr = expr.function if isinstance(expr, S.Call) else expr
        given = expr.arguments if isinstance(expr, S.Call) else ()
        argument = body.term("argument", (), array.shape, "A", span=expr.span)
        start = body.term("argument", (), array.shape, "start", span=expr.span)
        target = self.in_env(body, placed, fexpr)
        params = ["A"]
        env = {**extra, " A": argument, " start": start}
        first = S.Argument(None, S.Name(" A", span=expr.span), span=expr.span)
        rest = list(given)
        if isinstance(target, Declared) and isinstance(target.node, S.Def):
            names = [p.name.id for p in target.node.params]
            if "start" in names[1:]:
                params.append("start")
                rest.append(
                    S.Argument(S.Name("start"), S.Name(" start", span=expr.span), span=expr.span)
                )
        call = S.Call(fexpr, (first, *rest), span=expr.span)
        value = self.in_env(body, placed, call, env)
        if isinstance(value, Poison):
            return Lambda(tuple(params), argument)
        term = body.array(value, expr.span)
        if term.shape != array.shape:
            body.error(
                "NL602",
                f"`{expr.span.text}` gives {told(term.shape)} where the state is "
                f"{told(array.shape)}",
                expr.span,
            )
        return Lambda(tuple(params), term)
