"""States that other bodies name, starts, firings: compiled, they are the reference.

A call is cut where a state that is named stands still (nlc/foreign.py).
"""

from __future__ import annotations

import pytest
import torch
from test_random import Case, agrees

import nlc
from nlc.driver import SpecError
from nlc.foreign import spans
from nlc.lower import lower

SYSTEM = """nl 1
system s(vocab = 5) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
{levels}
  flow(tokens) {{
    x = embed(tokens, vocab, 4)
    repeat 2 {{
      {flow}
    }}
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
FAST = """  level fast(x) every token {
    state M : matrix(4, 4)
    k = unit(linear(x, 4))
    objective sum((M(k) - linear(x, 4))^2) / 2
    retain 0.9
    learn gradient(rate = 0.5)
    read M(k)
  }
  transfer backprop fast -> training
"""
STANDS = FAST.replace("every token", "every 3 tokens")
BEGINS = "  level fast(x) every token {\n    reset every 4 tokens\n    state M : matrix(4, 4) = "
LEARNS = """
    objective sum((M(x) - linear(x, 4))^2) / 2
    learn gradient(rate = 0.1)
    read M(x)
  }
  transfer backprop fast -> training
"""


def follower(
    clock: str, rule: str = "set 0.9 * S + 0.1 * fast.M", form: str = "matrix(4, 4)"
) -> str:
    return (
        f"  level slow(x) {clock} {{ state S : {form}; {rule}; read S(x) }}\n"
        "  transfer generate fast -> slow\n  transfer backprop slow -> training\n"
    )


LIKE = "objective sum((S(x) - fast.M(x))^2); learn adam(rate = 0.1)"
AFTER = "y = fast(norm(x)); x += slow(y) + y"
NAMED = {
    "in the flow, before the call": (FAST, "e = length(fast.M(x) - x); x += fast(norm(x)) * e", 1),
    "in the flow, on one line": (FAST, "x += fast.M(x) + fast(norm(x))", 1),
    "in the flow, after the call": (FAST, "y = fast(norm(x)); x += fast.M(y) + y", 1),
    "in the flow, a state that stands": (STANDS, "y = fast(norm(x)); x += fast.M(y) + y", 3),
    "by a level, every token": (FAST + follower("every token"), AFTER, 1),
    "by a level, at its period's end": (FAST + follower("every 4 tokens"), AFTER, 4),
    "by a level that is called before": (
        FAST + follower("every 4 tokens"), "x += slow(x); x += fast(norm(x))", 1,
    ),
    "by a level, a state that stands": (STANDS + follower("every 2 tokens"), AFTER, 3),
    "in an objective": (
        FAST + follower("every 2 tokens", LIKE).replace("generate", "condition"), AFTER, 1,
    ),
    "with resets": (
        FAST.replace("token {", "token {\n    reset every 3 tokens")
        + follower("every 3 tokens", "reset every 6 tokens; set 0.9 * S + 0.1 * fast.M"),
        AFTER, 3,
    ),
    "a network, from a copy of it": (
        FAST.replace("matrix(4, 4)", "mlp(4, 6)").replace("M", "F")
        + follower("every 4 tokens from 2", "set 0.9 * S + 0.1 * fast.F", "mlp(4, 6) = fast.F"),
        AFTER, 1,
    ),
    "by a level without states": (
        FAST + "  level slow(x) every token { read fast.M(linear(x, 4)) }\n"
        "  transfer condition fast -> slow\n  transfer backprop slow -> training\n",
        AFTER, 1,
    ),
    "as an input": (
        FAST + follower("every 4 tokens", "set S + W").replace("slow(x)", "slow(x, W[4, 4])"),
        "y = fast(norm(x)); x += slow(y, fast.M) + y", 4,
    ),
    "by none: a start from numbers": (
        BEGINS + "outer(range(4), range(4)) * 0.1" + LEARNS, "x += fast(x)", 0,
    ),
    "by none: a start from the inputs": (
        BEGINS + "outer(x, linear(x, 4))" + LEARNS, "x += fast(x)", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", NAMED)
def test_a_state_that_is_named(place: str) -> None:
    levels, flow, every = NAMED[place]
    text = SYSTEM.format(levels=levels, flow=flow)
    plan, _ = lower(nlc.load(text).system)
    assert plan is not None and plan.spans.every == every
    assert agrees(Case(text, 11, [3, 7]))
    assert agrees(Case(text.replace("every token", "every token from 3"), 9, [4]))


def test_a_closed_reader_is_a_constant_to_training() -> None:
    levels = FAST + follower("every 4 tokens").replace("  transfer backprop slow -> training\n", "")
    assert agrees(Case(SYSTEM.format(levels=levels, flow=AFTER), 11, [3, 7]))


def test_a_state_in_the_loss_is_refused() -> None:
    text = SYSTEM.format(levels=FAST, flow="x += fast(norm(x))")
    text = text.replace("    repeat 2 {\n", "").replace("\n    }\n    logits", "\n    logits")
    text = text.replace("next(tokens))", "next(tokens)) + sum(fast.M^2)")
    with pytest.raises(SpecError, match="a state in a line that waits for its label"):
        nlc.compile(nlc.load(text))


def test_without_named_states_a_call_is_one_span() -> None:
    plan, _ = lower(nlc.load("hope").system)
    assert plan is not None and plan.spans.every == 0
    assert spans(plan.system, dict(plan.lowerings), plan.learners, {}).late == frozenset()


# ---- firings: at the last tick alone, and before a reset -----------------------------------------

FIRES = """  level fast(x) every 3 tokens{phase} {{
    {reset}state M : {form} = normal(0.3)
    k = unit(linear(x, 4))
    retain 0.9
    objective {objective}
    learn adam(rate = 0.1 * count)
    read M(x) + k
  }}
  transfer backprop fast -> training
