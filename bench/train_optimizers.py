"""Optimizers as levels, on a small transformer over real text: which learns most in equal steps.

    python bench/train_optimizers.py [--steps 300] [--out results.json]

The rule under test serves the matrices of attention and feed-forward; AdamW serves the rest, at the
rate that is best for AdamW everywhere. Each rule's rate (and the one number more that two of them
need) is the best of a small grid on a seed of its own; then three other seeds are held out from
nothing but that choice. Text: the sources of Python's standard library, bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nlc
from nlc.corpus import Corpus, load_corpus, validation_batches, window_batch
from nlc.learner import Learner

SPEC = Path(nlc.__file__).parent / "specs/transformer.nl"
TUNING, SEEDS = 100, (1, 2, 3)
BATCH, LENGTH = 8, 128
# as it is, a gradient is so small that nothing happens in a network that learns it
UNIT = "grad / sqrt(mean(grad^2) + 1e-20)"
GRIDS: dict[str, list[dict[str, str]]] = {
    "gradient": [{"rate": "0"}],  # the matrices stay as they were drawn
    "adamw": [{"rate": r, "shrink": "0.1"} for r in ("4e-3", "8e-3", "1.6e-2", "3.2e-2", "6.4e-2")],
    "momentum": [{"rate": r} for r in ("3e-1", "1", "3", "10")],
    "delta_momentum": [
        {"rate": r, "erase": e} for e in ("0.1", "1", "3") for r in ("3e-1", "1", "3")
    ],
    "muon": [
        {"rate": r, "nesterov": "1", "scale": "1"} for r in ("5e-3", "1e-2", "2e-2", "4e-2", "8e-2")
    ],
    "m3": [{"rate": r} for r in ("3e-6", "1e-5", "3e-5", "1e-4", "3e-4")],
    "m3 without its slow memory": [
        {"rate": r, "share": "0"} for r in ("3e-6", "1e-5", "3e-5", "1e-4", "3e-4")
    ],
    "dmgd": [
        {"rate": r, "inner": i, "grad": UNIT}
        for i in ("1e-5", "3e-5", "1e-4")
        for r in ("1e-3", "1e-2", "1e-1")
    ],
    "dmgd_squares": [
        {"rate": r, "inner": i, "grad": UNIT}
        for i in ("3e-5", "1e-4", "3e-4")
        for r in ("1e-3", "3e-3", "1e-2", "3e-2")
    ],
}


def text_of(rule: str, settings: dict[str, str], rest: str, steps: int) -> str:
    """The shipped transformer, with another training level."""
    shape = f"warm_cosine(count, {max(steps // 10, 1)}, {steps})"
    given = {**settings, "rate": f"{settings['rate']} * {shape}"}
    said_ = ", ".join(f"{k} = {v}" for k, v in given.items())
    line = f"learn {rule.partition(' ')[0]}({said_}) for matrices"
    other = f"learn adamw(rate = {rest} * {shape}, shrink = 0.1)"
    text = SPEC.read_text(encoding="utf-8")
    for old, new in (
        ("learn     muon(rate = 0.02) for matrices", line),
        ("learn     adamw(rate = rate, shrink = 0.1)", other),
        ("nl 1\n", 'nl 1\nuse "schedules"\n'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Sizes:
    steps: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int = 176


def run(
    corpus: Corpus, rule: str, settings: dict[str, str], rest: str, seed: int, sizes: Sizes
) -> float:
    """Bits a byte of the text held out, after so many steps; infinite where numbers ran away."""
    torch.manual_seed(seed)
    text = text_of(rule, settings, rest, sizes.steps)
    own = {k: getattr(sizes, k) for k in ("width", "depth", "heads", "hidden")}
    model = nlc.compile(nlc.load(text, **own), seed=seed)
    learner = Learner(model, torch.device("cpu"), mixed=False)
    for step in range(sizes.steps):
        loss = learner.step(window_batch(corpus.train, seed, step, BATCH, LENGTH))
        if not math.isfinite(loss) or loss > 20:
            return math.inf
    found = learner.evaluate(validation_batches(corpus.validation, 32, LENGTH), lambda: False)
    return math.inf if found is None or not math.isfinite(found) else found


def said(settings: dict[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in settings.items() if k != "grad")


class Study:
    """All runs, each kept as soon as it is done; what a file holds already is not run again."""

    def __init__(self, corpus: Corpus, sizes: Sizes, out: Path | None) -> None:
        self.corpus, self.sizes, self.out = corpus, sizes, out
        self.done: dict[str, float] = {}
        if out is not None and out.exists():
            self.done = {k: float(v) for k, v in json.loads(out.read_text())["runs"].items()}

    def bits(self, rule: str, settings: dict[str, str], rest: str, seed: int) -> float:
        key = f"{rule}({said(settings)}), rest {rest}, seed {seed}"
        if key not in self.done:
            start = time.perf_counter()
            self.done[key] = run(self.corpus, rule, settings, rest, seed, self.sizes)
            took = time.perf_counter() - start
            print(f"{key}: {self.done[key]:.4f} ({took:.0f} s)", file=sys.stderr, flush=True)
            self.keep()
        return self.done[key]

    def keep(self, **more: Any) -> None:
        if self.out is not None:
            runs = {k: str(v) for k, v in self.done.items()}
            self.out.write_text(json.dumps({"runs": runs, **more}, indent=1) + "\n")

    def tuned(self, rule: str, rest: str) -> dict[str, str]:
        return min(GRIDS[rule], key=lambda s: self.bits(rule, s, rest, TUNING))

    def rest(self) -> str:
        """The best rate of AdamW for everything."""
        grid = GRIDS["adamw"]
        return min(grid, key=lambda s: self.bits("adamw", s, s["rate"], TUNING))["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rules", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    library = Path(sysconfig.get_path("stdlib"))
    skip = ["site-packages", "test*", "*_test", "encodings", "pydoc_data", "idlelib"]
    corpus = load_corpus([library], only=["*.py"], skip=skip, validation_bytes=65536)
    print(corpus.summary, file=sys.stderr)
    study = Study(corpus, Sizes(words.steps), words.out)
    rest = study.rest()
    print(f"AdamW everywhere else: rate {rest}", file=sys.stderr)
    print(
        "| matrices by | settings | bits a byte held out, three seeds | mean | spread |\n"
        "|---|---|---|---|---|"
    )
    for rule in words.rules:
        best = study.tuned(rule, rest)
        found = [study.bits(rule, best, rest, seed) for seed in SEEDS]
        each = " ".join(f"{x:.3f}" for x in found)
        spread = max(found) - min(found)
        print(
            f"| {rule} | {said(best)} | {each} | {statistics.mean(found):.3f} | {spread:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
