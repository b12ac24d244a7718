"""What crosses each kind of transfer: an edge is taken out, or its kind changed, and exactly the
gradients change that the language promises (2.11), in the reference and compiled alike.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shipped import distance
from torch import Tensor

import nlc
from nlc.driver import Spec, SpecError
from nlc.testing.laws import changed, varied
from nlc.verify.streams import Grads, Streams, gradients, truth_of

MEMORY = """nl 1
system two() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level fast(x) every token {{
    state M : matrix(3, 3)
    v = linear(x, 3)
    b = sigmoid(linear(x, 1))
    objective sum((M(x) - v)^2) / 2
    learn gradient(rate = b)
    read M(x) before write
  }}
  {transfers}
  flow(x[3], y[3]) {{
    z = linear(x, 3)
    p = fast(z)
    loss = sum((p - y)^2)
    return p
  }}
}}
"""
BACKPROP = "transfer backprop fast -> training"
INTO, VALUE, RATE, START = "z.linear", "fast.v.linear", "fast.b.linear", "fast.M"
TIME = 5


def spec_of(*transfers: str) -> Spec:
    return nlc.load(MEMORY.format(transfers="\n  ".join(transfers)))


def streams(time: int = TIME) -> Streams:
    draw = torch.Generator().manual_seed(time)
    return tuple(torch.randn(2, time, 3, generator=draw, dtype=torch.float64) for _ in range(2))


def to_first_order(spec: Spec) -> Spec:
    """Every transfer that may be; `nlc check` tells beforehand what gets no gradient then."""
    kinds = ("backprop", "init")
    edges = (replace(t, first_order=t.kind in kinds) for t in spec.system.transfers)
    return varied(spec, tuple(edges))


def grads_of(spec: Spec, time: int = TIME) -> Grads:
    """Compiled, and the reference's to rounding."""
    model = nlc.compile(spec, dtype=torch.float64)
    found = gradients(model, streams(time))
    truth = nlc.reference(spec, model.state_dict(), traced=())
    wanted = truth_of(truth, streams(time)).gradients
    for name, g in found.items():
        if bool(wanted[name].any()):
            assert distance(g, wanted[name]) <= 1e-10, name
        else:
            assert not bool(g.any()), name
    return found


def closed(grads: Grads) -> set[str]:
    return {n for n, g in grads.items() if not bool(g.any())}


def test_backprop_taken_out() -> None:
    """What a body makes of slow weights is a constant then, and so is what it wrote: the gradient
    goes through the read alone.
    """
    wide = spec_of(BACKPROP)
    with_edge, without = grads_of(wide), grads_of(varied(wide, ()))
    assert closed(with_edge) == set()
    assert closed(without) == {VALUE, RATE}
    assert changed(without, with_edge) == {INTO, VALUE, RATE}


@pytest.mark.parametrize("ticks", [1, 2, 4])
def test_backprop_through_some_tokens(ticks: int) -> None:
    """All that goes through the state changes; none of it where no gradient would go further."""
    whole, cut = spec_of(BACKPROP), spec_of(f"{BACKPROP} through {ticks} tokens")
    assert changed(grads_of(cut), grads_of(whole)) == {INTO, VALUE, RATE}
    assert changed(grads_of(cut, ticks), grads_of(whole, ticks)) == set()


def test_backprop_through_more_tokens_than_there_are() -> None:
    whole, cut = spec_of(BACKPROP), spec_of(f"{BACKPROP} through 512 tokens")
    assert changed(grads_of(cut), grads_of(whole)) == set()


def test_backprop_to_first_order() -> None:
    """The gradient of the inner rule is a constant, so what its target is made of gets none; rates
    stay open (2.11.3).
    """
    whole = spec_of(BACKPROP)
    second, first = grads_of(whole), grads_of(to_first_order(whole))
    with pytest.raises(SpecError, match="NL401"):
        spec_of(f"{BACKPROP} first order")
    assert closed(first) == {VALUE}
    assert changed(first, second) == {INTO, VALUE, RATE}


INIT = "transfer init training -> fast"


def test_init_reaches_the_start_alone() -> None:
    """The start is one more array that learns; taken out, no other gradient changes."""
    whole = spec_of(BACKPROP, INIT)
    found = grads_of(whole)
    assert closed(found) == set() and START in found
    kept = tuple(t for t in whole.system.transfers if t.kind != "init")
    without = grads_of(varied(whole, kept))
    assert set(found) == {*without, START}
    assert changed(without, {n: found[n] for n in without}) == set()


def test_init_without_backprop() -> None:
    """The gradient comes to the start through the writes since, and to nothing that wrote."""
    whole = spec_of(BACKPROP, INIT)
    only = varied(whole, tuple(t for t in whole.system.transfers if t.kind == "init"))
    found = grads_of(only)
    assert bool(found[START].any()) and closed(found) == {VALUE, RATE}


def test_init_to_first_order() -> None:
    """The writes since are constants: the start gets what the reads alone say of it."""
    whole = spec_of(BACKPROP, INIT)
    second, first = grads_of(whole), grads_of(to_first_order(whole))
    assert START in changed(first, second) and closed(first) == {VALUE}


def test_init_alone_to_first_order() -> None:
    """With its own line, and no other transfer opened (2.11.3)."""
    shut = "transfer condition training -> fast"
    second, first = spec_of(shut, INIT), spec_of(shut, f"{INIT} first order")
    whole, cut = grads_of(second), grads_of(first)
    assert closed(whole) == closed(cut) == {VALUE, RATE}
    assert changed(cut, whole) == {START}


