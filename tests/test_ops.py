"""Every chunked algorithm against its literal definition, one token at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nlc.backends.ops import by_hand, chance, recurrence
from nlc.backends.ops.attention import attend
from nlc.backends.ops.pairs import attend_pairs
from nlc.backends.ops.parts import (
    causal_conv,
    gelu,
    gelu_back,
    layer_norm,
    length,
    rms_norm,
    rope,
    smooth_abs,
    smooth_sign,
    unit,
)
from nlc.backends.ops.recurrence import Number, retained, scan, span, spans
from nlc.backends.reference.arrays import drawn as reference_draws

torch.set_num_threads(1)

FORWARD, GRADIENT = 1e-12, 1e-10
Result = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Case:
    """The arguments of one scan."""

    W0: Tensor
    q: Tensor
    x: Tensor
    e: Tensor
    rate: Number
    keep: Number = 1.0
    momentum: Number | None = None
    S0: Tensor | None = None
    erase: Number = 0.0
    after_retain: bool = False

    def leaves(self) -> list[Tensor]:
        return [v for v in self.arguments().values() if isinstance(v, Tensor)]

    def arguments(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def scan(self, chunk: int = 16, before_write: bool = False) -> Result:
        return scan(**self.arguments(), chunk=chunk, before_write=before_write)  # type: ignore[arg-type]

    def each(self, change: Callable[[Tensor], Tensor]) -> Case:
        given = self.arguments()
        return Case(**{k: change(v) if isinstance(v, Tensor) else v for k, v in given.items()})  # type: ignore[arg-type]


def at(gate: Number, x: Tensor, t: int) -> Number:
    """The gate of a tick, as it multiplies a vector [..., features]."""
    if not isinstance(gate, Tensor):
        return gate
    return gate[..., t, :] if gate.ndim == x.ndim else gate[..., t, None]


def row(gate: Number) -> Number:
    """The same, as it multiplies a matrix [..., m, n]."""
    return gate.unsqueeze(-2) if isinstance(gate, Tensor) else gate


def literal(c: Case, before_write: bool = False) -> Result:
    w = c.W0
    s = torch.zeros_like(w) if c.S0 is None else c.S0
    reads = [w.new_empty(*c.x.shape[:-2], 0, w.shape[-2])]
    for t in range(c.x.shape[-2]):
        x, keep = c.x[..., t, :], row(at(c.keep, c.x, t))
        probe = keep * w if c.after_retain else w
        pred = (probe @ x.unsqueeze(-1)).squeeze(-1)
        r = -at(c.rate, c.x, t) * (c.e[..., t, :] + at(c.erase, c.x, t) * pred)
        carried = 0.0 if c.momentum is None else row(at(c.momentum, c.x, t))
        s = carried * s + r.unsqueeze(-1) * x.unsqueeze(-2)
        old, w = w, keep * w + s
        read = (old if before_write else w) @ c.q[..., t, :].unsqueeze(-1)
        reads.append(read.mT)
    return torch.cat(reads, -2), w, None if c.momentum is None else s


def numbers(*shape: int, seed: int = 0, like: str = "normal") -> Tensor:
    source = torch.Generator().manual_seed(seed)
    make = torch.randn if like == "normal" else torch.rand
    return make(*shape, generator=source, dtype=torch.float64)


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def case(
    lead: tuple[int, ...],
    ticks: int,
    keep: str = "tick",
    momentum: str = "none",
    erase: str = "one",
    rate: str = "tick",
    after_retain: bool = False,
    n: int = 4,
    m: int = 3,
    seed: int = 0,
) -> Case:
    def of(k: int, *shape: int, like: str = "normal") -> Tensor:
        return leaf(numbers(*lead, *shape, seed=10 * seed + k, like=like))

    def gate(kind: str, k: int, channels: int) -> Number:
        shapes = {"tick": (ticks,), "channel": (ticks, channels)}
        fixed = {"nought": 0.0, "one": 1.0, "number": 0.7}
        return fixed[kind] if kind in fixed else of(k, *shapes[kind], like="uniform")

    return Case(
        W0=of(1, m, n),
        q=of(2, ticks, n),
        x=leaf(0.5 * of(3, ticks, n)),
        e=of(4, ticks, m),
        rate=gate(rate, 5, m),
        keep=gate(keep, 6, n),
        momentum=None if momentum == "none" else gate(momentum, 7, n),
        S0=of(8, m, n) if momentum == "tick" else None,
        erase=gate(erase, 9, 1),
        after_retain=after_retain,
    )


def assert_close(got: Sequence[Tensor | None], want: Sequence[Tensor | None], to: float) -> None:
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=to, atol=to)


def gradients(results: Sequence[Tensor | None], leaves: list[Tensor]) -> list[Tensor]:
    """Of a fixed random sum of the results."""
    total = leaves[0].new_zeros(())
    for k, y in enumerate(results):
        if y is not None:
            total = total + (y * numbers(*y.shape, seed=100 + k)).sum()
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))


def assert_same(
    got: Sequence[Tensor | None], want: Sequence[Tensor | None], leaves: list[Tensor]
) -> None:
    assert_close(got, want, FORWARD)
    assert_close(gradients(got, leaves), gradients(want, leaves), GRADIENT)


def assert_literal(c: Case, chunk: int, before_write: bool = False) -> None:
    assert_same(c.scan(chunk, before_write), literal(c, before_write), c.leaves())


# --- the recurrence -------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", [0, 1, 5, 64, 67])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("keep", ["one", "number", "tick", "channel"])
def test_scan_is_the_recurrence(lead: tuple[int, ...], ticks: int, keep: str) -> None:
    assert_literal(case(lead, ticks, keep), chunk=16)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    lead=st.sampled_from([(), (2,), (1, 2)]),
    ticks=st.integers(0, 20),
    keep=st.sampled_from(["one", "number", "tick", "channel"]),
    momentum=st.sampled_from(["none", "number", "tick"]),
    erase=st.sampled_from(["nought", "one", "tick"]),
    rate=st.sampled_from(["number", "tick", "channel"]),
    after_retain=st.booleans(),
    before_write=st.booleans(),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_scan_is_the_recurrence_in_every_mix(
    lead: tuple[int, ...],
    ticks: int,
    keep: str,
    momentum: str,
    erase: str,
    rate: str,
    after_retain: bool,
    before_write: bool,
    chunk: int,
    seed: int,
) -> None:
    if keep == "channel":
        momentum = "none"
    c = case(lead, ticks, keep, momentum, erase, rate, after_retain, seed=seed)
    assert_literal(c, chunk, before_write)


@pytest.mark.parametrize("momentum", ["none", "tick"])
@pytest.mark.parametrize("keep", ["tick", "channel"])
@pytest.mark.parametrize("fraction", [0.0, 1e-30, 1e-300, -0.5])
def test_any_keep_has_its_exact_value_and_gradient(
    keep: str, momentum: str, fraction: float
) -> None:
    if keep == "channel" and momentum == "tick":
        return
    c = case((2,), 37, keep, momentum)
    assert isinstance(c.keep, Tensor)
    with torch.no_grad():
        c.keep[numbers(*c.keep.shape, like="uniform") < 0.3] = fraction
        c.keep[0, 4:7] = fraction
    for before_write in (False, True):
        assert_literal(c, 8, before_write)


@pytest.mark.parametrize("keep", ["tick", "channel"])
@pytest.mark.parametrize("fraction", [0.0, 1e-30, 0.5, 1.0])
def test_long_spans_neither_overflow_nor_vanish(keep: str, fraction: float) -> None:
    c = case((1,), 4096, keep, n=8, m=8).each(lambda v: v.detach().float())
    assert isinstance(c.keep, Tensor)
    long = Case(c.W0, c.q, unit(c.x), c.e, c.rate, torch.full_like(c.keep, fraction), erase=1.0)
    long = long.each(leaf)
    y, w, _ = long.scan(64)
    exact, end, _ = long.each(lambda v: v.detach().double()).scan(16)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w.double(), end, rtol=1e-4, atol=1e-4)
    for g in torch.autograd.grad(y.sum(), long.leaves()):
        assert g.isfinite().all()


@pytest.mark.parametrize("momentum", ["none", "tick"])
@pytest.mark.parametrize("rate", ["tick", "channel"])
def test_a_span_answers_any_reads(momentum: str, rate: str) -> None:
    c = case((2,), 13, momentum=momentum, rate=rate)
    s = span(c.W0, c.x, c.e, c.rate, c.keep, c.momentum, c.S0, c.erase)
    want = literal(c)
    assert_same((s.read(c.q), *s.end()), want, c.leaves())
    other = Case(**{**c.arguments(), "q": leaf(c.x)})  # type: ignore[arg-type]
    assert_close((s.read(other.q, before_write=True),), literal(other, True)[:1], FORWARD)


@pytest.mark.parametrize("momentum", ["none", "tick"])
@pytest.mark.parametrize("rate", ["tick", "channel"])
def test_a_split_sequence_goes_on_where_it_stopped(momentum: str, rate: str) -> None:
    c = case((2,), 40, momentum=momentum, rate=rate)
    sequences = {
        k: v for k, v in c.arguments().items() if isinstance(v, Tensor) and v.shape[1] == 40
    }

    def part(start: int, stop: int, w: Tensor, s: Tensor | None) -> Result:
        cut = {k: v[:, start:stop] for k, v in sequences.items()}
        return Case(**{**c.arguments(), **cut, "W0": w, "S0": s}).scan(8)  # type: ignore[arg-type]

    first, w, s = part(0, 17, c.W0, c.S0)
    second, w, s = part(17, 40, w, s)
    assert_close((torch.cat((first, second), 1), w, s), c.scan(16), FORWARD)


def test_gates_and_start_may_lack_leading_axes() -> None:
    c = case((2, 3), 11, momentum="tick")
    fewer = Case(
        leaf(c.W0[0, 0]),
        c.q,
        c.x,
        c.e,
        leaf(c.rate[:, :1]),  # type: ignore[index]
        leaf(c.keep[0, 0]),  # type: ignore[index]
        0.5,
        erase=1.0,
    )
    assert_literal(fewer, 4)


def test_gradients_of_both_orders() -> None:
    for keep, momentum, rate in [
        ("tick", "tick", "tick"),
        ("channel", "none", "tick"),
        ("tick", "none", "channel"),
    ]:
        c = case((), 5, keep, momentum, erase="tick", rate=rate, n=2, m=2)

        def run(*leaves: Tensor, c: Case = c) -> tuple[Tensor, ...]:
            left = iter(leaves)
            results = c.each(lambda v: next(left)).scan(2)
            return tuple(y for y in results if y is not None)

        assert torch.autograd.gradcheck(run, c.leaves())
        assert torch.autograd.gradgradcheck(run, c.leaves())


@pytest.mark.parametrize("ticks", [16, 17, 18, 45, 48])
def test_a_long_scan_runs_in_blocks(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "BLOCK", 1)
    assert_literal(case((2,), ticks, momentum="tick"), chunk=2)
    assert_literal(case((1, 2), ticks, "channel", erase="tick"), chunk=2)


@pytest.mark.parametrize("rows", [4, 2])
def test_a_span_of_the_delta_rule_has_its_derivatives_by_hand(rows: int) -> None:
    """Gates may be of a part of the batch, which repeats."""
    w, x, e = (leaf(numbers(4, *s, seed=k)) for k, s in enumerate([(3, 2), (5, 2), (5, 3)]))
    rate, keep = (leaf(numbers(rows, 5, seed=k, like="uniform")) for k in (3, 4))

    def run(w: Tensor, x: Tensor, e: Tensor, rate: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        made = span(w, x, e, rate, retention=retained(keep), erase=1.5)
        return made.wrote, made.end()[0]

    leaves = [w, x, e, rate, keep]
    full = [w, x, e, rate.repeat(4 // rows, 1), keep.repeat(4 // rows, 1)]
    assert_close(run(*leaves), run(*full), FORWARD)
    wanted = literal(Case(w, x, x, e, full[3], full[4], erase=1.5))
    assert_close([run(*leaves)[1]], [wanted[1]], FORWARD)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("ticks", [3, 1])
@pytest.mark.parametrize("own", [2, 1])
def test_spans_with_the_same_gates_are_those_of_each(ticks: int, own: int) -> None:
    """Of several sizes and batches; gates of fewer rows repeat."""
    sizes = [(4, 3, 2), (2, 1, 2), (2, 2, 4)]
    leaves = [
        leaf(numbers(b, *s, seed=i))
        for i, (b, m, n) in enumerate(sizes)
        for s in ((m, n), (ticks, n), (ticks, m))
    ]
    gates = [leaf(numbers(rows, ticks, seed=k, like="uniform")) for k, rows in ((7, own), (8, 2))]

    def run(rate: Tensor, keep: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        given = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        made = spans(*given, rate=rate, erase=1.5, retention=retained(keep))
        return tuple(v for one in made for v in (one.wrote, one.end()[0]))

    def apart(rate: Tensor, keep: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for w, x, e in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            full = [g.repeat(len(x) // len(g), 1) for g in (rate, keep)]
            made = span(w, x, e, full[0], full[1], erase=1.5)
            found += [made.wrote, made.end()[0]]
        return tuple(found)

    with by_hand.plainly():
        wanted = apart(*gates, *leaves)
    assert_close(run(*gates, *leaves), wanted, FORWARD)
    assert torch.autograd.gradcheck(run, [*gates, *leaves])
    if ticks > 1:
        assert torch.autograd.gradgradcheck(run, [*gates, *leaves])


@pytest.mark.parametrize("erase", ["nought", "number"])
@pytest.mark.parametrize("after_retain", [False, True])
@pytest.mark.parametrize("before_write", [False, True])
@pytest.mark.parametrize("gates", ["tick", "number", "one"])
def test_a_scan_with_one_number_a_tick_has_its_derivatives_by_hand(
    erase: str, after_retain: bool, before_write: bool, gates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case((), 4, gates, erase=erase, rate=gates, after_retain=after_retain, n=2, m=2)
    assert_literal(c, 2, before_write)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        left = iter(leaves)
        return c.each(lambda v: next(left)).scan(2, before_write)[:2]

    assert torch.autograd.gradcheck(run, c.leaves())
    if gates == "tick":
        assert torch.autograd.gradgradcheck(run, c.leaves())
    # What it is compared with is not itself.
    monkeypatch.setattr(by_hand, "allowed", lambda: False)
    plain = c.scan(2, before_write)
    monkeypatch.undo()
    monkeypatch.setattr(recurrence, "_chunks", None)
    assert_same(c.scan(2, before_write), plain, c.leaves())


def test_the_end_of_a_span_with_momentum_has_its_derivatives_by_hand() -> None:
    c = case((2,), 4, momentum="tick", erase="nought")

    def run(w: Tensor, x: Tensor, e: Tensor, keep: Tensor, momentum: Tensor, s: Tensor) -> Any:
        return span(w, x, e, c.rate, keep, momentum, s).end()

    given = (c.W0, c.x, c.e, c.keep, c.momentum, c.S0)
    leaves = [v for v in given if isinstance(v, Tensor)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("gates", ["none", "number", "channel", "momentum"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_chain_of_chunks_has_its_derivatives_by_hand(gates: str, affine: bool) -> None:
    b, chunks, c, m, n = 2, 3, 2, 2, 4
    left = {"none": [], "number": [(1, 1)], "channel": [(1, n)], "momentum": [(1, 1)] * 3}[gates]
    shapes = [(b, m, n), (b, chunks, c, m), (b, chunks, c, n), (b, chunks, c, n)]
    leaves = [leaf(numbers(*s, seed=k)) for k, s in enumerate(shapes)]
    leaves += [leaf(numbers(b, chunks, *s, seed=9 + k)) for k, s in enumerate(left)]

    def run(S: Tensor, U: Tensor, Y: Tensor, *rest: Tensor) -> Any:
        given = (S, U, Y if affine else None, *rest)
        return by_hand.Chained.apply(recurrence._chained, *given)  # type: ignore[no-untyped-call]

    S, U, Y, T, *gates_of = leaves
    plain = recurrence._chained(S, U, Y if affine else None, T, *gates_of)
    assert_close(run(*leaves), plain, FORWARD)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_the_slope_of_gelu_has_its_derivatives_by_hand() -> None:
    bar, x = leaf(numbers(3, 4)), leaf(numbers(3, 4, seed=1))
    assert torch.autograd.gradcheck(gelu_back, (bar, x))
    assert torch.autograd.gradgradcheck(gelu_back, (bar, x))


@pytest.mark.parametrize("shape", [(2, 16, 8), (1, 16, 8), (4, 1, 8), (1, 1, 8), (8,), (3, 0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_keeps_small_arrays_from_onednn(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar, x = (leaf(numbers(*shape, seed=s).to(dtype)) for s in (0, 1))
    theirs, torchs = functional.gelu(x), functional.gelu
    slope = torch.autograd.grad(theirs, x, bar)[0]
    asked: list[Tensor] = []

    def seen(y: Tensor) -> Tensor:
        asked.append(y)
        return torchs(y)

    monkeypatch.setattr(functional, "gelu", seen)
    mine = gelu(x)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, x, bar)[0], slope)
    torch.testing.assert_close(gelu_back(bar, x), slope)
    assert mine.is_contiguous()
    axes = sum(n > 1 for n in shape)
    can = dtype is torch.float32 and axes > 1 and bool(x.numel())
    assert asked[0].is_contiguous() != can


@pytest.mark.parametrize("momentum", ["none", "tick"])
def test_spans_side_by_side_answer_as_each(momentum: str) -> None:
    cases = [case((2,), 6, momentum=momentum, seed=k) for k in range(3)]
    spans = [span(c.W0, c.x, c.e, c.rate, c.keep, c.momentum, c.S0, erase=1.0) for c in cases]
    q = torch.cat([c.q for c in cases])
    wanted = torch.cat([s.read(c.q) for s, c in zip(spans, cases, strict=True)])
    assert_close([recurrence.side_by_side(spans).read(q)], [wanted], FORWARD)


def test_functional_gradients_pass_through() -> None:
    c = case((), 9)

    def loss(w: Tensor) -> Tensor:
        return Case(**{**c.arguments(), "W0": w}).scan(3)[0].square().sum()  # type: ignore[arg-type]

    w = c.W0.detach()
    (want,) = torch.autograd.grad(loss(c.W0), c.W0)
    torch.testing.assert_close(torch.func.grad(loss)(w), want)
    batch = torch.stack((w, 2 * w))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch)[0], want)


def test_states_stay_float32_under_autocast() -> None:
    c = case((2,), 67, momentum="tick").each(lambda v: v.detach().float())
    want = c.scan()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(c.scan(), want, 1e-6)
        half = c.each(lambda v: v.bfloat16()).scan()
    assert half[0].dtype == torch.bfloat16
    assert half[1].dtype == torch.float32
    torch.testing.assert_close(half[0].float(), want[0], rtol=0.1, atol=0.3)


@pytest.mark.parametrize("keep", ["tick", "channel"])
def test_scan_compiles(keep: str) -> None:
    c = case((2,), 67, keep)

    def run(w: Tensor, q: Tensor, x: Tensor, e: Tensor, rate: Number, keep: Number) -> Result:
        return scan(w, q, x, e, rate, keep, erase=1.0)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    got = compiled(c.W0, c.q, c.x, c.e, c.rate, c.keep)
    assert_same(got, c.scan(), c.leaves())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("keep", ["tick", "channel"])
def test_scan_is_the_same_on_a_gpu(keep: str) -> None:
    c = case((2,), 67, keep)
    there = c.each(lambda v: leaf(v.cuda()))
    got, want = there.scan(), c.scan()
    assert_close([None if y is None else y.cpu() for y in got], want, FORWARD)
    slopes = torch.autograd.grad(got[0].sum(), there.leaves())
    assert_close(
        [g.cpu() for g in slopes], torch.autograd.grad(want[0].sum(), c.leaves()), GRADIENT
    )


# --- attention ------------------------------------------------------------------------------------


def literal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, past: int
) -> Tensor:
    reads = [v[..., :0, :]]
    for i in range(q.shape[-2]):
        last = past + i + 1
        first = 0 if window is None else max(0, last - window)
        scores = scale * q[..., i : i + 1, :] @ k[..., first:last, :].mT
        reads.append(scores.softmax(-1) @ v[..., first:last, :])
    return torch.cat(reads, -2)


@pytest.mark.parametrize("ticks", [0, 1, 5, 64, 150])
@pytest.mark.parametrize("window", [None, 1, 7, 70, 1000])
@pytest.mark.parametrize("past", [0, 3, 90])
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_attention(lead: tuple[int, ...], ticks: int, window: int | None, past: int) -> None:
    q = leaf(numbers(*lead, ticks, 4, seed=1))
    k = leaf(numbers(*lead, past + ticks, 4, seed=2))
    v = leaf(numbers(*lead, past + ticks, 3, seed=3))
    got = attend(q, k, v, window=window, past=past)
    want = literal_attention(q, k, v, 0.5, window, past)
    assert_same((got,), (want,), [q, k, v])
    scaled = attend(q, k, v, 2.0, window, past)
    assert_close((scaled,), (literal_attention(q, k, v, 2.0, window, past),), FORWARD)


@pytest.mark.parametrize("ticks, past, window, several, beside", [
    (5, 0, None, 1, 0), (5, 3, None, 2, 2), (7, 0, 3, 2, 2), (70, 5, 6, 2, 3), (70, 2, 4, 1, 0),
    (7, 2, 20, 2, 1), (1, 2, 3, 1, 1),
])  # fmt: skip
def test_attention_over_weighed_pairs(
    ticks: int, past: int, window: int | None, several: int, beside: int
) -> None:
    draw = torch.Generator().manual_seed(ticks)

    def rand(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, generator=draw, dtype=torch.float64)

    q, k, v = rand(ticks, 4), rand(past + ticks, several, 4), rand(past + ticks, several, 5)
    seen = (rand(ticks, window or 1, 1) > 0).double()
    seen[..., -1, :] = 1
    own = (rand(ticks, beside, 4), rand(ticks, beside, 5)) if beside else None
    rows = []
    for i in range(ticks):
        first = 0 if window is None else max(0, past + i + 1 - window)
        keys, values = k[..., first : past + i + 1, :, :], v[..., first : past + i + 1, :, :]
        weight = torch.exp(0.5 * (keys * q[..., i, None, None, :]).sum(-1))
        if window is not None:
            weight = weight * seen[..., i, window - keys.shape[-3] :, :]
        weight, values = weight.flatten(-2), values.flatten(-3, -2)
        if own is not None:
            more = torch.exp((own[0][..., i, :, :] * q[..., i, None, :]).sum(-1))
            weight = torch.cat([weight, more], -1)
            values = torch.cat([values, own[1][..., i, :, :]], -2)
        rows.append((weight.unsqueeze(-1) * values).sum(-2) / weight.sum(-1, keepdim=True))
    given = None if window is None else seen
    y = attend_pairs(q, k, v, 0.5, past, window, given, own)
    assert (y - torch.stack(rows, -2)).abs().max() < FORWARD


# --- parts ----------------------------------------------------------------------------------------


def test_norms_and_units() -> None:
    x, gain, bias = (leaf(numbers(*shape)) for shape in [(2, 5, 6), (6,), (6,)])
    rms = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    assert_same((rms_norm(x, gain),), (rms,), [x, gain])

    def standard() -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    assert_same((layer_norm(x, gain, bias),), (standard() * gain + bias,), [x, gain, bias])
    assert_same((layer_norm(x),), (standard(),), [x])
    one = x / (x.square().sum(-1, keepdim=True) + 1e-30).sqrt()
    assert_same((unit(x),), (one,), [x])


@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (2, 1)])
def test_norms_have_their_derivatives_by_hand(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, gain = leaf(numbers(*shape)), leaf(numbers(shape[-1], seed=1))
    functions: list[Callable[[Tensor], Tensor]] = [unit, lambda x: rms_norm(x, gain)]
    made = [f(x) for f in functions]
    for f in functions:
        assert torch.autograd.gradcheck(f, [x])
        assert torch.autograd.gradgradcheck(f, [x])
    monkeypatch.setattr(by_hand, "allowed", lambda: False)
    assert_same(made, [f(x) for f in functions], [x, gain])


def test_half_precision_sums_in_float32() -> None:
    x = numbers(3, 512).bfloat16()
    for part in (unit, lambda v: rms_norm(v, torch.ones(512, dtype=v.dtype)), length):
        got = part(x)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, part(x.double()).bfloat16(), rtol=1e-2, atol=0)


def test_smooth_functions() -> None:
    x = leaf(torch.tensor([-2.0, -1e-4, 0.0, 3.0], dtype=torch.float64))
    assert_close((smooth_abs(x),), ((x * x + 1e-6).sqrt(),), FORWARD)
    (slope,) = torch.autograd.grad(smooth_abs(x).sum(), x)
    assert_close((smooth_sign(x),), (slope,), FORWARD)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_length(p: float) -> None:
    x = leaf(numbers(5, 4))
    want = torch.linalg.vector_norm(x, p, -1)
    assert_same((length(x, p),), (want,), [x])
    nought = leaf(torch.zeros(2, 4, dtype=torch.float64))
    (slope,) = torch.autograd.grad(length(nought, p).sum(), nought)
    assert (slope == 0).all()


def test_length_has_its_second_derivative_beside_a_zero() -> None:
    x = leaf(torch.tensor([0.0, 2.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(length(x), x, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(s, x, retain_graph=True)[0] for s in slope])
    want = torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(curvature, want)


@pytest.mark.parametrize("axis", [1, -3])
def test_rope(axis: int) -> None:
    shape = [2, 3, 5, 6] if axis == -3 else [2, 5, 3, 6]
    x = leaf(numbers(*shape))
    ticks = shape[axis]
    turned = torch.zeros_like(x)
    for t in range(ticks):
        for i in range(3):
            cos, sin = (f((7 + t) / 10000 ** (i / 3)) for f in (math.cos, math.sin))
            a, b = (x.select(axis, t)[..., j] for j in (i, i + 3))
            turned.select(axis, t)[..., i] = a * cos - b * sin
            turned.select(axis, t)[..., i + 3] = b * cos + a * sin
    assert_same((rope(x, torch.arange(7, 7 + ticks), axis),), (turned,), [x])


@pytest.mark.parametrize("between", [(), (3,)])
@pytest.mark.parametrize("ticks", [0, 1, 9])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("detach_past", [False, True])
def test_causal_conv(between: tuple[int, ...], ticks: int, taps: int, detach_past: bool) -> None:
    x = leaf(numbers(2, ticks, *between, 5, seed=1))
    weight = leaf(numbers(5, taps, seed=2))
    past = leaf(numbers(2, taps - 1, *between, 5, seed=3))
    line = torch.cat((past, x), 1)
    reads = [x[:, :0]]
    for t in range(ticks):
        total = torch.zeros_like(line[:, 0])
        for tap in range(taps):
            value = line[:, t + tap]
            earlier = detach_past and tap < taps - 1
            total = total + weight[:, tap] * (value.detach() if earlier else value)
        reads.append(total.unsqueeze(1))
    got = causal_conv(x, weight, past, Tensor.detach if detach_past else None)
    assert_same((got,), (torch.cat(reads, 1),), [x, weight, past])


def test_causal_conv_is_torchs() -> None:
    x, weight = numbers(2, 9, 5), numbers(5, 4)
    want = functional.conv1d(functional.pad(x.mT, (3, 0)), weight.unsqueeze(1), groups=5).mT
    assert_close((causal_conv(x, weight, x.new_zeros(2, 3, 5)),), (want,), FORWARD)


# ---- draws ---------------------------------------------------------------------------------------


def test_a_draw_is_that_of_the_definition() -> None:
    """The reference's own arithmetic; a change of any bit of a place turns half of the bits."""
    places = torch.tensor([0, 1, 2, 5, 1000, 2**31, 2**32 - 1])
    h = chance.turn(torch.tensor(chance.begin(3, "a")), places)
    for place, drawn in zip(places.tolist(), h.tolist(), strict=True):
        state = chance.turn(torch.tensor(drawn), torch.arange(4))
        assert torch.equal(state, reference_draws("3:a", (place,), (4,)))
    x = chance.mixed(torch.arange(2**16))
    assert len(set(x.tolist())) == 2**16 and int(x.min()) >= 0 and int(x.max()) < 2**32
    for bit in range(16):
        turned = (x ^ chance.mixed(torch.arange(2**16) ^ 1 << bit)).unsqueeze(-1) >> torch.arange(
            32
        )
        assert (turned & 1).double().mean(0).sub(0.5).abs().max() < 0.02
