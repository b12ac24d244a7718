"""Source text and places in it. In: a file's characters. Out: `Source`, and `Span`s that point
into it.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diagnostics import Diagnostic


@dataclass(frozen=True, eq=False)
class Source:
    """The text of one file. `name` is what messages call it."""

    name: str
    text: str
    shipped: bool = False

    @cached_property
    def line_starts(self) -> tuple[int, ...]:
        return (0, *(i + 1 for i, c in enumerate(self.text) if c == "\n"))

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, counted from 1, without its end."""
        start = self.line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start:] if end < 0 else self.text[start:end]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (excluded) of a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        return Span(self.source, self.start, max(self.end, other.end))


NOWHERE = Span(Source("<made>", ""), 0, 0)


def read_source(path: Path) -> Source | Diagnostic:
    """A file's text, or the message that it is none. Raises OSError if there is no such file."""
    from .diagnostics import Diagnostic

    data = path.read_bytes()
    try:
        return Source(str(path), data.decode("utf-8"))
    except UnicodeDecodeError as error:
        good = Source(str(path), data[: error.start].decode("utf-8"))
        place = Span(good, len(good.text), len(good.text))
        byte = data[error.start]
        message = f"this is not UTF-8 text: the byte 0x{byte:02x} belongs to no character"
        return Diagnostic("NL001", message, place, "save the file as UTF-8")


_GREEK = re.compile(r"GREEK (?:(SMALL|CAPITAL) )?LETTER (?:FINAL |LUNATE )?(\w+)")


@lru_cache(maxsize=65536)
def canonical(name: str) -> str:
    """The one spelling of a name: NFKC, Greek in English (`η` is `eta`, `Γ` is `Gamma`)."""
    normal = unicodedata.normalize("NFKC", name)
    return normal if normal.isascii() else "".join(map(_spelt, normal))


def _spelt(letter: str) -> str:
    found = _GREEK.match(unicodedata.name(letter, ""))
    if found is None:
        return letter
    word = "lambda" if found[2] == "LAMDA" else found[2].lower()
    return word.capitalize() if found[1] == "CAPITAL" else word
