"""`nlc.memory`: every name is the reference, in any split, packed or not, with all its gradients.

A name that has no algorithm yet is in NOT_LOWERED_YET, and raises NL701 until it is taken out.
"""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from operations import Arrays, answers, gradients
from torch import Tensor

import nlc
from nlc.backends.runtime import StateError
from nlc.codes import CODES
from nlc.driver import SpecError
from nlc.operation import ALIASES, Memory, MemoryState, names
from nlc.operation.around import model_of, module_of
from nlc.verify.streams import distance

NOT_LOWERED_YET: set[str] = set()

EXACT = 1e-9
B, T, H, N, M = 2, 11, 2, 4, 3
CUTS = [[1, 5, 10], list(range(1, T)), [4, 8]]
SIZES = {"n": (N,), "m": (M,), "": (), "r": (2,), "rn": (2, N), "rm": (2, M), "c": (3,)}
GATES = {"alpha", "beta", "gamma", "f", "w", "a", "b", "mu", "dt", "A", "delta", "ridge"}

QKV = {"q": "n", "k": "n", "v": "m"}
DEEP = {"q": "n", "k": "n", "v": "n"}
FORGET = {"alpha": "", "eta": ""}


@dataclass
class Op:
    """How a name is called: the kind of each stream, and settings."""

    kinds: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)

    def data(self, seed: int = 0, batch: int = B, time: int = T) -> Arrays:
        generator = torch.Generator().manual_seed(100 + seed)
        made = {}
        for n, kind in self.kinds.items():
            shape = (batch, time, H, *SIZES[kind])
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            made[n] = (
                torch.sigmoid(x) if n in GATES else 0.1 * torch.sigmoid(x) if n == "eta" else x / 2
            )
        return made


GATED = Op({**QKV, "alpha": "", "beta": ""})
OPS = {
    "linear": Op(QKV),
    "linear_attention": Op(QKV),
    "retention": Op({**QKV, "alpha": "n"}),
    "retnet": Op({**QKV, "gamma": ""}, {"scale": 0.5}),
    "scalar_gated": Op({**QKV, "alpha": ""}),
    "mamba2": Op({"x": "m", "B": "n", "C": "n", "dt": "", "A": "", "D": ""}),
    "gla": Op({**QKV, "alpha": "n"}),
    "hgrn2": Op({"q": "n", "f": "n", "v": "m"}),
    "delta": Op({**QKV, "beta": ""}),
    "gated_delta": GATED,
    "gated_delta_2": Op({**QKV, "alpha": "n", "b": "n", "w": "m"}),
    "delta_product": Op({"q": "n", "k": "rn", "v": "rm", "alpha": "", "beta": "r"}),
    "kda": Op({**QKV, "alpha": "n", "beta": ""}),
    "rwkv7": Op({"r": "n", "w": "n", "k": "n", "v": "m", "kappa": "n", "a": "n"}),
    "comba": Op({**QKV, "p": "n", "alpha": "", "beta": ""}, {"D": 0.5}),
    "longhorn": Op({**QKV, "beta": "m"}),
    "mesa": Op({**QKV, "beta": "", "gamma": "", "ridge": "n"}),
    "oja": Op({**QKV, "alpha": "m", "beta": ""}),
    "surprise_gate": Op({**QKV, "alpha": "", "beta": ""}, {"threshold": 0.5}),
    "momentum_delta": Op({**QKV, **FORGET, "mu": ""}),
    "titans_linear": Op({**QKV, **FORGET, "mu": ""}),
    "titans_exact": Op({**DEEP, **FORGET, "mu": ""}),
    "titans": Op({**DEEP, **FORGET, "mu": ""}, {"chunk": 4}),
    "titans_mlp": Op({**DEEP, **FORGET, "mu": ""}, {"chunk": 1}),
    "ttt_linear": Op({**DEEP, "eta": "", "gain": "n", "bias": "n"}, {"chunk": 4}),
    "ttt_mlp": Op({**DEEP, "eta": ""}, {"chunk": 4}),
    "lp": Op({**QKV, **FORGET}),
    "huber": Op({**QKV, **FORGET, "delta": ""}),
    "huber_norm": Op({**QKV, **FORGET, "delta": ""}),
    "moneta": Op({**DEEP, **FORGET}, {"chunk": 4}),
    "moneta_ftrl": Op({**DEEP, **FORGET}, {"chunk": 4}),
    "yaad": Op({**DEEP, **FORGET, "delta": ""}, {"chunk": 4}),
    "memora": Op({**DEEP, **FORGET}, {"chunk": 4}),
    "omega": Op({**DEEP, **FORGET, "gamma": "c"}),
    "elastic": Op({**QKV, **FORGET}, {"gamma": 0.05}),
    "elastic_net": Op({**QKV, **FORGET}, {"gamma": 0.05}),
    "elastic_ftrl": Op({**QKV, "eta": ""}, {"gamma": 0.05}),
    "sphere": Op({**DEEP, "eta": ""}),
    "attend": Op(QKV, {"window": 3}),
    "softmax": Op(QKV),
    "window": Op(QKV, {"size": 4}),
}
LOWERED = sorted(set(OPS) - NOT_LOWERED_YET)

every_name = pytest.mark.parametrize("name", LOWERED)


# ---- words ---------------------------------------------------------------------------------------


def leaves(data: Arrays) -> Arrays:
    return {n: x.clone().requires_grad_() for n, x in data.items()}


def ramp(y: Tensor) -> Tensor:
    """What is differentiated: every answer, each by a number of its own."""
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)


def part(data: Arrays, a: int, b: int) -> Arrays:
    return {n: x[:, a:b] for n, x in data.items()}


