"""Specs as runs need them. In: a path or a shipped name. Out: the checked spec, and its files.

A run keeps the files of its spec, so that it can be loaded again when the originals have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nlc

from .driver import Spec, load
from .system import System


@dataclass(frozen=True)
class Loaded:
    """`files`: texts by the path they get in a run's folder; `main` is the system's own."""

    spec: Spec
    main: str
    files: Mapping[str, str]

    @property
    def system(self) -> System:
        return self.spec.system


def load_spec(name: str, settings: Mapping[str, Any]) -> Loaded:
    """A checked spec; raises `nlc.SpecError` with what is wrong in it."""
    spec = load(name, **settings)
    return Loaded(spec, Path(spec.name).name, spec.files)


def compile_spec(loaded: Loaded, device: Any, seed: int) -> Any:
    return nlc.compile(loaded.spec, device=str(device), seed=seed)


def load_state(path: Path, model: Any) -> Any:
    """What a model remembered, from a file."""
    return nlc.load_state(path, model)
