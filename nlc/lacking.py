"""What no lowering covers: NL701, raised inside a stage and collected by `lower`."""

from __future__ import annotations

from .diagnostics import Diagnostic
from .text import Span


class NotLowered(Exception):
    """Carries the NL701 of one box to `lower`, which collects them. Its text says what."""

    def __init__(self, why: str, span: Span, help: str = "") -> None:
        super().__init__(why)
        self.diagnostic = Diagnostic(
            "NL701",
            f"{why} is not lowered to PyTorch yet",
            span,
            help=help or "`nlc.reference` runs it, token by token",
        )
