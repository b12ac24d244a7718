"""A body (of the flow, a level, a memory, an optimizer) from syntax to lines of terms: names,
shapes, instances.

Each mistake is told once, to the resolver's list; what depends on it is POISON and says nothing
more.
"""

from __future__ import annotations

import itertools
from collections import ChainMap, Counter
from collections.abc import Hashable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from .. import syntax as S
from ..diagnostics import Fix
from ..system import Assign, Box, Form, Level, Line, Loop, Shape, Term
from ..text import Span
from .blocks import Block, assigned, same_type
from .functions import (
    LARGEST,
    TABLE,
    FunctionCall,
    Stop,
    apply_state,
    binary,
    is_number,
    matmul,
)
from .making import MAKERS
from .names import BOUND, is_taken
from .networks import apply_network
from .shapes import told
from .values import (
    POISON,
    BoxValue,
    Builtin,
    Declared,
    Inexact,
    LevelValue,
    Names,
    Poison,
    StateFamily,
    StateValue,
    Value,
    is_known,
)

if TYPE_CHECKING:
    from .resolver import Resolver

OPERATORS = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "^": "pow",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "==": "eq",
}
MOST = 2**40  # numbers along one axis
DEEPEST = 60  # calls of defs and memories inside each other


class Body:
    """The names, lines and paths of one body while it is resolved."""

    expands = False  # the body of a `def`

    def __init__(
        self,
        resolver: Resolver,
        env: Names,
        prefix: str = "",
        loops: Shape = (),
        box: Box | None = None,
    ) -> None:
        self.resolver = resolver
        self.env = env
        self.prefix = prefix
        self.loops = loops
        self.box = box
        self.lines: list[Line] = []
        self.used: Counter[str] = Counter()
        self.taken: set[str] = set()  # names of lines; of a flow, those to come as well
        self.where = ""  # the name of the line that is being resolved
        self.blocks: list[Block] = []
        self.starting = False
        self.fixed: set[str] = set()  # inputs, settings and states: not to be bound again

    # ---- telling ----

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        help: str = "",
        fix: Fix | None = None,
        once: Hashable = None,
    ) -> Poison:
        self.resolver.report(code, message, span, help, fix, once)
        return POISON

    def better_argument(self, name: str, shape: Shape) -> str:
        """A plain line whose shape would fit: "did you mean `M(z)`?"."""
        for other, value in self.env.items():
            if isinstance(value, Term) and value.op == "local" and value.shape == shape:
                return f"`{other}` is {list(shape)}; did you mean `{name}({other})`?"
        return ""

    def writes_each_token(self) -> bool:
        level = self.box.level if self.box else None
        return level is not None and level.clock.unit in ("token", "sequence")

    # ---- values to terms ----

    def term(
        self,
        op: str,
        args: tuple[Term, ...] = (),
        shape: Shape = (),
        info: Any = None,
        *,
        form: Form | None = None,
        span: Span,
    ) -> Term:
        self.resolver.count_term(span)
        return Term(op, args, shape, info, form, span)

    def whole(self, value: Value, span: Span) -> Term:
        """A value as a term: an array, a number or a whole network."""
        if isinstance(value, Poison):
            raise Stop()
        if isinstance(value, Term):
            return value
        if is_known(value):
            return self.term("const", (), (), value, span=span)
        if isinstance(value, StateValue):
            form = None if value.form.single else value.form
            shape = () if form else (*value.per, *value.form.arrays[0].shape)
            return self.term("state", (), shape, value.handle, form=form, span=span)
        if isinstance(value, list):
            return self.listed(value, span)
        if isinstance(value, StateFamily):
            names = ", ".join(f"{value.name}.{m}" for m in value.members)
            self.error("NL101", f"`{value.name}` is several states here: {names}", span)
        elif isinstance(value, Builtin):
            self.error("NL103", f"`{span.text}` is a function: call it, as `{span.text}(..)`", span)
        else:
            self.error("NL103", f"`{span.text}` is no array", span)
        raise Stop()

    def listed(self, values: list[Any], span: Span) -> Term:
        """A list of numbers as an array."""
        terms = [self.whole(v, span) for v in values]
        if not terms or any(t.shape or t.form for t in terms):
            self.error("NL602", "a list of numbers is wanted here", span)
            raise Stop()
        return self.term("stack", tuple(terms), (len(terms),), span=span)

    def array(self, value: Value, span: Span) -> Term:
        term = self.whole(value, span)
        if term.form:
            self.error(
                "NL602",
                f"`{span.text}` is a network of several arrays, and one array is wanted",
                span,
            )
            raise Stop()
        return term

    def size(self, value: Value, span: Span, least: int = 1) -> int:
        """A size, period or count: a whole number known when compiled (2.2.3)."""
        if isinstance(value, Poison):
            raise Stop()
        if isinstance(value, Inexact):
            a, b = value.parts
            message = f"{a} does not divide by {b} in `{value.span.text}`"
            self.error("NL601", message, value.span, "a size is a whole number", once=(a, b))
            raise Stop()
        if not is_known(value):
            why = "changes while the system runs; a size must be known when compiled"
            if isinstance(value, list | tuple):
                why = "is a list; a size must be one number"
            self.error("NL601", f"`{span.text}` {why}", span)
            raise Stop()
        assert isinstance(value, (int, float))
        finite = value == value and abs(value) != float("inf")
        if not finite or value != int(value) or not least <= value <= MOST:
            most = f", and at most {MOST:,}" if finite and value > MOST else ""
            self.error(
                "NL601",
                f"`{span.text}` is {value}; a size is a whole number of at least {least}{most}",
                span,
            )
            raise Stop()
        return int(value)

    # ---- expressions ----

    def value(self, expr: S.Expr) -> Value:
        """The value of an expression; POISON after a mistake, which has then been told."""
        try:
            return self.evaluate(expr)
        except Stop:
            return POISON

    def evaluate(self, expr: S.Expr) -> Value:
        match expr:
            case S.Number():
                if abs(expr.value) > LARGEST:
                    message = f"`{expr.span.text[:20]}` is too large for a number"
                    return self.error("NL502", message, expr.span)
                return expr.value
            case S.Name():
                return self.name(expr)
            case S.ListOf():
                return [self.evaluate(e) for e in expr.items]
            case S.Minus():
                return self.minus(expr)
            case S.Binary():
                return self.binary(expr)
            case S.Call():
                return self.call(expr)
            case S.Item():
                return self.item(expr)
            case S.Member():
                return self.member(expr)

    def name(self, expr: S.Name) -> Value:
        try:
            return self.env[expr.id]  # type: ignore[no-any-return]
        except KeyError:
            pass
        if expr.id == "infinity":
            return float("inf")
        if expr.id in ("position", "count", "loss"):
            return self.bound(expr)
        if expr.id in TABLE or expr.id in MAKERS:
            return Builtin(expr.id)
        return self.unknown(expr)

    def bound(self, expr: S.Name) -> Value:
        """`position`, `count` and `loss`, which the language binds (2.2.6)."""
        if expr.id == "loss" and not self.resolver.in_objective:
            return self.error(
                "NL304",
                f"`{self.where or 'this line'}` uses the loss of its own tick, which is known "
                "only when the next token has arrived",
                expr.span,
                "only an objective may name `loss`",
            )
        return self.term(expr.id, (), (), span=expr.span)

    def unknown(self, expr: S.Name) -> Poison:
        if self.resolver.lost(expr):
            return POISON
        if any(level.family == expr.id for level in self.resolver.levels):
            self.resolver.called.update(x.name for x in self.resolver.levels if x.family == expr.id)
            message = f"`{expr.text or expr.id}` is a level, and only a flow calls levels"
            return self.error("NL103", message, expr.span)
        near = get_close_matches(expr.id, [*self.env, *TABLE, *MAKERS, *BOUND], n=1, cutoff=0.6)
        fix = Fix(expr.span, near[0], f"write `{near[0]}`") if near else None
        self.resolver.unknown.add(expr.id)
        mean = f"; did you mean `{near[0]}`?" if near else ""
        message = f"nothing here is called `{expr.text or expr.id}`{mean}"
        return self.error("NL101", message, expr.span, fix=fix, once=("NL101", expr.id))

    def minus(self, expr: S.Minus) -> Value:
        value = self.evaluate(expr.value)
        if isinstance(value, (int, float)):
            return -value
        x = self.whole(value, expr.value.span)
        return self.term("neg", (x,), x.shape, form=x.form, span=expr.span)

    def binary(self, expr: S.Binary) -> Value:
        """A chain of operators is walked, not recursed into: it may be long."""
        chain: list[S.Binary] = []
        left: S.Expr = expr
        while isinstance(left, S.Binary):
            chain.append(left)
            left = left.left
        value = self.value(left)
        for node in reversed(chain):
            right = self.value(node.right)
            if isinstance(value, Poison) or isinstance(right, Poison):
                value = POISON  # the mistakes of the other operands are told too
                continue
            spans = [node.left.span, node.right.span]
            if node.op == "@":
                value = matmul(self, value, right, node.span, spans)
            else:
                value = binary(self, OPERATORS[node.op], value, right, node.span, spans)
        return value

    def item(self, expr: S.Item) -> Value:
        base, index = self.evaluate(expr.base), self.evaluate(expr.index)
        if isinstance(base, Poison) or isinstance(index, Poison):
            raise Stop()
        if isinstance(base, LevelValue):
            return self.family_member(base, index, expr)
        if isinstance(base, list) and is_known(index):
            i = self.size(index, expr.index.span, least=0)
            if i < len(base):
                return base[i]  # type: ignore[no-any-return]
            return self.error(
                "NL602",
                f"`{expr.base.span.text}` has {len(base)} entries, from 0; there is no entry {i}",
                expr.span,
            )
        return self.entry(self.array(base, expr.base.span), index, expr)

    def entry(self, array: Term, index: Value, expr: S.Item) -> Value:
        if not array.shape:
            return self.error(
                "NL602", f"`{expr.base.span.text}` is a number and has no entries", expr.span
            )
        if is_known(index):
            i = self.size(index, expr.index.span, least=0)
            if 0 <= array.shape[0] <= i:
                return self.error(
                    "NL602",
                    f"`{expr.base.span.text}` is {told(array.shape)}; there is no entry {i}",
                    expr.span,
                )
            return self.term("item", (array,), array.shape[1:], i, span=expr.span)
        at = self.array(index, expr.index.span)
        return self.term("index", (array, at), (*at.shape, *array.shape[1:]), span=expr.span)

    def family_member(self, base: LevelValue, index: Value, expr: S.Item) -> Value:
        if is_known(index) and index in base.members:
            return LevelValue(f"{base.name}[{index}]", {None: base.members[index]})
        self.resolver.called.update(level.name for level in base.members.values())
        members = ", ".join(str(m) for m in base.members if m is not None)
        if None in base.members:
            return self.error("NL101", f"`{base.name}` is one level, not a family", expr.span)
        return self.error(
            "NL101",
            f"`{base.name}` has the members {members}; `{expr.index.span.text}` is none of them",
            expr.index.span,
        )

    def member(self, expr: S.Member) -> Value:
        base = self.evaluate(expr.base)
        name = expr.name.id
        if isinstance(base, Poison):
            return POISON
        if isinstance(base, StateFamily):
            states: dict[str, Any] = dict(base.members)
        elif isinstance(base, BoxValue):
            states = dict(base.states)
        elif isinstance(base, LevelValue) and None in base.members:
            states = self.foreign_states(base.members[None], expr)
        else:
            return self.error(
                "NL101",
                f"`{expr.base.span.text}` has no parts, so there is no `.{name}`",
                expr.span,
            )
        if name in states:
            return states[name]  # type: ignore[no-any-return]
        near = get_close_matches(name, list(states), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(states) or 'none'}"
        fix = Fix(expr.name.span, near[0]) if near else None
        return self.error(
            "NL101", f"`{expr.base.span.text}` has no state `{name}`{hint}", expr.name.span, fix=fix
        )

    def foreign_states(self, level: Level, expr: S.Member) -> dict[str, Any]:
        """The states of the one call of a level in this block, or around it (2.4.4)."""
        for block in self.all_blocks():
            calls = block.calls.get(level.name, 0)
            if calls > 1:
                self.error(
                    "NL307",
                    f"`{level.name}` is called {calls} times in this block: which "
                    f"`{expr.span.text}` is meant?",
                    expr.span,
                )
                raise Stop()
            if calls == 1:
                return self.resolver.states_of(block.box(self.resolver, level), foreign=True)
        self.error(
            "NL101",
            f"`{level.name}` is not called in this block, so there is no `{expr.span.text}` to see",
            expr.span,
        )
        raise Stop()

    def all_blocks(self) -> list[Block]:
        """The blocks around this place, innermost first, then those of the caller."""
        outer = self.box and self.resolver.callers.get(id(self.box))
        return [*reversed(self.blocks), *(outer.all_blocks() if outer else [])]

    # ---- calls ----

    def call(self, expr: S.Call) -> Value:
        target = self.evaluate(expr.function)
        if isinstance(target, Poison):
            self.arguments(expr)  # tell the mistakes in them too
            raise Stop()
        args, named = self.arguments(expr)
        level = isinstance(target, LevelValue) and None in target.members
        if not level and any(isinstance(v, Poison) for v in [*args, *named.values()]):
            raise Stop()
        if isinstance(target, StateValue):
            return self.call_state(target, args, expr)
        if isinstance(target, Builtin):
            return self.call_builtin(target.name, args, named, expr)
        if isinstance(target, Declared):
            return self.call_declared(target, args, named, expr)
        if isinstance(target, LevelValue) and None in target.members:
            return self.resolver.boxes_stage.call_level(
                self, target.members[None], args, named, expr
            )
        if isinstance(target, LevelValue):
            some = next(iter(target.members))
            self.resolver.called.update(level.name for level in target.members.values())
            return self.error(
                "NL101",
                f"`{target.name}` is a family of levels: say which, as in "
                f"`{target.name}[{some}](..)`",
                expr.function.span,
            )
        if isinstance(target, Term) and target.form is not None:
            return apply_network(self, target, args, expr)
        if isinstance(target, Term):
            message = (
                f"`{expr.function.span.text}` is a value, and only a function or a state is called"
            )
            help = "a state is called by its own name"
            return self.error("NL103", message, expr.function.span, help)
        what = "states, call one of them" if isinstance(target, StateFamily) else "is called"
        message = f"`{expr.function.span.text}` is no function, memory or state that {what}"
        return self.error("NL103", message, expr.function.span)

    def arguments(self, expr: S.Call) -> tuple[list[Value], dict[str, Value]]:
        args: list[Value] = []
        named: dict[str, Value] = {}
        starting, self.starting = self.starting, self.starting or expr.function == S.Name("learned")
        for a in expr.arguments:
            value = self.value(a.value)
            if a.name is None:
                args.append(value)
            elif a.name.id in named:
                self.error("NL102", f"`{a.name.text or a.name.id}` is given twice", a.name.span)
            else:
                named[a.name.id] = value
        self.starting = starting
        return args, named

    def call_state(self, target: StateValue, args: list[Value], expr: S.Call) -> Value:
        if len(args) != 1 or len(expr.arguments) != 1:
            return self.error(
                "NL107",
                f"`{expr.function.span.text}` takes one input and is given {len(expr.arguments)}",
                expr.span,
            )
        at = expr.arguments[0].value.span
        return apply_state(self, target, self.array(args[0], at), expr.span, at)

    def call_builtin(
        self, name: str, args: list[Value], named: dict[str, Value], expr: S.Call
    ) -> Value:
        spans = [a.value.span for a in expr.arguments]
        if name in MAKERS:
            least, most, names, function = MAKERS[name]
        else:
            least, most, names, function = TABLE[name]
        for key in named:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                hint = (
                    f"; did you mean `{near[0]}`?"
                    if near
                    else (f"; it has {', '.join(names)}" if names else "")
                )
                return self.error("NL107", f"`{name}` has no setting `{key}`{hint}", expr.span)
        if not least <= len(args) + len(named) <= most or len(args) + len(named) < least:
            wanted = str(least) if least == most else f"{least} to {most}"
            return self.error(
                "NL107",
                f"`{name}` takes {wanted} argument{'s' if most != 1 else ''} and is given "
                f"{len(args)}",
                expr.span,
            )
        return function(FunctionCall(self, name, args, named, spans, expr.span))

    def call_declared(
        self, target: Declared, args: list[Value], named: dict[str, Value], expr: S.Call
    ) -> Value:
        match target.node:
            case S.Def():
                return self.expand(target, args, named, expr)
            case S.Memory():
                return self.resolver.boxes_stage.call_memory(self, target, args, named, expr)
        name = target.node.name.id
        return self.error(
            "NL103",
            f"`{name}` is an optimizer; it stands after `learn`",
            expr.function.span,
            f"write `learn {name}(..)`",
        )

    def expand(
        self, target: Declared, args: list[Value], named: dict[str, Value], expr: S.Call
    ) -> Value:
        """A `def` is expanded where it is called (2.2.5): its names are bound to terms, and leave
        no lines.
        """
        node = target.node
        bound = self.resolver.bind_params(
            self, node.name.id, node.params, args, named, expr, target.names
        )
        with self.resolver.inside(node, expr.span):
            inner = Expansion(self, ChainMap(dict(bound), names_of(target)), node.name.id)
            return inner.result(node.body)

    def start_function(self, call: FunctionCall) -> Value:
        if not self.starting:
            raise call.fail(
                "NL103",
                f"`{call.name}` gives the start of a state and stands only there",
                "for a trained array write `learned(n)`",
            )
        if call.name == "fresh":
            x = self.whole(call.args[0], call.spans[0])
            return self.term("fresh", (x,), x.shape, form=x.form, span=call.span)
        info = call.args[0] if call.args else None
        if call.args and not (is_number(info) and 0 <= info <= LARGEST):
            raise call.fail(
                "NL107", "the deviation of `normal` is a number known when compiled", at=0
            )
        return self.term(call.name, (), (), info, span=call.span)

    # ---- lines ----

    def unique(self, name: str) -> str:
        self.used[name] += 1
        return name if self.used[name] == 1 else f"{name}_{self.used[name]}"

    def bind(self, node: S.Bind | S.Add) -> None:
        name = node.name.id
        self.where = name
        if is_taken(self, node.name):
            return
        value = self.value(node.value)
        if isinstance(node, S.Add):
            value = self.added(node, value)
        self.set_name(name, value, node)

    def added(self, node: S.Add, value: Value) -> Value:
        if node.name.id not in self.env:
            return self.unknown(node.name)
        old: Value = self.env[node.name.id]
        if isinstance(value, Poison) or isinstance(old, Poison):
            return old  # a sum keeps its shape, so what follows can be checked
        try:
            return binary(self, "add", old, value, node.span, [node.name.span, node.value.span])
        except Stop:
            return old

    def set_name(self, name: str, value: Value, node: S.Node) -> None:
        if isinstance(value, StateValue):
            try:
                value = self.whole(value, node.span)
            except Stop:
                value = POISON
        if isinstance(value, list) and self.box is None:
            value = [self.kept(name, v, node) for v in value]
        elif isinstance(value, Term):
            value = self.line_of(self.local(name), value, node)
        self.env[name] = value

    def line_of(self, local: str, value: Term, node: S.Node) -> Term:
        self.lines.append(Assign(local, value))
        return self.term("local", (), value.shape, local, form=value.form, span=node.span)

    def kept(self, name: str, value: Value, node: S.Node) -> Value:
        """A list of a flow keeps its values, whatever is bound after it (2.7.2)."""
        if isinstance(value, list):
            return [self.kept(name, v, node) for v in value]
        return self.line_of(self.fresh(name), value, node) if isinstance(value, Term) else value

    def local(self, name: str) -> str:
        """In a box each binding has its own name, so that a rule sees the value at its place
        (2.7.2).
        """
        if self.box is None or name not in self.taken:
            self.taken.add(name)
            return name
        return self.fresh(name)

    def fresh(self, name: str) -> str:
        """A name that no line has."""
        number = 2
        while (made := f"{name}_{number}") in self.taken:
            number += 1
        self.taken.add(made)
        return made

    def run(self, statements: tuple[S.Statement, ...]) -> None:
        """Plain lines of a block; other statements are the caller's."""
        block = Block(self, statements)
        self.blocks.append(block)
        for node in statements:
            self.line(node)
        self.blocks.pop()

    def line(self, node: S.Statement) -> None:
        with suppress(Stop):
            match node:
                case S.Bind() | S.Add():
                    self.bind(node)
                case S.Repeat():
                    self.repeat(node)

    # ---- repeat ----

    def repeat(self, node: S.Repeat) -> None:
        over = self.value(node.over)
        if isinstance(over, Poison):
            return
        if node.name is None:
            try:
                count = self.size(over, node.over.span, least=0)
            except Stop:
                return
            if count and not self.rolled(node, count):
                self.unrolled(node, itertools.repeat(None, count))
        elif isinstance(over, list):
            is_taken(self, node.name)
            self.unrolled(node, over)
        else:
            self.error(
                "NL601", f"`repeat {node.name.id} in` takes a list, as `[16, 128]`", node.over.span
            )

    def rolled(self, node: S.Repeat, count: int) -> bool:
        """One loop, if a round changes no shape. Only a flow's loops stay loops."""
        if self.box is not None or self.expands:
            return False
        mark = self.resolver.mark(self)
        env, lines, prefix = self.env.copy(), self.lines, self.prefix
        carried = [n for n in assigned(node.body) if n in env]
        heads = self.materialise(carried)
        part = self.unique("layers" if not self.loops else "rounds")
        self.lines, self.prefix, self.loops = [], f"{prefix}{part}.{{}}.", (*self.loops, count)
        outer_used, self.used = self.used, Counter()
        before = {n: self.env[n] for n in carried}
        self.run(node.body.statements)
        inner = self.lines
        self.lines, self.prefix, self.loops, self.used = lines, prefix, self.loops[:-1], outer_used
        same = all(same_type(before[n], self.env.get(n)) for n in carried)
        if not same and not any(isinstance(self.env.get(n), Poison) for n in carried):
            self.resolver.rewind(self, mark)
            self.env = env
            return False
        self.lines += [*heads, Loop(count, tuple(inner), node.span)]
        env.update({n: self.env[n] for n in carried})
        self.env = env
        return True

    def materialise(self, names: list[str]) -> list[Line]:
        """What a loop carries is a plain line before it."""
        heads: list[Line] = []
        for n in names:
            value = self.env[n]
            if isinstance(value, Term) and (value.op != "local" or value.info != n):
                heads.append(Assign(n, value))
                self.env[n] = Term("local", (), value.shape, n, value.form, value.span)
        return heads

    def unrolled(self, node: S.Repeat, items: Iterable[Any]) -> None:
        """Written out, round by round; a name first bound inside ends with it (2.2.6)."""
        prefix = self.prefix
        part = (
            self.unique("layers" if not self.loops and self.box is None else "rounds")
            if node.name is None
            else ""
        )
        for i, item in enumerate(items):
            self.resolver.count_term(node.over.span)  # a round without operations takes time too
            env = self.env.copy()
            if part:
                self.prefix = f"{prefix}{part}.{i}."
            outer_used = self.used
            if part:
                self.used = Counter()
            if node.name is not None:
                self.env[node.name.id] = item
            self.run(node.body.statements)
            self.used = outer_used
            self.env.maps[0] = {n: v for n, v in self.env.maps[0].items() if n in env}
            if node.name is not None and node.name.id in env.maps[0]:
                self.env[node.name.id] = env[node.name.id]
            elif node.name is not None:
                self.env.maps[0].pop(node.name.id, None)
        self.prefix = prefix


def names_of(target: Declared) -> dict[str, Any]:
    """What its file sees; never bound to, for a body binds in a map of its own."""
    return cast("dict[str, Any]", target.names)


class Expansion(Body):
    """The body of a `def` at one call: binds names to terms and leaves no lines; instances belong
    to the caller.
    """

    expands = True

    def __init__(self, outer: Body, env: Names, name: str) -> None:
        super().__init__(outer.resolver, env, outer.prefix, outer.loops, outer.box)
        self.outer = outer
        self.used = outer.used
        self.where = name
        self.part = name
        self.blocks = outer.blocks
        self.starting = outer.starting

    def set_name(self, name: str, value: Value, node: S.Node) -> None:
        self.env[name] = value

    def result(self, block: S.Block) -> Value:
        self.blocks = [*self.blocks, Block(self, block.statements)]
        for node in block.statements:
            if isinstance(node, S.Return):
                self.where = self.part
                return self.value(node.value)
            self.line(node)
        return self.error(
            "NL003", f"`{self.part}` has no `return`", block.span, "a `def` ends with `return e`"
        )

    def rolled(self, node: S.Repeat, count: int) -> bool:
        return False
