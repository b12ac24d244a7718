"""Blocks of statements: which levels each calls, and which names it binds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..system import Box, Level, Term

if TYPE_CHECKING:
    from .bodies import Body
    from .resolver import Resolver


class Block:
    """A block of statements: which levels it calls, and the boxes of those calls."""

    def __init__(self, body: Body, statements: tuple[S.Statement, ...]) -> None:
        self.body = body
        self.calls = level_calls(body, statements)
        self.made: dict[str, Box] = {}

    def box(self, resolver: Resolver, level: Level) -> Box:
        """The box of the one call of a level in this block; made here if the call comes later."""
        if level.name not in self.made:
            self.made[level.name] = resolver.boxes_stage.promise(self.body, level)
        return self.made[level.name]


def level_calls(body: Body, statements: tuple[S.Statement, ...]) -> Counter[str]:
    """How often each level is called in the statements (those in nested blocks not counted)."""
    counts: Counter[str] = Counter()
    if body.box is not None or body.expands:
        return counts  # only a flow calls levels
    for node in statements:
        value = getattr(node, "value", None)
        if isinstance(node, S.Repeat | S.State) or value is None:
            continue
        for call in calls_in(value):
            match call.function:
                case S.Name(id=name):
                    counts[name] += 1
                case S.Item(base=S.Name(id=name), index=index):
                    known = body.resolver.quiet_value(body, index)
                    counts[f"{name}[{known}]"] += 1
    return counts


def calls_in(expr: Any) -> list[S.Call]:
    found: list[S.Call] = []
    stack = [expr]
    while stack:
        node = stack.pop()
        match node:
            case S.Call():
                found.append(node)
                stack += [node.function, *(a.value for a in node.arguments)]
            case S.Binary():
                stack += [node.left, node.right]
            case S.Minus():
                stack.append(node.value)
            case S.Item():
                stack += [node.base, node.index]
            case S.Member():
                stack.append(node.base)
            case S.ListOf():
                stack += node.items
    return found


def assigned(block: S.Block) -> list[str]:
    """Names bound in a block, those of nested rounds included."""
    names: dict[str, None] = {}
    for node in block.statements:
        if isinstance(node, S.Bind | S.Add):
            names[node.name.id] = None
        elif isinstance(node, S.Repeat):
            names.update(dict.fromkeys(assigned(node.body)))
    return list(names)


def same_type(before: Any, after: Any) -> bool:
    if isinstance(before, Term) and isinstance(after, Term):
        return before.shape == after.shape and before.form == after.form
    return bool(before == after) and not isinstance(before, Term)
