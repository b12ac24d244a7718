"""What is to be trained. In: modules, tensors, pairs of names and tensors, groups of them. Out:
named arrays, checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..system import Shape

# Layers whose weight is looked up by row: a table (2.9.4).
TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, eq=False)
class Given:
    """One array. `kind` is that of 2.9.4: matrices have two axes, and are no tables. `layer`: the
    layer that multiplies by it, where that is known.
    """

    name: str
    weight: Tensor
    kind: str
    layer: nn.Linear | None = None

    @property
    def shape(self) -> Shape:
        """A single number is a vector of one."""
        return tuple(self.weight.shape) or (1,)


def groups(params: Any) -> list[dict[str, Any]]:
    """Groups with their options, as `torch.optim` takes them."""
    if isinstance(params, Tensor):
        raise TypeError(
            "an optimizer takes several arrays, and was given one tensor: put it in [ ]"
        )
    if isinstance(params, nn.Module | Mapping):
        found: list[Any] = [params if isinstance(params, Mapping) else {"params": params}]
    else:
        found = listed(params)
    if not found:
        raise ValueError("an optimizer has nothing to train: it was given no parameters")
    if not any(isinstance(g, Mapping) for g in found):
        found = [{"params": found}]
    return [group(g) for g in found]


def group(one: Any) -> dict[str, Any]:
    if not isinstance(one, Mapping) or "params" not in one:
        raise TypeError("a group of parameters is a dict with `params`, and its own options")
    return {**one, "params": listed(one["params"])}


def listed(params: Any) -> Any:
    """An iterator is read once."""
    if isinstance(params, nn.Module | list | tuple):
        return params
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, set):
        raise TypeError("parameters need an order: a list, not a set")
    if isinstance(params, str) or not isinstance(params, Iterable):
        said = type(params).__name__
        raise TypeError(f"parameters are a module, or tensors in a list, and were given as {said}")
    return list(params)


def arrays(params: Any, first: int) -> list[Given]:
    """The arrays of a group. `first`: the number of the first that has no name."""
    made = list(read(params, first))
    if not made:
        raise ValueError("a group of an optimizer has no parameters")
    seen: dict[int, str] = {}
    for one in made:
        check(one)
        if id(one.weight) in seen:
            raise ValueError(f"`{one.name}` is given twice: it is `{seen[id(one.weight)]}` too")
        seen[id(one.weight)] = one.name
    return made


def read(params: Any, first: int) -> Iterator[Given]:
    if isinstance(params, nn.Module):
        yield from of_module(params)
        return
    for i, one in enumerate(params, first):
        if isinstance(one, tuple) and len(one) == 2:
            yield named(str(one[0]), one[1])
        else:
            yield named(f"parameter {i}", one)


def of_module(module: nn.Module) -> Iterator[Given]:
    """Each parameter once, by its path, with what its layer does with it."""
    layers = {id(layer.weight): layer for layer in module.modules() if type(layer) is nn.Linear}
    tables = {id(t.weight) for t in module.modules() if isinstance(t, TABLES)}
    for name, p in module.named_parameters():
        if p.requires_grad:
            kind = "tables" if id(p) in tables else kind_of(p)
            yield Given(name, p, kind, layers.get(id(p)))


def named(name: str, weight: Any) -> Given:
    if not isinstance(weight, Tensor):
        raise TypeError(f"`{name}` is a {type(weight).__name__}, and an optimizer changes tensors")
    return Given(name, weight, kind_of(weight))


def kind_of(weight: Tensor) -> str:
    return "matrices" if weight.ndim == 2 else "vectors"


def check(one: Given) -> None:
    weight, name = one.weight, one.name
    if not weight.is_floating_point():
        raise TypeError(f"`{name}` is of {weight.dtype}, and an optimizer changes real numbers")
    if not (weight.is_leaf or weight.retains_grad):
        raise ValueError(f"`{name}` is computed from other tensors: only a leaf can be changed")
    if weight.layout != torch.strided:
        raise ValueError(f"`{name}` is sparse, and an optimizer changes dense arrays")