"""
SQUARES = "sum((M(k) - linear(x, 4))^2) / 2"
WINDOW = "sum(length(M(past(k, 3)) - past(x, 3))^2) / 3"
FLUSH = "reset every 5 tokens; partial flush\n    "
FIRINGS = {
    "once": {"objective": f"{SQUARES} once"},
    "once, a network over a window": {"objective": f"{WINDOW} once", "form": "mlp(4, 5)"},
    "once, by autograd": {"objective": "sum(M(k) * x) / (1 + frobenius(M)) once"},
    "once, a vector": {"objective": "sum((M(x) - k)^2) + sum(k * M) once", "form": "vector(4)"},
    "once, not by products": {"objective": "sum((M @ M - outer(x, k))^2) once"},
    "flush": {"reset": FLUSH},
    "flush, from the second token": {"reset": FLUSH, "phase": " from 2"},
    "flush and once, a network": {
        "reset": FLUSH, "objective": f"{SQUARES} once", "form": "mlp(4, 5)",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FIRINGS)
def test_what_fires_at_a_periods_end(kind: str) -> None:
    parts = {"phase": "", "reset": "", "form": "matrix(4, 4)", "objective": SQUARES}
    level = FIRES.format(**(parts | FIRINGS[kind]))
    if FIRINGS[kind].get("form") == "vector(4)":
        level = level.replace("M(x)", "M * x").replace("(M * x - k)", "(M - k)")
    assert agrees(Case(SYSTEM.format(levels=level, flow="x += fast(norm(x))"), 12, [1, 4]))


# ---- starts that are learned, and no stream is open ----------------------------------------------

STARTS = """  level fast(x) every {clock} {{
    state M : {form} = normal(0.3)
    k = unit({line})
    retain sigmoid(x[0])
    objective sum((M(k) - linear(x, 4))^2) / 2
    learn {rule}
    {more}
    read M(linear(x, 4))
  }}
  transfer condition training -> fast
  transfer init training -> fast{order}
"""
BY = {
    "one solve": ("token", "matrix(4, 4)", "linear(x, 4)", "gradient(rate = 0.3)", ""),
    "frozen": ("token", "mlp(4, 5)", "M(x)", "gradient(rate = 0.3)", "linearise every 3 tokens"),
    "rounds": ("token", "mlp(4, 5)", "M(x)", "gradient(rate = 0.3)", ""),
    "firings": ("2 tokens", "mlp(4, 5)", "M(x)", "adam(rate = 0.03)", ""),
    "firings at every token": ("token", "mlp(4, 5)", "M(x)", "adam(rate = 0.03)", ""),
}


@pytest.mark.parametrize("order", ["", " first order"])
@pytest.mark.parametrize("kind", BY)
def test_a_start_is_learned_where_no_stream_is_open(kind: str, order: str) -> None:
    clock, form, line, rule, more = BY[kind]
    level = STARTS.format(clock=clock, form=form, line=line, rule=rule, more=more, order=order)
    text = SYSTEM.format(levels=level, flow="x += fast(norm(x))")
    assert agrees(Case(text, 9, [1, 4]))


# ---- amounts made of another box's state alone ---------------------------------------------------

ALONE = """  level slow(x) every 2 tokens {{
    state S : matrix(4, 4) = normal(0.3) {{ write outer(x, x) / 4 }}
    state u : vector(4) = normal(0.5) {{ set 0.5 * u + x }}
    read x
  }}
  level fast(x) every {clock} {{
    state M : matrix(4, 4) = normal(0.3)
    {lines}
    retain 0.9
    read M(x)
  }}
  transfer backprop slow, fast -> training
