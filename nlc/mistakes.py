"""What is wrong with a line. In: a statement, the token that cannot stand where it does, and what
could. Out: the message, and how to go on: a mended line if only one reading is possible.

Each reading below is a short function that knows one mistake; the first that recognises its own
wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .diagnostics import Diagnostic, Fix
from .lines import WORDS, made
from .text import Span
from .tokens import GOES_ON, Token, slip

ITEMS = frozenset(["use", "cite", "def", "memory", "optimizer", "system"])
"""The words that begin a line outside any block."""

_FAMILIES = {
    "UNIT": ("token", "tokens", "sequence", "sequences", "step", "steps", "task", "tasks"),
    "KIND": ("condition", "backprop", "init", "generate"),
}
_SHOWN = {
    "NAME": "a name",
    "INT": "a number",
    "NUMBER": "a number",
    "STRING": "a path in quotes",
    "UNIT": "a unit (`tokens`, `sequences`, `steps`, `tasks`)",
    "KIND": "`condition`, `backprop`, `init` or `generate`",
    "_NL": "the end of the line",
    "_ARROW": "`->`",
    "_ADD": "`+=`",
    "SUM": "an operator",
    "PRODUCT": "an operator",
    "CIRCUMFLEX": "an operator",
    "COMPARE": "an operator",
    "MINUS": "a value",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "DOT": "`.`",
    "$END": "the end of the file",
}
_SIGNS = {"COLON": ":", "EQUAL": "=", "_ARROW": "->", "LBRACE": "{", "IN": "in", "EVERY": "every"}
_VALUE = frozenset({"NAME", "INT", "NUMBER", "MINUS", "LPAR", "LSQB"})
_ELSEWHERE = {
    "if": "there are no conditionals: `where(c, a, b)` chooses element by element",
    "else": "there are no conditionals: `where(c, a, b)` chooses element by element",
    "elif": "there are no conditionals: `where(c, a, b)` chooses element by element",
    "while": "there are no open loops: `repeat 4 { .. }` or `repeat p in periods { .. }`",
    "for": "a loop is `repeat 4 { .. }` or `repeat p in periods { .. }`",
    "import": 'another file is brought in by `use "memory/attend"`',
    "and": "there are no Booleans: multiply two comparisons",
    "or": "there are no Booleans: `max` of two comparisons",
    "not": "there are no Booleans: `1 - (a < b)`",
    "lambda": "a function is a `def` with a name",
    "let": "a line that gives a value is `name = value`",
    "var": "a line that gives a value is `name = value`",
    "const": "a line that gives a value is `name = value`",
}
_CLAUSES = {
    "transfer": (("through", "first"), "`through 512 tokens first order`"),
    "state": (("per", "="), "`per heads = start`"),
    "retain": (("through", "onto"), "`through f onto g`"),
    "objective": (("after", "once"), "`after retain once`"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A statement up to its end, or to the brace of its block; `at` is the token that cannot stand
    there.
    """

    tokens: tuple[Token, ...]
    at: int
    expected: frozenset[str]  # kinds of token that could
    in_block: bool

    @property
    def first(self) -> Token:
        return self.tokens[0]

    @property
    def wrong(self) -> Token:
        return self.tokens[self.at]

    @property
    def before(self) -> Token | None:
        """The token before the wrong one, those that say nothing left aside."""
        said = [token for token in self.tokens[: self.at] if token.kind != "nothing"]
        return said[-1] if said else None

    @property
    def over(self) -> bool:
        """Does the line end where it cannot?"""
        token = self.wrong
        return token.kind in ("newline", "end") or token.text == "}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """The message, and how to go on.

    `mended` takes the place of the wrong token and those after it (`replaced` in all), or, if
    `whole`, of the line's first `replaced` tokens. Without it the line is left out, up to its end
    or to its token `resume`.
    """

    diagnostic: Diagnostic
    mended: tuple[Token, ...] | None = None
    whole: bool = False
    replaced: int = 1
    resume: int | None = None
    stray: bool = False  # a statement outside any block: said once for several


def find(line: Line) -> Mistake:
    for reading in _READINGS:
        mistake = reading(line)
        if mistake is not None:
            return mistake
    return _anything_else(line)


def close(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    found = get_close_matches(word.lower(), sorted(known), 1, 0.65)
    return found[0] if found else None


# ---- a line that runs into the next --------------------------------------------------------


def _runs_on(line: Line) -> Mistake | None:
    """A line that ends in an operator, before a line that cannot be its second half."""
    at = line.at - 1 if line.wrong.text in ("=", "+=") and line.at > 0 else line.at
    if at == 0:
        return None
    last, token = line.tokens[at - 1], line.tokens[at]
    if last.kind != "symbol" or last.text not in GOES_ON:
        return None
    if not line.over and last.span.line == token.span.line:
        return None
    message = f"the line ends in `{last.text}` and asks for more"
    help = "finish the line: what comes next cannot be its other half"
    return Mistake(Diagnostic("NL001", message, last.span, help), resume=None if line.over else at)


# ---- the first word ------------------------------------------------------------------------


def _outside(line: Line) -> Mistake | None:
    """A line outside any block that is no declaration."""
    if line.in_block or line.at != 0:
        return None
    word, span = line.first.text, line.first.span
    if word in WORDS:
        message = f"`{word}` belongs in a block, not outside of all"
        help = "is a `}` above it too early?"
        return Mistake(Diagnostic("NL003", message, span, help), stray=True)
    meant = close(word, ITEMS) if line.first.kind == "word" else None
    if meant is not None:
        return _word_meant(line, f"`{word}` declares nothing", meant, ITEMS)
    message = f"a declaration begins with a word, not with {_shown(line.first)}"
    help = "one of `use`, `cite`, `def`, `memory`, `optimizer`, `system`"
    return Mistake(Diagnostic("NL001", message, span, help), stray=True)


def _inside(line: Line) -> Mistake | None:
    """A declaration in a block."""
    word = line.first.text
    follows = line.tokens[1].text if len(line.tokens) > 1 else ""
    if not line.in_block or line.at != 0 or word not in ITEMS or follows in ("=", "+="):
        return None
    message = f"`{word}` belongs outside all blocks, not in one"
    help = "is a `}` missing above it?"
    return Mistake(Diagnostic("NL003", message, line.first.span, help))


def _misspelt_statement(line: Line) -> Mistake | None:
    """`retian alpha`: a name where only a statement's word can stand."""
    if line.at != 1 or line.first.kind != "word" or line.expected != {"EQUAL", "_ADD"}:
        return None
    word = line.first.text
    if word in _ELSEWHERE:
        return Mistake(
            Diagnostic("NL001", f"`{word}` is not a statement", line.first.span, _ELSEWHERE[word])
        )
    if line.wrong.text in ("(", ".", "[", ":", "==") or line.over:
        return _no_value(line)
    meant = close(word, WORDS)
    if meant is not None:
        return _word_meant(line, f"`{word}` is not a statement", meant, WORDS)
    help = "a line begins with a word of the language, or with `name =`"
    return Mistake(Diagnostic("NL001", f"`{word}` is not a statement", line.first.span, help))


