"""Tokens to lines. In: all tokens of a file. Out: those that the parser reads, a line end where a
statement ends.

Comments are dropped; so are line ends inside ( ) and [ ] and where a line goes on. Brackets and
braces are made to pair: one that is missing is put in place, and carries the fault. So the parser
always sees whole lines and blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .diagnostics import Diagnostic, Label
from .text import Span
from .tokens import CLOSER, GOES_ON, Token

DEEPEST = 100  # brackets and braces in each other
LONGEST = 200  # operators in one expression, those of the brackets around it included
_WORDS = """
    assume cite def flow learn level linearise memory objective optimizer partial read repeat
    reset retain return set state system transfer use write
"""
WORDS = frozenset(_WORDS.split())
"""The words that begin a statement."""
_OPERATORS = frozenset("+-*/@^.([")


class TooDeep(Exception):
    """A text that no reader of the tree could follow."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


def arrange(tokens: list[Token]) -> list[Token]:
    """What the parser reads. Raises `TooDeep`, which `parse` turns into its message."""
    tokens = _drop_doubled_ends(_pair_brackets([t for t in tokens if t.kind != "comment"]))
    return _pair_braces(tokens)


def made(text: str, at: Span, fault: Diagnostic | None = None, kind: str = "symbol") -> Token:
    """A token that is not in the text, in front of that place."""
    return Token(kind, text, Span(at.source, at.start, at.start), fault)


# ---- ( ) and [ ] ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Brackets:
    """What is open: the brackets, with the place of each in `out`, and the operators counted
    since.
    """

    out: list[Token] = field(default_factory=list)
    open: list[tuple[Token, int, int]] = field(default_factory=list)  # opener, place, its line end
    operators: list[int] = field(default_factory=lambda: [0])
    braces: int = 0

    def count(self, token: Token) -> None:
        """Keeps the tree from growing deeper than any later stage can walk."""
        text = token.text
        if token.kind != "symbol":
            return
        if text in ("{", "}", ","):
            self.operators[-1] = 0
            self.braces += (text == "{") - (text == "}")
        elif text in _OPERATORS:
            self.operators[-1] += 1
        if len(self.open) + self.braces > DEEPEST:
            raise _too(
                token,
                f"brackets and braces are read {DEEPEST} deep, and no deeper",
                "give the inner parts names on lines of their own",
            )
        if sum(self.operators) > LONGEST:
            raise _too(
                token,
                f"an expression has at most {LONGEST} operators",
                "give parts of it names on lines of their own",
            )


def _too(token: Token, message: str, help: str) -> TooDeep:
    return TooDeep(Diagnostic("NL001", message, token.span, help))


def _pair_brackets(tokens: list[Token]) -> list[Token]:
    """Line ends are kept outside brackets only, and every bracket is closed on its line or where
    it should be.
    """
    state = _Brackets()
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if state.open and _ends_brackets(tokens, at):
            at = _close_at_line_end(state, tokens)
            continue
        if token.kind == "symbol" and token.text in "([":
            state.count(token)
            state.open.append((token, len(state.out), at))
            state.operators.append(0)
            state.out.append(token)
        elif token.kind == "symbol" and token.text in ")]":
            state.out.append(_closing(state, token))
        elif token.kind != "newline" or not state.open:
            state.count(token)
            if token.kind == "newline":
                state.operators = [0]
            state.out.append(token)
        at += 1
    return state.out


def _ends_brackets(tokens: list[Token], at: int) -> bool:
    """Here no bracket can be open: at a brace, at the end, and where a line begins like a
    statement.
    """
    token = tokens[at]
    if token.kind == "end" or (token.kind == "symbol" and token.text in "{}"):
        return True
    if token.kind != "word" or tokens[at - 1].kind != "newline":
        return False
    if token.text in WORDS:
        return True
    binds = tokens[at + 1].text in ("=", "+=")
    while tokens[at - 1].kind == "newline":
        at -= 1
    asks_for_more = tokens[at - 1].kind == "symbol" and tokens[at - 1].text in ("(", "[", ",")
    return binds and not asks_for_more


def _close_at_line_end(state: _Brackets, tokens: list[Token]) -> int:
    """Close all that is open at the end of the line that opened the first; reading goes on from
    there.
    """
    opener, place, at = state.open[0]
    end = next(i for i in range(at, len(tokens)) if _is_line_end(tokens[i]))
    line = tokens[at:end]
    if line and line[-1].kind == "symbol" and line[-1].text == ",":
        line.pop()
    fault = Diagnostic(
        "NL001",
        f"`{opener.text}` is never closed",
        opener.span,
        f"close it with `{CLOSER[opener.text]}`",
    )
    del state.out[place:]
    state.open, state.operators = [], [0]
    state.out += _balanced([replace(opener, fault=fault), *line[1:]], tokens[end])
    return end


def _is_line_end(token: Token) -> bool:
    return token.kind in ("newline", "end") or (token.kind == "symbol" and token.text in "{}")


def _balanced(line: list[Token], end: Token) -> list[Token]:
    """The rest of a line with what it leaves open closed, innermost first, and what closes nothing
    left out.
    """
    out: list[Token] = []
    waiting: list[str] = []
    for token in line:
        if token.kind == "symbol" and token.text in ("(", "["):
            waiting.append(CLOSER[token.text])
        elif token.kind == "symbol" and token.text in (")", "]"):
            if not waiting:
                continue
            token = replace(token, text=waiting.pop())
        out.append(token)
    return out + [made(text, end.span) for text in reversed(waiting)]


