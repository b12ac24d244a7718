"""What the paper of nested learning (arXiv:2512.24695) says its systems do, a test for each claim
against formulas written here by hand. Numbers in brackets are the paper's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shipped import distance
from torch import Tensor

import nlc
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model
from nlc.driver import Spec, SpecError
from nlc.testing.laws import varied

torch.set_num_threads(1)
TIGHT = 1e-12


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LINE = """nl 1
system one() {{
  level training every step {{ objective loss; learn {rule} }}
  flow(x[3], y[2]) {{
    p = linear(x, 2)
    loss = sum((p - y)^2) / 2
    return p
  }}
}}
"""


# ---- a: levels are sorted by how often they change, and by what they use of the same tick --------


def ranks(learn: str) -> list[str]:
    """Slowest first."""
    spec = nlc.load(LINE.format(rule=learn))
    return [rank.name for rank in spec.level_graph.levels]


def test_a_momentum_is_faster_than_the_weight() -> None:
    assert ranks("momentum()") == ["training", "training.momentum"]


def test_a_adams_moments_are_one_level_faster_than_the_weight() -> None:
    """Neither moment uses the other: one rank, which holds both."""
    assert ranks("adam()") == ["training", "training.adam"]
    spec = nlc.load(LINE.format(rule="adam()"))
    (moments,) = spec.level_graph.levels[1].components
    assert {part.name.rsplit(".", 1)[-1] for part in moments.parts} == {"m", "h"}


def test_a_states_that_need_each_other_in_one_tick_are_refused() -> None:
    text = """nl 1
system circle() {
  level training every step { objective loss; learn gradient() }
  level a(x) every token { state s : vector(3); retain 0.5; write x + b.s; read s }
  level b(x) every token { state s : vector(3); retain 0.5; write x; read s }
  transfer condition a -> b
  transfer condition b -> a
  flow(x[3]) {
    y = a(b(a(x)))
    loss = sum(linear(y, 3)^2)
    return y
  }
}
"""
    with pytest.raises(SpecError) as raised:
        nlc.load(text)
    assert raised.value.diagnostics


# ---- b: steps of gradients are proximal minimisers -----------------------------------------------


def least(objective: Any, start: Tensor) -> Tensor:
    """The minimiser of a strictly convex quadratic, by one Newton step."""
    flat = start.numel()
    hessian: Tensor = torch.autograd.functional.hessian(objective, start)  # type: ignore[no-untyped-call]
    slope = torch.func.grad(objective)(start).reshape(-1)
    step: Tensor = torch.linalg.solve(hessian.reshape(flat, flat), slope)
    return start - step.reshape(start.shape)


def stepped(rule: str, steps: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Weights before each step and after the last, gradients, and the data."""
    truth = nlc.reference(nlc.load(LINE.format(rule=rule)))
    x, y = draw(1, 1, 3, seed=1), draw(1, 1, 2, seed=2)
    weights, grads = [truth.values["p.linear"].clone()], []
    for _ in range(steps):
        grads.append(truth.step([x, y])["p.linear"])
        weights.append(truth.values["p.linear"].clone())
    return weights, grads, x[0, 0], y[0, 0]


def test_b_gradient_descent_is_the_minimiser_of_9() -> None:
    """<W x, u> + |W - W_t|^2 / (2 eta), with u the local surprise."""
    eta = 0.3
    weights, _, x, y = stepped(f"gradient(rate = {eta})", 1)
    u = weights[0] @ x - y
    found = least(
        lambda w: (w @ x) @ u + ((w - weights[0]) ** 2).sum() / (2 * eta),
        torch.zeros(2, 3).double(),
    )
    assert distance(weights[1], found) <= TIGHT


def test_b_momentum_is_the_minimiser_of_13() -> None:
    """m <- least of <m, grad> + |m - m_t|^2 / (2 eta), and W <- W + m: (10), (11)."""
    eta = 0.2
    weights, grads, _, _ = stepped(f"momentum(rate = {eta}, keep = 1)", 3)
    m = torch.zeros(2, 3).double()
    for before, after, g in zip(weights, weights[1:], grads, strict=False):
        was, slope = m, g
        m = least(lambda z, was=was, g=slope: (z * g).sum() + ((z - was) ** 2).sum() / (2 * eta), m)
        assert distance(after - before, m) <= 1e-11


