"""The reference interpreter as an operation: a memory in a system of its own, and gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import nlc
from nlc.backends.reference import Reference
from nlc.verify.along import Along, gradients

torch.set_num_threads(1)
Arrays = dict[str, Tensor]


def system_of(name: str, data: Mapping[str, Tensor], clock: str, call: str = "") -> nlc.Spec:
    """A shipped memory in a level of its own, on streams `[batch, time, ..]` of these shapes."""
    names = ", ".join(data)
    sizes = {n: ", ".join(map(str, x.shape[2:])) for n, x in data.items()}
    inputs = ", ".join(f"{n}[{s}]" if s else n for n, s in sizes.items())
    start = "" if clock == "always" else "  transfer init training -> mixer\n"
    return nlc.load(
        f'nl 1\nuse "memory/{name}"\nsystem one() {{\n'
        "  level training every step { objective loss; learn gradient() }\n"
        f"  level mixer({names}) {clock} {{ read {name}({names}{call}) }}\n"
        f"  transfer backprop mixer -> training\n{start}"
        f"  flow({inputs}) {{\n    y = mixer({names})\n    loss = sum(y)\n    return y\n  }}\n}}\n"
    )


def answers(truth: Reference, data: Mapping[str, Tensor]) -> Tensor:
    """[batch, time, ..], with the graph back to the streams."""
    return Along(truth, next(iter(data.values())).shape[0])(data)


__all__ = ["Arrays", "answers", "gradients", "system_of"]
