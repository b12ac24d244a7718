"""Calls of boxes (2.7.1, 2.8): lines in two roles, starts, the reads before and after a write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nlc.diagnostics import InternalError
from nlc.system import (
    ALL,
    Box,
    Clock,
    Handle,
    Level,
    Line,
    Loop,
    Shape,
    Slot,
    State,
    System,
    Term,
    Weight,
)

from ..parameters import lives_on, start_name
from . import arrays as A
from . import firing, solve
from .evaluate import Sayings, Scope, evaluate, over
from .frames import (
    Arrays,
    Call,
    Cell,
    Frame,
    Instance,
    Key,
    Later,
    Missing,
    Record,
    Value,
    fork_cells,
)
from .gates import Learner, Transfers, alias, gate


@dataclass(eq=False)
class Sample:
    """All that one sequence of a batch remembers (2.13)."""

    instances: dict[Key, Instance] = field(default_factory=dict)
    starts: dict[Any, Cell] = field(default_factory=dict)  # M@A of levels on tokens (2.11.4)
    weights: dict[str, Cell] = field(default_factory=dict)  # of an owner on tokens
    slots: dict[Key, tuple[Tensor, ...]] = field(default_factory=dict)
    slot_level: dict[Key, Level | None] = field(default_factory=dict)
    slot_keep: dict[Key, int] = field(default_factory=dict)
    products: dict[Any, list[Any]] = field(default_factory=dict)
    inputs: dict[int, dict[str, Tensor | None]] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    snapshots: dict[int, Sample] = field(default_factory=dict)  # before a tick, to be replayed
    written: dict[tuple[int, Key], dict[str, Arrays]] = field(default_factory=dict)  # at its calls
    spans: dict[str, list[int]] = field(default_factory=dict)  # a level's ticks since it fired
    ticks: dict[str, int] = field(default_factory=dict)  # of a level, since its reset
    sequences: dict[str, int] = field(default_factory=dict)  # since its reset
    tasks: dict[str, int] = field(default_factory=dict)
    leaves: Mapping[str, Tensor] = field(default_factory=dict)  # at its last tick
    pending: Frame | None = None
    tick: int = 0
    position: int = 0
    ended: int = 0  # sequences of the stream

    def fork(self) -> Sample:
        """A copy that continues by itself."""
        made = replace(
            self, instances={k: i.fork() for k, i in self.instances.items()},
            starts=fork_cells(self.starts), weights=fork_cells(self.weights),
            products={k: list(v) for k, v in self.products.items()},
            spans={k: list(v) for k, v in self.spans.items()},
        )  # fmt: skip
        for name in (
            "slots",
            "slot_level",
            "slot_keep",
            "inputs",
            "losses",
            "snapshots",
            "written",
            "ticks",
            "sequences",
            "tasks",
        ):
            setattr(made, name, dict(getattr(self, name)))
        return made


@dataclass(eq=False)
class Pass:
    """One call of the interpreter: what all its samples share.

    `leaves`: the parameters. `shared`: boxes on steps, which have one state for all (2.4.3).
    `recording`: some level differentiates what runs. `online`: the levels that learn as it runs.
    """

    system: System
    transfers: Transfers
    leaves: dict[str, Tensor]
    kept: dict[Any, dict[str, Tensor]]  # states on steps that are no parameters
    seed: int
    step: int
    recording: bool
    training: bool
    drops: bool  # `dropout` does (2.12)
    examples: bool
    trace: list[Record]
    traced: frozenset[str]  # the events that it holds
    online: tuple[Level, ...]
    replayed: tuple[Level, ...]  # of these, the ones whose gradients are frozen (2.9.7)
    rules: dict[Any, dict[Any, Instance]]  # optimizer states of what lives on steps
    firings: dict[Key, int]
    sayings: Sayings
    shared: dict[Key, Instance] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    _entered: dict[Level | None, bool] = field(default_factory=dict)

    def entered(self, level: Level | None) -> bool:
        """Whether some gradient may yet enter what this level keeps; else its graph is let go."""
        if level not in self._entered:
            learners = [Learner(x, kind) for x in self.online for kind in ("weights", "starts")]
            self._entered[level] = (
                self.training
                or any(map(self.transfers.enters(level), learners))
                or any(
                    t.kind == "init" and t.target is level and t.source in self.online
                    for t in self.system.transfers
                )
            )
        return self._entered[level]


@dataclass(eq=False)
class Run:
    """One sample on its way through the ticks."""

    passing: Pass
    sample: Sample
    index: int
    since: int = 0  # the tick before this call's first
    was: dict[tuple[int, Key], dict[str, Arrays]] = field(default_factory=dict)  # in a replay

    def __post_init__(self) -> None:
        p = self.passing
        p.runs[self.index] = self
        self.since = self.sample.tick
        self.system, self.transfers = p.system, p.transfers
        self.seed, self.step = p.seed, p.step
        self.recording, self.training, self.drops = p.recording, p.training, p.drops
        self.reads = "read" in p.traced

    # ---- what terms ask for --------------------------------------------------------------------

    def weight(self, weight: Weight, frame: Frame) -> Tensor:
        """An unnamed weight, as it was in the call of the frame: what a call has made is made. A
        leaf, or a state of each sequence if its owner lives on tokens.
        """
        name = weight.path.format(*frame.rounds)
        owner = self.system.owner
        if owner is None or owner.clock.unit not in ("token", "sequence"):
            return (frame.leaves or self.passing.leaves)[name]
        if name not in self.sample.weights:
            leaf = {"": self.passing.leaves[name]}
            self.sample.weights[name] = self.cell(owner, leaf, leaf, leaf)
        return self.sample.weights[name].value[""]

    def foreign(self, handle: Handle, frame: Frame) -> Arrays:
        """Another box's state as it stands at this place in the text (2.7.2)."""
        path = handle.box.path.format(*frame.rounds)
        key = (id(handle.box), path, handle.name)
        if frame.box is not None and key in frame.foreign:
            return frame.foreign[key]
        inst = self.instance(handle.box, (path, ()))
        if handle.name not in inst.cells:
            bare = Frame(handle.box, handle.box.level, inst.key, frame.rounds, self.index)
            bare.tick, bare.position = frame.tick, frame.position
            bare.inputs = bare.names = {"read": {}, "write": {}}
            self.start_state(inst, handle.state, bare)
        frame.foreign[key] = inst.cells[handle.name].value
        return frame.foreign[key]

    def solved(self, frame: Frame, name: str, role: str) -> Arrays:
        if (role, name) not in frame.solved:
            frame.solved[role, name] = solve.exact(self, frame, name, role)
        return frame.solved[role, name]

    def state_key(self, handle: Handle, frame: Frame) -> Key:
        if handle.box is frame.box:
            return frame.key
        return handle.box.path.format(*frame.rounds), ()

    def note(self, key: Any, place: Any, x: Tensor, out: Tensor) -> None:
        """A product `W @ x` that a gradient may pass through (2.9.6).

        The place holds its frame itself: the address of one that is gone may be another's.
        """
        if self.passing.examples and out.requires_grad:
            self.sample.products.setdefault(key, []).append((place, x, out))

    def slot_kept(self, key: Key, slot: Slot, frame: Frame) -> None:
        self.sample.slot_level[key] = None if slot.box is None else frame.level
        older = {"past": slot.window - 1, "conv": slot.window}.get(slot.kind, ALL)
        self.sample.slot_keep[key] = ALL if slot.window == ALL else older

    # ---- the trace -----------------------------------------------------------------------------

    def tell(
        self, event: str, path: str, level: Level | None, tick: int, before: Arrays, after: Arrays,
        clock: Clock | None = None, serves: str = "",
    ) -> None:  # fmt: skip
        """An update, if the trace is to hold it."""
        p = self.passing
        if event not in p.traced:
            return
        every = str(clock or (level.clock if level else ""))
        place = (0, -1) if lives_on(level) else (tick, self.index)
        lengths = firing.size(before), firing.size(after)
        p.trace.append(Record(*place, path, event, *lengths, p.step + 1, every, serves))

    def tell_update(
        self, inst: Instance, name: str, tick: int, before: Arrays, after: Arrays, event: str = ""
    ) -> None:
        """A state of a box, or of an optimizer."""
        box = inst.box
        if inst.serves and box is not None:
            inner = [box.name] if box.clock is not None else []
            path = ".".join([inst.serves, *inner, name])
            what = event or "remember"
            self.tell(what, path, inst.level, tick, before, after, box.clock, inst.serves)
        else:
            path = f"{inst.where}.{name}"
            self.tell(event or "fire", path, inst.level, tick, before, after)

    def tell_read(self, handle: Handle, frame: Frame, own: Mapping[str, Arrays]) -> None:
        """A body, or the flow, looks at a state: told once a tick, for each that it sees."""
        inst = self.instance(handle.box, self.state_key(handle, frame))
        last = inst.last
        mine, sees = handle.box is frame.box, "old"
        if mine and handle.name not in own:
            sees = "solved"
        elif last is not None and last.tick == frame.tick:
            wrote = bool(last.after) and last.after is not last.values
            if wrote and (not mine or own is last.after):
                sees = "new"
            elif mine and own is last.frozen and self.moved(inst, handle.name):
                sees = "frozen"
        path = f"{inst.where}.{handle.name}"
        if (path, sees) not in frame.reads:
            frame.reads.add((path, sees))
            reader = frame.where or "flow"
            self.passing.trace.append(
                Record(
                    frame.tick, self.index, path, "read", step=self.step + 1, reader=reader,
                    sees=sees,
                )
            )  # fmt: skip

    def moved(self, inst: Instance, name: str) -> bool:
        return inst.frozen[name] is not inst.cells[name]

    # ---- instances and their starts ------------------------------------------------------------

    def instance(self, box: Box, key: Key) -> Instance:
        """On steps, and on `never`, one for all samples (2.4.3)."""
        shared = lives_on(box.level) or box.level is not None and box.level.clock.unit == "never"
        store = self.passing.shared if shared else self.sample.instances
        if key not in store:
            store[key] = Instance(box, box.level, key)
        return store[key]

    def cell(
        self,
        level: Level | None,
        kept: Arrays,
        value: Arrays,
        start: Arrays,
        old: Cell | None = None,
    ) -> Cell:
        """A state, its value a node of its own so that gradients of the loss can be taken at it."""
        if not self.passing.entered(level):
            kept, value, start = (
                {n: a.detach() for n, a in arrays.items()} for arrays in (kept, value, start)
            )
        if self.recording:
            value = {n: alias(a) for n, a in value.items()}
        return Cell(kept, value, value, start, {} if old is None else old.rules)

    def start_state(self, inst: Instance, state: State, frame: Frame) -> None:
        """The start of a state, at the first tick after a reset (2.3.4)."""
        with torch.set_grad_enabled(self.recording):
            kept = self.first(inst, state, frame)
            kept = {a.name: kept[a.name].expand(state.shape(a)) for a in state.form.arrays}
            value = firing.read_as(self, state, kept, kept, frame)
            inst.cells[state.name] = self.cell(inst.level, kept, value, kept)
            if lives_on(inst.level):
                rules = self.passing.rules.setdefault((inst.key, state.name), {})
                inst.cells[state.name].rules = rules
                inst.firings = self.passing.firings.get(inst.key, 0)

    def first(self, inst: Instance, state: State, frame: Frame) -> Arrays:
        if inst.box is None:
            raise InternalError("a state without a box")
        if lives_on(inst.level) and (inst.key, state.name) in self.passing.kept:
            return self.passing.kept[inst.key, state.name]
        chain = self.transfers.chain(inst.level, state)
        if chain:
            allowed = self.transfers.starts(inst.level, chain)
            source = self.start_cell(inst, state, frame, chain, 0)
            return {n: gate(a, allowed) for n, a in source.items()}
        made = self.drawn(inst, state, frame)
        if lives_on(inst.level) and not self.named(inst, state):
            self.passing.kept[inst.key, state.name] = {n: a.detach() for n, a in made.items()}
        return made

    def named(self, inst: Instance, state: State) -> bool:
        """Whether its start is a parameter."""
        names = (start_name(inst.key[0], state.name, a.name) for a in state.form.arrays)
        return any(n in self.passing.leaves for n in names)

    def start_cell(
        self, inst: Instance, state: State, frame: Frame, chain: tuple[Level, ...], depth: int
    ) -> Arrays:
        """M@A, which itself starts from M@A@Z (2.11.4)."""
        if chain[depth].clock.unit not in ("token", "sequence"):
            return self.drawn(inst, state, frame)
        key = (inst.key, state.name, depth, chain[depth].name)
        if key not in self.sample.starts:
            if depth + 1 < len(chain):
                allowed = self.transfers.starts(chain[depth], chain[depth + 1 :])
                source = self.start_cell(inst, state, frame, chain, depth + 1)
                kept: Arrays = {n: gate(a, allowed) for n, a in source.items()}
            else:
                kept = self.drawn(inst, state, frame)
            self.sample.starts[key] = self.cell(chain[depth], kept, kept, kept)
        return self.sample.starts[key].value

    def drawn(self, inst: Instance, state: State, frame: Frame) -> Arrays:
        """Made once with the model, or computed from the term of the start."""
        made: dict[str, Tensor] = {}
        for array in state.form.arrays:
            name = start_name(inst.key[0], state.name, array.name)
            if name in self.passing.leaves:
                made[array.name] = self.passing.leaves[name][inst.key[1]]
        if made:
            return made
        return self.computed(inst, state, state.start, frame)

    def computed(self, inst: Instance, state: State, term: Term | None, frame: Frame) -> Arrays:
        if term is None or term.op == "zeros":
            return {
                a.name: torch.zeros(state.shape(a), dtype=torch.float64) for a in state.form.arrays
            }
        if term.op == "fresh":
            return self.fresh(inst, state, term, frame)
        if term.op == "copy":
            handle: Handle = term.info
            if handle.box is inst.box:
                if handle.name not in inst.cells:
                    self.start_state(inst, handle.state, frame)
                return inst.cells[handle.name].value
            allowed = self.transfers.enters(inst.level)
            return {n: gate(a, allowed) for n, a in self.foreign(handle, frame).items()}
        self.prepare(frame, term)
        value = evaluate(term, Scope(self, frame, "write"))
        return value if isinstance(value, dict) else {"": value}

    def fresh(self, inst: Instance, state: State, term: Term, frame: Frame) -> Arrays:
        """Drawn anew at each reset."""
        inner = term.args[0]
        if inner.op != "normal":
            return self.computed(inst, state, inner, frame)
        drawn = {}
        for array in state.form.arrays:
            name = f"{self.seed}:{start_name(inst.key[0], state.name, array.name)}"
            made = A.normal(name, self.place(frame), state.shape(array))
            drawn[array.name] = made * float(inner.info)
        return drawn

    def place(self, frame: Frame) -> tuple[int, ...]:
        """Where a draw is made, beside its name and its entry (2.12)."""
        return (self.step, self.sample.ended, self.index, *frame.heads, frame.position)

    def prepare(self, frame: Frame, term: Term) -> None:
        """The plain lines that a start needs."""
        if frame.box is None:
            return
        lines = {line.name: line.value for line in frame.box.lines if not isinstance(line, Loop)}
        names = frame.names["write"]
        for t in term.walk():
            if t.op == "local" and t.info not in names:
                self.prepare(frame, lines[t.info])
                names[t.info] = evaluate(lines[t.info], Scope(self, frame, "write"))

    # ---- calls ---------------------------------------------------------------------------------

    def call(self, term: Term, scope: Scope) -> Value:
        """A box at its call: once a tick, whichever role asks first (2.4.1)."""
        frame, box = scope.frame, term.info
        path = box.path.format(*frame.rounds)
        if path not in frame.calls:
            frame.calls[path] = self.make_call(term, path, scope)
        made = frame.calls[path]
        role = scope.role if frame.box is not None else "read"
        if role not in made.results:
            made.results[role] = self.result(made, role)
        return made.results[role]

    def result(self, made: Call, role: str) -> Value:
        values = [self.read(f, role) for f in made.frames]
        if not made.box.mapped:
            return values[0]
        if any(isinstance(v, dict) for v in values):
            raise InternalError("a mapped memory gives arrays")
        stacked = torch.stack([v for v in values if isinstance(v, Tensor)])
        return stacked.reshape(*made.box.mapped, *stacked.shape[1:])

    def make_call(self, term: Term, path: str, scope: Scope) -> Call:
        frame, box = scope.frame, term.info
        args: dict[str, Any] = {}
        streams: dict[str, str] = {}
        for (name, _), arg in zip(box.inputs, term.args, strict=True):
            args[name] = self.value_or_later(arg, scope)
            if arg.op == "input" and (frame.box is None or arg.info in frame.streams):
                streams[name] = arg.info if frame.box is None else frame.streams[arg.info]
        made = Call(box, [])
        for head in indices(box.mapped):
            key = (path, (*frame.heads, *head))
            inner = Frame(
                box, box.level, key, frame.rounds, self.index, frame.tick, frame.position,
                both=frame.box is not None, streams=streams, leaves=frame.leaves,
            )  # fmt: skip
            leads = zip(args.items(), box.input_mapped or ((),) * len(args), strict=True)
            self.run_box(inner, {n: part(v, lead, head) for (n, v), lead in leads})
            made.frames.append(inner)
        return made

    def value_or_later(self, term: Term, scope: Scope) -> Any:
        frame = scope.frame
        try:
            return evaluate(term, scope)
        except Missing:
            return Later(term, frame, scope.role, dict(frame.names[scope.role]), frame.rounds)

    def run_box(self, frame: Frame, inputs: dict[str, Any]) -> None:
        """One tick of one box, in the order of 2.8."""
        box = frame.box
        if box is None:
            raise InternalError("a call of no box")
        inst = self.instance(box, frame.key)
        inst.last = frame
        self.roles(frame, inputs)
        self.states(inst, frame)
        self.lines(frame)
        self.capture(frame)
        frame.after = frame.values
        if self.fires_now(box, inputs):
            if box.read_before and box.read is not None:
                self.read(frame, "read")
            firing.fire(self, inst, [*inst.period, frame])
            frame.after = self.written(inst, frame)
        elif not box.exact and any(s.rule.changes for s in box.states):
            inst.period.append(frame)
        if box.read is not None:
            self.read(frame, "read")
        self.commit(frame)

    def fires_now(self, box: Box, inputs: dict[str, Any]) -> bool:
        """At its call; before its clock's first tick (`from`) what it is given is summed (2.8)."""
        return (
            box.level is not None
            and writes_at_call(box)
            and not any(isinstance(v, Later) for v in inputs.values())
            and box.level.clock.fires(self.level_tick(box.level) + 1)
        )

    def written(self, inst: Instance, frame: Frame) -> dict[str, Arrays]:
        """The states that a read sees after the write; in a replay, what is closed is as it was."""
        made = {n: c.value for n, c in inst.cells.items()}
        if self.passing.replayed:
            self.sample.written[frame.tick, inst.key] = made
        return self.was.get((frame.tick, inst.key), made)

    def level_tick(self, level: Level) -> int:
        return self.sample.ticks.get(level.name, 0)

    def roles(self, frame: Frame, inputs: dict[str, Any]) -> None:
        """What comes in from outside stands behind a gate where it is written (2.11.1)."""
        read: dict[str, Any] = {}
        frame.inputs = {"read": inputs, "write": inputs}
        frame.names = {"read": read, "write": read}
        if self.recording:
            allowed = self.transfers.enters(frame.level)
            frame.inputs["write"] = {n: behind(v, allowed) for n, v in inputs.items()}
            frame.names["write"] = {}

    def states(self, inst: Instance, frame: Frame) -> None:
        """The states that this tick sees: as they are, and as they were at the chunk's start."""
        box = frame.box
        if box is None or box.exact:
            return
        for state in box.states:
            if state.name not in inst.cells:
                self.start_state(inst, state, frame)
        ticks = self.level_tick(box.level) if box.level else 0
        if box.linearise is None or ticks % box.linearise == 0 or not inst.frozen:
            inst.frozen = dict(inst.cells)
        frame.count = inst.firings + 1
        frame.values = {n: c.value for n, c in inst.cells.items()}
        frame.frozen = {n: c.value for n, c in inst.frozen.items()}
        frame.frozen_kept = {n: c.kept for n, c in inst.frozen.items()}

    # ---- lines ---------------------------------------------------------------------------------

    def lines(self, frame: Frame) -> None:
        """Plain lines in text order, each once in each role that is asked for (2.8, 2.9.7)."""
        box = frame.box
        if box is None:
            raise InternalError("the lines of no box")
        used = write_used(box)
        for line in box.lines:
            if isinstance(line, Loop):
                raise InternalError("rounds in a box are written out")
            frozen = box.linearise is not None and line.name in used
            own = frame.frozen if frozen else frame.values
            self.assign(frame, line.name, line.value, "read", own)
            if self.recording and (frame.both or line.name in used):
                self.assign(frame, line.name, line.value, "write", own)

    def assign(
        self, frame: Frame, name: str, term: Term, role: str, own: Mapping[str, Arrays]
    ) -> None:
        frame.names[role][name] = self.value_or_later(term, Scope(self, frame, role, own))

    def flow_lines(self, frame: Frame, lines: tuple[Line, ...]) -> None:
        """The flow in text order (2.7.1)."""
        for line in lines:
            if isinstance(line, Loop):
                outer = frame.rounds
                for i in range(line.count):
                    frame.rounds = (*outer, i)
                    self.flow_lines(frame, line.lines)
                frame.rounds = outer
            else:
                self.assign(frame, line.name, line.value, "read", {})

    def capture(self, frame: Frame) -> None:
        """What the rules see of this tick alone: pasts, calls, and the states of other boxes."""
        box = frame.box
        if box is None:
            raise InternalError("the rules of no box")
        scope = Scope(self, frame, "write", frame.frozen)
        for root in rule_terms(box):
            for term in root.walk():
                try:
                    if term.op in ("past", "conv", "fade"):
                        quiet = replace(scope, objective=True, memo={})
                        evaluate(term.args[0], quiet)
                        slot_now(term, quiet)
                    elif term.op == "call":
                        evaluate(term, scope)
                    elif term.op in ("state", "apply") and term.info.box is not box:
                        if id(term.info.box) not in frame.family:
                            self.foreign(term.info, frame)
                except Missing:
                    continue

    def read(self, frame: Frame, role: str) -> Value:
        """Only a read sees the new state, and only if the box wrote at its call (2.8)."""
        box = frame.box
        if box is None or box.read is None:
            raise InternalError(f"`{frame.where}` has no read")
        if role not in frame.results:
            own = frame.values if box.read_before else frame.after
            frame.results[role] = evaluate(box.read, Scope(self, frame, role, own))
        return frame.results[role]

    def commit(self, frame: Frame) -> None:
        """This tick's entries join the pasts."""
        for key, now in frame.entries.items():
            keep = self.sample.slot_keep[key]
            entered = self.passing.entered(self.sample.slot_level[key])
            entries = (*frame.older[key], now if entered else now.detach())
            self.sample.slots[key] = (
                entries if keep == ALL else entries[max(0, len(entries) - keep) :]
            )


