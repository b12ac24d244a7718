"""Text to tokens. In: a `Source`. Out: every token of it, comments and line ends included.

A token that is written wrongly but can be read only one way (`.5`, a curly quote, an en dash) is
handed on as it should have been, and carries the `fault` to report: so one slip in a line does not
hide the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from .diagnostics import Diagnostic, Fix
from .text import Source, Span


@dataclass(frozen=True, slots=True)
class Token:
    """`text` is what the parser reads, `span.text` what the user wrote."""

    kind: str  # "word", "number", "string", "symbol", "newline", "comment", "nothing" or "end"
    text: str
    span: Span
    fault: Diagnostic | None = None
    type: str = ""  # the grammar's name for it, once the parser has chosen one


_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t\r\ufeff]+)
  | (?P<newline>[\n;])
  | (?P<comment>\#[^\n]*)
  | (?P<word>[^\W\d]\w*)
  | (?P<number>(?:[0-9]|(?<![\w)\]])\.[0-9])(?:(?<=[0-9.][eE])[+-](?=[0-9])|[\w.])*)
  | (?P<string>"[^"\n]*")
  | (?P<unclosed>"[^"\n\#]*)
  | (?P<quoted>[“”„«"][^“”»"\n]*[“”»"]|(?<![\w)\]])['‘’][^'‘’\n]*['‘’])
  | (?P<foreign>\*\*|//|!=|-=|\*=|/=|:=|=>|&&|\|\||\.\.+)
  | (?P<symbol>->|\+=|<=|>=|==|[-+*/@^<>=(){}\[\],.:])
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_FOREIGN = {
    "**": ("^", "a power is written `^`"),
    "=>": ("->", "an arrow is written `->`"),
    ":=": ("=", "a name is given its value by `=`"),
}
# What is read in place of a sign that the language does not have, and what to write.
_ABSENT = {
    "//": ("/", "`floor(a / b)`; a comment begins with `#`"),
    "!=": ("==", "`1 - (a == b)`"),
    "-=": ("+=", "`x += -(..)`"),
    "*=": ("=", "`x = x * (..)`"),
    "/=": ("=", "`x = x / (..)`"),
    "&&": ("*", "`a * b`, of two comparisons"),
    "||": ("+", "`max(a, b)`, of two comparisons"),
    "%": ("/", "`mod(a, b)`"),
    "'": ("", "`transpose(k)`, or double quotes around a path"),
    "\\": ("", "nothing: a line goes on inside brackets, and after an operator or a comma"),
}
_LOOK_ALIKE = {
    **dict.fromkeys("‐‑‒–—―−﹣", "-"),
    **dict.fromkeys("×·∙⋅∗⊙⨯", "*"),
    **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("→⟶➔⇒", "->"),
    **dict.fromkeys(
        "\u00a0\u2000\u2002\u2003\u2009\u200a\u202f\u3000\u200b\u2028\u2029\u2060\x0b\x0c", " "
    ),
    **dict.fromkeys("，、", ","),
    "≤": "<=",
    "≥": ">=",
    "∞": "infinity",
    "˄": "^",
    "ˆ": "^",
    "；": ";",
    "。": ".",
}
_SUPERSCRIPT = re.compile(r"(\w*?[^\W⁰¹²³⁴⁵⁶⁷⁸⁹])([⁰¹²³⁴⁵⁶⁷⁸⁹]+)$")
_GOOD_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LARGEST = 2**63 - 1


def scan(source: Source) -> list[Token]:
    """All tokens in order; the last has the kind "end"."""
    return [*_tokens(source), Token("end", "", Span(source, len(source.text), len(source.text)))]


def _tokens(source: Source) -> Iterator[Token]:
    text, at = source.text, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None and found.lastgroup is not None
        kind, end = found.lastgroup, found.end()
        if kind == "word":
            end = _with_marks(text, end)
        span = Span(source, at, end)
        at = end
        if kind == "word" and not span.text.isascii():
            yield from _foreign_word(span)
        elif kind in ("word", "newline", "comment", "string", "symbol"):
            yield Token(kind, span.text, span)
        elif kind == "number":
            yield from _number(span)
        elif kind != "blank":
            yield from _SLIPS[kind](span)


def _with_marks(text: str, end: int) -> int:
    """Accents that are characters of their own belong to the letter before."""
    while end < len(text) and not text[end].isascii():
        if not unicodedata.category(text[end]).startswith("M") and not text[end].isalnum():
            break
        end += 1
    return end


# ---- slips of the pen ----------------------------------------------------------------------


def slip(code: str, span: Span, message: str, write: str | None, help: str = "") -> Diagnostic:
    """A mistake at `span` with the text that mends it, if there is one."""
    fix = None if write is None else Fix(span, write, f"write `{write}`")
    return Diagnostic(code, message, span, help or (fix.title if fix and write else ""), fix=fix)


def _quoted(span: Span) -> Iterator[Token]:
    write = f'"{span.text[1:-1]}"'
    fault = slip("NL001", span, "a path or a source stands in straight double quotes", write)
    yield Token("string", write, span, fault)


def _unclosed(span: Span) -> Iterator[Token]:
    written = span.text.rstrip()
    end = span.start + len(written)
    place = Span(span.source, end, end)
    message = "the quotes are never closed on this line"
    fault = Diagnostic(
        "NL001",
        message,
        Span(span.source, span.start, end),
        'close them with `"`',
        fix=Fix(place, '"', 'close them with `"`'),
    )
    yield Token("string", written + '"', span, fault)


def _foreign(span: Span) -> Iterator[Token]:
    if span.text in _FOREIGN:
        write, why = _FOREIGN[span.text]
        yield Token("symbol", write, span, slip("NL001", span, f"{why}, not `{span.text}`", write))
    else:
        yield from _other(span)


def _other(span: Span) -> Iterator[Token]:
    character = span.text
    if character in _ABSENT:
        read, write = _ABSENT[character]
        message = f"there is no `{character}` in the language"
        fault = slip("NL001", span, message, None, f"write {write}")
        yield Token("symbol" if read else "nothing", read, span, fault)
        return
    write = _LOOK_ALIKE.get(character, "") or _narrow(character)
    if not write:
        message = f"{described(character)} means nothing here"
        yield Token("nothing", "", span, slip("NL001", span, message, None, "take it out"))
        return
    shown = "a space" if write == " " else f"`{write}`"
    fault = slip("NL001", span, f"{described(character)} only looks like {shown}", write)
    kind = {" ": "nothing", ";": "newline", "infinity": "word"}.get(write, "symbol")
    yield Token(kind, write, span, fault)


def _narrow(character: str) -> str:
    """The symbol of the language that a full-width character stands for, if there is one."""
    normal = unicodedata.normalize("NFKC", character)
    found = _TOKEN.fullmatch(normal)
    return normal if found and found.lastgroup == "symbol" else ""


def described(character: str) -> str:
    """A character as a message names it: by its code and name unless it is plain."""
    if character.isascii() and character.isprintable():
        return f"`{character}`"
    name = unicodedata.name(character, "no name").lower()
    shown = f"`{character}` " if character.isprintable() else ""
    return f"{shown}(U+{ord(character):04X}, {name})"


_SLIPS = {"unclosed": _unclosed, "quoted": _quoted, "foreign": _foreign, "other": _other}


def _foreign_word(span: Span) -> Iterator[Token]:
    """A word beyond ASCII: a name of any alphabet, unless it ends in a power (`x²`)."""
    power = _SUPERSCRIPT.fullmatch(span.text)
    if power is not None:
        digits = unicodedata.normalize("NFKC", power[2])
        middle = span.start + power.end(1)
        write = f"{power[1]}^{digits}"
        fault = slip("NL001", span, f"a power is written `{write}`", write)
        yield from _tokens_of_word(Span(span.source, span.start, middle))
        yield Token("symbol", "^", Span(span.source, middle, middle), fault)
        yield Token("number", digits, Span(span.source, middle, span.end))
    else:
        yield from _tokens_of_word(span)


def _tokens_of_word(span: Span) -> Iterator[Token]:
    normal = unicodedata.normalize("NFKC", span.text)
    if normal.isidentifier():
        yield Token("word", normal, span)
    else:
        fault = slip(
            "NL001",
            span,
            f"`{span.text}` is no name",
            None,
            "a name is a letter of any alphabet, then letters, digits and `_`",
        )
        yield Token("word", "_", span, fault)


# ---- numbers -------------------------------------------------------------------------------


def _number(span: Span) -> Iterator[Token]:
    written = span.text
    if _GOOD_NUMBER.fullmatch(written):
        yield _sized(span, written)
        return
    mended = _mended(written)
    if _GOOD_NUMBER.fullmatch(mended):
        fault = slip("NL004", span, f"write `{mended}`, not `{written}`", mended)
        yield Token("number", mended, span, fault)
        return
    yield from _number_and_more(span, mended)


def _mended(written: str) -> str:
    """`.5`, `2.`, `1_000` and `0x10` as they should have been written."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,15}|0[bB][01]{1,60}", written):
        return str(int(written, 0))
    raised = re.fullmatch(r"([0-9.]+)([⁰¹²³⁴-⁹]+)", written)
    if raised is not None:
        return f"{raised[1]}^{unicodedata.normalize('NFKC', raised[2])}"
    text = "0" + written if written.startswith(".") else written
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=[0-9])_+(?=[0-9])", "", text))
    return re.sub(r"\.(?![0-9.])", ".0", text)


