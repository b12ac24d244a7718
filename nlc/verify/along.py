"""The reference interpreter as an operation: answers in one graph with the streams, and the states
that it stands at, which may be leaves of that graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..backends.parameters import boxes, mapped, paths
from ..backends.reference import Reference, firing, stream
from ..backends.reference.boxes import Run, Sample
from ..backends.reference.frames import Arrays, Cell, Instance
from ..backends.reference.gates import Learner, alias, learning
from ..system import Shape


class Along:
    """A batch of streams, read tick by tick."""

    def __init__(self, reference: Reference, batch: int) -> None:
        self.reference = reference
        passing = reference.passing(True, True)
        self.runs = [Run(passing, Sample(), b) for b in range(batch)]

    def __call__(self, streams: Mapping[str, Tensor]) -> Tensor:
        """Answers [batch, time, ..], with the graph back to the streams."""
        time = next(iter(streams.values())).shape[1]
        rows = []
        for run in self.runs:
            ticks = [{n: x[run.index, t] for n, x in streams.items()} for t in range(time)]
            rows.append(torch.stack([stream.tick(run, x) for x in ticks]))  # type: ignore[misc]
        return torch.stack(rows)

    # ---- states ----------------------------------------------------------------------------------

    def states(self) -> dict[str, Tensor]:
        """What is kept now, by path, each [batch, heads, ..]: states, and those of their rules."""
        made = {}
        for path, heads, find in self.places():
            rows = [find(run, head).kept for run, head in self.each(heads)]
            made[path] = torch.stack(rows).reshape(len(self.runs), *heads, *rows[0].shape)
        return made

    def leaves(self) -> dict[str, Tensor]:
        """The same, as leaves that all that comes is made from."""
        made = {n: x.detach().clone().requires_grad_() for n, x in self.states().items()}
        for path, heads, find in self.places():
            for run, head in self.each(heads):
                find(run, head).put(run, made[path][(run.index, *head)])
        return made

    def each(self, heads: Shape) -> Iterator[tuple[Run, Shape]]:
        return product(self.runs, product(*map(range, heads)))

    def places(self) -> Iterator[tuple[str, Shape, Find]]:
        """Path, heads, and where it is kept of one sample and head."""
        instances = self.runs[0].sample.instances
        for box in (b for b in boxes(self.reference.system) if not b.exact):
            heads = mapped(box)
            for path in paths(box.path, box.loops):
                inst = instances.get((path, (0,) * len(heads)))
                for state, cell in () if inst is None else inst.cells.items():
                    for array in cell.kept:
                        yield joined(path, state, array), heads, Find(path, state, array)
                    for array, inner in served(cell):
                        where = joined(path, state, array, inner)
                        yield where, heads, Find(path, state, array, inner)


def gradients(truth: Reference, y: Tensor, up: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Those of sum(up * y), as the level on steps takes them."""
    level = next(v for v in truth.system.levels if v.clock.unit == "step")
    with learning(Learner(level, "weights")):
        found = torch.autograd.grad(y, leaves, up, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def joined(*parts: str) -> str:
    return ".".join(x for x in parts if x)


def served(cell: Cell) -> Iterator[tuple[str, str]]:
    """The arrays that an optimizer serves, with what it keeps of each."""
    for (array, head), rule in cell.rules.items():
        if not head:
            yield from ((array, inner) for inner in rule.cells)


@dataclass(frozen=True)
class Spot:
    """One array of one sample and head."""

    inst: Instance
    state: str
    array: str

    @property
    def kept(self) -> Tensor:
        return self.inst.cells[self.state].kept[self.array]

    def put(self, run: Run, leaf: Tensor) -> None:
        """A leaf in its place; what is read of it is made anew (2.9.3)."""
        inst, cell = self.inst, self.inst.cells[self.state]
        kept: Arrays = {**cell.kept, self.array: leaf}
        read = kept
        if inst.box is not None and inst.last is not None:
            read = firing.read_as(run, inst.box.state(self.state), kept, cell.start, inst.last)
        read = {n: alias(x) for n, x in read.items()}
        inst.cells[self.state] = Cell(kept, read, read, cell.start, cell.rules)


@dataclass(frozen=True)
class Find:
    """`inner`: a state of the optimizer that serves the array, which has one array itself."""

    path: str
    state: str
    array: str
    inner: str = ""

    def __call__(self, run: Run, head: Shape) -> Spot:
        inst = run.sample.instances[self.path, head]
        if not self.inner:
            return Spot(inst, self.state, self.array)
        rule = inst.cells[self.state].rules[self.array, ()]
        return Spot(rule, self.inner, next(iter(rule.cells[self.inner].kept)))
