"""A class for each level on steps: its table of arrays, its table of rules, and their methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlc.lacking import NotLowered
from nlc.resolve.work import array_kind
from nlc.system import Array, Box, Learn, Level, Shape, State, System

from ..parameters import boxes as every_box
from ..parameters import trainer
from .bodies import all_mapped, state_path
from .code import Code, class_name, identifier, names_module
from .followers import followers, in_order, write_followers
from .in_place import StepWriter, across_of
from .layout import WIDTH, entry, laid_out, literal
from .rules import Kept, Written, fitted

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Served:
    """An array that a level trains: where it is, and the line that serves it. `own`: its shape
    without the axes of heads. `keep`: what the level lets it keep at a firing.
    """

    path: str
    loops: Shape
    shape: Shape
    own: Shape
    line: Learn
    keep: float


def step_levels(system: System) -> list[Level]:
    """The levels on steps and tasks that change something, those that follow others first."""
    on_steps = [l for l in system.levels if l.clock.unit in ("step", "task")]
    return in_order(system, [l for l in on_steps if served(system, l) or followers(system, l)])


def served(system: System, level: Level) -> list[Served]:
    """Every array that a level on steps trains."""
    found: list[Served] = []
    if level.owner:
        for w in system.weights:
            line = level.line_for(w)
            if line is not None:
                found.append(Served(w.path, w.loops, w.shape, w.shape, line, kept(level)))
    for box in every_box(system):
        for state in box.states:
            if trainer(system, box, state) is level:
                found += starts(level, box, state)
    return found


def starts(level: Level, box: Box, state: State) -> list[Served]:
    """The arrays of a state of its own, or of a start that it learns."""
    found = []
    lead = (*all_mapped(box), *state.per)
    for array in state.form.arrays:
        line = start_line(level, box, state, array)
        if line is not None:
            path = state_path(box, state.name, array.name)
            keep = kept_on_steps(state) if box.level is level else kept(level)
            shape = (*lead, *array.shape)
            found.append(Served(path, box.loops, shape, array.shape, line, keep))
    return found


def start_line(level: Level, box: Box, state: State, array: Array) -> Learn | None:
    """The line that trains a start: the state's own, or the first of the level's that fits
    (2.11.4).
    """
    own = state.rule.learn.get(array.name) if box.level is level else None
    if own is not None:
        return own
    used_in = box.level.name if box.level is not None else ""
    return next(
        (l for l in level.learn if l.serves(array_kind(state.form), used_in, state.name)), None
    )


def kept(level: Level) -> float:
    """What an owner's weights keep at a firing."""
    if level.retain is None:
        return 1.0
    if level.retain.op != "const":
        raise NotLowered(f"a retention of `{level.name}` that is no number", level.span)
    return float(level.retain.info)


def kept_on_steps(state: State) -> float:
    """What a state of a level on steps keeps at a firing (2.8)."""
    retain = state.rule.retain
    if retain is None:
        return 1.0
    if retain.op != "const":
        raise NotLowered(f"a retention of `{state.name}` that is no number", state.span)
    return float(retain.info)


def check_steps(system: System, level: Level) -> None:
    """What a generated optimizer does not do: it is called at every step and every task's end, and
    sees no step but this.
    """
    clock, name = level.clock, f"`{level.name}`"
    if level.objective is not None and level.objective.op != "loss":
        raise NotLowered(f"an objective of {name} beside `loss`", level.span)
    alone = next((s for b in level.boxes for s in b.states if s.rule.once), None)
    if (level.once or alone is not None) and (clock.period > 1 or clock.unit == "task"):
        raise NotLowered(f"`once` in {name} {clock}", level.span)
    if level.resets.unit != "never":
        raise NotLowered(f"`reset {level.resets}` of {name}", level.span)
    for t in system.transfers:
        ends = {"init": (t.target, t.source), "backprop": (t.source, t.target)}
        entered, learner = ends.get(t.kind, (level, None))
        if learner is level and entered is not level and entered.clock.unit in ("step", "task"):
            if t.kind == "init" or clock.period > 1 or clock.unit == "task":
                raise NotLowered(f"`{t.kind}` between two levels on steps", t.span)


