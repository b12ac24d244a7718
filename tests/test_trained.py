"""Random systems with levels on steps and tasks, trained: what stands after steps and tasks.

For many more, drawn anew:

    NLC_RANDOM=2000 NLC_SEED=7 pytest tests/test_trained.py
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, note
from test_random import Case, compiled, distance, drawn
from test_tasks import one_step, standing
from torch import Tensor

import nlc
from nlc.backends.reference import Reference
from nlc.driver import Spec, SpecError
from nlc.testing import systems, text_of
from nlc.verify.rounding import nearby

EXAMPLES = max(1, int(os.environ.get("NLC_RANDOM", "500")) // 50)
STEPS, TASKS = 4, (1, 2)  # a task ends after these
LEAST = 1e-2  # what is smaller is measured by it
Weights = dict[str, Tensor]


def inputs(spec: Spec, step: int) -> list[Tensor]:
    return list(Case("", 6 + step % 2, []).streams(spec))


def of_reference(truth: Reference, spec: Spec) -> list[Weights]:
    found = []
    for step in range(STEPS):
        truth.step(inputs(spec, step))
        if step in TASKS:
            truth.end_task()
        found.append({n: x.detach().clone() for n, x in standing(truth).items()})
    return found


def trained(text: str) -> bool:
    """Whether it compiles; if it does, all is as in the reference after each step."""
    spec = nlc.load(text)
    model = compiled(spec)
    if model is None:
        return False
    start = model.state_dict()
    try:
        optimizers = model.optimizers()
    except SpecError as error:
        assert all(d.code == "NL701" for d in error.diagnostics)
        return False
    truth = of_reference(nlc.reference(spec, start, traced=()), spec)
    near: list[Weights] = []
    start = {n: x.clone() for n, x in start.items()}
    for step, wanted in enumerate(truth):
        one_step(model, optimizers, inputs(spec, step))
        for optimizer in optimizers if step in TASKS else ():
            optimizer.end_task()
        for name, p in model.named_weights():
            off = distance(p, wanted[name], LEAST)
            if off > 1e-9:
                near = near or of_reference(nearby(spec.system, start), spec)
                assert off <= distance(near[step][name], wanted[name], LEAST), f"{name}, {step}"
    return True


def test_what_is_trained_is_trained_as_the_reference_is() -> None:
    seen = []

    @given(systems(themes=("trained",), largest=2).map(text_of))
    def equal(text: str) -> None:
        note(text)
        seen.append(trained(text))

    torch.set_num_threads(1)
    drawn(0, EXAMPLES)(equal)
    assert 2 * sum(seen) > len(seen), f"{sum(seen)} of {len(seen)} are lowered"


# ---- what is not compiled on steps -----------------------------------------------------------

ONE = """nl 1
system one() {{
  level training {clock} {{ objective loss{once}; learn gradient(rate = 0.1) }}
  level a(x) {clock} {{
    state F : matrix(3, 3) = normal(0.3)
    {retain}
    objective loss{once}
    learn gradient(rate = 0.1)
    read F(x)
  }}
  flow(x[3], y[3]) {{ z = linear(x, 3); z += a(z); loss = sum((z - y)^2); return z }}
}}"""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"once": " once", "clock": "every 2 steps"}, "`once` in `training` every 2 steps"),
        ({"retain": "retain 0.9 through tanh"}, "`retain` of `F` every step, with a link,"),
        ({"retain": "retain 0.9 onto tanh"}, "`retain` of `F` every step, with a link,"),
    ],
)
def test_what_a_step_would_leave_out_is_refused(given: dict[str, str], told: str) -> None:
    plain = {"clock": "every step", "once": "", "retain": ""}
    assert trained(ONE.format(**plain)) and trained(ONE.format(**plain | {"once": " once"}))
    with pytest.raises(SpecError, match=f"NL701.*{told}"):
        nlc.compile(nlc.load(ONE.format(**plain | given))).optimizers()


def test_once_on_steps_is_the_last_of_them() -> None:
    spec = nlc.load(ONE.format(clock="every 2 steps", once=" once", retain=""))
    truth = nlc.reference(spec)
    wanted = {n: x.clone() for n, x in truth.values.items()}
    for step in range(4):
        grads = truth.gradients(inputs(spec, step))
        truth.step(inputs(spec, step))
        if step % 2:
            wanted = {n: x - 0.1 * grads[n] for n, x in wanted.items()}
        assert max(distance(truth.values[n], wanted[n]) for n in wanted) < 1e-12
