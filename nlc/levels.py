"""PAGE: the level graph: what changes how often, and what passes between.

In: nothing but the system page. Out: `LevelGraph`, made by `order` and read by the plan, the
pictures and the schedule.

A `Component` is what the paper orders: a level's memories on their clock, the memories of its
optimizer, the rounds of an iteration inside one firing. A is faster than B if its frequency is
higher, or if it is equal and B uses A's state of the same tick (arXiv:2512.24695, definition 2 and
the rule after it). Neither: the same `Rank`, one level of the paper. The slowest rank is number 1,
and nothing depends on the number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from .diagnostics import InternalError
from .system import Box, Clock, Form, Level, State, Term, line_terms
from .text import NOWHERE, Span

Pair = tuple[str, str]
Key = tuple[int, Fraction]  # of a frequency
UNITS = ("never", "task", "step", "sequence", "token", "always")  # slowest first
EDGES = ("condition", "backprop", "init", "generate", "flow", "gradient")
COMPONENTS = ("level", "solved", "optimizer", "iteration")


@dataclass(frozen=True, slots=True)
class Frequency:
    """Updates per unit of time. `never` is 0 and `always` infinite; for both `times` is 0.

    `per_sequence`: the same in updates a sequence, where the length of a sequence is assumed and
    the unit is a token or a sequence. Frequencies are compared by `key`.
    """

    times: Fraction
    unit: str
    per_sequence: Fraction | None = None

    @property
    def key(self) -> Key:
        """By unit, then period; `assume` makes tokens and sequences one unit (2.6.3)."""
        if self.per_sequence is not None:
            return UNITS.index("sequence"), self.per_sequence
        return UNITS.index(self.unit), self.times

    def __str__(self) -> str:
        if self.unit == "never":
            return "0 (never)"
        if self.unit == "always":
            return "infinite (solved at each read)"
        text = f"{self.times} per {self.unit}"
        if self.per_sequence is None or self.unit == "sequence":
            return text
        return f"{text}, {self.per_sequence} per sequence"


def frequency(clock: Clock, assume: int | None = None, rounds: int = 1) -> Frequency:
    """How often a clock fires; `rounds` is how many updates are made at each firing."""
    if clock.unit in ("never", "always"):
        return Frequency(Fraction(0), clock.unit)
    times = Fraction(rounds, clock.period)
    per = {"token": assume, "sequence": 1}.get(clock.unit) if assume is not None else None
    return Frequency(times, clock.unit, None if per is None else times * per)


@dataclass(frozen=True, slots=True)
class Part:
    """A state, or weights of one kind. `numbers` are those of one head of one copy."""

    name: str
    form: str
    numbers: int
    heads: int = 1
    copies: int = 1

    @property
    def total(self) -> int:
        return self.numbers * self.heads * self.copies


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that is updated on one clock.

    `kind`: "level"; "solved" (memories that learn exact, whatever the level's clock); "optimizer"
    (its memories, or a level inside it); "iteration" (a loop inside an optimizer, `rounds` times a
    firing). `level` is the declared level it belongs to and `serves` the component whose gradients
    it remembers. `clock` is counted in units of the system: inside an optimizer a step is one
    firing of what it serves. `at_call`: it writes where it is called;
    `reads_new`: and its read comes after the write.
    """

    name: str
    level: str
    kind: str
    clock: Clock
    frequency: Frequency
    resets: Clock
    partial: str = "carry"
    rounds: int = 1
    parts: tuple[Part, ...] = ()
    boxes: tuple[str, ...] = ()
    serves: str | None = None
    at_call: bool = False
    reads_new: bool = False
    doc: str = ""
    span: Span = field(default=NOWHERE, repr=False)

    @property
    def cadence(self) -> str:
        """The clock in words."""
        return str(self.clock) if self.rounds == 1 else f"{self.rounds} rounds {self.clock}"

    @property
    def numbers(self) -> int:
        return sum(part.total for part in self.parts)


@dataclass(frozen=True, slots=True)
class Rank:
    """One level of the paper: one frequency, none faster than another. 1 is the slowest."""

    number: int
    components: tuple[Component, ...]

    @property
    def name(self) -> str:
        return ", ".join(c.name for c in self.components)

    @property
    def names(self) -> tuple[str, ...]:
        """The declared levels that have a component here."""
        return tuple(dict.fromkeys(c.level for c in self.components))

    @property
    def clock(self) -> Clock:
        return self.components[0].clock

    @property
    def frequency(self) -> Frequency:
        return self.components[0].frequency

    @property
    def boxes(self) -> tuple[str, ...]:
        return tuple(box for c in self.components for box in c.boxes)


@dataclass(frozen=True, slots=True)
class Edge:
    """What passes from one component to another: a declared transfer, or what the flow and the
    optimizers show.

    `flow`: one level's read enters the other's call, first in the next round of a `repeat` if
    `carried`. `gradient`: the one context that needs no line, to what serves a component.
    """

    kind: str
    source: str
    target: str
    state: str | None = None
    source_state: str | None = None
    truncate: int | None = None
    first_order: bool = False
    carried: bool = False


