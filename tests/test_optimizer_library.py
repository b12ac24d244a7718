"""The shipped optimizers: each against torch.optim or the formula of its paper, twenty steps of the
reference interpreter on a net of two matrices and a vector; what their memories are the least of;
how they nest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from shipped import SPECS
from torch import Tensor
from torch.nn.functional import gelu
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop

import nlc
from nlc.backends.parameters import noise
from nlc.driver import Spec, check_file, check_text
from nlc.explain import explain
from nlc.order import order
from nlc.resolve import resolve
from nlc.system import Box, line_terms

Weights = dict[str, Tensor]
Step = Callable[[Weights], object]  # takes one step of weights that have a `.grad`
NAMES = sorted(p.stem for p in (SPECS / "optim").glob("*.nl"))


def boxes(name: str) -> list[Box]:
    checked = check_file(f"optim/{name}")
    assert checked.syntax is not None and not checked.diagnostics, checked.diagnostics
    return [b for b in resolve(checked.syntax).alone if b.kind == "optimizer"]


def network(learn: str) -> Spec:
    """A layer with more outputs than inputs, one with fewer, and a gain."""
    return nlc.load(
        f"nl 1\nsystem one() {{\n  level training every step {{ objective loss; {learn} }}\n"
        "  flow(x[4], y[3]) {\n    p = linear(tanh(norm(linear(x, 5))), 3)\n"
        "    loss = sum((p - y)^2)\n    return p\n  }\n}\n"
    )


def data(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    return [x[..., :4], x[..., 4:]]


def follows(learn: str, make: Callable[[Weights], Step], steps: int = 20) -> None:
    """`make(weights)` is a step of ours on copies, from the reference's own gradients."""
    truth = nlc.reference(network(learn))
    own = {n: v.clone().requires_grad_() for n, v in truth.values.items()}
    step = make(own)
    for i in range(steps):
        grads = truth.step(data(i))
        for name, p in own.items():
            p.grad = grads[name].clone()
        with torch.no_grad():
            step(own)
        for name, p in own.items():
            torch.testing.assert_close(p, truth.values[name], rtol=1e-10, atol=1e-10)


# ---- torch.optim ---------------------------------------------------------------------------------


def matrices(weights: Weights) -> list[Tensor]:
    return [p for p in weights.values() if p.ndim == 2]


