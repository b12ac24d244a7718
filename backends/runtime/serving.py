"""How a generated rule serves arrays: in blocks, many small ones at a time, or one as a whole.

    w, g, kept = a block of each, small enough for a cache
    rule(w, g, *kept, count, *settings)                          changes w and kept in place

A rule element by element does not mind where an array is cut or what stands beside it, so that all
its passes over a block meet a cache, and a thousand tiny arrays cost the dispatches of one.
Weights in half precision are served in float32, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..parameters import noise

BLOCK = 1 << 18  # numbers of an array that are served at a time, on a CPU
SMALL = 1 << 14  # arrays below this many numbers are put together
HALF = (torch.float16, torch.bfloat16)
Examples = Callable[[], tuple[Tensor, Tensor]]
TASKS, SINCE = "tasks so far", "firings since"  # no names that a spec can give


@dataclass(frozen=True)
class Kept:
    """One array that a rule keeps: `shape` is its own, or None for that of the array served."""

    name: str
    shape: tuple[int, ...] | None
    std: float = 0.0
    draw: str = ""


@dataclass(frozen=True)
class Rule:
    """A row of a generated table: the method, what it keeps, and what it asks for."""

    method: str
    kept: tuple[Kept, ...]
    pointwise: bool = False
    measures: tuple[str, ...] = ()
    examples: bool = False
    tasks: tuple[int, ...] = ()  # period and first of its levels on tasks

    @property
    def name(self) -> str:
        """As the spec has it."""
        return self.method.removeprefix("rule_")

    @staticmethod
    def of(row: tuple[Any, ...]) -> Rule:
        method, kept, *rest = row
        return Rule(method, tuple(Kept(*k) for k in kept), *rest)


@dataclass(eq=False)
class Array:
    """One array, and what serves it. `owner` has the rule's methods; `lead`: how many axes come
    before the rule's own, each place of which is served alone.
    """

    name: str
    parameter: Tensor
    owner: Any
    rule: Rule
    state: dict[str, Any]
    lead: int = 0
    examples: Examples | None = None
    served: torch.dtype | None = None  # the parameter's, when its state was last looked at

    @property
    def weight(self) -> Tensor:
        """The parameter; a single number is a vector of one."""
        p = self.parameter
        return p if p.ndim else p.view(1)

    @property
    def fire(self) -> Callable[..., None]:
        method: Callable[..., None] = getattr(self.owner, self.rule.method)
        return method

    @property
    def dtype(self) -> torch.dtype:
        """In which it is served: its own, or float32."""
        return torch.float32 if self.parameter.dtype in HALF else self.parameter.dtype

    @property
    def kept(self) -> list[Tensor]:
        return [self.state[k.name] for k in self.rule.kept]

    def materialise(self, seed: int) -> None:
        """All that is kept exists, and is saved, before the first step."""
        for kept in self.rule.kept:
            self.state[kept.name] = self.first(kept, seed)
        if self.rule.tasks:
            self.state |= {TASKS: 0, SINCE: 0}

    def follow(self) -> None:
        """A parameter of another precision, as after `model.double()`: its state goes along."""
        if self.served is self.parameter.dtype:
            return
        self.served = self.parameter.dtype
        for key, value in self.state.items():
            if isinstance(value, Tensor):
                self.state[key] = value.to(self.dtype)

    def first(self, kept: Kept, seed: int) -> Tensor:
        w = self.weight
        if kept.shape is None and not kept.std:
            return torch.zeros_like(w, dtype=self.dtype, memory_format=torch.preserve_format)
        heads = tuple(w.shape[: self.lead])
        own = tuple(w.shape[self.lead :]) if kept.shape is None else kept.shape
        made = torch.zeros((*heads, *own), dtype=torch.float64)
        if kept.std:
            for head in product(*(range(n) for n in heads)):
                place = f"{self.name}{''.join(f'[{i}]' for i in head)}.{kept.draw}"
                made[head] = noise(place, own, seed) * kept.std
        return made.to(device=w.device, dtype=self.dtype)


@dataclass
class Firing:
    """One array that is due: its gradient, of which firing, and the sums across its line."""

    array: Array
    grad: Tensor
    count: int
    across: tuple[float, ...] = ()
    given: tuple[float, ...] = field(default=())  # settings

    @property
    def numbers(self) -> tuple[Any, ...]:
        measured = (self.across,) if self.array.rule.measures else ()
        return (self.count, *measured, *self.given)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What arrays have in common that are served as one."""
        a = self.array
        w = a.weight
        return id(a.owner), a.rule.method, w.dtype, self.grad.dtype, w.device, self.numbers


def fire(due: Iterable[Firing]) -> None:
    """Serve all of them."""
    small: dict[tuple[Any, ...], list[Firing]] = {}
    for one in due:
        w = one.array.weight
        if one.array.rule.tasks:
            one.array.state[SINCE] += 1
        if not one.array.rule.pointwise:
            whole(one)
        elif w.numel() < SMALL:
            small.setdefault(one.alike, []).append(one)
        elif w.device.type == "cpu" and laid_alike(one):
            in_blocks(one)
        else:
            whole(one)
    for group in small.values():
        for part in portions(group):
            together(part)


