"""What goes through a layer, for rules that ask for it: each product `W x` of a linear layer is one
example, with the gradient that comes back at it (2.9.6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Examples:
    """Of one linear layer, since the last step.

    `input` and `surprise` are divided so that `surprise' input` and `input' input` are means: with
    a loss that is a mean over n examples, input / sqrt(n) and surprise sqrt(n).
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.pairs: list[tuple[Tensor, Tensor]] = []
        layer.register_forward_hook(self.seen)

    def seen(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A product: its surprise comes with the backward pass."""
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        x = inputs[0].detach()

        def surprised(grad: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1]), grad.detach().reshape(-1, grad.shape[-1])
            self.pairs.append(rows)

        output.register_hook(surprised)  # type: ignore[no-untyped-call]

    def __call__(self) -> tuple[Tensor, Tensor]:
        weight = self.layer.weight
        if not self.pairs:
            m, n = weight.shape
            return weight.new_zeros(0, n), weight.new_zeros(0, m)
        x, s = (torch.cat(rows) for rows in zip(*self.pairs, strict=True))
        root = x.shape[0] ** 0.5
        return x / root, s * root

    def forget(self) -> None:
        self.pairs.clear()
