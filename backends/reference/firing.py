"""One firing of a box (2.8): gradient, optimizer, write; how retention shapes a state (2.9.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import hypot
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.diagnostics import InternalError
from nlc.system import Lambda, Learn, Shape, State, Term

from . import optimizers, solve
from .arrays import joint
from .evaluate import Scope, evaluate
from .frames import Arrays, Cell, Frame, Instance, Missing
from .gates import OWN, Learner, alias, gate, learning, sealed

if TYPE_CHECKING:
    from .boxes import Run


@dataclass(eq=False)
class Gradient:
    """The gradient of a firing's summed objective, and the examples of each array (2.9.6)."""

    grads: dict[str, Tensor]
    examples: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


@dataclass(eq=False)
class Replay:
    """The period as it would have been with the states of the chunk's start (2.9.7): these, a node
    for each tick, by instance and state.
    """

    run: Run
    leaves: Mapping[Any, list[Arrays]]


Weights = Mapping[int, float]  # of a frame in a mean; 1 where it is a sum


# ---- retention, through and onto ---------------------------------------------------------------


def retained(state: State, arrays: Arrays, a: Tensor | None) -> Arrays:
    """The fraction kept: one a memory or head, an input channel, or an output channel (2.5.4)."""
    if a is None:
        return arrays
    return {n: x if f is None else x * f for n, x, f in factors(state, arrays, a)}


def factors(state: State, arrays: Arrays, a: Tensor) -> list[tuple[str, Tensor, Tensor | None]]:
    heads = len(state.per)
    per_head = heads > 0 and a.ndim >= heads and tuple(a.shape[:heads]) == state.per
    rest = a.shape[heads:] if per_head else a.shape
    first, last = state.form.ends
    made: list[tuple[str, Tensor, Tensor | None]] = []
    for name, x in arrays.items():
        wanted = True
        if not state.form.single and any(n != 1 for n in rest):
            wanted = name in (first if len(rest) == 1 else last)
        own = x.ndim - heads
        lead = a.shape[:heads] if per_head else (1,) * heads
        shaped = a.reshape(*lead, *(1,) * (own - len(rest)), *rest) if len(rest) <= own else a
        made.append((name, x, shaped if wanted else None))
    return made


def by_head(
    run: Run,
    state: State,
    functions: Mapping[str, Lambda],
    arrays: Arrays,
    start: Arrays,
    frame: Frame,
) -> Arrays:
    """`f` of each array of the form, of each head, as it is stored (2.9.3)."""
    made: dict[str, Tensor] = {}
    for name, x in arrays.items():
        function = functions[name]
        parts = []
        for head in heads_of(state.per):
            given = {"A": x[head], "start": start[name][head]}
            given |= dict(zip(function.params, given.values(), strict=False))
            scope = Scope(run, frame, "write", frame.frozen, given=given)
            parts.append(scope.array(function.body))
        made[name] = torch.stack(parts).reshape(x.shape)
    return made


def read_as(run: Run, state: State, kept: Arrays, start: Arrays, frame: Frame) -> Arrays:
    """The state as it is read: `through f`, f of what is kept."""
    if state.rule.through is None:
        return kept
    return by_head(run, state, state.rule.through, kept, start, frame)


def heads_of(per: Shape) -> list[tuple[int, ...]]:
    return list(product(*(range(n) for n in per)))


# ---- a firing ----------------------------------------------------------------------------------


def fire(
    run: Run,
    inst: Instance,
    frames: Sequence[Frame],
    only: str | None = None,
    means: Weights | None = None,
    replayed: Replay | None = None,
) -> None:
    """The states of a box change together, each from what all were before."""
    box = inst.box
    if box is None or not frames:
        return
    with torch.set_grad_enabled(run.recording and run.passing.entered(inst.level)):
        states = [s for s in box.states if s.rule.changes and (only is None or s.name == only)]
        changed = Firing(run, inst, frames, states, means, replayed=replayed).new_states()
        for state in states:
            put(run, inst, state, changed[state.name], frames[-1])
        if only is None:
            inst.firings += 1
        inst.period = []


def put(run: Run, inst: Instance, state: State, kept: Arrays, frame: Frame) -> None:
    old = inst.cells[state.name]
    value = read_as(run, state, kept, old.start, frame)
    inst.cells[state.name] = run.cell(inst.level, kept, value, old.start, old)
    for array in state.form.arrays:
        run.sample.products.pop((inst.key, state.name, array.name), None)
    run.tell_update(inst, state.name, frame.tick, old.kept, kept)


