"""The lines of a flow that come before any level which learns the loss: nothing that fires within a
call has a hand in them, so they are run for many spans at once (runtime/ahead.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nlc.foreign import names_others
from nlc.plan import Plan
from nlc.rules import Product
from nlc.system import Assign, Box, Handle, Line, Loop, Slot, Term, line_terms

from .bodies import first_path

OF_BOXES = {"apply", "array", "product", "product_back", "state"}  # which a flow may name


@dataclass(frozen=True)
class Ahead:
    """The first `lines` lines, and `begun` lines of the first round of the loop after them. What
    follows asks for `names`.
    """

    lines: int
    begun: int
    names: tuple[str, ...]


def ahead_of(plan: Plan, lines: list[Line], after: Iterable[Term]) -> Ahead | None:
    """None where nothing comes first, or states of a span are named in another place. `after`: what
    is asked when all lines have run.
    """
    if not plan.learners or plan.joint is not None or plan.inner.levels:
        return None
    if plan.spans.every or plan.spans.late or any(names_others(b) for b in plan.system.boxes):
        return None
    last = list(after)
    whole = leading(plan, lines, last)
    begun, rest = 0, lines[whole:]
    if rest and isinstance(rest[0], Loop) and first_path(rest[0]) is not None:
        loop, behind = rest[0], [*line_terms(tuple(rest[1:])), *last]
        begun = leading(plan, list(loop.lines), behind, loop.count > 1)
        run = [*lines[:whole], *loop.lines[:begun]]
    else:
        run = lines[:whole]
    bound = dict.fromkeys(line.name for line in run if isinstance(line, Assign))
    asked = {t.info for root in (*line_terms(tuple(rest)), *last) for t in root.walk()
             if t.op == "local"}  # fmt: skip
    names = tuple(name for name in bound if name in asked)
    return Ahead(whole, begun, names) if names else None


def leading(plan: Plan, lines: list[Line], after: list[Term], again: bool = False) -> int:
    """How many lines come before what learns the loss, and keep what no later line keeps. `again`:
    they are the lines of several rounds, of which each must keep its own.
    """
    uses = Counter(k for t in (*line_terms(tuple(lines)), *after) for k in keepers(t))
    for n, line in enumerate(lines):
        if not isinstance(line, Assign) or any(uses[k] > 1 for k in keepers(line.value)):
            return n
        for t in line.value.walk():
            if t.op in OF_BOXES or t.op == "call" and t.info.level in plan.learners:
                return n
            if again and t.op == "call" and not t.info.loops:
                return n
    return len(lines)


def alone(plan: Plan, lines: list[Line], ahead: Ahead | None, after: Iterable[Term]) -> bool:
    """Whether all that follows has one graph for training and for the levels that learn the loss:
    no state in it but theirs, and nothing remembered, which is held from them (runtime/shared.py).
    """
    if ahead is None:
        return False
    rest = lines[ahead.lines :]
    roots = [*line_terms(tuple(rest)), *after]
    if ahead.begun and isinstance(rest[0], Loop) and rest[0].count == 1:
        loop = rest[0]
        roots = [*line_terms((*loop.lines[ahead.begun :], *rest[1:])), *after]
    while roots:
        for t in roots.pop().walk():
            named = t.info.handle if isinstance(t.info, Product) else t.info
            box = named.box if isinstance(named, Handle) else named
            if isinstance(named, Slot) or isinstance(box, Box) and not stands(plan, box):
                return False
            if isinstance(named, Box) and named.read is not None:
                roots += [*line_terms(named.lines), named.read]
    return True


def stands(plan: Plan, box: Box) -> bool:
    """Whether all that a box keeps learns the loss, or stands still in a stream."""
    kind = plan.of(box).kind
    arrays = ((s, a) for s in box.states for a in s.form.arrays)
    learn = kind == "loss" and all(a.name in s.rule.learn for s, a in arrays)
    return learn or kind in ("stateless", "static")


def keepers(root: Term) -> set[int]:
    """What keeps something from tick to tick."""
    return {id(t.info) for t in root.walk() if t.op == "call" or isinstance(t.info, Slot)}