GENERATED = """nl 1
system made() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level slow(x) every token {{
    state S : vector(3)
    retain 0.5
    write tanh(linear(x, 3))
    read S
  }}
  level fast(x, s[3]) every 2 tokens {{
    state c : vector(3)
    set 0.5 * c + tanh(x + s)
    read c
  }}
  {transfers}
  flow(x[3], y[3]) {{
    z = linear(x, 3)
    p = fast(z, slow(z))
    loss = sum((p + z - y)^2)
    return p
  }}
}}
"""


def generated(*transfers: str) -> Spec:
    return nlc.load(GENERATED.format(transfers="\n  ".join(transfers)))


def test_generate_carries_values_and_gradients_only_through_backprop() -> None:
    """The fast level's `set` uses what the slow one says: with `backprop` to both a gradient comes
    to what made it, without none does.
    """
    edges = ("transfer generate slow -> fast.c", "transfer backprop slow, fast -> training")
    whole = generated(*edges)
    shut = varied(whole, tuple(t for t in whole.system.transfers if t.kind == "generate"))
    (slow,) = (n for n in grads_of(whole) if n.startswith("slow."))
    with_edge, without = grads_of(whole), grads_of(shut)
    assert bool(with_edge[slow].any()) and closed(without) == {slow}
    assert changed(without, with_edge) == {slow, INTO}
    one = tuple(
        t for t in whole.system.transfers if t.kind != "backprop" or t.source.name == "fast"
    )
    half = grads_of(varied(whole, one))
    assert closed(half) == {slow} and changed(half, with_edge) == {slow, INTO}


CONDITIONED = """nl 1
system seen() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level slow(x) every 2 tokens {{
    state S : vector(3)
    retain 0.5
    write tanh(linear(x, 3))
    read S + 0.5 * x
  }}
  level fast(x) every token {{ read linear({read}, 3) }}
  {transfers}
  flow(x[3], y[3]) {{
    z = linear(x, 3)
    u = slow(z)
    p = fast({given})
    loss = sum((p - y)^2)
    return p
  }}
}}
"""
OPEN = "transfer backprop slow, fast -> training"
CONDITION, SLOW = "transfer condition slow -> fast", "slow.S.linear"


def conditioned(read: str, given: str, *transfers: str) -> Spec:
    return nlc.load(CONDITIONED.format(read=read, given=given, transfers="\n  ".join(transfers)))


def closed_to_slow(spec: Spec) -> Spec:
    """Without `backprop slow -> training`."""
    edges = spec.system.transfers
    return varied(spec, tuple(t for t in edges if t.kind != "backprop" or t.source.name != "slow"))


def test_condition_on_a_state() -> None:
    """What a body makes of another level's state: the line itself carries no gradient, so taken out
    it changes none; into the state only `backprop` leads. The edge is inferred from the use, so to
    remove it is to take the use out of the text; the line alone is then an error.
    """
    whole = conditioned("x * (1 + slow.S)", "z", CONDITION, OPEN)
    found = grads_of(whole)
    assert closed(found) == set()
    rest = tuple(t for t in whole.system.transfers if t.kind != "condition")
    assert len(rest) < len(whole.system.transfers)
    assert changed(grads_of(varied(whole, rest)), found) == set()
    shut = grads_of(closed_to_slow(whole))
    assert closed(shut) == {SLOW} and changed(shut, found) == {INTO, SLOW}
    with pytest.raises(SpecError, match="NL302"):
        conditioned("x", "z + u", CONDITION, OPEN)
    apart = grads_of(conditioned("x * (1 + slow.S)", "z + u", CONDITION, OPEN))
    assert changed(grads_of(conditioned("x", "z + u", OPEN)), apart) == set(found)


def test_condition_through_an_input() -> None:
    """What a level is given of another's answer needs no line, and has none: gradients pass through
    the read as a function of its inputs, and into the state by `backprop` alone.
    """
    whole = conditioned("x", "z + u", OPEN)
    found, shut = grads_of(whole), grads_of(closed_to_slow(whole))
    assert closed(found) == set() and closed(shut) == {SLOW}
    assert changed(shut, found) == {INTO, SLOW}
    stopped = closed_to_slow(conditioned("x", "z + u - 0.5 * z + 0.5 * stop(z)", OPEN))
    assert changed(grads_of(stopped), shut) == {INTO}, "it passes through the read"
    with pytest.raises(SpecError, match="NL302"):
        conditioned("x", "z + u", CONDITION, OPEN)


def test_condition_on_weights() -> None:
    """A body's weights are constants in it: what `backprop` opens, and no line at all is NL301."""
    only, wide = spec_of("transfer condition training -> fast"), spec_of(BACKPROP)
    shut, found = grads_of(only), grads_of(wide)
    assert closed(shut) == {VALUE, RATE}
    assert changed(shut, grads_of(varied(only, ()))) == set()
    assert changed(shut, found) == {INTO, VALUE, RATE}
    with pytest.raises(SpecError, match="NL301"):
        spec_of()


def test_a_tensor_of_each() -> None:
    """What the tests above compare is not nought: each gradient is of a size of its own."""
    found = grads_of(spec_of(BACKPROP, INIT))
    sizes = {n: float(g.norm()) for n, g in found.items()}
    assert min(sizes.values()) > 1e-4, sizes
    assert all(isinstance(g, Tensor) for g in found.values())
