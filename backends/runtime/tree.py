"""The tree of a model's weights, by the paths of the spec."""

from __future__ import annotations

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
    """The same tree as `Part`, its arrays as constants: for runs that take no gradient of them."""

    def __init__(self, part: Part) -> None:
        self.__part = part  # no name of a spec begins so

    def __getitem__(self, key: int | str) -> Any:
        found = self.__part[key]
        return found.detach() if isinstance(found, Tensor) else Still(found)

    __getattr__ = __getitem__
