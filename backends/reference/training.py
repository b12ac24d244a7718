"""Levels on steps and tasks (2.8, 2.11): gradients that are means over a batch, and one step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from nlc.system import Learn, Level, State

from ..parameters import Parameter, lives_on, start_name
from . import firing, optimizers
from .boxes import Pass, Run
from .evaluate import Scope
from .firing import Firing, Gradient
from .frames import Arrays, Frame, Instance, Key
from .gates import Learner, learning
from .stream import slope, speed

if TYPE_CHECKING:
    from . import Reference

T = TypeVar("T")
V = TypeVar("V")


@dataclass(eq=False)
class Found:
    """What one level on steps learns from the steps since its last firing.

    `frames`: the ticks of each box, each with its share in the mean of its step, for each state.
    """

    grads: dict[str, Tensor] = field(default_factory=dict)
    examples: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    states: dict[Any, Gradient] = field(default_factory=dict)
    once: set[Any] = field(default_factory=set)
    frames: dict[Key, list[Frame]] = field(default_factory=dict)
    shares: dict[tuple[Key, str], dict[int, float]] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    last: bool = False  # the last step's gradients alone, of weights and starts

    def __add__(self, other: Found) -> Found:
        """Steps add up (2.8)."""
        sums = {k: add(g, other.states[k]) for k, g in self.states.items() if k in other.states}
        last = {k: g for k, g in other.states.items() if k in other.once}
        grads = {n: g + other.grads[n] for n, g in self.grads.items()}
        return Found(
            other.grads if other.last else grads,
            other.examples if other.last else joined(self.examples, other.examples),
            {**self.states, **other.states, **sums, **last},
            self.once | other.once,
            joined(self.frames, other.frames),
            {k: self.shares.get(k, {}) | s for k, s in (self.shares | other.shares).items()},
            self.runs | other.runs,
            other.last,
        )


def joined(a: Mapping[T, list[V]], b: Mapping[T, list[V]]) -> dict[T, list[V]]:
    return {k: [*a.get(k, []), *b.get(k, [])] for k in {**a, **b}}


def add(a: Gradient, b: Gradient) -> Gradient:
    return Gradient({n: g + b.grads[n] for n, g in a.grads.items()}, joined(a.examples, b.examples))


def levels_on_steps(ref: Reference) -> list[Level]:
    return [level for level in ref.system.levels if lives_on(level)]


def open_to(ref: Reference, level: Level, fired: Collection[Level]) -> bool:
    """Whether the gradient of a level that has not fired may yet enter what this one writes: what
    a level learns from is what stood since it fired (2.10.1, 2.11.4).
    """
    return any(
        learner is not level and learner not in fired
        for t in ref.system.transfers
        for entered, learner in [(t.target, t.source) if t.kind == "init" else (t.source, t.target)]
        if entered is level and t.kind in ("init", "backprop") and lives_on(learner)
    )


# ---- gradients ---------------------------------------------------------------------------------


def gradients(ref: Reference, passing: Pass) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    quiet(passing)
    for level in levels_on_steps(ref):
        made |= by_name(ref, level, found_by(ref, passing, level))
    return {n: made[n] for n, p in ref.specs.items() if p.trained_by is not None and n in made}


def quiet(passing: Pass, recording: bool = False) -> None:
    """The ticks are over: it is rare that a slower level looks at what follows."""
    for run in passing.runs.values():
        run.recording = recording


def by_name(ref: Reference, level: Level, found: Found) -> dict[str, Tensor]:
    made = dict(found.grads)
    for ((path, heads), state), gradient in found.states.items():
        for array, grad in gradient.grads.items():
            name = start_name(path, state, array)
            if name in ref.specs and ref.specs[name].trained_by is level:
                made.setdefault(name, torch.zeros(ref.specs[name].shape, dtype=torch.float64))[
                    heads
                ] = grad.detach()
    return made


def found_by(ref: Reference, passing: Pass, level: Level) -> Found:
    found = Found(last=level.once)
    losses = weighted_losses(ref, passing, level)
    mine = [p for p in ref.specs.values() if p.trained_by is level]
    weights = [p for p in mine if p.box is None]
    starts = [p for p in mine if p.box is not None and p.box.level is not level]
    for kind, group in (("weights", weights), ("starts", starts)):
        notes = [n for p in group for n in noted(passing, p.name)] if kind == "weights" else []
        wanted = [*(passing.leaves[p.name] for p in group), *(y for _, _, y in notes)]
        with learning(Learner(level, kind)):
            raw = firing.grads_of(losses, wanted, False)
        for p, g in zip(group, raw, strict=False):
            found.grads[p.name] = firing.zeros_if(g, passing.leaves[p.name])
        for (name, x, _), s in zip(notes, raw[len(group) :], strict=True):
            if s is not None:
                found.examples.setdefault(name, []).append((x.detach(), s))
    for inst in instances(passing, level):
        look_at_states(passing, inst, found)
    return found


def look_at_states(passing: Pass, inst: Instance, found: Found) -> None:
    """The ticks of a box on steps, and the gradients of its states."""
    if inst.box is None or not inst.period:
        return
    found.frames[inst.key] = list(inst.period)
    found.runs |= {id(f): passing.runs[f.sample] for f in inst.period}
    for state in inst.box.states:
        key = inst.key, state.name
        found.shares[key] = means(passing, inst.period, state)
        if state.rule.learn and state.rule.objective is not None:
            firing_of = Firing(anyone(passing), inst, inst.period, [state], found.shares[key])
            found.states[key] = firing_of.gradient(state)
            found.once |= {key} if state.rule.once else set()


def anyone(passing: Pass) -> Run:
    return next(iter(passing.runs.values()))


def instances(passing: Pass, level: Level) -> list[Instance]:
    return [i for i in passing.shared.values() if i.level is level]


def noted(passing: Pass, name: str) -> Iterable[tuple[str, Tensor, Tensor]]:
    for run in passing.runs.values():
        for _, x, y in run.sample.products.get(name, []):
            yield name, x, y


def labelled(run: Run) -> list[Tensor]:
    """The losses of this call's ticks."""
    return [loss for t, loss in run.sample.losses.items() if t > run.since]


