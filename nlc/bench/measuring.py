"""Time and memory of steps that take turns in one process, so that a machine's noise meets all of
them alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SLOW = 20.0  # seconds: a step that takes longer is run once, cold


@dataclass(frozen=True)
class Case:
    """One thing that is measured. `tokens`: how many a step reads. `weighed`: its peak memory is
    measured too.
    """

    name: str
    step: Callable[[], object]
    tokens: int
    weighed: bool = True


@dataclass(frozen=True)
class Figures:
    """Of one case. `seconds`: of each round. `peak`: bytes of live tensors above those before the
    step, at their highest.
    """

    name: str
    seconds: tuple[float, ...]
    tokens: int
    peak: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": list(self.seconds),
            "median_seconds": self.median,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.median,
            "peak_bytes": self.peak,
        }


def measured(
    cases: Sequence[Case], rounds: int, device: str, say: Callable[[str], None]
) -> list[Figures]:
    """A first round that does not count, then `rounds`, each case in its turn."""
    first = {c.name: timed(c, device, say) for c in cases}
    times: dict[str, list[float]] = {c.name: [] for c in cases}
    for _ in range(rounds):
        for c in cases:
            if first[c.name] < SLOW:
                times[c.name].append(timed(c, device, say))
    peaks = {c.name: peak(c.step, device) for c in cases if c.weighed and first[c.name] < SLOW}
    return [
        Figures(c.name, tuple(times[c.name] or [first[c.name]]), c.tokens, peaks.get(c.name))
        for c in cases
    ]


def timed(case: Case, device: str, say: Callable[[str], None]) -> float:
    say(case.name)
    settle(device)
    start = time.perf_counter()
    case.step()
    settle(device)
    return time.perf_counter() - start


def settle(device: str) -> None:
    """What was asked of a GPU is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak(step: Callable[[], object], device: str) -> int:
    """Counted by the allocator itself."""
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:  # with `acc_events`, or torch 2.11 warns that it has one cycle alone
        step()
    live = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """So many threads, and no denormal numbers, which slow a CPU down tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


# ---- the machine ---------------------------------------------------------------------------------


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures are of."""
    made: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        made["gpu"] = torch.cuda.get_device_name(device)
    return made


def processor() -> str:
    """The name that the kernel gives it, and the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} {platform.machine()}".strip()
