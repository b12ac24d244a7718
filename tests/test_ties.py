"""Where two numbers are equal, `max` and `min` give each half of a gradient, and `clip` all to what
it clips, as torch does; the derived rules too.
"""

from __future__ import annotations

import pytest
import torch
from test_random import Case, agrees

import nlc

SYSTEM = """nl 1
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level l(x) {clock} {{
    state M : matrix(3, 3)
    objective {objective}
    learn gradient(rate = 0.1)
    read M(x)
  }}
  transfer backprop l -> training
  flow(x[3]) {{ y = l(linear(x, 3)); loss = sum(y^2); return y }}
}}
"""
TIED = (
    "sum(max(M(x), 0) + M(x)^2)", "sum(min(M(x), 0) + M(x)^2)", "sum(max(0, M(x)) + M(x)^2)",
    "sum(clip(M(x), 0, 1) + M(x)^2)", "sum(clip(1, M(x), 2) + M(x)^2)",
    "sum(max(M(x), -M(x)) * x + M(x)^2)", "sum(relu(M(x)) + M(x)^2)", "sum(abs(M(x)) + M(x)^2)",
    "sum(where(M(x) > 0, M(x), 2 * M(x)) + M(x)^2)",
)  # fmt: skip


@pytest.mark.parametrize("clock", ["every token", "every 2 tokens"])
@pytest.mark.parametrize("objective", TIED)
def test_a_memory_that_starts_at_a_tie(objective: str, clock: str) -> None:
    assert agrees(Case(SYSTEM.format(objective=objective, clock=clock), 5, [2]))


SLOPES = {"max(w, 0)": 0.5, "min(w, 0)": 0.5, "clip(w, 0, 1)": 1.0, "clip(w, -1, 0)": 1.0}


@pytest.mark.parametrize("text", SLOPES)
def test_a_slope_at_a_tie(text: str) -> None:
    said = f"""nl 1
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  flow(x[1]) {{ w = learned(1); y = {text} * x; loss = sum(y); return y }}
}}
"""
    assert agrees(Case(said, 3, []))
    model = nlc.compile(nlc.load(said), dtype=torch.float64)
    losses, _, _ = model.losses(torch.ones(1, 1, 1, dtype=torch.float64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    (w,) = model.parameters()
    assert w.grad is not None and float(w.grad) == SLOPES[text]
