"""Runs: what they learn, and that no crash loses what was saved."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from standin import SPEC, stand_in

from nlc import checkpoint, cli
from nlc.backends.runtime.optimizer import GradientError
from nlc.backends.runtime.state import write_tensors
from nlc.files import write_atomically
from nlc.learner import Learner
from nlc.loading import load_spec
from nlc.run_folder import RunFolder
from nlc.train import length_notes

TEXT = "the quick brown fox jumps over the lazy dog; " * 400
SCRIPT = Path(__file__).parent / "standin.py"
Nlc = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a spec and a text, and the stand-in model."""
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch.setattr)
    (tmp_path / "spec.nl").write_text(SPEC)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


SMALL = ("--batch", "2", "--length", "32", "--val-bytes", "256", "--threads", "1")
BASE = ("train", "spec.nl", "--data", "text.txt", "--out", "run", *SMALL)


def nlc(*words: object) -> int:
    return cli.main([str(w) for w in words])


CHILDREN: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def childless() -> Iterator[None]:
    """A test that fails leaves no process that trains on."""
    yield
    while CHILDREN:
        with CHILDREN.pop() as child:
            child.kill()


def process(*words: object, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """`nlc`, as a process that can be killed."""
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)],
        preexec_fn=before,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    CHILDREN.append(child)
    return child


def last(run: str = "run") -> Any:
    return checkpoint.from_file(RunFolder(Path(run)).saved()[-1])


