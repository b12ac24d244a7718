"""Boxes that fire at the end of a period: gradients are summed at the state that stands, then an
optimizer of any kind writes once. With a period of one tick this is the recurrence as it stands,
tick by tick: the last resort, for states that no closed form and no fixed point carries on.
"""

from __future__ import annotations

from nlc.diagnostics import InternalError
from nlc.foreign import reads_old
from nlc.lacking import NotLowered
from nlc.rules import Example
from nlc.system import Array, Assign, Box, Handle, Lambda, Learn, State, Term
from nlc.windows import rows_of

from ..parameters import trainer
from .bodies import Body, Module, reset_of, state_path
from .code import identifier
from .common import begin_states, head, keep_states, opening, rows, transparent
from .expressions import ATOM, Expressions, Value
from .frozen import Frozen
from .rules import Written


class FiredBody(Body):
    """A body over ticks for which the box's states stand still; `held` are their Python names."""

    def __init__(self, module: Module, box: Box) -> None:
        super().__init__(module, box)
        self.held: dict[tuple[str, str], str] = {}
        self.anchored: dict[tuple[str, str], str] = {}  # the same, for gradients

    chain = False  # only inputs are closed to gradients, not what was written before

    def gate(self, code: str) -> str:
        if not self.chain:
            return super().gate(code)
        return f"s.hold({code})" if self.held_inside else code

    def see(self, held: dict[tuple[str, str], str]) -> None:
        """From here on the states are these."""
        self.held = dict(held)
        self.e.done.clear()
        self.turned.clear()

    def array(self, handle: Handle, name: str) -> tuple[str, bool]:
        code = self.held.get((handle.name, name)) if handle.box is self.box else None
        return (code, True) if code is not None else super().array(handle, name)

    def state(self, term: Term) -> Value:
        """A state as an array: the same at all ticks."""
        if term.info.box is not self.box:
            return super().state(term)
        code, _ = self.array(term.info, "" if term.info.state.form.single else self.member)
        return Value(self.over_ticks(code), ATOM, True, self.axes(term.info))

    def over_ticks(self, code: str) -> str:
        """On an axis of one, unless something counts the ticks."""
        axis = self.lead - 1
        one = f"{code}.unsqueeze({axis})"
        return f"self.lasting({one}, s, {axis})" if counts_ticks(self.box) else one

    def product(self, term: Term) -> Value:
        if term.info.handle.state.form.kind != "vector":
            return super().product(term)
        code, _ = self.array(term.info.handle, "")
        return Value(self.over_ticks(code), ATOM, True, len(term.shape))


def counts_ticks(box: Box | None) -> bool:
    """Whether a convolution in the box needs every tick of a period."""
    period = box is not None and box.level is not None and box.level.clock.period > 1
    return period and box is not None and any(t.op == "conv" for t in box.terms())