def rule_for(line: Learn, shape: Shape) -> Box:
    """The rule over arrays of this shape; a rule that fits one shape fits every other of as many
    axes.
    """
    if shape in line.optimizers:
        return line.optimizers[shape]
    alike = [b for s, b in line.optimizers.items() if len(s) == len(shape)]
    if not alike:
        raise NotLowered(f"`{line.rule}` for an array of shape {list(shape)}", line.span)
    return alike[0]


# ---- the file ------------------------------------------------------------------------------------


class Rules:
    """The rows of the table of rules, each once."""

    def __init__(self, code: Code) -> None:
        self.writer = StepWriter(code)
        self.rows: list[Row] = []

    def add(
        self, line: Learn, shape: Shape, lead: int, keep: float, given: Mapping[str, int | None]
    ) -> int:
        """The row that serves arrays of this shape by this line. `given`: settings that come with
        a call.
        """
        rule = rule_for(line, shape)
        streams = {k: fitted(t, shape) for k, t in line.streams.items()}
        settings = {k: t for k, t in line.settings.items() if k not in given}
        wish = f"rule_{identifier(line.rule)}"
        method = self.writer.in_place(wish, rule, lead, settings, streams, given, keep)
        terms = across_of(line.streams)
        measures = tuple(self.writer.measure(t, terms, shape, lead) for t in terms)
        row = self.row(method, measures)
        if row not in self.rows:
            self.rows.append(row)
        return self.rows.index(row)

    def row(self, method: Written, measures: tuple[str, ...]) -> Row:
        kept = tuple(kept_row(k) for k in method.kept)
        row = method.name, kept, method.pointwise, measures, bool(method.streams)
        return (*row, method.tasks) if method.tasks else row


def kept_row(kept: Kept) -> Row:
    if kept.std:
        return kept.name, kept.shape, kept.std, kept.draw
    return kept.name, kept.shape


ABOUT_RULES = (
    "method; what it keeps of an array: name, shape (None: the array's), deviation and "
    "name of its draw; by parts; sums across; asks for examples (; of which tasks)"
)
EXAMPLES = 4  # where a row says whether it asks for them


def table(code: Code, name: str, about: str, rows: list[Row]) -> None:
    code.comment(f"{name}: {about}")
    if not rows:
        code.add(f"{name} = ()")
        return
    flat = f"{name} = {literal(tuple(rows))}"
    if len(rows) == 1 and len(flat) + 4 * code.depth <= WIDTH:
        code.add(flat)
        return
    code.add(f"{name} = (")
    for row in rows:
        code.lines += entry(row, 4 * (code.depth + 1))
    code.add(")")


def write_optimizer(code: Code, system: System, level: Level, title: str) -> None:
    """The class of one level."""
    code.add("", "")
    with code.block(f"class {title}(Optimizer):"):
        where = f"{level.span.source.name.rsplit('/', 1)[-1]}:{level.span.line}"
        code.docstring([f"level {level.name} {level.clock} ({where})."])
        code.add("")
        check_steps(system, level)
        at = len(code.lines)
        rules = Rules(code)
        rows, lines = optimizer_rows(rules, system, level)
        sets = followers(system, level)
        if sets:
            write_followers(code, sets)
        body, code.lines = code.lines[at:], code.lines[:at]
        code.add(*clock_of(level), f"LINES = {lines!r}")
        table(code, "RULES", ABOUT_RULES, rules.rows)
        table(code, "ARRAYS", "path, rounds, rule, axes of heads, line", rows)
        if sets:
            rows = [(f.path, f.loops) for f in sets]
            table(code, "FOLLOWERS", "path, rounds of what `set` gives", rows)
        code.add("")
        code.lines += body
        while code.lines and not code.lines[-1]:
            code.lines.pop()


def clock_of(level: Level) -> list[str]:
    clock = level.clock
    rows = [f"PERIOD = {clock.period}"]
    if clock.first != clock.period:
        rows.append(f"FIRST = {clock.first}")
    return rows if clock.unit == "step" else [f'UNIT = "{clock.unit}"', *rows]


