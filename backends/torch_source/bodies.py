"""Bodies of boxes and of the flow as methods: lines, calls, pasts, and the lowering of each box."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from nlc.derive import application
from nlc.diagnostics import InternalError
from nlc.foreign import names_others, writes_at_call
from nlc.plan import Lowering, Plan
from nlc.system import (
    Assign,
    Box,
    Handle,
    Lambda,
    Line,
    Loop,
    Shape,
    Slot,
    Term,
    Weight,
    line_terms,
)

from ..runtime.model import Model
from .code import Code, identifier
from .expressions import ATOM, Expressions, Value, rows_at
from .rules import RuleWriter

NOT_PARTS = set(dir(nn.Module()))  # names that every place in the tree of weights has
NOT_METHODS = set(dir(Model()))  # what every module has


@dataclass
class Held:
    """An array or a past that a stream keeps: a row of the module's table of states."""

    path: str
    loops: Shape
    shape: Shape
    start: str  # "zeros" or "weights"


@dataclass
class Module:
    """What is gathered while methods are written."""

    plan: Plan
    code: Code
    has_weights: frozenset[str]  # paths of boxes (templates) below which there are weights
    held: list[Held] = field(default_factory=list)
    dropped: list[tuple[str, Shape]] = field(default_factory=list)  # with `partial drop`
    methods: dict[str, str] = field(default_factory=dict)  # box path -> method name
    rules: RuleWriter = field(default_factory=lambda: RuleWriter(Code(depth=1)))  # at tokens

    def method(self, box: Box) -> str:
        if box.path not in self.methods:
            parts = [
                p
                for p in box.path.split(".")
                if p != "{}" and not p.startswith(("layers", "rounds")) and not p.isdigit()
            ]
            wish = identifier("_".join(parts))
            taken = set(self.methods.values()) | NOT_METHODS
            name, n = wish, 1
            while name in taken:
                n += 1
                name = f"{wish}_{n}"
            self.methods[box.path] = name
        return self.methods[box.path]

    def link(self, state: str, link: Lambda) -> str:
        """The method that reads a state's dual."""
        inner = Code(depth=1)
        e = Expressions(
            inner, 1, hooks={"argument": lambda t: Value("A", ATOM, True, len(t.shape))}
        )
        with inner.function("def NAME(self, A: Tensor) -> Tensor:", ["A"]):
            inner.docstring([f"What the dual `{state}` is read as."])
            e.count([link.body])
            inner.add(f"return {e(link.body).code}")
        return self.rules.once(f"link_{identifier(state)}", inner.text()).name

    def hold(self, path: str, loops: Shape, shape: Shape, start: str) -> None:
        if all(h.path != path for h in self.held):
            self.held.append(Held(path, loops, shape, start))


def state_path(box: Box, state: str, array: str) -> str:
    return f"{box.path}.{state}" + (f".{array}" if array else "")


def all_mapped(box: Box) -> Shape:
    """The axes a box is mapped over, those of the memories that call it first."""
    return (*(all_mapped(box.parent) if box.parent is not None else ()), *box.mapped)


