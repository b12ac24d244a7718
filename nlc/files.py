"""The user's files: read with a clear sentence when that fails, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class CallError(Exception):
    """A mistake in a call. Its text is what the user is told, `status` the exit status."""

    status = 2


class Stopped(CallError):
    """Work that cannot go on, through no mistake in the call. The text says why, and what to do."""

    status = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean X?`, or nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def why(error: OSError) -> str:
    """The reason of a failed file operation, in words that end a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return (error.strerror or str(error)).lower()


def read_text(path: Path) -> str:
    """The characters of a text file."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise CallError(f"There is no file {path}.{near_file(path)}") from None
    except IsADirectoryError:
        raise CallError(f"{path} is a folder; a file is needed.") from None
    except UnicodeDecodeError as error:
        raise CallError(f"{path} is not UTF-8 text (byte {error.start + 1}).") from None
    except OSError as error:
        raise CallError(f"{path} cannot be read: {why(error)}.") from None


def near_file(path: Path) -> str:
    """The file of that folder that may have been meant."""
    with contextlib.suppress(OSError):
        return did_you_mean(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
    return ""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`: whoever looks, and whenever power fails, finds the old file or the new.

    The bytes go to a file beside it, are forced to disk, and only then take the name: of what a
    link leads to, not of the link. A device or a pipe is no file, and is written into.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        return
    path = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(_usual_mode(path))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_output(path: Path, data: bytes | str) -> None:
    """`write_atomically` for a file that the user named in the call."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise CallError(f"{path} cannot be written: {why(error)}.") from None


def _usual_mode(path: Path) -> int:
    """The mode of the file that is replaced, or the one a new file would get."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Force the new name to disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
