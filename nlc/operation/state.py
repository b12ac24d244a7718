"""What an operation hands on: where each sequence of a batch stands.

Sequences of one batch may stand at different ticks (`cu_seqlens`); those at one tick are a group.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..backends.runtime import StateError
from ..backends.runtime.state import write_tensors

FORMAT = 1


@dataclass(frozen=True)
class Group:
    """Sequences (`rows` of the batch) that stand at one tick; arrays [rows, ..] by path."""

    rows: tuple[int, ...]
    position: int
    arrays: Mapping[str, Tensor]

    def each(self, change: Callable[[Tensor], Tensor]) -> Group:
        return Group(self.rows, self.position, {k: change(x) for k, x in self.arrays.items()})

    def part(self, places: Sequence[int]) -> Group:
        """Its rows in another order, by their places in it."""
        if list(places) == list(range(len(self.rows))):
            return self
        rows = tuple(self.rows[i] for i in places)
        return Group(rows, self.position, self.each(lambda x: x[list(places)]).arrays)

    def slice(self, first: int, last: int) -> Group:
        """The rows from one place to another."""
        return Group(
            self.rows[first:last], self.position, self.each(lambda x: x[first:last]).arrays
        )


@dataclass(frozen=True)
class MemoryState:
    """Where the sequences of a batch stand after a call: hand it to the next one.

    `memory`, `key`: whose it is, its settings included. A state is not changed by a call: it may
    be continued more than once, and gradients pass through it until `detach`.
    """

    memory: str
    key: str
    groups: tuple[Group, ...]

    @property
    def batch(self) -> int:
        return sum(len(g.rows) for g in self.groups)

    @property
    def positions(self) -> tuple[int, ...]:
        """How many ticks each sequence has seen."""
        found = {row: g.position for g in self.groups for row in g.rows}
        return tuple(found[row] for row in range(self.batch))

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What is kept, by path (`M`, `M.W1`), each [batch, heads, ..] as the spec stores it: a
        matrix from n to m is [m, n].
        """
        order = [row for g in self.groups for row in g.rows]
        places = sorted(range(len(order)), key=order.__getitem__)
        try:
            parts = {k: [g.arrays[k] for g in self.groups] for k in self.groups[0].arrays}
            return {k: torch.cat(x)[places] if len(x) > 1 else x[0] for k, x in parts.items()}
        except RuntimeError:
            raise StateError(
                "these sequences remember pasts of different lengths: see `groups`"
            ) from None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its arrays; None where nothing is kept."""
        return next((x.dtype for x in self.groups[0].arrays.values()), None)

    @property
    def device(self) -> torch.device | None:
        return next((x.device for x in self.groups[0].arrays.values()), None)

    def each(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        return MemoryState(self.memory, self.key, tuple(g.each(change) for g in self.groups))

    def detach(self) -> MemoryState:
        """The same state, a constant to gradients of what comes."""
        return self.each(Tensor.detach)

    def fork(self) -> MemoryState:
        """A copy in memory of its own."""
        return self.each(Tensor.clone)

    def to(self, device: str | torch.device) -> MemoryState:
        return self.each(lambda x: x.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, its JSON in the header; a file that is there is replaced whole."""
        tensors = {f"{i} {k}": x for i, g in enumerate(self.groups) for k, x in g.arrays.items()}
        header = {
            "format": FORMAT,
            "memory": self.memory,
            "key": self.key,
            "groups": [[g.position, list(g.rows)] for g in self.groups],
        }
        write_tensors(Path(path), tensors, header)


torch.serialization.add_safe_globals([Group, MemoryState])  # `torch.load` of a checkpoint with one


def read_state(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> MemoryState:
    """A saved state. Raises StateError with a plain sentence for what is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("nlc", "{}"))
            tensors = {k: file.get_tensor(k).to(device) for k in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StateError(f"there is no state file {path}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise StateError(f"{path} is no state file, or is cut short ({error})") from None
    if header.get("format") != FORMAT or "groups" not in header:
        raise StateError(f"{path} is no state of an operation of this version of nlc")
    return rebuilt(header, tensors)


def rebuilt(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MemoryState:
    groups = []
    for i, (position, rows) in enumerate(header["groups"]):
        own = {k.partition(" ")[2]: x for k, x in tensors.items() if k.startswith(f"{i} ")}
        groups.append(Group(tuple(rows), position, own))
    return MemoryState(header["memory"], header["key"], tuple(groups))


def merged(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Those that have come to one tick as one, rows in order."""
    found: dict[int, list[Group]] = {}
    for g in groups:
        found.setdefault(g.position, []).append(g)
    return tuple(together(found[position]) for position in sorted(found))


def together(groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    arrays = {k: torch.cat([g.arrays[k] for g in groups]) for k in groups[0].arrays}
    rows = tuple(row for g in groups for row in g.rows)
    whole = Group(rows, groups[0].position, arrays)
    return whole.part(sorted(range(len(rows)), key=rows.__getitem__))
