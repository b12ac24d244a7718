"""Which rules are element by element: such a rule may serve any part of an array alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nlc.derive import linear_rule, substitute
from nlc.rules import LinearRule
from nlc.system import Assign, Box, Shape, State, Term

from .rule_terms import derived
from .rules import ELEMENTWISE

LEAVES = ("const", "input", "state", "array", "local", "count", "made", "across")


def plain_rule(rule: Box) -> LinearRule | None:
    """One gradient step and no more."""
    step = linear_rule(rule)
    if step is None or step.momentum is not None or step.erase is not None or step.keep is not None:
        return None
    return step


def is_pointwise(rule: Box, streams: Mapping[str, Term]) -> bool:
    """Whether every number of an array is served as if it were alone."""
    shape = next((s for n, s in rule.inputs if n in ("weight", "grad")), ())
    roots = list(streams.values())
    for box in (rule, *rule.levels):
        for line in box.lines:
            if not isinstance(line, Assign):
                return False
            roots.append(line.value)
        for state in box.states:
            found = state_terms(box, state, shape)
            if found is None:
                return False
            roots += found
    roots += [t for t in (rule.write, rule.retain) if t is not None]
    return all(is_flat(t, shape) for t in roots)


def state_terms(box: Box, state: State, shape: Shape) -> Iterable[Term] | None:
    """What a memory element by element is made of; None for any other."""
    rule = state.rule
    one = state.form.kind == "like" and state.form.sizes == shape and not state.per
    if not one or rule.through or rule.onto or rule.after_retain:
        return None
    terms = [t for t in (rule.retain, rule.write, rule.set) if t is not None]
    if state.start is not None and state.start.op not in ("zeros", "normal"):
        terms.append(state.start)
    if rule.objective is not None:
        found = derived(box, state)
        line = rule.learn.get("")
        step = plain_rule(line.optimizers[shape]) if line is not None and line.optimizers else None
        if found is None or found.examples or len(found.direct) != 1:
            return None
        if line is None or step is None or line.streams or line.steps > 1:
            return None
        terms += [found.direct[0][1], substitute(step.rate, line.settings)]
    return terms


def is_flat(root: Term, shape: Shape) -> bool:
    """Operations element by element, on arrays of one shape and on numbers."""
    stack, seen = [root], set()
    while stack:
        t = stack.pop()
        if id(t) in seen:
            continue
        seen.add(id(t))
        if t.op == "across":
            continue
        if t.op not in LEAVES and t.op not in ELEMENTWISE and t.op not in ("stop", "expand"):
            return False
        if t.op == "expand" and t.args[0].shape:
            return False
        if t.op == "input" and t.info in ("input", "surprise"):
            return False
        if t.shape not in ((), shape):
            return False
        stack.extend(t.args)
    return True
