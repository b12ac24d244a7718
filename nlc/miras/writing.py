"""STAGE: combination -> the text of a spec, in the one style (`nlc fmt` leaves it as it is).

The comment above the memory says the four choices in words and the rule that was derived for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from .choices import Combination

WIDTH = 110
SOLVED = "sum({fade}past(eta) * length(M(past(k)) - past(v))^2) / 2 + sum(ridge * M^2) / 2"


def spec(combination: Combination, rules: Sequence[str] = ()) -> str:
    """A file of one memory. `rules`: the lines that say what was derived for it."""
    lines = [
        "nl 1",
        *defines(combination),
        *comment(combination, rules),
        f"memory {combination.name}({', '.join(parameters(combination))}) {{",
        *(f"  {word:9} {rest}" for word, rest in statements(combination)),
        "}",
        "",
    ]
    return "\n".join(lines)


def comment(combination: Combination, rules: Sequence[str]) -> Iterator[str]:
    c = combination
    words = f"{c.memory.words}; {c.bias.words}; {c.retention.words}; {c.rule.words}"
    for line in wrap(words[0].upper() + words[1:] + ".", WIDTH):
        yield f"# {line}"
    for line in rules:
        yield f"#   {line}"


def defines(combination: Combination) -> Iterator[str]:
    for text in (combination.bias.define, combination.retention.define):
        if text:
            yield from (*text.splitlines(), "")


def parameters(combination: Combination) -> list[str]:
    """Streams first, each with its size; what they all have is one size if the memory is square."""
    c = combination
    streams = ["q[n]", "k[n]", "v[m]", *c.retention.streams, *c.bias.streams, *c.rule.streams]
    if c.memory.square:
        streams = [s.replace("[m]", "[n]") for s in streams]
    settings = [*c.retention.settings, *([f"chunk = {c.chunk}"] if c.frozen else [])]
    return [*dict.fromkeys(streams), *settings]


def statements(combination: Combination) -> Iterator[tuple[str, str]]:
    """The lines of the body: a word, and what follows it."""
    c = combination
    form = "matrix(m, n)" if c.bias.exchanged else c.memory.form
    start = f" = {c.memory.start}" if c.memory.start else ""
    yield "state", f"M : {form}{start}"
    solved = c.rule.name == "exact"
    if c.retention.line and not solved:
        yield "retain", retained(c)
    yield "objective", objective(c) + (" after retain" if c.retention.after else "")
    yield "learn", c.rule.line
    if c.frozen:
        yield "linearise", "every chunk tokens"
    yield "read", "q @ M" if c.bias.exchanged else "M(q)"


def retained(combination: Combination) -> str:
    """A channel of the value is an input of a memory that finds keys."""
    line = combination.retention.line
    if not combination.bias.exchanged or not combination.retention.channel:
        return line
    return "alpha" if line.startswith("column") else "column(alpha)"


def objective(combination: Combination) -> str:
    if combination.rule.name != "exact":
        return combination.bias.objective
    fade = "fade(alpha) * " if combination.retention.line else ""
    return SOLVED.format(fade=fade)