def test_b_momentum_that_forgets_is_17() -> None:
    """m <- alpha m - eta grad: the same memory, held by a weight on its own size."""
    weights, grads, _, _ = stepped("momentum(rate = 0.2, keep = 0.7)", 4)
    m = torch.zeros(2, 3).double()
    for before, after, g in zip(weights, weights[1:], grads, strict=False):
        m = 0.7 * m - 0.2 * g
        assert distance(after - before, m) <= 1e-11


# ---- c: delta gradient descent -------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.1, 1.0, 7.0])
def test_c_dgd_is_the_least_of_56_for_any_length(length: float) -> None:
    """|W x - u|^2 / 2 + |W - W_t|^2 / (2 eta) with u = -(W_t x - y) held; 57 is it for |x| = 1."""
    eta, truth = 0.4, nlc.reference(nlc.load(LINE.format(rule="dgd_proximal(rate = 0.4)")))
    x, y = length * F.normalize(draw(3, seed=3), dim=0), draw(2, seed=4)
    w = truth.values["p.linear"].clone()
    truth.step([x.view(1, 1, 3), y.view(1, 1, 2)])
    u = -(w @ x - y)
    found = least(lambda z: ((z @ x - u) ** 2).sum() / 2 + ((z - w) ** 2).sum() / (2 * eta), w)
    assert distance(truth.values["p.linear"], found) <= TIGHT
    rate = eta / (1 + eta * length**2)
    closed = w - rate * (w @ torch.outer(x, x)) + rate * torch.outer(u, x)
    assert distance(found, closed) <= TIGHT


# ---- d: attention and its relatives are solutions ------------------------------------------------


def heads_of(*sizes: int) -> list[Tensor]:
    return [draw(1, 7, 1, n, seed=i) for i, n in enumerate(sizes)]


def test_d_linear_attention_is_gradient_descent_on_a_dot_product() -> None:
    q, k, v = heads_of(3, 3, 2)
    y, _ = nlc.memory("linear")(q, k, v)
    m = torch.zeros(2, 3).double()
    for t in range(7):
        m = m - torch.func.grad(lambda z, t=t: -(z @ k[0, t, 0]) @ v[0, t, 0])(m)
        assert distance(y[0, t, 0], m @ q[0, t, 0]) <= TIGHT


def test_d_deltanet_is_gradient_descent_on_squares() -> None:
    q, k, v = heads_of(3, 3, 2)
    beta = torch.sigmoid(draw(1, 7, 1, seed=9))
    y, _ = nlc.memory("delta")(q, k, v, beta=beta)
    m = torch.zeros(2, 3).double()
    for t in range(7):
        slope = torch.func.grad(lambda z, t=t: ((z @ k[0, t, 0] - v[0, t, 0]) ** 2).sum() / 2)(m)
        m = m - beta[0, t, 0] * slope
        assert distance(y[0, t, 0], m @ q[0, t, 0]) <= TIGHT


def test_d_attention_is_the_weighted_least_squares_of_62() -> None:
    """At each tick the point that is nearest to all values, weighed by exp(q.k / sqrt(n))."""
    q, k, v = heads_of(4, 4, 2)
    y, _ = nlc.memory("softmax")(q, k, v)
    for t in range(7):
        weight = torch.exp(k[0, : t + 1, 0] @ q[0, t, 0] / math.sqrt(4))

        def objective(z: Tensor, t: int = t, weight: Tensor = weight) -> Tensor:
            return (weight * ((v[0, : t + 1, 0] - z) ** 2).sum(-1)).sum()

        assert distance(y[0, t, 0], least(objective, torch.zeros(2).double())) <= 1e-11
        attended = torch.softmax(k[0, : t + 1, 0] @ q[0, t, 0] / math.sqrt(4), 0) @ v[0, : t + 1, 0]
        assert distance(y[0, t, 0], attended) <= TIGHT


# ---- e: a continuum memory -----------------------------------------------------------------------

CMS = """nl 1
system chain() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  {levels}
  {transfers}
  flow(x[4], y[4]) {{
    p = x
    {calls}
    loss = sum((p - y)^2)
    return p
  }}
}}
"""
BLOCK = """level {name}(x) every {clock} {{
    {reset}
    state F : mlp(4, 5, 4)
    objective loss
    learn gradient(rate = {rate})
    read F(x)
  }}"""


