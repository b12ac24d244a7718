"""Optimizers (2.9.4, 2.9.6): memories of gradients, which serve each array, of each head, alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.diagnostics import InternalError
from nlc.system import Assign, Box, Learn, Shape, State, Term

from ..parameters import noise, rule_name, start_name
from . import firing
from .evaluate import Scope, evaluate
from .frames import Arrays, Cell, Frame, Instance

if TYPE_CHECKING:
    from .boxes import Run


@dataclass(eq=False)
class Job:
    """One array to be served. `rules` holds its optimizer's states under `place`."""

    name: tuple[str, str]
    line: Learn
    inst: Instance
    rules: dict[Any, Instance]
    place: Any
    per: Shape
    head: tuple[int, ...]
    weight: Tensor
    grad: Tensor
    input: Tensor
    surprise: Tensor
    state: bool = False  # of the box itself

    @property
    def array(self) -> tuple[str, tuple[int, ...]]:
        """The array by the name of its parameter, and its head."""
        if self.inst.box is None or not self.state:
            return self.name[0], self.head
        return start_name(self.inst.key[0], *self.name), (*self.inst.key[1], *self.head)

    @property
    def streams(self) -> dict[str, Tensor]:
        rows = self.input.shape[0]
        streams = {"weight": self.weight, "grad": self.grad}
        if self.weight.ndim == 2 and not rows:
            n, m = self.weight.shape[1], self.weight.shape[0]
            return {
                **streams,
                "input": torch.zeros(0, n).double(),
                "surprise": torch.zeros(0, m).double(),
            }
        return {**streams, "input": self.input, "surprise": self.surprise}


def amounts(
    run: Run, scope: Scope, jobs: list[Job], line: list[Job] | None = None
) -> list[tuple[Tensor, Tensor | None]]:
    """For each array the amount to add, and what fraction the optimizer keeps. `line`: all that the
    line serves, where it is more.
    """

    def across(term: Term) -> Tensor:
        """The sum of a number over all arrays that the line serves (2.9.4)."""
        total = torch.zeros((), dtype=torch.float64)
        for job in jobs if line is None else line:
            total = total + replace(scope, given=job.streams, memo={}, across=across).array(term)
        return total

    made = []
    for job in jobs:
        given = replace(scope, given=job.streams, across=across, memo={})
        streams = job.streams | {n: given.array(t) for n, t in job.line.streams.items()}
        plain = replace(scope, across=across, memo={})
        settings = {
            n: one_head(plain.array(t), job.per, job.head) for n, t in job.line.settings.items()
        }
        made.append(serve(run, scope, job, {**settings, **streams}))
    return made


def one_head(value: Tensor, per: Shape, head: tuple[int, ...]) -> Tensor:
    """A setting of a state `per heads`: one for each head, or one for all (2.5.4)."""
    lead = tuple(value.shape[: len(per)])
    if per and len(lead) == len(per) and all(n in (1, p) for n, p in zip(lead, per, strict=True)):
        return value[tuple(0 if n == 1 else i for n, i in zip(lead, head, strict=True))]
    return value


