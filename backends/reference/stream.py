"""A sequence, tick by tick (2.6, 2.7): losses, firings at the end of a tick, resets, ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nlc.diagnostics import InternalError
from nlc.idle import idle
from nlc.system import Box, Clock, Level, State

from ..parameters import array_kind, start_name
from . import firing, optimizers
from .boxes import Run, Sample, writes_at_call
from .evaluate import Scope, evaluate, resolve_later
from .frames import Arrays, Cell, Frame, Instance, Later, Missing, Value
from .gates import Learner, alias, gate, learning, sealed

UNITS = ("never", "task", "step", "sequence", "token", "always")


def speed(level: Level) -> tuple[int, float]:
    """Slower levels compare smaller (2.6.3)."""
    return UNITS.index(level.clock.unit), -level.clock.period


def per_sample(level: Level) -> bool:
    return level.clock.unit in ("token", "sequence", "always")


# ---- one tick ----------------------------------------------------------------------------------


def tick(run: Run, inputs: Mapping[str, Tensor | None]) -> Value:
    """The inputs arrive; what waited for them happens; then the flow runs (2.7.1, 2.7.3)."""
    sample = run.sample
    with torch.set_grad_enabled(run.recording):
        sample.tick += 1
        sample.inputs[sample.tick] = dict(inputs)
        sample.leaves = run.passing.leaves
        settle(run)
        if run.passing.replayed:
            sample.snapshots[sample.tick] = sample.fork()
        return flow(run)


def flow(run: Run) -> Value:
    """The flow in text order, and who looks at it without being called."""
    sample = run.sample
    frame = Frame(
        None, None, ("", ()), sample=run.index, tick=sample.tick, position=sample.position,
        leaves=sample.leaves,
    )  # fmt: skip
    names: dict[str, object] = {}
    given = sample.inputs[sample.tick]
    frame.inputs = {"read": dict(given), "write": dict(given)}
    frame.names = {"read": names, "write": names}
    run.flow_lines(frame, run.system.flow.lines)
    answer = evaluate(run.system.flow.result, Scope(run, frame))
    run.commit(frame)
    uncalled(run, frame)
    sample.pending = frame
    loss_of(run, frame)
    return answer


def uncalled(run: Run, flow: Frame) -> None:
    """A level that is never called exists once, and looks at each tick when the flow is over."""
    for level in run.system.levels:
        for box in level.boxes:
            if not level.called and box.states:
                frame = Frame(
                    box, level, (box.path, ()), sample=run.index, tick=flow.tick,
                    position=flow.position, leaves=flow.leaves,
                )  # fmt: skip
                run.run_box(frame, {})


def loss_of(run: Run, frame: Frame) -> None:
    """The loss of a tick, once its label is known (2.10.2)."""
    term = run.system.flow.loss
    if term is None or frame.tick in run.sample.losses:
        return
    try:
        value = evaluate(term, Scope(run, frame))
    except Missing:
        return
    if isinstance(value, Tensor):
        run.sample.losses[frame.tick] = value.reshape(())


def settle(run: Run) -> None:
    """The end of the last tick, one event: the due boxes fire, then the due are reset (2.7.3)."""
    sample = run.sample
    frame = sample.pending
    if frame is None:
        return
    with torch.set_grad_enabled(run.recording):
        sample.pending = None
        loss_of(run, frame)
        levels = [level for level in run.system.levels if per_sample(level)]
        for level in levels:
            sample.ticks[level.name] = sample.ticks.get(level.name, 0) + 1
            sample.spans.setdefault(level.name, []).append(frame.tick)
        due = [v for v in levels if v.clock.unit == "token" and v.clock.fires(sample.ticks[v.name])]
        fire_levels(run, due)
        for level in sorted(levels, key=speed):
            if level.resets.unit == "token" and level.resets.fires(sample.ticks[level.name]):
                reset(run, level, frame.tick)
        truncate(run)
        forget(run)
        sample.position += 1


def forget(run: Run) -> None:
    """Losses that no level will look at again keep their numbers only."""
    if run.training:
        return
    spans = [run.sample.spans.get(level.name, []) for level in run.passing.online]
    needed = {t for span in spans for t in span}
    for t, loss in run.sample.losses.items():
        if t not in needed and loss.requires_grad:
            run.sample.losses[t] = loss.detach()


def fire_levels(run: Run, due: list[Level]) -> None:
    """The order changes no number: what fires looks at what was (2.7.2)."""
    starts = [(level, start_gradients(run, level)) for level in due]
    replays = [replay(run, level) for level in due]
    for level, replayed in zip(due, replays, strict=True):
        for inst in instances(run, level):
            if inst.period:
                firing.fire(run, inst, list(inst.period), replayed=replayed)
    for level, found in starts:
        learn_starts(run, level, found)
        fire_weights(run, level)
        run.sample.spans[level.name] = []
    waiting = [t for level in run.passing.replayed for t in run.sample.spans.get(level.name, [])]
    since = min(waiting, default=run.sample.tick)
    run.sample.snapshots = {t: s for t, s in run.sample.snapshots.items() if t >= since}
    run.sample.written = {k: a for k, a in run.sample.written.items() if k[0] >= since}


def instances(run: Run, level: Level) -> list[Instance]:
    return [i for i in run.sample.instances.values() if i.level is level]


# ---- the loss at the start of the chunk (2.9.7, 2.10.1) ----------------------------------------


def replay(run: Run, level: Level) -> firing.Replay | None:
    """The ticks since the last firing, had the level's boxes read their states as they were at the
    start of the N tokens; all else is as it was, but for what the gradient of `level` may enter.
    """
    span = run.sample.spans.get(level.name, [])
    boxes = [i for i in instances(run, level) if i.box and i.box.linearise]
    if level not in run.passing.replayed or not any(map(moved, boxes)):
        return None
    shared = {k: i.fork() for k, i in run.passing.shared.items()}
    passing = replace(run.passing, traced=frozenset(), runs={}, shared=shared)
    ghost = Run(passing, Sample(), run.index, was=closed_writes(run, level))
    leaves: dict[Any, list[Arrays]] = {}
    with torch.set_grad_enabled(run.recording):
        for tick in span:
            ghost.sample = as_it_was(run, ghost, level, tick)
            for inst in boxes:
                stand_at(ghost, inst, tick, leaves)
            flow(ghost)
        label = run.sample.inputs.get(span[-1] + 1)
        if label is not None and ghost.sample.pending is not None:
            ghost.sample.inputs[span[-1] + 1] = label
            loss_of(ghost, ghost.sample.pending)
    return firing.Replay(ghost, leaves)


def closed_writes(run: Run, level: Level) -> dict[Any, dict[str, Arrays]]:
    """What boxes wrote at their calls, that the gradient of `level` does not enter."""
    closed = {
        k
        for k, i in run.sample.instances.items()
        if i.level is not None and not run.transfers.backprop(i.level, level)
    }
    return {at: arrays for at, arrays in run.sample.written.items() if at[1] in closed}


def moved(inst: Instance) -> bool:
    """Whether a tick of the period reads another state than that at the start of its N tokens."""
    return any(f.frozen[n] is not c.value for f in inst.period for n, c in inst.cells.items())


def as_it_was(run: Run, ghost: Run, level: Level, tick: int) -> Sample:
    """The sample before a tick; what the gradient of `level` enters goes on from the last one."""
    sample, last = run.sample.snapshots[tick].fork(), ghost.sample
    sample.products = last.products
    if not last.tick:
        return sample
    last.tick, last.inputs[tick] = tick, sample.inputs[tick]
    settle(ghost)
    sample.losses |= {t: x for t, x in last.losses.items() if t in run.sample.spans[level.name]}
    for other in run.system.levels:
        if other is not level and run.transfers.backprop(other, level):
            kept = {k: i for k, i in last.instances.items() if i.level is other}
            sample.instances = {
                k: i for k, i in sample.instances.items() if i.level is not other
            } | kept
            for slot in [k for k, of in last.slot_level.items() if of is other]:
                sample.slots[slot] = last.slots.get(slot, ())
    return sample


def stand_at(ghost: Run, inst: Instance, tick: int, leaves: dict[Any, list[Arrays]]) -> None:
    """The states of a box as they were at the start of the N tokens, as nodes of their own."""
    frame = next((f for f in inst.period if f.tick == tick), None)
    if frame is None or inst.box is None:
        return
    made = ghost.instance(inst.box, inst.key)
    for name, value in frame.frozen.items():
        leaf = {n: alias(a) for n, a in value.items()}
        leaves.setdefault((inst.key, name), []).append(leaf)
        made.cells[name] = Cell(frame.frozen_kept[name], leaf, leaf, inst.cells[name].start)
    made.frozen = dict(made.cells)


# ---- starts that a level on tokens learns (2.11.4) ---------------------------------------------


def start_gradients(run: Run, level: Level) -> dict[Any, dict[str, Tensor]]:
    """M@A: the gradient of A's losses since it fired, through M's start and M's writes since."""
    cells = {k: c for k, c in run.sample.starts.items() if k[3] == level.name}
    losses = losses_of(run, level)
    if not cells:
        return {}
    wanted = [a for c in cells.values() for a in c.standing.values()]
    with torch.enable_grad(), learning(Learner(level, "starts")):
        ones = [(x, torch.ones_like(x)) for x in losses]
        raw = iter(firing.grads_of(ones, wanted, run.recording))
    allowed = run.transfers.enters(level)
    found: dict[Any, dict[str, Tensor]] = {}
    for key, cell in cells.items():
        grads = {n: firing.zeros_if(next(raw), a) for n, a in cell.standing.items()}
        found[key] = {n: sealed(g, allowed, cell.standing.values()) for n, g in grads.items()}
    return found


