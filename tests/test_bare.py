"""What is a plain number, or the same at every tick, where a rule takes a row a tick."""

from __future__ import annotations

import pytest
from test_random import Case, agrees

import nlc

SYSTEM = """nl 1
system s() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level l(x) {clock} {{
    state M : {form}; retain 0.9; objective {objective}; learn {rule}
    read {read}
  }}
  transfer backprop l -> training
  flow(x[4]) {{ y = l(linear(x, 4)); loss = sum(y^2); return y }}
}}
"""
FORMS = {
    "matrix(4, 4)": ("M({})", "M(x)"), "mlp(4, 3)": ("M({})", "M(x)"),
    "layernorm(mlp(4, 4))": ("M({})", "M(x)"), "vector(4)": ("M", "M * x"),
}  # fmt: skip
OBJECTIVES = (
    "sum(@)", "mean(@) + 0.1 * sum((@ - x)^2)", "dot(@, range(4))", "sum((@ - 1)^2)",
    "sum(@) * sigmoid(stop(1)) * sigmoid(clip(3, -1, 1))",
)  # fmt: skip
RULES = (
    ("every token", "gradient(rate = 0.1)"),
    ("every token", "momentum(rate = 0.1, keep = 0.5); linearise every 4 tokens"),
    ("every 3 tokens", "momentum(rate = 0.1, keep = 0.5)"),
    ("every token", "adam(rate = 0.01, eps = 0.1)"),
)


@pytest.mark.parametrize(("clock", "rule"), RULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_plain_numbers(form: str, objective: str, clock: str, rule: str) -> None:
    says, read = FORMS[form]
    said = objective.replace("@", says.format("x"))
    text = SYSTEM.format(form=form, clock=clock, objective=said, rule=rule, read=read)
    assert agrees(Case(text, 7, [3]))


@pytest.mark.parametrize(("clock", "rule"), RULES)
@pytest.mark.parametrize("key", ["learned(4, start = 0.3)", "range(4)", "eye(x)[1]"])
@pytest.mark.parametrize("form", ["matrix(4, 4)", "mlp(4, 3)"])
def test_a_key_that_stands(form: str, key: str, clock: str, rule: str) -> None:
    said = f"sum((M({key}) - x)^2) / 9"
    text = SYSTEM.format(form=form, clock=clock, objective=said, rule=rule, read="M(x)")
    assert agrees(Case(text, 7, [3]))


@pytest.mark.parametrize("read", ["rope(learned(4, start = 0.3)) * x", "conv(range(4), 3) * x"])
def test_what_stands_is_turned_and_convolved(read: str) -> None:
    text = SYSTEM.format(
        form="matrix(4, 4)", clock="every token", objective="sum((M(x) - x)^2)",
        rule="gradient(rate = 0.1)", read=f"M(x) + {read}",
    )  # fmt: skip
    assert agrees(Case(text, 7, [3]))


def test_a_state_that_nothing_moves() -> None:
    text = """nl 1
system s() {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level l(x) every 3 tokens { state M : vector(4); read M * x + x }
  flow(x[4]) { y = l(linear(x, 4)); loss = sum(y^2); return y }
}
"""
    assert agrees(Case(text, 5, [2]))


def test_a_memory_that_is_given_no_stream_is_refused() -> None:
    text = SYSTEM.format(
        form="mlp(4, 3)", clock="every token", objective="sum(M(learned(4))^2)",
        rule="gradient(rate = 0.1)", read="M(x)",
    )  # fmt: skip
    with pytest.raises(nlc.SpecError, match="NL701"):
        nlc.compile(nlc.load(text))


@pytest.mark.parametrize(
    "beside", ["matrix(4, 4) { write outer(M(x), x) * 0.1 }", "vector(4) { write 0.1 * M(x) }"]
)
def test_a_state_that_is_written_beside_one_that_learns_frozen(beside: str) -> None:
    text = SYSTEM.format(
        form=f"matrix(4, 4) = normal(0.4); state Q : {beside}", clock="every token",
        objective="sum((M(x) - x)^2)", rule="gradient(rate = 0.1); linearise every 3 tokens",
        read="M(x) + Q(x)" if "outer" in beside else "M(x) + Q * x",
    )  # fmt: skip
    assert agrees(Case(text, 8, [4]))
