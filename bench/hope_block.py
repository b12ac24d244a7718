"""One HOPE block beside a plain pre-norm transformer block: forward and backward, in one process.

    python bench/hope_block.py [--width 128] [--heads 4] [--length 512] [--rounds 5]

Time is the median of alternating rounds; memory the highest number of live bytes of tensors that a
step adds, counted
by the CPU allocator itself through `torch.profiler`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import nlc

PLAIN = """nl 1
use "memory/attend"
system plain_block(vocab = 256, width = 128, heads = 4) {
  level training every step { objective loss; learn adamw(rate = 4e-4) }
  level attention(x) always {
    q = split(linear(x, width), heads)
    k = split(linear(x, width), heads)
    v = split(linear(x, width), heads)
    read linear(join(attend(q, k, v)), width)
  }
  transfer backprop attention -> training
  flow(tokens) {
    x = embed(tokens, vocab, width)
    x += attention(norm(x))
    x += linear(gelu(linear(norm(x), 4*width)), width)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""


def step_of(model: nlc.compile, tokens: Tensor) -> Callable[[], None]:  # type: ignore[valid-type]
    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses, labelled, _ = model.losses(tokens)
        losses[labelled].mean().backward()

    return step


def peak(step: Callable[[], None]) -> float:
    """MiB of tensors alive at once above those before the step."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    live = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("width", 128),
        ("heads", 4),
        ("length", 512),
        ("batch", 1),
        ("rounds", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    tokens = torch.randint(
        0, 256, (given.batch, given.length), generator=torch.Generator().manual_seed(0)
    )
    plain = nlc.compile(nlc.load(PLAIN, width=given.width, heads=given.heads))
    hope = nlc.compile(nlc.load("hope", width=given.width, heads=given.heads, depth=1))
    steps = {"plain transformer block": step_of(plain, tokens), "HOPE block": step_of(hope, tokens)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    for name, step in steps.items():
        middle = statistics.median(times[name])
        spread = f"{min(times[name]) * 1e3:.0f}..{max(times[name]) * 1e3:.0f}"
        print(
            f"{name:25} {middle * 1e3:8.1f} ms ({spread})  "
            f"{given.batch * given.length / middle:9.0f} tokens/s  peak {peak(step):6.1f} MiB"
        )
    a, b = (statistics.median(t) for t in times.values())
    print(f"ratio {b / a:.1f}")


if __name__ == "__main__":
    main()
