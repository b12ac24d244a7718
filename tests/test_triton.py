"""The kernels of backends/triton beside torch's operations in float64, of the same numbers.

Here they run in Triton's interpreter, which has to be asked for before Triton is imported: in one
process of its own. On a CUDA device the same comparisons run on the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import compiled, distance, tokens, truth_of
from test_ops import Case
from torch import Tensor

from nlc.backends.ops import kernels
from nlc.backends.ops.recurrence import span

torch.set_num_threads(1)

# Of the largest number of what is compared. In the interpreter, whose products are numpy's of
# float32, 1.1e-6 was seen. A device splits each product of float32 into three of fewer digits: not
# measured. What is answered in bfloat16 has 8 binary digits: 7e-3 was seen.
CLOSE = {"cpu": 5e-6, "cuda": 2e-5}
HALF = 2e-2

Worker = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Worker]:
    """Runs a function of this file in a process in which kernels run on the CPU."""
    # the interpreter of 3.6 does not go with numpy 2.4
    pytest.importorskip("triton", "3.7", reason="Triton is not installed, or too old")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.delenv("NLC_TRITON", raising=False)
            assert pool.submit(interpreting).result()
        yield lambda work, *given, **named: pool.submit(work, *given, **named).result()


def interpreting() -> bool:
    return kernels.INTERPRETED


@contextmanager
def watched() -> Iterator[set[str]]:
    """The kernels that are launched inside."""
    from nlc.backends import triton

    seen: set[str] = set()

    def noted(name: str) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            seen.add(name)
            return getattr(triton, name)(*given)

        return run

    with pytest.MonkeyPatch.context() as patch:
        every = {n: staticmethod(noted(n)) for n in triton.__all__ if n != "fits"}
        fake = type("Watched", (), {**every, "fits": staticmethod(triton.fits)})
        patch.setattr(kernels, "_kernels", lambda: fake)
        yield seen


# ---- spans and scans -----------------------------------------------------------------------------


def numbers(lead: tuple[int, ...], ticks: int, n: int, m: int, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, like: Any = torch.randn) -> Tensor:
        return like(*lead, *shape, generator=source)  # type: ignore[no-any-return]

    return {
        "W0": drawn(m, n),
        "S0": drawn(m, n),
        "q": drawn(ticks, n),
        "x": drawn(ticks, n) / n**0.5,
        "e": drawn(ticks, m),
        "rate": drawn(ticks, like=torch.rand),
        "keep": drawn(ticks, like=torch.rand),
        "momentum": drawn(ticks, like=torch.rand) / 2,
    }


def kept(like: Tensor, keep: str) -> Tensor | float:
    """Numbers, and the ends of where they lie; `some` are nought, and some one."""
    if keep == "none":
        return 1.0
    if keep == "number":
        return 0.9
    if keep == "some":
        return like.round()
    return like if keep == "tick" else like * 0 + float(keep == "one")


def drawn(
    lead: tuple[int, ...], ticks: int, n: int, m: int, keep: str, erase: float = 0.0,
    after_retain: bool = False, momentum: bool = False, seed: int = 0,
) -> Case:  # fmt: skip
    v = numbers(lead, ticks, n, m, seed)
    made = Case(v["W0"], v["q"], v["x"], v["e"], v["rate"] if seed % 2 else -1.0)
    more = {"momentum": v["momentum"], "S0": v["S0"]} if momentum else {}
    gates = {"keep": kept(v["keep"], keep), "erase": erase, "after_retain": after_retain}
    return replace(made, **gates, **more)  # type: ignore[arg-type]


Run = Callable[[Case], Sequence[Tensor | None]]


def compare(run: Run, case: Case, device: str, half: bool = False) -> set[str]:
    """Outputs and gradients with kernels beside those of float64; which kernels ran."""

    def leaf(x: Tensor) -> Tensor:
        coarse = half and x is not case.W0 and x is not case.S0
        made = x.to(device, torch.bfloat16 if coarse else torch.float32)
        return made.requires_grad_()

    here = case.each(leaf)
    exact = here.each(lambda x: x.detach().double().requires_grad_())
    with watched() as seen:
        got, found = results(run, here)
    wanted, slopes = results(run, exact)
    for a, b in zip([*got, *found], [*wanted, *slopes], strict=True):
        error = float(
            (a.detach().double() - b).abs().max() / b.detach().abs().max().clamp(min=1e-3)
        )
        assert error <= (HALF if half else CLOSE[device]), (error, tuple(a.shape), a.dtype)
    return seen


def results(run: Run, case: Case) -> tuple[list[Tensor], list[Tensor]]:
    outputs = [y for y in run(case) if y is not None]
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y) for y in outputs]
    total = sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True))
    found = torch.autograd.grad(total, case.leaves(), allow_unused=True)  # type: ignore[arg-type]
    return outputs, [g for g in found if g is not None]


def scanned(device: str, half: bool = False, before_write: bool = False, **case: Any) -> set[str]:
    return compare(lambda c: c.scan(16, before_write), drawn(**case), device, half)


def spanned(device: str, half: bool = False, before_write: bool = False, **case: Any) -> set[str]:
    def run(c: Case) -> list[Tensor | None]:
        given = (c.W0, c.x, c.e, c.rate, c.keep, c.momentum, c.S0, c.erase, c.after_retain)
        made = span(*given)
        return [made.read(c.q, before_write), *made.end()]

    return compare(run, drawn(**case), device, half)


def both(*names: str) -> set[str]:
    """Forwards and backwards."""
    return {*names, *(f"{n}_back" for n in names)}


READ, ALL = both("read"), both("read", "products", "affine", "chained")
# lead, ticks, n, m, keep; then what is not as a rule; the kernels that must run
SCANS: list[tuple[Any, ...]] = [
    ((2,), 37, 20, 5, "tick", {"erase": 1.0}, {*ALL, "end"}),
    ((2,), 32, 3, 70, "tick", {"erase": 1.0, "after_retain": True}, ALL),
    ((1, 2), 33, 16, 16, "some", {"erase": 1.0, "before_write": True}, ALL),
    ((1,), 32, 40, 7, "zero", {"erase": 1.0, "after_retain": True}, ALL),
    ((1,), 35, 4, 3, "one", {"erase": 1.0, "seed": 1}, {*ALL, "end"}),
    ((), 32, 5, 6, "none", {"erase": 1.0, "seed": 1}, ALL - both("products")),
    ((2,), 37, 5, 20, "some", {"seed": 1}, ALL - both("affine") | {"end"}),
    ((), 32, 5, 20, "number", {}, {"products", *READ, *both("chained")}),
    ((2,), 5, 4, 3, "tick", {"erase": 1.0}, both("read", "products", "affine") | {"end"}),
    ((2,), 1, 4, 3, "tick", {"erase": 1.0}, set()),
]
SPANS: list[tuple[Any, ...]] = [
    ((2,), 5, 20, 5, "tick", {"momentum": True}, both("read", "products") | {"end"}),
    ((1,), 17, 5, 70, "some", {"momentum": True, "before_write": True}, {*READ, "end"}),
    ((1, 2), 16, 16, 16, "none", {"momentum": True}, both("read", "products") | {"end"}),
    ((1,), 33, 40, 6, "zero", {"after_retain": True}, both("read", "products") | {"end"}),
    ((2,), 16, 70, 3, "tick", {"erase": 1.0, "seed": 1}, both("read", "affine") | {"end"}),
    ((1,), 7, 4, 3, "one", {"erase": 1.0}, both("read", "affine", "products") | {"end"}),
    ((2,), 9, 4, 3, "tick", {"erase": 1.0, "momentum": True}, both("read", "products") | {"end"}),
    ((2,), 1, 4, 3, "tick", {"momentum": True}, set()),
]
NAMES = ("lead", "ticks", "n", "m", "keep")


def told(case: tuple[Any, ...]) -> str:
    return "-".join(map(str, (*case[:5], *case[5])))


scans = pytest.mark.parametrize("case", SCANS, ids=told)
spans = pytest.mark.parametrize("case", SPANS, ids=told)


def named(case: tuple[Any, ...]) -> dict[str, Any]:
    return {**dict(zip(NAMES, case[:5], strict=True)), **case[5]}


@scans
def test_scans(case: tuple[Any, ...], interpreted: Worker) -> None:
    assert interpreted(scanned, "cpu", **named(case)) >= case[6]


@spans
def test_spans(case: tuple[Any, ...], interpreted: Worker) -> None:
    assert interpreted(spanned, "cpu", **named(case)) >= case[6]


@settings(max_examples=12)
@given(data=st.data())
def test_any_span(data: st.DataObject, interpreted: Worker) -> None:
    def one(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    case = {
        "lead": one((), (1,), (2,)),
        "ticks": data.draw(st.integers(1, 19)),
        "n": data.draw(st.integers(1, 40)),
        "m": data.draw(st.integers(1, 40)),
        "keep": one("none", "number", "some", "tick", "zero", "one"),
        "erase": one(0.0, 1.0, 0.5),
        "momentum": one(False, True),
        "after_retain": one(False, True),
        "before_write": one(False, True),
        "seed": data.draw(st.integers(0, 9)),
    }
    assert bool(interpreted(spanned, "cpu", **case)) == (case["ticks"] > 1)


@pytest.mark.parametrize("run, case", [(scanned, SCANS[0]), (spanned, SPANS[0])])
def test_inputs_in_bfloat16(run: Worker, case: tuple[Any, ...], interpreted: Worker) -> None:
    """States stay in float32; answers come in bfloat16."""
    assert interpreted(run, "cpu", half=True, **named(case)) >= case[6]


def handed_over(device: str) -> None:
    """A kernel takes what is in bfloat16 as it is, and a state of float32 beside it."""
    v = numbers((2,), 16, 20, 5, 0)
    q, x = (v[k].to(device, torch.bfloat16).requires_grad_() for k in ("q", "x"))
    w, wrote = v["W0"].to(device).requires_grad_(), v["e"].to(device)
    table = torch.ones(16, 16, device=device).tril()
    y = kernels.read(q, x, wrote, w, None, table)
    truth = torch.bmm(q.double(), w.double().mT)
    truth = truth + (q.double() @ x.double().mT * table) @ wrote.double()
    grads = torch.autograd.grad(y.float().sum(), (q, x, w))
    slopes = torch.autograd.grad(truth.sum(), (q, x, w))
    assert y.dtype == torch.bfloat16 and [g.dtype for g in grads] == [q.dtype, x.dtype, w.dtype]
    for a, b in zip((y, *grads), (truth, *slopes), strict=True):
        assert float((a.double() - b).detach().abs().max()) <= HALF * float(b.detach().abs().max())


def test_bfloat16_beside_float32(interpreted: Worker) -> None:
    interpreted(handed_over, "cpu")


# ---- where torch's own operations run ------------------------------------------------------------


def derived_twice(device: str) -> None:
    """The gradient of a gradient, with kernels on the way there and torch on the way back."""

    def second(dtype: torch.dtype) -> tuple[set[str], tuple[Tensor, ...]]:
        c = drawn((1,), 33, 4, 3, "tick", 1.0)
        c = c.each(lambda x: x.to(device, dtype).requires_grad_())
        with watched() as seen:
            y, w, _ = c.scan(16)
            loss = y.square().sum() + w.square().sum()
            first = torch.autograd.grad(loss, c.leaves(), create_graph=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        return seen, torch.autograd.grad(total, c.leaves())

    seen, found = second(torch.float32)
    assert "chained" in seen and not any(n.endswith("_back") for n in seen)
    for a, b in zip(found, second(torch.float64)[1], strict=True):
        assert float((a - b).abs().max()) <= 10 * CLOSE[device] * float(b.abs().max())


def test_a_second_derivative(interpreted: Worker) -> None:
    interpreted(derived_twice, "cpu")


def refused() -> None:
    """Transforms of functions, more ticks than fit, other precisions."""
    c = drawn((1,), 20, 4, 3, "tick", 1.0)

    def loss(w: Tensor) -> Tensor:
        return c.each(lambda x: w if x is c.W0 else x).scan(16)[0].sum()

    long = drawn((1,), kernels.TICKS + 1, 4, 3, "tick")
    with watched() as seen:
        torch.func.grad(loss)(c.W0)
        span(long.W0, long.x, long.e, 1.0).read(long.q)
        c.each(lambda x: x.double()).scan(16)
    assert not seen


def test_what_kernels_do_not_take(interpreted: Worker) -> None:
    interpreted(refused)


def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.device], bool]:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delenv("NLC_TRITON", raising=False)
    return cache(kernels.usable.__wrapped__)


def test_without_triton_one_sentence_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = missing(monkeypatch)
    with pytest.warns(UserWarning, match=r"Triton is not installed.*pip install triton") as said:
        assert not usable(torch.device("cuda"))
        assert not usable(torch.device("cuda"))
    assert len(said) == 1


def test_kernels_are_turned_off_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = missing(monkeypatch)
    monkeypatch.setenv("NLC_TRITON", "0")
    assert not usable(torch.device("cuda"))


def test_nothing_else_needs_triton() -> None:
    code = """import sys; sys.modules["triton"] = None
