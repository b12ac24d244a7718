"""Which gradients enter which levels (language.md 2.11), and what of that has no lowering yet."""

from __future__ import annotations

from .lacking import NotLowered
from .plan import Lowering, Openness
from .system import Box, Level, System, Transfer, line_terms

# Lowerings of memories that write at every token.
PASTS = ("attention", "squares")  # of what keeps its pasts alone
MEMORIES = ("recurrence", "frozen", "solved", "fired")


def cut_of(t: Transfer) -> int | None:
    """After how many ticks its gradient is let go of (`through`); None where the level that it
    enters starts anew before, or at that very tick, so that nothing is left to be cut.
    """
    entered = t.source if t.kind == "backprop" else t.target
    life = entered.resets.first if entered.resets.unit == "token" else None
    cut = t.truncate
    return None if cut is None or life is not None and life <= cut else cut


def openness(system: System, learners: tuple[Level, ...]) -> Openness:
    """The levels whose states and pasts the learners' gradients enter; one answer for all of them,
    or NL701.
    """
    edges = {
        l.name: [t for t in system.transfers if t.kind == "backprop" and t.target is l]
        for l in learners
    }
    answers = {
        frozenset(
            (t.source.name, cut_of(t), t.first_order) for t in found if t.source.name not in edges
        )
        for found in edges.values()
    }
    if len(answers) > 1:
        raise NotLowered(
            "a gradient that enters the states of one level for one learner and not "
            "(or not so far) for another",
            system.span,
        )
    found = [t for t in next(iter(edges.values()), []) if t.source.name not in edges]
    twice = next((t for t in found for u in found if u is not t and u.source is t.source), None)
    if twice is not None:
        raise NotLowered(
            f"a second gradient from `{twice.target.name}` into `{twice.source.name}`", twice.span
        )
    cut = {t.source.name: n for t in found if (n := cut_of(t)) is not None}
    entered = frozenset(t.source.name for t in found)
    # Between levels that learn in the same step it opens the weights in a body, to their owner.
    entered |= {t.source.name for found in edges.values() for t in found
                if t.source.name in edges and t.target is system.owner
                and t.target.clock.unit in ("step", "task")}  # fmt: skip
    first = {t.source.name for t in found if t.first_order}
    # Where no stream is open, the order is that of the starts.
    first |= {
        t.target.name
        for t in system.transfers
        if t.kind == "init" and t.source in learners and t.first_order
        and t.target.name not in entered
    }  # fmt: skip
    return Openness(entered, cut, frozenset(first))


def trained_levels(system: System) -> tuple[Level, ...]:
    """Levels on steps or tasks that learn; one that only follows others asks for no gradient."""
    return tuple(
        l
        for l in system.levels
        if l.clock.unit in ("step", "task")
        and (l.learn or any(s.rule.objective is not None for b in l.boxes for s in b.states))
    )


def check_edges(
    system: System,
    learners: tuple[Level, ...],
    training: Openness,
    inner: Openness,
    lowerings: dict[int, Lowering],
) -> None:
    check_inner(system, learners, training)
    check_cut_starts(system, lowerings)
    asked = bool(learners or trained_levels(system))
    for lowering in lowerings.values():
        level = lowering.box.level
        if lowering.kind == "slept":
            continue  # its pasts are for the end of a sequence, where no gradient is kept
        closed = (
            asked
            and level is not None
            and (level.name not in training.levels or (learners and level.name not in inner.levels))
        )
        if closed and (lowering.kind in PASTS or keeps_windows(lowering.box)):
            raise NotLowered(
                "a past that is a constant to a learner "
                f"(no `backprop {level.name if level else ''} ->`)",
                lowering.box.span,
            )
        kept = (lowering.kind in PASTS or keeps_windows(lowering.box)) and not cuts(lowering)
        if kept and level is not None and level.name in training.truncate:
            raise NotLowered(
                f"`through {training.truncate[level.name]} tokens` into a past",
                lowering.box.span,
            )
        check_orders(system, lowering, training)
        if (
            lowering.kind in MEMORIES
            and level is not None
            and level.name in training.first_order ^ inner.first_order & inner.levels
        ):
            if learners and level.name in inner.levels:
                raise NotLowered(
                    f"`first order` into `{level.name}` for one learner and not for another",
                    lowering.box.span,
                )
    for name, length in training.truncate.items():
        if learners:
            raise NotLowered(
                f"`through {length} tokens` beside a level that learns the model's loss on tokens "
                f"(`{name}`)",
                system.span,
            )


