"""STAGE: system -> diagnostics: what a resolved system says that cannot be meant. One short function a code."""

from __future__ import annotations

from .diagnostics import Diagnostic
from .system import System


def check(system: System) -> list[Diagnostic]:
    """Every mistake, each once."""
    return []
