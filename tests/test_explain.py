"""The page of a spec: rules as a person would derive them, stable, and made without torch.

NLC_GOLDEN=1 writes the golden files anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nlc
from nlc.backends.ops import fla
from nlc.cli import main
from nlc.driver import check_file, check_text
from nlc.explain import explain

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SYSTEMS = sorted(
    [*(ROOT / "specs").glob("*.nl"), *(Path(__file__).parent / "cases/good").glob("*.nl")]
)
PARTS = sorted([*(ROOT / "specs/memory").glob("*.nl"), *(ROOT / "specs/optim").glob("*.nl")])


def page(name: str) -> str:
    checked = check_file(name)
    return explain(nlc.Spec(checked)) if checked.system is not None else explain(checked)


WRITTEN_DOWN = [
    *("hope", "deltanet", "linear_attention", "optim/adam", "optim/m3"),
    *(f"memory/{n}" for n in ("delta", "gated_delta", "titans_linear", "lp", "huber", "memora")),
    *(f"memory/{n}" for n in ("oja", "mesa", "longhorn", "ttt_linear", "elastic_ftrl", "comba")),
]


@pytest.mark.parametrize("name", WRITTEN_DOWN)
def test_pages_are_as_written_down(name: str) -> None:
    path = GOLDEN / f"explain_{Path(name).stem}.txt"
    text = page(name)
    if name.startswith("memory/"):  # how it is run is the plan's to say
        text = text.partition("\n\n  run as")[0] + "\n"
    if os.environ.get("NLC_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("memory/linear_attention", "M = M + v k'"),
        ("memory/retention", "M = alpha * M + v k'"),
        ("memory/delta", "M = M (I - beta * k k') + beta * v k'"),
        ("memory/gated_delta", "M = alpha * M (I - beta * k k') + beta * v k'"),
        ("memory/titans", "S1 = mu * S1 - eta * e1 k'"),
        ("memory/attend", "softmax(0.353553 * dot(past(k), q)) @ past(v)"),
        ("memory/gated_delta_2", "M = alpha * M + outer(w * v - M(b * k), k)"),
        ("memory/longhorn", "M = the minimiser of the objective + |M - kept|^2 / 2"),
        ("optim/adam", "m = 0.9 * m + 0.1 * grad"),
        ("optim/momentum", "m = 0.9 * m - 0.01 * grad"),
        ("optim/m3", "slow.m = 0.9 * slow.m + 0.1 * grad"),
        ("hope", "W1 = alpha * W1 - eta * (e1 + W1 @ k) k'"),
    ],
)
def test_rules_are_those_of_the_papers(name: str, rule: str) -> None:
    assert rule in page(name)


@pytest.mark.parametrize("path", [*SYSTEMS, *PARTS], ids=lambda p: p.stem)
def test_every_spec_has_a_page(path: Path) -> None:
    text = page(str(path))
    assert text == page(str(path))
    assert "Term(" not in text and " object at " not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_what_is_not_compiled_says_why() -> None:
    spec = (ROOT / "specs/sleep.nl").read_text(encoding="utf-8")
    text = explain(
        nlc.load(spec.replace("every sequence {", "every sequence { reset every 9 tasks"))
    )
    assert "by the reference interpreter alone (NL701): " in text


def test_the_readme_shows_what_is_printed() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```explained\n(.*?)^```$", readme, re.M | re.S)
    pages = [page("hope"), page(str(ROOT / "specs/gated_deltanet.nl"))]
    assert len(shown) == 2
    for text, whole in zip(shown, pages, strict=True):
        assert text in whole


def test_json_has_each_line_twice() -> None:
    found = json.loads(explain(check_file("memory/delta"), "json"))
    (box,) = found["boxes"]
    assert box["box"] == "memory delta(q[8], k[8], v[8], beta)"
    (state,) = (p for p in box["parts"] if p["heading"] == "M : matrix(8, 8)")
    lines = {line["label"]: line for line in state["lines"]}
    assert lines["that is"]["text"] == "M = M (I - beta * k k') + beta * v k'"
    assert lines["that is"]["latex"] == r"M = M (I - \beta\, k k^\top) + \beta\, v k^\top"
    assert lines["class"]["words"] and not lines["rule"]["words"]


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        ("-dot(M(k), v)", "i"),
        ("sum((M(k) - v)^2)", "ii"),
        ("sum(v * (M(k) - v)^2)", "ii-ch"),
        ("sum((M(past(k, 3)) - past(v, 3))^2)", "ii-win"),
        ("dot(M(k) - v, v)^2", "iii"),
        ("dot(M(k), M(2 * k))", "iii"),
        ("sum((M(k) - stop(M(v)))^2)", "iii"),
        ("dot(M(k), M(2 * k))^2", "iv-a"),
        ("sum(abs(M(k) - v)^3)", "iv-a"),
        ("length(M(k) - v)", "iv-a"),
        ("-dot(softmax(M(k)), v)", "iv-a"),
        ("sum(M^2) / 2 - dot(M(k), v)", "i"),
        ("sum((M @ transpose(M))^2)", "iv-a"),
    ],
)
def test_the_jacobian_is_the_class(objective: str, found: str) -> None:
    body = f"state M : matrix(n, n); objective {objective}; learn gradient(rate = 0.1); read M(k)"
    told = explain(check_text(f"nl 1\nmemory a(k[n], v[n]) {{ {body} }}\n"))
    assert f"\n    class      {found}: " in told


def test_rule_and_memory_are_the_class_too() -> None:
    for name, found in {
        "memory/titans_linear": "ii-mom", "memory/titans": "iv-b", "memory/sphere": "iv-d",
        "memory/memora": "vi", "memory/attend": "vii", "memory/mesa": "iii", "memory/comba": "ii",
        "memory/continuum": "v", "memory/surprise_gate": "iv-a", "memory/hgrn2": "i",
    }.items():  # fmt: skip
        assert re.search(rf"^ +class +{found}: ", page(name), re.M), name
    learned = "state M : matrix(n, n); objective sum((M(k) - v)^2); learn adam(); read M(k)"
    told = explain(check_text(f"nl 1\nmemory a(k[n], v[n]) {{ {learned} }}\n"))
    assert "class      v: `adam` is not linear in the gradient" in told


def test_the_command_writes_each_form(capsys: pytest.CaptureFixture[str]) -> None:
    for form, start in {"text": "memory delta(", "latex": r"\section*{", "json": "{"}.items():
        assert main(["explain", "memory/delta", "--format", form]) == 0
        assert capsys.readouterr().out.startswith(start)


def test_states_are_counted_by_hand() -> None:
    spec = nlc.load("deltanet", width=16, heads=2, depth=3)
    # three layers of two heads of 8 x 8; three convolutions that keep three ticks of 16
    assert "mixer           384 (1.5 KiB) a sequence: delta.M 384" in explain(spec)
    assert "pasts           432 (1.688 KiB) a sequence" in explain(spec)


def test_latex_has_the_rule() -> None:
    text = explain(check_file("memory/gated_delta"), "latex")
    assert r"M = \alpha\, M (I - \beta\, k k^\top) + \beta\, v k^\top" in text
    assert r"e_{1} = W_{2}^\top\, e_{2}" in explain(nlc.load("hope"), "latex")


def test_what_is_used_twice_in_a_long_rule_is_named_once() -> None:
    text = page("optim/muon")
    assert len(text) < 2000 and "t2 = transpose(t1) @ t1" in text


def test_a_memory_between_declarations() -> None:
    body = "state M : matrix(n, n); objective -dot(M(x), x); learn gradient(rate = 2); read M(x)"
    text = f"nl 1\nmemory a(x[n]) {{ {body} }}\n"
    assert "M = M + 2 * x x'" in explain(check_text(text))


def test_no_torch_is_imported() -> None:
    code = "import sys, nlc; from nlc.explain import explain; explain(nlc.load('hope'));"
    code += "assert not {'torch', 'sympy', 'networkx'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_crosses_a_start_that_is_learned_while_the_stream_runs() -> None:
    text = page("cms_nested")
    assert "at each reset (every 128 tokens) fast starts from what mid has learned" in text
    assert "mid learns these by its own rule every 128 tokens, by the losses since, through" in text
    told = re.sub(r"\s+", " ", text)
    assert "through every inner update of fast, and through the inner gradients" in told


def test_how_a_box_is_run_is_what_the_plan_says() -> None:
    """Where another body names a state at each tick, no chunk is longer than a token; and none is
    longer than the time between two firings by the model's own loss.
    """
    told = re.sub(r"\s+", " ", page("sleep"))
    assert "(class ii); one token at a time, for `awake.M` is used elsewhere" in told
    assert re.search(r"C\^2 = [\d,]+ FLOPs a token, in each of 4 memories \([^)]*C = 1\)", told)
    alone = re.sub(r"\s+", " ", page("deltanet"))
    assert "C = 32" in alone and "at a time" not in alone
    short = re.sub(r"\s+", " ", explain(nlc.load("hope", periods=[4, 64])))
    assert "at most 4 tokens at a time, for `cms[4]` fires every 4 tokens" in short
    assert "at a time" not in page("hope")


def test_who_learns_a_start_of_a_start() -> None:
    text = page("cms_nested")
    assert "so do the starts that slow learns for others: layers.{}.fast.continuum.F," in text
    assert "layers.{}.mid.continuum.F@slow" in text
    told = page("learned_optimizer")
    assert "it alone trains student.learned_rule.write.linear, student.learned_rule" in told


SCANS = {
    "linear_attention": "fla.ops.simple_gla.chunk_simple_gla",
    "gla": "fla.ops.gla.chunk_gla",
    "delta": "fla.ops.delta_rule.chunk_delta_rule",
    "gated_delta": "fla.ops.gated_delta_rule.chunk_gated_delta_rule",
    "kda": "fla.ops.kda.chunk_kda",
    "momentum_delta": "",
    "retention": "fla.ops.simple_gla.chunk_simple_gla",
}


@pytest.mark.parametrize("name", SCANS)
def test_the_kernel_that_is_named_is_the_one_that_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scan asks for when it runs."""
    asked: list[str] = []

    def takes(scan: fla.Scan) -> bool:
        asked.append(".".join(scan.kernel() or ()))
        return False

    monkeypatch.setattr(fla, "takes", takes)
    memory = nlc.memory(name)
    streams = {p.name.id: torch.rand(1, 3, 1, *[4] * len(p.dims)) for p in memory.declared.streams}
    memory(**streams)
    assert asked == [SCANS[name]] * len(asked) and bool(asked) == bool(SCANS[name])
    told = re.sub(r"\s+", " ", explain(memory.spec(**streams)))
    assert (f"on GPU `{SCANS[name]}` where flash-linear" in told) == bool(SCANS[name])
    gates = name in ("gla", "kda")
    assert ("else kernels of backends/triton" in told) == (bool(SCANS[name]) and not gates)


