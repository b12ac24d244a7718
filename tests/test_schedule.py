"""The schedule fires when clocks say, tick by tick; its texts are plain, aligned and stable."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_order import (
    ALWAYS,
    NEVER,
    STEP,
    TOKEN,
    add,
    box,
    exact,
    learn,
    optimizer,
    system,
    training,
)

from nlc.schedule import Row, Schedule, schedule
from nlc.system import Clock, Level, System


def one(clock: Clock, reset: Clock | None = None, partial: str = "carry") -> System:
    level = Level("it", "it", clock, reset, partial)
    return system([level], [add(box(level, loss=True))])


def row(made: Schedule, name: str = "it") -> Row:
    return next(r for r in made.rows if r.name == name)


def by_ticks(
    clock: Clock, reset: Clock, partial: str, ticks: int, sequence: int
) -> Iterator[tuple[int, bool]]:
    """The firings, counted one tick at a time as section 2.6 of the language says; True is a
    flush.
    """
    count = whole = since = 0
    for tick in range(1, ticks + 1):
        due = {"token": True, "sequence": tick % sequence == 0}
        count += due[clock.unit]
        whole += due.get(reset.unit, False)
        since += 1
        if due[clock.unit] and clock.fires(count):
            yield tick, False
            since = 0
        if due.get(reset.unit) and reset.fires(whole):
            if partial == "flush" and since:
                yield tick, True
            count = since = 0


CLOCKS = st.builds(
    Clock, st.just("token"), st.integers(1, 12), st.none() | st.integers(1, 20)
) | st.builds(Clock, st.just("sequence"), st.integers(1, 3))
RESETS = st.just(NEVER) | st.builds(
    Clock, st.sampled_from(["token", "sequence"]), st.integers(1, 9)
)


@settings(max_examples=300, deadline=None)
@given(CLOCKS, RESETS, st.sampled_from(["carry", "flush", "drop"]), st.integers(1, 90))
def test_it_fires_when_the_clock_says(clock: Clock, reset: Clock, partial: str, n: int) -> None:
    made = row(schedule(one(clock, reset, partial), ticks=n, sequence=10)).lane
    expected = list(by_ticks(clock, reset, partial, n, 10))
    assert [t for r in made.fires for t in r] == [t for t, flush in expected if not flush]
    assert list(made.flushes) == [t for t, flush in expected if flush]


def test_steps_come_at_the_end_of_their_sequences() -> None:
    made = schedule(system([training(Clock("step", 2))]), ticks=100, sequence=10, step=2)
    assert list(row(made, "training").lane.ticks) == [40, 80]


def test_the_table_says_who_when_and_how_often() -> None:
    cms = [Level(f"cms[{p}]", "cms", Clock("token", p)) for p in (16, 128)]
    memory = Level("memory", "memory", TOKEN)
    frozen, attention = Level("frozen", "frozen", NEVER), Level("attention", "attention", ALWAYS)
    lines = [add(exact(attention)), add(box(memory)), *(add(box(l, loss=True)) for l in cms)]
    outer = training(STEP, learn(optimizer("adam", "m", "h")))
    made = schedule(system([outer, frozen, attention, memory, *cms], lines, assume=1024))
    rows = {r.name: r for r in made.rows}
    assert [r.name for r in made.rows] == [
        *("attention", "memory", "cms[16]", "cms[128]", "training.adam", "training", "frozen"),
    ]
    assert [r.turn for r in made.rows] == list(range(1, 8))
    assert rows["cms[16]"].cells[4:] == (
        "every 16 tokens",
        "token 16",
        "64 per sequence",
        "every sequence",
        "at the end of the tick, read old",
    )
    assert rows["memory"].writes == "at its call, read new"
    assert rows["attention"].fires == "infinite"
    assert rows["training.adam"].writes == "with training"
    assert (rows["frozen"].first, rows["frozen"].fires) == ("never", "0")


def test_a_read_before_the_write_reads_old() -> None:
    level = Level("it", "it", TOKEN)
    made = schedule(system([level], [add(box(level, before=True))]))
    assert row(made).writes == "at its call, read old"


@pytest.mark.parametrize(
    ("clock", "reset", "partial", "fires"),
    [
        (Clock("token", 16), None, "carry", "6 per sequence"),
        (Clock("token", 16), None, "flush", "7 per sequence"),
        (Clock("token", 16), NEVER, "carry", "25/4 per sequence"),
        (Clock("token", 16), Clock("token", 20), "carry", "5 per sequence"),
        (Clock("token", 16), Clock("token", 20), "flush", "10 per sequence"),
        (Clock("token", 200), None, "carry", "0 per sequence"),
    ],
)
def test_resets_and_partial_periods_are_counted(
    clock: Clock, reset: Clock | None, partial: str, fires: str
) -> None:
    assert row(schedule(one(clock, reset, partial), sequence=100)).fires == fires


def test_without_a_length_of_sequences() -> None:
    made = schedule(one(Clock("token", 16)))
    assert (made.ticks, row(made).fires) == (32, "1/16 per token")
    assert "how long a sequence is was not said" in str(made)


def test_the_timeline() -> None:
    made = schedule(one(Clock("token", 3), Clock("token", 8), "flush"), ticks=16, sequence=16)
    assert made.timeline().splitlines() == [
        "    1      16 tokens",
        "it  ··●··●·◐··●··●·◐",
        "           ↺",
        "    ● once   ◐ early, by partial flush   ↺ reset   · not",
    ]
    made = schedule(one(Clock("token", 16)), ticks=4096, sequence=4096)
    assert made.timeline(8).splitlines()[1:3] == ["it  ▓▓▓▓▓▓▓▓", "    one column is 512 tokens"]


def test_texts_are_aligned_and_stable() -> None:
    made = schedule(one(Clock("token", 16), Clock("token", 64)), ticks=1000, sequence=512)
    assert str(made) == str(schedule(one(Clock("token", 16), Clock("token", 64)), 1000, 512))
    assert all(line == line.rstrip() for line in str(made).splitlines())
    assert str(made).endswith("\n")


def test_the_picture_is_well_formed_whatever_the_names() -> None:
    level = Level('<b>&"', "b", Clock("token", 16), Clock("token", 40), "flush")
    made = schedule(system([level], [add(box(level, loss=True))]), ticks=400, sequence=400)
    svg = ElementTree.fromstring(made.svg())
    space = "{http://www.w3.org/2000/svg}"
    assert any(t.text == '<b>&"' for t in svg.iter(f"{space}text"))
    assert len(list(svg.iter(f"{space}circle"))) == 10


def test_long_runs_are_ranges() -> None:
    lane = row(schedule(one(TOKEN), ticks=10**9, sequence=10**9)).lane
    assert lane.fires == (range(1, 10**9 + 1),)
