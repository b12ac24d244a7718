"""Whether the windows of a body can be run as rows: `past(x, w)` for all ticks at once.

Early windows are shorter (language.md 2.9.2), which their shape says: a first axis of -w. Run for
many ticks they are as long as all others, the first tick standing for what is missing; so each use
must leave the rows apart until a sum adds them up, where those that are missing are left out. So
they are by what ends a window at once (`gathers`), where no state has a hand in it: the derivative
of a memory's objective would mix the rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .system import Term

# The rows of the result are those of the arguments.
APART = {
    *("add", "sub", "mul", "div", "pow", "neg", "lt", "le", "gt", "ge", "eq", "exp", "log", "sqrt"),
    "sqrt_slope",
    *("abs", "sign", "sin", "cos", "floor", "mod", "sigmoid", "softplus", "silu", "gelu", "tanh"),
    *("relu", "clip", "min", "max", "where", "smooth_abs", "smooth_sign", "stop", "index"),
    *("apply", "unit", "rms_norm", "layer_norm", "column", "past"),
}
# Over the last axis, if that is not the rows.
LAST = {"length", "dot", "sum", "mean", "softmax", "top"}


def rows_of(term: Term) -> int:
    """How many rows the term has, one for each tick of a window; 0 if it is none."""
    return -term.shape[0] if term.shape and term.shape[0] < 0 else 0


def mixed(roots: Iterable[Term], touched: Callable[[Term], bool]) -> Term | None:
    """The first term that does not leave rows apart until they are added up. `touched`: whether a
    state has a hand in a term.
    """
    for root in roots:
        turned = {id(t.args[0]) for t in root.walk() if sums_products(t)}
        for t in root.walk():
            known = id(t) in turned or gathers(t)
            if not (known and not touched(t)) and (known or mixes(t)):
                return t
    return None


def gathers(term: Term) -> bool:
    """Whether the rows of its windows are met at once, without those that are missing."""
    if sums_products(term):
        return True
    rows = [rows_of(a) for a in term.args]
    alone = any(rows_of(a) and len(a.shape) == 1 for a in term.args)
    if term.op in ("softmax", "mean", "length") and alone:
        return True
    if term.op == "dot" and alone:
        return rows[0] == rows[1] and len(term.args[0].shape) == len(term.args[1].shape)
    if term.op == "matmul" and any(rows) and not turned_rows(term.args[1]):
        whole = len(term.args[0].shape) > 1
        return rows[1] == 0 and len(term.args[1].shape) <= 2 if whole else rows[0] == rows[1]
    return term.op == "item" and rows[0] > 0 and term.info == 0  # the oldest, whatever their number


def sums_products(term: Term) -> bool:
    """K' x, or K' X, of windows K and X."""
    if term.op != "matmul" or not turned_rows(term.args[0]):
        return False
    return rows_of(term.args[1]) == rows_of(term.args[0].args[0])


def turned_rows(term: Term) -> bool:
    return term.op == "transpose" and rows_of(term.args[0]) != 0 and len(term.shape) == 2


def mixes(term: Term) -> bool:
    if any(n < 0 for t in (term, *term.args) for n in t.shape[1:]):
        return True
    if not any(rows_of(a) for a in term.args):
        return False
    if term.op in LAST:
        alone = any(rows_of(a) and len(a.shape) == 1 for a in term.args)
        return (
            term.op not in ("sum", "top")
            if alone or term.info is None and term.op in ("sum", "mean")
            else False
        )
    return term.op not in APART
