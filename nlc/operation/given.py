"""What an operation is given. In: the arguments of a call. Out: streams `[batch, time, ..]`,
numbers and sizes that fit each other, or an error that names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, reduce
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import syntax as S
from .around import Call, Number
from .declared import Declaration


@dataclass
class Given:
    """Arguments by name, as they fit. `sizes`: of the names in brackets."""

    memory: Declaration
    tensors: dict[str, Tensor]
    scalars: dict[str, float]  # streams that are the same at every tick
    numbers: dict[str, Number]
    batch: int = 0
    time: int = 0
    mapped: tuple[int, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    @cached_property
    def call(self) -> Call:
        """What a module is compiled for; asked when all of it is here."""
        lead = 2 + len(self.mapped)
        shapes = {n: tuple(x.shape[lead:]) for n, x in self.tensors.items()}
        order = [p.name.id for p in self.memory.node.params]
        streams = tuple((n, shapes.get(n, ())) for n in order if n in shapes or n in self.scalars)
        return Call(self.memory, self.mapped, streams, tuple(sorted(self.numbers.items())))

    @property
    def dtype(self) -> torch.dtype:
        """What a state is kept in: float32, or wider if a stream is."""
        return reduce(torch.promote_types, (x.dtype for x in self.tensors.values()), torch.float32)

    @property
    def answer(self) -> torch.dtype:
        """What is answered in: the type of the first stream."""
        return next(self.tensors[p.name.id].dtype for p in self.params)

    @property
    def params(self) -> list[S.Param]:
        """Those that are tensors, in declared order."""
        return [p for p in self.memory.node.params if p.name.id in self.tensors]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def streams(self, as_given: bool = False) -> list[Tensor]:
        """In the order of the call, in the type of the state; with `as_given` those that have sizes
        of their own stay in the type that they are given in.
        """
        dtype, lead = self.dtype, (self.batch, self.time, *self.mapped)
        kept = {p.name.id for p in self.params if p.dims} if as_given else set()
        every = {
            n: torch.full((), x, dtype=dtype, device=self.device).expand(lead)
            for n, x in self.scalars.items()
        } | {n: x if n in kept else x.to(dtype) for n, x in self.tensors.items()}
        return [every[n] for n, _ in self.call.streams]


def given(memory: Declaration, args: Sequence[Any], named: Mapping[str, Any]) -> Given:
    """The arguments of a call, checked against each other.

    Raises TypeError for an argument that is missing, unknown, given twice or of a wrong kind, and
    ValueError for a shape that does not fit.
    """
    made = Given(memory, {}, {}, {})
    for p, value in arguments(memory, args, named):
        accept(made, p, value)
    fit(made)
    return made


# ---- arguments to names --------------------------------------------------------------------------


def arguments(
    memory: Declaration, args: Sequence[Any], named: Mapping[str, Any]
) -> list[tuple[S.Param, Any]]:
    streams = memory.streams
    if len(args) > len(streams):
        takes = ", ".join(p.name.id for p in streams)
        raise TypeError(
            f"`{memory.name}` takes {len(streams)} streams in order ({takes}) and is given "
            f"{len(args)}; settings are given by name"
        )
    found = list(zip(streams, args, strict=False))
    for name, value in named.items():
        p = memory.param(name)
        if p is None:
            raise TypeError(unknown(memory, name))
        if any(q is p for q, _ in found):
            raise TypeError(f"`{p.name.id}` is given twice")
        found.append((p, value))
    missing = [p for p in streams if all(p is not q for q, _ in found)]
    if missing:
        p = missing[0]
        raise TypeError(f"`{memory.name}` needs `{p.name.id}`, {wanted(p)}: it is {memory}")
    return found


def unknown(memory: Declaration, name: str) -> str:
    known = [p.name.id for p in memory.node.params]
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f": it is {memory}"
    return f"`{memory.name}` has no argument `{name}`{hint}"


def accept(made: Given, p: S.Param, value: Any) -> None:
    name = p.name.id
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"`{name}` holds {value.dtype}, and numbers with a point are wanted")
        if value.layout is not torch.strided:
            raise TypeError(f"`{name}` is sparse, and a dense tensor is wanted: `to_dense()`")
        made.tensors[name] = value
    elif p.default is not None:
        made.numbers[name] = setting(name, value)
    elif p.dims or not is_number(value):
        raise TypeError(f"`{name}` is a tensor, {wanted(p)}, and was given {told(value)}")
    elif not math.isfinite(value):
        raise ValueError(f"`{name}` is one number for every tick, and {value} would spoil them all")
    else:
        made.scalars[name] = float(value)


def setting(name: str, value: Any) -> Number:
    if isinstance(value, list | tuple):
        return tuple(setting(name, v) for v in value)
    if not is_number(value) or math.isnan(value):
        raise TypeError(f"`{name}` is a number, a list of numbers or a tensor, not {told(value)}")
    return (
        int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
    )


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def told(value: Any) -> str:
    return repr(value) if is_number(value) else f"a {type(value).__name__}"


# ---- shapes --------------------------------------------------------------------------------------


def wanted(p: S.Param, lead: str = "batch, time, heads") -> str:
    """`[batch, time, heads, n]`; without sizes of its own, one a head or more."""
    if p.dims:
        return f"[{lead}, {', '.join(d.span.text for d in p.dims)}]"
    return f"[{lead}] or [{lead}, channels]"


def fit(made: Given) -> None:
    """Batch, time and heads are those of the first stream with sizes; nothing is broadcast."""
    params = made.params
    sized = [p for p in params if p.dims]
    if not params:
        raise TypeError(f"`{made.memory.name}` is given no tensor, so it has no batch and no time")
    first = (sized or params)[0]
    x = made.tensors[first.name.id]
    if x.ndim < 2 + len(first.dims):
        raise ValueError(f"`{first.name.id}` is {wanted(first)} and was given {list(x.shape)}")
    made.batch, made.time = x.shape[:2]
    made.mapped = tuple(x.shape[2 : x.ndim - len(first.dims)]) if sized else ()
    if 0 in made.mapped:
        raise ValueError(f"`{first.name.id}` was given {list(x.shape)}, which has no heads")
    for p in params:
        fit_one(made, p, first)
        y = made.tensors[p.name.id]
        if y.device != x.device:
            raise ValueError(f"`{p.name.id}` is on {y.device}, and `{first.name.id}` on {x.device}")


def fit_one(made: Given, p: S.Param, first: S.Param) -> None:
    x = made.tensors[p.name.id]
    lead = (made.batch, made.time, *made.mapped)
    own = tuple(x.shape[len(lead) :])
    fits = tuple(x.shape[: len(lead)]) == lead
    fits = fits and (len(own) == len(p.dims) if p.dims else own == () or max(own) > 1)
    if fits and 0 in own:
        raise ValueError(f"`{p.name.id}` was given {list(x.shape)}, whose vectors are empty")
    for dim, n in zip(p.dims, own, strict=False):
        size = made.sizes.setdefault(dim.id, n) if isinstance(dim, S.Name) else known(dim)
        fits = fits and size in (n, None)
    if not fits:
        numbers = ", ".join(map(str, lead))
        rest = [str(made.sizes.get(d.span.text, d.span.text)) for d in p.dims]
        shape = f"[{', '.join([numbers, *rest])}]" if p.dims else wanted(p, numbers)
        beside = f" beside `{first.name.id}` {list(made.tensors[first.name.id].shape)}"
        raise ValueError(
            f"`{p.name.id}` is wanted as {shape}{beside if p is not first else ''}, and was given "
            f"{list(x.shape)}"
        )


def known(dim: S.Expr) -> int | None:
    """A size that is a number; what is computed from others is left to the compiler."""
    return int(dim.value) if isinstance(dim, S.Number) else None