def losses_of(run: Run, level: Level) -> list[Tensor]:
    ticks = run.sample.spans.get(level.name, [])[-1 if level.once else 0 :]
    losses = [run.sample.losses[t] for t in ticks if t in run.sample.losses]
    return [x for x in losses if x.requires_grad]


def learn_starts(run: Run, level: Level, found: Mapping[Any, dict[str, Tensor]]) -> None:
    """By A's rule: that of A, or of the memory A calls that learns `loss`."""
    if not found:
        return
    rule = rule_of(run, level)
    if rule is None:
        return
    inst, state, frame = rule
    scope = Scope(run, frame, "write", frame.frozen)
    jobs = [
        job
        for key, grads in found.items()
        for array, grad in grads.items()
        for job in start_jobs(run, level, inst, state, key, array, grad)
    ]
    answers = optimizers.amounts(run, scope, jobs)
    made = {k: {n: a.clone() for n, a in run.sample.starts[k].kept.items()} for k in found}
    for job, (amount, keep) in zip(jobs, answers, strict=True):
        key, array = job.place[:2]
        made[key][array][job.head] = (job.weight if keep is None else job.weight * keep) + amount
    for key, arrays in made.items():
        old = run.sample.starts[key]
        run.sample.starts[key] = run.cell(level, arrays, arrays, arrays, old)
        tick = run.sample.spans[level.name][-1]
        run.tell("fire", told_start(key), level, tick, old.kept, arrays)


