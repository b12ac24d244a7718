"""PAGE: the nested system, typed and resolved: what `resolve` makes of a syntax tree and every
later stage reads.

Sizes, periods and counts are numbers here, `def`s are expanded, and a box stands where it is
called.
A `repeat n` whose round changes no shape stays one `Loop`: what is made in it is made once a round,
and its path
holds `{}` where the number of the round goes (the outermost loop first). Any other `repeat` is
written out.
Shapes are those of the language: without batch, time and the axes a memory is mapped over.
A negative size -w is the length of `past(x, w)`: at most w (ALL, if no window is given), and
shorter after a reset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .text import NOWHERE, Span

Shape = tuple[int, ...]
ALL = -(10**9)
EXAMPLES = ALL + 1  # the size of the first axis of an optimizer's `input` and `surprise`


# ---- forms: what a state is made of ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a form. `std` is the deviation of the usual draw (0: zeros)."""

    name: str
    shape: Shape
    std: float


@dataclass(frozen=True, slots=True)
class Form:
    """`kind`: vector, matrix, table, mlp, gated_mlp, residual, layernorm, like.

    `sizes`: as written (an mlp's with its output size); for `like`, the shape. `act` is the
    activation of an mlp
    (an element-by-element function of the language). residual and layernorm wrap `inner`.
    """

    kind: str
    sizes: Shape = ()
    act: str = "gelu"
    inner: Form | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        s = self.sizes
        match self.kind:
            case "vector" | "like":
                return (Array("", s, 0.0),)
            case "matrix":
                return (Array("", (s[1], s[0]), 0.0),)
            case "table":
                return (Array("", s, 1.0),)
            case "mlp":
                pairs = itertools.pairwise(s)
                return tuple(Array(f"W{i}", (b, a), a**-0.5) for i, (a, b) in enumerate(pairs, 1))
            case "gated_mlp":
                n, h = s
                return (
                    Array("W1", (h, n), n**-0.5),
                    Array("W2", (n, h), h**-0.5),
                    Array("W3", (h, n), n**-0.5),
                )
        assert self.inner is not None
        return self.inner.arrays

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The arrays that take the inputs, and those that give the outputs (2.5.4)."""
        core = self.core
        if core.kind == "mlp":
            return ("W1",), (f"W{len(core.sizes) - 1}",)
        return (("W1", "W3"), ("W2",)) if core.kind == "gated_mlp" else (("",), ("",))

    @property
    def core(self) -> Form:
        """The form inside `residual` and `layernorm`."""
        return self if self.inner is None else self.inner.core

    @property
    def ins(self) -> int | None:
        """The size of the vectors it may be called on; None for those that cannot be called."""
        return {
            "matrix": self.core.sizes[:1],
            "mlp": self.core.sizes[:1],
            "gated_mlp": self.core.sizes[:1],
        }.get(self.core.kind, (None,))[0]

    @property
    def outs(self) -> int | None:
        core = self.core
        return {
            "matrix": core.sizes[-1:],
            "mlp": core.sizes[-1:],
            "gated_mlp": core.sizes[:1],
            "table": core.sizes[-1:],
        }.get(core.kind, (None,))[0]

    @property
    def single(self) -> bool:
        """One array, usable as an array."""
        return self.kind in ("vector", "matrix", "table", "like")


# ---- terms: typed expressions ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One operation. `info` is what the operation needs besides terms (the table OPS below says
    what).

    `form` is set, and `shape` is (), where the value is a network and not one array.
    Terms make a graph, not a tree: what a `def` binds and uses twice is one term. Evaluate by
    identity.
    """

    op: str
    args: tuple[Term, ...] = ()
    shape: Shape = ()
    info: Any = None
    form: Form | None = None
    span: Span = field(default=NOWHERE, repr=False)

    def walk(self) -> Iterator[Term]:
        """This term and all below it, each once (not into the boxes it calls)."""
        seen: set[int] = set()
        stack = [self]
        while stack:
            term = stack.pop()
            if id(term) not in seen:
                seen.add(id(term))
                yield term
                stack.extend(term.args)


