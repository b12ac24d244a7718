"""A compiled system and all that changes while it learns. In: token ids. Out: losses, and a tree to
save.

This file and `generate.py` hold everything that tools expect of a compiled module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import checkpoint
from .corpus import bits
from .diagnostics import InternalError
from .files import CallError

Batches = Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass
class Learner:
    model: Any
    device: torch.device
    mixed: bool  # bfloat16 where autocast sees no harm in it
    optimizers: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = self.model.optimizers()

    def step(self, ids: NDArray[np.int64]) -> float:
        """Learn from one batch. The loss, in nats for each token that has a label."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with self._precision():
            losses, labelled, _ = self.model.losses(self._tensor(ids))
            loss = losses[labelled].float().mean()
        value = float(loss.detach())
        if not np.isfinite(value):
            return value  # the weights stay as they are
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def end_task(self) -> None:
        """The steps since the last call were a task: levels on tasks fire."""
        for optimizer in self.counting_tasks:
            optimizer.end_task()

    @property
    def counting_tasks(self) -> list[Any]:
        return [o for o in self.optimizers if getattr(o, "counts_tasks", False)]

    def task_notes(self, task: int | None) -> list[str]:
        """What it means to the spec that a run has tasks, or none."""
        counting = self.counting_tasks
        if counting and task is None:
            return [
                "Levels of this spec count tasks, and this run is one task, which does not end "
                "(--task N ends one every N steps)."
            ]
        if task is not None and not counting:
            return ["--task changes nothing: no level of this spec counts tasks."]
        return []

    def evaluate(self, batches: Batches, stop: Callable[[], bool]) -> float | None:
        """Bits for each byte of the text, or None if `stop` says so before the end."""
        nats = total = 0.0
        self.model.eval()
        with torch.no_grad(), self._precision():
            for ids, widths in batches:
                if stop():
                    break
                losses, labelled, _ = self.model.losses(self._tensor(ids))
                of_label = np.roll(widths, -1, axis=1)  # the loss at a tick is the next token's
                nats += float(losses[labelled].double().sum())
                total += float(of_label[labelled.cpu().numpy()].sum())
            else:
                self.model.train()
                return bits(nats) / max(total, 1.0)
        self.model.train()
        return None

    def tree(self) -> checkpoint.Tree:
        """All that decides how the run goes on.

        Optimizers leave gradients that wait in `.grad` out of their state, so they are saved here.
        """
        waiting = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {
            "model": dict(self.model.state_dict()),
            "waiting_gradients": waiting,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_random()},
        }

    def restore(self, tree: checkpoint.Tree) -> None:
        """Be what `tree` was made of; anything that does not come back is found here, not later."""
        self.restore_weights(tree)
        for optimizer, state in zip(self.optimizers, tree["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            gradient = tree["waiting_gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        torch.set_rng_state(tree["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(tree["random"]["cuda"])
        if self.device.type == "cpu" or tree["random"]["cuda"]:
            lost = checkpoint.difference(tree, {**tree, **self.tree()})
            if lost is not None:
                raise InternalError(f"a checkpoint does not bring back {lost}")

    def restore_weights(self, tree: checkpoint.Tree) -> None:
        try:
            self.model.load_state_dict(tree["model"])
        except (RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise CallError(f"The checkpoint does not fit the spec of the run: {first}") from None

    def not_finite(self) -> list[str]:
        """The names of the weights that hold a number which is none."""
        tensors = self.model.state_dict().items()
        return [n for n, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())]

    def _tensor(self, ids: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(ids).to(self.device)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        if not self.mixed:
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield


def _cuda_random() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def pick_device(name: str | None) -> torch.device:
    """The device that was asked for, or the best there is."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CallError(f"--device {name} is no device: cpu, cuda or cuda:1, say.") from None
    if device.type not in ("cpu", "cuda"):
        raise CallError(f"--device {name}: nlc runs on cpu and cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CallError(f"--device {name}: torch sees no such device on this machine.")
    return device


def prepare(device: torch.device, threads: int | None, seed: int) -> None:
    """Settings of the process that a run's numbers or speed depend on.

    Denormals come before the first operation, since threads take the setting over when they start.
    """
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
