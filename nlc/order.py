"""STAGE: a system's components in the order of their frequency, and what passes between them.

In: a resolved `System`. Out: its `LevelGraph` (`order`), and that graph as a networkx graph
(`graph`).

Three steps. `_Parts` makes the components. `_Reading` walks the flow once, in text order, and notes
which states of the same tick enter which firing, and which read enters which call. `_ranks` layers
the order by longest chains.

An order of whole levels needs one more word than the definition, which speaks of single boxes:
under `repeat` two levels may feed each other by turns, layer after layer. Then neither is faster as
a whole. So A is faster than B if B uses A's state of the same tick and A does not use B's, directly
or through others: the strict part of a preorder, hence a strict partial order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from .diagnostics import InternalError
from .levels import (
    Component,
    Edge,
    LevelGraph,
    Part,
    Rank,
    distinct,
    form_text,
    frequency,
    writes_at_call,
)
from .system import (
    Assign,
    Box,
    Clock,
    Form,
    Handle,
    Learn,
    Level,
    Line,
    Loop,
    Shape,
    State,
    System,
    Term,
    Transfer,
    Weight,
)
from .text import NOWHERE, Span

if TYPE_CHECKING:
    import networkx

Pair = tuple[str, str]
Rounds = tuple[tuple[int, int], ...]  # the loops that are running, each with its round
Key = tuple[int, Fraction]  # of a frequency
Place = tuple[str, Key]  # what a level has on one frequency
# how many arrays a level changes: their shape, their kind, the names a learn line may use for them
Serving = Counter[tuple[Shape, str, tuple[str, ...]]]


def order(system: System) -> LevelGraph:
    """The components of a system, ranked, with the edges between them."""
    parts = _Parts(system)
    reading = _Reading(system)
    components = parts.components()
    uses = _same_tick(components, reading) | _inside(components, parts.uses)
    anchors = parts.anchors
    edges = [
        *(_transfer(t, anchors) for t in system.transfers),
        *(Edge("flow", anchors[a], anchors[b], carried=c) for (a, b), c in reading.flows.items()),
        *(Edge("gradient", c.serves, c.name) for c in components if c.serves is not None),
    ]
    ranks = _ranks(components, uses)
    pairs = tuple(sorted(uses))
    return LevelGraph(system.name, ranks, tuple(edges), pairs, system.assume, system.doc)


def graph(levels: LevelGraph) -> networkx.MultiDiGraph:
    """One node a component, one edge a transfer, keyed by its kind; every field of the page is an
    attribute.
    """
    import networkx  # a quarter of a second, and `nlc check` needs none of it

    made = networkx.MultiDiGraph(name=levels.name, assume=levels.assume)
    for rank in levels.levels:
        for c in rank.components:
            made.add_node(
                c.name,
                rank=rank.number,
                level=c.level,
                kind=c.kind,
                clock=c.cadence,
                frequency=str(c.frequency),
                numbers=c.numbers,
                boxes=c.boxes,
                component=c,
            )
    for e in levels.edges:
        made.add_edge(
            e.source,
            e.target,
            kind=e.kind,
            state=e.state,
            truncate=e.truncate,
            first_order=e.first_order,
            carried=e.carried,
        )
    return made


def component_of(box: Box) -> str:
    """The name of the component a box belongs to: its level's, or its own if it alone is solved at
    each read.
    """
    level = _level(box)
    if box.exact and level.clock.unit != "always":
        return f"{level.name}.{box.name}"
    return level.name


def _level(box: Box) -> Level:
    if box.level is None:
        raise InternalError(f"{box.path} is called and has no level")
    return box.level


def _transfer(t: Transfer, anchors: Mapping[str, str]) -> Edge:
    source, target = anchors[t.source.name], anchors[t.target.name]
    return Edge(t.kind, source, target, t.state, t.source_state, t.truncate, t.first_order)


# ---- components ----------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A component in the making; parts of one name and form are counted together."""

    name: str
    level: Level
    kind: str
    clock: Clock
    rounds: int = 1
    serves: str | None = None
    at_call: bool = False
    parts: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)
    boxes: list[str] = field(default_factory=list)

    def component(self, assume: int | None) -> Component:
        parts = tuple(Part(*key, copies) for key, copies in self.parts.items())
        level = self.level
        often = frequency(self.clock, assume, self.rounds)
        return Component(
            self.name,
            level.name,
            self.kind,
            self.clock,
            often,
            level.resets,
            level.partial,
            self.rounds,
            parts,
            tuple(self.boxes),
            self.serves,
            self.at_call,
            level.doc,
            level.span,
        )


