"""The systems the field names: each is what the reference says, and has what makes it what it is.

What always holds is asked of all that ship, by `nlc verify`; then one property of each.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shipped import EVERY, SPECS, SYSTEMS, distance, own_settings, small, tokens
from torch import Tensor

import nlc
from nlc.backends.runtime import Model, State
from nlc.driver import Spec
from nlc.lower import lower
from nlc.verify import Certificate, Options, verify
from nlc.verify import properties as P
from nlc.verify.streams import farthest, gradients, truth_of

OTHERS = [name for name in EVERY if name not in SYSTEMS]


# ---- what always holds ---------------------------------------------------------------------------


@cache
def certificate(name: str) -> Certificate:
    return verify(small(name), Options(tokens=17, long=0))


@pytest.mark.parametrize("name", OTHERS)
def test_what_always_holds(name: str) -> None:
    """`nlc verify` and `nlc build` exit 0 for each."""
    found = certificate(name)
    assert found.holds, found.text()


@pytest.mark.parametrize("name", OTHERS)
def test_memories_keep_their_size(name: str) -> None:
    """4,096 random tokens at the default initialisation."""
    sizes = {"width": 64, "depth": 1, "vocab": 256}
    spec = nlc.load(name, **{k: v for k, v in sizes.items() if k in own_settings(name)})
    run = P.long_run(nlc.compile(spec), spec.system, 4096)
    assert P.answers_keep_their_size(run).holds, P.answers_keep_their_size(run)
    assert P.memories_keep_their_size(run).holds, P.memories_keep_their_size(run)


def test_the_page_of_systems_names_each() -> None:
    """There is none that the reference runs alone."""
    page = (SPECS.parent / "docs" / "systems.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`", "".join(r for r in page.splitlines() if r.startswith("| `")))
    assert sorted(set(named) & set(EVERY)) == EVERY
    for path in (SPECS.parent / "tests" / "cases" / "good").glob("*.nl"):
        assert lower(nlc.load(str(path)).system)[1] == [], path.stem


# ---- tools ---------------------------------------------------------------------------------------


def model_of(spec: Spec) -> Model:
    return nlc.compile(spec, dtype=torch.float64)


def one(name: str, **more: Any) -> Model:
    """A system of one layer."""
    return model_of(small(name, depth=1, **more))


def rewritten(name: str, *pairs: tuple[str, str], **more: Any) -> Model:
    """The same from a text in which some words are others."""
    text = (SPECS / f"{name}.nl").read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    has = own_settings(name)
    sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 11, **more}
    return model_of(nlc.load(text, **{k: v for k, v in sizes.items() if k in has}))


@torch.no_grad()
def effect(model: Model, time: int, at: int = 0) -> Tensor:
    """How much each answer changes with token `at`."""
    x = tokens(1, time)
    other = x.clone()
    other[:, at] = (x[:, at] + 1) % 11
    off: Tensor = (model(x)[0] - model(other)[0])[0]
    return off.abs().amax(-1)


@torch.no_grad()
def states(model: Model, x: Tensor) -> list[State]:
    """After each token."""
    state, found = model.reset(x.shape[0]), []
    for t in range(x.shape[1]):
        _, state = model(x[:, t : t + 1], state=state)
        found.append(state)
    return found


def kept(found: list[State], path: str) -> list[Tensor]:
    return [s.arrays[path] for s in found]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def asked(name: str, *streams: Tensor, **settings: Any) -> Tensor:
    y: Tensor = nlc.memory(name)(*streams, **settings)[0]
    return y


# ---- attention -----------------------------------------------------------------------------------


def test_a_sliding_window_ends() -> None:
    off = effect(one("sliding_window", window=4), 12)
    assert off[:4].min() > 1e-6 and off[4:].max() == 0


def test_two_layers_of_a_window_see_twice_as_far() -> None:
    off = effect(model_of(small("sliding_window", window=4)), 12)
    assert off[:7].min() > 1e-9 and off[7:].max() == 0


def test_samba_remembers_what_has_left_its_window() -> None:
    off = effect(one("samba", window=3), 12)
    assert off.min() > 1e-9
    closed = rewritten(
        "samba", ("x += recurrent(norm(x))", "x += 0 * recurrent(norm(x))"), window=3
    )
    assert effect(closed, 12)[3:].max() == 0


def test_log_linear_buckets_are_the_binary_digits_of_the_past() -> None:
    """After t tokens bucket p holds something exactly where t has the digit p."""
    buckets = [1, 2, 4, 8]
    found = states(one("log_linear_attention", buckets=buckets), tokens(2, 15))
    for t, state in enumerate(found, 1):
        full = [bool(state.arrays[f"layers.0.bucket_{p}.M"].any()) for p in buckets]
        assert full == [bool(t & p) for p in buckets]


def test_log_linear_buckets_hold_all_of_the_past_once() -> None:
    """Together they are the one matrix of linear attention, whatever the digits."""
    whole = kept(
        states(one("log_linear_attention", buckets=[16]), tokens(2, 16)), BUCKET.format(16)
    )
    parts = states(one("log_linear_attention", buckets=[1, 2, 4, 8, 16]), tokens(2, 16))
    assert not any(bool(m.any()) for m in whole[:15])
    for t in (3, 7, 11, 15):
        one_less = sum(kept(parts, BUCKET.format(p))[t - 1] for p in (1, 2, 4, 8))
        assert bool(torch.as_tensor(one_less).any())
    assert distance(kept(parts, BUCKET.format(16))[15], whole[15]) < 1e-12


BUCKET = "layers.0.bucket_{}.M"


def test_ada_transformer_learns_in_context_from_a_learned_start() -> None:
    """At rate 0 it is a linear layer in the place of the MLP, and sees nothing of the past."""
    path, only = "layers.0.adaptive.W", ("x += attention(q, k, v)", "x += 0 * attention(q, k, v)")
    assert effect(rewritten("ada_transformer", only, rate=0), 6)[1:].max() == 0
    model = rewritten("ada_transformer", only)
    assert effect(model, 6).min() > 1e-9
    for each in (one("ada_transformer", rate=0), model):
        losses, _, _ = each.losses(tokens(2, 9))
        torch.autograd.backward(losses.mean())
        start = dict(each.named_weights())[path]
        assert start.grad is not None and bool(start.grad.any())


# ---- matrices ------------------------------------------------------------------------------------


def fading(name: str, path: str, after: int = 1) -> list[Tensor]:
    """What is left, tick by tick, of a change of the first token."""
    model, x = one(name), tokens(1, 10)
    other = x.clone()
    other[:, 0] = (x[:, 0] + 1) % 11
    pairs = zip(kept(states(model, x), path), kept(states(model, other), path), strict=True)
    return [(a - b)[0] for a, b in pairs][after:]


def test_retnet_fades_by_a_fixed_fraction() -> None:
    left = fading("retnet", "layers.0.mixer.retention.M")
    gamma = 1 - 2.0 ** (-5 - torch.arange(2, dtype=torch.float64))
    for old, new in pairwise(left):
        assert distance(new, gamma[:, None, None] * old) < 1e-12


def test_mamba2_fades_by_one_number_a_head() -> None:
    left = fading("mamba2", "layers.0.mixer.mamba2.h", after=4)  # past the convolution
    for old, new in pairwise(left):
        ratio = (new / old).flatten(1)
        assert (ratio.amax(1) - ratio.amin(1)).max() < 1e-9
        assert ratio.min() > 0 and ratio.max() < 1


def test_gla_fades_by_one_number_a_key_channel() -> None:
    left = fading("gla", "layers.0.mixer.retention.M")
    for old, new in pairwise(left):
        ratio = new / old
        assert (ratio.amax(-2) - ratio.amin(-2)).max() < 1e-9
        assert (ratio.amax(-1) - ratio.amin(-1)).max() > 1e-4
        assert ratio.min() > 0 and ratio.max() < 1


def test_gated_deltanet_writes_what_it_then_reads() -> None:
    k, v = F.normalize(draw(1, 6, 4), dim=-1), draw(1, 6, 3, seed=1)
    gates = torch.full((1, 6), 0.7, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
    assert distance(asked("gated_delta", k, k, v, *gates), v) < 1e-12


def test_rwkv7_takes_one_direction_out() -> None:
    """With a = 1 all that was kept at kappa is gone; with a = 0 it stays."""
    k, v, r = (draw(1, 2, 4, seed=i) for i in range(3))
    k[:, 1] = 0
    r[:, 1] = kappa = F.normalize(k[:, 0], dim=-1)
    kappa = kappa.expand(1, 2, 4)
    ones = torch.ones(1, 2, 4, dtype=torch.float64)
    gone, stays = (asked("rwkv7", r, ones, k, v, kappa, a * ones)[:, 1] for a in (1.0, 0.0))
    assert gone.abs().max() < 1e-12
    assert distance(stays, v[:, 0] * (k[:, 0] * kappa[:, 0]).sum(-1, keepdim=True)) < 1e-12


def test_oja_shrinks_what_it_wrote_and_not_the_key() -> None:
    """One v again and again: what it says converges, at the rate of (1 - beta) of what is off."""
    v = F.normalize(draw(1, 1, 4), dim=-1).expand(1, 8, 4)
    k = draw(1, 1, 4, seed=1).expand(1, 8, 4)
    alpha, beta = (
        torch.ones(1, 8, 4, dtype=torch.float64),
        torch.full((1, 8), 0.5, dtype=torch.float64),
    )
    y = asked("oja", k, k, v, alpha, beta)
    limit = (k * k).sum(-1, keepdim=True) * v
    share = 1 - 0.5 ** torch.arange(1, 9, dtype=torch.float64)
    assert distance(y, share[:, None] * limit) < 1e-12


# ---- deep memories -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp"])
def test_ttt_takes_its_gradients_at_the_chunks_start(name: str) -> None:
    """So the order of a chunk's pairs is nothing to the chunks that follow; that of chunks is."""
    k, v, q = (draw(1, 12, 4, seed=i) for i in range(3))
    eta = torch.full((1, 12), 0.1, dtype=torch.float64)

    def later(order: list[int]) -> Tensor:
        return asked(name, q, k[:, order], v[:, order], eta, chunk=4)[:, 8:]

    plain = list(range(12))
    within, across = [3, 1, 0, 2, *plain[4:]], [4, 1, 2, 3, 0, *plain[5:]]
    assert distance(later(within), later(plain)) < 1e-12
    assert distance(later(across), later(plain)) > 1e-6