def weighted_losses(ref: Reference, passing: Pass, level: Level) -> list[tuple[Tensor, Tensor]]:
    """The losses, and how an objective weighs each: a mean over sequences and ticks (2.8)."""
    pairs = []
    rows = [r for r in passing.runs.values() if labelled(r)]
    for run in rows:
        losses = labelled(run)
        for loss in losses:
            share = 1 / (len(rows) * len(losses))
            pairs.append((loss, share * slope(run, level, loss)))
    return [(x, c) for x, c in pairs if x.requires_grad]


def means(passing: Pass, frames: list[Frame], state: State) -> dict[int, float]:
    """The share of each tick in a mean over the sequences and their ticks that have a loss."""
    rows: dict[int, list[Frame]] = {}
    for frame in frames:
        losses = passing.runs[frame.sample].sample.losses
        if not state.rule.uses_loss or frame.tick in losses:
            rows.setdefault(frame.sample, []).append(frame)
    return {id(f): 1 / (len(rows) * len(row)) for row in rows.values() for f in row}


# ---- one step ----------------------------------------------------------------------------------


def step(ref: Reference, passing: Pass) -> dict[str, Tensor]:
    """All levels on steps look at what was, then change together; then the due are reset."""
    ref.steps += 1
    ref.last_step = passing
    made: dict[str, Tensor] = {}
    levels = levels_on_steps(ref)
    due = ticked(ref, levels, "step")
    for level in levels:
        with recording(ref, passing, level, due):
            found = found_by(ref, passing, level)
        made |= by_name(ref, level, found)
        before = ref.sums.get(level.name)
        ref.sums[level.name] = found if before is None else before + found
    fire_levels(ref, passing, due)
    reset_levels(ref, passing, "step")
    return {n: made[n] for n, p in ref.specs.items() if p.trained_by is not None and n in made}


