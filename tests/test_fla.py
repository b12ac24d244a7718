"""flash-linear-attention behind the scan: its arguments, what it is not asked for, and its kernels.

A stand-in, written token by token from its documented signatures, takes its place where it is not
installed. Where it is, its kernels run in Triton's interpreter, in a process of its own, or on a
CUDA device.
"""

from __future__ import annotations

import builtins
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.ops import fla as door
from nlc.backends.ops.recurrence import scan

torch.set_num_threads(1)

# Of the largest number of what is compared. What is answered in bfloat16 has 8 binary digits, and
# so have gradients of what is in it; the stand-in computes in float64.
CLOSE = 8e-3
NAMES = {
    "simple_gla": "chunk_simple_gla",
    "gla": "chunk_gla",
    "delta_rule": "chunk_delta_rule",
    "gated_delta_rule": "chunk_gated_delta_rule",
    "kda": "chunk_kda",
}


@dataclass
class StandIn:
    """Its functions, as its pages tell them; `called` tells which were asked."""

    called: list[str] = field(default_factory=list)

    def function(self, name: str) -> Any:
        erases, gated = "delta" in name or name == "kda", name != "delta_rule"

        def run(
            q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, beta: Tensor | None = None,
            *, scale: float | None = None, initial_state: Tensor | None = None,
            output_final_state: bool = False,
        ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
            batch, ticks, heads, n = q.shape
            assert scale is not None and initial_state is not None and output_final_state
            assert k.shape == q.shape and v.shape[:3] == q.shape[:3]
            assert initial_state.shape == (batch, heads, n, v.shape[-1])
            assert initial_state.dtype == torch.float32 and (beta is not None) == erases
            assert gated or g is None
            assert g is None or g.shape == (q.shape if name in ("gla", "kda") else q.shape[:3])
            assert q.dtype == k.dtype == v.dtype != torch.float32
            self.called.append(name)
            state, reads = initial_state.double(), []
            for t in range(ticks):
                if g is not None:
                    left = g[:, t].double().exp()
                    state = state * (left if left.ndim == 3 else left[..., None])[..., None]
                key, value = k[:, t].double(), v[:, t].double()
                if beta is not None:
                    known = torch.einsum("bhn,bhnm->bhm", key, state)
                    value = (value - known) * beta[:, t, :, None].double()
                state = state + key[..., None] * value[..., None, :]
                reads.append(torch.einsum("bhn,bhnm->bhm", q[:, t].double() * scale, state))
            return torch.stack(reads, 1).to(q.dtype), state.float()

        return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made = StandIn()
    package = ModuleType("fla")
    package.__version__ = "0.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    for name, function in NAMES.items():
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, function, made.function(name))
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    monkeypatch.setattr(door, "DEVICES", {"cpu"})
    monkeypatch.setattr(door, "usable", cache(door.usable.__wrapped__))
    monkeypatch.delenv("NLC_FLA", raising=False)
    yield made


# ---- scans ---------------------------------------------------------------------------------------


