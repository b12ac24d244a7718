"""The staircase of self-referential memories (arXiv:2512.24695, 8.1): static, adaptive,
self-modifying. What changes while a stream runs grows from step to step, and so does what is asked.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shipped import distance
from torch import Tensor

import nlc
from nlc.backends.runtime import Model

SIZES: dict[str, Any] = {"width": 8, "heads": 2, "depth": 1, "vocab": 7, "chunk": 1}
AT = "layers.0.titans."
RATES = {"made_rates.E", "made_rates.A"}  # memories where `made = 1`
STEPS = {
    "referential_static": {"M"},
    "referential_adaptive": {"M", "K", "V", "Q"},
    "self_modifying_titans": {"M.main", "M.key", "M.value", "G.rate", "G.keep"},
}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in STEPS),
    ("referential_static", {"product": 1}),
    ("referential_adaptive", {"made": 1}),
]
every_case = pytest.mark.parametrize(("name", "more"), CASES)


def model_of(name: str, more: dict[str, Any]) -> Model:
    return nlc.compile(name, dtype=torch.float64, **SIZES, **more)


def memories(name: str, more: dict[str, Any]) -> set[str]:
    return STEPS[name] | (RATES if "made" in more else set())


def ids(time: int) -> Tensor:
    return torch.randint(0, 7, (1, time), generator=torch.Generator().manual_seed(time))


@every_case
def test_what_changes_while_a_stream_runs(name: str, more: dict[str, Any]) -> None:
    """Keys, values and rates are weights, then memories of their own."""
    model = model_of(name, more)
    before, (_, after) = model.reset(1), model(ids(5))
    moved = {
        path.removeprefix(AT).rsplit(".", 1)[0]
        for path, x in after.arrays.items()
        if path.startswith(AT) and not path.endswith(".start")
        if not torch.equal(x.detach(), before.arrays[path])
    }
    assert moved == memories(name, more)


def said(w: dict[str, Tensor], memory: str, z: Tensor) -> Tensor:
    """z + W2 gelu(W1 z), (89), for each head [heads, n]; the rates have no z beside them."""
    first = torch.einsum("hij,hj->hi", w[f"{memory}.W1"], z)
    second = torch.einsum("hij,hj->hi", w[f"{memory}.W2"], F.gelu(first))
    return second if memory.startswith("G.") else z + second


def by_hand(name: str, more: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The memories after one token, each by (88) with what its step of the staircase asks."""
    z, heads = x.view(2, 4), (2, 4)

    def made(line: str) -> Tensor:
        return w[f"{line}.linear"] @ x

    if name == "referential_static":
        k, v = (F.normalize(made(line).view(heads), dim=-1) for line in "kv")
    elif name == "referential_adaptive":
        k, v = (F.normalize(said(w, memory, z), dim=-1) for memory in "KV")
    else:
        k, v = (F.normalize(said(w, f"M.{m}", z), dim=-1) for m in ("key", "value"))
    if name == "self_modifying_titans":
        rates = [said(w, f"G.{part}", z).squeeze(-1) for part in ("rate", "keep")]
    elif "made" in more:
        rates = [said(w, memory, z).mean(-1) for memory in sorted(RATES, reverse=True)]
    else:
        rates = [made("eta"), made("alpha")]
    lasts = 8 if name == "self_modifying_titans" else 9
    rate, keep = 1e-3 * F.softplus(rates[0]), torch.sigmoid(rates[1] + lasts)
    keys = dict.fromkeys(memories(name, more), k)
    if name == "referential_adaptive":
        made_of = ["Q", *(RATES if "made" in more else ())]
        keys |= {"V": v, **{m: F.normalize(said(w, m, z), dim=-1) for m in made_of}}
    new = {}
    for memory, key in keys.items():
        own = name == "self_modifying_titans"
        target = said(w, memory, v) if own else v  # each its own value, or one for all
        pair = [w[f"{memory}.W{i}"].clone().requires_grad_() for i in (1, 2)]
        at = {f"{memory}.W1": pair[0], f"{memory}.W2": pair[1]}
        answer, wanted = said(at, memory, key), target.detach()
        dots = "product" in more
        loss = -(answer * wanted).sum() if dots else (answer - wanted).square().sum()
        hidden = F.gelu(torch.einsum("hij,hj->hi", w[f"{memory}.W1"], key))
        for i, (g, seen) in enumerate(
            zip(torch.autograd.grad(loss, pair), (key, hidden), strict=True), 1
        ):
            old = w[f"{memory}.W{i}"]
            erased = old @ (seen.unsqueeze(-1) * seen.unsqueeze(-2))
            step = rate[:, None, None] * (g + erased)
            new[f"{memory}.W{i}"] = keep[:, None, None] * old - step
    return new


@every_case
def test_one_token_by_hand(name: str, more: dict[str, Any]) -> None:
    model, tokens = model_of(name, more), ids(1)
    w = {n.removeprefix(AT): p.detach() for n, p in model.named_weights()}
    x = w["x.embed"][tokens[0, 0]]
    x = x * (x.square().mean() + 1e-6).rsqrt() * w["layers.0.x.norm"]
    x = x * w["layers.0.x.conv"][:, -1]
    _, after = model(tokens)
    for path, wanted in by_hand(name, more, w, x).items():
        assert distance(after.arrays[AT + path][0], wanted) <= 1e-12, path
