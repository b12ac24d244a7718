"""What `nlc explain` says, measured: each bound from both sides, each closed form beside what it
claims to be the least of, each count beside torch's own.

The steps that are measured are the spec's own words: autograd on the objective as it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_derive import BINARY, FORMS, OBJECTIVES, memory, value
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nlc
from nlc.backends.ops import attention, least_squares, recurrence
from nlc.backends.reference import Reference
from nlc.backends.torch_source import solved
from nlc.derive import gradient
from nlc.driver import check_file, check_text
from nlc.explain import cost as counted
from nlc.explain import explain
from nlc.explain.bounds import Interval, Scope
from nlc.explain.boxes import lowered
from nlc.explain.derived import Derived
from nlc.explain.memories import weighted
from nlc.explain.slopes import Kind
from nlc.explain.stability import Contraction, contraction
from nlc.explain.tidy import Tidy, tidied
from nlc.resolve import resolve
from nlc.rules import Example
from nlc.show import Writer
from nlc.system import Box, State, Term

BINARY.setdefault("outer", torch.outer)
Env = Mapping[Any, Tensor]
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(17 * seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# ---- a memory by the words of its spec -----------------------------------------------------------


def alone(text: str) -> Box:
    checked = check_text(text) if "\n" in text else check_file(text)
    assert checked.syntax is not None and not checked.errors, checked.diagnostics
    return next(b for b in resolve(checked.syntax).alone if b.kind == "memory")


def written(objective: str, rule: str = "gradient(rate = eta)", retain: str = "alpha") -> Box:
    return alone(
        "nl 1\nmemory a(k[n], v[n], q[n], alpha, eta, mu, delta) { state M : matrix(n, n)\n"
        f"objective {objective}\nretain {retain}\nlearn {rule}\nread M(q) }}\n"
    )


def explained(box_or_name: str) -> str:
    text = explain(check_file(box_or_name))
    return re.sub(r"\s+", " ", text)


def numbers(term: Term, env: Env) -> Tensor:
    """A term; `|x|^2` too."""
    if term.op == "squares":
        return value(term.args[0], env).square().sum(-1)
    known = {id(a): numbers(a, env) for a in term.args if has_squares(a)}
    if not known:
        return value(term, env)
    names = {i: f"known {i}" for i in known}
    args = tuple(
        Term("input", (), a.shape, names[id(a)]) if id(a) in known else a for a in term.args
    )
    inner = Term(term.op, args, term.shape, term.info)
    return value(inner, {**env, **{names[i]: x for i, x in known.items()}})


def has_squares(term: Term) -> bool:
    return any(t.op == "squares" for t in term.walk())


@dataclass
class Memory:
    """One state of a box, fired by autograd: S = mu S - rate grad, W = keep W + S."""

    box: Box

    @property
    def state(self) -> State:
        return self.box.states[0]

    def step(self, W: Tensor, S: Tensor, env: Env) -> tuple[Tensor, Tensor]:
        rule = self.state.rule
        keep = number(1.0) if rule.retain is None else value(rule.retain, env)
        kept = keep * W
        if rule.write is not None:
            at = kept if rule.after_retain else W
            return kept + value(rule.write, self.own(env, at)), S
        (learn,) = rule.learn.values()
        settings = {n: value(t, env) for n, t in learn.settings.items()}
        if learn.rule == "implicit":
            return self.implicit(kept, env, settings.get("rate", number(1.0))), S
        grad = self.gradient(self.read(kept if rule.after_retain else W), env)
        S = settings.get("keep", number(0.0)) * S - settings["rate"] * grad
        return kept + S, S

    def read(self, W: Tensor) -> Tensor:
        """`through`: the state that stands for a dual."""
        through = self.state.rule.through
        if through is None:
            return W
        (link,) = through.values()
        body = Tidy().of(link.body)
        (x,) = {t for t in body.walk() if t.op == "argument"}
        return value(replaced(body, x, Term("input", (), x.shape, "A")), {"A": W})

    def own(self, env: Env, W: Tensor) -> Env:
        return {**env, "": W, self.state.name: W}

    def gradient(self, W: Tensor, env: Env) -> Tensor:
        objective = self.state.rule.objective
        assert objective is not None
        found: Tensor = torch.func.grad(lambda w: value(objective, self.own(env, w)))(W)
        return found

    def implicit(self, kept: Tensor, env: Env, rate: Tensor) -> Tensor:
        """The minimum of a quadratic, from its gradient and Hessian at `kept`."""

        def slope(w: Tensor) -> Tensor:
            return self.gradient(w, env) + (w - kept) / rate

        hessian = torch.func.jacrev(slope)(kept).reshape(kept.numel(), -1)
        change: Tensor = torch.linalg.solve(hessian, slope(kept).flatten())
        return kept - change.view_as(kept)


def replaced(term: Term, old: Term, new: Term) -> Term:
    if term is old:
        return new
    args = tuple(replaced(a, old, new) for a in term.args)
    return Term(term.op, args, term.shape, term.info, term.form)


def streams(box: Box, seed: int = 0, **given: float | Tensor) -> dict[Any, Tensor]:
    env: dict[Any, Tensor] = {}
    for i, (name, shape) in enumerate(box.inputs):
        x = random(*shape, seed=seed + i)
        env[name] = x if name in "qkvp" else torch.sigmoid(x)
    return env | {n: x if isinstance(x, Tensor) else number(x) for n, x in given.items()}


def states(box: Box, seed: int = 0) -> Tensor:
    (array,) = box.states[0].form.arrays
    return random(*array.shape, seed=seed + 50)


# ---- what two states differ by -------------------------------------------------------------------

STRAIGHT = [
    "memory/linear_attention", "memory/retention", "memory/delta", "memory/gated_delta",
    "memory/gla", "memory/kda", "memory/oja", "memory/longhorn", "memory/retnet", "memory/mamba2",
]  # fmt: skip


def step_of(name: str) -> tuple[Memory, Contraction]:
    box = alone(name)
    return Memory(box), contraction(Derived(box, box.states[0]))


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("seed", range(3))
def test_what_two_states_differ_by_is_multiplied_as_said(name: str, seed: int) -> None:
    memory, c = step_of(name)
    env = streams(memory.box, seed)
    a, b = states(memory.box, seed), states(memory.box, seed + 1)
    none = torch.zeros_like(a)
    after = memory.step(a, none, env)[0] - memory.step(b, none, env)[0]
    keep, s = numbers(c.keep, env), numbers(c.strength, env)
    D = a - b
    wanted = keep * D
    if c.key is not None and bool((s != 0).any()):
        k = value(c.key, env)
        met = (keep * D if c.after else D) @ k
        share = s / (1 + s) if c.implicit else s
        met = keep * met if c.implicit else met
        wanted = wanted - torch.outer(share * met, k) / k.square().sum()
    assert torch.allclose(after, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [*STRAIGHT, "memory/titans_linear", "memory/momentum_delta", "memory/huber", "memory/lp",
     "memory/huber_norm", "memory/comba", "memory/elastic_ftrl"],
)  # fmt: skip
def test_the_steps_that_are_measured_are_the_interpreters(name: str) -> None:
    memory = Memory(alone(name))
    box, ticks = memory.box, 4
    inputs = ", ".join(f"{n}[{', '.join(map(str, s))}]" if s else n for n, s in box.inputs)
    names = ", ".join(n for n, _ in box.inputs)
    called = f"level m({inputs}) every token {{ read {box.name}({names}) }}"
    flow = f"flow({inputs}) {{ return m({names}) }}"
    checked = check_text(f'nl 1\nuse "{name}"\nsystem one() {{\n{called}\n{flow}\n}}\n')
    assert checked.system is not None, checked.diagnostics
    each = [streams(box, seed=10 * t) for t in range(ticks)]
    data = {n: torch.stack([e[n] for e in each])[None] for n, _ in box.inputs}
    answers, _ = Reference(checked.system)(data)
    (array,) = box.states[0].form.arrays
    W = S = torch.zeros(array.shape, dtype=torch.float64)
    assert box.read is not None
    for t in range(ticks):
        W, S = memory.step(W, S, each[t])
        wanted = value(box.read, memory.own(each[t], memory.read(W)))
        assert torch.allclose(answers[0, t], wanted, rtol=1e-9, atol=1e-10)


def spectral_radius(memory: Memory, W: Tensor, env: Env) -> float:
    """Of the derivative of one step of (S, W)."""

    def step(x: Tensor) -> Tensor:
        s, w = x.chunk(2)
        w, s = memory.step(w.view_as(W), s.view_as(W), env)
        return torch.cat((s.flatten(), w.flatten()))

    jacobian = torch.func.jacrev(step)(torch.cat((torch.zeros_like(W).flatten(), W.flatten())))
    return float(torch.linalg.eigvals(jacobian).abs().max())


def growth(memory: Memory, W: Tensor, env: Env) -> float:
    """The largest that one step multiplies a small difference by."""

    def step(w: Tensor) -> Tensor:
        return memory.step(w.view_as(W), torch.zeros_like(W), env)[0].flatten()

    return float(torch.linalg.matrix_norm(torch.func.jacrev(step)(W.flatten()), 2))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(
    ("name", "said", "rate", "bound"),
    [
        ("memory/delta", "if and only if 0 < beta * |k|^2 < 2", "beta", lambda a: 2.0),
        (
            "memory/gated_delta",
            "if and only if |alpha * (1 - beta * |k|^2)| < 1",
            "beta",
            lambda a: 1 + 1 / a,
        ),
        ("memory/elastic", "alpha - 1 < 2 * eta * |k|^2 < alpha + 1", "eta", lambda a: (1 + a) / 2),
        ("memory/huber", "0 <= eta * |k|^2 <= 1 + alpha", "eta", lambda a: 1 + a),
        ("memory/huber_norm", "0 <= eta * |k|^2 <= 1 + alpha", "eta", lambda a: 1 + a),
    ],
)
def test_one_step_shrinks_inside_the_bound_and_grows_outside(
    name: str, said: str, rate: str, bound: Callable[[float], float], side: int
) -> None:
    """In one dimension there is nothing across the key. Errors are small: Huber's slope is 1."""
    assert said in explained(name)
    memory = Memory(alone(name))
    alpha = 0.9
    env = {n: random(*s, seed=i) for i, (n, s) in enumerate(memory.box.inputs)}
    env |= {"alpha": number(alpha), "delta": number(1e6), "k": random(8, seed=3)}
    size = float(env["k"].square().sum())
    for gap in (0.01, 0.1, 0.5):
        env[rate] = number((bound(alpha if "alpha" in dict(memory.box.inputs) else 1.0)) / size)
        env[rate] = env[rate] * (1 + side * gap)
        D = torch.outer(random(8, seed=5), env["k"])
        a = states(memory.box)
        none = torch.zeros_like(a)
        end = memory.step(a, none, env)[0] - memory.step(a + 1e-3 * D, none, env)[0]
        ratio = float(end.norm() / (1e-3 * D).norm())
        assert (ratio > 1) == (side > 0), ratio


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["memory/titans_linear", "memory/momentum_delta"])
def test_momentum_is_stable_inside_the_bound_alone(
    name: str, alpha: float, mu: float, side: int
) -> None:
    s = "alpha * eta * |k|^2" if name.endswith("delta") else "2 * eta * |k|^2"
    assert f"-(1 - alpha) * (1 - mu) < {s} < (1 + alpha) * (1 + mu)" in explained(name)
    assert "|alpha * mu| < 1" in explained(name)
    memory = Memory(alone(name))
    env = streams(memory.box, alpha=alpha, mu=mu, k=random(8, seed=3))
    size = float(env["k"].square().sum()) * (alpha if name.endswith("delta") else 2)
    env["eta"] = number((1 + alpha) * (1 + mu) / size * (1 + 0.01 * side))
    radius = spectral_radius(memory, states(memory.box), env)
    if alpha == 1.0 and side < 0:  # across the key nothing is forgotten
        assert radius == pytest.approx(1.0, abs=1e-6)
    else:
        assert (radius > 1) == (side > 0), radius
    env["eta"] = number(-(1 - alpha) * (1 - mu) / size - 0.01 * side / size)
    radius = spectral_radius(memory, states(memory.box), env)
    if mu < 1 and side > 0:
        assert radius > 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "objective",
    [
        "sum(where(abs(M(k) - v) <= delta, (M(k) - v)^2 / 2, delta * (abs(M(k) - v) - delta / 2)))",
        "sum(((M(k) - v)^2 + 0.01)^(1.5 / 2))",
        "sum(((M(k) - v)^2 + 0.01)^(1 / 2))",
        "sum(smooth_abs(M(k) - v))",
        "sum(softplus(M(k) * v))",
        "sum(where(M(k) > v, 2 * (M(k) - v)^2, (M(k) - v)^2))",
        "where(length(M(k) - v) <= delta, length(M(k) - v)^2 / 2, "
        "delta * (length(M(k) - v) - delta / 2))",
        "sum(abs(M(k) - v)^3)",
        "sum(delta * softplus(-v * M(k)))",
    ],
)
def test_slopes_lie_between_the_bounds(objective: str, seed: int) -> None:
    """All of them, and two distant states too (the mean value theorem)."""
    box = written(objective)
    d = Derived(box, box.states[0])
    (j,) = d.jacobians
    assert j.scale is not None
    env = streams(box, seed, delta=0.5)
    low = (numbers(j.scale, env) * j.slopes.low).expand(8)
    high = (numbers(j.scale, env) * j.slopes.high).expand(8)
    (e,) = d.examples
    for scale in (0.01, 1.0, 10.0):
        y, z = (scale * random(8, seed=seed + i) + env["v"] for i in (1, 2))
        J = torch.func.jacrev(lambda y: at_prediction(e, y, env))(y)
        found = torch.linalg.eigvalsh((J + J.T) / 2)
        assert float(found.min()) >= float(low.min()) - 1e-9
        assert float(found.max()) <= float(high.max()) + 1e-9
        gap = at_prediction(e, y, env) - at_prediction(e, z, env)
        if j.kind is Kind.BENDS:
            ratio = gap / (y - z)
            assert bool((ratio >= low - 1e-9).all()) and bool((ratio <= high + 1e-9).all())
        else:
            assert float(gap.norm()) <= float(high.max()) * float((y - z).norm()) + 1e-9