def size(arrays: Arrays) -> float:
    return hypot(*(float(torch.linalg.vector_norm(a.detach())) for a in arrays.values()))


@dataclass(eq=False)
class Firing:
    """What one firing of one instance needs: the ticks since the last (2.8)."""

    run: Run
    inst: Instance
    frames: Sequence[Frame]
    states: list[State]
    means: Weights | None = None
    kept: dict[str, Arrays] = field(default_factory=dict)
    offsets: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    given: Mapping[str, Gradient] = field(default_factory=dict)  # summed over the steps of a period
    runs: Mapping[int, Run] = field(default_factory=dict)  # of each frame, where they are several
    replayed: Replay | None = None
    beside: Callable[[Learn], list[optimizers.Job] | None] | None = None  # on steps: all of a line

    def new_states(self) -> dict[str, Arrays]:
        last = self.frames[-1]
        made: dict[str, Arrays] = {}
        self.retain()
        changes = self.learned()
        for state in self.states:
            kept = self.new_state(state, changes)
            if state.rule.onto is not None:
                start = self.cell(state).start
                kept = by_head(self.run, state, state.rule.onto, kept, start, last)
            made[state.name] = kept
        return made

    def retain(self) -> None:
        for state in self.states:
            if state.rule.set is None:
                keep = self.retention(state, self.frames[-1])
                self.kept[state.name] = retained(state, self.cell(state).kept, keep)

    @property
    def recorded(self) -> bool:
        return self.run.recording and self.run.passing.entered(self.inst.level)

    def cell(self, state: State) -> Cell:
        return self.inst.cells[state.name]

    def shapes(self, state: State) -> dict[str, Shape]:
        return {n: tuple(a.shape) for n, a in self.cell(state).kept.items()}

    def scope(self, frame: Frame) -> Scope:
        return Scope(self.run_of(frame), frame, "write", frame.frozen)

    def run_of(self, frame: Frame) -> Run:
        return self.runs.get(id(frame)) or self.run.passing.runs.get(frame.sample, self.run)

    def share(self, frame: Frame) -> float:
        """Of a tick in the mean of its step; 1 where ticks add up (2.8)."""
        return 1.0 if self.means is None else self.means.get(id(frame), 0.0)

    def learned_from(self, state: State) -> Sequence[Frame]:
        """`once`: the last tick alone, which on steps is the last step."""
        if not state.rule.once:
            return self.frames
        if self.means is None:
            return self.frames[-1:]
        last = self.run_of(self.frames[-1]).passing
        return [f for f in self.frames if self.run_of(f).passing is last]

    def retention(self, state: State, frame: Frame) -> Tensor | None:
        term = state.rule.retain
        return None if term is None else self.scope(frame).array(term)

    def new_state(self, state: State, changes: Mapping[str, Mapping[str, Tensor]]) -> Arrays:
        rule = state.rule
        if rule.set is not None:
            return self.as_set(state, rule.set)
        kept = self.kept[state.name]
        if rule.write is not None:
            amount = self.written(state, rule.write)
            return {n: a + amount[n] for n, a in kept.items()}
        if any(line.rule == "implicit" for line in rule.learn.values()):
            return self.implicit(state, next(iter(rule.learn.values())))
        return {**kept, **changes.get(state.name, {})}

    def as_set(self, state: State, term: Term) -> Arrays:
        """`set e`: once, at the last tick (2.9.5). On steps, the mean of the samples' last."""
        ends = [self.frames[-1]]
        if self.means is not None:
            ends = list({f.sample: f for f in self.frames}.values())
        values = [whole(evaluate(term, self.scope(f)), self.shapes(state)) for f in ends]
        return {n: torch.stack([v[n] for v in values]).mean(0) for n in values[0]}

    def written(self, state: State, term: Term) -> Arrays:
        """`write e`: summed over the period, each with its own tick's retention (2.8, 2.9.5)."""
        zero = torch.zeros((), dtype=torch.float64)
        total: dict[str, Tensor] = {a.name: zero for a in state.form.arrays}
        for frame in self.frames:
            own = dict(frame.frozen)
            if state.rule.after_retain:
                own[state.name] = self.point(state, frame)
            try:
                value = evaluate(term, Scope(self.run_of(frame), frame, "write", own))
            except Missing:
                continue
            share = self.share(frame)
            total = {n: a + share * whole(value, self.shapes(state))[n] for n, a in total.items()}
        return total

    # ---- the point at which a gradient is taken ------------------------------------------------

    def point(self, state: State, frame: Frame, first: bool = True) -> Arrays:
        """The state as the objective names it: before, or retained; at the chunk's start where
        gradients are frozen (2.8.3, 2.9.7). Later steps on the same data start where one ended.
        """
        kept = frame.frozen_kept[state.name]
        if state.rule.after_retain:
            kept = retained(state, kept, self.retention(state, frame))
        if not first:
            offset = self.offsets[state.name]
            kept = {n: a + offset[n] if n in offset else a for n, a in kept.items()}
        if not state.rule.after_retain and first:
            return frame.frozen[state.name]
        return read_as(self.run_of(frame), state, kept, self.cell(state).start, frame)

    # ---- learning ------------------------------------------------------------------------------

    def learned(self) -> dict[str, dict[str, Tensor]]:
        """The new arrays that `learn` lines make, line by line (2.9.4)."""
        made: dict[str, dict[str, Tensor]] = {}
        for line, served in self.lines():
            self.learn(line, served, made)
        return made

    def lines(self) -> list[tuple[Learn, list[tuple[State, str]]]]:
        groups: dict[tuple[int, int], tuple[Learn, list[tuple[State, str]]]] = {}
        for state in self.states:
            for array, line in state.rule.learn.items():
                if line.rule in ("implicit", "exact") or state.rule.objective is None:
                    continue
                key = (line.span.start, line.span.end) if line.span.end else (id(line), 0)
                groups.setdefault(key, (line, []))[1].append((state, array))
        return list(groups.values())

    def learn(
        self, line: Learn, served: list[tuple[State, str]], made: dict[str, dict[str, Tensor]]
    ) -> None:
        for step in range(line.steps):
            jobs = self.served(served, step == 0)
            whole = self.beside(line) if self.beside is not None and step == 0 else None
            answers = optimizers.amounts(
                self.run_of(self.frames[-1]), self.scope(self.frames[-1]), jobs, whole
            )
            for state, array in served:
                mine = [
                    x for j, x in zip(jobs, answers, strict=True) if j.name == (state.name, array)
                ]
                self.add(state, array, mine, step == 0, made)

    def served(self, arrays: list[tuple[State, str]], first: bool) -> list[optimizers.Job]:
        """Arrays of one line, with their gradients."""
        given = self.given if first else {}
        states = {s.name: s for s, _ in arrays}
        found = {n: given.get(n) or self.gradient(s, first) for n, s in states.items()}
        return [j for s, a in arrays for j in self.jobs(s, a, found[s.name], first)]

    def add(
        self, state: State, array: str, answers: list[tuple[Tensor, Tensor | None]], first: bool,
        made: dict[str, dict[str, Tensor]],
    ) -> None:  # fmt: skip
        """New state = retained state + amount; an optimizer's own retention multiplies (2.9.6)."""
        kept = self.kept[state.name][array]
        amount = torch.stack([a for a, _ in answers]).reshape(kept.shape)
        before = self.offsets.setdefault(state.name, {})
        so_far = made.setdefault(state.name, {})
        if first and any(r is not None for _, r in answers):
            ones = torch.ones((), dtype=torch.float64)
            keep = torch.stack([(ones if r is None else r).reshape(()) for _, r in answers])
            kept = kept * keep.reshape(*state.per, *(1,) * (kept.ndim - len(state.per)))
        before[array] = before[array] + amount if array in before else amount
        so_far[array] = (kept if first else so_far[array]) + amount

    def jobs(self, state: State, array: str, found: Gradient, first: bool) -> list[optimizers.Job]:
        """One for each head: an optimizer serves each array alone (2.9.6)."""
        cell = self.cell(state)
        weight = self.kept[state.name][array] if state.rule.after_retain else cell.kept[array]
        if not first:
            weight = weight + self.offsets[state.name][array]
        line = state.rule.learn[array]
        inner = self.inst.box is None or self.inst.box.level is None  # an optimizer's own memory
        made = []
        for head in heads_of(state.per):
            inputs, surprises = examples_of(found.examples.get(array, []), state.per, head)
            grad = found.grads[array][head]
            if not inner:
                allowed = self.run.transfers.handed(self.inst.level, state)
                grad, inputs, surprises = (gate(x, allowed) for x in (grad, inputs, surprises))
            made.append(
                optimizers.Job(
                    (state.name, array), line, self.inst, cell.rules, (array, head), state.per,
                    head,
                    weight[head], grad, inputs, surprises, True,
                )
            )  # fmt: skip
        return made

    def gradient(self, state: State, first: bool = True) -> Gradient:
        """With respect to the state as the objective names it (2.8.3); through the reads of the
        period for what the objective says of the loss (2.10.1).
        """
        objective = state.rule.objective
        if objective is None:
            raise InternalError(f"`{state.name}` learns without an objective")
        named: list[Arrays] = []
        log: list[tuple[str, Tensor, Tensor]] = []
        losses: list[tuple[Tensor, Tensor]] = []
        with torch.enable_grad(), learning(OWN):
            total = torch.zeros((), dtype=torch.float64)
            for frame in self.learned_from(state):
                total = total + self.term_of(state, objective, frame, first, named, log, losses)
            leaves = [leaf for _, leaf in losses]
            direct = own_gradient(total, self.cell(state).kept, named, log, leaves, self.recorded)
        found, coefficients = direct
        if losses:
            through = self.loss_gradient(state, [loss for loss, _ in losses], coefficients)
            found = Gradient(
                {n: g + through.grads[n] for n, g in found.grads.items()},
                {
                    n: [*found.examples.get(n, []), *through.examples.get(n, [])]
                    for n in found.grads
                },
            )
        return found

    def term_of(
        self, state: State, objective: Term, frame: Frame, first: bool, named: list[Arrays],
        log: list[tuple[str, Tensor, Tensor]], losses: list[tuple[Tensor, Tensor]],
    ) -> Tensor:  # fmt: skip
        """The objective of one tick; 0 where a stream that it uses is not given (2.10.2)."""
        run = self.run_of(frame)
        zero = torch.zeros((), dtype=torch.float64)
        leaf = {n: alias(a) for n, a in self.point(state, frame, first).items()}
        known = self.looked_at(run).sample.losses.get(frame.tick)
        loss = zero if known is None else alias(known)
        own = {**frame.frozen, state.name: leaf}
        notes: list[tuple[str, Tensor, Tensor]] = []
        scope = Scope(
            run, frame, "write", own, objective=True, tracked=state.name, log=notes, loss=loss
        )
        try:
            value = scope.array(objective).sum()
        except Missing:
            return zero
        named.append(leaf)
        log += notes
        if known is not None and state.rule.uses_loss:
            losses.append((known, loss))
        return value * self.share(frame)

    def loss_gradient(
        self, state: State, losses: list[Tensor], coefficients: list[Tensor]
    ) -> Gradient:
        """Of the losses since the last firing, at the state that stood over them (2.10.1)."""
        level = self.inst.level
        standing = self.stood(state)
        notes = self.notes(state)
        pairs = [(x, c) for x, c in zip(losses, coefficients, strict=True) if x.requires_grad]
        wanted = [*standing.values(), *(y for _, _, _, y in notes)]
        with torch.enable_grad(), learning(Learner(level, "weights")):
            raw = grads_of(pairs, wanted, self.recorded)
        allowed = self.run.transfers.enters(level)
        sealed_ = [None if g is None else sealed(g, allowed, standing.values()) for g in raw]
        grads = {n: torch.zeros_like(a) for n, a in self.cell(state).kept.items()}
        for name, g in zip(standing, sealed_, strict=False):
            array = name.partition(":")[0]
            grads[array] = grads[array] if g is None else grads[array] + g
        merged: dict[tuple[str, object], tuple[Tensor, Tensor]] = {}
        for (array, place, x, _), s in zip(notes, sealed_[len(standing) :], strict=True):
            if s is not None:
                before = merged.get((array, place))
                merged[array, place] = (gate(x, allowed), s if before is None else before[1] + s)
        examples: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for (array, _), pair in merged.items():
            examples.setdefault(array, []).append(pair)
        return Gradient(grads, examples)

    @property
    def ghost(self) -> Replay | None:
        box = self.inst.box
        return self.replayed if box is not None and box.linearise is not None else None

    def looked_at(self, run: Run) -> Run:
        return run if self.ghost is None else self.ghost.run

    def stood(self, state: State) -> Arrays:
        """The state that stood over the losses, by array; a node for each tick of a replay."""
        if self.ghost is None:
            return self.cell(state).standing
        leaves = self.ghost.leaves[self.inst.key, state.name]
        return {f"{n}:{i}": a for i, leaf in enumerate(leaves) for n, a in leaf.items()}

    def notes(self, state: State) -> list[tuple[str, object, Tensor, Tensor]]:
        """The products through this state since the last firing: array, place, x, result."""
        runs = {id(r): r for r in (self.looked_at(self.run_of(f)) for f in self.frames)}
        found = []
        for run in runs.values():
            for array in state.form.arrays:
                for place, x, y in run.sample.products.get(
                    (self.inst.key, state.name, array.name), []
                ):
                    found.append((array.name, place, x, y))
        return found

    # ---- implicit steps ------------------------------------------------------------------------

    def implicit(self, state: State, line: Learn) -> Arrays:
        """`implicit(rate)`: |M - kept|^2 / (2 rate) is added and solved (2.9.4)."""
        objective = state.rule.objective
        if objective is None:
            raise InternalError("`implicit` without an objective")
        kept = self.kept[state.name]
        scope = self.scope(self.frames[-1])
        rate = (
            scope.array(line.settings["rate"])
            if "rate" in line.settings
            else torch.ones((), dtype=torch.float64)
        )

        def value(at: Arrays) -> Tensor:
            total = sum(
                (((at[n] - kept[n]) ** 2) / (2 * (1 if f is None else f))).sum()
                for n, _, f in factors(state, kept, rate)
            )  # fmt: skip
            for frame in self.learned_from(state):
                own = {**frame.frozen, state.name: at}
                named = Scope(self.run_of(frame), frame, "write", own, objective=True)
                try:
                    total = total + self.share(frame) * named.array(objective).sum()
                except Missing:
                    continue
            return torch.as_tensor(total)

        scale = {
            n: torch.ones((), dtype=torch.float64) if f is None else f
            for n, _, f in factors(state, kept, rate)
        }
        return solve.minimise(value, kept, self.recorded, scale)


