"""Gradients -> what each array writes and keeps at a tick, and whether one system solves them all
(memory-family.md B2, B4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from .affine import reads_state, touched, touches_state, values_of
from .backward import add, column, constant, div, make, mul, sub
from .derive import (
    affine,
    before_fading,
    implicit_step,
    linear_rule,
    shrinkage,
    substitute,
)
from .lacking import NotLowered
from .plan import ArrayRule
from .rules import Affine, Example, Gradient, LinearRule
from .system import Box, Learn, State, Term

# ---- class i and ii: one matrix, an affine write
# -----------------------------------------------------


def one_solve(box: Box, gradients: Mapping[str, Gradient]) -> ArrayRule | None:
    """The rule of the box's one matrix, if its write is affine in what it says, each output by
    itself; else None.
    """
    if len(box.states) != 1 or box.states[0].form.kind != "matrix":
        return None
    state = box.states[0]
    found = gradients[state.name]
    learn = state.rule.learn.get("")
    if len(found.examples) != 1 or learn is None or touches_state(box, box.lines):
        return None
    example = found.examples[0]
    if learn.steps > 1 or len(example.input.shape) != len(state.per) + 1:
        return None
    if reads_state(example.input):
        return None
    rule = by_output(state, array_rule(box, state, found, example, False))
    error = affine(rule.surprise, example.output)
    if error is None or any(t is not None and reads_state(t) for t in (error.factor, error.rest)):
        return None
    if error.factor is not None:
        factor = one_number(error.factor)
        wide = error.factor.shape == (*state.per, state.form.arrays[0].shape[0])
        if factor is None and (not wide or rule.rule.momentum is not None):
            return None
        error = Affine(factor or error.factor, error.rest)
    gates = [*rule.settings.values(), *([rule.keep] if rule.keep is not None else [])]
    if any(map(reads_state, gates)) or not narrow_rates(state, rule):
        return None
    return replace(rule, error=error)


def by_output(state: State, rule: ArrayRule) -> ArrayRule:
    """A rate of one number an output, as a part of the surprise."""
    rate = substitute(rule.rule.rate, rule.settings)
    plain = rule.rule.momentum is rule.rule.erase is None
    if not plain or rate.shape[len(state.per) :] != (state.form.arrays[0].shape[0], 1):
        return rule
    numbers = make("squeeze", rate, shape=rate.shape[:-1])
    alone = replace(rule.rule, rate=constant(1.0, rate))
    return replace(rule, rule=alone, surprise=mul(numbers, rule.surprise), settings={})


def learned_rule(state: State, array: str, learn: Learn) -> LinearRule:
    if not learn.optimizers or learn.streams:
        raise NotLowered(f"the learning rule of `{state.name}`", learn.span)
    shape = next(a.shape for a in state.form.arrays if a.name == array)
    rule = linear_rule(learn.optimizers[shape])
    if rule is None:
        raise NotLowered(
            f"`{learn.rule}`, which is not linear in the gradient, at every token", learn.span
        )
    return rule


# ---- class iv: any memory that multiplies
# ------------------------------------------------------------


def array_rules(box: Box, state: State, grad: Gradient, frozen: bool) -> Iterator[ArrayRule]:
    for array in state.form.arrays:
        examples = [e for e in grad.examples if e.array == array.name]
        if len(examples) != 1 and frozen:
            raise NotLowered(
                f"an objective of `{state.name}` that calls it {len(examples)} times", state.span
            )
        learn = state.rule.learn.get(array.name)
        if learn is not None and learn.rule == "implicit" and len(examples) != 1:
            raise NotLowered(f"`implicit` on several pairs of `{state.name}`", state.span)
        for example in examples:
            if frozen and len(example.input.shape) - len(state.per) == 2:
                raise NotLowered("several writes a tick with frozen gradients", state.span)
            yield array_rule(box, state, grad, example, frozen)


def array_rule(
    box: Box, state: State, found: Gradient, example: Example, frozen: bool
) -> ArrayRule:
    settings: Mapping[str, Term] = {}
    rule = LinearRule(constant(1.0, example.surprise))
    surprise, array = example.surprise, example.array
    learn = state.rule.learn.get(array)
    late = state.rule.after_retain
    ridge = shrinkage(found)
    if state.rule.write is None:
        if learn is None:
            raise NotLowered(f"the learning rule of `{state.name}`", state.span)
        settings = learn.settings
        if learn.rule == "implicit":
            rule, surprise = proximal(state, learn, example, ridge)
            late = True
        else:
            rule = learned_rule(state, array, learn)
        check_rates(state, learn, rule.momentum is not None, frozen)
        several = learn.steps > 1
        tied = rule.momentum is not None or rule.erase is not None  # to what the step before wrote
        if several and (frozen or tied or learn.rule == "implicit"):
            raise NotLowered(f"`steps = {learn.steps}` of `{learn.rule}`", learn.span)
        moves = several or rule.momentum is not None or bool(state.rule.through)
        if ridge is not None and (frozen or moves):
            raise NotLowered(f"a ridge of `{state.name}` with `{learn.rule}`", learn.span)
    if state.rule.after_retain and (frozen or rule.erase is not None):
        beside = "frozen gradients" if frozen or learn is None else f"`{learn.rule}`"
        raise NotLowered(f"`after retain` of `{state.name}` with {beside}", state.span)
    before, keep = state.rule.retain, kept(state, rule, learn, ridge)
    if late and keep is not before:
        late = False
        if before is not None:
            if touched(before, values_of(box)):
                raise NotLowered(f"a retention that `{state.name}` makes itself", state.span)
            surprise = before_fading(surprise, before, len(state.per), (array,))
    check_retention(state, keep, rule)
    return ArrayRule(state.name, array, example.input, surprise, None, rule, settings, keep, late)


def kept(state: State, rule: LinearRule, learn: Learn | None, ridge: Term | None) -> Term | None:
    """What is kept at a tick: the state's retention times the optimizer's, less what a ridge takes
    away; a proximal step divides by what the ridge adds.
    """
    line, settings = state.rule.retain, learn.settings if learn is not None else {}
    own = None if rule.keep is None else substitute(rule.keep, settings)
    if ridge is None or learn is None:
        return multiplied(state, line, own)
    if state.per and ridge.shape:
        raise NotLowered(f"a ridge of `{state.name}` for each channel of a head", state.span)
    one = constant(1.0, ridge)
    taken = beside(state, mul, substitute(rule.rate, settings), ridge)
    if learn.rule == "implicit":
        return multiplied(state, line, div(one, add(one, taken)))
    if state.rule.after_retain:
        return multiplied(state, line, beside(state, sub, own or one, taken))
    return beside(state, sub, multiplied(state, line, own) or one, taken)


def multiplied(state: State, a: Term | None, b: Term | None) -> Term | None:
    return b if a is None else a if b is None else beside(state, mul, a, b)


def beside(state: State, f: Callable[[Term, Term], Term], a: Term, b: Term) -> Term:
    """Of gates that are one number a head, or one a channel of a head."""
    heads = len(state.per)
    if heads and len(a.shape) != len(b.shape) and a.op != "const" and b.op != "const":
        a, b = (column(t) if len(t.shape) == heads else t for t in (a, b))
    return f(a, b)


def proximal(
    state: State, learn: Learn, example: Example, ridge: Term | None
) -> tuple[LinearRule, Term]:
    """`implicit(rate)`: the rate is inside the surprise (2.9.4)."""
    rate = learn.settings.get("rate", constant(1.0, example.surprise))
    single = state.form.kind == "matrix" and len(state.form.arrays) == 1
    one = len(example.input.shape) - len(state.per) == 1  # pairs of a window meet each other
    numbers = ridge is None or not ridge.shape and rate.shape in ((), (1,))
    surprise = implicit_step(example, rate, ridge) if single and one and numbers else None
    if surprise is None or learn.steps > 1:
        raise NotLowered(f"`implicit` on an objective of `{state.name}` of this form", learn.span)
    return LinearRule(rate), surprise


def check_rates(state: State, learn: Learn, momentum: bool, frozen: bool) -> None:
    """One number a memory (or head); exactly, without momentum, or one a channel of a matrix."""
    for name, term in learn.settings.items():
        own = term.shape[len(state.per) :]
        channel = not frozen and not momentum and state.form.kind == "matrix" and name == "rate"
        if own not in ((), (1,)) and not (channel and len(own) <= 2):
            raise NotLowered(f"a `{name}` for each channel of `{state.name}`", learn.span)


def check_retention(state: State, keep: Term | None, rule: LinearRule) -> None:
    """One number a memory (or head); for a matrix, without momentum, or one an input channel."""
    if keep is None:
        return
    per = len(state.per)
    own = keep.shape[per:] if len(keep.shape) >= per else keep.shape
    single = state.form.kind == "matrix" and rule.momentum is None and len(own) == 1
    if own not in ((), (1,)) and not single:
        raise NotLowered(f"a retention of this shape for `{state.name}`", state.span)


def narrow_rates(state: State, rule: ArrayRule) -> bool:
    """One number a memory (or head)."""
    return all(t.shape[len(state.per) :] in ((), (1,)) for t in rule.settings.values())


def one_number(term: Term) -> Term | None:
    """A term that is the same in every entry, as one number; None if we cannot tell."""
    if term.shape == ():
        return term
    if term.op in ("expand", "column"):
        return one_number(term.args[0])
    if term.op in ("add", "sub", "mul", "div", "neg"):
        parts = [one_number(a) for a in term.args]
        if None not in parts:
            return make(term.op, *(p for p in parts if p is not None))
    return None
