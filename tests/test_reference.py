"""The reference interpreter against closed forms, plain recurrences and hand-written gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.parameters import draw, parameters
from nlc.backends.reference import Reference
from nlc.driver import check_file, check_text
from nlc.system import System

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
Arrays = dict[str, Tensor]


def system(text: str, **settings: object) -> System:
    checked = check_text("nl 1\n" + text, settings=settings)
    assert checked.system is not None and not checked.errors, checked.diagnostics
    return checked.system


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))


# ---- memories as operations --------------------------------------------------------------------

N, M, H, T = 3, 4, 2, 6


def memory(
    name: str, streams: dict[str, str], clock: str = "every token", call: str = ""
) -> System:
    """A memory in a level of its own; `streams`: names with their shapes."""
    inputs = ", ".join(f"{n}{s}" for n, s in streams.items())
    names = ", ".join(streams)
    return system(
        f'use "memory/{name}"\nsystem one() {{\n'
        f"level mixer({names}) {clock} {{ read {call or f'{name}({names})'} }}\n"
        f"flow({inputs}) {{ return mixer({names}) }}\n}}"
    )


HEADS: dict[str, tuple[int, ...]] = {"n": (H, N), "m": (H, M), "": (H,)}
Step = Callable[[Tensor, Arrays], tuple[Tensor, Tensor]]


def linear_attention(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = S + torch.outer(x["v"], x["k"])
    return S, S @ x["q"]


def delta(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = S - x["beta"] * torch.outer(S @ x["k"] - x["v"], x["k"])
    return S, S @ x["q"]


def gated_delta(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = x["alpha"] * S
    S = S - x["beta"] * torch.outer(S @ x["k"] - x["v"], x["k"])
    return S, S @ x["q"]


def retention(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = x["alpha"] * S + torch.outer(x["v"], x["k"])
    return S, S @ x["q"]


def longhorn(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    gain = x["beta"] / (1 + x["beta"] * (x["k"] @ x["k"]))
    S = S - torch.outer(gain * (S @ x["k"] - x["v"]), x["k"])
    return S, S @ x["q"]


def rwkv7(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    removed = torch.outer(S @ x["kappa"], x["a"] * x["kappa"])
    S = S * x["w"] - removed + torch.outer(x["v"], x["k"])
    return S, S @ x["r"]


def gated_delta_2(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = S * x["alpha"]
    S = S + torch.outer(x["w"] * x["v"] - S @ (x["b"] * x["k"]), x["k"])
    return S, S @ x["q"]


def surprise_gate(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    wrong = S @ x["k"] - x["v"]
    if wrong.norm() > 1:
        S = x["alpha"] * S - x["beta"] * torch.outer(wrong, x["k"])
    return S, S @ x["q"]


def elastic(S: Tensor, x: Arrays) -> tuple[Tensor, Tensor]:
    S = x["alpha"] * S - x["eta"] * 2 * torch.outer(S @ x["k"] - x["v"], x["k"])
    S = S.sign() * (S.abs() - 1e-3).clamp(min=0)
    return S, S @ x["q"]


RECURRENT: list[tuple[Step, dict[str, str]]] = [
    (linear_attention, {"q": "n", "k": "n", "v": "m"}),
    (delta, {"q": "n", "k": "n", "v": "m", "beta": ""}),
    (gated_delta, {"q": "n", "k": "n", "v": "m", "alpha": "", "beta": ""}),
    (retention, {"q": "n", "k": "n", "v": "m", "alpha": ""}),
    (retention, {"q": "n", "k": "n", "v": "m", "alpha": "n"}),
    (longhorn, {"q": "n", "k": "n", "v": "m", "beta": "m"}),
    (rwkv7, {"r": "n", "w": "n", "k": "n", "v": "m", "kappa": "n", "a": "n"}),
    (gated_delta_2, {"q": "n", "k": "n", "v": "m", "alpha": "n", "b": "n", "w": "m"}),
    (surprise_gate, {"q": "n", "k": "n", "v": "m", "alpha": "", "beta": ""}),
    (elastic, {"q": "n", "k": "n", "v": "m", "alpha": "", "eta": ""}),
]


def streams_of(kinds: dict[str, str]) -> tuple[dict[str, str], Arrays]:
    shapes = {n: "[" + ", ".join(map(str, HEADS[s])) + "]" for n, s in kinds.items()}
    data = {n: random(2, T, *HEADS[s], seed=i) for i, (n, s) in enumerate(kinds.items())}
    for n in set(kinds) & {"alpha", "beta", "eta", "w", "a"}:
        data[n] = torch.sigmoid(data[n])
    return shapes, data


@pytest.mark.parametrize("step, kinds", RECURRENT, ids=lambda x: getattr(x, "__name__", ""))
def test_recurrences(step: Step, kinds: dict[str, str]) -> None:
    shapes, data = streams_of(kinds)
    answers, _ = Reference(memory(step.__name__, shapes))(data)
    for b in range(2):
        for h in range(H):
            S = torch.zeros(M, N, dtype=torch.float64)
            for t in range(T):
                S, y = step(S, {n: x[b, t, h] for n, x in data.items()})
                close(answers[b, t, h], y)


@pytest.mark.parametrize("window", [1, 2, 4, 100])
def test_attention_is_softmax(window: int) -> None:
    shapes, data = streams_of({"q": "n", "k": "n", "v": "m"})
    made = memory("attend", shapes, "always", f"attend(q, k, v, window = {window})")
    answers, _ = Reference(made)(data)
    for t in range(T):
        since = max(0, t + 1 - window)
        k, v = data["k"][:, since : t + 1], data["v"][:, since : t + 1]
        scores = torch.einsum("bhn,bshn->bhs", data["q"][:, t], k) / N**0.5
        close(answers[:, t], torch.einsum("bhs,bshm->bhm", scores.softmax(-1), v))


def test_mesa_solves_the_normal_equations() -> None:
    kinds = {"q": "n", "k": "n", "v": "m", "beta": "", "gamma": "", "ridge": "n"}
    shapes, data = streams_of(kinds)
    data["gamma"] = torch.sigmoid(data["gamma"])
    data["ridge"] = data["ridge"].abs() + 0.1
    answers, _ = Reference(memory("mesa", shapes))(data)
    for b in range(2):
        for h in range(H):
            gram, cross = torch.zeros(N, N).double(), torch.zeros(M, N).double()
            for t in range(T):
                x = {n: s[b, t, h] for n, s in data.items()}
                gram = x["gamma"] * gram + x["beta"] * torch.outer(x["k"], x["k"])
                cross = x["gamma"] * cross + x["beta"] * torch.outer(x["v"], x["k"])
                best = cross @ torch.linalg.inv(gram + torch.diag(x["ridge"]))
                close(answers[b, t, h], best @ x["q"], 1e-11)


def mlp(F: Arrays, x: Tensor) -> Tensor:
    return F["W2"] @ torch.nn.functional.gelu(F["W1"] @ x)


def leaves(arrays: Arrays) -> Arrays:
    return {n: a.detach().requires_grad_() for n, a in arrays.items()}


def gradient(value: Tensor, at: Arrays, create: bool = False) -> Arrays:
    found = torch.autograd.grad(value, list(at.values()), create_graph=create, allow_unused=True)
    pairs = zip(at.items(), found, strict=True)
    return {n: torch.zeros_like(a) if g is None else g for (n, a), g in pairs}


def test_titans() -> None:
    kinds = {"q": "n", "k": "n", "v": "n", "alpha": "", "eta": "", "mu": ""}
    shapes, data = streams_of(kinds)
    data = {n: torch.sigmoid(x) if n in ("alpha", "eta", "mu") else x for n, x in data.items()}
    call = "titans(q, k, v, alpha, eta, mu, chunk = 1)"
    truth = Reference(memory("titans", shapes, call=call))
    answers, _ = truth(data)
    for h in range(H):
        F = {a: truth.values[f"mixer.titans.M.{a}"][h] for a in ("W1", "W2")}
        m = {a: torch.zeros_like(x) for a, x in F.items()}
        for t in range(T):
            x = {n: s[0, t, h] for n, s in data.items()}
            at = leaves(F)
            g = gradient(((x["k"] + mlp(at, x["k"]) - x["v"]) ** 2).sum(), at)
            m = {a: x["mu"] * m[a] - x["eta"] * g[a] for a in F}
            F = {a: x["alpha"] * F[a] + m[a] for a in F}
            close(answers[0, t, h], x["q"] + mlp(F, x["q"]))


def test_frozen_gradients_are_taken_at_the_start_of_the_chunk() -> None:
    shapes, data = streams_of({"q": "n", "k": "n", "v": "n", "eta": ""})
    made = memory("ttt_mlp", shapes, call="ttt_mlp(q, k, v, eta, chunk = 4)")
    truth = Reference(made)
    answers, _ = truth(data)
    norm = torch.nn.functional.layer_norm

    def say(F: Arrays, x: Tensor) -> Tensor:
        return x + norm(mlp(F, x), (N,), eps=1e-6)

    F = {a: truth.values[f"mixer.ttt_mlp.M.{a}"][0] for a in ("W1", "W2")}
    frozen = F
    for t in range(T):
        x = {n: s[1, t, 0] for n, s in data.items()}
        frozen = F if t % 4 == 0 else frozen
        at = leaves(frozen)
        g = gradient(((say(at, x["k"]) - x["v"]) ** 2).sum() / 2, at)
        F = {a: F[a] - x["eta"] / N * g[a] for a in F}
        close(answers[1, t, 0], say(F, x["q"]))


def test_a_period_sums_and_keeps_once() -> None:
    made = system("""
        system one() {
          level slow(k, v, a) every 3 tokens {
            state M : matrix(3, 4)
            retain a
            objective sum((M(k) - v)^2)
            learn gradient(rate = a / 10)
            read M(k)
          }
          flow(k[3], v[4], a) { return slow(k, v, a) }
        }""")
    k, v, a = random(1, 7, 3), random(1, 7, 4), torch.sigmoid(random(1, 7))
    answers, _ = Reference(made)([k, v, a])
    S, total = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for t in range(7):
        close(answers[0, t], S @ k[0, t])
        total = total + 2 * torch.outer(S @ k[0, t] - v[0, t], k[0, t])
        if t % 3 == 2:
            S, total = a[0, t] * S - a[0, t] / 10 * total, 0 * total


@pytest.mark.parametrize("partial", ["drop", "flush"])
def test_a_reset_cuts_a_period_short(partial: str) -> None:
    made = system(f"""
        system one() {{
          level both(x) every 2 tokens {{
            partial {partial}
            reset every 3 tokens
            state s : vector(1)
            write x
            read s
          }}
          level kept(x) every 3 tokens {{
            reset never; state s : vector(1) {{ set 10 * x }}; read s
          }}
          flow(x[1]) {{ return concat(both(x), kept(x)) }}
        }}""")
    x = random(1, 8, 1)
    answers, _ = Reference(made)(x)
    expected = [[], [], [0, 1], [], [], [3, 4], [], []]
    for t, ticks in enumerate(expected):
        total = sum((x[0, i] for i in ticks), torch.zeros(1).double())
        close(answers[0, t, :1], total)
    close(answers[0, 7, 1:], 10 * x[0, 5])


def test_a_first_period_of_several_ticks() -> None:
    """`every token from 3` fires at its call from tick 3 on, and first what three ticks sum up to
    (2.6.2, 2.8).
    """
    text = """system one() {
      level sums(x[3]) every token from 3 {
        reset every 5 tokens
        state S : vector(3)
        write x
        read S
      }
      flow(x[3]) { return sums(x) }
    }"""
    x = random(1, 12, 3)
    answers, _ = Reference(system(text))(x)
    for t in range(12):
        life = x[0, t - t % 5 : t + 1].sum(0)
        close(answers[0, t], life if t % 5 >= 2 else 0 * life)
    model = nlc.compile(f"nl 1\n{text}", dtype=torch.float64)
    close(model(x)[0], answers)


def test_steps_on_the_same_data_and_networks_as_numbers() -> None:
    made = system("""
        system one() {
          level fast(k, v) every token {
            state M : matrix(3, 4)
            retain 0.5
            objective sum((M(k) - v)^2)
            learn gradient(rate = 0.1, steps = 3)
            read M(k)
          }
          level slow(k) every 2 tokens {
            state S : mlp(3, 5, 4) { set 0.5 * S - 2 * S }
            read S(k)
          }
          flow(k[3], v[4]) { return concat(fast(k, v), slow(k)) }
        }""")
    k, v = random(1, 4, 3), random(1, 4, 4)
    truth = Reference(made)
    answers, _ = truth([k, v])
    S = torch.zeros(4, 3).double()
    F = {a: truth.values[f"slow.S.{a}"] for a in ("W1", "W2")}
    for t in range(4):
        point = S
        change = torch.zeros(4, 3).double()
        for _ in range(3):
            change = change - 0.1 * 2 * torch.outer((point + change) @ k[0, t] - v[0, t], k[0, t])
        S = 0.5 * S + change
        close(answers[0, t, :4], S @ k[0, t])
        close(answers[0, t, 4:], mlp(F, k[0, t]))
        F = {a: -1.5 * x for a, x in F.items()} if t % 2 else F


# ---- optimizers on steps -----------------------------------------------------------------------

FIT = """
    {use}
    system fit() {{
      level training every step {{ objective loss; learn {rule} }}
      flow(x[3], y[4]) {{
        z = linear(tanh(linear(x, 5)), 4) + learned(4, start = 0.5)
        loss = sum((z - y)^2)
        return z
      }}
    }}"""


def fit(rule: str, use: str = "") -> Reference:
    return Reference(system(FIT.format(rule=rule, use=use)))


def by_hand(
    truth: Reference, make: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int
) -> None:
    """The same steps by torch's optimizer."""
    names = list(truth.values)
    at = {n: truth.values[n].clone().requires_grad_() for n in names}
    optimizer = make(list(at.values()))
    first, second, bias = names
    for i in range(steps):
        x, y = random(2, 5, 3, seed=i), random(2, 5, 4, seed=i)
        truth.step([x, y])
        z = torch.tanh(x @ at[first].T) @ at[second].T + at[bias]
        optimizer.zero_grad()
        torch.autograd.backward([((z - y) ** 2).sum(-1).mean()])
        optimizer.step()
        for n in names:
            close(truth.values[n], at[n].detach())