class Body:
    """Writes one body. `box` is None for the flow."""

    def __init__(self, module: Module, box: Box | None) -> None:
        self.module = module
        self.code = module.code
        self.plan = module.plan
        self.box = box
        self.level = box.level.name if box is not None and box.level is not None else None
        self.mapped = all_mapped(box) if box is not None else ()
        self.lead = 2 + len(self.mapped)
        self.parts: list[tuple[str, str]] = [(box.path + "." if box is not None else "", "w")]
        self.ats: list[tuple[str, str]] = (
            [(box.path + "." if box is not None else "", "at")] if box is not None else [("", "")]
        )
        self.turned: dict[str, str] = {}
        self.pasts: dict[str, str] = {}  # those that stand while their ticks are run again
        self.batch = "batch"  # what the first axis holds, for the reader
        self.e = self.expressions()

    def expressions(self) -> Expressions:
        hooks: dict[str, Callable[[Term], Value]] = {
            "weight": self.weight,
            "call": self.call,
            "conv": self.conv,
            "past": self.past,
            "dropout": self.dropout,
            "position": self.position,
            "apply": self.apply,
            "state": self.state,
            "array": self.state,
            "next": self.next,
            "product": self.product,
            "product_back": self.product_back,
        }
        return Expressions(self.code, self.lead, hooks=hooks, of_flow=self.box is None)

    # ---- which gradients pass --------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Training's gradient enters this level's states and pasts, and its body's weights
        (2.11.2).
        """
        return (
            self.level is None
            or self.level in self.plan.training.levels
            or not self.plan.training.levels
            and self.owner_never()
        )

    def owner_never(self) -> bool:
        owner = self.plan.system.owner
        return owner is None or owner.clock.unit == "never"

    @property
    def held_inside(self) -> bool:
        """The levels on tokens that learn the model's loss take this level's writes and pasts as
        constants (2.10.1).
        """
        return bool(self.plan.learners) and (
            self.level is None or self.level not in self.plan.inner.levels
        )

    def gate(self, code: str) -> str:
        """A value on its way into a state."""
        if not self.open:
            return f"{code}.detach()"
        return f"s.hold({code})" if self.held_inside else code

    # ---- weights and paths
    # --------------------------------------------------------------------------

    def place(self, path: str, table: list[tuple[str, str]]) -> tuple[str, str]:
        """The longest known prefix of a path, as Python, and what is left of the path."""
        prefix, name = max(
            (row for row in table if path.startswith(row[0])), key=lambda row: len(row[0])
        )
        return name, path[len(prefix) :]

    def weight(self, term: Term) -> Value:
        w: Weight = term.info
        name, rest = self.place(w.path, self.parts)
        code = attribute(name, rest)
        if self.box is not None and not self.open:
            code += ".detach()"
        return Value(code, ATOM, False, len(w.shape))

    def key(self, path: str) -> str:
        """The key of something a stream keeps, as a Python expression."""
        name, rest = self.place(path, self.ats)
        if not name:
            return repr(rest)
        return f'f"{name[2:-1]}{rest}"' if name.startswith('f"') else f"{name} + {rest!r}"

    # ---- calls
    # ----------------------------------------------------------------------------------------

    def call(self, term: Term) -> Value:
        box: Box = term.info
        method = self.module.method(box)
        args = [
            self.argument(a, shape, lead, box)
            for a, (_, shape), lead in zip(term.args, box.inputs, box.input_mapped, strict=True)
        ]
        given = ["s", self.key(box.path + ".")]
        if box.path in self.module.has_weights:
            part, left = self.place(box.path, [(p.rstrip("."), n) for p, n in self.parts])
            given.append(attribute(part, left.lstrip(".")))
        args += [self.array(h, n)[0] for h, n in arrays_of_others(box)]
        code = f"self.{method}({', '.join([*given, *args])})"
        every = reset_of(box)
        if every and self.box is None:
            late = box.level in self.plan.learners  # its spans end where it is reset
            late = late or box.level is not None and box.level.name in self.plan.spans.late
            run = "life" if late else "lives"
            code = (
                f"self.{run}({', '.join(['s', str(every), f'self.{method}', *given[1:], *args])})"
            )
        elif self.box is None and outlives(box):
            code = f"self.long({', '.join(['s', f'self.{method}', *given[1:], *args])})"
        elif self.box is None and self.plan.learners and self.constant_inside(box):
            code = f"s.answer({', '.join([f'self.{method}', *given[1:], *args])})"
        k = len(box.mapped)
        if k:
            code += f".movedim({self.lead - 1 + k}, {self.lead - 1})"
        if self.box is None and self.plan.spans.every:
            code = self.now(box.name, code)
        return Value(code, ATOM, True, len(term.shape))

    def constant_inside(self, box: Box) -> bool:
        """A level that writes on tokens, and whose writes are constants to the levels there that
        learn the model's loss: its answer is a function of what it is given.
        """
        level = box.level.name if box.level is not None else ""
        return level not in self.plan.inner.levels and self.plan.of(box).kind in (
            "frozen",
            "solved",
        )

    def argument(self, term: Term, own: Shape, lead: Shape, box: Box) -> str:
        """An input with the axes of the map before time."""
        value = self.e(term)
        k = len(box.mapped)
        code = value.code
        if not value.lead:
            code = f"self.stream({value.code}, s, {self.lead})"
        if not k:
            return code
        missing = k - len(lead)
        code = code if value.level == ATOM or not value.lead else f"({code})"
        code += f".unsqueeze({self.lead})" * missing
        if 1 in lead or missing:
            code = f"self.spread({code}, {self.lead}, {box.mapped})"
        return (
            f"{code}.movedim({self.lead - 1}, {self.lead - 1 + k})"
            if k > 1
            else f"{code}.transpose({self.lead - 1}, {self.lead})"
        )

    # ---- pasts
    # -------------------------------------------------------------------------------------------

    def conv(self, term: Term) -> Value:
        """A causal convolution, with the ticks before this span carried."""
        slot: Slot = term.info
        x, w = (self.e(a) for a in term.args)
        if self.lead != 2:
            raise InternalError("a convolution inside a mapped memory")
        if not x.lead:
            x = Value(f"self.stream({x.code}, s, {self.lead})", ATOM, True, x.own)
        given = self.code.name("x_conv") if x.level != ATOM or "(" in x.code else x.code
        if given != x.code:
            self.code.add(f"{given} = {x.code}")
        self.module.hold(
            slot.path,
            slot_loops(slot, self.box, self.loops),
            (slot.window, *term.args[0].shape),
            "zeros",
        )
        key = self.key(slot.path)
        past = (
            ", hold=torch.detach" if not self.open else ", hold=s.hold" if self.held_inside else ""
        )
        before = self.pasts.get(key, f"s[{key}]")
        name = self.code.name("y")
        cut = self.plan.training.truncate.get(self.level or "")
        function = "parts.causal_conv(" if cut is None else f"self.conv_cut(s, {cut}, "
        self.code.add(f"{name} = {function}{given}, {w.code}, {before}{past})")
        self.code.add(f"s[{key}] = self.last({before}, {given}, {slot.window})")
        return Value(name, ATOM, True, len(term.shape))

    def past(self, term: Term) -> Value:
        """A window of the last ticks; those before this span are carried."""
        slot: Slot = term.info
        known = self.e.names.get(f"past {slot.path}")
        if known is not None:
            return known
        x = self.e(term.args[0])
        code = x.code if x.lead else f"self.stream({x.code}, s, {self.lead})"
        shape = (*self.mapped, slot.window - 1, *term.args[0].shape)
        self.module.hold(slot.path, slot_loops(slot, self.box, self.loops), shape, "zeros")
        wish = f"past_{term.args[0].info}" if term.args[0].op in ("input", "local") else "past"
        name = self.code.name(wish)
        key = self.key(slot.path)
        self.code.add(f"{name} = self.window(s, {key}, {code}, {slot.window}, {self.lead})")
        value = Value(name, ATOM, True, len(term.shape))
        self.e.names[f"past {slot.path}"] = value
        if f"seen {slot.window}" not in self.e.names:
            seen = self.code.name("seen")
            lead = f"{name}.shape[:{self.lead - 1}]"
            self.code.add(f"{seen} = s.seen({slot.window}, {lead}, s.time)")
            self.e.names[f"seen {slot.window}"] = Value(seen, ATOM, True, 1)
        return value

    def position(self, term: Term) -> Value:
        """The same for each head."""
        heads = "".join(f"{n}, " for n in self.mapped)
        each = f".expand(-1, {heads}-1)" if heads else ""
        return Value(f"s.positions({self.lead}){each}", ATOM, True, 0)

    def dropout(self, term: Term) -> Value:
        """What falls while a level on steps learns."""
        slot: Slot = term.info
        x = self.e(term.args[0])
        on_steps = any(level.clock.unit in ("step", "task") for level in self.plan.system.levels)
        code = x.code if x.lead else f"self.stream({x.code}, s, {self.lead})"
        if not slot.chance or not on_steps:
            return Value(code, x.level if x.lead else ATOM, True, x.own)
        name = self.code.name("left")
        told = ", ".join([self.key(slot.path), repr(slot.chance), code, *map(str, self.mapped)])
        self.code.add(f"{name} = self.dropout(s, {told})")
        return Value(name, ATOM, True, len(term.shape))

    loops: Shape = ()
    member = ""  # the array that is meant where a whole network is named

    # ---- states
    # -------------------------------------------------------------------------------------------

    def lowering(self, box: Box) -> Lowering:
        return self.plan.of(box)

    def array(self, handle: Handle, name: str) -> tuple[str, bool]:
        """The value of one array of a state, and whether every sample has its own."""
        box, state = handle.box, handle.state
        if self.lowering(box).kind == "static":
            path = state_path(box, state.name, name)
            if path not in self.module.has_weights:  # it starts from zeros, and nothing moves it
                form = next(a for a in state.form.arrays if a.name == name)
                return f"self.full(0.0, {(*state.per, *form.shape)})", False
            near = box is self.box or self.box is None and box.loops
            mine = [(p, n) for p, n in self.parts if path.startswith(p)] if near else []
            if mine:
                part, rest = self.place(path, self.parts)
                return attribute(part, rest), False
            return self.of_round(attribute("self.weights_in(s)", path)), False
        known = self.e.names.get(f"other {state_path(box, state.name, name)}")
        if known is not None:
            return known.code, True
        key = self.key(state_path(box, state.name, name))
        if box is not self.box and handle.foreign:
            if not writes_at_call(box):
                return f"s.stood[{key}]", True
            return self.now(f"{box.name}_{state.name}", f"s[{key}]"), True
        return f"s[{key}]", True

    def of_round(self, code: str) -> str:
        """Of another box, in the round of this one, whose path says which."""
        steps = self.box.path.split(".") if self.box is not None else []
        for i in (i for i, step in enumerate(steps) if step == "{}"):
            code = code.replace("{}", f"_{i}_", 1)
        return re.sub(r"\._(\d+)_(?=[.\[])", r'[at.split(".")[\1]]', code)

    def now(self, wish: str, code: str) -> str:
        """A value that has a name from its place in the text on (2.7.2)."""
        name = self.code.name(wish)
        self.code.add(f"{name} = {code}")
        return name

    def axes(self, handle: Handle) -> int:
        """Of the array that is meant where a state is named."""
        arrays = handle.state.form.arrays
        array = next((a for a in arrays if a.name == self.meant(handle)), arrays[0])
        return len(handle.state.per) + len(array.shape)

    def meant(self, handle: Handle) -> str:
        """Of a network, the array that is."""
        if handle.state.form.single:
            return ""
        return self.member if handle.array is None else handle.array

    def others(self, box: Box) -> list[tuple[str, str, int]]:
        """Path, name and axes of each array of another box that a body names."""
        return [
            (
                state_path(h.box, h.name, n),
                "_".join(p for p in (h.box.name, h.name, n) if p),
                len(h.state.per) + len(next(a.shape for a in h.state.form.arrays if a.name == n)),
            )
            for h, n in arrays_of_others(box)
        ]

    def apply(self, term: Term) -> Value:
        handle: Handle = term.info
        state = handle.state
        if state.form.core.kind == "table":
            table, own = self.array(handle, "")
            ids = self.e(term.args[0])
            if not own and not state.per:
                return rows_at(table, ids, self.box is None and term.args[0].op == "input")
            code = ids.code if ids.lead else f"self.stream({ids.code}, s, {self.lead})"
            per = f", {len(state.per)}" if state.per else ""
            batched = table if own else f"{table}.unsqueeze(0)"
            return Value(f"parts.lookup({batched}, {code}{per})", ATOM, True, ids.own + 1)
        applied = application(handle, term.args[0], term)
        self.e.count([applied])
        return self.e(applied)

    def led(self, value: Value) -> Value:
        """A value that no tick changes, as a stream."""
        if value.lead:
            return value
        return Value(f"self.stream({value.code}, s, {self.lead})", ATOM, True, value.own)

    def product(self, term: Term) -> Value:
        handle: Handle = term.info.handle
        matrix, own = self.array(handle, term.info.array.name)
        x = self.e(term.args[0])
        if self.waits(handle) and x.own == 1 + len(handle.state.per):
            path = state_path(handle.box, handle.state.name, term.info.array.name)
            return Value(self.awaited(self.key(path), x, handle), ATOM, True, x.own)
        return Value(self.times(matrix, own, x, handle), ATOM, True, x.own)

    def waits(self, handle: Handle) -> bool:
        """What learns the model's own loss, each span in a graph of its own."""
        mine = handle.box is self.box and self.lowering(handle.box).kind == "loss"
        return mine and self.plan.joint is None and not self.plan.inner.levels

    def awaited(self, key: str, x: Value, handle: Handle) -> str:
        """W x for every tick, where the gradient of W waits as rows."""
        code = x.code if x.lead else f"self.stream({x.code}, s, {self.lead})"
        if not handle.state.per:
            return f"s.product({key}, {code})"
        swap = f".transpose({self.lead - 1}, {self.lead})"
        return f"s.product({key}, {self.turn(Value(code, ATOM, True, x.own), swap)}){swap}"

    def times(self, matrix: str, own: bool, x: Value, handle: Handle, back: bool = False) -> str:
        """W x for every tick: W is [batch, *mapped, *per, m, n], or has no batch."""
        per = handle.state.per
        turn = "" if back else ".mT"
        x = self.led(x) if own else x
        if per:
            batched = matrix if own else f"{matrix}.unsqueeze(0)"
            swap = f".transpose({self.lead - 1}, {self.lead})"
            turned = x.level == ATOM and x.code.endswith(swap)
            row = x.code.removesuffix(swap) if turned else self.turn(x, swap)
            return f"({row} @ {batched}{turn}){swap}"
        if not own and not self.mapped and not back:
            return f"F.linear({x.code}, {matrix})"
        if own and not self.mapped and x.own == 1:
            return f"torch.bmm({x.code}, {matrix}{turn})"
        if own and x.own == 2:
            matrix = f"{matrix}.unsqueeze({self.lead - 1})"
        return f"({x.atom} @ {matrix}{turn})"

    def turn(self, x: Value, swap: str) -> str:
        """A value with its heads before time; what has a name is turned once."""
        code = f"{x.atom}{swap}"
        if not x.code.isidentifier():
            return code
        if code not in self.turned:
            self.turned[code] = self.code.name(f"{x.code}_row")
            self.code.add(f"{self.turned[code]} = {code}")
        return self.turned[code]

    def product_back(self, term: Term) -> Value:
        handle: Handle = term.info.handle
        matrix, own = self.array(handle, term.info.array.name)
        bar = self.led(self.e(term.args[0]))
        return Value(self.times(matrix, own, bar, handle, back=True), ATOM, True, bar.own)

    def state(self, term: Term) -> Value:
        handle: Handle = term.info
        code, own = self.array(handle, self.meant(handle))
        if own and handle.box is self.box and self.lowering(handle.box).kind != "loss":
            raise InternalError(f"`{handle.name}` as an array")
        if own:  # it stands still: one value for all ticks of the span
            axis = self.lead - 1
            code = f"self.lasting({code}.unsqueeze({axis}), s, {axis})"
            return Value(code, ATOM, True, self.axes(handle))
        return Value(code, ATOM, False, len(term.shape))

    def next(self, term: Term) -> Value:
        return Value(f"next_{identifier(term.args[0].info)}", ATOM, True, len(term.shape))

    # ---- lines

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if isinstance(line, Assign):
                self.assign(line)
            else:
                self.loop(line)

    def assign(self, line: Assign) -> None:
        self.cite_line(line.value)
        self.e.count([line.value])
        value = self.e(line.value)
        key = f"local {line.name}"
        old = self.e.names.get(key)
        name = old.code if old is not None else self.code.name(line.name)
        note = shape_note(value, line.value.shape, (self.batch, *map(str, self.mapped)))
        if value.code != name:
            self.code.add(f"{name} = {value.code}{note}")
        self.e.names[key] = Value(name, ATOM, value.lead, len(line.value.shape))
        self.forget(line.name)

    def forget(self, name: str) -> None:
        """A name bound again: what was written with its old value is written anew."""
        if self.box is None:
            self.e.done.clear()
            self.turned.clear()

    def loop(self, line: Loop, begun: int = 0) -> None:
        """A `repeat` that stays a loop. Of its first round so many lines have been run."""
        sample = first_path(line)
        if sample is None:
            with self.code.block(f"for _ in range({line.count}):"):
                self.lines(line.lines)
            return
        i = self.counter()
        with self.code.block(f"for {i} in range({line.count}):"), self.round(line, sample, i):
            if begun and line.count > 1:
                known = set(self.e.names)
                with self.code.block(f"if {i}:"):
                    self.lines(line.lines[:begun])
                for name in set(self.e.names) - known:
                    if name.startswith(("past ", "seen ")):
                        del self.e.names[name]
                self.e.done.clear()
                self.turned.clear()
            self.lines(line.lines[begun:])

    def begin(self, line: Loop, lines: int) -> None:
        """So many lines of the first round."""
        sample, i = first_path(line), self.counter()
        assert sample is not None
        self.code.add(f"{i} = 0")
        with self.round(line, sample, i):
            self.lines(line.lines[:lines])

    def counter(self) -> str:
        depth = len(self.loops)
        return self.code.name("ijkl"[depth] if depth < 4 else f"i{depth}")

    @contextmanager
    def round(self, line: Loop, sample: str, i: str) -> Iterator[None]:
        """Every round has its own part of the weights and of the stream."""
        depth = len(self.loops)
        prefix = ".".join(sample.split(".")[: nth_index(sample, depth) + 1])
        part, rest = self.place(prefix, self.parts)
        layer = self.code.name("layer" if not depth else "round_")
        has = any(h == prefix or h.startswith(prefix + ".") for h in self.module.has_weights)
        parts, ats, loops = list(self.parts), list(self.ats), self.loops
        if has:
            self.code.add(f"{layer} = {attribute(part, rest.removesuffix('.{}'))}[{i}]")
        self.parts = [*parts, (prefix + ".", layer)]
        name, left = self.place(prefix, ats)
        text = (name[2:-1] if name.startswith('f"') else name) + left.replace("{}", "{" + i + "}")
        self.ats = [*ats, (prefix + ".", f'f"{text}."')]
        self.loops = (*loops, line.count)
        self.e.done.clear()
        self.turned.clear()
        yield
        self.parts, self.ats, self.loops = parts, ats, loops
        self.e.done.clear()
        self.turned.clear()

    def cite_line(self, term: Term) -> None:
        """The spec's own line, above what was made of it."""
        span = term.span
        if span.source.text:
            text = span.source.line(span.line).split("#")[0].strip().rstrip("{;").strip()
            self.code.comment(f"{span.source.name.rsplit('/', 1)[-1]}:{span.line}: {text}")