def case(
    lead: tuple[int, ...] = (2, 3), ticks: int = 66, n: int = 16, m: int = 20, keep: str = "tick",
    rate: str = "tick", erase: float = 1.0, half: torch.dtype = torch.bfloat16, seed: int = 0,
    aim: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of a scan; x of length 1."""
    source = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    def gate(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source)

    q, x, e = drawn(*lead, ticks, n), drawn(*lead, ticks, n), drawn(*lead, ticks, m)
    x = torch.nn.functional.normalize(x, dim=-1)
    made = {
        "W0": drawn(*lead, m, n),
        **{k: v.to(half) for k, v in {"q": q, "x": x, "e": e}.items()},
    }
    rates: dict[str, Any] = {"tick": gate(*lead, ticks), "one": 1.0, "number": 0.7}
    kept: dict[str, Any] = {
        "tick": gate(*lead, ticks),
        "channel": gate(*lead, ticks, n),
        "heads": gate(*lead[-1:], ticks),  # for all of the batch
        "none": 1.0,
        "number": 0.9,
        "some": gate(*lead, ticks).round(),
        "some channels": gate(*lead, ticks, n).round(),
    }
    return {
        **made,
        "rate": rates[rate],
        "keep": kept[keep],
        "erase": erase,
        "after_retain": True,
        "aim": aim,
    }


def leaves(given: dict[str, Any]) -> list[str]:
    return [k for k, v in given.items() if isinstance(v, Tensor)]


def found(given: dict[str, Any], second: bool = False) -> dict[str, Tensor]:
    """Answers and gradients by name, or gradients of gradients."""
    given = {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in given.items()
    }
    y, end, none = scan(**given)
    assert none is None
    outputs = {"y": y, "end": end}
    weights = [torch.linspace(-1, 1, v.numel()).double().view_as(v) for v in outputs.values()]
    total: Any = sum((v.double() * w).sum() for v, w in zip(outputs.values(), weights, strict=True))
    names, inputs = leaves(given), [given[k] for k in leaves(given)]
    if second:
        total = total + y.double().square().sum()
        slopes = torch.autograd.grad(total, inputs, create_graph=True)
        total = torch.stack([g.double().square().sum() for g in slopes]).sum()
        outputs = {}
    slopes = torch.autograd.grad(total, inputs)
    return outputs | {f"to {k}": g for k, g in zip(names, slopes, strict=True)}


def compare(
    given: dict[str, Any], close: float = CLOSE, but: tuple[str, ...] = (), **how: Any
) -> None:
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    wanted, got = found(exact, **how), found(given, **how)
    for k, truth in wanted.items():
        if k not in but:
            error = float(
                (got[k].detach().double() - truth.detach()).abs().max() / truth.detach().abs().max()
            )
            assert error <= close, (k, error)
            assert k not in leaves(given) or got[f"to {k}"].dtype == given[k].dtype


KERNELS: list[tuple[str, dict[str, Any]]] = [
    ("simple_gla", {"erase": 0.0}),
    ("simple_gla", {"erase": 0.0, "keep": "none", "rate": "one", "lead": (2,)}),
    ("simple_gla", {"erase": 0.0, "keep": "number", "rate": "number", "lead": ()}),
    ("simple_gla", {"erase": 0.0, "keep": "heads", "rate": "one", "lead": (2, 1, 3)}),
    ("gla", {"erase": 0.0, "keep": "channel", "rate": "one"}),
    ("delta_rule", {"keep": "none"}),
    ("delta_rule", {"keep": "none", "rate": "number", "lead": (2,), "half": torch.float16}),
    ("gated_delta_rule", {}),
    ("gated_delta_rule", {"keep": "heads", "n": 24, "m": 16}),
    ("gated_delta_rule", {"keep": "number", "ticks": 64}),
    ("kda", {"keep": "channel"}),
    ("gated_delta_rule", {"aim": True}),
    ("simple_gla", {"aim": True, "erase": 0.0}),
]


def told(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values())) or "plain"


@pytest.mark.parametrize("name, how", KERNELS, ids=told)
def test_its_arguments_mean_the_same(name: str, how: dict[str, Any], stand_in: StandIn) -> None:
    compare(case(**how))
    assert stand_in.called == [name]


@pytest.mark.parametrize("keep", ["some", "some channels"])
@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_what_keeps_nothing_is_no_infinity(keep: str, erase: float, stand_in: StandIn) -> None:
    """But for the gradient of a keep of nought, which is told to be none."""
    given = case(keep=keep, erase=erase)
    compare(given, but=("to keep",))
    slope = found(given)["to keep"]
    assert bool(slope.isfinite().all()) and not bool(slope[given["keep"] == 0].any())
    assert len(stand_in.called) == 2


def test_a_keep_below_nought_is_nan(stand_in: StandIn) -> None:
    given = case()
    given["keep"][0, 0, 5] = -0.5
    y, end, _ = scan(**given)
    assert bool(y[0, 0, 5:].isnan().all()) and bool(end[0, 0].isnan().all())
    assert bool(y[0, 0, :5].isfinite().all()) and bool(y[1].isfinite().all())


def test_a_second_derivative_goes_another_way(stand_in: StandIn) -> None:
    compare(case((1, 2), keep="tick"), close=5 * CLOSE, second=True)
    assert stand_in.called == ["gated_delta_rule"]


def test_no_gradient_no_node(stand_in: StandIn) -> None:
    y, end, _ = scan(**case())
    assert not y.requires_grad and not end.requires_grad and y.dtype == torch.bfloat16
    assert end.dtype == torch.float32 and stand_in.called


OTHERS: dict[str, dict[str, Any]] = {
    "float32": {"half": torch.float32},
    "few ticks": {"ticks": 63},
    "narrow": {"n": 15},
    "wide": {"m": 257, "ticks": 64},
    "half erased": {"erase": 0.5},
    "keep below nought": {"keep": "number", "more": {"keep": -0.5}},
    "erased before": {"more": {"after_retain": False}},
    "read before": {"more": {"before_write": True}},
    "momentum": {"more": {"momentum": 0.5}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_is_not_asked_for(name: str, stand_in: StandIn) -> None:
    how = dict(OTHERS[name])
    more = how.pop("more", {})
    scan(**{**case((1, 2), **how), **more})
    assert not stand_in.called


def test_not_under_transforms_nor_for_float64_gates(stand_in: StandIn) -> None:
    given = case((1, 2))
    rest = {k: v for k, v in given.items() if k != "W0"}
    torch.func.grad(lambda w: scan(w, **rest)[0].float().sum())(given["W0"])
    scan(**{**given, "rate": given["rate"].double()})
    assert not stand_in.called


# ---- operations ----------------------------------------------------------------------------------


def streams(name: str, ticks: int = 70, seed: int = 0) -> dict[str, Tensor]:
    """bfloat16, and gates in float32."""
    n, m = 16, 20
    made = case((1, 3), ticks, n, m, seed=seed)
    alike = {"q": made["q"], "k": made["x"], "v": made["e"]}
    found = {k: v.transpose(1, 2).clone() for k, v in alike.items()}
    gate = torch.rand(1, ticks, 3, generator=torch.Generator().manual_seed(seed))
    more = {
        "alpha": gate[..., None].expand(1, ticks, 3, n) if name in ("gla", "kda") else gate,
        "gamma": gate,
        "beta": gate.flip(1),
    }
    return found | {k: more[k].clone() for k in GATES[name]}


GATES = {
    "linear": (), "retnet": ("gamma",), "gla": ("alpha",), "delta": ("beta",),
    "gated_delta": ("alpha", "beta"), "kda": ("alpha", "beta"),
}  # fmt: skip
RUN_BY = {
    "linear": "simple_gla", "retnet": "simple_gla", "gla": "gla", "delta": "delta_rule",
    "gated_delta": "gated_delta_rule", "kda": "kda",
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_operations_hand_over_what_they_are_given(name: str, stand_in: StandIn) -> None:
    """Their answers and gradients are those of float64; a stream goes on where it was left."""
    given = {k: v.requires_grad_() for k, v in streams(name).items()}
    exact = {k: v.detach().double().requires_grad_() for k, v in given.items()}
    memory = nlc.memory(name)
    (y, state), (truth, _) = memory(**given), memory(**exact)
    assert stand_in.called == [RUN_BY[name]] and y.dtype == torch.bfloat16
    slopes = torch.autograd.grad(y.double().square().sum(), list(given.values()))
    wanted = torch.autograd.grad(truth.square().sum(), list(exact.values()))
    for a, b in zip((y, *slopes), (truth, *wanted), strict=True):
        assert float((a.double() - b).detach().abs().max() / b.detach().abs().max()) <= 2 * CLOSE
    kept = [v for g in state.groups for v in g.arrays.values()]
    assert [v.dtype for v in kept] == [torch.float32]
    both = {k: torch.cat([v, v], 1).detach() for k, v in given.items()}
    second, whole = memory(**given, state=state)[0], memory(**both)[0]
    assert float((second - whole[:, 70:]).detach().abs().max() / whole.abs().max()) <= CLOSE


def test_operations_of_few_ticks_are_as_ever(stand_in: StandIn) -> None:
    given = streams("gated_delta", ticks=63)
    y, _ = nlc.memory("gated_delta")(**given)
    wide = {k: v.float() for k, v in given.items()}
    assert torch.equal(y, nlc.memory("gated_delta")(**wide)[0].bfloat16()) and not stand_in.called


# ---- whether it is there -------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, package: ModuleType | None) -> list[str]:
    """What is said when it is asked for twice and not used."""
    monkeypatch.setitem(sys.modules, "fla", package)
    usable = cache(door.usable.__wrapped__)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert not usable() and not usable()
    return [str(w.message) for w in said]


def test_absent_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("NLC_FLA", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fla", raising=False)
    usable = cache(door.usable.__wrapped__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not usable()


@pytest.mark.parametrize("other", ["0.3.2", "0.7.0", "1.0"])
def test_another_version_is_told_once(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NLC_FLA", raising=False)
    package = ModuleType("fla")
    package.__version__ = other  # type: ignore[attr-defined]
    said = asked(monkeypatch, package)
    assert len(said) == 1 and other in said[0] and "NLC_FLA=0" in said[0]
    monkeypatch.setenv("NLC_FLA", "0")
    assert not asked(monkeypatch, package)


def test_what_cannot_be_imported_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("NLC_FLA", raising=False)
    (tmp_path / "fla.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fla", raising=False)
    usable = cache(door.usable.__wrapped__)
    with pytest.warns(UserWarning, match=r"cannot be imported \(no driver\).*NLC_FLA=0") as said:
        assert not usable() and not usable()
    assert len(said) == 1


# ---- its own kernels -----------------------------------------------------------------------------

# In float16, as Triton's interpreter takes bfloat16 for whole numbers where they are multiplied.
# Of the largest number, 1.2e-3 was seen; kernels of a device: not measured.
OWN = {"cpu": 4e-3, "cuda": 3e-2}
INSTALLED: list[tuple[str, dict[str, Any]]] = [
    ("simple_gla", {"erase": 0.0, "keep": "none", "rate": "one"}),
    ("simple_gla", {"erase": 0.0, "keep": "some"}),
    ("gla", {"erase": 0.0, "keep": "some channels", "rate": "one"}),
    ("delta_rule", {"keep": "none"}),
    ("gated_delta_rule", {"keep": "tick"}),
    ("gated_delta_rule", {"keep": "some"}),
    ("kda", {"keep": "some channels"}),
    ("kda", {"keep": "channel", "n": 20, "m": 40}),
]
installed = pytest.mark.parametrize("name, how", INSTALLED, ids=told)


class Whole(int):
    """A number of a loop, which the interpreter leaves as Python's, as kernels ask of it."""

    def to(self, kind: Any) -> Whole:
        return self


def interpreted(how: dict[str, Any]) -> None:
    """Each kernel with the first of its settings: there is no device to try them on."""
    from triton.runtime.autotuner import Autotuner

    for name in NAMES:
        import_module(f"fla.ops.{name}")

    def counted(*bounds: Any) -> Iterator[Whole]:
        return (Whole(i) for i in builtins.range(*map(int, bounds)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autotuner, "_bench", lambda self, *given, config, **named: 1.0)
        for name, module in list(sys.modules.items()):
            if name.startswith("fla.ops"):
                patch.setattr(module, "range", counted, raising=False)
        patch.setattr(door, "DEVICES", {"cpu"})
        known = {"lead": (1, 2), "ticks": 70, "n": 32, "m": 16, "half": torch.float16}
        own(known | how, "cpu")


def own(how: dict[str, Any], device: str) -> None:
    given = case(**how)
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}
    asked = [given[k] for k in ("W0", "q", "x", "e", "rate", "keep", "erase", "after_retain")]
    assert door.takes(door.Scan(*asked))
    # nought has no logarithm: its keep has no gradient
    compare(given, OWN[device], but=("to keep",) if "some" in str(how.get("keep")) else ())


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    pytest.importorskip("triton", "3.7", reason="Triton is not installed, or too old")
    try:
        version("fla-core")
    except PackageNotFoundError:
        pytest.skip("flash-linear-attention is not installed")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.delenv("NLC_FLA", raising=False)
            pool.submit(int).result()  # it starts with these
        yield pool


@installed
def test_its_kernels_in_the_interpreter(
    name: str, how: dict[str, Any], interpreter: ProcessPoolExecutor
) -> None:
    interpreter.submit(interpreted, how).result()


@pytest.mark.gpu
@installed
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_its_kernels_on_a_gpu(name: str, how: dict[str, Any], half: torch.dtype) -> None:
    if not door.usable():
        pytest.skip("flash-linear-attention is not installed, or another version")
    own({"lead": (2, 4), "ticks": 300, "n": 64, "m": 128} | how | {"half": half}, "cuda")
