"""One reading of a system's flow, in text order, as one tick runs it.

In: a `System`. Out: `Reading`: which level's read enters which call, and which states of the same
tick enter which firing. A name has the value that stands at its place in the text (2.7.2), so one
walk is enough; under `repeat`, as many rounds as bring something new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .levels import (
    Pair,
    amount_terms,
    arguments_first,
    component_of,
    gradient_terms,
    level_of,
    writes_at_call,
)
from .system import Assign, Box, Handle, Line, Loop, System, Term

Rounds = tuple[tuple[int, int], ...]  # the loops that are running, each with its round


class _From(NamedTuple):
    """Events (bits) that a value comes from. `last`: less those that others of them come from;
    `under`: all those.
    """

    last: int = 0
    under: int = 0

    def then(self, event: int) -> _From:
        """Of what such an event makes."""
        return _From(1 << event, self.last | self.under)


class _Value(NamedTuple):
    """`calls` of levels, and new states: `written` at every token, `solved` at a read. Their
    frequencies differ, so that one of them may not stand for another.
    """

    calls: _From = _From()
    written: _From = _From()
    solved: _From = _From()

    @property
    def states(self) -> _Value:
        return _Value(_From(), self.written, self.solved)


_NONE = _Value()


def _together(values: Iterable[_Value]) -> _Value:
    a = b = c = d = e = f = 0
    for (last, under), (written, before), (solved, above) in values:
        a, b = a | last, b | under
        c, d = c | written, d | before
        e, f = e | solved, f | above
    return _Value(_From(a & ~b, b), _From(c & ~d, d), _From(e & ~f, f))


@dataclass
class _Body:
    """The flow, or a box at one of its calls. `after`: its states are read as written."""

    box: Box | None
    inputs: Mapping[str, _Value]
    names: dict[str, _Value] = field(default_factory=dict)
    after: bool = False


class Reading:
    """Walks the flow as one tick runs it.

    `flows`: which level's read enters which call, and whether only a round later. `fires`: pairs of
    components; the firing of the second uses the first's state of the same tick. `learns`: the same
    for its gradient alone.
    """

    def __init__(self, system: System) -> None:
        self.flows: dict[Pair, bool] = {}
        self.fires: set[Pair] = set()
        self.learns: set[Pair] = set()
        self._on_loss: set[str] = set()
        self._events: list[tuple[str, Rounds]] = []  # the level called, or the component written
        self._called: dict[int, _Value] = {}  # box -> its last call in this round
        self._made: dict[int, _Value] = {}  # box -> its state, if it was written in this round
        self._rounds: Rounds = ()
        self._loops = 0
        flow = _Body(None, {})
        self._lines(system.flow.lines, flow)
        self._value(system.flow.result, flow)
        if system.flow.loss is not None:
            loss = self._value(system.flow.loss, flow)
            for name in self._on_loss:
                self._note(self.fires, name, loss)
                self._note(self.learns, name, loss)

    def _event(self, name: str) -> int:
        self._events.append((name, self._rounds))
        return len(self._events) - 1

    def _names(self, events: int) -> Iterator[str]:
        return (self._events[event][0] for event in _bits(events))

    def _note(self, pairs: set[Pair], name: str, value: _Value) -> None:
        pairs.update((used, name) for used in self._names(value.written.last | value.solved.last))

    def _lines(self, lines: Sequence[Line], body: _Body) -> None:
        for line in lines:
            if isinstance(line, Assign):
                body.names[line.name] = self._value(line.value, body)
            else:
                self._loop(line, body)

    def _loop(self, loop: Loop, body: _Body) -> None:
        """As many rounds as bring something new. Each has its own copies of the boxes (2.4.1)."""
        self._loops += 1
        serial, outer, before = self._loops, self._rounds, None
        called, made = dict(self._called), dict(self._made)
        for number in range(loop.count):
            self._rounds = (*outer, (serial, number))
            self._called, self._made = dict(called), dict(made)
            self._lines(loop.lines, body)
            now = self._known(body)
            if now == before:
                break
            before = now
        self._rounds = outer

    def _known(self, body: _Body) -> object:
        known = {
            name: tuple(frozenset(self._names(source.last)) for source in value)
            for name, value in body.names.items()
        }
        return known, len(self.fires), len(self.learns), dict(self.flows)

    def _value(self, root: Term, body: _Body) -> _Value:
        """Of a term; one that stands in several places is one value, and one call."""
        done: dict[int, _Value] = {}
        for term in arguments_first([root]):
            done[id(term)] = self._term(term, [done[id(arg)] for arg in term.args], body)
        return done[id(root)]

    def _term(self, term: Term, args: Sequence[_Value], body: _Body) -> _Value:
        match term.op:
            case "call":
                return self._call(term.info, args)
            case "input":
                return body.inputs.get(term.info, _NONE)
            case "local":
                return body.names.get(term.info, _NONE)
            case "state" | "apply" | "copy":
                return _together([*args, self._state(term.info, body)])
            case "loss" if body.box is not None:
                self._on_loss.add(component_of(body.box))
        return args[0] if len(args) == 1 else _together(args)

    def _state(self, handle: Handle, body: _Body) -> _Value:
        """A state: its own body's is old until the read, another's new after a call (2.7.2)."""
        made = self._made.get(id(handle.box), _NONE)
        if handle.box is body.box:
            return made if body.after else _NONE
        return made._replace(calls=self._last_call(handle.box).calls)

    def _last_call(self, box: Box) -> _Value:
        if id(box) not in self._called:
            self._called[id(box)] = self._new_call(box, _NONE)
        return self._called[id(box)]

    def _new_call(self, box: Box, given: _Value) -> _Value:
        return _Value(given.calls.then(self._event(level_of(box).name)))

    def _call(self, box: Box, args: Sequence[_Value]) -> _Value:
        if box.kind == "level":
            given = _together(args)
            self._enter(level_of(box).name, given.calls.last)
            self._called[id(box)] = self._new_call(box, given)
        inputs = {name: value for (name, _), value in zip(box.inputs, args, strict=False)}
        body = _Body(box, inputs)
        self._lines(box.lines, body)
        self._fire(box, body)
        body.after = box.exact or (writes_at_call(box) and not box.read_before)
        read = _NONE if box.read is None else self._value(box.read, body)
        if box.kind != "level":
            return read
        return read._replace(calls=self._called[id(box)].calls)

    def _enter(self, level: str, calls: int) -> None:
        """Note the flow from each call to this one."""
        for call in _bits(calls):
            source, rounds = self._events[call]
            if source != level:
                both = zip(rounds, self._rounds, strict=False)
                later = any(a[0] == b[0] and a != b for a, b in both)
                self.flows[source, level] = self.flows.get((source, level), True) and later

    def _fire(self, box: Box, body: _Body) -> None:
        """What the firing that this call leads to uses, and what a reader of the new state does."""
        changing = [state for state in box.states if state.rule.changes]
        if not changing:
            return
        name = component_of(box)
        gradient = _together(self._value(t, body) for s in changing for t in gradient_terms(s))
        amounts = _together(self._value(t, body) for s in changing for t in amount_terms(s))
        everything = _together([gradient, amounts])
        self._note(self.learns, name, gradient)
        self._note(self.fires, name, everything)
        made = everything.states
        if box.exact:
            self._made[id(box)] = made._replace(solved=made.solved.then(self._event(name)))
        elif writes_at_call(box):
            self._made[id(box)] = made._replace(written=made.written.then(self._event(name)))


def _bits(number: int) -> Iterator[int]:
    """The positions of the bits that are set, highest first."""
    while number:
        top = number.bit_length() - 1
        yield top
        number ^= 1 << top
