"""The text of a rule, walked in order (2.9.6): its lines, its memories, and the levels inside it.

What is written depends on who asks: a pure method for rules at tokens (`rules.py`), or one in place
for levels on steps (`in_place.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from nlc.backward import mul, neg
from nlc.derive import apply_form, linear_rule, substitute
from nlc.diagnostics import InternalError
from nlc.lacking import NotLowered
from nlc.rules import Example
from nlc.system import Array, Assign, Box, Clock, Handle, Lambda, Learn, Shape, State, Term

from .code import Code, identifier
from .expressions import ATOM, Expressions, Value
from .rule_clocks import begun, fired, fires
from .rule_terms import RuleExpressions, check_words, derived, found_terms, is_plain, uses_examples

STREAMS = ("weight", "grad", "input", "surprise")
AT_TASK = "task_"  # before the name of a rule: what it does when a task is over


@dataclass(frozen=True)
class Kept:
    """One array that a rule keeps: its name, its shape (None: that of the array served), the
    deviation of its draw, and the name that it is drawn by.
    """

    name: str
    shape: Shape | None = None
    std: float = 0.0
    draw: str = ""

    def within(self, whole: Shape, array: Shape) -> Shape:
        """Its shape, with the axes that an array has before its own."""
        if self.shape is None:
            return whole
        return (*whole[: len(whole) - len(array)], *self.shape)


@dataclass(frozen=True)
class Written:
    """A method of a rule: its name, and what it keeps for an array."""

    name: str
    kept: tuple[Kept, ...] = ()
    keeps_all: bool = True  # the rule itself lets nothing be forgotten
    pointwise: bool = False  # element by element: any part of an array may be served alone
    streams: tuple[str, ...] = ()  # input, surprise, where it asks for them
    weights: tuple[Term, ...] = ()  # that it makes, and is given last
    tasks: tuple[int, ...] = ()  # period and first of its levels on tasks

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(k.name for k in self.kept)


@dataclass
class Slope:
    """The gradient of a memory of gradients, by array: as terms, or under names. `examples`: what
    went through each array, and what came back (2.9.6).
    """

    terms: dict[str, Term]
    examples: dict[str, list[Example]]


class RuleBody:
    """One optimizer on one kind of array."""

    def __init__(
        self,
        code: Code,
        rule: Box,
        lead: int,
        settings: Mapping[str, Term],
        streams: Mapping[str, Term],
        passed: Mapping[str, int | None],
        weights: Mapping[str, str] | None = None,
    ) -> None:
        check_words(rule, weights is not None)
        self.weights = weights or {}  # path -> the name under which it is given
        self.code, self.rule, self.lead = code, rule, lead
        self.settings, self.streams, self.passed = settings, streams, passed
        self.kept: list[Kept] = []
        self.keys: dict[str, str] = {}  # of what is kept, by its Python name
        self.names: dict[str, Value] = {}
        self.values: dict[tuple[int, str, str], str] = {}  # arrays of states, as they are read
        self.held: dict[tuple[int, str, str], str] = {}  # as they are kept
        self.later: list[Callable[[], None]] = []  # what fires after the write
        self.array_name = ""  # of a network that is written array by array
        self.counts = "count"
        self.is_retained = False  # by a step before, on the same data
        self.counted: list[Term] = []
        self.e = self.expressions()

    # ---- terms -----------------------------------------------------------------------------------

    def expressions(self) -> Expressions:
        hooks: dict[str, Callable[[Term], Value]] = {
            "input": self.input,
            "weight": self.weight,
            "count": self.counted_so_far,
            "across": self.across,
            "state": self.state_value,
            "array": self.state_value,
            "apply": self.apply,
            "product": self.product,
            "product_back": self.product_back,
            "made": lambda t: Value(t.info, ATOM, True, len(t.shape)),
        }
        e = self.kind_of_expressions(self.code, self.lead, hooks=hooks)
        e.names = self.names
        return e

    kind_of_expressions: type[Expressions] = RuleExpressions

    def counted_so_far(self, term: Term) -> Value:
        if not self.counts:
            raise NotLowered(f"`count` in a level of `{self.rule.name}` on tasks", term.span)
        return Value(self.counts, ATOM, False, 0)

    def input(self, term: Term) -> Value:
        name = str(term.info)
        if name in STREAMS:
            return Value(identifier(name), ATOM, True, len(term.shape))
        if name in self.passed:
            own = self.passed[name]
            return Value(identifier(name), ATOM, own is not None, own or 0)
        if name in self.settings:
            return self.setting(name)
        raise InternalError(f"no setting `{name}` of `{self.rule.name}`")

    def weight(self, term: Term) -> Value:
        """One that the rule makes (2.3.1)."""
        return Value(self.weights[term.info.path], ATOM, False, len(term.shape))

    def setting(self, name: str) -> Value:
        """A setting that the line gives as a term: constants and the level's count only."""
        counted = {"count": lambda t: Value("count", ATOM, False, 0)}
        e = RuleExpressions(self.code, 0, hooks=counted)
        e.count([self.settings[name]])
        try:
            value = e(self.settings[name])
        except (InternalError, KeyError):
            text = f"`{name}` of `{self.rule.name}`, which changes with more than the firings,"
            raise NotLowered(text, self.settings[name].span) from None
        return Value(value.at(ATOM), ATOM, False, value.own)

    def across(self, term: Term) -> Value:
        raise NotImplementedError

    def state_value(self, term: Term) -> Value:
        handle: Handle = term.info
        array = "" if handle.state.form.single else self.array_name
        return Value(self.value_of(handle, array), ATOM, True, self.rank(handle.state, array))

    def rank(self, state: State, array: str) -> int:
        return next(len(a.shape) for a in state.form.arrays if a.name == array)

    def value_of(self, handle: Handle, array: str) -> str:
        return self.values[id(handle.box), handle.name, array]

    def apply(self, term: Term) -> Value:
        handle: Handle = term.info
        if handle.state.form.core.kind == "table":
            ids = self.e(term.args[0])
            table = self.value_of(handle, "")
            if self.lead:
                raise NotLowered(f"a table in `{self.rule.name}` for each head", term.span)
            at = ids.code if ids.own else f"torch.as_tensor({ids.code})"  # or a plain number
            return Value(f"parts.rows({table}, {at})", ATOM, True, ids.own + 1)
        applied = apply_form(handle, handle.state.form, term.args[0], term)
        self.count(applied)
        return self.e(applied)

    def product(self, term: Term) -> Value:
        """W x, for every row of x; what is no matrix is itself."""
        handle: Handle = term.info.handle
        matrix = self.value_of(handle, term.info.array.name)
        if handle.state.form.kind == "vector":
            return Value(matrix, ATOM, True, len(term.shape))
        return self.times(matrix, ".mT", self.e(term.args[0]))

    def product_back(self, term: Term) -> Value:
        matrix = self.value_of(term.info.handle, term.info.array.name)
        return self.times(matrix, "", self.e(term.args[0]))

    def times(self, matrix: str, turned: str, x: Value) -> Value:
        if x.own == 1:
            return Value(f"({x.atom}.unsqueeze(-2) @ {matrix}{turned}).squeeze(-2)", ATOM, True, 1)
        wide = f"{matrix}[{'..., ' + 'None, ' * (x.own - 2)}:, :]" if x.own > 2 else matrix
        return Value(f"({x.atom} @ {wide}{turned})", ATOM, True, x.own)

    def of_arrays(self, term: Term, array: str) -> Value:
        """A value between states of one form is taken array by array (2.3.2)."""
        outer, self.array_name = self.array_name, array
        whole = any(t.form is not None for t in term.walk())
        if whole:
            self.forget()
        self.count(term)
        value = self.e(term)
        if whole:
            self.forget()
        self.array_name = outer
        return value

    def forget(self) -> None:
        """What was written with the states as they were."""
        self.e.done.clear()
        self.e.alive.clear()

    def cite(self, term: Term) -> None:
        """The spec's own line, above what was made of it."""
        span = term.span
        if span.source.text:
            text = span.source.line(span.line).split("#")[0].strip().rstrip("{;").strip()
            self.code.comment(f"{span.source.name.rsplit('/', 1)[-1]}:{span.line}: {text}")

    # ---- the text of a rule ----------------------------------------------------------------------

    def about(self) -> list[str]:
        rule = self.rule
        where = f"{rule.span.source.name.rsplit('/', 1)[-1]}:{rule.span.line}"
        said = f"optimizer {rule.name} ({where}): {self.does}."
        return [said, *(f"Source: {c}" for c in rule.cites)]

    does = "what the weight keeps, and what is added"

    def streams_given(self) -> None:
        """The streams that the line replaces; each is made of those that came."""
        made: list[tuple[str, str]] = []
        for key, term in self.streams.items():
            if key not in STREAMS:
                raise NotLowered(f"the stream `{key}` given to `{self.rule.name}`", self.rule.span)
            self.count(term)
            made.append((identifier(key), self.e(term).code))
        if len(made) > 1:
            names = self.code.names(f"new_{k}" for k, _ in made)
            self.code.add(*(f"{n} = {code}" for n, (_, code) in zip(names, made, strict=True)))
            made = [(k, n) for (k, _), n in zip(made, names, strict=True)]
        self.code.add(*(f"{k} = {code}" for k, code in made if k != code))
        self.forget()

    def body(self, box: Box) -> None:
        """Lines and states in text order; a state is new from its place on (2.9.6)."""
        for state in box.states:
            self.keep(box, state)
        for level in box.levels:
            for state in level.states:
                self.keep(level, state, f"{level.name}.")
        self.start_states(box)
        for owner in (box, *box.levels):
            for state in owner.states:
                self.read(owner, state)
        for i, step in enumerate(box.order):
            kind, _, key = step.partition(":")
            if kind == "line":
                self.line(box, int(key), box.order[i + 1 :])
            elif kind == "state":
                self.fire(box, box.state(key))
            else:
                self.level(next(b for b in box.levels if b.name == key))

    def line(self, box: Box, index: int, after: tuple[str, ...] = ()) -> None:
        line = box.lines[index]
        if not isinstance(line, Assign):
            raise InternalError("a loop in an optimizer")
        if line.value.form is not None:
            raise NotLowered(f"a network in a line of `{self.rule.name}`", line.value.span)
        self.cite(line.value)
        self.count(line.value)
        value = self.e(line.value)
        name = self.code.name(line.name)
        self.code.add(f"{name} = {self.lasting(line.value, value)}")
        self.names[f"local {line.name}"] = Value(name, ATOM, value.lead, value.own)

    def lasting(self, term: Term, value: Value) -> str:
        """A value that is to stay as it is now."""
        return value.code

    # ---- states ----------------------------------------------------------------------------------

    def keep(self, box: Box, state: State, prefix: str = "") -> None:
        """The arrays of a state, under their names."""
        if state.per:
            raise NotLowered(f"`per` of `{state.name}` in `{self.rule.name}`", state.span)
        for array in state.form.arrays:
            key = f"{prefix}{state.name}" + (f".{array.name}" if array.name else "")
            place, std = (id(box), state.name, array.name), self.std(state, array)
            draw = ".".join(n for n in (self.rule.name, state.name, array.name) if n)
            kept = Kept(key, self.own_shape(state, array), std, draw if std else "")
            self.held[place] = self.holds(kept)

    def std(self, state: State, array: Array) -> float:
        start = state.start
        if start is None:
            return array.std
        return float(start.info) if start.op == "normal" else 0.0

    def kept_inside(self, base: str, kept: Kept, array: Array) -> Kept:
        """What the rule of a memory keeps of one of its arrays, as this rule keeps it."""
        if kept.std:
            raise NotLowered(
                f"a network in the rule of a memory of `{self.rule.name}`", self.rule.span
            )
        own = array.shape if kept.shape is None else kept.shape
        return Kept(f"{base}.{kept.name}", None if own == self.shape else own)

    def own_shape(self, state: State, array: Array) -> Shape | None:
        like = state.form.kind == "like" and array.shape == self.shape
        return None if like else array.shape

    @property
    def shape(self) -> Shape:
        """Of the array that is served."""
        inputs = dict(self.rule.inputs)
        return next((inputs[n] for n in ("weight", "grad") if n in inputs), ())

    def holds(self, kept: Kept) -> str:
        """The Python name of what is kept."""
        raise NotImplementedError

    def read(self, box: Box, state: State) -> None:
        """A state as it is read: `through f`, f of what is kept."""
        for array in state.form.arrays:
            place = id(box), state.name, array.name
            self.values[place] = self.held[place]
            link = (state.rule.through or {}).get(array.name)
            if link is not None:
                name = self.code.name(state.name)
                self.code.add(f"{name} = {self.linked(link, state, array, self.held[place])}")
                self.values[place] = name

    def linked(self, link: Lambda, state: State, array: Array, kept: str) -> str:
        """f of one array, as it is stored (2.9.3)."""
        if any(t.op == "argument" and t.info == "start" for t in link.body.walk()):
            raise NotLowered(f"`start` in a link of `{state.name}`", state.span)
        names = dict.fromkeys((*link.params[:1], "A"), kept)
        self.e.hooks["argument"] = lambda t: Value(names[t.info], ATOM, True, len(t.shape))
        self.forget()
        self.count(link.body)
        code = self.e(link.body).code
        self.forget()
        return code

    def start_states(self, box: Box) -> None:
        """Starts that are computed, at the first firing (2.3.4)."""
        owners = [(b, s) for b in (box, *box.levels) for s in b.states]
        for owner, state in owners:
            places = [(id(owner), state.name, a.name) for a in state.form.arrays]
            self.values |= {p: self.held[p] for p in places}
            start = state.start
            if start is None or start.op in ("zeros", "normal"):
                continue
            if start.op in ("copy", "fresh"):
                raise NotLowered(f"the start of `{state.name}`", state.span)
            with self.code.block(f"if {self.counts} == 1:"):
                for array in state.form.arrays:
                    self.begin(self.held[id(owner), state.name, array.name], start, array)
            self.forget()

    def begin(self, name: str, start: Term, array: Array) -> None:
        raise NotImplementedError

    # ---- gradients -------------------------------------------------------------------------------

    def slope(self, box: Box, state: State) -> Slope:
        """The gradient of the state's objective at the state as the objective names it (2.8.3)."""
        rule = state.rule
        assert rule.objective is not None
        self.cite(rule.objective)
        with self.stop_is_nothing(), self.at_retained(box, state):
            found = derived(box, state)
            if found is None:
                return self.by_autograd(box, state)
            terms: dict[str, Term] = {}
            examples: dict[str, list[Example]] = {}
            if not found.examples and len(found.direct) == 1:
                return Slope(dict(found.direct), {})
            self.count(*found_terms(found))
            for array in state.form.arrays:
                mine = [e for e in found.examples if e.array == array.name]
                direct = [t for n, t in found.direct if n == array.name]
                parts = [self.outer(state, e) for e in mine] + [self.e(t).code for t in direct]
                whole = " + ".join(parts) or "torch.zeros_like(weight)"
                terms[array.name] = self.made("grad_" + state.name, whole, array.shape)
                examples[array.name] = mine
            return Slope(terms, examples)

    @contextmanager
    def stop_is_nothing(self) -> Iterator[None]:
        """What an objective stops is a constant to its own gradient alone (2.12)."""
        self.e.hooks["stop"] = lambda t: self.e(t.args[0])
        yield
        del self.e.hooks["stop"]

    @contextmanager
    def at_retained(self, box: Box, state: State) -> Iterator[None]:
        """With `after retain` the gradient is that of the state that has already forgotten."""
        if not state.rule.after_retain or state.rule.retain is None or self.is_retained:
            yield
            return
        outer = dict(self.values)
        for array in state.form.arrays:
            place = id(box), state.name, array.name
            kept = self.code.name("kept")
            self.code.add(f"{kept} = {self.kept_of(state, array)} * {self.held[place]}")
            link = (state.rule.through or {}).get(array.name)
            if link is not None:
                kept = self.code.name("kept")
                self.code.add(f"{kept} = {self.linked(link, state, array, kept)}")
            self.values[place] = kept
        self.forget()
        yield
        self.values = outer
        self.forget()

    def made(self, wish: str, code: str, shape: Shape) -> Term:
        """A value under a name of its own, as a term."""
        name = self.code.name(wish)
        self.code.add(f"{name} = {code}")
        return Term("made", (), shape, name)

    def outer(self, state: State, example: Example) -> str:
        """surprise' input, summed over the rows."""
        s = self.e(example.surprise)
        shape = example.output.shape
        if s.own != len(shape) or not s.lead:
            s = Value(f"({s.code}).expand({', '.join(map(str, shape))})", ATOM, True, len(shape))
            if is_plain(self.e(example.surprise)):
                full = f"weight.new_full({shape}, {self.e(example.surprise).code})"
                s = Value(full, ATOM, True, len(shape))
        if state.form.kind == "vector":
            return s.code
        x = self.e(example.input)
        return f"{self.as_rows(s)}.mT @ {self.as_rows(x)}"

    def as_rows(self, x: Value) -> str:
        if x.own == 1:
            return f"{x.atom}.unsqueeze(-2)"
        return x.atom + (f".flatten({-x.own}, -2)" if x.own > 2 else "")

    def by_autograd(self, box: Box, state: State) -> Slope:
        """The gradient of an objective that no rule of ours derives."""
        assert state.rule.objective is not None
        arrays = state.form.arrays
        leaves = self.code.names([f"{state.name}_{a.name}".strip("_") for a in arrays])
        slopes = self.code.names([f"slope_{a.name}".strip("_") for a in arrays])
        told = [", ".join(n) + "," * (len(n) == 1) for n in (leaves, slopes)]
        places = [(id(box), state.name, a.name) for a in arrays]
        self.code.comment("no rule gives the derivative of this objective: by autograd")
        with self.code.block("with torch.enable_grad():"):
            self.code.add(f"{told[0]} = self.leaves({', '.join(self.values[p] for p in places)})")
            outer = dict(self.values)
            self.e.hooks["stop"] = lambda t: self.stopped(t, outer)
            self.values |= dict(zip(places, leaves, strict=True))
            self.forget()
            self.count(state.rule.objective)
            value = self.e(state.rule.objective).atom
            self.code.add(f"{told[1]} = self.slopes({value}, {', '.join(leaves)})")
        self.values = outer
        self.forget()
        terms = {a.name: Term("made", (), a.shape, n) for a, n in zip(arrays, slopes, strict=True)}
        return Slope(terms, {})

    def stopped(self, stop: Term, values: dict[tuple[int, str, str], str]) -> Value:
        """What is stopped, made of none of the arrays that autograd is asked for."""
        seen, self.values = self.values, values
        value = self.e.anew(stop.args[0])
        self.values = seen
        return value

    # ---- how a state changes ---------------------------------------------------------------------

    def fire(self, box: Box, state: State) -> None:
        """A state fires at its place."""
        rule = state.rule
        if not rule.changes:
            return
        if rule.set is not None:
            self.cite(rule.set)
            new = {a.name: self.of_arrays(rule.set, a.name) for a in state.form.arrays}
            self.put_all(box, state, {n: v.code for n, v in new.items()})
        else:
            self.add_amounts(box, state, self.amounts_of(box, state))
        self.settled(box, state)

    def amounts_of(self, box: Box, state: State) -> Slope | dict[str, Term]:
        """The gradient, or what `write` gives."""
        rule = state.rule
        if rule.write is not None:
            self.cite(rule.write)
            if rule.write.form is None:
                return dict.fromkeys((a.name for a in state.form.arrays), rule.write)
            codes = {a: self.of_arrays(rule.write, a.name) for a in state.form.arrays}
            return {a.name: self.made("written", v.code, a.shape) for a, v in codes.items()}
        if rule.objective is not None:
            return self.slope(box, state)
        return {}

    def settled(self, box: Box, state: State) -> None:
        """What was put is read from here on."""
        self.onto(box, state)
        self.read(box, state)
        self.forget()

    def onto(self, box: Box, state: State) -> None:
        for array in state.form.arrays:
            link = (state.rule.onto or {}).get(array.name)
            if link is not None:
                place = id(box), state.name, array.name
                self.put(place, self.linked(link, state, array, self.held[place]))

    def put_all(self, box: Box, state: State, new: Mapping[str, str]) -> None:
        for array, code in new.items():
            self.put((id(box), state.name, array), code)

    def put(self, place: tuple[int, str, str], code: str) -> None:
        raise NotImplementedError

    def add_amounts(self, box: Box, state: State, found: Slope | Mapping[str, Term]) -> None:
        """New state = retained state + amount (2.8)."""
        if isinstance(found, Slope):
            self.learn(box, state, found)
            return
        for array in state.form.arrays:
            amount = found.get(array.name)
            self.change(box, state, array, amount, state.rule.retain is not None)

    def learn(self, box: Box, state: State, slope: Slope) -> None:
        """The gradient goes to the rule that the state learns by, itself an optimizer."""
        for line in dict.fromkeys(state.rule.learn.values()):
            if not line.optimizers:
                raise NotLowered(f"`{line.rule}` of `{state.name}`", line.span)
        for array in state.form.arrays:
            given = state.rule.learn.get(array.name)
            if given is None:
                self.change(box, state, array, None, state.rule.retain is not None)
                continue
            line = given
            step = linear_rule(line.optimizers[array.shape])
            plain = step is not None and step.momentum is None and step.erase is None
            if step is None or not plain or step.keep or line.streams or line.steps > 1:
                self.nested(box, state, array, line, slope)
                continue
            rate = substitute(step.rate, line.settings)
            amount = neg(mul(rate, slope.terms[array.name]))
            self.change(box, state, array, amount, state.rule.retain is not None)

    def change(
        self, box: Box, state: State, array: Array, amount: Term | None, retains: bool
    ) -> None:
        raise NotImplementedError

    def nested(self, box: Box, state: State, array: Array, line: Learn, slope: Slope) -> None:
        raise NotImplementedError

    def kept_of(self, state: State, array: Array) -> str:
        """The fraction kept, as a factor of one array: one number, one an input channel, or one an
        output channel (2.5.4).
        """
        retain = state.rule.retain
        if retain is None:
            return "1.0"
        value = self.e_of(retain)
        form = state.form
        if not form.single and any(n != 1 for n in retain.shape):
            first, last = form.ends
            if array.name not in (first if len(retain.shape) == 1 else last):
                return "1.0"
        return self.e.fit(value, len(array.shape))

    def e_of(self, term: Term) -> Value:
        self.count(term)
        return self.e(term)

    def count(self, *roots: Term) -> None:
        """What is used twice gets a name; a root that is asked for again is no second use."""
        self.e.count([t for t in roots if not self.e.uses[id(t)]])
        self.counted += roots  # an identity is one only while it lives

    # ---- levels inside ---------------------------------------------------------------------------

    def level(self, box: Box) -> None:
        """It counts the firings it serves, and fires after the write (2.9.6)."""
        clock = box.clock
        if clock is None or clock.unit not in self.clocks:
            raise NotLowered(f"the clock of `{box.name}` ({clock})", box.span)
        outer, names = self.counts, dict(self.names)
        self.counts = begun(clock) if clock.unit == "step" else ""
        self.forget()
        for index in range(len(box.lines)):
            self.line(box, index)
        for state in box.states:
            if state.rule.changes:
                self.tick(box, state, clock)
        self.counts = outer
        for name in [n for n in self.names if n not in names]:
            del self.names[name]
        self.names |= names
        self.forget()

    clocks: tuple[str, ...] = ("step",)

    def tick(self, box: Box, state: State, clock: Clock) -> None:
        """What one firing adds to the period; the rest waits until after the write."""
        rule = state.rule
        if clock.unit == "task":
            self.tick_of_task(box, state, clock)
            return
        if rule.set is not None:
            self.cite(rule.set)
            made = {
                a.name: self.stands(rule.set, self.of_arrays(rule.set, a.name))
                for a in state.form.arrays
            }
            self.after(box, state, clock, lambda: self.put_all(box, state, made))
            return
        found = self.amounts_of(box, state)
        terms = found.terms if isinstance(found, Slope) else found
        if clock.period > 1 and not rule.once:
            terms = {n: self.summed(box, state, n, t, clock) for n, t in terms.items()}
        else:
            terms = {n: self.standing(t) for n, t in terms.items()}
        if isinstance(found, Slope):
            if any(uses_examples(b) for l in rule.learn.values() for b in l.optimizers.values()):
                raise NotLowered(f"examples of `{state.name}` over a period", state.span)
            found = Slope(terms, {})
        else:
            found = terms
        self.after(box, state, clock, lambda: self.add_amounts(box, state, found))

    def tick_of_task(self, box: Box, state: State, clock: Clock) -> None:
        raise NotImplementedError

    def standing(self, term: Term) -> Term:
        """A value as it is at this place, for after the write."""
        value = self.e_of(term)
        if is_plain(value):
            return term
        return self.made("slope", self.lasting(term, value), term.shape)

    def stands(self, term: Term, value: Value) -> str:
        name = self.code.name("new")
        self.code.add(f"{name} = {self.lasting(term, value)}")
        return name

    def summed(self, box: Box, state: State, array: str, term: Term, clock: Clock) -> Term:
        """The sum of the period so far, this firing's included."""
        shape = next(a for a in state.form.arrays if a.name == array)
        key = f"{box.name}.{state.name}" + (f".{array}" if array else "") + ".sum"
        name = self.holds(Kept(key, self.own_shape(state, shape)))
        self.gather(name, term, key)
        return Term("made", (), shape.shape, name)

    def gather(self, name: str, term: Term, key: str) -> None:
        raise NotImplementedError

    def after(self, box: Box, state: State, clock: Clock, change: Callable[[], None]) -> None:
        """A change that waits until the weight is written."""
        due, counts, names = fires(clock), fired(clock), dict(self.names)
        retain = state.rule.retain
        if retain is not None and not is_plain(self.e_of(retain)):
            raise NotLowered(f"a retention of `{state.name}` that is no number", state.span)
        sums = list(self.sums(box, state)) if clock.period > 1 else []

        def fire() -> None:
            outer, self.counts = self.counts, counts
            self.names |= names
            if due:
                with self.code.block(f"if {due}:"):
                    change()
                    self.settled(box, state)
                    self.empty(sums)
            else:
                change()
                self.settled(box, state)
            self.counts = outer

        self.later.append(fire)

    def sums(self, box: Box, state: State) -> list[str]:
        if state.rule.set is not None or state.rule.once:
            return []
        if state.rule.write is None and state.rule.objective is None:
            return []
        return [
            f"{box.name}.{state.name}" + (f".{a.name}" if a.name else "") + ".sum"
            for a in state.form.arrays
        ]

    def empty(self, sums: list[str]) -> None:
        raise NotImplementedError
