"""What the checks ask of a system: who calls a box, what gives a name its value, who serves whom.

Made once a check, in time linear in the size of the system.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from ..diagnostics import Fix
from ..system import Box, Level, State, System, Term, Transfer, Weight, line_terms
from ..text import Span
from .sources import Making, Source, handed_in, makings
from .terms import assigns, bindings, distinct, optimizers_of, roots_of, served_by

Pair = tuple[str, str]


@dataclass(frozen=True)
class Call:
    """A call of a box: its arguments, and the body they stand in (None: the flow)."""

    args: tuple[Term, ...]
    caller: Box | None


class Facts:
    """One system, with the look-ups that several checks share."""

    def __init__(self, system: System) -> None:
        self.system = system

    # ---- names and calls ----

    @cached_property
    def flow_terms(self) -> list[Term]:
        flow = self.system.flow
        roots = [*line_terms(flow.lines), flow.result, *([flow.loss] if flow.loss else [])]
        return list(distinct(roots))

    @cached_property
    def box_terms(self) -> dict[int, list[Term]]:
        """All terms of each body, each once."""
        return {id(b): list(distinct(list(roots_of(b)))) for b in self.system.boxes}

    @cached_property
    def calls(self) -> dict[int, Call]:
        """By the box that is called."""
        found = {id(t.info): Call(t.args, None) for t in self.flow_terms if t.op == "call"}
        for box in self.system.boxes:
            for term in self.box_terms[id(box)]:
                if term.op == "call":
                    found[id(term.info)] = Call(term.args, box)
        return found

    def uses_of(self, weights: Collection[int]) -> dict[int, list[tuple[Term, Box | None]]]:
        """The terms that these weights stand in, by weight, each with its body."""
        found: dict[int, list[tuple[Term, Box | None]]] = defaultdict(list)
        bodies: list[tuple[Box | None, list[Term]]] = [(None, self.flow_terms)]
        bodies += [(box, list(distinct(list(roots_of(box))))) for box in self.all_boxes]
        for box, terms in bodies:
            for term in terms:
                for arg in term.args:
                    if arg.op == "weight" and id(arg.info) in weights:
                        found[id(arg.info)].append((term, box))
        return found

    @cached_property
    def flow_values(self) -> dict[int, list[Term]]:
        """What each use of a plain name of the flow may stand for."""
        flow = self.system.flow
        return bindings(flow.lines, [flow.result, *([flow.loss] if flow.loss else [])])

    @cached_property
    def values(self) -> dict[tuple[int, str], list[Term]]:
        """What is assigned to each plain name of each body, where none is bound twice."""
        found: dict[tuple[int, str], list[Term]] = defaultdict(list)
        for box in self.all_boxes:
            for assign in assigns(box.lines):
                found[id(box), assign.name].append(assign.value)
        return found

    @cached_property
    def all_boxes(self) -> list[Box]:
        """Those that are called, and the optimizers that serve, with what is inside them."""
        seen: dict[int, Box] = {}
        waiting = [*self.system.boxes]
        waiting += [b for level in self.system.levels for b in served_by(level.learn)]
        while waiting:
            box = waiting.pop()
            if id(box) not in seen:
                seen[id(box)] = box
                waiting += [*box.levels, *optimizers_of(box)]
        return list(seen.values())

    # ---- levels ----

    @cached_property
    def boxes_of(self) -> dict[str, list[Box]]:
        """The boxes on each level's clock: its own, and those of the memories called in it."""
        found: dict[str, list[Box]] = {level.name: [] for level in self.system.levels}
        for box in self.system.boxes:
            if box.level is not None:
                found[box.level.name].append(box)
        return found

    @cached_property
    def user_of(self) -> dict[int, Level]:
        """The level that a body belongs to; of an optimizer, the level whose arrays it serves."""
        users = {id(b): b.level for b in self.system.boxes if b.level is not None}
        waiting = [(b, users[id(b)]) for b in self.system.boxes if id(b) in users]
        waiting += [(b, level) for level in self.system.levels for b in served_by(level.learn)]
        while waiting:
            box, level = waiting.pop()
            users.setdefault(id(box), level)
            inner = [*box.levels, *optimizers_of(box)]
            waiting += [(b, level) for b in inner if id(b) not in users]
        return users

    @cached_property
    def weights_of(self) -> dict[str, list[Weight]]:
        """The unnamed weights that the bodies of each level use; those of the flow are at ""."""
        found: dict[str, list[Weight]] = defaultdict(list)
        for weight in self.system.weights:
            level = self.user_of.get(id(weight.box)) if weight.box is not None else None
            found[level.name if level else ""].append(weight)
        return found

    @cached_property
    def passes(self) -> dict[Pair, set[str]]:
        """The kinds of transfer declared from one level to another."""
        found: dict[Pair, set[str]] = defaultdict(set)
        for t in self.system.transfers:
            found[t.source.name, t.target.name].add(t.kind)
        return found

    @cached_property
    def backprop_into(self) -> dict[str, list[Transfer]]:
        """The `backprop` lines by the level whose gradient they pass on."""
        found: dict[str, list[Transfer]] = defaultdict(list)
        for t in self.system.transfers:
            if t.kind == "backprop":
                found[t.target.name].append(t)
        return found

    @cached_property
    def inits_into(self) -> dict[str, list[Transfer]]:
        """The `init` lines by the level that starts from what they say."""
        found: dict[str, list[Transfer]] = defaultdict(list)
        for t in self.system.transfers:
            if t.kind == "init":
                found[t.target.name].append(t)
        return found

    def inits(self, level: Level, state: State | None) -> list[Transfer]:
        """Those that speak of a state; None: of the level as a whole."""
        return [t for t in self.inits_into.get(level.name, []) if t.speaks_of(state)]

    def starts_at(self, level: Level, state: State) -> list[Level]:
        """The levels whose state its start is: M@A, then M@A@Z, to the first that lives on
        (2.11.4).
        """
        found: list[Level] = []
        edges = self.inits(level, state)
        while edges and edges[0].source not in found:
            found.append(edges[0].source)
            if found[-1].clock.unit not in ("token", "sequence"):
                break
            edges = self.inits(found[-1], None)
        return found

    @cached_property
    def family_size(self) -> dict[str, int]:
        sizes: dict[str, int] = defaultdict(int)
        for level in self.system.levels:
            sizes[level.family] += 1
        return sizes

    # ---- what is handed on as it is ----

    @cached_property
    def handed(self) -> dict[int, dict[str, Source]]:
        """By box and input: the state or read of a level that is handed in."""
        return handed_in(self.system, self.box_terms)

    @cached_property
    def makings(self) -> list[Making]:
        return list(makings(self.system, self.handed, self.through_lines))

    def through_lines(self, box: Box, roots: list[Term]) -> Iterator[Term]:
        """The terms below these, plain lines of the body followed."""
        seen: set[str] = set()
        waiting = list(roots)
        while waiting:
            for term in distinct([waiting.pop()]):
                yield term
                if term.op == "local" and term.info not in seen:
                    seen.add(term.info)
                    waiting += self.values.get((id(box), term.info), [])

    def states_of(self, level: Level) -> list[State]:
        return [s for box in self.boxes_of[level.name] for s in box.states]

    # ---- places ----

    def place(self, *spans: Span) -> Span:
        """The first of these spans that lies in the system's own file."""
        own = self.system.span.source
        return next((s for s in spans if s.source is own), spans[-1])

    def add_transfer(self, line: str) -> Fix:
        """The line, inserted after the last transfer, or before the flow."""
        source = self.system.span.source
        spans = [t.span for t in self.system.transfers]
        title = f"add `{line}`"
        if not spans:
            at = self.system.flow.span.start
            before = source.text[source.text.rfind("\n", 0, at) + 1 : at]
            gap = "\n\n" + before if not before.strip() else "\n"
            return Fix(Span(source, at, at), f"{line}{gap}", title)
        last = max(spans, key=lambda s: s.end)
        end = source.text.find("\n", last.end)
        rest = source.text[last.end : end]
        if rest.strip() and not rest.lstrip().startswith("#"):
            return Fix(Span(source, last.end, last.end), f"; {line}", title)
        begin = source.text.rfind("\n", 0, last.start) + 1
        indent = source.text[begin : last.start]
        indent = indent if not indent.strip() else "  "
        return Fix(Span(source, end, end), f"\n{indent}{line}", title)


def header(span: Span) -> Span:
    """The head of a declaration: up to its brace."""
    found = re.search(r"\s*[{\n]", span.text)
    return Span(span.source, span.start, span.start + found.start()) if found else span


def inside(span: Span, word: str) -> Span:
    """The line of a block that begins with a word; its head if there is none."""
    text = re.sub(r"#.*", lambda m: " " * len(m[0]), span.text)
    found = re.search(rf"(?:(?<=[{{;\n])|(?<=[{{;\n]\s))\s*({word}\b[^;}}\n]*)", text)
    if found is None:
        return header(span)
    line = found[1].rstrip()
    return Span(span.source, span.start + found.start(1), span.start + found.start(1) + len(line))


def named(transfer: Transfer) -> str:
    state = f".{transfer.state}" if transfer.state else ""
    return f"{transfer.target.name}{state}"