def _word_meant(line: Line, message: str, meant: str, known: Iterable[str]) -> Mistake:
    first = line.first
    told = _meant(first.span, message, meant)
    return Mistake(
        told, (replace(first, text=meant), *line.tokens[1 : line.at + 1]), True, line.at + 1
    )


def _meant(span: Span, message: str, meant: str) -> Diagnostic:
    fix = Fix(span, meant, f"write `{meant}`")
    return Diagnostic("NL001", f"{message}; did you mean `{meant}`?", span, fix.title, fix=fix)


def _no_value(line: Line) -> Mistake | None:
    """A line that begins with a name and gives it no value."""
    word, wrong = line.first.text, line.wrong
    span = line.first.span
    if wrong.text == "==":
        fault = slip("NL001", wrong.span, "a name is given its value by `=`; `==` compares", "=")
        return Mistake(fault, (replace(wrong, text="="),))
    if wrong.text == ":":
        return Mistake(
            Diagnostic("NL001", f"`{word} :` declares nothing", span, f"write `state {word} : ..`"),
            (made("state", span, kind="word"), *line.tokens[: line.at + 1]),
            True,
            line.at + 1,
        )
    meant = close(word, WORDS)
    if meant is not None and wrong.text != "." and wrong.text != "[":
        return _word_meant(line, f"`{word}` is not a statement", meant, WORDS)
    if wrong.text == "(":
        message, help = (
            f"the value of `{word}(..)` goes nowhere",
            f"`name = {word}(..)`, or `read {word}(..)`",
        )
    elif line.over:
        message, help = f"`{word}` alone is not a statement", f"`name = {word}`, or `read {word}`"
    else:
        message, help = (
            "only a plain name can be given a value",
            "a state changes by `learn`, `write` or `set`",
        )
    return Mistake(Diagnostic("NL001", message, span, help))


