"""What a system is run on to see what holds: random inputs, calls, gradients.

A stream is a tuple with one tensor [batch, time, ..] for each input of the flow. A `Run` is the
compiled module or the reference: streams and a state in, answers [batch, time, ..] and a state out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backends.ids import looked_up
from ..backends.reference import Reference, training
from ..backends.reference import State as ReferenceState
from ..backends.runtime import Model, State
from ..system import Assign, Line, System, Term

Streams = tuple[Tensor, ...]
Run = Callable[[Streams, Any], tuple[Tensor, Any]]
Grads = dict[str, Tensor]


# ---- inputs --------------------------------------------------------------------------------------


def random_streams(
    system: System, batch: int, time: int, seed: int = 0, distinct: bool = False
) -> Streams:
    """Ids where the flow looks them up or compares them, normal numbers elsewhere.

    `distinct`: no id twice in a sample; the time is shorter where there are too few.
    """
    rows = vocabularies(system)
    if distinct and rows:
        time = min(time, *rows.values())
    draw = torch.Generator().manual_seed(1000 * seed + time)
    made = []
    for name, shape in system.flow.inputs:
        if name not in rows:
            made.append(torch.randn(batch, time, *shape, generator=draw, dtype=torch.float64))
        elif distinct:
            orders = [torch.randperm(rows[name], generator=draw)[:time] for _ in range(batch)]
            made.append(torch.stack(orders))
        else:
            made.append(torch.randint(0, rows[name], (batch, time, *shape), generator=draw))
    return tuple(made)


def vocabularies(system: System) -> dict[str, int]:
    """The inputs that are ids, and how many ids there are."""
    values = dict(assignments(system.flow.lines))
    found: dict[str, int] = {}
    for ids, size in looked_up(system):
        for name in inputs_of(ids, values):
            found[name] = min(size, found.get(name, size))
    return found


def assignments(lines: Sequence[Line]) -> Iterator[tuple[str, Term]]:
    for line in lines:
        if isinstance(line, Assign):
            yield line.name, line.value
        else:
            yield from assignments(line.lines)


def inputs_of(term: Term, values: dict[str, Term]) -> set[str]:
    """The inputs of the flow that a term is made of, through lines that give them other names."""
    found = {t.info for t in term.walk() if t.op == "input"}
    for t in term.walk():
        if t.op == "local" and t.info in values:
            rest = {n: v for n, v in values.items() if n != t.info}
            found |= inputs_of(values[t.info], rest)
    return found


def changed(streams: Streams, system: System, start: int, sample: int | None = None) -> Streams:
    """Every input other from a tick on, of one sample or of all."""
    rows = vocabularies(system)
    made = []
    for (name, _), x in zip(system.flow.inputs, streams, strict=True):
        other = x.clone()
        part = other[:, start:] if sample is None else other[sample, start:]
        part.copy_((part + 1) % rows[name] if name in rows else part + 1)
        made.append(other)
    return tuple(made)


def ticks(streams: Streams, first: int, last: int | None = None) -> Streams:
    return tuple(x[:, first:last] for x in streams)


# ---- runs ----------------------------------------------------------------------------------------


def run_of(made: Model | Reference) -> Run:
    if isinstance(made, Reference):
        return made
    return lambda streams, state: made(*streams, state=state)


@contextmanager
def answering(model: Model) -> Iterator[Model]:
    """While no level on steps learns: nothing is dropped (2.12)."""
    trains = model.training
    yield model.eval()
    model.train(trains)


def in_calls(run: Run, streams: Streams, cuts: Sequence[int]) -> Tensor:
    """The answers of one stream, in calls that end at `cuts`."""
    state, made = None, []
    for first, last in pairwise([0, *cuts, streams[0].shape[1]]):
        y, state = run(ticks(streams, first, last), state)
        made.append(y)
    return torch.cat(made, 1)


def gradients(model: Model, streams: Streams, state: State | None = None) -> Grads:
    """Of the mean loss, to every array that is trained."""
    model.zero_grad()
    losses, labelled, _ = model.losses(*streams, state=state)
    if losses.requires_grad:
        losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_weights()
        if p.requires_grad
    }


@dataclass(frozen=True)
class Truth:
    """What the reference makes of a call. `losses`, `labelled` [batch, time]."""

    outputs: Tensor
    losses: Tensor
    labelled: Tensor
    gradients: Grads


def truth_of(reference: Reference, streams: Streams, state: ReferenceState | None = None) -> Truth:
    """One run of the reference, with gradients where there is a loss."""
    first = state.samples[0].tick if state is not None else 0
    learns = reference.system.flow.loss is not None
    passing, outputs, after = reference.run(streams, state, learns)
    losses = torch.zeros(outputs.shape[:2], dtype=torch.float64)
    labelled = torch.zeros(outputs.shape[:2], dtype=torch.bool)
    for b, sample in enumerate(after.samples):
        for t in range(outputs.shape[1]):
            loss = sample.losses.get(first + t + 1)
            if loss is not None:
                losses[b, t], labelled[b, t] = loss.detach(), True
    found = training.gradients(reference, passing) if learns and bool(labelled.any()) else {}
    return Truth(outputs, losses, labelled, found)


# ---- differences ---------------------------------------------------------------------------------


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, in parts of the largest number of `b`."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300)


def apart(a: Tensor, b: Tensor, since: int = 0) -> tuple[float, str]:
    """The distance of two runs [batch, time, ..], and at which token it is that far."""
    off = distance(a, b)
    if off == 0 or a.shape != b.shape:
        return off, "" if a.shape == b.shape else f"{tuple(a.shape)}, not {tuple(b.shape)}"
    off_at = (a - b).detach().abs().nan_to_num(math.inf)
    ticks = off_at.reshape(*a.shape[:2], -1).amax((0, 2))
    return off, f"token {since + int(ticks.argmax()) + 1}"


def farthest(a: Grads, b: Grads, least: float = 1e-6) -> tuple[float, str]:
    """The largest distance of two gradients of the same arrays, and of which array it is.

    A gradient that is rounding next to the largest one, below `least` of it, has no digits of its
    own.
    """
    if set(a) != set(b):
        return float("inf"), ", ".join(sorted(set(a) ^ set(b)))
    floor = least * max((float(g.abs().max()) for g in b.values()), default=0.0)
    worst, where = 0.0, ""
    for name, g in a.items():
        size = max(float(b[name].abs().max()), floor, 1e-300)
        off = float((g - b[name]).abs().max()) / size
        if exceeds(off, worst):
            worst, where = off, name
    return worst, where


def exceeds(off: float, worst: float) -> bool:
    """What is no number exceeds every number, and nothing exceeds it."""
    return not (off <= worst or math.isnan(worst))


class Nudged(TorchFunctionMode):
    """Adds to every id that is looked up a row of its own of zeros: `nudges`, by the shape of the
    table, are what a gradient to a token is a gradient to, wherever else the table is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nudges: dict[tuple[int, ...], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return made
        ids, table = args[:2]
        shape = tuple(table.shape)
        if shape not in self.nudges:
            self.nudges[shape] = torch.zeros_like(table, requires_grad=True)
        return made + self.nudges[shape][ids]
