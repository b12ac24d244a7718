"""What a memory of gradients holds, in closed form.

A memory `m = b m - r s` that starts at zero holds -r times the sum of b^age s, so, but for a
number, the weighted mean of all s so far: the X of the least sum of b^age |X - s|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backward import make, neg
from ..show import PRODUCT, Writer, folded, signed
from ..system import Box, State, Term
from .derived import Derived
from .lines import Row, Rows, said
from .rules import times
from .tidy import Factor, Product, Tidy


@dataclass(frozen=True, eq=False)
class Mean:
    """`m = keep m + rate stream`, from zero, with numbers for keep and rate."""

    state: State
    stream: Term
    keep: float
    rate: float


def mean_of(box: Box, state: State) -> Mean | None:
    """A memory that fades by one number and adds a stream times one number."""
    d = Derived(box, state)
    step = d.step("")
    if d.gradient is None or d.examples or len(d.direct) != 1 or step is None or step.implicit:
        return None
    if state.start is not None and state.start.op != "zeros":
        return None
    amount = d.tidy.of(neg(folded(step.rate, d.direct[0][1])))
    number, factors = d.tidy.factors(amount)
    keep = d.keep(step)
    if keep.op != "const" or step.momentum is not None or step.erase is not None or step.steps > 1:
        return None
    if any(next(d.reads(t), None) is not None for t, _ in factors) or not factors:
        return None
    return Mean(state, d.tidy.built(1.0, factors, amount), keep.info, number)


def closed_rows(box: Box, state: State, name: str, latex: bool) -> Rows:
    found = mean_of(box, state)
    once = box.clock is None or box.clock.period == 1
    if found is None or not once or not 0 < found.keep <= 1:
        return []
    w = Writer(state=state.name, base=name, body=box, latex=latex)
    if found.keep == 1:
        return sum_rows(w, found, w.name(name))
    shown, x, age = w.name(name), w.name("X"), w.name("age")
    b, stream = w.number(found.keep)[0], w.text(found.stream, PRODUCT)
    power = f"{{{b}}}^{{{age}}}" if latex else f"{b}^{age}"
    total = summed(w, f"{power}{times(w)}{stream}")
    text = "{}, over all so far (age: how many firings ago)"
    rows = [said(w, "that is", text, f"{shown} = {before(w, found.rate)}{total}")]
    gain = round((1 - found.keep) / found.rate, 12)
    count = f"{{{b}}}^{{{w.name('count')}}}" if latex else f"{b}^count"
    whole = rf"\frac{{{shown}}}{{1 - {count}}}" if latex else f"{shown} / (1 - {count})"
    square = rf"\left\|{x} - {stream}\right\|^2" if latex else f"|{x} - {stream}|^2"
    least = summed(w, f"{power}{times(w)}{square}")
    text = "{} is the {} of the least {}"
    return [*rows, said(w, "that is", text, before(w, gain) + whole, x, least)]


def sum_rows(w: Writer, found: Mean, shown: str) -> Rows:
    """Nothing fades: a sum, and by the count a mean."""
    x, stream = w.name("X"), w.text(found.stream, PRODUCT)
    total = f"{shown} = {before(w, found.rate)}{summed(w, stream)}"
    gain, count = before(w, round(1 / found.rate, 12)), w.name("count")
    mean = rf"\frac{{{shown}}}{{{count}}}" if w.latex else f"{shown} / {count}"
    square = rf"\left\|{x} - {stream}\right\|^2" if w.latex else f"|{x} - {stream}|^2"
    least = said(w, "that is", "{} is the {} of the least {}", gain + mean, x, summed(w, square))
    return [said(w, "that is", "{}, over all so far", total), least]


def erased_rows(box: Box, state: State, name: str, latex: bool) -> Rows:
    """`m = keep m - rate (c m A B + rest)` with what multiplies m from the right as one matrix."""
    d = Derived(box, state)
    step = d.step("")
    if d.gradient is None or d.examples or len(d.direct) != 1 or step is None or step.implicit:
        return []
    keep, rate = d.keep(step), step.rate
    if keep.op != "const" or rate.op != "const" or step.momentum or step.erase or step.steps > 1:
        return []
    addends = d.tidy.addends(d.direct[0][1])
    met = [a for a in addends if from_the_right(a) is not None]
    rest = [a for a in addends if a not in met]
    right = from_the_right(met[0]) if len(met) == 1 else None
    if right is None or not rest or any(d.moves(t) for _, factors in rest for t, _ in factors):
        return []
    w = Writer(state=state.name, base=name, body=box, latex=latex)
    shown, identity = w.name(name), "I"
    kept = identity if keep.info == 1 else f"{w.number(keep.info)[0]}{times(w)}{identity}"
    erased = before(w, rate.info * met[0][0]) + w.text(right, PRODUCT)
    scaled = [(rate.info * number, factors) for number, factors in rest]
    sign, size = signed(d.tidy.total(scaled, d.direct[0][1]))
    less = "+" if sign == "-" else "-"
    inside = f"{kept} - {erased}"
    inside = rf"\left({inside}\right)" if latex else f"({inside})"
    return [Row("that is", f"{shown} = {shown} {inside} {less} {w.text(size, PRODUCT)}")]


def from_the_right(addend: Product) -> Term | None:
    """A @ B of an addend `c m @ A @ B`, where m is the memory."""
    _, factors = addend
    if len(factors) != 1 or factors[0][1] != 1:
        return None
    term, others = factors[0][0], []
    while term.op == "matmul":
        others.append(term.args[1])
        term = term.args[0]
    if term.op != "array" or not others:
        return None
    made = others.pop()
    while others:
        b = others.pop()
        made = make("matmul", made, b, shape=(made.shape[0], b.shape[1]))
    return made


def summed(w: Writer, text: str) -> str:
    return rf"\operatorname{{sum}}({text})" if w.latex else f"sum({text})"


def before(w: Writer, number: float) -> str:
    if abs(number) == 1:
        return "-" if number < 0 else ""
    return f"{w.number(number)[0]}{times(w)}"


def weighted(box: Box, tidy: Tidy, term: Term) -> Mean | None:
    """`m / (1 - b^count)` as the weighted mean that it is."""
    number, factors = tidy.factors(term)
    state = next((t for t, p in factors if t.op == "state" and p == 1), None)
    others: list[Factor] = [f for f in factors if f[0] is not state]
    if number != 1 or state is None or len(others) != 1 or others[0][1] != -1:
        return None
    found = mean_of(box, box.state(state.info.name))
    if found is None or abs(found.rate - (1 - found.keep)) > 1e-12:
        return None
    match others[0][0]:
        case Term(op="sub", args=(Term(op="const", info=1.0), Term(op="pow", args=(base, n)))):
            if base.op == "const" and base.info == found.keep and n.op == "count":
                return found
    return None


__all__ = ["Mean", "closed_rows", "erased_rows", "weighted"]
