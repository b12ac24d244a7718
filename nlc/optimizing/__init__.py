"""An optimizer's spec as a `torch.optim.Optimizer` (language.md 2.13).

    optimizer = nlc.optimizer("adamw")(model.parameters(), lr=3e-4, shrink=0.1)
    optimizer = nlc.optimizer("muon", "adamw")(model, muon={"lr": 0.02}, adamw={"lr": 3e-4})
    lines = nlc.optimizer("learn muon(rate = 0.02 * warm_cosine(count, 100, 5000)) for matrices",
                          "learn adamw(grad = clipped(grad, 1))")
    optimizer = lines(model)

Each array is served by the first rule that fits it, as by the `learn` lines of a level (2.9.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .composed import Composed
from .declared import Line, lines, names
from .examples import Examples
from .making import open_settings


class Rules:
    """What `nlc.optimizer` gives: call it with what is to be trained."""

    def __init__(self, found: tuple[Line, ...], seed: int = 0) -> None:
        self.lines, self.seed = found, seed

    def __repr__(self) -> str:
        return f"optimizer {'; '.join(line.said for line in self.lines)}"

    @property
    def settings(self) -> dict[str, dict[str, float | None]]:
        """By rule, what it may be set to, with its defaults; `rate` is the group's `lr`."""
        return {line.rule: line.settings for line in self.lines}

    def __call__(self, params: Any, **settings: Any) -> Composed:
        """The optimizer of these arrays.

        params: a module; or tensors, pairs of names and tensors, or dicts of these under `params`
        with options of their own, as in `torch.optim`. A module tells tables from matrices, and
        gives the rules that ask for it the `input` of its linear layers.
        settings: options of every group, by the names of the spec; `rate` is `lr`. For one rule of
        several, a dict by its name: muon={"lr": 0.02}.

        Raises ValueError or TypeError for arrays that no rule fits, and for unknown settings, and
        SpecError for what is not compiled yet (NL701).
        """
        return Composed(self.lines, params, settings, self.seed)


def optimizer(*specs: str | Path, seed: int = 0) -> Rules:
    """Optimizers by shipped name, by file (`.nl`), as text that begins with `nl 1`, or as `learn`
    lines; of a text or file with a system, the lines that its unnamed weights learn by.

    seed: of memories that are drawn. Raises ValueError for an unknown name, OSError for a file that
    is not there, and SpecError with every mistake of a text.
    """
    if not specs:
        raise ValueError(f"which optimizer? There are {', '.join(names())}")
    return Rules(tuple(line for spec in specs for line in lines(spec)), seed)


__all__ = ["Composed", "Examples", "Line", "Rules", "names", "open_settings", "optimizer"]
