"""Runs of compiled systems: the seam between what is generated and what trains it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nlc import checkpoint, cli
from nlc.run_folder import RunFolder

TEXT = "the quick brown fox jumps over the lazy dog; " * 400
RUN = ("--batch", "2", "--length", "32", "--val-bytes", "256", "--threads", "1")
SYSTEMS = {
    "hope": ("--set", "width=16", "--set", "depth=1", "--set", "heads=2", "--set", "chunk=8",
             "--set", "periods=[8, 16]"),
    "transformer": ("--set", "width=16", "--set", "depth=1", "--set", "heads=2"),
    "deltanet": ("--set", "width=16", "--set", "depth=1", "--set", "heads=2"),
}  # fmt: skip


def nlc(*words: object) -> int:
    return cli.main([str(w) for w in words])


def last(run: str) -> checkpoint.Tree:
    return {**checkpoint.from_file(RunFolder(Path(run)).saved()[-1]), "seconds": 0}


@pytest.fixture(params=SYSTEMS)
def system(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return ("train", request.param, *SYSTEMS[request.param], "--data", "text.txt", *RUN)


def test_a_system_trains_resumes_bit_for_bit_and_writes(
    system: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*system, "--out", "whole", "--steps", 11) == 0
    assert nlc(*system, "--out", "run", "--steps", 3) == 0
    torch.rand(3)
    assert nlc("train", "--resume", "run", "--steps", 7) == 0
    assert nlc("train", "--resume", "run", "--steps", 11) == 0
    assert checkpoint.difference(last("whole"), last("run")) is None
    assert Path("run/model.py").read_text().count("\n") > 20
    capsys.readouterr()
    for _ in range(2):
        assert nlc("generate", "run", "--prompt", "the ", "--tokens", 20, "--memory", "memory") == 0
    assert capsys.readouterr().out.startswith("the ")
