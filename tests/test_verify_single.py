"""What is wrong in float32 alone is seen, and what rounding does is no fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_verify import FAST, SMALL
from test_verify_memory import drawing, failing
from torch import Tensor

import nlc
from nlc.backends.ops import recurrence
from nlc.verify import Verifier
from nlc.verify import single as F
from nlc.verify.memories import MemoryVerifier
from nlc.verify.properties import Measured
from nlc.verify.streams import Streams

OUTPUTS, GRADIENTS = "outputs in float32 == in float64", "gradients in float32 == in float64"


class Changed(MemoryVerifier):
    """An operation that is another one in float32."""

    def __init__(self, change: Callable[[Tensor], Tensor], name: str = "gated_delta") -> None:
        super().__init__(drawing(name, n=3), FAST)
        self.change = change

    def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
        y, after = super().run(streams, state, **more)
        return (self.change(y) if y.dtype == torch.float32 else y), after


class Forgetful(Changed):
    """Its state is kept in half precision."""

    def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
        y, after = MemoryVerifier.run(self, streams, state, **more)
        return y, after.each(self.change) if y.dtype == torch.float32 else after


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "nothing": (lambda y: y, set()),
    "fewer digits": (lambda y: y.bfloat16().float(), {OUTPUTS, GRADIENTS}),
    "a sum that cancels": (lambda y: (y + 1e4) - 1e4, {OUTPUTS}),
    "an exponential that overflows": (lambda y: y * torch.exp(0 * y + 90) / 1e39, {OUTPUTS}),
    "what is almost nothing": (lambda y: y * 1e-44 * 1e22 * 1e22, {OUTPUTS}),
    "a gradient alone": (lambda y: bent(y), {GRADIENTS}),
}  # fmt: skip


class Bent(torch.autograd.Function):
    """The same forward, and a gradient of few digits."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.bfloat16().float()


def bent(y: Tensor) -> Tensor:
    made: Tensor = Bent.apply(y)  # type: ignore[no-untyped-call]
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_float32_alone_fails_no_other_row(fault: str) -> None:
    change, rows = FAULTS[fault]
    found = failing(Changed(change))
    assert rows <= found <= {OUTPUTS, GRADIENTS} and bool(found) == bool(rows)


def test_a_state_of_fewer_digits_is_seen() -> None:
    assert failing(Forgetful(lambda x: x.bfloat16().float())) == {OUTPUTS}


def test_a_scan_that_casts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a memory and in a system; only long calls enter it."""
    scanned = recurrence._scanned

    def fewer(*given: Any) -> tuple[Tensor, Tensor]:
        answers, end = scanned(*given)
        return (answers.bfloat16().float() if answers.dtype == torch.float32 else answers), end

    small = Verifier(nlc.load("deltanet", **SMALL), FAST)
    steps = [run for _, run in small.of_float32()]
    assert [run().holds for run in steps] == [True, True]
    monkeypatch.setattr(recurrence, "_scanned", fewer)
    assert not steps[0]().holds
    assert OUTPUTS in failing(Changed(lambda y: y))


@pytest.mark.parametrize("name", ["memora", "sphere", "longhorn"])
def test_what_loses_digits_by_itself_is_held_to_what_the_reference_loses(name: str) -> None:
    """Simplices almost alike; a matrix of rank one that is made orthogonal; Newton's method."""
    for much, holds in (1.0, True), (1.2, False):
        made = Changed(lambda y, much=much: y * much, name)  # type: ignore[misc]
        assert made.in_single("outputs", made.answers).holds == holds
        assert made.in_single("gradients", made.gradients).holds == holds


# ---- how it is measured --------------------------------------------------------------------------


def test_each_number_that_is_made_is_rounded() -> None:
    x = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    with F.Rounded():  # type: ignore[no-untyped-call]
        y = x * 3
        z = torch.zeros(2, dtype=torch.float64).add_(x.detach())
        view = y.view(1, 2)
        (g,) = torch.autograd.grad((y * 0.7).sum(), x)
        half = (x.detach() / 3).bfloat16()
    for made in (y, z, view, g):
        assert made.dtype == torch.float64 and torch.equal(made, made.float().double())
    assert half.dtype == torch.bfloat16
    assert not torch.equal(x, x.float().double()), "what is given stays as it is"


def test_what_cannot_be_solved_with_fewer_digits_is_moved_by_its_last_bits() -> None:
    from nlc.diagnostics import Unsettled

    def unsettled() -> int:
        raise Unsettled(100)

    assert F.rounded(lambda: 1, lambda: 2) == 1
    assert F.rounded(unsettled, lambda: 2) == 2


def test_a_bar_is_a_power_of_ten_and_leaves_digits() -> None:
    far = {0.0: F.SURE, 1e-9: F.SURE, 2e-4: 1e-3, 1e-3: 1e-3, 0.09: 0.1, 0.2: F.SURE}
    assert {most: F.bar_of(most) for most in far} == pytest.approx(far)
    assert F.bar_of(math.nan) == F.bar_of(math.inf) == F.SURE
    kept = F.judged(Measured("x", 5e-4, F.SURE), lambda: 2e-4)
    assert kept.holds and kept.bar == pytest.approx(1e-3) and "rounding alone" in kept.at
    for most in (math.nan, math.inf, 0.5):
        lost = F.judged(Measured("x", 1.0, F.SURE), lambda most=most: most)  # type: ignore[misc]
        assert not lost.holds and not F.compares(lost)
    assert not F.judged(Measured("x", math.nan, F.SURE), lambda: 1e-6).holds


def test_of_all_calls_that_have_digits_the_longest_is_compared() -> None:
    x = torch.ones(1, 17, 1, dtype=torch.float64)

    def row(grows: float, lost: Callable[[int], float]) -> Measured:
        """Each token takes digits away: of so many tokens `grows` to that power."""

        def found(streams: Streams, dtype: torch.dtype) -> dict[str, Tensor]:
            ticks = streams[0].shape[1]
            return {"": streams[0] * (1 + (dtype == torch.float32) * 1e-7 * grows**ticks)}

        def moved(streams: Streams) -> dict[str, Tensor]:
            return {"": streams[0] * (1 + 1e-7 * grows ** streams[0].shape[1])}

        drawn = lambda ticks: (x[:, :1].expand(1, ticks, 1),)  # noqa: E731
        return F.Single("x", drawn, found, lost, moved).measured(17)

    assert row(1.0, lambda ticks: 1e-7).holds
    chaos = row(2.0, lambda ticks: 1e-7 * 2.0**ticks)
    assert chaos.holds and "9 tokens" in chaos.at, "at 17 no digit is left"
    hopeless = row(100.0, lambda ticks: 1e-7 * 100.0**ticks)
    assert not hopeless.holds and "3 tokens" in hopeless.at
