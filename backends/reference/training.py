"""Levels on steps and tasks (2.8, 2.11): gradients that are means over a batch, and one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.system import Learn, Level, State

from ..parameters import Parameter, lives_on, start_name
from . import firing, optimizers
from .boxes import Pass, Run
from .evaluate import Scope
from .firing import Firing, Gradient
from .frames import Frame, Instance
from .gates import Learner, alias, learning

if TYPE_CHECKING:
    from . import Reference


@dataclass(eq=False)
class Found:
    """What one level on steps learns from one step."""

    grads: dict[str, Tensor] = field(default_factory=dict)
    examples: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    states: dict[Any, Gradient] = field(default_factory=dict)

    def __add__(self, other: Found) -> Found:
        """Steps add up (2.8)."""
        return Found(
            {n: g + other.grads[n] for n, g in self.grads.items()},
            {n: [*e, *other.examples.get(n, [])] for n, e in self.examples.items()},
            {k: add(g, other.states[k]) for k, g in self.states.items()},
        )


def add(a: Gradient, b: Gradient) -> Gradient:
    examples = {n: [*e, *b.examples.get(n, [])] for n, e in a.examples.items()}
    return Gradient({n: g + b.grads[n] for n, g in a.grads.items()}, examples)


def levels_on_steps(ref: Reference) -> list[Level]:
    return [level for level in ref.system.levels if lives_on(level)]


# ---- gradients ---------------------------------------------------------------------------------


def gradients(ref: Reference, passing: Pass) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    quiet(passing)
    for level in levels_on_steps(ref):
        made |= by_name(ref, found_by(ref, passing, level))
    return {n: made[n] for n, p in ref.specs.items() if p.trained_by is not None and n in made}


def quiet(passing: Pass) -> None:
    """The ticks are over: nothing slower looks at what follows."""
    for run in passing.runs.values():
        run.recording = False


def by_name(ref: Reference, found: Found) -> dict[str, Tensor]:
    made = dict(found.grads)
    for (inst_key, state, heads), gradient in found.states.items():
        for array, grad in gradient.grads.items():
            name = start_name(inst_key, state, array)
            if name in ref.specs:
                made.setdefault(name, torch.zeros(ref.specs[name].shape, dtype=torch.float64))[
                    heads
                ] = grad
    return made


def found_by(ref: Reference, passing: Pass, level: Level) -> Found:
    found = Found()
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
        for state in inst.box.states if inst.box else ():
            if state.rule.learn and state.rule.objective is not None and inst.period:
                shares = means(passing, inst.period, state)
                gradient = Firing(anyone(passing), inst, inst.period, [state], shares).gradient(
                    state
                )
                found.states[inst.key[0], state.name, inst.key[1]] = gradient
    return found


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


def slope(run: Run, level: Level, loss: Tensor) -> Tensor:
    """How the objective of an owner changes with the loss: 1, if it is `loss`."""
    term = level.objective
    if term is None or term.op == "loss":
        return torch.ones_like(loss)
    frame = Frame(None, level, (level.name, ()), sample=run.index)
    frame.inputs = frame.names = {"read": {}, "write": {}}
    with torch.enable_grad():
        leaf = alias(loss.detach())
        value = Scope(run, frame, "write", loss=leaf).array(term)
    return firing.zeros_if(
        firing.grads_of([(value, torch.ones_like(value))], [leaf], False)[0], loss
    )


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
    """All levels on steps look at what was, then change together."""
    quiet(passing)
    ref.steps += 1
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        found = {level.name: found_by(ref, passing, level) for level in levels_on_steps(ref)}
        changes: dict[str, Tensor] = {}
        for level in levels_on_steps(ref):
            made |= by_name(ref, found[level.name])
            before = ref.sums.get(level.name)
            ref.sums[level.name] = (
                found[level.name] if before is None else before + found[level.name]
            )
            if level.clock.unit == "step" and level.clock.fires(ref.steps):
                changes |= fire(ref, passing, level)
        for name, value in changes.items():
            ref.values[name] = value.detach()
        for rules in ref.rules.values():
            for inst in rules.values():
                settle(inst)
    return {n: made[n] for n, p in ref.specs.items() if p.trained_by is not None and n in made}


def settle(inst: Instance) -> None:
    """A step's graph is not kept."""
    for cell in inst.cells.values():
        for arrays in (cell.kept, cell.value, cell.standing, cell.start):
            for name, x in arrays.items():
                arrays[name] = x.detach()  # type: ignore[index]
    for level in inst.levels.values():
        settle(level)


