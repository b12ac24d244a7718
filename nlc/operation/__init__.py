"""A memory as an operation on tensors (language.md 2.13), to be put into anyone's model.

    gated_delta = nlc.memory("gated_delta")
    y, state = gated_delta(q, k, v, alpha=alpha, beta=beta)       # [batch, time, heads, dim]
    y, state = gated_delta(q2, k2, v2, alpha=alpha2, beta=beta2, state=state)

The memory's spec is put into a small system, which is compiled as any other: there is no second
code for the mathematics.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import syntax as S
from ..backends.ops import fla
from ..backends.ops.recurrence import state_arithmetic
from ..backends.parameters import draw, parameters, start_draw
from ..backends.runtime import Model, StateError
from ..driver import Spec
from .around import Call, Number, check_operation, is_scan, model_of, spec_of
from .declared import ALIASES, Declaration, declaration, names
from .given import Given, given, is_number, setting
from .running import batched, fresh, packed
from .state import Group, MemoryState, read_state

if TYPE_CHECKING:
    from ..system import Array, State

Start = Mapping[str, Tensor]


class Memory:
    """`y, state = memory(*streams, state=None, cu_seqlens=None, **named)`.

    Streams are tensors [batch, time, heads, *own], in declared order or by name; axes between time
    and a stream's own are mapped over, and may be left out. A stream without sizes of its own may
    be a number. Settings are given by name: numbers, which are compiled in, or tensors.

    y is [batch, time, heads, ..] in the type of the first stream, computed in float32 or wider,
    under autocast too.
    """

    def __init__(self, declared: Declaration, seed: int = 0, rounds: int | None = None) -> None:
        check_operation(declared)
        self.declared, self.seed, self.rounds = declared, seed, rounds

    def __repr__(self) -> str:
        return f"memory {self.declared}"

    @property
    def name(self) -> str:
        return self.declared.name

    # ---- calls -----------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        *streams: Any,
        state: Any = None,
        cu_seqlens: Any = None,
        **named: Any,
    ) -> tuple[Tensor, MemoryState]:
        """Answers for these ticks, and the state that continues them.

        state: the MemoryState that a call before returned, or arrays [heads, ..] by path, as
        `start` makes them, from which every sequence starts.
        cu_seqlens: whole numbers, a tensor or a list, as in flash-linear-attention: the batch is
        1, and sequence i is the ticks from cu_seqlens[i] to cu_seqlens[i + 1], with a state of its
        own.

        Inside `torch.compile` it runs as it is: one break of the graph.
        Raises TypeError for arguments that are missing, unknown or of a wrong kind, ValueError for
        shapes that do not fit, StateError for a state that is not this memory's, and SpecError for
        what is not compiled yet (NL701).
        """
        given_ = given(self.declared, streams, named)
        call = given_.call
        bounds = None if cu_seqlens is None else bounds_of(cu_seqlens, given_)
        count = given_.batch if bounds is None else len(bounds) - 1
        model = self.model(call, given_.dtype, given_.device)
        model.rounds = self.rounds  # modules are shared
        groups = self.groups(state, model, call, count)
        # kernels that take few digits as they are (backends/ops/fla.py) are not to be given more
        scans = fla.could_take(given_.time, given_.device) and is_scan(call)
        x = given_.streams(as_given=scans)
        wanted = torch.is_grad_enabled() and watched(x, groups)
        with state_arithmetic(given_.device), torch.set_grad_enabled(wanted):
            y, groups = (
                batched(model, call.prefix, x, groups)
                if bounds is None
                else packed(model, call.prefix, x, groups, bounds)
            )
        return y.to(given_.answer), MemoryState(self.name, key(call), groups)

    def model(self, call: Call, dtype: torch.dtype, device: torch.device) -> Model:
        return model_of(call, dtype, device, self.seed)

    def spec(self, *streams: Any, **named: Any) -> Spec:
        """The system that such a call runs: for `nlc.reference`, `nlc.explain`, `nlc.compile`."""
        return spec_of(given(self.declared, streams, named).call)

    def source(self, *streams: Any, **named: Any) -> str:
        """The Python that is generated for such a call."""
        given_ = given(self.declared, streams, named)
        return self.model(given_.call, given_.dtype, given_.device).source

    # ---- states ----------------------------------------------------------------------------------

    def groups(
        self, state: MemoryState | Start | None, model: Model, call: Call, count: int
    ) -> tuple[Group, ...]:
        if state is None:
            return (fresh(model, call.prefix, count),)
        if isinstance(state, MemoryState):
            self.check_state(state, model, call, count)
            return state.groups
        if not hasattr(state, "items"):
            raise TypeError(
                "`state` is what this memory returned before, or a start; not a "
                f"{type(state).__name__}"
            )
        return (started(fresh(model, call.prefix, count), dict(state.items()), self.name),)

    def check_state(self, state: MemoryState, model: Model, call: Call, count: int) -> None:
        if state.key != key(call):
            other = (
                f"`{state.memory}`" if state.memory != self.name else "another spec of that name"
            )
            raise StateError(
                f"`state` belongs to {other}, or to other settings of it, and this is {call}"
            )
        if state.batch != count:
            raise StateError(f"`state` has {state.batch} sequences, and this call {count}")
        if state.dtype not in (None, model.dtype):
            raise StateError(f"`state` is in {state.dtype}, and these streams need {model.dtype}")
        if state.device not in (None, model.device):
            raise StateError(
                f"`state` is on {state.device}, and the streams on {model.device}: use `state.to`"
            )
        shapes = {k.removeprefix(call.prefix): s for k, (s, _) in model.kept_arrays().items()}
        for group in state.groups:
            check_arrays(group, shapes)

    def load_state(
        self, path: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> MemoryState:
        """What `state.save` wrote. Raises StateError for a file that holds none of this memory."""
        state = read_state(path, device)
        if state.memory != self.name:
            raise StateError(f"{path} is a state of `{state.memory}`, and this is {self!r}")
        return state

    def start(self, heads: int | tuple[int, ...] | None = None, **named: Any) -> nn.ParameterDict:
        """Where its states start, as parameters: hand it to a call as `state`, and learn it.

        heads: how many (None: no such axis). named: the sizes in the brackets of its streams, and
        settings. Arrays [heads, ..] by path (`M`, `M_W1`), drawn by the seed in float32.
        """
        call = self.sized(heads, named)
        system = spec_of(call).system
        drawn = {p.name: draw(p, self.seed) for p in parameters(system)}
        made: dict[str, nn.Parameter] = {}
        for box in system.boxes:
            for s in () if box.exact else box.states:
                for a in s.form.arrays:
                    path = ".".join(x for x in (box.path, s.name, a.name) if x)
                    x = drawn.get(path, standing((*call.mapped, *s.shape(a)), s, a))
                    if x is not None:
                        key = path.removeprefix(call.prefix).replace(".", "_")
                        made[key] = nn.Parameter(x.float())
        return nn.ParameterDict(made)

    def sized(self, heads: int | tuple[int, ...] | None, named: Mapping[str, Any]) -> Call:
        mapped = () if heads is None else (heads,) if isinstance(heads, int) else tuple(heads)
        sizes = {n: x for n, x in named.items() if self.declared.param(n) is None}
        numbers = tuple(sorted((n, setting(n, x)) for n, x in named.items() if n not in sizes))
        wanted = {d.id for p in self.declared.streams for d in p.dims if isinstance(d, S.Name)}
        if set(sizes) != wanted or not all(is_number(x) for x in sizes.values()):
            raise TypeError(
                f"`start` of {self!r} takes heads and the sizes {', '.join(sorted(wanted))}, and "
                f"was given {', '.join(sorted(sizes)) or 'none'}"
            )
        streams = tuple(
            (p.name.id, tuple(int(sizes[d.span.text]) for d in p.dims))
            for p in self.declared.streams
        )
        return Call(self.declared, mapped, streams, numbers)


def watched(streams: Sequence[Tensor], groups: Sequence[Group]) -> bool:
    """Whether anything that is given wants a gradient."""
    kept = (x for g in groups for x in g.arrays.values())
    return any(x.requires_grad for x in (*streams, *kept))


@lru_cache(maxsize=256)
def key(call: Call) -> str:
    """Whose state it is: the text, and settings that are not as they are declared."""
    memory = call.memory
    changed = [(n, x) for n, x in call.numbers if x != default(memory, n)]
    told = f"{memory.text}\n{memory.name}\n{changed}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def default(declared: Declaration, name: str) -> Number | None:
    """A setting's own number, where it is one."""
    p = declared.param(name)
    if p is None or not isinstance(p.default, S.Number):
        return None
    return p.default.value


