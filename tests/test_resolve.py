"""From syntax to the typed page: names, shapes, instances, rules and transfers, and the limits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nlc.parse import parse
from nlc.resolve import Resolved, resolve
from nlc.system import ALL, Assign, Box, Clock, Handle, Loop, System, Term, line_terms
from nlc.text import Source


def resolved(text: str, folder: Path | None = None, **settings: Any) -> Resolved:
    file, told = parse(Source("case.nl", text))
    assert file is not None and not told
    return resolve(file, folder, settings)


def codes(text: str, folder: Path | None = None, **settings: Any) -> list[str]:
    return [d.code for d in resolved(text, folder, **settings).diagnostics]


def system(text: str, **settings: Any) -> System:
    found = resolved(text, **settings)
    assert not found.diagnostics, [d.message for d in found.diagnostics]
    assert found.system is not None
    return found.system


def lm(levels: str = "", flow: str = "", before: str = "", settings: str = "") -> str:
    """A small language model around a few lines."""
    return f"""nl 1
{before}
system lm(vocab = 256, width = 64, heads = 4{settings}) {{
  n = width / heads
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
{levels}
  flow(tokens) {{
    x = embed(tokens, vocab, width)
{flow}
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""


DELTA = """
level mixer(x) every token {
  state     M : matrix(n, n) per heads
  z = unit(split(x, heads))
  objective sum((M(z) - z)^2) / 2
  learn     gradient(rate = 0.5)
  read      join(M(z))
}
"""


def box(found: System, name: str) -> Box:
    return next(b for b in found.boxes if b.name == name)


# ---- shapes ----


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("split(x, 4)", (4, 16)),
        ("join(split(x, 4))", (64,)),
        ("column(x)", (64, 1)),
        ("squeeze(column(x))", (64,)),
        ("stack(x, x, x)", (64, 3)),
        ("concat(x, x)", (128,)),
        ("outer(x, x)", (64, 64)),
        ("outer(x, x) @ x", (64,)),
        ("x @ outer(x, x)", (64,)),
        ("transpose(stack(x, x))", (2, 64)),
        ("dot(split(x, 4), split(x, 4))", (4,)),
        ("length(split(x, 4))", (4,)),
        ("sum(split(x, 4))", ()),
        ("sum(split(x, 4), 1)", (4,)),
        ("split(x, 4)[1]", (16,)),
        ("reshape(x, 8, 8)", (8, 8)),
        ("split(x, 4) * column(range(4))", (4, 16)),
        ("past(x, 8)", (-8, 64)),
        ("past(x, 1)", (-1, 64)),
        ("past(x)", (ALL, 64)),
        ("past(x, infinity)", (ALL, 64)),
        ("linear(split(x, 4), 5)", (4, 5)),
        ("linear(x, dim(x) / 2)", (32,)),
        ("top(x, 3)", (64,)),
        ("eye(x)", (64, 64)),
        ("where(x > 0, x, 0)", (64,)),
        ("cross_entropy(x, 3)", ()),
        ("learned(2, 3)", (2, 3)),
    ],
)
def test_shapes(expression: str, shape: tuple[int, ...]) -> None:
    found = system(lm(flow=f"    y = {expression}"))
    lines = [line for line in found.flow.lines if isinstance(line, Assign)]
    values = [line.value for line in lines if line.name == "y"]
    assert values[0].shape == shape


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("split(x, 5)", "NL601"),
        ("x + split(x, 4)[0]", "NL602"),
        ("x @ x @ x", "NL602"),
        ("reshape(x, 7, 9)", "NL602"),
        ("squeeze(x)", "NL602"),
        ("x[64]", "NL602"),
        ("3[0]", "NL602"),
        ("cross_entropy(x, x)", "NL602"),
        ("top(x, 65)", "NL602"),
        ("linear(x, x)", "NL601"),
        ("linear(x, 0)", "NL601"),
        ("linear(x)", "NL107"),
        ("x / 0", "NL502"),
        ("1 / 0", "NL502"),
        ("log(0)", "NL502"),
        ("2^99999", "NL502"),
        ("9^9^9^9", "NL502"),
        ("1e308 * 1e308", "NL502"),
        ("(0 - 8)^0.5", "NL502"),
        ("mod(3, 0)", "NL502"),
        ("tanh", "NL103"),
        ("[x, x]", "NL602"),
        ("zeros", "NL103"),
        ("count = 3", None),
    ],
)
def test_expressions_that_mean_nothing(expression: str, code: str | None) -> None:
    if code is None:
        assert codes(lm(flow=f"    {expression}")) == ["NL106"]
    else:
        assert codes(lm(flow=f"    y = norm({expression}) * x")) == [code]


