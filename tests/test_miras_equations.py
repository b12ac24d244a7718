"""The equations in the comments of `nlc miras`: run as they stand, they are what the memory is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from test_miras import ALL, SIZES, TICKS, answers, common, interpreter

from nlc.miras.choices import WINDOW, Combination
from nlc.miras.laws import first_broken
from nlc.miras.survey import Row, survey

BIASES = ("dot", "l2", "weighted", "exchanged", "window", "window_dot")
LINKS = {
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "lq": lambda a: a * a**2 / (3 * ((a**4).sum() ** 0.25 + 1e-6) ** 2),
    "soft_threshold": lambda a: np.sign(a) * np.maximum(abs(a) - 1e-3, 0),
}
READ_AS = (  # mathematics -> Python; a sum over i is one over the window
    (r"\((\w+) (k|v)_i\) \2_i'", r"sum(outer(\1 @ \2_[i], \2_[i]) for i in window)"),
    (r"\b([kv])_i ([kv])_i'", r"sum(outer(\1_[i], \2_[i]) for i in window)"),
    (r"\((\w+) (k|v)\) \2'", r"outer(\1 @ \2, \2)"),
    (r"\b([kv]) ([kv])'", r"outer(\1, \2)"),
    (r"diag\(alpha\) (\w+)", r"(alpha[:, None] * \1)"),
    (r"(\w+) diag\(alpha\)", r"(\1 * alpha)"),
    (r"length\((\w)\)\^2", r"(\1 @ \1)"),
)


def equations(row: Row) -> list[tuple[str, str]]:
    """Names, and what they become; none where a gradient is only called g."""
    lines = [line[4:] for line in row.text.splitlines() if line.startswith("#   ")]
    parts = [part.partition(" = ") for line in lines for part in re.split(r", (?=\w+ = )", line)]
    return [] if any(name == "g" for name, _, _ in parts) else [(n, e) for n, _, e in parts]


def python(said: str) -> str:
    for pattern, code in READ_AS:
        said = re.sub(pattern, code, said)
    return said


def said(c: Combination, lines: list[tuple[str, str]], given: dict[str, Any]) -> Any:
    turned = c.bias.exchanged
    n, m = SIZES["n"], SIZES["m"]
    zeros = np.zeros((n, m) if turned else (m, n))
    now: dict[str, Any] = {**LINKS, "outer": np.outer, "M": zeros, "A": zeros, "S": zeros}
    if c.retention.link:
        now["M"] = LINKS[c.retention.line.rpartition(" ")[2].partition("(")[0]](zeros)
    now |= {f"{name}_": x for name, x in given.items()}
    found = []
    for t in range(TICKS):
        now |= {name: x[t] for name, x in given.items()}
        now |= {"beta": now["beta"][:, None]} if "beta" in given else {}
        now["window"] = range(max(0, t - WINDOW + 1), t + 1)
        for name, value in lines:
            now[name] = eval(python(value), now)
        found.append(now["q"] @ now["M"] if turned else now["M"] @ now["q"])
    return np.array(found)


def test_a_comment_says_what_the_reference_does() -> None:
    picked = [c for c in ALL if c.memory.name == "matrix" and c.bias.name in BIASES]
    fine = [c for c in picked if c.rule.usual and c.rule.name != "exact" and not first_broken(c)]
    shown = [(row, lines) for row in survey(fine, 16) if (lines := equations(row))]
    assert len(shown) > 200
    for r, lines in shown:
        streams = common(r.text)
        wanted = answers(interpreter(r.text, SIZES), streams)[0].numpy()
        made = said(r.combination, lines, {n: x[0].numpy() for n, x in streams.items()})
        assert abs(made - wanted).max() < 1e-9, (r.name, lines)