@dataclass(frozen=True, slots=True)
class LevelGraph:
    """The components of a system in the order of their frequency.

    `levels`: slowest first. `uses`: pairs (faster, slower) of equal frequency, where the slower one
    uses the faster one's state of the same tick; pairs that follow from others may be missing.
    """

    name: str
    levels: tuple[Rank, ...]
    edges: tuple[Edge, ...] = ()
    uses: tuple[Pair, ...] = ()
    assume: int | None = None
    doc: str = ""

    @property
    def components(self) -> tuple[Component, ...]:
        """All components, slowest first."""
        return tuple(c for rank in self.levels for c in rank.components)

    def component(self, name: str) -> Component:
        return next(c for c in self.components if c.name == name)

    def rank(self, name: str) -> int:
        """The number of the level a component is on."""
        return next(r.number for r in self.levels for c in r.components if c.name == name)


def writes_at_call(box: Box) -> bool:
    """Whether a box writes where it is called, so that its read sees the new state (2.7.1).

    That is at every token, and from its inputs alone: no loss, no label, no state of another body.
    """
    clock = box.clock or (box.level.clock if box.level else None)
    if clock is None or (clock.unit, clock.period) != ("token", 1):
        return False
    return not any(_waits(term) for term in distinct(_written_from(box)))


def _waits(term: Term) -> bool:
    named = term.op in ("state", "apply", "copy")
    return term.op in ("loss", "next") or (named and term.info.foreign)


def _written_from(box: Box) -> list[Term]:
    """The terms that a firing of the box depends on."""
    return [*line_terms(box.lines), *(t for state in box.states for t in rule_terms(state))]


def distinct(roots: Iterable[Term]) -> Iterator[Term]:
    """All terms below the roots, each once: rounds that are written out share theirs."""
    stack, seen = list(roots), set[int]()
    while stack:
        term = stack.pop()
        if id(term) not in seen:
            seen.add(id(term))
            yield term
            stack.extend(term.args)


def component_of(box: Box) -> str:
    """The component of a box: its level's, or its own if it alone is solved at each read."""
    level = level_of(box)
    if box.exact and level.clock.unit != "always":
        return f"{level.name}.{box.name}"
    return level.name


def level_of(box: Box) -> Level:
    if box.level is None:
        raise InternalError(f"{box.path} is called and has no level")
    return box.level


def arguments_first(roots: Iterable[Term]) -> Iterator[Term]:
    """All terms below the roots, each once and after its arguments."""
    seen: set[int] = set()
    stack = [(root, False) for root in roots]
    while stack:
        term, ready = stack.pop()
        if ready:
            yield term
        elif id(term) not in seen:
            seen.add(id(term))
            stack.append((term, True))
            stack.extend((arg, False) for arg in reversed(term.args))


def gradient_terms(state: State) -> list[Term]:
    """What enters the optimizer of a state."""
    rule = state.rule
    found = [] if rule.objective is None else [rule.objective]
    for learn in rule.learn.values():
        found += [*learn.settings.values(), *learn.streams.values()]
    return found


def amount_terms(state: State) -> list[Term]:
    rule = state.rule
    return [t for t in (rule.retain, rule.write, rule.set) if t is not None]


def rule_terms(state: State) -> list[Term]:
    return gradient_terms(state) + amount_terms(state)


def form_text(form: Form) -> str:
    """A form as the language writes it."""
    if form.inner is not None:
        return f"{form.kind}({form_text(form.inner)})"
    return f"{form.kind}({', '.join(map(str, form.sizes))})"


# ---- what is legal -------------------------------------------------------------------------------


def verify_levels(graph: LevelGraph) -> None:
    """Raise InternalError unless the ranks are the order's longest-chain layers."""
    place = _places(graph)
    for rank in graph.levels:
        keys = {c.frequency.key for c in rank.components}
        _demand(len(keys) == 1, f"level {rank.number} has components of different frequencies")
    for slow, fast in zip(graph.levels, graph.levels[1:], strict=False):
        _demand(
            slow.frequency.key <= fast.frequency.key,
            f"level {fast.number} is slower than the one before",
        )
    _verify_uses(graph, place)
    for edge in graph.edges:
        _demand(edge.kind in EDGES, f"an edge of kind {edge.kind}")
        _demand(
            {edge.source, edge.target} <= place.keys(),
            f"an edge {edge.source} -> {edge.target} to nowhere",
        )


def _places(graph: LevelGraph) -> dict[str, Rank]:
    _demand(
        [r.number for r in graph.levels] == list(range(1, len(graph.levels) + 1)),
        "levels are numbered from 1",
    )
    place: dict[str, Rank] = {}
    for rank in graph.levels:
        _demand(bool(rank.components), f"level {rank.number} is empty")
        for component in rank.components:
            _demand(component.name not in place, f"{component.name} is on two levels")
            _demand(component.kind in COMPONENTS, f"a component of kind {component.kind}")
            place[component.name] = rank
    return place


def _verify_uses(graph: LevelGraph, place: dict[str, Rank]) -> None:
    """Each pair crosses ranks of one frequency; each rank but a slowest needs one."""
    reason: dict[str, int] = {}
    for fast, slow in graph.uses:
        _demand({fast, slow} <= place.keys(), f"an order {fast} > {slow} of nothing")
        above, below = place[fast], place[slow]
        _demand(
            above.frequency.key == below.frequency.key,
            f"{fast} and {slow} differ in frequency already",
        )
        _demand(above.number > below.number, f"{fast} is faster than {slow} and not above it")
        reason[fast] = max(reason.get(fast, 0), below.number)
    for before, rank in zip(graph.levels, graph.levels[1:], strict=False):
        if before.frequency.key == rank.frequency.key:
            for c in rank.components:
                _demand(reason.get(c.name) == before.number, f"{c.name} needs no level of its own")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(f"level graph: {otherwise}")