def test_a_matrix_is_stored_with_its_outputs_first() -> None:
    levels = "level a(x) every token { state M : matrix(width, n); read M(x) }"
    made = box(system(lm(levels, "    y = a(x)")), "a")
    assert made.states[0].form.arrays[0].shape == (16, 64)
    assert made.read is not None and made.read.shape == (16,)


# ---- instances and paths ----


def test_a_box_is_made_where_it_is_called() -> None:
    found = system(lm(DELTA, "    x += mixer(x) + mixer(norm(x))"))
    paths = [b.path for b in found.boxes if b.name == "mixer"]
    assert len(set(paths)) == 2
    assert found.level("mixer").boxes == tuple(b for b in found.boxes if b.name == "mixer")


def test_a_loop_makes_one_instance_a_round() -> None:
    found = system(lm(DELTA, "    repeat 3 { x += mixer(linear(x, width)) }"))
    loop = next(line for line in found.flow.lines if isinstance(line, Loop))
    assert loop.count == 3
    assert box(found, "mixer").loops == (3,)
    assert box(found, "mixer").path.count("{}") == 1
    weight = next(w for w in found.weights if w.maker == "linear")
    assert weight.loops == (3,) and weight.path.count("{}") == 1


def test_a_loop_that_changes_a_shape_is_written_out() -> None:
    found = system(lm(flow="    y = x\n    repeat 3 { y = concat(y, linear(y, 2)) }"))
    shapes = [w.shape for w in found.weights if w.maker == "linear"]
    assert shapes == [(2, 64), (2, 66), (2, 68)]
    assert len({w.path for w in found.weights}) == len(found.weights)


def test_a_name_first_bound_in_a_loop_ends_with_it() -> None:
    assert codes(lm(flow="    repeat 2 { y = x }\n    x += y")) == ["NL101"]
    assert codes(lm(flow="    repeat p in [1, 2] { y = p * x }\n    x += p * x")) == ["NL101"]


def test_a_memory_is_mapped_over_axes_beyond_its_signature() -> None:
    levels = """
level mixer(x) every token {
  q = split(x, heads)
  read join(delta(q, unit(q), q, sigmoid(dot(q, q))))
}
"""
    made = box(system(lm(levels, "    x += mixer(x)", 'use "memory/delta"')), "delta")
    assert made.mapped == (4,)
    assert dict(made.inputs) == {"q": (16,), "k": (16,), "v": (16,), "beta": ()}
    assert made.states[0].form.arrays[0].shape == (16, 16)
    assert made.parent is not None and made.parent.name == "mixer"


def test_an_axis_of_one_stretches_over_the_map() -> None:
    levels = """
level mixer(x) every token {
  q = split(x, heads)
  read join(delta(reshape(linear(x, n), 1, n), q, q, 0.5))
}
transfer backprop mixer -> training
"""
    made = box(system(lm(levels, "    x += mixer(x)", 'use "memory/delta"')), "delta")
    assert made.mapped == (4,)
    assert made.input_mapped[:2] == ((1,), (4,))


def test_heads_of_a_level_are_said() -> None:
    state = box(system(lm(DELTA, "    x += mixer(x)")), "mixer").states[0]
    assert state.per == (4,)
    assert state.shape(state.form.arrays[0]) == (4, 16, 16)


# ---- families and other levels' states ----


CMS = """
level cms[p in periods](x) every p tokens {
  state     F : mlp(width, 2*width)
  objective loss
  learn     gradient(rate = 1 / p)
  read      F(x)
}
transfer init training -> cms
transfer backprop cms[16] -> training first order
"""
PERIODS = ", periods = [16, 128]"


def test_a_family_is_one_level_a_member() -> None:
    found = system(lm(CMS, "    repeat p in periods { x += cms[p](x) }", settings=PERIODS))
    assert [l.name for l in found.levels] == ["training", "cms[16]", "cms[128]"]
    assert [str(l.clock) for l in found.levels[1:]] == ["every 16 tokens", "every 128 tokens"]
    assert {l.family for l in found.levels[1:]} == {"cms"}
    edges = [(t.kind, t.source.name, t.target.name, t.first_order) for t in found.transfers]
    assert edges == [
        ("init", "training", "cms[16]", False),
        ("init", "training", "cms[128]", False),
        ("backprop", "cms[16]", "training", True),
    ]


