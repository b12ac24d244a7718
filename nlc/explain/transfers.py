"""What crosses between levels, in words, and which weights train by it."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from ..system import Level, System, Transfer
from .lines import INDENT


def transfer_lines(system: System) -> list[str]:
    out: list[str] = []
    groups: dict[tuple[int, str, str], list[Transfer]] = {}
    for t in system.transfers:
        groups.setdefault((t.span.start, t.kind, t.target.family), []).append(t)
    for group in groups.values():
        out += [f"{INDENT}{_arrow(group)}", *(f"{INDENT * 2}{s}" for s in _words(system, group))]
    return out


def _names(levels: Iterable[Level], state: str | None) -> str:
    return ", ".join(dict.fromkeys(l.name + (f".{state}" if state else "") for l in levels))


def _arrow(group: list[Transfer]) -> str:
    t = group[0]
    sources = _names((u.source for u in group), t.source_state)
    targets = _names((u.target for u in group), t.state)
    through = f" through {t.truncate} tokens" if t.truncate is not None else ""
    return f"{t.kind} {sources} -> {targets}{through}{' first order' * t.first_order}"


def _words(system: System, group: list[Transfer]) -> list[str]:
    """What crosses, and which weights train by it."""
    t = group[0]
    a, b = _names((u.source for u in group), None), _names((u.target for u in group), None)
    first = ["inner gradients are constants to it"] if t.first_order else []
    cut = f", no further than {t.truncate} tokens" if t.truncate is not None else ""
    match t.kind:
        case "condition":
            return [f"{b} uses weights or states of {a}, which are constants there"]
        case "backprop":
            enters = f"the gradient of {b} enters the states and pasts of {a}{cut}"
            return [enters, *first, *_again(system, group), *_trained(system, group)]
        case "init":
            every = f" ({t.target.resets})" if t.target.resets.unit == "token" else ""
            starts = f"at each reset{every} {b} starts from what {a} has learned: "
            learned = [f"these learn by its gradient{cut}"] if cut else []
            learned += _learned_here(group, a, b)
            return [starts + _starts(system, group), *learned, *first, *_again(system, group)]
    return [f"a start, write or set of {b} is made from {a}"]


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


def _trained(system: System, group: list[Transfer]) -> list[str]:
    if not group[0].target.owner:
        return []
    inside = {id(t.source) for t in group}
    paths = [w.path for w in system.weights if w.box is not None and id(w.box.level) in inside]
    return wrap(f"it trains {', '.join(paths)}", 92) if paths else []


def _starts(system: System, group: list[Transfer]) -> str:
    names: dict[str, None] = {}
    for t in group:
        for box in (b for b in system.boxes if b.level is t.target):
            before = "" if box.kind == "level" else f"{box.name}."
            names |= {before + s.name: None for s in box.states if t.speaks_of(s)}
    return ", ".join(names)


__all__ = ["transfer_lines"]
