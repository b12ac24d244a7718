"""What is no number at a tick of one sample: no earlier answer and no other sample sees it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.backends.runtime import earlier
from nlc.verify.streams import distance

AT, TIME, N = 40, 70, 6
# by name: gates of one number a tick, and of one a channel
MEMORIES = {
    "linear_attention": ("", ""), "gated_delta": ("alpha beta", ""), "kda": ("beta", "alpha"),
    "longhorn": ("", "beta"), "oja": ("beta", "alpha"), "titans_linear": ("alpha eta mu", ""),
    "gated_delta_2": ("", "alpha b w"), "huber": ("alpha eta delta", ""),
    "titans": ("alpha eta mu", ""), "mesa": ("beta gamma", "ridge"), "attend": ("", ""),
}  # fmt: skip


def streams(name: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, TIME, 1, N, generator=draw, dtype=torch.float64) for _ in range(3))
    found = {"q": q, "k": F.normalize(k, dim=-1), "v": v}
    numbers, channels = (part.split() for part in MEMORIES[name])
    for gate in [*numbers, *channels]:
        own = (N,) if gate in channels else ()
        found[gate] = torch.rand(3, TIME, 1, *own, generator=draw, dtype=torch.float64) / 2 + 0.2
    return found


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_no_number_is_of_its_sample_and_from_its_tick_on(name: str) -> None:
    given, op = streams(name), nlc.memory(name)
    wanted, _ = op(**given)
    for key, value in (("v", torch.nan), ("k", torch.inf)):
        spoiled = given | {key: given[key].clone()}
        spoiled[key][1, AT] = value
        with torch.no_grad():
            y, state = op(**spoiled)
        assert torch.equal(y[::2], wanted[::2])
        assert distance(y[1, :AT], wanted[1, :AT]) < 1e-12
        assert not y[1, AT].isfinite().all()
        with torch.no_grad():
            after, _ = op(**{n: x[:, :3] for n, x in given.items()}, state=state)
        assert after[::2].isfinite().all() and not after[1].isfinite().all()


def test_a_question_that_is_no_number_spoils_its_own_answer() -> None:
    """Ticks between it and a write that is none are those of a stream without either."""
    given, op = streams("gated_delta"), nlc.memory("gated_delta")
    wanted, _ = op(**given)
    given["q"][0, 3], given["v"][0, AT] = torch.nan, torch.nan
    given["q"][2, AT + 1] = torch.nan
    y, _ = op(**given)
    good = torch.ones(3, TIME, dtype=torch.bool)
    good[0, 3] = good[2, AT + 1] = False
    good[0, AT:] = False
    assert torch.equal(y.isfinite().flatten(2).all(2), good)
    assert distance(y[good], wanted[good]) < 1e-12


def test_in_calls_and_in_half_precision() -> None:
    """A state that is handed over is the one from which ticks are run again."""
    given, op = streams("kda"), nlc.memory("kda")
    wanted, _ = op(**given)
    given["v"][1, AT] = torch.nan
    parts, state = [], None
    for a, b in ((0, 20), (20, TIME)):
        y, state = op(**{n: x[:, a:b] for n, x in given.items()}, state=state)
        parts.append(y)
    assert distance(torch.cat(parts, 1)[1, :AT], wanted[1, :AT]) < 1e-12
    half, _ = op(**{n: x.bfloat16() for n, x in given.items()})
    assert half.dtype == torch.bfloat16
    assert half[1, :AT].isfinite().all() and not half[1, AT:].isfinite().any()


def test_sums_that_overflow_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large answers are numbers: nothing is run again."""
    given, op = streams("linear_attention"), nlc.memory("linear_attention")
    large = {"q": given["q"].abs(), "k": given["k"].abs(), "v": torch.full_like(given["v"], 2e304)}
    monkeypatch.setattr(earlier, "spoiled", None)
    y, _ = op(**large)
    assert y.isfinite().all() and not y.sum().isfinite()
