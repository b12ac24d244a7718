"""The command line over a stand-in model, so that training is tested apart from the compiler.

Run as a script it is `nlc`, for tests that kill the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nlc import cli, commands, generate, train
from nlc.loading import Loaded

SPEC = "# the text of a spec\n"


class Memory:
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def save(self, path: Path) -> None:
        torch.save(self.hidden, path)


class Standin(nn.Module):
    """A recurrent network with the manners of a compiled module. `spoil`: when the loss is NaN."""

    source = "# generated\n"

    def __init__(self, width: int, spoil: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)
        self.spoil = spoil
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self, tokens: Tensor, state: Memory | None = None, own: bool = False
    ) -> tuple[Tensor, Memory]:
        answer, hidden = self.cell(self.embed(tokens), None if state is None else state.hidden)
        return self.head(answer), Memory(hidden)

    def losses(self, tokens: Tensor, state: Memory | None = None) -> tuple[Tensor, Tensor, Memory]:
        logits, memory = self(tokens, state)
        losses = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        losses = nn.functional.pad(losses, (0, 1))
        labelled = torch.ones_like(tokens, dtype=torch.bool)
        labelled[:, -1] = False
        if self.training:
            assert isinstance(self.calls, Tensor)
            self.calls += 1
            noise = torch.rand(())  # as dropout would, it takes numbers from the generator
            losses = losses * (1 + 0.1 * noise)
            if int(self.calls) == self.spoil:
                losses = losses * float("nan")
        return losses, labelled, memory

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(self.head.parameters(), lr=3e-3),
            Seldom([*self.embed.parameters(), *self.cell.parameters()], lr=1e-2),
        ]


class Seldom(torch.optim.SGD):
    """A slow level: gradients wait in `.grad` for four steps."""

    waited = 0

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.waited += 1
        if self.waited % 4 == 0:
            super().step()
            super().zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waited = state_dict["waited"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "waited"})


def load_spec(name: str, settings: dict[str, Any]) -> Any:
    flow = SimpleNamespace(inputs=(("tokens", ()),), loss=1, result=SimpleNamespace(shape=(256,)))
    system = SimpleNamespace(name="standin", flow=flow, assume=None, levels=(), transfers=())
    text = Path(name).read_text("utf-8")
    spec: Any = SimpleNamespace(system=system, settings=settings)
    return Loaded(spec, Path(name).name, {Path(name).name: text})


def compile_spec(loaded: Loaded, device: torch.device, seed: int) -> Standin:
    torch.manual_seed(seed)
    settings: dict[str, int] = vars(loaded.spec)["settings"]
    return Standin(settings.get("width", 16), settings.get("spoil", -1)).to(device)


def load_state(path: Path, model: nn.Module) -> Memory:
    if not path.read_bytes().startswith(b"PK"):
        raise ValueError(f"{path} is no state file")
    return Memory(torch.load(path))


def stand_in(put: Callable[[Any, str, Any], object]) -> None:
    """Put the stand-in where the compiler is used."""
    for module in (train, generate):
        put(module, "load_spec", load_spec)
        put(module, "compile_spec", compile_spec)
    put(commands, "_find", Path)
    put(generate, "load_state", load_state)


if __name__ == "__main__":
    stand_in(setattr)
    sys.exit(cli.main())