def optimizer_rows(rules: Rules, system: System, level: Level) -> tuple[list[Row], int]:
    rows: list[Row] = []
    lines: list[Learn] = []
    for array in served(system, level):
        line = array.line
        if line.rule in ("exact", "implicit") or line.steps > 1:
            raise NotLowered(f"`{line.rule}` on steps", line.span)
        at = next((i for i, l in enumerate(lines) if one_group(l, line)), len(lines))
        lines += [line] * (at == len(lines))
        lead = len(array.shape) - len(array.own)
        rule = rules.add(line, array.own, lead, array.keep, {})
        if rules.rows[rule][EXAMPLES]:
            check_examples(system, level, array, lead)
        rows.append((array.path, array.loops, rule, lead, at))
    return rows, len(lines)


def one_group(a: Learn, b: Learn) -> bool:
    """Whether arrays are served together: a line of the text adds up over all that it serves."""
    return a is b or a.sums_across and a.is_of(b)


def check_examples(system: System, level: Level, array: Served, lead: int) -> None:
    """Products are seen where a weight made by `linear`, or a state that stands still in a stream,
    multiplies, once for each tick; a start that a level learns has none (2.9.6).
    """
    rule, span = array.line.rule, array.line.span
    weight = next((w for w in system.weights if w.path == array.path), None)
    if weight is None:
        boxes = [b for b in system.boxes if b.level is level and array.path.startswith(b.path)]
        if boxes and (lead or any(b.mapped for b in boxes) or called_elsewhere(system, boxes)):
            raise NotLowered(f"`{rule}`, which asks for its examples, for a state", span)
    elif weight.maker != "linear" or weight.box is not None and by_rounds(weight.box):
        raise NotLowered(f"`{rule}`, which asks for its examples, for `{weight.path}`", weight.span)


def called_elsewhere(system: System, boxes: list[Box]) -> bool:
    """Whether another box asks a state of these."""
    return any(
        t.op == "apply" and t.info.box in boxes
        for b in system.boxes
        if b not in boxes
        for t in b.terms()
    )


def by_rounds(box: Box) -> bool:
    """Whether a body may be run more than once for a tick, to solve for what it writes."""
    return bool(box.states) and box.linearise is None


# ---- a rule without a level ----------------------------------------------------------------------

ALONE = """from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nlc.backends.ops import numbers, parts
from nlc.backends.runtime.rules import Rules
"""


def rules_source(
    name: str, said: str, lines: Mapping[Shape, Learn], settings: tuple[str, ...]
) -> str:
    """A file with the methods of one `learn` line, for arrays of these shapes."""
    code = Code()
    code.docstring([f"`{said}`, generated by nlc. Edit the spec, not this file."])
    code.add("", *ALONE.rstrip("\n").split("\n"), "", "")
    title = class_name(name)
    given: dict[str, int | None] = dict.fromkeys(settings)
    with code.block(f"class {title}(Rules):"):
        code.docstring([said])
        code.add("")
        at = len(code.lines)
        rules = Rules(code)
        rows = [(s, rules.add(learn, s, 0, 1.0, given)) for s, learn in lines.items()]
        body, code.lines = code.lines[at:], code.lines[:at]
        code.add(f"SETTINGS = {literal(settings)}")
        table(code, "RULES", ABOUT_RULES, rules.rows)
        table(code, "SHAPES", "of an array, rule", rows)
        code.add("")
        code.lines += body
    while not code.lines[-1]:
        code.lines.pop()
    code.add("", f"MODULE = {title}")
    return laid_out(used_alone(code.text()))


def used_alone(text: str) -> str:
    """Only the imports that are used."""
    head, body = text.split("\n\n\n", 1)
    lines: list[str] = []
    for line in head.split("\n"):
        last = line.split()[-1] if line.startswith("import ") else ""
        if last and not names_module(last, body):
            continue
        if line.startswith("from nlc.backends.ops import"):
            found = [n for n in ("numbers", "parts") if names_module(n, body)]
            if not found:
                continue
            line = f"from nlc.backends.ops import {', '.join(found)}"
        if line or lines[-1]:
            lines.append(line)
    return "\n".join(lines) + "\n\n\n" + body
