"""The kernels of backends/triton beside torch's operations in float64, of the same numbers.

Here they run in Triton's interpreter, which has to be asked for before Triton is imported: in one
process of its own. On a CUDA device the same comparisons run on the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from shipped import compiled, distance, tokens, truth_of
from test_ops import Case
from torch import Tensor

from nlc.backends.ops import kernels
from nlc.backends.ops.recurrence import begin, span

torch.set_num_threads(1)

# Errors seen: in the interpreter, whose products are numpy's of float32, below TODO of the largest
# number of what is compared. A device sums in another order, and splits its products in three.
CLOSE = 2e-6
HALF = 2e-2  # what is answered in bfloat16 has 8 binary digits

Worker = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Worker]:
    """Runs a function of this file in a process in which kernels run on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
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

    def told(name: str) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            seen.add(name)
            return getattr(triton, name)(*given)

        return run

    with pytest.MonkeyPatch.context() as patch:
        every = {n: staticmethod(told(n)) for n in triton.__all__ if n != "fits"}
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
    given = (v["W0"], v["q"], v["x"], v["e"], v["rate"] if seed % 2 else -1.0, kept(v["keep"], keep))
    more = (v["momentum"], v["S0"]) if momentum else (None, None)
    return Case(*given, *more, erase, after_retain)


Run = Callable[[Case], Sequence[Tensor | None]]


def compare(run: Run, case: Case, device: str, half: bool = False) -> tuple[set[str], float]:
    """Outputs and gradients with kernels in float32 or from bfloat16, beside those of float64; which
    kernels ran, and the largest error.
    """

    def leaf(x: Tensor) -> Tensor:
        coarse = half and x is not case.W0 and x is not case.S0
        made = x.to(device, torch.bfloat16 if coarse else torch.float32)
        return made.requires_grad_()

    here = case.each(leaf)
    exact = here.each(lambda x: x.detach().double().requires_grad_())
    with watched() as seen:
        got, found = results(run, here)
    wanted, slopes = results(run, exact)
    worst = 0.0
    for a, b in zip([*got, *found], [*wanted, *slopes], strict=True):
        error = float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3))
        bar = HALF if a.dtype == torch.bfloat16 else CLOSE
        assert error <= (HALF if half else bar), (error, tuple(a.shape), a.dtype)
        worst = max(worst, error)
    return seen, worst


def results(run: Run, case: Case) -> tuple[list[Tensor], list[Tensor]]:
    outputs = [y for y in run(case) if y is not None]
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y) for y in outputs]
    total = sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True))
    found = torch.autograd.grad(total, case.leaves(), allow_unused=True)  # type: ignore[arg-type]
    return outputs, [g for g in found if g is not None]


def scanned(device: str, before_write: bool, half: bool = False, **case: Any) -> tuple[set[str], float]:
    return compare(lambda c: c.scan(16, before_write), drawn(**case), device, half)


def spanned(device: str, before_write: bool, half: bool = False, **case: Any) -> tuple[set[str], float]:
    def run(c: Case) -> list[Tensor | None]:
        given = (c.W0, c.x, c.e, c.rate, c.keep, c.momentum, c.S0, c.erase, c.after_retain)
        made = span(*given)
        return [made.read(c.q, before_write), *made.end()]

    return compare(run, drawn(**case), device, half)
