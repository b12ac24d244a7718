"""`nlc miras`: every spec is sound, every law holds, what is called the same is so in numbers."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from nlc.backends.reference import Reference
from nlc.cli import main
from nlc.driver import check_text
from nlc.format import format_source
from nlc.miras.alone import read, shipped
from nlc.miras.choices import BIASES, MEMORIES, RETENTIONS, RULES, Combination, combinations
from nlc.miras.known import KNOWN
from nlc.miras.laws import LAWS, first_broken
from nlc.miras.normal import LENGTH
from nlc.miras.page import page
from nlc.miras.plot import plot
from nlc.miras.ranking import known_as, ranked, summary, table_csv, verdicts, with_gates
from nlc.miras.recall import Score, recall, system_text
from nlc.miras.run import told_line, whole_names
from nlc.miras.same import Substitution
from nlc.miras.survey import Row, survey
from nlc.miras.tasks import TASKS, Task
from nlc.miras.writing import spec
from nlc.text import Source

EXACT = 1e-10
TICKS = 5
SIZES = {"n": 3, "m": 4, "c": 2}
FRACTIONS = ("alpha", "mu", "gamma", "beta", "eta")  # drawn between 0 and 1

# what has a name and is none of the plain
NAMED = {
    "matrix_l1_scalar_gradient", "matrix_l1_5_scalar_gradient", "matrix_l3_scalar_gradient",
    "matrix_huber_norm_scalar_gradient", "normed_l3_lq_gradient",
    "normed_matrix_l2_none_gradient", "residual_dot_scalar_gradient",
    "residual_l2_scalar_momentum", "residual_window_scalar_gradient", "residual_window_scalar_muon",
    "normed_l2_none_gradient", "normed_l2_kl_gradient", "normed_l3_lq_printed_gradient",
    "normed_switch_scalar_gradient",
}  # fmt: skip

ALL = combinations(MEMORIES, BIASES, RETENTIONS, RULES)

torch.set_num_threads(1)


@cache
def rows() -> list[Row]:
    """Most of the matrices, all that have a name, and a share of the rest."""
    wanted = [c for c in ALL if is_plain(c) or c.name in NAMED]
    rest = [c for c in ALL if not is_plain(c) and not first_broken(c)]
    laws = {law.name: c for c in ALL if (law := first_broken(c)) is not None}
    return survey(list(dict.fromkeys([*wanted, *rest[::41], *laws.values()])), 16)


def is_plain(c: Combination) -> bool:
    """A matrix whose bias has something to do with others."""
    plain = ("dot", "l2", "weighted", "exchanged", "huber", "window", "window_dot")
    needed = c.memory.name == "matrix" or not first_broken(c)
    return not c.memory.network and c.rule.usual and c.bias.name in plain and needed


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


Settings = tuple[tuple[str, float], ...]


def system(text: str, sizes: dict[str, int], chunk: int = 16, given: Settings = ()) -> str:
    """A memory in a level of its own, on inputs of small sizes."""
    name = read(text).node.name.id
    shapes = {n: [str(sizes[d]) for d in dims] for n, dims in streams_of(text).items()}
    inputs = ", ".join(n + (f"[{', '.join(s)}]" if s else "") for n, s in shapes.items())
    names = ", ".join(shapes)
    more = f", chunk = {chunk}" if "chunk" in text else ""
    more += "".join(f", {setting} = {x}" for setting, x in given)
    return (
        f"{text}\nsystem one() {{\n  level mixer({names}) every token "
        f"{{ read {name}({names}{more}) }}\n  flow({inputs}) {{ return mixer({names}) }}\n}}\n"
    )


def interpreter(
    text: str, sizes: dict[str, int], chunk: int = 16, given: Settings = ()
) -> Reference:
    checked = check_text(system(text, sizes, chunk, given))
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


def check_same(a: str, b: str, how: Substitution, chunk: int = 16, given: Settings = ()) -> None:
    """The one memory answers as the other does with its gates substituted."""
    sizes = sizes_of(a, b)
    streams = drawn(a, sizes)
    truth, other = interpreter(a, sizes, chunk), interpreter(b, sizes, chunk, given)
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
        assert r.compiled, r.cost
        assert not checked.diagnostics, (r.name, checked.diagnostics)
        assert format_source(Source(r.name, r.text))[0] == r.text
        assert f"memory {r.name}(" in r.text and r.combination.bias.words.lower() in words(r.text)


def test_the_comment_says_where_a_gradient_is_taken() -> None:
    picked = [one("matrix", "l1", "elastic", rule) for rule in ("gradient", "implicit")]
    told = {r.combination.rule.name: words(r.text) for r in survey(picked, 16)}
    assert "g = d objective / d m at the state as it was" in told["gradient"]
    assert "g = d objective / d m at the state that the step ends in" in told["implicit"]


def test_the_comment_says_that_a_dual_is_cleared() -> None:
    for bias, key in (("dot", "k"), ("window_dot", "k_i")):
        (r,) = survey([one("matrix", bias, "kl", "dgd")], 16)
        v = key.replace("k", "v")
        assert f"A = alpha * A - eta * (A {key}) {key}' + eta * {v} {key}', M = softmax" in r.text


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
            check_same(r.text, known.text, how, given=known.given)
        except AssertionError as error:
            raise AssertionError(f"{r.name} is not {known.name}: {error}") from None


NO_COMBINATION = {
    "attend": "a softmax", "window": "a softmax", "continuum": "the model's own loss",
    "comba": "a key to ask by", "rwkv7": "a key to erase by", "hgrn2": "its gate is its key",
    "delta_product": "several pairs a token", "gated_delta_2": "a gate to erase, one to write",
    "omega": "pairs count by their age", "sphere": "one step a chunk",
    "surprise_gate": "writes where it is wrong", "ttt_linear": "a bias", "ttt_mlp": "see TTT-MLP",
    "titans_exact": "Titans in chunks of 1", "mamba2": "see Mamba2", "retention": "RetNet and GLA",
}  # fmt: skip


def test_a_shipped_memory_has_its_name_or_is_no_combination() -> None:
    files = {p.stem for p in (Path(__file__).parent.parent / "specs/memory").glob("*.nl")}
    assert files == {k.file for k in KNOWN if k.file} | set(NO_COMBINATION)


def test_rwkv7_with_one_key_is_what_is_called_so() -> None:
    n = SIZES["n"]
    q, k, v = stream("q", (n,)), stream("k", (n,)), stream("v", (SIZES["m"],))
    alpha, eta = stream("alpha", (n,)), stream("eta", ())
    wide = eta[..., None]
    given = {"r": q, "w": alpha, "k": wide * k, "v": v, "kappa": k, "a": wide.expand_as(k)}
    wanted = answers(interpreter(shipped("rwkv7"), SIZES), given)
    mine = interpreter(spec(one("matrix", "l2", "channel", "gradient")), SIZES)
    found = answers(mine, {"q": q, "k": k, "v": v, "alpha": alpha, "eta": eta})
    assert float((found - wanted).abs().max()) < EXACT


def test_what_is_called_different_is_different() -> None:
    """On one set of streams no two distinct memories answer alike: none were missed."""
    biases = ("dot", "l2", "weighted", "window_dot", "huber", "shift")
    found: dict[str, str] = {}
    for r in rows():
        c = r.combination
        if r.law is None and c.memory.name == "matrix" and c.bias.name in biases:
            answer = answers(interpreter(r.text, SIZES), common(r.text))
            said = " ".join(f"{x:.8g}" for x in answer.flatten().tolist())
            assert found.setdefault(said, r.first) == r.first, (r.name, found[said])
    assert len(found) > 150


@cache
def stream(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + sum(shape))
    x = torch.randn((1, TICKS, *shape), generator=generator, dtype=torch.float64)
    return x if name in ("q", "k", "v") else 0.1 + 0.8 * torch.sigmoid(x)


def common(text: str) -> dict[str, Tensor]:
    """What all memories are given."""
    streams = streams_of(text).items()
    return {n: stream(n, tuple(SIZES[d] for d in dims)) for n, dims in streams}


def test_the_page_says_what_is_found() -> None:
    text = (Path(__file__).parent.parent / "docs/miras.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \| `(.*?)` \|$", text, re.M)
    assert len(lines) >= 12
    for name, known, how in lines:
        found = survey([next(c for c in ALL if c.name == name)], 16)[0]
        assert (known_as(found), with_gates(found)) == (known, how)
    (example,) = re.findall(r"^```nl\n(.*?)^```$", text, re.M | re.S)
    assert example == survey([one("matrix", "l2", "scalar", "steps")], 16)[0].text


# ---- laws ----------------------------------------------------------------------------------------


def test_every_law_is_broken_by_something_and_says_why() -> None:
    first = {r.law.name for r in rows() if r.law is not None}
    assert first == {law.name for law in LAWS}
    assert {law.kind for law in LAWS} == {"ill-posed", "apart", "idle"}
    assert all(law.sentence and law.reason.endswith(".") for law in LAWS)


def answer_of(c: Combination, ticks: int = TICKS, chunk: int = 16) -> Tensor:
    """What a combination says, whether a law forbids it or not."""
    text = spec(c)
    sizes = sizes_of(text)
    streams = {n: torch.cat([x] * (ticks // TICKS), 1) for n, x in drawn(text, sizes).items()}
    return answers(interpreter(text, sizes, chunk), streams)


def test_a_direction_of_zeros_is_infinitely_steep() -> None:
    c = one("matrix", "cosine", "none", "gradient")
    assert first_broken(c) is not None and float(answer_of(c).abs().max()) > 1e10
    well = one("drawn", "cosine", "none", "gradient")
    assert first_broken(well) is None and float(answer_of(well).abs().max()) < 1e3


def test_the_printed_link_is_told_by_the_checker_too() -> None:
    c = one("matrix", "l2", "lq_printed", "gradient")
    assert first_broken(c) is not None
    assert [d.code for d in check_text(spec(c)).diagnostics] == ["NL502"]


def test_rows_of_length_zero_remember_nothing() -> None:
    c = one("matrix", "l2", "sphere", "gradient")
    assert first_broken(c) is not None and not bool(answer_of(c).any())
    well = one("drawn", "l2", "sphere", "gradient")
    assert first_broken(well) is None and bool(answer_of(well).any())


def test_agreement_of_a_network_that_keeps_all_explodes() -> None:
    c = one("residual", "dot", "none", "gradient", 1)
    assert first_broken(c) is not None
    grown = answer_of(c, 40 * TICKS, 1)
    assert not float(grown.abs().max()) < 1e6  # or no number at all
    summed = one("mlp", "dot", "elastic_ftrl", "gradient", 1)
    assert first_broken(summed) is not None
    assert not float(answer_of(summed, 40 * TICKS, 1).abs().max()) < 1e6
    well = one("normed", "dot", "none", "gradient", 1)
    assert first_broken(well) is None and float(answer_of(well, 40 * TICKS, 1).abs().max()) < 1e2


def test_a_direction_lets_weights_grow_behind_the_printed_map() -> None:
    c = one("drawn", "cosine", "lq_printed", "gradient")
    assert first_broken(c) is not None and float(answer_of(c, 40 * TICKS).abs().max()) > 1e4
    for well in (one("drawn", "l2", "lq_printed", "gradient"),
                 one("normed_matrix", "cosine", "lq_printed", "gradient")):  # fmt: skip
        assert first_broken(well) is None and float(answer_of(well, 40 * TICKS).abs().max()) < 1e3


def test_one_matrix_behind_a_norm_has_channels() -> None:
    c = one("normed_matrix", "l2", "channel", "gradient")
    assert first_broken(c) is None and first_broken(one("mlp", "l2", "channel", "gradient"))
    assert bool(torch.isfinite(answer_of(c)).all())


@pytest.mark.parametrize(
    "names", [("dot", "scalar", "gradient"), ("window_dot", "value", "momentum"),
              ("l2", "channel", "implicit"), ("window", "scalar", "implicit")],
)  # fmt: skip
def test_what_is_idle_says_the_same(names: tuple[str, str, str]) -> None:
    bias, retention, rule = names
    before = one("matrix", bias, retention, rule)
    after = one("matrix", bias, f"{retention}_first", rule)
    broken = first_broken(after)
    assert broken is not None and broken.kind == "idle" and first_broken(before) is None
    streams = common(spec(before))
    a, b = (answers(interpreter(spec(c), SIZES), streams) for c in (before, after))
    assert float((a - b).abs().max()) < EXACT


# ---- what is told --------------------------------------------------------------------------------


def measured() -> dict[str, dict[str, tuple[float, ...]]]:
    return {
        "matrix_l2_none_gradient": {"mqar": (0.5, 0.7), "rebind": (0.9,)},
        "matrix_dot_none_gradient": {"mqar": (0.55, float("nan")), "rebind": (0.2,)},
    }


def test_the_ranking_is_by_recall_then_by_cost() -> None:
    order = ranked(rows(), measured())
    assert [one.name for one in order[:2]] == [
        "matrix_l2_none_gradient",
        "matrix_dot_none_gradient",
    ]
    assert order[0].good and not order[1].good and order[0].place == 1
    costs = [o.row.cost.operations for o in order[2:] if o.row.cost is not None]
    assert costs == sorted(costs) and costs[0] > 0
    assert len(order) == sum(r.law is None for r in rows())


def test_what_is_not_above_chance_is_not_good() -> None:
    """The best of one memory, or of several that guess; and one task is enough to be above it."""
    name = "matrix_l2_none_gradient"

    def verdict(**shares: tuple[float, ...]) -> tuple[str, bool]:
        (one,) = (r for r in ranked(rows(), {name: shares}) if r.name == name)
        return one.told, "at chance" in told_line(one, TASKS)

    assert verdict(mqar=(0.02, 0.06, 0.12)) == verdict(rebind=(0.24,)) == ("at chance", True)
    assert verdict(mqar=(0.06,), rebind=(0.26,)) == ("good", False)
    assert verdict(mqar=(0.01, 0.01, 0.9)) == ("at chance", True)  # by luck, once of three
    assert verdict(mqar=(float("nan"),)) == ("at chance", True) and verdict()[0] == ""
    said = verdicts(["mqar", "rebind"])
    assert "mqar 12.5%, rebind 25.0%" in said
    assert "at chance" in table_csv(rows(), ranked(rows(), {name: {"mqar": (0.02,)}}), ["mqar"])


def test_the_table_holds_every_combination() -> None:
    text = table_csv(rows(), ranked(rows(), measured()), ["mqar", "rebind"])
    found = list(csv.DictReader(io.StringIO(text)))
    assert {f["name"] for f in found} == {r.name for r in rows()}
    first = found[0]
    assert first["known_as"] == "DeltaNet" and first["with"] == "beta = eta"
    assert first["verdict"] == "known" and first["mqar_median"] == "0.6000"
    assert found[1]["mqar_low"] == "0.0000" and found[1]["mqar_seeds"] == "2"
    broken = [f for f in found if f["law"]]
    assert broken and all(not f["place"] and not f["operations"] for f in broken)
    two = next(f for f in found if f["name"] == "matrix_l2_none_dgd")
    assert (
        two["same_as"] == "matrix_l2_none_gradient"
        and two["same_with"] == "eta = 2 * eta, v = v / 2"
    )


class Balanced(HTMLParser):
    """Tags that open and close, and what they point to."""

    VOID = ("meta", "input", "rect", "path", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for n, v in attrs if n in ("href", "src")]
        self.rows += tag == "tr"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    made = page(rows(), ranked(rows(), measured()), TASKS, 16)
    parser = Balanced()
    parser.feed(made)
    assert not parser.open and parser.rows == 1 + sum(r.law is None for r in rows())
    assert all(re.fullmatch(r"specs/[a-z0-9_]+\.nl", link) for link in parser.links)
    assert made.count("<svg") == 2 and all(law.sentence in made for law in LAWS)


def test_the_picture_has_a_dot_for_each_seed() -> None:
    made = plot(TASKS[0], {"a": (0.5, 0.7), "b": (float("nan"),)})
    ElementTree.fromstring(made)
    assert made.count("<circle") == 2 and "60.0" in made


def test_the_summary_counts() -> None:
    said = " ".join(summary(rows()))
    assert f"{len(rows()):,} combinations" in said and "ill-posed" in said and "distinct" in said


def test_costs_tell_memories_apart() -> None:
    cost = {n: row(n).cost for n in ("matrix_dot_none_gradient", "matrix_l2_none_gradient")}
    plain, delta = cost["matrix_dot_none_gradient"], cost["matrix_l2_none_gradient"]
    assert plain is not None and delta is not None
    n = 16  # read and write are 2 n^2 each, and so is what the delta rule asks
    assert abs(plain.operations - 4 * n * n) < 10 * n < delta.operations - plain.operations
    assert plain.state == delta.state == 4 * n * n
    closed, solved = (row(f"matrix_{b}_none_implicit").cost for b in ("l2", "huber"))
    assert closed is not None and closed.operations < 1.1 * delta.operations
    assert solved is not None and "Newton" in solved.run_as and solved.operations > 4 * 4 * n**3
    titans = row("residual_l2_scalar_momentum").cost
    assert titans is not None and titans.state == 3 * 4 * 8 * n * n


# ---- recall --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_an_answer_is_the_last_value_of_its_key(task: Task) -> None:
    made = task.batch(8, torch.Generator().manual_seed(3))
    again = task.batch(8, torch.Generator().manual_seed(3))
    assert bool((made.tokens == again.tokens).all()) and made.tokens.shape == (8, task.length)
    begin, half = 2 * task.pairs * task.writes, task.vocab // 2
    for tokens, targets, asked in zip(made.tokens, made.targets, made.asked, strict=True):
        last = dict(zip(tokens[0:begin:2].tolist(), tokens[1:begin:2].tolist(), strict=True))
        assert len(last) == task.pairs and max(last) < half <= min(last.values())
        assert int(asked.sum()) == task.pairs and not bool(asked[:begin].any())
        for token, target in zip(tokens[asked].tolist(), targets[asked].tolist(), strict=True):
            assert last[token] == target
        assert not bool(tokens[begin:][~asked[begin:]].any())


@pytest.mark.parametrize(
    "names", ["matrix l2 scalar momentum", "matrix weighted value_first gradient",
              "matrix huber channel steps", "matrix exchanged none implicit",
              "matrix l2 scalar exact", "drawn cosine sphere gradient", "normed l3 lq_printed dgd"],
)  # fmt: skip
def test_the_model_around_a_memory_is_a_sound_spec(names: str) -> None:
    a, b, c, d = names.split()
    checked = check_text(system_text(one(a, b, c, d), TASKS[0], 10))
    assert checked.system is not None and not checked.diagnostics


SMALL = Task("small", "a few pairs", 16, 16, 3, 2)


def test_a_short_training_runs_repeats_and_can_be_stopped() -> None:
    c = one("matrix", "l2", "none", "gradient")
    heard: list[int] = []

    def told(step: int, loss: float) -> bool:
        heard.append(step)
        return False

    score = recall(c, SMALL, 0, 3, told)
    again = recall(c, SMALL, 0, 3)
    assert score is not None and score == again and heard == [1, 2, 3]
    assert 0 <= score.share <= 1 and [s for s, _ in score.curve] == [1, 2, 3]
    assert recall(c, SMALL, 0, 3, lambda step, loss: step == 2) is None


# ---- the command ---------------------------------------------------------------------------------

FEW = ("--memory", "matrix", "--bias", "dot,l2", "--retention", "none,scalar", "--rule", "gradient")


def call(*words: str) -> int:
    return main(["miras", *words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*FEW, "--out", "out") == 0
    said = capsys.readouterr().out
    assert "4 specs" in said and "Gated DeltaNet: matrix_l2_scalar_gradient" in said
    made = {str(p.relative_to("out")): p.read_bytes() for p in Path("out").rglob("*.*")}
    assert {"table.csv", "index.html", "specs/matrix_l2_none_gradient.nl"} <= made.keys()
    assert main(["check", *map(str, Path("out/specs").glob("*.nl"))]) == 0
    assert main(["fmt", "--check", *map(str, Path("out/specs").glob("*.nl"))]) == 0
    assert call(*FEW, "--out", "out") == 0
    assert made == {n: (Path("out") / n).read_bytes() for n in made}


def test_trainings_are_kept_and_not_done_twice(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*FEW, "--out", "out", "--task", "rebind", "--steps", "1", "--threads", "1")
    assert call(*words, "--recall", "1") == 0
    log = Path("out/recall.jsonl")
    before = log.read_text()
    assert json.loads(before)["name"] == "matrix_dot_none_gradient"
    log.write_text(before + '{"name": "torn')
    assert call(*words, "--recall", "linear attention") == 0
    assert log.read_text() == before + '{"name": "torn'
    assert call(*words, "--recall", "1", "--seeds", "2") == 0  # and the next line is whole
    assert [json.loads(s)["seed"] for s in log.read_text().splitlines() if s[-1] == "}"] == [0, 1]
    assert "rebind" in capsys.readouterr().out and "<svg" in Path("out/index.html").read_text()


def test_a_run_that_is_stopped_keeps_what_is_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fake(c: Combination, task: Task, seed: int, steps: int, told: Any) -> Score | None:
        if done:
            signal.raise_signal(signal.SIGINT)
        done.append(c.name)
        return None if told(1, 1.0) else Score(0.5, ((1, 0.5),), 10)

    monkeypatch.setattr("nlc.miras.recall.recall", fake)
    assert call(*FEW, "--out", "out", "--recall", "2", "--task", "mqar") == 130
    assert "Stopped; what is done is kept" in capsys.readouterr().out
    assert len(Path("out/recall.jsonl").read_text().splitlines()) == 1
    assert "50.0" in Path("out/index.html").read_text()


def test_a_table_compares_like_with_like(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other steps, and the text of a memory as it was, count for no seed of this one."""

    def fake(c: Combination, task: Task, seed: int, steps: int, told: Any) -> Score:
        return Score(steps / 10, ((1, 0.5),), 10)

    monkeypatch.setattr("nlc.miras.recall.recall", fake)
    words = (*FEW, "--out", "out", "--task", "mqar")
    assert call(*words, "--recall", "1", "--steps", "3") == 0
    assert call(*words, "--recall", "1", "--steps", "5") == 0
    assert "1 of 1 in recall.jsonl are not compared" in capsys.readouterr().out
    log = Path("out/recall.jsonl")
    old = json.loads(log.read_text().splitlines()[0]) | {"text": "old", "share": 0.9, "steps": 5}
    log.write_text(json.dumps(old) + "\n" + log.read_text())
    for more in (("--recall", "1", "--steps", "5"), ()):
        assert call(*words, *more) == 0
        first = next(csv.DictReader(io.StringIO(Path("out/table.csv").read_text())))
        assert (first["mqar_median"], first["mqar_seeds"]) == ("0.5000", "1")


