"""One folder for each run. In: what a run is made of. Out: files that any crash leaves whole.

run.json        versions, seed, options, data: written last, so a folder with it is a run
spec/           the spec and the files it uses
model.py        the generated source
checkpoints/    step-00000100.safetensors, the newest few
tokenizer.json  if the run has one
log.jsonl       one line for each step and each validation
tensorboard/    the same for TensorBoard
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .files import CallError, why, write_atomically

VERSIONS_OF = ("nlc-compiler", "torch", "numpy", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def main_spec(self) -> Path:
        return self.path / "spec" / str(self.read_record()["spec"])

    def read_record(self) -> dict[str, Any]:
        """What `create_run` wrote."""
        try:
            record = json.loads(self.record.read_text("utf-8"))
        except FileNotFoundError:
            raise CallError(_no_run(self.path)) from None
        except (OSError, ValueError) as error:
            raise CallError(f"{self.record} cannot be read: {error}.") from None
        if not isinstance(record, dict):
            raise CallError(f"{self.record} is not the record of a run.")
        return record

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"))

    def save(self, step: int, data: bytes, keep: int) -> None:
        """Add a checkpoint, and only then drop those beyond the newest `keep`."""
        write_atomically(self.checkpoints / f"step-{step:08d}.safetensors", data)
        for old in self.saved()[:-keep]:
            old.unlink(missing_ok=True)

    def append_log(self, entry: Mapping[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Forget what was logged after a checkpoint: those steps are done again."""
        if not self.log.exists():
            return
        lines = [line for line in self.log.read_text("utf-8").splitlines() if _up_to(line, step)]
        write_atomically(self.log, "".join(line + "\n" for line in lines))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: two processes must not write it. The system lets go when a process dies."""
        with _open_lock(self.path / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CallError(f"Another process is training {self.path} now.") from None
            for leftover in self.path.rglob(".*.tmp"):  # of a process that was killed while saving
                leftover.unlink(missing_ok=True)
            yield


def _open_lock(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise CallError(f"{path.parent} cannot be written: {why(error)}.") from None


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"There is no run {path}."
    return f"{path} holds no run: it has no run.json."


def _up_to(line: str, step: int) -> bool:
    """Whether a log line is whole and not later than a step."""
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def free_folder(name: str) -> Path:
    """runs/name, or the first of runs/name-2, runs/name-3 .. that holds nothing."""
    place, number = Path("runs") / name, 2
    while place.exists():
        place, number = Path("runs") / f"{name}-{number}", number + 1
    return place


def refuse_existing(path: Path) -> None:
    """A run is never written over."""
    if (path / "run.json").exists():
        raise CallError(
            f"{path} holds a run already. To go on with it: nlc train --resume {path}. "
            "For a new one give another --out."
        )
    if path.exists() and not path.is_dir():
        raise CallError(f"{path} is a file; --out needs a folder.")


def create_run(
    path: Path, spec: str, files: Mapping[str, str], source: str, record: Mapping[str, Any]
) -> RunFolder:
    """A new run folder. `files`: texts by path within spec/; `spec`: which is the system's."""
    run = RunFolder(path)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            target = path / "spec" / inside(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text)
        write_atomically(path / "model.py", source)
        whole = {"spec": str(inside(spec)), "versions": versions(), **record}
        write_atomically(run.record, json.dumps(whole, indent=2) + "\n")
    except OSError as error:
        raise CallError(f"The run folder {path} cannot be made: {why(error)}.") from None
    return run


def inside(name: str) -> PurePosixPath:
    """A path that stays within the folder it is put in."""
    parts = [p for p in PurePosixPath(name).parts if p not in ("/", "..", ".")]
    return PurePosixPath(*parts)
