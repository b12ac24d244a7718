"""What is told of a spec: each mistake once, in its line, and nothing of a spec without one.

A case is a file of `cases/bad` with `# error: NL203` on the line where the mistake is told.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nlc.backends.reference import Reference
from nlc.checks import check, check_alone
from nlc.codes import CODES
from nlc.diagnostics import Diagnostic
from nlc.driver import check_text
from nlc.parse import parse
from nlc.placement import placement
from nlc.resolve import resolve
from nlc.text import Source

CASES = Path(__file__).parent / "cases"
SPECS = Path(__file__).parent.parent / "specs"
BAD = sorted((CASES / "bad").glob("*.nl"))
GOOD = sorted([*(CASES / "good").glob("*.nl"), *SPECS.rglob("*.nl")])

# Others are found when a memory is asked for as an operation, or when a system is built.
CODES_OF_FILES = {name for name, code in CODES.items() if code.found == "check"}


def told(text: str, folder: Path | None = None) -> list[Diagnostic]:
    """Everything that is told of a text, stage after stage."""
    file, found = parse(Source("case.nl", text))
    found = list(found)
    if file is None:
        return found
    found += placement(file)
    resolved = resolve(file, folder)
    found += resolved.diagnostics
    if not found and resolved.system is not None:
        found += check(resolved.system)
    if not found:
        found += check_alone(resolved.alone)
    return found


def places(found: list[Diagnostic]) -> list[tuple[int, str]]:
    return sorted((d.span.line, d.code) for d in found)


def wanted(text: str) -> list[tuple[int, str]]:
    return sorted(
        (number, code)
        for number, line in enumerate(text.split("\n"), 1)
        for mark in re.findall(r"# error: (.*)", line)
        for code in re.findall(r"NL\d+", mark)
    )


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_each_mistake_is_told_once_and_in_its_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert wanted(text)
    assert places(told(text, path.parent)) == wanted(text)


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_nothing_is_told_of_a_good_spec(path: Path) -> None:
    assert told(path.read_text(encoding="utf-8"), path.parent) == []


def test_every_code_has_a_case() -> None:
    earned = {code for path in BAD for _, code in wanted(path.read_text(encoding="utf-8"))}
    assert earned == CODES_OF_FILES


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_messages_are_one_plain_line(path: Path) -> None:
    for d in told(path.read_text(encoding="utf-8"), path.parent):
        assert "\n" not in d.message
        assert not d.message.endswith(".")
        assert d.message.count("`") % 2 == 0
        assert d.span.text


def mended(text: str, found: list[Diagnostic]) -> str:
    """The text with every machine-applicable fix, the last place first."""
    fixes = sorted((d.fix for d in found if d.fix is not None), key=lambda f: -f.span.start)
    for fix in fixes:
        text = text[: fix.span.start] + fix.text + text[fix.span.end :]
    return text


@pytest.mark.parametrize("name", ["weights_undeclared", "generate_undeclared", "state_not_opened"])
def test_the_line_that_a_fix_adds_ends_the_mistake(name: str) -> None:
    text = (CASES / "bad" / f"{name}.nl").read_text(encoding="utf-8")
    found = told(text)
    assert all(d.fix is not None for d in found)
    assert told(mended(text, found)) == []


MIXER = """nl 1
system lm(vocab = 256, width = 64) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
  level mixer(x) {clock} {{
    {reset}
    state     M : matrix(width, width)
    objective sum((M(unit(x)) - x)^2)
    learn     {rule}
    read      M(unit(x))
  }}
  {transfer}
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    x += mixer(norm(x))
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""


def mixer(
    clock: str = "every token",
    reset: str = "",
    rule: str = "gradient(rate = 0.1)",
    transfer: str = "",
) -> list[str]:
    found = told(MIXER.format(clock=clock, reset=reset, rule=rule, transfer=transfer))
    return [d.code for d in found]


