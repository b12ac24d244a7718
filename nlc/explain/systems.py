"""The page of a system: its levels slowest first, its optimizers, what crosses, what it weighs."""

from __future__ import annotations

from math import prod

from ..driver import Spec
from ..lower import lower
from ..show import Writer
from ..system import Box, Level, System
from .boxes import box_text, signature
from .lines import INDENT, Row, Rows, said, table
from .numbers import number_lines
from .optimizers import optimizer_lines
from .rules import spelled
from .transfers import transfer_lines


def system_text(spec: Spec) -> list[str]:
    system = spec.system
    settings = ", ".join(f"{n} = {v}" for n, v in system.settings.items())
    out = [f"system {system.name}({settings})"]
    out += [INDENT + text for text in (*system.doc.splitlines(), *system.cites)]
    told: dict[str, list[Level]] = {}
    for level in spec.levels:
        told.setdefault("\n".join(_level(spec, level)), []).append(level)
    for text, levels in told.items():
        out += ["", *(_heading(spec, level) for level in levels), text]
    out += _optimizers(system)
    if system.transfers:
        out += ["", "Transfers", *transfer_lines(system)]
    return [*out, "", "Numbers", *number_lines(spec), *_untold(spec)]


def _heading(spec: Spec, level: Level) -> str:
    graph = spec.level_graph
    rank = max(graph.rank(c.name) for c in graph.components if c.level == level.name)
    rank = next((graph.rank(c.name) for c in graph.components if c.name == level.name), rank)
    resets = level.resets
    ends = "never reset" if resets.unit == "never" else f"reset {resets}"
    return f"level {level.name}, {level.clock}, {ends} (level {rank} of {len(graph.levels)})"


def _level(spec: Spec, level: Level) -> list[str]:
    out = [INDENT + line for line in level.doc.splitlines()]
    if level.owner:
        out += table(_owner(level))
    boxes = [b for b in spec.system.boxes if b.level is level and (b.states or b.lines or b.read)]
    texts: dict[str, list[Box]] = {}
    for box in boxes:
        texts.setdefault("\n".join([signature(box), *_box(box, spec.system)]), []).append(box)
    for text, same in texts.items():
        copies = sum(prod(b.loops) for b in same)
        first, _, rest = text.partition("\n")
        made = f", {copies} copies" if copies > 1 else ""
        heads = f" of {prod(same[0].mapped)} heads" if same[0].mapped else ""
        out += ["", f"{INDENT}{first}{made}{heads}", *rest.splitlines()]
    return out[1:] if out and not out[0] else out


def _box(box: Box, system: System) -> list[str]:
    out = [INDENT + line for line in (*box.doc.splitlines(), *box.cites)]
    return [INDENT + line if line else line for line in out + box_text(box, system)]


def _owner(level: Level) -> Rows:
    w = Writer()
    rows = spelled(w, "objective", "", level.objective) if level.objective is not None else []
    for learn in level.learn:
        given = {**learn.streams, **learn.settings}
        settings = ", ".join(f"{n} = {w.text(t)}" for n, t in given.items())
        served = f" for {', '.join(learn.targets)}" if learn.targets else ""
        steps = f", {learn.steps} times on the same data" if learn.steps > 1 else ""
        rows.append(Row("learn", f"{learn.rule}({settings}){served}{steps}"))
    return [*rows, said(w, "", "every weight that no box declares is its own")]


def optimizers(system: System) -> dict[str, Box]:
    """Each rule in use that is more than a gradient step, once."""
    lines = [l for level in system.levels for l in level.learn]
    lines += [l for b in system.boxes for s in b.states for l in s.rule.learn.values()]
    found: dict[str, Box] = {}
    for box in (b for line in lines for b in line.optimizers.values()):
        found.setdefault(box.name, box)
    found.pop("gradient", None)  # which says itself what it is
    return dict(sorted(found.items()))


def _optimizers(system: System) -> list[str]:
    out: list[str] = []
    for name, box in optimizers(system).items():
        told = (*box.doc.splitlines(), *box.cites)
        out += ["", f"optimizer {name}", *(INDENT + t for t in told), *optimizer_lines(box)]
    return out


def _untold(spec: Spec) -> list[str]:
    """What keeps the system as a whole from being compiled."""
    told = lower(spec.system)[1]
    rows = [Row(d.code, d.message, True) for d in told]
    return ["", "Not compiled yet", *table(rows)] if told else []


__all__ = ["optimizers", "system_text"]
