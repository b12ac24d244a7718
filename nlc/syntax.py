"""PAGE: the syntax tree, as the grammar has it.

Every node carries its span, which is not part of equality: two texts with the same meaning have
equal trees.
Names are canonical (NFKC, Greek letters spelt in English); `text` is how the user wrote them, for
the formatter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .text import NOWHERE, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    span: Span = field(default=NOWHERE, compare=False, repr=False)


# ---- expressions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number(Node):
    value: int | float
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Name(Node):
    id: str
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ListOf(Node):
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`name` is None for a positional argument."""

    name: Name | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Node):
    function: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Item(Node):
    base: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Member(Node):
    base: Expr
    name: Name


@dataclass(frozen=True, slots=True)
class Minus(Node):
    value: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """`op` is one of + - * / @ ^ < <= > >= ==."""

    op: str
    left: Expr
    right: Expr


Expr = Number | Name | ListOf | Call | Item | Member | Minus | Binary


# ---- clocks and paths ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Every(Node):
    """`every period unit from phase`; `unit` is token, sequence, step or task."""

    period: Expr | None
    unit: str
    phase: Expr | None = None


@dataclass(frozen=True, slots=True)
class Never(Node):
    pass


@dataclass(frozen=True, slots=True)
class Always(Node):
    pass


Clock = Every | Never | Always


@dataclass(frozen=True, slots=True)
class Path(Node):
    """`a`, `a.b`, `a[e]`, `a[e].b`: the parts after the first name are names or indices."""

    first: Name
    rest: tuple[Name | Expr, ...] = ()
    indexed: tuple[bool, ...] = ()  # for each of `rest`: is it an index in brackets?


# ---- statements ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block(Node):
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Param(Node):
    """`x`, `x[n, m]`, `width = 256`."""

    name: Name
    dims: tuple[Expr, ...] = ()
    default: Expr | None = None


@dataclass(frozen=True, slots=True)
class Bind(Node):
    name: Name
    value: Expr


@dataclass(frozen=True, slots=True)
class Add(Node):
    name: Name
    value: Expr


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """`repeat over { }` (name is None) or `repeat name in over { }`."""

    name: Name | None
    over: Expr
    body: Block


@dataclass(frozen=True, slots=True)
class Return(Node):
    value: Expr


@dataclass(frozen=True, slots=True)
class Cite(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Level(Node):
    """`params` is None for a level written without inputs, () for `level a() ..`."""

    name: Name
    index: tuple[Name, Expr] | None
    params: tuple[Param, ...] | None
    clock: Clock
    body: Block


@dataclass(frozen=True, slots=True)
class Flow(Node):
    params: tuple[Param, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class Assume(Node):
    """`assume sequence = 4096 tokens`: unit, amount, unit of the amount."""

    unit: str
    amount: Expr
    of: str


@dataclass(frozen=True, slots=True)
class Among(Node):
    """`assume printed, product in [0, 1]`: settings, and what each of them may be."""

    names: tuple[Name, ...]
    values: Expr


@dataclass(frozen=True, slots=True)
class Bounded(Node):
    """`assume p >= 1`: settings, and where each of them lies. `sign`: >=, >, <= or <."""

    names: tuple[Name, ...]
    sign: str
    bound: Expr


@dataclass(frozen=True, slots=True)
class Transfer(Node):
    """`transfer kind a, b -> c -> d through n tokens first order`; `stages` are the lists between
    the arrows.
    """

    kind: str
    stages: tuple[tuple[Path, ...], ...]
    through: Expr | None = None
    through_unit: str | None = None
    first_order: bool = False


@dataclass(frozen=True, slots=True)
class State(Node):
    name: Name
    members: tuple[Name, ...]
    form: Expr
    per: Expr | None = None
    start: Expr | None = None
    body: Block | None = None


@dataclass(frozen=True, slots=True)
class Objective(Node):
    value: Expr
    after_retain: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Retain(Node):
    value: Expr
    through: Expr | None = None
    onto: Expr | None = None


@dataclass(frozen=True, slots=True)
class Learn(Node):
    rule: Expr
    targets: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Write(Node):
    value: Expr
    after_retain: bool = False


@dataclass(frozen=True, slots=True)
class Set(Node):
    value: Expr


@dataclass(frozen=True, slots=True)
class Read(Node):
    value: Expr
    before_write: bool = False


@dataclass(frozen=True, slots=True)
class Linearise(Node):
    every: Every


@dataclass(frozen=True, slots=True)
class Reset(Node):
    when: Every | Never


@dataclass(frozen=True, slots=True)
class Partial(Node):
    word: Name


Statement = (
    Cite
    | Level
    | Flow
    | Assume
    | Among
    | Bounded
    | Transfer
    | State
    | Objective
    | Retain
    | Learn
    | Write
    | Set
    | Read
    | Linearise
    | Reset
    | Partial
    | Bind
    | Add
    | Repeat
    | Return
)


# ---- declarations --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use(Node):
    path: str


@dataclass(frozen=True, slots=True)
class Def(Node):
    name: Name
    params: tuple[Param, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class Memory(Node):
    name: Name
    params: tuple[Param, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class Optimizer(Node):
    name: Name
    params: tuple[Param, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class System(Node):
    name: Name
    params: tuple[Param, ...]
    body: Block


Item_ = Use | Cite | Def | Memory | Optimizer | System


@dataclass(frozen=True, slots=True)
class File(Node):
    """A whole file. `docs` maps the start offset of a declaration to the comment that ends on the
    line above it.

    A file with mistakes of syntax is `recovered`: it holds the statements that could be read, and
    no others.
    """

    version: int
    items: tuple[Item_, ...]
    docs: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    recovered: bool = field(default=False, compare=False)


# ---- all nodes -----------------------------------------------------------------------------


def walk(node: Node) -> Iterator[Node]:
    """The node and all nodes in it, in the order of the fields."""
    waiting: list[object] = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Node):
            yield one
            waiting += [getattr(one, name) for name in reversed(_fields(type(one)))]
        elif isinstance(one, tuple):
            waiting += reversed(one)


def _fields(kind: type[Node]) -> tuple[str, ...]:
    names: tuple[str, ...] = kind.__match_args__
    return tuple(name for name in names if name not in ("docs", "recovered"))