def test_adam() -> None:
    by_hand(fit("adam(rate = 0.01)"), lambda p: torch.optim.Adam(p, 0.01), 9)


def test_adamw() -> None:
    made = fit("adamw(rate = 0.01, shrink = 0.3)")
    by_hand(made, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.3), 9)


def test_momentum_is_heavy_ball() -> None:
    by_hand(fit("momentum(rate = 0.01)"), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), 5)


def test_gradient() -> None:
    by_hand(fit("gradient(rate = 0.01)"), lambda p: torch.optim.SGD(p, 0.01), 2)


def test_schedules_and_clipping_over_all_arrays() -> None:
    truth = fit("gradient(rate = 0.1 / count, grad = clipped(grad, 1))", 'use "schedules"')
    for i in range(3):
        x, y = random(1, 4, 3, seed=i), 3 * random(1, 4, 4, seed=i)
        before = dict(truth.values)
        grads = truth.gradients([x, y])
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()) + torch.zeros(()).double())
        truth.step([x, y])
        for n, g in grads.items():
            scaled = g * (1 / (norm + 1e-6)).clamp(max=1)
            close(truth.values[n], before[n] - 0.1 / (i + 1) * scaled)


def test_dgd_on_steps_sees_means() -> None:
    truth = fit("dgd(rate = 0.1) for matrices; learn gradient(rate = 0)")
    x, y = random(2, 3, 3), random(2, 3, 4)
    before, grads = dict(truth.values), truth.gradients([x, y])
    truth.step([x, y])
    first, second, _ = before
    rows = x.reshape(-1, 3)
    for n, seen in ((first, rows), (second, torch.tanh(rows @ before[first].T))):
        gram = seen.T @ seen / rows.shape[0]
        close(truth.values[n], before[n] - 0.1 * (before[n] @ gram + grads[n]))


