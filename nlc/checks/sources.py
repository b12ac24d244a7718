"""What one level makes of another's state or read (2.11.2): handed on as it is, it is a source;
what
an operator or a function has made of it is data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..system import Assign, Box, Level, Line, State, System, Term
from ..text import Span
from .terms import distinct, foreign


@dataclass(frozen=True)
class Source:
    """A state or the read of a level, as it is: `text` names it in a transfer."""

    level: Level
    text: str


@dataclass(frozen=True)
class Making:
    """A state that is made from another level's state or read, and where that is named."""

    level: Level
    state: State
    source: Source
    span: Span


Handed = dict[int, dict[str, Source]]
Names = dict[str, Source | None]


def handed_in(system: System, box_terms: Mapping[int, list[Term]]) -> Handed:
    """By box and input: what is handed in as it is. Callers come first."""
    handing = Handing()
    names: Names = {}
    handing.lines(system.flow.lines, names, None)
    handing.calls(distinct([system.flow.result]), names, None)
    for box in system.boxes:
        names = {}
        handing.lines(box.lines, names, box)
        handing.calls(iter(box_terms[id(box)]), names, box)
    return handing.found


class Handing:
    """Follows reads and states through plain lines, as long as nothing is made of them."""

    def __init__(self) -> None:
        self.found: Handed = {}

    def lines(self, lines: tuple[Line, ...], names: Names, box: Box | None) -> None:
        for line in lines:
            if isinstance(line, Assign):
                if box is None:  # in a flow a name may be bound again
                    self.calls(distinct([line.value]), names, box)
                names[line.name] = self.source(line.value, names, box)
            else:
                self.lines(line.lines, names, box)

    def calls(self, terms: Iterator[Term], names: Names, box: Box | None) -> None:
        for term in terms:
            if term.op == "call":
                given = self.found.setdefault(id(term.info), {})
                for (name, _), arg in zip(term.info.inputs, term.args, strict=True):
                    source = self.source(arg, names, box)
                    if source is not None:
                        given[name] = source

    def source(self, term: Term, names: Names, box: Box | None) -> Source | None:
        match term.op:
            case "local":
                return names.get(term.info)
            case "input" if box is not None:
                return self.found.get(id(box), {}).get(term.info)
            case "call" if term.info.kind == "level" and term.info.level is not None:
                return Source(term.info.level, term.info.level.name)
            case "state" if term.info.box.level is not None and (box is None or term.info.foreign):
                level = term.info.box.level
                return Source(level, f"{level.name}.{term.info.name}")
        return None


def makings(
    system: System, handed: Handed, through: Callable[[Box, list[Term]], Iterator[Term]]
) -> Iterator[Making]:
    """Every start, `write` or `set` that uses a source of another level."""
    for box in system.boxes:
        if box.level is None:
            continue
        for state in box.states:
            roots = [t for t in (state.start, state.rule.write, state.rule.set) if t is not None]
            for term in through(box, roots):
                source = used(box, box.level, term, handed)
                if source is not None and source.level is not box.level:
                    yield Making(box.level, state, source, term.span)


def used(box: Box, level: Level, term: Term, handed: Handed) -> Source | None:
    if term.op == "input":
        return handed.get(id(box), {}).get(term.info)
    handle = foreign(term, level)
    if handle is None or handle.box.level is None:
        return None
    return Source(handle.box.level, f"{handle.box.level.name}.{handle.name}")
