"""Text to tree: every spec is read, every mistake told once, no text is too bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark

from nlc import syntax as s
from nlc.diagnostics import Diagnostic
from nlc.lines import WORDS
from nlc.mistakes import RESERVED
from nlc.parse import MOST, candidates, parse
from nlc.text import Source, canonical, read_source

ROOT = Path(__file__).parent.parent
SPECS = sorted([*(ROOT / "specs").rglob("*.nl"), *(ROOT / "tests/cases/good").glob("*.nl")])
HOPE = (ROOT / "specs/hope.nl").read_text(encoding="utf-8")
FRAME = "nl 1\nsystem s(n = 1) {{\n{}\n  level z every step {{ objective loss }}\n}}\n"


def told(text: str) -> list[Diagnostic]:
    return parse(Source("test.nl", text))[1]


def tree(text: str) -> s.File:
    file, messages = parse(Source("test.nl", text))
    assert file is not None
    assert messages == []
    return file


def in_system(lines: str) -> str:
    return FRAME.format(lines)


def expr(text: str) -> s.Expr:
    (item,) = tree(f"nl 1\ndef f(x) {{ return {text} }}\n").items
    assert isinstance(item, s.Def)
    (line,) = item.body.statements
    assert isinstance(line, s.Return)
    return line.value


# ---- what is right -------------------------------------------------------------------------


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_is_read(path: Path) -> None:
    source = read_source(path)
    assert isinstance(source, Source)
    file, messages = parse(source)
    assert file is not None
    assert not file.recovered
    assert messages == []


def test_the_grammar_has_no_conflicts_and_its_words_are_ours() -> None:
    grammar = (ROOT / "grammar/nl.lark").read_text(encoding="utf-8")
    Lark(grammar, parser="lalr")
    for word in RESERVED:
        assert candidates(word) == (word.upper(),)
    for word in ("tokens", "backprop", "through", "first"):
        assert candidates(word)[-1] == "NAME"
    assert WORDS < RESERVED


def test_operators_bind_as_the_language_says() -> None:
    a, b, c = s.Name("a"), s.Name("b"), s.Name("c")
    assert expr("-a^b") == s.Minus(s.Binary("^", a, b))
    assert expr("a^b^c") == s.Binary("^", a, s.Binary("^", b, c))
    assert expr("-a * b") == s.Binary("*", s.Minus(a), b)
    assert expr("a - b - c") == s.Binary("-", s.Binary("-", a, b), c)
    assert expr("a + b @ c") == s.Binary("+", a, s.Binary("@", b, c))
    assert expr("a < b + c") == s.Binary("<", a, s.Binary("+", b, c))


def test_spans_are_exact() -> None:
    line = "level cms[p in list](x[n]) every (2 * p) tokens { read f(a.b, c = η[1]) }"
    text = f"nl 1\nsystem s() {{\n  {line}\n}}\n"
    parts = {type(node).__name__: node.span.text for node in walk(tree(text))}
    assert parts["Level"] == line
    assert parts["Every"] == "every (2 * p) tokens"
    assert parts["Binary"] == "2 * p"
    assert parts["Param"] == "x[n]"
    assert parts["Call"] == "f(a.b, c = η[1])"
    assert parts["Member"] == "a.b"
    assert parts["Item"] == "η[1]"
    assert parts["System"].endswith("}")


def walk(node: object) -> Iterator[s.Node]:
    if isinstance(node, s.Node):
        yield node
        names: tuple[str, ...] = node.__match_args__
        for name in names:
            yield from walk(getattr(node, name))
    elif isinstance(node, tuple):
        for one in node:
            yield from walk(one)


def test_a_greek_letter_and_its_english_name_are_one() -> None:
    pairs = {"η": "eta", "β₁": "beta1", "Γ": "Gamma", "λ": "lambda", "ϵ": "epsilon", "ς": "sigma"}
    for written, spelt in pairs.items():
        assert canonical(written) == spelt
        assert expr(written) == s.Name(spelt)
    name = expr("η")
    assert isinstance(name, s.Name)
    assert name.text == "η"


def test_words_of_clauses_may_name_things() -> None:
    names = "tokens + backprop * through(once, first = order)"
    assert isinstance(expr(names), s.Binary)
    period = tree(in_system("  level a(x) every (tokens) tokens { read x }"))
    assert any(
        isinstance(node, s.Every) and node.period == s.Name("tokens") for node in walk(period)
    )


def test_comments_document_what_is_below() -> None:
    text = "nl 1\n# one\n# two\ndef f(x) { return x }\n\n# far\n\ndef g(x) { return x }\n"
    file = tree(text)
    assert file.docs == {text.index("def f"): "one\ntwo"}


def test_windows_line_ends_and_byte_order_marks() -> None:
    assert tree("\ufeff" + HOPE.replace("\n", "\r\n")) == tree(HOPE)


# ---- one mistake, one message --------------------------------------------------------------

MISTAKES = [
    ("  retian alpha", "NL001", "retian", "retain"),
    ("  level a(x) evry 16 tokens { read x }", "NL001", "evry", "every"),
    ("  level a(x) every 16 tokns { read x }", "NL001", "tokns", "tokens"),
    ("  transfer bckprop a -> b", "NL001", "bckprop", "backprop"),
    ("  transfer backprop a training", "NL001", "training", "-> "),
    ("  transfer backprop a => b", "NL001", "=>", "->"),
    ("  x = a +", "NL001", "+", None),
    ("  x = a +\n  y = b", "NL001", "+", None),
    ("  x = a +\n  read y", "NL001", "+", None),
    ("  x = linear(x, width", "NL001", "(", None),
    ("  x = linear(x,\n  y = 3\n  read y", "NL001", "(", None),
    ("  x = [1, 2", "NL001", "[", None),
    ("  x = f(a]", "NL001", "]", None),
    ("  x = f(a))", "NL001", ")", None),
    ("  level b(x) every token\n    read x\n  }", "NL001", "\n", None),
    ("  level b(x) every token {\n    read x\n  y = 3", "NL001", "{", None),
    ("  y = 3\n    }", "NL001", "}", None),
    ("  x = a ☃ b", "NL001", "☃", None),
    ("  x = a – b", "NL001", "–", "-"),
    ("  x = a × b", "NL001", "×", "*"),
    ("  x = f（a)", "NL001", "（", "("),
    ("  cite “a”", "NL001", "“a”", '"a"'),
    ('  cite "a', "NL001", '"a', '"'),
    ("  x = a²", "NL001", "a²", "a^2"),
    ("  x = a ** 2", "NL001", "**", "^"),
    ("  x = a % 2", "NL001", "%", None),
    ("  set = 3", "NL001", "set", None),
    ("  x = linear(level, 2)", "NL001", "level", None),
    ("  state per : vector(n)", "NL001", "per", None),
    ("  state M = matrix(n, n)", "NL001", "=", ":"),
    ("  state M matrix(n, n)", "NL001", "matrix", ": "),
    ("  objective loss learn adam()", "NL001", "learn", "; "),
    ("  x = 3 y = 4", "NL001", "y", "; "),
    ("  x = a if b", "NL001", "if", None),
    ("  x = f(a b)", "NL001", "b", None),
    ("  foo(x)", "NL001", "foo", None),
    ("  x = a < b < c", "NL001", "<", None),
    ("  retain", "NL001", "retain", None),
    ("  linearise 16 tokens", "NL001", "16", "every "),
    ('  x = "gelu"', "NL001", '"gelu"', "gelu"),
    ("  assume sequence = 4096", "NL001", "4096", None),
    ("  memory m(x) { read x }", "NL003", "memory", None),
    ("  x = .5", "NL004", ".5", "0.5"),
    ("  x = 2.", "NL004", "2.", "2.0"),
    ("  x = 1_000", "NL004", "1_000", "1000"),
    ("  x = 4n", "NL004", "4n", "4*n"),
    ("  x = 1e999", "NL004", "1e999", None),
    ("  x = " + "9" * 5000, "NL004", "9" * 5000, None),
    ("  transfer init a -> b first order through 5 tokens", "NL005",
     "first order through 5 tokens", "through 5 tokens first order"),
    ("  state M : v(n) = 0 per heads", "NL005", "= 0 per heads", "per heads = 0"),
    ("  retain a onto g through f", "NL005", "onto g through f", "through f onto g"),
    ("  level a(x) every 16 { read x }", "NL201", "16", None),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "code", "place", "fix"), MISTAKES, ids=lambda v: str(v)[:40])
def test_one_mistake_one_message(lines: str, code: str, place: str, fix: str | None) -> None:
    file, messages = parse(Source("test.nl", in_system(lines)))
    assert [(m.code, m.span.text) for m in messages] == [(code, place)]
    (message,) = messages
    assert message.help
    assert (message.fix.text if message.fix else None) == fix
    assert file is not None
    assert file.recovered
    assert any(isinstance(n, s.Level) and n.name == s.Name("z") for n in walk(file))


def test_three_mistakes_three_messages() -> None:
    lines = "  retian alpha\n  x = a +\n  level a(x) evry 4 tokens {\n    read f(x\n  }\n  y = .5"
    assert [m.span.line for m in told(in_system(lines))] == [3, 4, 5, 6, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this file is empty; a spec begins with `nl 1`"),
        ("# only a comment\n", "this file is empty; a spec begins with `nl 1`"),
        ('use "a"\n', "a file begins with `nl 1`"),
        ("NL 1\n", "a file begins with `nl 1`"),
        ("nl 3\nfoo bar\n", "this file says `nl 3`; this compiler reads `nl 1`"),
        ("nl 1.0\n", "this file says `nl 1.0`; this compiler reads `nl 1`"),
    ],
)
def test_the_first_line(text: str, message: str) -> None:
    (one,) = told(text)
    assert (one.code, one.message) == ("NL002", message)


def test_a_brace_too_early_is_one_mistake() -> None:
    text = HOPE.replace("  n = width / heads\n", "  n = width / heads }\n")
    assert len(told(text)) == 1


def test_so_many_mistakes_that_reading_stops() -> None:
    messages = told(in_system("  retian alpha\n" * 5000))
    assert len(messages) == MOST + 1
    assert messages[-1].message.startswith(f"{MOST} mistakes")


# ---- texts that are no specs ---------------------------------------------------------------

BAD = {
    "binary": "nl 1\n\0\1\2",
    "much too long": HOPE * 4000,
    "brackets": in_system("  x = " + "(" * 10_000 + "a" + ")" * 10_000),
    "lists": in_system("  x = " + "[" * 10_000),
    "braces": in_system("  repeat 1 {" * 10_000),
    "minus": in_system("  x = " + "-" * 10_000 + "a"),
    "powers": in_system("  x = a" + "^a" * 10_000),
    "sums": in_system("  x = a" + " + a" * 10_000),
    "calls": in_system("  x = a" + "()" * 10_000),
    "members": in_system("  x = a" + ".a" * 10_000),
    "open": in_system("  x = f(a\n" * 10_000),
    "open, then a comma": in_system("  x = f(a,\n" * 10_000),
    "closed": in_system("}" * 10_000),
    "surrogates": "nl 1\n\ud800",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_input_is_answered(text: str) -> None:
    assert told(text)


def test_long_but_flat_is_fine() -> None:
    tree(in_system(f"  x = f({'a, ' * 5000}a)"))
    tree(in_system("  x = a" + " + a" * 150))
    tree("nl 1\n" + "# comment\n;;;\n" * 5000)


@pytest.mark.parametrize("end", range(0, len(HOPE), 97))
def test_truncated_files_have_a_message_or_two(end: int) -> None:
    assert len(told(HOPE[:end])) <= 3


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.nl"
    path.write_bytes(b"nl 1\n# \xff\xfe")
    message = read_source(path)
    assert isinstance(message, Diagnostic)
    assert (message.code, message.span.line, message.span.column) == ("NL001", 2, 3)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(0, len(HOPE)))
def test_no_text_breaks_the_parser(junk: str, at: int) -> None:
    told(HOPE[:at] + junk + HOPE[at:])
    told("nl 1\n" + junk)


def test_a_bracket_before_the_version_is_told() -> None:
    _, told = parse(Source("a.nl", ")nl 1\n"))
    assert [d.code for d in told] == ["NL001"]


@pytest.mark.parametrize("text", ["nl 1\nmemory a(k[2, n], , v[2, n])", "nl 1\nsystem a("])
def test_a_text_cut_inside_a_header_is_told(text: str) -> None:
    _, told = parse(Source("a.nl", text))
    assert told and all(d.code == "NL001" for d in told)


def test_a_raised_digit_is_a_power() -> None:
    _, told = parse(Source("a.nl", "nl 1\ndef f(x) { return x * 2² }\n"))
    assert [(d.code, d.fix and d.fix.text) for d in told] == [("NL004", "2^2")]