def test_the_slow_momentum_of_m3_serves_the_next_period() -> None:
    truth = fit(
        "m3(rate = 0.01, period = 2, iterations = 1) for matrices; learn gradient(rate = 0)"
    )
    names = list(truth.values)[:2]
    fast = {n: torch.zeros_like(truth.values[n]) for n in names}
    seen, slow, pending = dict(fast), dict(fast), dict(fast)

    def orthogonal(G: Tensor) -> Tensor:
        X = G / G.norm().clamp(min=1e-7)
        A = X @ X.T
        Y: Tensor = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return Y

    for i in range(5):
        x, y = random(2, 3, 3, seed=i), random(2, 3, 4, seed=i)
        before, grads = dict(truth.values), truth.gradients([x, y])
        truth.step([x, y])
        for n in names:
            g = grads[n]
            fast[n] = 0.9 * fast[n] + 0.1 * g
            seen[n] = 0.99 * seen[n] + 0.01 * g**2
            amount = (orthogonal(fast[n]) + 0.5 * orthogonal(slow[n])) / (seen[n].sqrt() + 1e-8)
            close(truth.values[n], before[n] - 0.01 * amount, 1e-10)
            pending[n] = pending[n] + g
            if i % 2:
                slow[n], pending[n] = 0.9 * slow[n] + 0.1 * pending[n], 0 * g


def test_a_level_every_second_step_adds_two_means() -> None:
    text = FIT.replace("every step", "every 2 steps").format(rule="gradient(rate = 0.1)", use="")
    truth = Reference(system(text))
    before = dict(truth.values)
    a = truth.step([random(1, 3, 3), random(1, 3, 4)])
    assert all(torch.equal(before[n], truth.values[n]) for n in before)
    b = truth.step([random(1, 3, 3, seed=5), random(1, 3, 4, seed=5)])
    for n in before:
        close(truth.values[n], before[n] - 0.1 * (a[n] + b[n]))


# ---- transfers: exactly the promised gradients -------------------------------------------------

