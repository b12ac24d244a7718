"""What a memory costs: operations for a token, and the bytes of its state.

Counted are the multiplications and additions of matrix products on the way forward, as the chosen
algorithm makes them (a product of [a, b] and [b, c] is 2 a b c), and nothing else: gates, norms and
lines are small beside them. A test holds the counts against torch's own counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from ..backward import Underivable
from ..derive import gradient, linear_rule
from ..endings import summed
from ..plan import ArrayRule, Lowering
from ..rules import Example
from ..show import Writer
from ..system import ALL, Array, Box, Slot, State, Term
from ..windows import rows_of
from .lines import Row, said

BYTES = 4  # of a number in float32
CHUNK, SOLVED = 32, 64  # ticks at a time, in backends/ops and backends/torch_source
BY_OUTPUT = 16  # where each output has a system of its own
BLOCK = 64  # queries at a time of attention with a window
IN_PARTS = "P numbers in matrices"
BEHIND = "B of them behind the first layer"


@dataclass(frozen=True)
class Cost:
    """`formula` with `sizes` in it is `flops`, for one token of one of so many memories. `rounds`:
    what each round adds, and how many there are at most.
    """

    formula: str
    sizes: tuple[tuple[str, int], ...]
    flops: float
    memories: int
    note: str = ""
    rounds: tuple[str, float, int] | None = None
    per: str = ""  # what the number is to be multiplied with

    def text(self) -> str:
        number = f"{self.flops:,.0f}{self.per}"
        formula = self.formula
        if self.rounds is not None:
            more, each, _ = self.rounds
            formula, number = f"{formula} + R({more})", f"{number} + {each:,.0f} R"
        sizes = ", ".join(f"{n} = {v:,}" for n, v in self.sizes)
        whole = f", in each of {self.memories:,} memories" if self.memories > 1 else ""
        note = f"; {self.note}" if self.note else ""
        return f"{formula} = {number} FLOPs a token{whole} ({sizes}{note})"


def cost_rows(w: Writer, box: Box, lowering: Lowering | None, longest: int = 0) -> list[Row]:
    """`longest`: of how many ticks a call is run at once; 0: as many as are given."""
    found = None if lowering is None else cost(box, lowering, longest)
    rows = [] if found is None else [said(w, "cost", found.text())]
    if found is None and lowering is not None and learned_rows(box):
        rows = [said(w, "cost", "not counted: the pairs of a window")]
    held = state_text(box, lowering)
    return [*rows, said(w, "state", held)] if held else rows


def chunk_of(box: Box, lowering: Lowering, longest: int = 0) -> int:
    """How many ticks the algorithm takes at a time; 0 where it takes no more than one."""
    chunks = {"recurrence": CHUNK, "squares": CHUNK, "solved": SOLVED, "frozen": box.linearise or 1}
    most = CHUNK if lowering.writes else chunks.get(lowering.kind, 0)
    return min(most, longest) if longest else most


def cost(box: Box, lowering: Lowering, longest: int = 0) -> Cost | None:
    """None where the algorithm has no count of ours."""
    c = chunk_of(box, lowering, longest)
    if lowering.kind == "slept" and not any(summed(s) for s in box.states):
        return reading(box)
    w = learned_rows(box)
    if w and lowering.kind == "solved" and not lowering.writes:
        return windowed(box, lowering, c, w)
    if w:
        return fired(box, w) if lowering.kind == "fired" else None
    match lowering.kind:
        case "recurrence":
            return recurrence(box, lowering, c)
        case "frozen":
            return frozen(box, lowering, c)
        case "solved":
            return at_once(box, lowering, c) if lowering.writes else solved(box, lowering, c)
        case "fired" | "slept":
            return fired(box)
        case "attention":
            return attended(box, lowering)
        case "squares":
            return least_squares(box, lowering, c)
        case "loss" | "static":
            return reading(box)
    return None


def learned_rows(box: Box) -> int:
    """How many pairs a tick learns anew: the most of a window, 0 where none is learned."""
    examples = [] if box.exact else [e for s in box.states for e in examples_of(box, s)]
    return max((rows_of(e.input) for e in examples), default=0)


def examples_of(box: Box, state: State) -> tuple[Example, ...]:
    if state.rule.objective is None or state.rule.uses_loss:
        return ()
    try:
        return gradient(box, state).examples
    except Underivable:
        return ()


def memories(box: Box) -> int:
    per = max((prod(s.per) for s in box.states), default=1)
    return prod(box.loops) * prod(box.mapped) * per


def reads(box: Box) -> int:
    """How often a body asks its own states at the end of a tick."""
    terms = [] if box.read is None else list(box.read.walk())
    called = sum(t.op == "apply" and t.info.box is box for t in terms)
    return called + sum(t.op == "matmul" and any(own(a, box) for a in t.args) for t in terms)


def own(term: Term, box: Box) -> bool:
    return term.op == "state" and term.info.box is box


def added(parts: Iterable[tuple[int, str]]) -> str:
    """`6nm + C^2` from (6, "nm"), (1, "C^2"), (0, "x")."""
    return " + ".join(f"{n if n != 1 else ''}{what}" for n, what in parts if n)


# ---- one matrix ----------------------------------------------------------------------------------


def recurrence(box: Box, lowering: Lowering, c: int) -> Cost:
    """A span of C ticks (ops/recurrence.py): what is asked of the start and of the writes, the
    state at the end, and one triangular system of C rows where the write reads the state, or one
    for each output. With momentum the state is [m, 2n], and what is left of each write is a product
    of two tables. Of one retention a channel only the pairs of earlier ticks are made.
    """
    state = next(s for s in box.states if s.rule.changes)
    m, n = state.form.arrays[0].shape
    rule = lowering.arrays[0]
    solves = rule.error is not None and rule.error.factor is not None
    solves = solves or rule.rule.erase is not None
    wide = 2 if rule.rule.momentum is not None else 1
    r, per = reads(box), len(state.per)
    apart = by_output(rule, per)
    c = min(c, BY_OUTPUT) if apart else c
    whole = 2 * wide * (1 + r + solves)
    inverse = solves and not apart
    keys = (1 if by_channel(rule, per) else 2) * (r + solves) + 2 * inverse * wide
    values = 2 * (r + inverse)
    tables = inverse + 2 * (wide - 1)
    even = 2 if keys % 2 == 0 else 1
    near = f"{even if even > 1 else ''}C({added([(keys // even, 'n'), (values // even, 'm')])})"
    parts = [(whole, "nm"), (1 if keys else 0, near), (tables, "C^2"), (int(apart), "C m")]
    flops = whole * n * m + c * (keys * n + values * m + apart * m) + tables * c * c
    return Cost(added(parts), (("n", n), ("m", m), ("C", c)), flops, memories(box))


def by_channel(rule: ArrayRule, per: int) -> bool:
    """Whether what is kept is one number a channel."""
    return rule.keep is not None and rule.keep.shape[per:] not in ((), (1,))


def by_output(rule: ArrayRule, per: int) -> bool:
    """Whether each output has a system of its own."""
    factor = None if rule.error is None else rule.error.factor
    return factor is not None and factor.shape[per:] not in ((), (1,))


def at_once(box: Box, lowering: Lowering, c: int) -> Cost:
    """Spans of C ticks (ops/affine.py), each with so many writes that ask for so many vectors: what
    is asked of the writes, the inverse of one triangular system of all of them, what it makes of
    the start, and the state at the end.
    """
    state = next(s for s in box.states if s.rule.changes)
    m, n = state.form.arrays[0].shape
    rule = lowering.arrays[0]
    wide = 2 if rule.rule.momentum is not None else 1
    rows, r = len(lowering.writes), reads(box)
    asked = len({id(p) for w in lowering.writes for _, p in w.reads})
    whole = 2 * wide * (2 * rows + r)
    keys = (1 if by_channel(rule, 0) else 2) * (asked + r) + 2 * rows * wide
    values = 2 * (rows + r)
    weighed, carried, solves = 2 * rows**2 * asked, 2 * rows * asked * wide, rows**3
    near = f"C({added([(rows * keys, 'n'), (rows * values, 'm')])})"
    formula = f"{whole}nm + {near} + {added([(solves, 'C^2'), (weighed, 'C'), (carried, 'n')])}"
    flops = whole * n * m + c * rows * (keys * n + values * m)
    flops += solves * c * c + weighed * c + carried * n
    return Cost(formula, (("n", n), ("m", m), ("C", c)), flops, memories(box))


# ---- any matrices --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """P numbers in matrices, B of them behind the first layer; D and E, the same of widths."""

    p: int
    b: int
    d: int
    e: int

    def named(self, *names: str) -> tuple[tuple[str, int], ...]:
        all_ = {"P": self.p, "B": self.b, "D": self.d, "E": self.e}
        return tuple((n, all_[n]) for n in names if all_[n])

    def note(self, widths: bool) -> str:
        parts = [f"{IN_PARTS} of widths D" if widths else IN_PARTS]
        parts += [f"{BEHIND}, of widths E" if widths and self.e else BEHIND] if self.b else []
        return ", ".join(parts)


def sizes(box: Box) -> Sizes | None:
    arrays = [a for s in box.states if s.rule.changes for a in s.form.arrays if len(a.shape) == 2]
    later = [a for a in arrays if is_behind(a)]
    if not arrays:
        return None
    return Sizes(*(sum(f(a.shape) for a in of) for f in (prod, sum) for of in (arrays, later)))


def is_behind(array: Array) -> bool:
    return array.name not in ("", "W1", "W3")


def frozen(box: Box, lowering: Lowering, c: int) -> Cost | None:
    """Gradients at the first state, forward and back; N ticks of writes that each read meets, and
    the state at the end, of [m, 2n] with momentum. With a link each read makes the state first,
    of N ticks of writes; where a number is kept for each channel, column by column.
    """
    s, r = sizes(box), reads(box)
    if s is None:
        return None
    if any(state.rule.through for state in box.states):
        if not any(by_channel(rule, len(box.state(rule.state).per)) for rule in lowering.arrays):
            flops = (4 + 2 * r + 2 * r * c) * s.p + 2 * s.b
            formula = added([(4 + 2 * r, "P"), (2 if s.b else 0, "B"), (2 * r, "CP")])
            return Cost(
                formula, (*s.named("P", "B"), ("C", c)), flops, memories(box), s.note(False)
            )
        q, f = columns(box)
        formula = added([(4 + 2 * r, "P"), (2 if s.b else 0, "B"), (2 * r, "(Q + CF)")])
        flops = (4 + 2 * r) * s.p + 2 * s.b + 2 * r * (q + c * f)
        named = (*s.named("P", "B"), ("Q", q), ("F", f), ("C", c))
        note = f"{s.note(False)}; Q and F: P and the widths, each times the columns"
        return Cost(formula, named, flops, memories(box), note)
    wide = wide_of(lowering)
    whole = 2 + 2 * wide * (1 + r)
    formula = added([(whole, "P"), (2 if s.b else 0, "B"), (2 * r, "CD")])
    flops = whole * s.p + 2 * s.b + 2 * r * c * s.d
    named = (*s.named("P", "B", *(("D",) if r else ())), *((("C", c),) if r else ()))
    return Cost(formula, named, flops, memories(box), s.note(False) + ", of widths D" * (r > 0))


def columns(box: Box) -> tuple[int, int]:
    """Of all matrices [m, n]: n times m n, and n times m + n."""
    shapes = [a.shape for s in box.states if s.rule.changes for a in s.form.arrays]
    pairs = [s for s in shapes if len(s) == 2]
    return sum(n * m * n for m, n in pairs), sum(n * (m + n) for m, n in pairs)


def solved(box: Box, lowering: Lowering, c: int) -> Cost | None:
    """Each round asks the start and the writes of the round before, forward and back. First layers
    are asked for streams: what these meet of the start is made once, and of each other once or, in
    a network, twice: the first round meets writes of nothing. With momentum the start is [m, 2n],
    and what is left of each write takes a table.
    """
    s, r = sizes(box), reads(box)
    if s is None:
        return None
    first = [
        a.shape
        for state in box.states
        if state.rule.changes
        for a in state.form.arrays
        if len(a.shape) == 2 and not is_behind(a)
    ]
    m, n = (sum(shape[axis] for shape in first) for axis in (0, 1))
    wide, pairs = wide_of(lowering), 4 if s.b else 2
    meet = [(2 * r, "CD"), (pairs, "CN"), (2 * (wide - 1), "C^2")]
    formula = added([((4 + 2 * r) * wide, "P"), *meet]) + f" - {2 * wide}B" * bool(s.b)
    flops = (4 + 2 * r) * wide * s.p - 2 * wide * s.b + 2 * r * c * s.d
    flops += pairs * c * n + 2 * (wide - 1) * c * c
    more = added([(4 * wide if s.b else 0, "B"), (4 if s.e else 0, "CE"), (2, "CM")])
    each = 4 * wide * s.b + 4 * c * s.e + 2 * c * m
    named = (*s.named("P", "B", "D", "E"), ("N", n), ("M", m), ("C", c))
    note = f"{s.note(True)}, the first of N inputs and M outputs"
    note += f"; R rounds, until no write changes, {c} at most"
    return Cost(formula, named, flops, memories(box), note, (more, each, c))


def wide_of(lowering: Lowering) -> int:
    """Of how many states' width what is asked of the start is."""
    return 2 if any(a.rule.momentum is not None for a in lowering.arrays) else 1