def told_start(key: Any) -> str:
    (path, heads), state, _, level = key
    return f"{start_name(path, state, '')}{''.join(f'[{i}]' for i in heads)}@{level}"


def start_jobs(
    run: Run, level: Level, inst: Instance, rule: State, key: Any, array: str, grad: Tensor
) -> list[optimizers.Job]:
    """One for each head, by the first line that serves its kind (2.9.4, 2.9.6)."""
    (path, heads), name = key[0], key[1]
    box = run.sample.instances[path, heads].box
    if box is None:
        raise InternalError("the start of no box")
    state = box.state(name)
    lines = list({id(line): line for line in rule.rule.learn.values()}.values())
    kind, owner = array_kind(state), box.level.name if box.level else ""
    line = next((v for v in lines if v.serves(kind, owner, name, f"{owner}.{name}")), lines[0])
    cell = run.sample.starts[key]
    handed, none = run.transfers.handed(level, None), torch.zeros(0, 0, dtype=torch.float64)
    called = "".join(f"[{i}]" for i in heads)
    full = f"{start_name(path, name, array)}{called}@{level.name}"
    return [
        optimizers.Job(
            (full, array), line, inst, cell.rules, (key, array, head), (), head,
            cell.kept[array][head], gate(grad[head], handed), none, none,
        )
        for head in firing.heads_of(state.per)
    ]  # fmt: skip


def rule_of(run: Run, level: Level) -> tuple[Instance, State, Frame] | None:
    for inst in instances(run, level):
        for state in inst.box.states if inst.box else ():
            if state.rule.learn and state.rule.uses_loss:
                frame = run.sample.instances[inst.key].last
                if frame is not None:
                    return inst, state, frame
    return None


