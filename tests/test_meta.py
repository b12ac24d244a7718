"""Gradients through learning: MAML, of both orders, and self-modifying memories, against plain
torch.func code, finite differences of the reference, and against each other.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from shipped import SPECS, distance
from torch import Tensor

import nlc
from nlc.backends.runtime import Model
from nlc.driver import Spec
from nlc.verify.streams import Streams, gradients

SHOTS, TIME = 3, 6  # a seventh tick would see a second step
Weights = dict[str, Tensor]


def maml(order: str = "") -> Spec:
    text = (SPECS / "maml.nl").read_text("utf-8")
    return nlc.load(text.replace("init outer -> inner", f"init outer -> inner {order}"),
                    hidden=4, shots=SHOTS)  # fmt: skip


def task(seed: int = 0) -> Streams:
    """Two tasks of the regression family: sines of an amplitude and a phase (1703.03400, 5.1)."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)

    x = uniform(-5, 5, 2, TIME, 1)
    return x, uniform(0.1, 5, 2, 1, 1) * torch.sin(x - uniform(0, 3.14, 2, 1, 1))


def net(w: Weights, x: Tensor) -> Tensor:
    for name in ("W1", "W2"):
        x = F.gelu(x @ w[f"inner.F.{name}"].mT)
    return x @ w["inner.F.W3"].mT