class _Parts:
    """Makes the components of a system. `uses`: pairs (faster, slower) inside one level, whatever
    their clocks.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.drafts: dict[str, _Draft] = {}
        self.anchors: dict[str, str] = {}  # level -> the component its transfers end at
        self.uses: set[Pair] = set()
        self.boxes = _boxes_of_levels(system)
        self.starting: dict[str, Serving] = {}
        for level in system.levels:
            self._level(level)

    def components(self) -> tuple[Component, ...]:
        return tuple(d.component(self.system.assume) for d in self.drafts.values())

    def _draft(
        self, name: str, level: Level, kind: str, clock: Clock, serves: str | None = None
    ) -> _Draft:
        return self.drafts.setdefault(name, _Draft(name, level, kind, clock, serves=serves))

    def _level(self, level: Level) -> None:
        boxes = self.boxes[level.name]
        boxes = [box for box in boxes if box.states] or boxes
        names = [component_of(box) for box in boxes]
        if level.owner or level.name in names or not names:
            self._draft(level.name, level, "level", level.clock)
        for box, name in zip(boxes, names, strict=True):
            self._box(level, box, name)
        self.anchors[level.name] = level.name if level.name in self.drafts else names[0]
        self._weights(level)
        self._starts(level)

    def _box(self, level: Level, box: Box, name: str) -> None:
        """The states of one box, and the memories of the rules that change them."""
        draft = self._draft(name, level, "solved", Clock("always", 0))
        draft.boxes.append(box.path)
        draft.at_call |= writes_at_call(box)
        prefix = "" if box.kind == "level" else f"{box.name}."
        for state in box.states:
            heads = prod(box.mapped) * prod(state.per)
            key = (prefix + state.name, form_text(state.form), _numbers(state.form), heads)
            draft.parts[key] += prod(box.loops)
            self._learners(name, state, heads * prod(box.loops))

    def _learners(self, host: str, state: State, copies: int) -> None:
        for array in state.form.arrays:
            learn = state.rule.learn.get(array.name)
            if learn is not None and array.shape in learn.optimizers:
                box = learn.optimizers[array.shape]
                self._optimizer(host, learn.rule, box, array.shape, copies)

    def _weights(self, level: Level) -> None:
        """The unnamed weights, which are those of the level written without inputs."""
        if not level.owner or not self.system.weights:
            return
        serving: Serving = Counter()
        for weight in self.system.weights:
            serving[(weight.shape, weight.kind, _users(weight))] += prod(weight.loops)
        parts = self.drafts[level.name].parts
        for kind in sorted({kind for _, kind, _ in serving}):
            arrays = sum(n for (_, k, _), n in serving.items() if k == kind)
            total = sum(prod(shape) * n for (shape, k, _), n in serving.items() if k == kind)
            parts[(kind, f"{arrays} array{'s' * (arrays != 1)}", total, 1)] += 1
        self._serve(level, serving)

    def _starts(self, level: Level) -> None:
        """The starts that this level keeps for others (2.11.4)."""
        host = self.anchors[level.name]
        for transfer in self.system.transfers:
            if transfer.kind == "init" and transfer.source is level:
                serving = self._started(transfer)
                total = sum(prod(shape) * n for (shape, _, _), n in serving.items())
                named = transfer.target.name + (f".{transfer.state}" if transfer.state else "")
                self.drafts[host].parts[(f"start of {named}", "", total, 1)] += 1
                self._serve(level, serving)

    def _started(self, transfer: Transfer) -> Serving:
        """The arrays a level keeps for an init: those of the target's states, and what the target
        keeps so itself.
        """
        key = f"{transfer.target.name}.{transfer.state}"
        if key not in self.starting:
            serving: Serving = Counter()
            for box in self.boxes[transfer.target.name]:
                for state in box.states:
                    if not box.exact and transfer.state in (None, state.name):
                        names = (state.name, transfer.target.name)
                        for array in state.form.arrays:
                            copies = prod(box.loops) * prod(box.mapped) * prod(state.per)
                            serving[(array.shape, _kind(state.form), names)] += copies
            self.starting[key] = serving
            for further in self.system.transfers:
                if further.kind == "init" and further.source is transfer.target:
                    serving.update(self._started(further))
        return self.starting[key]

    def _serve(self, level: Level, serving: Serving) -> None:
        """The memories of the rules by which a level changes arrays that are not its boxes'
        states.
        """
        lines = level.learn or tuple(self._loss_rules(level))
        host = self.anchors[level.name]
        for (shape, kind, names), copies in serving.items():
            fits = (x for x in lines if not x.targets or {kind, *names} & set(x.targets))
            learn = next(fits, None)  # the first that fits an array serves it (2.9.4)
            if learn is not None and learn.optimizers:
                box = learn.optimizers.get(shape) or next(iter(learn.optimizers.values()))
                self._optimizer(host, learn.rule, box, shape, copies)

    def _loss_rules(self, level: Level) -> Iterator[Learn]:
        for box in self.boxes[level.name]:
            for state in box.states:
                if state.rule.uses_loss:
                    yield from state.rule.learn.values()

    def _optimizer(self, host: str, rule: str, box: Box, shape: Shape, copies: int) -> None:
        """The memories inside one optimizer, which serves `copies` arrays of one shape."""
        base, served = f"{host}.{rule}", self.drafts[host]
        pairs = _inside_optimizer(box)
        names = {"": host} | _state_names(base, _heights(box, pairs))
        for state in box.states:
            draft = self._draft(names[state.name], served.level, "optimizer", served.clock, host)
            self._memory(draft, state, box, shape, copies)
        for level in box.levels:
            names[level.name] = name = f"{base}.{level.name}"
            clock = _nested(served.clock, level.clock or Clock("step"))
            draft = self._draft(name, served.level, "optimizer", clock, host)
            for state in level.states:
                self._memory(draft, state, level, shape, copies)
        named = {(names[fast], names[slow]) for fast, slow in pairs}
        self.uses |= {(fast, slow) for fast, slow in named if fast != slow}
        rounds = _rounds(box)
        if rounds > 1:
            name = f"{base}.{rounds} rounds"
            self._draft(name, served.level, "iteration", served.clock, host).rounds = rounds

    def _memory(self, draft: _Draft, state: State, box: Box, shape: Shape, copies: int) -> None:
        """A state of an optimizer, and the memories of the rule that changes it in turn."""
        if box.path not in draft.boxes:
            draft.boxes.append(box.path)
        like = state.form.kind == "like"
        numbers = (prod(shape) if like else _numbers(state.form)) * prod(state.per) * copies
        shown = "like(weight)" if like else state.form.kind
        before = next((key for key in draft.parts if key[:2] == (state.name, shown)), None)
        if before is not None:
            numbers += before[2]
            del draft.parts[before]
        draft.parts[(state.name, shown, numbers, 1)] = 1
        self._learners(draft.name, state, copies * prod(state.per))


def _state_names(base: str, heights: Mapping[str, int]) -> dict[str, str]:
    """The component of each state of an optimizer: one for all that are equally far from the
    weight.
    """
    if len(set(heights.values())) == 1:
        return dict.fromkeys(heights, base)
    together: dict[int, list[str]] = defaultdict(list)
    for state, height in heights.items():
        together[height].append(state)
    return {state: f"{base}.{'+'.join(together[height])}" for state, height in heights.items()}


def _boxes_of_levels(system: System) -> dict[str, list[Box]]:
    """The boxes on each level's clock: those of its calls, and of the memories called in them."""
    boxes: dict[str, dict[int, Box]] = {level.name: {} for level in system.levels}
    for level in system.levels:
        boxes[level.name].update((id(box), box) for box in level.boxes)
    for box in system.boxes:
        boxes[_level(box).name][id(box)] = box
    return {name: list(found.values()) for name, found in boxes.items()}


