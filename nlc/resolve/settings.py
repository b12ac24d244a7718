"""What the settings of a system, a memory or an optimizer may be."""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping
from typing import Any

from .. import syntax as S
from ..text import Span
from .bodies import Body
from .values import Poison, is_known


def all_among(
    body: Body, item: S.Def | S.Memory | S.Optimizer, given: Container[str], call: Span
) -> None:
    """What a memory or an optimizer says of its settings, those that are given told at the call."""
    settings = [p for p in item.params if p.default is not None]
    spans = {p.name.id: call if p.name.id in given else p.span for p in settings}
    for node in item.body.statements:
        if isinstance(node, S.Among):
            among(body, spans, node, body.env)


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
    for name in node.names:
        shown = name.text or name.id
        if name.id not in spans:
            known = ", ".join(spans) or "none"
            body.resolver.report("NL101", f"`{shown}` is no setting; they are {known}", name.span)
            continue
        value = settings[name.id]
        if isinstance(value, Poison) or is_setting(value) and value in allowed:
            continue
        *most, last = map(str, allowed)
        may = f"{', '.join(most)} or {last}" if most else last
        what = f"is {value}" if is_setting(value) else "changes while the system runs"
        body.resolver.report("NL606", f"`{shown}` {what}, and may be {may}", spans[name.id])
        settings[name.id] = body.env[name.id] = allowed[0]


def listed(value: Any) -> Any:
    """A tuple given from outside is a list of the language."""
    return [listed(v) for v in value] if isinstance(value, list | tuple) else value


def is_setting(value: Any) -> bool:
    """A number, or a list of settings."""
    if isinstance(value, list | tuple):
        return all(is_setting(v) for v in value)
    return is_known(value) and value == value