def test_the_index_of_a_family_is_a_number_in_its_body() -> None:
    found = system(lm(CMS, "    repeat p in periods { x += cms[p](x) }", settings=PERIODS))
    rates = [
        b.states[0].rule.learn["W1"].settings["rate"].info
        for b in found.boxes
        if b.name.startswith("cms")
    ]
    assert rates == [1 / 16, 1 / 128]


def test_a_state_of_another_level_is_foreign() -> None:
    levels = DELTA + "level slow(x) every 16 tokens { state S : vector(width); set x; read S }\n"
    found = system(lm(levels, "    x += slow(sum(mixer.M) * x) + mixer(x)"))
    handles = [
        t.info
        for root in line_terms(found.flow.lines)
        for t in root.walk()
        if t.op == "state" and isinstance(t.info, Handle)
    ]
    assert handles[0].foreign and handles[0].box is box(found, "mixer")


def test_a_state_without_a_call_is_seen_by_name() -> None:
    text = """nl 1
system tied(vocab = 256, width = 64) {
  level shared every step {
    state     E : table(vocab, width)
    objective loss
    learn     adam()
  }
  flow(tokens) {
    x = E(tokens)
    logits = x @ transpose(E)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""
    found = system(text)
    assert [b.name for b in found.boxes] == ["shared"]
    assert not found.weights
    terms = [t for root in line_terms(found.flow.lines) for t in root.walk()]
    assert any(t.op == "apply" and t.info.foreign for t in terms)


def test_named_states_share_a_rule() -> None:
    levels = """
level m(x) every token {
  state M[a, b] : matrix(width, width)
  objective sum((M(x) - x)^2)
  learn gradient(rate = 0.1)
  read M.a(x) + M.b(x)
}
"""
    a, b = box(system(lm(levels, "    x += m(x)")), "m").states
    assert (a.name, b.name) == ("M.a", "M.b")
    assert a.rule.objective is not None and b.rule.objective is not None
    named = [
        {t.info.name for t in s.rule.objective.walk() if t.op == "apply"}
        for s in (a, b)
        if s.rule.objective is not None
    ]
    assert named == [{"M.a"}, {"M.b"}]


# ---- functions, rules, settings ----


def test_a_def_is_expanded_once_a_call() -> None:
    before = "def block(x, n) { y = linear(x, n); return silu(y) * y }"
    found = system(lm(flow="    x += block(x, width) + block(x, 64)", before=before))
    assert len([w for w in found.weights if w.maker == "linear"]) == 2
    assert len({w.path for w in found.weights}) == len(found.weights)


def test_a_def_may_repeat() -> None:
    before = "def power(x, k) { y = 1; repeat k { y = y * x }; return y }"
    assert system(lm(flow="    x = power(x, 3)", before=before)).flow.result.shape == (256,)


@pytest.mark.parametrize(
    ("lines", "rules"),
    [
        ("learn muon() for matrices; learn adam()", ["adam", "muon", "adam"]),
        ("learn adam(); learn muon() for matrices", ["adam", "adam", "adam"]),
        ("learn adam() for tables; learn gradient()", ["adam", "gradient", "gradient"]),
        ("learn dgd() for matrices; learn m3() for tables; learn adam()", ["m3", "dgd", "adam"]),
    ],
)
def test_the_first_learn_line_that_fits_serves(lines: str, rules: list[str]) -> None:
    text = lm(flow="    x += linear(norm(x), width)")
    found = system(text.replace("learn adamw(rate = 4e-4)", lines))
    served = {w.maker: found.level("training").line_for(w) for w in found.weights}
    kinds = [served[maker] for maker in ("embed", "linear", "norm")]
    assert [line.rule for line in kinds if line is not None] == rules


def test_a_setting_may_be_given_a_stream() -> None:
    levels = DELTA.replace("rate = 0.5", "rate = sigmoid(dot(z, z))")
    state = box(system(lm(levels, "    x += mixer(x)")), "mixer").states[0]
    learn = state.rule.learn[""]
    assert learn.settings["rate"].shape == (4,)
    assert dict(learn.optimizers[(16, 16)].inputs)["rate"] == ()


def test_a_retention_may_have_one_number_an_input_channel() -> None:
    levels = DELTA.replace("  objective", "  retain    sigmoid(z)\n  objective")
    state = box(system(lm(levels, "    x += mixer(x)")), "mixer").states[0]
    assert state.rule.retain is not None and state.rule.retain.shape == (4, 16)
    wrong = DELTA.replace("  objective", "  retain    sigmoid(x)\n  objective")
    assert codes(lm(wrong, "    x += mixer(x)")) == ["NL602"]


def test_weights_of_a_rule_are_one_set_a_learn_line() -> None:
    before = "optimizer o(weight, grad) { write grad * linear(sum(grad) * range(3), 1)[0] }"
    levels = DELTA.replace("matrix(n, n)", "mlp(n, 2*n)").replace("gradient(rate = 0.5)", "o()")
    found = system(lm(levels, "    repeat 2 { x += mixer(x) }\n    x += mixer(x)", before))
    made = [w for w in found.weights if w.box is not None and w.box.kind == "optimizer"]
    assert [w.loops for w in made] == [(2,), ()]
    assert len({w.path for w in made}) == 2


def test_transfers_name_states_and_chains() -> None:
    levels = """
