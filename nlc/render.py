"""Messages to text. In: diagnostics. Out: what a terminal, a program or a code host shows; and the
text with fixes applied.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .diagnostics import Diagnostic, Fix, Label
from .text import Source, Span

FORMAT_VERSION = 1
WIDEST = 120  # columns of a source line that are shown
TAB = 4

_COLORS = {"error": "1;31", "warning": "1;33", "place": "1;34", "bold": "1", "help": "1;36"}


# ---- text ----------------------------------------------------------------------------------


def render_text(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """Each message with the user's own line, the place marked, and what to do."""
    return "\n\n".join("\n".join(_message(one, _Paint(color))) for one in diagnostics)


@dataclass(frozen=True, slots=True)
class _Paint:
    on: bool

    def __call__(self, text: str, role: str) -> str:
        return f"\x1b[{_COLORS[role]}m{text}\x1b[0m" if self.on and text else text


def _message(one: Diagnostic, paint: _Paint) -> Iterator[str]:
    head = paint(f"{one.severity}[{one.code}]", one.severity)
    yield head + paint(f": {_plain(one.message)}", "bold")
    places = [Label(one.span, one.label), *one.others]
    gutter = max(len(str(label.span.line)) for label in places)
    source = None
    for at, label in enumerate(places):
        if label.span.source is not source:
            source = label.span.source
            yield f"{' ' * gutter}{paint('-->', 'place')} {where(label.span)}"
        yield from _place(label, gutter, "^" if at == 0 else "-", paint, one.severity)
    if one.help:
        yield f"{paint('help', 'help')}: {_plain(one.help)}"


def where(span: Span) -> str:
    return f"{_plain(span.source.name)}:{span.line}:{span.column}"


def _place(label: Label, gutter: int, mark: str, paint: _Paint, severity: str) -> Iterator[str]:
    """The line and the marks under it; nothing for a source without text."""
    span = label.span
    if not span.source.text:
        return
    bar = paint("|", "place")
    shown, column, width = excerpt(span)
    number = paint(f"{span.line:>{gutter}}", "place")
    marks = paint(mark * width, severity if mark == "^" else "place")
    said = f" {_plain(label.text)}" if label.text else ""
    yield f"{number} {bar} {shown}".rstrip()
    yield f"{' ' * gutter} {bar} {' ' * column}{marks}{said}"


def excerpt(span: Span) -> tuple[str, int, int]:
    """The line of a place as a terminal shows it, the column where the marks begin, and how many
    they are.

    Tabs are spread, wide letters count two columns, and of a long line the part around the place
    is shown.
    """
    line = span.source.line(span.line)
    start = span.column - 1
    end = min(len(line), start + max(1, span.end - span.start))
    line, start, end = _cut(line, start, end)
    before, marked = _spread(line[:start]), _spread(line[start:end], _columns(line[:start]))
    after = _spread(line[end:], _columns(line[:end]))
    return before + marked + after, _width(before), max(1, _width(marked))


def _cut(line: str, start: int, end: int) -> tuple[str, int, int]:
    line = line.rstrip()
    if len(line) <= WIDEST:
        return line, min(start, len(line)), min(end, len(line))
    first = max(0, min(start - WIDEST // 3, len(line) - WIDEST))
    last = first + WIDEST
    head, tail = (".. " if first else ""), (" .." if last < len(line) else "")
    shift = len(head) - first
    return head + line[first:last] + tail, start + shift, min(end, last) + shift


def _spread(text: str, column: int = 0) -> str:
    """Tabs as spaces up to the next stop; what cannot be printed as a dot."""
    out = []
    for character in text:
        shown = " " * (TAB - column % TAB) if character == "\t" else _plain(character)
        out.append(shown)
        column += _width(shown)
    return "".join(out)


def _columns(text: str) -> int:
    return _width(_spread(text))


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def _letter_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _plain(text: str) -> str:
    """Nothing that could move the cursor or turn the line around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else "·" for c in text)


# ---- for programs --------------------------------------------------------------------------


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """One object; offsets count characters from 0, lines and columns from 1, ends are excluded."""
    told = [_record(one) for one in diagnostics]
    return json.dumps({"format_version": FORMAT_VERSION, "diagnostics": told}, indent=2) + "\n"


def _record(one: Diagnostic) -> dict[str, object]:
    return {
        "code": one.code,
        "severity": one.severity,
        "message": one.message,
        "help": one.help,
        "label": one.label,
        **_position(one.span),
        "others": [{"label": other.text, **_position(other.span)} for other in one.others],
        "fix": _fix_record(one.fix) if one.fix else None,
    }


def _position(span: Span) -> dict[str, object]:
    end_line, end_column = span.source.position(span.end)
    return {
        "file": span.source.name,
        "start": {"offset": span.start, "line": span.line, "column": span.column},
        "end": {"offset": span.end, "line": end_line, "column": end_column},
    }


def _fix_record(fix: Fix) -> dict[str, object]:
    return {"title": fix.title, "text": fix.text, **_position(fix.span)}


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """Workflow commands: one line for each message."""
    return "".join(_command(one) + "\n" for one in diagnostics)


def _command(one: Diagnostic) -> str:
    end_line, end_column = one.span.source.position(one.span.end)
    values = {"file": one.span.source.name, "line": one.span.line, "endLine": end_line}
    if end_line == one.span.line:
        values |= {"col": one.span.column, "endColumn": max(end_column, one.span.column + 1)}
    values["title"] = one.code
    shown = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in values.items())
    text = one.message + (f"\nhelp: {one.help}" if one.help else "")
    return f"::{one.severity} {shown}::{_escaped(text)}"


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


# ---- fixes ---------------------------------------------------------------------------------


def apply_fixes(source: Source, diagnostics: Iterable[Diagnostic]) -> str:
    """The text with every fix that touches no earlier one. What is left shows in the next check."""
    fixes = {d.fix for d in diagnostics if d.fix is not None and _same(d.fix.span.source, source)}
    text, end, parts = source.text, 0, list[str]()
    last: Fix | None = None
    for fix in sorted(fixes, key=lambda f: (f.span.start, f.span.end, f.text)):
        if fix.span.start < end or (last is not None and last.span.start == fix.span.start):
            continue
        parts += [text[end : fix.span.start], fix.text]
        end, last = fix.span.end, fix
    return "".join([*parts, text[end:]])


def _same(one: Source, other: Source) -> bool:
    return one is other or (one.name == other.name and one.text == other.text)