# ---- what is known of a box --------------------------------------------------------------------


def indices(shape: Shape) -> Iterator[tuple[int, ...]]:
    return product(*(range(n) for n in shape))


def part(value: Any, lead: Shape, head: tuple[int, ...]) -> Any:
    """The part of an input that one head of a mapped memory is given (2.4.2)."""
    if not lead:
        return value
    at = tuple(0 if n == 1 else i for n, i in zip(lead, head[len(head) - len(lead) :], strict=True))
    return replace(value, head=at) if isinstance(value, Later) else value[at]


def behind(value: Any, allowed: Any) -> Any:
    if isinstance(value, Later):
        return replace(value, allowed=allowed)
    return None if value is None else over(lambda x: gate(x, allowed), value)


def slot_now(term: Term, scope: Scope) -> None:
    evaluate(term, scope)


def rule_terms(box: Box) -> list[Term]:
    """The terms of writes, retentions, objectives and settings."""
    found: list[Term | None] = []
    for state in box.states:
        rule = state.rule
        found += [rule.objective, rule.retain, rule.write, rule.set]
        for functions in (rule.through, rule.onto):
            found += [f.body for f in (functions or {}).values()]
        for learn in rule.learn.values():
            found += [*learn.settings.values(), *learn.streams.values()]
    return [t for t in found if t is not None]


def write_used(box: Box) -> set[str]:
    """The plain lines that a write, a retention, an objective or a setting uses (2.9.7)."""
    lines = {line.name: line.value for line in box.lines if not isinstance(line, Loop)}
    used: set[str] = set()
    todo = rule_terms(box)
    while todo:
        for term in todo.pop().walk():
            if term.op == "local" and term.info in lines and term.info not in used:
                used.add(term.info)
                todo.append(lines[term.info])
    return used


def writes_at_call(box: Box) -> bool:
    """`every token`, needing only its own inputs: no loss, label or other state (2.7.1)."""
    level = box.level
    if level is None or level.clock.unit != "token" or level.clock.period != 1 or box.exact:
        return False
    lines = {line.name: line.value for line in box.lines if not isinstance(line, Loop)}
    roots = [*rule_terms(box), *(lines[n] for n in write_used(box))]
    for term in (t for r in roots for t in r.walk()):
        if term.op in ("loss", "next"):
            return False
        if term.op in ("state", "apply") and term.info.box is not box:
            return False
    return True
