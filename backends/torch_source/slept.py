"""Boxes on sequences: while one runs they only read, and keep what they will need; at its end they
fire once, with no gradient kept (`Model.finish`).
"""

from __future__ import annotations

from nlc.diagnostics import InternalError
from nlc.endings import ending, summed
from nlc.system import Assign, Box, State

from .bodies import Module, state_path
from .code import identifier
from .common import begin_states, head, keep_states, opening
from .expressions import ATOM, Value
from .fired import Fired
from .standing import FiredBody


class Slept(Fired):
    """Writes a box whose clock counts sequences: a method for its ticks, and one for the end."""

    at_end = False

    @property
    def clock(self) -> tuple[int, int]:
        """A period that a call does not end; at the end, its last tick."""
        return (1, 1) if self.at_end else (2, 2)

    reads_old = True

    def write(self) -> None:
        self.ending = ending(self.box)
        self.ticks()
        self.at_end = True
        self.end()

    # ---- while a sequence runs -------------------------------------------------------------------

    def ticks(self) -> None:
        box, code = self.box, self.code
        keep_states(self.module, box)
        body = FiredBody(self.module, box)
        first, names = head(self.module, box, body)
        with code.function(first, names):
            opening(self.module, box)
            self.assign(body, self.ending.ticks - self.touching)
            begin_states(self.module, box, body)
            for state in box.states:
                for array in state.form.arrays:
                    self.origin(body, state, array)
            self.look(body)
            self.assign(body, self.ending.ticks & self.touching)
            answer = self.answer(body)
            for state in box.states:
                if state.rule.changes and summed(state):
                    for key, name in self.summed(body, state).items():
                        code.add(f"s[{key}] = {name}.detach()")
            self.keep_last(body)
            code.add(f"return {answer}")
        code.add("")

    def assign(self, body: FiredBody, wanted: frozenset[str] | set[str]) -> None:
        for name, value in self.values.items():
            if name in wanted:
                body.assign(Assign(name, value))

    def look(self, body: FiredBody) -> None:
        """The states as they stand."""
        self.stand(body)
        self.running = body.anchored = dict(body.held)
        body.see(body.held)

    def keep_last(self, body: FiredBody) -> None:
        """What the end will need of the last tick."""
        lead = body.lead
        for term in self.ending.pasts:
            slot, x = term.info, term.args[0]
            body.e.count([x])
            value = body.e(x)
            given = value.code if value.lead else f"self.stream({value.code}, s, {lead})"
            shape = (*body.mapped, slot.window, *x.shape)
            self.module.hold(slot.path, self.box.loops, shape, "zeros")
            self.code.add(f"self.remember(s, {body.key(slot.path)}, {given}, {lead})")
        for kind, name, shape in self.saved():
            value = body.e.names[f"{kind} {name}"]
            given = value.code if value.lead else f"self.stream({value.code}, s, {lead})"
            self.module.hold(self.last_path(name), self.box.loops, (*body.mapped, *shape), "zeros")
            key = body.key(self.last_path(name))
            self.code.add(f"self.remember(s, {key}, {given}, {lead}, last=True)")

    def saved(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Inputs and lines of which the last tick's value is kept: kind, name, shape."""
        shapes = dict(self.box.inputs)
        rows = [("input", n, shapes[n]) for n in self.ending.inputs]
        return rows + [("local", n, self.values[n].shape) for n in self.ending.lines]

    def last_path(self, name: str) -> str:
        """With a space, which no name of a spec has."""
        return f"{self.box.path}.last tick.{identifier(name)}"

    # ---- at the end ------------------------------------------------------------------------------

    def end(self) -> None:
        box, module, code = self.box, self.module, self.code
        body = FiredBody(module, box)
        taken = ["s", "at", "w", "count"]
        w = ", w: Part" if box.path in module.has_weights else ""
        with code.function(
            f"def {module.method(box)}_ends(self, s: Stream, at: str{w}, count: int) -> None:",
            taken,
        ):
            code.docstring(
                ["The end of a sequence: the states are written once, from what has been added up",
                 "and what the last tick saw (count: of which firing)."]
            )  # fmt: skip
            self.take_up(body)
            self.look(body)
            self.assign(body, self.ending.end)
            self.fire(body, "")
        code.add("")

    def take_up(self, body: FiredBody) -> None:
        """The last tick again, as a span of one tick."""
        axis = body.lead - 1
        for kind, name, shape in self.saved():
            given = self.code.name(name)
            key = body.key(self.last_path(name))
            self.code.add(f"{given} = s[{key}].unsqueeze({axis})")
            body.e.names[f"{kind} {name}"] = Value(given, ATOM, True, len(shape))
        for term in self.ending.pasts:
            slot, x = term.info, term.args[0]
            given = self.code.name(f"past_{x.info}" if x.op in ("input", "local") else "past")
            known = f"s[{body.key(slot.path)}]"
            missing = f"{slot.window - 1} - s.age"
            self.code.add(f"{given} = self.filled({known}, {missing}, {axis}).unsqueeze({axis})")
            body.e.names[f"past {slot.path}"] = Value(given, ATOM, True, len(term.shape))
            if f"seen {slot.window}" not in body.e.names:
                seen = self.code.name("seen")
                self.code.add(f"{seen} = s.seen({slot.window}, {given}.shape[:{axis}], 1)")
                body.e.names[f"seen {slot.window}"] = Value(seen, ATOM, True, 1)

    def summed(self, body: FiredBody, state: State) -> dict[str, str]:
        """At the end what the ticks have added up is there."""
        if not (self.at_end and summed(state)):
            return super().summed(body, state)
        keys = {}
        for array in state.form.arrays:
            key = body.key(state_path(self.box, state.name, array.name) + ".sum")
            keys[key] = self.sums[state.name, array.name] = self.code.name("grad")
            self.code.add(f"{keys[key]} = s[{key}]")
        return keys


def slept(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Slept(module, box).write()