def chain(clocks: dict[str, str], rate: float = 0.05, resets: dict[str, str] | None = None) -> Spec:
    levels = [
        BLOCK.format(name=n, clock=c, rate=rate, reset=(resets or {}).get(n, ""))
        for n, c in clocks.items()
    ]
    nested = " -> ".join(reversed(clocks)) if resets else ", ".join(clocks)
    return nlc.load(
        CMS.format(
            levels="\n  ".join(levels),
            transfers=f"transfer init training -> {nested} first order",
            calls="\n    ".join(f"p = {n}(p)" for n in clocks),
        )
    )


def pairs(time: int) -> tuple[Tensor, Tensor]:
    return draw(1, time, 4, seed=1), draw(1, time, 4, seed=2)


def mlp(model: Model, name: str, x: Tensor) -> Tensor:
    w = dict(model.named_weights())
    return F.gelu(x @ w[f"{name}.F.W1"].mT) @ w[f"{name}.F.W2"].mT


def test_e_one_level_that_never_fires_is_a_network() -> None:
    text = CMS.format(
        levels="level one(x) never { state F : mlp(4, 5, 4); read F(x) }", transfers="",
        calls="p = linear(one(x), 4)",
    )  # fmt: skip
    model = nlc.compile(nlc.load(text), dtype=torch.float64)
    x, y = pairs(9)
    wanted = mlp(model, "one", x) @ dict(model.named_weights())["p.linear"].mT
    assert distance(model(x, y)[0], wanted) <= TIGHT


def test_e_at_rate_nothing_it_is_the_model_it_started_from() -> None:
    model = nlc.compile(
        chain({"fast": "2 tokens", "slow": "4 tokens"}, rate=0.0), dtype=torch.float64
    )
    x, y = pairs(9)
    assert distance(model(x, y)[0], mlp(model, "slow", mlp(model, "fast", x))) <= TIGHT


def test_e_block_l_changes_every_c_tokens_by_the_sum_of_its_gradients() -> None:
    """(71): C gradients of the model's loss, all at the state that stood over them."""
    rate, clocks = 0.05, {"fast": 2, "slow": 4}
    spec = chain({n: f"{c} tokens" for n, c in clocks.items()}, rate)
    model = nlc.compile(spec, dtype=torch.float64)
    x, y = pairs(8)
    w = {n: p.detach().clone() for n, p in model.named_weights()}
    sums = {n: torch.zeros_like(p) for n, p in w.items()}
    state = model.reset(1)

    def losses(at: dict[str, Tensor], t: int) -> Tensor:
        h = x[0, t]
        for name in clocks:
            h = F.gelu(h @ at[f"{name}.F.W1"].mT) @ at[f"{name}.F.W2"].mT
        return ((h - y[0, t]) ** 2).sum()

    for t in range(8):
        _, state = model(x[:, t : t + 1], y[:, t : t + 1], state=state)
        slopes = torch.func.grad(losses)(w, t)
        for name, every in clocks.items():
            for array in ("W1", "W2"):
                path = f"{name}.F.{array}"
                before = w[path].clone()
                sums[path] = sums[path] + slopes[path]
                if (t + 1) % every == 0:
                    w[path], sums[path] = w[path] - rate * sums[path], torch.zeros_like(w[path])
                kept = state.arrays[path][0].detach()
                assert distance(kept, w[path]) <= 1e-11
                assert torch.equal(kept, before) == bool((t + 1) % every)


# ---- f: nested, a block starts anew after so many updates of its own -----------------------------


@pytest.mark.parametrize(("slow", "fast"), [(4, 2), (6, 2), (6, 3)])
def test_f_a_nested_block_resets_after_c_s_over_c_s_plus_1_updates(slow: int, fast: int) -> None:
    spec = chain(
        {"fast": f"{fast} tokens", "slow": f"{slow} tokens"},
        resets={"fast": f"reset every {slow} tokens"},
    )
    truth = nlc.reference(spec, traced=("fire", "reset"))
    truth(list(pairs(2 * slow + 1)))
    updates, lives = 0, []
    for record in truth.trace:
        if record.path == "fast.F":
            if record.event == "reset":
                lives.append(updates)
                updates = 0
            else:
                updates += 1
    assert lives and all(n == math.ceil(slow / fast) for n in lives)
    model = nlc.compile(spec, dtype=torch.float64)
    wanted, _ = nlc.reference(spec, model.state_dict())(list(pairs(2 * slow + 1)))
    assert distance(model(*pairs(2 * slow + 1))[0], wanted) <= 1e-11


