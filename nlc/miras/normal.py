"""STAGE: box -> normal form: what a memory writes, in the numbers that its gates come to.

A memory that multiplies and whose error is `f M(k) + g v` writes, whatever its rule is called,

    M = keep * M - erase * (M k) k' + write * v k'        [with momentum: what is written, filtered]

Two memories are one function of their streams if all that is no number is the same (`kind`) and one
choice of gates gives the same numbers. The derivation is the compiler's own (`derive.py`); sympy
holds the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sympy

from ..backward import Underivable
from ..derive import affine, alike, linear_rule, reverse, squared, substitute
from ..levels import form_text
from ..rules import Example, LinearRule, Product
from ..show import Writer
from ..system import Array, Assign, Box, Learn, Shape, State, Term
from .symbols import (
    FLOATS,
    PAIRS,
    Evaluator,
    Expr,
    Point,
    Unknown,
    fingerprint,
    generic,
    link_text,
    named,
    number,
    streams,
    symbol,
)
from .symbols import Array as Entries

ONE, ZERO = number(1), number(0)
LENGTH = symbol("k2")  # |k|^2, the squared length of what the memory is called on
Numbers = dict[str, Expr]


class NoForm(Exception):
    """The memory has no normal form; its message says why. Never leaves this package."""


@dataclass(frozen=True)
class Normal:
    """`kind`: all that is no number. `numbers`: what the gates come to. `gates`: the caller's
    numbers, each with its shape.

    `target`: the stream whose length is free, since the memory answers in proportion to it;
    `steady`: only by a number that is the same at all tokens.
    """

    kind: tuple[str, ...]
    numbers: Numbers
    gates: Mapping[str, Shape]
    key: str = "k"
    target: str = "v"
    steady: bool = False


@dataclass(frozen=True)
class Parts:
    """What is read off a box on the way."""

    box: Box
    state: State
    learn: Learn
    example: Example
    values: Evaluator
    key: str
    target: str
    kind: tuple[str, ...] = ()
    numbers: Numbers = field(default_factory=dict)

    @property
    def past(self) -> bool:
        return any(t.op == "past" for t in self.example.input.walk())

    @property
    def linear(self) -> bool:
        return self.state.form.kind == "matrix"

    @property
    def dual(self) -> bool:
        """Whether it is read through a function of what is kept."""
        return self.state.rule.through is not None

    @property
    def first(self) -> bool:
        """Whether the error is that of the state which has already forgotten."""
        return self.state.rule.after_retain and self.state.rule.retain is not None

    def with_(self, *kind: str, **numbers: Expr) -> Parts:
        return replace(self, kind=(*self.kind, *kind), numbers={**self.numbers, **numbers})


def normal(box: Box) -> Normal:
    """Raises NoForm where there is none."""
    state = next((s for s in box.states if s.rule.changes), None)
    if state is None or state.rule.objective is None or len(box.states) > 1 or state.per:
        raise NoForm("not one state with an objective of its own")
    learn = next(iter(state.rule.learn.values()))
    if learn.rule == "exact":
        return solved(box, state)
    try:
        parts = error(retained(parts_of(box, state, learn)))
    except (Unknown, Underivable) as unknown:
        raise NoForm(str(unknown)) from None
    others = {parts.key, parts.target, *read_only(box)}
    gates = {n: shape for n, shape in box.inputs if n not in others}
    return Normal(parts.kind, parts.numbers, gates, parts.key, parts.target, parts.past)


def read_only(box: Box) -> set[str]:
    """Inputs that only the read uses."""
    kept = {t.info for s in box.states for t in rule_terms(s) if t.op == "input"}
    kept |= {t.info for value in lines_of(box).values() for t in value.walk() if t.op == "input"}
    return {n for n, _ in box.inputs} - kept


def rule_terms(state: State) -> list[Term]:
    rule = state.rule
    roots = [t for t in (rule.objective, rule.retain) if t is not None]
    roots += [t for learn in rule.learn.values() for t in learn.settings.values()]
    return [t for root in roots for t in root.walk()]


def lines_of(box: Box) -> dict[str, Term]:
    """Plain lines by name; a name that is bound twice has no one meaning."""
    lines = [line for line in box.lines if isinstance(line, Assign)]
    found = {line.name: line.value for line in lines}
    if len(found) < len(box.lines):
        raise NoForm("lines in a loop, or a name that is bound twice")
    return found


# ---- the error of what a memory says -------------------------------------------------------------


def parts_of(box: Box, state: State, learn: Learn) -> Parts:
    examples = said(box, state)
    if len(examples) != 1:
        raise NoForm(f"it is asked {len(examples)} times")
    example = examples[0]
    given: dict[Any, Entries] = {**streams(box, named)}
    given[id(example.output)] = prediction(example, named)
    values = Evaluator(given, lines_of(box))
    key = vectors(box, example.input)
    rest = vectors(box, example.surprise, without=(*key, *strengths(box, example)))
    if len(key) != 1 or len(rest) != 1:
        raise NoForm("what is the key, and what the value?")
    form = "matrix" if state.form.kind == "matrix" else form_text(state.form)
    window = next((t.info.window for t in example.input.walk() if t.op == "past"), None)
    kind = [form, *([f"the last {-window if window < 0 else window}"] if window else [])]
    kind += ["exchanged"] if box.read is not None and box.read.op == "matmul" else []
    if box.linearise is not None and box.linearise > 1:
        kind.append(f"frozen {box.linearise}")
    return Parts(box, state, learn, example, values, key[0], rest[0], tuple(kind))


def said(box: Box, state: State) -> list[Example]:
    """The error of what the memory says, the memory being one product whatever it is made of."""
    assert state.rule.objective is not None
    whole = Array("", (state.form.outs or 0, state.form.ins or 0), 0.0)
    done: dict[int, Term] = {}
    known: dict[object, Term] = {}

    def visit(term: Term) -> Term:
        if id(term) not in done:
            args = tuple(visit(a) for a in term.args)
            new = Term(term.op, args, term.shape, term.info, term.form, term.span)
            if term.op == "apply":
                product = known.get(("own", id(args[0])))
                new = product or Term(
                    "product", args, term.shape, Product(term.info, whole), None, term.span
                )
                known["own", id(args[0])] = new
            elif term.op == "state":
                raise Underivable("used as an array")
            done[id(term)] = alike(squared(new), known)
        return done[id(term)]

    examples, _ = reverse(visit(state.rule.objective))
    return examples


def prediction(example: Example, point: Point) -> Entries:
    rows = (PAIRS,) if len(example.output.shape) > 1 else ()
    return point("what it says", (*rows, example.output.shape[-1]))


def vectors(box: Box, term: Term, without: tuple[str, ...] = ()) -> list[str]:
    """The inputs of a term that are vectors."""
    shapes = dict(box.inputs)
    found = [t.info for t in term.walk() if t.op == "input" and len(shapes[t.info]) == 1]
    return [n for n in dict.fromkeys(found) if n not in without]


def strengths(box: Box, example: Example) -> list[str]:
    """Vectors that weigh the error, one number a channel: they multiply the prediction."""
    line = affine(example.surprise, example.output)
    return vectors(box, line.factor) if line is not None and line.factor is not None else []


# ---- retention -----------------------------------------------------------------------------------


def retained(parts: Parts) -> Parts:
    """How much is kept, of what, and through which function."""
    rule = parts.state.rule
    for word, links in (("through", rule.through), ("onto", rule.onto)):
        if links:
            parts = parts.with_(*(f"{word} {link_text(link)}" for link in links.values()))
    if rule.retain is None or (rule.retain.op == "const" and rule.retain.info == 1):
        return parts.with_("keeps all")
    kept = parts.values.of(rule.retain)
    channel = {0: "", 1: " a key channel", 2: " a value channel"}[kept.ndim]
    return parts.with_(f"keeps{channel}", keep=one_entry(kept))


def one_entry(x: Entries) -> Expr:
    """The same expression in every entry, as one: the index of a channel is left out."""
    entries = [generic(e) for e in x.flat]
    if any(e != entries[0] for e in entries):
        raise NoForm("entries of one array by different rules")
    return entries[0]


# ---- the rule ----------------------------------------------------------------------------------


def error(parts: Parts) -> Parts:
    """The numbers of a rule whose error is affine in what the memory says, or not."""
    example = parts.example
    line = affine(example.surprise, example.output)
    if line is None:
        return curved(parts)
    f = ZERO if line.factor is None else one_entry(parts.values.of(line.factor))
    g = ZERO if line.rest is None else proportion(parts, line.rest)
    if any(vectors(parts.box, t) for t in (line.factor,) if t is not None):
        parts = parts.with_("one strength a value channel")
    return straight(parts, f, g)


def proportion(parts: Parts, rest: Term) -> Expr:
    """What a part of the error is to the target."""
    v = parts.values.of(target_of(parts, rest))
    made = np.broadcast_to(parts.values.of(rest), v.shape)
    return one_entry(
        np.array([sympy.cancel(a / b) for a, b in zip(made.flat, v.flat, strict=True)])
    )


def target_of(parts: Parts, rest: Term) -> Term:
    wanted = [t for t in rest.walk() if t.op in ("input", "past")]
    names = {id(t): t.info if t.op == "input" else t.args[0].info for t in wanted}
    found = [t for t in wanted if names[id(t)] == parts.target]
    return next((t for t in found if t.op == "past"), found[0])


def straight(parts: Parts, f: Expr, g: Expr) -> Parts:
    """e = f y + g v, by any rule."""
    learn = parts.learn
    alone = parts.linear and not parts.past and not parts.dual
    blind = parts.linear and f == 0  # the gradient is the same wherever it is taken
    linear = linear_of(parts)
    if learn.rule == "implicit" and (alone or blind):
        rate = setting(parts, "rate")
        met = 1 + rate * LENGTH * f
        return ordered(as_matrix(parts, rate, f / met, g / met), f, True)
    if linear is None or (learn.steps > 1 and not alone and not blind):
        kind = (f"by {rule_text(learn)}", f"error {f} y + {g} v")
        return ordered(parts.with_(*kind, rate=setting(parts, "rate"), whole=ONE), f)
    rate, parts = rate_of(parts, linear)
    erase = ZERO if linear.erase is None else valued(parts, linear.erase)
    if parts.linear and not parts.dual:
        f, g = stepped(f + erase, g, rate, learn.steps)
        return ordered(as_matrix(parts, rate, f, g), f)
    parts = parts.with_("clears its input", clear=rate * erase) if erase != 0 else parts
    return ordered(as_error(parts, rate, f, g * learn.steps), f + erase)


def rate_of(parts: Parts, linear: LinearRule) -> tuple[Expr, Parts]:
    """The rate, and what is said of a momentum."""
    if linear.momentum is None:
        return valued(parts, linear.rate), parts
    _, factor = gained(next(iter(parts.learn.optimizers.values())))
    gain = ONE if factor is None else valued(parts, factor)
    parts = parts if gain == 1 else parts.with_("with a gain", gain=gain)
    return valued(parts, linear.rate), parts.with_(
        "momentum", momentum=valued(parts, linear.momentum)
    )


def stepped(f: Expr, g: Expr, rate: Expr, steps: int) -> tuple[Expr, Expr]:
    """Several steps on one pair: the error after a step is `1 - rate f |k|^2` of what it was."""
    left = 1 - rate * f * LENGTH
    whole = sympy.expand(sum(left**j for j in range(steps)))
    return f * whole, g * whole


def as_matrix(parts: Parts, rate: Expr, f: Expr, g: Expr) -> Parts:
    """What is erased and what is written of a matrix."""
    if f == 0:
        return parts.with_("blind", write=-rate * g)
    return parts.with_("erases", erase=rate * f, write=-rate * g)


def as_error(parts: Parts, rate: Expr, f: Expr, g: Expr) -> Parts:
    """The error as a whole: `rate (y - whole v)`."""
    if f == 0:
        return parts.with_("blind", write=-rate * g)
    return parts.with_("in proportion", rate=rate * f, whole=sympy.cancel(-g / f))


def rule_text(learn: Learn) -> str:
    w = Writer()
    given = [f"{n} = {w.text(t)}" for n, t in sorted(learn.settings.items()) if n != "rate"]
    return f"{learn.rule}({', '.join([*given, f'{learn.steps} times'])})"


def setting(parts: Parts, name: str) -> Expr:
    term = parts.learn.settings.get(name)
    return ONE if term is None else one_entry(parts.values.of(term))


def valued(parts: Parts, term: Term) -> Expr:
    return one_entry(parts.values.of(substitute(term, parts.learn.settings)))


def linear_of(parts: Parts) -> LinearRule | None:
    """The optimizer as a recurrence; one that writes its memory times a gain is one too."""
    if parts.learn.streams or not parts.learn.optimizers:
        return None
    optimizer = next(iter(parts.learn.optimizers.values()))
    memory, _ = gained(optimizer)
    return linear_rule(optimizer if memory is None else replace(optimizer, write=memory))


def gained(optimizer: Box) -> tuple[Term | None, Term | None]:
    """`gain * m`: the memory that is written, and the gain it is written with."""
    match optimizer.write:
        case Term(op="mul", args=(gain, Term(op="state") as memory)):
            return memory, gain
        case Term(op="mul", args=(Term(op="state") as memory, gain)):
            return memory, gain
    return None, None


def ordered(parts: Parts, reads: Expr, implicit: bool = False) -> Parts:
    """An error that is taken after the retention is one taken before it, where what is kept is one
    number: `erase * a` in place of `erase`. Elsewhere the order is part of the kind.
    """
    first = (parts.first or implicit) and "keep" in parts.numbers
    if not first or (reads == 0 and parts.linear):
        return parts
    if "keeps" not in parts.kind or "erase" not in parts.numbers or parts.dual:
        return parts.with_("forgets first")
    return parts.with_(erase=parts.numbers["erase"] * parts.numbers["keep"])


# ---- errors that bend --------------------------------------------------------------------------


def curved(parts: Parts) -> Parts:
    """An error that is not affine: told by its own text. Where it grows in proportion to the length
    of all that it is made of, the order of error and retention is a matter of scale.
    """
    names = [t.info for t in parts.example.surprise.walk() if t.op == "input"]
    bounds = [n for n in dict.fromkeys(names) if n not in (parts.key, parts.target)]
    numbers: Numbers = {n: symbol(n) for n in bounds}
    parts = parts.with_(f"error {fingerprint(lambda at: error_at(parts, at))}", **numbers)
    linear = linear_of(parts) if parts.learn.steps == 1 else None
    if linear is None:
        parts = parts.with_(f"by {rule_text(parts.learn)}", rate=setting(parts, "rate"), whole=ONE)
        return parts.with_("forgets first") if parts.first else parts
    rate, parts = rate_of(parts, linear)
    if linear.erase is not None:
        parts = parts.with_("clears its input", clear=rate * valued(parts, linear.erase))
    return scaled(parts.with_(rate=rate, whole=ONE), bounds)


def error_at(parts: Parts, point: Point) -> Entries:
    given: dict[Any, Entries] = {**streams(parts.box, point)}
    given[id(parts.example.output)] = prediction(parts.example, point)
    return Evaluator(given, lines_of(parts.box), FLOATS).of(parts.example.surprise)


def scaled(parts: Parts, bounds: list[str]) -> Parts:
    if not parts.first:
        return parts
    power = degree(parts.example.surprise, parts.example.output)
    single = "keeps" in parts.kind and parts.linear and not parts.past and not parts.dual
    if power is None or not single:
        return parts.with_("forgets first")
    keep = parts.numbers["keep"]
    folded = {n: symbol(n) / keep for n in bounds}
    if "clear" in parts.numbers:
        folded["clear"] = parts.numbers["clear"] * keep
    return parts.with_(rate=parts.numbers["rate"] * keep**power, whole=1 / keep, **folded)


def degree(term: Term, output: Term) -> int | None:
    """d where the term is a^d as large if what the memory says, the target and all bounds are a
    times as large; None if it is no such thing.
    """
    if term is output or term.op == "input":
        return 1
    if term.op == "const":
        return 0
    found = [degree(a, output) for a in term.args]
    if None in found:
        return None
    args = [d for d in found if d is not None]
    match term.op:
        case "add" | "sub" | "lt" | "le" | "gt" | "ge" | "where":
            picked = zip(args[-2:], term.args[-2:], strict=True)
            kinds = {d for d, t in picked if not (t.op == "const" and t.info == 0)}
            same = len(kinds) <= 1
            value = 0 if term.op in ("lt", "le", "gt", "ge") else next(iter(kinds), 0)
            return value if same else None
        case "mul":
            return sum(args)
        case "div":
            return args[0] - args[1]
        case "pow" if term.args[1].op == "const" and float(term.args[1].info).is_integer():
            return args[0] * int(term.args[1].info)
        case "neg" | "abs" | "sum" | "length" | "column" | "squeeze" | "expand" | "sum_to":
            return args[0]
        case "sign" | "length_slope":
            return 0
    return None


# ---- what is solved ----------------------------------------------------------------------------


def solved(box: Box, state: State) -> Normal:
    """`exact`: by the text of its objective, with the gates called by the order they come in."""
    assert state.rule.objective is not None
    names = [n for n, _ in box.inputs if n not in ("q", "k", "v")]
    seen = [t.info for t in state.rule.objective.walk() if t.op == "input" and t.info in names]
    gates = {n: dict(box.inputs)[n] for n in dict.fromkeys(seen)}
    text = Writer().text(state.rule.objective)
    for i, name in enumerate(gates):
        text = text.replace(name, f"gate{i}")
    return Normal(("exact", text), {f"gate{i}": symbol(n) for i, n in enumerate(gates)}, gates)
