"""Boxes that learn at a rate of nothing: what they keep is their start, as a weight is.

In: the system page. Such a level costs what a level on steps does, and no span ends where it would
fire: a continuum memory at rate 0 is the network that it starts from, to the last bit.
"""

from __future__ import annotations

from .derive import linear_rule, substitute
from .system import Box, Learn, Level, State, System, Term


def idle(system: System, box: Box) -> bool:
    """Whether no state of the box changes, and each starts where training has learned."""
    unchanged = all(stands(state) and started(system, box, state) for state in box.states)
    return bool(box.states) and unchanged and not hands_starts(system, box.level)


def hands_starts(system: System, level: Level | None) -> bool:
    """Whether a level on tokens learns its starts, or it learns another's."""
    return any(
        level in (t.source, t.target) and t.source.clock.unit not in ("step", "task")
        for t in system.transfers
        if t.kind == "init"
    )


def stands(state: State) -> bool:
    rule = state.rule
    if rule.write is not None or rule.set is not None or rule.through:
        return False
    if rule.retain is not None and not is_one(rule.retain):
        return False
    return not rule.onto and all(map(at_nothing, rule.learn.values()))


def at_nothing(learn: Learn) -> bool:
    """Whether a linear rule has a rate of 0, for every kind of array, and forgets nothing."""
    rules = [linear_rule(box) for box in learn.optimizers.values()]
    return bool(rules) and all(
        r is not None
        and is_nothing(substitute(r.rate, learn.settings))
        and (r.keep is None or is_one(substitute(r.keep, learn.settings)))
        for r in rules
    )


def is_nothing(term: Term) -> bool:
    """0, or a product of it."""
    if term.op in ("mul", "neg"):
        return any(is_nothing(a) for a in term.args)
    return term.op == "const" and term.info == 0


def is_one(term: Term) -> bool:
    """1, less nothing."""
    if term.op == "sub":
        return is_one(term.args[0]) and is_nothing(term.args[1])
    return term.op == "const" and term.info == 1


def started(system: System, box: Box, state: State) -> bool:
    return any(
        t.kind == "init" and t.target is box.level and t.speaks_of(state) for t in system.transfers
    )
