"""What a survey leaves behind. In: rows and scores. Out: files that any crash leaves whole.

specs/NAME.nl   each memory
table.csv       a line for each combination
index.html      the same to look at
recall.jsonl    a line for each training, written when it is done
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import CallError, why, write_output
from .page import page
from .ranking import Ranked, Shares, ranked, table_csv
from .survey import Row
from .tasks import TASKS


@dataclass(frozen=True, slots=True)
class Training:
    """One model: `text` is a hash of its spec, so what was changed since is trained anew."""

    name: str
    task: str
    seed: int
    steps: int
    text: str
    share: float
    parameters: int
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.name, self.task, self.seed, self.text


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def log(self) -> Path:
        return self.path / "recall.jsonl"

    def make(self) -> None:
        try:
            (self.path / "specs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CallError(f"{self.path} cannot be made: {why(error)}.") from None

    def write_spec(self, row: Row) -> None:
        """What has not changed is left as it is."""
        path = self.path / "specs" / f"{row.name}.nl"
        if row.law is None and not same_text(path, row.text):
            write_output(path, row.text)

    def write_tables(
        self, rows: Sequence[Row], trainings: Sequence[Training], size: int
    ) -> list[Ranked]:
        order = ranked(rows, shares_of(trainings))
        names = [t.name for t in TASKS]
        write_output(self.path / "table.csv", table_csv(rows, order, names))
        write_output(self.path / "index.html", page(rows, order, TASKS, size))
        return order

    # ---- trainings ----

    def trainings(self) -> list[Training]:
        """Those that are done; a line that a crash has torn is none."""
        try:
            lines = self.log.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise CallError(f"{self.log} cannot be read: {error}.") from None
        return list(parsed(lines))

    def add(self, training: Training) -> None:
        """On disk before the next one begins."""
        try:
            torn = self.log.exists() and not self.log.read_bytes().endswith(b"\n")
            with self.log.open("a", encoding="utf-8") as file:
                file.write("\n" * torn + json.dumps(asdict(training)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CallError(f"{self.log} cannot be written: {why(error)}.") from None


def same_text(path: Path, text: str) -> bool:
    try:
        return path.read_text("utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def parsed(lines: Sequence[str]) -> Iterator[Training]:
    for line in lines:
        try:
            found = json.loads(line)
            curve = tuple((int(s), float(x)) for s, x in found.pop("curve"))
            yield Training(**found, curve=curve)
        except (ValueError, TypeError, KeyError):
            continue


def shares_of(trainings: Sequence[Training]) -> Mapping[str, Shares]:
    """By memory and task, a share for each seed."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for one in trainings:
        tasks = found.setdefault(one.name, {})
        tasks[one.task] = (*tasks.get(one.task, ()), one.share)
    return found