def windowed(box: Box, lowering: Lowering, c: int, w: int) -> Cost | None:
    """As `solved`, of W pairs a tick, which are asked anew in every round. The first meets no write
    yet. With momentum what is asked is [m, 2n], and what is left of each write takes a table.
    """
    s, r = sizes(box), reads(box)
    if s is None:
        return None
    wide = wide_of(lowering)
    solves = any(asks_itself(e, box) for state in box.states for e in examples_of(box, state))
    asked = (2 * w * (1 + solves) + 2 * r) * wide
    meet = [((solves + r) * 2, "CWD"), (2 if s.e else 0, "CWE"), (2 * (wide - 1), "C^2")]
    formula = added([(asked, "P"), (2 * w * wide if s.b else 0, "B"), *meet])
    flops = asked * s.p + 2 * w * wide * s.b + 2 * c * w * ((solves + r) * s.d + s.e)
    flops += 2 * (wide - 1) * c * c
    named = (*s.named("P", "B", "D", "E"), ("W", w), ("C", c))
    note = f"{s.note(True)}, W pairs a tick"
    if not solves:
        return Cost(formula, named, flops, memories(box), note)
    near = added([(2, "CW^2 D"), (2 if s.e else 0, "CW^2 E")])
    more = added([(2 * w * wide, "P"), (2 * w * wide if s.b else 0, "B")]) + f" + {near}"
    each = 2 * w * wide * (s.p + s.b) + 2 * c * w * w * (s.d + s.e)
    note += f"; R rounds after the first, until no write changes, {c} at most"
    return Cost(formula, named, flops, memories(box), note, (more, each, c))


