"""A tree to text. In: any node, with or without a source. Out: text that parses to an equal tree.

Names are written canonically, brackets only where the grammar needs them, and every block on lines
of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import syntax as s

INDENT = "  "
_UNITS = frozenset(("token", "tokens", "sequence", "sequences", "step", "steps", "task", "tasks"))
# How tightly each operator binds; its left and its right operand must bind at least so tightly.
_COMPARED, _SUM, _PRODUCT, _UNARY, _POWER, _ATOM = range(6)
_BINDS = {
    **dict.fromkeys(("<", "<=", ">", ">=", "=="), (_COMPARED, _SUM, _SUM)),
    **dict.fromkeys("+-", (_SUM, _SUM, _PRODUCT)),
    **dict.fromkeys("*/@", (_PRODUCT, _PRODUCT, _UNARY)),
    "^": (_POWER, _ATOM, _UNARY),
}


def print_tree(node: s.Node) -> str:
    """The text of a file, or of a part of one."""
    match node:
        case s.File(version=version, items=items):
            return f"nl {version}\n" + "".join(f"\n{_lines(item)}" for item in items)
        case s.Block():
            return "\n".join(_block(node))
        case s.Param():
            return _param(node)
        case s.Path():
            return _path(node)
        case s.Every() | s.Never() | s.Always():
            return _clock(node)
        case s.Argument():
            return _argument(node)
        case _ if isinstance(node, s.Expr):
            return _expr(node)
    return _lines(node).rstrip("\n")


def _lines(node: s.Node) -> str:
    return "".join(line + "\n" for line in _statement(node))


# ---- statements ----------------------------------------------------------------------------


def _statement(node: s.Node) -> Iterator[str]:
    """The lines of one statement or declaration."""
    match node:
        case s.Def() | s.Memory() | s.Optimizer() | s.System():
            head = f"{type(node).__name__.lower()} {node.name.id}{_params(node.params)}"
            yield from _with_block(head, node.body)
        case s.Level():
            yield from _with_block(_level(node), node.body)
        case s.Flow(params=params, body=body):
            yield from _with_block(f"flow{_params(params)}", body)
        case s.Repeat(name=name, over=over, body=body):
            head = f"{name.id} in {_expr(over)}" if name else _expr(over)
            yield from _with_block(f"repeat {head}", body)
        case s.State(body=s.Block() as body):
            yield from _with_block(_state(node), body)
        case _:
            yield _line(node)


def _with_block(head: str, body: s.Block) -> Iterator[str]:
    first, *rest = _block(body)
    yield f"{head} {first}"
    yield from rest


def _block(body: s.Block) -> Iterator[str]:
    if not body.statements:
        yield "{ }"
        return
    yield "{"
    for statement in body.statements:
        yield from (INDENT + line for line in _statement(statement))
    yield "}"


def _line(node: s.Node) -> str:
    match node:
        case s.Use(path=text):
            return f'use "{text}"'
        case s.Cite(text=text):
            return f'cite "{text}"'
        case s.Bind(name=name, value=value):
            return f"{name.id} = {_expr(value)}"
        case s.Add(name=name, value=value):
            return f"{name.id} += {_expr(value)}"
        case s.State():
            return _state(node)
        case s.Transfer():
            return _transfer(node)
        case s.Assume(unit=unit, amount=amount, of=of):
            return f"assume {unit} = {_expr(amount)} {of}s"
        case s.Among(names=names, values=values):
            return f"assume {', '.join(name.id for name in names)} in {_expr(values)}"
        case s.Bounded(names=names, sign=sign, bound=bound):
            return f"assume {', '.join(name.id for name in names)} {sign} {_expr(bound)}"
        case s.Linearise(every=clock) | s.Reset(when=clock):
            return f"{type(node).__name__.lower()} {_clock(clock)}"
        case s.Partial(word=word):
            return f"partial {word.id}"
        case s.Return() | s.Set():
            return f"{type(node).__name__.lower()} {_expr(node.value)}"
    return _clauses(node)


def _clauses(node: s.Node) -> str:
    """The statements of one expression and a few clauses."""
    match node:
        case s.Objective(value, after_retain, once):
            return f"objective {_expr(value)}{_after(after_retain)}{' once' * once}"
        case s.Write(value, after_retain):
            return f"write {_expr(value)}{_after(after_retain)}"
        case s.Read(value, before_write):
            return f"read {_expr(value)}{' before write' * before_write}"
        case s.Retain(value, through, onto):
            return f"retain {_expr(value)}{_clause('through', through)}{_clause('onto', onto)}"
        case s.Learn(rule, targets):
            served = f" for {', '.join(map(_path, targets))}" if targets else ""
            return f"learn {_expr(rule)}{served}"
    raise TypeError(f"no statement: {type(node).__name__}")


def _after(after_retain: bool) -> str:
    return " after retain" * after_retain


def _clause(word: str, value: s.Expr | None) -> str:
    return f" {word} {_expr(value)}" if value is not None else ""


def _level(node: s.Level) -> str:
    index = f"[{node.index[0].id} in {_expr(node.index[1])}]" if node.index else ""
    params = "" if node.params is None else _params(node.params)
    return f"level {node.name.id}{index}{params} {_clock(node.clock)}"


def _state(node: s.State) -> str:
    members = f"[{', '.join(m.id for m in node.members)}]" if node.members else ""
    rest = _clause("per", node.per) + _clause("=", node.start)
    return f"state {node.name.id}{members} : {_expr(node.form)}{rest}"


def _transfer(node: s.Transfer) -> str:
    stages = " -> ".join(", ".join(map(_path, stage)) for stage in node.stages)
    through = _clause("through", node.through)
    if through:
        through += f" {node.through_unit}s"
    return f"transfer {node.kind} {stages}{through}{' first order' * node.first_order}"


# ---- parts ---------------------------------------------------------------------------------


def _clock(node: s.Clock) -> str:
    match node:
        case s.Never():
            return "never"
        case s.Always():
            return "always"
        case s.Every(period, unit, phase):
            counted = unit if period is None else f"{_period(period)} {unit}s"
            return f"every {counted}{_clause('from', phase)}"


def _period(period: s.Expr) -> str:
    """After `every` the word of a unit is that unit, unless it stands in brackets."""
    text = _expr(period)
    word = text[: next((i for i, c in enumerate(text) if not (c.isalnum() or c == "_")), len(text))]
    return f"({text})" if word in _UNITS else text


def _params(params: tuple[s.Param, ...]) -> str:
    return f"({', '.join(map(_param, params))})"


def _param(param: s.Param) -> str:
    dims = f"[{_list(param.dims)}]" if param.dims else ""
    return f"{param.name.id}{dims}{_clause('=', param.default)}"


def _path(path: s.Path) -> str:
    text = path.first.id
    for part, indexed in zip(path.rest, path.indexed, strict=True):
        shown = _expr(part)
        text += f"[{shown}]" if indexed else f".{shown}"
    return text


def _argument(argument: s.Argument) -> str:
    value = _expr(argument.value)
    return value if argument.name is None else f"{argument.name.id} = {value}"


# ---- expressions ---------------------------------------------------------------------------


def _expr(node: s.Expr, least: int = _COMPARED) -> str:
    """In brackets if it binds less tightly than it must."""
    text, binds = _bare(node)
    return text if binds >= least else f"({text})"


def _bare(node: s.Expr) -> tuple[str, int]:
    match node:
        case s.Number(value=value, text=text):
            return text or repr(value), _ATOM
        case s.Name(id=name):
            return name, _ATOM
        case s.ListOf(items=items):
            return f"[{_list(items)}]", _ATOM
        case s.Call(function=function, arguments=arguments):
            return f"{_expr(function, _ATOM)}({', '.join(map(_argument, arguments))})", _ATOM
        case s.Item(base=base, index=index):
            return f"{_expr(base, _ATOM)}[{_expr(index)}]", _ATOM
        case s.Member(base=s.Number() as base, name=name):
            return f"({_expr(base)}).{name.id}", _ATOM
        case s.Member(base=base, name=name):
            return f"{_expr(base, _ATOM)}.{name.id}", _ATOM
        case s.Minus(value=value):
            return f"-{_expr(value, _UNARY)}", _UNARY
        case s.Binary(op=op, left=left, right=right):
            binds, on_left, on_right = _BINDS[op]
            space = "" if op == "^" else " "
            return f"{_expr(left, on_left)}{space}{op}{space}{_expr(right, on_right)}", binds


def _list(items: Iterable[s.Expr]) -> str:
    return ", ".join(map(_expr, items))