"""
UNMOVED = {
    "a write": "write 0.1 * slow.S",
    "a write beside its own": "write 0.3 * (slow.S - M)",
    "a product": "objective -sum(M * slow.S) / 10; learn gradient(rate = 0.1)",
    "squares": "objective sum((M - slow.S)^2) / 10; learn momentum(rate = 0.1, keep = 0.5)",
    "squares and adam": "objective sum((M - slow.S)^2) / 10; learn adam(rate = 0.01)",
    "at the last tick": "objective sum((M - slow.S)^2) once; learn gradient(rate = 0.1)",
    "a line": "a = unit(slow.u); objective sum((M(a) - a)^2) / 4; learn gradient(rate = 0.1)",
    "its name, twice": (
        "objective sum((M(slow.u) - x)^2) / 4 + sum(M(slow.u)^2) / 9; learn dgd(rate = 0.1)"
    ),
    "its name alone": "objective sum((M(slow.u) - slow.u)^2) / 4; learn gradient(rate = 0.1)",
    "beside a convolution": (
        "objective sum((M(x) - conv(x, 3))^2) / 9 + sum(M^2) / 20; learn gradient(rate = 0.1)"
    ),
    "a line of its name": "a = slow.u; objective sum((M(x) - a)^2); learn gradient(rate = 0.1)",
}


@pytest.mark.parametrize("clock", ["token", "2 tokens", "3 tokens from 1"])
@pytest.mark.parametrize("kind", UNMOVED)
def test_an_amount_that_no_input_changes_is_counted_once_a_tick(kind: str, clock: str) -> None:
    """It stands while the period does, and the period adds up its ticks (2.8)."""
    level = ALONE.format(clock=clock, lines=UNMOVED[kind])
    if "write" in UNMOVED[kind]:
        level += "  transfer generate slow -> fast\n"
    assert agrees(Case(SYSTEM.format(levels=level, flow="x += fast(slow(x))"), 9, [3, 4]))


# ---- what becomes a constant where spans are short -----------------------------------------------

LETS_GO = """  level slow(x) every token {
    state u : vector(4) = normal(0.5) { retain 0.9; write x / 2 }
    read x
  }
  level fast(x) every token {
    state M : matrix(4, 4) = normal(0.3)
    k = conv(x, 3)
    objective sum((M(unit(x)) - x)^2) / 4
    learn gradient(rate = 0.1)
    read M(k)
  }
"""
BOTH = "  transfer backprop slow, fast -> training through 4 tokens\n"
CUTS = {
    "the past of another level": (
        LETS_GO + BOTH.replace("slow, ", "") + "  transfer backprop slow -> training\n", "",
    ),
    "frozen gradients": (LETS_GO.replace("read M", "linearise every 3 tokens; read M") + BOTH, ""),
    "firings": (LETS_GO.replace("token {", "2 tokens {") + BOTH, ""),
    "lives of six": (LETS_GO.replace("token {", "token { reset every 6 tokens") + BOTH, ""),
    "named before its call": (LETS_GO + BOTH, "x += slow.u; "),
}  # fmt: skip


@pytest.mark.parametrize("what", CUTS)
def test_a_constant_begins_between_two_spans(what: str) -> None:
    """At the tick itself, for pasts and for whoever names a state, and not for what comes after."""
    levels, before = CUTS[what]
    flow = f"{before}x += slow(norm(x)); x += slow.u; x += fast(norm(x))"
    assert agrees(Case(SYSTEM.format(levels=levels, flow=flow), 13, [3]))


# ---- starts that a call makes --------------------------------------------------------------------

MADE = """  level slow(x) every token {{
    state S : matrix(4, 4) = normal(0.3) {{ retain 0.9; write outer(x, x) / 4 }}
    read x
  }}
  level fast(x) every 2 tokens {{
    {reset}state M : matrix(4, 4) = {start}
    retain 0.9
    write outer(x, x) / 4
    read M(x)
  }}
  transfer backprop slow, fast -> training
"""
MADE_OF = ("slow.S", "0.5 * slow.S", "outer(x, x)", "0.5", "fresh(normal(0.5))")


def made(start: str, flow: str, reset: str = "") -> str:
    generated = "  transfer generate slow -> fast\n" if "slow" in start else ""
    return SYSTEM.format(levels=MADE.format(start=start, reset=reset) + generated, flow=flow)


@pytest.mark.parametrize("reset", ["", "reset every 4 tokens\n    "])
@pytest.mark.parametrize("start", MADE_OF)
def test_a_start_that_a_call_makes_is_named_after_it(start: str, reset: str) -> None:
    """What stood before the first firing is the start, not what an array is before that."""
    flow = "x += slow(norm(x)); x += fast(norm(x)); x += fast.M(x)"
    assert agrees(Case(made(start, flow, reset), 11, [3]))


@pytest.mark.parametrize("start", MADE_OF)
def test_a_start_that_a_call_makes_is_not_named_before_it(start: str) -> None:
    flow = "x += slow(norm(x)); x += fast.M(x); x += fast(norm(x))"
    with pytest.raises(SpecError, match="`M` of `fast`, named before the call that makes its"):
        nlc.compile(nlc.load(made(start, flow)))


def test_the_reference_says_that_a_start_has_no_input_before_the_call() -> None:
    flow = "x += slow(norm(x)); x += fast.M(x); x += fast(norm(x))"
    truth = nlc.reference(nlc.load(made("outer(x, x)", flow)))
    with pytest.raises(ValueError, match="made of its input `x`, and its state is named before"):
        truth((torch.zeros(1, 2, dtype=torch.long),))