def ticked(ref: Reference, levels: list[Level], unit: str) -> list[Level]:
    """Every level counts its steps and tasks since its reset (2.6.2): the ones that are due."""
    for level in levels:
        ref.counts[level.name, unit] = ref.counts.get((level.name, unit), 0) + 1
    return [v for v in levels if v.clock.unit == unit and v.clock.fires(ref.counts[v.name, unit])]


@contextmanager
def recording(
    ref: Reference, passing: Pass, level: Level, fired: Collection[Level]
) -> Iterator[None]:
    """What a slower level on steps or tasks will differentiate is written with its graph."""
    opened = open_to(ref, level, fired)
    quiet(passing, opened)
    with torch.set_grad_enabled(opened):
        yield


def fire_levels(ref: Reference, passing: Pass, due: list[Level]) -> None:
    changes: dict[str, Tensor] = {}
    for level in due:
        if level.name in ref.sums:
            with recording(ref, passing, level, due):
                changes |= fire(ref, passing, level)
    for name, value in changes.items():
        tell(ref, passing, "fire", name, ref.values[name], value)
        ref.values[name] = value.detach()
    forget(ref, passing, due)


def forget(ref: Reference, passing: Pass, fired: Collection[Level]) -> None:
    """A step's graph is not kept for nothing."""
    closed = {
        i.key for i in passing.shared.values() if i.level and not open_to(ref, i.level, fired)
    }
    for key, arrays in ref.kept.items():
        if key[0] in closed:
            ref.kept[key] = {n: a.detach() for n, a in arrays.items()}
    for key, rules in ref.rules.items():
        if key[0] == "array" or key[0] in closed:
            for inst in rules.values():
                settle(inst)


def settle(inst: Instance) -> None:
    for cell in inst.cells.values():
        for arrays in (cell.kept, cell.value, cell.standing, cell.start):
            for name, x in arrays.items():
                arrays[name] = x.detach()  # type: ignore[index]
    for level in inst.levels.values():
        settle(level)


def tell(
    ref: Reference, passing: Pass, event: str, name: str, before: Tensor, after: Tensor
) -> None:
    """A weight, a state, or the start of another level's, which is told with its learner's name."""
    p = ref.specs[name]
    level = p.trained_by
    path = f"{name}@{level.name}" if level and p.box and p.box.level is not level else name
    anyone(passing).tell(event, path, level, 0, {"": before}, {"": after})


def fire(ref: Reference, passing: Pass, level: Level) -> dict[str, Tensor]:
    found = ref.sums.pop(level.name)
    key = of_level(level)
    ref.firings[key] = ref.firings.get(key, 0) + 1
    works = list(firings(passing, level, found))
    served = list(arrays_served(ref, passing, level, found))

    def line_of(line: Learn) -> list[optimizers.Job]:
        """All that a line of the text serves: weights, starts, states of every instance (2.9.4)."""
        jobs = [job for other, mine in served if line.is_of(other) for job in mine]
        for _, _, work in works:
            work.retain()
            for other, arrays in work.lines():
                jobs += work.served(arrays, True) if line.is_of(other) else []
        return jobs

    for _, _, work in works:
        work.beside = lambda line: line_of(line) if line.sums_across else None
    return {
        **arrays_learned(ref, passing, level, served, line_of),
        **states_changed(ref, passing, works),
    }


def of_level(level: Level) -> Key:
    """Under which its firings are counted: a box of it may have its name."""
    return f"level {level.name}", ()


# ---- resets ------------------------------------------------------------------------------------


def reset_levels(ref: Reference, passing: Pass, unit: str) -> None:
    """After the firings of a step, or of a task, the slowest first (2.7.3)."""
    for level in sorted(levels_on_steps(ref), key=speed):
        if level.resets.unit == unit and level.resets.fires(ref.counts[level.name, unit]):
            reset(ref, passing, level)