def at_prediction(e: Example, y: Tensor, env: Env) -> Tensor:
    """The surprise as a function of what the memory says."""
    term = replaced(e.surprise, e.output, Term("input", (), e.output.shape, "y"))
    return value(term, {**env, "y": y})


@pytest.mark.parametrize(
    "objective",
    [
        "where(length(M(k) - v) <= delta, sum((M(k) - v)^2), delta * sum(abs(M(k) - v)))",
        "sum(where(abs(M(k) - v) < 1, (M(k) - v)^2, abs(M(k) - v)))",
        "sum(sign(M(k) - v) * (M(k) - v))",
        "length(M(k) - v)",
        "sum(abs(M(k) - v))",
    ],
)
def test_an_error_that_jumps_has_no_bound(objective: str) -> None:
    box = written(objective)
    d = Derived(box, box.states[0])
    assert d.jacobians[0].scale is None
    text = explain(check_text(text_of(objective)))
    assert "not known: no bounds on the slope of the error are known" in text


def text_of(objective: str) -> str:
    return (
        "nl 1\nmemory a(k[n], v[n], q[n], alpha, eta, mu, delta) { state M : matrix(n, n)\n"
        f"objective {objective}\nretain alpha\nlearn gradient(rate = eta)\nread M(q) }}\n"
    )


