"""The body of one stretch: products use the arrays of its start, or those that run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from nlc.derive import application, turned_read
from nlc.diagnostics import InternalError
from nlc.lacking import NotLowered
from nlc.system import Box, Handle, Term

from .bodies import Body, Module
from .common import rows
from .expressions import ATOM, Expressions, Value
from .folding import Heads


class StretchBody(Body):
    """A body inside one stretch: products use the arrays of its start, or those that run on."""

    def __init__(self, module: Module, box: Box) -> None:
        super().__init__(module, box)
        self.e.hooks["matmul"] = self.asked_back
        self.anchors: dict[tuple[str, str], str] = {}
        self.runs: dict[tuple[str, str], str] = {}
        self.running = False
        self.before = False
        self.folded = False
        self.joined: dict[tuple[str, str], str] = {}  # of states alike, by the first of them
        self.many = 1  # how many states alike are being written as one
        self.heads: Heads | None = None
        self.exact = False  # what is written now is a tick's own, at the state before it
        self.in_line = True  # a plain line sees the state before retention (2.8.1)
        self.retained: set[tuple[str, str]] = set()  # arrays that an objective sees after retention
        self.offsets: dict[
            tuple[str, str], list[tuple[str, str, bool]]
        ] = {}  # by earlier steps, a tick's

    def fold_lead(self, heads: Heads) -> None:
        """From here on the heads are part of the batch."""
        self.folded = True
        self.mapped, self.lead, self.e.lead = (), 2, 2
        self.batch = "batch * heads"
        each = prod(heads.sizes)

        def position(term: Term) -> Value:
            """The same for each head, and for states that are written as one."""
            code = f"s.positions(2).repeat_interleave({each}, 0)"
            return Value(f"{code}.repeat({self.many}, 1)" if self.many > 1 else code, ATOM, True, 0)

        self.e.hooks["position"] = position

    @contextmanager
    def together(self, members: int, names: list[str]) -> Iterator[None]:
        """Terms are written once for states alike: what they share is repeated along the batch."""
        outer, self.many = self.e, members
        self.e = Expressions(self.code, self.lead, hooks=outer.hooks)
        for name in names:
            value = outer.names[name]
            self.e.names[name] = self.repeated(value, members) if value.lead else value
        yield
        self.e, self.many = outer, 1

    def repeated(self, value: Value, members: int) -> Value:
        name = self.name_row(f"torch.cat([{value.code}] * {members})", f"{value.code}_of_{members}")
        return Value(name, ATOM, True, value.own)

    def led(self, value: Value) -> Value:
        """Heads have joined the batch: as long and as wide as a stream that has them."""
        if value.lead or not self.folded:
            return super().led(value)
        given = next((v for v in self.e.names.values() if v.lead), None)
        if given is None:
            assert self.box is not None
            raise NotLowered("a memory that is given no stream", self.box.span)
        at = f"{given.code}.shape[:2]"
        code = f"torch.as_tensor({value.code})" if not value.own else value.atom
        sizes = "".join([", -1"] * value.own)
        return Value(f"{code}.expand(*{at}{sizes})", ATOM, True, value.own)

    def times(self, matrix: str, own: bool, x: Value, handle: Handle, back: bool = False) -> str:
        if not self.folded or handle.box is not self.box or x.own != 1:
            return super().times(matrix, own, x, handle, back)
        turned = f"{matrix}{'' if back else '.mT'}"
        return f"torch.bmm({self.led(x).code}, {turned})"

    def later_step(self, state: str, pairs: dict[str, list[tuple[str, str, bool]]]) -> None:
        """The next step on the same data: the state with what was written so far."""
        self.offsets |= {(state, array): list(made) for array, made in pairs.items()}
        self.e = Expressions(self.code, self.lead, dict(self.e.names), self.e.hooks)

    def first_step(self) -> None:
        self.offsets = {}

    def apply(self, term: Term) -> Value:
        handle: Handle = term.info
        if self.exact and handle.box is self.box:
            outer, self.in_line = self.in_line, True
            value = super().apply(term)
            self.in_line = outer
            return value
        if not self.running or self.heads is None or handle.box is not self.box:
            return super().apply(term)
        return self.asked(term, handle, self.heads)

    def asked(self, term: Term, handle: Handle, heads: Heads) -> Value:
        """`M(x)` of the running state: heads join the batch for the length of the call."""
        x = self.e(term.args[0])
        name = self.code.name("asked")
        self.code.add(f"{name} = {heads.join(x.atom)}")
        own = x.own if heads.mapped else x.own - len(heads.sizes)
        shape = term.args[0].shape[len(term.args[0].shape) - own :]
        given = Term("input", (), shape, name, None, term.span)
        inner = Expressions(self.code, 2)
        inner.names[f"input {name}"] = Value(name, ATOM, True, own)
        before = ", before_write=True" if self.before else ""

        def product(t: Term) -> Value:
            run = self.runs.get((handle.name, t.info.array.name))
            v = inner(t.args[0])
            if run is None:
                still = self.anchors[handle.name, t.info.array.name]
                return Value(f"{v.atom} @ {still}.mT", ATOM - 2, True, v.own)
            return Value(f"{run}.read({v.code}{before})", ATOM, True, v.own)

        inner.hooks["product"] = product
        applied = application(handle, given, term)
        inner.count([applied])
        return Value(heads.part(inner(applied).atom), ATOM, True, len(term.shape))

    def row(self, term: Term, per: tuple[int, ...], wish: str) -> str:
        """A vector for the ops, time before its last axis; named, as several arrays use it."""
        return self.name_row(rows(self, term, per, 1), wish)

    def name_row(self, code: str, wish: str) -> str:
        if code.isidentifier() or code.replace(".", "").isdigit():
            return code
        if code not in self.turned:
            self.turned[code] = self.code.name(wish)
            self.code.add(f"{self.turned[code]} = {code}")
        return self.turned[code]

    def array(self, handle: Handle, name: str) -> tuple[str, bool]:
        if self.many > 1 and (handle.name, name) in self.joined:
            return self.joined[handle.name, name], True
        if handle.box is self.box and (handle.name, name) in self.anchors:
            return self.anchors[handle.name, name], True
        return super().array(handle, name)

    def ones(self) -> str:
        """1 at every tick, which a vector multiplies."""
        values = [v for v in self.e.names.values() if v.lead and v.own == 1]
        if not values:
            raise InternalError("a vector in a memory that is given no vector")
        given = values[0].code
        joined = self.heads.join(given) if self.heads is not None else given
        return self.name_row(f"parts.ones({joined})", "ones")

    def state(self, term: Term) -> Value:
        handle: Handle = term.info
        if handle.box is not self.box or handle.state.form.kind != "vector":
            return super().state(term)
        outer, self.in_line = (
            self.in_line,
            True,
        )  # another state, and so a constant, before it fades
        value = self.vector(handle)
        self.in_line = outer
        return value

    def vector(self, handle: Handle) -> Value:
        """A vector at every tick: of the start of the stretch, or as it runs on."""
        run = self.runs.get((handle.name, ""))
        own = len(handle.state.per) + 1
        if not self.running or run is None:
            still = f"{self.anchors[handle.name, '']}.mT"  # at every tick of the stretch
            still = still if own > 1 and not self.folded else f"self.lasting({still}, s, 1)"
            return Value(still, ATOM, True, own)
        ones = self.ones()
        if self.exact:
            later = not self.in_line and (handle.name, "") in self.retained
            code = f"{run}.retained({ones})" if later else f"{run}.read({ones}, before_write=True)"
            for _, column, _ in self.offsets.get((handle.name, ""), []):
                code = f"({code} + {column})"
            return Value(code, ATOM, True, own)
        code = f"{run}.read({ones}{', before_write=True' if self.before else ''})"
        return Value(self.heads.part(code) if self.heads is not None else code, ATOM, True, own)

    def product(self, term: Term) -> Value:
        handle: Handle = term.info.handle
        if handle.box is self.box and handle.state.form.kind == "vector":
            return self.vector(handle)
        run = self.runs.get((handle.name, term.info.array.name)) if handle.box is self.box else None
        if not self.running or run is None:
            return super().product(term)
        x = self.led(self.e(term.args[0]))
        if self.exact:
            return self.met(term, run, x)
        before = ", before_write=True" if self.before else ""
        if handle.state.per and not self.folded:
            turned = f".transpose({self.lead - 1}, {self.lead})"
            return Value(f"{run}.read({x.atom}{turned}{before}){turned}", ATOM, True, x.own)
        return Value(f"{run}.read({x.code}{before})", ATOM, True, x.own)

    def asked_back(self, term: Term) -> Value:
        """`x @ M` of the running state."""
        own = self.running and not self.exact and turned_read(term, self.box)
        run = self.runs.get((term.args[1].info.name, "")) if own else None
        if run is None:
            return self.e.op_matmul(term)
        x = self.e(term.args[0])
        given = x.code if self.heads is None else self.heads.join(x.atom)
        code = f"{run}.back({given}{', before_write=True' if self.before else ''})"
        return Value(code if self.heads is None else self.heads.part(code), ATOM, True, 1)

    def product_back(self, term: Term) -> Value:
        handle: Handle = term.info.handle
        run = self.runs.get((handle.name, term.info.array.name)) if handle.box is self.box else None
        if not self.exact or run is None:
            return super().product_back(term)
        return self.met(term, run, self.led(self.e(term.args[0])), back=True)

    def met(self, term: Term, run: str, x: Value, back: bool = False) -> Value:
        """W x, or W' x, of the state that this tick's predecessors have left."""
        handle: Handle = term.info.handle
        turned = f".transpose({self.lead - 1}, {self.lead})"
        swap = turned if handle.state.per and not self.folded else ""
        asked = f"{x.atom}{swap}" if swap else x.code
        later = not self.in_line and (handle.name, term.info.array.name) in self.retained
        if later:
            code = f"{run}.retained{'_back' * back}({asked})"
        else:
            code = f"{run}.{'back' if back else 'read'}({asked}, before_write=True)"
        rows = x.own - (len(handle.state.per) if swap else 0) == 2
        for row, column, several in self.offsets.get((handle.name, term.info.array.name), []):
            one, other = (column, row) if back else (row, column)
            code += f" + {written_before(f'{x.atom}{swap}', rows, one, other, several)}"
        if self.offsets.get((handle.name, term.info.array.name)):
            code = f"({code})"
        return Value(f"{code}{swap}", ATOM, True, x.own)


def written_before(x: str, rows: bool, one: str, other: str, several: bool) -> str:
    """What the steps before on the same data say of x: other' one x, of one pair or of several."""
    if several:
        wide = x if rows else f"{x}.unsqueeze(-2)"
        code = f"{wide} @ {one}.mT @ {other}"
        return code if rows else f"({code}).squeeze(-2)"
    down = ".unsqueeze(-2)" if rows else ""
    return f"({one}{down} * {x}).sum(-1, keepdim=True) * {other}{down}"