import torch, nlc
model = nlc.compile("deltanet", width=8, heads=2, vocab=11, depth=1)
losses, _, _ = model.losses(torch.zeros(1, 5, dtype=torch.long))
losses.sum().backward()
"""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("Triton is not installed") == 1


# ---- models --------------------------------------------------------------------------------------

MODELS = {
    "deltanet": (65, {"affine_back", "chained_back", "read_back"}),
    "retnet": (64, {"products", "chained_back", "read_back"}),
    "titans": (7, {"products_back", "end", "read_back"}),
    "hope": (5, {"products_back", "affine_back", "end", "read_back"}),
}


def model_beside_reference(name: str, ticks: int, device: str) -> set[str]:
    """Logits, losses and gradients in float32 beside those of the reference interpreter."""
    exact, single = compiled(name), compiled(name, torch.float32, device)
    single.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    x, truth = tokens(1, ticks), truth_of(name, exact)
    with watched() as seen:
        y, _ = single(x.to(device))
        losses, labelled, _ = single.losses(x.to(device))
        losses[labelled].float().mean().backward()  # type: ignore[no-untyped-call]
    assert distance(y.cpu().double(), truth(x)[0]) <= 1e-5
    wanted = truth.gradients(x)
    found = {n: p.grad for n, p in single.named_weights() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in wanted.values())
    for n, g in wanted.items():
        assert float((found[n].cpu() - g).abs().max()) <= 1e-4 * largest, n
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_models_are_the_reference(name: str, interpreted: Worker) -> None:
    """As close as float32 without kernels (test_modes.py)."""
    ticks, launched = MODELS[name]
    assert interpreted(model_beside_reference, name, ticks, "cpu") >= launched


def model_in_bfloat16(device: str) -> None:
    """It stays as close as without kernels (test_modes.py), its states in float32."""
    half, wide = (compiled("deltanet", d, device) for d in (torch.bfloat16, torch.float32))
    wide.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    x = tokens(1, 13).to(device)
    with watched() as seen:
        y, state = half(x)
        losses, labelled, _ = half.losses(x)
        losses[labelled].float().mean().backward()  # type: ignore[no-untyped-call]
    truth = wide(x)[0]
    assert seen >= both("read", "affine")
    assert float((y.float() - truth).norm() / truth.norm()) <= 3e-2
    assert all(v.dtype == torch.float32 for v in state.arrays.values() if v.is_floating_point())
    assert all(bool(p.grad.isfinite().all()) for p in half.parameters() if p.grad is not None)


def test_a_model_in_bfloat16(interpreted: Worker) -> None:
    interpreted(model_in_bfloat16, "cpu")


# ---- on a device, and for one --------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@scans
def test_scans_on_a_gpu(case: tuple[Any, ...], half: bool) -> None:
    assert scanned("cuda", half, **named(case)) >= case[6]


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@spans
def test_spans_on_a_gpu(case: tuple[Any, ...], half: bool) -> None:
    assert spanned("cuda", half, **named(case)) >= case[6]


@pytest.mark.gpu
@pytest.mark.parametrize("n, m", [(64, 64), (128, 128), (256, 96)])
@pytest.mark.parametrize("half", [False, True])
def test_sizes_that_fill_a_gpu(n: int, m: int, half: bool) -> None:
    case = ((4, 2), 200, n, m, "tick", {"erase": 1.0})
    launched = scanned("cuda", half, **named(case))
    assert launched >= (ALL if n <= 128 else ALL - both("chained"))


@pytest.mark.gpu
def test_the_rest_on_a_gpu() -> None:
    handed_over("cuda")
    derived_twice("cuda")
    model_in_bfloat16("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_models_on_a_gpu(name: str) -> None:
    ticks, launched = MODELS[name]
    assert model_beside_reference(name, ticks, "cuda") >= launched


def built_for_hopper(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Launches become the compiler's work alone: each kernel's name and its PTX."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    made = {}
    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}

    def run(kernel: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [p.name for p in kernel.params]
        constants = {p.name: given[p.num] for p in kernel.params if p.is_constexpr}
        kinds = {
            n: types[v.dtype] if isinstance(v, Tensor) else "i32"
            for n, v in zip(names, given, strict=True)
        } | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
        target = GPUTarget("cuda", 90, 32)
        made[kernel.__name__] = build(source, target=target, options=options).asm["ptx"]

    monkeypatch.setattr(JITFunction, "run", run)
    return made


def test_every_kernel_compiles_for_compute_capability_9(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No device is needed to compile for one. Inputs in bfloat16, momentum, the smallest tiles."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from nlc.backends import triton

    made = built_for_hopper(monkeypatch)
    x = torch.zeros(1, 16, 16, dtype=torch.bfloat16)
    w, keep = torch.zeros(1, 16, 16), torch.zeros(1, 16, 1)
    triton.products_back(triton.products(keep[..., 0]), torch.zeros(1, 17, 17))
    triton.read_back(x, x, w, w, w, w, keep, keep, triton.read(x, x, w, w, w, w, keep, keep))
    triton.end(w, w, x, w, keep, keep, keep[:, :1], keep[:, :1], keep[:, :1])
    inverse, fixed, slope = triton.affine(x, w, keep, w, keep)
    triton.affine_back(x, w, keep, w, keep, inverse, fixed, slope, fixed, slope)
    each = w.unsqueeze(1)
    S, R, last = triton.chained(w, each, each, each, keep[:, :1, None])
    triton.chained_back(each, each, keep[:, :1, None], S, R, last)
    assert len(made) == 9
    # products run on the matrix units, but for a table, which is made of single numbers
    assert {n for n, ptx in made.items() if "mma" not in ptx} == {"_products"}
