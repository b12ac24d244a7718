"""Learning rules: `learn` lines, and optimizers as boxes over the arrays they serve (2.9)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import (
    Box,
    Learn,
    Shape,
    Term,
    serves,
)
from .bodies import Body, names_of
from .functions import Stop
from .settings import all_among
from .shapes import broadcast, told
from .values import (
    POISON,
    BoxValue,
    Declared,
    Poison,
    StateValue,
    Value,
    is_known,
)

if TYPE_CHECKING:
    pass
from .work import (
    BUILT_IN_RULES,
    Draft,
    Placed,
    Stage,
    Work,
    array_kind,
    cites,
    path_text,
    stream_shapes,
)


class Learning(Stage):
    """Optimizers, made for each array that a line serves."""

    def learn(
        self, body: Body, lines: list[Placed], extra: Mapping[str, Any], draft: Draft
    ) -> dict[str, Learn]:
        """The line that serves each array: the first that fits (2.9.4)."""
        served: dict[str, Learn] = {}
        assert body.box is not None
        level = body.box.level.name if body.box.level else ""
        for placed in lines:
            targets = self.targets(body, placed.node)
            mine = [
                a
                for a in draft.form.arrays
                if a.name not in served
                and serves(targets, array_kind(draft.form), f"{draft.name}.{a.name}", a.name, level)
            ]
            if mine:
                line = self.learn_line(
                    body,
                    placed,
                    extra,
                    [a.shape for a in mine],
                    draft.per,
                    targets,
                    lambda _: f"`{draft.name}`",
                )
                if line is not None:
                    served.update({a.name: line for a in mine})
        return served

    def targets(self, body: Body, node: S.Learn) -> tuple[str, ...]:
        return tuple(path_text(p) for p in node.targets)

    def learn_line(
        self,
        body: Body,
        placed: Placed,
        extra: Mapping[str, Any],
        shapes: list[Shape],
        per: Shape,
        targets: tuple[str, ...],
        serving: Callable[[Shape], str],
        more: Iterable[Shape] = (),
    ) -> Learn | None:
        """`more`: shapes that the line may serve too, where the rule fits them."""
        node: S.Learn = placed.node
        expr = node.rule
        fexpr = expr.function if isinstance(expr, S.Call) else expr
        arguments = expr.arguments if isinstance(expr, S.Call) else ()
        if not isinstance(fexpr, S.Name):
            body.error("NL103", f"`{expr.span.text}` is no learning rule", expr.span)
            return None
        name = fexpr.id
        named: dict[str, S.Argument] = {a.name.id: a for a in arguments if a.name is not None}
        if any(a.name is None for a in arguments):
            body.error(
                "NL107",
                f"the settings of `{name}` are given by name, as in `{name}(rate = 0.01)`",
                expr.span,
            )
            return None
        steps = self.steps(body, placed, named.pop("steps", None))
        if name in BUILT_IN_RULES:
            return Learn(
                name,
                {k: self.built_in(body, placed, a, extra) for k, a in named.items()},
                {},
                {},
                targets,
                steps,
                node.span,
            )
        decl = self.rule_named(body, fexpr)
        if decl is None:
            return None
        return self.optimizer_line(
            body, placed, extra, decl, named, shapes, per, targets, steps, serving, more
        )

    def steps(self, body: Body, placed: Placed, arg: S.Argument | None) -> int:
        if arg is None:
            return 1
        try:
            return body.size(self.in_env(body, placed, arg.value), arg.value.span)
        except Stop:
            return 1

    def rule_named(self, body: Body, name: S.Name) -> Declared | None:
        value = body.env.get(name.id) or self.resolver.files.shipped_optimizer(name.id)
        if isinstance(value, Declared) and isinstance(value.node, S.Optimizer):
            return value
        if not isinstance(value, Poison):
            near = get_close_matches(
                name.id, [*self.resolver.files.optimizer_names(), *BUILT_IN_RULES, *body.env], n=1
            )
            hint = f"; did you mean `{near[0]}`?" if near else ""
            if near and near[0] == name.id:  # it stands for something else here
                near, hint = [], ": the name has another meaning here, which hides the rule"
            self.resolver.report(
                "NL103",
                f"`{name.text or name.id}` is no memory, optimizer or function of this file, of "
                f"what it uses, or of the library{hint}",
                name.span,
                fix=near[0] if near else None,
            )
        return None

    def setting(
        self, body: Body, placed: Placed, arg: S.Argument, extra: Mapping[str, Any], per: Shape
    ) -> Value:
        value = self.in_env(body, placed, arg.value, extra)
        if isinstance(value, Poison) or is_known(value):
            return value
        try:
            return body.array(value, arg.value.span)
        except Stop:
            return POISON

    def built_in(
        self, body: Body, placed: Placed, arg: S.Argument, extra: Mapping[str, Any]
    ) -> Term:
        """A setting of a rule that is no spec: a number stays one, as a term."""
        value = self.setting(body, placed, arg, extra, ())
        if isinstance(value, Poison):
            return Term("const", (), (), 1.0, None, arg.value.span)
        return body.array(value, arg.value.span)

    def optimizer_line(
        self,
        body: Body,
        placed: Placed,
        extra: Mapping[str, Any],
        decl: Declared,
        named: dict[str, S.Argument],
        shapes: list[Shape],
        per: Shape,
        targets: tuple[str, ...],
        steps: int,
        serving: Callable[[Shape], str],
        more: Iterable[Shape],
    ) -> Learn | None:
        params = {p.name.id: p for p in decl.node.params}
        for key, arg in named.items():
            if key not in params:
                near = get_close_matches(key, params, n=1)
                own = ", ".join(n for n, p in params.items() if p.default is not None)
                hint = f"; did you mean `{near[0]}`?" if near else f"; it has {own}"
                assert arg.name is not None
                body.error(
                    "NL101", f"`{decl.node.name.id}` has no setting `{key}`{hint}", arg.name.span
                )
                return None
        values = {
            k: self.setting(body, placed, a, extra, per)
            for k, a in named.items()
            if params[k].default is not None
        }
        if any(isinstance(v, Poison) for v in values.values()):
            return None
        self.check_missing(body, decl, params, named, placed)
        streams = self.streams(
            body,
            placed,
            extra,
            {k: a for k, a in named.items() if params[k].default is None},
            shapes[0],
        )
        boxes = {
            s: self.optimizer_box(body, decl, s, values, per, placed.node, serving(s))
            for s in dict.fromkeys(shapes)
        }
        boxes |= self.others(body, decl, [s for s in more if s not in boxes], values, placed.node)
        terms = {k: body.whole(v, placed.node.span) for k, v in values.items()}
        return Learn(decl.node.name.id, terms, streams, boxes, targets, steps, placed.node.span)

    def others(
        self, body: Body, decl: Declared, shapes: list[Shape], values: Mapping[str, Value],
        node: S.Learn,
    ) -> dict[Shape, Box]:  # fmt: skip
        """The rule over arrays that are no weights: starts that the line's level learns."""
        r, made = self.resolver, {}
        for shape in shapes:
            weights = len(r.weights)
            with r.capture() as told_here:
                box = self.try_optimizer(body, decl, shape, values, (), node)
            if not told_here and len(r.weights) == weights:
                made[shape] = box
            r.drop_weights(weights)
        return made

    def check_missing(
        self,
        body: Body,
        decl: Declared,
        params: Mapping[str, S.Param],
        named: Mapping[str, Any],
        placed: Placed,
    ) -> None:
        missing = [
            n
            for n, p in params.items()
            if p.default is None
            and n not in named
            and n not in ("weight", "grad", "input", "surprise")
        ]
        if missing:
            body.error(
                "NL107",
                f"`{decl.node.name.id}` needs `{missing[0]}`, which no level gives by itself",
                placed.node.span,
            )

    def streams(
        self,
        body: Body,
        placed: Placed,
        extra: Mapping[str, Any],
        named: Mapping[str, S.Argument],
        shape: Shape,
    ) -> dict[str, Term]:
        given = {
            n: body.term("input", (), s, n, span=placed.node.span)
            for n, s in stream_shapes(shape).items()
        }
        out: dict[str, Term] = {}
        for key, arg in named.items():
            value = self.in_env(body, placed, arg.value, {**extra, **given})
            if isinstance(value, Term):
                out[key] = value
        return out

    def optimizer_box(
        self,
        outer: Body,
        decl: Declared,
        shape: Shape,
        values: Mapping[str, Value],
        per: Shape,
        node: S.Learn,
        serving: str,
    ) -> Box:
        """The rule as a box over one array of this shape. What only fits matrices is NL605 on
        others.
        """
        r = self.resolver
        with r.capture() as told_here:
            box = self.try_optimizer(outer, decl, shape, values, per, node)
        setting = any(d.code == "NL606" for d in told_here)  # no array would fit
        if told_here and len(shape) != 2 and not setting:
            weights = len(r.weights)
            with r.capture() as on_matrix:
                self.try_optimizer(outer, decl, (8, 4), {}, per, node)
            r.drop_weights(weights)
            if not on_matrix:
                name = decl.node.name.id
                r.report(
                    "NL605",
                    f"optimizer `{name}` multiplies matrices (or asks for `input`) and would "
                    f"serve {told(shape)} ({serving})",
                    node.span,
                    "add `for matrices`, and a second `learn` for the rest",
                )
                return box
        r.retell(told_here)
        return box

    def try_optimizer(
        self,
        outer: Body,
        decl: Declared,
        shape: Shape,
        values: Mapping[str, Value],
        per: Shape,
        node: S.Learn,
    ) -> Box:
        name = decl.node.name.id
        box = Box(
            name,
            name,
            "optimizer",
            None,
            cites=cites(decl.node.body),
            doc=decl.doc,
            span=decl.node.span,
        )
        prefix = self.resolver.rule_prefix(outer, node, name)
        body = Body(self.resolver, ChainMap({}, names_of(decl)), prefix, outer.loops, box)
        inputs: list[tuple[str, Shape]] = []
        self.has_write(decl.node)
        with self.resolver.inside(decl.node, node.span):
            for p in decl.node.params:
                self.optimizer_param(body, p, shape, values, per, inputs, node)
            box.inputs = tuple(inputs)
            all_among(body, decl.node, values, node.span)
            self.fill(body, decl.node.body)
        return box

    def has_write(self, node: S.Def | S.Memory | S.Optimizer) -> None:
        """An optimizer ends in `write` (2.9.6)."""
        if not any(isinstance(s, S.Write) for s in node.body.statements):
            self.resolver.absent(
                "NL207",
                f"optimizer `{node.name.text or node.name.id}` has no `write`, so nothing that it "
                "makes of a gradient reaches the weight",
                node.name.span,
                "end it with `write e`: what is added to the weight",
            )

    def optimizer_param(
        self,
        body: Body,
        p: S.Param,
        shape: Shape,
        values: Mapping[str, Value],
        per: Shape,
        inputs: list[tuple[str, Shape]],
        node: S.Learn,
    ) -> None:
        name = p.name.id
        if self.twice(body, p):
            return
        if p.default is None:
            own = stream_shapes(shape).get(name)
            if own is None:
                if name in ("input", "surprise"):
                    body.error("NL605", f"`{name}` belongs to matrices", node.span)
                body.env[name] = POISON
                return
        elif isinstance(values.get(name), Term):
            given = values[name]
            assert isinstance(given, Term)
            own = given.shape[len(per) :] if per and given.shape[: len(per)] == per else given.shape
            if broadcast(own, shape) != shape and own not in ((1,), ()):
                body.error(
                    "NL602",
                    f"`{name}` is {told(given.shape)} and the array it serves is {told(shape)}",
                    node.span,
                )
        else:
            body.env[name] = values[name] if name in values else body.value(p.default)
            return
        inputs.append((name, own))
        body.env[name] = body.term("input", (), own, name, span=p.span)

    def finish_optimizer(self, body: Body, work: Work) -> None:
        box = body.box
        assert box is not None
        for placed in work.rules:
            if isinstance(placed.node, (S.Write, S.Retain)):
                body.where = "write" if isinstance(placed.node, S.Write) else "retain"
                value = self.in_env(body, placed, placed.node.value)
                try:
                    term = body.array(value, placed.node.value.span)
                except Stop:
                    continue
                if isinstance(placed.node, S.Write):
                    box.write = self.optimizer_amount(body, term, placed)
                else:
                    box.retain = term

    def optimizer_amount(self, body: Body, term: Term, placed: Placed) -> Term:
        assert body.box is not None
        weight = dict(body.box.inputs).get("weight")
        if weight is not None and broadcast(term.shape, weight) != weight:
            body.error(
                "NL602",
                f"the weight is {told(weight)} and `write` gives {told(term.shape)}",
                placed.node.value.span,
            )
        return term

    def inner_level(self, body: Body, node: S.Level, work: Work) -> None:
        """A level inside an optimizer has the clock of the firings it serves (2.6.1, 2.9.6)."""
        clock = self.resolver.clock(body, node.clock)
        name = node.name.id
        box = Box(name, name, "level", None, clock=clock, parent=body.box, span=node.span)
        inner = Body(self.resolver, body.env.new_child(), "", (), box)
        self.fill(inner, node.body)
        work.levels.append(box)
        work.order.append(f"level:{name}")
        states = {
            k: v for k, v in self.resolver.box_states[id(box)].items() if isinstance(v, StateValue)
        }
        body.env[name] = BoxValue(name, box, states)