# ---- g: self-modifying memories ------------------------------------------------------------------


def modifying(chunk: int) -> tuple[Model, Reference, Tensor]:
    spec = nlc.load("self_modifying_titans", width=8, heads=2, depth=1, vocab=7, chunk=chunk)
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 7, (1, 11), generator=torch.Generator().manual_seed(1))
    return model, nlc.reference(spec, model.state_dict(), traced=()), tokens


@pytest.mark.parametrize("chunk", [1, 4])
def test_g_in_chunks_it_is_the_recurrence(chunk: int) -> None:
    model, truth, tokens = modifying(chunk)
    assert distance(model(tokens)[0], truth(tokens)[0]) <= 1e-11


def test_g_no_token_sees_the_update_of_its_own_chunk() -> None:
    """With one chunk for all, every answer is read from what its past wrote, never its future."""
    model, _, tokens = modifying(4)
    whole = model(tokens)[0]
    for t in range(1, 11):
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 1) % 7
        assert torch.equal(model(other)[0][:, :t], whole[:, :t])


def test_g_the_triangular_form_is_the_recurrence() -> None:
    """(I - beta k k') products, by one solve: the delta rule over 40 ticks."""
    q, k, v = (draw(1, 40, 2, n, seed=i) for i, n in enumerate((4, 4, 3)))
    k, beta = F.normalize(k, dim=-1), torch.sigmoid(draw(1, 40, 2, seed=5))
    y, _ = nlc.memory("delta")(q, k, v, beta=beta)
    for h in range(2):
        m = torch.zeros(3, 4).double()
        for t in range(40):
            kk, vv, b = k[0, t, h], v[0, t, h], beta[0, t, h]
            m = m @ (torch.eye(4).double() - b * torch.outer(kk, kk)) + b * torch.outer(vv, kk)
            assert distance(y[0, t, h], m @ q[0, t, h]) <= 1e-11


# ---- h: what each transfer lets through ----------------------------------------------------------

LEVEL = """nl 1
system two() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level fast(x) every token {{
    state M : matrix(3, 3)
    objective sum((M(x) - linear(x, 3))^2) / 2
    learn gradient(rate = 0.5)
    read M(x) before write
  }}
  {transfers}
  flow(x[3], y[3]) {{
    p = fast(linear(x, 3))
    loss = sum((p - y)^2)
    return p
  }}
}}
"""