def arrays_of_others(box: Box) -> list[tuple[Handle, str]]:
    return [(h, a.name) for h in names_others(box) for a in h.state.form.arrays]


def outlives(box: Box) -> bool:
    """Whether what it keeps is kept from sequence to sequence."""
    return box.level is not None and box.level.clock.unit == "sequence"


def reset_of(box: Box) -> int:
    """After how many tokens the box's level starts anew; 0: with the sequence."""
    clock = box.level.resets if box.level is not None else None
    return 0 if clock is None or clock.unit != "token" else clock.first


def attribute(name: str, rest: str) -> str:
    """`layer.titans.read.linear`, with numbers as indices."""
    code = name
    for part in [p for p in rest.split(".") if p]:
        plain = not part.isdigit() and part not in NOT_PARTS and not keyword.iskeyword(part)
        plain = plain and not part.startswith("__")  # which a class would make its own
        code += f".{part}" if plain else f"[{part}]" if part.isdigit() else f'["{part}"]'
    return code


def first_path(line: Loop) -> str | None:
    """Some path made inside the loop."""
    for root in line_terms(line.lines):
        for t in root.walk():
            if t.op == "call":
                return str(t.info.path)
            if t.op == "weight":
                return str(t.info.path)
            if isinstance(t.info, Slot):
                return t.info.path
    return None


def nth_index(path: str, n: int) -> int:
    """Which part of the path is the n-th `{}`."""
    found = [i for i, p in enumerate(path.split(".")) if p == "{}"]
    return found[n]


def slot_loops(slot: Slot, box: Box | None, loops: Shape) -> Shape:
    return box.loops if box is not None else loops


def shape_note(value: Value, shape: Shape, lead: tuple[str, ...]) -> str:
    """The shape, for the reader."""
    if not value.lead:
        return ""
    axes = [*lead, "time", *(str(abs(n)) for n in shape)]
    return f"  # [{', '.join(axes)}]"