def test_omega_does_not_see_pairs_that_count_nothing() -> None:
    q, k, v = (draw(1, 6, 4, seed=i) for i in range(3))
    alpha, eta = (torch.full((1, 6), a, dtype=torch.float64) for a in (0.9, 0.1))
    own = torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64).expand(1, 6, 3)
    seen = torch.tensor([0.7, 0.3, 0.1], dtype=torch.float64).expand(1, 6, 3)
    online = asked("omega", q, k, v, alpha, eta, own[..., :2])
    assert distance(asked("omega", q, k, v, alpha, eta, own), online) < 1e-12
    assert distance(asked("omega", q, k, v, alpha, eta, seen), online) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("size", ["1", "10"])
def test_a_step_of_atlas_has_one_size(size: str) -> None:
    """What one pair writes has one singular value: five rounds of the polynomial, from 1."""
    model = rewritten(
        "atlas", ("sigmoid(linear(x, heads) + 8)", "1 + 0 * linear(x, heads)"),
        ("1e-2 * sigmoid(linear(x, heads))", "0.1 + 0 * linear(x, heads)"),
        ("value(x, heads), alpha", f"{size} * value(x, heads), alpha"),
    )  # fmt: skip
    s = 1.0
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    before = model.reset(1)
    after = model(tokens(1, 1), state=before)[1]
    for layer in ("W1", "W2"):
        (name,) = [n for n in after.arrays if n.endswith(f"atlas.M.{layer}")]
        moved = (after.arrays[name] - before.arrays[name]).flatten(0, -3)
        assert distance(moved.square().sum((1, 2)).sqrt(), torch.full((2,), 0.1 * s)) < 1e-6