@pytest.mark.parametrize("side", [-1, 1])
def test_an_eigenvalue_of_a_write_that_is_given(side: int) -> None:
    assert "its eigenvalues are alpha and, once, alpha - beta * dot(p, k)" in explained(
        "memory/comba"
    )
    memory = Memory(alone("memory/comba"))
    env = streams(memory.box, alpha=0.8)
    met = float(env["p"] @ env["k"])
    env["beta"] = number((1 + 0.8) / met * (1 + 0.01 * side))
    assert (spectral_radius(memory, states(memory.box), env) > 1) == (side > 0)


def test_a_dual_has_the_eigenvalues_that_are_said() -> None:
    """Of weights beyond the threshold the link's slope is 1, the largest."""
    text = explained("memory/elastic_ftrl")
    assert "all its eigenvalues between 1 - 2 * eta * |k|^2 and 1" in text
    memory = Memory(alone("memory/elastic_ftrl"))
    W = states(memory.box)
    for rate in (0.1, 0.7, 1.3):
        env = streams(memory.box, eta=rate)
        low = 1 - 2 * rate * float(env["k"].square().sum())

        def step(w: Tensor, env: Env = env) -> Tensor:
            return memory.step(w.view_as(W), torch.zeros_like(W), env)[0].flatten()

        found = torch.linalg.eigvals(torch.func.jacrev(step)(W.flatten())).real
        assert float(found.min()) == pytest.approx(low) and float(found.max()) <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_softmax_takes_duals_half_as_far_apart_at_most(seed: int) -> None:
    x = 3 * random(6, seed=seed)
    J = torch.func.jacrev(lambda a: torch.softmax(a, -1))(x)
    assert (
        float(torch.linalg.eigvalsh(J).max()) <= 0.5
        and float(torch.linalg.eigvalsh(J).min()) > -1e-12
    )
    J = torch.func.jacrev(lambda a: torch.softmax(a, -1))(number(0.0).expand(2).clone())
    assert float(torch.linalg.eigvalsh(J).max()) == pytest.approx(0.5)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("steps", [2, 3])
