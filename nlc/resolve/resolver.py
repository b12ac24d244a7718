"""What the parts of this stage share: diagnostics, weights, boxes, limits; and the resolution of
one system.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from .. import syntax as S
from ..diagnostics import Diagnostic, Fix, Label
from ..system import Box, Clock, Level, Shape, Term, Weight
from ..text import Source, Span
from .bodies import Body
from .boxes import Boxes
from .files import Files
from .functions import Stop
from .values import Names, Poison, StateFamily, StateValue, Value, is_known

MOST_TERMS = 100_000
DEEPEST = 60
RESERVED = frozenset({
    "always", "assume", "cite", "def", "every", "flow", "in", "learn", "level", "linearise",
    "memory", "never", "nl", "objective", "optimizer", "partial", "per", "read", "repeat",
    "reset", "retain", "return", "set", "state", "system", "transfer", "use", "write",
})  # fmt: skip


class Told:
    """Diagnostics in order, each once: a key that is known says nothing more."""

    def __init__(self) -> None:
        self.items: list[Diagnostic] = []
        self.known: set[Hashable] = set()

    def add(self, made: Diagnostic, once: Hashable = None) -> None:
        keys = {(made.code, made.span), *([once] if once is not None else [])}
        if not keys & self.known:
            self.items.append(made)
        self.known |= keys

    def cut(self, count: int) -> None:
        """Forget all but the first `count`."""
        del self.items[count:]
        self.known = {(d.code, d.span) for d in self.items}


class Resolver:
    """One resolution. Its lists are filled as the text is walked; `system()` is the result."""

    def __init__(
        self, folder: Path | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.told = Told()
        self.source: Source | None = None  # the file that is checked
        self.recovered = False
        self.overrides = dict(settings or {})
        self.files = Files(self, folder)
        self.boxes_stage = Boxes(self)
        self.weights: list[Weight] = []
        self.boxes: list[Box] = []
        self.filled: set[int] = set()
        self.poisoned: set[int] = set()
        self.called: set[str] = set()
        self.unknown: set[str] = set()
        self.callers: dict[int, Body] = {}
        self.box_states: dict[int, dict[str, Any]] = {}
        self.level_nodes: dict[str, tuple[S.Level, Names]] = {}
        self.level_boxes: dict[str, list[Box]] = {}
        self.levels: list[Level] = []
        self.settings: set[str] = set()  # of the system
        self.system_names: MutableMapping[str, Any] | None = None  # what its bodies see of it
        self.expanding: list[tuple[Any, Span]] = []
        self.rule_weights: dict[tuple[str, Shape], Weight] = {}
        self.rule_prefixes: dict[tuple[str, int], str] = {}
        self.discarded: list[Box] = []
        self.used: set[int] = set()  # declarations that were expanded
        self.terms = 0
        self.too_large = False
        self.in_objective = False

    # ---- telling ----

    def report(
        self,
        code: str,
        message: str,
        span: Span,
        help: str = "",
        fix: Fix | str | None = None,
        once: Hashable = None,
    ) -> None:
        """Tell a mistake once: the same code at the same place, or the same `once`, says nothing
        more. In a shipped file the mistake is that of the call that led there.
        """
        made = Fix(span, fix) if isinstance(fix, str) else fix
        others: tuple[Label, ...] = ()
        if span.source.shipped and self.place(span) is not span:
            others, span, made = (Label(span, "found here"),), self.place(span), None
        self.told.add(Diagnostic(code, message, span, help=help, others=others, fix=made), once)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        return tuple(self.told.items)

    def retell(self, diagnostics: Iterable[Diagnostic]) -> None:
        for made in diagnostics:
            self.told.add(made)

    def place(self, span: Span) -> Span:
        """Where in the checked file: the innermost call that led to a place in another file."""
        if span.source is self.source:
            return span
        calls = (s for _, s in reversed(self.expanding) if s.source is self.source)
        return next(calls, span)

    @contextmanager
    def capture(self) -> Iterator[list[Diagnostic]]:
        outer, self.told = self.told, Told()
        try:
            yield self.told.items
        finally:
            self.told = outer

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with self.capture():
            yield

    @contextmanager
    def objective(self) -> Iterator[None]:
        outer, self.in_objective = self.in_objective, True
        try:
            yield
        finally:
            self.in_objective = outer

    @contextmanager
    def inside(self, node: Any, span: Span) -> Iterator[None]:
        """Guards the expansion of a def, memory or optimizer against recursion."""
        again = any(n is node for n, _ in self.expanding)
        if again or len(self.expanding) >= DEEPEST:
            name = node.name.id
            self.report(
                "NL109",
                f"`{name}` calls itself"
                if again
                else f"calls are nested more than {DEEPEST} deep at `{name}`",
                span,
                "a `def`, memory or optimizer is expanded where it is called, so it cannot recurse",
            )
            raise Stop()
        self.used.add(id(node))
        self.expanding.append((node, span))
        try:
            yield
        finally:
            self.expanding.pop()

    def count_term(self, span: Span) -> None:
        self.terms += 1
        if self.terms > MOST_TERMS:
            if not self.too_large:
                self.too_large = True
                calls = [s for _, s in self.expanding if s.source is self.source]
                span = calls[0] if calls else span
                self.report(
                    "NL110",
                    f"this text expands to more than {MOST_TERMS:,} operations",
                    span,
                    "use `repeat` with a count, or fewer copies",
                )
            raise Stop()

    def lost(self, name: S.Name) -> bool:
        """Whether a name was declared in a line that could not be read, which has been told."""
        if not self.recovered or self.source is None:
            return False
        if name.id in RESERVED:
            return True
        word = re.escape(name.text or name.id)
        head = rf"^[^#\n]*\b(?:state|level|memory|optimizer|def|system|flow)\b[^#\n]*\b{word}\b"
        line = rf"(?:^|[;{{])\s*{word}\b[^;#\n]*="
        block = rf"^\s*\w+\s+{word}\b[^#\n]*\{{"
        return re.search(f"{head}|{line}|{block}", self.source.text, re.MULTILINE) is not None

    def absent(self, code: str, message: str, span: Span, help: str = "") -> None:
        """Tell of something that is not there; it may stand in a line that could not be read."""
        if not self.recovered:
            self.report(code, message, span, help)

    # ---- undoing a loop that could not stay one ----

    def mark(self, body: Body) -> tuple[Any, ...]:
        levels = {k: len(v) for k, v in self.level_boxes.items()}
        return (
            len(self.weights),
            len(self.boxes),
            len(self.told.items),
            levels,
            body.used.copy(),
            len(body.blocks),
        )

    def rewind(self, body: Body, mark: tuple[Any, ...]) -> None:
        weights, boxes, diagnostics, levels, used, blocks = mark
        self.drop_boxes(boxes)
        del body.blocks[blocks:]
        self.told.cut(diagnostics)
        self.drop_weights(weights)
        for name, made in self.level_boxes.items():
            del made[levels.get(name, 0) :]
        body.used = used
        known = set(map(id, self.boxes))
        for block in body.blocks:
            block.made = {k: b for k, b in block.made.items() if id(b) in known}

    # ---- what bodies make ----

    def add_weight(self, weight: Weight) -> Weight:
        """A weight of an optimizer is made once for each `learn` line of an instance (2.9.6)."""
        if weight.box is None or weight.box.kind != "optimizer":
            self.weights.append(weight)
            return weight
        key = (weight.path, weight.shape)
        if key not in self.rule_weights:
            taken = any(path == weight.path for path, _ in self.rule_weights)
            size = "x".join(map(str, weight.shape))
            made = replace(weight, path=f"{weight.path}_{size}") if taken else weight
            self.rule_weights[key] = made
            self.weights.append(made)
        return self.rule_weights[key]

    def drop_boxes(self, count: int) -> None:
        """Forget all but the first `count`; kept, so that no other box is taken for one of them."""
        self.discarded += self.boxes[count:]
        del self.boxes[count:]

    def drop_weights(self, count: int) -> None:
        """Forget all but the first `count`."""
        if len(self.weights) > count:
            del self.weights[count:]
            kept = set(map(id, self.weights))
            self.rule_weights = {k: w for k, w in self.rule_weights.items() if id(w) in kept}

    def rule_prefix(self, body: Body, node: S.Learn, rule: str) -> str:
        """Before the names of what one `learn` line of an instance makes."""
        key = (body.prefix, id(node))
        if key not in self.rule_prefixes:
            self.rule_prefixes[key] = f"{body.prefix}{body.unique(rule)}."
        return self.rule_prefixes[key]

    def add_box(self, level: Level | None, box: Box, caller: Body) -> None:
        self.boxes.append(box)
        self.callers[id(box)] = caller
        if level is not None:
            self.level_boxes.setdefault(level.name, []).append(box)

    def states_of(self, box: Box, foreign: bool) -> dict[str, Any]:
        states = self.box_states.get(id(box), {})
        return {k: as_foreign(v) for k, v in states.items()} if foreign else states

    def quiet_value(self, body: Body, expr: S.Expr) -> Value:
        with self.quiet():
            return body.value(expr)

    # ---- parameters ----

    def bind_params(
        self,
        body: Body,
        name: str,
        params: tuple[S.Param, ...],
        args: list[Value],
        named: dict[str, Value],
        expr: S.Call,
        names: Mapping[str, Any] | None = None,
    ) -> dict[str, Value]:
        """Arguments to parameters: streams in order or by name, settings by name (a `def` takes all
        in order).
        """
        by_name = {p.name.id: p for p in params}
        for key in named:
            if key not in by_name:
                near = get_close_matches(key, by_name, n=1)
                at = next(a.name for a in expr.arguments if a.name is not None and a.name.id == key)
                hint = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(by_name)}"
                self.report(
                    "NL101",
                    f"`{name}` has nothing called `{at.text or key}`{hint}",
                    at.span,
                    fix=near[0] if near else None,
                )
                raise Stop()
        free = [p.name.id for p in params if p.name.id not in named]
        streams = [p.name.id for p in params if p.default is None]
        if len(args) > len(free):
            self.report(
                "NL107",
                f"`{name}` takes {counted(streams)} and is given {len(args) + len(named)}",
                expr.span,
            )
            raise Stop()
        values: dict[str, Value] = {**dict(zip(free, args, strict=False)), **named}
        missing = [s for s in streams if s not in values]
        if missing:
            self.report(
                "NL107",
                f"`{name}` takes {counted(streams)}; `{missing[0]}` is not given",
                expr.span,
            )
            raise Stop()
        for p in params:
            if names is not None and p.default is not None and p.name.id not in values:
                env: Names = ChainMap(dict(values), cast("dict[str, Any]", names))
                values[p.name.id] = Body(self, env).value(p.default)
        return values

    # ---- clocks ----

    def clock(self, body: Body, node: S.Clock) -> Clock:
        match node:
            case S.Never():
                return Clock("never", 0)
            case S.Always():
                return Clock("always", 0)
        period = self.period(body, node.period, 1)
        phase = self.period(body, node.phase, None) if node.phase is not None else None
        return Clock(node.unit, period or 1, phase)

    def period(
        self,
        body: Body,
        expr: S.Expr | None,
        default: int | None,
        none: str = "for frequency zero write `never`",
    ) -> int | None:
        """`none`: what to write in place of 0."""
        if expr is None:
            return default
        value = body.value(expr)
        if isinstance(value, Poison):
            return default
        if (
            not is_known(value)
            or not isinstance(value, (int, float))
            or value != value
            or value in (float("inf"),)
            or value != int(value)
            or value < 1
            or value > 2**62
        ):
            changes = isinstance(value, (Term, StateValue))
            what = (
                f"`{expr.span.text}` changes at each token"
                if changes
                else f"`{expr.span.text}` is {value if is_known(value) else 'no number'}"
            )
            self.report(
                "NL202",
                f"a period is a whole number above zero, known when compiled; {what}",
                expr.span,
                none if value == 0 else "",
            )
            return default
        return int(value)


def counted(streams: list[str]) -> str:
    if not streams:
        return "no inputs"
    return f"{len(streams)} input{'s' if len(streams) != 1 else ''} ({', '.join(streams)})"


def as_foreign(value: Any) -> Any:
    if isinstance(value, StateFamily):
        return StateFamily(value.name, {k: as_foreign(v) for k, v in value.members.items()})
    if isinstance(value, StateValue):
        return StateValue(
            type(value.handle)(value.handle.box, value.handle.name, True), value.form, value.per
        )
    return value
