"""Text to tree. In: a `Source`. Out: the tree, and every mistake of syntax in it.

A line is a statement, so one mistake never hides the next: the parser remembers how deep its stack
was when the statement began. At a mistake it goes back there and on from the next line; where only
one reading is possible (a misspelt word, a missing arrow) it mends the line and keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from lark import Lark
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from . import syntax
from .build import BROKEN, Builder
from .diagnostics import Diagnostic
from .lines import TooDeep, arrange, made
from .mistakes import Line, Mistake, find
from .text import Source, Span
from .tokens import Token, described, scan, slip

VERSION = 1
LARGEST = 500_000  # characters
MOST = 50  # messages


def parse(source: Source) -> tuple[syntax.File | None, list[Diagnostic]]:
    """The tree and the mistakes, in the order of the text. No tree only if nothing could be made
    of it.
    """
    refused = _refused(source)
    if refused is not None:
        return None, [refused]
    everything = scan(source)
    try:
        tokens = arrange(everything)
    except TooDeep as error:
        return None, [error.diagnostic]
    run = _Run(source, tokens)
    try:
        file = run.file()
    except _Stop:
        return None, run.told()
    docs = dict(_docs(file, everything))
    whole = replace(file, docs=docs, recovered=bool(run.messages))
    return whole, run.told()


def _refused(source: Source) -> Diagnostic | None:
    """Texts that are no specs at all."""
    text = source.text
    if len(text) > LARGEST:
        message = f"this file has {len(text)} characters; a spec has at most {LARGEST}"
        return Diagnostic("NL001", message, Span(source, 0, 0), "check that this is a spec")
    control = re.search(r"[\x00-\x08\x0e-\x1f]", text)
    if control is not None:
        message = f"this is not a text file: it holds the character {described(control[0])}"
        return Diagnostic(
            "NL001",
            message,
            Span(source, control.start(), control.end()),
            "check that this is a spec",
        )
    return None


# ---- the tables ----------------------------------------------------------------------------


class _NoLexer(Lexer):
    """Tokens are fed by hand: which words are special depends on where the parser stands."""

    def __init__(self, conf: Any) -> None: ...

    def lex(self, *_: Any) -> Iterator[Any]:
        return iter(())


@cache
def _lark() -> Lark:
    grammar = Path(__file__).with_name("grammar") / "nl.lark"
    return Lark(
        grammar.read_text(encoding="utf-8"),
        parser="lalr",
        lexer=_NoLexer,
        transformer=Builder(),
        keep_all_tokens=True,
    )


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every kind of token, those first that win where several fit."""
    order = sorted(_lark().terminals, key=lambda t: (-t.priority, t.pattern.type != "str"))
    return [(t.name, re.compile(t.pattern.to_regexp())) for t in order]


@lru_cache(maxsize=8192)
def candidates(text: str) -> tuple[str, ...]:
    """What a token of that text can be to the grammar, the most special first."""
    return tuple(name for name, pattern in _patterns() if pattern.fullmatch(text))


# ---- one file ------------------------------------------------------------------------------


class _Stop(Exception):
    """So many mistakes that the rest is not read."""


@dataclass(slots=True)
class _Mark:
    """Where a statement began: the parser's depth, its first token, and what was said about it."""

    depth: int
    at: int
    told: bool = False
    mended: bool = False


