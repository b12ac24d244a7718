"""Memories that are kept in a dual: the state of every tick, and reads of a function of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.ops.dual import Linked
from nlc.backends.ops.recurrence import span
from nlc.backends.torch_source import build

DRAW = torch.Generator().manual_seed(0)
BATCH, TICKS, M, N = 2, 7, 3, 5


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=DRAW).requires_grad_()


@pytest.mark.parametrize("before_write", [False, True])
@pytest.mark.parametrize("ticks", [TICKS, 1])
@pytest.mark.parametrize(
    "keep, momentum",
    [(k, m) for k in ("none", "number", "tick", "channel") for m in (False, True)][:-1],
)
def test_a_dual_is_read_by_its_link(
    keep: str, momentum: bool, ticks: int, before_write: bool
) -> None:
    """Token by token, with all its gradients."""
    w, x, e, q = (drawn(BATCH, *s) for s in ((M, N), (ticks, N), (ticks, M), (ticks, N)))
    rate, alpha, mu = (drawn(BATCH, ticks) for _ in range(3))
    s0 = drawn(BATCH, M, N) if momentum else None
    keeps: dict[str, Tensor | float] = {
        "none": 1.0,
        "number": 0.9,
        "tick": alpha,
        "channel": drawn(BATCH, ticks, N),
    }
    kept = keeps[keep]
    run = span(w, x, e, rate, kept, mu if momentum else None, s0)
    found = Linked(run, lambda a: a.softmax(-1)).read(q, before_write)

    state, surprise, wanted = w, torch.zeros_like(w) if s0 is None else s0, []
    for t in range(ticks):
        if before_write:
            wanted.append((state.softmax(-1) @ q[:, t, :, None]).squeeze(-1))
        amount = -rate[:, t, None, None] * e[:, t, :, None] * x[:, t, None, :]
        surprise = amount + (mu[:, t, None, None] * surprise if momentum else 0)
        left = kept if isinstance(kept, float) else kept[:, t].view(BATCH, 1, -1)
        state = left * state + surprise
        if not before_write:
            wanted.append((state.softmax(-1) @ q[:, t, :, None]).squeeze(-1))
    truth = torch.stack(wanted, 1)
    assert float((found - truth).detach().abs().max()) < 1e-13
    leaves = [t for t in (w, x, e, q, rate, alpha, mu, s0, kept) if isinstance(t, Tensor)]
    for a, b in zip(*(gradients(y, leaves) for y in (found, truth)), strict=True):
        assert float((a - b).abs().max()) < 1e-12


def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weigh = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return torch.autograd.grad(
        (y * weigh).sum(), leaves, allow_unused=True, materialize_grads=True, retain_graph=True
    )


LINKS = {
    "abs(A)^4": (r"A\.square\(\)\.square\(\)", "abs"),
    "abs(A)^2": (r"A\.square\(\)", "abs"),
    "A / (1 + sum(A^2))": (r"A \* .*reciprocal\(\)", " / "),
    "abs(A)^3 * sign(A)": (r"abs", "square"),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_of_cheap_operations_is_the_same(link: str, tmp_path: Path) -> None:
    """Even powers have no sign and are squares of squares; a matrix is divided by a number once."""
    path = tmp_path / "own.nl"
    path.write_text(f"""nl 1
use "optim/gradient"
use "optim/adamw"
def own(A) {{ return {link} }}
memory m(k[n], v[n], eta) {{
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - v)^2)
  retain 0.9 through own
  learn gradient(rate = eta)
  linearise every 3 tokens
  read M(k)
}}
system one() {{
  level training every step {{ objective loss; learn adamw(rate = 0.01) }}
  level mixer(x[4]) every token {{ read m(x, tanh(linear(x, 4)), sigmoid(sum(x)) / 9) }}
  transfer backprop mixer -> training
  transfer init training -> mixer
  flow(tokens) {{
    x = embed(tokens, 7, 4)
    y = x + mixer(x)
    logits = unembed(y, 7)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
""")
    spec = nlc.load(path)
    has, lacks = LINKS[link]
    made = build(spec).split("def link_M")[1].split("def ")[0].split('"""')[2]
    assert re.search(has, made) and lacks not in made, made
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 7, (2, 8), generator=torch.Generator().manual_seed(1))
    truth = nlc.reference(spec, model.state_dict())
    wanted = truth(tokens)[0]
    assert float((model(tokens)[0] - wanted).detach().abs().max()) < 1e-11
    loss, counted, _ = model.losses(tokens)
    loss[counted].mean().backward()  # type: ignore[no-untyped-call]
    weights = dict(model.named_weights())
    for name, gradient in truth.gradients(tokens).items():
        found = weights[name].grad
        assert found is not None and float((found - gradient).abs().max()) < 1e-10, name
