"""An optimizer: what each of its memories minimises, and what its write is the minimiser of.

A memory `m = b m - r s` that starts at zero holds -r times the sum of b^age s, so, but for a
number, the weighted mean of all s so far: the X of the least sum of b^age |X - s|^2. A write
c a / p, for any p above zero, is the X of the least -c sum(a X) + sum(p X^2) / 2: that is how Adam
solves an objective of its own (2512.24695, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backward import constant, make, neg
from ..show import PRODUCT, Writer, folded, signed
from ..system import Assign, Box, Line, State, Term
from .bounds import Scope
from .derived import Derived
from .lines import INDENT, Row, Rows, said, table
from .rules import retained, spelled, state_rows, times
from .tidy import Factor, Tidy


@dataclass(frozen=True, eq=False)
class Mean:
    """`m = keep m + rate stream`, from zero, with numbers for keep and rate."""

    state: State
    stream: Term
    keep: float
    rate: float


def optimizer_blocks(box: Box, latex: bool = False) -> list[tuple[str, Rows]]:
    """(heading, lines): its memories and the weight, as they stand in its text."""
    states = {f"state:{s.name}": s for s in box.states}
    blocks: list[tuple[str, Rows]] = []
    w = Writer(body=box, latex=latex)
    rows: Rows = []
    for place in box.order:
        if place in states:
            blocks.append(block(box, states[place], latex))
        elif place.startswith("line:"):
            rows += line_rows(w, (box.lines[int(place.partition(":")[2])],), "with")
    for inner in box.levels:
        for state in inner.states:
            heading, found = block(inner, state, latex)
            blocks.append((f"{inner.name}.{heading}", found))
    return [*blocks, ("weight", rows + weight_rows(w, box))]


def block(box: Box, state: State, latex: bool) -> tuple[str, Rows]:
    name = state.name if box.kind == "optimizer" else f"{box.name}.{state.name}"
    heading = f"{state.name}, {box.clock}" if box.clock is not None else state.name
    return heading, [*state_rows(box, state, name, latex), *closed_rows(box, state, name, latex)]


def optimizer_lines(box: Box, depth: int = 1) -> list[str]:
    out: list[str] = []
    for heading, rows in optimizer_blocks(box):
        out += ["", f"{INDENT * depth}{heading}", *table(rows, depth + 1)]
    return out


def line_rows(w: Writer, lines: tuple[Line, ...], label: str) -> Rows:
    rows: Rows = []
    for line in lines:
        if isinstance(line, Assign):
            rows += spelled(w, label, f"{w.name(line.name)} = ", line.value)
        else:
            rows.append(said(w, label, f"repeat {line.count} {{"))
            inner = line_rows(w, line.lines, label)
            rows += [Row(label, r.text if w.latex else INDENT + r.text, r.words) for r in inner]
            rows.append(said(w, label, "}"))
    return rows


# ---- memories of gradients -----------------------------------------------------------------------


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
    if found is None or not once or not 0 < found.keep < 1:
        return []
    w = Writer(state=state.name, base=name, body=box, latex=latex)
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


def summed(w: Writer, text: str) -> str:
    return rf"\operatorname{{sum}}({text})" if w.latex else f"sum({text})"


def before(w: Writer, number: float) -> str:
    if abs(number) == 1:
        return "-" if number < 0 else ""
    return f"{w.number(number)[0]}{times(w)}"


# ---- the write -----------------------------------------------------------------------------------


def weight_rows(w: Writer, box: Box) -> Rows:
    if box.write is None:
        return []
    name = w.name("weight")
    rows = spelled(w, "rule", f"{name} = {retained(w, box.retain, name)}", box.write, True)
    return rows + minimised(w, box)


def minimised(w: Writer, box: Box) -> Rows:
    """The objective that what is added is the minimiser of."""
    tidy = Tidy()
    assert box.write is not None
    number, factors = tidy.factors(tidy.of(box.write))
    wide = [f for f in factors if f[0].shape]
    above = [f for f in wide if f[1] > 0]
    below = tuple((t, -p) for t, p in wide if p < 0)
    narrow = [f for f in factors if not f[0].shape]
    long = sum(1 for t, _ in factors for _ in t.walk()) > 24
    if not above or number == 0 or long or not entrywise(box, [t for t, _ in wide]):
        return []
    if not below and not (len(above) == 1 and above[0][0].op == "input"):
        return []
    scales = [f for f in narrow if f[0].op != "sub"]  # rates; what corrects a mean stays with it
    a = tidy.built(1.0, (*above, *(f for f in narrow if f not in scales)), box.write)
    c = tidy.built(-number, tuple(scales), box.write)
    p = tidy.built(1.0, below, box.write) if below else None
    if p is not None and not positive(p):
        return []
    x = w.name("X")
    sign, size = signed(c)
    total = r"\operatorname{sum}" if w.latex else "sum"
    front = "" if is_one(size, 1) else f"{w.text(size, PRODUCT)}{times(w)}"
    first = f"{'-' if sign == '-' else ''}{front}{total}({w.text(a, PRODUCT)}{times(w)}{x})"
    square = rf"\left\|{x}\right\|^2" if w.latex else f"|{x}|^2"
    second = square if p is None else f"{total}({w.text(p, PRODUCT)}{times(w)}{x}^2)"
    rows = [said(w, "that is", "what is added is the {} of the least", x)]
    return [*rows, Row("that is", f"{first} + {second} / 2"), *as_adam(w, box, a, p, tidy)]


def is_one(term: Term, value: float) -> bool:
    return term.op == "const" and term.info == value


def entrywise(box: Box, terms: list[Term]) -> bool:
    """Whether each entry of these depends on nothing of the weight's other entries that matters:
    a product of arrays of the weight's own shape is one product an entry.
    """
    shape = next((s for n, s in box.inputs if n == "weight"), ())
    return all(t.shape == shape for t in terms)


def positive(p: Term) -> bool:
    """Above zero in every entry, by the ranges of its functions."""
    return Scope().interval(p).low > 0


def as_adam(w: Writer, box: Box, a: Term, p: Term | None, tidy: Tidy) -> Rows:
    """The mean of a stream over the root of the mean of its square: the number that says best, of
    each entry, how long the stream is ((101)-(105), lambda = 0).
    """
    if p is None:
        return []
    roots = [t for t in p.walk() if t.op == "sqrt"]
    first = weighted(box, tidy, a)
    second = weighted(box, tidy, roots[0].args[0]) if len(roots) == 1 else None
    if first is None or second is None:
        return []
    square = tidy.of(make("pow", first.stream, constant(2.0, a), shape=first.stream.shape))
    if tidy.of(second.stream) is not square:
        return []
    rest = [t for t, _ in [(x.args[1], 1) for x in [p] if x.op == "add" and x.args[0] is roots[0]]]
    if p is not roots[0] and not rest:
        return []
    x, size = w.name("X"), w.name("p")
    stream = w.text(first.stream, PRODUCT)
    eps = [w.text(t) for t in rest]
    without = "without {} and" if eps else "without"
    text = (
        f"{without} the rate it is minus the {{}} of the least mean of {{}} with {{}}, the "
        "mean of {} taken by {} and that of its square by {}: the best map, entry by entry, "
        "from gradients to their size"
    )
    means = (w.number(m.keep)[0] for m in (first, second))
    error = f"({x}{times(w)}{stream} - {size})^2"
    with_ = f"{size} = {w.text(roots[0])}"
    return [said(w, "that is", text, *eps, x, error, with_, stream, *means)]


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


__all__ = ["line_rows", "optimizer_blocks", "optimizer_lines"]