@dataclass(slots=True)
class _Run:
    source: Source
    tokens: list[Token]
    messages: list[Diagnostic] = field(default_factory=list)
    parser: Any = field(default_factory=lambda: _lark().parse_interactive(""))
    mark: _Mark = field(default_factory=lambda: _Mark(0, 0))
    outer: list[_Mark] = field(default_factory=list)
    stray: bool = False  # the last line stood outside any block

    def told(self) -> list[Diagnostic]:
        return sorted(self.messages, key=lambda one: one.span.start)

    def file(self) -> syntax.File:
        at = self.version()
        while self.tokens[at].kind != "end":
            at = self.step(at)
        if self._depth() != self.mark.depth and not self._feed(made("\n", self.tokens[at].span)):
            self.mistake(at)
        return self.ended(at)

    def ended(self, at: int) -> syntax.File:
        """The tree, if the text ends where it may; a header that was dropped can leave it open."""
        try:
            return cast(syntax.File, self.parser.feed_eof())
        except UnexpectedToken:
            if not self.messages:
                end = self.tokens[at].span
                message = "the text ends in the middle of a statement"
                self.tell(Diagnostic("NL001", message, end, "finish it, or remove it"))
            raise _Stop from None

    def step(self, at: int) -> int:
        """Read one token; the place of the next."""
        token = self.tokens[at]
        if token.fault is not None:
            self.tell(token.fault, silences=token.fault.fix is None)
            self.tokens[at] = token = replace(token, fault=None)
        if token.kind == "nothing":
            return at + 1
        if not self._feed(token):
            return self.mistake(at)
        if token.kind == "newline":
            self.stray = self.stray and (self.mark.told or bool(self.outer))
            self.mark = _Mark(self._depth(), at + 1)
        elif token.kind == "symbol" and token.text == "{":
            self.outer.append(self.mark)
            self.mark = _Mark(self._depth(), at + 1)
        elif token.kind == "symbol" and token.text == "}":
            self.mark = self.outer.pop()
        return at + 1

    def _depth(self) -> int:
        return len(self.parser.parser_state.state_stack)

    def _feed(self, token: Token) -> bool:
        """Give the parser one token, as the most special kind that it takes here. False, and no
        change, if none.
        """
        state = self.parser.parser_state
        known = self.parser.choices()
        wanted = (token.type,) if token.type else candidates(token.text)
        kind = next((name for name in wanted if name in known), "")
        if not kind:
            return False
        before = state.state_stack[:], state.value_stack[:]
        try:
            self.parser.feed_token(cast(Any, replace(token, type=kind)))
        except UnexpectedToken:
            state.state_stack[:], state.value_stack[:] = before
            return False
        return True

    def _rewind(self) -> None:
        state = self.parser.parser_state
        del state.state_stack[self.mark.depth :]
        del state.value_stack[self.mark.depth - 1 :]

    # ---- the first line ------------------------------------------------------------------

    def version(self) -> int:
        """Read `nl 1`, or say what is wrong with it and go on as if it were there."""
        at = next(i for i, token in enumerate(self.tokens) if token.kind != "nothing")
        for token in self.tokens[:at]:
            if token.fault is not None:
                self.tell(token.fault)
        first, second = self.tokens[at], self.tokens[min(at + 1, len(self.tokens) - 1)]
        says = first.text.lower() in ("nl", "n1")
        if says and second.kind == "number" and first.text == "nl":
            self._check_number(first.span.to(second.span), second.text)
        else:
            self.tell(self._no_version(first, second if says else None))
        for token in (made("nl", first.span, kind="word"), made(str(VERSION), first.span)):
            self._feed(token)
        self.mark = _Mark(self._depth(), at)
        return self._after_version(at + says + (says and second.kind == "number"), says)

    def _after_version(self, at: int, says: bool) -> int:
        """Bring the parser to the start of the next line."""
        if self.tokens[at].kind == "end":
            return at
        if says and self.tokens[at].kind == "newline":
            return self.step(at)
        if says and not self.messages:
            message = "a new line begins after `nl 1`"
            self.tell(slip("NL001", self.tokens[at].span, message, None, "break the line here"))
        self._feed(made("\n", self.tokens[at].span, kind="newline"))
        self.mark = _Mark(self._depth(), at)
        return at

    def _no_version(self, first: Token, second: Token | None) -> Diagnostic:
        wanted = f"nl {VERSION}"
        what = "this file is empty; a spec begins" if first.kind == "end" else "a file begins"
        message, help = f"{what} with `{wanted}`", f"write `{wanted}` as the first line"
        if second is None:
            place = Span(self.source, first.span.start, first.span.start)
            return slip("NL002", place, message, f"{wanted}\n", help)
        place = first.span.to(second.span) if second.kind == "number" else first.span
        return slip("NL002", place, message, wanted, help)

    def _check_number(self, span: Span, number: str) -> None:
        """A later version ends the reading: nobody knows what it says."""
        if number == str(VERSION):
            return
        newer = number.isdigit() and int(number) > VERSION
        wanted = f"nl {VERSION}"
        help = "a newer compiler reads it" if newer else f"write `{wanted}`"
        message = f"this file says `{span.text}`; this compiler reads `{wanted}`"
        self.tell(slip("NL002", span, message, None if newer else wanted, help))
        if newer:
            raise _Stop

    # ---- mistakes ------------------------------------------------------------------------

    def tell(self, message: Diagnostic, silences: bool = True) -> None:
        self.mark.told = self.mark.told or silences
        self.messages.append(message)
        if len(self.messages) >= MOST:
            last = f"{MOST} mistakes, and reading stops here: correct these first"
            self.messages.append(Diagnostic("NL001", last, message.span, "correct these first"))
            raise _Stop

    def mistake(self, at: int) -> int:
        """Say what is wrong with the token there, and mend the line or leave it out."""
        mark = self.mark
        mistake = find(self._line(at))
        if not mark.told and not (self.stray and mistake.stray):
            self.tell(mistake.diagnostic)
        self.stray = self.stray or mistake.stray
        mark.told = True
        if mistake.mended is not None and not mark.mended:
            mark.mended = True
            return self._mend(at, mistake)
        if mistake.resume is not None:
            return self._resume(mark.at + mistake.resume)
        return self._skip(at)

    def _line(self, at: int) -> Line:
        """The statement that holds the mistake, and what could have stood there."""
        start = self.mark.at
        end = at
        while not _ends(self.tokens[end]):
            end += 1
        expected = frozenset(self.parser.accepts())
        return Line(tuple(self.tokens[start : end + 1]), at - start, expected, bool(self.outer))

    def _mend(self, at: int, mistake: Mistake) -> int:
        """Put the mended tokens in the place of the line so far, or of the one token, and read
        them.
        """
        assert mistake.mended is not None
        if mistake.whole:
            self._rewind()
            start, end = self.mark.at, self.mark.at + mistake.replaced
        else:
            start, end = at, at + mistake.replaced
        self.tokens[start:end] = mistake.mended
        return start

    def _resume(self, at: int) -> int:
        """Leave out what was read of the statement: the next begins here."""
        self._rewind()
        self.mark = _Mark(self._depth(), at)
        return at

    def _skip(self, at: int) -> int:
        """Leave the statement out. What has a block keeps it, under a stand-in."""
        self._rewind()
        while not _ends(self.tokens[at]):
            at += 1
        token = self.tokens[at]
        if token.kind == "newline":
            return self._resume(at + 1)
        if token.kind == "symbol" and token.text == "{":
            self._stand_in(token.span)
        return at

    def _stand_in(self, at: Span) -> None:
        words = ["repeat", BROKEN] if self.outer else ["memory", BROKEN, "(", ")"]
        for word in words:
            token = made(word, at)
            self._feed(replace(token, type="NAME") if word == BROKEN else token)