def asks_itself(example: Example, box: Box) -> bool:
    """Whether what is written depends on what the memory says."""
    return any(
        t.op in ("apply", "state", "product") and getattr(t.info, "handle", t.info).box is box
        for t in example.surprise.walk()
    )


def fired(box: Box, w: int = 1) -> Cost | None:
    """The gradient at the state that stands: forward, back, and an outer product a matrix, of each
    of `w` pairs.
    """
    if any(s.rule.write is not None for s in box.states):
        return None
    learned = any(s.rule.objective is not None for s in box.states)
    s, r = sizes(box), reads(box)
    if s is None or not learned:
        return reading(box)
    learns = [l for state in box.states for l in state.rule.learn.values()]
    steps = max((l.steps for l in learns), default=1)
    formula = added([(4 * steps * w + 2 * r, "P"), (2 * steps * w if s.b else 0, "B")])
    note = s.note(False) + f", {w} pairs a tick" * (w > 1)
    rules = {
        l.rule for l in learns if l.rule == "implicit" or not all(map(plain, l.optimizers.values()))
    }
    if rules:
        note += f"; and what {', '.join(f'`{n}`' for n in sorted(rules))} takes at each firing"
    flops = (4 * steps * w + 2 * r) * s.p + 2 * steps * w * s.b
    return Cost(formula, s.named("P", "B"), flops, memories(box), note)


