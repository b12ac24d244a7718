"""Random syntax trees, for the tests that print them and read them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from nlc import syntax as s
from nlc.lines import WORDS

RESERVED = WORDS | {"always", "every", "in", "never", "nl", "per"}
SOFT = ["tokens", "step", "backprop", "through", "onto", "from", "for", "once", "first", "after"]
UNITS = st.sampled_from(["token", "sequence", "step", "task"])
T = TypeVar("T")
Exprs = st.SearchStrategy[s.Expr]


def names() -> st.SearchStrategy[s.Name]:
    plain = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,4}", fullmatch=True)
    words = st.one_of(plain, st.sampled_from([*SOFT, "x", "M", "ключ"]))
    return words.filter(lambda word: word not in RESERVED).map(s.Name)


def numbers() -> st.SearchStrategy[s.Number]:
    whole = st.integers(0, 2**63 - 1)
    real = st.floats(0, allow_nan=False, allow_infinity=False, allow_subnormal=False)
    return st.one_of(whole, real).map(s.Number)


def expressions() -> Exprs:
    leaves: Exprs = st.one_of(numbers(), names())
    return st.recursive(leaves, _larger, max_leaves=12)


def _larger(inner: Exprs) -> Exprs:
    argument = st.builds(s.Argument, st.none() | names(), inner)
    operator = st.sampled_from(["+", "-", "*", "/", "@", "^", "<", "<=", ">", ">=", "=="])
    return st.one_of(
        st.builds(s.Binary, operator, inner, inner),
        st.builds(s.Minus, inner),
        st.builds(s.Call, inner, _tuples(argument)),
        st.builds(s.Item, inner, inner),
        st.builds(s.Member, inner, names()),
        st.builds(s.ListOf, _tuples(inner)),
    )


def _tuples(of: st.SearchStrategy[T], least: int = 0) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, min_size=least, max_size=3).map(tuple)


E = expressions()
TEXT = st.text("abc (),:-0", max_size=6)


def every() -> st.SearchStrategy[s.Every]:
    return st.builds(s.Every, st.none() | E, UNITS, st.none() | E)


def clocks() -> st.SearchStrategy[s.Clock]:
    return st.one_of(every(), st.just(s.Never()), st.just(s.Always()))


def paths() -> st.SearchStrategy[s.Path]:
    part = st.one_of(st.tuples(names(), st.just(False)), st.tuples(E, st.just(True)))

    def build(first: s.Name, parts: list[tuple[s.Name | s.Expr, bool]]) -> s.Path:
        return s.Path(first, tuple(p for p, _ in parts), tuple(i for _, i in parts))

    return st.builds(build, names(), st.lists(part, max_size=2))


def params() -> st.SearchStrategy[tuple[s.Param, ...]]:
    return _tuples(st.builds(s.Param, names(), _tuples(E), st.none() | E))


def transfers() -> st.SearchStrategy[s.Transfer]:
    kinds = st.sampled_from(["condition", "backprop", "init", "generate"])
    stages = st.lists(_tuples(paths(), 1), min_size=2, max_size=3).map(tuple)
    cut = st.one_of(st.tuples(st.none(), st.none()), st.tuples(E, UNITS))
    return st.builds(
        lambda kind, at, limit, order: s.Transfer(kind, at, limit[0], limit[1], order),
        kinds, stages, cut, st.booleans(),
    )  # fmt: skip


def lines() -> st.SearchStrategy[s.Statement]:
    """Statements without a block."""
    yes = st.booleans()
    return st.one_of(
        st.builds(s.Bind, names(), E), st.builds(s.Add, names(), E), st.builds(s.Return, E),
        st.builds(s.Cite, TEXT), st.builds(s.Assume, UNITS, E, UNITS), transfers(),
        st.builds(s.Among, _tuples(names(), 1), E),
        st.builds(s.Bounded, _tuples(names(), 1), st.sampled_from([">=", ">", "<=", "<"]), E),
        st.builds(s.Objective, E, yes, yes), st.builds(s.Retain, E, st.none() | E, st.none() | E),
        st.builds(s.Learn, E, _tuples(paths())), st.builds(s.Write, E, yes), st.builds(s.Set, E),
        st.builds(s.Read, E, yes), st.builds(s.Linearise, every()), st.builds(s.Partial, names()),
        st.builds(s.Reset, every() | st.just(s.Never())),
        st.builds(s.State, names(), _tuples(names()), E, st.none() | E, st.none() | E),
    )  # fmt: skip


def blocks() -> st.SearchStrategy[s.Block]:
    inner = st.recursive(lines(), _with_blocks, max_leaves=5)
    return st.builds(s.Block, _tuples(inner))


def _with_blocks(inner: st.SearchStrategy[s.Statement]) -> st.SearchStrategy[s.Statement]:
    body = st.builds(s.Block, _tuples(inner))
    index = st.none() | st.tuples(names(), E)
    return st.one_of(
        st.builds(s.Level, names(), index, st.none() | params(), clocks(), body),
        st.builds(s.Flow, params(), body),
        st.builds(s.Repeat, st.none() | names(), E, body),
        st.builds(s.State, names(), _tuples(names()), E, st.none(), st.none() | E, body),
    )


def files() -> st.SearchStrategy[s.File]:
    declared: list[Callable[..., s.Item_]] = [s.Def, s.Memory, s.Optimizer, s.System]
    items = [st.builds(kind, names(), params(), blocks()) for kind in declared]
    item = st.one_of(*items, st.builds(s.Use, TEXT), st.builds(s.Cite, TEXT))
    return st.builds(s.File, st.just(1), _tuples(item))
