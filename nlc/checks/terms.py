"""Walks over the terms of bodies and rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..system import Assign, Box, Handle, Learn, Level, Line, Rule, State, Term, line_terms


def assigns(lines: tuple[Line, ...]) -> Iterator[Assign]:
    for line in lines:
        if isinstance(line, Assign):
            yield line
        else:
            yield from assigns(line.lines)


def bindings(lines: tuple[Line, ...], last: list[Term]) -> dict[int, list[Term]]:
    """The values that each use of a plain name of a flow may have, by the use; `last` is what is
    used at the end. A name may be bound again, and a loop hands its names on to its next round.
    """
    found: dict[int, dict[int, Term]] = defaultdict(dict)
    names: dict[str, dict[int, Term]] = {}

    def use(root: Term) -> None:
        for term in distinct([root]):
            if term.op == "local":
                found[id(term)] |= names.get(term.info, {})

    def run(lines: tuple[Line, ...]) -> None:
        for line in lines:
            if isinstance(line, Assign):
                use(line.value)
                names[line.name] = {id(line.value): line.value}
                continue
            before = dict(names)
            run(line.lines)
            if line.count > 1:
                names.update({n: {**values, **names[n]} for n, values in before.items()})
                run(line.lines)

    run(lines)
    for root in last:
        use(root)
    return {use: list(values.values()) for use, values in found.items()}


def rule_terms(rule: Rule) -> list[Term]:
    """The terms of a rule, its settings and streams included."""
    found = [rule.objective, rule.retain, rule.write, rule.set]
    terms = [t for t in found if t is not None]
    for learn in {id(line): line for line in rule.learn.values()}.values():
        terms += [*learn.settings.values(), *learn.streams.values()]
    return terms


def roots_of(box: Box) -> Iterator[Term]:
    yield from line_terms(box.lines)
    yield from (t for t in (box.read, box.write, box.retain) if t is not None)
    for state in box.states:
        if state.start is not None:
            yield state.start
        yield from rule_terms(state.rule)


def distinct(roots: list[Term]) -> Iterator[Term]:
    """These terms and all below them, each once."""
    seen: set[int] = set()
    waiting = list(reversed(roots))
    while waiting:
        term = waiting.pop()
        if id(term) not in seen:
            seen.add(id(term))
            yield term
            waiting.extend(term.args)


def served_by(lines: tuple[Learn, ...]) -> list[Box]:
    return [box for line in lines for box in line.optimizers.values()]


def optimizers_of(box: Box) -> list[Box]:
    """The rules of its states, as boxes."""
    return [
        b for s in box.states for line in s.rule.learn.values() for b in line.optimizers.values()
    ]


def exact(state: State) -> bool:
    return any(line.rule == "exact" for line in state.rule.learn.values())


def may_start(state: State) -> bool:
    """Whether its start is a draw, which another level may learn, and not made by the flow."""
    if exact(state):
        return False
    start = state.start
    return start is None or all(t.op in ("zeros", "normal", "const", "neg") for t in start.walk())


def foreign(term: Term, level: Level) -> Handle | None:
    """The state of another level that a term names as it is."""
    if term.op not in ("state", "copy") or not isinstance(term.info, Handle):
        return None
    box = term.info.box
    return term.info if box.level is not None and box.level is not level else None