def crossing(transfers: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the compiled module, and by torch alone with everything open."""
    spec = nlc.load(LEVEL.format(transfers=transfers))
    model = nlc.compile(spec, dtype=torch.float64)
    x, y = draw(1, 5, 3, seed=1), draw(1, 5, 3, seed=2)
    losses, labelled, _ = model.losses(x, y)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_weights())
    leaves = {n: p.detach().clone().requires_grad_() for n, p in named.items()}
    start = leaves.get("fast.M")
    m = torch.zeros(3, 3).double() if start is None else start
    total = torch.zeros(()).double()
    into = leaves[next(n for n in leaves if n.startswith("p."))]
    target = leaves[next(n for n in leaves if n.startswith("fast.") and n.endswith("linear"))]
    for t in range(5):
        z = into @ x[0, t]
        total = total + ((m @ z - y[0, t]) ** 2).sum() / 5
        m = m - 0.5 * torch.outer(m @ z - target @ z, z)
    total.backward()  # type: ignore[no-untyped-call]

    def of(p: Tensor) -> Tensor:
        return torch.zeros_like(p) if p.grad is None else p.grad

    return {n: of(p) for n, p in named.items()}, {n: of(p) for n, p in leaves.items()}


def test_h_direct_transfer_lets_no_gradient_across() -> None:
    """The slow weight that the fast level uses is a constant there, and so is what it wrote: the
    gradient of the flow's own weight is that of the reads alone.
    """
    shut = varied(nlc.load(LEVEL.format(transfers="transfer backprop fast -> training")), ())
    model = nlc.compile(shut, dtype=torch.float64)
    x, y = draw(1, 5, 3, seed=1), draw(1, 5, 3, seed=2)
    losses, labelled, _ = model.losses(x, y)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_weights())
    target = next(n for n in named if n.startswith("fast.") and n.endswith("linear"))
    into = next(n for n in named if n.startswith("p."))
    closed = named[target].grad
    assert closed is None or not bool(closed.any())
    leaf = named[into].detach().clone().requires_grad_()
    m, total = torch.zeros(3, 3).double(), torch.zeros(()).double()
    for t in range(5):
        z = leaf @ x[0, t]
        total = total + ((m @ z - y[0, t]) ** 2).sum() / 5
        fixed = z.detach()
        m = m - 0.5 * torch.outer(m @ fixed - named[target].detach() @ fixed, fixed)
    (wanted,) = torch.autograd.grad(total, leaf)
    found = named[into].grad
    assert found is not None and distance(found, wanted) <= 1e-11


def test_h_backprop_transfer_is_plain_autograd() -> None:
    found, wanted = crossing("transfer backprop fast -> training")
    for name, grad in found.items():
        assert bool(grad.any()) and distance(grad, wanted[name]) <= 1e-11, name


def test_h_initialisation_reaches_the_start() -> None:
    found, wanted = crossing("transfer backprop fast -> training\n  transfer init training -> fast")
    assert bool(found["fast.M"].any())
    for name, grad in found.items():
        assert distance(grad, wanted[name]) <= 1e-11, name


# ---- i: Muon -------------------------------------------------------------------------------------


def newton_schulz(g: Tensor, iterations: int = 5) -> Tensor:
    x: Tensor = g / g.norm()
    for _ in range(iterations):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_i_muon_is_a_linear_memory_read_through_newton_schulz() -> None:
    """(52) with m linear and sigma = Newton-Schulz: (42)."""
    weights, grads, _, _ = stepped("muon(rate = 0.1, keep = 0.9)", 3)
    m = torch.zeros(2, 3).double()
    for before, after, g in zip(weights, weights[1:], grads, strict=False):
        m = 0.9 * m - g
        assert distance(after - before, 0.1 * newton_schulz(m)) <= 1e-10


def test_i_the_first_step_of_44_at_a_quarter_is_the_cubic() -> None:
    """O - (O - g + 2 O (O'O - I)) / 4 at O = g is 1.5 g - 0.5 g g'g."""
    g = draw(3, 4, seed=8) / 5

    def objective(o: Tensor) -> Tensor:
        gram = o.mT @ o - torch.eye(4).double()
        return ((o - g) ** 2).sum() / 2 + (gram**2).sum() / 2

    step = g - torch.func.grad(objective)(g) / 4
    assert distance(step, 1.5 * g - 0.5 * g @ g.mT @ g) <= TIGHT


# ---- j: everything survives being saved ----------------------------------------------------------


def test_j_memories_survive_being_saved(tmp_path: Path) -> None:
    model = nlc.compile("hope", width=8, heads=2, depth=1, vocab=7, periods=[2, 4], chunk=2)
    tokens = torch.randint(0, 7, (2, 11), generator=torch.Generator().manual_seed(1))
    whole = model(tokens)[0]
    _, state = model(tokens[:, :5])
    state.save(tmp_path / "memory.safetensors")
    again = nlc.load_state(tmp_path / "memory.safetensors", model)
    rest = model(tokens[:, 5:], state=again)[0]
    direct = model(tokens[:, 5:], state=state)[0]
    assert torch.equal(rest, direct) and distance(rest, whole[:, 5:]) <= 1e-5


def test_j_optimizers_survive_being_saved() -> None:
    spec = nlc.load(LINE.format(rule="adamw(rate = 0.1)"))
    x, y = draw(2, 4, 3), draw(2, 4, 2)

    def train(model: Model, optimizers: list[Any], steps: int) -> None:
        for _ in range(steps):
            losses, labelled, _ = model.losses(x, y)
            losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    model = nlc.compile(spec, dtype=torch.float64)
    optimizers = model.optimizers()
    train(model, list(optimizers), 3)
    other = nlc.compile(spec, dtype=torch.float64, seed=3)
    others = other.optimizers()
    other.load_state_dict(model.state_dict())
    for mine, theirs in zip(optimizers, others, strict=True):
        theirs.load_state_dict(mine.state_dict())
    train(model, list(optimizers), 2)
    train(other, list(others), 2)
    pairs_of = zip(model.named_weights(), other.named_weights(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs_of)
