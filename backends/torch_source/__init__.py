"""BACKEND: plan -> the Python source of a module, and the module itself."""

from __future__ import annotations

import linecache
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlc.lacking import NotLowered
from nlc.lower import lower
from nlc.plan import Plan

from ..runtime import Model, load_state
from .module import source, spec_hash

if TYPE_CHECKING:
    from nlc.driver import Spec


def plan_of(spec: Spec) -> Plan:
    """The lowering of every box; raises SpecError with each part that has none yet (NL701)."""
    from nlc.driver import SpecError

    plan, told = lower(spec.system)
    if plan is None:
        raise SpecError(tuple(told))
    return plan


def build(spec: Spec) -> str:
    """The generated Python file of a spec, as text."""
    from nlc.driver import SpecError

    plan = plan_of(spec)
    try:
        return source(plan, spec.text)
    except NotLowered as error:
        raise SpecError((error.diagnostic,)) from None


def module_class(text: str, name: str) -> type[Model]:
    """The class that a generated text defines; tracebacks show its lines."""
    filename = f"<nlc {name} {abs(hash(text)):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = types.ModuleType(f"nlc_generated_{name}_{abs(hash(text)):x}")
    module.__file__ = filename
    sys.modules[module.__name__] = module
    exec(compile_text(text, filename), module.__dict__)
    made: type[Model] = module.__dict__["MODULE"]
    made.SOURCE = text
    return made


def compile_text(text: str, filename: str) -> Any:
    import builtins

    return builtins.compile(text, filename, "exec", dont_inherit=True)


def compile(
    spec: Spec | str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **settings: Any,
) -> Model:
    """A checked spec (or a path, or a shipped name) as an `nn.Module`: `outputs, state =
    model(tokens, state)`.

    settings: of a path or a name; a loaded spec has its own. Raises TypeError where both are given,
    and SpecError with every mistake, or with what is not lowered yet (NL701).
    """
    from nlc.driver import load

    if isinstance(spec, str | Path):
        spec = load(spec, **settings)
    elif settings:
        given = ", ".join(f"{k} = {v!r}" for k, v in settings.items())
        raise TypeError(
            f"{given} cannot be set in a loaded spec, which has its settings: "
            "give them to `nlc.load`, or a path or a name to `nlc.compile`"
        )
    made = module_class(build(spec), spec.system.name)
    return made(seed=seed, device=device, dtype=dtype)


__all__ = ["Model", "build", "compile", "load_state", "source", "spec_hash"]
