"""Parameters once, states for each sequence, in numbers and in bytes of float32."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..driver import Spec
from ..levels import Component
from ..system import ALL, Assign, Box, Line, Slot, System, Term
from .cost import amount
from .lines import Row, Rows, table


def number_lines(spec: Spec) -> list[str]:
    rows: Rows = []
    for c in spec.level_graph.components:
        if c.numbers and c.clock.unit != "always":  # what is solved keeps only its pasts
            rows.append(Row(c.name, f"{_amount(c.numbers)}{_each(spec, c)}: {_parts(c)}"))
    frozen = sum(_states(b) for b in spec.system.boxes if b.linearise is not None)
    if frozen:
        rows.append(
            Row("linearise", f"{_amount(frozen)} a sequence: the states of the chunk's start")
        )
    fixed, growing = _pasts(spec.system)
    if fixed:
        rows.append(Row("pasts", f"{_amount(fixed)} a sequence: conv, and windows of past"))
    if growing:
        rows.append(
            Row("pasts", f"{_amount(growing)} more for each token: what is never forgotten")
        )
    return table(rows)


def _states(box: Box) -> int:
    copies = prod(box.loops) * prod(box.mapped)
    arrays = [prod(s.shape(a)) for s in box.states for a in s.form.arrays]
    return copies * sum(arrays)


def _amount(numbers: int) -> str:
    return f"{numbers:,} ({amount(numbers)})"


def _each(spec: Spec, c: Component) -> str:
    level = next(l for l in spec.system.levels if l.name == c.level)
    return "" if level.clock.unit in ("step", "task", "never") else " a sequence"


def _parts(c: Component) -> str:
    return ", ".join(f"{p.name} {p.total:,}" for p in c.parts)


def _pasts(system: System) -> tuple[int, int]:
    """Numbers that windows hold, and numbers that each token adds to a past without one."""
    slots: dict[str, tuple[Slot, int]] = {}
    roots = [t for line in system.flow.lines for t in _values(line)] + [system.flow.result]
    terms = [t for root in roots for t in root.walk()]
    for box in system.boxes:
        terms += list(box.terms())
    for t in terms:
        if isinstance(t.info, Slot) and t.info.kind in ("past", "conv", "fade"):
            owner = t.info.box
            copies = prod(owner.loops) * prod(owner.mapped) if owner else _rounds(system, t.info)
            slots[t.info.path] = t.info, prod(t.args[0].shape) * copies
    fixed = sum(n * s.window for s, n in slots.values() if s.window != ALL)
    return fixed, sum(n for s, n in slots.values() if s.window == ALL)


def _values(line: Line) -> Iterator[Term]:
    if isinstance(line, Assign):
        yield line.value
    else:
        for inner in line.lines:
            yield from _values(inner)


def _rounds(system: System, slot: Slot) -> int:
    """How many copies a slot of the flow has: those of the weights beside it."""
    where = slot.path.rpartition(".")[0]
    return next((prod(w.loops) for w in system.weights if w.path.startswith(where)), 1)


__all__ = ["number_lines"]
