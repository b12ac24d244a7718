"""Optimizers that ask for their examples, in levels on steps: the reference's, to rounding."""

from __future__ import annotations

import re

import pytest
import torch
from shipped import SMALL, SPECS, distance, own_settings, tokens
from torch import Tensor

import nlc
from nlc.backends.runtime import Model, Optimizer
from nlc.driver import Spec, SpecError

NET = """nl 1
system one() {{
  level training {clock} {{ objective loss; learn {rule} for matrices; learn adamw(rate = 0.01) }}
  flow(x[3], y[2]) {{
    p = linear(tanh(linear(norm(x), 4)), 2)
    loss = sum((p - y)^2) / 2
    return p
  }}
}}
"""
RULES = ("dgd(rate = 0.1)", "dgd_proximal(rate = 0.1)", "dgd_momentum(rate = 0.1)")


def net(rule: str, clock: str = "every step") -> Spec:
    return nlc.load(NET.format(rule=rule, clock=clock))


def data(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    both = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)
    return both[..., :3], both[..., 3:]


def stepped(model: Model, optimizer: Optimizer, *streams: Tensor, late: bool = False) -> None:
    """`late`: gradients are cleared after the forward pass, as many loops do."""
    losses, labelled, _ = model.losses(*streams)
    if late:
        optimizer.zero_grad()
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("rule", RULES)
def test_a_network_learns_as_the_reference(rule: str) -> None:
    spec = net(rule)
    model = nlc.compile(spec, dtype=torch.float64)
    (optimizer,) = model.optimizers()
    truth = nlc.reference(spec, model.state_dict(), traced=())
    for step in range(4):
        stepped(model, optimizer, *data(step), late=step % 2 == 1)
        truth.step(list(data(step)))
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, (name, step)


@pytest.mark.parametrize("name", ["transformer", "deltanet", "cms_sequential"])
def test_a_system_learns_as_the_reference(name: str) -> None:
    """The last token has no label: its products are no examples. Levels that learn the loss while
    the stream runs see products of their own, which are none either.
    """
    text = (SPECS / f"{name}.nl").read_text("utf-8")
    text = re.sub(r"learn\s+muon\([^\n]*\n", "", text)
    text = re.sub(r"learn\s+adamw\([^\n}]*\)", "learn dgd(rate = 0.1) for matrices; learn adamw()",
                  text, count=1)  # fmt: skip
    spec = nlc.load(text, **{k: v for k, v in SMALL.items() if k in own_settings(name)})
    model = nlc.compile(spec, dtype=torch.float64)
    (optimizer,) = model.optimizers()
    truth = nlc.reference(spec, model.state_dict(), traced=())
    for step in range(2):
        x = tokens(2, 7, step)
        stepped(model, optimizer, x)
        truth.step([x])
    for path, p in model.named_weights():
        assert distance(p, truth.values[path]) <= 1e-9, path


@pytest.mark.parametrize("whose", ["optimizer", "model"])
def test_examples_are_of_one_step(whose: str) -> None:
    """A forward pass without a step, and one without gradients, leave none behind."""
    spec = net(RULES[0])
    one, other = (nlc.compile(spec, dtype=torch.float64) for _ in range(2))
    (first,), (second,) = one.optimizers(), other.optimizers()
    losses, labelled, _ = other.losses(*data(5))
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    (second if whose == "optimizer" else other).zero_grad()
    with torch.no_grad():
        other.losses(*data(6))
    stepped(one, first, *data(0))
    stepped(other, second, *data(0))
    others = dict(other.named_weights())
    assert all(torch.equal(p, others[n]) for n, p in one.named_weights())
    assert not any(found.pairs for found in other.examples.products.values())


def test_sums_of_several_steps_are_not_lowered() -> None:
    with pytest.raises(SpecError) as raised:
        nlc.compile(net(RULES[0], "every 2 steps"))
    told = raised.value.diagnostics[0]
    assert told.code == "NL701" and "which asks for its examples, every 2 steps" in told.message