def reset(ref: Reference, passing: Pass, level: Level) -> None:
    """States, and weights of an owner, go back to their start; the period ends (2.6.4, 2.6.5)."""
    if level.partial == "flush" and level.name in ref.sums:
        fire_levels(ref, passing, [level])
    mine = [n for n, p in ref.specs.items() if p.trained_by is level]
    for name in mine:
        tell(ref, passing, "reset", name, ref.values[name], ref.starts[name])
        ref.values[name] = ref.starts[name]
    keys = {i.key for i in instances(passing, level)}
    for key in [k for k in ref.kept if k[0] in keys]:
        del ref.kept[key]
    for key in [k for k in ref.rules if k[0] in keys or k[0] == "array" and k[1] in mine]:
        del ref.rules[key]
    for key in [of_level(level), *keys]:
        ref.firings.pop(key, None)
    ref.sums.pop(level.name, None)
    for unit in ("step", "task"):
        ref.counts[level.name, unit] = 0


# ---- what a firing changes ---------------------------------------------------------------------


def arrays_served(
    ref: Reference, passing: Pass, level: Level, found: Found
) -> Iterator[tuple[Learn, list[optimizers.Job]]]:
    """Weights of an owner, and the starts that a level learns, by the lines that serve them."""
    host, _, lines = host_of(ref, passing, level)
    for line in lines:
        names = [n for n in found.grads if line_for(lines, level, ref.specs[n]) is line]
        yield line, [j for n in names for j in jobs_for(ref, host, line, ref.specs[n], found)]


def arrays_learned(
    ref: Reference, passing: Pass, level: Level, served: list[tuple[Learn, list[optimizers.Job]]],
    line_of: Callable[[Learn], list[optimizers.Job]],
) -> dict[str, Tensor]:  # fmt: skip
    run = anyone(passing)
    _, frame, _ = host_of(ref, passing, level)
    keep = Scope(run, frame, "write").array(level.retain) if level.retain is not None else None
    changed: dict[str, Tensor] = {}
    for line, jobs in served:
        whole = line_of(line) if line.sums_across else None
        answers = optimizers.amounts(run, Scope(run, frame, "write", frame.frozen), jobs, whole)
        for job, (amount, kept) in zip(jobs, answers, strict=True):
            new = changed.setdefault(job.name[0], ref.values[job.name[0]].clone())
            factor = torch.ones((), dtype=torch.float64) if kept is None else kept
            new[job.head] = job.weight * factor * (1 if keep is None else keep) + amount
    return changed


def host_of(
    ref: Reference, passing: Pass, level: Level
) -> tuple[Instance, Frame, tuple[Learn, ...]]:
    """Whose settings hold: an owner's, or those of the memory that learns the loss (2.11.4)."""
    count = ref.firings[of_level(level)]
    if level.learn:
        frame = Frame(None, level, (level.name, ()), count=count)
        frame.inputs = frame.names = {"read": {}, "write": {}}
        return Instance(None, level, frame.key), frame, level.learn
    for inst in instances(passing, level):
        for state in inst.box.states if inst.box else ():
            if state.rule.learn and state.rule.uses_loss and inst.last is not None:
                lines = {id(line): line for line in state.rule.learn.values()}
                return inst, inst.last, tuple(lines.values())
    frame = Frame(None, level, (level.name, ()), count=count)
    return Instance(None, level, frame.key), frame, ()


def line_for(lines: tuple[Learn, ...], level: Level, p: Parameter) -> Learn | None:
    """The first that fits: by kind, or by the name of a level or state (2.9.4)."""
    if p.box is None or p.state is None:
        used_in = used_by(level, p)
    else:
        name = p.box.level.name if p.box.level else ""
        used_in = (name, p.state.name, f"{name}.{p.state.name}")
    return next((line for line in lines if line.serves(p.kind, *used_in)), None)


def used_by(level: Level, p: Parameter) -> tuple[str, ...]:
    return (p.used_in,) if p.used_in else ()


