"""HOPE without each of its parts (arXiv:2512.24695, table 6): every row is the reference's, and is
without what it says.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shipped import SPECS, distance
from torch import Tensor

import nlc
from nlc.backends.runtime import Model
from nlc.driver import Spec
from nlc.verify.streams import farthest, gradients, truth_of

ROWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no DGD": {"delta": 0},
    "no momentum": {"carry": 0},
    "no weight decay": {"forget": 0},
    "no CMS": {"periods": []},
    "slow key": {"key": 0},
    "slow value": {"value": 0},
    "fast query": {"query": 1},
    # what the paper leaves open
    "only what meets the key is cleared": {"deep": 0},
    "its own value learns too": {"stopped": 0, "chunk": 1},
    "larger rates": {"most": 0.1},
    "shorter memories": {"lasting": 3},
    "token by token": {"chunk": 1},
    "the main memory in shorter chunks": {"main_chunk": 2},
}
SIZES: dict[str, Any] = {
    "width": 4, "heads": 2, "depth": 1, "vocab": 7, "periods": [2, 4], "chunk": 3,
}  # fmt: skip
AT = "layers.0.titans."
MAIN, QUERY = "learner_2.M", "learner.M"  # where a memory makes the query; else there is but one


def spec_of(row: str, text: str | None = None) -> Spec:
    return nlc.load("hope_ablations" if text is None else text, **{**SIZES, **ROWS[row]})


def ids() -> Tensor:
    return torch.randint(0, 7, (2, 9), generator=torch.Generator().manual_seed(1))


def model_of(row: str) -> Model:
    return nlc.compile(spec_of(row), dtype=torch.float64)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_the_reference(row: str) -> None:
    spec = spec_of(row)
    model = nlc.compile(spec, dtype=torch.float64)
    truth = truth_of(nlc.reference(spec, model.state_dict(), traced=()), (ids(),))
    assert distance(model(ids())[0], truth.outputs) <= 1e-9
    off, where = farthest(gradients(model, (ids(),)), truth.gradients)
    assert off <= 1e-9, where


@pytest.mark.parametrize("more", [{}, {"query": 1}, {"main_chunk": 2}], ids=str)
def test_a_memory_that_another_calls_writes_once_a_stretch(more: dict[str, int]) -> None:
    """The levels that learn the loss see each of its writes: those of a layer, through the next."""
    settings = {**SIZES, "depth": 2, "inner": 0.3, **more}
    model = nlc.compile(nlc.load("hope_ablations", **settings), dtype=torch.float64)
    reference = nlc.reference(nlc.load("hope_ablations", **settings), model.state_dict())
    assert distance(model(ids())[0], reference((ids(),))[0]) <= 1e-9


def test_every_row_is_another_model() -> None:
    """With the same weights; the row without a continuum memory has fewer."""
    weights = model_of("whole").state_dict()
    answers = {}
    for row in ROWS:
        model = model_of(row)
        given = dict(weights)
        if row == "fast query":
            given |= {n.replace(QUERY, MAIN): x for n, x in weights.items() if QUERY in n}
        model.load_state_dict({n: x for n, x in given.items() if n in model.state_dict()})
        with torch.no_grad():
            answers[row] = model(ids())[0]
    for row, y in answers.items():
        others = (z for other, z in answers.items() if other != row)
        assert all(float((y - z).abs().max()) > 1e-9 for z in others), row


@pytest.mark.parametrize(("part", "off"), [("K", "slow key"), ("V", "slow value")])
def test_a_slow_projection_stands_still(part: str, off: str) -> None:
    """And a fast one does not."""
    for row, moves in ((off, False), ("whole", True)):
        model = model_of(row)
        before, (_, after) = model.reset(2), model(ids())
        for array in ("W1", "W2"):
            path = f"{AT}{part}.{array}"
            assert torch.equal(before.arrays[path], after.arrays[path].detach()) is not moves


def test_the_query_is_slow_unless_a_row_says_otherwise() -> None:
    """Then it is what a memory says that learns as the others do."""
    assert f"{AT}q.linear" in model_of("whole").state_dict()
    model = model_of("fast query")
    assert f"{AT}q.linear" not in model.state_dict()
    before, (_, after) = model.reset(2), model(ids())
    for path in (f"{AT}{QUERY}.W1", f"{AT}{MAIN}.W1"):
        assert not torch.equal(before.arrays[path], after.arrays[path].detach())


NAMES = {"q.linear": "read.linear", "learner.M.": "M.main.", "K.": "M.key.", "V.": "M.value."}


def test_without_momentum_it_is_hope() -> None:
    """Number for number, where a memory lasts as long at first: answers, losses, gradients."""
    ours = nlc.compile(
        nlc.load("hope_ablations", **SIZES, carry=0, lasting=8, inner=0.3), dtype=torch.float64
    )
    hope = nlc.compile(nlc.load("hope", **SIZES, inner=0.3), dtype=torch.float64)
    names = {
        n: next((n.replace(AT + a, AT + b) for a, b in NAMES.items() if n.startswith(AT + a)), n)
        for n in ours.state_dict()
    }
    hope.load_state_dict({names[n]: x for n, x in ours.state_dict().items()})
    assert set(names.values()) == set(hope.state_dict())
    assert distance(ours(ids())[0], hope(ids())[0]) <= 1e-12
    assert distance(ours.losses(ids())[0], hope.losses(ids())[0]) <= 1e-12
    wanted = gradients(hope, (ids(),))
    found = {names[n]: g for n, g in gradients(ours, (ids(),)).items()}
    off, where = farthest(found, wanted)
    assert off <= 1e-12, where


def main_learns_in_chunks_of(main_chunk: int) -> dict[str, Tensor]:
    """What the memories add after a frozen stretch of three tokens."""
    settings = {**SIZES, "chunk": 4, "main_chunk": main_chunk}
    model = nlc.compile(nlc.load("hope_ablations", **settings), dtype=torch.float64)
    return {n: x.detach() for n, x in model(ids()[:, :3])[1].arrays.items() if n.startswith(AT)}


def test_the_main_memory_has_a_chunk_of_its_own() -> None:
    """The others do not see it: what they write is the same, and what it writes is not."""
    one, other = main_learns_in_chunks_of(4), main_learns_in_chunks_of(1)
    for name, x in one.items():
        if name.rpartition(".")[2] in ("W1", "W2"):
            assert torch.equal(x, other[name]) is ("learner" not in name), name


def test_without_the_continuum_memory_nothing_learns_the_loss() -> None:
    assert model_of("whole").LEARNERS and not model_of("no CMS").LEARNERS


def whole_text() -> str:
    """The spec with the memory that it uses written into it."""
    text, inside = ((SPECS / f"{n}.nl").read_text("utf-8") for n in ("hope_ablations", "learner"))
    return text.replace('use "learner"\n', inside.removeprefix("nl 1\n"))


def rules(text: str) -> str:
    """The spec with another rule for all of its memories."""
    whole = whole_text()
    assert "erase = delta, keep = carry" in whole
    for erase in ("delta * deep", "delta"):
        whole = whole.replace(f"erase = {erase}, keep = carry", "{}")
    return whole.replace("dgd_momentum(", f"{text}(")


@pytest.mark.parametrize(
    ("more", "rule", "settings"),
    [
        ({"delta": 0}, "momentum", "keep = carry"),
        ({"carry": 0}, "dgd", ""),
        ({"carry": 0, "delta": 0}, "gradient", ""),
    ],
    ids=["momentum", "dgd", "gradient"],
)
def test_what_is_left_is_the_plain_rule(more: Any, rule: str, settings: str) -> None:
    text = rules(rule).replace(", {})", f", {settings})" if settings else ")")
    kept = {**SIZES, **more}
    ours = nlc.compile(nlc.load("hope_ablations", **kept), dtype=torch.float64)
    plain = nlc.compile(nlc.load(text, **kept), dtype=torch.float64)
    with torch.no_grad():
        assert distance(ours(ids())[0], plain(ids())[0]) <= 1e-12


def test_without_weight_decay_nothing_is_forgotten() -> None:
    """At a rate of nothing the memories keep their start, which with weight decay they lose."""
    whole = whole_text().replace("η = most", "η = 0")
    for row, kept in (("no weight decay", True), ("whole", False)):
        model = nlc.compile(spec_of(row, whole), dtype=torch.float64)
        before, (_, after) = model.reset(2), model(ids())
        path = f"{AT}learner.M.W1"
        assert (distance(after.arrays[path], before.arrays[path]) <= 1e-15) is kept
