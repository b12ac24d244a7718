"""A `learn` line over arrays of given shapes, as methods. In: a line, shapes, and the settings that
are sizes. Out: an object with the rules' methods, and a row for each shape.

Settings are given at every firing, so that schedulers and parameter groups may change them; only
those that sizes depend on are compiled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..backends.runtime.rules import Rules
from ..backends.torch_source import module_class
from ..backends.torch_source.optimizers import rules_source
from ..diagnostics import Diagnostic
from ..driver import SpecError
from ..lacking import NotLowered
from ..resolve import line_alone
from ..system import Learn, Shape, Term
from .declared import Line

PRODUCTS = {"matmul", "transpose", "solve", "qr", "eye", "outer"}
Numbers = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Fitted:
    """A line over one shape, or why it does not fit."""

    learn: Learn | None
    told: tuple[Diagnostic, ...] = ()

    @property
    def fits(self) -> bool:
        return self.learn is not None and not self.told


@lru_cache(maxsize=4096)
def fitted(line: Line, shape: Shape, sizes: Numbers) -> Fitted:
    """`sizes`: the settings that are compiled in."""
    given: dict[str, object] = dict(sizes)
    given |= {n: Term("input", (), (), n) for n in open_settings(line) if n not in given}
    learn, told = line_alone(line.file, line.folder, line.node, (shape,), given, dict(line.names))
    told = tuple(d for d in told if d.severity == "error")
    if learn is not None and not told and learn.optimizers and len(shape) > 2:
        rule = learn.optimizers[shape]
        if any(t.op in PRODUCTS for b in (rule, *rule.levels) for t in b.terms()):
            learn = None  # it would take the last two axes for a matrix
    return Fitted(learn, told)


@lru_cache(maxsize=256)
def open_settings(line: Line) -> tuple[str, ...]:
    """The settings that may change from firing to firing, in their order: those that a rule still
    fits with, when they are not known beforehand.
    """
    numbers = {n: x for n, x in line.settings.items() if x is not None}
    return tuple(n for n in numbers if runs_without(line, n, numbers))


def runs_without(line: Line, name: str, numbers: Mapping[str, float]) -> bool:
    for shape in ((8, 4), (8,)):
        known = {n: x for n, x in numbers.items() if n != name}
        if not told_of(line, shape, numbers):
            given: dict[str, object] = {**known, name: Term("input", (), (), name)}
            return not told_of(line, shape, given)
    return True


def told_of(line: Line, shape: Shape, given: Mapping[str, object]) -> list[Diagnostic]:
    _, told = line_alone(line.file, line.folder, line.node, (shape,), given, dict(line.names))
    return [d for d in told if d.severity == "error"]


@lru_cache(maxsize=256)
def rules_of(line: Line, shapes: frozenset[Shape], sizes: Numbers) -> Rules:
    """The methods that serve arrays of these shapes.

    Raises SpecError with NL701 for what is not lowered.
    """
    learns = {s: fitted(line, s, sizes).learn for s in sorted(shapes)}
    known = {s: learn for s, learn in learns.items() if learn is not None}
    try:
        text = rules_source(line.rule, line.said, known, open_settings(line))
    except NotLowered as error:
        raise SpecError((error.diagnostic,)) from None
    made: Any = module_class(text, line.rule)
    rules: Rules = made()
    rules.sizes = sizes
    return rules


def asks_for_examples(line: Line) -> bool:
    return any(p.name.id in ("input", "surprise") for p in line.params)