def in_calls(memory: Memory, op: Op, data: Arrays, cuts: list[int]) -> tuple[Tensor, MemoryState]:
    reads, state = [], None
    for a, b in pairwise([0, *cuts, T]):
        y, state = memory(**part(data, a, b), **op.settings, state=state)
        reads.append(y)
    assert state is not None
    return torch.cat(reads, 1), state


def close(a: Tensor, b: Tensor, tolerance: float = EXACT) -> None:
    assert a.shape == b.shape
    scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    assert not b.numel() or float((a - b).detach().abs().max()) <= tolerance * scale


def close_states(a: MemoryState, b: MemoryState) -> None:
    assert a.positions == b.positions and set(a.arrays) == set(b.arrays)
    for k, x in a.arrays.items():
        close(x, b.arrays[k])


def grads(y: Tensor, data: Arrays) -> list[Tensor]:
    found = torch.autograd.grad((ramp(y) * y).sum(), list(data.values()), allow_unused=True)
    return [
        torch.zeros_like(x) if g is None else g for x, g in zip(data.values(), found, strict=True)
    ]


# ---- every name ----------------------------------------------------------------------------------


def test_every_name_is_here() -> None:
    assert set(names()) - set(OPS) == {"continuum"}  # which learns the model's loss


def test_the_page_has_every_name() -> None:
    """With its streams and settings as they are declared."""
    page = (Path(__file__).parent.parent / "docs/memories.md").read_text(encoding="utf-8")
    for name in OPS:
        declared = f"| `{nlc.memory(name).declared}`"
        rows = [row for row in page.splitlines() if row.startswith(declared)]
        assert len(rows) == 1 and (name not in ALIASES or f"also `{name}`" in rows[0]), name


@pytest.mark.parametrize("name", sorted(NOT_LOWERED_YET))
def test_what_is_not_lowered_says_so(name: str) -> None:
    op = OPS[name]
    with pytest.raises(nlc.SpecError) as error:
        nlc.memory(name)(**op.data(), **op.settings)
    assert {d.code for d in error.value.diagnostics} == {"NL701"}


@every_name
def test_an_operation_is_the_reference(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name, seed=3)
    data = leaves(op.data())
    y, state = memory(**data, **op.settings)
    truth = nlc.reference(memory.spec(**data, **op.settings), seed=3)
    wanted = answers(truth, data)
    close(y, wanted)
    theirs = gradients(truth, wanted, ramp(wanted), list(data.values()))
    for n, ours, g in zip(data, grads(y, data), theirs, strict=True):
        assert float(g.abs().max()) > 0, n
        close(ours, g)
    assert state.positions == (T,) * B and state.dtype in (torch.float64, None)


