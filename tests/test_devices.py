"""Models elsewhere than on the CPU, without such a machine: every tensor that a call makes is on
the model's device. On `meta`, which has shapes and no numbers, an operation over two devices is an
error.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from shipped import SPECS, SYSTEMS, small
from test_solved import MEMORIES, written
from torch import Tensor

import nlc
from nlc.driver import Spec


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has no autocast, which is about numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def used(spec: Spec) -> None:
    """A call, another that goes on, the loss, its gradients and a step, all on the device."""
    model = nlc.compile(spec, device="meta")
    model.rounds = 2  # how many are needed is a question about numbers
    tokens = torch.zeros(2, 9, dtype=torch.long, device="meta")
    logits, state = model(tokens)
    later, _ = model(tokens[:, :3], state)
    losses, _, _ = model.losses(tokens)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    for optimizer in model.optimizers():
        optimizer.step()
    assert logits.is_meta and later.is_meta and losses.is_meta
    assert all(a.is_meta for a in state.arrays.values())
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_systems(name: str) -> None:
    used(small(name))


# Newton's method asks its numbers when it has settled, and `meta` has none.
NEWTON = {"implicit on two pairs", "implicit on a window"}


@pytest.mark.parametrize("name", [n for n in MEMORIES if n not in NEWTON])
def test_memories(name: str, tmp_path: Path) -> None:
    used(nlc.load(written(name, tmp_path)))


def test_shipped_optimizers() -> None:
    """Two steps of each, whose arrays are where the parameter is."""
    for path in sorted((SPECS / "optim").glob("*.nl")):
        layer = torch.nn.Linear(6, 5, bias=False, device="meta")
        optimizer = nlc.optimizer(path.stem)(layer)
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.zeros(3, 6, device="meta")).square().sum().backward()
            optimizer.step()
        kept = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        assert all(v.is_meta for v in kept), path.stem


def test_two_devices_are_an_error() -> None:
    """What the tests above rest on."""
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device="meta") @ torch.ones(2)
