"""The arrays that are made once with a model, and how each is drawn (2.3.4, 2.11.4).

In: a system. Out: its unnamed weights, one for each round of their loops, and the drawn or learned
start of each state. Every backend uses these names and draws, so that they hold the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from nlc.system import Array, Box, Level, Shape, State, System

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """`name`: the path of its instance. `trained_by`: the level on steps or tasks whose gradient
    it follows; None for a draw that stays as it is. `kind` is that of 2.9.4.
    """

    name: str
    shape: Shape
    draw: str  # "normal" (with `std`), "constant" (with `value`)
    std: float = 0.0
    value: float = 0.0
    trained_by: Level | None = None
    kind: str = "vectors"
    box: Box | None = None  # of a start: whose state it is
    state: State | None = None
    array: str = ""
    axes: int = 0  # how many of the last axes are those of the array itself
    used_in: str = ""  # of a weight: the level in whose body it stands


def parameters(system: System) -> tuple[Parameter, ...]:
    """All of them, weights first, each once."""
    found = {p.name: p for p in weights(system)}
    for box in boxes(system):
        for state in box.states:
            for p in starts(system, box, state):
                found.setdefault(p.name, p)
    return tuple(found.values())


def boxes(system: System) -> list[Box]:
    """Every box with states of its own; those of levels that are never called included."""
    every = [*system.boxes, *(b for level in system.levels for b in level.boxes)]
    return list({id(b): b for b in every if b.kind != "optimizer" and b.level is not None}.values())


def paths(path: str, loops: Shape) -> Iterator[str]:
    """A path for each round of the loops around it."""
    for rounds in product(*(range(n) for n in loops)):
        yield path.format(*rounds)


def lives_on(level: Level | None) -> bool:
    """On steps and tasks there is one state for all, which a run trains (2.4.3)."""
    return level is not None and level.clock.unit in ("step", "task")


def weights(system: System) -> Iterator[Parameter]:
    """The unnamed weights (2.3.1)."""
    owner = system.owner
    for w in system.weights:
        served = owner if owner is not None and lives_on(owner) and owner.line_for(w) else None
        for name in paths(w.path, w.loops):
            used_in = w.box.level.name if w.box is not None and w.box.level is not None else ""
            yield Parameter(
                name,
                w.shape,
                w.draw,
                w.std,
                w.value,
                served,
                w.kind,
                axes=len(w.shape),
                used_in=used_in,
            )


# ---- starts ------------------------------------------------------------------------------------


def mapped(box: Box) -> Shape:
    """The axes a box is mapped over, those of the memories that call it first."""
    return (*(mapped(box.parent) if box.parent is not None else ()), *box.mapped)


def initialised_by(system: System, level: Level | None, state: State | None) -> Level | None:
    """The level whose state the start of this one is, by `transfer init` (2.11.4)."""
    for t in system.transfers:
        if t.kind == "init" and t.target is level and t.speaks_of(state):
            return t.source
    return None


def trainer(system: System, box: Box, state: State) -> Level | None:
    """Who trains a start: the end of its chain of `init`, or its own level on steps."""
    if any(line.rule == "exact" for line in state.rule.learn.values()):
        return None  # what is solved anew has no start (2.11.4)
    source = initialised_by(system, box.level, state)
    seen: set[int] = set()
    while source is not None and not lives_on(source) and id(source) not in seen:
        seen.add(id(source))
        source = initialised_by(system, source, None)
    if lives_on(source):
        return source
    return box.level if lives_on(box.level) and state.rule.learn else None


def start_draw(state: State, array: Array, learned: bool) -> tuple[str, float, float] | None:
    """How a start is drawn, once with the model; None where it is computed anew at each reset."""
    start = state.start
    if start is None:
        drawn = ("normal", array.std, 0.0) if array.std else None
    elif start.op == "normal":
        drawn = ("normal", float(start.info), 0.0)
    elif start.op == "const":
        drawn = ("constant", 0.0, float(start.info)) if learned else None
    else:
        drawn = None
    if drawn is None and learned and (start is None or start.op == "zeros"):
        return ("constant", 0.0, 0.0)
    return drawn


def starts(system: System, box: Box, state: State) -> Iterator[Parameter]:
    if box.exact:
        return
    by = trainer(system, box, state)
    for array in state.form.arrays:
        drawn = start_draw(state, array, by is not None)
        if drawn is None:
            continue
        kind, std, value = drawn
        shape = (*mapped(box), *state.shape(array))
        for path in paths(box.path, box.loops):
            name = start_name(path, state.name, array.name)
            own = len(array.shape)
            yield Parameter(
                name, shape, kind, std, value, by, array_kind(state), box, state, array.name, own
            )


def start_name(path: str, state: str, array: str) -> str:
    return ".".join(part for part in (path, state, array) if part)


def rule_name(array: str, heads: tuple[int, ...], rule: str) -> str:
    """The optimizer of one array, of one head. What it draws has names below this one."""
    return f"{array}{''.join(f'[{i}]' for i in heads)}.{rule}"


def array_kind(state: State) -> str:
    """matrices (they multiply), tables, or vectors (2.9.4)."""
    core = state.form.core.kind
    if core in ("matrix", "mlp", "gated_mlp") or core == "like" and len(state.form.sizes) == 2:
        return "matrices"
    return "tables" if core == "table" else "vectors"


# ---- draws -------------------------------------------------------------------------------------


def draw(parameter: Parameter, seed: int) -> Tensor:
    """Its first numbers: they depend on the seed and the path of the instance only (2.3.4)."""
    import torch

    if parameter.draw == "constant":
        return torch.full(parameter.shape, parameter.value, dtype=torch.float64)
    return parameter.std * noise(parameter.name, parameter.shape, seed)


def noise(name: str, shape: Shape, seed: int) -> Tensor:
    """Numbers that are a function of the name and the seed."""
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


__all__ = ["Parameter", "draw", "noise", "parameters", "paths", "rule_name", "start_name"]