# ---- words -----------------------------------------------------------------------------------


def _clauses(line: Line) -> Mistake | None:
    """NL005: clauses that are right but in the wrong order."""
    words, right = _CLAUSES.get(line.first.text, ((), ""))
    if line.wrong.text not in words[:-1]:
        return None
    starts = [i for i, token in enumerate(line.tokens) if token.text in words and _outer(line, i)]
    if [line.tokens[i].text for i in starts] != [*reversed(words)]:
        return None
    parts = [
        line.tokens[a:b] for a, b in zip(starts, [*starts[1:], len(line.tokens) - 1], strict=True)
    ]
    span = parts[0][0].span.to(parts[-1][-1].span)
    text = " ".join(part[0].span.to(part[-1].span).text for part in reversed(parts))
    told = Diagnostic(
        "NL005",
        f"the order is {right}",
        span,
        f"write `{text}`",
        fix=Fix(span, text, f"write `{text}`"),
    )
    mended = [*line.tokens[: starts[0]], *(token for part in reversed(parts) for token in part)]
    return Mistake(told, tuple(mended), True, len(mended))


def _outer(line: Line, at: int) -> bool:
    """Is that token outside all brackets?"""
    texts = [token.text for token in line.tokens[:at] if token.kind == "symbol"]
    return sum(t in ("(", "[") for t in texts) == sum(t in (")", "]") for t in texts)


def _reserved(line: Line) -> Mistake | None:
    """A word of the language where a name should be."""
    gets_value = line.at == 1 and line.wrong.text in ("=", "+=")
    if not gets_value and "NAME" not in line.expected:
        return None
    at = 0 if gets_value else line.at
    token = line.tokens[at]
    if token.kind != "word" or token.text not in RESERVED:
        return None
    told = Diagnostic(
        "NL001",
        f"`{token.text}` is a word of the language and cannot name a thing",
        token.span,
        f"choose another name, such as `{token.text}_`",
    )
    named = replace(token, type="NAME")
    if at == line.at:
        return Mistake(told, (named,))
    return Mistake(told, (named, *line.tokens[1 : line.at + 1]), True, line.at + 1)


def _misspelt(line: Line) -> Mistake | None:
    """A name close to one of the words that could stand there."""
    if line.wrong.kind != "word" or line.wrong.text in RESERVED:
        return None
    known = [word for kind in line.expected for word in _FAMILIES.get(kind, (kind.lower(),))]
    meant = close(line.wrong.text, (word for word in known if word.isalpha()))
    if meant is None or meant == line.wrong.text:
        return None
    told = _meant(line.wrong.span, f"`{line.wrong.text}` cannot stand here", meant)
    return Mistake(told, (replace(line.wrong, text=meant),))


def _elsewhere(line: Line) -> Mistake | None:
    """A word of other languages."""
    word = line.wrong.text
    if line.wrong.kind != "word" or word not in _ELSEWHERE:
        return None
    return Mistake(
        Diagnostic("NL001", f"`{word}` cannot stand here", line.wrong.span, _ELSEWHERE[word])
    )


