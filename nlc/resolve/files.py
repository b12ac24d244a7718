"""The files of a spec: `use` looks beside the file, then among the shipped specs, and nowhere else
(2.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import syntax as S
from ..parse import parse
from ..text import Source
from .values import POISON, Declared

if TYPE_CHECKING:
    from .resolver import Resolver

SHIPPED = Path(__file__).resolve().parent.parent / "specs"
LARGEST = 5_000_000  # characters of one file


@lru_cache(maxsize=1)
def shipped_names() -> tuple[str, ...]:
    """Every shipped spec, as `use` names it."""
    return tuple(
        sorted(p.relative_to(SHIPPED).with_suffix("").as_posix() for p in SHIPPED.rglob("*.nl"))
    )


@lru_cache(maxsize=256)
def shipped_file(name: str) -> S.File | None:
    """A shipped spec, parsed once a process."""
    if name not in shipped_names():
        return None
    source = Source(
        f"{name}.nl", (SHIPPED / f"{name}.nl").read_text(encoding="utf-8"), shipped=True
    )
    return parse(source)[0]


def existing(path: Path) -> Path | None:
    """A file, links followed; None if there is none, or its name or links are beyond the system."""
    try:
        found = path.resolve()
        return found if found.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


class Files:
    """The names each file sees: its own declarations and those of the files it uses."""

    def __init__(self, resolver: Resolver, folder: Path | None) -> None:
        self.resolver = resolver
        self.folder = folder.resolve() if folder is not None else None
        self.cache: dict[str, dict[str, Any]] = {}
        self.opening: list[str] = []
        self.texts: dict[str, str] = {}

    def names_of(self, file: S.File, at: Path | None) -> dict[str, Any]:
        """Declarations of a file and, below them, of what it uses."""
        names: dict[str, Any] = {}
        for item in file.items:
            if isinstance(item, S.Use):
                names.update(self.used(item, at))
        shared = dict(names)
        own: dict[str, Any] = {}
        for item in file.items:
            if isinstance(item, S.Def | S.Memory | S.Optimizer):
                self.declare(item, own, shared, file)
        shared.update(own)
        return shared

    def declare(
        self,
        item: S.Def | S.Memory | S.Optimizer,
        own: dict[str, Any],
        shared: dict[str, Any],
        file: S.File,
    ) -> None:
        name = item.name.id
        if name in own:
            self.resolver.report(
                "NL102",
                f"`{item.name.text or name}` is given twice",
                item.name.span,
                "rename one of them",
            )
            return
        own[name] = Declared(item, shared, file.docs.get(item.span.start, ""))

    def used(self, item: S.Use, at: Path | None) -> dict[str, Any]:
        found = self.locate(item, at)
        if found is None:
            return {}
        key, load, folder = found
        if key in self.opening:
            self.resolver.report(
                "NL108",
                f"`{item.path}` uses itself: {' -> '.join([*self.opening, key])}",
                item.span,
                "move what both need into a third file",
            )
            return {}
        if key not in self.cache:
            self.opening.append(key)
            file = load()
            self.cache[key] = self.names_of(file, folder) if file is not None else {}
            self.opening.pop()
        return self.cache[key]

    def locate(
        self, item: S.Use, at: Path | None
    ) -> tuple[str, Callable[[], S.File | None], Path | None] | None:
        """Beside this file, if it stays inside the folder; else among the shipped specs."""
        path = item.path.removesuffix(".nl")
        if (
            not path
            or path.startswith(("/", "\\", "~"))
            or ".." in Path(path).parts
            or "\\" in path
            or ":" in path
            or "\0" in path
        ):
            self.resolver.report(
                "NL108",
                f'`use "{item.path}"` leaves the folder of this spec',
                item.span,
                "a spec uses files of its own folder and shipped specs, by a relative name",
            )
            return None
        if at is not None and self.folder is not None:
            here = existing(at / f"{path}.nl")
            if here is not None:
                if not here.is_relative_to(self.folder):
                    self.resolver.report(
                        "NL108",
                        f'`use "{item.path}"` leaves the folder of this spec through a link',
                        item.span,
                    )
                    return None
                return str(here), lambda: self.read(here, item), here.parent
        if path in shipped_names():
            return f"shipped {path}", lambda: shipped_file(path), None
        beside = (
            [p.relative_to(at).with_suffix("").as_posix() for p in at.glob("*.nl")]
            if at is not None
            else []
        )
        near = get_close_matches(path, [*beside, *shipped_names()], n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        self.resolver.report(
            "NL108",
            f"there is no `{path}.nl` beside this file or among the shipped specs{hint}",
            item.span,
            fix=f'use "{near[0]}"' if near else None,
        )
        return None

    def read(self, path: Path, item: S.Use) -> S.File | None:
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("it is larger than 5 MB")
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            self.resolver.report(
                "NL108", f'`use "{item.path}"` cannot be read: {reason}', item.span
            )
            return None
        assert self.folder is not None
        self.texts[path.relative_to(self.folder).as_posix()] = text
        file, diagnostics = parse(Source(str(path), text))
        self.resolver.retell(diagnostics)
        return file

    # ---- shipped optimizers need no `use` ----

    def optimizer_names(self) -> list[str]:
        return sorted({n.removeprefix("optim/") for n in shipped_names() if n.startswith("optim/")})

    def shipped_optimizer(self, name: str) -> Any:
        """The shipped optimizer of that name, or None."""
        direct = self.shipped_names_in(f"optim/{name}")
        if name in direct:
            return direct[name]
        for other in self.optimizer_names():
            names = self.shipped_names_in(f"optim/{other}") if other != name else {}
            if isinstance(names.get(name), Declared):
                return names[name]
        return POISON if name in self.resolver.unknown else None

    def shipped_names_in(self, path: str) -> dict[str, Any]:
        key = f"shipped {path}"
        if key not in self.cache:
            file = shipped_file(path)
            self.cache[key] = {}
            self.cache[key] = self.names_of(file, None) if file is not None else {}
        return self.cache[key]