def _users(weight: Weight) -> tuple[str, ...]:
    """The names of levels by which a learn line may mean this weight."""
    level = None if weight.box is None else weight.box.level
    return () if level is None else (level.name, level.family)


def _numbers(form: Form) -> int:
    return sum(prod(array.shape) for array in form.arrays)


def _kind(form: Form) -> str:
    """What a learn line calls the arrays of a form (2.9.4)."""
    return {"vector": "vectors", "table": "tables"}.get(form.core.kind, "matrices")


def _nested(outer: Clock, inner: Clock) -> Clock:
    """The clock of a level inside an optimizer, in units of the system: a step is one firing of
    what it serves.
    """
    if inner.unit != "step" or outer.unit in ("never", "always"):
        return outer if outer.unit == "never" else inner
    period = outer.period * inner.period
    if outer.phase is None and inner.phase is None:
        return Clock(outer.unit, period)
    first = outer.period if outer.phase is None else outer.phase
    nth = inner.period if inner.phase is None else inner.phase
    return Clock(outer.unit, period, first + (nth - 1) * outer.period)


# ---- inside an optimizer -------------------------------------------------------------------------


def _inside_optimizer(box: Box) -> set[Pair]:
    """Pairs (state, user): the user is a later state, a level, or "" for the weight.

    Lines and states go in text order; a state fires at its place and is new from there on (2.9.6).
    """
    states = {f"state:{state.name}": state for state in box.states}
    levels = {f"level:{level.name}": level for level in box.levels}
    lines = {f"line:{i}": line for i, line in enumerate(box.lines)}
    reading = _OptimizerLines(box)
    for name in box.order or (*states, *lines, *levels):
        if name in states:
            reading.fire(states[name])
        elif name in levels:
            inner = [t for state in levels[name].states for t in _rule_terms(state)]
            reading.use(inner, levels[name].name)
        else:
            reading.run(lines[name])
    reading.use([t for t in (box.write, box.retain) if t is not None], "")
    return reading.pairs


