"""Heads as part of the batch: terms of a level `per heads`, rewritten as one head sees them.

Where every value has the heads as its first axis and every operation acts on what follows, the axis
can join the batch: `M(k)` is then one batched product, with no axes to turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.rules import Product
from nlc.system import Handle, Shape, Term

from .expressions import CALLS, COMPARISONS, SIGNS

SAME = {
    *CALLS, *COMPARISONS, *SIGNS, "neg", "pow", "where", "max", "min", "mod", "clip", "softmax",
    "dot", "length", "length_slope", "column", "squeeze", "concat", "stop", "layer_norm_back",
    "expand", "sum_to",
}  # fmt: skip
FIRST_ONLY = {"linear", "rms_norm", "layer_norm"}


@dataclass(frozen=True)
class Heads:
    """The axes that join the batch, as Python text: those of a map, or a level's own heads."""

    sizes: Shape
    mapped: bool

    @property
    def told(self) -> str:
        return ", ".join(map(str, self.sizes))

    def join(self, stream: str) -> str:
        """A stream with its heads in the batch."""
        turned = stream if self.mapped else f"{stream}.transpose(1, 2)"
        return self.into(turned)

    def part(self, stream: str) -> str:
        """A stream as it was."""
        return self.back(stream) if self.mapped else f"{self.back(stream)}.transpose(1, 2)"

    def into(self, array: str) -> str:
        """An array of the stream with its heads in the batch."""
        return f"{array}.flatten(0, {len(self.sizes)})"

    def several(self, array: str, members: int) -> str:
        """Arrays of states alike, side by side in the batch, on a first axis of their own."""
        return f"{array}.unflatten(0, ({members}, -1, {self.told}))"

    def back(self, array: str, axis: int = 0) -> str:
        """An array as the stream keeps it."""
        return f"{array}.unflatten({axis}, (-1, {self.told}))"


def alike(a: Term, b: Term, first: str, other: str) -> bool:
    """Whether b is a with state `other` in place of state `first`."""
    done: set[tuple[int, int]] = set()
    stack = [(a, b)]
    while stack:
        x, y = stack.pop()
        if x is y or (id(x), id(y)) in done:
            continue
        done.add((id(x), id(y)))
        if (x.op, x.shape, len(x.args)) != (y.op, y.shape, len(y.args)):
            return False
        if not same_info(x.info, y.info, first, other):
            return False
        stack.extend(zip(x.args, y.args, strict=True))
    return True


def same_info(x: object, y: object, first: str, other: str) -> bool:
    if isinstance(x, Product) and isinstance(y, Product):
        return x.array == y.array and same_info(x.handle, y.handle, first, other)
    if isinstance(x, Handle) and isinstance(y, Handle):
        names = (x.name, y.name)
        return x.box is y.box and (names == (first, other) or names[0] == names[1] != first)
    if isinstance(x, Term) and isinstance(y, Term):  # what `stop` was made of
        return alike(x, y, first, other)
    return x == y


class Unfoldable(Exception):
    """A term that sees the heads as an axis; the box is then written with them.

    Never leaves this folder.
    """


class Folder:
    """Rewrites terms; what was one term stays one."""

    def __init__(self, heads: Shape) -> None:
        self.heads = heads
        self.done: dict[int, tuple[Term, Term]] = {}

    def __call__(self, term: Term) -> Term:
        known = self.done.get(id(term))
        if known is None:
            known = self.done[id(term)] = (term, self.fold(term))
        return known[1]

    def shape(self, shape: Shape) -> Shape:
        n = len(self.heads)
        if shape[:n] != self.heads:
            raise Unfoldable
        return shape[n:]

    def fold(self, term: Term) -> Term:
        op = term.op
        if op == "const":
            return term
        if op in ("input", "local"):
            return Term(op, (), self.shape(term.shape), term.info, None, term.span)
        if op in ("apply", "product", "product_back"):
            self.own(term)
            return self.made(term, tuple(self(a) for a in term.args))
        if op in FIRST_ONLY:
            return self.made(term, (self(term.args[0]), *term.args[1:]))
        if op in ("sum", "mean"):
            return self.reduced(term)
        if op in SAME:
            return self.made(term, tuple(self(a) for a in term.args))
        raise Unfoldable

    def own(self, term: Term) -> None:
        """Only states with the same heads."""
        handle = term.info.handle if isinstance(term.info, Product) else term.info
        if handle.state.per != self.heads or handle.state.form.core.kind == "table":
            raise Unfoldable

    def made(self, term: Term, args: tuple[Term, ...]) -> Term:
        return Term(term.op, args, self.shape(term.shape), term.info, None, term.span)

    def reduced(self, term: Term) -> Term:
        """A sum over all axes: each head adds up its own; a mean would divide by the heads."""
        arg = self(term.args[0])
        if term.info is None:
            if term.op == "mean":
                raise Unfoldable
            return Term("sum", (arg,), (), None, None, term.span)
        return self.made(term, (arg,))
