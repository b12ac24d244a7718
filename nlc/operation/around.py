"""The small system around a memory. In: a declaration and the shapes it is called with. Out: a
checked spec, and the module it compiles to.

The mathematics is the spec's alone: the system hands its streams on, one level calls the memory
every token (2.13), and a level on steps may look through all that was written (2.11).
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from .. import syntax as S
from ..diagnostics import Diagnostic
from ..driver import Spec, SpecError, check_text
from ..render import render_text
from ..system import Shape, System
from .declared import Declaration

if TYPE_CHECKING:
    import torch

    from ..backends.runtime import Model

Number = float | tuple["Number", ...]


@dataclass(frozen=True)
class Call:
    """How a memory is called: what a compiled module depends on.

    `mapped`: the axes between time and a stream's own, as heads. `streams`: the own axes of each,
    settings that are given as tensors among them. `numbers`: settings, compiled in.
    """

    memory: Declaration
    mapped: Shape
    streams: tuple[tuple[str, Shape], ...]
    numbers: tuple[tuple[str, Number], ...]

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Of the level on steps, of the level, of its answer, and of the system."""
        return names_beside(self.memory.text, self.memory.name)

    @property
    def prefix(self) -> str:
        """What the paths of its states begin with."""
        return f"{self.names[1]}.{self.memory.name}."

    def __str__(self) -> str:
        """The memory with the settings of this call."""
        given = dict(self.numbers)
        words = [
            f"{p.name.id} = {literal(given[p.name.id])}" if p.name.id in given else p.span.text
            for p in self.memory.node.params
        ]
        return f"memory {self.memory.name}({', '.join(words)})"

    def text(self) -> str:
        """The memory's file, and the system after it."""
        training, level, y, system = self.names
        names = ", ".join(n for n, _ in self.streams)
        inputs = ", ".join(f"{n}{sizes((*self.mapped, *own))}" for n, own in self.streams)
        given = [f"{n} = {n}" for n, _ in self.streams]
        given += [f"{n} = {literal(value)}" for n, value in self.numbers]
        clock = "always" if self.memory.exact else "every token"
        return f"""{self.memory.text.rstrip()}

system {system}() {{
  level {training} every step {{ objective loss; learn gradient() }}
  level {level}({names}) {clock} {{ read {self.memory.name}({", ".join(given)}) }}
  transfer backprop {level} -> {training}
  flow({inputs}) {{
    {y} = {level}({names})
    loss = sum({y})
    return {y}
  }}
}}
"""


@lru_cache(maxsize=256)
def names_beside(text: str, memory: str) -> tuple[str, str, str, str]:
    """Names that the text has not."""
    taken = set(re.findall(r"\w+", text))

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        return name

    return free("training"), free("op"), free("y"), free(f"{memory}_operation")


def sizes(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else ""


def literal(value: Number) -> str:
    """A number, or a list of numbers, as the language writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    if value == float("inf"):
        return "infinity"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


@lru_cache(maxsize=256)
def spec_of(call: Call) -> Spec:
    """The checked system.

    Raises SpecError for a memory that cannot be an operation (NL105), and ValueError for sizes
    that do not fit it.
    """
    memory = call.memory
    checked = check_text(call.text(), memory.file, memory.folder)
    if checked.system is not None:
        told = tuple(refused(memory, checked.system))
        if told:
            raise SpecError(told)
    for d in checked.errors:
        if d.code == "NL606":  # the setting itself is wrong, whatever the sizes
            raise ValueError(f"{d.message} (memory `{memory.name}`)")
    if checked.errors or checked.system is None:
        own = ", ".join(f"{n} {list(s) if s else 'a number'}" for n, s in call.streams)
        numbers = "".join(f", {n} = {literal(x)}" for n, x in call.numbers)
        raise ValueError(
            f"what is given does not fit `{memory.name}`: {own}{numbers}, for each of heads "
            f"{list(call.mapped)} and tick\n{render_text(checked.errors)}"
        )
    check_answer(call, checked.system)
    return Spec(checked)


def check_answer(call: Call, system: System) -> None:
    """A gate that makes the answer of another shape than one number would is no gate: it would be
    spread over what it was not meant for.
    """
    open_ = [p.name.id for p in (*call.memory.streams, *call.memory.settings) if not p.dims]
    for i, (name, own) in enumerate(call.streams):
        if name not in open_ or not own:
            continue
        streams = (*call.streams[:i], (name, ()), *call.streams[i + 1 :])
        try:
            plain = spec_of(replace(call, streams=streams)).system.flow.result.shape
        except ValueError:  # one number does not fit
            continue
        found = system.flow.result.shape
        if found != plain:
            heads = len(call.mapped)
            raise ValueError(
                f"what is given does not fit `{call.memory.name}`: with `{name}` "
                f"{list(own)} it would answer {list(found[heads:])} in place of "
                f"{list(plain[heads:])} for each head and tick"
            )


def refused(memory: Declaration, system: System) -> list[Diagnostic]:
    """What ties it to a model: weights of its own, the model's loss (2.13)."""
    why = "so it cannot be a functional op"
    told = [
        Diagnostic(
            "NL105",
            f"memory `{memory.name}` makes weights of its own (`{w.maker}`), {why}",
            w.span,
            "pass them in, or use it in a system",
        )
        for w in system.weights
    ]
    told += [
        Diagnostic(
            "NL105",
            f"memory `{memory.name}` learns the model's own loss, {why}",
            s.span,
            "give it an objective of its own, or use it in a system",
        )
        for box in system.boxes
        for s in box.states
        if s.rule.uses_loss
    ]
    return list(dict.fromkeys(told))


def example(memory: Declaration) -> Call:
    """A call at sizes that stand for all, to find early what cannot be an operation."""
    known: dict[str, int] = {}

    def size(dim: S.Expr) -> int:
        if isinstance(dim, S.Name):
            return known.setdefault(dim.id, 8)
        return int(dim.value) if isinstance(dim, S.Number) else 8

    streams = tuple((p.name.id, tuple(map(size, p.dims))) for p in memory.streams)
    return Call(memory, (), streams, ())


def check_operation(memory: Declaration) -> None:
    """Raises SpecError (NL105) for what no sizes would make an operation."""
    with suppress(ValueError):
        spec_of(example(memory))


@lru_cache(maxsize=256)
def module_of(call: Call) -> type[Model]:
    """Raises SpecError with what is not lowered yet (NL701)."""
    from ..backends.torch_source import build, module_class

    return module_class(build(spec_of(call)), call.memory.name)


@lru_cache(maxsize=256)
def is_scan(call: Call) -> bool:
    """Whether all that it keeps is one matrix, made by one scan of its streams."""
    from ..backends.torch_source import plan_of

    spec = spec_of(call)
    plan = plan_of(spec)
    return [plan.of(box).kind for box in spec.system.boxes if box.states] == ["recurrence"]


@lru_cache(maxsize=256)
def model_of(call: Call, dtype: torch.dtype, device: torch.device, seed: int) -> Model:
    """A module of its own for each place, which a module without arrays would not know."""
    import torch

    base = module_of(call)
    made = type(base.__name__, (base,), {"dtype": dtype, "device": device})
    # of the first call, whatever looks on: inference_mode, or a transform of torch.func
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        model: Model = made(seed=seed, device=device, dtype=dtype)
    for weight in model.parameters():
        weight.requires_grad = False  # the method is not allowed under such a transform
    return model
