"""What crosses between levels, in words, and which weights train by it."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from ..checks.terms import exact
from ..system import Level, State, System, Transfer
from .lines import INDENT
from .trained import Trained

PASSES_NONE = "no gradient passes back through it: it trains nothing"


def transfer_lines(system: System) -> list[str]:
    out: list[str] = []
    trained = Trained(system)
    for group in edges(system):
        words = [line for said in _words(trained, group) for line in wrap(said, 96)]
        out += [f"{INDENT}{_arrow(group)}", *(f"{INDENT * 2}{s}" for s in words)]
    return out


def edges(system: System) -> list[list[Transfer]]:
    """What one line of the spec says, into one level or family, is told together."""
    groups: dict[tuple[int, str, str], list[Transfer]] = {}
    for t in system.transfers:
        groups.setdefault((t.span.start, t.kind, t.target.family), []).append(t)
    return list(groups.values())


def _names(levels: Iterable[Level], state: str | None) -> str:
    return ", ".join(dict.fromkeys(l.name + (f".{state}" if state else "") for l in levels))


def _arrow(group: list[Transfer]) -> str:
    t = group[0]
    sources = _names((u.source for u in group), t.source_state)
    targets = _names((u.target for u in group), t.state)
    through = f" through {t.truncate} tokens" if t.truncate is not None else ""
    return f"{t.kind} {sources} -> {targets}{through}{' first order' * t.first_order}"


def _words(trained: Trained, group: list[Transfer]) -> list[str]:
    """What crosses, and which weights train by it."""
    t, system = group[0], trained.system
    a, b = _names((u.source for u in group), None), _names((u.target for u in group), None)
    cut = f", no further than {t.truncate} tokens" if t.truncate is not None else ""
    match t.kind:
        case "condition":
            passes = _beside(system, group) or PASSES_NONE
            return [f"{b} uses weights or states of {a}, which are constants there", passes]
        case "backprop" if not any(_learns(system, u.target) for u in group):
            return [f"{b} has no objective, so no gradient of its own: nothing passes"]
        case "backprop":
            enters = f"the gradient of {b} enters the states and pasts of {a}{cut}"
            return [enters, *_inside(system, group), *_trained(trained, group)]
        case "init":
            every = f" ({t.target.resets})" if t.target.resets.unit == "token" else ""
            starts = f"at each reset{every} {b} starts from what {a} has learned: "
            learned = [f"these learn by its gradient{cut}"] if cut else []
            learned += _learned_here(group, a, b)
            learned = [starts + _starts(system, group), *_so_do(trained, group), *learned]
            return [*learned, *_inside(system, group)]
    return [f"a start, write or set of {b} is made from {a}", *_generated(system, group)]


def _learns(system: System, level: Level) -> bool:
    """Whether it has a gradient: an objective of its own, or of a state of its boxes."""
    states = (s for b in (*system.boxes, *level.boxes) if b.level is level for s in b.states)
    return level.objective is not None or any(s.rule.objective is not None for s in states)


def _beside(system: System, group: list[Transfer]) -> str:
    """Where something made passes between the same levels: what it lets through."""
    pairs = {(t.source, t.target) for t in group}
    made = [t for t in system.transfers if t.kind == "generate" and (t.source, t.target) in pairs]
    names = dict.fromkeys(f"`{_arrow([t])}`" for t in made)
    if not names:
        return ""
    return f"no gradient passes back through it; what does through {', '.join(names)} is told there"


def _so_do(trained: Trained, group: list[Transfer]) -> list[str]:
    """Starts of starts."""
    targets = {t.target for t in group}
    begun = (pair for t in group for pair in trained.begun(t) if pair[0].level not in targets)
    more = list(dict.fromkeys(f"{box.path}.{state.name}" for box, state in begun))
    b = _names((t.target for t in group), None)
    return [f"so do the starts that {b} learns for others: {', '.join(more)}"] if more else []


def _learned_here(group: list[Transfer], a: str, b: str) -> list[str]:
    """A start that is learned while the stream runs."""
    clock = group[0].source.clock
    if clock.unit in ("step", "task"):
        return []
    return [f"{a} learns these by its own rule {clock}, by the losses since, through {b}'s writes"]


def _generated(system: System, group: list[Transfer]) -> list[str]:
    """What is made carries no gradient of its own: one that enters it by its `backprop` goes on."""
    back = {(t.source, t.target): None for t in system.transfers if t.kind == "backprop"}
    said: dict[str, None] = {}
    for t in group:
        for made, learner in back:
            if made is t.target:
                goes = learner is t.source or (t.source, learner) in back
                on = "on into" if goes else "but not into the states and pasts of"
                edge = f"`backprop {made.name} -> {learner.name}`"
                said[
                    f"the gradient of {learner.name}, which enters by {edge}, goes through it "
                    f"{on} {t.source.name}; what that trains is told there"
                ] = None
    return list(said) or [PASSES_NONE]


def _inside(system: System, group: list[Transfer]) -> list[str]:
    """Through what a gradient goes in the levels that it enters: their writes, and the gradients
    that made these (2.11.2, 2.11.3).
    """
    t = group[0]
    if t.kind == "init" and t.source.clock.unit == "never":
        return [f"no gradient goes back: {t.source.name} never learns"]
    inside = [u.source if u.kind == "backprop" else u.target for u in group]
    rules = [
        (b.level, s.rule)
        for b in system.boxes
        if b.level in inside
        for s in b.states
        if s.rule.objective is not None and not exact(s) and (t.kind != "init" or _begins(group, s))
    ]
    if t.first_order:
        names = _names((l for l, _ in rules if l is not None), None)
        into = f"it goes through every inner update of {names}; " if rules else ""
        return [f"{into}inner gradients are constants to it"]
    said = []
    for whose, of_loss in (("the loss", True), ("inner objectives", False)):
        found = [l for l, rule in rules if l is not None and rule.uses_loss is of_loss]
        if found:
            said.append(
                f"it goes through every inner update of {_names(found, None)}, and through the "
                f"inner gradients that these are made of: second derivatives of {whose}"
            )
    return said


def _begins(group: list[Transfer], state: State) -> bool:
    """Whether a line of starts speaks of this state."""
    return any(t.speaks_of(state) for t in group)


def _trained(trained: Trained, group: list[Transfer]) -> list[str]:
    """Each array whose gradient goes through these edges: none gets it in another way, or only a
    part of it comes this way.
    """
    found = trained.through(group)
    others = trained.otherwise(group)
    alone = [n for n in found if n not in others]
    more = [n for n in found if n in others]
    said = [f"it alone trains {', '.join(alone)}"] if alone else []
    return said + ([f"it adds to the gradient of {', '.join(more)}"] if more else [])


def _starts(system: System, group: list[Transfer]) -> str:
    names: dict[str, None] = {}
    for t in group:
        for box in (b for b in system.boxes if b.level is t.target):
            before = "" if box.kind == "level" else f"{box.name}."
            names |= {before + s.name: None for s in box.states if t.speaks_of(s)}
    return ", ".join(names)


__all__ = ["transfer_lines"]
