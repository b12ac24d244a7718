"""The optimizers that a spec's levels on steps train by: `torch.optim.Optimizer`s whose rules are
generated.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .model import Model

Row = tuple[Any, ...]


class Optimizer(torch.optim.Optimizer):
    """One level on steps. A step is the mean over the batch; `every 8 steps` sums eight of them,
    and fires once.

    State of an array: `pending` (gradients since the last firing), and what its rule keeps.
    """

    PERIOD: ClassVar[int] = 1
    LINES: ClassVar[int] = 1
    ARRAYS: ClassVar[tuple[Row, ...]] = ()

    def __init__(self, model: Model) -> None:
        weights = dict(model.named_weights())
        rows = [
            (path.format(*rounds), method, keeps, lead, line, measure, keep)
            for path, loops, method, keeps, lead, line, measure, keep in self.ARRAYS
            for rounds in product(*(range(n) for n in loops))
        ]
        groups = [
            {
                "params": [weights[r[0]] for r in rows if r[4] == line],
                "names": [r[0] for r in rows if r[4] == line],
            }
            for line in range(self.LINES)
        ]
        self.rows = {r[0]: r for r in rows}
        super().__init__([g for g in groups if g["params"]], {"steps": 0, "count": 0})
        for name, parameter in weights.items():
            if name in self.rows:
                self.materialise(name, parameter)

    def materialise(self, name: str, p: Tensor) -> None:
        """All state exists, and is saved, before the first step."""
        state = self.state[p]
        for key in self.rows[name][2]:
            state[key] = torch.zeros_like(p)
        if self.PERIOD > 1:
            state["pending"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; arrays without a gradient have one of zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            if group["steps"] % self.PERIOD == 0:
                group["count"] += 1
            self.step_group(group)
        return loss

    def step_group(self, group: dict[str, Any]) -> None:
        fires = group["steps"] % self.PERIOD == 0
        grads = [self.summed(p, fires) for p in group["params"]]
        if not fires:
            return
        across = self.across(group, grads)
        for name, p, grad in zip(group["names"], group["params"], grads, strict=True):
            _, method, keeps, _, _, measure, keep = self.rows[name]
            state = self.state[p]
            memory = {k: state[k] for k in keeps}
            extra = (across,) if measure else ()
            kept, amount = getattr(self, method)(p, grad, memory, group["count"], *extra)
            kept = keep * kept
            if isinstance(kept, Tensor) or kept != 1.0:
                p.mul_(kept)
            p.add_(amount)
            state.update(memory)

    def summed(self, p: Tensor, fires: bool) -> Tensor:
        """This step's gradient, with those of the steps since the last firing."""
        grad = torch.zeros_like(p) if p.grad is None else p.grad.to(p.dtype)
        if self.PERIOD == 1:
            return grad
        pending: Tensor = self.state[p]["pending"].add_(grad)
        if not fires:
            return pending
        total: Tensor = pending.clone()
        pending.zero_()
        return total

    def across(self, group: dict[str, Any], grads: list[Tensor]) -> Tensor | None:
        """The sum over the arrays of one line (2.9.4)."""
        total = None
        for name, p, grad in zip(group["names"], group["params"], grads, strict=True):
            measure = self.rows[name][5]
            if measure:
                one = getattr(self, measure)(p, grad)
                total = one if total is None else total + one
        return total

    # ---- small words of generated code

    def counted(self, count: int) -> Tensor:
        """Firings so far, for a schedule: exact, and of no effect on the precision of an array."""
        return torch.tensor(float(count), dtype=torch.float64)

    def number(self, condition: Tensor) -> Tensor:
        """1 where it holds, else 0."""
        return condition.float()

    def maximum(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(*both(a, b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(*both(a, b))


def both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two tensors that may be compared; of two numbers, the tensor's type decides."""
    like = a if isinstance(a, Tensor) else torch.as_tensor(b)
    return torch.as_tensor(a, dtype=like.dtype, device=like.device), torch.as_tensor(
        b, dtype=like.dtype, device=like.device
    )
