"""Which rules are meant. In: names, files, texts and `learn` lines. Out: lines, each with the file
whose names it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import syntax as S
from ..driver import Checked, SpecError, check_text
from ..operation.declared import without_system
from ..parse import parse
from ..resolve.files import SHIPPED, shipped_names
from ..text import Source, canonical

LINE = """{text}

system nothing() {{
  level training every step {{
    objective loss
    {line}
  }}
  flow(x) {{
    loss = x
    return x
  }}
}}
"""


@dataclass(frozen=True)
class Line:
    """One `learn` line. `text`: of its file, without a system. `names`: numbers that it sees beside
    the declarations of that file.
    """

    rule: str
    said: str
    text: str
    folder: Path | None
    names: tuple[tuple[str, Any], ...] = ()
    file: S.File = field(compare=False, repr=False, kw_only=True)
    node: S.Learn = field(compare=False, repr=False, kw_only=True)
    params: tuple[S.Param, ...] = field(compare=False, repr=False, kw_only=True)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(p.span.text for p in self.node.targets)

    @property
    def settings(self) -> dict[str, float | None]:
        """Those that the line leaves open, with their defaults; None is a default that is no
        number. `steps` on a line is the language's own (2.9.4).
        """
        closed = {*self.fixed, "steps"}
        return {
            p.name.id: number(p.default)
            for p in self.params
            if p.default is not None and p.name.id not in closed
        }

    @property
    def fixed(self) -> tuple[str, ...]:
        """Those that it sets."""
        return tuple(a.name.id for a in self.arguments if a.name is not None)

    @property
    def arguments(self) -> tuple[S.Argument, ...]:
        return call_of(self.node)


def call_of(node: S.Learn) -> tuple[S.Argument, ...]:
    return node.rule.arguments if isinstance(node.rule, S.Call) else ()


def number(expr: S.Expr | None) -> float | None:
    """A default that is written as a number."""
    if isinstance(expr, S.Number):
        return expr.value
    if isinstance(expr, S.Name) and expr.id == "infinity":
        return float("inf")
    if isinstance(expr, S.Minus):
        inner = number(expr.value)
        return None if inner is None else -inner
    return None


def names() -> tuple[str, ...]:
    """Every name that `nlc.optimizer` knows without a file."""
    return tuple(sorted({o.name.id for _, o in shipped()}))


@lru_cache(maxsize=1)
def shipped() -> tuple[tuple[str, S.Optimizer], ...]:
    """The optimizers that ship, each with its file."""
    found = []
    for name in shipped_names():
        if name.startswith("optim/"):
            file, _ = parse(Source(f"{name}.nl", read(name)))
            items = file.items if file is not None else ()
            found += [(name, i) for i in items if isinstance(i, S.Optimizer)]
    return tuple(found)


def read(name: str) -> str:
    return (SHIPPED / f"{name}.nl").read_text(encoding="utf-8")


def lines(spec: str | Path) -> tuple[Line, ...]:
    """The lines that one argument of `nlc.optimizer` means.

    Raises ValueError for an unknown name, OSError for a file that is not there, and SpecError with
    every mistake of a text.
    """
    said = str(spec)
    if said.strip().startswith("learn "):
        return tuple(written('nl 1\nuse "schedules"\n', None, said))
    if "\n" in said:
        return of_text(said, "<text>", None)
    path = Path(spec)
    if path.suffix == ".nl":
        return of_text(path.read_text(encoding="utf-8"), str(path), path.parent, path.stem)
    return of_name(said.removeprefix("optim/"))


def of_name(name: str) -> tuple[Line, ...]:
    """A shipped optimizer, or the lines of a shipped system."""
    file = next((f for f, o in shipped() if o.name.id == canonical(name)), None)
    if file is not None:
        return of_text(read(file), f"{file}.nl", None, canonical(name))
    if name in shipped_names() and "/" not in name:
        return of_text(read(name), f"{name}.nl", None, name)
    near = get_close_matches(name, names(), n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(names())}"
    raise ValueError(f"there is no optimizer `{name}`{hint}")


def of_text(text: str, file: str, folder: Path | None, name: str = "") -> tuple[Line, ...]:
    """The optimizer of that name, or the only one; or what a system's weights learn by."""
    checked = check_text(text, file, folder)
    if checked.errors or checked.syntax is None:
        raise SpecError(checked.diagnostics)
    found = {o.name.id: o for o in checked.syntax.items if isinstance(o, S.Optimizer)}
    if checked.system is not None and name not in found:
        return of_system(checked, text, file, folder)
    wanted = name if name in found else next(iter(found), "") if len(found) == 1 else ""
    if not wanted:
        has = ", ".join(found) or "none"
        raise ValueError(
            f"{file} declares {'several optimizers' if found else 'no optimizer'} ({has}); say "
            f"which: `learn {next(iter(found), 'adam')}()` in a level on steps"
        )
    own = without_system(checked.syntax, text)
    return tuple(written(own, folder, f"learn {wanted}()", name=file))