@pytest.mark.parametrize(
    ("clock", "reset", "codes"),
    [
        ("every 8192 tokens", "reset never", []),
        ("every 16 tokens", "reset every 16 tokens", []),
        ("every 16 tokens", "reset every 48 tokens", []),
        ("every 16 tokens from 8", "reset every 40 tokens", []),
        ("every 16 tokens from 8", "reset every 48 tokens", ["NL206"]),
        ("every 16 tokens", "reset every 24 tokens; partial flush", []),
        ("every 16 tokens", "reset every 24 tokens; partial drop", []),
        ("every 16 tokens", "reset every 8 tokens; partial flush", []),
        ("every 16 tokens", "reset every 8 tokens", ["NL203"]),
        ("every 16 tokens from 32", "reset every 16 tokens", ["NL203"]),
        ("every 2 sequences", "reset every sequence", ["NL203"]),
        ("every 2 steps", "reset every 3 steps", ["NL206"]),
        ("every 16 tokens", "reset every 16 tokens from 8", ["NL203"]),
        ("every 16 tokens", "reset every 8 tokens from 32", []),
        ("every 16 tokens", "reset every 16 tokens from 32", []),
        ("never", "reset never", []),
    ],
)
def test_periods_and_resets(clock: str, reset: str, codes: list[str]) -> None:
    assert mixer(clock, reset) == codes


@pytest.mark.parametrize(
    ("clock", "reset", "codes"),
    [
        ("every 16 tokens", "", ["NL206"]),
        ("every 16 tokens", "partial flush", []),
        ("every 16 tokens", "partial drop", []),
        ("every 16 tokens", "reset never", []),
        ("every 16 tokens", "reset every sequence", ["NL206"]),
        ("every 16 tokens", "reset every 2 sequences", ["NL206"]),
        ("every 16 tokens", "reset every 4 sequences", []),
        ("every 16 tokens", "reset every 4 sequences from 2", ["NL206"]),
        ("every 16 tokens", "reset every 32 tokens", []),
        ("every 16 tokens from 4", "", []),
        ("every 20 tokens", "", []),
        ("every token", "", []),
        ("every 101 tokens", "", ["NL203"]),
        ("every 200 tokens", "reset every 2 sequences", []),
        ("every 201 tokens", "reset every 2 sequences", ["NL203"]),
        ("every 2 sequences", "", []),
    ],
)
def test_periods_and_resets_of_sequences_of_100_tokens(
    clock: str, reset: str, codes: list[str]
) -> None:
    text = MIXER.format(clock=clock, reset=reset, rule="gradient(rate = 0.1)", transfer="")
    text = text.replace("width = 64) {", "width = 64) {\n  assume sequence = 100 tokens")
    found = told(text)
    assert [d.code for d in found] == codes
    if codes == ["NL206"]:  # a warning where no reset is written: the run is what 2.6.5 says
        assert found[0].severity == ("error" if "reset" in reset else "warning")


@pytest.mark.parametrize(
    ("transfer", "codes"),
    [
        ("transfer init training -> mixer", []),
        ("transfer init training -> mixer.M first order", []),
        ("transfer init mixer -> training", ["NL303"]),
        ("transfer init mixer -> mixer", ["NL302"]),
        ("transfer condition mixer -> training", ["NL302"]),
        ("transfer generate training -> mixer", ["NL302"]),
        ("transfer generate training -> mixer first order", ["NL302"]),
        ("transfer init training -> mixer through 8 tokens first order", []),
        ("transfer backprop training -> mixer", ["NL302"]),
    ],
)
def test_transfers(transfer: str, codes: list[str]) -> None:
    assert mixer(transfer=transfer) == codes


@pytest.mark.parametrize("kind", ["backprop mixer -> training", "init training -> mixer"])
@pytest.mark.parametrize(
    ("reset", "cut", "codes"),
    [
        ("", 101, ["NL309"]),
        ("", 100, ["NL309"]),  # the tick after which it would be cut is the last
        ("", 99, []),
        ("reset every 50 tokens", 51, ["NL309"]),
        ("reset every 50 tokens", 50, ["NL309"]),
        ("reset every 50 tokens", 49, []),
        ("reset every 50 tokens from 90", 80, []),
        ("reset every 200 tokens", 120, []),
        ("reset every 2 sequences", 150, []),
        ("reset never", 10**6, []),
    ],
)
def test_a_cut_comes_before_the_level_starts_anew(
    kind: str, reset: str, cut: int, codes: list[str]
) -> None:
    line = f"transfer {kind} through {cut} tokens"
    text = MIXER.format(
        clock="every token", reset=reset, rule="gradient(rate = 0.1)", transfer=line
    )
    text = text.replace("width = 64) {", "width = 64) {\n  assume sequence = 100 tokens")
    found = told(text)
    assert [d.code for d in found] == codes
    assert all(d.severity == "warning" for d in found)


