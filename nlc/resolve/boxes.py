"""Boxes: levels and memories made where they are called, their states and rules, and the optimizers
these learn by.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import (
    ALL,
    Array,
    Box,
    Form,
    Handle,
    Lambda,
    Learn,
    Level,
    Rule,
    Shape,
    State,
    Term,
    serves,
)
from ..text import Span
from .bodies import BOUND, Block, Body, names_of
from .functions import ELEMENTWISE, Stop
from .shapes import broadcast, told
from .values import (
    POISON,
    BoxValue,
    Builtin,
    Declared,
    Names,
    Poison,
    StateFamily,
    StateValue,
    Value,
    is_known,
)

if TYPE_CHECKING:
    from .resolver import Resolver

EXAMPLES = ALL + 1  # the size of the first axis of an optimizer's `input` and `surprise`
FORMS = ("vector", "matrix", "table", "mlp", "gated_mlp", "residual", "layernorm", "like")
RULE_NODES = (S.Objective, S.Retain, S.Learn, S.Write, S.Set)
BUILT_IN_RULES = ("exact", "implicit")


@dataclass
class Draft:
    """A state whose form is known and whose rule waits for the end of the body."""

    name: str
    family: str | None
    form: Form
    per: Shape
    start: Term | None
    nodes: list[S.Statement]
    env: Names  # as it stood at the state's place
    span: Span


@dataclass
class Placed:
    """A rule statement of the block, with the names as they stood at its place."""

    node: Any
    env: Names


@dataclass
class Work:
    """What is gathered while a body is read."""

    drafts: list[Draft] = field(default_factory=list)
    rules: list[Placed] = field(default_factory=list)
    read: Placed | None = None
    order: list[str] = field(default_factory=list)
    levels: list[Box] = field(default_factory=list)


class Boxes:
    """The stage's functions; the resolver holds what they share."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

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
        with r.quiet():
            work = Work()
            for statement in node.body.statements:
                if isinstance(statement, S.State):
                    self.declare(quiet, statement, work)
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
            if isinstance(dim, S.Name) and dim.id not in inner.env:
                inner.env[dim.id] = n
                continue
            try:
                wanted = inner.size(inner.value(dim), dim.span)
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

    def twice(self, inner: Body, p: S.Param) -> bool:
        """An input or setting of a name that another has."""
        name = p.name.id
        if name in inner.fixed:
            inner.error("NL102", f"`{p.name.text or name}` is given twice", p.name.span)
            inner.env[name] = POISON
            return True
        if name in BOUND:
            inner.error("NL106", f"`{p.name.text or name}` is bound by the language", p.name.span)
        inner.fixed.add(name)
        return False

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

    def in_env(
        self, body: Body, placed: Placed, expr: S.Expr, extra: Mapping[str, Any] | None = None
    ) -> Value:
        """An expression with the names at its place; names bound later in the body are seen too."""
        final = body.env
        body.env = ChainMap(dict(extra or {}), placed.env.maps[0], *final.maps)
        try:
            return body.value(expr)
        finally:
            body.env = final

    # ---- states ----

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

    # ---- rules ----

    def state(self, body: Body, draft: Draft, work: Work) -> State:
        rule = self.rule(body, draft, work)
        return State(draft.name, draft.form, draft.per, draft.start, rule, draft.span)

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

    # ---- learning ----

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
                and serves(targets, array_kind(draft.form), draft.name, level)
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
    ) -> Learn | None:
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
            settings = {k: self.setting(body, placed, a, extra, ()) for k, a in named.items()}
            return Learn(
                name,
                {k: t for k, t in settings.items() if isinstance(t, Term)},
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
            body, placed, extra, decl, named, shapes, per, targets, steps, serving
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
        terms = {k: body.whole(v, placed.node.span) for k, v in values.items()}
        return Learn(decl.node.name.id, terms, streams, boxes, targets, steps, placed.node.span)

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
        if told_here and len(shape) != 2:
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
        with self.resolver.inside(decl.node, node.span):
            for p in decl.node.params:
                self.optimizer_param(body, p, shape, values, per, inputs, node)
            box.inputs = tuple(inputs)
            self.fill(body, decl.node.body)
        return box

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


def stream_shapes(shape: Shape) -> dict[str, Shape]:
    """The streams of an optimizer that serves an array of this shape (2.9.6)."""
    streams = {"weight": shape, "grad": shape}
    if len(shape) == 2:
        streams |= {"input": (EXAMPLES, shape[1]), "surprise": (EXAMPLES, shape[0])}
    return streams


def array_kind(form: Form) -> str:
    """matrices, tables or vectors (2.9.4)."""
    core = form.core.kind
    if core in ("matrix", "mlp", "gated_mlp"):
        return "matrices"
    if core == "like":
        return "matrices" if len(form.sizes) == 2 else "vectors"
    return "tables" if core == "table" else "vectors"


def path_text(path: S.Path) -> str:
    text = path.first.id
    for part, indexed in zip(path.rest, path.indexed, strict=True):
        text += (
            f"[{part.span.text}]" if indexed else f".{part.id if isinstance(part, S.Name) else ''}"
        )
    return text


def told_dims(p: S.Param) -> str:
    return "[" + ", ".join(d.span.text or getattr(d, "id", "?") for d in p.dims) + "]"


def cites(block: S.Block) -> tuple[str, ...]:
    return tuple(n.text for n in block.statements if isinstance(n, S.Cite))


__all__ = ["EXAMPLES", "Boxes", "array_kind"]
