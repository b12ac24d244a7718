"""Tables that are memories: their rows are asked for by number, and learn on tokens."""

from __future__ import annotations

import pytest
import torch
from test_random import Case, agrees

import nlc

SYSTEM = """nl 1
system s() {{
  level training every step {{ {table} objective loss; learn gradient(rate = 0.1) }}
  level rows(x, i) {clock} {{
    {reset}
    state T : {form}
    {rule}
    read {read}
  }}
  transfer backprop rows -> training
  {start}
  flow(tokens) {{
    x = embed(tokens, 5, 4)
    x += rows(norm(x), tokens)
    logits = unembed(norm(x), 5)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
PLAIN = {
    "table": "", "clock": "every 2 tokens", "reset": "reset every 6 tokens",
    "form": "table(5, 4)", "start": "transfer init training -> rows",
    "rule": "objective sum((T(i) - linear(x, 4))^2); learn gradient(rate = 0.3)",
    "read": "T(i) * linear(x, 4)",
}  # fmt: skip
TWO = "stack(i, mod(i + 1, 5))"
KINDS: dict[str, dict[str, str]] = {
    "a period": {},
    "every token": {"clock": "every token"},
    "momentum": {"rule": "retain 0.9; objective sum((T(i) - x)^2); learn momentum(rate = 0.3)"},
    "frozen": {
        "clock": "every token", "reset": "",
        "rule": "objective sum((T(i) - x)^2); learn gradient(rate = 0.2); linearise every 4 tokens",
    },
    "the model's loss": {"rule": "objective loss; learn adam(rate = 0.03, eps = 0.1)"},
    "a known row": {"read": "T(1) * linear(x, 4)"},
    "a sum of known rows": {"read": "T(2 - 1) * x + T(floor(2.5)) * x"},
    "by position": {"read": "T(mod(position, 5)) * x"},
    "a row that is learned on steps": {
        "table": "state E : table(5, 4) = normal(0.3);", "clock": "every token",
        "rule": "objective sum((T(i) - training.E(1))^2); learn gradient(rate = 0.2)",
    },
    "written at every token": {
        "clock": "every token", "rule": "write outer(where(range(5) == i, 0.3, 0), x)",
    },
    "by what its rows do not say": {
        "clock": "every token", "rule": "objective -sum(T(i) * x); learn gradient(rate = 0.3)",
    },
    "written, frozen": {
        "clock": "every token", "reset": "",
        "rule": "write outer(where(range(5) == i, 0.3, 0), tanh(x)); linearise every 4 tokens",
    },
    "beside a row that is a constant": {
        "rule": "objective sum((T(i) - stop(T(1)) - x)^2); learn gradient(rate = 0.2)",
    },
    "beside its own that is a constant": {
        "clock": "every token",
        "rule": "objective sum(smooth_abs(T(i) - 0.5 * stop(T(i)) - x)); "
        "learn gradient(rate = 0.2)",
    },
    "a table a head": {
        "form": "table(5, 4) per 2", "clock": "every token",
        "rule": f"objective sum((T({TWO}) - reshape(concat(x, x), 2, 4))^2); "
        "learn gradient(rate = 0.1)",
        "read": "sum(transpose(T(stack(mod(position, 5), i))), 1)",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_its_reference(kind: str) -> None:
    assert agrees(Case(SYSTEM.format(**PLAIN | KINDS[kind]), 9, [4]))


@pytest.mark.parametrize("kind", ["every token", "a table a head"])
def test_each_sample_has_its_own(kind: str) -> None:
    model = nlc.compile(nlc.load(SYSTEM.format(**PLAIN | KINDS[kind])), dtype=torch.float64)
    x = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 1, 1, 0, 2]])
    both, alone = model(x)[0], [model(row[None])[0] for row in x]
    assert float((both - torch.cat(alone)).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("read", ["T(i + 1)", "T(i - 1)", "x[i] * T(i)", "T(i)[i - 1] * x"])
def test_a_row_that_is_not_there(read: str) -> None:
    spec = nlc.load(SYSTEM.format(**PLAIN | {"read": read}))
    x = torch.tensor([[0, 1, 2, 3, 4, 0]])
    for model in (nlc.compile(spec), nlc.reference(spec)):
        with pytest.raises(ValueError, match=r"row -?\d is asked for, of rows 0 to [34]"):
            model(x)


def test_a_table_a_head_is_asked_a_row_for_each() -> None:
    with pytest.raises(nlc.SpecError, match="one table a head"):
        nlc.load(SYSTEM.format(**PLAIN | {"form": "table(5, 4) per 2"}))
