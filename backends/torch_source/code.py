"""Python text, line by line: what every part of the generator writes into."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Code:
    """Lines with their indentation; names that are taken in the function being written."""

    lines: list[str] = field(default_factory=list)
    depth: int = 0
    taken: set[str] = field(default_factory=set)

    def add(self, *lines: str) -> None:
        self.lines += [("    " * self.depth + line) if line else "" for line in lines]

    def comment(self, text: str) -> None:
        """A comment line, unless it would say the same as the last."""
        line = "    " * self.depth + f"# {text}"
        if line not in self.lines[-3:]:
            self.lines.append(line)

    def docstring(self, lines: list[str]) -> None:
        """Any text, made safe to stand between triple quotes."""
        safe = [line.replace("\\", "\\\\").replace('"', "'").rstrip() for line in lines]
        if len(safe) == 1:
            self.add(f'"""{safe[0]}"""')
        else:
            self.add(f'"""{safe[0]}', *safe[1:], '"""')

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.add(head)
        self.depth += 1
        yield
        self.depth -= 1

    @contextmanager
    def function(self, head: str, names: list[str]) -> Iterator[None]:
        outer, self.taken = self.taken, set(names)
        with self.block(head):
            yield
        self.taken = outer

    def name(self, wish: str) -> str:
        """A Python name not yet used in this function."""
        base = identifier(wish)
        name, n = base, 1
        while name in self.taken:
            n += 1
            name = f"{base}_{n}"
        self.taken.add(name)
        return name

    def names(self, wishes: Iterable[str]) -> list[str]:
        """The same for several: the spec's `x` and `x_` stay two names."""
        return [self.name(wish) for wish in wishes]

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines) + "\n"


RESERVED = {
    "self",
    "s",
    "at",
    "w",
    "F",
    "torch",
    "nn",
    "Tensor",
    "fresh",
    "time",
    "parts",
    "attend",
    "attend_pairs",
    "scan",
    "span",
    "begin",
    "affine",
    "amount",
    "solved",
    "least_squares",
    "Span",
    "Linked",
    "Writes",
    "Any",
    "Model",
    "Optimizer",
    "Part",
    "Stream",
    "float",
    "range",
    "kept",
    "super",
    "MODULE",
    "annotations",
}


def identifier(wish: str) -> str:
    """A checked name: letters, digits and `_` of the spec, never a keyword or a name the file
    itself uses.
    """
    name = (
        "".join(
            c if c.isidentifier() or c.isdigit() else "_" for c in wish.replace(".", "_")
        ).strip("_")
        or "value"
    )
    if not name.isidentifier():
        name = f"v{name}"
    return f"{name}_" if keyword.iskeyword(name) or name in RESERVED else name


def class_name(name: str) -> str:
    words = "".join(part[:1].upper() + part[1:] for part in identifier(name).split("_") if part)
    own = ("Model", "Optimizer", "Part", "Stream", "Any", "Tensor", "F", "")
    return f"{words}_" if words in own or keyword.iskeyword(words) else words


def is_used(name: str, text: str) -> bool:
    """Whether code calls a function, or names a type."""
    return (
        re.search(rf"\b{name}\b" if name[0].isupper() else rf"(?<![\w.]){name}\(", text) is not None
    )


def names_module(name: str, text: str) -> bool:
    """Whether code asks a module for something."""
    return re.search(rf"(?<![\w.]){name}\.", text) is not None