def entries(run: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def wait_for(path: Path, pattern: str, child: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 60
    while not any(path.glob(pattern)):
        assert child.poll() is None and time.monotonic() < limit, child.communicate()
        time.sleep(0.02)


def test_a_run_learns_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc(*BASE, "--steps", 60, "--val-every", 30) == 0
    said = capsys.readouterr().out
    assert "bits/byte" in said and "tokens/s" in said and "left" in said
    assert "unigram" in said and "gzip" in said and "lzma" in said
    losses = [e["bits_per_byte"] for e in entries() if e["kind"] == "train"]
    assert losses[0] > 7 and losses[-1] < losses[0] - 1
    held = [e for e in entries() if e["kind"] == "validation"]
    assert [e["step"] for e in held] == [30, 60] and held[1]["unigram"] < 8


def test_the_folder_holds_all_that_made_the_run(place: Path) -> None:
    assert nlc(*BASE, "--steps", 2, "--seed", 7, "--set", "width=8") == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["options"]["seed"] == 7 and record["options"]["settings"] == {"width": 8}
    assert {"python", "torch"} <= record["versions"].keys()
    assert Path("run/spec/spec.nl").read_text() == SPEC
    assert Path("run/model.py").read_text() == "# generated\n"
    assert any(Path("run/tensorboard").iterdir())


def test_resuming_is_bit_for_bit(place: Path) -> None:
    whole = [w if w != "run" else "whole" for w in BASE]
    assert nlc(*whole, "--steps", 13) == 0
    assert nlc(*BASE, "--steps", 3) == 0
    torch.rand(5)  # another process would not have this process's random numbers
    for steps in (6, 13):
        assert nlc("train", "--resume", "run", "--steps", steps) == 0
    one, other = last("whole"), last("run")
    one["seconds"] = other["seconds"] = 0
    assert checkpoint.difference(one, other) is None
    assert one["waiting_gradients"], "a slow level's gradients are part of a checkpoint"
    losses = [
        [e["bits_per_byte"] for e in entries(r) if e["kind"] == "train"] for r in ("whole", "run")
    ]
    assert losses[0] == losses[1]


def test_a_log_has_no_step_twice(place: Path) -> None:
    assert nlc(*BASE, "--steps", 4, "--save-every", 2) == 0
    RunFolder(Path("run")).saved()[-1].unlink()
    with Path("run/log.jsonl").open("a") as log:
        log.write('{"step": 5, "ki')  # a process was killed while it wrote
    assert nlc("train", "--resume", "run", "--steps", 6) == 0
    assert [e["step"] for e in entries() if e["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_only_the_newest_checkpoints_are_kept(place: Path) -> None:
    assert nlc(*BASE, "--steps", 6, "--save-every", 1, "--keep", 2) == 0
    names = [p.name for p in RunFolder(Path("run")).saved()]
    assert names == ["step-00000005.safetensors", "step-00000006.safetensors"]


def test_a_damaged_checkpoint_falls_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc(*BASE, "--steps", 4, "--save-every", 2) == 0
    newest = RunFolder(Path("run")).saved()[-1]
    newest.write_bytes(newest.read_bytes()[:500])
    assert nlc("train", "--resume", "run", "--steps", 5) == 0
    assert "cannot be read" in capsys.readouterr().out
    for path in RunFolder(Path("run")).saved():
        path.write_bytes(b"")
    assert nlc("train", "--resume", "run", "--steps", 6) == 2
    assert "no checkpoint that can be read" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_begins_again(place: Path) -> None:
    assert nlc(*BASE, "--steps", 3) == 0
    first = last()["model"]
    for path in RunFolder(Path("run")).saved():
        path.unlink()
    assert nlc("generate", "run") == 2
    assert nlc("train", "--resume", "run") == 0
    assert checkpoint.difference(first, last()["model"]) is None


# ---- crashes -----------------------------------------------------------------------------------


def test_killed_at_any_moment_a_run_goes_on(place: Path) -> None:
    chance = random.Random(0)
    child = process(*BASE, "--steps", 100000, "--save-every", 1)
    wait_for(place, "run/checkpoints/step-*", child)
    reached = 0
    for _ in range(2):
        time.sleep(chance.uniform(0.1, 0.4))
        child.kill()
        child.communicate()
        tree = last()
        assert tree["step"] >= reached
        reached = tree["step"]
        child = process("train", "--resume", "run", "--steps", 100000)
        wait_for(place, f"run/checkpoints/step-{reached + 1:08d}*", child)
    child.kill()
    child.communicate()
    losses = [e["bits_per_byte"] for e in entries() if e["kind"] == "train"][:reached]
    whole = [w if w != "run" else "whole" for w in BASE]
    assert nlc(*whole, "--steps", reached) == 0
    assert losses == [e["bits_per_byte"] for e in entries("whole") if e["kind"] == "train"]
    assert nlc("train", "--resume", "run", "--steps", reached + 9) == 0
    assert not list(Path("run").rglob(".*.tmp"))


def test_killed_while_writing_a_file_is_the_old_or_the_new(tmp_path: Path) -> None:
    code = (
        "import itertools, sys, pathlib; from nlc.files import write_atomically\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for i in itertools.count(): write_atomically(path, bytes([i % 256]) * 2**20)"
    )
    target = tmp_path / "file"
    for round_ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code, str(target)])
        while not target.exists():
            time.sleep(0.01)
        time.sleep(0.05 + 0.017 * round_)
        child.kill()
        child.wait()
        data = target.read_bytes()
        assert len(data) == 2**20 and len(set(data)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(place: Path, number: signal.Signals) -> None:
    child = process(*BASE, "--steps", 100000)
    wait_for(place, "run/checkpoints/step-*", child)
    time.sleep(0.3)
    child.send_signal(number)
    said, wrong = child.communicate(timeout=120)
    assert child.returncode == 128 + number
    assert "To go on: nlc train --resume run" in said and "Traceback" not in wrong
    tree = last()
    assert tree["step"] > 0 and tree["step"] == entries()[-1]["step"]
    assert nlc("train", "--resume", "run", "--steps", tree["step"] + 1) == 0


def test_a_closed_pipe_does_not_end_a_run(place: Path) -> None:
    child = process(*BASE, "--steps", 40)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    with child.stderr as stderr:
        wrong = stderr.read()
    assert child.wait(timeout=120) == 0 and "Traceback" not in wrong
    assert last()["step"] == 40


def test_two_processes_do_not_share_a_run(place: Path) -> None:
    child = process(*BASE, "--steps", 100000)
    wait_for(place, "run/checkpoints/step-*", child)
    other = process("train", "--resume", "run", "--steps", 100001)
    _, wrong = other.communicate(timeout=120)
    assert other.returncode == 2 and "Another process" in wrong


# ---- what goes wrong without a crash -----------------------------------------------------------


def full_disk_after(count: int) -> Callable[[Path, Any], None]:
    """`write_atomically` on a disk that fills up."""
    written = 0

    def write(path: Path, data: Any) -> None:
        nonlocal written
        if path.suffix == ".safetensors":
            written += 1
            if written > count:
                path.with_name(f".{path.name}.x.tmp").write_bytes(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, data)

    return write


def test_a_full_disk_keeps_what_was_saved(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as full:
        full.setattr("nlc.run_folder.write_atomically", full_disk_after(2))
        assert nlc(*BASE, "--steps", 9, "--save-every", 2) == 3
    wrong = capsys.readouterr().err
    assert "the disk is full" in wrong and "step 2 is whole" in wrong and "--resume run" in wrong
    assert last()["step"] == 2
    assert nlc("train", "--resume", "run", "--steps", 9) == 0
    assert not list(Path("run").rglob(".*.tmp"))


def test_a_log_that_cannot_grow_is_explained(place: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    words = [*BASE, "--steps", "100000", "--save-every", "100", "--set", "width=4"]
    child = process(*words, before=small_files)
    _, wrong = child.communicate(timeout=120)
    assert child.returncode == 3 and "cannot be written after step" in wrong
    assert "Traceback" not in wrong and last()["step"] >= 100


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nlc.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    """Not a link, a pipe or a folder, nor a device, which root could."""
    real, link, pipe = (tmp_path / n for n in ("real", "link", "pipe"))
    real.write_text("old")
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "through")
    assert os.read(reader, 99) == b"through" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, "new")
    assert sorted(tmp_path.iterdir()) == [link, pipe, real]
    for place in (pipe, tmp_path):
        with pytest.raises(FileExistsError, match="is no file"):
            write_tensors(place, {}, {})
    write_tensors(link, {}, {})
    assert link.is_symlink() and real.read_bytes() != b"new" and pipe.is_fifo()


def test_a_loss_that_is_no_number_is_explained(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*BASE, "--steps", 9, "--save-every", 2, "--set", "spoil=6") == 3
    wrong = capsys.readouterr().err
    assert "The loss is nan at step 6" in wrong and "step 4 is whole" in wrong
    assert "smaller rate" in wrong
    tree = last()
    assert tree["step"] == 4 and all(bool(t.isfinite().all()) for t in tree["model"].values())


def test_a_gradient_that_is_no_number_is_explained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(learner: Learner, ids: Any) -> float:
        raise GradientError("the gradient of `head` holds numbers that are not finite")

    monkeypatch.setattr(Learner, "step", refuse)
    assert nlc(*BASE, "--steps", 3, "--save-every", 1) == 3
    wrong = capsys.readouterr().err
    assert "At step 1 the gradient of `head`" in wrong and "smaller rate" in wrong


def test_weights_that_are_no_numbers_are_not_saved(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Learner.step

    def spoil(learner: Learner, ids: Any) -> float:
        loss = step(learner, ids)
        with torch.no_grad():
            learner.model.head.weight.fill_(float("inf"))
        return loss

    monkeypatch.setattr(Learner, "step", spoil)
    assert nlc(*BASE, "--steps", 3, "--save-every", 1) == 3
    assert "head.weight" in capsys.readouterr().err
    assert last()["step"] == 0


def test_full_memory_is_explained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(learner: Learner, ids: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Learner, "step", full)
    assert nlc(*BASE, "--steps", 3) == 3
    assert "--batch 2" in capsys.readouterr().err


# ---- mistakes in a call ------------------------------------------------------------------------


def test_a_run_is_never_written_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc(*BASE, "--steps", 1) == 0
    assert nlc(*BASE, "--steps", 1) == 2
    assert "--resume run" in capsys.readouterr().err


def test_without_out_each_run_has_its_own_folder(place: Path) -> None:
    for _ in range(2):
        assert nlc("train", "spec.nl", "--data", "text.txt", "--steps", 1, *SMALL) == 0
    assert Path("runs/standin/run.json").exists() and Path("runs/standin-2/run.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1"), "seed is 0 in the run, 1 in this call"),
        (("--batch", "3"), "batch is 2 in the run, 3 in this call"),
        (("--set", "width=5"), "settings is width=the spec's own in the run, width=5 in this call"),
        (("--data", "spec.nl"), "data is"),
        (("--steps", "2"), "is finished"),
    ],
)
def test_a_resumed_run_says_what_differs(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*BASE, "--steps", 2) == 0
    assert nlc("train", "--resume", "run", *words) == 2
    assert said in capsys.readouterr().err
    assert last()["step"] == 2


def test_a_resumed_run_needs_its_spec_and_text(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*BASE, "--steps", 2) == 0
    Path("spec.nl").write_text(SPEC + "more\n")
    assert nlc("train", "spec.nl", "--resume", "run", "--steps", 3) == 2
    assert "spec.nl differs" in capsys.readouterr().err
    Path("text.txt").write_text(TEXT.replace("fox", "cat"))
    assert nlc("train", "--resume", "run", "--steps", 3) == 2
    assert "is not what run was started with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--resume", "nowhere"), "There is no run nowhere"),
        (("train", "--resume", "."), "holds no run"),
        (("train", "spec.nl", "--data", "nothing.txt"), "no file or folder nothing.txt"),
        (("train", "spec.nl", "--data", "text.txt", "--device", "tpu"), "--device tpu"),
        (("train", "spec.nl", "--data", "text.txt", "--device", "cuda:99"), "no such device"),
        (("train", "spec.nl", "--data", "text.txt", "--length", "99999"), "smaller --length"),
        (("train", "spec.nl", "--data", "text.txt", "--out", "spec.nl"), "is a file"),
        (("train", "spec.nl", "--data", "text.txt", "--out", "spec.nl/x"), "cannot be made"),
        (("train", "spec.nl", "--data", "text.txt", "--tokenizer", "x.json"), "tokenizer"),
        (("generate", "nowhere"), "no run folder nowhere"),
        (("generate", "."), "holds no run"),
    ],
)
def test_mistakes_write_nothing(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*words) == 2
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in place.iterdir()) == ["spec.nl", "text.txt"]