def serve(
    run: Run, scope: Scope, job: Job, given: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Lines and states in text order; a state fires at its place and is new from there on."""
    box = box_for(job.line, tuple(job.weight.shape))
    inst = job.rules.setdefault(job.place, Instance(box, job.inst.level, (box.name, ())))
    where = rule_name(*job.array, box.name)
    inst.serves = where.removesuffix(f".{box.name}")
    frame = frame_of(scope.frame, box, inst, given, where)
    inst.firings += 1
    frame.count = inst.firings
    due: list[Instance] = []
    for kind, name in (entry.split(":", 1) for entry in box.order):
        if kind == "line":
            run_line(run, frame, box, int(name), inst)
        elif kind == "state":
            change(run, frame, inst, box.state(name), job.weight)
        elif kind == "level":
            due += level_tick(run, frame, inst, name, job.weight)
    own = {n: c.value for n, c in inst.cells.items()}
    at = Scope(run, frame, "write", own)
    amount = at.array(box.write) if box.write is not None else torch.zeros_like(job.weight)
    keep = at.array(box.retain) if box.retain is not None else None
    for level in due:
        fire_level(run, level)
    return amount.expand(job.weight.shape), keep


def box_for(line: Learn, shape: Shape) -> Box:
    """The rule as a box over arrays of this shape; another of as many axes, where it has none."""
    if shape in line.optimizers:
        return line.optimizers[shape]
    alike = [b for s, b in line.optimizers.items() if len(s) == len(shape)] or list(
        line.optimizers.values()
    )
    if not alike:
        raise InternalError(f"`{line.rule}` is not made for arrays of {shape}")
    return alike[0]


def frame_of(
    outer: Frame, box: Box, inst: Instance, given: Mapping[str, Tensor], where: str
) -> Frame:
    named = dict(given)
    names: dict[str, Any] = {}
    family = {id(box): inst}
    return Frame(
        box, outer.level, (where, ()), outer.rounds, outer.sample, outer.tick, outer.position,
        inputs={"read": named, "write": named}, names={"read": names, "write": names},
        family=family, leaves=outer.leaves,
    )  # fmt: skip


def run_line(run: Run, frame: Frame, box: Box, index: int, inst: Instance) -> None:
    line = box.lines[index]
    if not isinstance(line, Assign):
        raise InternalError("rounds in an optimizer are written out")
    own = {n: c.value for n, c in inst.cells.items()}
    frame.names["write"][line.name] = evaluate(line.value, Scope(run, frame, "write", own))


def change(run: Run, frame: Frame, inst: Instance, state: State, weight: Tensor) -> None:
    """A state of an optimizer fires at its place (2.9.6)."""
    start(run, frame, inst, state, weight)
    see(frame, inst)
    if state.rule.changes:
        firing.fire(run, inst, [frame], only=state.name)


def see(frame: Frame, inst: Instance) -> None:
    frame.values = {n: c.value for n, c in inst.cells.items()}
    frame.frozen = dict(frame.values)
    frame.frozen_kept = {n: c.kept for n, c in inst.cells.items()}


def start(run: Run, frame: Frame, inst: Instance, state: State, weight: Tensor) -> None:
    """`like(weight)` starts at zeros, a network from a draw made once; or what the spec gives."""
    if state.name in inst.cells:
        return
    if state.start is not None and state.start.op not in ("zeros", "normal"):
        own = {n: c.value for n, c in inst.cells.items()}
        shapes = {n: tuple(a.shape) for n, a in drawn(run, frame, state, weight)}
        kept = firing.whole(evaluate(state.start, Scope(run, frame, "write", own)), shapes)
    else:
        kept = dict(drawn(run, frame, state, weight))
    value = firing.read_as(run, state, kept, kept, frame)
    inst.cells[state.name] = Cell(kept, value, value, kept)


def served(box: Box | None) -> Shape | None:
    """The shape of the arrays that the rule was made for."""
    while box is not None:
        shapes = dict(box.inputs)
        if "weight" in shapes or "grad" in shapes:
            return shapes.get("weight", shapes.get("grad"))
        box = box.parent
    return None


def drawn(run: Run, frame: Frame, state: State, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    std = (
        float(state.start.info) if state.start is not None and state.start.op == "normal" else None
    )
    for array in state.form.arrays:
        same = state.form.kind == "like" and array.shape == served(frame.box)
        shape = tuple(weight.shape) if same else array.shape
        deviation = array.std if state.start is None else std
        zeros = torch.zeros(shape, dtype=torch.float64)
        place = start_name(frame.where, state.name, array.name)
        yield array.name, noise(place, shape, run.seed) * deviation if deviation else zeros


# ---- levels inside an optimizer ----------------------------------------------------------------


def level_tick(run: Run, frame: Frame, inst: Instance, name: str, weight: Tensor) -> list[Instance]:
    """A level in an optimizer counts the firings it serves, and fires after the write (2.9.6)."""
    outer = inst.box
    if outer is None:
        raise InternalError("an optimizer without a box")
    box = next(b for b in outer.levels if b.name == name)
    level = inst.levels.setdefault(name, Instance(box, inst.level, (name, ()), serves=inst.serves))
    frame.family[id(box)] = level
    inner = replace(frame, box=box, names={}, foreign={}, family=dict(frame.family))
    named = dict(frame.names["write"])
    inner.names = {"read": named, "write": named}
    inner.family[id(outer)] = replace(inst, cells=dict(inst.cells))
    inner.count = level.firings + 1
    for state in box.states:
        start(run, inner, level, state, weight)
    for line in box.lines:
        if isinstance(line, Assign):
            own = {n: c.value for n, c in level.cells.items()}
            named[line.name] = evaluate(line.value, Scope(run, inner, "write", own))
    see(inner, level)
    level.ticks += 1
    level.period.append(inner)
    clock = box.clock
    return (
        [level] if clock is not None and clock.unit == "step" and clock.fires(level.ticks) else []
    )


def fire_level(run: Run, level: Instance) -> None:
    firing.fire(run, level, list(level.period))


def arrays_of(cells: Mapping[str, Cell]) -> dict[str, Arrays]:
    return {n: c.kept for n, c in cells.items()}
