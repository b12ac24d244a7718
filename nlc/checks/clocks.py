"""Clocks: what can never fire (NL203), what has no tick to be solved at (NL205), what a reset cuts
short (NL206), what is to be drawn anew and is never reset (NL209), what is solved from its own
solution (NL210).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..diagnostics import Diagnostic, Fix
from ..system import Box, Clock, Level, State, Term
from ..text import Span
from .facts import Facts, header, inside
from .terms import distinct, exact, optimizers_of, served_by


def nl203(facts: Facts) -> Iterator[Diagnostic]:
    """A level, or one inside an optimizer, whose first firing comes after its reset (2.6.2)."""
    for level in facts.system.levels:
        lives = lifetimes(level, facts.system.assume)
        if not lives:
            continue
        if level.clock.first > max(lives) and level.partial != "flush":
            yield never_fires(level, facts.system.assume)
            continue
        yield from inner_levels(facts, level, max(lives))


def nl209(facts: Facts) -> Iterator[Diagnostic]:
    """`fresh` draws at each reset (2.3.4), and some levels have none."""
    for level in facts.system.levels:
        if level.resets.unit != "never":
            continue
        for box in nested((*facts.boxes_of[level.name], *served_by(level.learn))):
            for state in box.states:
                if state.start is not None and state.start.op == "fresh":
                    yield drawn_once(facts, level, state)


def nested(boxes: Iterable[Box]) -> Iterator[Box]:
    """These, the optimizers of their states, and the levels in those (2.9.6)."""
    for box in boxes:
        yield box
        yield from nested((*box.levels, *optimizers_of(box)))


def drawn_once(facts: Facts, level: Level, state: State) -> Diagnostic:
    assert state.start is not None
    span, inner = state.start.span, state.start.args[0].span.text
    place = facts.place(span, header(level.span))
    message = f"`{state.name}` is drawn anew at each reset, and `{level.name}` is never reset"
    help = f"write `= {inner}`, drawn once with the model, or give `{level.name}` a `reset`"
    fix = Fix(span, inner, f"draw `{state.name}` once") if place is span else None
    return Diagnostic("NL209", message, place, help, fix=fix)


def never_fires(level: Level, assume: int | None) -> Diagnostic:
    if level.reset is None and level.clock.unit == "token":
        why = f"sequences are {assume} tokens and it starts anew at each"
        help = "lower the period, or let it count on by `reset never`"
    else:
        why = f"it starts anew {level.resets}"
        help = "lower the period, or reset less often"
    message = f"`{level.name}` can never fire: {why}"
    return Diagnostic("NL203", message, header(level.span), help, label=str(level.clock))


def inner_levels(facts: Facts, level: Level, ends: int) -> Iterator[Diagnostic]:
    """A step of a level inside an optimizer is one firing of the level served, until its reset."""
    start, period = level.clock.first, level.clock.period
    firings = (ends - start) // period + 1
    for box in facts.boxes_of[level.name]:
        for rule, inner, span in rules_with_levels(box):
            clock = inner.clock
            if clock is not None and clock.unit == "step" and clock.first > firings:
                message = (
                    f"`{inner.name}` of `{rule}` can never fire: `{level.name}` starts anew after "
                    f"{firings} firing{'s' if firings != 1 else ''}"
                )
                yield Diagnostic("NL203", message, facts.place(span, header(level.span)),
                                 "lower its period, or reset less often")  # fmt: skip


def rules_with_levels(box: Box) -> Iterator[tuple[str, Box, Span]]:
    for state in box.states:
        for learn in state.rule.learn.values():
            for optimizer in learn.optimizers.values():
                for inner in optimizer.levels:
                    yield learn.rule, inner, learn.span


def lifetimes(level: Level, assume: int | None) -> tuple[int, ...]:
    """Ticks of the level's own unit from one reset to the next, where that is known. A reset ends
    its own count too, so each is as many as the first.
    """
    reset, unit = level.resets, level.clock.unit
    if unit in ("never", "always"):
        return ()
    if reset.unit == unit:
        return (reset.first,)
    if reset.unit == "sequence" and unit == "token" and assume is not None:
        return (reset.first * assume,)
    return ()


def nl205(facts: Facts) -> Iterator[Diagnostic]:
    """What is solved at each read needs `always`, and `always` needs what is solved (2.6.2)."""
    for level in facts.system.levels:
        for box in facts.boxes_of[level.name]:
            for state in box.states:
                if box.kind == "level" and exact(state) and level.clock.unit != "always":
                    message = (
                        "a level's own state with `learn exact` is solved anew for every read, so "
                        f"the level is `always`; this one is `{level.clock}`"
                    )
                    span = next(iter(state.rule.learn.values())).span
                    help = "write `always`, or use a memory, which may learn `exact` anywhere"
                    yield Diagnostic("NL205", message, span, help)
                elif level.clock.unit == "always" and state.rule.changes and not exact(state):
                    message = (
                        f"`{level.name}` is `always`, so what it keeps is solved anew at each "
                        f"read, and `{state.name}` is not solved but changed"
                    )
                    span = facts.place(state.span, header(level.span))
                    yield Diagnostic(
                        "NL205", message, span, "give the level a clock: `every token`"
                    )


def nl210(facts: Facts) -> Iterator[Diagnostic]:
    """What is solved when it is read is made of lines that do not wait for it (2.9.4)."""
    for box in facts.system.boxes:
        for state in filter(exact, box.states):
            seen, waiting = {state.name}, [state]
            while waiting:
                for term in asked_first(facts, box, waiting.pop()):
                    other = term.info.state
                    if other is state:
                        message = f"`{state.name}` is solved from a line that asks for its solution"
                        yield Diagnostic("NL210", message, term.span)
                    elif other.name not in seen:
                        seen.add(other.name)
                        waiting.append(other)


def asked_first(facts: Facts, box: Box, state: State) -> Iterator[Term]:
    """Where the objective of a solved state asks for solved states of the box: what it names of
    others, and what its lines name.
    """
    if state.rule.objective is None:
        return
    own = set(map(id, distinct([state.rule.objective])))
    for term in facts.through_lines(box, [state.rule.objective]):
        named = term.op in ("state", "apply") and term.info.box is box and exact(term.info.state)
        if named and not (id(term) in own and term.info.state is state):
            yield term


def nl206(facts: Facts) -> Iterator[Diagnostic]:
    """A reset inside a period cuts it short, and what was summed is lost (2.6.5)."""
    for level in facts.system.levels:
        lives = lifetimes(level, facts.system.assume)
        if not lives or level.partial != "carry" or level.clock.first > max(lives):
            continue
        if any(cut_short(level.clock, ticks) for ticks in lives):
            yield resets_inside(level, facts.system.assume)


def cut_short(clock: Clock, ticks: int) -> bool:
    """Whether the last of so many ticks is not one at which the clock fires."""
    return ticks < clock.first or (ticks - clock.first) % clock.period != 0


def resets_inside(level: Level, assume: int | None) -> Diagnostic:
    """Where nobody wrote a reset it is a warning: `assume` changes nothing else (2.6.3)."""
    clock = level.clock
    period, first = clock.period, clock.first
    count = assume if level.reset is None or level.reset.unit != clock.unit else level.reset.first
    number = f"make {count}" if count == assume else "make it"
    if clock.phase is None or first % period == 0:
        mend = f"{number} a multiple" + f" of {period}" * (count == assume)
    else:
        near = first + max(0, ((count or 0) - first) // period) * period
        mend = f"{number} {near} or {near + period}, at which it fires ({clock})"
    help = f"{mend}, or say `partial flush` or `partial drop`"
    if level.reset is None:
        what = f"each sequence of {assume} tokens ends, and with it `{level.name}` is reset, inside"
    elif level.reset.unit == level.clock.unit:
        what = f"`reset {level.reset}` falls inside"
    else:
        what = f"`reset {level.reset}`, of {assume} tokens each, falls inside"
    span = inside(level.span, "reset")
    severity = "warning" if level.reset is None else "error"
    return Diagnostic("NL206", f"{what} a period of {period}", span, help, severity=severity)
