"""Steps of an optimizer on the arrays of a model, beside torch's own of the same rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..files import CallError
from ..optimizing import optimizer as made_by_spec
from .measuring import Case
from .ours import Place

Make = Callable[[Any], torch.optim.Optimizer]
O = torch.optim
WIDTH, HIDDEN, VOCAB = 512, 4, 8192  # of the model: its width, how much wider inside, its rows

# The same rule in torch: over lists of whole arrays, and as one loop where there is one.
PEERS: dict[str, dict[str, Make]] = {
    "gradient": {"SGD": lambda p: O.SGD(p, 1e-4, foreach=True)},
    "momentum": {"SGD, momentum": lambda p: O.SGD(p, 1e-4, momentum=0.9, foreach=True)},
    "nesterov": {
        "SGD, Nesterov": lambda p: O.SGD(p, 1e-4, momentum=0.9, nesterov=True, foreach=True)
    },
    "rmsprop": {"RMSprop": lambda p: O.RMSprop(p, 1e-4, foreach=True)},
    "adagrad": {"Adagrad": lambda p: O.Adagrad(p, 1e-4, foreach=True)},
    "adam": {"Adam": lambda p: O.Adam(p, 1e-4, foreach=True)},
    "nadam": {"NAdam": lambda p: O.NAdam(p, 1e-4, foreach=True)},
    "adamw": {
        "AdamW": lambda p: O.AdamW(p, 1e-4, foreach=True),
        "AdamW, fused": lambda p: O.AdamW(p, 1e-4, fused=True),
    },
    "muon": {"Muon": lambda p: O.Muon([x for x in p if x.ndim == 2], 1e-4)},
}


def arrays(parameters: int, place: Place) -> list[nn.Parameter]:
    """The arrays of a transformer of about so many parameters, with gradients."""
    n = min(WIDTH, max(int(parameters**0.5) // 4, 1))
    block = [(n, n)] * 4 + [(n,)] * 2 + [(HIDDEN * n, n), (n, HIDDEN * n)]
    size = sum(torch.Size(s).numel() for s in block)
    table = (min(VOCAB, max(parameters // (8 * n), 1)), n)
    shapes = [table, *block * max((parameters - table[0] * n) // size, 1)]
    made = []
    for shape in shapes:
        p = nn.Parameter(place.put(0.02 * torch.randn(shape)))
        p.grad = place.put(0.01 * torch.randn(shape))
        made.append(p)
    return made


def cases(name: str, parameters: int, place: Place) -> Iterator[Case]:
    """Ours first; each has arrays of its own."""
    first = arrays(parameters, place)
    count = sum(p.numel() for p in first)
    try:
        ours = made_by_spec(name, *([] if fits_all(name) else ["adamw"]))(first)
    except ValueError as error:
        raise CallError(str(error)) from None
    yield Case(f"nlc {name}", ours.step, count)
    for title, make in PEERS.get(name, {}).items():
        theirs = arrays(parameters, place)
        yield Case(f"torch {title}", make(theirs).step, count)


def fits_all(name: str) -> bool:
    """Whether a rule serves vectors too."""
    vector: list[Tensor] = [nn.Parameter(torch.zeros(4))]
    try:
        made_by_spec(name)(vector)
    except ValueError as error:
        if "there is no optimizer" in str(error):
            raise CallError(str(error)) from None
        return False
    return True
