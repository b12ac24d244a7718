"""The one style. In: the text of a file. Out: the same file, indented and spaced.

It works on the tokens, so comments, names and numbers stay as they were written; it settles
indentation, blank lines, line breaks and the spaces between tokens. Spaces that bring neighbouring
lines into a column stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .diagnostics import Diagnostic, InternalError
from .lines import WORDS
from .parse import parse
from .printer import print_tree as print_tree
from .text import Source
from .tokens import GOES_ON, Token, scan

INDENT = 2
WIDEST = 140  # a block on one line is no longer than this
ROUNDS = 20

_KEYWORDS = WORDS | {"always", "every", "in", "never", "nl", "per"}
_CLAUSES = frozenset(
    ["from", "through", "onto", "for", "after", "before", "once", "first", "order"]
)


def format_source(source: Source) -> tuple[str | None, list[Diagnostic]]:
    """The text in the one style; or None, and the mistakes that keep it from being read."""
    file, told = parse(source)
    return (None, told) if file is None or told else (format_file(source), [])


def format_file(source: Source) -> str:
    """A text without mistakes of syntax in the one style."""
    text = source.text
    for _ in range(ROUNDS):
        formatted = _once(Source(source.name, text))
        if formatted == text:
            return text
        text = formatted
    raise InternalError(f"formatting {source.name} does not settle")


def _once(source: Source) -> str:
    lines = _Breaker(scan(source)).lines
    columns = _in_columns(lines)
    shown = (_shown(line, at) for line, at in zip(lines, columns, strict=True))
    return "".join(f"{text}\n" for text in shown)


# ---- lines ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """One line of the result."""

    depth: int
    tokens: list[Token] = field(default_factory=list)
    comment: Token | None = None
    goes_on_from: _Line | None = None  # the first line of the statement, if this is a later one
    bracket: Token | None = None  # the innermost bracket open where it begins
    blank_before: bool = False

    @property
    def first(self) -> Token:
        return self.tokens[0] if self.tokens else _present(self.comment)


def _present(token: Token | None) -> Token:
    assert token is not None
    return token


@dataclass(slots=True)
class _Breaker:
    """Breaks the tokens into lines: one statement each, but a block that was on one line stays
    there.
    """

    tokens: list[Token]
    lines: list[_Line] = field(default_factory=list)
    depth: int = 0
    brackets: list[Token] = field(default_factory=list)
    short: int = 0  # how many blocks on one line are open
    ends: int = 0  # line ends since the last token
    breaks: bool = True  # a line begins here
    statement: _Line | None = None  # where the statement began that is not over yet
    last: str = ""  # the last token, comments aside

    def __post_init__(self) -> None:
        short = _short_blocks(self.tokens)
        for at, token in enumerate(self.tokens):
            match token.kind, token.text:
                case "end", _:
                    return
                case "comment", _:
                    self._comment(token)
                case "newline", _:
                    self._newline(token, self.tokens[at + 1])
                case "symbol", "{" | "}":
                    self._brace(token, at in short)
                case _:
                    self._token(token)

    def _open(self) -> _Line:
        """The line that the next token belongs to."""
        if self.breaks or not self.lines:
            bracket = self.brackets[-1] if self.brackets else None
            line = _Line(self.depth, [], None, self.statement, bracket)
            line.blank_before = self.ends > 1 and bool(self.lines) and self.last != "{"
            self.lines.append(line)
            self.breaks = False
        self.ends = 0
        return self.lines[-1]

    def _token(self, token: Token) -> None:
        line = self._open()
        line.tokens.append(token)
        self.statement = self.statement or line
        self.last = token.text
        if token.kind == "symbol" and token.text in "([":
            self.brackets.append(token)
        elif token.kind == "symbol" and token.text in ")]":
            self.brackets.pop()

    def _comment(self, token: Token) -> None:
        if self.ends:
            self.breaks = True
        elif self.lines and self.lines[-1].comment is None:
            self.breaks = False  # it stays behind a brace or a `;` of its line
        self._open().comment = token
        if not self.lines[-1].tokens:
            self.last = self.last if self.last != "{" else "#"

    def _newline(self, token: Token, following: Token) -> None:
        if token.text == ";":
            self._semicolon(token, following)
            return
        self.ends += 1
        self.breaks = True
        if not self._unfinished():
            self.statement = None

    def _semicolon(self, token: Token, following: Token) -> None:
        if self._unfinished():
            return
        if self.short:
            closes = following.text == "}" or following.text == ";"
            if self.last not in ("{", ";") and not closes:
                self.lines[-1].tokens.append(token)
                self.last = ";"
            return
        self.breaks, self.statement = True, None

    def _unfinished(self) -> bool:
        return bool(self.brackets) or self.last in GOES_ON

    def _brace(self, token: Token, short: bool) -> None:
        if short:
            self.short += 1 if token.text == "{" else -1
            self._drop_semicolon(token)
            self._token(token)
        elif token.text == "{":
            self._token(token)
            self.depth += 1
            self.breaks, self.statement = True, None
        else:
            self.depth -= 1
            self.breaks, self.statement, self.ends = True, None, 0
            self._token(token)
            self.breaks, self.statement = True, None

    def _drop_semicolon(self, token: Token) -> None:
        tokens = self.lines[-1].tokens
        while token.text == "}" and tokens[-1].text == ";":
            tokens.pop()


def _short_blocks(tokens: list[Token]) -> frozenset[int]:
    """The places of the braces whose block stands on one line, and not on too long a one."""
    short: set[int] = set()
    open_: list[int] = []
    for at, token in enumerate(tokens):
        if token.kind != "symbol":
            continue
        if token.text == "{":
            open_.append(at)
        elif token.text == "}":
            start = open_.pop()
            same = tokens[start].span.line == token.span.line
            if same and token.span.column <= WIDEST:
                short |= {start, at}
    return frozenset(short)


# ---- spaces --------------------------------------------------------------------------------


def _space(tokens: list[Token], at: int) -> int:
    """How many spaces stand before the token, columns aside: none or one."""
    before, token = tokens[at - 1], tokens[at]
    if token.text in (")", "]", ",", ".", ";") or before.text in ("(", "[", "."):
        return 0
    if before.text == "^" or token.text == "^":
        return 0
    if token.text in ("(", "["):
        return _before_bracket(before, token)
    if token.text in ("*", "/", "@"):
        return _around_product(tokens, at)
    if before.text in ("*", "/", "@"):
        return _around_product(tokens, at - 1)
    if before.text == "-" and _is_unary(tokens, at - 1):
        return 0
    return 1


def _before_bracket(before: Token, bracket: Token) -> int:
    """None in a call, an index or a list of inputs; one where the bracket begins a value."""
    if before.kind != "word":
        return int(before.text not in (")", "]") and before.kind != "number")
    if before.text in _KEYWORDS:
        return int(before.text != "flow")
    if before.text in _CLAUSES:  # `through (a)`, or a call of what is named so: as it was written
        return int(_apart(before, bracket) > 0)
    return 0


def _around_product(tokens: list[Token], at: int) -> int:
    """`4*n` and `a * b` both stay as they were written."""
    if at + 1 >= len(tokens):
        return 1
    tight = _apart(tokens[at - 1], tokens[at]) == 0 == _apart(tokens[at], tokens[at + 1])
    return 0 if tight else 1


def _is_unary(tokens: list[Token], at: int) -> bool:
    """Is this minus a sign of what follows?"""
    if at == 0:
        return False
    before = tokens[at - 1]
    if before.kind == "symbol":
        return before.text not in (")", "]", "}")
    if before.text in _CLAUSES:
        return _apart(before, tokens[at]) > 0 == _apart(tokens[at], tokens[at + 1])
    return before.text in _KEYWORDS


def _apart(before: Token, token: Token) -> int:
    """The characters between two tokens in the text."""
    return token.span.start - before.span.end


def _wide(before: Token, token: Token) -> bool:
    """Were two tokens of one line further apart than a space?"""
    return _apart(before, token) > 1 and before.span.line == token.span.line


# ---- columns -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Columns:
    """Where the tokens of a line and its comment stand, from 0."""

    tokens: list[int]
    end: int = 0
    comment: int = 0


def _in_columns(lines: list[_Line]) -> list[_Columns]:
    """Places for all tokens. A wide gap stays if its token shares a column with one nearby."""
    groups = _groups(lines)
    wide = {
        (i, k)
        for i, line in enumerate(lines)
        for k in range(1, len(line.tokens))
        if _wide(line.tokens[k - 1], line.tokens[k]) and _space(line.tokens, k)
    }
    for _ in range(ROUNDS):
        columns = _placed(lines, wide)
        shared = _shared(lines, groups, columns)
        alone = {(i, k) for i, k in wide if (groups[i], columns[i].tokens[k]) not in shared}
        if not alone:
            return columns
        wide -= alone
    return _placed(lines, set())


def _groups(lines: list[_Line]) -> list[tuple[int, int]]:
    """Lines of one paragraph and depth can share a column."""
    paragraph = 0
    out = []
    for line in lines:
        paragraph += line.blank_before
        out.append((paragraph, line.depth))
    return out


def _shared(
    lines: list[_Line], groups: list[tuple[int, int]], columns: list[_Columns]
) -> set[tuple[tuple[int, int], int]]:
    """The columns of each group in which tokens of two lines begin, after a space."""
    once: set[tuple[tuple[int, int], int]] = set()
    twice: set[tuple[tuple[int, int], int]] = set()
    for line, group, places in zip(lines, groups, columns, strict=True):
        ends = (at + len(t.span.text) for at, t in zip(places.tokens, line.tokens, strict=True))
        begun = {(group, at) for end, at in zip(ends, places.tokens[1:], strict=False) if end < at}
        twice |= once & begun
        once |= begun
    return twice


def _placed(lines: list[_Line], wide: set[tuple[int, int]]) -> list[_Columns]:
    found: dict[int, int] = {}  # the offset of each first token and bracket, and its column
    out: list[_Columns] = []
    for i, line in enumerate(lines):
        at = _indent(line, found)
        found[line.first.span.start] = at
        columns = _Columns([])
        for k, token in enumerate(line.tokens):
            if k:
                space = _space(line.tokens, k)
                at += _apart(line.tokens[k - 1], token) if (i, k) in wide else space
            columns.tokens.append(at)
            if token.text in ("(", "["):
                found[token.span.start] = at
            at += len(token.span.text)
        columns.end = at
        columns.comment = _comment_column(line, columns)
        out.append(columns)
    return out


def _indent(line: _Line, found: dict[int, int]) -> int:
    """Two spaces a block; what goes on keeps its place under its bracket, or behind its first
    line.
    """
    start = line.goes_on_from
    if start is None or start is line:
        return INDENT * line.depth
    written = line.first.span.column
    if line.bracket is not None and written == line.bracket.span.column + 1:
        return found[line.bracket.span.start] + 1
    indent = found[start.first.span.start]
    shifted = indent + written - start.first.span.column
    return max(shifted, indent + (0 if line.first.text in (")", "]") else INDENT))


def _comment_column(line: _Line, columns: _Columns) -> int:
    """A comment behind a line keeps its column if it can, two spaces away at least."""
    if line.comment is None or not line.tokens:
        return columns.end
    shift = columns.tokens[0] - (line.first.span.column - 1)
    return max(columns.end + 2, line.comment.span.column - 1 + shift)


def _shown(line: _Line, columns: _Columns) -> str:
    text = ""
    for token, column in zip(line.tokens, columns.tokens, strict=True):
        text = text.ljust(column) + token.span.text
    if line.comment is not None:
        text = text.ljust(columns.comment) + line.comment.span.text.rstrip()
    return ("\n" if line.blank_before else "") + text