def _new_line(line: Line) -> Mistake | None:
    """Two statements on a line without a `;` between them."""
    if "_NL" not in line.expected or line.wrong.kind != "word" or line.at == 0:
        return None
    follows = line.tokens[line.at + 1].text if line.at + 1 < len(line.tokens) else ""
    starts = line.wrong.text in WORDS or follows in ("=", "+=")
    before = line.before
    after_block = before is not None and before.text == "}"
    if not starts and not after_block:
        return None
    place = Span(line.wrong.span.source, line.wrong.span.start, line.wrong.span.start)
    told = Diagnostic(
        "NL001",
        "a statement begins on a line of its own, or after `;`",
        line.wrong.span,
        "put `;` in front of it",
        fix=Fix(place, "; ", "put `;` in front of it"),
    )
    return Mistake(told, (made("\n", line.wrong.span, kind="newline"), line.wrong))


# ---- signs -----------------------------------------------------------------------------------


def _unit(line: Line) -> Mistake | None:
    """NL201: a number without its unit."""
    if "UNIT" not in line.expected or line.before is None:
        return None
    words = [token.text for token in line.tokens[: line.at]]
    told_by = next((word for word in reversed(words) if word in ("every", "through", "assume")), "")
    if not told_by or words[-1] in ("every", "assume"):
        return None
    start = len(words) - words[::-1].index(told_by)
    amount = (
        line.tokens[start].span.to(line.before.span).text
        if told_by != "assume"
        else line.before.text
    )
    span = line.before.span
    if told_by == "every":
        told = Diagnostic(
            "NL201",
            f"a frequency needs a unit: `every {amount} tokens`",
            span,
            "add `tokens`, `sequences`, `steps` or `tasks`",
        )
    else:
        told = Diagnostic(
            "NL001",
            f"`{amount}` needs a unit: `{amount} tokens`",
            span,
            "add `tokens`, `sequences`, `steps` or `tasks`",
        )
    return Mistake(told, (made("tokens", line.wrong.span, kind="word"), line.wrong))


def _arrow(line: Line) -> Mistake | None:
    """`transfer backprop a training`: the arrow is lost, or is something else."""
    if "_ARROW" not in line.expected:
        return None
    sign, wrong = made("->", line.wrong.span), line.wrong
    if wrong.kind == "word" and wrong.text not in RESERVED:
        place = Span(wrong.span.source, wrong.span.start, wrong.span.start)
        fix = Fix(place, "-> ", "put `->` between them")
        before = line.before.text if line.before else ""
        message = f"`->` is missing between `{before}` and `{wrong.text}`"
        return Mistake(Diagnostic("NL001", message, wrong.span, fix.title, fix=fix), (sign, wrong))
    if wrong.text in ("-", ">", "=", ":", "+=", "<", "<=", ">="):
        after = line.tokens[line.at + 1]
        double = (
            wrong.text in ("-", "<")
            and after.text in (">", "-")
            and after.span.start == wrong.span.end
        )
        span = wrong.span.to(after.span) if double else wrong.span
        fault = slip("NL001", span, f"an arrow is written `->`, not `{span.text}`", "->")
        return Mistake(fault, (sign,), replaced=1 + double)
    return None


def _instead(line: Line) -> Mistake | None:
    """`state M = matrix(n)`, `state M matrix(n)`: one sign in the place of another, or none."""
    wanted = [sign for kind, sign in _SIGNS.items() if kind in line.expected]
    if len(wanted) != 1 or line.over or line.wrong.text == "{":
        return None
    if line.expected >= _VALUE or "SUM" in line.expected:
        return None
    sign, wrong = wanted[0], line.wrong
    if wrong.text in ("=", ":", "==", ":=", "of", "with"):
        fault = slip("NL001", wrong.span, f"`{sign}` stands here, not `{wrong.text}`", sign)
        return Mistake(
            fault, (made(sign, wrong.span, kind="word" if sign.isalpha() else "symbol"),)
        )
    if sign == "{":
        return None
    place = Span(wrong.span.source, wrong.span.start, wrong.span.start)
    text = f"{sign} "
    fix = Fix(place, text, f"put `{sign}` in front of {_shown(wrong)}")
    message = f"`{sign}` is missing in front of {_shown(wrong)}"
    mended = (made(sign, wrong.span, kind="word" if sign.isalpha() else "symbol"), wrong)
    return Mistake(Diagnostic("NL001", message, wrong.span, fix.title, fix=fix), mended)


