"""What nlc is measured on: a memory as a layer, and systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import syntax as S
from ..backends.runtime import Model, State
from ..backends.torch_source import compile as compile_spec
from ..driver import Spec, SpecError, load, locate
from ..files import CallError, read_text
from ..parse import parse
from ..text import Source
from ..verify.streams import Streams, random_streams
from .peers import CHUNK

# How a layer makes the inputs of its memory that are numbers.
GATES = {
    "alpha": "sigmoid(linear(z, {}) + 8)",
    "eta": "1e-2 * sigmoid(linear(z, {}))",
}
GATE = "sigmoid(linear(z, {}))"
KEYS, VALUES = ("q", "k", "p", "r", "kappa", "B", "C"), ("v", "x")
EXACT = {"titans": ("titans_exact",)}  # the same rule with nothing frozen
READ_GATED = {"titans", "titans_exact"}  # as the peer's layer does

LAYER = """nl 1
use "memory/{name}"
system {name}_layer(width = 128, heads = 4) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
  level layer(u) every token {{
    z = norm(u)
{inputs}
    read linear(join({gate}{name}({arguments})), width)
  }}
  transfer backprop layer -> training
{starts}  flow(u[width]) {{
    y = layer(u)
    loss = sum(y^2)
    return y
  }}
}}
"""


def layer_text(name: str) -> str:
    """A spec of the memory as a layer: projections in, one out, gates for its numbers."""
    memory = memory_named(name)
    given = [p for p in memory.params if p.default is None]
    lines = [f"    {p.name.id} = {input_text(name, p)}" for p in given]
    gate = ""
    if name in READ_GATED:
        gate = "column(sigmoid(linear(z, heads))) * "
    words = [p.name.id for p in given]
    has_chunk = any(p.name.id == "chunk" for p in memory.params)
    words += [f"chunk = {CHUNK}"] if has_chunk else []
    starts = "  transfer init training -> layer\n" if has_chunk else ""
    return LAYER.format(
        name=name, inputs="\n".join(lines), gate=gate, arguments=", ".join(words), starts=starts
    )


def input_text(memory: str, param: S.Param) -> str:
    name = param.name.id
    sizes = [d.id if isinstance(d, S.Name) else "" for d in param.dims]
    if name in KEYS:
        return "unit(split(linear(z, width), heads))"
    if name in VALUES:
        return "split(linear(z, width), heads)"
    gate = GATES.get(name, GATE)
    if not sizes:
        return gate.format("heads")
    if sizes in (["n"], ["m"]):
        return f"split({gate.format('width')}, heads)"
    raise CallError(
        f"No layer is made of memory {memory}: its input {name} is one of its own kind."
    )


def memory_named(name: str) -> S.Memory:
    path = locate(f"memory/{name}")
    if not path.is_file():
        raise CallError(f"There is no shipped memory {name}.")
    file, _ = parse(Source(path.name, read_text(path)))
    found = [i for i in file.items if isinstance(i, S.Memory)] if file is not None else []
    if not found:
        raise CallError(f"{path} holds no memory.")
    return found[-1]


# ---- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where things run."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def module(self, spec: Spec) -> Model:
        return compile_spec(spec, device=self.device, dtype=self.dtype)

    def put(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)

    def streams(self, spec: Spec, batch: int, time: int) -> Streams:
        return tuple(map(self.put, random_streams(spec.system, batch, time)))


def layer_spec(name: str, width: int, heads: int) -> Spec:
    try:
        return load(layer_text(name), width=width, heads=heads)
    except SpecError as error:
        said = error.diagnostics[0].message
        raise CallError(f"No layer is made of memory {name}: {said}.") from None


def system_spec(name: str, settings: dict[str, Any], wanted: dict[str, Any]) -> Spec:
    """The spec with `settings`, and those of `wanted` that it has."""
    has = load(name, **settings).system.settings
    return load(
        name, **settings, **{k: v for k, v in wanted.items() if k in has and k not in settings}
    )


def layer_step(layer: Callable[[Tensor], Tensor], weights: Any, x: Tensor) -> Callable[[], None]:
    """Forward and backward, to the weights and to x [batch, time, width]."""
    leaves = [*weights, x.requires_grad_()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(x).square().mean().backward()  # type: ignore[no-untyped-call]

    return step


def system_step(model: Model, streams: Streams) -> Callable[[], None]:
    """Forward and backward of the mean loss; of the answers' mean square, where there is none."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if model.HAS_LOSS:
            losses, labelled, _ = model.losses(*streams)
            loss = losses[labelled].mean()
        else:
            loss = model(*streams)[0].square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def forward(model: Model, streams: Streams, state: State | None = None) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        model(*streams, state=state)

    return step


def decoded(model: Model, streams: Streams, state: State) -> Callable[[], None]:
    """A call for each token, the state carried on."""

    @torch.no_grad()
    def step() -> None:
        at = state
        for t in range(streams[0].shape[1]):
            _, at = model(*(x[:, t : t + 1] for x in streams), state=at)

    return step


@torch.no_grad()
def after(model: Model, streams: Streams, state: State | None, piece: int = 512) -> State:
    """The state after these tokens, read in calls of `piece`."""
    for start in range(0, streams[0].shape[1], piece):
        _, state = model(*(x[:, start : start + piece] for x in streams), state=state)
    assert state is not None
    return state


def bytes_of(state: State) -> int:
    """Of all that a stream keeps."""
    return sum(x.numel() * x.element_size() for x in state.arrays.values())