class _OptimizerLines:
    """Which states are new where a line of an optimizer stands, and who uses them."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.fired: set[str] = set()
        self.names: dict[str, set[str]] = {}
        self.pairs: set[Pair] = set()

    def new_in(self, roots: Iterable[Term]) -> set[str]:
        found: set[str] = set()
        for term in distinct(roots):
            if term.op == "local":
                found |= self.names.get(term.info, set())
            elif isinstance(term.info, Handle) and term.info.box is self.box:
                found |= {term.info.name} & self.fired
        return found

    def use(self, roots: Iterable[Term], user: str) -> None:
        self.pairs |= {(state, user) for state in self.new_in(roots)}

    def fire(self, state: State) -> None:
        self.use(_rule_terms(state), state.name)
        self.fired.add(state.name)

    def run(self, line: Line) -> None:
        if isinstance(line, Assign):
            self.names[line.name] = self.new_in([line.value])
            return
        before: dict[str, set[str]] | None = None
        while before != self.names:  # what a round leaves behind enters the next
            before = dict(self.names)
            for inner in line.lines:
                self.run(inner)
            for name, states in before.items():
                self.names[name] = self.names[name] | states


def _heights(box: Box, pairs: set[Pair]) -> dict[str, int]:
    """For each state, the longest chain of uses from it to the weight; 0 if the weight does not
    need it.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for state, user in pairs:
        users[state].append(user)
    names = [n[6:] for n in box.order if n.startswith("state:")] or [s.name for s in box.states]
    height: dict[str, int] = {"": 0}
    for name in reversed(names):  # a user stands later in the text
        height[name] = max((1 + height[user] for user in users[name] if user in height), default=0)
    return {name: height[name] for name in names}


