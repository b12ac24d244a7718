"""Text to learn from: what is read, how it is parted, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from nlc import corpus
from nlc.corpus import Corpus, Tokens, load_corpus
from nlc.files import CallError


def folder_of(place: Path, count: int) -> Path:
    """A folder of numbered files, each with a text of its own."""
    for number in range(count):
        file = place / f"part{number % 3}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"this is text number {number}\n" * (5 + number))
    return place


def test_the_two_parts_share_no_file(tmp_path: Path) -> None:
    found = load_corpus([folder_of(tmp_path, 60)])
    learned = bytes(found.train.ids).splitlines()
    held = found.validation_text.splitlines()
    assert held and not set(learned) & set(held)
    assert len(learned) + len(held) == sum(5 + n for n in range(60))
    assert 0.01 < len(found.validation) / len(found.train) < 0.06


def test_a_single_file_keeps_its_end_back(tmp_path: Path) -> None:
    text = "".join(f"line {n}\n" for n in range(500)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    found = load_corpus([tmp_path / "a.txt"])
    assert bytes(found.train.ids) + found.validation_text == text


def test_the_same_files_are_the_same_corpus(tmp_path: Path) -> None:
    one, other = (load_corpus([folder_of(tmp_path / n, 30)]) for n in ("a", "b"))
    assert one.digest == other.digest
    (tmp_path / "b/part0/0.txt").write_text("something else")
    assert load_corpus([tmp_path / "b"]).digest != one.digest


def test_copies_do_not_leak(tmp_path: Path) -> None:
    folder_of(tmp_path, 60)
    for file in list(tmp_path.rglob("*.txt")):
        file.with_suffix(".copy").write_bytes(file.read_bytes())
    found = load_corpus([tmp_path])
    assert "60 copies left out" in found.summary
    assert not set(bytes(found.train.ids).splitlines()) & set(found.validation_text.splitlines())


def test_what_is_asked_for_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    for name in ("x.py", ".hidden.py", "test/y.py", "__pycache__/z.py", ".git/w.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "program.py").write_bytes(b"\x7fELF\0\0")
    documents, notes = corpus.gather([tmp_path], only=["*.py"], skip=["test"])
    assert [name for name, _ in documents] == ["0/x.py"]
    assert notes == "1 not text left out"


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "binary", "fifo"])
def test_no_text_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "binary":
            path.write_bytes(b"\0\1\2" * 100)
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(CallError, match=kind):
        load_corpus([path])


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "closed.txt"
    path.write_text("text")

    def closed(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(CallError, match=r"closed\.txt cannot be read: permission denied"):
        load_corpus([path])


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("short")
    with pytest.raises(CallError, match="smaller --length"):
        corpus.check_lengths(load_corpus([path]), 64)
    with pytest.raises(CallError, match="hold any of it out"):
        corpus.check_lengths(load_corpus([path]), 2)


def test_text_of_any_encoding_is_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("größe ".encode("latin-1") * 50)
    assert 0xF6 in load_corpus([path]).train.ids


# ---- windows -----------------------------------------------------------------------------------


def test_windows_depend_on_seed_and_step_alone() -> None:
    tokens = Tokens(np.arange(1000) % 256)
    one = corpus.window_batch(tokens, seed=3, step=7, batch=4, length=16)
    assert np.array_equal(one, corpus.window_batch(tokens, seed=3, step=7, batch=4, length=16))
    assert not np.array_equal(one, corpus.window_batch(tokens, seed=3, step=8, batch=4, length=16))
    assert not np.array_equal(one, corpus.window_batch(tokens, seed=4, step=7, batch=4, length=16))
    assert one.shape == (4, 16) and (np.diff(one) % 256 == 1).all()


def test_windows_reach_both_ends() -> None:
    tokens = Tokens(np.arange(10))
    starts = {int(corpus.window_batch(tokens, 0, s, 1, 8)[0, 0]) for s in range(60)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("count", [2, 15, 16, 17, 31, 32, 100])
def test_each_held_out_token_is_predicted_once(count: int) -> None:
    tokens = Tokens(np.arange(count))
    batches = list(corpus.validation_batches(tokens, batch=3, length=16))
    predicted = np.concatenate([ids[:, 1:].reshape(-1) for ids, _ in batches])
    assert sorted(predicted) == list(range(1, count))


# ---- measures ----------------------------------------------------------------------------------


def test_baselines_of_known_texts() -> None:
    two = corpus.baselines(b"ab" * 5000)
    assert math.isclose(two["unigram"], 1.0)
    assert two["gzip"] < 0.1 and two["lzma"] < 0.1
    noise = corpus.baselines(np.random.default_rng(0).bytes(20000))
    assert all(7.9 < value < 8.2 for value in noise.values())


def test_held_out_text_comes_from_all_over() -> None:
    text = bytes(n // 1000 for n in range(100_000))
    pieces = corpus.spread(text, 4 * corpus.EXCERPT)
    assert len(pieces) == 4 * corpus.EXCERPT and pieces[0] == 0 and pieces[-1] == 99
    assert corpus.spread(text, 10**6) == text


# ---- tokenizers --------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level tokenizer file made from a little text."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["the größe of the thing → the end"] * 20, vocab_size=280)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def with_tokenizer(tmp_path: Path, tokenizer: Path) -> Corpus:
    path = tmp_path / "text.txt"
    path.write_text("the größe of the thing → the end of \U0001f600\n" * 40, "utf-8")
    return load_corpus([path], tokenizer)


def test_bits_per_byte_count_bytes_whatever_the_tokens(tmp_path: Path, tokenizer: Path) -> None:
    found = with_tokenizer(tmp_path, tokenizer)
    assert found.validation.widths is not None
    assert found.vocab == json.loads(tokenizer.read_text())["model"]["vocab"].__len__()
    assert int(found.validation.widths.sum()) == len(found.validation_text)
    assert len(found.validation) < len(found.validation_text)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text " * 50)
    with pytest.raises(CallError, match="is not a tokenizers file"):
        load_corpus([tmp_path / "text.txt"], tmp_path / "text.txt")
