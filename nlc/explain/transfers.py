"""What crosses between levels, in words, and which weights train by it."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from ..system import Level, System, Transfer
from .lines import INDENT
from .trained import Trained


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
    first = ["inner gradients are constants to it"] if t.first_order else []
    cut = f", no further than {t.truncate} tokens" if t.truncate is not None else ""
    match t.kind:
        case "condition":
            return [f"{b} uses weights or states of {a}, which are constants there"]
        case "backprop":
            enters = f"the gradient of {b} enters the states and pasts of {a}{cut}"
            return [enters, *first, *_again(system, group), *_trained(trained, group)]
        case "init":
            every = f" ({t.target.resets})" if t.target.resets.unit == "token" else ""
            starts = f"at each reset{every} {b} starts from what {a} has learned: "
            learned = [f"these learn by its gradient{cut}"] if cut else []
            learned += _learned_here(group, a, b)
            learned = [starts + _starts(system, group), *_so_do(trained, group), *learned]
            return [*learned, *first, *_again(system, group)]
    return [f"a start, write or set of {b} is made from {a}"]


def _so_do(trained: Trained, group: list[Transfer]) -> list[str]:
    """Starts of starts."""
    own = {b.path for b in trained.system.boxes if b.level in {t.target for t in group}}
    names = (n.partition("@")[0] for n in trained.starts(group))
    more = [n for n in names if n.rpartition(".")[0] not in own]
    b = _names((t.target for t in group), None)
    return [f"so do the starts that {b} learns for others: {', '.join(more)}"] if more else []


def _learned_here(group: list[Transfer], a: str, b: str) -> list[str]:
    """A start that is learned while the stream runs."""
    clock = group[0].source.clock
    if clock.unit in ("step", "task"):
        return []
    return [f"{a} learns these by its own rule {clock}, by the losses since, through {b}'s writes"]


def _again(system: System, group: list[Transfer]) -> list[str]:
    """Whether a gradient passes through gradients of the same loss."""
    inside = [t.source if t.kind == "backprop" else t.target for t in group if not t.first_order]
    found = [
        l
        for l in inside
        if any(b.level is l and any(s.rule.uses_loss for s in b.states) for b in system.boxes)
    ]
    if not found:
        return []
    names = _names(found, None)
    return [f"it goes through the gradients that {names} wrote by: a second derivative of the loss"]


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