def _gradient_terms(state: State) -> list[Term]:
    """What enters the optimizer of a state."""
    rule = state.rule
    found = [] if rule.objective is None else [rule.objective]
    for learn in rule.learn.values():
        found += [*learn.settings.values(), *learn.streams.values()]
    return found


def _amount_terms(state: State) -> list[Term]:
    rule = state.rule
    return [t for t in (rule.retain, rule.write, rule.set) if t is not None]


def _rule_terms(state: State) -> list[Term]:
    return _gradient_terms(state) + _amount_terms(state)


def _rounds(box: Box) -> int:
    """How often an optimizer goes on from its own result within one firing; 1 if it does not.

    Muon's steps of Newton-Schulz are the innermost level (arXiv:2512.24695, section 4.2). They are
    a `repeat` of the body, or one written out: then the same place in the text stands below itself.
    """
    ends = [t for t in (box.write, box.retain) if t is not None]
    return max([1, *(_looped(line) for line in box.lines), *_depths(ends).values()])


def _looped(line: Line) -> int:
    """The count of a loop that reads what its last round has left."""
    if isinstance(line, Assign):
        return 1
    rounds = max((_looped(inner) for inner in line.lines), default=1)
    assigns = [inner for inner in line.lines if isinstance(inner, Assign)]
    later = {inner.name for inner in assigns}
    for inner in assigns:
        if any(t.op == "local" and t.info in later for t in distinct([inner.value])):
            return max(rounds, line.count)
        later.discard(inner.name)
    return rounds


def _depths(roots: Iterable[Term]) -> dict[Span, int]:
    """For each place in the text, how often its products stand below one another."""
    terms = list(distinct(roots))
    products = [t for t in terms if t.op == "matmul" and t.span != NOWHERE]
    deepest: dict[Span, int] = {}
    for span in {t.span for t in products}:
        depth: dict[int, int] = {}
        for term in _arguments_first(roots):
            below = max((depth[id(arg)] for arg in term.args), default=0)
            depth[id(term)] = below + (term.op == "matmul" and term.span == span)
        deepest[span] = max(depth.values())
    return deepest


def _arguments_first(roots: Iterable[Term]) -> Iterator[Term]:
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


# ---- reading the flow ----------------------------------------------------------------------------


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
    """The flow, or a box at one of its calls. `after`: its own states are read as they stand after
    the write.
    """

    box: Box | None
    inputs: Mapping[str, _Value]
    names: dict[str, _Value] = field(default_factory=dict)
    after: bool = False


class _Reading:
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
        """Of a term; a term that stands in several places is one value, and a call in it one
        call.
        """
        done: dict[int, _Value] = {}
        for term in _arguments_first([root]):
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
        """A state by its name: its own body's is old until the read, another's new after its call
        (2.7.2).
        """
        made = self._made.get(id(handle.box), _NONE)
        if handle.box is body.box:
            return made if body.after else _NONE
        return made._replace(calls=self._last_call(handle.box).calls)

    def _last_call(self, box: Box) -> _Value:
        if id(box) not in self._called:
            self._called[id(box)] = self._new_call(box, _NONE)
        return self._called[id(box)]

    def _new_call(self, box: Box, given: _Value) -> _Value:
        return _Value(given.calls.then(self._event(_level(box).name)))

    def _call(self, box: Box, args: Sequence[_Value]) -> _Value:
        if box.kind == "level":
            given = _together(args)
            self._enter(_level(box).name, given.calls.last)
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
        gradient = _together(self._value(t, body) for s in changing for t in _gradient_terms(s))
        amounts = _together(self._value(t, body) for s in changing for t in _amount_terms(s))
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


