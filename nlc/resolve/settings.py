"""What the settings of a system, a memory or an optimizer may be."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping
from operator import ge, gt, le, lt
from typing import Any, TypeGuard

from .. import syntax as S
from ..text import Span
from .bodies import Body
from .values import POISON, Poison, is_known


def all_among(
    body: Body, item: S.Def | S.Memory | S.Optimizer, given: Container[str], call: Span
) -> None:
    """What a memory or an optimizer says of its settings, those that are given told at the call."""
    settings = [p for p in item.params if p.default is not None]
    spans = {p.name.id: call if p.name.id in given else p.span for p in settings}
    for node in item.body.statements:
        if isinstance(node, S.Among):
            among(body, spans, node, body.env)
        elif isinstance(node, S.Bounded):
            bounded(body, spans, node, body.env)


def among(
    body: Body, spans: Mapping[str, Span], node: S.Among, settings: MutableMapping[str, Any]
) -> None:
    """`assume a, b in [0, 1]`: told where the setting stands, and nothing of what follows."""
    allowed, where = body.value(node.values), node.values.span
    if isinstance(allowed, Poison):
        return
    if not isinstance(allowed, list) or not allowed or not all(map(is_setting, allowed)):
        told = f"`{where.text}` is no list of what a setting may be"
        body.resolver.report("NL606", told, where, "write `assume a in [0, 1]`")
        return
    for name in settings_of(body, spans, node.names):
        value = settings[name.id]
        if isinstance(value, Poison) or is_setting(value) and value in allowed:
            continue
        *most, last = map(str, allowed)
        may = f"{', '.join(most)} or {last}" if most else last
        what = f"is {value}" if is_setting(value) else "changes while the system runs"
        told = f"`{name.text or name.id}` {what}, and may be {may}"
        body.resolver.report("NL606", told, spans[name.id])
        settings[name.id] = body.env[name.id] = allowed[0]


def bounded(
    body: Body, spans: Mapping[str, Span], node: S.Bounded, settings: MutableMapping[str, Any]
) -> None:
    """`assume p >= 1`: told where the setting stands. One that is a stream is what it is."""
    bound, where = body.value(node.bound), node.bound.span
    if isinstance(bound, Poison):
        return
    if node.sign not in SIGNS or not is_number(bound):
        told = f"`{node.sign} {where.text}` is no bound of a setting"
        body.resolver.report("NL606", told, where, "write `assume a >= 0`")
        return
    words, within = SIGNS[node.sign]
    for name in settings_of(body, spans, node.names):
        value = settings[name.id]
        if isinstance(value, Poison) or not is_setting(value):
            continue
        if not all(is_number(v) and within(v, bound) for v in leaves(value)):
            told = f"`{name.text or name.id}` is {value}, and may be {words} {bound:g}"
            body.resolver.report("NL606", told, spans[name.id])
            settings[name.id] = body.env[name.id] = POISON


SIGNS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    ">=": ("no less than", ge),
    ">": ("above", gt),
    "<=": ("no more than", le),
    "<": ("below", lt),
}


def settings_of(
    body: Body, spans: Mapping[str, Span], names: tuple[S.Name, ...]
) -> Iterator[S.Name]:
    """Those of these names that are settings."""
    for name in names:
        if name.id in spans:
            yield name
            continue
        known = ", ".join(spans) or "none"
        told = f"`{name.text or name.id}` is no setting; they are {known}"
        body.resolver.report("NL101", told, name.span)


def leaves(value: Any) -> list[Any]:
    return [v for x in value for v in leaves(x)] if isinstance(value, list | tuple) else [value]


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def listed(value: Any) -> Any:
    """A tuple given from outside is a list of the language."""
    return [listed(v) for v in value] if isinstance(value, list | tuple) else value


def is_setting(value: Any) -> bool:
    """A number, or a list of settings."""
    if isinstance(value, list | tuple):
        return all(is_setting(v) for v in value)
    return is_known(value) and value == value