def test_several_steps_have_one_bound(steps: int, side: int) -> None:
    text = text_of("sum((M(k) - v)^2) / 2").replace(
        "(rate = eta)", f"(rate = eta, steps = {steps})"
    )
    text = text.replace("retain alpha\n", "")
    assert "it shrinks along k if and only if 0 < eta * |k|^2 < 2" in explain(check_text(text))
    memory = Memory(alone(text_of("sum((M(k) - v)^2) / 2").replace("retain alpha\n", "")))
    env = streams(memory.box)
    env["eta"] = number(2 / float(env["k"].square().sum()) * (1 + 0.05 * side))
    a, b = states(memory.box), states(memory.box) + torch.outer(random(8, seed=9), env["k"])
    gap = float((a - b).norm())
    for _ in range(steps):
        a, b = (memory.step(x, torch.zeros_like(x), env)[0] for x in (a, b))
    assert (float((a - b).norm()) > gap) == (side > 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", ["1", "alpha"])
@pytest.mark.parametrize("way", ["frozen", "window", "period"])
def test_pairs_that_are_added_up_have_one_bound(way: str, keep: str, seed: int) -> None:
    """Random keys below it never grow a difference; one key, again and again, does beyond it."""
    pairs = 4
    text = text_of("sum((M(k) - v)^2) / 2").replace("retain alpha", f"retain {keep}")
    if way == "frozen":
        text = text.replace("read M(q)", f"linearise every {pairs} tokens\nread M(q)")
    if way == "window":
        rows = f"sum((M(past(k, {pairs})) - past(v, {pairs}))^2) / 2"
        text = text.replace("sum((M(k) - v)^2) / 2", rows)
    page = explain(check_text(text))
    if way == "period":
        level = f"level a(k[8], v[8]) every {pairs} tokens {{ state M : matrix(8, 8)\n"
        level += f"objective sum((M(k) - v)^2) / 2\nretain {keep.replace('alpha', '0.8')}\n"
        level += "learn gradient(rate = 0.1)\nread M(k) }\n"
        page = explain(
            nlc.load(f"nl 1\nsystem s() {{\n{level}flow(k[8], v[8]) {{ return a(k, v) }} }}\n")
        )
    a = 1.0 if keep == "1" else 0.8
    top = 2.0 if a == 1 else a**0 if way == "frozen" else 1 + a
    shown = {"frozen": "1", "window": "1 + alpha", "period": "1.8"}[way] if a < 1 else "2"
    assert f"<= {shown}" in re.sub(r"\s+", " ", page)
    keys = random(pairs, 8, seed=seed)
    sizes = keys.square().sum(-1)
    end = after_pairs(keys, top / float(sizes.sum()), a, way, pairs)
    assert float(torch.linalg.matrix_norm(end, 2)) <= 1 + 1e-12
    same = keys[:1].expand(pairs, 8)
    bound = 1 + a**pairs if way == "frozen" else 1 + a
    end = after_pairs(
        same,
        1.2 * bound / float(pairs * sizes[0] * a ** (0 if way != "frozen" else pairs)),
        a,
        way,
        pairs,
    )
    assert float(torch.linalg.matrix_norm(end, 2)) > 1


def after_pairs(keys: Tensor, rate: float, keep: float, way: str, pairs: int) -> Tensor:
    """What a difference is multiplied by, on the right."""
    start = torch.eye(8, dtype=torch.float64)
    if way != "frozen":
        return keep * start - rate * keys.T @ keys
    end = start
    for k in keys:
        end = keep * end - rate * torch.outer(k, k)
    return end


def test_a_scale_is_a_part_of_the_slope() -> None:
    huber = "where(abs(M(k) - v) <= 1, (M(k) - v)^2 / 2, abs(M(k) - v) - 0.5)"
    page = explain(check_text(text_of(f"sum(delta * {huber})")))
    flat = re.sub(r"\s+", " ", page)
    assert "the slope of the error is between 0 and 1 times delta" in flat
    assert "if 0 <= delta * eta * |k|^2 <= 1 + alpha" in flat or (
        "if 0 <= eta * delta * |k|^2 <= 1 + alpha" in flat
    )


def test_a_ridge_shrinks_and_is_in_the_rule() -> None:
    text = text_of("sum((M(k) - v)^2) / 2 + 0.3 * sum(M^2) / 2")
    page = explain(check_text(text))
    assert "dL/dM = (M @ k - v) k' + 0.3 * M" in page
    assert "M = alpha * M - eta * ((M @ k - v) k' + 0.3 * M)" in page
    assert "multiplied by alpha - 0.3 * eta - eta * |k|^2 along k, and by" in re.sub(
        r"\s+", " ", page
    )
    memory = Memory(alone(text))
    env = streams(memory.box)
    a = states(memory.box)
    found = memory.step(a, torch.zeros_like(a), env)[0]
    error = torch.outer(a @ env["k"] - env["v"], env["k"])
    assert torch.allclose(found, env["alpha"] * a - env["eta"] * (error + 0.3 * a))
    D = torch.outer(random(8, seed=9), env["k"])
    end = memory.step(a + D, torch.zeros_like(a), env)[0] - found
    factor = env["alpha"] - 0.3 * env["eta"] - env["eta"] * env["k"].square().sum()
    assert torch.allclose(end, factor * D)


def test_a_ridge_after_retention_is_no_part_of_the_error() -> None:
    """It takes away of what is kept, beside the error and not before it."""
    box = written("sum((M(k) - v)^2) / 2 + 0.3 * sum(M^2) / 2 after retain")
    c = contraction(Derived(box, box.states[0]))
    memory, env = Memory(box), streams(box)
    page = explain(check_text(text_of("sum((M(k) - v)^2) / 2 + 0.3 * sum(M^2) / 2 after retain")))
    assert "the ridge keeps 1 - 0.3 * eta of that" in page
    alpha, eta, k = env["alpha"], env["eta"], env["k"]
    kept = alpha * states(box)
    found = kept - eta * (torch.outer(kept @ k - env["v"], k) + 0.3 * kept)
    assert torch.allclose(memory.step(states(box), torch.zeros_like(kept), env)[0], found)
    factor = alpha - alpha * eta * (0.3 + k.square().sum())
    assert torch.allclose(numbers(c.keep, env) - numbers(c.strength, env), factor)
    assert not c.after


def test_where_nothing_is_proven_nothing_is_said() -> None:
    for name, why in {
        "memory/titans": "the error of a network is not convex in its weights",
        "memory/surprise_gate": "what is kept, or the rate, depends on the state itself",
        "memory/ttt_linear": "the error reads `b` in another way too",
        "memory/continuum": "the loss depends on the whole model",
        "memory/sphere": "the error of a network",
    }.items():
        assert f"stability not known: {why}" in explained(name)


# ---- bounds that a spec's own gates give ---------------------------------------------------------

UP = math.inf
GATES = {
    "sigmoid(x)": (0, 1), "1 - sigmoid(x)": (0, 1), "2 * tanh(x)": (-2, 2), "exp(-x^2)": (0, 1),
    "exp(-softplus(x) * exp(y))": (0, 1), "softplus(x - 4)": (0, UP), "x * x": (0, UP),
    "clip(x, -1, 2)": (-1, 2), "min(max(x, 0), 1)": (0, 1), "where(x > 0, 2, 3)": (2, 3),
    "0.001 * softplus(x)": (0, UP), "1 / (1 + x^2)": (0, 1), "sqrt(1 + sigmoid(x))": (1, 2**0.5),
    "sigmoid(x) * (1 - sigmoid(x))": (0, 0.25), "abs(sin(x)) - 1": (-1, 0),
    "smooth_abs(x)": (1e-3, UP), "x + y": (-UP, UP), "x / y": (-UP, UP), "1 / softplus(x)": (0, UP),
}  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
def test_a_range_holds_all_values_and_is_the_one_expected(gate: str) -> None:
    box = alone(f"nl 1\nmemory a(x, y) {{ state M : matrix(1, 1)\ng = {gate}\nset M\nread g }}\n")
    term = Tidy().of(box.lines[0].value)  # type: ignore[union-attr]
    found = Scope(box).interval(term)
    low, high = GATES[gate]
    assert [found.low, found.high] == pytest.approx([low, high])
    xs, ys = 5 * random(500, seed=1), 5 * random(500, seed=2)
    values = [float(numbers(term, {"x": x, "y": y})) for x, y in zip(xs, ys, strict=True)]
    assert min(values) >= low - 1e-12 and max(values) <= high + 1e-12


def test_a_name_is_looked_up_at_its_call() -> None:
    page = re.sub(r"\s+", " ", explain(nlc.load(str(ROOT / "specs/gated_deltanet.nl"))))
    assert "beta * |k|^2 is between 0 and 1 and alpha is between 0 and 1: it never grows" in page
    line = "beta = 3 * sigmoid(linear(x, heads))"
    text = (ROOT / "specs/gated_deltanet.nl").read_text(encoding="utf-8")
    other = text.replace("beta = sigmoid(linear(x, heads))", line)
    page = re.sub(r"\s+", " ", explain(nlc.load(other)))
    assert "beta * |k|^2 is between 0 and 3 and" in page
    assert "that does not keep it from growing" in page


def test_gates_that_change_can_make_momentum_grow_inside_its_bounds() -> None:
    """Each matrix shrinks, and five of them in turn grow: no range of gates keeps it small."""
    gates = 4 * [(0.999, 0.001, 0.999)] + [(0.999, 0.999, 0.001)]
    turn = torch.eye(2, dtype=torch.float64)
    for alpha, s, mu in gates:
        one = torch.tensor([[alpha - s, mu], [-s, mu]], dtype=torch.float64)
        assert -(1 - alpha) * (1 - mu) < s < (1 + alpha) * (1 + mu)
        assert torch.linalg.eigvals(one).abs().max() < 1
        turn = one @ turn
    assert torch.linalg.eigvals(turn).abs().max() > 3.9
    text = (ROOT / "specs/gated_deltanet.nl").read_text(encoding="utf-8")
    changed = text.replace("gated_delta(", "momentum_delta(").replace("beta), x", "beta, alpha), x")
    changed = changed.replace("memory/gated_delta", "memory/momentum_delta")
    page = re.sub(r"\s+", " ", explain(nlc.load(changed)))
    assert "with gates that change from token to token it may grow all the same" in page
    assert "never grows" not in page


@pytest.mark.parametrize("seed", range(200))
def test_intervals_hold_the_results_of_their_arithmetic(seed: int) -> None:
    a, b, c, d = (3 * random(4, seed=seed)).tolist()
    x, y = Interval(min(a, b), max(a, b)), Interval(min(c, d), max(c, d))
    for s in (a, b, (a + b) / 2):
        for t in (c, d, (c + d) / 2):
            assert (x + y).low - 1e-12 <= s + t <= (x + y).high + 1e-12
            assert (x * y).low - 1e-12 <= s * t <= (x * y).high + 1e-12
            assert (x | y).low <= min(s, t) and max(s, t) <= (x | y).high
            assert (-x).low <= -s <= (-x).high


# ---- terms, tidied -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_tidy_term_has_the_value_of_the_other(form: str, objective: str) -> None:
    box, state = memory(form, objective)
    n, m = FORMS[form]
    env: dict[Any, Tensor] = {"k": random(n, seed=1), "v": random(m, seed=2)}
    env |= {a.name: 0.7 * random(*a.shape, seed=i) for i, a in enumerate(state.form.arrays, 3)}
    found = gradient(box, state)
    new = tidied(found, Tidy())
    for a, b in zip(found.examples, new.examples, strict=True):
        wanted = value(a.surprise, env)
        assert torch.allclose(
            value(b.surprise, env).expand(wanted.shape), wanted, rtol=1e-9, atol=1e-12
        )
        assert torch.allclose(value(b.input, env), value(a.input, env))


TERMS = {
    "2 * x * 3": "6 * x", "x + x": "2 * x", "x - (y - x)": "2 * x - y", "-(x - y)": "y - x",
    "x * x^2": "x^3", "sqrt(x^2 + 1) * sqrt(x^2 + 1)": "x^2 + 1", "x / 2 / 4": "0.125 * x",
    "where(x > y, 1, 0) * x": "where(x > y, x, 0)", "abs(x) * sign(x)": "x",
    "where(x > y, 1, 0) * x + where(x > y, 0, 1) * y": "where(x > y, x, y)",
    "x * sign(x)": "abs(x)", "0 * x + y": "y", "-2 * (x - y)": "2 * (y - x)",
    "abs(-3 * x)": "3 * abs(x)", "x * y / x": "x * y / x", "(x + y) - y": "x", "1 - (1 - x)": "x",
}  # fmt: skip


@pytest.mark.parametrize("term", TERMS)
def test_a_person_would_write(term: str) -> None:
    box = alone(f"nl 1\nmemory a(x, y) {{ state M : matrix(1, 1)\ng = {term}\nset M\nread g }}\n")
    before = box.lines[0].value  # type: ignore[union-attr]
    after = Tidy().of(before)
    assert Writer().text(after) == TERMS[term]
    for seed in range(5):
        env = {"x": random(seed=seed), "y": random(seed=seed + 10)}
        assert torch.allclose(value(after, env), value(before, env))


# ---- retentions in closed form -------------------------------------------------------------------


def least(price: Callable[[Tensor], Tensor], at: Tensor, moved: Callable[[Tensor], Tensor]) -> bool:
    """Whether no point nearby, nor far, is below this one."""
    here = float(price(at))
    near = (moved(at + s * random(*at.shape, seed=i)) for i in range(50) for s in (1e-3, 1e-1, 1.0))
    return all(float(price(x)) >= here - 1e-12 for x in near)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_what_is_kept_is_the_nearest_at_a_price(shape: tuple[int, ...]) -> None:
    assert "|X - M|^2 + (1 / alpha - 1) * |X|^2" in explained("memory/gated_delta")
    assert "|X - M|^2 + sum((1 / alpha - 1) * X^2)" in explained("memory/gla")
    W, alpha = random(3, 4), torch.sigmoid(random(*shape, seed=1))

    def price(X: Tensor) -> Tensor:
        return (X - W).square().sum() + ((1 / alpha - 1) * X.square()).sum()

    assert least(price, alpha * W, lambda x: x)


def on_simplex(X: Tensor) -> Tensor:
    return X.clamp_min(1e-9) / X.clamp_min(1e-9).sum(-1, keepdim=True)


def test_softmax_is_the_mirror_map_of_entropy_and_its_step_pays_for_kl() -> None:
    text = explained("memory/memora")
    assert "least -sum(A * X) + sum(X * log(X)): a row adds up to 1 (KL)" in text
    assert (
        "alpha * KL(X, old) + (1 - alpha) * sum(X * log(X)) beside rate times its gradient" in text
    )
    A, G = random(3, 4), random(3, 4, seed=1)
    W = torch.softmax(A, -1)
    assert least(lambda X: -(A * X).sum() + (X * X.log()).sum(), W, on_simplex)

    def price(X: Tensor) -> Tensor:
        kl = (X * (X / W).log()).sum()
        return 0.3 * (G * X).sum() + 0.7 * kl + 0.3 * (X * X.log()).sum()

    assert least(price, torch.softmax(0.7 * A - 0.3 * G, -1), on_simplex)


def test_soft_thresholds_are_elastic_nets() -> None:
    assert "-sum(A * X) + |X|^2 / 2 + 0.001 * sum(abs(X))" in explained("memory/elastic_ftrl")
    assert "|X - M|^2 + 0.002 * sum(abs(X))" in explained("memory/elastic")
    A, g = random(3, 4), 0.4
    soft = A.sign() * (A.abs() - g).clamp_min(0)
    assert least(
        lambda X: -(A * X).sum() + X.square().sum() / 2 + g * X.abs().sum(), soft, lambda x: x
    )
    assert least(lambda X: (X - A).square().sum() + 2 * g * X.abs().sum(), soft, lambda x: x)


def test_rows_brought_to_a_length_are_the_nearest_of_that_length() -> None:
    assert "that is the nearest on the sphere, row by row" in explained("memory/sphere")
    A, size = random(3, 4), random(3, seed=1).abs()

    def put(X: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(X, dim=-1)
        return X * (size / lengths)[:, None]

    assert least(lambda X: (X - A).square().sum(), put(A), put)


# ---- optimizers ----------------------------------------------------------------------------------


def test_adam_is_the_minimiser_of_its_own() -> None:
    """Bias and eps included; without eps, of the regression of (101) to (105)."""
    text = explained("optim/adam")
    assert "m / (1 - 0.9^count) is the X of the least sum(0.9^age * |X - grad|^2)" in text
    assert (
        "what is added is the X of the least 0.001 * sum(m / (1 - 0.9^count) * X) "
        "+ sum((sqrt(h / (1 - 0.999^count)) + 1e-8) * X^2) / 2"
    ) in text
    assert "least mean of (X * grad - p)^2 with p = sqrt(h / (1 - 0.999^count))" in text
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.001)
    grads = [random(4, seed=i) for i in range(6)]
    for g in grads:
        before = weight.detach().clone()
        weight.grad = g.clone()
        optimizer.step()
    added = weight.detach() - before
    ages = list(reversed(range(len(grads))))

    def mean(b: float, of: Callable[[Tensor], Tensor]) -> Tensor:
        shares = torch.tensor([b**a for a in ages], dtype=torch.float64)
        return (
            torch.stack([s * of(g) for s, g in zip(shares, grads, strict=True)]).sum(0)
            / shares.sum()
        )

    m, h = mean(0.9, lambda g: g), mean(0.999, lambda g: g * g)
    assert least(
        lambda X: sum(0.9**a * (X - g).square().sum() for a, g in zip(ages, grads, strict=True)),  # type: ignore[arg-type, return-value]
        m, lambda x: x,
    )  # fmt: skip

    def price(X: Tensor) -> Tensor:
        return 0.001 * (m * X).sum() + ((h.sqrt() + 1e-8) * X.square()).sum() / 2

    assert least(price, added, lambda x: x)
    p = h.sqrt()
    regression = lambda X: (h * X.square() - 2 * p * m * X + p * p).sum()  # noqa: E731
    assert least(regression, m / p, lambda x: x)
    assert torch.allclose(-0.001 * m / p, added, rtol=1e-6)


def test_another_correction_is_not_taken_for_a_mean() -> None:
    text = (ROOT / "specs/optim/adam.nl").read_text(encoding="utf-8")
    wrong = text.replace("(m / (1 - b1^count))", "(m / (1 - b2^count))")
    page = explain(check_text(wrong))
    assert "least mean of" not in page and "what is added is the X of the least" in page
    negative = text.replace("+ eps)", "- eps)")
    assert "what is added" not in explain(check_text(negative))
    box = next(iter(resolve(check_text(text).syntax).alone))  # type: ignore[arg-type]
    assert weighted(box, Tidy(), Term("const", (), (), 1.0)) is None


def test_a_memory_of_products_of_matrices_has_its_gradient() -> None:
    page = explain(check_file("optim/delta_momentum"))
    assert "dL/dm = 0.001 * m @ transpose(grad) @ grad + 0.001 * grad" in page


def test_an_implicit_step_on_a_window_has_no_closed_form_here() -> None:
    text = (
        "nl 1\nmemory z(q[n], k[n], v[n], rate) {\n  state M : matrix(n, n)\n"
        "  objective sum((M(past(k, 3)) - past(v, 3))^2) / 2\n  learn implicit(rate = rate)\n"
        "  read M(q)\n}\n"
    )
    page = explain(check_text(text))
    assert "the minimiser of the objective + |M - kept|^2" in page and "that is" not in page


# ---- costs ---------------------------------------------------------------------------------------

T = 128


def in_place(of: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], **rest: Any) -> int:
    """torch's counter knows `baddbmm` and not `baddbmm_`."""
    return 2 * math.prod(a) * b[-1]