# op -> (number of arguments or None, what `info` holds)
OPS: Mapping[str, tuple[int | None, str]] = {
    # leaves
    "const": (0, "the number"),
    "input": (0, "name of an input of this body (of the box, the flow or the optimizer)"),
    "local": (0, "name of a plain line of this body"),
    "weight": (0, "the Weight"),
    "state": (0, "Handle of a state, read as an array or whole network"),
    "loss": (0, "None"),
    "position": (0, "None"),
    "count": (0, "None: firings of this box so far, this one included"),
    "range": (0, "the size"),
    "eye": (0, "the size"),
    "argument": (0, "name of a parameter of a Lambda"),
    # boxes
    "apply": (1, "Handle of the state that is called on the argument"),
    "call": (None, "the Box that is called; arguments in the order of its inputs"),
    # element by element, numpy broadcasting from the last axis
    "add": (2, ""),
    "sub": (2, ""),
    "mul": (2, ""),
    "div": (2, ""),
    "pow": (2, ""),
    "neg": (1, ""),
    "lt": (2, "1 or 0"),
    "le": (2, ""),
    "gt": (2, ""),
    "ge": (2, ""),
    "eq": (2, ""),
    "exp": (1, ""),
    "log": (1, ""),
    "sqrt": (1, ""),
    "abs": (1, ""),
    "sign": (1, ""),
    "sin": (1, ""),
    "cos": (1, ""),
    "floor": (1, ""),
    "mod": (2, ""),
    "sigmoid": (1, ""),
    "softplus": (1, ""),
    "silu": (1, ""),
    "gelu": (1, "by erf"),
    "tanh": (1, ""),
    "relu": (1, ""),
    "clip": (3, ""),
    "min": (2, ""),
    "max": (2, ""),
    "where": (3, ""),
    "smooth_abs": (1, "sqrt(x^2 + 1e-6)"),
    "smooth_sign": (1, "x / sqrt(x^2 + 1e-6)"),
    # vectors
    "matmul": (2, "the language's @: a vector is a row on the left, a column on the right"),
    "dot": (2, "over the last axis"),
    "outer": (2, "[a], [b] -> [a, b]"),
    "length": (1, "p; over the last axis"),
    "unit": (1, "x / sqrt(sum x^2 + 1e-30), last axis"),
    "frobenius": (1, "of the whole array"),
    "sum": (1, "None: all axes; 1: the last"),
    "mean": (1, "None: all axes; 1: the last"),
    "solve": (2, "x with x @ b = a"),
    "qr": (1, "orthogonal factor, R's diagonal positive"),
    "top": (1, "k: 1 for the k largest of the last axis, else 0; no gradient"),
    "softmax": (1, "last axis"),
    # shape
    "split": (1, "h: [.., n] -> [.., h, n/h]"),
    "join": (1, "[.., h, n] -> [.., h*n]"),
    "column": (1, "adds a last axis of 1"),
    "squeeze": (1, "drops a last axis of 1"),
    "stack": (None, "adds a last axis"),
    "concat": (None, "joins the last axis"),
    "reshape": (1, "the shape is that of the term"),
    "transpose": (1, "last two axes"),
    "item": (1, "int: entry of the first axis"),
    "index": (2, "entries of the first axis, by an array"),
    # weights (the last arguments are weights)
    "linear": (2, "x, W [m, n]"),
    "rms_norm": (2, "x, gain [n]; what is added under the root"),
    "layer_norm": (None, "x, or x, gain, bias; 1e-6 under the root"),
    "embed": (2, "id, table [rows, n]"),
    # time; each with a Slot, which holds what it remembers
    "past": (1, "Slot; [w, *shape], oldest first, this tick's last"),
    "conv": (2, "Slot; x, W [n, taps], taps[-1] is this tick's"),
    "fade": (1, "Slot; [w]: product of a over the ticks after each past one"),
    "rope": (1, "base; halves, by position"),
    "next": (1, "None: the stream one tick on"),
    "dropout": (1, "Slot, with the chance in slot.chance"),
    # training
    "stop": (1, ""),
    "across": (1, "sum over the arrays that the learn line serves"),
    "cross_entropy": (2, "logits, id; a number"),
    # starts
    "zeros": (0, ""),
    "normal": (0, "the deviation"),
    "fresh": (1, "drawn anew at each reset"),
    "copy": (0, "Handle of another state"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Lambda:
    """A function of arrays, for `through` and `onto`: `body` uses terms `argument`."""

    params: tuple[str, ...]
    body: Term


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """What a `past`, `conv`, `fade` or `dropout` remembers: one for each instance of its body.

    `path` has a `{}` for each loop around it. `window`: how many ticks (ALL: since the reset).
    """

    path: str
    kind: str
    window: int
    box: Box | None = None  # whose past it is; None: the flow's
    chance: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An array of the level written without inputs, made where a weight-making function is called.

    `draw`: "normal" (with `std`), "constant" (with `value`). `kind`: matrices, vectors or tables
    (2.9.4).
    """

    path: str
    shape: Shape
    kind: str
    maker: str
    draw: str
    std: float = 0.0
    value: float = 0.0
    loops: Shape = ()  # the counts of the loops around it, one for each {} of the path
    box: Box | None = None  # the body that uses it; None: the flow
    span: Span = field(default=NOWHERE, repr=False)


@dataclass(frozen=True, slots=True)
class Handle:
    """A state of a box: `box.states[name]`. `foreign` if the body that names it is another's
    (2.4.4). `array`: the one that is meant of a network's; None: all of them.
    """

    box: Box
    name: str
    foreign: bool = False
    array: str | None = None

    @property
    def state(self) -> State:
        return self.box.state(self.name)


# ---- lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Assign:
    """`name = value`. The same name may be assigned again, with any shape."""

    name: str
    value: Term


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """`lines`, `count` times; shapes at the end of a round are those at its start."""

    count: int
    lines: tuple[Line, ...]
    span: Span = field(default=NOWHERE, repr=False)


Line = Assign | Loop


# ---- clocks and rules ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clock:
    """`unit`: token, sequence, step, task; or never, always (then `period` is 0)."""

    unit: str
    period: int = 1
    phase: int | None = None

    @property
    def first(self) -> int:
        """The tick of the first firing, counted from 1 (2.6.2)."""
        return self.period if self.phase is None else self.phase

    def fires(self, tick: int) -> bool:
        """At the end of tick `tick` of its unit, counted from 1 (2.6.2)."""
        return tick >= self.first and (tick - self.first) % self.period == 0

    def __str__(self) -> str:
        if self.unit in ("never", "always"):
            return self.unit
        every = f"every {self.unit}" if self.period == 1 else f"every {self.period} {self.unit}s"
        return every if self.phase is None else f"{every} from {self.phase}"


@dataclass(frozen=True, slots=True, eq=False)
class Learn:
    """One `learn` line, for the arrays it serves.

    `rule`: the optimizer's name, or "exact", "implicit". `settings`: the settings the line gives,
    by name, as terms
    of the owner's body. `streams`: the streams that the line replaces (`grad = clipped(grad, 1)`):
    terms over
    `input` terms named weight, grad, input, surprise. `optimizers`: the rule as a box, for each
    shape of array served.
    `targets`: as written (matrices, tables, vectors, names of levels or states); () serves all.
    """

    rule: str
    settings: Mapping[str, Term]
    streams: Mapping[str, Term]
    optimizers: Mapping[Shape, Box]
    targets: tuple[str, ...] = ()
    steps: int = 1
    span: Span = field(default=NOWHERE, repr=False)

    def serves(self, kind: str, *names: str) -> bool:
        return serves(self.targets, kind, *names)

    def is_of(self, other: Learn) -> bool:
        """Whether both are one line of the text, each for other arrays."""
        return self is other or bool(self.span.end) and self.span == other.span

    @property
    def sums_across(self) -> bool:
        """Whether it asks for sums over all arrays that the line serves (2.9.4)."""
        given = (*self.streams.values(), *self.settings.values())
        return any(t.op == "across" for root in given for t in root.walk())


def serves(targets: tuple[str, ...], kind: str, *names: str) -> bool:
    """Whether a learn line with these targets serves an array of this kind, of a level or state so
    named (2.9.4).
    """
    return not targets or any(
        t == kind or any(n == t or n.startswith((f"{t}.", f"{t}[")) for n in names) for t in targets
    )


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """How one state changes (2.8). No part at all: it keeps its start."""

    objective: Term | None = None
    once: bool = False
    retain: Term | None = None
    through: Mapping[str, Lambda] | None = None  # by name of the array
    onto: Mapping[str, Lambda] | None = None
    after_retain: bool = False
    learn: Mapping[str, Learn] = field(default_factory=dict)  # by name of the array
    write: Term | None = None
    set: Term | None = None

    @property
    def changes(self) -> bool:
        return bool(self.learn) or any(t is not None for t in (self.retain, self.write, self.set))

    @property
    def uses_loss(self) -> bool:
        return self.objective is not None and any(t.op == "loss" for t in self.objective.walk())


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`per`: head axes before each array's own. `start`: None is the usual draw (2.3.4).
    `memory`: whose state it is; a level's own has none.
    """

    name: str
    form: Form
    per: Shape
    start: Term | None
    rule: Rule
    span: Span = field(default=NOWHERE, repr=False)
    memory: str = ""

    @property
    def path(self) -> str:
        """Its name in a transfer, after that of the level."""
        return f"{self.memory}.{self.name}" if self.memory else self.name

    def shape(self, array: Array) -> Shape:
        return (*self.per, *array.shape)


# ---- boxes and levels
# ------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Box:
    """A level, a memory or an optimizer, made where it is called (2.4.1).

    `path`: unique, with a `{}` for each loop around the call. `mapped`: leading axes it is mapped
    over (2.4.2), one
    state for each. `inputs`: names and shapes (without the mapped axes; whether each input has them
    is in `stretch`).
    """

    path: str
    name: str
    kind: str  # "level", "memory", "optimizer"
    level: Level | None  # whose clock it has; None inside an optimizer
    inputs: tuple[tuple[str, Shape], ...] = ()
    input_mapped: tuple[
        Shape, ...
    ] = ()  # of each input: its own leading axes (() : the same for all of the map)
    mapped: Shape = ()
    loops: Shape = ()
    lines: tuple[Line, ...] = ()
    states: tuple[State, ...] = ()
    read: Term | None = None
    read_before: bool = False
    linearise: int | None = None
    clock: Clock | None = None  # of a level inside an optimizer; else the level's
    write: Term | None = None  # an optimizer's amount
    retain: Term | None = None  # an optimizer's own
    levels: tuple[Box, ...] = ()  # inside an optimizer
    order: tuple[
        str, ...
    ] = ()  # an optimizer's lines, states and levels as they stand in the text (2.9.6)
    parent: Box | None = None  # the box in whose body it is called
    cites: tuple[str, ...] = ()
    doc: str = ""
    span: Span = field(default=NOWHERE, repr=False)

    def state(self, name: str) -> State:
        return next(s for s in self.states if s.name == name)

    @property
    def exact(self) -> bool:
        """Solved anew at each read: it keeps only its pasts."""
        return any(l.rule == "exact" for s in self.states for l in s.rule.learn.values())

    def terms(self) -> Iterator[Term]:
        """All terms of its body, those of its rules included."""
        roots = list(line_terms(self.lines))
        roots += [t for t in (self.read, self.write, self.retain) if t is not None]
        for state in self.states:
            rule = state.rule
            roots += [
                t
                for t in (state.start, rule.objective, rule.retain, rule.write, rule.set)
                if t is not None
            ]
            for learn in rule.learn.values():
                roots += [*learn.settings.values(), *learn.streams.values()]
        for root in roots:
            yield from root.walk()


def line_terms(lines: tuple[Line, ...]) -> Iterator[Term]:
    """The values of all lines, those in loops included."""
    for line in lines:
        if isinstance(line, Assign):
            yield line.value
        else:
            yield from line_terms(line.lines)


@dataclass(slots=True, eq=False)
class Level:
    """A level, or one member of a family (`name` is then `cms[16]`, `family` is `cms`).

    `owner`: written without inputs, so every unnamed weight is its own. `boxes`: one for each call
    in the text (one,
    if it is never called). `learn`: the lines that serve the weights of an owner; `objective`,
    `once`: an owner's.
    """

    name: str
    family: str
    clock: Clock
    reset: Clock | None = None  # None: the default of 2.6.4
    partial: str = "carry"  # carry, flush, drop
    owner: bool = False
    called: bool = False
    boxes: tuple[Box, ...] = ()
    objective: Term | None = None
    once: bool = False
    retain: Term | None = None
    learn: tuple[Learn, ...] = ()
    doc: str = ""
    span: Span = field(default=NOWHERE, repr=False)

    def line_for(self, weight: Weight) -> Learn | None:
        """The `learn` line that serves a weight of this owner: the first that fits (2.9.4)."""
        used_in = (
            weight.box.level.name if weight.box is not None and weight.box.level is not None else ""
        )
        return next((l for l in self.learn if l.serves(weight.kind, used_in)), None)

    @property
    def resets(self) -> Clock:
        """When the state is put back to its start: by default every sequence for tokens and always,
        else never.
        """
        if self.reset is not None:
            return self.reset
        return Clock("sequence") if self.clock.unit in ("token", "always") else Clock("never", 0)


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """One declared edge between two levels.

    `source` is the level before the arrow, `target` the one after; for backprop B -> A, source is B
    (whose states and
    pasts the gradient enters) and target A (whose gradient it is). `state`: one state of the
    target, or None for all.
    `through`: init chains name the level before (`init Z -> A -> B`: for A -> B it is A).
    """

    kind: str
    source: Level
    target: Level
    state: str | None = None
    source_state: str | None = None
    truncate: int | None = None
    first_order: bool = False
    span: Span = field(default=NOWHERE, repr=False)

    def speaks_of(self, state: State | None) -> bool:
        """Whether it is for this state of its target; None: for the level as a whole."""
        if self.state is None or state is None:
            return self.state is None
        return state.path == self.state or state.path.startswith(f"{self.state}.")


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """What runs at every tick. `loss` is None where the flow binds none."""

    inputs: tuple[tuple[str, Shape], ...]
    lines: tuple[Line, ...]
    result: Term
    loss: Term | None
    span: Span = field(default=NOWHERE, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """A checked nested system. `settings`: every setting with its value. `assume`: tokens in a
    sequence, or None.
    """

    name: str
    settings: Mapping[str, Any]
    levels: tuple[Level, ...]
    flow: Flow
    transfers: tuple[Transfer, ...]
    weights: tuple[Weight, ...]
    boxes: tuple[
        Box, ...
    ]  # every box that is called in the flow or in a body, callers first; optimizers not
    assume: int | None = None
    cites: tuple[str, ...] = ()
    doc: str = ""
    span: Span = field(default=NOWHERE, repr=False)

    def level(self, name: str) -> Level:
        return next(l for l in self.levels if l.name == name)

    @property
    def owner(self) -> Level | None:
        """The level whose the unnamed weights are."""
        return next((l for l in self.levels if l.owner), None)
