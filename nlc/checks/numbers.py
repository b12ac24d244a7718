"""Numbers: what grows without bound (NL501), what is infinite where it starts (NL502), what is
kept of a state and is no part of it (NL504).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..diagnostics import Diagnostic
from ..system import Box, Handle, Lambda, Learn, State, Term
from ..text import Span
from .facts import Facts, header
from .terms import distinct

LINEAR = 1
STEEP = 1e8  # a slope that no first step survives
NEAR = 1e-18  # as close to the start as the slope is taken


# ---- growth ----


def nl501(facts: Facts) -> Iterator[Diagnostic]:
    """A state that is never reset, keeps all, and is only ever added to."""
    for level in facts.system.levels:
        if level.resets.unit != "never" or level.clock.unit in ("never", "always"):
            continue
        for box in facts.boxes_of[level.name]:
            for state in box.states:
                if keeps_all(state) and only_adds(facts, box, state):
                    message = (
                        f"`{state.name}` grows without bound: it is never reset and keeps all "
                        "(`retain` 1) of what it adds"
                    )
                    span = facts.place(header(state.span), header(level.span))
                    help = "add `retain 0.99`, or a `reset`, or take the error of what it says"
                    yield Diagnostic("NL501", message, span, help)


def keeps_all(state: State) -> bool:
    rule = state.rule
    kept = rule.retain is None or (rule.retain.op == "const" and rule.retain.info == 1)
    return kept and rule.through is None and rule.onto is None


def only_adds(facts: Facts, box: Box, state: State) -> bool:
    """What is added does not depend on the state: a write without it, or a constant gradient."""
    rule = state.rule
    degree = Degree(facts, box, state)
    if rule.write is not None:
        return degree.of(rule.write) == 0
    if rule.objective is None or not rule.learn:
        return False
    return degree.of(rule.objective) == LINEAR and all(map(adds, rule.learn.values()))


def adds(learn: Learn) -> bool:
    """Whether the rule neither shrinks the weight nor looks at it."""
    boxes = list(learn.optimizers.values())
    return bool(boxes) and all(b.retain is None and not looks(b) for b in boxes)


def looks(box: Box) -> bool:
    return any(t.op == "input" and t.info in ("weight", "input") for t in box.terms())


class Degree:
    """The degree of an expression in a state: 0, 1, or 2 for all that is not linear."""

    KEEP = frozenset(
        [
            "add",
            "sub",
            "neg",
            "sum",
            "mean",
            "split",
            "join",
            "column",
            "squeeze",
            "stack",
            "concat",
            "reshape",
            "transpose",
            "item",
            "where",
        ]
    )
    TIMES = frozenset(["mul", "dot", "matmul", "outer", "linear"])

    def __init__(self, facts: Facts, box: Box, state: State) -> None:
        self.facts = facts
        self.box = box
        self.state = state
        self.known: dict[int, int] = {}

    def of(self, term: Term) -> int:
        if id(term) not in self.known:
            self.known[id(term)] = min(self.fresh(term), 2)
        return self.known[id(term)]

    def fresh(self, term: Term) -> int:
        args = [self.of(a) for a in term.args]
        most = max(args, default=0)
        if term.op in ("state", "apply") and self.own(term.info):
            linear = self.state.form.kind in ("vector", "matrix", "table", "like")
            return LINEAR + most if linear else 2
        if term.op == "loss":
            return 2
        if term.op == "local":
            return max(
                map(self.of, self.facts.values.get((id(self.box), term.info), [])), default=0
            )
        if term.op in self.KEEP:
            return most
        if term.op in self.TIMES:
            return sum(args)
        if term.op == "div" and args[1] == 0:
            return args[0]
        return 2 if most else 0

    def own(self, handle: Handle) -> bool:
        return handle.box is self.box and handle.name == self.state.name


# ---- retention ----


def nl504(facts: Facts) -> Iterator[Diagnostic]:
    """A retention that is known when compiled, and is no fraction."""
    lines = dict(used_by(facts))
    for box in facts.all_boxes:
        kept = [(f"`{s.name}`", s.rule.retain, s.span) for s in box.states]
        for name, term, span in [*kept, ("the weight", box.retain, box.span)]:
            found = None if term is None else constant(facts, box, term)
            if term is None or found is None or 0 <= found <= 1:
                continue
            rule = f" in `{box.name}`" if box.kind == "optimizer" else ""
            yield Diagnostic(
                "NL504",
                f"the retention of {name}{rule} is {found:g}; it is the fraction kept, from 0 to 1",
                facts.place(term.span, lines.get(id(box), term.span), header(span)),
                "below 0 the sign turns at each firing" if found < 0 else "beyond 1 it only grows",
            )


def used_by(facts: Facts) -> Iterator[tuple[int, Span]]:
    """Optimizers, with what is inside them, and the line that asks for them."""
    learns = [l for level in facts.system.levels for l in level.learn]
    learns += [l for b in facts.all_boxes for s in b.states for l in s.rule.learn.values()]
    for learn in learns:
        for rule in learn.optimizers.values():
            yield from ((id(b), learn.span) for b in (rule, *rule.levels))


def constant(facts: Facts, box: Box, term: Term) -> float | None:
    """The number that a term is, if it is one whatever the streams are."""
    if term.op == "local":
        values = facts.values.get((id(box), term.info), [])
        return constant(facts, box, values[0]) if len(values) == 1 else None
    return Uniform(math.nan).of(term) if not any(map(varies, term.walk())) else None


def varies(term: Term) -> bool:
    return not term.args and term.op != "const"


# ---- starts ----


def nl502(facts: Facts) -> Iterator[Diagnostic]:
    """A link from the dual that is no number, or infinitely steep, where the state starts."""
    for box in facts.system.boxes:
        for state in box.states:
            start = uniform_start(state)
            for link in (state.rule.through or {}).values():
                if broken(link, BELOW if start is None else start):
                    yield infinite(facts, box, state, link, drawn=start is None)
                    break

    yield from steep_factors(facts)


def steep_factors(facts: Facts) -> Iterator[Diagnostic]:
    """The orthogonal factor of a state that starts with no rank: a number, and no derivative. An
    objective asks for one; what is read or written, if a slower level learns through it.
    """
    for box in facts.system.boxes:
        for state in box.states:
            if uniform_start(state) is None or state.rule.through is not None:
                continue
            own = list(distinct([t for t in [state.rule.objective] if t is not None]))
            for t in facts.box_terms[id(box)]:
                if t.op == "qr" and of_state(t.args[0], box, state):
                    yield no_slope(facts, box, state, t, any(t is x for x in own))


def no_slope(facts: Facts, box: Box, state: State, t: Term, asked: bool) -> Diagnostic:
    message = (
        f"`{t.span.text}` has no derivative at the start of `{state.name}`, which is of no rank"
    )
    end = "the gradient of this objective" if asked else "a gradient that passes through it"
    return Diagnostic(
        "NL502",
        f"{message}: {end} is no number",
        facts.place(t.span, header(state.span), header(box.span)),
        f"start `{state.name}` from `= normal(0.02)`",
        severity="error" if asked else "warning",
    )


def of_state(term: Term, box: Box, state: State) -> bool:
    """The array itself, or a part or a multiple of it."""
    if term.op in ("state", "array"):
        return bool(term.info.box is box and term.info.name == state.name)
    return term.op in SCALED and any(of_state(a, box, state) for a in term.args)


SCALED = ("mul", "div", "neg", "transpose", "reshape", "stop")


def infinite(facts: Facts, box: Box, state: State, link: Lambda, drawn: bool) -> Diagnostic:
    at = link.body.span
    text = next((t.span.text for t in link.body.walk() if t.op == "argument"), at.text)
    span = facts.place(header(state.span), header(box.level.span) if box.level else at)
    help = "start from `= normal(0.02)`"
    if broken(link, BELOW):  # a logarithm or a root
        help = "take a link that is a number on both sides of 0, as `softmax` or `exp`"
    what = f"`{text}` is infinite at the start `zeros` of `{state.name}`"
    if drawn:
        what = f"`{text}` is no number where `{state.name}` starts below 0, as half of a draw does"
    return Diagnostic("NL502", what, span, help)


BELOW = -0.02  # half of what normal draws


def uniform_start(state: State) -> float | None:
    """The number that a state starts with everywhere, if there is one."""
    start = state.start
    if start is None:
        return 0.0 if all(a.std == 0 for a in state.form.arrays) else None
    if start.op == "const" and isinstance(start.info, (int, float)):
        return float(start.info)
    return 0.0 if start.op == "zeros" else None


def broken(link: Lambda, start: float) -> bool:
    here, near = (Uniform(x).of(link.body) for x in (start, start + NEAR))
    if here is None or near is None:
        return False
    if not math.isfinite(here):
        return True
    return start == 0 and abs(near - here) > STEEP * NEAR


class Uniform:
    """The value of a function of arrays whose entries are all one number; None where it varies."""

    def __init__(self, x: float) -> None:
        self.x = x
        self.known: dict[int, float | None] = {}

    def of(self, term: Term) -> float | None:
        if id(term) not in self.known:
            self.known[id(term)] = self.fresh(term)
        return self.known[id(term)]

    def fresh(self, term: Term) -> float | None:
        if term.op == "argument":
            return self.x
        if term.op == "const":
            return float(term.info)
        args = [self.of(a) for a in term.args]
        values = [a for a in args if a is not None]
        if not args or len(values) < len(args):
            return None
        try:
            return self.made(term, values)
        except (OverflowError, ZeroDivisionError, ValueError):
            return math.nan

    def made(self, term: Term, args: list[float]) -> float | None:
        x = args[0]
        if term.op in ("sum", "mean"):
            return x * (entries(term) if term.op == "sum" else 1)
        if term.op == "length":
            return math.pow(entries(term) * math.pow(abs(x), term.info), 1 / term.info)
        if term.op == "frobenius":
            return abs(x) * math.sqrt(entries(term))
        if term.op == "softmax":
            return 1 / term.args[0].shape[-1]
        if term.op == "unit":
            return x / math.sqrt(term.args[0].shape[-1] * x * x + 1e-30)
        f = SCALAR.get(term.op)
        return f(*args) if f is not None else None


def entries(term: Term) -> int:
    """How many numbers a reduction takes together."""
    shape = term.args[0].shape
    if term.op == "length" or term.info == 1:
        return shape[-1]
    return math.prod(shape)


SCALAR: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "pow": lambda a, b: a**b, "neg": lambda a: -a,
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "abs": abs, "tanh": math.tanh,
    "sign": lambda a: float((a > 0) - (a < 0)), "min": min, "max": max,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)), "relu": lambda a: max(a, 0.0),
    "softplus": lambda a: math.log1p(math.exp(a)), "column": lambda a: a, "squeeze": lambda a: a,
    "transpose": lambda a: a, "reshape": lambda a: a,
    "smooth_abs": lambda a: math.sqrt(a * a + 1e-6),
    "smooth_sign": lambda a: a / math.sqrt(a * a + 1e-6), "stop": lambda a: a,
    "clip": lambda a, low, high: min(max(a, low), high),
}  # fmt: skip
