"""Text to learn from. In: paths. Out: a `Corpus`: training and held-out tokens that share no text.

Everything here is a function of the files, the seed and the step, so a resumed run reads on where
it stopped.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import CallError, why

HELD_OUT = 20  # one part in so many is held out
FEW = 10  # with fewer files the end of the text is held out, otherwise whole files
EXCERPT = 4096  # held-out text is read in pieces of so many bytes, from all over


@dataclass(frozen=True)
class Tokens:
    """Token ids, and how many bytes of text each stands for (None: one each)."""

    ids: NDArray[Any]
    widths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Corpus:
    """`validation_text` holds the bytes that `validation` stands for; `digest` names all of it."""

    train: Tokens
    validation: Tokens
    validation_text: bytes
    vocab: int
    digest: str
    summary: str


def load_corpus(
    paths: Sequence[Path],
    tokenizer: Path | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    validation_bytes: int = 65536,
) -> Corpus:
    """Read all files, hold some text out, and turn both parts into tokens."""
    documents, left_out = gather(paths, only, skip)
    train, held, manner = split(documents)
    excerpt = spread(held, validation_bytes)
    encoder = _Encoder(tokenizer)
    size = sum(map(len, train))
    notes = f", {left_out}" if left_out else ""
    return Corpus(
        train=encoder.encode(train),
        validation=encoder.encode([excerpt]),
        validation_text=excerpt,
        vocab=encoder.vocab,
        digest=_digest([*train, b"held out", excerpt, encoder.identity]),
        summary=(
            f"{_plural(len(documents), 'file')}{notes}: {_size(size)} to learn from, "
            f"{_size(len(excerpt))} held out ({manner})"
        ),
    )


# ---- files -----------------------------------------------------------------------------------


def gather(
    paths: Sequence[Path], only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[list[tuple[str, bytes]], str]:
    """Every text file, by name in a fixed order, and a note on what was left out."""
    documents: list[tuple[str, bytes]] = []
    seen: set[bytes] = set()
    binary = copies = 0
    for place, path in enumerate(paths):
        for name, file in _files(path, only, skip):
            text = _bytes(file)
            if b"\0" in text[:65536]:
                if file == path:
                    raise CallError(f"{path} is not text: it holds zero bytes.")
                binary += 1
                continue
            print_of = hashlib.sha256(text).digest()
            if print_of in seen:  # a copy of a held-out file would be learned by heart
                copies += 1
            elif text:
                seen.add(print_of)
                documents.append((f"{place}/{name}", text))
    if not documents:
        raise CallError(f"There is no text to learn from in {', '.join(map(str, paths))}.")
    notes = [f"{binary} not text" if binary else "", f"{copies} copies" if copies else ""]
    return documents, " and ".join(n for n in notes if n) + (" left out" if any(notes) else "")


def _files(path: Path, only: Sequence[str], skip: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The regular files at or below a path; hidden ones and those not asked for are passed over."""
    if path.is_file():
        yield path.name, path
        return
    if not path.exists():
        raise CallError(f"There is no file or folder {path}.")
    if not path.is_dir():
        raise CallError(f"{path} is neither a file nor a folder.")
    for folder, folders, names in os.walk(path, onerror=_unreadable):
        folders[:] = sorted(f for f in folders if _wanted(f, (), skip))
        for name in sorted(names):
            file = Path(folder) / name
            if _wanted(name, only, skip) and file.is_file():
                yield str(file.relative_to(path)), file


def _wanted(name: str, only: Sequence[str], skip: Sequence[str]) -> bool:
    if name.startswith(".") or name == "__pycache__" or any(fnmatch(name, s) for s in skip):
        return False
    return not only or any(fnmatch(name, o) for o in only)


def _unreadable(error: OSError) -> None:
    raise CallError(f"{error.filename} cannot be read: {why(error)}.")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CallError(f"{file} cannot be read: {why(error)}.") from None


# ---- the split -------------------------------------------------------------------------------