KEEPS = ("sigmoid(linear(x, heads) + 8)", "1 + 0 * linear(x, heads)")
ASLEEP = {
    "titans_mac": [
        ("rate = 1e-2 *", "rate = 0 *"), ("sigmoid(linear(y, 1) + 8)", "1 + 0 * linear(y, 1)"),
    ],
    "titans_mag": [("1e-2 *", "0 *"), KEEPS],
    "titans_mal": [("1e-2 *", "0 *"), KEEPS],
}  # fmt: skip


def test_mac_hands_on_by_its_memory_alone() -> None:
    """Attention stays in its segment. Retrieve, attend, update: what a segment writes is first
    asked in the next.
    """
    off = effect(one("titans_mac", segment=4), 12)
    assert off.min() > 1e-12
    closed = effect(rewritten("titans_mac", *ASLEEP["titans_mac"], segment=4, persist=2), 12)
    assert closed[:4].min() > 1e-9 and closed[4:].max() == 0


@pytest.mark.parametrize("name, reach", [("titans_mag", 6), ("titans_mal", 6)])
def test_without_its_memory_a_titan_is_a_window(name: str, reach: int) -> None:
    """Of `window` tokens, and of the three more that convolutions see."""
    assert effect(one(name), 12).min() > 1e-12
    closed = effect(rewritten(name, *ASLEEP[name], window=3, persist=2), 12)
    assert closed[reach:].max() == 0 and closed[: reach - 1].min() > 1e-9


def test_mal_attends_to_what_its_memory_says() -> None:
    """The window reads the memory's answers, and not the tokens: a silent memory, and no token is
    seen. Of `mag` the memory is a gate: there it would be half open.
    """
    silent = [("y = norm(join(titans", "y = 0 * norm(join(titans")]
    assert effect(rewritten("titans_mal", *silent), 12)[1:].max() == 0
    half = [("a * sigmoid(b)", "a * sigmoid(0 * b)")]
    assert effect(rewritten("titans_mag", *half), 12)[1:4].min() > 1e-9


@pytest.mark.parametrize("name", ["titans_mag", "titans_mal", "titans_mac"])
def test_persistent_pairs_are_seen_by_every_token(name: str) -> None:
    model, x = one(name), tokens(1, 9)
    y, _ = model(x)
    for t in (0, 8):
        weights = dict(model.named_weights())
        pair = next(w for n, w in weights.items() if n.endswith(".V.learned"))
        (grad,) = torch.autograd.grad(y[0, t].square().sum(), pair, retain_graph=True)
        assert grad.flatten(0, -2).abs().amax(-1).min() > 0


# ---- continuum memories --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cms_sequential", "cms_independent"])
def test_each_block_stands_still_between_its_firings(name: str) -> None:
    """A firing waits for its label: it is the first thing of the next tick."""
    found = states(one(name), tokens(2, 18))
    for period in (2, 4, 8):
        arrays = kept(found, f"layers.0.cms_{period}.continuum.F.W1")
        for t, (old, new) in enumerate(pairwise(arrays), start=1):
            assert torch.equal(old, new) is bool(t % period), (period, t)


