"""Boxes that fire at the end of a period: gradients are summed at the state that stands, then an
optimizer of any kind writes once. With a period of one tick this is the recurrence as it stands,
tick by tick: the last resort, for states that no closed form and no fixed point carries on.
"""

from __future__ import annotations

from nlc.diagnostics import InternalError
from nlc.foreign import reads_old
from nlc.lacking import NotLowered
from nlc.system import Array, Assign, Box, State

from ..parameters import trainer
from .bodies import Body, Module, reset_of, state_path
from .common import begin_states, head, keep_states, opening
from .expressions import ATOM, Value
from .learned import Learned
from .standing import FiredBody, uses_start


class Fired(Learned):
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
    def reads_old(self) -> bool:
        """Whether the box answers with the state that it had before it fires (2.7.1)."""
        return reads_old(self.box)

    def periods(self, body: Body) -> None:
        box, code = self.box, self.code
        period, first = self.clock
        cut = self.module.plan.training.truncate.get(box.level.name if box.level else "")
        axis = body.lead - 1
        periods, part, count, reads = code.names(["periods", "part", "count", "reads"])
        each = code.name("each")
        values = [body.e.names[n] for n in self.given([*self.write_roots, *self.read_roots])]
        streams = [v.code for v in values if v.lead]
        numbers = iter(range(len(streams)))
        listed = [f"{part}[{next(numbers)}]" if v.lead else v.code for v in values]
        if len(streams) == len(values) > 0:
            listed = [f"*{part}"]
        given = "".join(f", {one}" for one in listed)
        w = ", w" if box.path in self.module.has_weights else ""
        for state in box.states:
            for array in state.form.arrays:
                self.origin(body, state, array)
        code.add(f"{reads} = []")
        level = box.level
        flush = reset_of(box) if level is not None and level.partial == "flush" else 0
        told = f"{period}, {first}" + (f", flush={flush}" if flush else "")
        if self.waits and not self.reads_old:
            told += ", alone=True"
        loop = f"for _, _, {count} in s.periods({told}):"
        if streams:  # split once: a slice a period has a derivative as long as the whole stream
            code.add(f"{periods} = s.periods({told})")
            split = f"{periods}.split({axis}, {', '.join(streams)})"
            code.add(f"{each} = zip({periods}, {split}, strict=True)")
            loop = f"for (_, _, {count}), {part} in {each}:"
        with code.block(loop):
            if cut is not None:
                if cut % period or first != period:
                    help = f"a multiple of the period ({period} tokens) is compiled"
                    if first != period:
                        help = "a clock without a phase, and a multiple of its period, are compiled"
                    said = f"`through {cut} tokens` inside a period"
                    raise NotLowered(said, box.span, f"{help}; `nlc.reference` runs any")
                if not self.module.plan.spans.every:
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
        if not self.waits:
            return ["One tick: what is written, and what is answered."]
        return [
            "At most one period: the states stand still; at its end (count: of which firing) they",
            "are written once.",
        ]

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

    def answer(self, body: FiredBody) -> str:
        assert self.box.read is not None
        body.e.done.clear()
        body.turned.clear()
        body.cite_line(self.box.read)
        body.e.count([self.box.read])
        name = self.code.name("y")
        value = body.e(self.box.read)
        code = value.code if value.lead else f"self.stream({value.code}, s, {body.lead})"
        if self.waits and self.stands(self.box.read):
            code = f"self.lasting({code}, s, {body.lead - 1})"
        self.code.add(f"{name} = {code}")
        return name

    # ---- firing
    # ---------------------------------------------------------------------------------------

    def fire(self, body: FiredBody, answer: str) -> None:
        """Every state from what all were before."""
        code = self.code
        made: list[tuple[str, str]] = []
        states = [s for s in self.box.states if s.rule.changes]
        sums = {s.name: self.summed(body, s) for s in states}
        if self.waits:
            with code.block("if not count:"):
                for keys in sums.values():
                    for key, value in keys.items():
                        code.add(f"s[{key}] = {value}")
                code.add(f"return {answer or self.unfired(body)}")
        for state in states:
            made += self.new(body, state, sums[state.name])
        for key, value in made:
            code.add(f"s[{key}] = {value}")
        for state in states:
            for array in state.form.arrays:
                key = body.key(state_path(self.box, state.name, array.name))
                name = self.code.name(f"{state.name}_{array.name}" if array.name else state.name)
                if not self.reads_old:
                    code.add(f"{name} = {self.linked(body, state, array, f's[{key}]')}")
                    body.held[state.name, array.name] = name

    def unfired(self, body: FiredBody) -> str:
        """What is read before the first firing, where all other reads see a new state."""
        names = dict(body.e.names)
        said = self.answer(body)
        body.e.names = names
        body.e.done.clear()
        body.turned.clear()
        return said


def fired(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Fired(module, box).write()
