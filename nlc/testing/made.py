"""A level of a random system, and what its text says."""

from __future__ import annotations

import re
from dataclasses import dataclass

WEIGHTS = re.compile(r"\b(linear|norm|layernorm|conv|learned)\(")


def words(texts: list[str]) -> set[str]:
    """The names that stand in them."""
    return {w for text in texts for w in re.findall(r"[a-z_]+", text)}


def summed(line: str) -> str:
    """An objective of every head as one number."""
    if not line.startswith("objective "):
        return line
    value, after, _ = line.removeprefix("objective ").partition(" after retain")
    value = value.replace("b * ", "mean(b) * ")
    return f"objective sum({value}){after}"


def makes_weights(lines: list[str]) -> bool:
    """Whether a body makes unnamed weights: after a colon a name is a form."""
    return any(WEIGHTS.search(re.sub(r":.*?(per|=|\{|$)", "", line)) for line in lines)


@dataclass
class Made:
    """One level that a flow can call: its text, what stands outside the system, and its lines."""

    name: str
    kind: str
    text: list[str]
    weights: bool = True  # its body uses unnamed weights
    starts: bool = False  # its states may start where training has learned
    first_order: bool = False  # training takes its gradients as constants
    second_order: bool = False  # its gradients are all that some of its starts learn by
    opened: bool = True  # training's gradient enters its states
    learner: bool = False  # it learns the model's loss on tokens
    smooth: bool = True  # its rule has a derivative where a gradient is 0
    periods: tuple[int, ...] = ()
    cuts: tuple[int, ...] = (3, 4)  # after how many tokens a gradient may be let go of
    form: str = ""  # of the state that others may name
    taken: str = ""  # what a flow gives it beside x
    started: str = ""  # the level whose start for it its states begin at
    generated: str = ""  # the level whose state a start, write or set of it is made from


def stateless(made: Made) -> bool:
    """Whether it keeps nothing, not even a past."""
    return made.kind == "stateless" and not any("conv(" in line for line in made.text)