# ---- ranks ---------------------------------------------------------------------------------------


def _same_tick(components: Sequence[Component], reading: _Reading) -> set[Pair]:
    """Pairs (faster, slower) between components of different levels and equal frequency."""
    by_name = {c.name: c for c in components}
    used_by: dict[str, list[str]] = defaultdict(list)
    learns: dict[str, list[str]] = defaultdict(list)
    for found, pairs in ((used_by, reading.fires), (learns, reading.learns)):
        for fast, name in pairs:
            found[name].append(fast)
    direct = [
        (fast, c.name)
        for c in components
        for fast in (used_by[c.name] if c.serves is None else learns[_served(c, by_name)])
        if c.kind != "iteration" and c.frequency.key == by_name[fast].frequency.key
    ]
    place = {c.name: (c.level, c.frequency.key) for c in components}
    circle = _circles((place[a], place[b]) for a, b in direct)
    return {(a, b) for a, b in direct if circle[place[a]] != circle[place[b]]}


def _served(c: Component, by_name: Mapping[str, Component]) -> str:
    """The component of a level whose gradients an optimizer is given, by way of others or not."""
    while c.serves is not None:
        c = by_name[c.serves]
    return c.name


def _inside(components: Sequence[Component], uses: Iterable[Pair]) -> set[Pair]:
    """Of the pairs inside optimizers, those of equal frequency; what never changes is not
    ordered.
    """
    often = {c.name: c.frequency for c in components}
    return {(a, b) for a, b in uses if often[a].key == often[b].key and often[a].unit != "never"}


def _ranks(components: Sequence[Component], uses: set[Pair]) -> tuple[Rank, ...]:
    """The longest-chain layers of each frequency, slowest first. Linear in components and pairs."""
    faster: dict[str, list[str]] = defaultdict(list)
    waits: Counter[str] = Counter()
    for fast, slow in uses:
        faster[slow].append(fast)
        waits[fast] += 1
    height = {c.name: 0 for c in components if not waits[c.name]}
    ready = list(height)
    while ready:
        slow = ready.pop()
        for fast in faster[slow]:
            waits[fast] -= 1
            height[fast] = max(height.get(fast, 0), height[slow] + 1)
            if not waits[fast]:
                ready.append(fast)
    if any(waits.values()):
        raise InternalError("the states of one tick need each other in a circle")
    layers: dict[tuple[Key, int], list[Component]] = defaultdict(list)
    for c in components:
        layers[c.frequency.key, height[c.name]].append(c)
    return tuple(Rank(i, tuple(layers[key])) for i, key in enumerate(sorted(layers), 1))


def _circles(pairs: Iterable[tuple[Place, Place]]) -> dict[Place, Place]:
    """For each place, one that stands for all it is in a circle with (Tarjan, without
    recursion).
    """
    graph: dict[Place, list[Place]] = defaultdict(list)
    for a, b in pairs:
        graph[a].append(b)
        graph.setdefault(b, [])
    number: dict[Place, int] = {}
    low: dict[Place, int] = {}
    root: dict[Place, Place] = {}
    trail: list[Place] = []
    for start in graph:
        todo = [] if start in number else [(start, iter(graph[start]))]
        while todo:
            place, rest = todo[-1]
            if place not in number:
                number[place] = low[place] = len(number)
                trail.append(place)
            for after in rest:
                if after not in number:
                    todo.append((after, iter(graph[after])))
                    break
                if after not in root:
                    low[place] = min(low[place], number[after])
            else:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[place])
                if low[place] == number[place]:
                    while place not in root:
                        root[trail.pop()] = place
    return root
