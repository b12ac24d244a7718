"""The systems that ship, small: what the tests of compiled modules run on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlc
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model
from nlc.backends.torch_source import build as build_source
from nlc.backends.torch_source import module_class
from nlc.driver import Spec
from nlc.verify.streams import distance as distance

torch.set_num_threads(1)

SPECS = Path(__file__).resolve().parent.parent / "specs"
EVERY = sorted(
    p.stem for p in SPECS.glob("*.nl") if "\nsystem " in "\n" + p.read_text(encoding="utf-8")
)
# On these every test of compiled modules runs; on the others what `nlc verify` asks.
CORE = {
    "deltanet", "hope", "hope_attention", "linear_attention", "self_modifying_titans", "stacked",
    "titans", "transformer",
}  # fmt: skip
SYSTEMS = [name for name in EVERY if name in CORE]
SMALL: dict[str, Any] = {
    "width": 8,
    "depth": 2,
    "heads": 2,
    "vocab": 11,
    "hidden": 12,
    "chunk": 3,
    "periods": [2, 4, 8],
    "period": 4,
    "buckets": [1, 2, 4],
    "window": 3,
    "segment": 4,
    "persist": 2,
    "block": 5,
    "pixels": 6,
    "classes": 3,
    "replayed": 2,
    "code": 3,
    "states": 4,
    "shots": 3,
    "rank": 2,
    "back": 6,
}
# The reference takes long over third derivatives, over HOPE (which CORE has at depth 2), and over
# gradients that rounding moves so far at depth 2 that they are asked for ten times.
OWN: dict[str, dict[str, Any]] = {
    name: {"depth": 1} for name in ("cms_nested", "atlas", "hope_ablations", "yaad")
}


@cache
def own_settings(name: str) -> frozenset[str]:
    return frozenset(nlc.load(name).system.settings)


def small(name: str, **more: Any) -> Spec:
    """A shipped system at the sizes of SMALL, of those settings that it has."""
    return sized(name) if not more else sized_anew(name, more)


def sized_anew(name: str, more: dict[str, Any]) -> Spec:
    has = own_settings(name)
    return nlc.load(
        name, **{k: v for k, v in (SMALL | OWN.get(name, {}) | more).items() if k in has}
    )


@cache
def sized(name: str) -> Spec:
    return sized_anew(name, {})


@cache
def small_class(name: str) -> type[Model]:
    return module_class(build_source(small(name)), name)


def compiled(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Model:
    return small_class(name)(dtype=dtype, device=device)


def truth_of(name: str, model: Model) -> Reference:
    return nlc.reference(small(name), model.state_dict())


def tokens(batch: int, time: int, seed: int = 0, vocab: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + time)
    return torch.randint(0, vocab, (batch, time), generator=generator)