def split(documents: Sequence[tuple[str, bytes]]) -> tuple[list[bytes], bytes, str]:
    """Texts to learn from, the held-out text, and how they were parted."""
    total = sum(len(text) for _, text in documents)
    if len(documents) >= FEW:
        held = _held_files(documents, total // HELD_OUT)
        if held:
            train = [text for name, text in documents if name not in held]
            return train, b"".join(held.values()), _plural(len(held), "whole file")
    joined = b"".join(text for _, text in documents)
    cut = total - max(total // HELD_OUT, 1)
    return [joined[:cut]], joined[cut:], "the end of the text"


def _held_files(documents: Sequence[tuple[str, bytes]], target: int) -> dict[str, bytes]:
    """Whole files of about `target` bytes, in an order that only their names decide."""
    held: dict[str, bytes] = {}
    left = target
    for name, text in sorted(documents, key=lambda d: hashlib.sha256(d[0].encode()).digest()):
        if len(text) <= left:
            held[name] = text
            left -= len(text)
    return held


def spread(text: bytes, limit: int) -> bytes:
    """At most `limit` bytes, in pieces from all over the text."""
    if len(text) <= limit:
        return text
    piece = min(EXCERPT, limit)
    count = limit // piece
    starts = [i * (len(text) - piece) // max(count - 1, 1) for i in range(count)]
    return b"".join(text[s : s + piece] for s in starts)


# ---- tokens ----------------------------------------------------------------------------------


class _Encoder:
    """Bytes as they are, or the ids of a `tokenizers` file."""

    def __init__(self, path: Path | None) -> None:
        self.tokenizer: Any = None
        self.identity, self.vocab = b"bytes", 256
        if path is not None:
            self.tokenizer = load_tokenizer(path)
            self.identity, self.vocab = path.read_bytes(), self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[bytes]) -> Tokens:
        if self.tokenizer is None:
            return Tokens(np.frombuffer(b"".join(texts), dtype=np.uint8))
        parts = [text.decode("utf-8", errors="replace") for text in texts]
        encoded = self.tokenizer.encode_batch(parts, add_special_tokens=False)
        ids = [np.asarray(e.ids, dtype=np.uint32) for e in encoded]
        widths = [_widths(part, e.offsets) for part, e in zip(parts, encoded, strict=True)]
        return Tokens(np.concatenate(ids), np.concatenate(widths))


def load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise CallError(
            "--tokenizer needs the package tokenizers: pip install 'nlc-compiler[tokenizers]'."
        ) from None
    if not path.is_file():
        raise CallError(f"There is no tokenizer file {path}.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions for files it cannot read
        raise CallError(f"{path} is not a tokenizers file: {error}.") from None


def _widths(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Bytes from the end of each token's predecessor to its own: they add up to the text's."""
    points = np.frombuffer(text.encode("utf-32-le", errors="replace"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(np.asarray([0, *(end for _, end in offsets)], dtype=np.int64))
    widths: NDArray[np.int64] = np.diff(before[ends])
    return widths


# ---- windows ---------------------------------------------------------------------------------


def window_batch(
    tokens: Tokens, seed: int, step: int, batch: int, length: int
) -> NDArray[np.int64]:
    """The training windows of one step: nothing but seed and step decides (a counted generator)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = generator.integers(0, len(tokens) - length + 1, size=batch)
    ids: NDArray[np.int64] = tokens.ids[starts[:, None] + np.arange(length)].astype(np.int64)
    return ids


def validation_batches(
    tokens: Tokens, batch: int, length: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Windows that share one token, so that every token but the first is predicted exactly once.

    With each: the bytes its tokens stand for. A shorter last window comes alone.
    """
    starts = list(range(0, len(tokens) - 1, length - 1))
    short = starts.pop() if len(tokens) - starts[-1] < length else None
    groups = [starts[i : i + batch] for i in range(0, len(starts), batch)]
    for group in groups if short is None else [*groups, [short]]:
        rows = [slice(s, s + length) for s in group]
        ids = np.stack([tokens.ids[r] for r in rows]).astype(np.int64)
        yield ids, _row_widths(tokens, rows, ids)


def _row_widths(tokens: Tokens, rows: Sequence[slice], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    if tokens.widths is None:
        return np.ones_like(ids)
    return np.stack([tokens.widths[r] for r in rows])


# ---- what a model is measured against --------------------------------------------------------


def baselines(text: bytes) -> dict[str, float]:
    """Bits per byte of a text: by its own byte counts, and by compressors that know no other."""
    counts = np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
    shares = counts[counts > 0] / len(text)
    return {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / len(text),
        "lzma": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
    }


def check_lengths(corpus: Corpus, length: int) -> None:
    """Refuse text that is too short for one window."""
    if len(corpus.train) < length:
        raise CallError(
            f"The text gives {_plural(len(corpus.train), 'token')} to learn from, and one sequence "
            f"is {length}: give more text, or a smaller --length."
        )
    if len(corpus.validation) < 2:
        raise CallError("The text is too short to hold any of it out: give more text.")


def bits(nats: float) -> float:
    return nats / math.log(2)


def _digest(parts: Sequence[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return _plural(count, "byte")
