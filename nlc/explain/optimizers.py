"""An optimizer: how it nests, its memories, and how the weight changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..components import nesting
from ..show import Writer
from ..system import Assign, Box, Line, State, Term
from .lines import INDENT, Row, Rows, said, table
from .memories import closed_rows, erased_rows
from .rules import spelled, state_rows
from .writes import assigned, weight_rows


def optimizer_blocks(box: Box, latex: bool = False) -> list[tuple[str, Rows]]:
    """(heading, lines): its memories and the weight, as they stand in its text."""
    states = {f"state:{s.name}": s for s in box.states}
    blocks: list[tuple[str, Rows]] = []
    w = Writer(body=box, latex=latex)
    waiting: list[Line] = []  # until something uses them
    for place in box.order:
        if place in states:
            used = used_lines(box, states[place], waiting)
            waiting = [line for line in waiting if line not in used]
            heading, rows = block(box, states[place], latex)
            blocks.append((heading, line_rows(w, used, "with") + rows))
        elif place.startswith("line:"):
            waiting.append(box.lines[int(place.partition(":")[2])])
    for inner in box.levels:
        for state in inner.states:
            heading, found = block(inner, state, latex)
            blocks.append((f"{inner.name}.{heading}", found))
    rows = folded_rounds(line_rows(w, waiting, "with") + weight_rows(w, box))
    blocks.append(("weight", rows))
    return [("nesting", nesting_rows(w, box)), *blocks]


def used_lines(box: Box, state: State, waiting: list[Line]) -> list[Line]:
    """Those of the lines that a state's rule needs, and those that they need."""
    rule = state.rule
    terms = [t for t in (rule.objective, rule.retain, rule.write, rule.set) if t is not None]
    terms += [t for learn in rule.learn.values() for t in learn.settings.values()]
    names = {n for t in terms for n in locals_in(box, t)}
    return [l for l in waiting if isinstance(l, Assign) and l.name in names]


def locals_in(box: Box, term: Term) -> Iterator[str]:
    lines = assigned(box)
    for t in term.walk():
        if t.op == "local" and t.info in lines:
            yield t.info
            yield from locals_in(box, lines[t.info])


def nesting_rows(w: Writer, box: Box) -> Rows:
    """By the order of the paper: A > B if A changes more often, or as often and B uses A's state of
    the same firing (arXiv:2512.24695, definition 2).
    """
    groups = nesting(box)
    if len(groups) == len(groups[0]) == 1:
        return [said(w, "levels", "the weight alone: nothing is kept from firing to firing")]
    names = [", ".join(shown(w, name) for name in group) for group in reversed(groups)]
    rows = [Row("levels", (r" \succ " if w.latex else " > ").join(names))]
    words = [f"{inner.name} fires {inner.clock}" for inner in box.levels]
    words += [f"the {name} are inside one firing" for name in groups[-1] if " rounds" in name]
    text = "the fastest first; what stands together is one level"
    return [*rows, said(w, "levels", "; ".join([text, *words]))]


def shown(w: Writer, name: str) -> str:
    if " rounds" in name:
        return rf"\text{{{name}}}" if w.latex else name
    return w.name(name or "weight")


ROUND = re.compile(r"\bt(\d+)\b|t_\{(\d+)\}")


def folded_rounds(rows: Rows) -> Rows:
    """Lines `t5 = ..` that say of those before them what others said: one round stands for all."""
    out: Rows = []
    at = 0
    while at < len(rows):
        size, times = rounds_from(rows, at)
        if times < 3:
            out.append(rows[at])
            at += 1
            continue
        end = at + size * times
        ends = [rows[i].text.partition(" = ")[0] for i in (at + size, end - 1)]
        a, b = (f"${name}$" if "{" in name else name for name in ends)
        words = f"{a} to {b} likewise: {times} such rounds so far, and one more below"
        out += [*rows[at : at + size], Row(rows[at].label, words, True)]
        at = end
    return out


def rounds_from(rows: Rows, at: int) -> tuple[int, int]:
    """How many lines are a round that begins here, and how often it stands there."""
    for size in range(1, 7):
        end = at + size
        while end < len(rows) and follows(rows[end - size], rows[end], size):
            end += 1
        if end - at >= 3 * size:
            return size, (end - at) // size
    return 1, 1


def follows(before: Row, row: Row, size: int) -> bool:
    """Whether a line says what another said: of the same names, or of those of its own round."""
    if row.label != "with" or ROUND.sub("t", before.text) != ROUND.sub("t", row.text):
        return False
    pairs = zip(numbers(before), numbers(row), strict=True)
    own = next(pairs, None)
    starts = ROUND.match(row.text) is not None and own is not None and own[1] - own[0] == size
    return starts and all(b - a in (0, size) for a, b in pairs)


def numbers(row: Row) -> list[int]:
    return [int(m[1] or m[2]) for m in ROUND.finditer(row.text)]


def block(box: Box, state: State, latex: bool) -> tuple[str, Rows]:
    name = state.name if box.kind == "optimizer" else f"{box.name}.{state.name}"
    heading = f"{state.name}, {box.clock}" if box.clock is not None else state.name
    rows = state_rows(box, state, name, latex)
    closed = closed_rows(box, state, name, latex)
    return heading, [*rows, *erased_rows(box, state, name, latex), *closed]


def optimizer_lines(box: Box, depth: int = 1) -> list[str]:
    out: list[str] = []
    for heading, rows in optimizer_blocks(box):
        out += ["", f"{INDENT * depth}{heading}", *table(rows, depth + 1)]
    return out


def line_rows(w: Writer, lines: Iterable[Line], label: str) -> Rows:
    rows: Rows = []
    for line in lines:
        if isinstance(line, Assign):
            rows += spelled(w, label, f"{w.name(line.name)} = ", line.value)
        else:
            rows.append(said(w, label, f"repeat {line.count} {{"))
            inner = line_rows(w, line.lines, label)
            rows += [Row(label, r.text if w.latex else INDENT + r.text, r.words) for r in inner]
            rows.append(said(w, label, "}"))
    return rows


__all__ = ["line_rows", "optimizer_blocks", "optimizer_lines"]