def fire(ref: Reference, passing: Pass, level: Level) -> dict[str, Tensor]:
    found = ref.sums.pop(level.name)
    ref.firings[level.name, ()] = ref.firings.get((level.name, ()), 0) + 1
    return {
        **arrays_learned(ref, passing, level, found),
        **states_changed(ref, passing, level, found),
    }


def arrays_learned(ref: Reference, passing: Pass, level: Level, found: Found) -> dict[str, Tensor]:
    """Weights of an owner, and the starts that a level learns, by the lines that serve them."""
    run = anyone(passing)
    host, frame, lines = host_of(ref, passing, level)
    keep = Scope(run, frame, "write").array(level.retain) if level.retain is not None else None
    changed: dict[str, Tensor] = {}
    for line in lines:
        jobs = [
            job
            for name in found.grads
            if line_for(lines, level, ref.specs[name]) is line
            for job in jobs_for(ref, host, line, ref.specs[name], found)
        ]
        answers = optimizers.amounts(run, Scope(run, frame, "write", frame.frozen), jobs)
        for job, (amount, kept) in zip(jobs, answers, strict=True):
            new = changed.setdefault(job.name[0], ref.values[job.name[0]].clone())
            factor = torch.ones((), dtype=torch.float64) if kept is None else kept
            new[job.head] = job.weight * factor * (1 if keep is None else keep) + amount
    return changed


def host_of(
    ref: Reference, passing: Pass, level: Level
) -> tuple[Instance, Frame, tuple[Learn, ...]]:
    """Whose settings hold: an owner's, or those of the memory that learns the loss (2.11.4)."""
    count = ref.firings[level.name, ()]
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


def states_changed(ref: Reference, passing: Pass, level: Level, found: Found) -> dict[str, Tensor]:
    """The states of boxes on steps (2.4.3)."""
    changed: dict[str, Tensor] = {}
    for inst in instances(passing, level):
        if inst.box is None or not inst.period:
            continue
        states = [s for s in inst.box.states if s.rule.changes]
        given = {
            s.name: scaled(found.states[inst.key[0], s.name, inst.key[1]])
            for s in states
            if (inst.key[0], s.name, inst.key[1]) in found.states
        }
        shares = means(passing, inst.period, states[0]) if states else {}
        work = Firing(anyone(passing), inst, inst.period, states, shares, given=given)
        for name, arrays in work.new_states().items():
            for array, value in arrays.items():
                full = start_name(inst.key[0], name, array)
                if full in ref.values:
                    new = changed.setdefault(full, ref.values[full].clone())
                    new[inst.key[1]] = value
                else:
                    kept = ref.kept.setdefault((inst.key, name), {})
                    ref.kept[inst.key, name] = {**kept, array: value.detach()}
        ref.firings[inst.key] = ref.firings.get(inst.key, 0) + 1
    return changed


def scaled(gradient: Gradient) -> Gradient:
    examples = {}
    for name, pairs in gradient.examples.items():
        count = max(sum(x.reshape(-1, x.shape[-1]).shape[0] for x, _ in pairs), 1)
        examples[name] = [(x.detach() / count**0.5, s * count**0.5) for x, s in pairs]
    return Gradient(gradient.grads, examples)


# ---- tasks -------------------------------------------------------------------------------------


def end_task(ref: Reference) -> None:
    """Levels inside optimizers that count tasks fire on what the task's steps have summed."""
    ref.tasks += 1
    run = ref.last_run
    if run is None:
        return
    with torch.no_grad():
        for level in levels_on_steps(ref):
            if (
                level.clock.unit == "task"
                and level.clock.fires(ref.tasks)
                and level.name in ref.sums
            ):
                for name, value in fire(ref, run.passing, level).items():
                    ref.values[name] = value.detach()
        for rules in ref.rules.values():
            for inst in rules.values():
                for inner in inst.levels.values():
                    clock = inner.box.clock if inner.box else None
                    if clock is not None and clock.unit == "task" and clock.fires(ref.tasks):
                        optimizers.fire_level(run, inner)


def trained(specs: Mapping[str, Parameter]) -> list[str]:
    return [n for n, p in specs.items() if p.trained_by is not None]
