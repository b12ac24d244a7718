"""Boxes on sequences (language.md 2.6.1): what they need at each tick, and what at the end.

While a sequence runs such a box only reads: its states stand. What it will write at the end is made
of sums over the ticks, and of its last tick; for that it keeps inputs, and what moves on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .lacking import NotLowered
from .system import ALL, Assign, Box, State, Term

MOVING = ("call", "conv")  # made once a tick
UNKEPT = ("dropout", "fade", "next", "loss")


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """`ticks`, `end`: the lines that are made at each tick, and again at the end from what is kept
    of the last tick: `inputs`, `lines`, and the windows of `pasts`.
    """

    ticks: frozenset[str]
    end: frozenset[str]
    inputs: tuple[str, ...]
    lines: tuple[str, ...]
    pasts: tuple[Term, ...]


def summed(state: State) -> bool:
    """Whether each tick adds to what is written at the end."""
    rule = state.rule
    return rule.write is not None or rule.objective is not None and not rule.once


def ending(box: Box) -> Ending:
    """Raises NotLowered for what cannot be kept."""
    values = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
    at_end = [t for s in box.states for t in end_roots(s)]
    needed = reached(at_end, values, at_end=True)
    kept = {n for n in needed if moves(values[n])}
    whole = [*at_end, *(values[n] for n in needed - kept)]
    found = {id(t): t for root in whole for t in outside_pasts(root)}
    pasts = {t.info.path: t for t in found.values() if t.op == "past"}
    bad = next((t for t in found.values() if t.op in (*MOVING, *UNKEPT)), None)
    if bad is not None:
        raise NotLowered(f"`{bad.op}` at the end of a sequence", bad.span)
    inputs = {str(t.info): None for t in found.values() if t.op == "input"}
    told = [t for s in box.states if summed(s) for t in (s.rule.objective, s.rule.write) if t]
    asked = [*told, *(t.args[0] for t in pasts.values()), *(values[n] for n in kept)]
    asked += [box.read] if box.read is not None else []
    asked += [s.start for s in box.states if s.start is not None]
    ticks = reached(asked, values)
    late = next(
        (t for r in [*asked, *(values[n] for n in ticks)] for t in r.walk() if t.op == "past"), None
    )
    if late is not None or any(t.info.window == ALL for t in pasts.values()):
        span = late.span if late is not None else box.span
        raise NotLowered(f"a past of `{box.name}` that is seen before the end of a sequence", span)
    return Ending(
        frozenset(ticks | kept), frozenset(needed - kept), tuple(inputs), tuple(sorted(kept)),
        tuple(pasts.values()),
    )  # fmt: skip


def end_roots(state: State) -> Iterator[Term]:
    """What a firing at the end is made of, but for what the ticks have added up."""
    rule = state.rule
    parts = [rule.retain, rule.set, None if summed(state) else rule.objective]
    yield from (t for t in parts if t is not None)
    for links in (rule.through, rule.onto):
        yield from (link.body for link in (links or {}).values())
    for learn in rule.learn.values():
        yield from learn.settings.values()


def outside_pasts(root: Term) -> Iterator[Term]:
    """A term and what it is made of; a window has been made tick by tick."""
    stack, seen = [root], set()
    while stack:
        term = stack.pop()
        if id(term) not in seen:
            seen.add(id(term))
            yield term
            stack += () if term.op == "past" else term.args


def moves(value: Term) -> bool:
    return any(t.op in MOVING for t in value.walk())


def reached(roots: Iterable[Term], values: dict[str, Term], at_end: bool = False) -> set[str]:
    """The lines that these terms use, directly or not. `at_end`: what moves on is kept, so that
    nothing is made of what it is made of.
    """
    found: set[str] = set()
    stack = list(roots)
    while stack:
        for t in outside_pasts(stack.pop()):
            if t.op == "local" and t.info not in found and t.info in values:
                found.add(str(t.info))
                if not (at_end and moves(values[t.info])):
                    stack.append(values[t.info])
    return found