def jobs_for(
    ref: Reference, host: Instance, line: Learn, p: Parameter, found: Found
) -> list[optimizers.Job]:
    """An array, or each head of one (2.9.6)."""
    lead = p.shape[: len(p.shape) - p.axes] if p.box is not None else ()
    rules = ref.rules.setdefault(("array", p.name), {})
    made = []
    for head in product(*(range(n) for n in lead)):
        inputs, surprises = step_examples(found.examples.get(p.name, []))
        made.append(
            optimizers.Job(
                (p.name, ""), line, host, rules, (p.name, head), (), head,
                ref.values[p.name][head], found.grads[p.name][head], inputs, surprises,
            )
        )  # fmt: skip
    return made


def step_examples(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Divided so that `surprise' @ input` and `input' @ input` are means (2.9.6)."""
    inputs, surprises = firing.examples_of(pairs, (), ())
    root = max(inputs.shape[0], 1) ** 0.5
    return inputs / root, surprises * root


def firings(passing: Pass, level: Level, found: Found) -> Iterator[tuple[Instance, State, Firing]]:
    """Those of the states of boxes on steps (2.4.3)."""
    for inst in instances(passing, level):
        frames = found.frames.get(inst.key)
        if inst.box is None or not frames:
            continue
        for state in (s for s in inst.box.states if s.rule.changes):
            key = inst.key, state.name
            given = {state.name: scaled(found.states[key])} if key in found.states else {}
            shares = found.shares[key]
            yield inst, state, Firing(
                anyone(passing), inst, frames, [state], shares, given=given, runs=found.runs
            )  # fmt: skip


def states_changed(
    ref: Reference, passing: Pass, works: list[tuple[Instance, State, Firing]]
) -> dict[str, Tensor]:
    changed: dict[str, Tensor] = {}
    for inst, state, work in works:
        put(ref, passing, inst, state, work.new_states()[state.name], changed)
    for key in {id(inst): inst.key for inst, _, _ in works}.values():
        ref.firings[key] = ref.firings.get(key, 0) + 1
    return changed


def put(
    ref: Reference, passing: Pass, inst: Instance, state: State, arrays: Arrays,
    changed: dict[str, Tensor],
) -> None:  # fmt: skip
    """Its own parameter, or what began as the start that another level learns, and now differs."""
    path, heads = inst.key
    names = {a: start_name(path, state.name, a) for a in arrays}
    if all(n in ref.specs and ref.specs[n].trained_by is inst.level for n in names.values()):
        for array, name in names.items():
            changed.setdefault(name, ref.values[name].clone())[heads] = arrays[array].detach()
    else:
        anyone(passing).tell_update(inst, state.name, 0, inst.cells[state.name].kept, arrays)
        ref.kept[inst.key, state.name] = dict(arrays)


def scaled(gradient: Gradient) -> Gradient:
    examples = {}
    for name, pairs in gradient.examples.items():
        count = max(sum(x.reshape(-1, x.shape[-1]).shape[0] for x, _ in pairs), 1)
        examples[name] = [(x / count**0.5, s * count**0.5) for x, s in pairs]
    return Gradient(gradient.grads, examples)


# ---- tasks -------------------------------------------------------------------------------------


def end_task(ref: Reference) -> None:
    """Levels that count tasks, inside optimizers too, fire on what the task's steps have summed."""
    passing = ref.last_step
    if passing is None:
        return
    fire_levels(ref, passing, ticked(ref, levels_on_steps(ref), "task"))
    run = anyone(passing)
    with torch.no_grad():
        for rules in ref.rules.values():
            for inst in rules.values():
                for inner in inst.levels.values():
                    clock = inner.box.clock if inner.box else None
                    inner.tasks += 1
                    if clock is not None and clock.unit == "task" and clock.fires(inner.tasks):
                        optimizers.fire_level(run, inner)
    reset_levels(ref, passing, "task")


def trained(specs: Mapping[str, Parameter]) -> list[str]:
    return [n for n, p in specs.items() if p.trained_by is not None]
