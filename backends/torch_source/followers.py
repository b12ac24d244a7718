"""States of levels on steps and tasks that a `set` gives: a moving average of another level's, say.

They stand in a stream as weights do, and no gradient trains them. What is set is made of what stood
in the last step of the period, before anything fires (2.7.2), so a level that follows another comes
before it in the list of optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from nlc.foreign import through_lines
from nlc.lacking import NotLowered
from nlc.system import Array, Assign, Box, Handle, Level, Shape, State, System, Term

from ..parameters import boxes as every_box
from ..parameters import trainer
from .bodies import state_path
from .code import Code
from .expressions import ATOM, Value
from .rule_terms import RuleExpressions, is_plain
from .rules import ELEMENTWISE

KNOWN = {*ELEMENTWISE, "const", "count", "state", "local", "stop"}


@dataclass(frozen=True)
class Follower:
    """One array of such a state."""

    box: Box
    state: State
    array: Array

    @property
    def path(self) -> str:
        return state_path(self.box, self.state.name, self.array.name)

    @property
    def loops(self) -> Shape:
        return self.box.loops


def stands(system: System, box: Box, state: State) -> bool:
    """Whether there is one of it for all, which a rule of its own changes."""
    level = box.level
    on_steps = level is not None and level.clock.unit in ("step", "task")
    return on_steps and state.rule.set is not None and trainer(system, box, state) is None


def copied(box: Box, state: State, array: Array) -> str:
    """The path of the array that its start is a copy of; "": of none."""
    if state.start is None or state.start.op != "copy":
        return ""
    handle: Handle = state.start.info
    return state_path(handle.box, handle.name, array.name)


def followers(system: System, level: Level) -> list[Follower]:
    return [
        Follower(box, state, array)
        for box in every_box(system)
        if box.level is level
        for state in box.states
        if stands(system, box, state)
        for array in state.form.arrays
    ]


def in_order(system: System, levels: list[Level]) -> list[Level]:
    """Who follows fires before whom it follows."""
    graph: dict[Level, set[Level]] = {level: set() for level in levels}
    for level in levels:
        for handle in named_by(followers(system, level)):
            if handle.box.level in graph and handle.box.level is not level:
                graph[handle.box.level].add(level)
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        ring = " and ".join(sorted({f"`{level.name}`" for level in error.args[1]}))
        raise NotLowered(f"{ring}, which follow each other,", error.args[1][0].span) from None


def named_by(found: Iterable[Follower]) -> list[Handle]:
    roots = [(f.box, f.state.rule.set) for f in found]
    terms = [t for box, root in roots if root is not None for t in through_lines(box, root)]
    return [t.info for t in terms if t.op == "state"]


# ---- the method ----------------------------------------------------------------------------------


def write_followers(code: Code, found: list[Follower]) -> None:
    """`new_states(count)`: what each of them is to be, by its path."""
    with code.function("def new_states(self, count: int) -> dict[str, Tensor]:", ["count"]):
        code.docstring(["What `set` gives, of what stands now."])
        code.add("new = {}")
        for one in found:
            assert one.state.rule.set is not None
            span = one.state.rule.set.span
            where = f"{span.source.name.rsplit('/', 1)[-1]}:{span.line}"
            if span.source.text:
                code.comment(f"{where}: {span.source.line(span.line).split('#')[0].strip()}")
            depth = code.depth
            for i, n in zip("ijkl", one.loops, strict=False):
                code.add(f"for {i} in range({n}):")
                code.depth += 1
            value = Setting(code, one).value()
            code.add(f"new[{key(one.path, one.loops)}] = {value}")
            code.depth = depth
        code.add("return new")
    code.add("")


def key(path: str, loops: Shape) -> str:
    for i, _ in zip("ijkl", loops, strict=False):
        path = path.replace("{}", "{" + i + "}", 1)
    return f'f"{path}"' if loops else f'"{path}"'


class Setting:
    """The value of one `set`, for one array of its form."""

    def __init__(self, code: Code, one: Follower) -> None:
        self.one = one
        lines = [line for line in one.box.lines if isinstance(line, Assign)]
        self.lines = {line.name: line.value for line in lines}
        hooks: dict[str, Callable[[Term], Value]] = {
            "state": self.state,
            "count": lambda t: Value("count", ATOM, False, 0),
            "local": lambda t: self.e(self.lines[str(t.info)]),
            "stop": lambda t: self.e(t.args[0]),
        }
        self.e = RuleExpressions(code, 0, hooks=hooks)

    def value(self) -> str:
        root = self.one.state.rule.set
        assert root is not None
        self.check(root)
        self.e.count([root])
        value = self.e(root)
        if is_plain(value):
            return f"torch.full_like(self.standing({self.key(self.one.path)}), {value.code})"
        return value.code

    def check(self, root: Term) -> None:
        for term in through_lines(self.one.box, root):
            if term.op not in KNOWN or term.op == "local" and term.info not in self.lines:
                what = f"`set` of `{self.one.state.name}` on steps with `{term.op}`"
                raise NotLowered(what, term.span)

    def state(self, term: Term) -> Value:
        """The array that stands in the same place of the state's form."""
        handle: Handle = term.info
        single = handle.state.form.single
        name = "" if single else self.one.array.name
        shape = next(a.shape for a in handle.state.form.arrays if a.name == name)
        code = f"self.standing({self.key(state_path(handle.box, handle.name, name))})"
        return Value(code, ATOM, True, len(handle.state.per) + len(shape))

    def key(self, path: str) -> str:
        """Of another box, perhaps outside the innermost loops."""
        return key(path, self.one.loops[: path.count("{}")])
