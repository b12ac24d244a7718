"""Everything a run needs to go on, as one file. In: a tree of dicts, lists, numbers and tensors.
Out: bytes, and back.

It is a safetensors file: tensors under readable names, and the tree that holds them as JSON in the
header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

Tree = Any  # None, bool, int, float, str, Tensor, list, tuple, or dict of trees
FORMAT = "nlc checkpoint 1"


def to_bytes(tree: Tree) -> bytes:
    """The whole tree; tensors are copied, so that two names may share one."""
    tensors: dict[str, torch.Tensor] = {}
    outline = _outline(tree, "", tensors)
    return bytes(save(tensors, {"format": FORMAT, "tree": json.dumps(outline)}))


def from_file(path: Path) -> Tree:
    """The tree of a file; one of `DAMAGED` is raised if it was not written here."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError("not a checkpoint of this format")
        return _rebuild(json.loads(header["tree"]), file)


DAMAGED = (SafetensorError, ValueError, OSError)


def _outline(tree: Tree, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON: what JSON has no word for stands in an object with one key."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        pairs = [(k, _outline(v, f"{name}.{k}".lstrip("."), tensors)) for k, v in tree.items()]
        return {"dict": pairs}
    if isinstance(tree, list | tuple):
        items = [_outline(v, f"{name}.{i}".lstrip("."), tensors) for i, v in enumerate(tree)]
        return items if isinstance(tree, list) else {"tuple": items}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__} ({name})")


def _rebuild(outline: Any, file: Any) -> Tree:
    if isinstance(outline, list):
        return [_rebuild(item, file) for item in outline]
    if not isinstance(outline, dict):
        return outline
    ((kind, value),) = outline.items()
    if kind == "tensor":
        return file.get_tensor(value)
    if kind == "tuple":
        return tuple(_rebuild(item, file) for item in value)
    return {key: _rebuild(item, file) for key, item in value}


def difference(one: Tree, other: Tree, name: str = "") -> str | None:
    """The name of the first entry in which two trees differ, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.detach().cpu(), other.detach().cpu()
        same = one.dtype == other.dtype and one.shape == other.shape
        return None if same and _equal_bits(one, other) else name
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{name}.{next(iter(one.keys() ^ other.keys()))}".lstrip(".")
        parts = [(f"{name}.{k}".lstrip("."), one[k], other[k]) for k in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return name
        parts = [(f"{name}.{i}", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or (one != one and other != other) else name
    return next((d for n, a, b in parts if (d := difference(a, b, n)) is not None), None)


def _equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(_as_bytes(one), _as_bytes(other))


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
