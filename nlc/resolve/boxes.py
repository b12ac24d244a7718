"""Boxes: levels and memories made where they are called (2.4)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import (
    Box,
    Level,
    Shape,
    Term,
)
from .blocks import Block
from .bodies import Body, names_of
from .functions import Stop
from .moving import Moving
from .shapes import broadcast, told
from .values import (
    POISON,
    Builtin,
    Declared,
    Poison,
    StateValue,
    Value,
)

if TYPE_CHECKING:
    pass
from .rules import Rules
from .settings import all_among
from .states import States
from .work import Placed, Work, cites, told_dims


class Boxes(Rules, States):
    """Calls, and the bodies of what is called."""

    # ---- calls ----

    def call_level(
        self, body: Body, level: Level, args: list[Value], named: dict[str, Value], expr: S.Call
    ) -> Value:
        """A level is called by the flow: one box for each call in the text (2.4.1)."""
        r = self.resolver
        if body.box is not None:
            return body.error(
                "NL103",
                f"`{level.name}` is a level, and only a flow calls levels",
                expr.function.span,
            )
        if level.owner:
            return body.error(
                "NL107",
                f"`{level.name}` is written without inputs, so it is not called",
                expr.function.span,
                "its states are seen by name",
            )
        node, env = r.level_nodes[level.name]
        r.called.add(level.name)
        try:
            values = r.bind_params(body, level.name, node.params or (), args, named, expr)
        except Stop:  # the mistakes of the body are told all the same
            values = {p.name.id: POISON for p in node.params or ()}
        level.called = True
        box = self.box_of_call(body, level, expr)
        if id(box) in r.filled:
            box = self.promise(body, level)
        r.filled.add(id(box))
        inner = Body(r, env.new_child(), f"{box.path}.", box.loops, box)
        inputs, terms = self.bind_level_inputs(body, inner, node, values, expr)
        box.inputs, box.input_mapped = tuple(inputs), tuple(() for _ in inputs)
        self.fill(inner, node.body)
        if id(box) in r.poisoned or any(isinstance(v, Poison) for v in values.values()):
            raise Stop()
        if box.read is None and r.recovered:
            raise Stop()
        if box.read is None:
            return body.error(
                "NL602",
                f"`{level.name}` has no `read`, so its call has no value",
                expr.span,
                "add a line `read e`",
            )
        return body.term(
            "call", tuple(terms), box.read.shape, box, form=box.read.form, span=expr.span
        )

    def box_of_call(self, body: Body, level: Level, expr: S.Call) -> Box:
        block = next((b for b in reversed(body.blocks) if b.calls.get(level.name)), None)
        return block.box(self.resolver, level) if block else self.promise(body, level)

    def promise(self, body: Body, level: Level) -> Box:
        """A box with its states declared, before or at its call."""
        r = self.resolver
        node, env = r.level_nodes[level.name]
        part = level.name.replace("[", "_").replace("]", "")
        path = body.prefix + body.unique(part)
        box = Box(
            path,
            level.name,
            "level",
            level,
            loops=body.loops,
            cites=cites(node.body),
            doc=level.doc,
            span=node.span,
        )
        r.add_box(level, box, body)
        quiet = Body(r, env.new_child(), f"{path}.", body.loops, box)
        weights = len(r.weights)
        with r.quiet():
            work = Work()
            for statement in node.body.statements:
                if isinstance(statement, S.State):
                    self.declare(quiet, statement, work)
        r.drop_weights(weights)  # those of starts are made when the body is read
        r.box_states[id(box)] = dict(quiet.env.maps[0])
        return box

    def bind_level_inputs(
        self, caller: Body, inner: Body, node: S.Level, values: Mapping[str, Value], expr: S.Call
    ) -> tuple[list[tuple[str, Shape]], list[Term]]:
        inputs: list[tuple[str, Shape]] = []
        terms: list[Term] = []
        for p in node.params or ():
            if self.twice(inner, p):
                continue
            value = values[p.name.id] if p.name.id in values else self.default(inner, p)
            if p.default is not None and not isinstance(value, Term):
                inner.env[p.name.id] = value
                continue
            try:
                term = caller.array(value, expr.span)
            except Stop:
                inner.env[p.name.id] = POISON
                continue
            if p.dims and not self.bind_dims(inner, p, term.shape, expr):
                inner.env[p.name.id] = POISON
                continue
            inputs.append((p.name.id, term.shape))
            terms.append(term)
            inner.env[p.name.id] = inner.term("input", (), term.shape, p.name.id, span=p.span)
        return inputs, terms

    def bind_dims(self, inner: Body, p: S.Param, shape: Shape, expr: S.Call) -> bool:
        """`x[n]`: a lower-case name in brackets is a size, bound at the call (2.5.1)."""
        if len(shape) != len(p.dims):
            inner.error(
                "NL602", f"`{p.name.id}` is {told_dims(p)} and is given {told(shape)}", expr.span
            )
            return False
        for dim, n in zip(p.dims, shape, strict=True):
            if isinstance(dim, S.Name) and stands_for_nothing(inner.env.get(dim.id)):
                inner.env[dim.id] = n
                continue
            try:
                wanted = inner.size(inner.value(dim), dim.span, least=0)
            except Stop:
                return False
            if wanted != n:
                inner.error(
                    "NL602",
                    f"`{p.name.id}` is {told_dims(p)}, where `{dim.span.text}` is {wanted}, and "
                    f"is given {told(shape)}",
                    expr.span,
                )
                return False
        return True

    def call_memory(
        self, body: Body, target: Declared, args: list[Value], named: dict[str, Value], expr: S.Call
    ) -> Value:
        """A memory is made where it is called, mapped over leading axes its inputs have beyond its
        signature (2.4.2).
        """
        r = self.resolver
        node = target.node
        name = node.name.id
        values = r.bind_params(body, name, node.params, args, named, expr)
        path = body.prefix + body.unique(
            f"{body.where}.{name}" if body.where in body.used and body.where else name
        )
        level = body.box.level if body.box else None
        if level is None and body.box is not None:
            message = f"`{name}` is a memory, and an optimizer keeps states of its own"
            return body.error(
                "NL103", message, expr.function.span, "write `state m : like(weight)`"
            )
        if level is None:
            return body.error(
                "NL103",
                f"`{name}` is a memory, and a flow calls levels",
                expr.function.span,
                f"wrap it in a level: `level a(..) every token {{ read {name}(..) }}`",
            )
        box = Box(
            path,
            name,
            "memory",
            level,
            loops=body.loops,
            parent=body.box,
            cites=cites(node.body),
            doc=target.doc,
            span=node.span,
        )
        r.add_box(None, box, body)
        inner = Body(r, ChainMap({}, names_of(target)), f"{path}.", body.loops, box)
        with r.inside(node, expr.span):
            terms = self.bind_memory_inputs(body, inner, node, values, expr)
            all_among(inner, node, values, expr.span)
            self.fill(inner, node.body)
        if box.read is None and not r.recovered:
            return body.error(
                "NL602",
                f"`{name}` has no `read`, so its call has no value",
                expr.span,
                "add a line `read e`",
            )
        if box.read is None or id(box) in r.poisoned:
            raise Stop()
        return body.term(
            "call",
            tuple(terms),
            (*box.mapped, *box.read.shape),
            box,
            form=box.read.form,
            span=expr.span,
        )

    def bind_memory_inputs(
        self, body: Body, inner: Body, node: Any, values: Mapping[str, Value], expr: S.Call
    ) -> list[Term]:
        box = inner.box
        assert box is not None
        given = {
            p.name.id: body.array(values[p.name.id], expr.span)
            for p in node.params
            if self.is_stream(p, values)
        }
        box.mapped = self.mapped(body, node, given, expr)
        inputs: list[tuple[str, Shape]] = []
        leads: list[Shape] = []
        for p in node.params:
            name = p.name.id
            if self.twice(inner, p):
                continue
            if name not in given:
                inner.env[name] = (
                    values.get(name, POISON) if name in values else self.default(inner, p)
                )
                continue
            shape = given[name].shape
            cut = len(shape) - len(p.dims) if p.dims else min(len(shape), len(box.mapped))
            lead, own = shape[:cut], shape[cut:]
            if broadcast(lead, box.mapped) != box.mapped:
                raise self.unfit(body, name, shape, box.mapped, expr)
            if p.dims and not self.bind_dims(inner, p, own, expr):
                raise Stop()
            inputs.append((name, own))
            leads.append(lead)
            inner.env[name] = inner.term("input", (), own, name, span=p.span)
        box.inputs, box.input_mapped = tuple(inputs), tuple(leads)
        return list(given.values())

    def is_stream(self, p: S.Param, values: Mapping[str, Value]) -> bool:
        value = values.get(p.name.id)
        return p.name.id in values and (p.default is None or isinstance(value, (Term, StateValue)))

    def default(self, inner: Body, p: S.Param) -> Value:
        return inner.value(p.default) if p.default is not None else POISON

    def unfit(self, body: Body, name: str, shape: Shape, mapped: Shape, expr: S.Call) -> Stop:
        body.error(
            "NL602",
            f"`{name}` is {told(shape)}, and the memory is mapped over {list(mapped)}",
            expr.span,
        )
        return Stop()

    def mapped(self, body: Body, node: Any, given: Mapping[str, Term], expr: S.Call) -> Shape:
        mapped: Shape = ()
        for p in node.params:
            term = given.get(p.name.id)
            if term is None or not p.dims:
                continue
            if len(term.shape) < len(p.dims):
                body.error(
                    "NL602",
                    f"`{p.name.id}` is {told_dims(p)} and is given {told(term.shape)}",
                    expr.span,
                )
                raise Stop()
            wider = broadcast(mapped, term.shape[: -len(p.dims)])
            if wider is None or any(n < 0 for n in wider):
                raise self.unfit(body, p.name.id, term.shape, mapped, expr)
            mapped = wider
        return mapped

    # ---- bodies ----

    def fill(self, body: Body, block: S.Block) -> None:
        """Read all statements of a box; rules are resolved when every line is known."""
        box = body.box
        assert box is not None
        work = Work()
        body.blocks.append(Block(body, block.statements))
        for node in block.statements:
            self.statement(body, node, work)
        box.lines = tuple(body.lines)
        self.resolver.box_states[id(box)] = self.visible(body, work)
        box.states = tuple(self.state(body, d, work) for d in work.drafts)
        if box.kind == "optimizer":
            self.finish_optimizer(body, work)
        else:
            self.line_up(body, work)
        if work.read is not None:
            self.finish_read(body, work.read)
        box.lines = tuple(body.lines)
        box.order, box.levels = tuple(work.order), tuple(work.levels)
        body.blocks.pop()

    def statement(self, body: Body, node: S.Statement, work: Work) -> None:
        box = body.box
        assert box is not None
        lines = len(body.lines)
        match node:
            case S.State():
                self.declare(body, node, work)
            case S.Objective() | S.Retain() | S.Learn() | S.Write() | S.Set():
                work.rules.append(Placed(node, body.env.copy()))
            case S.Read():
                work.read = Placed(node, body.env.copy())
            case S.Linearise():
                self.linearise(body, node)
            case S.Level() if box.kind == "optimizer":
                self.inner_level(body, node, work)
            case _:
                body.line(node)
        work.order += [f"line:{i}" for i in range(lines, len(body.lines))]

    def line_up(self, body: Body, work: Work) -> None:
        """What carries ticks on in a rule is a line of the box."""
        box = body.box
        assert box is not None
        taken = {*body.env, *(name for name, _ in box.inputs), *(s.name for s in box.states)}
        moving = Moving(box, body.lines, taken)
        box.states = tuple(map(moving.state, box.states))
        work.order += [f"line:{len(body.lines) + i}" for i in range(len(moving.lines))]
        body.lines += moving.lines

    def linearise(self, body: Body, node: S.Linearise) -> None:
        assert body.box is not None
        try:
            period = (
                1
                if node.every.period is None
                else body.size(body.value(node.every.period), node.every.period.span)
            )
        except Stop:
            return
        if node.every.unit != "token":
            body.error("NL201", f"`linearise` counts tokens, not {node.every.unit}s", node.span)
            return
        body.box.linearise = period

    def visible(self, body: Body, work: Work) -> dict[str, Any]:
        names = {d.family or d.name for d in work.drafts}
        return {n: body.env[n] for n in names if n in body.env}

    def finish_read(self, body: Body, placed: Placed) -> None:
        assert body.box is not None
        body.where = "read"
        value = self.in_env(body, placed, placed.node.value)
        if isinstance(value, Poison):
            body.box.read = body.term("const", (), (), 0.0, span=placed.node.span)
            self.resolver.poisoned.add(id(body.box))
            return
        try:
            body.box.read = body.whole(value, placed.node.value.span)
        except Stop:
            self.resolver.poisoned.add(id(body.box))
        body.box.read_before = placed.node.before_write


def stands_for_nothing(value: Any) -> bool:
    """In brackets: memories, optimizers and functions are called, and are no sizes."""
    return value is None or isinstance(value, Declared | Builtin)
