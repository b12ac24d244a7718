"""STAGE: the text of a memory -> its box, on inputs of sizes that one may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .. import syntax as S
from ..checks import check_alone
from ..diagnostics import InternalError
from ..parse import parse
from ..resolve import memory_alone
from ..resolve.files import SHIPPED
from ..resolve.resolver import Resolver
from ..resolve.values import Declared
from ..system import Box
from ..text import Source


@cache
def shipped(name: str) -> str:
    """The text of a shipped memory."""
    return (SHIPPED / "memory" / f"{name}.nl").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Memory:
    """The last memory of a file."""

    file: S.File
    node: S.Memory

    def box(self, sizes: Mapping[str, int], settings: Mapping[str, float] | None = None) -> Box:
        """`sizes`: what the names in brackets stand for. Settings it has not are left aside."""
        resolver = Resolver(None)
        resolver.source = self.file.span.source
        declared = resolver.files.names_of(self.file, None)[self.node.name.id]
        assert isinstance(declared, Declared)
        params = self.node.params
        shapes = {p.name.id: shape(p, sizes) for p in params if p.default is None}
        own = {p.name.id for p in params if p.default is not None}
        given = {n: x for n, x in (settings or {}).items() if n in own}
        box = memory_alone(resolver, declared, shapes, given)
        told = [*resolver.diagnostics, *check_alone((box,))]
        if told:
            raise InternalError(f"{self.node.name.id}: {told[0].code} {told[0].message}")
        return box


def read(text: str) -> Memory:
    file, told = parse(Source("<memory>", text))
    if file is None or told:
        raise InternalError(f"no memory can be read: {told[0].message}\n{text}")
    return Memory(file, [item for item in file.items if isinstance(item, S.Memory)][-1])


def shape(param: S.Param, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[d.id] if isinstance(d, S.Name) else 2 for d in param.dims)