def by_hand(weights: Weights, streams: Streams, second: bool) -> Weights:
    """One inner step on the shots of each task, and the gradient of what the questions cost."""
    x, y = streams

    def cost(w: Weights) -> Tensor:
        total = torch.zeros(()).double()
        for b in range(len(x)):

            def own(v: Weights, b: int = b) -> Tensor:
                return ((net(v, x[b, :SHOTS]) - y[b, :SHOTS]) ** 2).sum() / SHOTS

            slope = torch.func.grad(own)(w)
            step = {n: g if second else g.detach() for n, g in slope.items()}
            after = {n: w[n] - 0.01 * step[n] for n in w}
            total = total + ((net(after, x[b, SHOTS:]) - y[b, SHOTS:]) ** 2).sum()
        return total / (len(x) * TIME)

    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    found = torch.autograd.grad(cost(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("order", ["", "first order"], ids=["second", "first"])
def test_maml_is_the_code_one_would_write(order: str) -> None:
    model, streams = nlc.compile(maml(order), dtype=torch.float64), task()
    weights = {n: p.detach() for n, p in model.named_weights()}
    wanted = by_hand(weights, streams, second=not order)
    for name, found in gradients(model, streams).items():
        assert distance(found, wanted[name]) <= 1e-11, name


def test_the_orders_differ() -> None:
    """Here by a few hundredths; a test that could not tell them apart would show nothing."""
    models = [nlc.compile(maml(order), dtype=torch.float64) for order in ("", "first order")]
    second, first = (gradients(m, task()) for m in models)
    assert all(distance(first[n], second[n]) > 1e-3 for n in first)


def test_first_order_maml_is_two_words_away() -> None:
    given = nlc.load("fomaml", hidden=4, shots=SHOTS)
    models = [nlc.compile(s, dtype=torch.float64) for s in (maml("first order"), given)]
    models[1].load_state_dict(models[0].state_dict())
    wanted, found = (gradients(m, task()) for m in models)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


# ---- finite differences --------------------------------------------------------------------------


def mean_loss(spec: Spec, weights: Weights, streams: Streams) -> float:
    """By the reference, from its meaning."""
    losses, known = nlc.reference(spec, weights, traced=()).losses(list(streams))
    return float(losses[known].mean())


def slope(spec: Spec, model: Model, streams: Streams, way: Weights, step: float) -> float:
    """The derivative along `way`, of fourth order in the step."""
    weights = {n: p.detach() for n, p in model.named_weights()}

    def at(s: float) -> float:
        return mean_loss(spec, {n: w + s * way[n] for n, w in weights.items()}, streams)

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def ways(model: Model, count: int) -> list[Weights]:
    """Directions over all weights together."""
    draw = torch.Generator().manual_seed(1)
    named = list(model.named_weights())
    return [
        {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in named}
        for _ in range(count)
    ]


def self_modifying() -> tuple[Spec, Streams]:
    """All of its gradients go through all of its writes."""
    spec = nlc.load("self_modifying_titans", width=4, heads=2, depth=1, vocab=5, chunk=2)
    draw = torch.Generator().manual_seed(2)
    return spec, (torch.randint(0, 5, (1, 7), generator=draw),)


def nested(order: str = "") -> tuple[Spec, Streams]:
    """All of its gradients go through the learning of its blocks, and through that of their
    starts.
    """
    text = (SPECS / "cms_nested.nl").read_text("utf-8")
    for line in ("attention, fast, mid, slow -> training", "training -> slow -> mid -> fast"):
        assert f"{line}\n" in text
        text = text.replace(f"{line}\n", f"{line}{order}\n")
    sizes = {"width": 2, "heads": 1, "depth": 1, "vocab": 5, "periods": [1, 2, 4]}
    made = nlc.load(text, rates=[0.3, 0.2, 0.1], **sizes)
    return made, (torch.randint(0, 5, (1, 7), generator=torch.Generator().manual_seed(4)),)


def test_a_nested_continuum_has_two_orders() -> None:
    """And the first leaves out of each block's learning what the others take from it."""
    found = [gradients(nlc.compile(made, dtype=torch.float64), x) for made, x in
             (nested(), nested(" first order"))]  # fmt: skip
    second, first = found
    differ = {n for n in first if distance(first[n], second[n]) > 1e-3}
    assert {"x.embed", "layers.0.fast.continuum.F.W1", "layers.0.slow.continuum.F.W2"} <= differ


def full_hope() -> tuple[Spec, Streams]:
    """With the second derivatives that the shipped file leaves out."""
    text = (SPECS / "hope.nl").read_text("utf-8")
    assert text.count(" first order") >= 2
    spec = nlc.load(text.replace(" first order", ""), vocab=5, width=4, heads=2, depth=1, chunk=2,
                    periods=[2, 4])  # fmt: skip
    return spec, (torch.randint(0, 5, (1, 9), generator=torch.Generator().manual_seed(0)),)


# ---- HOPE, as one would write it -----------------------------------------------------------------

CHUNK, PERIODS, HEADS = 2, (2, 4), 2  # those of full_hope
MEMORIES = ("M.main", "M.key", "M.value", "G.rate", "G.keep")


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def two_layers(w: Weights, x: Tensor) -> Tensor:
    return (w["W2"] @ F.gelu(w["W1"] @ x[..., None]))[..., 0]


def says(name: str, w: Weights, x: Tensor) -> Tensor:
    """What a memory says of x [heads, n]: those of G are no residual networks."""
    return two_layers(w, x) + (x if name.startswith("M") else 0)


def self_modified(weights: Weights, x: Tensor) -> Tensor:
    """(86)-(90) and (88)'s rule for each array, over x [time, width]."""
    made = {m: {a: weights[f"layers.0.titans.{m}.{a}"] for a in ("W1", "W2")} for m in MEMORIES}
    answers = []
    for t, z in enumerate(x.reshape(len(x), HEADS, -1)):
        if t % CHUNK == 0:
            frozen = made
        k, v = (F.normalize(says(m, frozen[m], z), dim=-1) for m in ("M.key", "M.value"))
        rate = 1e-3 * F.softplus(says("G.rate", frozen["G.rate"], z))[..., None]
        keep = torch.sigmoid(says("G.keep", frozen["G.keep"], z) + 8)[..., None]
        q = (weights["layers.0.titans.read.linear"] @ x[t]).reshape(HEADS, -1)
        answers.append(says("M.main", made["M.main"], F.normalize(q, dim=-1)).flatten())
        written = {}
        for m in MEMORIES:

            def missed(w: Weights, m: str = m, k: Tensor = k, v: Tensor = v) -> Tensor:
                return ((says(m, w, k) - says(m, frozen[m], v)) ** 2).sum()  # noqa: B023

            slope = torch.func.grad(missed)(frozen[m])
            inputs = {"W1": k, "W2": F.gelu(frozen[m]["W1"] @ k[..., None])[..., 0]}
            written[m] = {
                a: keep * w - rate * (w @ (i[..., :, None] * i[..., None, :]) + slope[a])
                for (a, w), i in zip(made[m].items(), inputs.values(), strict=True)
            }
        made = written
    return torch.stack(answers)


def hope_by_hand(weights: Weights, ids: Tensor) -> Tensor:
    """The mean loss of one sequence [time] through all that was written, (94)-(97)."""
    x = weights["x.embed"][ids]
    taps = weights["layers.0.x.conv"]
    late = F.pad(normed(x, weights["layers.0.x.norm"]), (0, 0, taps.shape[-1] - 1, 0))
    x = x + self_modified(weights, (late.unfold(0, taps.shape[-1], 1) * taps).sum(-1))
    names = [f"layers.0.cms_{p}.continuum." for p in PERIODS]

    def cost(t: int, blocks: list[Weights]) -> Tensor:
        y = x[t]
        for name, w in zip(names, blocks, strict=True):
            y = y + two_layers(w, normed(y, weights[f"{name}read.norm"]))
        logits = weights["logits.unembed"] @ normed(y, weights["logits.norm"])
        return F.cross_entropy(logits, ids[t + 1])

    blocks = [{a: weights[f"{name}F.{a}"] for a in ("W1", "W2")} for name in names]
    stood, total = [], torch.zeros(()).double()
    for t in range(len(ids) - 1):
        stood.append(blocks)
        total = total + cost(t, blocks)
        fired = list(blocks)
        for i, p in enumerate(PERIODS):

            def asked(w: Weights, i: int = i, p: int = p, t: int = t) -> Tensor:
                ticks = range(t + 1 - p, t + 1)
                ran = [cost(s, [*stood[s][:i], w, *stood[s][i + 1 :]]) for s in ticks]
                return torch.stack(ran).sum()

            if (t + 1) % p == 0:
                slope = torch.func.grad(asked)(blocks[i])
                fired[i] = {a: w - 1e-2 * slope[a] for a, w in blocks[i].items()}
        blocks = fired
    return total / (len(ids) - 1)


def test_hope_is_the_code_one_would_write() -> None:
    """To the second order: through all that its memories wrote, and how they learned it."""
    spec, (ids,) = full_hope()
    model = nlc.compile(spec, dtype=torch.float64)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_weights()}
    wanted = torch.autograd.grad(hope_by_hand(leaves, ids[0]), list(leaves.values()))
    for (name, found), true in zip(gradients(model, (ids,)).items(), wanted, strict=True):
        assert float(true.norm()) > 0, name
        assert distance(found, true) <= 1e-11, name


@pytest.mark.parametrize("name", ["maml", "self_modifying_titans", "cms_nested", "hope"])
def test_the_true_derivative_is_that_of_finite_differences(name: str) -> None:
    cases = {"maml": (maml(), task()), "cms_nested": nested(), "hope": full_hope()}
    spec, streams = cases.get(name) or self_modifying()
    model = nlc.compile(spec, dtype=torch.float64)
    found = gradients(model, streams)
    largest = max(float(g.norm()) for g in found.values())
    for way in ways(model, 1 if name in ("cms_nested", "hope") else 3):
        along = sum(float((found[n] * way[n]).sum()) for n in found)
        wanted = slope(spec, model, streams, way, 1e-3)
        assert abs(along - wanted) <= 1e-6 * max(abs(wanted), largest)
