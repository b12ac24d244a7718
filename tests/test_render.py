"""Messages as text, for programs and for code hosts; fixes applied; the page of each code."""

from __future__ import annotations

import json
import re

import pytest

from nlc.codes import CODES, explain_code
from nlc.diagnostics import Diagnostic, Fix, Label
from nlc.format import format_file
from nlc.parse import parse
from nlc.placement import placement
from nlc.render import apply_fixes, render_github, render_json, render_text
from nlc.text import Source, Span

TEXT = "nl 1\nsystem s(n = 1) {\n  level a(x) evry 16 tokens { read x }\n  y = .5\n}\n"


def at(text: str, place: str, **more: object) -> Diagnostic:
    source = Source("a.nl", text)
    start = text.index(place)
    span = Span(source, start, start + len(place))
    return Diagnostic("NL101", "a message", span, **more)  # type: ignore[arg-type]


def test_text() -> None:
    shown = render_text(parse(Source("a.nl", TEXT))[1])
    assert shown == (
        "error[NL001]: `evry` cannot stand here; did you mean `every`?\n"
        " --> a.nl:3:14\n"
        "3 |   level a(x) evry 16 tokens { read x }\n"
        "  |              ^^^^\n"
        "help: write `every`\n"
        "\n"
        "error[NL004]: write `0.5`, not `.5`\n"
        " --> a.nl:4:7\n"
        "4 |   y = .5\n"
        "  |       ^^\n"
        "help: write `0.5`"
    )


def test_labels_and_other_places() -> None:
    one = at("a = 1\nbb = 2\n", "bb", label="here")
    other = Label(Span(one.span.source, 0, 1), "and there")
    shown = render_text([Diagnostic(one.code, "m", one.span, label="here", others=(other,))])
    assert shown.splitlines()[2:] == [
        "2 | bb = 2", "  | ^^ here", "1 | a = 1", "  | - and there",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "place", "column"),
    [("a + b", "b", 4), ("\ta + b", "b", 8), ("漢字 b", "b", 5), ("e\u0301 b", "b", 2)],
)
def test_marks_stand_under_their_place(line: str, place: str, column: int) -> None:
    marks = render_text([at(line, place)]).splitlines()[3]
    assert marks == f"  | {' ' * column}^"


def test_a_long_line_is_cut_around_the_place() -> None:
    shown = render_text([at("a" * 500 + " b " + "c" * 500, "b")]).splitlines()
    assert len(shown[2]) < 140
    assert shown[2][shown[3].index("^")] == "b"


def test_color_only_where_it_is_asked_for() -> None:
    messages = parse(Source("a.nl", TEXT))[1]
    colored = render_text(messages, color=True)
    assert "\x1b" not in render_text(messages)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == render_text(messages)


def test_nothing_in_a_text_moves_the_cursor() -> None:
    assert "\x1b" not in render_text([at("a \x1b[2J b", "b")])


def test_json() -> None:
    record = json.loads(render_json(parse(Source("a.nl", TEXT))[1]))
    assert record["format_version"] == 1
    first = record["diagnostics"][0]
    assert (first["code"], first["file"], first["start"]["line"]) == ("NL001", "a.nl", 3)
    assert first["fix"]["text"] == "every"


def test_github() -> None:
    (line,) = render_github([at("x = 50%, y", "50%", help="a\nb")]).splitlines()
    assert line == (
        "::error file=a.nl,line=1,endLine=1,col=5,endColumn=8,title=NL101::a message%0Ahelp: a%0Ab"
    )


def test_fixes() -> None:
    source = Source("a.nl", TEXT)
    fixed = apply_fixes(source, parse(source)[1])
    assert fixed == TEXT.replace("evry", "every").replace(".5", "0.5")
    assert parse(Source("a.nl", fixed))[1] == []


def test_of_fixes_that_touch_the_first_is_applied() -> None:
    source = Source("a.nl", "abcdef")
    fixes = [
        Fix(Span(source, 1, 3), "X"),
        Fix(Span(source, 2, 4), "Y"),
        Fix(Span(source, 4, 4), "Z"),
    ]
    messages = [Diagnostic("NL001", "m", fix.span, fix=fix) for fix in fixes]
    assert apply_fixes(source, messages) == "aXdZef"


# ---- the pages of the codes ----------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_examples_are_whole_files(name: str) -> None:
    """The parser tells what is wrong with the text; every other example is read as it is."""
    code = CODES[name]
    for text in (code.wrong, code.right):
        file, messages = parse(Source("example.nl", text))
        messages += placement(file) if file else []
        expected = {name} if text == code.wrong and (name < "NL1" or name == "NL201") else set()
        assert {m.code for m in messages} == expected
        if not messages:
            assert format_file(Source("example.nl", text)) == text


def test_explain() -> None:
    page = explain_code("nl203")
    assert page.startswith("NL203: this level can never fire\n")
    assert "Wrong:" in page
    assert "Right:" in page
    assert "did you mean NL309 or NL209 or NL109" in explain_code("NL999")
