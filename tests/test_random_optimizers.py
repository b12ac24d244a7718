"""Random optimizers: what is compiled for a level, and `nlc.optimizer`, step as the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from shipped import distance
from torch import Tensor

import nlc
from nlc.format import format_file
from nlc.testing.optimizers import optimizers
from nlc.text import Source

EXAMPLES, STEPS = 25, 5
NET = """
system one() {{
  level training every {clock} {{ objective loss; learn random() }}
  flow(x[4], y[3]) {{
    p = linear(tanh(norm(linear(x, 5))), 3)
    loss = sum((p - y)^2)
    return p
  }}
}}
"""


def data(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    both = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64)
    return both[..., :4], both[..., 4:]


def agrees(text: str, clock: str) -> None:
    """Every weight after every step: reference, compiled level, and the optimizer by itself."""
    spec = nlc.load(text + NET.format(clock=clock))
    model = nlc.compile(spec, dtype=torch.float64)
    other = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    (inside,) = model.optimizers()
    alone = nlc.optimizer(text)(other.named_weights())
    for step in range(STEPS):
        x, y = data(step)
        for m, optimizer in ((model, inside), (other, alone)):
            losses, labelled, _ = m.losses(x, y)
            losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
            if optimizer is inside or clock == "step" or step % 2:
                optimizer.step()
                optimizer.zero_grad()
        truth.step([x, y])
        others = dict(other.named_weights())
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, f"{name}, step {step}"
            assert distance(others[name], truth.values[name]) <= 1e-9, f"{name}, step {step}, alone"


@pytest.mark.parametrize("clock", ["step", "2 steps"])
@pytest.mark.parametrize("shard", range(2))
def test_a_random_optimizer_is_the_reference(clock: str, shard: int) -> None:
    """At `every 2 steps` the gradients of two steps are one: outside, two calls of backward."""

    @given(optimizers())
    def equal(text: str) -> None:
        note(text)
        agrees(text, clock)

    torch.set_num_threads(1)
    quiet = settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seed(shard)(quiet(equal))()


@settings(max_examples=30, deadline=None, database=None)
@given(optimizers())
def test_the_text_is_a_file(text: str) -> None:
    formatted = format_file(Source("random.nl", text))
    assert format_file(Source("random.nl", formatted)) == formatted
    assert nlc.optimizer(formatted) is not None


@pytest.mark.parametrize("name", ["count", "pending", "grads", "steps_", "weight_"])
def test_a_memory_may_have_any_name(name: str) -> None:
    """What the optimizer itself keeps has names that no spec can give."""
    text = (
        "nl 1\noptimizer random(weight, grad, rate = 0.1) {\n"
        f"  state {name} : like(weight) {{ retain 0.9; objective -sum({name} * grad); "
        f"learn gradient(rate = 1) }}\n  write -rate * {name}\n}}\n"
    )
    agrees(text, "2 steps")
    agrees(text, "step")


@pytest.mark.parametrize(
    ("amount", "word"),
    [
        ("grad / sqrt(across(sum(grad^2)))", "across"),
        ("position * grad", "position"),
        ("dropout(grad, 0.5)", "dropout"),
        ("next(grad)", "next"),
        ("linear(grad, dim(grad))", "a weight that is made"),
    ],
)
def test_a_word_without_code_is_told(amount: str, word: str) -> None:
    text = f"nl 1\noptimizer o(weight, grad, rate = 1) {{\n  write -rate * {amount}\n}}\n"
    with pytest.raises(nlc.SpecError, match=r"NL701.*" + word):
        nlc.optimizer(text)([torch.nn.Parameter(torch.zeros(4, 4))])