def test_other_boxes_say_what_runs_them_on_cuda() -> None:
    for name, said in (
        ("attend", "on GPU torch's scaled_dot_product_attention"),
        ("titans", "on GPU kernels of backends/triton, where Triton is installed"),
        ("rwkv7", "on GPU torch's operations"),
    ):
        assert said in re.sub(r"\s+", " ", explain(check_file(f"memory/{name}")))


def test_a_gradient_that_is_autograds_has_a_class_that_says_so() -> None:
    text = (
        "nl 1\nmemory odd(q[n], k[n], v[n], eta) {\n  state M : matrix(n, n) = normal(1)\n"
        "  objective sum(qr(M) @ v * k)\n  learn gradient(rate = eta)\n  read M(q)\n}\n"
    )
    page = re.sub(r"\s+", " ", explain(check_text(text)))
    assert (
        "class not known: its gradient is autograd's: no rule gives the derivative of `qr`" in page
    )


def written(objective: str, form: str = "matrix(n, m)", rule: str = "gradient(rate = eta)") -> str:
    text = (
        f"nl 1\nmemory a(k[n], v[m], q[n], alpha, eta) {{ state M : {form}\n"
        f"retain alpha\nobjective {objective}\nlearn {rule}\nread M(q) }}\n"
    )
    return re.sub(r"\s+", " ", explain(check_text(text)))