def in_both_orders(name: str) -> tuple[Tensor, Tensor]:
    """The answers of the same weights with the slowest block last, and first."""
    last, first = (one(name, periods=p) for p in ([2, 4, 8], [8, 4, 2]))
    told = first.load_state_dict(last.state_dict())
    assert not told.missing_keys and not told.unexpected_keys
    with torch.no_grad():
        return last(tokens(2, 18))[0], first(tokens(2, 18))[0]


def test_a_sequential_continuum_is_a_chain() -> None:
    """(70): a block is given what the one before it has made."""
    last, first = in_both_orders("cms_sequential")
    assert distance(last, first) > 1e-2


def test_an_independent_continuum_has_no_order() -> None:
    """(74): the blocks are given the same, and what they answer is added up."""
    last, first = in_both_orders("cms_independent")
    assert distance(last, first) < 1e-12


def nested(rates: list[float], order: str = "") -> Model:
    chain = "init training -> slow -> mid -> fast"
    back = "attention, fast, mid, slow -> training"
    return rewritten(
        "cms_nested", (chain, chain + order), (back, back + order), periods=[2, 4, 8], rates=rates
    )


def of_block(found: list[State], array: str) -> list[Tensor]:
    """Of the last layer's network, after the end of each tick."""
    block, _, start = array.partition("@")
    path = f"layers.0.{block}.continuum.F.W2" + (f"@{start}" if start else "")
    return [a.clone() for a in kept(found, path)]