IN_PLACE = {torch.ops.aten.baddbmm_: in_place}


def test_ticks_at_a_time_are_those_of_the_operations() -> None:
    assert counted.CHUNK == recurrence.CHUNK == least_squares.CHUNK
    assert counted.BY_OUTPUT == recurrence.BY_OUTPUT
    assert counted.SOLVED == solved.CHUNK and counted.BLOCK == attention.BLOCK


@pytest.mark.parametrize(
    ("name", "gates", "uncounted"),
    [
        ("linear_attention", "", 0), ("retention", "alpha", 0), ("delta", "beta", 32**2),
        ("gated_delta", "alpha beta", 32**2), ("titans_linear", "alpha eta mu", 32**2),
        ("titans", "alpha eta mu", 0), ("yaad", "alpha eta delta", 0), ("memora", "alpha eta", 0),
        ("oja", "beta alpha+", 32**2), ("elastic_ftrl", "eta", 0),
        ("comba", "p+ alpha beta", 32**2), ("gated_delta_2", "alpha+ b+ w+", 32**2),
        ("longhorn", "beta+", 16 * 32), ("kda", "alpha+ beta", 32**2), ("gla", "alpha+", 0),
        ("mesa", "beta gamma ridge+", 32**3 / 3 + 2 * 32**2),
    ],
)  # fmt: skip
def test_operations_are_those_that_torch_counts(name: str, gates: str, uncounted: float) -> None:
    """`uncounted`: triangular solves, which torch's counter does not know."""
    op = nlc.memory(name)
    q, k, v = (torch.randn(1, T, 1, 32) / 32 for _ in range(3))  # answers are numbers
    named = {g.strip("+"): torch.rand(1, T, 1, *(32,) * g.endswith("+")) for g in gates.split()}
    box = next(b for b in op.spec(q, k, v, **named).system.boxes if b.states)
    plan, _ = lowered(box)
    assert plan is not None
    found = counted.cost(box, plan)
    assert found is not None
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        op(q, k, v, **named)
    assert found.flops - uncounted == pytest.approx(counter.get_total_flops() / T, rel=0.06)


