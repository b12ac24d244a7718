"""What is remembered while a system runs: frames for calls of bodies, instances for boxes.

A frame holds one tick of one body in two roles (2.7.2, 2.11.1): `read`, what the flow sees, where
gradients pass through as functions of the inputs; and `write`, what enters the body's states,
behind gates. The numbers of the two are the same. Nothing in a frame changes once its tick is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nlc.system import Box, Level, Term

UPDATES = ("fire", "remember", "reset")
EVENTS = (*UPDATES, "read")


@dataclass(frozen=True, slots=True)
class Record:
    """One event of a run.

    `event`: "fire", a state, a weight or a learned start is written; "remember", a memory of an
    optimizer is; "reset"; "read". `before` and `after` are lengths. `tick` counts from 1 in each
    stream, and `step` is the step of training that it is part of (or that comes next). What lives
    on steps and tasks is one for all: there `sample` is -1 and `tick` 0.

    `clock`: of what is written; inside an optimizer a step is one firing of what it serves, and
    `serves` is the array whose gradients it remembers. Of a read, `reader` is who reads, and `sees`
    is "old": the state before this tick's write; "new": after it; "frozen": as it was at the start
    of the N tokens (2.9.7); "solved": made for this read.
    """

    tick: int
    sample: int
    path: str
    event: str
    before: float = 0.0
    after: float = 0.0
    step: int = 1
    clock: str = ""
    serves: str = ""
    reader: str = ""
    sees: str = ""


Arrays = Mapping[str, Tensor]
Value = Tensor | dict[str, Tensor]
Key = tuple[str, tuple[int, ...]]


class Missing(Exception):
    """A stream that is not given at this tick, or not yet (2.10.2)."""


@dataclass(frozen=True)
class Later:
    """A value that waits for the next input: the term, and the names at its place."""

    term: Term
    frame: Frame
    role: str
    names: Mapping[str, Any]
    rounds: tuple[int, ...]
    head: tuple[int, ...] | None = None  # of a mapped call: which part of it
    allowed: Any = None  # the gate it passes on its way into a box


Named = dict[str, Any]  # name -> Value or Later


@dataclass(eq=False)
class Frame:
    """One call of a body at one tick. `values`: its states as reads see them before the write;
    `frozen`: as writes see them (2.9.7); the `kept` ones are in the dual (2.9.3).
    """

    box: Box | None
    level: Level | None
    key: Key
    rounds: tuple[int, ...] = ()
    sample: int = 0
    tick: int = 0
    position: int = 0
    count: int = 1
    both: bool = False
    inputs: dict[str, Named] = field(default_factory=dict)
    names: dict[str, Named] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)  # own input -> the flow's, as it is
    values: dict[str, Arrays] = field(default_factory=dict)
    after: dict[str, Arrays] = field(default_factory=dict)
    frozen: dict[str, Arrays] = field(default_factory=dict)
    frozen_kept: dict[str, Arrays] = field(default_factory=dict)
    family: dict[int, Instance] = field(default_factory=dict)  # of an optimizer: its boxes
    foreign: dict[Any, Arrays] = field(default_factory=dict)
    older: dict[Key, tuple[Tensor, ...]] = field(default_factory=dict)
    entries: dict[Key, Tensor] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    solved: dict[tuple[str, str], Arrays] = field(default_factory=dict)
    results: dict[str, Value] = field(default_factory=dict)
    reads: set[tuple[str, str]] = field(default_factory=set)  # told to the trace
    leaves: Mapping[str, Tensor] = field(default_factory=dict)  # the parameters of its call

    @property
    def heads(self) -> tuple[int, ...]:
        return self.key[1]

    @property
    def where(self) -> str:
        """The instance's name in traces."""
        return self.key[0] + "".join(f"[{i}]" for i in self.key[1])


@dataclass(eq=False)
class Call:
    """A box called at this tick: one frame for each head it is mapped over."""

    box: Box
    frames: list[Frame]
    results: dict[str, Value] = field(default_factory=dict)


@dataclass(eq=False)
class Cell:
    """One state of one instance. `kept` is the state as it is kept, `value` as it is read, and
    `standing` the node that stood since the last firing, for gradients of the loss.
    """

    kept: Arrays
    value: Arrays
    standing: Arrays
    start: Arrays
    rules: dict[Any, Instance] = field(default_factory=dict)  # optimizer states, one an array


@dataclass(eq=False)
class Instance:
    """A box as it lives: its states, and the ticks since it last fired."""

    box: Box | None
    level: Level | None
    key: Key
    cells: dict[str, Cell] = field(default_factory=dict)
    period: list[Frame] = field(default_factory=list)
    firings: int = 0
    ticks: int = 0  # of a level inside an optimizer
    tasks: int = 0  # over, of a level inside an optimizer
    frozen: dict[str, Cell] = field(default_factory=dict)  # at the start of the chunk (2.9.7)
    levels: dict[str, Instance] = field(default_factory=dict)  # inside an optimizer
    last: Frame | None = None  # the last tick's
    serves: str = ""  # of an optimizer: the array

    @property
    def where(self) -> str:
        """Its name in traces."""
        return self.key[0] + "".join(f"[{i}]" for i in self.key[1])

    def fork(self) -> Instance:
        """A copy that lives on by itself; tensors and frames do not change and are shared."""
        return replace(
            self, cells=fork_cells(self.cells), period=list(self.period),
            frozen=dict(self.frozen), levels={n: i.fork() for n, i in self.levels.items()},
        )  # fmt: skip


def fork_cells(cells: Mapping[Any, Cell]) -> dict[Any, Cell]:
    return {
        n: replace(c, rules={k: i.fork() for k, i in c.rules.items()}) for n, c in cells.items()
    }
