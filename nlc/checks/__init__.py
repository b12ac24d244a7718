"""STAGE: system -> diagnostics: what a resolved system says that cannot be meant.

One short function a code; each finds every such mistake, and none that another code has told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..diagnostics import Diagnostic
from ..system import Box, Flow, System, Term
from . import clocks, gradients, numbers, transfers
from .facts import Facts

Check = Callable[[Facts], Iterator[Diagnostic]]

CHECKS: tuple[Check, ...] = (
    clocks.nl203,
    clocks.nl205,
    clocks.nl206,
    clocks.nl209,
    clocks.nl210,
    transfers.nl301,
    transfers.nl302,
    transfers.nl305,
    transfers.nl306,
    transfers.nl309,
    gradients.nl207,
    gradients.nl208,
    gradients.nl401,
    gradients.nl404,
    numbers.nl501,
    numbers.nl502,
    numbers.nl504,
)


ALONE: tuple[Check, ...] = (
    clocks.nl210,
    gradients.nl207,
    gradients.nl208,
    gradients.nl404,
    numbers.nl502,
    numbers.nl504,
)
"""What can be seen of a memory or an optimizer without a system around it."""


def check(system: System) -> list[Diagnostic]:
    """Every mistake, each once: the same code at the same place says nothing more."""
    return run(CHECKS, Facts(system))


def check_alone(boxes: tuple[Box, ...]) -> list[Diagnostic]:
    """The mistakes of memories and optimizers that no system of their file calls."""
    if not boxes:
        return []
    flow = Flow((), (), Term("const", info=0.0), None)
    return run(ALONE, Facts(System("", {}, (), flow, (), (), boxes, span=boxes[0].span)))


def run(checks: tuple[Check, ...], facts: Facts) -> list[Diagnostic]:
    found: dict[tuple[str, object], Diagnostic] = {}
    for one in checks:
        for diagnostic in one(facts):
            found.setdefault((diagnostic.code, diagnostic.span), diagnostic)
    return list(found.values())
