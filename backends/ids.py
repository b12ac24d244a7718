"""Inputs: their shapes, and of those that look up a row of how many; sentences for wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nlc.system import System, Term, line_terms


def looked_up(system: System) -> Iterator[tuple[Term, int]]:
    """What the flow looks rows up by, or compares with them, and how many rows there are."""
    flow = system.flow
    roots = [*line_terms(flow.lines), flow.result, *([flow.loss] if flow.loss is not None else [])]
    for term in (t for root in roots for t in root.walk()):
        if term.op == "embed":
            yield term.args[0], term.args[1].shape[0]
        elif term.op == "cross_entropy":
            yield term.args[1], term.args[0].shape[-1]


def ids_of(system: System) -> dict[str, int]:
    """The inputs of the flow that are ids as they are given, each with how many rows its tables
    have at least.
    """
    found: dict[str, int] = {}
    for term, rows in looked_up(system):
        ids = term.args[0] if term.op == "next" else term
        if ids.op == "input":
            found[ids.info] = min(rows, found.get(ids.info, rows))
    return found


def check_input(name: str, shape: tuple[int, ...], x: Any) -> None:
    """A sentence for what is no [batch, time, *shape]."""
    given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
    if isinstance(x, Tensor) and x.is_complex():
        raise ValueError(f"`{name}` holds {x.dtype}, and real numbers are wanted")
    if not isinstance(x, Tensor) or x.ndim != 2 + len(shape) or tuple(x.shape[2:]) != shape:
        wanted = "[" + ", ".join(["batch", "time", *map(str, shape)]) + "]"
        raise ValueError(f"`{name}` is {wanted} and was given {given}")


def check_ids(name: str, ids: Tensor, rows: int) -> None:
    """A sentence for an id that no table has. On a GPU it would wait for the numbers: not there."""
    first = missing(ids, rows)
    if first is not None:
        raise ValueError(f"`{name}` has the id {first}, and its rows are 0 to {rows - 1}")


def places(ids: Tensor, rows: int) -> Tensor:
    """Numbers of rows, as integers; torch would take -1 for the last. Errors: as `check_ids`."""
    first = missing(ids, rows)
    if first is not None:
        raise ValueError(f"row {first:g} is asked for, of rows 0 to {rows - 1}")
    return ids.long()


def missing(ids: Tensor, rows: int) -> int | float | None:
    """The first id that is none of the rows."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return None
    wrong = (ids <= -1) | (ids >= rows)
    return ids[wrong][0].item() if bool(wrong.any()) else None


__all__ = ["check_ids", "check_input", "ids_of", "looked_up", "places"]
