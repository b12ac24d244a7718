"""`nlc miras`: every spec is sound, every law holds, what is called the same is so in numbers."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from nlc.backends.reference import Reference
from nlc.driver import check_text
from nlc.format import format_source
from nlc.miras.alone import read
from nlc.miras.choices import BIASES, MEMORIES, RETENTIONS, RULES, Combination, combinations
from nlc.miras.known import KNOWN
from nlc.miras.laws import first_broken
from nlc.miras.normal import LENGTH
from nlc.miras.same import Substitution
from nlc.miras.survey import Row, survey
from nlc.text import Source

EXACT = 1e-10
TICKS = 5
SIZES = {"n": 3, "m": 4, "c": 2}
FRACTIONS = ("alpha", "mu", "gamma", "beta", "eta")  # drawn between 0 and 1

# networks that have a name
NAMED = {
    "normed_matrix_l2_none_gradient", "residual_dot_scalar_gradient",
    "residual_l2_scalar_momentum", "residual_window_scalar_gradient", "residual_window_scalar_muon",
    "normed_l2_none_gradient", "normed_l2_kl_gradient", "normed_l3_lq_printed_gradient",
    "normed_switch_scalar_gradient",
}  # fmt: skip

torch.set_num_threads(1)


@cache
def rows() -> list[Row]:
    """All that are linear, all that have a name, and a share of the rest."""
    everything = combinations(MEMORIES, BIASES, RETENTIONS, RULES)
    wanted = [c for c in everything if not c.memory.network and c.rule.usual]
    rest = [c for c in everything if c not in wanted and not first_broken(c)]
    named = [c for c in rest if c.name in NAMED]
    return survey(list(dict.fromkeys([*wanted, *named, *rest[::31]])), 16)


def row(name: str) -> Row:
    return next(r for r in rows() if r.name == name)


def one(memory: str, bias: str, retention: str, rule: str, chunk: int = 16) -> Combination:
    kinds: tuple[Any, ...] = (MEMORIES, BIASES, RETENTIONS, RULES)
    picks = zip((memory, bias, retention, rule), kinds, strict=True)
    found: list[Any] = [next(c for c in among if c.name == name) for name, among in picks]
    return Combination(found[0], found[1], found[2], found[3], chunk)


# ---- a memory as numbers -------------------------------------------------------------------------


def streams_of(text: str) -> dict[str, tuple[str, ...]]:
    """The streams of the last memory of a file, each with the names of its sizes."""
    params = read(text).node.params
    return {p.name.id: tuple(d.span.text for d in p.dims) for p in params if p.default is None}


def sizes_of(*texts: str) -> dict[str, int]:
    """Values as long as keys, if one of the memories wants it so."""
    square = [not any("m" in dims for dims in streams_of(text).values()) for text in texts]
    return SIZES | {"m": SIZES["n"]} if any(square) else SIZES


def drawn(text: str, sizes: dict[str, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(text))
    made = {}
    for name, dims in streams_of(text).items():
        shape = (1, TICKS, *(sizes[d] for d in dims))
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in FRACTIONS:
            x = 0.05 + 0.3 * torch.sigmoid(x)
        if name in ("alpha", "gamma"):
            x = 1 - x / 2
        made[name] = x.abs() if name in ("delta", "ridge") else x
    return made


def system(text: str, sizes: dict[str, int], chunk: int = 16) -> str:
    """A memory in a level of its own, on inputs of small sizes."""
    name = read(text).node.name.id
    shapes = {n: [str(sizes[d]) for d in dims] for n, dims in streams_of(text).items()}
    inputs = ", ".join(n + (f"[{', '.join(s)}]" if s else "") for n, s in shapes.items())
    names = ", ".join(shapes)
    more = f", chunk = {chunk}" if "chunk" in text else ""
    return (
        f"{text}\nsystem one() {{\n  level mixer({names}) every token "
        f"{{ read {name}({names}{more}) }}\n  flow({inputs}) {{ return mixer({names}) }}\n}}\n"
    )


def interpreter(text: str, sizes: dict[str, int], chunk: int = 16) -> Reference:
    checked = check_text(system(text, sizes, chunk))
    assert checked.system is not None and not checked.errors, checked.diagnostics
    return Reference(checked.system)


def answers(truth: Reference, streams: dict[str, Tensor]) -> Tensor:
    return truth(streams)[0]


def started_alike(truth: Reference, other: Reference) -> None:
    """The start of one memory, given to another of the same form."""
    for (_, x), name in zip(truth.values.items(), list(other.values), strict=True):
        other.values[name] = x.clone()


def substituted(
    streams: dict[str, Tensor], wanted: dict[str, tuple[str, ...]], how: Substitution
) -> dict[str, Tensor]:
    """What the other memory is given, at each tick a function of what the one is given."""
    made: dict[str, list[Tensor]] = {n: [] for n in wanted}
    for t in range(TICKS):
        now = {n: x[0, t].numpy() for n, x in streams.items()}
        now[str(LENGTH)] = (now[how.key] ** 2).sum()
        for name in wanted:
            x = value(how.gates[name], now) if name in how.gates else now[name]
            if name == how.target:
                x = x * value(how.scale, now)
            made[name].append(torch.tensor(np.array(x), dtype=torch.float64))
    return {n: torch.stack(xs)[None] for n, xs in made.items()}


def value(x: sympy.Expr, now: dict[str, np.ndarray]) -> np.ndarray:
    names = sorted(s.name for s in x.free_symbols)
    f = sympy.lambdify([sympy.Symbol(n, real=True) for n in names], x, "numpy")
    return np.asarray(f(*(now[n] for n in names)), dtype=float)


def check_same(a: str, b: str, how: Substitution, chunk: int = 16) -> None:
    """The one memory answers as the other does with its gates substituted."""
    sizes = sizes_of(a, b)
    streams = drawn(a, sizes)
    truth, other = interpreter(a, sizes, chunk), interpreter(b, sizes, chunk)
    started_alike(truth, other)
    mine = answers(truth, streams)
    theirs = answers(other, substituted(streams, streams_of(b), how))
    assert bool(torch.isfinite(mine).all())
    distance = float((mine - theirs).abs().max()) / (1 + float(mine.abs().max()))
    assert distance <= EXACT, f"{distance:.1e} with {how}"


# ---- specs ---------------------------------------------------------------------------------------


def test_every_spec_checks_clean_and_is_in_the_one_style() -> None:
    fine = [r for r in rows() if r.law is None]
    assert len(fine) > 500
    for r in fine:
        checked = check_text(r.text, f"{r.name}.nl")
        assert not checked.diagnostics, (r.name, checked.diagnostics)
        assert format_source(Source(r.name, r.text))[0] == r.text
        assert f"memory {r.name}(" in r.text and r.combination.bias.words.lower() in words(r.text)


def words(text: str) -> str:
    """The comment as one line."""
    return " ".join(re.findall(r"^# (.*)$", text, re.M)).lower()


def test_names_are_names_and_differ() -> None:
    names = [r.name for r in rows()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", n) for n in names)


# ---- equivalences --------------------------------------------------------------------------------


def test_what_is_the_same_is_the_same_in_numbers() -> None:
    pairs = [(r, row(r.first), r.substitution) for r in rows() if r.substitution is not None]
    assert len(pairs) > 100
    for r, first, how in pairs:
        assert how is not None
        try:
            check_same(r.text, first.text, how)
        except AssertionError as error:
            raise AssertionError(f"{r.name} is not {first.name}: {error}") from None


def test_what_has_a_name_is_what_has_that_name() -> None:
    named = [(r, known, how) for r in rows() for known, how in r.known if r.distinct]
    assert {known.name for _, known, _ in named} == {k.name for k in KNOWN}
    for r, known, how in named:
        try:
            check_same(r.text, known.text, how)
        except AssertionError as error:
            raise AssertionError(f"{r.name} is not {known.name}: {error}") from None
