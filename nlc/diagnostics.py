"""What is told to a user: `Diagnostic` values, collected and never raised across a room."""

from __future__ import annotations

from dataclasses import dataclass, field

from .text import Span


@dataclass(frozen=True, slots=True)
class Fix:
    """Replace the text of `span` by `text` (an empty span inserts). Safe to apply by machine."""

    span: Span
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that explains the first."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: what is wrong (`message`, one line), where, and what to do (`help`)."""

    code: str
    message: str
    span: Span
    help: str = ""
    label: str = ""
    others: tuple[Label, ...] = field(default=())
    fix: Fix | None = None
    severity: str = "error"  # "error" or "warning"


class InternalError(Exception):
    """A state that cannot be: a fault of nlc, never of the user."""


class Unsettled(ArithmeticError):
    """An `implicit` step, or an `exact` state, that Newton's method does not find."""

    def __init__(self, rounds: int) -> None:
        super().__init__(
            f"an `implicit` step does not settle in {rounds} rounds of Newton's method: its "
            "objective has a kink, a jump or no least value there; a smaller rate or a smoother "
            "objective (`smooth_abs`) has one"
        )