def test_a_cut_after_no_token_is_an_edge_left_out() -> None:
    line = "transfer backprop mixer -> training through 0 tokens"
    text = MIXER.format(clock="every token", reset="", rule="gradient(rate = 0.1)", transfer=line)
    (found,) = (d for d in told(text) if d.code == "NL202")
    assert found.help == "where no gradient is to pass, leave the edge out"


def test_a_cut_is_for_the_longest_of_its_levels() -> None:
    text = """nl 1
system small(vocab = 256, width = 64) {
  assume sequence = 100 tokens
  level training every step { objective loss; learn adam(rate = 1e-3) }
  level brief(x) every token { reset every 10 tokens; state a : vector(width) { set x }; read a }
  level whole(x) every token { state b : vector(width) { set 0.5 * b + x }; read b }
  transfer backprop brief, whole -> training through 50 tokens
  flow(tokens) {
    x = embed(tokens, vocab, width)
    x += brief(x)
    x += whole(x)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""
    assert [d.code for d in told(text)] == []
    assert [d.code for d in told(text.replace("50 tokens", "500 tokens"))] == ["NL309"]


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ("transfer init frozen -> mixer", []),
        ("transfer init frozen -> mixer first order", ["NL302"]),
    ],
)
def test_a_start_that_never_learns_has_no_order(lines: str, codes: list[str]) -> None:
    frozen = "level frozen() never { state E : vector(width) }"
    assert mixer(transfer=f"{frozen}; {lines}") == codes


ALONE = """nl 1
def lq(A, r) {{ return A / (sum(abs(A)^r)^(1 / r) + 1e-6)^(r - 2) }}
memory one(q[n], k[n], v[n]) {{
  state     M : matrix(n, n){start}
  k2 = M(k)
  objective {objective}
  retain    0.9{dual}
  learn     gradient(rate = 0.1)
  read      M(q)
}}
"""


@pytest.mark.parametrize(
    ("objective", "dual", "start", "codes"),
    [
        ("sum((M(k) - v)^2)", "", "", []),
        ("sum(sign(M(k) - v) * v)", "", "", ["NL403"]),
        ("sum((M(k) > v) * v)", "", "", ["NL403"]),
        ("sum(where(M(k) > v, M(k), 0))", "", "", []),
        ("sum(smooth_sign(M(k) - v) * v)", "", "", []),
        ("sum((k2 - v)^2)", "", "", ["NL404"]),
        ("sum((k - v)^2)", "", "", ["NL404"]),
        ("sum((M(k) - stop(M(v)))^2)", "", "", []),
        ("sum((M(k) - v)^2)", " through lq(4)", "", ["NL502"]),
        ("sum((M(k) - v)^2)", " through lq(4)", " = normal(0.02)", []),
        ("sum((M(k) - v)^2)", " through sqrt", "", ["NL502"]),
        ("sum((M(k) - v)^2)", " through sqrt", " = normal(0.02)", ["NL502"]),
        ("sum((M(k) - v)^2)", " through log", " = normal(0.02)", ["NL502"]),
        ("sum((M(k) - v)^2)", " through exp", " = normal(0.02)", []),
        ("sum((M(k) - v)^2)", " through softmax", "", []),
        ("sum((M(k) - v)^2)", " through tanh", "", []),
    ],
)
def test_a_memory_on_its_own(objective: str, dual: str, start: str, codes: list[str]) -> None:
    text = ALONE.format(objective=objective, dual=dual, start=start)
    assert [d.code for d in told(text)] == codes


@pytest.mark.parametrize(("link", "normal"), [("log", False), ("sqrt", False), ("lq(4)", True)])
def test_a_start_is_advised_only_where_the_link_is_a_number_there(link: str, normal: bool) -> None:
    text = ALONE.format(objective="sum((M(k) - v)^2)", dual=f" through {link}", start="")
    (found,) = told(text)
    assert ("normal" in str(found.help)) == normal


GROWS = """nl 1
system lm(vocab = 256, width = 64) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
  level sums(x) every token {{
    reset {reset}
    state M : matrix(width, width)
    {rule}
    read  M(unit(x))
  }}
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    x += sums(norm(x))
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
HEBB = "objective -dot(M(x), x); learn gradient(rate = 1)"