@pytest.mark.parametrize("order", ["", " first order"], ids=["second", "first"])
def test_a_nested_block_starts_anew_where_the_slower_one_has_learned(order: str) -> None:
    """(72): after its reset it stands to the bit at the start that the slower block has learned, a
    step of that block's rule away from where it stood before.
    """
    found = states(nested([0.1] * 3, order), tokens(2, 18))
    for block, start, every in (("fast", "fast@mid", 4), ("mid", "mid@slow", 8)):
        own, learned = of_block(found, block), of_block(found, start)
        for t in range(1, 18):
            assert torch.equal(own[t], learned[t]) is (t % every < every // 2), (block, t)
        assert not torch.equal(learned[3], learned[8])
    one_up, two_up = of_block(found, "fast@mid"), of_block(found, "fast@mid@slow")
    assert torch.equal(one_up[8], two_up[8]) and not torch.equal(two_up[7], two_up[8])


def test_a_nested_block_that_nobody_teaches_starts_at_one_place() -> None:
    """What learns nothing hands on what training drew."""
    found = states(nested([0.1, 0.1, 0.0]), tokens(2, 18))
    mid, fast = of_block(found, "mid"), of_block(found, "fast")
    assert torch.equal(mid[8], mid[16]) and torch.equal(mid[0], mid[8])
    assert torch.equal(fast[8], fast[16]) and torch.equal(fast[0], fast[8])
    assert not torch.equal(fast[4], fast[8]) and not torch.equal(mid[4], mid[8])
    still = of_block(states(nested([0.1, 0.0, 0.0]), tokens(2, 18)), "fast")
    assert all(torch.equal(still[t], still[0]) for t in (4, 8, 12, 16))
    assert not torch.equal(still[3], still[0])


# ---- MIRAS ---------------------------------------------------------------------------------------


def test_memora_reads_weights_on_a_simplex() -> None:
    """Every unit's weights are positive, and their sum is 1: the largest it can say of x is
    max(x)."""
    from nlc.backends.torch_source.bodies import state_path

    system = small("memora").system
    box = next(b for b in system.boxes if b.name == "memora")
    link = box.states[0].rule.through
    assert link is not None and all(f.body.op == "softmax" for f in link.values())
    found = states(one("memora"), tokens(2, 9))[-1].arrays
    path = state_path(box, "M", "W1").format(0)
    read = torch.softmax(found[path], -1)
    assert distance(read.sum(-1), torch.ones_like(read.sum(-1))) < 1e-12 and read.min() > 0


def written(name: str, v: Tensor, k: Tensor, *gates: Tensor, **settings: Any) -> Tensor:
    """What one pair adds to the first array of a memory, all of the old kept."""
    one_number = torch.ones(1, 1, dtype=torch.float64)
    _, before = nlc.memory(name)(k, k, v, one_number, 0 * one_number, *gates, **settings)
    _, after = nlc.memory(name)(k, k, v, one_number, 0.1 * one_number, *gates, **settings)
    moved: Tensor = after.arrays["M.W1"] - before.arrays["M.W1"]
    return moved


def said(name: str, k: Tensor, *gates: Tensor, **settings: Any) -> Tensor:
    """What a memory answers that has learned nothing."""
    one_number = torch.ones(1, 1, dtype=torch.float64)
    y: Tensor = nlc.memory(name)(k, k, k, one_number, 0 * one_number, *gates, **settings)[0]
    return y


def test_yaad_counts_an_outlier_by_its_signs() -> None:
    """Beyond `delta` a pair writes as much however far it is off; within, in proportion."""
    k, delta = draw(1, 1, 4), torch.full((1, 1), 0.5, dtype=torch.float64)
    away = torch.tensor([1.0, -2.0, 0.5, -1.0], dtype=torch.float64)
    guess = said("yaad", k, delta, chunk=1)

    def write(size: float) -> Tensor:
        return written("yaad", guess + size * away, k, delta, chunk=1)

    assert distance(write(1e6), write(1e3)) < 1e-6
    assert distance(write(0.2), 2 * write(0.1)) < 1e-9
    assert float(write(1e6).abs().max()) < 10 * float(write(0.2).abs().max())


@pytest.mark.parametrize("p, growth", [(1, 1.0), (1.5, 10.0), (2, 100.0), (3, 10000.0)])
def test_an_l_p_objective_counts_an_outlier_by_its_power(p: float, growth: float) -> None:
    """A hundred times as far off writes 100^(p - 1) times as much: with p below 2 it is robust."""
    k, away = draw(1, 1, 4), torch.tensor([1.0, -2.0, 0.5, -1.0], dtype=torch.float64)
    guess = said("moneta", k, chunk=1)
    near, far = (written("moneta", guess + s * away, k, chunk=1, p=p) for s in (1e2, 1e4))
    assert distance(far, growth * near) < 1e-6


@pytest.mark.parametrize("name", ["moneta", "moneta_ftrl"])
def test_an_l_q_retention_ties_the_size_of_weights_to_what_was_summed(name: str) -> None:
    """As printed, twice the sum is half the weights (r = 4); by the mirror map of l_q the dual
    norm of the weights goes with that of the sum. What is read is read with the weights.
    """
    k, v = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    alpha, eta = (torch.full((1, 6), a, dtype=torch.float64) for a in (0.9, 0.1))
    y, state = nlc.memory(name)(k, k, v, alpha, eta, chunk=1)
    weights = []
    for A in (state.arrays["M.W1"][0], state.arrays["M.W2"][0]):
        size = float((A**4).sum()) ** 0.25
        if name == "moneta":
            W = A / (size + 1e-6) ** 2
            assert abs(float((W**4).sum()) ** 0.25 * size - 1) < 1e-4
        else:
            W = A * A.abs() ** 2 / (3 * (size + 1e-6) ** 2)
            assert abs(float((W.abs() ** (4 / 3)).sum()) ** 0.75 / size - 1 / 3) < 1e-4
        weights.append(W)
    x = k[0, -1]
    z = weights[1] @ F.gelu(weights[0] @ x)
    assert distance(y[0, -1], x + F.layer_norm(z, (4,), eps=1e-6)) < 1e-3


# ---- beyond the papers ---------------------------------------------------------------------------


def test_a_surprise_gate_stays_shut_where_nothing_surprises() -> None:
    path = "layers.0.mixer.surprise_gate.M"
    shut = states(one("surprise_gate", threshold=1e9), tokens(2, 9))
    assert not any(bool(m.any()) for m in kept(shut, path))
    found = kept(states(one("surprise_gate", threshold=0.9), tokens(2, 24)), path)
    still = [(a == b).flatten(-2).all(-1) for a, b in pairwise(found)]
    written = torch.stack(still)
    assert written.any() and not written.all()


@pytest.mark.parametrize("chosen", [1, 3])
def test_a_mixture_writes_to_the_memories_it_chose(chosen: int) -> None:
    found = kept(states(one("memory_mixture", chosen=chosen), tokens(2, 9)), MIXED)
    for old, new in pairwise(found):
        assert (old != new).flatten(-2).any(-1).sum(-1).tolist() == [chosen, chosen]


MIXED = "layers.0.mixer.delta.M"


def test_consolidation_takes_a_part_of_the_fast_memory_once_a_period() -> None:
    found = states(one("consolidation", period=4, keep=0.9), tokens(2, 12))
    S, M = (kept(found, f"layers.0.{p}") for p in ("slow.S", "fast.M"))
    for t in range(1, 12):
        old = S[t - 1]
        wanted = 0.9 * old + 0.1 * M[t] if t % 4 == 3 else old
        assert distance(S[t], wanted) < 1e-12


def test_a_hypernetworks_code_is_all_that_crosses_a_reset() -> None:
    """With the slow matrix silent, and none of the generated weights, a period is all that is
    seen of the past.
    """
    silent = ("x += diary(norm(x), fast.W)", "x += 0 * diary(norm(x), fast.W)")
    sizes = {"period": 4, "code": 3}
    assert effect(rewritten("hypernetwork", silent, **sizes), 12)[4:8].min() > 1e-12
    none = ("reshape(linear(c, width*width)", "reshape(0 * linear(c, width*width)")
    assert effect(rewritten("hypernetwork", silent, none, **sizes), 12)[4:].max() == 0


def test_a_recipe_drops_while_it_learns_and_not_when_it_answers() -> None:
    """No entry twice in a batch, in the next step others; on average nothing is lost."""
    model, x = model_of(small("training_recipe", depth=1, width=64, drop=0.25)), tokens(8, 40)
    answers = model.eval()(x)[0]
    assert torch.equal(model(x)[0], answers)
    assert torch.equal(answers, model_of(small("training_recipe", depth=1, width=64, drop=0))(x)[0])
    model.train()
    s = model.stream_of(model.reset(8), 40)
    drawn = [model.dropout(s, path, 0.25, torch.ones(8, 40, 64)) for path in ("a", "b")]
    model.steps = 1
    drawn.append(model.dropout(s, "a", 0.25, torch.ones(8, 40, 64)))
    rows = torch.cat([d.flatten(0, 1) for d in drawn])
    assert ((rows == 0) | (rows == 1 / 0.75)).all()
    assert len({tuple(r.tolist()) for r in rows}) == len(rows)
    assert (torch.stack(drawn).mean((1, 2, 3)) - 1).abs().max() < 0.02  # four deviations
    assert (rows.mean(0) - 1).abs().max() < 0.1 and torch.corrcoef(rows.T).fill_diagonal_(
        0
    ).max() < 0.2


def test_a_recipe_counts_its_steps() -> None:
    """By its own optimizers, whose state brings the count back."""
    model, x = one("training_recipe"), tokens(2, 9)
    (optimizer,) = model.optimizers()
    losses, labelled, _ = model.losses(x)
    torch.autograd.backward(losses[labelled].mean())
    saved = optimizer.state_dict()
    optimizer.step()
    assert model.steps == 1 and not torch.equal(model.losses(x)[0], losses)
    optimizer.load_state_dict(saved)
    assert model.steps == 0


def test_a_recipes_attention_is_empty_at_the_start_of_a_block() -> None:
    off = effect(model_of(small("training_recipe", block=4)).eval(), 12)
    assert off[:4].min() > 1e-9 and off[4:].max() == 0


# ---- sleep ---------------------------------------------------------------------------------------


def night(state: State, i: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs that a layer keeps for its replay, and how wrong the waking memory was of each."""
    at = f"layers.{i}.asleep"
    k, v = state.arrays[f"{at}.S.past"], state.arrays[f"{at}.S.past_2"]
    return k, v, state.arrays[f"{at}.worst.past"]


def slow_error(state: State) -> Tensor:
    """How wrong the slow memory is of each pair of the last day, [batch, window]."""
    k, v, _ = night(state)
    one, two = (state.arrays[f"layers.0.asleep.S.W{j}"] for j in (1, 2))
    off: Tensor = (F.gelu(k @ one.mT) @ two.mT - v).norm(dim=-1)
    return off


def test_sleep_replays_what_surprised_most_and_nothing_else() -> None:
    model, x = one("sleep", window=8, replayed=3), tokens(2, 12)
    _, state = model(x)
    before, wrong = slow_error(state), night(state)[2]
    worst = torch.zeros_like(wrong).scatter(1, wrong.topk(3).indices, 1.0).bool()
    woken = model.finish(state)
    after = slow_error(woken)
    assert (after[worst] < before[worst]).float().mean() > 0.8
    assert after[worst].square().sum() < 0.9 * before[worst].square().sum()
    slow = [k for k in state.arrays if ".S.W" in k]
    for chosen in (False, True):
        other = state.fork()
        past = night(other)[1].clone()
        past[worst if chosen else ~worst] += 1.0
        other.arrays["layers.0.asleep.S.past_2"] = past
        dreamt = model.finish(other)
        same = all(torch.equal(dreamt.arrays[k], woken.arrays[k]) for k in slow)
        assert same is not chosen


def test_sleep_keeps_its_slow_memory_and_forgets_the_day() -> None:
    """Within a sequence the slow memory stands; each sample has its own night."""
    model, x = one("sleep", window=8, replayed=3), tokens(2, 12)
    found = states(model, x)
    slow = "layers.0.asleep.S.W1"
    assert all(torch.equal(a, b) for a, b in pairwise(kept(found, slow)))
    woken = model.finish(found[-1])
    assert not torch.equal(woken.arrays[slow][0], woken.arrays[slow][1])
    assert woken.arrays["layers.0.awake.M"].abs().max() == 0
    next_day = model(x, woken)[0]
    assert distance(next_day, model(x)[0]) > 1e-3
    _, alone = model(x[1:])
    assert distance(model.finish(alone).arrays[slow][0], woken.arrays[slow][1]) < 1e-12


def test_sleep_is_that_of_the_reference_for_days_of_any_length() -> None:
    """Answers, losses and gradients, the state saved and loaded between two days."""
    spec = small("sleep")
    model = model_of(spec)
    reference = nlc.reference(spec, model.state_dict())
    state, wanted = model.reset(2), None
    for day, time in enumerate((7, 1, 4, 5)):
        x = tokens(2, time, seed=day)
        truth = truth_of(reference, (x,), wanted)
        losses, labelled, _ = model.losses(x, state=state)
        assert torch.equal(labelled, truth.labelled) and distance(losses, truth.losses) < 1e-12
        if time > 1:
            assert farthest(gradients(model, (x,), state), truth.gradients)[0] < 1e-9
        answers = []
        for part in torch.split(x, 3, 1):
            y, state = model(part, state=state)
            answers.append(y.detach())
        assert distance(torch.cat(answers, 1), truth.outputs) < 1e-12
        _, wanted = reference(x, wanted)
        state, wanted = model.finish(state), reference.finish(wanted)


# ---- the sequence after -------------------------------------------------------------------------


EVERY_OTHER_NIGHT = (
    ("every sequence {", "every 2 sequences {"),
    ("  transfer backprop", "  transfer init training -> asleep\n  transfer backprop"),
)


@pytest.mark.parametrize(
    ("name", "changes", "constant"),
    [
        ("titans", (), ()),
        ("hope", (), ()),
        ("cms_sequential", (), ()),
        ("cms_nested", (), ()),
        ("sleep", (), ()),
        ("sleep", EVERY_OTHER_NIGHT, ("layers.0.asleep.S.W1", "layers.0.asleep.S.W2")),
    ],
)
def test_a_start_is_trained_after_the_end_of_a_sequence(
    name: str, changes: tuple[tuple[str, str], ...], constant: tuple[str, ...]
) -> None:
    """As at the first reset; what outlives the sequence is a constant, also where it has not
    fired yet. Each sequence has its own backward pass.
    """
    spec = small(name, depth=1)
    if changes:
        text = (SPECS / f"{name}.nl").read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        spec = nlc.load(text, vocab=11, width=8, depth=1, window=3, replayed=2)
    model = model_of(spec)
    reference = nlc.reference(spec, model.state_dict())
    x, y = tokens(2, 6), tokens(2, 5, seed=1)
    losses, labelled, state = model.losses(x)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    state, wanted = model.finish(state), reference.finish(reference(x)[1])
    truth, found = truth_of(reference, (y,), wanted), gradients(model, (y,), state)
    assert farthest(found, truth.gradients)[0] < 1e-9
    assert {p for p, g in found.items() if g is None or not g.any()} == set(constant)


# ---- a learned optimizer -------------------------------------------------------------------------


def training_run(cut: int) -> tuple[Spec, Model, Tensor, Tensor]:
    """A student's first sixteen examples; its history is a constant at each multiple of `cut`."""
    text = (SPECS / "learned_optimizer.nl").read_text(encoding="utf-8")
    text = text.replace("through 80 tokens", f"through {cut} tokens")
    spec = nlc.load(text.replace("rate = 1e-2", "rate = 0.5"), pixels=6, classes=3, hidden=5)
    x, y = draw(2, 16, 6), tokens(2, 16, vocab=3)
    return spec, model_of(spec), x, y


def slopes(model: Model, total: Tensor) -> dict[str, Tensor]:
    named = {n: w for n, w in model.named_weights() if w.requires_grad}
    found = torch.autograd.grad(total, list(named.values()))
    return dict(zip(named, found, strict=True))


def test_a_learned_optimizers_weights_follow_the_losses_to_come() -> None:
    """Their gradient is that of the reference, by finite differences."""
    spec, model, x, y = training_run(80)
    found = slopes(model, model.losses(x, y)[0].sum())
    for name, slope in found.items():
        for at in ((0, 0), (-1, 1)):
            sides = []
            for step in (1e-5, -1e-5):
                weights = {n: w.clone() for n, w in model.state_dict().items()}
                weights[name][at] += step
                sides.append(nlc.reference(spec, weights).losses((x, y))[0].sum())
            assert distance((sides[0] - sides[1]) / 2e-5, slope[at]) < 1e-6


def test_a_learned_optimizers_history_ends_at_the_cut() -> None:
    """And nowhere else: as if the run had been handed over there as numbers."""
    _, cut, x, y = training_run(8)
    _, whole, _, _ = training_run(80)
    found = slopes(cut, cut.losses(x, y)[0].sum())
    first, _, state = whole.losses(x[:, :8], y[:, :8])
    second, _, _ = whole.losses(x[:, 8:], y[:, 8:], state=state.detach())
    wanted = slopes(whole, first.sum() + second.sum())
    longer = slopes(whole, whole.losses(x, y)[0].sum())
    for name in found:
        assert (
            distance(found[name], wanted[name])
            < 1e-12
            < 1e-3
            < distance(longer[name], wanted[name])
        )


def test_a_student_is_drawn_anew_for_each_run() -> None:
    """By seed, sample and step; as wide as the spec says."""
    model = model_of(small("learned_optimizer", pixels=64, hidden=64))
    x, y = draw(8, 1, 64), tokens(8, 1, vocab=3)
    starts = [model(x, y)[1].arrays["student.F.W1"] for _ in range(2)]
    assert torch.equal(*starts)
    model.steps = 1
    starts[1] = model(x, y)[1].arrays["student.F.W1"]
    starts.append(
        nlc.compile(small("learned_optimizer", pixels=64, hidden=64), seed=1, dtype=torch.float64)(
            x, y
        )[1].arrays["student.F.W1"]
    )
    drawn = torch.cat(starts).flatten(1) / 0.1
    assert (drawn.mean(1).abs() < 0.06).all() and ((drawn.std(1) - 1).abs() < 0.05).all()
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.07  # four deviations
    assert 3 < drawn.abs().max() < 6


def test_lora_is_its_base_until_it_has_learned() -> None:
    model, x = one("lora"), tokens(2, 9)
    weights = dict(model.named_weights())
    assert sorted(n.rsplit(".", 1)[-1] for n, w in weights.items() if w.requires_grad) == list(
        "AABB"
    )
    before, _ = model(x)
    with torch.no_grad():
        for name, w in weights.items():
            if name.endswith("adapter.A"):
                w.mul_(-2)
    assert torch.equal(model(x)[0], before)
    with torch.no_grad():
        for name, w in weights.items():
            if name.endswith(".B"):
                w.copy_(draw(*w.shape))
    losses, _, _ = model.losses(x)
    torch.autograd.backward(losses.mean())
    assert all(bool(w.grad.any()) for w in weights.values() if w.grad is not None)


# ---- the simplest fast levels, and a learned start -----------------------------------------------


def weights_of(model: Model, last: str) -> list[Tensor]:
    return [w for n, w in model.named_weights() if n.startswith("layers.0.cells.") and last in n]


@torch.no_grad()
def test_an_rnn_is_a_vector_that_is_set() -> None:
    model, x = one("rnn"), tokens(2, 6)
    w = dict(model.named_weights())
    into, back = weights_of(model, "linear")
    (bias,) = weights_of(model, "learned")
    h = torch.zeros(2, 8, dtype=torch.float64)
    for t, state in enumerate(states(model, x)):
        seen = F.rms_norm(w["x.embed"][x[:, t]], (8,), w["layers.0.x.norm"], 1e-6)
        h = torch.tanh(seen @ into.T + h @ back.T + bias)
        assert distance(state.arrays["layers.0.cells.h"], h) < 1e-12


@torch.no_grad()
def test_an_lstm_is_torchs() -> None:
    """Whose gates stand in another order; the gate that keeps starts one higher."""
    model, x = one("lstm"), tokens(2, 6)
    w = dict(model.named_weights())
    into, back = weights_of(model, "linear")
    (bias,) = weights_of(model, "learned")
    order = torch.tensor([1, 0, 2, 3])  # keep, write, value, answer -> torch's
    into, back = (a.view(4, 8, 8)[order].flatten(0, 1) for a in (into, back))
    bias = (bias.view(4, 8) + torch.tensor([1.0, 0, 0, 0]).unsqueeze(1))[order].flatten()
    h = c = torch.zeros(2, 8, dtype=torch.float64)
    for t, state in enumerate(states(model, x)):
        seen = F.rms_norm(w["x.embed"][x[:, t]], (8,), w["layers.0.x.norm"], 1e-6)
        h, c = torch.lstm_cell(seen, (h, c), into, back, bias, torch.zeros_like(bias))
        assert distance(state.arrays["layers.0.cells.h"], h) < 1e-12
        assert distance(state.arrays["layers.0.cells.c"], c) < 1e-12


@pytest.mark.parametrize("order", ["", " first order"])
def test_maml_is_what_one_writes_by_hand(order: str) -> None:
    """The gradient of the questions' loss, through the step on the shots, by torch.func."""
    text = (SPECS / "maml.nl").read_text(encoding="utf-8")
    text = text.replace("transfer init outer -> inner ", f"transfer init outer -> inner{order} ")
    model = model_of(nlc.load(text, hidden=5, shots=4))
    x, y = draw(3, 8, 1), draw(3, 8, 1, seed=1)
    # One more step on the questions has no answer left to change.
    losses, labelled, _ = model.losses(x, y)
    torch.autograd.backward(losses[labelled].mean())
    start = {n: w.detach().clone() for n, w in model.named_weights()}

    def says(at: dict[str, Tensor], x: Tensor) -> Tensor:
        one, two, three = at.values()
        return F.gelu(F.gelu(x @ one.T) @ two.T) @ three.T

    def shots(at: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (says(at, x[:4]) - y[:4]).square().sum() / 4

    def outer(at: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for a, b in zip(x, y, strict=True):
            slope = torch.func.grad(shots)(at, a, b)
            if order:
                slope = {n: g.detach() for n, g in slope.items()}
            moved = {n: w - 0.01 * slope[n] for n, w in at.items()}
            total = total + (says(moved, a[4:]) - b[4:]).square().sum()
        return total / losses[labelled].numel()

    wanted = torch.func.grad(outer)(start)
    for name, w in model.named_weights():
        assert w.grad is not None and distance(w.grad, wanted[name]) < 1e-12


def test_hope_attention_is_a_transformer_until_its_blocks_have_learned() -> None:
    sizes: dict[str, Any] = {"vocab": 7, "width": 8, "heads": 2, "depth": 2, "periods": [4, 8]}
    learns, stands = (
        nlc.compile("hope_attention", dtype=torch.float64, **sizes, inner=rate)
        for rate in (1e-2, 0)
    )
    stands.load_state_dict(learns.state_dict())
    ids = torch.randint(0, 7, (2, 13), generator=torch.Generator().manual_seed(0))
    found, wanted = learns(ids)[0], stands(ids)[0]
    off = (found - wanted).abs().amax((0, 2))
    assert off[:4].max() < 1e-12, "the label of the fourth token is the fifth"
    assert off[4:].min() > 1e-6