def _closing(state: _Brackets, token: Token) -> Token:
    """A closing bracket as it should be, with the fault if it was not."""
    if not state.open:
        message = f"nothing is open here that `{token.text}` could close"
        return Token(
            "nothing", "", token.span, Diagnostic("NL001", message, token.span, "take it out")
        )
    opener, _, _ = state.open.pop()
    state.operators.pop()
    wanted = CLOSER[opener.text]
    if token.text == wanted:
        return token
    fault = Diagnostic(
        "NL001",
        f"`{opener.text}` is closed by `{token.text}`",
        token.span,
        f"write `{wanted}`",
        others=(Label(opener.span, "opened here"),),
    )
    return replace(token, text=wanted, fault=fault)


# ---- line ends -----------------------------------------------------------------------------


def _drop_doubled_ends(tokens: list[Token]) -> list[Token]:
    """No line end at the start, after another, after `{`, or after what asks for more."""
    out: list[Token] = []
    last = "{"
    for token in tokens:
        if token.kind == "newline":
            if last == "\n" or last == "{" or last in GOES_ON:
                continue
            last = "\n"
        elif token.kind != "nothing":
            last = token.text if token.kind == "symbol" else ""
        out.append(token)
    return out


# ---- { } -----------------------------------------------------------------------------------


def _pair_braces(tokens: list[Token]) -> list[Token]:
    """Every brace paired: by counting if that works, else by how the lines are indented."""
    depth = lowest = 0
    for token in tokens:
        if token.kind == "symbol" and token.text in "{}":
            depth += 1 if token.text == "{" else -1
            lowest = min(lowest, depth)
    if depth == lowest == 0:
        return tokens
    by_columns = _Braces(by_columns=True)
    by_columns.pair(tokens)
    if by_columns.faults == 1:
        return by_columns.out
    by_count = _Braces(by_columns=False)
    by_count.pair(tokens)
    return by_count.out


@dataclass(slots=True)
class _Braces:
    """What is open: for each `{` its place in `out`, and the column and number of its line."""

    by_columns: bool
    out: list[Token] = field(default_factory=list)
    open: list[tuple[int, int, int]] = field(default_factory=list)
    faults: int = 0

    def pair(self, tokens: list[Token]) -> None:
        column, line = 0, 0
        for at, token in enumerate(tokens):
            if at == 0 or token.span.line > line:
                line, column = token.span.line, token.span.column
                if self.by_columns:
                    self._close_deeper(token, column, line)
            if token.kind == "end":
                self._close_all(token)
            if token.kind == "symbol" and token.text == "{":
                self.open.append((len(self.out), column, line))
            elif token.kind == "symbol" and token.text == "}":
                token = self._closing(token, column, line)
            self.out.append(token)
            if self.by_columns and self.faults > 1:
                return

    def _fault(self, span: Span, message: str, help: str) -> Diagnostic:
        self.faults += 1
        return Diagnostic("NL001", message, span, help)

    def _close_deeper(self, token: Token, column: int, line: int) -> None:
        """A line that begins no further right than the one that opened a block is no part of that
        block.
        """
        while self.open and self.open[-1][2] < line:
            opened = self.open[-1][1]
            if opened < column or (opened == column and token.text == "}"):
                return
            self._close_missing(token)

    def _close_all(self, end: Token) -> None:
        """At the end of the file: a text cut short is one mistake, told at what was opened last."""
        for at in range(len(self.open)):
            self._close_missing(end, tells=at == 0)

    def _close_missing(self, token: Token, tells: bool = True) -> None:
        place, _, _ = self.open.pop()
        opener = self.out[place]
        if tells and opener.fault is None:
            fault = self._fault(opener.span, "`{` is never closed", "close it with `}`")
            self.out[place] = replace(opener, fault=fault)
        self.out.append(made("}", token.span))

    def _closing(self, token: Token, column: int, line: int) -> Token:
        if self.open and not (self.by_columns and self._is_stray(token, column, line)):
            self.open.pop()
            return token
        if self.by_columns and self._open_before(token, column, line):
            return token
        fault = self._fault(token.span, "nothing is open here that `}` could close", "take it out")
        return Token("nothing", "", token.span, fault)

    def _is_stray(self, token: Token, column: int, line: int) -> bool:
        """Of a block of several lines, the brace begins a line, no further right than the block's
        first.
        """
        _, opened, at = self.open[-1]
        return at < line and (token.span.column != column or opened < column)

    def _open_before(self, token: Token, column: int, line: int) -> bool:
        """Put the missing `{` at the end of the line that this `}` is under, if one fits."""
        first = next((i for i in reversed(range(len(self.out))) if self._heads(i, column)), None)
        if first is None:
            return False
        header = self.out[first].span.line
        ends = (i for i in range(first, len(self.out) - 1) if self.out[i].kind == "newline")
        end = next(ends, None)
        if end is None or self.out[end].span.line != header:
            return False
        if self.out[end + 1].span.column <= column:
            return False
        span = self.out[end].span
        fault = self._fault(span, "`{` is missing at the end of this line", "a block is `{ .. }`")
        self.out[end] = made("{", span, fault)
        return True

    def _heads(self, at: int, column: int) -> bool:
        """Is this the first token of a line that begins at that column?"""
        if self.out[at].kind in ("newline", "nothing") or self.out[at].span.column != column:
            return False
        return at == 0 or self.out[at - 1].span.line < self.out[at].span.line