# ---- an owner on tokens ------------------------------------------------------------------------


def fire_weights(run: Run, level: Level) -> None:
    """Unnamed weights that live with a sequence: their owner's clock counts tokens."""
    losses = losses_of(run, level)
    if not level.owner or not run.sample.weights or not losses:
        return
    names = list(run.sample.weights)
    cells = run.sample.weights
    with torch.enable_grad(), learning(Learner(level, "weights")):
        weighed = [(x, slope(run, level, x)) for x in losses]
        raw = firing.grads_of(weighed, [cells[n].standing[""] for n in names], run.recording)
    by_path = {p: w for w in run.system.weights for p in paths_of(w.path, w.loops)}
    host = Instance(None, level, (level.name, ()))
    host.firings = run.sample.sequences.get(f"{level.name}:firings", 0)
    run.sample.sequences[f"{level.name}:firings"] = host.firings + 1
    frame = Frame(None, level, (level.name, ()), sample=run.index, count=host.firings + 1)
    frame.inputs = frame.names = {"read": {}, "write": {}}
    allowed = run.transfers.enters(level)
    scope = Scope(run, frame, "write")
    retained = 1.0 if level.retain is None else scope.array(level.retain)
    for line in level.learn:
        jobs = []
        for name, grad in zip(names, raw, strict=True):
            if level.line_for(by_path[name]) is line:
                cell = cells[name]
                given = sealed(
                    firing.zeros_if(grad, cell.standing[""]), allowed, cell.standing.values()
                )
                none = torch.zeros(0, 0, dtype=torch.float64)
                jobs.append(
                    optimizers.Job(
                        (name, ""),
                        line,
                        host,
                        cell.rules,
                        ("", ()),
                        (),
                        (),
                        cell.kept[""],
                        given,
                        none,
                        none,
                    )
                )
        for job, (amount, keep) in zip(jobs, optimizers.amounts(run, scope, jobs), strict=True):
            name, old = job.name[0], cells[job.name[0]]
            weight = job.weight * retained
            kept = {"": (weight if keep is None else weight * keep) + amount}
            cells[name] = run.cell(level, kept, kept, old.start, old)
            tick = run.sample.spans[level.name][-1]
            run.tell("fire", name, level, tick, old.kept, kept)


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


def paths_of(path: str, loops: tuple[int, ...]) -> list[str]:
    from ..parameters import paths

    return list(paths(path, loops))


# ---- resets and ends ---------------------------------------------------------------------------


def reset(run: Run, level: Level, tick: int) -> None:
    """State, optimizer states and pasts go back to their start; the period ends (2.6.4, 2.6.5)."""
    sample = run.sample
    replayed = replay(run, level) if level.partial == "flush" else None
    for inst in instances(run, level):
        if level.partial == "flush" and inst.period:
            firing.fire(run, inst, list(inst.period), replayed=replayed)
        for name, cell in inst.cells.items():
            tell_reset(run, level, tick, f"{inst.where}.{name}", cell)
        inst.cells, inst.frozen, inst.period, inst.firings, inst.last = {}, {}, [], 0, None
    if level.owner:
        for name, cell in sample.weights.items():
            tell_reset(run, level, tick, name, cell)
        sample.weights = {}
    for key in [k for k in sample.starts if k[3] == level.name]:
        tell_reset(run, level, tick, told_start(key), sample.starts.pop(key))
    for slot in [k for k, of in sample.slot_level.items() if of is level]:
        sample.slots.pop(slot, None)
    for product in [k for k in sample.products if isinstance(k, tuple) and owns(run, level, k[0])]:
        del sample.products[product]
    sample.sequences.pop(f"{level.name}:firings", None)
    sample.ticks[level.name] = 0
    sample.spans[level.name] = []


def tell_reset(run: Run, level: Level, tick: int, path: str, cell: Cell) -> None:
    """A state goes back to its start, and its optimizers' memories to theirs."""
    run.tell("reset", path, level, tick, cell.kept, cell.start)
    for rule in cell.rules.values():
        for inst in (rule, *rule.levels.values()):
            for name, memory in inst.cells.items():
                run.tell_update(inst, name, tick, memory.kept, memory.start, "reset")