def of_system(checked: Checked, text: str, file: str, folder: Path | None) -> tuple[Line, ...]:
    """The `learn` lines of the level that owns the unnamed weights."""
    assert checked.system is not None and checked.syntax is not None
    owner = checked.system.owner
    if owner is None or not owner.learn:
        raise ValueError(f"system `{checked.system.name}` has no weights that learn")
    if (owner.clock.unit, owner.clock.period) != ("step", 1) or owner.retain is not None:
        raise ValueError(
            f"`{owner.name}` is {owner.clock}, or retains: that is of its system, which "
            "`nlc.compile` makes; here every step is one"
        )
    settings = tuple(
        (n, v) for n, v in checked.system.settings.items() if isinstance(v, int | float)
    )
    own = without_system(checked.syntax, text)
    said = "\n    ".join(line.span.text for line in owner.learn)
    return tuple(written(own, folder, said, settings, file))


def written(
    text: str,
    folder: Path | None,
    said: str,
    known: tuple[tuple[str, Any], ...] = (),
    name: str = "<text>",
) -> Iterator[Line]:
    """`learn` lines as they would stand in a level."""
    whole = LINE.format(text=text.rstrip(), line=said)
    file, told = parse(Source(name, whole))
    if file is None or told:
        raise SpecError(tuple(told))
    system = next(i for i in file.items if isinstance(i, S.System))
    level = next(n for n in system.body.statements if isinstance(n, S.Level))
    for node in level.body.statements:
        if isinstance(node, S.Learn):
            rule = rule_name(node)
            if any(a.name is not None and a.name.id == "steps" for a in call_of(node)):
                raise ValueError(
                    f"`{node.span.text}` makes several steps on the same data, which only the "
                    "state of a system can: an optimizer in Python is given one gradient a step"
                )
            params = declared(file, folder, rule).params
            yield Line(
                rule, node.span.text, text, folder, known, file=file, node=node, params=params
            )
        elif not isinstance(node, S.Objective):
            raise ValueError(f"`{node.span.text}` is no `learn` line")


def rule_name(node: S.Learn) -> str:
    rule = node.rule.function if isinstance(node.rule, S.Call) else node.rule
    if not isinstance(rule, S.Name):
        raise ValueError(f"`{node.span.text}` names no optimizer")
    return rule.id


def declared(file: S.File, folder: Path | None, name: str) -> S.Optimizer:
    """The optimizer of that name: of the file, of what it uses, or shipped."""
    from ..resolve.resolver import Resolver

    r = Resolver(folder, None)
    r.source = file.span.source
    found: Mapping[str, Any] = r.files.names_of(file, folder)
    one = found.get(name) or r.files.shipped_optimizer(name)
    node = getattr(one, "node", None)
    if isinstance(node, S.Optimizer):
        return node
    near = get_close_matches(name, [*found, *names()], n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(names())}"
    raise ValueError(f"there is no optimizer `{name}`{hint}")
