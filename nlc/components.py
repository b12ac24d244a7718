"""The components of a system: what is kept on which clock, inside optimizers too.

In: a `System`. Out: `Parts`: the components, and which of one optimizer's states is used by which
in the same tick.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from .levels import (
    Component,
    Pair,
    Part,
    arguments_first,
    component_of,
    distinct,
    form_text,
    frequency,
    level_of,
    rule_terms,
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
    Shape,
    State,
    System,
    Term,
    Transfer,
    Weight,
    line_terms,
)
from .text import NOWHERE, Span

# how many arrays a level changes: their shape, their kind, the names a learn line may use for them
Serving = Counter[tuple[Shape, str, tuple[str, ...]]]


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
    reads_new: bool = False
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
            self.reads_new,
            level.doc,
            level.span,
        )


class Parts:
    """Makes the components. `uses`: pairs (faster, slower) inside one level."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.drafts: dict[str, _Draft] = {}
        self.anchors: dict[str, str] = {}  # level -> the component its transfers end at
        self.uses: set[Pair] = set()
        self.boxes = _boxes_of_levels(system)
        self.starting: dict[str, Serving] = {}
        for level in system.levels:
            self._make(level)

    def components(self) -> tuple[Component, ...]:
        return tuple(d.component(self.system.assume) for d in self.drafts.values())

    def _draft(
        self, name: str, level: Level, kind: str, clock: Clock, serves: str | None = None
    ) -> _Draft:
        return self.drafts.setdefault(name, _Draft(name, level, kind, clock, serves=serves))

    def _make(self, level: Level) -> None:
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
        draft.reads_new |= writes_at_call(box) and not box.read_before
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
        """The arrays kept for an init: of the target's states, and of its own inits."""
        key = f"{transfer.target.name}.{transfer.state}"
        if key not in self.starting:
            serving: Serving = Counter()
            for box in self.boxes[transfer.target.name]:
                for state in box.states:
                    if not box.exact and transfer.speaks_of(state):
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
        """The memories of the rules that change a level's weights and starts."""
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
    """The component of each state: one for all that are equally far from the weight."""
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
        boxes[level_of(box).name][id(box)] = box
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
    """In units of the system: inside an optimizer a step is one firing of what it serves."""
    if inner.unit != "step" or outer.unit in ("never", "always"):
        return outer if outer.unit == "never" else inner
    period = outer.period * inner.period
    if outer.phase is None and inner.phase is None:
        return Clock(outer.unit, period)
    return Clock(outer.unit, period, outer.first + (inner.first - 1) * outer.period)


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
            inner = [t for state in levels[name].states for t in rule_terms(state)]
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
        self.use(rule_terms(state), state.name)
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
    """For each state, the longest chain of uses to the weight; 0 without one."""
    users: dict[str, list[str]] = defaultdict(list)
    for state, user in pairs:
        users[state].append(user)
    names = [n[6:] for n in box.order if n.startswith("state:")] or [s.name for s in box.states]
    height: dict[str, int] = {"": 0}
    for name in reversed(names):  # a user stands later in the text
        height[name] = max((1 + height[user] for user in users[name] if user in height), default=0)
    return {name: height[name] for name in names}


def nesting(box: Box) -> tuple[tuple[str, ...], ...]:
    """What an optimizer keeps, and the weight as "", by frequency: the slowest first, what shares a
    level together; last the rounds within one firing, if there are any.
    """
    heights = _heights(box, _inside_optimizer(box))
    slow: dict[int, list[str]] = defaultdict(list)
    same: dict[int, list[str]] = defaultdict(list, {0: [""]})
    for name, height in heights.items():
        if name:
            same[height].append(name)
    for level in box.levels:
        period = 1 if level.clock is None else level.clock.period
        names = [f"{level.name}.{state.name}" for state in level.states]
        (same[0] if period == 1 else slow[-period]).extend(names)
    rounds = _rounds(box)
    inside = [(f"{rounds} rounds",)] if rounds > 1 else []
    return (*(tuple(group[k]) for group in (slow, same) for k in sorted(group)), *inside)


def _rounds(box: Box) -> int:
    """How often an optimizer goes on from its own result within one firing; 1 if it does not.

    Muon's steps of Newton-Schulz are the innermost level (arXiv:2512.24695, section 4.2). They are
    a `repeat` of the body, or one written out: then the same place in the text stands below itself.
    """
    ends = [*(t for t in (box.write, box.retain) if t is not None), *line_terms(box.lines)]
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
        for term in arguments_first(roots):
            below = max((depth[id(arg)] for arg in term.args), default=0)
            depth[id(term)] = below + (term.op == "matmul" and term.span == span)
        deepest[span] = max(depth.values())
    return deepest
