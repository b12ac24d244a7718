"""The order of the stages, and the only place that knows it.

text -> syntax -> system -> level graph -> plan -> Python source -> nn.Module
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import syntax as S
from .checks import check as check_system
from .checks import check_alone
from .diagnostics import Diagnostic
from .files import did_you_mean, near_file, why
from .parse import parse
from .placement import placement
from .resolve import resolve
from .resolve.files import SHIPPED, shipped_names
from .system import Box, Level, System
from .text import Source

if TYPE_CHECKING:
    import networkx

    from .levels import LevelGraph


class SpecError(Exception):
    """The spec has mistakes; `diagnostics` holds them all, and the message shows them."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        from .render import render_text

        self.diagnostics = diagnostics
        super().__init__("\n" + render_text(diagnostics))


@dataclass(frozen=True)
class Checked:
    """Every intermediate of a check. `system` is None where there is none, or mistakes left none.

    `files`: the texts of this file and of those of its folder that it uses, by relative name.
    `alone`: the memories and optimizers that it declares and nothing calls, at example sizes.
    """

    source: Source
    syntax: S.File | None
    system: System | None
    diagnostics: tuple[Diagnostic, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    alone: tuple[Box, ...] = ()

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.diagnostics if d.severity == "error")

    @cached_property
    def levels(self) -> LevelGraph | None:
        from .order import order

        return order(self.system) if self.system is not None and not self.errors else None


def check_text(
    text: str,
    name: str = "<text>",
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Checked:
    """Parse, resolve and check; all mistakes of the file in one run."""
    return check_source(Source(name, text), folder, settings)


def check_source(
    source: Source, folder: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Checked:
    # text -> syntax
    file, told = parse(source)
    if file is None:
        return Checked(source, None, None, tuple(told))
    told += placement(file)
    # syntax -> system
    resolved = resolve(file, folder, settings)
    told += resolved.diagnostics
    # system -> what is wrong in it, if nothing was wrong so far
    if resolved.system is not None and not any(d.severity == "error" for d in told):
        told += check_system(resolved.system)
    if not any(d.severity == "error" for d in told):
        told += check_alone(resolved.alone)
    files = {Path(source.name).name: source.text, **resolved.texts}
    return Checked(source, file, resolved.system, tuple(in_order(told)), files, resolved.alone)


def in_order(told: list[Diagnostic]) -> list[Diagnostic]:
    return sorted(told, key=lambda d: (d.span.source.name, d.span.start))


def check_file(path: str | Path, settings: Mapping[str, Any] | None = None) -> Checked:
    """A path, or the name of a shipped spec. Raises OSError with a sentence if there is none."""
    from .text import read_source

    found = readable(path)
    source = read_source(found)
    if isinstance(source, Diagnostic):
        return Checked(source.span.source, None, None, (source,))
    return check_source(source, found.parent, settings)


def locate(path: str | Path) -> Path:
    """A file as named, else the shipped spec of that name."""
    here = Path(path)
    if here.is_file():
        return here
    name = str(path).removesuffix(".nl").removeprefix("specs/")
    return SHIPPED / f"{name}.nl" if name in shipped_names() else here


def readable(path: str | Path) -> Path:
    """The same, a file that can be read. Raises OSError with a sentence that says why it cannot."""
    name = str(path)
    try:
        found = locate(path)
        folder = found.is_dir()
        if found.exists() and not folder:
            found.open("rb").close()
            return found
    except OSError as error:
        raise type(error)(f"{name} cannot be read: {why(error)}.") from None
    if folder:
        raise IsADirectoryError(f"{name} is a folder; a spec is needed.")
    if "/" in name.removeprefix("specs/") and found.suffix:
        raise FileNotFoundError(f"There is no file {name}.{near_file(found)}")
    ending = ".nl" if name.endswith(".nl") else ""
    known = [n + ending for n in (*shipped_names(), *(p.stem for p in Path().glob("*.nl")))]
    inside = [n for n in known if n.endswith(f"/{name}")]  # a memory, by its own name
    near = did_you_mean(*((inside[0], inside) if inside else (name.removeprefix("specs/"), known)))
    raise FileNotFoundError(f"There is no file {name}, and no shipped spec of that name.{near}")


class Spec:
    """A checked system, ready to be looked at and compiled."""

    def __init__(self, checked: Checked) -> None:
        if checked.errors or checked.system is None:
            raise SpecError(checked.diagnostics)
        self.checked = checked
        self.system: System = checked.system
        self.text = checked.source.text
        self.name = checked.source.name
        self.files = checked.files

    @property
    def levels(self) -> tuple[Level, ...]:
        """Slowest first."""
        graph = self.level_graph
        by_name = {level.name: level for level in self.system.levels}
        names = [name for rank in graph.levels for name in rank.names if name in by_name]
        return tuple(by_name[n] for n in dict.fromkeys(names))

    @cached_property
    def level_graph(self) -> LevelGraph:
        levels = self.checked.levels
        assert levels is not None
        return levels

    @cached_property
    def graph(self) -> networkx.MultiDiGraph:
        from .order import graph

        return graph(self.level_graph)

    def __repr__(self) -> str:
        return f"Spec({self.system.name}: {', '.join(l.name for l in self.system.levels)})"


def load(spec: str | Path, **settings: Any) -> Spec:
    """A spec by path, by shipped name, or as text that begins with `nl 1`; settings by name
    (2.2.4).

    Raises SpecError with every mistake, or OSError with a sentence if there is no such file.
    """
    if not isinstance(spec, str | Path):
        kind = type(spec).__name__
        raise TypeError(f"a spec is a path, a shipped name or a text, and this is of type {kind}")
    if isinstance(spec, str) and ("\n" in spec or spec.startswith("nl 1")):
        checked = check_text(spec, settings=settings)
    else:
        checked = check_file(spec, settings)
    if checked.system is None and not checked.errors:
        from .text import Span

        where = Span(checked.source, 0, 0)
        raise SpecError(
            (
                Diagnostic(
                    "NL308",
                    "this file declares no system",
                    where,
                    help="add `system name() { .. }`",
                ),
            )
        )
    return Spec(checked)