level slow(x) every 16 tokens { state S : vector(width); write x - S; read S * x }
level fast(x) every token { state F : vector(width); write x - F; read F * x }
transfer init training -> slow -> fast.F first order
transfer backprop slow, fast -> training through 512 tokens
"""
    found = system(lm(levels, "    x += slow(x) + fast(x)"))
    edges = [(t.kind, t.source.name, t.target.name, t.state, t.truncate) for t in found.transfers]
    assert edges == [
        ("init", "training", "slow", None, None),
        ("init", "slow", "fast", "F", None),
        ("backprop", "slow", "training", None, 512),
        ("backprop", "fast", "training", None, 512),
    ]


def test_clocks_fire_from_their_phase() -> None:
    levels = "level a(x) every 4 tokens from 2 { reset never; partial drop; read x * position }"
    level = system(lm(levels, "    x += a(x)")).level("a")
    assert level.clock == Clock("token", 4, 2)
    assert [t for t in range(1, 12) if level.clock.fires(t)] == [2, 6, 10]
    assert level.resets == Clock("never", 0)
    assert level.partial == "drop"


# ---- settings from outside ----


def test_settings_are_overridden_by_name() -> None:
    found = system(lm(DELTA, "    x += mixer(x)"), width=32, heads=2)
    assert found.settings["width"] == 32
    assert box(found, "mixer").states[0].per == (2,)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"widht": 3}, ["NL101"]),
        ({"width": "wide"}, ["NL202"]),
        ({"width": None}, ["NL202"]),
        ({"width": True}, ["NL202"]),
        ({"width": float("nan")}, ["NL202"]),
        ({"width": ["a"]}, ["NL202"]),
        ({"width": 64.5}, ["NL601"]),
        ({"width": -64}, ["NL601"]),
    ],
)
def test_settings_of_another_kind(settings: dict[str, Any], told: list[str]) -> None:
    assert codes(lm(), **settings) == told


# ---- names ----


@pytest.mark.parametrize("name", ["lambda", "None", "__class__", "self", "import", "λ", "dot2"])
def test_any_name_will_do(name: str) -> None:
    levels = f"level a(x) every token {{ state {name} : vector(width); set x; read {name} }}"
    assert box(system(lm(levels, "    x += a(x)")), "a").states[0].name
    assert system(lm(flow=f"    {name} = x\n    x += {name}"))


@pytest.mark.parametrize(
    ("levels", "flow"),
    [
        ("level a(x, x) every token { read x }", "    x += a(x, x)"),
        ("level a(x) every token { state x : vector(4); read x }", "    x += a(x)"),
        ("level a(x) every token { x = 3 * x; read x }", "    x += a(x)"),
        (DELTA + DELTA, "    x += mixer(x)"),
        ("level width(x) every token { read x }", "    x += x"),
        (DELTA, "    x += mixer(x)\n    mixer = x"),
        (DELTA, "    x += mixer(x)\n    tokens = x"),
    ],
)
def test_two_things_of_one_name(levels: str, flow: str) -> None:
    assert codes(lm(levels, flow)) == ["NL102"]


def test_a_plain_name_is_no_function_of_the_file() -> None:
    assert codes(lm(flow="    f = x", before="def f(x) { return x }")) == ["NL102"]


@pytest.mark.parametrize(
    ("flow", "before", "code"),
    [
        ("    x += mixer(x) + f(x)", "def f(x) { return mixer(x) }", "NL103"),
        ("    x += mixer(x) + delta(x, x, x, 1)", 'use "memory/delta"', "NL103"),
        ("    x += mixer(x) + training(x)", "", "NL103"),
        ("    x += mixer[3](x)", "", "NL101"),
        ("    x += mixer(x).M", "", "NL101"),
        ("    x += mixer(x) + f(x)", "def f(x) { y = x }", "NL003"),
    ],
)
def test_calls_of_what_is_not_called(flow: str, before: str, code: str) -> None:
    assert code in codes(lm(DELTA, flow, before))


# ---- files ----


def test_files_are_looked_up_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "parts.nl").write_text("nl 1\ndef twice(x) { return 2 * x }\n")
    text = lm(flow="    x = twice(x)", before='use "parts"')
    found = resolved(text, tmp_path)
    assert not found.diagnostics
    assert list(found.texts) == ["parts.nl"]


@pytest.mark.parametrize(
    "path", ["../a", "/etc/passwd", "a/../../b", "~/a", "a\\\\b", "", "c:/a", "x" * 5000, "missing"]
)
def test_files_elsewhere_are_refused(path: str, tmp_path: Path) -> None:
    assert codes(lm(before=f'use "{path}"'), tmp_path) == ["NL108"]


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.nl").write_text("nl 1\n")
    (inner / "link.nl").symlink_to(tmp_path / "secret.nl")
    (inner / "loop.nl").symlink_to(inner / "loop.nl")
    assert codes(lm(before='use "link"'), inner) == ["NL108"]
    assert codes(lm(before='use "loop"'), inner) == ["NL108"]


def test_files_that_use_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.nl").write_text('nl 1\nuse "b"\ndef fa(x) { return x }\n')
    (tmp_path / "b.nl").write_text('nl 1\nuse "a"\ndef fb(x) { return x }\n')
    assert codes(lm(before='use "a"'), tmp_path) == ["NL108"]


# ---- limits ----


@pytest.mark.parametrize(
    ("flow", "before"),
    [
        ("    repeat 1000000000 { x = concat(x, x) }", ""),
        ("    n = 0\n    repeat 1000000000 { n += 1 }\n    x = n * x", ""),
        ("    x = f(x)", "def f(x) { repeat 1000000000 { x = tanh(x) }; return x }"),
    ],
)
def test_what_grows_too_large_is_told_soon(flow: str, before: str) -> None:
    start = time.process_time()
    assert codes(lm(flow=flow, before=before)) == ["NL110"]
    assert time.process_time() - start < 20


def test_a_loop_of_many_rounds_costs_one() -> None:
    found = system(lm(DELTA, "    repeat 1000000000 { x += mixer(norm(x)) }"))
    assert box(found, "mixer").loops == (1000000000,)


def test_calls_within_calls_have_an_end() -> None:
    before = "def f0(x) { return x }\n"
    before += "\n".join(f"def f{i}(x) {{ return f{i - 1}(x) }}" for i in range(1, 80))
    assert codes(lm(flow="    x = f79(x)", before=before)) == ["NL109"]


def many(count: int) -> str:
    levels = "\n".join(DELTA.replace("mixer", f"l{i}").strip() for i in range(count))
    flow = "\n".join(f"    x += l{i}(norm(x))" for i in range(count))
    return lm(levels, flow)


def test_the_work_grows_with_the_size() -> None:
    """Calls of functions, which are the same on any machine."""

    def calls(count: int) -> int:
        file, _ = parse(Source("many.nl", many(count)))
        assert file is not None
        made = 0

        def tell(frame: object, event: str, arg: object) -> None:
            nonlocal made
            made += event == "call"

        sys.setprofile(tell)
        try:
            told = resolve(file).diagnostics
        finally:
            sys.setprofile(None)
        assert not told
        return made

    calls(20)
    small, large = calls(50), calls(400)
    assert large < 8 * small * 1.2


# ---- names that a line may not bind (2.2.6) ----


@pytest.mark.parametrize(
    ("flow", "found"),
    [
        ("width = 3; x = width * x", ["NL102"]),
        ("width = 3; width = 2 * width; x = width * x", ["NL102"]),
        ("mean = 3; x = mean * mean(x) * x", ["NL106"]),
        ("top += 1", ["NL106"]),
        ("repeat heads in [1, 2] { x = heads * x }", ["NL102"]),
        ("repeat tokens in [1, 2] { x = tokens * x }", ["NL102"]),
        ("repeat unit in [1, 2] { x = unit * x }", ["NL106"]),
        ("repeat 2 { width = 3; x = width * x }", ["NL102"]),
        ("n = 3; x = n * x; n = 4", []),
        ("x = f(x, 3)", []),
    ],
)
def test_names_that_a_line_of_the_flow_may_not_bind(flow: str, found: list[str]) -> None:
    before = "def f(x, width) { y = width * x\n heads = 2\n return heads * y }"
    assert codes(lm(flow=f"    {flow}", before=before)) == found


@pytest.mark.parametrize(
    ("head", "line", "found"),
    [
        ("mixer(x)", "heads = 2", ["NL102"]),
        ("mixer(x, heads = 3)", "y = heads", []),
        ("mixer(x, heads = 3)", "heads = 2", ["NL102"]),
        ("mixer(x)", "outer = 2", ["NL106"]),
        ("outer(x)", "y = 2", []),
    ],
)
def test_names_that_a_line_of_a_level_may_not_bind(head: str, line: str, found: list[str]) -> None:
    level = f"  level {head} every token {{\n    {line}\n    read 2 * x\n  }}"
    assert codes(lm(levels=level, flow=f"    x += {head.split('(')[0]}(x)")) == found


# ---- names bound again ----


def lines_of(found: System) -> dict[str, Term]:
    return {line.name: line.value for line in found.flow.lines if isinstance(line, Assign)}


def test_a_list_keeps_the_values_at_its_place() -> None:
    flow = "l = [2 * x, x]; l_2 = x; x = 3 * x; l = [l[1], l[0]]; x = l[0]"
    found = lines_of(system(lm(flow=f"    {flow}")))
    first, second = found["l_3"], found["l_4"]
    assert first.op == "mul" and second.op == "local"
    kept = [found[n] for n in ("l_5", "l_6")]
    assert [t.info for t in kept] == ["l_4", "l_3"]
    assert found["x"].info == "l_5"


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        ("y = x; y = 2 * x; y_2 = 3 * x", "y_2"),
        ("y_2 = x; y = x; y = 2 * x", "y_3"),
        ("y = x; y = x; y_2 = x; y_2 = x; y = 2 * x", "y_3"),
    ],
)
def test_a_line_of_a_level_has_a_name_of_its_own(lines: str, read: str) -> None:
    level = f"  level a(x) every token {{\n    {lines}\n    read y\n  }}"
    found = box(system(lm(levels=level, flow="    x += a(x)")), "a")
    names = [line.name for line in found.lines if isinstance(line, Assign)]
    assert len(names) == len(set(names))
    assert found.read is not None and found.read.info == read


# ---- states named in a transfer (2.11.4) ----

TWO = """
  level mixer(x) every token {
    k = unit(x)
    known = delta(k, k, x, 0.5)
    read  known + linear_attention(k, k, x)
  }