def standing(shape: tuple[int, ...], state: State, array: Array) -> Tensor | None:
    """A start that is a number; None where it is computed from the streams."""
    found = start_draw(state, array, True)
    return None if found is None else torch.full(shape, found[2], dtype=torch.float64)


def started(group: Group, start: dict[str, Tensor], name: str) -> Group:
    """A start in place of the usual one: each array [heads, ..], for every sequence."""
    paths = {path.replace(".", "_"): path for path in group.arrays}
    arrays = dict(group.arrays)
    for key, x in start.items():
        path = paths.get(key.replace(".", "_"))
        if path is None:
            has = ", ".join(paths) or "nothing"
            raise StateError(f"`state` gives `{key}`, and `{name}` keeps {has}")
        old = arrays[path]
        if x.shape != old.shape[1:]:
            raise StateError(
                f"`state` gives `{key}` as {list(x.shape)}, and {list(old.shape[1:])} is wanted"
            )
        arrays[path] = x.to(old).expand_as(old)
    return Group(group.rows, 0, arrays)


def check_arrays(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The length of a past is not known beforehand: 0."""
    if set(group.arrays) != set(shapes):
        raise StateError("`state` holds other arrays than this memory keeps")
    for path, x in group.arrays.items():
        own = tuple(x.shape[1:])
        if len(own) != len(shapes[path]) or any(
            n not in (0, m) for n, m in zip(shapes[path], own, strict=True)
        ):
            wanted = ", ".join(str(n) if n else "any" for n in shapes[path])
            raise StateError(
                f"`state` holds {path} as {list(own)} a sequence, and these streams need [{wanted}]"
            )


def bounds_of(cu_seqlens: Tensor | Sequence[int], given_: Given) -> list[int]:
    """Where sequences begin and end, checked."""
    if isinstance(cu_seqlens, Tensor):
        if cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
            raise ValueError(
                "`cu_seqlens` is whole numbers [sequences + 1], and was given "
                f"{list(cu_seqlens.shape)} of {cu_seqlens.dtype}"
            )
        cu_seqlens = cu_seqlens.tolist()
    listed = isinstance(cu_seqlens, Sequence) and not isinstance(cu_seqlens, str)
    if not listed or not all(isinstance(n, int) and not isinstance(n, bool) for n in cu_seqlens):
        raise ValueError(
            f"`cu_seqlens` is whole numbers, a tensor or a list, and was given {cu_seqlens!r}"
        )
    bounds = list(cu_seqlens)
    if given_.batch != 1:
        raise ValueError(
            f"`cu_seqlens` packs sequences into a batch of 1, and the batch is {given_.batch}"
        )
    rising = all(a <= b for a, b in pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != given_.time or not rising:
        raise ValueError(
            f"`cu_seqlens` rises from 0 to the time, {given_.time}, and was given {bounds}"
        )
    return bounds


def memory(
    spec: str | Path, name: str | None = None, seed: int = 0, rounds: int | None = None
) -> Memory:
    """A memory as an operation: by shipped name, by file (`.nl`), or as text that begins with
    `nl 1`.

    name: which memory of a file that declares several. seed: of starts that are drawn. rounds: of
    Picard's iteration, for memories that are run so; None: until nothing changes, which is exact.
    Raises ValueError for an unknown name, OSError for a file that is not there, and SpecError with
    every mistake of the text, or NL105 for what needs a system around it.
    """
    counted = isinstance(rounds, int) and not isinstance(rounds, bool) and rounds > 0
    if rounds is not None and not counted:
        raise ValueError(f"`rounds` is a whole number from 1 on, or None, and was given {rounds!r}")
    return Memory(declaration(spec, name), seed, rounds)


__all__ = ["ALIASES", "Memory", "MemoryState", "memory", "names"]
