"""The tree, node by node, as the parser finishes each rule of the grammar.

In: for each rule the tokens and values of its parts. Out: nodes of `syntax`. A method has the name
of its rule. Nothing here recurses, so no text is too deep for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lark import Transformer

from . import syntax as s
from .text import Span, canonical
from .tokens import Token

BROKEN = "\0"  # the name of what stands in for a header that could not be read


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of a statement that is no node of its own: which one, and what it holds."""

    rule: str
    value: Any
    span: Span


@dataclass(frozen=True, slots=True)
class Group:
    """An expression in brackets: the node keeps its place, the whole has that of the brackets."""

    value: s.Expr
    span: Span


Part = Token | Clause | Group | s.Node
Parts = list[Part]
N = TypeVar("N", bound=s.Node)


def _span(parts: Parts) -> Span:
    return parts[0].span.to(parts[-1].span)


def _name(part: Part) -> s.Name:
    return s.Name(canonical(cast(Token, part).text), part.span.text, span=part.span)


def _expr(part: Part) -> s.Expr:
    return part.value if isinstance(part, Group) else cast(s.Expr, part)


def _of(kind: type[N], parts: Parts) -> tuple[N, ...]:
    return tuple(part for part in parts if isinstance(part, kind))


def _exprs(parts: Parts) -> tuple[s.Expr, ...]:
    return tuple(_expr(part) for part in parts if isinstance(part, Group | s.Expr))


def _names(parts: Parts) -> tuple[s.Name, ...]:
    return tuple(_name(part) for part in parts if isinstance(part, Token) and part.type == "NAME")


def _clause(parts: Parts, rule: str) -> Any:
    """What a clause of that rule holds, or None if it was not written."""
    return next((p.value for p in parts if isinstance(p, Clause) and p.rule == rule), None)


def _unit(part: Part) -> str:
    return cast(Token, part).text.removesuffix("s")


def _string(part: Part) -> str:
    return cast(Token, part).text[1:-1]


def _sound(statements: Iterable[N]) -> tuple[N, ...]:
    """All but those whose header could not be read."""
    return tuple(one for one in statements if not _broken(one))


def _broken(node: s.Node) -> bool:
    match node:
        case s.Memory(name=s.Name(id=name)) | s.Repeat(over=s.Name(id=name)):
            return name == BROKEN
    return False


def _declared(parts: Parts) -> tuple[s.Name, tuple[s.Param, ...], s.Block]:
    return _name(parts[1]), _clause(parts, "params"), cast(s.Block, parts[-1])


def _held(rule: str) -> Any:
    """The method of a clause that holds its one expression."""

    def build(self: Builder, parts: Parts) -> Clause:
        return Clause(rule, _expr(parts[1]), _span(parts))

    return build


def _said(rule: str) -> Any:
    """The method of a clause that is only there or not."""

    def build(self: Builder, parts: Parts) -> Clause:
        return Clause(rule, True, _span(parts))

    return build


