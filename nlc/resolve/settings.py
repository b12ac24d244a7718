"""What the settings of a system may be."""

from __future__ import annotations

from typing import Any

from .. import syntax as S
from .bodies import Body
from .values import Poison, is_known


def among(body: Body, params: tuple[S.Param, ...], node: S.Among, settings: dict[str, Any]) -> None:
    """`assume a, b in [0, 1]`: told where the setting stands, and nothing of what follows."""
    allowed, where = body.value(node.values), node.values.span
    if isinstance(allowed, Poison):
        return
    if not isinstance(allowed, list) or not allowed or not all(map(is_setting, allowed)):
        told = f"`{where.text}` is no list of what a setting may be"
        body.resolver.report("NL606", told, where, "write `assume a in [0, 1]`")
        return
    spans = {p.name.id: p.span for p in params}
    for name in node.names:
        shown = name.text or name.id
        if name.id not in spans:
            known = ", ".join(spans) or "none"
            body.resolver.report("NL101", f"`{shown}` is no setting; they are {known}", name.span)
            continue
        value = settings[name.id]
        if not isinstance(value, Poison) and value not in allowed:
            *most, last = map(str, allowed)
            may = f"{', '.join(most)} or {last}" if most else last
            body.resolver.report("NL606", f"`{shown}` is {value}, and may be {may}", spans[name.id])
            settings[name.id] = body.env[name.id] = allowed[0]


def listed(value: Any) -> Any:
    """A tuple given from outside is a list of the language."""
    return [listed(v) for v in value] if isinstance(value, list | tuple) else value


def is_setting(value: Any) -> bool:
    """A number, or a list of settings."""
    if isinstance(value, list | tuple):
        return all(is_setting(v) for v in value)
    return is_known(value) and value == value
