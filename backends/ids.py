"""Inputs that look up a row: of how many, and a sentence for one that is not there."""

from __future__ import annotations

from collections.abc import Iterator

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


def check_ids(name: str, ids: Tensor, rows: int) -> None:
    """A sentence for an id that no table has. On a GPU it would wait for the numbers: not there."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        return
    wrong = (ids <= -1) | (ids >= rows)
    if bool(wrong.any()):
        first = ids[wrong][0].item()
        raise ValueError(f"`{name}` has the id {first}, and its rows are 0 to {rows - 1}")


__all__ = ["check_ids", "ids_of", "looked_up"]