@pytest.mark.parametrize(("name", "gates"), [("lp", "alpha eta"), ("titans_exact", "alpha eta mu")])
def test_rounds_are_counted_one_by_one(name: str, gates: str) -> None:
    op = nlc.memory(name)
    q, k, v = (torch.randn(1, T, 1, 32) / 6 for _ in range(3))
    named = {g: torch.rand(1, T, 1) * (0.01 if g == "eta" else 1) for g in gates.split()}
    box = next(b for b in op.spec(q, k, v, **named).system.boxes if b.states)
    plan, _ = lowered(box)
    assert plan is not None
    found = counted.cost(box, plan)
    assert found is not None and found.rounds is not None
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        op(q, k, v, **named)
    rounds = (counter.get_total_flops() / T - found.flops) / found.rounds[1]
    chunks = T // counted.SOLVED  # the mean of their rounds
    assert rounds * chunks == pytest.approx(round(rounds * chunks), abs=0.01)
    assert 2 <= rounds <= found.rounds[2]


def test_a_network_that_fires_at_every_token_is_asked_once() -> None:
    """One forward and one backward pass for the gradients of both layers."""
    text = (
        "nl 1\nmemory z(q[n], k[n], v[n]) {\n  state M : residual(mlp(n, 4*n))\n"
        "  objective sum((M(k) - v)^2)\n  learn adam(rate = 0.01)\n  read M(q)\n}\n"
    )
    op, q = nlc.memory(text), torch.randn(1, 8, 1, 32)
    box = next(b for b in op.spec(q, q, q).system.boxes if b.states)
    plan, _ = lowered(box)
    assert plan is not None and plan.kind == "fired"
    found = counted.cost(box, plan)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        op(q, q, q)
    assert found is not None and found.flops == counter.get_total_flops() / 8