# ---- generation --------------------------------------------------------------------------------


def test_text_streams_from_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc(*BASE, "--steps", 60) == 0
    capsys.readouterr()
    texts = []
    for _ in range(2):
        assert nlc("generate", "run", "--prompt", "the ", "--tokens", 40, "--seed", 3) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("the ") and len(texts[0]) > 20
    assert nlc("generate", "run", "--prompt", "the ", "--tokens", 5, "--temperature", 0) == 0


def test_a_memory_is_loaded_first_and_saved_after(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*BASE, "--steps", 2) == 0
    memory = ("generate", "run", "--memory", "m", "--tokens", 3, "--top-k", 5, "--prompt")
    assert nlc(*memory, "a") == 0
    first = torch.load("m")
    assert nlc(*memory, "b") == 0
    assert not torch.equal(first, torch.load("m"))
    Path("other").write_bytes(b"no memory")
    assert nlc("generate", "run", "--memory", "other") == 2
    Path("other").unlink()
    assert nlc("generate", "run", "--memory", "no/where/m") == 2
    assert sorted(p.name for p in place.iterdir()) == ["m", "run", "spec.nl", "text.txt"]


def test_a_level_on_sequences_is_told_to_stand_while_a_run_trains() -> None:
    (note,) = length_notes(load_spec("sleep", {}).system, 32)
    assert "asleep (every sequence) stands" in note


@pytest.mark.parametrize(("length", "never"), [(64, True), (512, True), (513, False)])
def test_a_gradient_that_a_run_is_too_short_to_cut_is_told(length: int, never: bool) -> None:
    notes = length_notes(load_spec("rnn", {"back": 512}).system, length)
    said = (
        f"`through 512 tokens` never cuts: sequences of this run have {length} tokens (--length)."
    )
    assert notes == ([said] if never else [])
    both = length_notes(load_spec("self_modifying_titans", {}).system, length)
    assert both.count(said) == int(never)