def plain(rule: Box) -> bool:
    """Whether what it adds to the gradient's own cost is nothing to speak of."""
    found = linear_rule(rule)
    return found is not None and found.erase is None


# ---- what keeps no matrix of its own -------------------------------------------------------------


def attended(box: Box, lowering: Lowering) -> Cost | None:
    found = lowering.attention
    if found is None:
        return None
    n, m = found.query.shape[-1], found.value.shape[-1]
    each, note = 2.0 * (n + m), "T: the tokens since the reset"
    c = found.key.shape[0] if len(found.key.shape) == 2 else 1
    p = found.beside.key.shape[0] if found.beside is not None else 0
    if found.window is None and found.plain:
        return Cost("2(n + m)T", (("n", n), ("m", m)), each, memories(box), note, per=" T")
    if found.window is None:
        return None
    seen = c * (max(found.window, BLOCK) + found.window - 1) + p
    note = "T: the pairs that a block of queries sees"
    return Cost("2(n + m)T", (("n", n), ("m", m), ("T", seen)), each * seen, memories(box), note)


def least_squares(box: Box, lowering: Lowering, c: int) -> Cost | None:
    """The sums after each tick of a chunk, one Cholesky factor a tick, and what the answers meet in
    the pairs (ops/least_squares.py).
    """
    found = lowering.squares
    if found is None:
        return None
    n, m = found.key.shape[-1], found.value.shape[-1]
    flops = n**3 / 3 + 2 * (c + 1) * n * n + 4 * n * m + 2 * c * (n + m)
    formula = "n^3 / 3 + 2(C + 1)n^2 + 4nm + 2C(n + m)"
    return Cost(formula, (("n", n), ("m", m), ("C", c)), flops, memories(box))


