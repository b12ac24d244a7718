"""Which names a line may bind (2.2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import syntax as S
from .functions import TABLE
from .making import MAKERS
from .values import POISON, Declared, LevelValue, StateFamily, StateValue

if TYPE_CHECKING:
    from .bodies import Body

BOUND = ("loss", "count", "position", "infinity", "matrices", "vectors", "tables")


def is_taken(body: Body, node: S.Name) -> bool:
    """Plain names may be bound again; the language's, levels, memories, settings, states and inputs
    may not.
    """
    name = node.id
    if is_language(body, name):
        help = "choose another name"
        body.error("NL106", f"`{node.text or name}` is bound by the language", node.span, help)
    elif is_declared(body, name):
        help = "plain names share one space with inputs, settings, states and functions"
        body.error("NL102", f"`{node.text or name}` is given twice", node.span, help)
    else:
        return False
    if name not in body.env or name in body.resolver.settings:
        body.env[name] = POISON  # what was meant by it below is not known
    return True


def is_language(body: Body, name: str) -> bool:
    """Only a flow may bind `loss`; a function of the language is one until it is hidden."""
    if name in BOUND:
        return not (name == "loss" and body.box is None and not body.expands)
    return (name in TABLE or name in MAKERS) and name not in body.env


def is_declared(body: Body, name: str) -> bool:
    old = body.env.get(name)
    taken = isinstance(old, (StateValue, StateFamily, LevelValue, Declared))
    return taken or name in body.fixed or is_setting(body, name) and old is not POISON


def is_setting(body: Body, name: str) -> bool:
    """Of the system, in a body that sees it: the flow's, or a level's."""
    seen = any(names is body.resolver.system_names for names in body.env.maps)
    return seen and name in body.resolver.settings