def check_inner(system: System, learners: tuple[Level, ...], training: Openness) -> None:
    """What a level on tokens enters, training does, and as far."""
    for t in system.transfers:
        if t.kind != "backprop" or t.target not in learners or t.source in learners:
            continue
        edge = f"`backprop {t.source.name} -> {t.target.name}`"
        if cut_of(t) is not None:
            raise NotLowered(f"{edge} `through {t.truncate} tokens`", t.span)
        if t.source.name not in training.levels:
            raise NotLowered(f"{edge}, where training's gradient does not enter,", t.span)


def check_cut_starts(system: System, lowerings: dict[int, Lowering]) -> None:
    """A start is let go of after some tokens where `backprop` is too: in memories that write."""
    for t in system.transfers:
        if t.kind != "init" or cut_of(t) is None or t.source.clock.unit == "never":
            continue
        for lowering in lowerings.values():
            box = lowering.box
            begun = any(t.speaks_of(s) for s in box.states) and not box.exact
            if box.level is t.target and begun and lowering.kind not in MEMORIES:
                what = f"`through {t.truncate} tokens` of a start of `{box.name}`"
                if lowering.kind == "loss":
                    what += ", which learns the model's loss on tokens,"
                raise NotLowered(what, t.span)


def cuts(lowering: Lowering) -> bool:
    """Whether a past may become a constant while it is in use: plain attention, and nothing else
    that remembers ticks.
    """
    if lowering.attention is None or not lowering.attention.plain:
        return False
    roots = [*line_terms(lowering.box.lines), lowering.attention.query, lowering.attention.key]
    roots += [lowering.attention.value]
    return not any(t.op == "past" for root in roots for t in root.walk())


def keeps_windows(box: Box) -> bool:
    return any(t.op == "past" for t in box.terms())


def reads_state(lowering: Lowering) -> bool:
    """Whether what is written depends on the state."""
    rule = lowering.arrays[0] if lowering.arrays else None
    if rule is None or rule.error is None:
        return True
    ridge = any(g.direct for g in lowering.gradients.values())
    return ridge or rule.error.factor is not None or rule.rule.erase is not None


def apart(lowering: Lowering, training: Openness) -> bool:
    """A recurrence takes its write and what the write reads as one; where `first order` makes the
    one a constant and not the other, they have to be apart.
    """
    level = lowering.box.level
    first = level is not None and level.name in training.first_order
    learned = any(line.learn for line in (s.rule for s in lowering.box.states))
    together = (
        lowering.kind == "recurrence" and reads_state(lowering) or lowering.writes and learned
    )
    return first and bool(together)


def check_orders(system: System, lowering: Lowering, training: Openness) -> None:
    """Whether the inner gradient is a constant is one answer for the streams and for the start of a
    memory (2.11.3).
    """
    box = lowering.box
    if lowering.kind not in MEMORIES or box.level is None:
        return
    for t in system.transfers:
        other = cut_of(t) != training.truncate.get(box.level.name)
        if t.kind == "init" and t.target is box.level and other:
            why = f"`init` and `backprop` of `{box.level.name}`, `through` different lengths"
            raise NotLowered(why, t.span)
    reads = reads_state(lowering)
    if not reads and box.level.name not in training.levels:
        return  # neither the start nor a stream goes into what is written
    constant = box.level.name in training.first_order
    for t in system.transfers:
        if t.kind == "init" and t.target is box.level and t.first_order is not constant:
            raise NotLowered(
                f"`init` and `backprop` of `{box.level.name}`, one of them `first order`", t.span
            )
