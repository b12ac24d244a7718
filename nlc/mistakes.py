from __future__ import annotations
from dataclasses import dataclass
from collections.abc import Callable
from .diagnostics import Diagnostic
from .tokens import Token

@dataclass(frozen=True, slots=True)
class Line:
    tokens: tuple[Token, ...]
    at: int
    expected: frozenset[str]
    accepts: Callable[[str], bool]
    in_block: bool

@dataclass(frozen=True, slots=True)
class Mistake:
    diagnostic: Diagnostic
    mended: tuple[Token, ...] | None = None
    whole: bool = False
    replaced: int = 0
    resume: int | None = None
    stray: bool = False

def find(line: Line) -> Mistake:
    t = line.tokens[line.at]
    return Mistake(Diagnostic("NL001", f"`{t.text}` cannot stand here {sorted(line.expected)}", t.span))
