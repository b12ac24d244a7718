"""nlc: a compiler for nested learning systems.

spec = nlc.load("hope", width=128)
model = nlc.compile(spec)
logits, state = model(tokens)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.reference import reference as reference
    from .backends.torch_source import compile as compile
    from .backends.torch_source import load_state as load_state
    from .driver import Spec as Spec
    from .driver import SpecError as SpecError
    from .driver import load as load
    from .operation import memory as memory
    from .optimizing import optimizer as optimizer
    from .weights import start_from as start_from

# Imported when asked for: `import nlc` costs nothing, and `nlc check` never sees torch.
_HOMES = {
    "load": "driver", "Spec": "driver", "SpecError": "driver", "compile": "backends.torch_source",
    "load_state": "backends.torch_source", "memory": "operation",
    "optimizer": "optimizing", "reference": "backends.reference", "start_from": "weights",
}  # fmt: skip

__all__ = [
    "Spec",
    "SpecError",
    "compile",
    "load",
    "load_state",
    "memory",
    "optimizer",
    "reference",
    "start_from",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nlc' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