REST = "learn gradient(rate = 0.01)"
TORCH: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "gradient(rate = 0.05)": (SGD, {"lr": 0.05}),
    "momentum(rate = 0.02, keep = 0.8)": (SGD, {"lr": 0.02, "momentum": 0.8}),
    "nesterov(rate = 0.02)": (SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "rmsprop()": (RMSprop, {}),
    "rmsprop(keep = 0.8, eps = 1e-4)": (RMSprop, {"alpha": 0.8, "eps": 1e-4}),
    "rmsprop_centred()": (RMSprop, {"centered": True, "momentum": 0.9}),
    "rmsprop_centred(momentum = 0)": (RMSprop, {"centered": True}),
    "preconditioned_momentum()": (RMSprop, {"momentum": 0.9}),
    "adagrad()": (Adagrad, {}),
    "adagrad(slowing = 0.1, first = 0.2)": (
        Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2},
    ),
    "adam()": (Adam, {}),
    "adam(grad = grad + 0.1 * weight)": (Adam, {"weight_decay": 0.1}),
    "adamw()": (AdamW, {}),
    "adamw(shrink = 0.3, b1 = 0.5)": (AdamW, {"weight_decay": 0.3, "betas": (0.5, 0.999)}),
    "nadam()": (NAdam, {}),
    "nadam(b1 = 0.8, warm = 0.1)": (NAdam, {"betas": (0.8, 0.999), "momentum_decay": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("rule", TORCH)
def test_twenty_steps_are_those_of_torch(rule: str) -> None:
    kind, settings = TORCH[rule]

    def make(weights: Weights) -> Step:
        optimizer = kind(list(weights.values()), **settings)
        return lambda _: optimizer.step()

    follows(f"learn {rule}", make)


MUON: dict[str, dict[str, Any]] = {
    "nesterov = 1, scale = 1, shrink = 0.1": {},
    "nesterov = 1, scale = 2": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0},
    "keep = 0.8, scale = 1, iterations = 3": {
        "nesterov": False, "momentum": 0.8, "weight_decay": 0, "ns_steps": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("ours", MUON)
def test_muon_is_torchs_but_for_bfloat16(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's rounds are in bfloat16; in this test they are as precise as ours."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda x: x.clone())

    def make(weights: Weights) -> Step:
        muon: torch.optim.Optimizer = torch.optim.Muon(matrices(weights), 1e-3, **MUON[ours])
        rest = SGD([p for p in weights.values() if p.ndim == 1], 0.01)
        return lambda _: [o.step() for o in (muon, rest)]

    follows(f"learn muon(rate = 1e-3, {ours}) for matrices; {REST}", make)


# ---- formulas of papers --------------------------------------------------------------------------


class Kept(dict[str, Tensor]):
    """Arrays that start at zero; `mix` lets one fade and adds to it."""

    def mix(self, name: str, keep: float, added: Tensor) -> Tensor:
        self[name] = keep * self.get(name, torch.zeros_like(added)) + added
        return self[name]


Amount = Callable[[Tensor, Tensor, Kept, int], Tensor]  # of weight, gradient, what is kept, count


def orthogonal(G: Tensor, rounds: int = 5) -> Tensor:
    """By singular values: each becomes a s + b s^3 + c s^5, round after round."""
    U, s, V = torch.linalg.svd(G, full_matrices=False)
    s = s / max(float(G.norm()), 1e-7)
    for _ in range(rounds):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    made: Tensor = U @ torch.diag(s) @ V
    return made


def root(A: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(A)
    made: Tensor = vectors @ torch.diag(values**power) @ vectors.T
    return made


def lion(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    """arXiv:2302.06675, algorithm 2."""
    c = 0.9 * kept.get("m", torch.zeros_like(g)) + 0.1 * g
    kept.mix("m", 0.99, 0.01 * g)
    return -0.01 * (c.sign() + 0.2 * W)


def whitened(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    """(47) with P the inverse of the mean of g g'."""
    H = kept.mix("H", 0.99, 0.01 * g @ g.T)
    P = torch.linalg.inv(H + 1e-3 * torch.eye(len(H), dtype=H.dtype))
    return 0.01 * kept.mix("m", 0.9, -P @ g)


def delta(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    """(49), with a rate before g'g."""
    m = kept.get("m", torch.zeros_like(g))
    kept["m"] = m @ (0.9 * torch.eye(g.shape[1], dtype=g.dtype) - 0.05 * g.T @ g) - 0.02 * g
    return kept["m"]


def features(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    """(51), with a root for a feature."""
    return kept.mix("m", 0.9, -0.001 * g.sign() * g.abs().sqrt())


def m3(W: Tensor, g: Tensor, kept: Kept, t: int, print_: bool = False) -> Tensor:
    """Algorithm 1, and with what fades."""
    b1, b2, b3 = (0.9, 0.999, 0.9) if print_ else (0.1, 0.01, 0.1)
    k1, k2, k3 = (1.0, 1.0, 1.0) if print_ else (0.9, 0.99, 0.9)
    if t % 8 == 1 and t > 1:  # the period before this one
        kept.mix("slow", k3, b3 * kept.pop("sum"))
    kept.mix("sum", 1.0, g)
    fast, h = kept.mix("fast", k1, b1 * g), kept.mix("h", k2, b2 * g**2)
    slow = kept.get("slow", torch.zeros_like(g))
    return -0.001 * (orthogonal(fast) + 0.5 * orthogonal(slow)) / (h.sqrt() + 1e-8)


def m3_print(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    return m3(W, g, kept, t, True)


def shampoo(eps: float) -> Amount:
    """arXiv:1802.09568, algorithm 1."""

    def amount(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
        L, R = kept.mix("L", 1.0, g @ g.T), kept.mix("R", 1.0, g.T @ g)
        ridge = [eps * torch.eye(len(x), dtype=g.dtype) for x in (L, R)]
        return -0.01 * root(L + ridge[0], -1 / 4) @ g @ root(R + ridge[1], -1 / 4)

    return amount


def orthogonal_momentum(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    """(44), by the derivative of its objective."""
    m = kept.mix("m", 0.95, -g)
    G: Tensor = m / m.norm()
    X: Tensor = G.clone()
    for _ in range(5):
        with torch.enable_grad():
            X.requires_grad_()
            away = X.T @ X - torch.eye(X.shape[1], dtype=X.dtype)
            price = (X - G).square().sum() / 2 + away.square().sum() / 2
            (slope,) = torch.autograd.grad(price, X)
        X = (X - 0.25 * slope).detach()
    made: Tensor = 0.02 * X
    return made


def adam_mini(W: Tensor, g: Tensor, kept: Kept, t: int) -> Tensor:
    m = kept.mix("m", 0.9, 0.1 * g) / (1 - 0.9**t)
    h = kept.mix("h", 0.999, 0.001 * (g**2).mean(1, keepdim=True)) / (1 - 0.999**t)
    return -0.001 * m / (h.sqrt() + 1e-8)


FORMULAS: dict[str, tuple[Amount, bool]] = {  # for matrices alone?
    "lion(rate = 0.01, shrink = 0.2)": (lion, False),
    "whitened_momentum()": (whitened, True),
    "delta_momentum(rate = 0.02, erase = 0.05)": (delta, True),
    "feature_momentum()": (features, False),
    "m3()": (m3, True),
    "m3_print()": (m3_print, True),
    "shampoo(eps = 1e-2)": (shampoo(1e-2), True),
    "shampoo()": (shampoo(1e-4), True),
    "orthogonal_momentum()": (orthogonal_momentum, True),
    "adam_mini()": (adam_mini, True),
}


@pytest.mark.parametrize("rule", FORMULAS)
def test_twenty_steps_are_the_papers(rule: str) -> None:
    amount, alone = FORMULAS[rule]

    def make(weights: Weights) -> Step:
        kept = {n: Kept() for n in weights}
        count = 0

        def step(weights: Weights) -> None:
            nonlocal count
            count += 1
            for name, p in weights.items():
                assert p.grad is not None
                plain = alone and p.ndim != 2
                p += -0.01 * p.grad if plain else amount(p, p.grad, kept[name], count)

        return step

    follows(f"learn {rule} for matrices; {REST}" if alone else f"learn {rule}", make)


def one_layer(learn: str) -> Spec:
    return nlc.load(
        f"nl 1\nsystem one() {{\n  level training every step {{ objective loss; learn {learn} }}\n"
        "  flow(x[4], y[3]) { p = linear(x, 3); loss = sum((p - y)^2) / 2; return p }\n}\n"
    )


@pytest.mark.parametrize("rule", ["dmgd", "dmgd_squares"])
def test_the_network_of_dmgd_learns_by_rows(rule: str) -> None:
    """(50): one gradient step of the memory, then the weight gets what it says of each row."""
    truth = nlc.reference(one_layer(f"{rule}(inner = 0.1, hidden = 5, keep = 0.9)"))
    ((name, W),) = truth.values.items()
    places = (f"{name}.{rule}.m.W1", (5, 4)), (f"{name}.{rule}.m.W2", (4, 5))
    drawn = [noise(path, shape, 0) / shape[1] ** 0.5 for path, shape in places]
    for i in range(20):
        g = truth.step(data(i))[name]
        A, B = (x.requires_grad_() for x in drawn)
        said = gelu(g @ A.T) @ B.T
        price = (said * g).sum() if rule == "dmgd" else (said + g).square().sum() / 2
        slopes = torch.autograd.grad(price, [A, B])
        with torch.no_grad():
            drawn = [0.9 * x - 0.1 * d for x, d in zip((A, B), slopes, strict=True)]
            W = W + 0.001 * gelu(g @ drawn[0].T) @ drawn[1].T
        torch.testing.assert_close(W, truth.values[name], rtol=1e-10, atol=1e-10)


# ---- delta gradient descent ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_the_proximal_step_is_the_least_of_its_objective(size: float) -> None:
    """(56) for twelve inputs of any length: |W x - u|^2 + |W - W_t|^2 / rate, u = -dL/dy."""
    truth, rate = nlc.reference(one_layer("dgd_proximal(rate = 0.3)")), 0.3
    ((name, W),) = truth.values.items()
    for i in range(20):
        x, y = data(i)
        x = size * x
        truth.step([x, y])
        X = x.reshape(-1, 4) / 12**0.5
        U = -(x @ W.T - y).reshape(-1, 3) / 12**0.5
        rows = torch.cat([X, torch.eye(4, dtype=X.dtype) / rate**0.5])
        wanted = torch.cat([U, W.T / rate**0.5])
        W = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(truth.values[name], W, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_dgd_is_the_proximal_step_of_one_input_of_length_one(length: float) -> None:
    """(57), at the paper's rate / (1 + rate); of other lengths, at rate / (1 + rate |x|^2)."""
    rate = 0.4
    x, y = (z[:1, :1] for z in data(0))
    x = length * x / x.norm()
    exact = nlc.reference(one_layer(f"dgd_proximal(rate = {rate})"))
    printed = nlc.reference(one_layer(f"dgd(rate = {rate / (1 + rate)})"))
    mended = nlc.reference(one_layer(f"dgd(rate = {rate / (1 + rate * length**2)})"))
    (name,) = exact.values
    before = exact.values[name].clone()
    for truth in (exact, printed, mended):
        truth.step([x, y])
    torch.testing.assert_close(mended.values[name], exact.values[name], rtol=1e-12, atol=1e-12)
    near = torch.allclose(printed.values[name], exact.values[name], rtol=1e-12, atol=1e-12)
    assert near == (length == 1) and not torch.equal(before, exact.values[name])


# ---- what they are the least of ------------------------------------------------------------------


def test_adam_is_the_least_of_its_own_objective() -> None:
    """(101)-(105): entry by entry, the X of the least sum b^age (X grad - p)^2, with p the root of
    the mean square, found here by least squares. The sign of the print ascends: -rate X is added.
    """
    b, rate = 0.8, 0.01
    truth = nlc.reference(one_layer(f"adam(rate = {rate}, b1 = {b}, b2 = {b}, eps = 0)"))
    ((name, W),) = truth.values.items()
    seen: list[Tensor] = []
    for i in range(20):
        seen.append(truth.step(data(i))[name])
        g = torch.stack(seen).reshape(len(seen), -1)
        w = b ** torch.arange(len(seen) - 1, -1, -1, dtype=g.dtype)
        p = ((w @ g**2) / w.sum()).sqrt()
        root_w = w.sqrt()[:, None]
        keys, values = (root_w * g).T[:, :, None], (root_w * p).T[:, :, None]
        X = torch.linalg.lstsq(keys, values).solution.reshape(W.shape)
        W = W - rate * X
        torch.testing.assert_close(truth.values[name], W, rtol=1e-10, atol=1e-10)


def test_the_optimum_of_101_is_102() -> None:
    """Also with lambda, and for the value of (104), which makes it momentum."""
    m, lam, p, *g = sympy.symbols("m lambda P g1:5", positive=True)
    objective = sum((m * x - p) ** 2 for x in g) + lam * m**2
    (found,) = sympy.solve(sympy.diff(objective, m), m)
    H, M = sum(x**2 for x in g), sum(g)
    assert sympy.simplify(found - M * p / (H + lam)) == 0
    assert sympy.simplify(found.subs({lam: 0, p: H}) - M) == 0
    assert sympy.simplify(found.subs({lam: 0, p: sympy.sqrt(H)}) - M / sympy.sqrt(H)) == 0
    assert sympy.diff(objective, m, 2).is_positive


def test_one_round_of_44_is_the_cubic_step() -> None:
    truth = nlc.reference(one_layer("orthogonal_momentum(rate = 1, rounds = 1)"))
    ((name, W),) = truth.values.items()
    m = -truth.step(data(0))[name]
    G = m / m.norm()
    torch.testing.assert_close(
        truth.values[name] - W, 1.5 * G - 0.5 * G @ G.T @ G, rtol=1e-12, atol=1e-14
    )


# ---- how they nest -------------------------------------------------------------------------------


def nesting(learn: str) -> list[str]:
    """The levels of the paper from the slowest to the innermost."""
    return [rank.name.replace("training", "W") for rank in order(one_layer(learn).system).levels]


@pytest.mark.parametrize(
    ("learn", "levels"),
    [
        ("gradient()", ["W"]),
        ("momentum()", ["W", "W.momentum"]),
        ("nesterov()", ["W", "W.nesterov"]),
        ("adam()", ["W", "W.adam"]),  # both moments
        ("nadam()", ["W", "W.nadam"]),
        ("adam_mini()", ["W", "W.adam_mini"]),
        ("rmsprop_centred()", ["W", "W.rmsprop_centred.m", "W.rmsprop_centred.h+c"]),
        ("lion()", ["W, W.lion.kept"]),  # the weight uses the memory of the firing before
        ("muon()", ["W", "W.muon", "W.muon.5 rounds"]),
        ("muon(iterations = 3)", ["W", "W.muon", "W.muon.3 rounds"]),
        ("orthogonal_momentum()", ["W", "W.orthogonal_momentum", "W.orthogonal_momentum.5 rounds"]),
        ("shampoo()", ["W", "W.shampoo", "W.shampoo.20 rounds"]),
        ("m3()", ["W.m3.slow", "W", "W.m3", "W.m3.5 rounds"]),
        ("m3_print(period = 4)", ["W.m3_print.slow", "W", "W.m3_print", "W.m3_print.5 rounds"]),
        ("dmgd()", ["W", "W.dmgd"]),
    ],
)
def test_levels_from_the_slowest_to_the_innermost(learn: str, levels: list[str]) -> None:
    assert nesting(learn) == levels


def test_the_slow_memory_has_a_clock_of_its_own() -> None:
    levels = order(one_layer("m3(period = 6)").system)
    assert str(levels.component("training.m3.slow").clock) == "every 6 steps"
    assert str(levels.component("training.m3").clock) == "every step"
    parts = {p.name for p in levels.component("training.m3").parts}
    assert parts == {"fast", "h"}


# ---- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_cites_its_source_and_can_be_named(name: str) -> None:
    found = boxes(name)
    assert found[0].name == name
    for box in found:
        assert box.cites, box.name
        assert one_layer(f"{box.name}()").system is not None


@pytest.mark.parametrize("on", [0, 1])
def test_a_setting_that_is_off_costs_nothing(on: int) -> None:
    """`where` of a known condition is what it chooses, unless that would change the shape."""
    spec = nlc.load(
        "nl 1\noptimizer a(weight, grad, on = 0) { write where(on, exp(grad), grad) }\n"
        f"system s(n = where({on} == 1, 4, 2)) {{\n"
        f"  level t every step {{ objective loss; learn a(on = {on}) }}\n"
        "  flow(x[n]) { y = linear(x, 2); loss = sum(where(1, 2, y)); return where(0, y, n) }\n}"
    )
    rule = next(iter(spec.system.levels[0].learn[0].optimizers.values()))
    assert rule.write is not None and rule.write.op == ("exp" if on else "input")
    assert spec.system.settings["n"] == (4 if on else 2)
    kept = [t for e in line_terms(spec.system.flow.lines) for t in e.walk() if t.op == "where"]
    assert [t.shape for t in kept] == [(2,)]


# ---- what `nlc explain` says of them -------------------------------------------------------------


def page(name: str) -> str:
    return re.sub(r"\s+", " ", explain(check_file(f"optim/{name}")))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gradient", "the weight alone: nothing is kept from firing to firing"),
        ("momentum", "levels m > weight"),
        ("adam", "levels m, h > weight"),
        ("rmsprop", "levels h, c > m > weight"),
        ("rmsprop", "m with scaled = grad / (sqrt(h - c^2) + 1e-8) objective -sum(m * scaled)"),
        ("muon", "levels 5 rounds > m > weight"),
        ("muon", "the 5 rounds are inside one firing"),
        ("muon", "t4 to t9 likewise: 4 such rounds so far, and one more below"),
        ("shampoo", "levels 20 rounds > L, R > weight"),
        ("m3", "levels 5 rounds > fast, h > weight > slow.m"),
        ("m3", "slow fires every 8 steps"),
        ("m3", "the least 0.001 * sum(both * X) + sum((sqrt(h) + 1e-8) * X^2) / 2"),
        ("m3_print", "fast = 0.9 * sum(grad), over all so far"),
        ("lion", "levels weight, kept.m"),
        ("lion", "the least sum((0.9 * kept.m + 0.1 * grad) * X) with no entry longer than 0.0001"),
        ("adagrad", "h = sum(grad^2), over all so far h / count is the X of the least"),
        ("adagrad", "rule weight = weight - 0.01 * grad / (sqrt(h) + 1e-10)"),
        ("delta_momentum", "m = m (0.9 * I - 0.001 * transpose(grad) @ grad) - 0.001 * grad"),
        ("nadam", "* X) + sum(size * X^2) / 2"),
        ("adam_mini", "sum((column(sqrt(h / (1 - 0.999^count))) + 1e-8) * X^2) / 2"),
        ("dgd", "with surprise s the new weight is the X of the least |X @ x + s|^2 + (1 / 0.01 - "
                "|x|^2) * |X - weight|^2, if 0.01 * |x|^2 < 1"),
        ("dgd", "the least sum(|X @ x + s|^2) + |X - weight|^2 / 0.01, over all inputs x"),
    ],
)  # fmt: skip
def test_pages_say_what_the_parts_are_the_least_of(name: str, told: str) -> None:
    assert told in page(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_the_same_in_each_form(name: str) -> None:
    found = json.loads(explain(check_file(f"optim/{name}"), "json"))
    text, tex = explain(check_file(f"optim/{name}")), explain(check_file(f"optim/{name}"), "latex")
    for box in found["boxes"]:
        assert box["parts"][0]["heading"] == "nesting" and box["parts"][-1]["heading"] == "weight"
        for line in (line for part in box["parts"] for line in part["lines"]):
            assert line["words"] or line["text"] in text
            assert line["latex"] in tex
            assert line["latex"].count("{") == line["latex"].count("}")


def test_what_dgd_is_said_to_be_the_least_of() -> None:
    """Nothing near its step does better, for an input of any length that the page allows."""
    g = torch.Generator().manual_seed(0)
    W, s, x = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((3, 4), (3,), (4,)))
    rate = 0.9 / float(x @ x)
    new = W - rate * (torch.outer(W @ x, x) + torch.outer(s, x))

    def price(X: Tensor) -> Tensor:
        return (X @ x + s).square().sum() + (1 / rate - x @ x) * (X - W).square().sum()

    X = new.clone().requires_grad_()
    (slope,) = torch.autograd.grad(price(X), X)
    assert float(slope.abs().max()) < 1e-12
    near = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(50))
    assert all(float(price(new + d)) > float(price(new)) for d in near)


# ---- the page ------------------------------------------------------------------------------------

PAGE = (SPECS.parent / "docs/optimizers.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert sorted(rows) == sorted(box.name for name in NAMES for box in boxes(name))


def test_specs_on_the_page_are_right() -> None:
    (mine,) = [b for b in re.findall(r"^```nl\n(.*?)^```$", PAGE, re.M | re.S) if b[:4] == "nl 1"]
    assert check_text(mine).diagnostics == ()
    assert "learn muon(rate = 0.02, nesterov = 1, scale = 1) for matrices" in PAGE
    uses = 'nl 1\nuse "schedules"\n'
    (level,) = re.findall(r"^level training.*?^}$", PAGE, re.M | re.S)
    flow = "flow(x[4]) { loss = sum(norm(linear(x, 4))); return x }"
    assert not check_text(f"{uses}system a() {{ {level}\n{flow} }}").diagnostics
