"""Which statement stands where, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_parse import SPECS, in_system, tree

from nlc.parse import parse
from nlc.placement import placement
from nlc.text import Source


def told(text: str) -> list[tuple[str, str, str]]:
    file, messages = parse(Source("test.nl", text))
    assert file is not None
    assert messages == []
    return [(m.code, m.message, m.span.text) for m in placement(file)]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_are_in_order(path: Path) -> None:
    assert placement(tree(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("lines", "code", "place"),
    [
        ("  flow(x) { retain 0.9 }", "NL003", "retain 0.9"),
        ("  retain 0.9", "NL003", "retain 0.9"),
        ("  return n", "NL003", "return n"),
        ("  level a(x) every step { return x }", "NL003", "return x"),
        ("  level a(x) every step { flow(y) { return y } }", "NL003", "flow(y) { return y }"),
        ("  level a(x) every step { state M : v(n) { read M } }", "NL003", "read M"),
        ("  flow(x) { repeat 2 { objective x }\n return x }", "NL003", "objective x"),
        ("  flow(x) { return x; y = x }", "NL003", "return x"),
        ("  x = f(a = 1, b)", "NL003", "b"),
        ("  level a(x) every step { objective x; objective n }", "NL006", "objective n"),
        ("  level a(x) every step { read x; read n before write }", "NL006", "read n before write"),
        ("  level a(x) every step { reset never; reset every step }", "NL006", "reset every step"),
        ("  flow(x) { return x }\n  flow(y) { return y }", "NL006", "flow(y) { return y }"),
    ],
)
def test_out_of_place(lines: str, code: str, place: str) -> None:
    assert [(c, p) for c, _, p in told(in_system(lines))] == [(code, place)]


def test_where_it_belongs_is_said() -> None:
    ((_, message, _),) = told(in_system("  flow(x) { retain 0.9 }"))
    assert message == (
        "`retain` belongs in a level, a memory, an optimizer or the braces of a state, "
        "not in a flow"
    )


def test_a_level_of_an_optimizer_is_reset_with_what_it_serves() -> None:
    inner = "level slow every 4 steps {{ {}; state m : like(weight) {{ set grad }} }}"
    for line in ("reset every 8 steps", "partial flush", "linearise every 2 tokens", "read m"):
        text = f"nl 1\noptimizer o(weight, grad) {{ {inner.format(line)}\nwrite slow.m }}\n"
        assert [(c, p) for c, _, p in told(text)] == [("NL003", line)]


def test_memories_and_functions() -> None:
    memory = "nl 1\nmemory m(x) { reset never; partial flush; read x }\n"
    assert [c for c, _, _ in told(memory)] == ["NL003", "NL003"]
    function = "nl 1\ndef f(x) { state M : vector(2)\n return x }\n"
    assert [c for c, _, _ in told(function)] == ["NL003"]
    optimizer = (
        "nl 1\noptimizer o(weight, grad) { level l every step { read grad }\n write grad }\n"
    )
    assert [c for c, _, _ in told(optimizer)] == ["NL003"]


def test_several_of_what_may_be_several() -> None:
    lines = '  level a(x) every step { cite "a"; cite "b"; learn f(); learn g(); state A : v(n) }'
    assert told(in_system(lines)) == []


def test_a_file_has_one_system() -> None:
    text = "nl 1\nsystem a() { }\nsystem b() { }\n"
    assert [(c, p) for c, _, p in told(text)] == [("NL006", "b")]
