"""STAGE: combination -> the law that it breaks, if there is one.

A law is a short function with the sentence that a user is told; its reason stands beside it. Three
kinds: `ill-posed` (no numbers, or none that stay finite), `apart` (the choices do not go together),
`idle` (another combination says the same, as can be seen without algebra).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .choices import Combination


@dataclass(frozen=True, slots=True)
class Law:
    """What may not be put together, and why."""

    name: str
    kind: str
    sentence: str
    reason: str
    broken: Callable[[Combination], bool]


LAWS: list[Law] = []


def law(
    kind: str, sentence: str, reason: str
) -> Callable[[Callable[[Combination], bool]], Callable[[Combination], bool]]:
    def add(broken: Callable[[Combination], bool]) -> Callable[[Combination], bool]:
        LAWS.append(Law(broken.__name__, kind, sentence, reason, broken))
        return broken

    return add


def first_broken(combination: Combination) -> Law | None:
    return next((one for one in LAWS if one.broken(combination)), None)


# ---- apart: the choices do not go together -------------------------------------------------------


@law(
    "apart",
    "channels are those of a matrix",
    "Only the first layer of several has the channels of the key: the others would not forget.",
)
def channels_of_a_network(c: Combination) -> bool:
    return c.retention.channel and "mlp" in c.memory.form


@law(
    "apart",
    "a network cannot be read backwards",
    "A memory that finds the key of a value is read by its transpose, which a network has not.",
)
def network_backwards(c: Combination) -> bool:
    return c.bias.exchanged and c.memory.network


@law(
    "apart",
    "an exact solution is that of squared error and a matrix",
    "Elsewhere no linear equations are met, or the same again: k and v exchanged, pairs that count "
    "several times. Strengths a channel make a system for each, which `exact` does not solve.",
)
def solved_in_closed_form(c: Combination) -> bool:
    return (
        c.rule.name == "exact"
        and (c.bias.name != "l2" or c.memory.name != "matrix")
        and not (c.bias.dot and c.memory.name == "matrix")
    )


@law(
    "apart",
    "an exact solution keeps no state that could forget",
    "It is solved anew at each read; older pairs can count less (`fade`), by a fraction a token.",
)
def solved_keeps_nothing(c: Combination) -> bool:
    return c.rule.name == "exact" and c.retention.name not in ("none", "scalar")


@law(
    "apart",
    "an implicit step is that of a smooth convex objective and a matrix",
    "At a kink or a jump there is no slope to solve with; a direction and a network have several.",
)
def implicit_without_a_slope(c: Combination) -> bool:
    plain = c.bias.quadratic or c.bias.dot or c.bias.smooth
    return c.rule.name == "implicit" and (not plain or c.memory.network)


@law(
    "apart",
    "an implicit step and a dual measure change differently",
    "The step stays near in the weights, the retention keeps their dual: two geometries.",
)
def implicit_in_the_dual(c: Combination) -> bool:
    return c.rule.name == "implicit" and c.retention.link


@law(
    "apart",
    "several steps need a gradient that moves",
    "Where gradients stand still for a chunk, a later step sees the steps of its own pair alone.",
)
def steps_of_a_frozen_gradient(c: Combination) -> bool:
    return c.rule.name == "steps" and c.frozen


# ---- ill-posed: no numbers, or none that stay finite ---------------------------------------------


@law(
    "ill-posed",
    "nothing has no direction",
    "`unit` has a slope of 1e15 at 0, and all that a matrix of zeros says is 0.",
)
def direction_of_zeros(c: Combination) -> bool:
    return c.bias.name == "cosine" and c.memory.zeros


@law(
    "ill-posed",
    "the printed map of l_q is infinite at zeros",
    "A / |A|^2 grows as A shrinks (arXiv:2504.13173 (25) at q = 4); its slope at 0 is 1e12.",
)
def link_of_zeros(c: Combination) -> bool:
    return c.retention.name == "lq_printed" and c.memory.zeros


@law(
    "ill-posed",
    "rows that come back to length 0",
    "The projection gives a row the length that it had at the start: nothing is ever remembered.",
)
def sphere_of_zeros(c: Combination) -> bool:
    return c.retention.name == "sphere" and c.memory.zeros


@law(
    "ill-posed",
    "a network that is rewarded without bound and forgets nothing",
    "Agreement has no least value, and its gradient grows with the weights: ever faster.",
)
def agreement_without_end(c: Combination) -> bool:
    bounded = c.memory.name.startswith("normed")
    keeps = c.retention.name in ("none", "elastic_ftrl")
    return c.bias.dot and c.memory.network and keeps and not bounded


@law(
    "ill-posed",
    "a direction does not keep the printed map of l_q in bounds",
    "Forgetting shrinks A, so the weights A / |A|^2 grow: a direction has no length to hold on to.",
)
def direction_through_the_printed_map(c: Combination) -> bool:
    bounded = c.memory.name.startswith("normed")
    return c.bias.name == "cosine" and c.retention.name == "lq_printed" and not bounded


@law(
    "ill-posed",
    "agreement has no best state",
    "It is linear in a matrix, so it has no least value that `exact` could find.",
)
def nothing_to_solve(c: Combination) -> bool:
    return c.rule.name == "exact" and c.bias.dot


# ---- idle: another combination says the same -----------------------------------------------------


@law(
    "idle",
    "a draw where zeros do",
    "Only the start differs: the rule is that of the matrix that starts from zeros.",
)
def needless_draw(c: Combination) -> bool:
    needs = c.bias.name == "cosine" or c.retention.name in ("lq_printed", "sphere")
    return c.memory.name == "drawn" and not needs


@law(
    "idle",
    "an order of error and retention where no error is taken",
    "Agreement with a matrix has the same gradient at every state, so before or after is the same.",
)
def order_of_agreement(c: Combination) -> bool:
    blind = c.bias.dot and not c.memory.network and c.rule.name not in ("dgd", "exact")
    return c.retention.after and blind


@law(
    "idle",
    "an implicit step is taken from the retained state anyway",
    "It is solved from what is kept, so `after retain` changes nothing.",
)
def order_of_implicit(c: Combination) -> bool:
    return c.retention.after and c.rule.name == "implicit"