def owns(run: Run, level: Level, key: object) -> bool:
    return any(i.key == key and i.level is level for i in run.sample.instances.values())


def finish(run: Run, task: bool = False) -> None:
    """The end of a sequence: what waits happens without its label, then levels on sequences fire,
    then the due are reset (2.7.3). A new sequence begins with what is not reset; one of no ticks is
    none. `task`: so does a new task.
    """
    sample = run.sample
    with torch.set_grad_enabled(run.recording):
        settle(run)
        one = sample.position > 0
        levels = [level for level in run.system.levels if per_sample(level)]
        for level in levels:
            sample.sequences[level.name] = sample.sequences.get(level.name, 0) + one
            sample.tasks[level.name] = sample.tasks.get(level.name, 0) + task
        due = [
            v
            for v in levels
            if one and v.clock.unit == "sequence" and v.clock.fires(sample.sequences[v.name])
        ]
        fire_levels(run, due)
        for level in sorted(levels, key=speed):
            if ends(level.resets, sample.sequences[level.name], sample.tasks[level.name], task):
                reset(run, level, sample.tick)
                sample.sequences[level.name] = sample.tasks[level.name] = 0
        for slot in [k for k, of in sample.slot_level.items() if of is None]:
            sample.slots.pop(slot, None)
        sample.position, sample.ended = 0, sample.ended + one


def ends(clock: Clock, sequences: int, tasks: int, task: bool) -> bool:
    """Nothing that is reset within a sequence outlives it."""
    if clock.unit == "task":
        return task and clock.fires(tasks)
    return clock.unit == "token" or clock.unit == "sequence" and clock.fires(sequences)


def stand_anew(run: Run) -> None:
    """What a box keeps that never changes is a start that training learns, as a weight is, and
    nothing that an earlier call has made.
    """
    for inst in run.sample.instances.values():
        if inst.box is None or not idle(run.system, inst.box):
            continue
        frame = Frame(inst.box, inst.level, inst.key, (), run.index)
        for state in inst.box.states:
            run.start_state(inst, state, frame)
        inst.frozen = {}


def end_of_call(run: Run) -> None:
    """`partial drop` forgets a period that the call cuts short (2.6.5)."""
    waiting = run.sample.pending.tick if run.sample.pending else None
    for inst in run.sample.instances.values():
        level = inst.level
        if level is None or level.partial != "drop" or level.clock.unit != "token":
            continue
        now = run.sample.ticks.get(level.name, 0) + (waiting is not None)
        if not level.clock.fires(now):
            inst.period = []


def truncate(run: Run) -> None:
    """`backprop .. through N tokens`: constants at each multiple of N (2.11.2)."""
    sample = run.sample
    for inst in sample.instances.values():
        if inst.level is None or inst.box is None:
            continue
        ticks = sample.ticks.get(inst.level.name, 0)
        for name, cell in list(inst.cells.items()):
            allowed = run.transfers.cut(inst.level, ticks, inst.box.state(name)) if ticks else None
            if allowed is not None:
                inst.cells[name] = cut_cell(cell, allowed)
                if name in inst.frozen:
                    inst.frozen[name] = cut_cell(inst.frozen[name], allowed)
    for key, level in sample.slot_level.items():
        ticks = sample.ticks.get(level.name, 0) if level is not None else 0
        allowed = run.transfers.cut(level, ticks, None) if level is not None and ticks else None
        if allowed is not None and key in sample.slots:
            sample.slots[key] = tuple(gate(x, allowed) for x in sample.slots[key])


def cut_cell(cell: Cell, allowed: object) -> Cell:
    def cut(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: gate(a, allowed) for n, a in arrays.items()}  # type: ignore[arg-type]

    rules = {k: cut_instance(i, allowed) for k, i in cell.rules.items()}
    return replace(cell, kept=cut(cell.kept), value=cut(cell.value), rules=rules)


def cut_instance(inst: Instance, allowed: object) -> Instance:
    """An optimizer's states are part of the chain of states."""
    inst = inst.fork()
    inst.cells = {n: cut_cell(c, allowed) for n, c in inst.cells.items()}
    inst.levels = {n: cut_instance(i, allowed) for n, i in inst.levels.items()}
    return inst


__all__ = ["Box", "Later", "Sample", "finish", "resolve_later", "settle", "tick", "writes_at_call"]
