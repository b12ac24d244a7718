"""What memory is meant. In: a shipped name, a file, or a text. Out: its declaration, or what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from .. import syntax as S
from ..driver import SpecError, check_text
from ..files import near_file, why
from ..resolve.files import SHIPPED, shipped_names
from ..text import canonical

# Two names of one rule.
ALIASES = {
    "elastic_net": "elastic",
    "linear": "linear_attention",
    "softmax": "attend",
    "titans_mlp": "titans",
}


@dataclass(frozen=True)
class Declaration:
    """One memory, and the text of its file without the file's own system, if it has one."""

    name: str
    text: str
    file: str = field(compare=False)
    folder: Path | None
    node: S.Memory = field(compare=False, repr=False)

    @property
    def streams(self) -> tuple[S.Param, ...]:
        return tuple(p for p in self.node.params if p.default is None)

    @property
    def settings(self) -> tuple[S.Param, ...]:
        return tuple(p for p in self.node.params if p.default is not None)

    def param(self, name: str) -> S.Param | None:
        """By the name of a keyword: `lambda_` is `lambda`, `η` is `eta`."""
        wanted = canonical(name)
        for p in self.node.params:
            if p.name.id in (wanted, wanted.removesuffix("_")):
                return p
        return None

    @property
    def exact(self) -> bool:
        """Whether a state of its own is solved anew at each read."""
        return any(
            rule.id == "exact"
            for node in learn_lines(self.node.body)
            for rule in [node.rule.function if isinstance(node.rule, S.Call) else node.rule]
            if isinstance(rule, S.Name)
        )

    def __str__(self) -> str:
        return f"{self.name}({', '.join(p.span.text for p in self.node.params)})"


def learn_lines(block: S.Block) -> Iterator[S.Learn]:
    for node in block.statements:
        if isinstance(node, S.Learn):
            yield node
        elif isinstance(node, S.State) and node.body is not None:
            yield from learn_lines(node.body)


def names() -> tuple[str, ...]:
    """Every name that `nlc.memory` knows without a file."""
    own = [n.removeprefix("memory/") for n in shipped_names() if n.startswith("memory/")]
    return tuple(sorted({*own, *ALIASES}))


def declaration(spec: str | Path, name: str | None = None) -> Declaration:
    """A memory by shipped name, by file, or in a text that begins with `nl 1`.

    `name`: which one, where a file declares several and none is named as the file.
    Raises ValueError for an unknown name, TypeError for what is no name, OSError for a file that is
    not there or no text, and SpecError with every mistake of the text.
    """
    if not isinstance(spec, str | Path):
        raise TypeError(
            f"a memory is a shipped name, a file or a text, and this is a {type(spec).__name__}"
        )
    if isinstance(spec, str) and "\n" in spec:
        return chosen(spec, "<text>", None, "", name)
    path = Path(spec)
    if path.suffix == ".nl":
        return chosen(text_of(path), str(path), path.parent, path.stem, name)
    return shipped(str(spec).removeprefix("memory/"))


def text_of(path: Path) -> str:
    """Raises OSError with a sentence in place of a number."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 text (byte {error.start + 1})") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}.{near_file(path)}") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {why(error)}") from None


@lru_cache(maxsize=256)
def shipped(name: str) -> Declaration:
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(names())}"
        raise ValueError(f"there is no memory `{name}`{hint}")
    stem = ALIASES.get(name, name)
    text = (SHIPPED / f"memory/{stem}.nl").read_text(encoding="utf-8")
    return chosen(text, f"memory/{stem}.nl", None, stem, None)


def chosen(text: str, file: str, folder: Path | None, stem: str, name: str | None) -> Declaration:
    """The memory of that name, the only one, or the one that is named as its file."""
    checked = check_text(text, file, folder)
    if checked.errors or checked.syntax is None:
        raise SpecError(checked.diagnostics)
    found = {m.name.id: m for m in checked.syntax.items if isinstance(m, S.Memory)}
    wanted = canonical(name) if name is not None else stem if stem in found else None
    if wanted is None and len(found) == 1:
        (wanted,) = found
    if wanted not in found:
        has = ", ".join(found) or "none"
        ask = f"has no memory `{name}`" if name is not None else "declares several memories"
        raise ValueError(f"{file} {ask if found else 'declares no memory'}; it has {has}")
    return Declaration(wanted, without_system(checked.syntax, text), file, folder, found[wanted])


def without_system(file: S.File, text: str) -> str:
    """Blanks in its place, so that every line keeps its number."""
    for item in file.items:
        if isinstance(item, S.System):
            a, b = item.span.start, item.span.end
            blank = "".join(c if c == "\n" else " " for c in text[a:b])
            text = text[:a] + blank + text[b:]
    return text
