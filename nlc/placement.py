"""Which statement may stand in which block, and how often. In: the tree. Out: NL003 and NL006.

The grammar lets any statement stand in any block, so that the message can say where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import syntax as s
from .diagnostics import Diagnostic, Label

_PLAIN: tuple[type[s.Node], ...] = (s.Cite, s.Bind, s.Add, s.Repeat)
_CHANGES: tuple[type[s.Node], ...] = (s.Objective, s.Retain, s.Learn, s.Write, s.Set)
_BOX = (*_PLAIN, *_CHANGES, s.State)
_MAY_STAND: dict[str, tuple[type[s.Node], ...]] = {
    "system": (*_PLAIN, s.Level, s.Flow, s.Assume, s.Among, s.Bounded, s.Transfer),
    "flow": (*_PLAIN, s.Return),
    "level": (*_BOX, s.Read, s.Linearise, s.Reset, s.Partial),
    "memory": (*_BOX, s.Read, s.Linearise, s.Among, s.Bounded),
    "optimizer": (*_BOX, s.Level, s.Among, s.Bounded),
    "state": (s.Cite, *_CHANGES),
    "def": (*_PLAIN, s.Return),
    "repeat": (s.Bind, s.Add, s.Repeat),
}
_SHOWN = {
    "system": "a system",
    "flow": "a flow",
    "level": "a level",
    "memory": "a memory",
    "optimizer": "an optimizer",
    "state": "the braces of a state",
    "def": "a `def`",
    "repeat": "a `repeat`",
    "inner": "a level of an optimizer",
}
_MAY_STAND["inner"] = _BOX  # it is reset with what it serves (2.9.6)
_WORDS: dict[type[s.Node], str] = {
    s.Bind: "=",
    s.Add: "+=",
    s.Repeat: "repeat",
    s.Return: "return",
    s.Cite: "cite",
    s.Level: "level",
    s.Flow: "flow",
    s.Assume: "assume",
    s.Among: "assume",
    s.Bounded: "assume",
    s.Transfer: "transfer",
    s.State: "state",
    s.Objective: "objective",
    s.Retain: "retain",
    s.Learn: "learn",
    s.Write: "write",
    s.Set: "set",
    s.Read: "read",
    s.Linearise: "linearise",
    s.Reset: "reset",
    s.Partial: "partial",
}
_ONCE = (
    s.Objective,
    s.Retain,
    s.Write,
    s.Set,
    s.Read,
    s.Linearise,
    s.Reset,
    s.Partial,
    s.Flow,
    s.Return,
)


def placement(file: s.File) -> list[Diagnostic]:
    """Statements in the wrong block, second ones where one may stand, arguments out of order."""
    told = [*_second_systems(file)]
    for item in file.items:
        match item:
            case s.System() | s.Memory() | s.Optimizer() | s.Def():
                told += _block(item.body, type(item).__name__.lower())
    told += _arguments(file)
    return sorted(told, key=lambda one: one.span.start)


def _second_systems(file: s.File) -> Iterator[Diagnostic]:
    systems = [item for item in file.items if isinstance(item, s.System)]
    for second in systems[1:]:
        yield _second("a file has one `system`", second.name, systems[0].name)


def _second(rule: str, second: s.Node, first: s.Node) -> Diagnostic:
    return Diagnostic(
        "NL006",
        f"{rule}; this is the second",
        second.span,
        "take one of them out",
        others=(Label(first.span, "the first"),),
    )


def _block(block: s.Block, kind: str) -> Iterator[Diagnostic]:
    yield from _seconds(block)
    for statement in block.statements:
        if not isinstance(statement, _MAY_STAND[kind]):
            yield _misplaced(statement, kind)
        yield from _inner(statement, kind)
    if kind in ("def", "flow"):
        yield from _after_return(block)


def _inner(statement: s.Statement, kind: str) -> Iterator[Diagnostic]:
    match statement:
        case s.Level(body=body):
            yield from _block(body, "inner" if kind == "optimizer" else "level")
        case s.Flow(body=body):
            yield from _block(body, "flow")
        case s.State(body=s.Block() as body):
            yield from _block(body, "state")
        case s.Repeat(body=body):
            yield from _block(body, "repeat")


def _seconds(block: s.Block) -> Iterator[Diagnostic]:
    firsts: dict[type[s.Node], s.Statement] = {}
    for statement in block.statements:
        kind = type(statement)
        if isinstance(statement, _ONCE) and kind in firsts:
            yield _second(f"a block has one `{_WORDS[kind]}`", statement, firsts[kind])
        firsts.setdefault(kind, statement)


def _misplaced(statement: s.Statement, kind: str) -> Diagnostic:
    word = _WORDS[type(statement)]
    homes = [_SHOWN[k] for k, may in _MAY_STAND.items() if isinstance(statement, may)]
    homes = [home for home in homes if home != _SHOWN["inner"]]
    shown = homes[0] if len(homes) == 1 else f"{', '.join(homes[:-1])} or {homes[-1]}"
    message = f"`{word}` belongs in {shown}, not in {_SHOWN[kind]}"
    return Diagnostic("NL003", message, statement.span, "move it there, or take it out")


def _after_return(block: s.Block) -> Iterator[Diagnostic]:
    """`return` is the last line."""
    for statement in block.statements[:-1]:
        if isinstance(statement, s.Return):
            message = "`return` is the last line of its block; what follows is never reached"
            yield Diagnostic("NL003", message, statement.span, "move it to the end")


# ---- arguments -----------------------------------------------------------------------------


def _arguments(file: s.File) -> Iterator[Diagnostic]:
    for node in s.walk(file):
        if isinstance(node, s.Call):
            yield from _order(node)


def _order(call: s.Call) -> Iterator[Diagnostic]:
    """Positional arguments come before named ones."""
    named = None
    for argument in call.arguments:
        if argument.name is not None:
            named = named or argument.name
        elif named is not None:
            message = "an argument without a name stands after a named one"
            yield Diagnostic(
                "NL003",
                message,
                argument.span,
                f"put it before `{named.text or named.id} = ..`",
                others=(Label(named.span, "the first named one"),),
            )