def _number_and_more(span: Span, mended: str) -> Iterator[Token]:
    """`16tokens`, `4n` or `2²`: a number that runs into a word."""
    power = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\^([0-9]+)", mended)
    if power is not None:
        yield Token(
            "number",
            power[1],
            span,
            slip("NL004", span, f"write `{mended}`, not `{_short(span.text)}`", mended),
        )
        yield Token("symbol", "^", span)
        yield Token("number", power[2], span)
        return
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)([^\W\d]\w*)", mended)
    if parts is None:
        help = "numbers are written `2`, `0.5`, `1e-3`"
        fault = slip("NL004", span, f"`{_short(span.text)}` is no number", None, help)
        yield Token("number", "1", span, fault)
        return
    unit = re.fullmatch(r"(?:token|sequence|step|task)s?", parts[2])
    write = f"{parts[1]}{' ' if unit else '*'}{parts[2]}"
    fault = slip("NL004", span, f"write `{write}`, not `{_short(span.text)}`", write)
    yield Token("number", parts[1], span, fault)
    if not unit:
        yield Token("symbol", "*", span)
    yield Token("word", parts[2], span)


def _sized(span: Span, written: str) -> Token:
    problem = _size_problem(written)
    if not problem:
        return Token("number", written, span)
    help = "`infinity` is a number too" if problem == "large" else "write `0`, or a larger one"
    fault = slip("NL004", span, f"`{_short(written)}` is too {problem} for a number", None, help)
    return Token("number", "1", span, fault)


def _size_problem(written: str) -> str:
    if written.isdigit():
        digits = written.lstrip("0")
        return "large" if len(digits) > 19 or int(digits or "0") > _LARGEST else ""
    value = float(written)
    if value == float("inf"):
        return "large"
    mantissa = re.split("[eE]", written)[0]
    return "small" if value == 0 and mantissa.strip("0.") else ""


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:10]}..{text[-6:]}"


# ---- how tokens relate to lines ------------------------------------------------------------

GOES_ON = frozenset({*"+-*/@^<>,=", "<=", ">=", "==", "+=", "->"})
"""A line that ends in one of these goes on."""


CLOSER = {"(": ")", "[": "]", "{": "}"}
