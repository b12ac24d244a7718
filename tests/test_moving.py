"""What carries ticks on, written in place in the rule of a state: made once a tick, whenever the
rule fires.
"""

from __future__ import annotations

import pytest
import torch
from test_random import Case, agrees

import nlc
from nlc.system import Assign

SYSTEM = """nl 1
use "memory/attend"
use "memory/delta"
memory sums(x) {{ state S : vector(3) {{ retain 0.5; write x }}; read S }}
def twice(a) {{ return a * sigmoid(a) + tanh(a) }}
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level l(x) {clock} {{ state M : {form}; {rule}; read {read} }}
  transfer backprop l -> training
  flow(x[3]) {{ y = l(x); loss = sum(y^2); return y }}
}}
"""
CALLS = {
    "conv": "conv(x, 3)", "attend": "attend(x, x, x)", "attend, window": "attend(x, x, x, 2)",
    "delta": "delta(x, unit(x), x, beta = 0.5)", "own": "sums(x)", "def": "twice(sums(x))",
}  # fmt: skip
RULES = {
    "set": ("vector(3)", "set 0.5 * M + 0.5 * {call}", "M * x"),
    "retain": (
        "matrix(3, 3)",
        "retain sigmoid(sum({call})); objective sum((M(x) - x)^2); learn gradient(rate = 0.1)",
        "M(x)",
    ),
    "rate": (
        "matrix(3, 3)",
        "objective sum((M(x) - x)^2); learn gradient(rate = sigmoid(sum({call})))", "M(x)",
    ),
    "objective": (
        "matrix(3, 3)",
        "objective sigmoid(sum({call})) * sum((M(x) - 2 * x)^2); learn gradient(rate = 0.1)",
        "M(x)",
    ),
    "network": (
        "mlp(3, 4)", "objective sum((M({call}) - x)^2); learn gradient(rate = 0.1)", "M(x)",
    ),
    "steps": (
        "mlp(3, 4)",
        "objective sigmoid(sum({call})) * sum((M(x) - x)^2) once; "
        "learn gradient(rate = 0.1, steps = 2)",
        "M(x)",
    ),
    "write": ("vector(3)", "retain 0.5; write {call}", "M * x"),
}  # fmt: skip


def text_of(rule: str, call: str, clock: str) -> str:
    form, said, read = RULES[rule]
    return SYSTEM.format(form=form, rule=said.format(call=CALLS[call]), read=read, clock=clock)


@pytest.mark.parametrize("clock", ["every token", "every 3 tokens"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rule", RULES)
def test_in_place_is_the_reference(rule: str, call: str, clock: str) -> None:
    assert agrees(Case(text_of(rule, call, clock), 8, [4, 5]))


def test_it_is_a_line_of_the_box() -> None:
    spec = nlc.load(text_of("steps", "conv", "every token"))
    (box,) = (b for b in spec.system.boxes if b.states)
    assert [line.name for line in box.lines if isinstance(line, Assign)] == ["conv"]
    learn = box.states[0].rule.learn
    assert learn["W1"] is learn["W2"]  # one line of the text steps both at once


OWN = {
    "set": ("vector(3)", "set 0.5 * M + 0.5 * twice(sums(M * x))", "M * x"),
    "rate": (
        "matrix(3, 3)",
        "objective sum((M(x) - x)^2); learn gradient(rate = sigmoid(sum(conv(M(x), 3))))",
        "M(x)",
    ),
    "retain": (
        "matrix(3, 3)",
        "retain sigmoid(sum(sums(M(x)))); objective sum((M(x) - x)^2); learn gradient(rate = 0.1)",
        "M(x)",
    ),
    "what stands, in a call": ("vector(3)", "set 0.5 * M + 0.5 * attend(x, x, M, 3)", "M * x"),
    "what stands, convolved": ("vector(3)", "z = conv(M, 2); set 0.5 * M + 0.3 * z + x", "z * x"),
    "what stands, read": ("vector(3)", "set 0.5 * M + 0.5 * x", "twice(attend(x, x, M, 3))"),
}


@pytest.mark.parametrize("clock", ["every 3 tokens", "every 2 tokens from 1"])
@pytest.mark.parametrize("kind", OWN)
def test_of_what_the_box_says(kind: str, clock: str) -> None:
    form, rule, read = OWN[kind]
    assert agrees(Case(SYSTEM.format(form=form, rule=rule, read=read, clock=clock), 8, [2, 5]))


@pytest.mark.parametrize("clock", ["every token", "every 3 tokens"])
def test_an_objective_of_a_call_of_what_the_box_says(clock: str) -> None:
    """As a line it would be a constant to the objective, and in place it would be made twice."""
    rule = "objective sum((sums(M(x)) - x)^2); learn gradient(rate = 0.1)"
    text = SYSTEM.format(form="matrix(3, 3)", rule=rule, read="M(x)", clock=clock)
    with pytest.raises(nlc.SpecError, match=r"NL701.*a call of `sums` of what `l` says"):
        nlc.compile(nlc.load(text))


LOSSES = {
    "conv": "loss = sum((p - next(y))^2) * sigmoid(sum(conv(x, 3)))",
    "def": "loss = sum((twice(conv(p, 2)) - next(y))^2)",
    "in two lines": "e = p - next(y); loss = sum(e^2) * sigmoid(sum(conv(x, 2)))",
    "again": "loss = sum((p - next(y))^2); loss = loss * sigmoid(sum(conv(x, 2)))",
    "a level": "loss = sum((p - next(y))^2) * sigmoid(sum(faded(x)))",
    "of a name given anew": "p = p + x; loss = sum((p - next(y))^2) * sigmoid(sum(conv(p, 2)))",
}
LOSS = """nl 1
def twice(a) {{ return a * sigmoid(a) + tanh(a) }}
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level faded(x) every token {{ state S : vector(3) {{ retain 0.5; write x }}; read S }}
  {level}
  flow(x[3], y[3]) {{ p = {p}; {loss}; return p }}
}}
"""
LEARNER = """level l(x) every 2 tokens {
    state M : matrix(3, 3); objective loss; learn gradient(rate = 0.1); read x + M(x)
  }
  transfer backprop l -> training"""


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_in_a_line_that_waits_for_its_label(loss: str, learns: bool) -> None:
    p = "l(linear(x, 3))" if learns else "linear(x, 3)"
    text = LOSS.format(level=LEARNER if learns else "", p=p, loss=LOSSES[loss])
    if loss != "a level":
        text = "\n".join(line for line in text.split("\n") if "faded" not in line)
    assert agrees(Case(text, 7, [3]))


def test_a_convolution_in_a_loss() -> None:
    """By hand: the reference forgot what came before the tick whose label had come."""
    loss = "loss = sum((p - next(y))^2) + sum(conv(x, 2))"
    text = "\n".join(line for line in LOSS.split("\n") if "faded" not in line)
    spec = nlc.load(text.format(level="", p="linear(x, 3)", loss=loss))
    weights = nlc.compile(spec, dtype=torch.float64).state_dict()
    x, y = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    losses, _ = nlc.reference(spec, weights).losses((x, y))
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    taps = weights["loss.conv"]
    seen = (x * taps[:, 1] + before * taps[:, 0]).sum(-1)
    p = x @ weights["p.linear"].mT
    wanted = ((p[:, :-1] - y[:, 1:]) ** 2).sum(-1) + seen[:, :-1]
    assert float((losses[:, :-1] - wanted).abs().max()) < 1e-12