def _ends(token: Token) -> bool:
    return token.kind in ("newline", "end") or (token.kind == "symbol" and token.text in "{}")


# ---- comments that document ----------------------------------------------------------------


def _docs(file: syntax.File, tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """For each declaration the comment that ends on the line above it."""
    comments, starts = _whole_lines(tokens)
    for node in _declarations(file):
        line = starts.get(node.span.start, 0)
        above = []
        while (line := line - 1) in comments:
            above.append(comments[line])
        if above:
            yield node.span.start, "\n".join(reversed(above))


def _whole_lines(tokens: list[Token]) -> tuple[dict[int, str], dict[int, int]]:
    """The comments that stand alone by their line, and the line of each offset where one begins."""
    comments: dict[int, str] = {}
    starts: dict[int, int] = {}
    line, fresh = 1, True
    for token in tokens:
        if fresh and token.kind == "comment":
            comments[line] = token.text[1:].strip()
        elif fresh:
            starts[token.span.start] = line
        fresh = token.kind == "newline" and token.span.text == "\n"
        line += fresh
    return comments, starts


def _declarations(file: syntax.File) -> Iterator[syntax.Node]:
    waiting: list[syntax.Node] = [*file.items]
    for node in waiting:
        yield node
        body = getattr(node, "body", None)
        if isinstance(body, syntax.Block):
            waiting += body.statements