@pytest.mark.parametrize(
    ("reset", "rule", "grows"),
    [
        ("never", HEBB, True),
        ("never", "write outer(x, x)", True),
        ("never", f"retain 1; {HEBB}", True),
        ("every sequence", HEBB, False),
        ("never", f"retain 0.9; {HEBB}", False),
        ("never", "write outer(x - M(x), x)", False),
        ("never", "objective sum((M(x) - x)^2); learn gradient(rate = 1)", False),
        ("never", "objective -dot(M(x), x); learn adamw(rate = 1)", False),
        ("never", "objective -dot(M(x), x); learn dgd(rate = 1)", False),
    ],
)
def test_what_grows_without_bound(reset: str, rule: str, grows: bool) -> None:
    found = [d.code for d in told(GROWS.format(reset=reset, rule=rule))]
    assert found == (["NL501"] if grows else [])


# ---- learned starts, and names that are bound again (NL401) ----

HOPE = (SPECS / "hope.nl").read_text(encoding="utf-8")
SMALL: dict[str, Any] = {
    "vocab": 11, "width": 8, "depth": 1, "heads": 2, "chunk": 3, "periods": [2, 4],
}  # fmt: skip
RULE, GATE = "dgd(rate = η)", "retain    α"
INIT = "transfer init training -> titans"


@pytest.mark.parametrize(
    ("old", "new", "dead"),
    [
        ("", "", set()),
        (RULE, "momentum(rate = η, keep = 0.5)", set()),
        (RULE, "adam(rate = 0.01)", {"G.rate"}),
        (GATE, "retain    0.99", {"G.keep"}),
        (GATE, "", {"G.keep"}),
        ("k = unit(M.key(z))", "k = unit(z)", {"M.key"}),
        ("v = unit(M.value(z))", "v = stop(unit(M.value(z)))", {"M.value"}),
        ("transfer backprop titans -> training ", "# ", set()),
        (INIT, f"{INIT} first order", {"M.key", "M.value"}),
        (INIT, f"{INIT}.M", set()),
        (INIT, "# none", set()),
        ("x += titans(", "y = titans(", {"M.main", "M.key", "M.value", "G.rate", "G.keep"}),
    ],
)
def test_a_start_is_told_if_its_gradient_is_zero(old: str, new: str, dead: set[str]) -> None:
    assert old in HOPE
    text = HOPE.replace(old, new, 1) if old else HOPE
    file, found = parse(Source("case.nl", text))
    assert file is not None and not found
    system = resolve(file, SPECS, SMALL).system
    assert system is not None
    messages = [d.message for d in check(system) if d.code == "NL401" and "start" in d.message]
    assert len(messages) == bool(dead)
    assert set(re.findall(r"`([MG]\.\w+)`", "".join(messages))) == dead
    gradients = Reference(system).gradients(torch.arange(8)[None] % 5)
    zero = {n for n, g in gradients.items() if "titans." in n and not g.any()}
    assert {re.sub(r".*titans\.(\w+\.\w+).*", r"\1", n) for n in zero if ".W" in n} == dead