def test_a_name_with_a_comma_is_one_name() -> None:
    parts = ("deltanet", "Titans", "linear", "MIRAS l_p", "linear", "p = 1", "Titans")
    wanted = ("deltanet", "Titans, linear", "MIRAS l_p, linear, p = 1", "Titans")
    assert whole_names(parts) == wanted


MISTAKES = [
    (("--memory", "drawn", "--bias", "l2", "--retention", "none"), "by law: a draw where zeros do"),
    (("--memory", "matrx"), "There is no memory matrx. Did you mean matrix?"),
    (("--bias", "l2,,l1"), "is not a list of names"),
    (("--rule", "sgd"), "There is no rule sgd."),
    (("--task", "recall"), "There is no task recall."),
    (("--recall", "0"), "'0' is not a whole number"),
    ((*FEW, "--recall", "matrix_l2_kl_gradient"), "among those that were chosen"),
    (("--recall", "matrix_l2_sphere_gradient"), "has no spec, by law"),
    (("--recall", "deltnet"), "Did you mean deltanet?"),
    (("--steps", "many"), "'many' is not a whole number"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_in_the_call_leaves_nothing(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    out, wrong = capsys.readouterr()
    assert said in wrong and out == "" and list(place.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("")
    assert call(*FEW, "--out", "taken") == 2
    assert "taken cannot be made" in capsys.readouterr().err


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--list") == 0
    said = capsys.readouterr().out
    for choice in (*MEMORIES, *BIASES, *RETENTIONS, *RULES, *TASKS, *KNOWN):
        assert choice.name in said
    assert all(law.sentence in said for law in LAWS)
