"""Whether the windows of a body can be run as rows: `past(x, w)` for all ticks at once.

Early windows are shorter (language.md 2.9.2), which their shape says: a first axis of -w. Run for
many ticks they are as long as all others, what is missing being nought; so each use must leave the
rows apart until a sum adds them up, where those that are missing are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def mixed(roots: Iterable[Term]) -> Term | None:
    """The first term that does not leave rows apart until they are added up."""
    for root in roots:
        if rows_of(root) and root.op != "local":
            continue
        bad = next((t for t in root.walk() if mixes(t)), None)
        if bad is not None:
            return bad
    return None


def mixes(term: Term) -> bool:
    if any(n < 0 for n in term.shape[1:]):
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
