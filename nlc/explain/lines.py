"""What a page is made of: lines with a label, in mathematics or in words.

Mathematics is written by a `Writer`, in plain text or in LaTeX. Words hold mathematics by way of
`said`, so that one sentence serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap

from ..diagnostics import InternalError
from ..show import Writer

INDENT = "  "
WIDTH = 100


@dataclass(frozen=True, slots=True)
class Row:
    """`label`: what the line is. `words`: a sentence, which may be broken where it is too long."""

    label: str
    text: str
    words: bool = False


Rows = list[Row]


def said(w: Writer, label: str, sentence: str, *parts: str) -> Row:
    """A sentence with mathematics in the place of each `{}`."""
    words = sentence.split("{}")
    if len(words) != len(parts) + 1:
        raise InternalError(f"{len(parts)} parts for `{sentence}`")
    if w.latex:
        words, parts = [escaped(t) for t in words], tuple(f"${p}$" for p in parts)
    return Row(label, "".join(a + b for a, b in zip(words, (*parts, ""), strict=True)), True)


def escaped(text: str) -> str:
    """Words as LaTeX."""
    for sign in "&%#_{}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("^", r"\^{}").replace("<", "$<$").replace(">", "$>$")


def table(rows: Iterable[Row], depth: int = 1) -> list[str]:
    """Labels in one column; a label that repeats is not said again."""
    rows = list(rows)
    width = max((len(r.label) for r in rows), default=0)
    lines, before = [], ""
    for row in rows:
        label = row.label if row.label != before else ""
        before = row.label
        for text in broken(row, WIDTH - len(INDENT) * depth - width - 2):
            lines.append(f"{INDENT * depth}{label:{width}}  {text}".rstrip())
            label = ""
    return lines


def broken(row: Row, width: int) -> list[str]:
    if not row.words:
        return [row.text]
    return wrap(row.text, width, break_long_words=False, break_on_hyphens=False) or [""]


def latex(rows: Iterable[Row]) -> list[str]:
    """A paragraph for each label."""
    out: list[str] = []
    for label, group in groupby(rows, lambda r: r.label):
        out.append(rf"\paragraph{{{escaped(label)}}}" if label else "")
        out += [r.text if r.words else rf"\[ {r.text} \]" for r in group]
    return [line for line in out if line]


__all__ = ["INDENT", "Row", "Rows", "escaped", "latex", "said", "table"]
