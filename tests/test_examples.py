"""Optimizers that ask for their examples, in levels on steps: the reference's, to rounding."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from shipped import SMALL, SPECS, distance, own_settings, tokens
from torch import Tensor

import nlc
from nlc.backends.runtime import Model, Optimizer
from nlc.driver import Spec

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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clock", ["every 3 steps", "every 2 steps from 1"])
def test_several_steps_learn_as_the_reference(rule: str, clock: str) -> None:
    """The examples of all steps since the last firing; what waits is saved and goes on elsewhere,
    and a step that is refused changes nothing of it.
    """
    spec = net(rule, clock)
    model = nlc.compile(spec, dtype=torch.float64)
    (optimizer,) = model.optimizers()
    truth = nlc.reference(spec, model.state_dict(), traced=())
    for step in range(5):
        if step == 2:
            saved = optimizer.state_dict()
            other = nlc.compile(spec, dtype=torch.float64)
            other.load_state_dict(model.state_dict())
            model, (optimizer,) = other, other.optimizers()
            optimizer.load_state_dict(saved)
        if step == 4:
            nan = tuple(x * torch.nan for x in data(step))
            with pytest.raises(ValueError, match="not finite"):
                stepped(model, optimizer, *nan)
            optimizer.zero_grad()
        stepped(model, optimizer, *data(step))
        truth.step(list(data(step)))
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, (name, step)


@pytest.mark.parametrize("rule", RULES)
def test_tasks_learn_as_the_reference(rule: str) -> None:
    spec = net(rule, "every task")
    model = nlc.compile(spec, dtype=torch.float64)
    (optimizer,) = model.optimizers()
    truth = nlc.reference(spec, model.state_dict(), traced=())
    for step in range(4):
        stepped(model, optimizer, *data(step))
        truth.step(list(data(step)))
        if step % 2:
            optimizer.end_task()
            truth.end_task()
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, (name, step)


STATES = {
    "states": """nl 1
system one() {{
  level slow(x[n]) every {clock} {{
    state M : {form} = normal(0.5)
    read M(x)
    objective loss
    learn {rule}
  }}
  flow(x[3], y[3]) {{
    p = slow(x)
    loss = sum((p - y)^2) / 2
    return p
  }}
}}
""",
    "starts": """nl 1
use "optim/gradient"
system one() {{
  level outer every {clock} {{ objective loss; learn {rule} for matrices; learn adamw() }}
  level mem(x[n]) every token {{
    k = split(linear(x, 4), 2)
    v = split(linear(x, 4), 2)
    state M : {form} per 2 = normal(0.5) {{
      objective sum((M(k) - v)^2) / 2
      learn gradient(rate = 0.1)
    }}
    linearise every 2 tokens
    read linear(join(M(k)), 3)
  }}
  transfer backprop mem -> outer
  transfer init outer -> mem
  flow(x[3], y[3]) {{
    p = mem(x)
    loss = sum((p - y)^2) / 2
    return p
  }}
}}
""",
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("what", "form", "clock"),
    [
        ("states", "matrix(n, n)", "step"), ("states", "mlp(n, 4)", "2 steps"),
        ("starts", "matrix(2, 2)", "step"), ("starts", "matrix(2, 2)", "2 steps"),
    ],
)  # fmt: skip
def test_states_and_starts_learn_as_the_reference(
    rule: str, what: str, form: str, clock: str
) -> None:
    spec = nlc.load(STATES[what].format(clock=clock, rule=rule, form=form))
    model = nlc.compile(spec, dtype=torch.float64)
    optimizers = model.optimizers()
    truth = nlc.reference(spec, model.state_dict(), traced=())
    for step in range(4):
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, 2, 4, 3, generator=draw, dtype=torch.float64)
        losses, labelled, _ = model.losses(x, y)
        losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        truth.step([x, y])
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, (name, step)


@pytest.mark.parametrize("clock", ["every step", "every 2 steps"])
def test_a_step_without_a_number_changes_nothing(clock: str) -> None:
    """The rate divides by what is 0 at the second firing: no array, no count and no sum changes."""
    system = NET.format(clock=clock, rule="momentum(rate = 1 / (2 - count))")
    model = nlc.compile(nlc.load(system), dtype=torch.float64)
    (optimizer,) = model.optimizers()
    for step in range(1 + 2 * (clock != "every step")):
        stepped(model, optimizer, *data(step))
    before = deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(ValueError, match=r"no number at firing 2 .* nothing was changed"):
        stepped(model, optimizer, *data(9))
    after = model.state_dict(), optimizer.state_dict()
    assert same(before, after)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and all(same(a[k], b[k]) for k in a.keys() | b.keys())
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and all(map(same, a, b))
    return a == b


WEIGHED = """nl 1
optimizer weighed(weight, grad, input, surprise, rate = 0.1) {{
  size = sum(surprise^2, 1)
  loud = {loud}
  write -rate * (grad + outer(loud @ surprise, loud @ input))
}}
use "optim/gradient"
system one(width = 4) {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level kept(x[n]) every 3 tokens {{
    state M : matrix(n, n)
    k = linear(x, n)
    v = linear(x, n)
    objective sum((M(k) - v)^2)
    learn weighed(rate = 0.1)
    read M(k) + v
  }}
  transfer backprop kept -> training
  flow(x[width]) {{
    y = kept(x)
    loss = sum(y^2)
    return y
  }}
}}
"""


@pytest.mark.parametrize("loud", ["softmax(size)", "size / mean(size)", "top(size, 2)"])
def test_examples_are_weighed_by_all_of_them(loud: str) -> None:
    """None of them is missing, as ticks of a window may be."""
    spec = nlc.load(WEIGHED.format(loud=loud))
    model = nlc.compile(spec, dtype=torch.float64)
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).double()
    truth, _ = nlc.reference(spec, model.state_dict())(x)
    assert distance(model(x)[0], truth) < 1e-9
