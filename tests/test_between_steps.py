"""A stream that goes on over steps of training: each tick is one of the weights that it ran with.

The reference says what that means: a step makes new weights, and what has run stays as it was, with
all that it still owes to the levels on tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import EVERY, compiled, distance, small, tokens
from test_joint import CASES
from torch import Tensor

import nlc
from nlc.backends.reference import Reference, training
from nlc.backends.runtime import Model, State
from nlc.driver import Spec
from nlc.verify.streams import farthest, random_streams, ticks

LEARNING = [n for n in EVERY if compiled(n).LEARNERS]


def step(model: Model, reference: Reference, gradients: dict[str, Tensor]) -> None:
    """In place, as torch's optimizers do; and of every weight, with a gradient or without."""
    with torch.no_grad():
        for name, p in model.named_weights():
            if p.requires_grad:
                p.mul_(0.99).sub_(gradients[name], alpha=0.02)
                reference.values[name] = p.double().clone()


def goes_on(spec: Spec, model: Model, lengths: list[int], batch: int = 2) -> None:
    """The loop of truncated backpropagation: answers and gradients of every call."""
    reference = nlc.reference(spec, model.state_dict(), traced=())
    streams = random_streams(spec.system, batch, sum(lengths))
    state: State | None = None
    before: Any = None
    first = 0
    for length in lengths:
        x = ticks(streams, first, first + length)
        passing, outputs, before = reference.run(x, before, True)
        model.zero_grad()
        answers, _ = model(*x, state=state)
        losses, labelled, state = model.losses(*x, state=state)
        if losses.requires_grad and bool(labelled.any()):
            losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
        found = {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in model.named_weights()
            if p.requires_grad
        }
        assert distance(answers.detach(), outputs) <= 1e-9, first
        if bool(labelled.any()):
            off, where = farthest(found, training.gradients(reference, passing))
            assert off <= 1e-8, (first, where)
        step(model, reference, found)
        state, first = state.detach(), first + length


@pytest.mark.parametrize("name", EVERY)
def test_every_system_goes_on(name: str) -> None:
    goes_on(small(name), compiled(name), [1, 1, 3, 2])


@pytest.mark.parametrize("name", [n for n in LEARNING if n != "hope_ablations"])  # as hope
@pytest.mark.parametrize("length", [1, 3, 7])
def test_what_waits_is_owed_for_the_weights_it_ran_with(name: str, length: int) -> None:
    """Periods are of 2, 4 and 8 ticks, here all of them begin and end within calls and between."""
    goes_on(small(name), compiled(name), [length] * max(3, 10 // length), batch=1)


@pytest.mark.parametrize("name", ["cms_independent", "cms_sequential", "hope"])
def test_long_calls_that_no_period_divides(name: str) -> None:
    spec = small(name, depth=1, periods=[24, 48])
    goes_on(spec, nlc.compile(spec, dtype=torch.float64), [64, 64], batch=1)


@pytest.mark.parametrize("case", ["a start that the slower learns", "by momentum, fading"])
def test_in_one_graph_with_training(case: str) -> None:
    spec = CASES[case]
    goes_on(spec, nlc.compile(spec, dtype=torch.float64), [1, 3, 2, 5, 4])


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("training", [False, True])
def test_without_gradients_no_weights_are_kept(name: str, training: bool, tmp_path: Path) -> None:
    """So what waits is made again with those there are, as in a state that was saved."""
    model, x = compiled(name), tokens(2, 16)
    with torch.no_grad():
        _, state = model(x[:, :5])
        _, state = model(x[:, 5:7], state)
        state.save(tmp_path / "memory")
        for _, p in model.named_weights():
            p.mul_(1.1)
        saved = nlc.load_state(tmp_path / "memory", model)
    with torch.set_grad_enabled(training):
        for _ in range(2):  # a state can be gone on from twice
            wanted, _ = model(x[:, 7:], saved)
            assert distance(model(x[:, 7:], state)[0], wanted) <= 1e-12


def test_a_state_is_no_view_of_a_weight() -> None:
    """Before its first firing a memory is what the weights were, not what they are."""
    model, x = compiled("ttt_linear"), tokens(2, 5)
    with torch.no_grad():
        _, state = model(x[:, :1])
        held = {k: v.clone() for k, v in state.arrays.items()}
        for _, p in model.named_weights():
            p.mul_(2)
        assert all(torch.equal(v, held[k]) for k, v in state.arrays.items())