@pytest.mark.parametrize("name", LOWERED)
def test_any_split_is_the_same(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = leaves(op.data(1))
    whole, end = memory(**data, **op.settings)
    wanted = grads(whole, data)
    for cuts in CUTS:
        y, state = in_calls(memory, op, data, cuts)
        close(y, whole)
        close_states(state, end)
        for ours, g in zip(grads(y, data), wanted, strict=True):
            close(ours, g)


@every_name
def test_packed_is_each_sequence_alone(name: str) -> None:
    """Of 4, 0, 6 and 1 ticks; then all of them go on, packed, then side by side."""
    op, memory, bounds = OPS[name], nlc.memory(name), [0, 4, 4, 10, 11]
    data = leaves(op.data(2, batch=1))
    y, state = memory(**data, **op.settings, cu_seqlens=torch.tensor(bounds))
    alone = [memory(**part(data, a, b), **op.settings) for a, b in pairwise(bounds)]
    whole = torch.cat([y for y, _ in alone], 1)
    close(y, whole)
    assert state.positions == (4, 0, 6, 1)
    for ours, g in zip(grads(y, data), grads(whole, data), strict=True):
        close(ours, g)

    more, then = op.data(3, batch=1), [0, 3, 5, 8, 11]
    y, state = memory(**more, **op.settings, state=state, cu_seqlens=then)
    pairs = zip(alone, pairwise(then), strict=True)
    alone = [memory(**part(more, a, b), **op.settings, state=s) for (_, s), (a, b) in pairs]
    close(y, torch.cat([y for y, _ in alone], 1))
    assert state.positions == (7, 2, 9, 4)

    last = op.data(4, batch=4, time=5)
    y, _ = memory(**last, **op.settings, state=state)
    for i, (_, s) in enumerate(alone):
        row = {n: x[i : i + 1] for n, x in last.items()}
        close(y[i : i + 1], memory(**row, **op.settings, state=s)[0])


@every_name
def test_no_tick_changes_an_earlier_one(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = op.data(5)
    later = {n: torch.cat([x[:, :6], 0.5 + 0 * x[:, 6:]], 1) for n, x in data.items()}
    a, b = (memory(**x, **op.settings)[0] for x in (data, later))
    assert torch.equal(a[:, :6], b[:, :6]) and not torch.equal(a[:, 6:], b[:, 6:])


@every_name
def test_not_a_number_stays_in_its_sample(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = op.data(6)
    spoilt = {n: x.clone() for n, x in data.items()}
    for x in spoilt.values():
        x[1, 3] = torch.nan
    clean, bad = memory(**data, **op.settings)[0], memory(**spoilt, **op.settings)[0]
    close(bad[0], clean[0])
    assert bool(bad[1, 3].isnan().any())
    packed = {n: x.reshape(1, B * T, *x.shape[2:]) for n, x in spoilt.items()}
    y, _ = memory(**packed, **op.settings, cu_seqlens=[0, T, 2 * T])
    close(y[0, :T], clean[0])
    assert bool(y[0, T + 3].isnan().any())


@every_name
def test_nothing_is_answered_for_no_ticks(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = op.data(7)
    y, state = memory(**data, **op.settings)
    for before in (None, state):
        none, after = memory(**part(data, 0, 0), **op.settings, state=before)
        assert none.shape == (B, 0, *y.shape[2:]) and none.dtype == y.dtype
    close_states(after, state)
    one = {n: x[:1, :0] for n, x in data.items()}
    none, after = memory(**one, **op.settings, cu_seqlens=[0, 0, 0], state=state)
    assert none.shape == (1, 0, *y.shape[2:])
    close_states(after, state)


@every_name
def test_a_batch_of_nobody_is_answered_with_nothing(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = leaves({n: x[:0] for n, x in op.data(7).items()})
    y, state = memory(**part(data, 0, 5), **op.settings)
    more, after = memory(**part(data, 5, T), **op.settings, state=state)
    whole, end = memory(**data, **op.settings)
    assert whole.shape == (0, T, *more.shape[2:]) and more.shape[:2] == (0, T - 5)
    assert y.dtype == torch.float64 and after.positions == ()
    assert after.arrays.keys() == end.arrays.keys()
    assert all(len(x) == 0 for x in after.arrays.values())
    assert all(g.shape == x.shape for g, x in zip(grads(whole, data), data.values(), strict=True))


@every_name
def test_vectors_of_one_number(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    sized = {p.name.id for p in memory.declared.streams if p.dims}
    given = {
        n: x if op.kinds[n] in ("", "r", "c") else x[..., :1] if n in sized else x[..., 0]
        for n, x in op.data(7).items()
    }
    data = leaves(given)
    y, _ = memory(**data, **op.settings)
    truth = nlc.reference(memory.spec(**data, **op.settings))
    wanted = answers(truth, data)
    close(y, wanted)
    theirs = gradients(truth, wanted, ramp(wanted), list(data.values()))
    for ours, g in zip(grads(y, data), theirs, strict=True):
        close(ours, g)


def test_mesa_without_a_least_is_no_number() -> None:
    """With a ridge below 0 there is a saddle, and Cholesky's factor is none."""
    op, memory = OPS["mesa"], nlc.memory("mesa")
    data = op.data(8)
    y, _ = memory(**data)
    data["ridge"][1, 4:] = -1
    spoilt, state = memory(**data)
    close(spoilt[0], y[0])
    close(spoilt[1, :4], y[1, :4])
    assert bool(spoilt[1, 4:].isnan().all())
    assert all(bool(x.isfinite().all()) for x in state.arrays.values())


@pytest.mark.parametrize("ridge", [1e-7, 1e-12])
def test_mesa_finds_a_ridge_again_that_rounding_has_lost(ridge: float) -> None:
    """In float32, where one key comes at every token."""
    op, memory = OPS["mesa"], nlc.memory("mesa")
    data = {n: x.float() for n, x in op.data(64).items()}
    data["k"] = data["k"][:, :1].expand_as(data["k"])
    data["ridge"] = torch.full_like(data["ridge"], ridge)
    x = leaves(data)
    y, _ = memory(**x)
    assert all(bool(g.isfinite().all()) for g in (y, *grads(y, x)))
    fine = {**data, "ridge": torch.ones_like(data["ridge"])}
    mixed = {**data, "ridge": data["ridge"].clone()}
    mixed["ridge"][1] = 1
    assert torch.equal(memory(**mixed)[0][1], memory(**fine)[0][1]), "others are as they were"


@pytest.mark.parametrize("p", [1, 1.5, 2.5, 3])
def test_lp_without_smoothing_is_the_papers_where_nothing_is_wrong(p: float) -> None:
    """p sign(r) |r|^(p - 1) is 0 of an error of 0, and so is its derivative."""
    op, memory = OPS["lp"], nlc.memory("lp")
    data = op.data(8)
    data["v"][:, :3] = 0
    data["k"][:, 5], data["v"][:, 5] = 0, 0
    data = leaves(data)
    y, _ = memory(**data, p=p, smooth=0)
    S, wanted = torch.zeros(B, H, N, M, dtype=torch.float64), []
    for t in range(T):
        q, k, v, alpha, eta = (x[:, t].detach() for x in data.values())
        r = (S * k.unsqueeze(-1)).sum(-2) - v
        psi = p * r.sign() * r.abs() ** (p - 1)
        S = alpha[..., None, None] * S - eta[..., None, None] * k.unsqueeze(-1) * psi.unsqueeze(-2)
        wanted.append((S * q.unsqueeze(-1)).sum(-2))
    close(y, torch.stack(wanted, 1))
    assert all(bool(g.isfinite().all()) for g in grads(y, data))


@pytest.mark.parametrize("settings", [{}, {"printed": 0}, {"printed": 0, "r": 2.5}])
def test_moneta_has_gradients_where_all_is_forgotten(settings: dict[str, Any]) -> None:
    """Its sums are then 0, and the derivative of a root of 0 is 0 (2.12)."""
    op, memory = OPS["moneta"], nlc.memory("moneta")
    data = op.data(8)
    data["alpha"][:, 2], data["eta"][:, 2] = 0, 0
    data = leaves(data)
    y, _ = memory(**data, **op.settings, **settings)
    assert all(bool(x.isfinite().all()) for x in [y, *grads(y, data)])


@every_name
def test_half_precision_keeps_its_state_in_float32(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = {n: x.bfloat16() for n, x in op.data(8).items()}
    y, state = memory(**data, **op.settings)
    wide, _ = memory(**{n: x.float() for n, x in data.items()}, **op.settings)
    assert y.dtype == torch.bfloat16 and state.dtype in (torch.float32, None)
    assert torch.equal(y, wide.bfloat16())
    gates = {n: x.float() if n in GATES else x for n, x in data.items()}
    assert memory(**gates, **op.settings)[0].dtype == torch.bfloat16


@every_name
def test_a_state_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = op.data(9, batch=1)
    _, state = memory(**data, **op.settings, cu_seqlens=[0, 4, 11])
    state.save(tmp_path / "state")
    loaded = memory.load_state(tmp_path / "state")
    more = op.data(10)
    y, _ = memory(**more, **op.settings, state=state)
    assert torch.equal(memory(**more, **op.settings, state=loaded)[0], y)


# ---- arguments -----------------------------------------------------------------------------------


def test_streams_in_order_or_by_name() -> None:
    memory, x = nlc.memory("gated_delta"), GATED.data()
    y, _ = memory(**x)
    assert torch.equal(memory(*x.values())[0], y)
    assert torch.equal(memory(x["q"], x["k"], x["v"], β=x["beta"], α=x["alpha"])[0], y)


def test_a_stream_may_be_a_number_and_a_setting_a_tensor() -> None:
    memory, x = nlc.memory("gated_delta"), GATED.data()
    half = torch.full((B, T, H), 0.5, dtype=torch.float64)
    close(memory(**(x | {"alpha": 0.5}))[0], memory(**(x | {"alpha": half}))[0])
    before = module_of.cache_info().misses
    memory(**(x | {"alpha": 0.25}))
    assert module_of.cache_info().misses == before  # a number that changes compiles nothing anew
    net, x = nlc.memory("retnet"), OPS["retnet"].data()
    close(net(**x, scale=half)[0], net(**x, scale=0.5)[0])
    channel = half[..., None].expand(B, T, H, N)
    close(net(**x, scale=channel)[0], net(**x, scale=0.5)[0])


def test_gates_have_any_shape_that_the_rule_takes() -> None:
    """One a head, or one a key channel, by what is given."""
    memory, x = nlc.memory("retention"), OPS["gla"].data()
    close(memory(**x)[0], nlc.memory("gla")(**x)[0])
    x["alpha"] = x["alpha"][..., 0]
    close(memory(**x)[0], nlc.memory("scalar_gated")(**x)[0])


@pytest.mark.parametrize("heads", [(), (3, 2)])
def test_axes_between_time_and_a_streams_own_are_mapped_over(heads: tuple[int, ...]) -> None:
    memory = nlc.memory("gated_delta")
    wide = {n: torch.randn(B, T, 6, *SIZES[k]).double() for n, k in GATED.kinds.items()}
    y, _ = memory(**wide)
    if heads:
        shaped = {n: x.view(B, T, *heads, *x.shape[3:]) for n, x in wide.items()}
        assert torch.equal(memory(**shaped)[0].flatten(2, 3), y)
    else:
        close(memory(**{n: x[:, :, 0] for n, x in wide.items()})[0], y[:, :, 0])


def test_two_names_of_one_rule() -> None:
    x = GATED.data()
    q, k, v = x["q"], x["k"], x["v"]
    assert torch.equal(nlc.memory("linear")(q, k, v)[0], nlc.memory("linear_attention")(q, k, v)[0])
    full, window = nlc.memory("softmax")(q, k, v)[0], nlc.memory("window")(q, k, v, size=100)[0]
    close(full, window)
    mapped = torch.einsum("bthn,bshn->bhts", q, k) / N**0.5
    later = torch.ones(T, T).triu(1).bool()
    shares = mapped.masked_fill(later, -torch.inf).softmax(-1)
    close(full, torch.einsum("bhts,bshm->bthm", shares, v))


def wanted(name: str, shape: str, given: str) -> str:
    """What is told of a shape, as a pattern."""
    told = f"`{name}` is wanted as {shape} beside `q` [2, 11, 2, 4], and was given {given}"
    return re.escape(told)


X = GATED.data()
ALPHA = "[2, 11, 2] or [2, 11, 2, channels]"
FIVE = r"does not fit `gated_delta`: .*alpha \[5\][^$]*one an input channel \[4\]"
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"v": X["v"][:, :, :1]}, ValueError, wanted("v", "[2, 11, 2, 3]", "[2, 11, 1, 3]")),
    ({"k": X["k"][..., :3]}, ValueError, wanted("k", "[2, 11, 2, 4]", "[2, 11, 2, 3]")),
    ({"k": X["k"][:, :5]}, ValueError, wanted("k", "[2, 11, 2, 4]", "[2, 5, 2, 4]")),
    ({"k": X["k"][:1]}, ValueError, wanted("k", "[2, 11, 2, 4]", "[1, 11, 2, 4]")),
    ({"q": X["q"][0, 0, 0]}, ValueError, r"`q` is \[batch, time, heads, n\] and was given \[4\]"),
    ({"q": X["q"][..., :0]}, ValueError, r"`q` was given \[2, 11, 2, 0\], whose vectors are empty"),
    ({"q": X["q"][:, :, :0]}, ValueError, r"`q` was given \[2, 11, 0, 4\], which has no heads"),
    ({"alpha": X["alpha"][:, :, :1]}, ValueError, wanted("alpha", ALPHA, "[2, 11, 1]")),
    ({"alpha": X["alpha"][..., None]}, ValueError, wanted("alpha", ALPHA, "[2, 11, 2, 1]")),
    ({"alpha": X["alpha"][0, 0]}, ValueError, wanted("alpha", ALPHA, "[2]")),
    ({"alpha": torch.tensor(0.5)}, ValueError, wanted("alpha", ALPHA, "[]")),
    ({"alpha": torch.rand(B, T, H, 5)}, ValueError, FIVE),
    ({"alpha": "half"}, TypeError, r"`alpha` is a tensor, \[batch, time, heads\].* given a str"),
    ({"alpha": True}, TypeError, r"`alpha` .* was given a bool"),
    ({"q": 1.0}, TypeError, r"`q` is a tensor, \[batch, time, heads, n\], and was given 1.0"),
    ({"q": X["q"].long()}, TypeError, r"`q` holds torch.int64"),
    ({"alpha": float("nan")}, ValueError, "`alpha` is one number for every tick, and nan would"),
    ({"beta": -float("inf")}, ValueError, "`beta` is one number for every tick, and -inf would"),
    ({"gama": 0.5}, TypeError, r"`gated_delta` has no argument `gama`"),
    ({"alpa": 0.5}, TypeError, r"no argument `alpa`; did you mean `alpha`\?"),
    (
        {"state": 3},
        TypeError,
        r"`state` is what this memory returned before, or a start; not a int",
    ),
    ({"cu_seqlens": [0, T]}, ValueError, r"packs sequences into a batch of 1, and the batch is 2"),
]


@pytest.mark.parametrize(("wrong", "kind", "says"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_named(
    wrong: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        nlc.memory("gated_delta")(**{**X, **wrong})


@pytest.mark.parametrize(
    "bounds",
    [
        [0], [1, T], [0, 12], [0, 5, 4, T], torch.tensor([[0, T]]), torch.tensor([0.0, 11]),
        [0, 5.5, T], [0, True, T], "abc", 7, [0, float("nan"), T],
    ],
)  # fmt: skip
def test_bounds_rise_from_nought_to_the_time(bounds: Any) -> None:
    with pytest.raises(ValueError, match="`cu_seqlens`"):
        nlc.memory("gated_delta")(**GATED.data(batch=1), cu_seqlens=bounds)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.nl").write_bytes(b"nl 1\n\xff")
    (tmp_path / "folder.nl").mkdir()
    for name, says in (
        ("nope.nl", "there is no file .*nope.nl"),
        ("mime.nl", "there is no file .*mime.nl. Did you mean mine.nl?"),
        ("mine.nl", r"mine.nl is not UTF-8 text \(byte 6\)"),
        ("folder.nl", "folder.nl cannot be read: is a directory"),
    ):
        with pytest.raises(OSError, match=says.replace("?", r"\?")) as error:
            nlc.memory(tmp_path / name)
        assert "Errno" not in str(error.value)


WINDOWS: list[tuple[Any, str]] = [
    (2.5, r"size = 2.5, .*\n.*`size` is 2.5; a size is a whole number of at least 1\n"),
    (0, r"`size` is 0; a size is a whole number of at least 1\n"),
    (10**15, r"`size` is 1000000000000000; a size is .* at least 1, and at most 1,099,511,627,776"),
    ([4], r"`size` is a list; a size must be one number"),
]


@pytest.mark.parametrize(("size", "says"), WINDOWS, ids=str)
def test_a_window_of_no_size_is_told_by_its_own(size: Any, says: str) -> None:
    x = OPS["window"].data()
    with pytest.raises(ValueError, match=says):
        nlc.memory("window")(**x, size=size)


def test_a_state_of_another_window_is_told_by_this_ones_size() -> None:
    memory, x = nlc.memory("window"), OPS["window"].data()
    _, state = memory(**x, size=4)
    with pytest.raises(StateError, match=r"this is memory window\(q\[n\], .*, size = 3\)"):
        memory(**x, size=3, state=state)
    narrow = x | {n: x[n][..., :3] for n in "qk"}
    with pytest.raises(StateError, match=r"these streams need \[2, any, 3\]"):
        memory(**narrow, size=4, state=state)


def test_too_many_and_twice() -> None:
    x = GATED.data()
    with pytest.raises(
        TypeError, match=r"takes 5 streams in order \(q, k, v, alpha, beta\) and is"
    ):
        nlc.memory("gated_delta")(*x.values(), 3)
    with pytest.raises(TypeError, match=r"`gated_delta` needs `k`, \[batch, time, heads, n\]"):
        nlc.memory("gated_delta")(x["q"])
    with pytest.raises(TypeError, match="`q` is given twice"):
        nlc.memory("gated_delta")(x["q"], **x)


@pytest.mark.parametrize("setting", [float("nan"), "three", None, True])
def test_a_setting_is_a_number(setting: Any) -> None:
    with pytest.raises(TypeError, match="`scale` is a number, a list of numbers or a tensor"):
        nlc.memory("retnet")(**OPS["retnet"].data(), scale=setting)


def test_a_size_must_be_known_when_compiled() -> None:
    op = OPS["window"]
    with pytest.raises(ValueError, match=r"does not fit `window`: .*size"):
        nlc.memory("window")(**op.data(), size=torch.ones(B, T, H).double())


# ---- states --------------------------------------------------------------------------------------


def test_the_state_of_another_is_refused() -> None:
    memory, x = nlc.memory("gated_delta"), GATED.data()
    _, state = memory(**x)
    delta = {n: x[n] for n in ("q", "k", "v", "beta")}
    _, other = nlc.memory("delta")(**delta)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (other, x, "`state` belongs to `delta`"),
        (state, GATED.data(batch=3), "`state` has 2 sequences, and this call 3"),
        (state, {n: y.float() for n, y in x.items()}, r"`state` is in torch.float64, and"),
        (state, x | {"v": x["v"][..., :2]}, r"`state` holds M as \[2, 3, 4\] .* need \[2, 2, 4\]"),
        ({"W": torch.zeros(H, M, N)}, x, "`state` gives `W`, and `gated_delta` keeps M"),
        ({"M": torch.zeros(M, N)}, x, r"`state` gives `M` as \[3, 4\], and \[2, 3, 4\] is wanted"),
    ]
    for given, streams, says in cases:
        with pytest.raises(StateError, match=says):
            memory(**streams, state=given)


def test_a_state_of_other_settings_is_refused() -> None:
    op, memory = OPS["ttt_mlp"], nlc.memory("ttt_mlp")
    _, state = memory(**op.data(), chunk=4)
    with pytest.raises(StateError, match="or to other settings of it"):
        memory(**op.data(), chunk=2, state=state)
    _, state = memory(**op.data())
    memory(**op.data(), chunk=16, state=state)  # as it is declared


def test_a_state_is_not_changed_by_a_call() -> None:
    memory, x = nlc.memory("gated_delta"), GATED.data()
    _, state = memory(**x)
    copy = state.fork()
    one, _ = memory(**x, state=state)
    assert torch.equal(memory(**x, state=state)[0], one)
    close_states(state, copy)
    assert torch.equal(memory(**x, state=copy)[0], one)
    assert copy.arrays["M"].data_ptr() != state.arrays["M"].data_ptr()


def test_gradients_pass_through_a_state_until_it_is_detached() -> None:
    memory, x = nlc.memory("gated_delta"), leaves(GATED.data())
    _, state = memory(**part(x, 0, 5))
    y, _ = memory(**part(x, 5, T), state=state)
    assert float(grads(y, x)[1][:, :5].abs().max()) > 0
    y, _ = memory(**part(x, 5, T), state=state.detach())
    assert float(grads(y, x)[1][:, :5].abs().max()) == 0


@pytest.mark.parametrize("text", ["", "no state", "cut"])
def test_a_file_that_holds_no_state(text: str, tmp_path: Path) -> None:
    memory, path = nlc.memory("delta"), tmp_path / "state"
    with pytest.raises(StateError, match="there is no state file"):
        memory.load_state(path)
    if text == "cut":
        memory(*(GATED.data()[n] for n in ("q", "k", "v", "beta")))[1].save(path)
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.write_text(text)
    with pytest.raises(StateError):
        memory.load_state(path)


def test_the_file_of_another_memory(tmp_path: Path) -> None:
    nlc.memory("gated_delta")(**GATED.data())[1].save(tmp_path / "state")
    with pytest.raises(StateError, match="is a state of `gated_delta`"):
        nlc.memory("delta").load_state(tmp_path / "state")


# ---- starts --------------------------------------------------------------------------------------


def test_a_start_is_the_callers_to_learn() -> None:
    """The delta rule from a matrix, by hand."""
    memory, x = nlc.memory("delta"), {n: GATED.data()[n] for n in ("q", "k", "v", "beta")}
    start = memory.start(heads=H, n=N, m=M).double()
    assert isinstance(start, torch.nn.ParameterDict) and set(start) == {"M"}
    assert torch.equal(memory(**x, state=start)[0], memory(**x)[0])
    with torch.no_grad():
        start["M"].normal_()
    y, _ = memory(**x, state=start)
    W, reads = start["M"].expand(B, H, M, N), []
    for t in range(T):
        q, k, v, beta = (s[:, t] for s in x.values())
        wrong = torch.einsum("bhmn,bhn->bhm", W, k) - v
        W = W - torch.einsum("bh,bhm,bhn->bhmn", beta, wrong, k)
        reads.append(torch.einsum("bhmn,bhn->bhm", W, q))
    wanted = torch.stack(reads, 1)
    close(y, wanted)
    ours, theirs = (torch.autograd.grad((ramp(z) * z).sum(), start["M"])[0] for z in (y, wanted))
    close(ours, theirs)
    bounds = [0, 3, T]
    packed, _ = memory(**{n: s[:1] for n, s in x.items()}, state=start, cu_seqlens=bounds)
    close(packed[0, :3], y[0, :3])


def test_the_draw_of_a_start_is_that_of_the_seed() -> None:
    op, memory = OPS["ttt_mlp"], nlc.memory("ttt_mlp", seed=5)
    x = {n: s.float() for n, s in op.data().items()}
    start = memory.start(heads=H, n=N, chunk=4)
    assert {k: tuple(w.shape) for k, w in start.items()} == {
        "M_W1": (H, 4 * N, N),
        "M_W2": (H, N, 4 * N),
    }
    y, _ = memory(**x, chunk=4)
    assert torch.equal(memory(**x, chunk=4, state=start)[0], y)
    assert not torch.equal(nlc.memory("ttt_mlp")(**x, chunk=4)[0], y)
    grown = torch.autograd.grad(memory(**x, chunk=4, state=start)[0].sum(), list(start.values()))
    assert all(float(g.abs().max()) > 0 for g in grown)


def test_a_start_asks_for_the_sizes() -> None:
    with pytest.raises(TypeError, match="takes heads and the sizes m, n, and was given n"):
        nlc.memory("delta").start(heads=2, n=3)
    assert nlc.memory("delta").start(n=3, m=2)["M"].shape == (2, 3)
    assert not nlc.memory("softmax").start(heads=2, n=3, m=2)  # solved anew: no start


# ---- files and texts -----------------------------------------------------------------------------

MINE = """nl 1
memory mine(q[n], k[n], v[m], keep, training = 0.5) {
  state     M : matrix(n, m)
  objective training * sum((M(k) - v)^2)
  retain    keep
  learn     gradient(rate = 1)
  read      M(q)
}
"""


def test_a_text_and_a_file(tmp_path: Path) -> None:
    """Names of the system around it give way to those of the text."""
    x = GATED.data()
    path = tmp_path / "mine.nl"
    path.write_text(MINE + "\nsystem own() {\n  flow(x) { return x }\n}\n", encoding="utf-8")
    wanted, _ = nlc.memory("titans_linear")(x["q"], x["k"], x["v"], x["alpha"], 0.5, 0.0)
    for spec in (MINE, path, str(path)):
        memory = nlc.memory(spec)
        assert repr(memory) == "memory mine(q[n], k[n], v[m], keep, training = 0.5)"
        close(memory(x["q"], x["k"], x["v"], keep=x["alpha"])[0], wanted)
    assert "class MineOperation" in memory.source(x["q"], x["k"], x["v"], keep=x["alpha"])


def test_a_file_may_use_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "words.nl").write_text("nl 1\ndef half(x) { return x / 2 }\n", encoding="utf-8")
    text = MINE.replace("nl 1\n", 'nl 1\nuse "words"\n').replace(
        "read      M(q)", "read half(M(q))"
    )
    (tmp_path / "mine.nl").write_text(text, encoding="utf-8")
    x = GATED.data()
    args = (x["q"], x["k"], x["v"], x["alpha"])
    close(nlc.memory(tmp_path / "mine.nl")(*args)[0], nlc.memory(MINE)(*args)[0] / 2)


def test_which_memory_of_several() -> None:
    two = MINE + MINE.removeprefix("nl 1").replace("mine", "other")
    with pytest.raises(ValueError, match="declares several memories; it has mine, other"):
        nlc.memory(two)
    assert nlc.memory(two, name="other").name == "other"
    with pytest.raises(ValueError, match="has no memory `third`; it has mine, other"):
        nlc.memory(two, name="third")
    with pytest.raises(ValueError, match="declares no memory"):
        nlc.memory('nl 1\nuse "memory/delta"\n')


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(
        ValueError, match="there is no memory `gated_delt`; did you mean `gated_delta`"
    ):
        nlc.memory("gated_delt")
    with pytest.raises(FileNotFoundError):
        nlc.memory("nowhere.nl")


@pytest.mark.parametrize("spec", [3, None, b"delta", ["delta"]])
def test_what_is_no_name_at_all(spec: Any) -> None:
    with pytest.raises(TypeError, match="a memory is a shipped name, a file or a text"):
        nlc.memory(spec)


def test_an_objective_is_one_number_a_tick() -> None:
    """Told as that, and not as one that is missing; an input without sizes leaves it no choice."""
    text = """nl 1
use "optim/gradient"
memory r(q[n], k[n], v[n], eta) {
  state M : matrix(n, n)
  objective (M(k) - v)^2
  learn gradient(rate = eta)
  read M(q)
}
"""
    with pytest.raises(SpecError) as raised:
        nlc.memory(text)
    assert [d.code for d in raised.value.diagnostics] == ["NL603"]


@pytest.mark.parametrize("name", ["gain", "bias"])
def test_a_setting_does_not_spread_an_answer(name: str) -> None:
    """[4, 1] beside [4] would make [4, 4] of it."""
    op = OPS["ttt_linear"]
    data = op.data()
    data[name] = data[name][..., None]
    says = rf"with `{name}` \[4, 1\] it would answer \[4, 4\] in place of \[4\]"
    with pytest.raises(ValueError, match=says):
        nlc.memory("ttt_linear")(**data, **op.settings)


@pytest.mark.parametrize("alpha", [1.5, -0.2])
def test_a_retention_is_what_is_given(alpha: float) -> None:
    """Nothing is clipped: beyond 1 a memory grows, below 0 it turns about."""
    x = GATED.data()
    kept, reads = torch.zeros(B, H, M, N, dtype=torch.float64), []
    for t in range(T):
        q, k, v, beta = (x[n][:, t] for n in ("q", "k", "v", "beta"))
        said = torch.einsum("bhmn,bhn->bhm", alpha * kept, k)
        kept = alpha * kept + torch.einsum("bh,bhm,bhn->bhmn", beta, v - said, k)
        reads.append(torch.einsum("bhmn,bhn->bhm", kept, q))
    wanted = torch.stack(reads, 1)
    for given in (alpha, torch.full_like(x["alpha"], alpha)):
        close(nlc.memory("gated_delta")(**{**x, "alpha": given})[0], wanted)


def test_every_mistake_of_a_text_is_told() -> None:
    with pytest.raises(nlc.SpecError) as error:
        nlc.memory(MINE.replace("retain    keep", "retian    keep").replace("M(q)", "M(qq)"))
    assert {d.code for d in error.value.diagnostics} >= {"NL001"}


def test_what_needs_a_system_is_refused() -> None:
    page = CODES["NL105"]
    for spec, parts in (
        (page.wrong, ["`norm`"]),
        ("continuum", ["`norm`", "the model's own loss"]),
    ):
        with pytest.raises(nlc.SpecError) as error:
            nlc.memory(spec)
        found = error.value.diagnostics
        assert [d.code for d in found] == ["NL105"] * len(parts)
        assert all(p in d.message for p, d in zip(parts, found, strict=True))
    x, gain = torch.randn(B, T, H, N), torch.ones(B, T, H, N)
    y, _ = nlc.memory(page.right)(x, x, gain)
    assert y.shape == (B, T, H, N)


# ---- what it costs -------------------------------------------------------------------------------


def test_a_call_of_known_shapes_compiles_nothing() -> None:
    memory, x = nlc.memory("gated_delta"), GATED.data()
    memory(**x)
    before = model_of.cache_info().misses, module_of.cache_info().misses
    memory(**part(x, 0, 3))
    memory(**GATED.data(batch=5))
    nlc.memory("gated_delta")(**x)
    assert (model_of.cache_info().misses, module_of.cache_info().misses) == before


@every_name
def test_no_graph_is_kept_where_no_stream_asks_for_one(name: str) -> None:
    op = OPS[name]
    y, state = nlc.memory(name)(**op.data(), **op.settings)
    assert not y.requires_grad and not any(x.requires_grad for x in state.arrays.values())


class Layer(torch.nn.Module):
    """As in anyone's model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(N, N)
        self.memory = nlc.memory("ttt_mlp", seed=2)
        self.start = self.memory.start(heads=H, n=N)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.memory(self.linear(x), x, x, 0.1, chunk=4, state=self.start)
        return torch.relu(y)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of what crosses a break of the graph
def test_a_layer_is_copied_pickled_and_compiled() -> None:
    layer, x = Layer(), torch.randn(B, T, H, N)
    y = layer(x)
    assert sorted(layer.state_dict()) == [
        "linear.bias",
        "linear.weight",
        "start.M_W1",
        "start.M_W2",
    ]
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    assert torch.equal(torch.compile(layer, backend="eager")(x), y)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_made_where_no_gradients_are_and_trained_later() -> None:
    memory, data = nlc.memory("ttt_mlp", seed=77), OPS["ttt_mlp"].data()
    with torch.inference_mode():
        memory(**data, chunk=4)
    x = leaves(data)
    assert all(float(g.abs().max()) > 0 for g in grads(memory(**x, chunk=4)[0], x))


@every_name
def test_under_autocast_nothing_is_lost(name: str) -> None:
    """Its arithmetic is that of its inputs, float32 at least."""
    op, memory = OPS[name], nlc.memory(name)
    x, plain = (leaves({n: x.float() for n, x in op.data().items()}) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        _, state = memory(**x, **op.settings)
        y, state = memory(**x, **op.settings, state=state)
    _, before = memory(**plain, **op.settings)
    wanted, after = memory(**plain, **op.settings, state=before)
    assert torch.equal(y, wanted) and state.dtype == torch.float32
    assert all(map(torch.equal, state.arrays.values(), after.arrays.values()))
    assert all(map(torch.equal, grads(y, x), grads(wanted, plain)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of its `unfold`
@every_name
def test_transforms_of_torch_func(name: str) -> None:
    """The first call may be under one; what is solved, or asks of its numbers, is so there too."""
    op = OPS[name]
    data = op.data(time=7)
    names = list(data)

    def answer(*streams: Tensor) -> Tensor:
        streams = tuple(x.unsqueeze(0) for x in streams)
        y: Tensor = nlc.memory(name)(**dict(zip(names, streams, strict=True)), **op.settings)[0]
        return y

    def loss(*streams: Tensor) -> Tensor:
        return answer(*streams).square().sum()

    every = tuple(range(len(names)))
    found = torch.func.vmap(torch.func.grad(loss, every))(*data.values())
    x = leaves(data)
    y = nlc.memory(name)(**x, **op.settings)[0]
    wanted = torch.autograd.grad(y.square().sum(), list(x.values()), materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-8)


@every_name
def test_a_checkpoint_holds_a_state(name: str, tmp_path: Path) -> None:
    """`torch.load` asks for nothing that could run."""
    op, memory = OPS[name], nlc.memory(name)
    data = op.data()
    _, state = memory(**data, **op.settings)
    torch.save({"memory": state}, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["memory"]
    again = memory(**data, **op.settings, state=loaded)[0]
    assert torch.equal(again, memory(**data, **op.settings, state=state)[0])


@pytest.mark.gpu
@every_name
def test_an_operation_on_a_gpu(name: str) -> None:
    op, memory = OPS[name], nlc.memory(name)
    data = op.data()
    y, state = memory(**data, **op.settings)
    there = {n: x.cuda() for n, x in data.items()}
    z, after = memory(**there, **op.settings)
    close(z.cpu(), y, 1e-8)
    z, _ = memory(**there, **op.settings, state=state.to("cuda"))
    close(z.cpu(), memory(**data, **op.settings, state=after.to("cpu"))[0], 1e-8)


def test_chunks_of_one_token_freeze_nothing() -> None:
    """`titans` with chunk = 1, a tick at a time, and `titans_exact`, solved, are one function."""
    data = OPS["titans_exact"].data(1)
    frozen, exact = nlc.memory("titans"), nlc.memory("titans_exact")
    sizes = {"heads": data["q"].shape[2], "n": data["q"].shape[3]}
    start = frozen.start(**sizes)
    ours, theirs = exact.start(**sizes), dict(start)
    same = {name: theirs[name] for name in ours}
    wanted, _ = frozen(**data, chunk=1, state=start)
    close(exact(**data, state=same)[0], wanted)


def test_rounds_may_be_counted() -> None:
    """So many rounds, and no more: one is the gradient at the start of the span."""
    x = Op({**QKV, **FORGET}).data(time=12)
    exact, _ = nlc.memory("lp")(**x)
    one, enough = (nlc.memory("lp", rounds=n)(**x)[0] for n in (1, 12))
    assert distance(enough, exact) < 1e-12 < 1e-6 < distance(one, exact)
    assert torch.equal(nlc.memory("lp")(**x)[0], exact)
    with pytest.raises(ValueError, match="`rounds` is a whole number from 1 on"):
        nlc.memory("lp", rounds=0)


@pytest.mark.parametrize("after", ["", " after retain"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_several_steps_of_dgd_clear_what_stands_at_each(steps: int, after: str) -> None:
    """Each step begins where the one before ended; what is kept is kept once (2.9.4, 2.9.6)."""
    operation = nlc.memory(
        "nl 1\nmemory twice(q[n], k[n], v[m], alpha, eta) { state M : matrix(n, m)\nretain alpha\n"
        f"objective sum((M(k) - v)^2) / 2{after}\nlearn dgd(rate = eta, steps = {steps})\n"
        "read M(q) }\n"
    )
    generator = torch.Generator().manual_seed(steps)
    q, k, v = (torch.randn(1, 5, 1, n, generator=generator).double() for n in (3, 3, 4))
    alpha, eta = 0.1 + 0.6 * torch.rand(2, 1, 5, 1, generator=generator).double()
    kept, wanted = torch.zeros(4, 3).double(), []
    for t in range(5):
        key, target = k[0, t, 0], v[0, t, 0]
        old = alpha[0, t, 0] * kept if after else kept
        new = old
        for _ in range(steps):
            new = new - eta[0, t, 0] * torch.outer(new @ key + new @ key - target, key)
        kept = alpha[0, t, 0] * kept + new - old
        wanted.append(kept @ q[0, t, 0])
    streams = {"q": q, "k": k, "v": v, "alpha": alpha, "eta": eta}
    truth = answers(nlc.reference(operation.spec(**streams)), streams)
    assert distance(truth[0, :, 0], torch.stack(wanted)) < EXACT
    assert distance(operation(**streams)[0], truth) < EXACT
