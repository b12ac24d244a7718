"""What a name can stand for while a text is resolved; the numbers known when compiled."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import syntax as S
from ..system import Box, Form, Handle, Level, Shape, Term
from ..text import Span


class Inexact(float):
    """A quotient of whole numbers that is not whole: an error only where a size is asked for
    (NL601).
    """

    span: Span
    parts: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Poison:
    """Something already reported: whatever uses it says nothing more."""


POISON = Poison()


@dataclass(frozen=True, slots=True)
class StateValue:
    """A state, that may be called or read as an array."""

    handle: Handle
    form: Form
    per: Shape


@dataclass(frozen=True, slots=True)
class StateFamily:
    """`state M[a, b]`: by member name."""

    name: str
    members: Mapping[str, StateValue]


@dataclass(frozen=True, slots=True)
class LevelValue:
    """A level, or a family of them by index (the key of a level that is alone is None)."""

    name: str
    members: Mapping[Any, Level]


@dataclass(frozen=True, slots=True)
class BoxValue:
    """The one box of a level inside an optimizer, or of a level that is never called."""

    name: str
    box: Box
    states: Mapping[str, StateValue]


@dataclass(frozen=True, slots=True)
class Builtin:
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Declared:
    """A def, memory or optimizer, with the names its file sees."""

    node: S.Def | S.Memory | S.Optimizer
    names: Mapping[str, Any]
    doc: str = ""


Names = ChainMap[str, Any]
"""The names of a body; those around it are further maps, shared and never copied."""

Known = int | float | list[Any]
Value = (
    Known | Term | Poison | StateValue | StateFamily | LevelValue | BoxValue | Builtin | Declared
)


def is_known(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