FLOW = """nl 1
system lm(vocab = 256, width = 64) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    {flow}
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""


@pytest.mark.parametrize(
    ("flow", "dead"),
    [
        ("x = linear(x, width)", []),
        ("y = linear(x, width); y = x; x += y", [6]),
        ("y = x; repeat 2 { x += y; y = linear(x, width) }", []),
        ("repeat 2 { y = linear(x, width); x += y; y = x }", []),
        ("y = x; repeat 2 { y = linear(x, width); y = tanh(x); x += y }", [6]),
        ("y = x; repeat 2 { x += y; repeat 2 { y = linear(y, width) } }", []),
        ("repeat 1 { y = x; x += y; y = linear(x, width) }", [6]),
        ("y = x; repeat 1 { x += y; y = linear(x, width) }", [6]),
        ("y = x; repeat i in [1, 2] { x += i * y; y = linear(x, width) }", [6]),
        ("l = [linear(x, width), x]; x = l[1]", [6]),
        ("l = [linear(x, width), x]; x = l[0]", []),
        ("y = linear(x, width)\n    z = linear(y, width)", [7]),  # what feeds it is not told too
        ("y = linear(x, width)\n    z = linear(x, width)", [6, 7]),
        ("y = linear(x, width)\n    repeat 2 { y = linear(y, width) }", [7]),
    ],
)
def test_a_name_is_what_it_was_last_bound_to(flow: str, dead: list[int]) -> None:
    assert [d.span.line for d in told(FLOW.format(flow=flow))] == dead


KEPT = """nl 1
memory kept(q[n], k[n], v[n], a, left = 0.5) {
  state     M : matrix(n, n)START
  d = 1 + left
  retain    RETAIN
  objective sum((M(k) - v)^2)
  learn     RULE
  read      READ
}
"""


def kept(
    retain: str, rule: str = "gradient(rate = 0.1)", read: str = "M(q)", start: str = ""
) -> Any:
    text = KEPT.replace("RETAIN", retain).replace("RULE", rule).replace("READ", read)
    return [
        (d.code, d.severity, d.message)
        for d in check_text(text.replace("START", start)).diagnostics
    ]


def test_a_retention_that_is_known_is_a_fraction() -> None:
    """Also by way of a line, a setting, an optimizer; a stream is what it is."""
    for wrong, number in (("1.5", "1.5"), ("-0.2", "-0.2"), ("d", "1.5"), ("-left", "-0.5")):
        told = f"the retention of `M` is {number}; it is the fraction kept, from 0 to 1"
        assert kept(wrong) == [("NL504", "error", told)]
    for fine in ("0", "1", "left", "a", "1.5 * a", "exp(-left)"):
        assert kept(fine) == []
    assert [c for c, _, _ in kept("1", "adamw(rate = 0.1, shrink = 30)")] == ["NL504"]
    assert kept("1", "adamw(rate = 0.1, shrink = 0.1)") == []


def test_the_factor_of_a_state_without_rank_has_no_derivative() -> None:
    (told,) = kept("1", read="qr(M) @ q")
    assert told[:2] == ("NL502", "warning") and "`qr(M)` has no derivative" in told[2]
    assert kept("1", read="qr(M) @ q", start=" = normal(0.02)") == []


def test_what_is_drawn_anew_is_reset() -> None:
    """Levels that are never reset, and optimizers that serve them; the fix draws once."""
    text = (CASES / "bad/drawn_anew_and_never_reset.nl").read_text(encoding="utf-8")
    (told,) = check_text(text).diagnostics
    assert told.fix is not None and told.fix.text == "normal(0.1)"
    assert "`M` is drawn anew at each reset, and `counts` is never reset" in told.message
    reset = text.replace("reset     never", "reset     every 32 tokens")
    assert not check_text(reset).diagnostics
    assert not check_text(text.replace("    reset     never\n", "")).diagnostics
    rule = (
        "optimizer wild(weight, grad) {\n  state m : like(weight) = fresh(normal(1))\n"
        "  set 0.9 * m + grad\n  write -0.1 * m\n}\n"
    )
    plain = text.replace("fresh(normal(0.1))", "normal(0.1)").replace("learn adamw", "learn wild")
    served = plain.replace("wild(rate = 4e-4)", "wild()").replace("system lm", rule + "system lm")
    assert [d.code for d in check_text(served).diagnostics] == ["NL209"]
    deeper = rule.replace(
        "  state m : like(weight) = fresh(normal(1))\n  set 0.9 * m + grad\n",
        "  level slow every 4 steps {\n    state m : like(weight) = fresh(normal(1))\n"
        "    set 0.9 * m + grad\n  }\n",
    ).replace("-0.1 * m", "-0.1 * slow.m")
    (told,) = check_text(served.replace(rule, deeper)).diagnostics
    assert told.code == "NL209" and "`m` is drawn anew at each reset" in told.message


SOLVED = """nl 1
memory two(x[n]) {{
  state y : vector(n) {{ objective sum((y - {first})^2); learn exact }}
  state z : vector(n) {{ objective sum((z - {second})^2); learn exact }}
  a = {line}
  read z + a
}}
"""


@pytest.mark.parametrize(
    ("first", "second", "line", "told"),
    [
        ("x", "y", "tanh(z)", []), ("x", "tanh(y)", "x", []), ("a", "y", "x", []),
        ("z", "y", "x", ["y", "z"]), ("a", "y", "tanh(z)", ["y", "z"]), ("a", "x", "y", ["y"]),
    ],
)  # fmt: skip
def test_a_solution_waits_for_none_that_waits_for_it(
    first: str, second: str, line: str, told: list[str]
) -> None:
    """Of two that wait for each other the places are told."""
    found = check_text(SOLVED.format(first=first, second=second, line=line)).diagnostics
    assert {d.code for d in found} <= {"NL210"}
    assert sorted(d.message[1] for d in found) == told
