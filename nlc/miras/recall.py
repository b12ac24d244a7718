"""STAGE: memory, task, seed -> how much a small model with that memory recalls.

The model is a system of the language, written here around the memory and compiled like any other:
one layer, two heads, a short convolution on queries, keys and values, and a feed-forward network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..backends.torch_source import compile as compile_spec
from ..driver import load
from .choices import Combination
from .tasks import Task
from .writing import parameters, spec

WIDTH, HEADS, BATCH, RATE, WARM = 32, 2, 64, 5e-3, 50
HELD_OUT, HELD_OUT_SEED = 512, 10**6
MARKS = 20  # points of a curve

SYSTEM = """nl 1
# {title}
use "schedules"

{memory}
system recall(vocab = {vocab}, width = {width}, heads = {heads}, rate = {rate}, steps = {steps}) {{
  level training every step {{
    objective loss
    learn     adamw(rate = 50 * rate * warm_cosine(count, {warm}, steps + 1), shrink = 0) for tables
    learn     adamw(rate = rate * warm_cosine(count, {warm}, steps + 1), grad = clipped(grad, 1))
  }}

  level mixer(x) every token {{
    q = unit(split(conv(linear(x, width), 4), heads))
    k = unit(split(conv(linear(x, width), 4), heads))
    v = unit(split(conv(linear(x, width), 4), heads))
{gates}
    read linear(join({call}), width)
  }}

  transfer backprop mixer -> training
{init}
  flow(tokens, targets) {{
    x = embed(tokens, vocab, width) / 50
    x += mixer(norm(x))
    h = norm(x)
    x += linear(silu(linear(h, 2*width)), width)
    logits = unembed(norm(x) / 50, vocab)
    loss = cross_entropy(logits, targets)
    return logits
  }}
}}
"""

# what the caller of a memory gives for each of its streams; `{x}` is one number a head or a channel
GATES = {
    "alpha": "sigmoid({x} + 6)", "mu": "sigmoid({x})", "eta": "{most} * sigmoid({x})",
    "delta": "softplus({x})", "beta": "sigmoid({x})", "ridge": "0.25 + softplus({x})",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """What one model recalled of the held-out sequences, and how it came there."""

    share: float
    curve: tuple[tuple[int, float], ...]
    parameters: int


def system_text(combination: Combination, task: Task, steps: int) -> str:
    """The model around a memory."""
    names = [p.partition("[")[0] for p in parameters(combination) if "=" not in p]
    memory = spec(combination).partition("\n")[2]
    return SYSTEM.format(
        title=f"Recall: {task.words}.",
        memory=memory,
        vocab=task.vocab, width=WIDTH, heads=HEADS, rate=RATE, steps=steps,
        warm=max(1, min(WARM, steps // 4)),
        gates="\n".join(f"    {line}" for line in gates(combination)),
        call=f"{combination.name}({', '.join(f'{n} = {n}' for n in names)})",
        init="  transfer init training -> mixer\n" if combination.memory.network else "",
    )  # fmt: skip


def gates(combination: Combination) -> list[str]:
    """A line for each stream beside q, k and v."""
    slow = 0.1 if not combination.rule.linear else 0.5 if combination.memory.network else 1.0
    most = f"{combination.bias.most * slow:g}"
    made = []
    for parameter in parameters(combination):
        name, sized, _ = parameter.partition("[")
        if name not in GATES or "=" in parameter:
            continue
        x = "split(linear(x, width), heads)" if sized else "linear(x, heads)"
        made.append(f"{name} = {GATES[name].format(x=x, most=most)}")
    return made


def recall(
    combination: Combination,
    task: Task,
    seed: int,
    steps: int,
    told: Callable[[int, float], bool] = lambda step, loss: False,
) -> Score | None:
    """Train, then ask. `told` hears of every step, and ends the run by answering True: then None.

    Raises SpecError where the memory has no lowering yet.
    """
    model = compile_spec(load(system_text(combination, task, steps)), seed=seed)
    optimizers = model.optimizers()
    draw = torch.Generator().manual_seed(seed)
    curve: list[tuple[int, float]] = []
    for step in range(1, steps + 1):
        batch = task.batch(BATCH, draw)
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses, _, _ = model.losses(batch.tokens, batch.targets)
        loss = losses[batch.asked].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if not bool(torch.isfinite(loss)):
            return Score(float("nan"), tuple(curve), count(model))
        for optimizer in optimizers:
            optimizer.step()
        if step % max(1, steps // MARKS) == 0 or step == steps:
            curve.append((step, share(model, task)))
        if told(step, float(loss.detach())):
            return None
    return Score(curve[-1][1], tuple(curve), count(model))


def share(model: torch.nn.Module, task: Task) -> float:
    """The share of right answers on sequences that no training saw."""
    batch = task.batch(HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED))
    with torch.no_grad():
        logits, _ = model(batch.tokens, batch.targets)
    right = logits.argmax(-1)[batch.asked] == batch.targets[batch.asked]
    return float(right.float().mean())


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
