"""What holds for every shipped system: exactness, causality, gradients, clocks.

A system that is added to specs/ is tested by being there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from shipped import SYSTEMS, compiled, distance, own_settings, small, small_class, tokens, truth_of
from torch import Tensor

import nlc
from nlc.backends.parameters import paths
from nlc.backends.runtime import Model, State
from nlc.backends.torch_source.bodies import state_path

EXACT = 1e-9
Grads = dict[str, Tensor]

every_system = pytest.mark.parametrize("name", SYSTEMS)


def run_in(model: Model, x: Tensor, cuts: Sequence[int], state: State | None = None) -> Tensor:
    """The outputs of one stream, in calls that end at `cuts`."""
    made = []
    for a, b in pairwise([0, *cuts, x.shape[1]]):
        y, state = model(x[:, a:b], state)
        made.append(y)
    return torch.cat(made, 1)


def gradients(model: Model, x: Tensor, state: State | None = None) -> Grads:
    model.zero_grad()
    losses, labelled, _ = model.losses(x, state=state)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_weights()
        if p.requires_grad
    }


def assert_close(a: Grads, b: Grads) -> None:
    assert set(a) == set(b)
    # A gradient that is rounding next to the largest one has no digits of its own.
    floor = 1e-6 * max(float(g.abs().max()) for g in b.values())
    for n, g in a.items():
        wrong = float((g - b[n]).abs().max())
        assert wrong <= EXACT * max(float(b[n].abs().max()), floor), n


# ---- exactness ----------------------------------------------------------------------------------


@every_system
@pytest.mark.parametrize("time", [13, 2, 1])
def test_compiled_is_the_reference(name: str, time: int) -> None:
    model = compiled(name)
    truth = truth_of(name, model)
    x = tokens(2, time)
    wanted, _ = truth(x)
    assert distance(model(x)[0], wanted) <= EXACT
    with torch.no_grad():
        assert distance(model(x)[0], wanted) <= EXACT
        losses, labelled, _ = model.losses(x)
    wanted, known = truth.losses(x)
    assert torch.equal(labelled, known)
    assert distance(losses, wanted) <= EXACT
    if time > 1:
        assert_close(gradients(model, x), truth.gradients(x))


@every_system
def test_compiled_is_the_reference_when_a_state_is_handed_over(name: str) -> None:
    """Calls of 5 and 8 ticks: the first ends within every chunk and every period."""
    model = compiled(name)
    truth = truth_of(name, model)
    x = tokens(2, 13, seed=1)
    wanted, before = truth(x[:, :5])
    y, state = model(x[:, :5])
    assert distance(y, wanted) <= EXACT
    state = state.detach()
    assert distance(model(x[:, 5:], state)[0], truth(x[:, 5:], before)[0]) <= EXACT
    wanted_grads = {
        n: g for n, g in truth.gradients(x[:, 5:], before).items() if float(g.abs().max()) > 0
    }
    grads = gradients(model, x[:, 5:], state)
    assert all(float(g.abs().max()) == 0 for n, g in grads.items() if n not in wanted_grads)
    assert_close({n: grads[n] for n in wanted_grads}, wanted_grads)


@every_system
def test_any_split_is_the_same(name: str) -> None:
    model = compiled(name)
    x = tokens(2, 17)
    rng = random.Random(name)
    splits = [sorted(rng.sample(range(1, 17), rng.randint(1, 6))) for _ in range(3)]
    with torch.no_grad():
        whole, _ = model(x)
        for cuts in [list(range(1, 17)), *splits]:
            assert distance(run_in(model, x, cuts), whole) <= EXACT, cuts


@every_system
def test_gradients_pass_from_call_to_call(name: str) -> None:
    """A state that is not detached carries the gradient to the calls before."""
    model = compiled(name)
    x = tokens(2, 13)
    weight = torch.linspace(-1, 1, 2 * 13 * 11, dtype=torch.float64).view(2, 13, 11)
    names = [n for n, p in model.named_weights() if p.requires_grad]
    leaves = [p for _, p in model.named_weights() if p.requires_grad]
    whole, parts = (
        torch.autograd.grad((weight * run_in(model, x, cuts)).sum(), leaves)
        for cuts in ([], [1, 5, 11])
    )
    assert_close(dict(zip(names, parts, strict=True)), dict(zip(names, whole, strict=True)))


# ---- no sample changes another, no tick an earlier one ------------------------------------------


@every_system
def test_no_sample_changes_another(name: str) -> None:
    model = compiled(name)
    x = tokens(3, 13)
    other = x.clone()
    other[1] = (other[1] + 1 + torch.arange(13)) % 11
    with torch.no_grad():
        one, two = model(x)[0], model(other)[0]
    assert torch.equal(one[0], two[0]) and torch.equal(one[2], two[2])
    assert not torch.equal(one[1], two[1])


@every_system
@pytest.mark.parametrize("training", [False, True])
def test_no_tick_changes_an_earlier_one(name: str, training: bool) -> None:
    model = compiled(name)
    x = tokens(2, 13)
    with torch.set_grad_enabled(training):
        whole = model(x)[0]
        for t in (1, 3, 4, 8, 12):
            changed = x.clone()
            changed[:, t:] = (changed[:, t:] + 1) % 11
            other = model(changed)[0]
            assert torch.equal(other[:, :t], whole[:, :t])
            assert not torch.equal(other[:, t], whole[:, t])


@every_system
def test_no_answer_has_a_gradient_to_a_later_token(name: str) -> None:
    """Every token is another one, so a row of the embedding is one tick of the stream."""
    model = nlc.compile(small(name, vocab=13), dtype=torch.float64)
    x = torch.randperm(13, generator=torch.Generator().manual_seed(0))[None]
    table = next(p for n, p in model.named_weights() if n.endswith("embed") and "un" not in n)
    y, _ = model(x)
    for t in range(13):
        (rows,) = torch.autograd.grad(y[:, t].square().sum(), table, retain_graph=True)
        reached = rows[x[0]].abs().amax(-1) > 0
        assert bool(reached[t])
        assert not bool(reached[t + 1 :].any())


# ---- what learns --------------------------------------------------------------------------------


@every_system
def test_every_trained_array_gets_a_gradient(name: str) -> None:
    """Of a start that is one for each head, every head."""
    model = compiled(name)
    grads = gradients(model, tokens(2, 24))
    assert set(grads) == {n for n, p in model.named_weights() if p.requires_grad}
    for n, g in grads.items():
        heads = g.flatten(0, -3) if g.ndim > 2 else g[None]
        assert bool(g.isfinite().all()), n
        assert bool((heads.flatten(1).abs().amax(1) > 0).all()), n


@every_system
def test_answers_keep_their_size(name: str) -> None:
    """4,096 random tokens at the default initialisation."""
    y, state, _ = long_run(name)
    assert bool(y.isfinite().all())
    assert all(bool(v.isfinite().all()) for v in state.arrays.values())
    assert 0.1 <= float(y[:, -512:].std() / y[:, :512].std()) <= 10


@every_system
def test_memories_keep_their_size(name: str) -> None:
    """Of every array that does not start at nothing."""
    _, state, start = long_run(name)
    for path, before in start.items():
        if before > 0:
            assert 0.1 <= float(state.arrays[path].norm()) / before <= 10, path


@cache
def long_run(name: str) -> tuple[Tensor, State, dict[str, float]]:
    """4,096 random tokens: the answers, the state after them, and the norms before."""
    sizes = {"width": 64, "depth": 1, "vocab": 256}
    spec = nlc.load(name, **{k: v for k, v in sizes.items() if k in own_settings(name)})
    model = nlc.compile(spec)
    with torch.no_grad():
        start = {k: float(v.norm()) for k, v in model.reset(1).arrays.items()}
        return *model(tokens(1, 4096, vocab=256)), start


# ---- clocks -------------------------------------------------------------------------------------


def clocked(name: str) -> dict[str, int]:
    """Each array that a level on tokens writes, and its period."""
    found = {}
    for box in small(name).system.boxes:
        if box.level is None or box.level.clock.unit != "token":
            continue
        for state in box.states:
            for array in state.form.arrays:
                for path in paths(state_path(box, state.name, array.name), box.loops):
                    found[path] = box.level.clock.period
    return found


@every_system
def test_arrays_change_exactly_at_their_ticks(name: str) -> None:
    """A firing that waits for its label is the first thing of the next call (2.7.3)."""
    model = compiled(name)
    periods = clocked(name)
    waits = {path for _, _, learning in small_class(name).LEARNERS for path in learning}
    weights = {n: p.clone() for n, p in model.named_weights()}
    state = model.reset(2)
    x = tokens(2, 18)
    with torch.no_grad():
        for t in range(1, 19):
            before = state
            _, state = model(x[:, t - 1 : t], state)
            for path, period in periods.items():
                fired = (t - 1 if path in waits else t) % period == 0 and (
                    path not in waits or t > 1
                )
                same = torch.equal(state.arrays[path], before.arrays[path])
                assert same != fired, (path, t)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_weights())