class Fired(Frozen):
    """Writes a box that fires, on the clock of its level."""

    anchored = False

    def folding(self) -> None:
        return None

    def write(self) -> None:
        box, code = self.box, self.code
        keep_states(self.module, box, *([".start"] if box.linearise is not None else []))
        body = Body(self.module, box)
        first, names = head(self.module, box, body)
        with code.function(first, names):
            opening(self.module, box)
            for line in box.lines:
                if isinstance(line, Assign) and line.name not in self.touching:
                    body.assign(line)
            self.lift(body)
            begin_states(self.module, box, body)
            self.periods(body)
        code.add("")
        self.one_period()

    @property
    def clock(self) -> tuple[int, int]:
        """The period, and the tick of the first firing (2.6.2)."""
        assert self.box.level is not None
        clock = self.box.level.clock
        return clock.period, clock.first

    @property
    def reads_old(self) -> bool:
        """Whether the box answers with the state that it had before it fires (2.7.1)."""
        return reads_old(self.box)

    def periods(self, body: Body) -> None:
        box, code = self.box, self.code
        period, first = self.clock
        cut = self.module.plan.training.truncate.get(box.level.name if box.level else "")
        axis = body.lead - 1
        colon = ", ".join([":"] * axis)
        a, b, count, reads = code.names(["a", "b", "count", "reads"])
        given = ""
        for name in self.given([*self.write_roots, *self.read_roots]):
            v = body.e.names[name]
            given += f", {v.code}[{colon}, {a}:{b}]" if v.lead else f", {v.code}"
        w = ", w" if box.path in self.module.has_weights else ""
        for state in box.states:
            for array in state.form.arrays:
                self.origin(body, state, array)
        code.add(f"{reads} = []")
        level = box.level
        flush = reset_of(box) if level is not None and level.partial == "flush" else 0
        told = f"{period}, {first}" + (f", flush={flush}" if flush else "")
        with code.block(f"for {a}, {b}, {count} in s.periods({told}):"):
            if cut is not None:
                if cut % period or first != period:
                    raise NotLowered(f"`through {cut} tokens` inside a period", box.span)
                with code.block(f"if s.age and s.age % {cut} == 0:"):
                    code.add("self.cut(s, at)")
            if box.linearise is not None:
                with code.block(f"if s.age % {box.linearise} == 0:"):
                    for path in self.paths():
                        code.add(f"s[{body.key(path + '.start')}] = s[{body.key(path)}]")
            code.add(
                f"{reads}.append(self.{self.module.method(box)}_fires(s, at{w}, {count}{given}))"
            )
        code.add(f"return self.joined({reads}, {axis})")

    # ---- one period ------------------------------------------------------------------------------

    def one_period(self) -> None:
        box, module, code = self.box, self.module, self.code
        body = FiredBody(module, box)
        taken = ["s", "at", "w", "count"]
        roots = [*self.write_roots, *self.read_roots]
        parameters = self.parameters(body, self.given(roots), taken)
        w = ", w: Part" if box.path in module.has_weights else ""
        with code.function(
            f"def {module.method(box)}_fires"
            f"(self, s: Stream, at: str{w}, count: int{parameters}) -> Tensor:",
            taken,
        ):
            code.docstring(self.about())
            self.stand(body)
            running = self.running = dict(body.held)
            if box.linearise is not None:
                self.stand(body, ".start")
            anchored = dict(body.held)
            for name, value in self.values.items():
                if name in self.touching:
                    body.see(anchored if name in self.used else running)
                    body.assign(Assign(name, value))
            body.see(running)
            body.anchored = anchored
            early = self.reads_old
            answer = self.answer(body) if early else ""
            read = dict(body.e.names)
            if self.learned_start and not body.open:
                self.close_inputs(body)
            self.fire(body, answer)
            body.e.names = read
            code.add(f"return {answer or self.answer(body)}")
        code.add("")

    @property
    def learned_start(self) -> bool:
        """A level on steps learns where some state starts: its gradient comes through the chain."""
        system = self.module.plan.system
        return any(trainer(system, self.box, s) is not None for s in self.box.states)

    def close_inputs(self, body: FiredBody) -> None:
        """Into the start, but into nothing else that is written: inputs are constants (2.11.2)."""
        body.chain = True
        names = body.e.names
        for name, v in names.items():
            if v.lead:
                names[name] = Value(f"{v.code}.detach()", ATOM, True, v.own)
        body.see(body.anchored)
        for line, value in self.values.items():
            if line in self.touching and line in self.used:
                del names[f"local {line}"]
                body.assign(Assign(line, value))
        body.see(self.running)

    def about(self) -> list[str]:
        if self.clock[0] == 1:
            return ["One tick: what is written, and what is answered."]
        return [
            "At most one period: the states stand still; at its end (count: of which firing) they",
            "are written once.",
        ]

    def stand(self, body: FiredBody, suffix: str = "") -> None:
        """The arrays as they are read, through the link if there is one."""
        for state in self.box.states:
            for array in state.form.arrays:
                key = body.key(state_path(self.box, state.name, array.name) + suffix)
                name = self.code.name(f"{state.name}_{array.name}" if array.name else state.name)
                self.code.add(f"{name} = {self.linked(body, state, array, f's[{key}]')}")
                body.held[state.name, array.name] = name

    def origin(self, body: Body, state: State, array: Array) -> None:
        """The array at the reset, for links that ask for it."""
        links = [*(state.rule.through or {}).items(), *(state.rule.onto or {}).items()]
        if not any(n == array.name and uses_start(f) for n, f in links):
            return
        path = state_path(self.box, state.name, array.name)
        shape = next(h.shape for h in self.module.held if h.path == path)
        self.module.hold(f"{path}.origin", self.box.loops, shape, "zeros")
        with self.code.block("if s.age == 0:"):
            self.code.add(f"s[{body.key(path + '.origin')}] = s[{body.key(path)}]")

    def linked(self, body: FiredBody, state: State, array: Array, code: str) -> str:
        return self.mapped_by(body, (state.rule.through or {}).get(array.name), state, array, code)

    def mapped_by(
        self, body: FiredBody, link: Lambda | None, state: State, array: Array, code: str
    ) -> str:
        """f of one array, of each head."""
        if link is None:
            return code
        lead = body.lead - 1 + len(state.per)
        given = self.code.name("kept")
        self.code.add(f"{given} = {code}")
        origin = body.key(state_path(self.box, state.name, array.name) + ".origin")
        names = dict(zip(link.params, (given, f"s[{origin}]"), strict=False))
        names |= {"A": given, "start": f"s[{origin}]"}

        def argument(term: Term) -> Value:
            return Value(names[str(term.info)], ATOM, True, len(term.shape))

        def given_line(term: Term) -> Value:
            return Value(self.last(body, term, state), ATOM, True, len(term.shape))

        e = Expressions(self.code, lead, hooks={"argument": argument})
        e.hooks |= {"input": given_line, "local": given_line}
        e.count([link.body])
        return e(link.body).code

    def answer(self, body: FiredBody) -> str:
        assert self.box.read is not None
        body.e.done.clear()
        body.turned.clear()
        body.cite_line(self.box.read)
        body.e.count([self.box.read])
        name = self.code.name("y")
        value = body.e(self.box.read)
        code = value.code if value.lead else f"self.stream({value.code}, s, {body.lead})"
        if self.clock[0] > 1 and self.stands(self.box.read):
            code = f"self.lasting({code}, s, {body.lead - 1})"
        self.code.add(f"{name} = {code}")
        return name

    def stands(self, root: Term) -> bool:
        """Whether a value is the same at all ticks of a period."""
        outer = Body(self.module, self.box)
        changing = {"input", "position", "call", "conv", "past", "rope", "dropout"}
        changing |= {"state", "product"} if counts_ticks(self.box) else set()
        for t in root.walk():
            if t.op in changing:
                return False
            if t.op == "local":
                name = str(t.info)
                inside = name in self.touching and self.stands(self.values[name])
                if not (inside or name not in self.touching and not self.leads(outer, f"x {name}")):
                    return False
        return True

    # ---- firing
    # ---------------------------------------------------------------------------------------

    def fire(self, body: FiredBody, answer: str) -> None:
        """Every state from what all were before."""
        code = self.code
        made: list[tuple[str, str]] = []
        states = [s for s in self.box.states if s.rule.changes]
        sums = {s.name: self.summed(body, s) for s in states}
        if self.clock[0] > 1:
            with code.block("if not count:"):
                for _, keys in sums.values():
                    for key, value in keys.items():
                        code.add(f"s[{key}] = {value}")
                code.add(f"return {answer}")
        for state in states:
            made += self.new(body, state, *sums[state.name])
        for key, value in made:
            code.add(f"s[{key}] = {value}")
        for state in states:
            for array in state.form.arrays:
                key = body.key(state_path(self.box, state.name, array.name))
                name = self.code.name(f"{state.name}_{array.name}" if array.name else state.name)
                if not self.reads_old:
                    code.add(f"{name} = {self.linked(body, state, array, f's[{key}]')}")
                    body.held[state.name, array.name] = name

    def summed(self, body: FiredBody, state: State) -> tuple[dict[str, str], dict[str, str]]:
        """By array, the gradient (or what is written) so far in this period; and where it waits."""
        rule = state.rule
        if rule.set is not None or rule.objective is None and rule.write is None:
            return {}, {}
        told = rule.objective if rule.write is None else rule.write
        assert told is not None
        body.cite_line(told)
        gradient = self.module.plan.of(self.box).gradients.get(state.name)
        found: dict[str, str] = {}
        keys: dict[str, str] = {}
        outer = dict(body.held)
        body.see(dict(body.anchored))
        if rule.write is None:
            transparent(body)
        if rule.after_retain:
            suffix = ".start" if self.box.linearise is not None else ""
            for array in state.form.arrays:
                kept = self.kept(body, state, array)
                key = body.key(state_path(self.box, state.name, array.name) + suffix)
                name = self.code.name("kept")
                self.code.add(f"{name} = {self.linked(body, state, array, f'{kept}s[{key}]')}")
                body.held[state.name, array.name] = name
        slopes = {}
        if rule.write is None and gradient is None:
            slopes = self.by_autograd(body, state)
        for array in state.form.arrays:
            if rule.write is not None:
                self.turn_to(body, state, array)
                code = self.whole(body, rule.write, False)
            elif gradient is None:
                code = slopes[array.name]
            else:
                mine = [e for e in gradient.examples if e.array == array.name]
                parts = [self.outer(body, state, e) for e in mine]
                parts += [
                    self.whole(body, t, rule.once) for n, t in gradient.direct if n == array.name
                ]
                code = " + ".join(parts) or f"torch.zeros_like({body.held[state.name, array.name]})"
            name = self.code.name("grad" if rule.write is None else "written")
            path = state_path(self.box, state.name, array.name)
            if self.clock[0] > 1 and not rule.once:
                shape = next(h.shape for h in self.module.held if h.path == path)
                self.module.hold(f"{path}.sum", self.box.loops, shape, "zeros")
                keys[body.key(path + ".sum")] = name
                code = f"s[{body.key(path + '.sum')}] + {code}"
            level = self.box.level.name if self.box.level is not None else ""
            if level in self.module.plan.training.first_order and rule.write is None:
                code = f"({code}).detach()"
            self.code.add(f"{name} = {body.gate(f'({code})')}")
            found[array.name] = name
        body.e.hooks.pop("stop", None)
        body.see(outer)
        return found, keys

    def by_autograd(self, body: FiredBody, state: State) -> dict[str, str]:
        """The gradient of an objective that no rule of ours derives, by array."""
        names = [self.code.name(f"{state.name}_{a.name}" if a.name else state.name)
                 for a in state.form.arrays]  # fmt: skip
        slopes = self.code.names(
            [f"slope_{a.name}" if a.name else "slope" for a in state.form.arrays]
        )
        assert state.rule.objective is not None
        told = ", ".join(names) + "," * (len(names) == 1)
        given = ", ".join(body.held[state.name, a.name] for a in state.form.arrays)
        with self.code.block("with torch.enable_grad():"):
            self.code.add(f"{told} = self.leaves({given})")
            keys = [(state.name, a.name) for a in state.form.arrays]
            body.see(body.held | dict(zip(keys, names, strict=True)))
            body.e.count([state.rule.objective])
            value = body.e(state.rule.objective).atom
            if state.rule.once:
                value = f"{value}.select({body.lead - 1}, -1)"
            elif self.clock[0] > 1 and self.stands(state.rule.objective):
                value = f"{value} * s.time"
            found = ", ".join(slopes) + "," * (len(slopes) == 1)
            self.code.add(f"{found} = self.slopes({value}, {', '.join(names)})")
        return {a.name: s for a, s in zip(state.form.arrays, slopes, strict=True)}

    def outer(self, body: FiredBody, state: State, example: Example) -> str:
        """surprise' input, summed over the ticks."""
        own = len(state.per)
        if state.form.kind == "vector":
            e = rows(body, example.surprise, state.per, 1)
            return f"{atom(e)}.select(-2, -1)" if state.rule.once else f"{e}.sum(-2)"
        several = len(example.input.shape) - own == 2
        x = rows(body, example.input, state.per, 1 + several)
        e = rows(body, example.surprise, state.per, 1 + several)
        if several and (window := rows_of(example.input)):
            shown = body.e.names[f"seen {window}"].code
            e = f"parts.only({e}, {shown}.unsqueeze(-1))"
        if state.rule.once:
            axis = -2 - several
            x, e = (f"{atom(row)}.narrow({axis}, -1, 1)" for row in (x, e))
        if several:
            x, e = f"{atom(x)}.flatten(-3, -2)", f"{atom(e)}.flatten(-3, -2)"
        return f"{atom(e)}.mT @ {atom(x)}"

    def whole(self, body: FiredBody, term: Term, once: bool) -> str:
        """An array a tick, summed over the ticks; or the last tick's."""
        value = body.e(term)
        if once:
            return f"{value.atom}.select({body.lead - 1}, -1)" if value.lead else value.atom
        times = " * s.time" if self.clock[0] > 1 and self.stands(term) else ""
        if not value.lead:
            return f"{value.atom}{times}"
        return f"{value.atom}.sum({body.lead - 1}){times}"

    def new(
        self, body: FiredBody, state: State, sums: dict[str, str], keys: dict[str, str]
    ) -> list[tuple[str, str]]:
        """The arrays after the firing, under the keys where they are kept."""
        made = [(key, f"torch.zeros_like({value})") for key, value in keys.items()]
        for array in state.form.arrays:
            path = state_path(self.box, state.name, array.name)
            old = f"s[{body.key(path)}]"
            name = self.code.name(f"new_{state.name}")
            if state.rule.set is not None:
                self.turn_to(body, state, array)
                value = body.e(state.rule.set)
                body.cite_line(state.rule.set)
                picked = f"{value.atom}.select({body.lead - 1}, -1)" if value.lead else value.code
                new = f"({picked}).expand_as({old})"
            else:
                kept = self.kept(body, state, array)
                new = f"{kept}{old}"
                if array.name in sums:
                    amount, own, waits = self.optimized(
                        body, state, array, sums[array.name], old, path
                    )
                    new = f"{own}{kept}{old} + {amount}"
                    made += waits
            onto = (state.rule.onto or {}).get(array.name)
            new = self.mapped_by(body, onto, state, array, new)
            self.code.add(f"{name} = {body.gate(f'({new})')}")
            made.append((body.key(path), name))
        return made

    def turn_to(self, body: FiredBody, state: State, array: Array) -> None:
        """Networks are added up array by array (2.3.2)."""
        body.member = "" if state.form.single else array.name
        if body.member:
            body.e.done.clear()

    def kept(self, body: FiredBody, state: State, array: Array) -> str:
        """What is kept of the array, as a factor before it (2.5.4)."""
        retain = state.rule.retain
        if retain is None:
            return ""
        rest = own_shape(retain, state)
        form = state.form
        if not form.single and any(n != 1 for n in rest):
            wanted = first_arrays(state) if len(rest) == 1 else last_arrays(state)
            if array.name not in wanted:
                return ""
        return f"{self.last(body, retain, state, array)} * "

    def last(self, body: Body, term: Term, state: State, array: Array | None = None) -> str:
        """A number (or one a channel) of the last tick, beside arrays [batch, .., m, n]; without an
        array, with its own axes alone.
        """
        value = body.e(term)
        if not value.lead:
            return value.code if value.own == 0 else value.atom
        code = f"{value.atom}.select({body.lead - 1}, -1)"
        rest = own_shape(term, state)
        missing = 0 if len(rest) < len(term.shape) else len(state.per)
        rank = len(array.shape) if array is not None else len(rest)
        if not missing and rank == len(rest):
            return code
        at = [":"] * (body.lead - 1) + ["None"] * missing
        at += [":"] * (len(state.per) - missing) + ["None"] * (rank - len(rest))
        return f"{code}[{', '.join([*at, *[':'] * len(rest)])}]"

    def optimized(
        self, body: FiredBody, state: State, array: Array, grad: str, old: str, path: str
    ) -> tuple[str, str, list[tuple[str, str]]]:
        """What is added; what the optimizer keeps, as a factor; and where its own states go."""
        if state.rule.write is not None:
            return grad, "", []
        learn = state.rule.learn.get(array.name)
        if learn is None or not learn.optimizers or learn.steps > 1:
            raise NotLowered(f"the learning rule of `{state.name}`", state.span)
        rule = learn.optimizers[array.shape]
        passed, given = self.passed(body, state, learn)
        lead = body.lead - 1 + len(state.per)
        method = self.method(learn, rule, lead, passed)
        given += "".join(f", {body.weight(t).code}" for t in method.weights)
        whole = next(h.shape for h in self.module.held if h.path == path)
        for one in method.kept:
            shape = one.within(whole, array.shape)
            self.module.hold(f"{path}.{one.name}", self.box.loops, shape, "zeros")
        m, kept, amount = self.code.names(["m", "kept", "amount"])
        listed = ", ".join(f'"{k}": s[{body.key(f"{path}.{k}")}]' for k in method.states)
        self.code.add(f"{m} = {{{listed}}}" if listed else f"{m}: dict[str, Tensor] = {{}}")
        weight = f"{self.kept(body, state, array)}{old}" if state.rule.after_retain else old
        self.code.add(f"{kept}, {amount} = self.{method.name}({weight}, {grad}, {m}, count{given})")
        waits = [(body.key(f"{path}.{k}"), body.gate(f'{m}["{k}"]')) for k in method.states]
        beside = f"self.beside({kept}, {old})" if passed else kept
        return amount, "" if method.keeps_all else f"{beside} * ", waits

    def method(self, learn: Learn, rule: Box, lead: int, passed: dict[str, int]) -> Written:
        if any(t.op == "across" for s in learn.streams.values() for t in s.walk()):
            raise NotLowered("`across` at tokens", learn.span)
        settings = {k: t for k, t in learn.settings.items() if k not in passed}
        wish = f"rule_{identifier(learn.rule)}"
        return self.module.rules.method(
            wish, rule, lead, settings, dict(learn.streams), passed, weights=True
        )

    def passed(self, body: FiredBody, state: State, learn: Learn) -> tuple[dict[str, int], str]:
        """Settings that change with the ticks: by name, how many axes; and as arguments."""
        passed: dict[str, int] = {}
        given = ""
        for name, term in learn.settings.items():
            if not body_varies(term):
                continue
            rest = own_shape(term, state)
            passed[name] = len(rest)
            code = self.last(body, term, state)
            if len(rest) == len(term.shape) and state.per:  # no heads of its own
                at = [":"] * (body.lead - 1) + ["None"] * len(state.per) + [":"] * len(rest)
                value = body.e(term)
                code = f"{code}[{', '.join(at)}]" if value.lead else code
            given += f", {code}"
        return passed, given


def body_varies(term: Term) -> bool:
    return any(t.op not in ("const", "count") and not t.args for t in term.walk())


def own_shape(term: Term, state: State) -> tuple[int, ...]:
    """The shape of a gate without the heads, if it has them."""
    heads = len(state.per)
    return term.shape[heads:] if heads and term.shape[:heads] == state.per else term.shape


def first_arrays(state: State) -> tuple[str, ...]:
    return ("W1",) if state.form.core.kind == "mlp" else ("W1", "W3")


def last_arrays(state: State) -> tuple[str, ...]:
    core = state.form.core
    return (f"W{len(core.sizes) - 1}",) if core.kind == "mlp" else ("W2",)


def uses_start(link: Lambda) -> bool:
    return any(t.op == "argument" and t.info == "start" for t in link.body.walk())


def atom(code: str) -> str:
    return code if code.replace(".", "").replace("_", "").isalnum() else f"({code})"


def fired(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Fired(module, box).write()