WINDOWED = """nl 1
memory windowed(q[n], k[n], v[n], alpha, eta) {
  state     M : FORM
  objective OBJECTIVE
  retain    alpha
  learn     RULE
  read      M(q)
}
"""
SQUARES = "sum((M(past(k, 3)) - past(v, 3))^2)"


@pytest.mark.parametrize(
    ("form", "objective", "rule"),
    [
        ("matrix(n, n)", SQUARES, "gradient(rate = eta)"),
        ("matrix(n, n)", SQUARES, "momentum(rate = eta, keep = 0.5)"),
        ("matrix(n, n)", "-sum(M(past(k, 3)) * past(v, 3))", "gradient(rate = eta)"),
        ("matrix(n, n)", "sum(abs(M(past(k, 3)) - past(v, 3))^3)", "gradient(rate = eta)"),
        ("matrix(n, n)", SQUARES, "adam(rate = eta)"),
        ("residual(mlp(n, 4*n))", SQUARES, "adam(rate = eta)"),
        ("gated_mlp(n, 2*n)", SQUARES, "adam(rate = eta)"),
        ("residual(mlp(n, 4*n))", SQUARES, "gradient(rate = eta)"),
        ("mlp(n, 2*n)", SQUARES, "momentum(rate = eta, keep = 0.5)"),
    ],
)  # fmt: skip
def test_the_pairs_of_a_window_are_counted(form: str, objective: str, rule: str) -> None:
    """The first round, and each that is after it."""
    text = WINDOWED.replace("FORM", form).replace("OBJECTIVE", objective).replace("RULE", rule)
    q, k, v = (torch.randn(1, T, 1, 32) for _ in range(3))
    named = {"alpha": torch.rand(1, T, 1), "eta": 0.01 * torch.rand(1, T, 1)}
    box = next(b for b in nlc.memory(text).spec(q, k, v, **named).system.boxes if b.states)
    plan, _ = lowered(box)
    assert plan is not None
    found = counted.cost(box, plan)
    assert found is not None
    for rounds in (1, 3):
        op = nlc.memory(text, rounds=rounds)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            op(q, k, v, **named)
        more = 0 if found.rounds is None else (rounds - 1) * found.rounds[1]
        assert found.flops + more == pytest.approx(counter.get_total_flops() / T, rel=0.01)
    said = found.text()
    assert "W = 3" in said or "3 pairs a tick" in said


