"""The one style: stable, faithful to the tree, and no comment lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from strategies import expressions, files
from test_parse import SPECS, tree

from nlc import syntax as s
from nlc.format import format_file, format_source, print_tree
from nlc.parse import parse
from nlc.text import Source
from nlc.tokens import Token, scan


def comments(text: str) -> list[str]:
    return [t.text.rstrip() for t in scan(Source("", text)) if t.kind == "comment"]


def formatted(text: str) -> str:
    """Formatted, with all that formatting promises."""
    result = format_file(Source("test.nl", text))
    assert format_file(Source("test.nl", result)) == result
    assert tree(result) == tree(text)
    assert comments(result) == comments(text)
    return result


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_are_in_the_one_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert formatted(text) == text


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_survive_the_printer(path: Path) -> None:
    file = tree(path.read_text(encoding="utf-8"))
    assert tree(print_tree(file)) == file


@pytest.mark.parametrize("path", SPECS[::4], ids=lambda path: path.stem)
def test_untidy_specs_are_tidied(path: Path) -> None:
    formatted(untidy(path.read_text(encoding="utf-8"), random.Random(path.stem)))


def untidy(text: str, draw: random.Random) -> str:
    """The same tokens, badly spaced."""
    out, before = "", None
    for token in scan(Source("", text)):
        if before is not None:
            out += gap(before, token, text, draw)
        written = token.span.text
        out += (
            draw.choice(["\n\n\n", ";\n", "\r\n", "  \n", written]) if written == "\n" else written
        )
        before = token
    return out


def gap(before: Token, token: Token, text: str, draw: random.Random) -> str:
    written = text[before.span.end : token.span.start]
    if before.kind == "comment" or token.text == "." or before.text == ".":
        return written
    must = before.kind in ("word", "number", "string") and token.kind in (
        "word",
        "number",
        "string",
    )
    wide = " " * draw.randrange(1 if must else 0, 5)
    kinds = [written] * 6 + [wide] * 2
    if before.text in ("{", "}", ";"):
        kinds.append("\n")
    if before.kind == "symbol" and before.text in "+*,=/":
        kinds += [" # why\n", "\n  \n"]
    return draw.choice(kinds)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f( x,n=2 ){return -x^ 2+n*( 3 )}", "def f(x, n = 2) { return -x^2 + n * (3) }"),
        ("def f(x) { a=4*x;return a\n}", "def f(x) {\n  a = 4*x\n  return a\n}"),
        ("def f(x) {\n\n\n\n  # a\n\n\n\n  return x\n\n}", "def f(x) {\n  # a\n\n  return x\n}"),
        ("def f(x) { return x }   # a", "def f(x) { return x }   # a"),
        ("def f(x) { return x }# a", "def f(x) { return x }  # a"),
        ("def f(x) { # a\nreturn x }", "def f(x) {  # a\n  return x\n}"),
        ("def f(x) {\n\treturn g(a,\n\t         b)\n}",
         "def f(x) {\n  return g(a,\n           b)\n}"),
        ("def f(x) {\n  a    = 1\n  bb   = 2\n  c  = 3\n  return a\n}",
         "def f(x) {\n  a    = 1\n  bb   = 2\n  c = 3\n  return a\n}"),
        ("def f(x) { return η*β₁ }", "def f(x) { return η*β₁ }"),
    ],
)  # fmt: skip
def test_style(before: str, after: str) -> None:
    assert formatted(f"nl 1\n{before}\n") == f"nl 1\n{after}\n"


def test_a_block_too_long_for_a_line_is_opened() -> None:
    text = f"nl 1\ndef f(x) {{ return {' + '.join(['abcdefgh'] * 20)} }}\n"
    assert formatted(text).count("\n") == 4


def test_mistakes_are_told_and_nothing_is_formatted() -> None:
    text, messages = format_source(Source("test.nl", "nl 1\ndef f(x) { retrn x }\n"))
    assert text is None
    assert [m.code for m in messages] == ["NL001"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_random_trees_survive_printing_and_formatting(file: s.File) -> None:
    text = print_tree(file)
    assert tree(text) == file
    formatted(text)


@settings(max_examples=60, deadline=None)
@given(expressions())
def test_random_expressions_survive_printing(value: s.Expr) -> None:
    file, messages = parse(Source("test.nl", f"nl 1\ndef f() {{ return {print_tree(value)} }}\n"))
    assert messages == []
    assert file is not None
    assert print_tree(file).count("return " + print_tree(value)) == 1