# ---- gradients ---------------------------------------------------------------------------------


def own_gradient(
    total: Tensor, kept: Arrays, named: list[Arrays], log: list[tuple[str, Tensor, Tensor]],
    losses: list[Tensor], recording: bool,
) -> tuple[Gradient, list[Tensor]]:  # fmt: skip
    """Summed over the ticks; the examples; and how the objective weighs each tick's loss."""
    leaves = [a for leaf in named for a in leaf.values()]
    wanted = [*leaves, *(y for _, _, y in log), *losses]
    raw = grads_of(
        [(total, torch.ones_like(total))] if total.requires_grad else [], wanted, recording
    )
    grads = {n: torch.zeros_like(a) for n, a in kept.items()}
    at = iter(raw)
    for leaf in named:
        for name, x in leaf.items():
            grads[name] = grads[name] + zeros_if(next(at), x)
    examples: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, x, _ in log:
        surprise = next(at)
        if surprise is not None:
            examples.setdefault(name, []).append((x, surprise))
    return Gradient(grads, examples), [zeros_if(next(at), x) for x in losses]


def grads_of(
    pairs: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor], recording: bool
) -> list[Tensor | None]:
    """None where no gradient passes."""
    if not pairs or not wanted:
        return [None] * len(wanted)
    inputs = [w if w.requires_grad else None for w in wanted]
    some = [w for w in inputs if w is not None]
    if not some:
        return [None] * len(wanted)
    found = iter(
        torch.autograd.grad(
            [x for x, _ in pairs], some, grad_outputs=[c for _, c in pairs],
            create_graph=recording, retain_graph=True, allow_unused=True,
        )
    )  # fmt: skip
    return [None if w is None else next(found) for w in inputs]


def zeros_if(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def examples_of(
    pairs: list[tuple[Tensor, Tensor]], per: Shape, head: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """`input` and `surprise` of one head: a row for each example (2.9.6)."""
    xs: list[Tensor] = []
    ss: list[Tensor] = []
    for x, s in pairs:
        lead = joint(x.shape[:-1], s.shape[:-1])
        for a, out in ((x.expand(*lead, x.shape[-1]), xs), (s.expand(*lead, s.shape[-1]), ss)):
            rows = a.reshape(-1, *lead[len(lead) - len(per) :], a.shape[-1])
            out.append(rows.movedim(0, -2)[head])
    if not xs:
        none = torch.zeros((0, 0), dtype=torch.float64)
        return none, none
    return torch.cat(xs), torch.cat(ss)


def whole(value: Tensor | dict[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """A value as the arrays of a state."""
    if isinstance(value, dict):
        return value
    return {n: value.expand(s) for n, s in shapes.items()}