class Builder(Transformer[Any, s.File]):
    """One method a rule. `parts` are all of the rule's tokens and values, in order."""

    default, phase, position = _held("default"), _held("phase"), _held("position")
    per, start_at = _held("per"), _held("start_at")
    through, onto = _held("through"), _held("onto")
    once, order = _said("once"), _said("order")
    after_retain, before_write = _said("after_retain"), _said("before_write")

    # ---- declarations --------------------------------------------------------------------

    def start(self, parts: Parts) -> s.File:
        items = _sound(part for part in parts if isinstance(part, s.Item_))
        version = _clause(parts[:1], "version")
        return s.File(version, items, span=_span(parts))

    def version(self, parts: Parts) -> Clause:
        return Clause("version", int(cast(Token, parts[1]).text), _span(parts))

    def use(self, parts: Parts) -> s.Use:
        return s.Use(_string(parts[1]), span=_span(parts))

    def cite(self, parts: Parts) -> s.Cite:
        return s.Cite(_string(parts[1]), span=_span(parts))

    def def_(self, parts: Parts) -> s.Def:
        return s.Def(*_declared(parts), span=_span(parts))

    def memory(self, parts: Parts) -> s.Memory:
        return s.Memory(*_declared(parts), span=_span(parts))

    def optimizer(self, parts: Parts) -> s.Optimizer:
        return s.Optimizer(*_declared(parts), span=_span(parts))

    def system(self, parts: Parts) -> s.System:
        return s.System(*_declared(parts), span=_span(parts))

    def params(self, parts: Parts) -> Clause:
        return Clause("params", _of(s.Param, parts), _span(parts))

    def param(self, parts: Parts) -> s.Param:
        dims, default = _clause(parts, "dims") or (), _clause(parts, "default")
        return s.Param(_name(parts[0]), dims, default, span=_span(parts))

    def dims(self, parts: Parts) -> Clause:
        return Clause("dims", _exprs(parts), _span(parts))

    def block(self, parts: Parts) -> s.Block:
        statements = _sound(part for part in parts if isinstance(part, s.Statement))
        return s.Block(statements, span=_span(parts))

    # ---- a box and its clock -------------------------------------------------------------

    def level(self, parts: Parts) -> s.Level:
        index, params = _clause(parts, "index"), _clause(parts, "params")
        (clock,) = (part for part in parts if isinstance(part, s.Clock))
        body = cast(s.Block, parts[-1])
        return s.Level(_name(parts[1]), index, params, clock, body, span=_span(parts))

    def index(self, parts: Parts) -> Clause:
        return Clause("index", (_name(parts[1]), _expr(parts[3])), _span(parts))

    def every(self, parts: Parts) -> s.Every:
        period = None if isinstance(parts[1], Token) else _expr(parts[1])
        (unit,) = (part for part in parts[1:] if isinstance(part, Token))
        return s.Every(period, _unit(unit), _clause(parts, "phase"), span=_span(parts))

    def never(self, parts: Parts) -> s.Never:
        return s.Never(span=_span(parts))

    def always(self, parts: Parts) -> s.Always:
        return s.Always(span=_span(parts))

    # ---- statements of a box -------------------------------------------------------------

    def state(self, parts: Parts) -> s.State:
        members = _clause(parts, "members") or ()
        (form,) = _exprs(parts)
        body = next(iter(_of(s.Block, parts)), None)
        per, start = _clause(parts, "per"), _clause(parts, "start_at")
        return s.State(_name(parts[1]), members, form, per, start, body, span=_span(parts))

    def members(self, parts: Parts) -> Clause:
        return Clause("members", _names(parts), _span(parts))

    def objective(self, parts: Parts) -> s.Objective:
        after, once = _clause(parts, "after_retain"), _clause(parts, "once")
        return s.Objective(_expr(parts[1]), bool(after), bool(once), span=_span(parts))

    def retain(self, parts: Parts) -> s.Retain:
        through, onto = _clause(parts, "through"), _clause(parts, "onto")
        return s.Retain(_expr(parts[1]), through, onto, span=_span(parts))

    def learn(self, parts: Parts) -> s.Learn:
        return s.Learn(_expr(parts[1]), _clause(parts, "for_") or (), span=_span(parts))

    def for_(self, parts: Parts) -> Clause:
        return Clause("for_", _of(s.Path, parts), _span(parts))

    def write(self, parts: Parts) -> s.Write:
        return s.Write(_expr(parts[1]), bool(_clause(parts, "after_retain")), span=_span(parts))

    def set(self, parts: Parts) -> s.Set:
        return s.Set(_expr(parts[1]), span=_span(parts))

    def read(self, parts: Parts) -> s.Read:
        return s.Read(_expr(parts[1]), bool(_clause(parts, "before_write")), span=_span(parts))

    def linearise(self, parts: Parts) -> s.Linearise:
        return s.Linearise(cast(s.Every, parts[1]), span=_span(parts))

    def reset(self, parts: Parts) -> s.Reset:
        return s.Reset(cast(s.Every | s.Never, parts[1]), span=_span(parts))

    def partial(self, parts: Parts) -> s.Partial:
        return s.Partial(_name(parts[1]), span=_span(parts))

    # ---- what passes between boxes -------------------------------------------------------

    def flow(self, parts: Parts) -> s.Flow:
        return s.Flow(_clause(parts, "params"), cast(s.Block, parts[-1]), span=_span(parts))

    def assume(self, parts: Parts) -> s.Assume:
        return s.Assume(_unit(parts[1]), _expr(parts[3]), _unit(parts[4]), span=_span(parts))

    def among(self, parts: Parts) -> s.Among:
        # `tokens` may be the name of a setting
        names = [p for p in parts if isinstance(p, Token) and p.type in ("NAME", "UNIT")]
        return s.Among(tuple(map(_name, names)), _expr(parts[-1]), span=_span(parts))

    def bounded(self, parts: Parts) -> s.Bounded:
        words = [p for p in parts if isinstance(p, Token)]
        names = tuple(_name(w) for w in words if w.type in ("NAME", "UNIT"))
        sign = next(w.text for w in words if w.type == "COMPARE")
        return s.Bounded(names, sign, _expr(parts[-1]), span=_span(parts))

    def transfer(self, parts: Parts) -> s.Transfer:
        stages = tuple(p.value for p in parts if isinstance(p, Clause) and p.rule == "paths")
        through, unit = _clause(parts, "truncate") or (None, None)
        first_order = bool(_clause(parts, "order"))
        kind = cast(Token, parts[1]).text
        return s.Transfer(kind, stages, through, unit, first_order, span=_span(parts))

    def paths(self, parts: Parts) -> Clause:
        return Clause("paths", _of(s.Path, parts), _span(parts))

    def truncate(self, parts: Parts) -> Clause:
        return Clause("truncate", (_expr(parts[1]), _unit(parts[2])), _span(parts))

    def path(self, parts: Parts) -> s.Path:
        rest = tuple(part for part in parts[1:] if isinstance(part, Clause))
        indexed = tuple(part.rule == "position" for part in rest)
        values = tuple(part.value for part in rest)
        return s.Path(_name(parts[0]), values, indexed, span=_span(parts))

    def field(self, parts: Parts) -> Clause:
        return Clause("field", _name(parts[1]), _span(parts))

    # ---- plain lines ---------------------------------------------------------------------

    def bind(self, parts: Parts) -> s.Bind:
        return s.Bind(_name(parts[0]), _expr(parts[2]), span=_span(parts))

    def add(self, parts: Parts) -> s.Add:
        return s.Add(_name(parts[0]), _expr(parts[2]), span=_span(parts))

    def repeat(self, parts: Parts) -> s.Repeat:
        (over,) = _exprs(parts)
        body = cast(s.Block, parts[-1])
        return s.Repeat(_clause(parts, "over"), over, body, span=_span(parts))

    def over(self, parts: Parts) -> Clause:
        return Clause("over", _name(parts[0]), _span(parts))

    def return_(self, parts: Parts) -> s.Return:
        return s.Return(_expr(parts[1]), span=_span(parts))

    # ---- expressions ---------------------------------------------------------------------

    def number(self, parts: Parts) -> s.Number:
        text = cast(Token, parts[0]).text
        value = int(text) if text.isdigit() else float(text)
        return s.Number(value, text, span=parts[0].span)

    def name(self, parts: Parts) -> s.Name:
        return _name(parts[0])

    def binary(self, parts: Parts) -> s.Binary:
        operator = cast(Token, parts[1]).text
        return s.Binary(operator, _expr(parts[0]), _expr(parts[2]), span=_span(parts))

    def minus(self, parts: Parts) -> s.Minus:
        return s.Minus(_expr(parts[1]), span=_span(parts))

    def group(self, parts: Parts) -> Group:
        return Group(_expr(parts[1]), _span(parts))

    def call(self, parts: Parts) -> s.Call:
        return s.Call(_expr(parts[0]), _of(s.Argument, parts), span=_span(parts))

    def argument(self, parts: Parts) -> s.Argument:
        return s.Argument(None, _expr(parts[0]), span=_span(parts))

    def named(self, parts: Parts) -> s.Argument:
        return s.Argument(_name(parts[0]), _expr(parts[2]), span=_span(parts))

    def item(self, parts: Parts) -> s.Item:
        return s.Item(_expr(parts[0]), _expr(parts[2]), span=_span(parts))

    def member(self, parts: Parts) -> s.Member:
        return s.Member(_expr(parts[0]), _name(parts[2]), span=_span(parts))

    def list(self, parts: Parts) -> s.ListOf:
        return s.ListOf(_exprs(parts), span=_span(parts))
