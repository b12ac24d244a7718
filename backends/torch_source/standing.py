"""Boxes whose states stand still while ticks pass: the bodies of such ticks, and the gradients that
their objectives have there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nlc.rules import Example
from nlc.system import Array, Box, Handle, Lambda, State, Term
from nlc.windows import rows_of

from .bodies import Body, Module, state_path
from .common import rows
from .expressions import ATOM, Expressions, Value
from .frozen import Frozen


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

    @contextmanager
    def stops_at(self, held: dict[tuple[str, str], str], objective: Term) -> Iterator[None]:
        """What an objective stops is made of these states, and of none that autograd is asked for:
        a constant to that gradient alone (2.12).
        """
        before = self.e.hooks.get("stop", self.e.op_stop)
        mine = {id(t) for t in objective.walk() if t.op == "stop"}

        def stop(term: Term) -> Value:
            if id(term) not in mine:
                return before(term)
            seen = self.held, self.turned
            self.held, self.turned = held, {}
            value = self.e.anew(term.args[0])
            self.held, self.turned = seen
            return value

        self.e.hooks["stop"] = stop
        yield
        self.e.hooks["stop"] = before

    def array(self, handle: Handle, name: str) -> tuple[str, bool]:
        code = self.held.get((handle.name, name)) if handle.box is self.box else None
        return (code, True) if code is not None else super().array(handle, name)

    def state(self, term: Term) -> Value:
        """A state as an array: the same at all ticks."""
        if term.info.box is not self.box:
            code, own = self.array(term.info, self.meant(term.info))
            if not own:
                return super().state(term)
        else:
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
    """Whether something in the box needs every tick of a period."""
    clock = box.level.clock if box is not None and box.level is not None else None
    period = clock is not None and (max(clock.period, clock.first) > 1 or clock.unit == "sequence")
    each = ("conv", "call", "past", "rope")
    return period and box is not None and any(t.op in each for t in box.terms())


class Standing(Frozen):
    """What a box's states say, and are told, while they stand."""

    @property
    def clock(self) -> tuple[int, int]:
        """The period, and the tick of the first firing (2.6.2)."""
        assert self.box.level is not None
        clock = self.box.level.clock
        return clock.period, clock.first

    @property
    def waits(self) -> bool:
        """Whether some firing is of several ticks; of a clock `from`, it may be the first alone."""
        return max(self.clock) > 1

    def stands(self, root: Term) -> bool:
        """Whether a value is the same at all ticks of a period."""
        outer = Body(self.module, self.box)
        changing = {"input", "position", "call", "conv", "past", "rope", "dropout"}
        for t in root.walk():
            if t.op in changing:
                return False
            if t.op == "local":
                name = str(t.info)
                inside = name in self.touching and self.stands(self.values[name])
                if not (inside or name not in self.touching and not self.leads(outer, f"x {name}")):
                    return False
        return True

    def stand(self, body: FiredBody, suffix: str = "") -> None:
        """The arrays as they are read, through the link if there is one."""
        for state in self.box.states:
            for array in state.form.arrays:
                key = body.key(state_path(self.box, state.name, array.name) + suffix)
                name = self.code.name(f"{state.name}_{array.name}" if array.name else state.name)
                self.code.add(f"{name} = {self.linked(body, state, array, f's[{key}]')}")
                body.held[state.name, array.name] = name

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
        e.hooks |= dict.fromkeys(("input", "local", "state", "apply", "position"), given_line)
        e.count([link.body])
        return e(link.body).code

    # ---- gradients -------------------------------------------------------------------------------

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
            standing = dict(body.held)
            body.see(body.held | dict(zip(keys, names, strict=True)))
            body.e.count([state.rule.objective])
            with body.stops_at(standing, state.rule.objective):
                value = body.e(state.rule.objective).atom
            if state.rule.once:
                value = f"{value}.select({body.lead - 1}, -1)"
            elif self.waits and self.stands(state.rule.objective):
                value = self.at_each_tick(value, body.lead - 1)
            found = ", ".join(slopes) + "," * (len(slopes) == 1)
            self.code.add(f"{found} = self.slopes({value}, {', '.join(names)})")
        return {a.name: s for a, s in zip(state.form.arrays, slopes, strict=True)}

    def outer(self, body: FiredBody, state: State, example: Example) -> str:
        """surprise' input, summed over the ticks."""
        if state.form.kind == "vector":
            e = self.row_a_tick(body, example.surprise, state, 0)
            return f"{atom(e)}.select(-2, -1)" if state.rule.once else f"{e}.sum(-2)"
        x, e = self.pair(body, state, example)
        return f"{atom(e)}.mT @ {atom(x)}"

    def pair(self, body: FiredBody, state: State, example: Example) -> tuple[str, str]:
        """The inputs and the surprises, a row for each example of these ticks (2.9.6)."""
        several = len(example.input.shape) - len(state.per) == 2
        x = self.row_a_tick(body, example.input, state, int(several))
        e = self.row_a_tick(body, example.surprise, state, int(several))
        if several and (window := rows_of(example.input)):
            shown = body.e.names[f"seen {window}"].code
            x, e = (f"parts.only({row}, {shown}.unsqueeze(-1))" for row in (x, e))
        if state.rule.once:
            axis = -2 - several
            x, e = (f"{atom(row)}.narrow({axis}, -1, 1)" for row in (x, e))
        if several:
            x, e = f"{atom(x)}.flatten(-3, -2)", f"{atom(e)}.flatten(-3, -2)"
        return x, e

    def row_a_tick(self, body: FiredBody, term: Term, state: State, several: int) -> str:
        """A row a tick, of what stands too."""
        made = rows(body, term, state.per, 1 + several)
        if self.clock[0] == 1 or not body.e(term).lead or not self.stands(term):
            return made
        return self.at_each_tick(made, -2 - several)

    def whole(self, body: FiredBody, term: Term, once: bool) -> str:
        """An array a tick, summed over the ticks; or the last tick's."""
        value = body.e(term)
        if once:
            return f"{value.atom}.select({body.lead - 1}, -1)" if value.lead else value.atom
        axis = body.lead - 1
        if not self.waits or not self.stands(term):
            return f"{value.atom}.sum({axis})" if value.lead else value.atom
        if not value.lead:
            return f"{value.atom} * s.time"
        if counts_ticks(self.box):
            return f"{self.at_each_tick(value.atom, axis)}.sum({axis})"
        return f"{value.atom}.sum({axis}) * s.time"

    def at_each_tick(self, value: str, axis: int) -> str:
        """A value that stands, as often as it counts; some have their ticks (`over_ticks`)."""
        return f"self.lasting({value}, s, {axis})"

    # ---- arrays and what multiplies them ---------------------------------------------------------

    def turn_to(self, body: FiredBody, state: State, array: Array) -> None:
        """Networks are added up array by array (2.3.2)."""
        body.member = "" if state.form.single else array.name
        if body.member:
            body.e.done.clear()

    def kept(self, body: FiredBody, state: State, array: Array) -> str:
        """What is kept of the array, as a factor before it."""
        retain = state.rule.retain
        share = "" if retain is None else self.share(body, retain, state, array)
        return f"{share} * " if share else ""

    def share(self, body: FiredBody, term: Term, state: State, array: Array) -> str:
        """A factor of the array, where it is one of those that it means (2.5.4); else nothing."""
        rest = own_shape(term, state)
        if not state.form.single and any(n != 1 for n in rest):
            first, last = state.form.ends
            wanted = first if len(rest) == 1 else last
            if array.name not in wanted:
                return ""
        return self.last(body, term, state, array)

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


def body_varies(term: Term) -> bool:
    return any(t.op not in ("const", "count") and not t.args for t in term.walk())


def own_shape(term: Term, state: State) -> tuple[int, ...]:
    """The shape of a gate without the heads, if it has them."""
    heads = len(state.per)
    return term.shape[heads:] if heads and term.shape[:heads] == state.per else term.shape


def uses_start(link: Lambda) -> bool:
    return any(t.op == "argument" and t.info == "start" for t in link.body.walk())


def atom(code: str) -> str:
    return code if code.replace(".", "").replace("_", "").isalnum() else f"({code})"


def rows_a_tick(state: State, example: Example) -> int:
    """How many examples a tick has of one product."""
    own = example.input.shape[len(state.per) :]
    return abs(own[0]) if len(own) == 2 else 1