"""
OWN = """
  level mixer(x) every token {
    state     M : matrix(width, width)
    objective sum((M(x) - x)^2)
    learn     gradient(rate = 0.1)
    read      M(x) + delta(unit(x), unit(x), x, 0.5)
  }
"""
DEEP = """
  level mixer[p in [2, 4]](x) every p tokens { read continuum(x) }
  transfer backprop mixer -> training
"""
USES = 'use "memory/continuum"\nuse "memory/delta"\nuse "memory/linear_attention"'


def starting(level: str, end: str) -> Resolved:
    calls = "mixer[2](x) + mixer[4](x)" if "mixer[" in level else "mixer(x)"
    line = f"  transfer init training -> {end}"
    return resolved(lm(levels=level + line, flow=f"    x += {calls}", before=USES))


@pytest.mark.parametrize(
    ("level", "end", "starts"),
    [
        (TWO, "mixer", {"delta.M", "linear_attention.M"}),
        (TWO, "mixer.delta.M", {"delta.M"}),
        (TWO, "mixer.linear_attention.M", {"linear_attention.M"}),
        (OWN, "mixer", {"M", "delta.M"}),
        (OWN, "mixer.M", {"M"}),
        (OWN, "mixer.delta.M", {"delta.M"}),
        (DEEP, "mixer.F", {"continuum.F"}),
        (DEEP, "mixer[2].F", {"continuum.F"}),
        (DEEP, "mixer.continuum.F", {"continuum.F"}),
    ],
)
def test_a_state_of_a_memory_is_named_in_a_transfer(level: str, end: str, starts: set[str]) -> None:
    found = starting(level, end)
    assert not found.diagnostics and found.system is not None
    inits = [t for t in found.system.transfers if t.kind == "init"]
    meant = {
        (b.level.name if b.level else "", s.path)
        for t in inits
        for b in found.system.boxes
        for s in b.states
        if b.level is t.target and t.speaks_of(s)
    }
    members = {"mixer"} if level is not DEEP else {"mixer[2]", "mixer[4]"}
    members = {"mixer[2]"} if end.startswith("mixer[2]") else members
    assert meant == {(m, s) for m in members for s in starts}


@pytest.mark.parametrize(
    ("level", "end", "code"),
    [
        (TWO, "mixer.M", "NL307"),
        (TWO, "mixer.N", "NL101"),
        (TWO, "mixer.delta.N", "NL101"),
        (TWO, "mixer.titans.M", "NL101"),
        (OWN, "mixer.linear_attention.M", "NL101"),
        (DEEP, "mixer.G", "NL101"),
    ],
)
def test_a_state_that_a_transfer_cannot_mean(level: str, end: str, code: str) -> None:
    assert [d.code for d in starting(level, end).diagnostics] == [code]


def test_a_memory_that_is_wrong_is_told_alone() -> None:
    found = starting(TWO.replace("0.5)", "0.5, 3)"), "mixer.delta.M")
    assert [d.code for d in found.diagnostics] == ["NL107"]
    never = "  level a(x) every token { read 2 * x }\n  transfer init a.M -> a"
    assert sorted(codes(lm(levels=never))) == ["NL101", "NL308"]


@pytest.mark.parametrize("end", ["mixer", "mixer.delta.M", "mixer.linear_attention.M"])
def test_both_backends_train_the_starts_that_are_named(end: str) -> None:
    import nlc

    line = f"  transfer init training -> {end}"
    spec = nlc.load(
        lm(levels=TWO + line, flow="    x += mixer(norm(x))", before=USES), vocab=7, width=4
    )
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(0))
    wanted = nlc.reference(spec, model.state_dict()).gradients(tokens)
    losses, counted, _ = model.losses(tokens)
    losses[counted].mean().backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in model.named_weights() if p.grad is not None}
    starts = {n for n in found if n.endswith(".M")}
    assert starts == {n for n in wanted if n.endswith(".M")}
    assert starts == {
        f"mixer.{m}.M" for m in ("delta", "linear_attention") if end in ("mixer", f"mixer.{m}.M")
    }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name])


def test_a_learned_start_is_one_weight() -> None:
    level = """level cells(x) every token {
      state c : vector(width) = learned(width, start = 0.1) { retain 0.9; write 0.1 * x }
      read c
    }
    transfer backprop cells -> training"""
    made = system(lm(levels=level, flow="x += cells(x)"))
    assert [w.path for w in made.weights if w.maker == "learned"] == ["cells.learned"]


def test_a_size_may_have_the_name_of_what_is_called() -> None:
    """`m` is a memory here, and `unit` a function: in brackets they are sizes."""
    memory = """memory m(q[unit], k[unit], v[m]) {
      state M : matrix(unit, m) = zeros()
      objective -dot(M(k), v)
      learn gradient(rate = 1)
      read M(q)
    }
    """
    level = """level l(x) every token { k = linear(x, 4); read m(k, k, linear(x, 3)) }
    transfer backprop l -> training"""
    made = system(lm(level, "    x += linear(l(x), width)", before=memory))
    shapes = [a.shape for b in made.boxes for s in b.states for a in s.form.arrays]
    assert shapes == [(3, 4)]


def test_a_function_that_is_not_called_is_told_so() -> None:
    told = resolved(lm(flow="    y = norm(x) + zeros")).diagnostics
    assert [d.message for d in told] == ["`zeros` is a function: call it, as `zeros(..)`"]
