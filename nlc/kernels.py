"""PAGE: which kernel of flash-linear-attention means the same as a scan, by what its ticks do.

W_t = keep_t W_{t-1} - rate_t (e_t + erase keep_t W_{t-1} x_t) x_t'        y_t = W_t q_t
"""

from __future__ import annotations

from dataclasses import dataclass

FLA = (0, 4), (0, 7)  # versions that are known: from the first on, before the second
TICKS = 64  # the fewest, one of its chunks
WIDTHS = range(16, 257)  # channels of keys and of values


@dataclass(frozen=True, slots=True)
class Ticks:
    """`erase`: None if it changes from tick to tick. `channels`: one keep an input channel; `kept`:
    no keep at all; `retained`: what is erased has faded already; `rates`: a rate an output channel.
    """

    erase: float | None
    kept: bool
    channels: bool
    retained: bool
    rates: bool = False


def fla_kernel(ticks: Ticks) -> tuple[str, str] | None:
    """Its module and its name, where there is one."""
    if ticks.erase not in (0.0, 1.0) or ticks.rates:
        return None
    if not ticks.erase:
        kind = "gla" if ticks.channels else "simple_gla"
        return f"fla.ops.{kind}", f"chunk_{kind}"
    if ticks.kept:
        return "fla.ops.delta_rule", "chunk_delta_rule"
    if not ticks.retained:  # they take back what has faded
        return None
    kind = "kda" if ticks.channels else "gated_delta_rule"
    return f"fla.ops.{kind}", f"chunk_{kind}"
