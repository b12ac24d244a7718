"""The class of a rule, and why (memory-family.md B2): it decides which algorithms are exact.

i      the write does not read the state            ii     affine, one number for all outputs
ii-ch  one number for each output                    ii-win a window of pairs      ii-mom momentum
iii    affine, but mixed                             iv-a   the error bends        iv-b   a network
iv-d   what is kept is not linear                    v      the rule is not linear in the gradient
vi     kept in the dual                              vii    no parameters: solved at each read
not known: no rule of ours gives the gradient, so autograd does
"""

from __future__ import annotations

from collections.abc import Iterator

from ..derive import affine
from ..lacking import NotLowered
from ..lower import lower_box
from ..plan import Lowering
from ..show import Writer
from ..system import Box
from .derived import Derived
from .lines import Row, said
from .slopes import Kind, linear

Class = tuple[str, str]
OF_KIND = {
    Kind.NONE: ("i", "the write does not read the state"),
    Kind.NUMBER: ("ii", "the write is affine in the state, a delta rule"),
    Kind.ROWS: ("ii-win", "the write is affine in the state, a delta for each pair of the window"),
    Kind.DIAGONAL: ("ii-ch", "the write is affine in the state, a delta rule for each output"),
    Kind.FULL: ("iii", "the write is affine in the state, all outputs at once"),
    Kind.BENDS: ("iv-a", "the error is not affine in what the memory says"),
    Kind.LENGTH: ("iv-a", "the error is not affine in what the memory says"),
    Kind.OTHER: ("iv-a", "the error is not affine in what the memory says"),
}

GIVEN = ("ii", "the write is affine in the state")


def class_rows(w: Writer, d: Derived) -> list[Row]:
    found = class_of(d)
    return [] if found is None else [said(w, "class", f"{found[0]}: {found[1]}")]


def class_of(d: Derived) -> Class | None:
    rule = d.state.rule
    if d.box.exact:
        return of_exact(d)
    if rule.objective is not None and rule.uses_loss:
        return "v", "the loss reaches the state through the whole model, once a period"
    if rule.objective is None and rule.write is None:
        return None
    if d.gradient is None:
        return "not known", d.why if rule.write else f"its gradient is autograd's: {d.why}"
    if rule.through:
        inner = of_write(d)
        return "vi", f"kept in the dual, where it is linear; written as class {inner[0]}"
    if rule.onto:
        return "iv-d", "what is kept is put in its place after each write"
    return of_write(d)


def of_write(d: Derived) -> Class:
    """By the rule, then the memory, then the Jacobian."""
    rule = d.state.rule
    arrays = [a.name for a in d.state.form.arrays if a.name in rule.learn]
    steps = [d.step(a) for a in arrays]
    if any(s is None for s in steps):
        return "v", f"`{d.learn.rule if d.learn else ''}` is not linear in the gradient"
    if d.network:
        return "iv-b", "a network: what reaches a layer depends on the others"
    settings = [t for l in rule.learn.values() for t in l.settings.values()]
    if d.moves(rule.retain, *settings):
        return "iv-a", "what is kept, or the rate, depends on the state"
    if any(d.moves(e.input) for e in d.examples):
        return "iv-a", "what the memory is asked depends on the memory itself"
    if rule.write is not None:
        return of_given(d)
    kinds = [j.kind for j in d.jacobians]
    if any(d.others(e.surprise, e.output) for e in d.examples):
        if all(linear(e.surprise, *d.reads(e.surprise)) for e in d.examples):
            return "iii", "the write is affine in the state, which its own target reads too"
        return OF_KIND[Kind.OTHER]
    name, why = OF_KIND[max([*kinds, *whole_kinds(d)], key=list(Kind).index, default=Kind.NONE)]
    if name == "ii" and any(len(e.input.shape) > len(d.state.per) + 1 for e in d.examples):
        return OF_KIND[Kind.ROWS]
    if name == "ii" and any(s is not None and s.momentum is not None for s in steps):
        return "ii-mom", f"{why} with momentum"
    return name, why


def whole_kinds(d: Derived) -> Iterator[Kind]:
    """How what reaches the state as an array depends on it; one number times it is a retention."""
    for _, bar in d.direct:
        arrays = {id(t): t for t in d.reads(bar)}
        for array in arrays.values():
            line = affine(bar, array)
            if line is None or line.factor is None or not d.narrow(line.factor):
                yield Kind.FULL if linear(bar, array) else Kind.OTHER


def of_given(d: Derived) -> Class:
    """A write that is no objective's gradient: affine if each part of it is."""
    for e in d.examples:
        own = list({id(t): t for t in d.reads(e.surprise)}.values())
        if own:
            return GIVEN if is_affine(d) else OF_KIND[Kind.OTHER]
    return OF_KIND[Kind.NONE]


def is_affine(d: Derived) -> bool:
    return all(linear(e.surprise, *d.reads(e.surprise)) for e in d.examples)


def of_exact(d: Derived) -> Class | None:
    plan = solved(d.box)
    if plan is not None and plan.attention is not None:
        return "vii", "no parameters: each query has its own optimum over the past"
    if d.gradient is not None and d.jacobians and all(j.constant for j in d.jacobians):
        return "iii", "a quadratic in the state, solved from sums over the past"
    if d.gradient is None and d.why:
        return "not known", f"its gradient is autograd's: {d.why}"
    return None


def solved(box: Box) -> Lowering | None:
    try:
        return lower_box(box)
    except NotLowered:
        return None


__all__ = ["class_of", "class_rows", "solved"]
