"""How an optimizer changes the weight, and of which objective that is the least.

A write c a / p, for any p above zero, is the X of the least -c sum(a X) + sum(p X^2) / 2: that is
how Adam solves an objective of its own (arXiv:2512.24695, appendix B).
"""

from __future__ import annotations

from ..backward import constant, make
from ..derive import linear_rule
from ..resolve.shapes import broadcast
from ..show import PRODUCT, Writer, signed
from ..system import Assign, Box, Term
from .bounds import Scope
from .lines import Row, Rows, said
from .memories import weighted
from .rules import retained, spelled, times
from .tidy import Tidy


def weight_rows(w: Writer, box: Box) -> Rows:
    if box.write is None:
        return []
    name = w.name("weight")
    rows = spelled(w, "rule", f"{name} = {retained(w, box.retain, name)}", box.write, True)
    return rows + (minimised(w, box) or bounded(w, box) or delta_rows(w, box))


def assigned(box: Box) -> dict[str, Term]:
    """The lines of an optimizer by name; rounds in it are written out."""
    return {line.name: line.value for line in box.lines if isinstance(line, Assign)}


def written_out(box: Box, term: Term) -> Term:
    """With the lines of the optimizer in the place of their names."""
    lines = assigned(box)
    done: dict[int, Term] = {}

    def visit(t: Term) -> Term:
        if id(t) not in done:
            args = tuple(visit(a) for a in t.args)
            same = all(a is b for a, b in zip(args, t.args, strict=True))
            new = t if same else Term(t.op, args, t.shape, t.info, t.form, t.span)
            done[id(t)] = visit(lines[t.info]) if t.op == "local" and t.info in lines else new
        return done[id(t)]

    return visit(term)


def minimised(w: Writer, box: Box) -> Rows:
    """The objective that what is added is the minimiser of."""
    tidy = Tidy()
    assert box.write is not None
    number, factors = tidy.factors(tidy.of(box.write))
    wide = [f for f in factors if f[0].shape]
    above = [f for f in wide if f[1] > 0]
    below = tuple((t, -p) for t, p in wide if p < 0)
    narrow = [f for f in factors if not f[0].shape]
    long = sum(1 for t, _ in factors for _ in t.walk()) > 40
    fits = entrywise(box, [t for t, _ in above]) and all(fills(box, t) for t, _ in below)
    if not above or number == 0 or long or not fits:
        return []
    if not below and not (len(above) == 1 and above[0][0].op == "input"):
        return []
    scales = [f for f in narrow if f[0].op != "sub"]  # rates; what corrects a mean stays with it
    a = tidy.built(1.0, (*above, *(f for f in narrow if f not in scales)), box.write)
    c = tidy.built(-number, tuple(scales), box.write)
    p = tidy.built(1.0, below, box.write) if below else None
    if p is not None and not positive(written_out(box, p)):
        return []
    x = w.name("X")
    sign, size = signed(c)
    front = "" if is_one(size, 1) else f"{w.text(size, PRODUCT)}{times(w)}"
    first = f"{'-' if sign == '-' else ''}{front}{total(w)}({w.text(a, PRODUCT)}{times(w)}{x})"
    square = rf"\left\|{x}\right\|^2" if w.latex else f"|{x}|^2"
    second = square if p is None else f"{total(w)}({w.text(p, PRODUCT)}{times(w)}{x}^2)"
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


def fills(box: Box, term: Term) -> bool:
    """Whether it has one number for each entry of the weight, shared or not."""
    shape = next((s for n, s in box.inputs if n == "weight"), ())
    return broadcast(term.shape, shape) == shape


def bounded(w: Writer, box: Box) -> Rows:
    """A sign: the least of what is linear, where no entry may be longer than the rate."""
    assert box.write is not None
    tidy = Tidy()
    number, factors = tidy.factors(tidy.of(box.write))
    signs = [t for t, power in factors if t.op == "sign" and power == 1]
    if len(signs) != 1 or len(factors) != 1 or number >= 0:
        return []
    x, met = w.name("X"), w.text(signs[0].args[0], PRODUCT)
    least = f"{total(w)}({met}{times(w)}{x})"
    rate = w.number(-number)[0]
    text = "what is added is the {} of the least {} with no entry longer than {}"
    return [said(w, "that is", text, x, least, rate)]


def total(w: Writer) -> str:
    return r"\operatorname{sum}" if w.latex else "sum"


def delta_rows(w: Writer, box: Box) -> Rows:
    """Delta gradient descent as the least of (56)."""
    assert box.write is not None
    write = written_out(box, box.write)
    rate = proximal_rate(write)
    x, new, s, old = (w.name(n) for n in ("x", "X", "s", "weight"))
    met, moved = squared(w, f"{new}{w.at}{x} + {s}"), squared(w, f"{new} - {old}")
    if rate is not None:
        number = w.number(rate)[0]
        over = rf"\frac{{{moved}}}{{{number}}}" if w.latex else f"{moved} / {number}"
        least = f"{total(w)}({met}) + {over}"
        text = "the new weight is the {} of the least {}, over all inputs {} and their surprises {}"
        return [said(w, "that is", text, new, least, x, s)]
    rule = linear_rule(box)
    if rule is None or rule.momentum or rule.keep or rule.erase is None:
        return []
    if rule.erase.op != "const" or rule.erase.info != 1 or rule.rate.op not in ("const", "input"):
        return []
    number = w.text(rule.rate)
    over = rf"\frac{{1}}{{{number}}}" if w.latex else f"1 / {number}"
    least = f"{met} + ({over} - {squared(w, x)}){times(w)}{moved}"
    text = "for one input {} with surprise {} the new weight is the {} of the least {}, if {}"
    short = f"{number}{times(w)}{squared(w, x)} < 1"
    return [said(w, "that is", text, x, s, new, least, short)]


def squared(w: Writer, text: str) -> str:
    return rf"\left\|{text}\right\|^2" if w.latex else f"|{text}|^2"


def proximal_rate(write: Term) -> float | None:
    """r of `solve(weight - r grad, I + r input' input) - weight`."""
    parts = [t.op for t in (write, *write.args)]
    if parts != ["sub", "solve", "input"] or write.args[1].info != "weight":
        return None
    left, right = write.args[0].args
    if left.op != "sub" or left.args[0].info != "weight" or right.op != "add":
        return None
    tidy = Tidy()
    (a, step), (b, gram) = tidy.factors(tidy.of(left.args[1])), tidy.factors(tidy.of(right.args[1]))
    met = [t.info for t, _ in step] == ["grad"] and len(gram) == 1 and is_gram(gram[0][0])
    return a if met and a == b and right.args[0].op == "eye" else None


def is_gram(term: Term) -> bool:
    """input' input."""
    if term.op != "matmul" or term.args[0].op != "transpose":
        return False
    return all(t.op == "input" and t.info == "input" for t in (term.args[0].args[0], term.args[1]))


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
