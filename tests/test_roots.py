"""The derivative of `sqrt`, and of a power below 1, at 0 is 0: where a gradient or an error is
exactly 0, what passes through it is a number, and the same compiled as in the reference (2.12).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from shipped import distance
from torch import Tensor

import nlc
from nlc.backends.ops import parts
from nlc.backends.reference import arrays
from nlc.verify.streams import Streams, gradients, truth_of

MEMORY = """nl 1
memory m(q[n], k[n], v[n]) {
  state M : FORM
  objective OBJECTIVE
  learn RULE
  LINEARISE
  read M(q)
}
system s(n = 4) {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level l(k, v) every token { read m(linear(k, n), linear(k, n), linear(v, n)) }
  transfer backprop l -> training
  transfer init training -> l
  flow(x[n], v[n]) {
    y = l(x, v)
    loss = sum((y - x)^2)
    return y
  }
}
"""
LEVEL = """nl 1
system s() {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level l(x) every 2 tokens {
    state F : mlp(4, 4)
    objective loss
    learn adam(rate = 0.01, eps = 0.1)
    read F(x)
  }
  transfer backprop l -> training
  transfer init training -> l
  flow(tokens) {
    x = embed(tokens, 5, 4)
    x += l(norm(x))
    logits = unembed(norm(x), 5)
    loss = where(position >= 2, cross_entropy(logits, next(tokens)), 0)
    return logits
  }
}
"""


def memory(form: str, objective: str, rule: str, frozen: bool = False) -> str:
    text = MEMORY.replace("FORM", form).replace("OBJECTIVE", objective).replace("RULE", rule)
    return text.replace("LINEARISE", "linearise every 4 tokens" if frozen else "")


def agree(text: str, streams: Streams) -> None:
    spec = nlc.load(text)
    assert not spec.checked.diagnostics
    model = nlc.compile(spec, dtype=torch.float64)
    found = gradients(model, streams)
    wanted = truth_of(nlc.reference(spec, model.state_dict(), traced=()), streams).gradients
    for name, g in found.items():
        assert bool(g.isfinite().all()) and bool(g.any()), name
        assert distance(g, wanted[name]) <= 1e-9, name


def vectors(*quiet: int) -> Streams:
    """x and v, and v is 0 at these ticks."""
    draw = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 2, 8, 4, dtype=torch.float64, generator=draw)
    v[:, list(quiet)] = 0
    return x, v


@pytest.mark.parametrize("frozen", [True, False])
def test_a_memory_by_adam_whose_units_are_off(frozen: bool) -> None:
    """A unit of relu that no token reaches has a gradient of 0, and so has its mean of squares."""
    form = "mlp(n, n, act = relu)"
    agree(memory(form, "length(M(k) - v)^2", "adam(rate = 0.01)", frozen), vectors())


def test_a_level_on_tokens_by_adam_under_a_loss_that_is_off() -> None:
    tokens = torch.randint(0, 5, (2, 9), generator=torch.Generator().manual_seed(1))
    agree(LEVEL, (tokens,))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("objective", [
    "sqrt(sum((M(k) - v)^2))", "sum(sqrt((M(k) - v)^2 + (M(k) - v)^4))",
    "sum(sqrt(abs(M(k) - v)^3))", "length(M(k) - v)", "sum((M(k) - v)^2) + frobenius(M)",
    "length(M(k) - v)^0.5", "sum(abs(M(k) - v)^1.5)", "sum(((M(k) - v)^2)^0.75)",
    "sum(abs(M(k) - v)^sigmoid(v))",
])  # fmt: skip
def test_an_objective_where_there_is_no_error(objective: str, frozen: bool) -> None:
    """M starts as 0, and so does v: the first errors are 0."""
    rule = "gradient(rate = 0.1)"
    agree(memory("matrix(n, n)", objective, rule, frozen), vectors(0, 1))


@pytest.mark.parametrize("root", [parts.sqrt, arrays.root])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_root_and_its_derivatives(root: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 4.0, -0.0, 0.25], dtype=dtype, requires_grad=True)
    made = root(x)
    assert made.dtype == dtype and made.tolist() == [0, 2, 0, 0.5]
    (slope,) = torch.autograd.grad(made.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert slope.tolist() == [0, 0.25, 0, 1] and bend.tolist() == [0, -1 / 32, 0, -2]
    assert bool(root(-torch.ones(1, dtype=dtype)).isnan().all())


def test_the_slope_is_a_derivative() -> None:
    x = torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64)
    slope = torch.func.grad(parts.sqrt)
    assert torch.equal(torch.func.vmap(slope)(x), parts.sqrt_slope(x))
    bends = [torch.func.vmap(torch.func.grad(f))(x) for f in (slope, parts.sqrt_slope)]
    assert float((bends[0] - bends[1]).abs().max()) <= 1e-15


RULE = """nl 1
optimizer scaled(weight, grad, rate = 0.1) {
  state h : like(weight) { objective -sum(h * grad^2); retain 0.9; learn gradient(rate = 0.1) }
  write -rate * grad / (h^0.5 + 0.1)
}
system rooted(n = 4) {
  level training every step { objective loss; learn adam(rate = 1e-3) }
  level a(x) every token {
    state M : matrix(n, n)
    objective sum((M(x) - x)^2)
    learn scaled()
    read M(x)
  }
  transfer backprop a -> training
  flow(x[n], y[n]) {
    z = a(x * linear(y, n))
    loss = sum((z - y)^2)
    return z
  }
}
"""


def test_a_rule_with_a_power_below_one() -> None:
    """One entry of each key is 0, so one column of the inner gradient is."""
    x, y = vectors()
    agree(RULE, (x * torch.tensor([0.0, 1, 1, 1]), y))


@pytest.mark.parametrize("p", [0.25, 0.5, 1.5, 2.5])
def test_powers_and_their_derivatives(p: float) -> None:
    x = torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64, requires_grad=True)
    for made in (parts.power(x, p), arrays.power(x, torch.tensor(p).double())):
        (slope,) = torch.autograd.grad(made.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        for found, wanted in (
            (made, x**p),
            (slope, p * x ** (p - 1)),
            (bend, p * (p - 1) * x ** (p - 2)),
        ):
            assert not found[0] and torch.allclose(found[1:], wanted[1:], rtol=1e-14)


@pytest.mark.parametrize("name", ["moneta", "moneta_ftrl"])
def test_a_memory_through_a_dual_that_is_emptied(name: str) -> None:
    """Where all is forgotten and nothing written the sums are 0: the root of the link's length."""
    draw = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 1, 12, 2, 4, dtype=torch.float64, generator=draw) / 2
    gates = torch.rand(2, 1, 12, 2, dtype=torch.float64, generator=draw) / 10
    gates[:, :, 5] = 0
    given = [x.requires_grad_() for x in (q, k, v, *(1 - gates[:1]).unbind(), *gates[1:].unbind())]
    given[3] = (1 - gates[0]).index_fill(1, torch.tensor(5), 0.0).requires_grad_()
    y, _ = nlc.memory(name)(*given, chunk=4)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(y.sum(), given))
