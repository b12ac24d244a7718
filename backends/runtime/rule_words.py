"""Small words of generated rules on steps: tensors take their precision from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RuleWords:
    """What a generated rule calls by `self`."""

    def leaves(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The arrays, to differentiate by."""
        return tuple(a.detach().requires_grad_() for a in arrays)

    def slopes(self, objective: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The gradient of an objective that no rule derives."""
        total = objective.sum()
        if not total.requires_grad:
            return tuple(map(torch.zeros_like, arrays))
        found = torch.autograd.grad(total, arrays, allow_unused=True)
        pairs = zip(arrays, found, strict=True)
        return tuple(torch.zeros_like(a) if g is None else g for a, g in pairs)

    def full(self, value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.as_tensor(value).expand(shape)

    def maximum(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(*both(a, b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(*both(a, b))

    def clip(self, x: Any, low: Any, high: Any) -> Tensor:
        return torch.clamp(*alike((x, low, high)))

    def listed(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def stack(self, *values: Any) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*alike(values)), -1)  # type: ignore[no-untyped-call]

    def concat(self, *values: Tensor) -> Tensor:
        wide = torch.broadcast_shapes(*(v.shape[:-1] for v in values))  # type: ignore[no-untyped-call]
        return torch.cat([v.expand(*wide, v.shape[-1]) for v in values], -1)


def alike(values: tuple[Any, ...]) -> list[Tensor]:
    """Numbers among tensors, as tensors of their precision."""
    like = next((v for v in values if isinstance(v, Tensor)), torch.tensor(0.0))
    return [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values]


def both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    x, y = alike((a, b))
    return x, y