def test_the_slope_of_a_length_is_of_its_own_power() -> None:
    assert "e = sign(r) * (abs(r) / length(r, 3))^2" in written("length(M(k) - v, 3)")
    assert "e = sign(r) gradient" in written("length(M(k) - v, 1)")
    x, p = torch.randn(5, dtype=torch.float64, requires_grad=True), 3
    size = torch.linalg.vector_norm(x, p)
    (slope,) = torch.autograd.grad(size, x)
    assert torch.allclose(slope, x.sign() * (x.abs() / size) ** (p - 1), rtol=1e-12)


def test_a_network_that_is_retained_first_is_asked_as_it_is_then() -> None:
    text = written("sum((M(k) - v)^2) after retain", "mlp(n, 5, m)")
    assert "a1 = kept.W1 @ k" in text and "e1 = kept.W2' @ e2 * gelu_slope(a1)" in text
    assert "dL/dkept.W1 = e1 k'" in text and "W1 = kept.W1 - eta * e1 k'" in text
    assert "a1 = W1 @ k" in written("sum((M(k) - v)^2)", "mlp(n, 5, m)")


def test_why_an_error_on_the_retained_state_runs_tick_by_tick() -> None:
    text = written("sum((M(k) - v)^2) after retain", rule="dgd(rate = eta)")
    assert "`after retain` of `M` with `dgd` has no parallel form" in text


def of_objective(objective: str, retain: str = "") -> str:
    body = f"state M : matrix(n, n); objective {objective}; {retain} learn gradient(rate = beta)"
    text = f"nl 1\nmemory t(q[n], k[n], v[n], beta) {{ {body}; read M(q) }}\n"
    return explain(check_text(text, "t.nl", ROOT, {}))


def test_each_call_of_a_memory_has_its_jacobian() -> None:
    page_ = of_objective("sum((M(k) - v)^2) / 2 + sum((M(q) - v)^4)")
    assert "Jacobian   de1/da1 = I\n               de2/da2 = diag(12 * (a2 - v)^2)" in page_
    nested = of_objective("sum((M(tanh(M(k))) - v)^2) / 2")
    assert nested.count("Jacobian") == 1 and "de2/da2 = I" in nested and "de1/da1" not in nested


def test_what_counts_for_nothing_is_not_written() -> None:
    page_ = of_objective("-dot(M(k), v)", "retain 1 through softmax;")
    assert "a step minimises KL(X, old) beside rate" in page_
    assert "what two duals differ by stays as it is" in page_ and "* 0" not in page_
    page_ = of_objective("-dot(M(k), v)", "retain 0.9 through softmax;")
    assert "0.9 * KL(X, old) + 0.1 * sum(X * log(X))" in page_
    assert "what two duals differ by is multiplied by 0.9" in page_ and "* 0" not in page_
