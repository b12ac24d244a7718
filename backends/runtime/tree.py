"""The tree of a model's weights, by the paths of the spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Part(nn.Module):
    """A place in the tree of weights: `layer.titans.read.linear`."""

    def __getitem__(self, key: int | str) -> Any:
        """A round, or a part whose name a module has for something else: `layer["train"]`."""
        name = str(key)
        return self._modules[name] if name in self._modules else self._parameters[name]

    def __getattr__(self, name: str) -> Any:
        """A state `M` and the weights of its lines, `M.linear`, are here: the part wins."""
        parts = self.__dict__.get("_modules", {})
        return parts[name] if name in parts else super().__getattr__(name)

    def train(self, mode: bool = True) -> Part:
        """Nothing here depends on it, and a part may be called `training`."""
        return self


class Still:
    """The same tree as `Part`, its arrays as constants: for runs that take no gradient of them.
    `copies`: what stands in for some, by path.
    """

    def __init__(self, part: Part, copies: Mapping[str, Tensor], at: str = "") -> None:
        self.__part, self.__copies, self.__at = part, copies, at  # no name of a spec begins so

    def __getitem__(self, key: int | str) -> Any:
        found, path = self.__part[key], f"{self.__at}{key}"
        if not isinstance(found, Tensor):
            return Still(found, self.__copies, f"{path}.")
        return self.__copies[path] if path in self.__copies else found.detach()

    __getattr__ = __getitem__


@contextmanager
def standing(weights: Part, arrays: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, these arrays are the weights, by path."""
    places = []
    for path, array in arrays.items():
        *steps, last = path.split(".")
        part = weights
        for step in steps:
            part = part[step]
        places.append((part._parameters, last, part._parameters[last]))
        part._parameters[last] = array  # type: ignore[assignment]
    try:
        yield
    finally:
        for found, last, own in places:
            found[last] = own
