"""What is gathered while a box is read, and what every part of the stage can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import (
    EXAMPLES,
    Box,
    Form,
    Shape,
    Term,
)
from ..text import Span
from .bodies import Body
from .names import BOUND
from .values import POISON, Names, Value

if TYPE_CHECKING:
    from .resolver import Resolver

FORMS = ("vector", "matrix", "table", "mlp", "gated_mlp", "residual", "layernorm", "like")
RULE_NODES = (S.Objective, S.Retain, S.Learn, S.Write, S.Set)
BUILT_IN_RULES = ("exact", "implicit")


@dataclass
class Draft:
    """A state whose form is known and whose rule waits for the end of the body."""

    name: str
    family: str | None
    form: Form
    per: Shape
    start: Term | None
    nodes: list[S.Statement]
    env: Names  # as it stood at the state's place
    span: Span


@dataclass
class Placed:
    """A rule statement of the block, with the names as they stood at its place."""

    node: Any
    env: Names


@dataclass
class Work:
    """What is gathered while a body is read."""

    drafts: list[Draft] = field(default_factory=list)
    rules: list[Placed] = field(default_factory=list)
    read: Placed | None = None
    order: list[str] = field(default_factory=list)
    levels: list[Box] = field(default_factory=list)


class Stage(ABC):
    """What the parts share: the resolver, and the reading of expressions at their place."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

    @abstractmethod
    def fill(self, body: Body, block: S.Block) -> None:
        """Read all statements of a box."""

    def in_env(
        self, body: Body, placed: Placed, expr: S.Expr, extra: Mapping[str, Any] | None = None
    ) -> Value:
        """An expression with the names at its place; names bound later in the body are seen too."""
        final = body.env
        body.env = ChainMap(dict(extra or {}), placed.env.maps[0], *final.maps)
        try:
            return body.value(expr)
        finally:
            body.env = final

    def twice(self, inner: Body, p: S.Param) -> bool:
        """An input or setting of a name that another has."""
        name = p.name.id
        if name in inner.fixed:
            inner.error("NL102", f"`{p.name.text or name}` is given twice", p.name.span)
            inner.env[name] = POISON
            return True
        if name in BOUND:
            inner.error("NL106", f"`{p.name.text or name}` is bound by the language", p.name.span)
        inner.fixed.add(name)
        return False


def stream_shapes(shape: Shape) -> dict[str, Shape]:
    """The streams of an optimizer that serves an array of this shape (2.9.6)."""
    streams = {"weight": shape, "grad": shape}
    if len(shape) == 2:
        streams |= {"input": (EXAMPLES, shape[1]), "surprise": (EXAMPLES, shape[0])}
    return streams


def array_kind(form: Form) -> str:
    """matrices, tables or vectors (2.9.4)."""
    core = form.core.kind
    if core in ("matrix", "mlp", "gated_mlp"):
        return "matrices"
    if core == "like":
        return "matrices" if len(form.sizes) == 2 else "vectors"
    return "tables" if core == "table" else "vectors"


def path_text(path: S.Path) -> str:
    text = path.first.id
    for part, indexed in zip(path.rest, path.indexed, strict=True):
        text += (
            f"[{part.span.text}]" if indexed else f".{part.id if isinstance(part, S.Name) else ''}"
        )
    return text


def told_dims(p: S.Param) -> str:
    return "[" + ", ".join(d.span.text or getattr(d, "id", "?") for d in p.dims) + "]"


def cites(block: S.Block) -> tuple[str, ...]:
    return tuple(n.text for n in block.statements if isinstance(n, S.Cite))
