"""Rules that a box fires with, tick by tick or at the end of a period: those that ask for their
examples, several steps on the same data, sums across arrays; each equal to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_random import Case, agrees

import nlc
from nlc.backends.ops.nearest import nearest
from nlc.verify.properties import later_tokens, other_samples
from nlc.verify.streams import random_streams, run_of

USED = ("gradient", "momentum", "dgd", "adam", "adamw", "muon", "delta_momentum")

SYSTEM = """nl 1
{uses}
{define}
system test(vocab = 11, width = 8) {{
  level training every step {{
    objective loss
    learn gradient(rate = 0.01)
  }}
  level mem(x[n]) {clock} {{
    q = split(linear(x, n), 2)
    k = unit(split(linear(x, n), 2))
    v = split(linear(x, n), 2)
    alpha = sigmoid(linear(x, 2) + 2)
    eta = 0.3 * sigmoid(linear(x, 2))
    a = sigmoid(split(linear(x, n), 2))
    {body}
  }}
  transfer backprop mem -> training
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    x = x + mem(x)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""

CALL = "read join(a * r(q, k, v, alpha, eta, a) * column(alpha * eta))"


def memory(form: str, *lines: str) -> str:
    own = "\n".join(f"  {line}" for line in (f"state M : {form}", *lines, "read M(q)"))
    return f"memory r(q[n], k[n], v[n], alpha, eta, a[n]) {{\n{own}\n}}"


LEVEL = """
    {state} {{
      objective {objective}
      retain alpha
      learn {rule}
    }}
    read join(a * M(q) * column(alpha * eta))"""

SQUARE = "objective sum((M(k) - v)^2) / 2"
ROUGH = "objective sum(smooth_abs(M(k) - v)^3)"
CLIP = "grad * min(1, 0.05 / (sqrt(across(sum(grad^2))) + 1e-6))"

CASES = {
    "dgd, one number a value channel": (
        memory("matrix(n, n)", SQUARE, "retain column(a)", "learn dgd(rate = eta)"), CALL,
    ),
    "dgd, after retain": (
        memory("matrix(n, n)", SQUARE + " after retain", "retain alpha", "learn dgd(rate = eta)"),
        CALL,
    ),
    "dgd onto a sphere": (
        "def same(A, start) { return A * column(length(start) / length(A)) }\n"
        + memory("residual(mlp(n, 2*n))", ROUGH, "retain 1 onto same", "learn dgd(rate = eta)"),
        CALL,
    ),
    "dgd on a window": (
        memory(
            "matrix(n, n)", "objective sum((M(past(k, 3)) - past(v, 3))^2) / 2",
            "retain column(a)", "learn dgd(rate = eta / 3)",
        ), CALL,
    ),
    "dgd on two calls": (
        memory(
            "matrix(n, n)", "objective sum((M(k) - v)^2) / 2 - dot(M(a), q) / 4",
            "retain column(a)", "learn dgd(rate = eta)",
        ), CALL,
    ),
    "dgd every 4 tokens": (
        memory("matrix(n, n)", SQUARE, "retain alpha", "learn dgd(rate = eta)"),
        CALL, "every 4 tokens",
    ),
    "dgd every 3 tokens from the second, on a window": (
        memory(
            "matrix(n, n)", "objective sum((M(past(k, 2)) - past(v, 2))^2) / 2",
            "learn dgd(rate = eta / 4)",
        ), CALL, "every 3 tokens from 2",
    ),
    "dgd, once every 4 tokens": (
        memory("residual(mlp(n, 2*n))", SQUARE + " once", "learn dgd(rate = eta)"),
        CALL, "every 4 tokens",
    ),
    "dgd with momentum of heads": (
        "", LEVEL.format(state="state M : matrix(4, 4) per 2", objective=SQUARE[10:],
                         rule="dgd_momentum(rate = 0.1, keep = 0.8)"), "every 2 tokens",
    ),
    "dgd of heads, every token": (
        "", LEVEL.format(state="state M : matrix(4, 4) per 2", objective=ROUGH[10:],
                         rule="dgd_proximal(rate = eta)"), "every token",
    ),
    "two steps, one number a value channel": (
        memory("matrix(n, n)", ROUGH, "retain column(a)", "learn gradient(rate = eta, steps = 2)"),
        CALL,
    ),
    "three steps of Adam, after retain": (
        memory(
            "residual(mlp(n, 2*n))", ROUGH + " after retain", "retain alpha",
            "learn adamw(rate = eta / 10, steps = 3)",
        ), CALL,
    ),
    "two steps of momentum at a chunk's start, in the dual": (
        memory(
            "matrix(n, n)", ROUGH, "retain alpha through softmax",
            "learn momentum(rate = eta, keep = 0.5, steps = 2)", "linearise every 4 tokens",
        ), CALL,
    ),
    "two steps of dgd on a window": (
        memory(
            "matrix(n, n)", "objective sum((M(past(k, 3)) - past(v, 3))^2) / 2",
            "retain column(a)", "learn dgd(rate = eta / 3, steps = 2)",
        ), CALL,
    ),
    "two steps on a window": (
        memory(
            "matrix(n, n)", "objective sum((M(past(k, 3)) - past(v, 3))^2) / 2",
            "learn gradient(rate = eta / 3, steps = 2)",
        ), CALL,
    ),
    "a window at a chunk's start": (
        memory(
            "residual(mlp(n, 2*n))", "objective sum((M(past(k, 3)) - past(v, 3))^2) / 2",
            "retain alpha", "learn gradient(rate = eta / 3)", "linearise every 4 tokens",
        ), CALL,
    ),
    "clipped across the layers": (
        memory("mlp(n, 2*n)", ROUGH, "retain alpha", f"learn adam(rate = eta / 10, grad = {CLIP})"),
        CALL, "every 3 tokens",
    ),
    "clipped across heads, two steps": (
        "", LEVEL.format(state="state M : matrix(4, 4) per 2", objective=ROUGH[10:],
                         rule=f"gradient(rate = eta, grad = {CLIP}, steps = 2)"), "every token",
    ),
    "implicit, a rate for each value channel": (
        memory("matrix(n, n)", ROUGH, "retain alpha", "learn implicit(rate = 3 * column(a))"), CALL,
    ),
    "implicit, one number a value channel": (
        memory("matrix(n, n)", SQUARE, "retain column(a)", "learn implicit(rate = eta)"), CALL,
    ),
    "implicit Huber, a step that has to be halved": (
        memory(
            "matrix(n, n)", "e = 0.2",
            "objective sum(where(abs(M(k) - v) <= e, (M(k) - v)^2 / 2, e * smooth_abs(M(k) - v)))",
            "retain alpha", "learn implicit(rate = 40 * eta)",
        ), CALL,
    ),
    "implicit on a window and a ridge": (
        memory(
            "matrix(n, n)",
            "objective sum(smooth_abs(M(past(k, 3)) - past(v, 3))^1.5) + sum(M^4) - dot(M(a), q)",
            "retain alpha", "learn implicit(rate = eta)",
        ), CALL,
    ),
    "implicit on a window and two calls, onto rows of length one": (
        memory(
            "matrix(n, n)",
            "objective sum(smooth_abs(M(past(k, 3)) - past(v, 3))^1.5) - dot(M(a), q)",
            "retain alpha onto unit", "learn implicit(rate = eta)",
        ), CALL,
    ),
    "implicit on a network": (
        memory("mlp(n, n)", SQUARE, "retain alpha", "learn implicit(rate = eta)"), CALL,
    ),
    "implicit on a norm of heads": (
        "", LEVEL.format(state="state M : residual(layernorm(matrix(4, 4))) per 2 = normal(0.5)",
                         objective=SQUARE[10:], rule="implicit(rate = eta / 4)"), "every token",
    ),
    "implicit, once every 3 tokens": (
        memory("mlp(n, n)", SQUARE + " once", "retain alpha", "learn implicit(rate = eta)"), CALL,
        "every 3 tokens from 2",
    ),
    "two steps on the window of a period": (
        memory(
            "residual(mlp(n, 2*n))", "objective sum((M(past(k, 4)) - past(v, 4))^2) / 2 once",
            "retain column(a)", "learn momentum(rate = eta / 4, keep = 0.5, steps = 2)",
        ), CALL, "every 4 tokens",
    ),
    "implicit of a vector, beside": (
        memory(
            "matrix(n, n)", "state b : vector(n) {", "  objective sum((v - b)^4)",
            "  learn implicit(rate = eta)", "}", "objective sum((M(k) - v + b)^2) / 2",
            "retain alpha", "learn gradient(rate = eta)",
        ), CALL,
    ),
}  # fmt: skip


def written(name: str, place: Path) -> Path:
    define, body, clock = (*CASES[name], "every token")[:3]
    uses = [o for o in USED if f"{o}(" in define + body] + ["dgd"] * ("dgd_" in define + body)
    text = SYSTEM.format(
        uses="\n".join(f'use "optim/{o}"' for o in dict.fromkeys(["gradient", *uses])),
        define=define,
        body=body,
        clock=clock,
    )
    path = place / "case.nl"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_the_reference(name: str, tmp_path: Path) -> None:
    """Outputs and every gradient; the same in any split, whatever the other sample holds."""
    spec = nlc.load(written(name, tmp_path))
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    truth = nlc.reference(spec, model.state_dict())
    wanted, _ = truth(tokens)
    found, _ = model(tokens)
    assert near(found, wanted) < 1e-9

    loss, counted, _ = model.losses(tokens)
    loss[counted].mean().backward()  # type: ignore[no-untyped-call]
    for path, gradient in truth.gradients(tokens).items():
        weight = dict(model.named_weights())[path]
        if gradient.abs().max() > 1e-12:
            assert weight.grad is not None, path
            assert near(weight.grad, gradient) < 1e-9, path

    state, parts = None, []
    for part in torch.split(tokens, [1, 2, 1, 5], 1):
        with torch.no_grad():
            answer, state = model(part, state)
        parts.append(answer)
    assert near(torch.cat(parts, 1), wanted) < 1e-9
    streams = random_streams(spec.system, 2, 9)
    with torch.no_grad():
        assert later_tokens(run_of(model), spec.system, streams).value == 0
        assert other_samples(run_of(model), spec.system, streams).value == 0


BESIDE = """nl 1
system test(n = 3) {{
  level training every step {{ objective loss; learn adamw(rate = 0.05) }}
  level fast(x[2, n], r) every token {{
    {resets}
    state W : matrix(n, n) per 2 = normal(0.5)
    state c : vector(n) per 2 {{ {other} }}
    objective sum((W(x) - c)^2)
    learn {rule}
    read join(W(x) + c)
  }}
  transfer backprop fast -> training
  flow(x[6], r) {{
    z = fast(split(linear(x, 6), 2), r)
    loss = sum((z - next(x))^2)
    return z
  }}
}}
"""
SET = "set 0.5 * c + 0.5 * x"
ONE_RATE = {
    "of an input": (SET, "gradient(rate = sigmoid(r))"),
    "of a mean, from a reset on": (
        SET, "gradient(rate = sigmoid(mean(x)))", "reset every 4 tokens",
    ),
    "beside what is written": ("retain 0.5; write 0.3 * x", "gradient(rate = sigmoid(r))"),
    "of a vector too": (
        "objective sum((c - x)^2); learn gradient(rate = sigmoid(r))",
        "momentum(rate = sigmoid(r), keep = sigmoid(mean(x)))",
    ),
    "of what the rule keeps": (SET, "adamw(rate = sigmoid(r) / 10, shrink = sigmoid(r))"),
    "for each channel": (SET, "gradient(rate = column(sigmoid([1, 2, 3] * r)))"),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_RATE)
def test_one_number_is_the_rate_of_all_heads(name: str, tmp_path: Path) -> None:
    other, rule, resets = (*ONE_RATE[name], "")[:3]
    uses = 'use "optim/momentum"\n' if "momentum" in rule else ""
    text = BESIDE.format(resets=resets, other=other, rule=rule).replace("nl 1\n", f"nl 1\n{uses}")
    path = tmp_path / "case.nl"
    path.write_text(text)
    spec = nlc.load(path)
    model = nlc.compile(spec, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 6, generator=draw, dtype=torch.float64)
    r = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    wanted, _ = truth({"x": x, "r": r})
    assert near(model(x, r)[0], wanted) < 1e-9

    loss, counted, _ = model.losses(x, r)
    losses, known = truth.losses({"x": x, "r": r})
    assert torch.equal(counted, known) and near(loss, losses) < 1e-9
    loss[counted].mean().backward()  # type: ignore[no-untyped-call]
    weights = dict(model.named_weights())
    for weight, gradient in truth.gradients({"x": x, "r": r}).items():
        found = weights[weight].grad
        assert found is not None and near(found, gradient) < 1e-9, weight

    state, parts = None, []
    for at in torch.split(torch.arange(7), [1, 3, 1, 2]):
        with torch.no_grad():
            answer, state = model(x[:, at], r[:, at], state)
        parts.append(answer)
    assert near(torch.cat(parts, 1), wanted) < 1e-9


KINK = memory(
    "matrix(n, n)", "objective length(M(k) - v)", "retain alpha", "learn implicit(rate = eta)"
)


def test_a_kink_is_told_by_both(tmp_path: Path) -> None:
    """The least lies where the length has no slope: no number is made up."""
    CASES["kink"] = (KINK.replace("= eta)", "= 10)"), CALL)
    spec = nlc.load(written("kink", tmp_path))
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    for run in (model, nlc.reference(spec, model.state_dict())):
        with pytest.raises(ArithmeticError, match="Newton's method: its objective has a kink"):
            run(tokens)


def test_no_second_derivative_of_a_solution_in_silence(tmp_path: Path) -> None:
    name = "implicit, a rate for each value channel"
    model = nlc.compile(nlc.load(written(name, tmp_path)), dtype=torch.float64)
    answer, _ = model(torch.arange(5)[None])
    weight = next(p for n, p in model.named_weights() if n == "mem.k.linear")
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(answer.sum(), weight, create_graph=True)


# ---- the solver by itself ------------------------------------------------------------------------


SOFT = 1e-6


def slope_of(r: torch.Tensor, p: float) -> torch.Tensor:
    """Of sqrt(r^2 + SOFT)^p / p."""
    slope: torch.Tensor = (r.square() + SOFT) ** (p / 2 - 1) * r
    return slope


def power_errors(
    k: torch.Tensor, v: torch.Tensor, p: float
) -> Callable[[torch.Tensor], tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
    def errors(m: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        r = k @ m.mT - v
        return ((r.square() + SOFT) ** (p / 2) / p).sum((-2, -1)), (slope_of(r, p),)

    return errors


@settings(max_examples=40, deadline=None)
@given(
    p=st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]),
    rate=st.floats(0.01, 100.0),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_the_nearest_is_that_of_bisection(p: float, rate: float, seed: int, scale: float) -> None:
    """Of one pair and an error of each coordinate, a monotone equation in one number."""
    draw = torch.Generator().manual_seed(seed)
    k = torch.randn(3, 1, 4, generator=draw, dtype=torch.float64)
    v = scale * torch.randn(3, 1, 5, generator=draw, dtype=torch.float64)
    kept = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
    (found,) = nearest(power_errors(k, v, p), (kept,), (rate,), (k,), 1, 1)

    met = rate * k.square().sum(-1, keepdim=True)
    start = k @ kept.mT - v
    low, high = -start.abs(), start.abs()
    for _ in range(200):
        middle = (low + high) / 2
        over = middle - start + met * slope_of(middle, p) > 0
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    residual = (low + high) / 2
    wanted = kept - rate * slope_of(residual, p).mT @ k
    assert near(found, wanted) < 1e-9


def test_a_sample_is_solved_by_itself() -> None:
    """What another sample holds, no number included, changes not a bit."""
    draw = torch.Generator().manual_seed(0)
    k = torch.randn(3, 1, 4, generator=draw, dtype=torch.float64)
    v = torch.randn(3, 1, 5, generator=draw, dtype=torch.float64)
    kept = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)

    def run(n: int) -> torch.Tensor:
        found = nearest(power_errors(k[:n], v[:n], 3.0), (kept[:n],), (0.7,), (k[:n],), 1, 1)
        made: torch.Tensor = found[0]
        return made

    alone = run(1)
    v[1] *= 50
    v[2, 0, 1] = torch.nan
    together = run(3)
    assert torch.equal(together[:1], alone)
    assert together[1].isfinite().all() and not together[2].isfinite().all()


def near(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert wanted.abs().max() > 0
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


COUNTED = """nl 1
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level l(x) {clock} {{
    state M : {form} = normal(0.3)
    objective sum((M(x) - 1)^2)
    {rule}
    read M(x)
  }}
  transfer backprop l -> training
  flow(x[3]) {{ y = l(linear(x, 3)); loss = sum(y^2); return y }}
}}
"""


@pytest.mark.parametrize("form", ["matrix(3, 3)", "mlp(3, 4)"])
@pytest.mark.parametrize("reset", ["", "; reset every 4 tokens"])
@pytest.mark.parametrize(
    "rule",
    [
        "learn gradient(rate = 0.2 / count)",
        "learn momentum(rate = 0.2 / count, keep = 1 - 1 / count)",
        "learn gradient(rate = 0.2 / count); linearise every 4 tokens",
        "learn gradient(rate = 0.2, grad = grad / count)",
    ],
)
def test_a_rate_that_counts_firings(form: str, reset: str, rule: str) -> None:
    text = COUNTED.format(clock="every token", form=form, rule=rule + reset)
    assert agrees(Case(text, 9, [2, 5]))


def test_a_count_of_firings_is_none_of_steps() -> None:
    rule = "learn gradient(rate = 0.2 / count, steps = 2)"
    text = COUNTED.format(clock="every token", form="matrix(3, 3)", rule=rule)
    with pytest.raises(nlc.SpecError, match=r"`count` in a line of `steps = 2`"):
        nlc.compile(nlc.load(text))
