"""What holds for every shipped system: exactness, causality, gradients, clocks.

A system that is added to specs/ is tested by being there. The properties are those of `nlc verify`.
"""

from __future__ import annotations

from functools import cache

import pytest
from shipped import SYSTEMS, compiled, own_settings, small, tokens, truth_of

import nlc
from nlc.verify import properties as P
from nlc.verify.properties import Measured
from nlc.verify.streams import Truth, run_of
from nlc.verify.streams import truth_of as told

every_system = pytest.mark.parametrize("name", SYSTEMS)


def assert_holds(*measured: Measured) -> None:
    for one in measured:
        assert one.holds, one


# ---- exactness ----------------------------------------------------------------------------------


@cache
def truth(name: str, time: int) -> Truth:
    return told(truth_of(name, compiled(name)), (tokens(2, time),))


@every_system
@pytest.mark.parametrize("time", [13, 2, 1])
def test_compiled_is_the_reference(name: str, time: int) -> None:
    model, x, wanted = compiled(name), (tokens(2, time),), truth(name, time)
    assert_holds(P.same_outputs(model, x, wanted), P.same_losses(model, x, wanted))
    if time > 1:
        assert_holds(P.same_gradients(model, x, wanted))


@every_system
def test_compiled_is_the_reference_when_a_state_is_handed_over(name: str) -> None:
    """Calls of 5 and 8 ticks: the first ends within every chunk and every period."""
    model = compiled(name)
    reference, x = truth_of(name, model), (tokens(2, 13, seed=1),)
    assert_holds(P.handed_over(model, reference, x, 5))
    assert_holds(P.gradients_handed_over(model, reference, x, 5))


@every_system
def test_any_split_is_the_same(name: str) -> None:
    run, x, system = run_of(compiled(name)), (tokens(2, 17),), small(name).system
    assert_holds(P.streamed(run, system, x), P.random_splits(run, system, x, name))


@every_system
def test_gradients_pass_from_call_to_call(name: str) -> None:
    assert_holds(P.gradients_across_calls(compiled(name), small(name).system, (tokens(2, 13),)))


# ---- no sample changes another, no tick an earlier one ------------------------------------------


@every_system
def test_no_sample_changes_another(name: str) -> None:
    run = run_of(compiled(name))
    assert_holds(P.other_samples(run, small(name).system, (tokens(3, 13),)))


@every_system
@pytest.mark.parametrize("training", [False, True])
def test_no_tick_changes_an_earlier_one(name: str, training: bool) -> None:
    run = run_of(compiled(name))
    assert_holds(P.later_tokens(run, small(name).system, (tokens(2, 13),), training))


@every_system
def test_no_answer_has_a_gradient_to_a_later_token(name: str) -> None:
    assert_holds(P.jacobian(compiled(name), small(name).system, 13))


# ---- what learns --------------------------------------------------------------------------------


@every_system
def test_every_trained_array_gets_a_gradient(name: str) -> None:
    assert_holds(P.without_gradient(compiled(name), (tokens(2, 24),), small(name).system))


@every_system
def test_answers_and_memories_keep_their_size(name: str) -> None:
    """4,096 random tokens at the default initialisation."""
    sizes = {"width": 64, "depth": 1, "vocab": 256}
    spec = nlc.load(name, **{k: v for k, v in sizes.items() if k in own_settings(name)})
    run = P.long_run(nlc.compile(spec), spec.system, 4096)
    assert_holds(P.answers_keep_their_size(run), P.memories_keep_their_size(run))


# ---- clocks -------------------------------------------------------------------------------------


@every_system
def test_arrays_change_exactly_at_their_ticks(name: str) -> None:
    """At every one of them."""
    found = P.off_the_clock(compiled(name), small(name).system, (tokens(2, 18),))
    assert_holds(found)
    assert found.contrast >= 1
