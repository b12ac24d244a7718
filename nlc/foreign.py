"""States that other bodies name (language.md 2.7.2): how a call is cut so that each stands still.

A stream runs many ticks at once. A state that fires every P tokens stands between its firings; one
that is written at every call is what it has become at the last tick. So where spans end at the
ticks that count, there is one value to name; where every tick counts, a span is one tick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd

from .lacking import NotLowered
from .plan import Lowering, Spans
from .system import Assign, Box, Clock, Handle, Level, Line, System, Term, line_terms

NAMING = ("state", "apply", "copy")
WRITTEN = ("recurrence", "frozen", "solved", "fired", "slept")


def named_elsewhere(term: Term) -> Handle | None:
    """The state of another box that a term names, if it changes while a stream runs."""
    if term.op not in NAMING:
        return None
    handle: Handle = term.info
    level = handle.box.level
    changes = level is not None and level.clock.unit not in ("step", "task", "never")
    return handle if handle.foreign and changes else None


def names_others(box: Box) -> list[Handle]:
    """The states of other boxes in the body of this one, each once."""
    found: dict[tuple[str, str], Handle] = {}
    for term in box.terms():
        handle = named_elsewhere(term)
        if handle is not None:
            found.setdefault((handle.box.path, handle.name), handle)
    return list(found.values())


def rule_terms_of(box: Box) -> Iterator[Term]:
    """What writes, retentions, objectives and settings are made of, lines included."""
    lines = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
    todo = [t for s in box.states for t in (s.rule.objective, s.rule.retain, s.rule.write) if t]
    todo += [s.rule.set for s in box.states if s.rule.set is not None]
    for learn in (l for s in box.states for l in s.rule.learn.values()):
        todo += [*learn.settings.values(), *learn.streams.values()]
    used: set[str] = set()
    while todo:
        root = todo.pop()
        yield from root.walk()
        for t in root.walk():
            if t.op == "local" and t.info in lines and t.info not in used:
                used.add(t.info)
                todo.append(lines[t.info])


def through_lines(box: Box, root: Term) -> Iterator[Term]:
    """The terms below, those of the plain lines that it names included."""
    lines = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
    todo, used = [root], set()
    while todo:
        for t in todo.pop().walk():
            yield t
            if t.op == "local" and t.info in lines and t.info not in used:
                used.add(t.info)
                todo.append(lines[t.info])


def writes_at_call(box: Box) -> bool:
    """`every token`, needing only its own inputs: no loss, label or other state (2.7.1)."""
    clock = box.level.clock if box.level is not None else None
    if clock is None or (clock.unit, clock.period) != ("token", 1) or box.exact:
        return False
    return not any(
        t.op in ("loss", "next") or t.op in NAMING and t.info.box is not box
        for t in rule_terms_of(box)
    )


def reads_old(box: Box) -> bool:
    """Whether a box answers with the state that it had before it fires (2.7.1)."""
    return box.read_before or not writes_at_call(box)


# ---- how a call is cut ---------------------------------------------------------------------------


def spans(
    system: System,
    lowerings: dict[int, Lowering],
    learners: tuple[Level, ...],
    truncate: Mapping[str, int],
) -> Spans:
    """At which multiples of ticks spans end (0: a call is one span), and which levels are reset
    there and not at their call. What becomes a constant (`through .. tokens`) does so between two
    spans: a span's pasts hold no tick before it.
    """
    found = list(readings(system))
    for _, handle, _ in found:
        check_named(handle, lowerings.get(id(handle.box)))
        if learners:
            raise NotLowered(
                f"another box's state (`{handle.name}`) beside a level that learns the model's "
                "own loss on tokens",
                handle.state.span,
            )
    order = calls(system.flow.lines)
    for reader, handle, _ in found:
        if begins_at_call(system, handle) and not begun(system, order, reader, handle):
            raise NotLowered(
                f"`{handle.name}` of `{handle.box.name}`, named before the call that makes its "
                "start,",
                handle.state.span,
            )
    every = 0
    late: set[str] = set()
    for reader, handle, at_end in found:
        source = handle.box.level
        assert source is not None
        ends = ticks_of(source.clock)
        if writes_at_call(handle.box):
            ends = 1
            if at_end and reader is not None and reader.level is not None:
                ends = ticks_of(reader.level.clock) if follows(order, reader, handle.box) else 1
        every = gcd(every, ends)
        for level in (source, reader.level if reader is not None else None):
            if level is not None and level.resets.unit == "token":
                late.add(level.name)
                every = gcd(every, ticks_of(level.resets))
    for level in (l for l in system.levels if every and l.name in truncate):
        resets = ticks_of(level.resets) if level.resets.unit == "token" else 0
        every = gcd(every, truncate[level.name], resets)
    return Spans(every, frozenset(late))


def ticks_of(clock: Clock) -> int:
    """A number that divides every tick at which the clock fires; 0 where none is one."""
    if clock.unit == "sequence":
        return 0
    return gcd(clock.period, clock.phase or 0)


def check_named(handle: Handle, lowering: Lowering | None) -> None:
    kept = handle.state.rule
    if lowering is not None and lowering.kind in WRITTEN and not kept.through:
        if not handle.box.mapped and handle.box.kind == "level":
            return
    raise NotLowered(f"`{handle.name}` of `{handle.box.name}`, named elsewhere,", handle.state.span)


def readings(system: System) -> Iterator[tuple[Box | None, Handle, bool]]:
    """Who names a state (None: the flow), and whether only at the last tick of its own period."""
    for root in [*line_terms(system.flow.lines), system.flow.result]:
        late = next((t for t in root.walk() if named_elsewhere(t)), None)
        if late is not None and any(t.op == "next" for t in root.walk()):
            raise NotLowered("a state in a line that waits for its label", late.span)
        handed: set[int] = set()
        for term in root.walk():
            if term.op != "call":
                continue
            box: Box = term.info
            for (name, _), arg in zip(box.inputs, term.args, strict=True):
                handle = named_elsewhere(arg) if arg.op == "state" else None
                if handle is not None and only_set(box, name):
                    handed.add(id(arg))
                    yield box, handle, True
        for term in root.walk():
            handle = named_elsewhere(term)
            if handle is not None and id(term) not in handed:
                yield None, handle, False
    for box in system.boxes:
        ends = {id(t) for s in box.states if s.rule.set is not None for t in s.rule.set.walk()}
        for term in box.terms():
            handle = named_elsewhere(term)
            if handle is not None:
                yield box, handle, id(term) in ends


def only_set(box: Box, name: str) -> bool:
    """Whether a `set` is all that uses an input of the box."""
    ends = {id(t) for s in box.states if s.rule.set is not None for t in s.rule.set.walk()}
    uses = [t for t in box.terms() if t.op == "input" and t.info == name]
    return all(id(t) in ends for t in uses)


def begins_at_call(system: System, handle: Handle) -> bool:
    """Whether a start is made at each reset, by the call of its box (2.3.4)."""
    start = handle.state.start
    if start is not None and start.op == "fresh":
        return start.args[0].op != "zeros"
    if start is None or start.op in ("zeros", "normal"):
        return False
    inits = (t for t in system.transfers if t.kind == "init" and t.target is handle.box.level)
    return start.op != "const" or not any(t.speaks_of(handle.state) for t in inits)


def begun(system: System, order: list[list[str]], reader: Box | None, handle: Handle) -> bool:
    """Whether that call is on an earlier line."""
    if reader is not None:
        return follows(order, reader, handle.box)
    roots = [*line_terms(system.flow.lines), system.flow.result]
    names = [
        i
        for i, root in enumerate(roots)
        for t in root.walk()
        if t.op in NAMING and t.info.box is handle.box and t.info.name == handle.name
    ]
    called = next((i for i, line in enumerate(order) if handle.box.path in line), len(roots))
    return called < min(names, default=len(roots))


def calls(lines: tuple[Line, ...]) -> list[list[str]]:
    """The boxes that each line of the flow calls, in text order."""
    return [[t.info.path for t in root.walk() if t.op == "call"] for root in line_terms(lines)]


def follows(order: list[list[str]], reader: Box, source: Box) -> bool:
    """Whether the reader's call is on a later line than the source's."""
    where = {path: i for i, line in enumerate(order) for path in line}
    return where.get(source.path, len(order)) < where.get(reader.path, -1)