def _quotes(line: Line) -> Mistake | None:
    """`use blocks`; `act = "gelu"`."""
    wrong = line.wrong
    if line.expected == {"STRING"} and wrong.kind == "word":
        end = line.tokens[-2] if len(line.tokens) > line.at + 1 else wrong
        span = wrong.span.to(end.span)
        write = f'"{span.text}"'
        fault = slip("NL001", span, "a path or a source stands in double quotes", write)
        return Mistake(
            fault, (Token("string", write, span),), replaced=len(line.tokens) - 1 - line.at
        )
    if wrong.kind == "string" and "NAME" in line.expected and wrong.text[1:-1].isidentifier():
        write = wrong.text[1:-1]
        fault = slip(
            "NL001",
            wrong.span,
            "there are no strings: a function's name stands without quotes",
            write,
        )
        return Mistake(fault, (replace(wrong, kind="word", text=write, type="NAME"),))
    return None


def _compared_twice(line: Line) -> Mistake | None:
    """`a < b < c`."""
    signs = ("<", ">", "<=", ">=", "==")
    if line.wrong.text not in signs or all(t.text not in signs for t in line.tokens[: line.at]):
        return None
    told = Diagnostic(
        "NL001", "one comparison at a time", line.wrong.span, "multiply two: `(a < b) * (b < c)`"
    )
    return Mistake(told)


def _too_short(line: Line) -> Mistake | None:
    """A line that ends before it says all."""
    if not line.over and line.wrong.text != "{":
        return None
    before = line.before
    if before is None:
        return None
    if "LBRACE" in line.expected and line.over:
        told = Diagnostic(
            "NL001", "`{` is missing: a block follows here", before.span, "add `{ .. }`"
        )
        return Mistake(told)
    if before.kind == "word" and line.expected >= _VALUE:
        message = f"`{before.text}` needs a value"
    elif before.text in GOES_ON:
        message = f"`{before.text}` asks for something on its right"
    else:
        message = f"the line ends too early: {_expected(line.expected)} should follow"
    return Mistake(Diagnostic("NL001", message, before.span, "finish the line"))


def _two_values(line: Line) -> Mistake | None:
    """`f(a b)`, `x = a b`: nothing between two values."""
    if "SUM" not in line.expected or line.before is None:
        return None
    if line.wrong.kind not in ("word", "number") and line.wrong.text not in ("(", "["):
        return None
    between = "an operator or a comma" if "COMMA" in line.expected else "an operator"
    message = f"{between} is missing between `{line.before.text}` and `{line.wrong.text}`"
    return Mistake(Diagnostic("NL001", message, line.wrong.span, "to multiply, write `*`"))


def _anything_else(line: Line) -> Mistake:
    message = f"{_shown(line.wrong)} cannot stand here"
    span = line.wrong.span
    if line.over and line.before is not None:
        span = line.before.span
    return Mistake(Diagnostic("NL001", message, span, f"here should be {_expected(line.expected)}"))


def _shown(token: Token) -> str:
    if token.kind == "newline":
        return "the end of the line"
    return "the end of the file" if token.kind == "end" else f"`{token.text}`"


def _expected(kinds: frozenset[str]) -> str:
    """What could stand there, in words; a value is one thing."""
    names = {_SHOWN.get(kind, f"`{kind.strip('_').lower()}`") for kind in kinds}
    if kinds >= _VALUE:
        names -= {_SHOWN[kind] for kind in _VALUE}
        names.add("a value")
    ends = {"the end of the line", "the end of the file"}
    names = names - ends or {"the end of the line"}
    shown = sorted(names)[:6]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


RESERVED = WORDS | frozenset(["always", "every", "in", "never", "nl", "per"])

_READINGS: tuple[Callable[[Line], Mistake | None], ...] = (
    _clauses,
    _runs_on,
    _outside,
    _inside,
    _quotes,
    _new_line,
    _reserved,
    _misspelt_statement,
    _arrow,
    _misspelt,
    _elsewhere,
    _unit,
    _instead,
    _compared_twice,
    _two_values,
    _too_short,
)