def end_task(one: Firing) -> None:
    """A task is over: the levels of a rule that count tasks fire on what its firings have left."""
    array, (period, first) = one.array, one.array.rule.tasks
    array.state[TASKS] += 1
    tasks = array.state[TASKS]
    if tasks < first or (tasks - first) % period or not array.state[SINCE]:
        return
    array.state[SINCE] = 0
    method = getattr(array.owner, f"task_{array.rule.method}")
    method(array.weight.to(array.dtype), *array.kept, *one.numbers)


def laid_alike(one: Firing) -> bool:
    """Whether all its arrays lie in one piece, in one order."""
    return all(x.is_contiguous() for x in (one.array.weight, one.grad, *one.array.kept))


def whole(one: Firing) -> None:
    array = one.array
    weight = array.weight
    w = weight.to(array.dtype)
    array.fire(w, *streams(one), *array.kept, *one.numbers)
    if w is not weight:
        weight.copy_(w)


def streams(one: Firing) -> list[Tensor]:
    """The gradient, and where a rule asks for them its examples."""
    array = one.array
    found = [one.grad.to(array.dtype)]
    if array.rule.examples:
        assert array.examples is not None
        found += [x.to(array.dtype) for x in array.examples()]
    return found


def in_blocks(one: Firing) -> None:
    array, numbers, rule = one.array, one.numbers, one.array.fire
    whole = (array.weight, one.grad, *array.kept)
    size = BLOCK * torch.get_num_threads()  # threads share a block, and meet after each pass
    flat = [torch.split(x.view(-1), size) for x in whole]
    if array.weight.dtype == array.dtype and one.grad.dtype == array.dtype:
        for parts in zip(*flat, strict=True):
            rule(*parts, *numbers)
        return
    for weight, grad, *kept in zip(*flat, strict=True):
        w = weight.to(array.dtype)
        rule(w, grad.to(array.dtype), *kept, *numbers)
        weight.copy_(w)


def portions(group: Sequence[Firing]) -> Iterator[list[Firing]]:
    """As many small arrays as make a block."""
    part: list[Firing] = []
    size = 0
    for one in group:
        part.append(one)
        size += one.array.weight.numel()
        if size >= BLOCK:
            yield part
            part, size = [], 0
    if part:
        yield part


def together(part: list[Firing]) -> None:
    """Small arrays as one."""
    first = part[0].array
    if len(part) == 1:
        whole(part[0])
        return
    weights = [f.array.weight for f in part]
    kept = list(zip(*(f.array.kept for f in part), strict=True))
    lists: list[Sequence[Tensor]] = [weights, *kept]
    w, *held = (flattened(xs).to(first.dtype) for xs in lists)
    g = flattened([f.grad for f in part]).to(first.dtype)
    first.fire(w, g, *held, *part[0].numbers)
    for xs, x in zip(lists, (w, *held), strict=True):
        torch._foreach_copy_(list(xs), unflattened(x, xs))


def flattened(xs: Sequence[Tensor]) -> Tensor:
    """Arrays in a row, as one."""
    made: Tensor = _flatten_dense_tensors(xs)  # type: ignore[no-untyped-call]
    return made


def unflattened(x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The arrays again, as parts of the one."""
    return list(_unflatten_dense_tensors(x, like))  # type: ignore[no-untyped-call]


def across(line: Sequence[Firing]) -> tuple[float, ...]:
    """The sums over the arrays of one line (2.9.4), the inner before the outer."""
    rule = line[0].array.rule if line else None
    totals: tuple[float, ...] = ()
    for i in range(len(rule.measures) if rule is not None else 0):
        parts = []
        for one in line:
            array = one.array
            measure = getattr(array.owner, array.rule.measures[i])
            given = (totals,) if i else ()
            parts.append(measure(array.weight.to(array.dtype), one.grad.to(array.dtype), *given))
        totals = (*totals, float(torch.stack([p.double() for p in parts]).sum()))
    return totals


def unsound(grads: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first gradient that holds a number that is none.

    Sums tell, in one pass: what is not finite makes them so. A sum that is only too large is looked
    at again.
    """
    named = list(grads)
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for _, g in named:
        alike.setdefault((g.device, g.dtype), []).append(g)
    if all(map(adds_up, alike.values())):
        return None
    return next((n for n, g in named if not bool(g.isfinite().all())), None)


def adds_up(grads: list[Tensor]) -> bool:
    """Whether the sum of all is a number; on `meta` there are none."""
    if grads[0].is_meta:
        return True
    small = [g for g in grads if g.numel() < SMALL]
    large = [g for g in grads if g.numel() >= SMALL]
    wide = torch.float32 if grads[0].dtype in HALF else None
    sums = [g.sum(dtype=wide) for g in ([flattened(small)] if small else []) + large]
    return bool(torch.stack(sums).isfinite().all())
