"""The scripts behind the pictures and the table of docs/optimizers.md, on tiny settings."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

import nlc

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"bench/{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def texts(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_the_valley_is_that_of_53_and_is_drawn() -> None:
    d = script("draw_optimizers")
    valley = (10.0, 0.5, 2.0)
    found = d.races(valley, steps=4, rates=(1e-2,), erases=(1e-4,))
    r, t = torch.tensor([-3.5, 2.0], dtype=torch.float64).requires_grad_()
    psi = r**2 + 10 * (r - t + 0.5 * torch.sin(2 * r)) ** 2
    g = torch.stack(torch.autograd.grad(psi, [r, t]))
    for one in found:
        assert one.losses[0] == pytest.approx(float(psi.detach()), rel=1e-12)
        assert one.path[1] == pytest.approx((torch.tensor([-3.5, 2.0]) - 1e-2 * g).tolist())
        assert one.steps is None and len(one.path) == 5
    assert found[0].path[2] != found[1].path[2]
    text = texts(d.valley_picture(found, valley))
    assert "delta_momentum(rate = 0.0100, erase = 1.0e-04, keep = 0.9): not there" in text


def test_tasks_are_orthogonal_and_are_drawn() -> None:
    d = script("draw_optimizers")
    found = d.lives(steps=9)
    by_name = {one.name: one for one in found}
    momentum = by_name["momentum, keep 0.9"].held
    for one in found:
        assert len(one.held) == len(one.loss) == 36
        assert max(one.held[:9]) == 1
    # after its task nothing of the first is met again: it fades by what the memory keeps
    for before, after in pairwise(momentum[9:]):
        assert after == pytest.approx(0.9 * before)
    held = by_name["delta momentum, keep 1"].held[9:]
    assert max(held) == pytest.approx(min(held))
    slow = by_name["M3, slow"].held
    assert slow[16] == slow[22] and slow[24] == pytest.approx(0.9 * slow[22])
    assert "m3(rate = 2e-2)" in texts(d.tasks_picture(found))


def test_every_rule_of_the_study_can_be_trained_with() -> None:
    t = script("train_optimizers")
    for rule, grid in t.GRIDS.items():
        for settings in grid[:1]:
            spec = nlc.load(
                t.text_of(rule, settings, "1e-3", 20), width=8, depth=1, heads=2, hidden=8
            )
            assert spec.system.levels[0].learn[0].rule == rule.partition(" ")[0]


def test_a_study_keeps_its_runs_and_takes_the_best(tmp_path: Path) -> None:
    t = script("train_optimizers")
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"text {i} to learn from, again and again\n" * 40)
    corpus = t.load_corpus([tmp_path])
    out = tmp_path / "out.json"
    study = t.Study(corpus, t.Sizes(2, width=8, depth=1, heads=2, hidden=8), out)
    found = study.bits("momentum", {"rate": "1e-1"}, "1e-3", 1)
    assert math.isfinite(found) and 0 < found < 10
    again = t.Study(corpus, t.Sizes(2), out)  # what is kept is not run again, at any size
    assert again.bits("momentum", {"rate": "1e-1"}, "1e-3", 1) == found
    again.done = {
        f"momentum({t.said(s)}), rest 1e-3, seed {t.TUNING}": float(i)
        for i, s in enumerate(reversed(t.GRIDS["momentum"]))
    }
    assert again.tuned("momentum", "1e-3") == t.GRIDS["momentum"][-1]