FAST = """
    use "memory/delta"
    system fast() {{
      level training every step {{ objective loss; learn gradient(rate = 0.1) }}
      level mixer(x) every token {{ read delta(linear(x, 3), linear(x, 3), linear(x, 3), 0.5) }}
      {transfer}
      flow(x[3], y[3]) {{
        z = linear(x, 3)
        out = z + mixer(z)
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


@pytest.mark.parametrize("kind", ["backprop", "condition", "truncated"])
def test_a_memory_and_its_owner(kind: str) -> None:
    lines = {
        "backprop": "transfer backprop mixer -> training",
        "condition": "transfer condition training -> mixer",
        "truncated": "transfer backprop mixer -> training through 2 tokens",
    }
    truth = Reference(system(FAST.format(transfer=lines[kind])))
    x, y = random(1, 5, 3), random(1, 5, 3, seed=9)
    at = leaves(truth.values)
    q, k, v, z_ = (next(w for n, w in at.items() if n.endswith(e)) for e in SUFFIXES)
    inside = [w.detach() if kind == "condition" else w for w in (q, k, v)]
    S, total = torch.zeros(3, 3).double(), torch.zeros(()).double()
    for t in range(5):
        z = z_ @ x[0, t]
        entered = z.detach() if kind == "condition" else z
        kt, vt = inside[1] @ entered, inside[2] @ entered
        S = S - 0.5 * torch.outer(S @ kt - vt, kt)
        total = total + ((z + S @ (inside[0] @ z) - y[0, t]) ** 2).sum() / 5
        S = S.detach() if kind == "truncated" and t % 2 else S
    expected = gradient(total, at)
    for n, g in truth.gradients([x, y]).items():
        close(g, expected[n])
        if kind == "condition" and "mixer" in n:
            assert float(g.abs().max()) == 0


SUFFIXES = ("mixer.read.linear", "mixer.read.linear_2", "mixer.read.linear_3", "z.linear")

MAML = """
    system maml() {{
      level outer every step {{ objective loss; learn gradient(rate = 0.1) }}
      level inner(x, y) every 2 tokens {{
        state F : mlp(3, 5, 3)
        objective sum((F(x) - y)^2)
        learn momentum(rate = 0.1, keep = 0.5)
        read F(x)
      }}
      transfer init outer -> inner {order}
      flow(x[3], y[3]) {{
        out = inner(tanh(linear(x, 3)), y)
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


@pytest.mark.parametrize("order", ["", "first order"])
def test_a_learned_start(order: str) -> None:
    """The start learns through the writes; what these were given is a constant to `outer`."""
    truth = Reference(system(MAML.format(order=order)))
    x, y = random(1, 7, 3), random(1, 7, 3, seed=4)
    at = leaves(truth.values)
    names = ["inner.F.W1", "inner.F.W2"]
    weight = next(n for n in at if n not in names)
    F = {n: at[f"inner.F.{n}"] for n in ("W1", "W2")}
    m = {n: torch.zeros_like(a) for n, a in F.items()}
    written, total = torch.zeros(()).double(), torch.zeros(()).double()
    for t in range(7):
        seen = torch.tanh(at[weight] @ x[0, t])
        total = total + ((mlp(F, seen) - y[0, t]) ** 2).sum() / 7
        written = written + ((mlp(F, seen.detach()) - y[0, t]) ** 2).sum()
        if t % 2:
            g = gradient(written, F, create=True)
            g = {n: a.detach() for n, a in g.items()} if order else g
            m = {n: 0.5 * m[n] - 0.1 * g[n] for n in F}
            F = {n: F[n] + m[n] for n in F}
            written = torch.zeros(()).double()
    expected = gradient(total, at)
    for n, found in truth.gradients([x, y]).items():
        close(found, expected[n])


CMS = """
    use "memory/continuum"
    system cms() {{
      level training every step {{ objective loss; learn gradient(rate = 0.1) }}
      level slow(x) every 3 tokens {{ read continuum(x, rate = 0.3, expand = 2) }}
      {transfer}
      flow(tokens) {{
        x = embed(tokens, 5, 4)
        x += slow(x)
        logits = unembed(x, 5)
        loss = cross_entropy(logits, next(tokens))
        return logits
      }}
    }}"""


@pytest.mark.parametrize("kind", ["second", "first", "init", "condition"])
def test_a_memory_that_learns_the_loss(kind: str) -> None:
    lines = {
        "second": "transfer backprop slow -> training; transfer init training -> slow",
        "first": "transfer backprop slow -> training first order; "
        "transfer init training -> slow first order",
        "init": "transfer condition training -> slow; transfer init training -> slow",
        "condition": "transfer condition training -> slow",
    }
    truth = Reference(system(CMS.format(transfer=lines[kind])), seed=3)
    tokens = torch.tensor([[0, 3, 1, 4, 4, 2, 0, 1]])
    truth.values = {n: a if "slow" in n else a * 0.5 + 0.1 for n, a in truth.values.items()}
    at = leaves(truth.values)
    table, out, gain = (
        at[n] for n in (*(n for n in at if "embed" in n), *(n for n in at if "norm" in n))
    )
    F = {a: at[f"slow.continuum.F.{a}"] for a in ("W1", "W2")}
    constant = kind in ("init", "condition")

    def loss(F: Arrays, t: int, stop: bool, gain: Tensor) -> tuple[Tensor, Tensor]:
        e, o = (table.detach(), out.detach()) if stop else (table, out)
        x = e[tokens[0, t]]
        normed = x / torch.sqrt((x**2).mean() + 1e-6) * gain
        logits = o @ (x + mlp(F, normed))
        return logits, torch.nn.functional.cross_entropy(logits, tokens[0, t + 1])

    inner_gain = gain.detach() if constant else gain
    answers, _ = truth(tokens)
    total, period = torch.zeros(()).double(), torch.zeros(()).double()
    for t in range(7):
        logits, value = loss(F, t, False, inner_gain)
        close(answers[0, t], logits.detach())
        total = total + value / 7
        period = period + loss(F, t, constant, inner_gain)[1]
        if t % 3 == 2:
            g = gradient(period, F, create=True)
            g = {n: a.detach() for n, a in g.items()} if kind in ("first", "condition") else g
            F = {n: F[n] - 0.3 * g[n] for n in F}
            period = torch.zeros(()).double()
    expected = gradient(total, at)
    found = truth.gradients(tokens)
    assert any("continuum.F" in n for n in found) == (kind != "condition")
    for n, given in found.items():
        close(given, expected[n])


SELF = """
    use "self_modifying_titans"
    system selves() {{
      n = 3
      level training every step {{ objective loss; learn gradient(rate = 0.1) }}
      level titans(x) every token {{
        state M[main, key] : residual(mlp(n, n)) per 2 {{ objective own_target(M, k, v) }}
        state G[rate, keep] : mlp(n, n, 1) per 2 {{ objective own_target(G, k, v) }}
        z = split(x, 2)
        k = unit(M.key(z))
        v = z
        η = 0.3 * softplus(G.rate(z))
        α = sigmoid(G.keep(z) + 2)
        retain α
        learn dgd(rate = η)
        linearise every {chunk} tokens
        read join(M.main(split(linear(x, 6), 2))) before write
      }}
      transfer backprop titans -> training
      transfer init training -> titans
      flow(x[6], y[6]) {{
        out = titans(x)
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


@pytest.mark.parametrize("chunk", [1, 3])
def test_self_modifying_titans(chunk: int) -> None:
    """Every memory by DGD, each array by its own input, targets made by the memories themselves."""
    truth = Reference(system(SELF.format(chunk=chunk)))
    x, y = random(1, 5, 6), random(1, 5, 6, seed=2)
    at = leaves(truth.values)
    query = next(w for n, w in at.items() if "linear" in n)
    gelu = torch.nn.functional.gelu

    def state(name: str, h: int) -> Arrays:
        return {a: at[f"titans.{name}.{a}"][h] for a in ("W1", "W2")}

    def say(F: Arrays, z: Tensor, residual: bool) -> Tensor:
        return z + mlp(F, z) if residual else mlp(F, z)

    kinds = ("M.main", "M.key", "G.rate", "G.keep")
    S = {(s, h): state(s, h) for s in kinds for h in range(2)}
    frozen = S
    total = torch.zeros(()).double()
    outs = []
    for t in range(5):
        frozen = dict(S) if t % chunk == 0 else frozen
        z, q = x[0, t].reshape(2, 3), (query @ x[0, t]).reshape(2, 3)
        out = torch.cat([say(S["M.main", h], q[h], True) for h in range(2)])
        outs.append(out)
        total = total + ((out - y[0, t]) ** 2).sum() / 5
        new = dict(S)
        for h in range(2):
            raw = say(frozen["M.key", h], z[h], True)
            k = raw / torch.sqrt((raw**2).sum() + 1e-30)
            rate = 0.3 * torch.nn.functional.softplus(say(frozen["G.rate", h], z[h], False))
            keep = torch.sigmoid(say(frozen["G.keep", h], z[h], False) + 2)
            for s in kinds:
                F, residual = frozen[s, h], s.startswith("M")
                hidden = F["W1"] @ k
                seen = {"W1": k, "W2": gelu(hidden)}
                wrong = 2 * (say(F, k, residual) - say(F, z[h], residual))
                slope = torch.autograd.grad(gelu(hidden).sum(), hidden, create_graph=True)[0]
                surprise = {"W2": wrong, "W1": (F["W2"].T @ wrong) * slope}
                new[s, h] = {
                    a: keep * w
                    - rate * (w @ torch.outer(seen[a], seen[a]) + torch.outer(surprise[a], seen[a]))
                    for a, w in S[s, h].items()
                }
        S = new
    answers, _ = truth([x, y])
    close(answers[0], torch.stack(outs).detach())
    expected = gradient(total, at)
    for n, g in truth.gradients([x, y]).items():
        close(g, expected[n])
        assert float(g.abs().max()) > 0


# ---- the rest of the rules -----------------------------------------------------------------------


def test_what_is_kept_in_the_dual_and_brought_back() -> None:
    """`through softmax`, row by row as it is stored, and `onto` with the array at the reset."""
    made = system("""
        def same_rows(A, start) { return A * column(length(start) / length(A)) }
        system one() {
          level dual(k, v) every token {
            state M : matrix(3, 4) = normal(0.5)
            objective sum((M(k) - v)^2)
            retain 0.9 through softmax
            learn gradient(rate = 0.1)
            read M(k)
          }
          level sphere(k, v) every token {
            state M : matrix(3, 4) per 2 = normal(0.5)
            objective sum((M(k) - v)^2)
            retain 0.9 onto same_rows
            learn gradient(rate = 0.1)
            read join(M(k))
          }
          flow(k[3], v[4]) { return concat(dual(k, v), sphere(stack2(k), stack2(v))) }
        }
        def stack2(x) { return transpose(stack(x, 2 * x)) }""")
    k, v = random(1, 4, 3), random(1, 4, 4)
    truth = Reference(made)
    answers, _ = truth([k, v])
    A, S = truth.values["dual.M"], truth.values["sphere.M"]
    first = S
    for t in range(4):
        p = A.softmax(-1)
        A = 0.9 * A - 0.1 * 2 * torch.outer(p @ k[0, t] - v[0, t], k[0, t])
        close(answers[0, t, :4], A.softmax(-1) @ k[0, t])
        heads = []
        for h in range(2):
            x, y = (h + 1) * k[0, t], (h + 1) * v[0, t]
            new = 0.9 * S[h] - 0.1 * 2 * torch.outer(S[h] @ x - y, x)
            heads.append(new * (first[h].norm(dim=-1) / new.norm(dim=-1)).unsqueeze(-1))
        S = torch.stack(heads)
        close(answers[0, t, 4:], torch.cat([(h + 1) * S[h] @ k[0, t] for h in range(2)]))


def test_the_clock_of_sequences_and_what_is_taken_once() -> None:
    made = system("""
        system one() {
          level asleep(k, v) every sequence {
            state S : matrix(3, 4)
            objective sum((S(past(k, 3)) - past(v, 3))^2) once
            retain 0.9
            learn gradient(rate = 0.1, steps = 2)
            read S(k)
          }
          level awake(k) every 2 tokens from 3 {
            state c : vector(1) { write 1 }
            read c + 0 * sum(k)
          }
          flow(k[3], v[4]) { return concat(asleep(k, v), awake(k), stack(position)) }
        }""")
    k, v = random(1, 5, 3), random(1, 5, 4)
    truth = Reference(made)
    first, state = truth([k, v])
    assert not first[..., :4].any()
    assert first[0, :, 4].tolist() == [0, 0, 0, 3, 3] and first[0, :, 5].tolist() == [0, 1, 2, 3, 4]
    second, _ = truth([k, v], truth.finish(state))
    change = torch.zeros(4, 3).double()
    for _ in range(2):
        for t in (2, 3, 4):
            if t == 2:
                at = change
            change = change - 0.1 * 2 * torch.outer(at @ k[0, t] - v[0, t], k[0, t])
    close(second[0, :, :4], k[0] @ change.T)
    assert second[0, :, 4].tolist() == [0, 0, 0, 3, 3] and second[0, 0, 5] == 0


def test_a_start_that_a_level_on_tokens_learns() -> None:
    """F@mid: by mid's rule and clock, from the loss, through fast's start and its writes since."""
    made = system("""
        system one() {
          level mid(x) every 4 tokens {
            state S : matrix(3, 3)
            objective loss
            learn gradient(rate = 0.05)
            read S(x)
          }
          level fast(x, y) every 2 tokens {
            reset every 4 tokens
            state F : matrix(3, 3)
            objective sum((F(x) - y)^2)
            learn gradient(rate = 0.1)
            read F(x)
          }
          transfer init mid -> fast
          flow(x[3], y[3]) {
            out = tanh(mid(x) + fast(x, y))
            loss = sum((out - y)^2)
            return out
          }
        }""")
    x, y = random(1, 11, 3), random(1, 11, 3, seed=7)
    answers, _ = Reference(made)([x, y])
    S = torch.zeros(3, 3).double().requires_grad_()
    start = torch.zeros(3, 3).double().requires_grad_()
    F, total, written = start, torch.zeros(()).double(), torch.zeros(3, 3).double()
    for t in range(11):
        out = torch.tanh((S + F) @ x[0, t])
        close(answers[0, t], out.detach())
        total = total + ((out - y[0, t]) ** 2).sum()
        written = written + 2 * torch.outer(F @ x[0, t] - y[0, t], x[0, t])
        if t % 2:
            F, written = F - 0.1 * written, torch.zeros(3, 3).double()
        if t % 4 == 3:
            g = gradient(total, {"S": S, "start": start})
            S = (S - 0.05 * g["S"]).detach().requires_grad_()
            start = (start - 0.05 * g["start"]).detach().requires_grad_()
            F, total = start, torch.zeros(()).double()


def test_a_state_is_seen_as_it_stands_at_its_place() -> None:
    made = system("""
        system one() {
          level fast(x) every token { state a : vector(1) { write x }; read a before write }
          level slow(x) every 2 tokens { state s : vector(1) { set s + fast.a }; read s }
          transfer condition fast -> slow
          transfer generate fast -> slow
          flow(x[1]) {
            early = fast.a + 0
            y = fast(x)
            late = fast.a + 0
            return concat(early, y, late, slow(x))
          }
        }""")
    answers, _ = Reference(made)(torch.ones(1, 5, 1))
    assert answers[0].tolist() == [
        [0, 0, 1, 0],
        [1, 1, 2, 0],
        [2, 2, 3, 2],
        [3, 3, 4, 2],
        [4, 4, 5, 6],
    ]


ATTENTION = """
    use "memory/attend"
    system reads() {{
      level training every step {{ objective loss; learn gradient(rate = 0.1) }}
      level attention(x) always {{ read attend(linear(x, 3), linear(x, 3), linear(x, 3)) }}
      transfer {transfer}
      flow(x[3], y[3]) {{
        z = linear(x, 3)
        out = z + attention(z)
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


@pytest.mark.parametrize("kind", ["backprop", "truncated"])
def test_gradients_enter_pasts_by_a_transfer(kind: str) -> None:
    line = "backprop attention -> training" + (" through 2 tokens" if kind == "truncated" else "")
    truth = Reference(system(ATTENTION.format(transfer=line)))
    x, y = random(1, 5, 3), random(1, 5, 3, seed=9)
    at = leaves(truth.values)
    ends = [e.replace("mixer", "attention") for e in SUFFIXES]
    q, k, v, z_ = (next(w for n, w in at.items() if n.endswith(e)) for e in ends)
    keys, values, total = [], [], torch.zeros(()).double()
    for t in range(5):
        z = z_ @ x[0, t]
        keys.append(k @ z)
        values.append(v @ z)
        scores = (torch.stack(keys) @ (q @ z) / 3**0.5).softmax(-1)
        total = total + ((z + scores @ torch.stack(values) - y[0, t]) ** 2).sum() / 5
        if kind == "truncated" and t % 2:
            keys, values = [a.detach() for a in keys], [a.detach() for a in values]
    expected = gradient(total, at)
    for n, g in truth.gradients([x, y]).items():
        close(g, expected[n])


def test_a_level_without_a_transfer_enters_no_past() -> None:
    """The loss reaches an earlier read of F through a past of the flow: a constant to F's level."""
    made = system("""
        system one() {
          level slow(x) every 3 tokens {
            state F : matrix(3, 3)
            objective loss
            learn gradient(rate = 0.1)
            read F(x)
          }
          flow(x[3], y[3]) {
            out = sum(transpose(past(tanh(x + slow(x)), 2)), 1)
            loss = sum((out - y)^2)
            return out
          }
        }""")
    x, y = random(1, 7, 3), random(1, 7, 3, seed=5)
    answers, _ = Reference(made)([x, y])
    F, total = torch.zeros(3, 3).double().requires_grad_(), torch.zeros(()).double()
    older: list[Tensor] = []
    for t in range(7):
        now = torch.tanh(x[0, t] + F @ x[0, t])
        out = now + sum(older[-1:], torch.zeros(3).double())
        older.append(now.detach())
        close(answers[0, t], out.detach())
        total = total + ((out - y[0, t]) ** 2).sum()
        if t % 3 == 2:
            F = (F - 0.1 * gradient(total, {"F": F})["F"]).detach().requires_grad_()
            total = torch.zeros(()).double()


def test_weights_whose_owner_lives_on_tokens() -> None:
    made = system("""
        system one() {
          level learner every 2 tokens {
            objective loss + loss^2 / 9
            retain 0.9
            learn momentum(rate = 0.1)
          }
          flow(x[3], y[2]) {
            out = linear(tanh(linear(x, 3)), 2)
            loss = sum((out - y)^2)
            return out
          }
        }""")
    truth = Reference(made)
    x, y = random(2, 7, 3), random(2, 7, 2)
    answers, _ = truth([x, y])
    for b in range(2):
        at = leaves(truth.values)
        m = {n: torch.zeros_like(a) for n, a in at.items()}
        first, second = at
        total = torch.zeros(()).double()
        for t in range(7):
            out = at[second] @ torch.tanh(at[first] @ x[b, t])
            close(answers[b, t], out.detach())
            off = ((out - y[b, t]) ** 2).sum()
            total = total + off + off**2 / 9
            if t % 2:
                g = gradient(total, at)
                m = {n: 0.9 * m[n] - 0.1 * g[n] for n in m}
                at, total = leaves({n: 0.9 * at[n] + m[n] for n in m}), torch.zeros(()).double()


def test_states_on_steps_one_for_all() -> None:
    """Two states of a level on steps by torch's Adam; a third that follows, one step behind."""
    made = system("""
        system one() {
          level base never { }
          level adapter(x) every step {
            state A : matrix(3, 2) = normal(0.5)
            state B : matrix(2, 3) = normal(0.5)
            objective loss + 0.01 * sum(B^2)
            learn adam(rate = 0.01)
            read B(A(x))
          }
          level target(x) every step {
            state T : matrix(3, 2) = adapter.A
            set 0.5 * T + 0.5 * adapter.A
            read T(x)
          }
          transfer generate adapter -> target
          flow(x[3], y[3]) {
            out = linear(x, 3) + adapter(x)
            loss = sum((out - y)^2) + 0 * sum(target(x))
            return out
          }
        }""")
    truth = Reference(made)
    A, B = (truth.values[f"adapter.{n}"].clone().requires_grad_() for n in "AB")
    frozen = next(a for n, a in truth.values.items() if "linear" in n)
    follows = A.detach().clone()
    optimizer = torch.optim.Adam([A, B], 0.01)
    for i in range(4):
        x, y = random(2, 3, 3, seed=i), random(2, 3, 3, seed=i + 9)
        truth.step([x, y])
        follows = 0.5 * follows + 0.5 * A.detach()
        loss = ((x @ frozen.T + x @ A.T @ B.T - y) ** 2).sum(-1).mean() + 0.01 * (B**2).sum()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        close(truth.values["adapter.A"], A.detach())
        close(truth.values["adapter.B"], B.detach())
        close(truth.kept[("target", ()), "T"][""], follows)


def test_tasks_inside_an_optimizer() -> None:
    """Elastic weight consolidation: what a task needed holds the weights after it."""
    rule = "ewc(rate = 0.1, hold = 2)"
    optimizer = """
    optimizer ewc(weight, grad, rate = 1e-2, hold = 1) {
      level tasks every task {
        state fisher : like(weight) {
          retain 0.9; objective -sum(fisher * grad^2); learn gradient(rate = 1)
        }
        state anchor : like(weight) = weight { set weight }
      }
      write -rate * (grad + hold * tasks.fisher * (weight - tasks.anchor))
    }"""
    truth = fit(rule, optimizer)
    names = list(truth.values)
    anchor = {n: truth.values[n] for n in names}
    fisher = {n: torch.zeros_like(anchor[n]) for n in names}
    for task in range(2):
        seen, last = {n: torch.zeros_like(fisher[n]) for n in names}, dict(anchor)
        for i in range(3):
            x, y = random(1, 2, 3, seed=i + task), random(1, 2, 4, seed=i + task)
            before, grads = dict(truth.values), truth.gradients([x, y])
            truth.step([x, y])
            for n in names:
                held = 2 * fisher[n] * (before[n] - anchor[n])
                close(truth.values[n], before[n] - 0.1 * (grads[n] + held))
                seen[n], last[n] = seen[n] + grads[n] ** 2, before[n]
        truth.end_task()
        fisher = {n: 0.9 * fisher[n] + seen[n] for n in names}
        anchor = last


def test_dropout_belongs_to_steps() -> None:
    made = system("""
        system one() {
          level training every step { objective loss; learn gradient(rate = 0) }
          flow(x[50]) { z = dropout(learned(50, start = 1) * x, 0.5); loss = sum(z); return z }
        }""")
    truth, x = Reference(made), torch.ones(2, 3, 50)
    assert torch.equal(truth(x)[0], x.double())
    first = next(iter(truth.gradients(x).values()))
    assert torch.equal(first, next(iter(truth.step(x).values())))
    assert not torch.equal(first, next(iter(truth.gradients(x).values())))
    close(first * 3, (first * 3).round())
    assert 0.7 < first.mean() < 1.3 and first.std() > 0.3


@pytest.mark.parametrize("label", ["next(t)", "y"])
def test_labels_are_the_inputs_to_come(label: str) -> None:
    """A write that needs the next input comes when that has arrived, before it is read."""
    made = system(f"""
        system one() {{
          level ahead(x, t, y) every token {{
            state M : matrix(2, 2)
            retain 0.9
            objective sum((M(x) - {label})^2)
            learn gradient(rate = 0.1)
            read M(x)
          }}
          flow(x[2]) {{ return ahead(x, x, next(x)) }}
        }}""")
    x = random(1, 5, 2)
    truth = Reference(made)
    answers, state = truth(x)
    M = torch.zeros(2, 2).double()
    for t in range(5):
        close(answers[0, t], M @ x[0, t])
        if t < 4:
            M = 0.9 * M - 0.1 * 2 * torch.outer(M @ x[0, t] - x[0, t + 1], x[0, t])
    assert truth.finish(state).samples[0].instances[("ahead", ())].cells == {}


def test_a_stream_that_is_not_given_teaches_nothing() -> None:
    shapes, data = streams_of({"q": "n", "k": "n", "v": "m", "beta": ""})
    truth = Reference(memory("delta", shapes))
    _, state = truth(data)
    without: dict[str, Tensor | None] = {n: x[:, :2] for n, x in data.items()}
    before, _ = truth({**data, "beta": 0 * data["beta"]}, state)
    answers, _ = truth({**without, "v": None}, state)
    close(answers, before[:, :2])


def test_a_period_cut_by_the_end_of_a_call() -> None:
    text = """
        system one() {{
          level both(x) every 3 tokens {{
            partial {partial}; state s : vector(1) {{ write x }}; read s
          }}
          flow(x[1]) {{ return both(x) }}
        }}"""
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    for partial, total in (("carry", 7.0), ("drop", 6.0)):
        truth = Reference(system(text.format(partial=partial)))
        _, state = truth(x[:, :1])
        rest, again = truth(x[:, 1:], state)[0], truth(x[:, 1:], state)[0]
        assert torch.equal(rest, again) and rest[0, :, 0].tolist() == [0, 0, total]


# ---- every spec --------------------------------------------------------------------------------

SIZES: dict[str, object] = {
    "vocab": 11, "width": 8, "depth": 2, "heads": 2, "hidden": 8, "chunk": 3, "periods": [2, 4, 8],
    "buckets": [1, 2, 4], "period": 4, "window": 4, "replayed": 2, "code": 3, "segment": 3,
    "persist": 2, "memories": 2, "chosen": 1, "block": 5, "rank": 2, "shots": 3, "classes": 5,
    "pixels": 4, "drop": 0.1,
}  # fmt: skip


def specs() -> list[Path]:
    folders = (ROOT / "specs", ROOT / "tests" / "cases" / "good")
    found = [p for f in folders for p in sorted(f.glob("*.nl"))]
    return [p for p in found if "\nsystem " in p.read_text()]


def small(path: Path, **more: object) -> System:
    """A spec at tiny sizes: those of its own settings that are named in SIZES."""
    header = path.read_text().split("\nsystem ", 1)[1].split("{", 1)[0]
    settings = {n: v for n, v in {**SIZES, **more}.items() if f"{n} = " in header}
    checked = check_file(path, settings)
    assert checked.system is not None and not checked.errors, checked.errors
    return checked.system


def data_for(made: System, batch: int, time: int, seed: int = 0) -> Arrays:
    data = {}
    for i, (name, shape) in enumerate(made.flow.inputs):
        generator = torch.Generator().manual_seed(seed + i)
        if shape:
            data[name] = torch.randn(batch, time, *shape, generator=generator, dtype=torch.float64)
        else:
            data[name] = torch.randint(0, 5, (batch, time), generator=generator)
    return data


@pytest.mark.parametrize("path", specs(), ids=lambda p: p.stem)
def test_every_spec(path: Path) -> None:
    """Finite, causal, the same for any split; samples are apart; all that is trained learns."""
    made = small(path)
    truth = Reference(made)
    data = data_for(made, 2, 6)
    answers, _ = truth(data)
    assert bool(torch.isfinite(answers).all())
    state, parts = None, []
    for since, end in ((0, 1), (1, 4), (4, 6)):
        part, state = truth({n: x[:, since:end] for n, x in data.items()}, state)
        parts.append(part)
    close(torch.cat(parts, 1), answers, 0.0)
    assert state is not None
    again, _ = truth(data, truth.finish(state))
    alone, _ = truth({n: x[1:] for n, x in data.items()})
    if "fresh" not in path.read_text():
        close(alone[0], answers[1], 0.0)
        if path.stem != "sleep":  # whose slow memory lives on
            close(again, answers, 0.0)
    later = {n: x.clone() for n, x in data.items()}
    for x in later.values():
        x[:, -1] += 1 if x.dtype.is_floating_point else 0
        x[:, -1] = x[:, -1] if x.dtype.is_floating_point else (x[:, -1] + 1) % 5
    changed, _ = truth(later)
    close(changed[:, :-1], answers[:, :-1], 0.0)
    grads = truth.gradients(data)
    assert set(grads) == {p.name for p in parameters(made) if p.trained_by is not None}
    still = [n for n, g in grads.items() if not float(g.abs().max()) > 0]
    assert not [n for n in still if not (path.stem == "lora" and n.endswith(".A"))]
    truth.step(data)
    assert all(bool(torch.isfinite(x).all()) for x in truth.values.values())


DIFFERENTIATED = [
    "deltanet", "titans", "self_modifying_titans", "cms_nested", "log_linear_attention",
    "hypernetwork", "learned_optimizer", "lstm", "maml", "consolidation",
]  # fmt: skip


CHAINED = """
    system chained() {
      level training every step {
        objective loss
        learn muon(rate = 0.01) for matrices
        learn gradient(rate = 0.1)
        state E : table(5, 4)
      }
      level mid(x) every 4 tokens {
        state S : matrix(2, 2) per 2
        objective loss
        learn gradient(rate = 0.5)
        read join(S(split(x, 2)))
      }
      level fast(x) every 2 tokens {
        reset every 4 tokens
        state F : mlp(2, 3) per 2
        objective loss
        learn dgd(rate = 0.3)
        read join(F(split(x, 2)))
      }
      transfer init training -> mid -> fast
      transfer backprop mid, fast -> training
      flow(tokens) {
        x = E(tokens)
        x += mid(norm(x)) + fast(norm(x))
        logits = unembed(x, 5)
        loss = cross_entropy(logits, next(tokens))
        return logits
      }
    }"""

SOLVED = """
    system solved() {
      level training every step {
        objective loss
        learn adam(rate = 0.01)
        state W : matrix(3, 3) = normal(0.4)
        state V : matrix(3, 3) = normal(0.4)
      }
      level att(x) always {
        state z : vector(3)
        objective sum(exp(dot(past(x, 3), linear(x, 3))) * length(past(x, 3) - z)^2) + sum(z^4)
        learn exact
        read z
      }
      level cells(x) every token { state c : vector(3) { set tanh(W(c) + x) }; read c }
      transfer backprop att, cells -> training
      transfer generate att -> cells
      flow(x[3], y[3]) {
        out = cells(att(V(x))) + learned(3)
        loss = sum((out - y)^2)
        return out
      }
    }"""


def check_derivative(made: System, seed: int, tolerance: float = 1e-6) -> None:
    """Along two random ways: all weights, and all starts and states."""
    data = data_for(made, 1, 9, seed=3)
    start = Reference(made, seed=seed).values
    weights = {p.name for p in parameters(made) if p.box is None}
    values = {n: x + 0.05 * random(*x.shape, seed=prod(x.shape)) for n, x in start.items()}
    grads = Reference(made, values).gradients(data)

    def loss(way: Arrays, size: float) -> float:
        at = {**values, **{n: values[n] + size * x for n, x in way.items()}}
        losses, known = Reference(made, at).losses(data)
        return float(losses.sum() / known.sum())

    groups = [[n for n in grads if (n in weights) == w] for w in (True, False)]
    for group in (g for g in groups if g):
        way = {n: random(*values[n].shape, seed=i) for i, n in enumerate(group)}
        a, b, c, d = (loss(way, e * 1e-5) for e in (2, 1, -1, -2))
        expected = (8 * (b - c) - (a - d)) / 12e-5
        found = float(sum(float((grads[n] * x).sum()) for n, x in way.items()))
        assert abs(expected - found) < tolerance * (1 + abs(expected)), group


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_training_gradients_are_finite_differences(name: str) -> None:
    """Where every transfer is open and of second order: the derivative of the loss."""
    path = next(p for p in specs() if p.stem == name)
    check_derivative(small(path, depth=1, width=4, hidden=4), seed=1)


@pytest.mark.parametrize("text", [CHAINED, SOLVED], ids=["chained", "solved"])
def test_gradients_through_chains_and_solutions(text: str) -> None:
    check_derivative(system(text), seed=0)


# ---- parameters --------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_name_only() -> None:
    made = small(ROOT / "specs" / "titans.nl")
    wider = small(ROOT / "specs" / "titans.nl", depth=3)
    mine, theirs = ({p.name: p for p in parameters(s)} for s in (made, wider))
    assert set(mine) < set(theirs)
    assert all(torch.equal(draw(p, 7), draw(theirs[n], 7)) for n, p in mine.items())
    name = next(n for n in mine if "embed" in n)
    assert not torch.equal(draw(mine[name], 7), draw(mine[name], 8))


def test_parameters_are_listed_without_torch() -> None:
    code = (
        "import sys\nfrom nlc.driver import check_file\n"
        "from nlc.backends.parameters import parameters\n"
        f"s = check_file({str(ROOT / 'specs' / 'hope.nl')!r}).system\n"
        "assert parameters(s) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_trace_holds_every_update() -> None:
    truth = Reference(system(CMS.format(transfer="transfer backprop slow -> training")))
    _, state = truth(torch.tensor([[0, 3, 1, 4, 4, 2, 0]]))
    truth.finish(state)
    assert [(r.tick, r.event) for r in truth.trace] == [(3, "fire"), (6, "fire"), (7, "reset")]
    assert all(r.before != r.after for r in truth.trace if r.event == "fire")


WRONG = {
    "one axis": (torch.tensor([1, 2]), r"`tokens` is \[batch, time\] and was given \[2\]"),
    "a list": ([[1, 2]], r"`tokens` is \[batch, time\] and was given list"),
    "nothing": (None, "takes tokens, and was given none"),
    "no ticks": (torch.zeros(1, 0).long(), r"a tick at a time, and was given \[1, 0\]"),
    "no samples": (torch.zeros(0, 3).long(), r"a tick at a time, and was given \[0, 3\]"),
    "complex": (torch.zeros(1, 3, dtype=torch.complex64), "real numbers are wanted"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs_that_do_not_fit(wrong: str) -> None:
    given, said = WRONG[wrong]
    truth = nlc.reference(nlc.load("deltanet", width=8, depth=1, heads=2, vocab=7))
    with pytest.raises(ValueError, match=said):
        truth(given)  # type: ignore[arg-type]


def test_weights_that_do_not_fit() -> None:
    spec = nlc.load("deltanet", width=8, depth=1, heads=2, vocab=7)
    weights = nlc.compile(spec).state_dict()
    weights["x.embed"] = weights["x.embed"][:3]
    with pytest.raises(ValueError, match=r"`x.embed` is \[7, 8\] and was given \[3, 8\]"):
        nlc.reference(spec, weights)
