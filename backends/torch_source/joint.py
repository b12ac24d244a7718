"""Starts that levels on tokens learn, and the tables of who may enter what (runtime/joint.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from nlc.diagnostics import InternalError
from nlc.lacking import NotLowered
from nlc.system import Array, Box, Learn, Level, State

from ..parameters import array_kind, paths
from .bodies import Module, state_path
from .layout import entry


@dataclass(frozen=True)
class Start:
    """An array that level `by` learns, from which `source` starts: `fast.F.W1@mid`."""

    box: Box
    state: State
    array: Array
    path: str
    by: Level
    source: str  # what starts from it
    of: Level  # whose that is


def every_start(module: Module) -> Iterator[Start]:
    """The starts of all arrays, in the order of their chains: M@A, then M@A@Z."""
    joint = module.plan.joint
    if joint is None:
        return
    levels = {l.name: l for l in module.plan.learners}
    for level in module.plan.learners:
        for box in loss_boxes(module, level):
            for state in box.states:
                for array in state.form.arrays:
                    path, of = state_path(box, state.name, array.name), level
                    for by in (levels[n] for n in joint.chains[level.name] if n):
                        yield Start(box, state, array, f"{path}@{by.name}", by, path, of)
                        path, of = f"{path}@{by.name}", by


def loss_boxes(module: Module, level: Level) -> list[Box]:
    boxes = module.plan.system.boxes
    return [b for b in boxes if b.level is level and module.plan.of(b).kind == "loss"]


def hold_starts(module: Module) -> None:
    """Rows of the table of states, beside those of the arrays themselves."""
    for start in every_start(module):
        first = start.path.partition("@")[0]
        held = next(h for h in module.held if h.path == first)
        module.hold(start.path, held.loops, held.shape, held.start)


def learned_starts(module: Module, level: Level) -> list[Start]:
    return [s for s in every_start(module) if s.by is level]


# ---- by which rule -------------------------------------------------------------------------------


def line_for(module: Module, start: Start) -> Learn:
    """A's rule: that of A, or of the memory A calls that learns `loss` (2.11.4)."""
    state = next((s for b in loss_boxes(module, start.by) for s in b.states if s.rule.learn), None)
    if state is None:
        raise InternalError(f"`{start.by.name}` learns starts without a rule")
    lines = list({id(line): line for line in state.rule.learn.values()}.values())
    owner = start.box.level.name if start.box.level is not None else ""
    names = owner, start.state.name, f"{owner}.{start.state.name}"
    kind = array_kind(start.state)
    return next((line for line in lines if line.serves(kind, *names)), lines[0])


def rule_for(module: Module, start: Start, line: Learn) -> Box:
    """The rule over arrays of this shape, whatever state it serves there."""
    lines = [
        other
        for b in loss_boxes(module, start.by) for s in b.states for other in s.rule.learn.values()
        if other is line or other.span == line.span and other.rule == line.rule
    ]  # fmt: skip
    shape = start.array.shape
    for other in lines:
        if shape in other.optimizers:
            return other.optimizers[shape]
    told = f"a start that `{start.by.name}` learns, of a shape that it has not itself,"
    raise NotLowered(told, line.span)


# ---- tables --------------------------------------------------------------------------------------


def write_tables(module: Module) -> None:
    joint = module.plan.joint
    if joint is None:
        return
    code = module.code
    code.add("JOINT = True", f"SECOND = {joint.second!r}  # levels on tokens, training")
    tables: list[tuple[str, str, Mapping[str, Any]]] = [
        ("ENTERS", "whose gradients enter what a level writes", joint.enters),
        ("CHAINS", "who learns the starts of a level", joint.chains),
        ("FIRST", "to whom a level's gradients are constants", joint.first),
        ("JOINED", "the arrays of a level by state, and the starts it learns", joined(module)),
    ]
    for name, about, rows in tables:
        code.add(f"{name} = (  # {about}")
        for row in rows.items():
            code.add(*entry(row, 4))
        code.add(")")
    chained = [
        (path, start.of.name, source)
        for start in every_start(module)
        for path, source in zip(
            paths(start.source, start.box.loops), paths(start.path, start.box.loops), strict=True
        )
    ]
    code.add("CHAINED = (  # array, level, the array that it starts from")
    for listed in chained:
        code.add(*entry(listed, 4))
    code.add(")")


def joined(module: Module) -> dict[str, Any]:
    """Of each level, arrays by state: those it writes, and the starts that it learns."""
    made: dict[str, Any] = {}
    for level in module.plan.learners:
        own = [
            tuple(t.format(*r) for t in group)
            for box in loss_boxes(module, level) for state in box.states
            for group in [[state_path(box, state.name, a.name) for a in state.form.arrays]]
            for r in rounds(box)
        ]  # fmt: skip
        starts: dict[tuple[str, str, str], list[Start]] = {}
        for start in learned_starts(module, level):
            chain = start.path.partition("@")[2]
            starts.setdefault((start.box.path, start.state.name, chain), []).append(start)
        learned = [
            tuple(s.path.format(*r) for s in group)
            for group in starts.values() for r in rounds(group[0].box)
        ]  # fmt: skip
        made[level.name] = (tuple(own), tuple(learned))
    return made


def rounds(box: Box) -> Iterator[tuple[int, ...]]:
    return product(*(range(n) for n in box.loops))


__all__ = [
    "Start", "hold_starts", "learned_starts", "line_for", "rule_for", "write_tables",
]  # fmt: skip
