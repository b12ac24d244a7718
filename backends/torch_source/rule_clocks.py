"""Clocks inside an optimizer as Python: its levels count the firings that it serves (2.6.1)."""

from __future__ import annotations

from nlc.system import Clock


def fires(clock: Clock) -> str:
    """Whether this firing is one of the level's; "" where every one is."""
    first = clock.first
    if clock.period == 1:
        return f"count >= {first}" if first > 1 else ""
    if first == clock.period:
        return f"count % {clock.period} == 0"
    return f"count >= {first} and (count - {first}) % {clock.period} == 0"


def fired(clock: Clock) -> str:
    """How many times the level has fired, this one included, when it does."""
    first = clock.first
    if clock.period == 1 and first == 1:
        return "count"
    if first == clock.period:
        return f"(count // {clock.period})"
    return f"((count - {first}) // {clock.period} + 1)"


def begun(clock: Clock) -> str:
    """Of which firing of the level this one is a tick."""
    first = clock.first
    if clock.period == 1 and first == 1:
        return "count"
    if first == clock.period:
        return f"((count - 1) // {clock.period} + 1)"
    return f"(max(0, (count - 1 - {first}) // {clock.period} + 1) + 1)"