def test_bytes_are_those_of_the_state() -> None:
    op = nlc.memory("titans")
    q = torch.randn(1, 5, 3, 8)
    gates = {n: torch.rand(1, 5, 3) for n in ("alpha", "eta", "mu")}
    page = explain(op.spec(q, q, q, **gates))
    size = 2 * 8 * 32
    assert f"M {size}, momentum.m {size}, the chunk's start {size}" in page
    assert f"{3 * size:,} numbers in each of 3 memories, {3 * 3 * size * 4 / 1024:.4g} KiB" in page


# ---- LaTeX ---------------------------------------------------------------------------------------

FILES = sorted([*(ROOT / "specs").rglob("*.nl"), *(ROOT / "tests/cases/good").glob("*.nl")])
ENVIRONMENTS = re.compile(r"\\(begin|end)\{(\w+\*?)\}")
COMMANDS = set(
    """section* subsection* paragraph operatorname mathrm frac partial sqrt left right text begin
    end top odot le ge cdot succ quad langle rangle lfloor rfloor infty log exp tanh sin cos max min
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
    upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega""".split()  # noqa: SIM905
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_latex_is_balanced(path: Path) -> None:
    text = explain(check_file(str(path)), "latex")
    bare = re.sub(r"\\[{}$&%#_]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert text.count(r"\[") == text.count(r"\]") and text.count(r"\left") == text.count(r"\right")
    opened: list[str] = []
    for kind, name in ENVIRONMENTS.findall(text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    used = set(re.findall(r"\\([A-Za-z]+\*?)", text)) - {"leftmargin"}
    assert {u.removesuffix("*") for u in used} <= {c.removesuffix("*") for c in COMMANDS}
    for line in text.splitlines():
        if not line.startswith(r"\["):  # words: outside $..$ nothing is a sign of mathematics
            words = re.sub(r"\$[^$]*\$|\\\^\{\}", "", line)
            assert not re.search(r"(?<!\\)[_^&#%]", words), line


def test_latex_says_what_the_text_says() -> None:
    text = explain(check_file("memory/gated_delta"), "latex")
    for line in (
        r"\frac{\partial L}{\partial \mathrm{kept}} = \left(\mathrm{kept}\, k - v\right) k^\top",
        r"\[ M = \alpha\, M (I - \beta\, k k^\top) + \beta\, v k^\top \]",
        r"$\left|\alpha\, \left(1 - \beta\, {\left\|k\right\|}^{2}\right)\right| < 1$",
    ):
        assert line in text
    assert r"\begin{pmatrix} \mu & 0 \\ \mu & \alpha \end{pmatrix}" in explain(
        check_file("memory/titans_linear"), "latex"
    )
