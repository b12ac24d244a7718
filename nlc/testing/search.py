"""A search for a system that breaks a law: random systems, the first that fails shrunk to a small
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from hypothesis import HealthCheck, Verbosity, given, seed, settings

from ..driver import Spec, SpecError, load
from ..files import write_output
from ..format import format_file
from ..text import Source
from . import KINDS, THEMES, systems, text_of


@dataclass(frozen=True)
class Counterexample:
    """A system that breaks a law, and what the law said of it. As text it is a `.nl` file.

    `smallest`: whether nothing smaller breaks the law, as far as shrinking tells; else there was no
    time left to make it smaller.
    """

    law: str
    said: str
    text: str
    smallest: bool = True

    def __str__(self) -> str:
        version, rest = self.text.split("\n", 1)
        said = [f"breaks {self.law}: {self.said}"]
        if not self.smallest:
            said.append("Not shrunk to the end: give the search more seconds.")
        notes = [f"# {line}" for part in said for line in wrap(part, 100)]
        return "\n".join([version, *notes, rest])

    def save(self, path: str | Path) -> None:
        """Written whole or not at all."""
        write_output(Path(path), str(self))


@dataclass(frozen=True)
class Nothing:
    """No counterexample: false, as an answer. `tried`: how many systems the law held for, of so
    many `examples`; `timed_out`: whether time was up before they all were asked.
    """

    law: str
    tried: int
    examples: int
    timed_out: bool = False

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        if not self.timed_out:
            return f"no counterexample to {self.law} in {self.tried} systems"
        return (
            f"no counterexample to {self.law} in {self.tried} systems of {self.examples}: time was "
            "up, give the search more seconds"
        )


class OutOfTime(BaseException):
    """No failure of a law, so shrinking does not catch it."""


class Seen:
    """The systems that failed: the last, and the smallest."""

    def __init__(self, law: str) -> None:
        self.law = law
        self.last: Counterexample | None = None
        self.least: Counterexample | None = None
        self.tried = 0  # systems that were asked

    def add(self, text: str, error: Exception) -> None:
        # The first line: pytest puts what it knows of an `assert` below.
        said = str(error).strip().split("\n")[0] or type(error).__name__
        if not isinstance(error, AssertionError):
            said = f"{type(error).__name__}: {said}"
        text = format_file(Source("found.nl", text))
        self.last = Counterexample(self.law, said, text)
        if self.least is None or len(text) < len(self.least.text):
            self.least = Counterexample(self.law, said, text, smallest=False)


def search(
    law: Callable[[Spec], object],
    examples: int = 100,
    seconds: float = 300.0,
    start: int = 0,
    kinds: tuple[str, ...] = KINDS,
    themes: tuple[str, ...] = THEMES,
    largest: int = 3,
) -> Counterexample | Nothing:
    """The smallest random system for which `law` raises; else what is false, and says in how many
    systems there was none.

    `examples`: how many systems are drawn; the same ones for the same `start`. `seconds`: after
    them the smallest that failed so far is the answer, and if none did, `timed_out` says so.
    `kinds`, `themes`, `largest`: as for `systems`. An error other than a law's is a counterexample
    too: a compiler must not crash.
    """
    _checked(examples, seconds, kinds, themes, largest)
    seen = Seen(getattr(law, "__name__", "the law"))
    end = time.monotonic() + seconds

    def holds(text: str) -> None:
        if time.monotonic() > end:
            raise OutOfTime
        try:
            law(load(text))
        except Exception as error:
            seen.add(text, _told(error))
            raise
        seen.tried += 1

    drawn = given(systems(kinds=kinds, largest=largest, themes=themes).map(text_of))
    quiet = settings(
        max_examples=examples, deadline=None, database=None, derandomize=False,
        report_multiple_bugs=False, verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        seed(start)(quiet(drawn(holds)))()
    except OutOfTime:
        return seen.least or Nothing(seen.law, seen.tried, examples, timed_out=True)
    except Exception:
        if seen.last is None:
            raise  # not of a system that was drawn
    return seen.last or Nothing(seen.law, seen.tried, examples)


def _checked(
    examples: object, seconds: object, kinds: object, themes: object, largest: object
) -> None:
    """What a search is given, or what is wrong with it in a sentence."""
    for name, value in (("examples", examples), ("largest", largest)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} = {value!r}: a whole number is needed")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"seconds = {seconds!r}: a number is needed")
    if examples < 1:  # type: ignore[operator]
        raise ValueError(f"examples = {examples}: a search draws one system or more")
    if largest < 1:  # type: ignore[operator]
        raise ValueError(f"largest = {largest}: a system has one level or more")
    for name, values, known in (("kinds", kinds, KINDS), ("themes", themes, THEMES)):
        if not isinstance(values, tuple | list):
            raise TypeError(f"{name} = {values!r}: a tuple or list of names is needed")
        words = ", ".join(repr(k) for k in dict.fromkeys(known))
        if not values:
            raise ValueError(f"{name} = {values!r}: one or more are needed, of {words}")
        wrong = [v for v in values if v not in known]
        if wrong:
            raise ValueError(f"{name} has {wrong[0]!r}, which is none of {words}")


def _told(error: Exception) -> Exception:
    """Mistakes of a spec in a line, without the frames that show where they are."""
    if isinstance(error, SpecError):
        return ValueError("; ".join(f"{d.code} {d.message}" for d in error.diagnostics))
    return error
