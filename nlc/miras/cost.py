"""STAGE: box -> what a token costs: operations on numbers, and bytes of state.

Counted from the derived rule, one token at a time and one head: reading, the gradient, the
optimizer, retention, and what is done to the weights after. A multiplication with an addition is
two operations. `nlc explain` counts the products of the chosen algorithm, in which most of these
differ in nothing; here they are to be told apart. An implicit step that has no closed form is
counted as `ROUNDS` of Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..derive import gradient, topological
from ..explain.cost import BYTES, state_parts
from ..lacking import NotLowered
from ..lower import lower_box
from ..plan import Lowering
from ..system import Box, Lambda, Learn, Line, Loop, State, Term

ROUNDS = 4  # 2 to 4 are taken where the error is smooth, some 16 beside the kinks of `l1`
ALONE = "by the reference interpreter alone"
FREE = {
    "const", "input", "local", "argument", "state", "weight", "past", "expand", "column", "squeeze",
    "transpose", "reshape", "stop",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """`operations` a token, `state` in bytes; how it is run, and what is not compiled of it."""

    operations: int
    state: int
    run_as: str
    missing: str = ""


def cost(box: Box) -> Cost:
    state = next(s for s in box.states if s.rule.changes)
    try:
        lowering: Lowering | None = lower_box(box)
        run_as, missing = lowering.reason if lowering else "", ""
    except NotLowered as error:
        lowering, run_as, missing = None, ALONE, error.diagnostic.message
    held = sum(numbers for _, numbers in state_parts(box, lowering))
    stepped = lowering is None or lowering.kind == "fired"  # else a step has a closed form
    return Cost(operations(box, state, stepped), held * BYTES, run_as, missing)


def weights(state: State) -> int:
    return sum(prod(a.shape) for a in state.form.arrays)


# ---- operations ----------------------------------------------------------------------------------


def operations(box: Box, state: State, stepped: bool = False) -> int:
    """`stepped`: an implicit step is found by Newton's method."""
    if box.exact:
        return solving(state)
    learn = next(iter(state.rule.learn.values()))
    read = 2 * weights(state)
    once = learned(box, state) + optimized(state, learn)
    found = newton(box, state) if stepped and learn.rule == "implicit" else 0
    return read + learn.steps * once + kept(state) + links(state) + found


def newton(box: Box, state: State) -> int:
    """The errors as unknowns: how each changes with each goes through what they write, and what is
    said of it; then one system of linear equations (backends/ops/nearest.py).
    """
    unknown = sum(prod(abs(n) for n in e.surprise.shape) for e in gradient(box, state).examples)
    return ROUNDS * (4 * unknown * weights(state) + 2 * unknown**3 // 3)


def solving(state: State) -> int:
    """Two sums of outer products, and one system of linear equations (Mesa)."""
    m, n = state.form.arrays[0].shape
    return 3 * n * (n + m) + 2 * n**3 // 3 + 2 * n * (n + m)


def learned(box: Box, state: State) -> int:
    """The gradient as outer products, and the writing of them."""
    examples = gradient(box, state).examples
    terms = {
        id(t): t for e in examples for root in (e.input, e.surprise) for t in topological(root)
    }
    shapes = {a.name: prod(a.shape) for a in state.form.arrays}
    written = sum(2 * shapes[e.array] * rows(e.input) for e in examples)
    return written + sum(map(counted, terms.values()))


def rows(x: Term) -> int:
    """How many pairs an example speaks of."""
    return prod(abs(n) for n in x.shape[:-1])


def counted(term: Term) -> int:
    """One operation a number, two for a product with a sum."""
    if term.op in FREE:
        return 0
    here = prod(abs(n) for n in term.shape)
    match term.op:
        case "product" | "product_back":
            return 2 * int(prod(term.info.array.shape)) * rows(term)
        case "matmul":
            return 2 * here * term.args[0].shape[-1]
        case "sum" | "mean" | "length" | "dot" | "sum_to" | "softmax" | "unit" | "frobenius":
            return 2 * max(prod(abs(n) for n in a.shape) for a in term.args)
    return here


def optimized(state: State, learn: Learn) -> int:
    """What an optimizer does beside the outer product: its memories, and what it makes of them."""
    total = 0
    for array in state.form.arrays:
        box = learn.optimizers.get(array.shape)
        size = prod(array.shape)
        if box is None:  # implicit: one division
            continue
        total += 2 * size * len(box.states) + lines(box.lines)
        uses = {t.info for t in box.terms() if t.op == "input"}
        total += 2 * size if "input" in uses else 0
        total += sum(map(counted, box.write.walk())) if box.states and box.write is not None else 0
    return total


def lines(found: tuple[Line, ...]) -> int:
    total = 0
    for line in found:
        if isinstance(line, Loop):
            total += line.count * lines(line.lines)
        else:
            total += sum(map(counted, line.value.walk()))
    return total


def kept(state: State) -> int:
    retain = state.rule.retain
    return 0 if retain is None or retain.op == "const" else weights(state)


def links(state: State) -> int:
    found = [*(state.rule.through or {}).values(), *(state.rule.onto or {}).values()]
    return sum(map(counted, (t for link in found for t in body(link))))


def body(link: Lambda) -> list[Term]:
    return list(link.body.walk())