def reading(box: Box) -> Cost | None:
    """What stands still, or learns the model's own loss, is only read."""
    arrays = [a for s in box.states for a in s.form.arrays if len(a.shape) == 2]
    r, size = reads(box), sum(prod(a.shape) for a in arrays)
    if not r or not arrays:
        return None
    has_loss = any(s.rule.uses_loss for s in box.states)
    note = f"{IN_PARTS}" + "; its gradient comes with the model's own" * has_loss
    changes = any(s.rule.changes for s in box.states)
    on_sequences = box.level is not None and box.level.clock.unit == "sequence"
    note += "; and what its firing takes, at the end of a sequence" * (on_sequences and changes)
    return Cost(f"{2 * r}P", (("P", size),), 2.0 * r * size, memories(box), note)


# ---- bytes ---------------------------------------------------------------------------------------


def state_text(box: Box, lowering: Lowering | None) -> str:
    """What a sample keeps: states, what their rules remember, the chunk's start, windows."""
    parts = list(state_parts(box, lowering))
    if not parts:
        return ""
    numbers = sum(n for _, n in parts)
    many = memories(box)
    text = ", ".join(f"{name} {n:,}" for name, n in parts)
    whole = f"{text}: " if len(parts) > 1 else ""
    each = f" in each of {many:,} memories" if many > 1 else ""
    shared = box.level is not None and box.level.clock.unit in ("step", "task", "never")
    end = "for all samples" if shared else "a sample"
    return f"{whole}{numbers:,} numbers{each}, {amount(numbers * many)} {end}"


def state_parts(box: Box, lowering: Lowering | None) -> Iterator[tuple[str, int]]:
    if lowering is not None and lowering.squares is not None:
        n, m = (t.shape[-1] for t in (lowering.squares.key, lowering.squares.value))
        yield from (("sums of keys", n * n), ("sums of pairs", n * m))
        return
    changing = [s for s in box.states if not box.exact]
    for s in changing:
        yield s.name, sum(prod(a.shape) for a in s.form.arrays)
    yield from remembered(changing)
    if box.linearise is not None and box.linearise > 1:
        yield "the chunk's start", sum(prod(a.shape) for s in changing for a in s.form.arrays)
    for slot, width in windows(box):
        if slot.window != ALL:
            yield f"the last {slot.window}", width * slot.window
        else:
            yield "each token", width


def remembered(states: list[State]) -> Iterator[tuple[str, int]]:
    """What the optimizers of these states keep."""
    found: dict[str, int] = {}
    for s in states:
        for a in s.form.arrays:
            learn = s.rule.learn.get(a.name)
            rule = learn.optimizers.get(a.shape) if learn is not None else None
            for inner in () if rule is None else all_states(rule):
                name = f"{learn.rule if learn else ''}.{inner.name}"
                size = sum(prod(x.shape) for x in inner.form.arrays)
                found[name] = found.get(name, 0) + size
    yield from found.items()


def all_states(rule: Box) -> Iterator[State]:
    yield from rule.states
    for level in rule.levels:
        yield from level.states


def windows(box: Box) -> Iterator[tuple[Slot, int]]:
    found: dict[str, tuple[Slot, Term]] = {}
    for t in box.terms():
        if isinstance(t.info, Slot) and t.info.kind in ("past", "conv", "fade"):
            found.setdefault(t.info.path, (t.info, t))
    for slot, t in found.values():
        yield slot, prod(t.args[0].shape)


def amount(numbers: int) -> str:
    held = float(numbers * BYTES)
    for unit in ("bytes", "KiB", "MiB"):
        if held < 1024:
            return f"{held:,.4g} {unit}"
        held /= 1024
    return f"{held:,.4g} GiB"


__all__ = ["BYTES", "Cost", "amount", "chunk_of", "cost", "cost_rows"]
