"""What a memory is run on: each of its streams drawn where it makes sense.

In: a memory in the small system around it. Out: for each stream the numbers that it is drawn from:
what is kept lies between 0 and 1, a rate is small enough that the memory does not run away, and the
rest is normal, of length about 1. A call may say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..explain.classes import class_of
from ..explain.derived import Derived
from ..system import Assign, Box, Shape, State, System, Term
from .streams import Streams


@dataclass(frozen=True)
class Range:
    """Evenly between two numbers."""

    low: float
    high: float

    def __str__(self) -> str:
        same = self.low == self.high
        return f"{self.low:g}" if same else f"from {self.low:g} to {self.high:g}"


Ranges = Mapping[str, Range | None]  # by stream; None: normal, of length about 1

GATE = Range(0, 1)
BENT = Range(0, 0.03)  # rates where a step is not affine in the state, and runs away sooner
DEEP, LASTING = Range(0, 0.01), Range(0.999, 1)  # a network that keeps less shrinks to nothing
AS_IT_IS = {"index", "item", "column", "squeeze", "expand", "past", "stop"}
ENTRIES = AS_IT_IS | {"add", "sub", "mul", "div", "neg", "pow", "where", "clip", "min", "max"}
ENTRIES |= {"exp", "log", "sqrt", "abs", "sigmoid", "softplus", "tanh", "relu"}
CONTRACTS = ("i", "ii", "ii-ch", "ii-mom")  # classes that a rate below 1 keeps stable


def ranges(system: System, box: Box, own: Mapping[str, Shape]) -> dict[str, Range | None]:
    """By what the rule does with each stream. `own`: its axes, without those of heads."""
    lines = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
    found: dict[str, Range | None] = {n: None if shape else GATE for n, shape in own.items()}
    found |= dict.fromkeys(multiplied(box, own), GATE)
    for state in box.states:
        settings = {k: t for l in state.rule.learn.values() for k, t in l.settings.items()}
        rates = [settings.pop("rate")] if "rate" in settings else []
        kept = [] if state.rule.retain is None else [state.rule.retain]
        found |= dict.fromkeys(streams_in(rates, lines), rate_of(box, state, system))
        found |= dict.fromkeys(streams_in(settings.values(), lines), GATE)
        found |= dict.fromkeys(streams_in(kept, lines), GATE if state.form.single else LASTING)
    return {n: found[n] for n in own}


def rate_of(box: Box, state: State, system: System) -> Range:
    if not state.form.single:
        return DEEP
    found = class_of(Derived(box, state, system))
    return GATE if found is not None and found[0] in CONTRACTS else BENT


def streams_in(
    terms: Iterable[Term], lines: Mapping[str, Term], seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Those that enter entry by entry: not by way of a length, or of what the memory says."""
    for t in terms:
        if t.op == "input":
            yield t.info
        elif t.op == "local" and t.info in lines and t.info not in seen:
            yield from streams_in([lines[t.info]], lines, seen | {t.info})
        elif t.op in ENTRIES:
            yield from streams_in(t.args[t.op == "where" :], lines, seen)


def multiplied(box: Box, own: Mapping[str, Shape]) -> set[str]:
    """Streams with sizes that do nothing but scale another one, given before them, or a state."""
    order = list(own)
    scales: set[str] = set()
    asked: set[str] = set()
    for parent in {id(t): t for t in box.terms()}.values():
        for arg, other in zip(parent.args, parent.args[::-1], strict=True):
            stream = plain(arg)
            if stream.op != "input" or stream.info not in own or parent.op in AS_IT_IS:
                continue
            before = order[: order.index(stream.info)]
            gate = parent.op == "mul" and scaled(other, before, own)
            (scales if gate else asked).add(stream.info)
    return scales - asked


def plain(term: Term) -> Term:
    """A stream of which an entry is taken, or that is stretched."""
    while term.op in AS_IT_IS and term.args:
        term = term.args[0]
    return term


def scaled(other: Term, before: list[str], own: Mapping[str, Shape]) -> bool:
    return any(
        (t.op == "input" and t.info in before and own[t.info]) or t.op in ("apply", "state")
        for t in other.walk()
    )


def draw(system: System, found: Ranges, batch: int, time: int, seed: int) -> Streams:
    """[batch, time, heads, ..] for each input of the flow."""
    pick = torch.Generator().manual_seed(1000 * seed + time)
    return tuple(
        drawn(found[name], (batch, time, *shape), pick) for name, shape in system.flow.inputs
    )


def drawn(found: Range | None, shape: Shape, pick: torch.Generator) -> Tensor:
    if found is None:
        normal: Tensor = torch.randn(shape, generator=pick, dtype=torch.float64)
        return normal.div(shape[-1] ** 0.5)
    evenly: Tensor = torch.rand(shape, generator=pick, dtype=torch.float64)
    return evenly.mul(found.high - found.low).add(found.low)


def told(found: Ranges) -> str:
    """`q, k, v normal, of length about 1; alpha, beta from 0 to 1`."""
    groups: dict[str, list[str]] = {}
    for name, r in found.items():
        groups.setdefault("normal, of length about 1" if r is None else str(r), []).append(name)
    return "; ".join(f"{', '.join(names)} {how}" for how, names in groups.items())


__all__ = ["Range", "Ranges", "draw", "ranges", "told"]
