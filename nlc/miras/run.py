"""`nlc miras`: survey, write, train on request, tell. In: what a call asks for. Out: a folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..files import CallError, did_you_mean
from ..interrupts import Interrupts
from ..progress import QuietConsole
from .choices import (
    BIASES,
    CHUNK,
    MEMORIES,
    RETENTIONS,
    RULES,
    Combination,
    combinations,
)
from .folder import Folder, Training
from .known import KNOWN
from .laws import LAWS, first_broken
from .ranking import Ranked, found_names, percent, ranked, spread, summary, verdicts
from .survey import Row, survey
from .tasks import TASKS, Task

SHOWN = 20  # rows that a terminal is shown
SET_ASIDE = "in recall.jsonl are not compared: of other steps, or of memories that are not these"


class HasName(Protocol):
    @property
    def name(self) -> str: ...


Choice = TypeVar("Choice", bound=HasName)


@dataclass(frozen=True)
class Options:
    """Choices by name; () is all that are usual. `recall`: how many are trained, `names`: which."""

    out: Path
    memory: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    everything: bool = False
    chunk: int = CHUNK
    size: int = 64
    recall: int = 0
    names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    steps: int = 600
    seeds: int = 1
    threads: int | None = None
    console: QuietConsole = field(
        default_factory=lambda: QuietConsole(highlight=False, soft_wrap=True)
    )


def miras(options: Options) -> int:
    """The whole command; the exit status."""
    console = options.console
    chosen = combinations(
        picked("memory", MEMORIES, options.memory, options.everything),
        picked("bias", BIASES, options.bias, True),
        picked("retention", RETENTIONS, options.retention, True),
        picked("rule", RULES, options.rule, options.everything),
        options.chunk,
    )
    tasks = picked("task", TASKS, options.tasks, True)
    folder = Folder(options.out)
    options = replace(options, names=whole_names(options.names))
    check_some(chosen)
    check_names(chosen, options.names)
    folder.make()
    with console.status("") as status:

        def told(done: int, row: Row) -> None:
            status.update(f"{done:,} of {len(chosen):,} combinations")
            folder.write_spec(row)

        rows = survey(chosen, options.size, told)
    wanted = to_train(rows, options)
    done = folder.trainings()
    fitting = standing(rows, done, options)
    folder.write_tables(rows, fitting, options.size)
    for line in summary(rows):
        console.print(line, markup=False)
    if len(fitting) < len(done):
        console.print(f"  {len(done) - len(fitting):,} of {len(done):,} {SET_ASIDE}", markup=False)
    stopped = train(wanted, tasks, options, folder, done) if wanted else 0
    fitting = standing(rows, folder.trainings(), options)
    order = folder.write_tables(rows, fitting, options.size)
    tell(rows, order, tasks, console)
    console.print(f"{folder.path / 'index.html'}", markup=False)
    return stopped


def picked(
    what: str, among: tuple[Choice, ...], names: Sequence[str], everything: bool
) -> tuple[Choice, ...]:
    """The choices of these names; without any, those that are usual."""
    known = {choice.name: choice for choice in among}
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise CallError(f"There is no {what} {name}.{near} nlc miras --list has them.")
    if names:
        return tuple(choice for choice in among if choice.name in names)
    return tuple(c for c in among if everything or getattr(c, "usual", True))


# ---- recall --------------------------------------------------------------------------------------


def to_train(rows: Sequence[Row], options: Options) -> list[Row]:
    """The cheapest distinct ones that are compiled, or those that the call names."""
    if not options.names:
        cheapest = [one.row for one in ranked(rows, {}) if one.row.distinct and one.row.compiled]
        return cheapest[: options.recall]
    by_name = {row.name: row for row in rows}
    published = {name.lower(): found[0] for name, found in found_names(rows)}
    missing = [n for n in options.names if n not in by_name and n.lower() not in published]
    if missing:
        raise CallError(f"None of the memories that were chosen is {missing[0]}.")
    return [by_name.get(name) or published[name.lower()] for name in options.names]


def standing(rows: Sequence[Row], done: Sequence[Training], options: Options) -> list[Training]:
    """The trainings of these memories as they are written now, of as many steps as this call asks
    for, or if it asks for none as the last one had: a table compares like with like.
    """
    if not done:
        return []
    from .recall import system_text

    steps = options.steps if options.recall or options.names else done[-1].steps
    made = {row.name: row.combination for row in rows if row.law is None}
    texts = {
        (name, task.name): digest(system_text(made[name], task, steps))
        for name in {one.name for one in done} & made.keys()
        for task in TASKS
    }
    return [t for t in done if t.steps == steps and texts.get((t.name, t.task)) == t.text]


def whole_names(parts: Sequence[str]) -> tuple[str, ...]:
    """A name with a comma in it, `Titans, linear`, comes in parts: the longest that is a name."""
    published = {known.name.lower() for known in KNOWN}
    made, rest = [], list(parts)
    while rest:
        ends = (n for n in range(len(rest), 1, -1) if ", ".join(rest[:n]).lower() in published)
        end = next(ends, 1)
        made.append(", ".join(rest[:end]))
        rest = rest[end:]
    return tuple(made)


def check_some(chosen: Sequence[Combination]) -> None:
    """Something is left when the laws have been asked."""
    broken = [first_broken(c) for c in chosen]
    if all(broken):
        why = "; ".join(dict.fromkeys(law.sentence for law in broken if law is not None))
        raise CallError(f"All of what was chosen is left out, by law: {why}.")


def check_names(chosen: Sequence[Combination], names: Sequence[str]) -> None:
    """Before anything is made: each is a memory that has a spec, or a published one."""
    by_name = {c.name: c for c in chosen}
    published = {known.name.lower() for known in KNOWN}
    for name in names:
        law = first_broken(by_name[name]) if name in by_name else None
        if law is not None:
            raise CallError(f"{name} has no spec, by law: {law.sentence}.")
        if name not in by_name and name.lower() not in published:
            near = did_you_mean(name, [*by_name, *published])
            raise CallError(f"There is no memory {name} among those that were chosen.{near}")


def train(
    rows: Sequence[Row], tasks: Sequence[Task], options: Options, folder: Folder,
    done: Sequence[Training],
) -> int:  # fmt: skip
    """Every memory on every task, seed after seed; what is done already is not done again."""
    import torch

    from ..driver import SpecError
    from .recall import recall, system_text

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console, finished = options.console, {training.key for training in done}
    jobs = list(job_list(rows, tasks, options.seeds))
    with Interrupts() as interrupts, console.status("") as status:
        for i, (row, task, seed) in enumerate(jobs, 1):
            text = digest(system_text(row.combination, task, options.steps))
            if (row.name, task.name, seed, text) in finished:
                continue
            head = f"{i} of {len(jobs)}: {task.name}, {row.name}, seed {seed}"

            def told(step: int, loss: float, head: str = head) -> bool:
                status.update(f"{head}, step {step:,} of {options.steps:,}, loss {loss:.3f}")
                return interrupts.caught is not None

            try:
                score = recall(row.combination, task, seed, options.steps, told)
            except SpecError as error:
                console.print(f"{row.name}: {error.diagnostics[0].message}", markup=False)
                continue
            if score is None:
                console.print("Stopped; what is done is kept. The same call goes on.", markup=False)
                return 128 + (interrupts.caught or 0)
            folder.add(
                Training(row.name, task.name, seed, options.steps, text, score.share,
                         score.parameters, score.curve)
            )  # fmt: skip
            console.print(f"{head}: {told_share(score.share)}", markup=False)
    return 0


def told_share(share: float) -> str:
    return "diverged" if math.isnan(share) else f"{percent(share)}% recalled"


def job_list(
    rows: Sequence[Row], tasks: Sequence[Task], seeds: int
) -> Iterator[tuple[Row, Task, int]]:
    """One seed of all before the next, so that a run cut short compares like with like."""
    return ((row, task, seed) for seed in range(seeds) for task in tasks for row in rows)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- what is told --------------------------------------------------------------------------------


def tell(
    rows: Sequence[Row], order: Sequence[Ranked], tasks: Sequence[Task], console: QuietConsole
) -> None:
    """The names that were found, and the best, or without a measurement the cheapest."""
    for name, found in found_names(rows):
        others = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
        console.print(f"  {name}: {found[0].name}{others}", markup=False)
    measured = [one for one in order if any(one.shares.values())]
    console.print("the best" if measured else "the cheapest of those that differ", markup=False)
    for one in [one for one in measured or order if one.row.distinct][:SHOWN]:
        console.print(f"  {told_line(one, tasks)}", markup=False)
    if measured:
        names = [t.name for t in tasks if any(t.name in one.shares for one in measured)]
        console.print(verdicts(names), markup=False)


def told_line(one: Ranked, tasks: Sequence[Task]) -> str:
    assert one.row.cost is not None
    parts = [f"{one.place:>5}  {one.name:44} {one.row.cost.operations:>11,} operations"]
    parts += [f"{t.name} {spread(one.shares[t.name])}" for t in tasks if one.shares.get(t.name)]
    return "  ".join([*parts, *([one.told] if one.told else [])])


def listed() -> str:
    """All that can be chosen, every law, and the memories that have a name."""
    lines: list[str] = []
    kinds: tuple[tuple[str, Sequence[Any]], ...] = (
        ("memory", MEMORIES), ("bias", BIASES), ("retention", RETENTIONS), ("rule", RULES)
    )  # fmt: skip
    for kind, among in kinds:
        lines.append(f"--{kind}")
        for choice in among:
            unusual = "" if getattr(choice, "usual", True) else " (with --all, or by name)"
            lines.append(f"  {choice.name:15} {choice.words}{unusual}")
    lines += ["--task", *(f"  {t.name:15} {t.words}" for t in TASKS)]
    lines += ["laws", *(f"  {law.kind + ':':11} {law.sentence}" for law in LAWS)]
    lines += ["names", *(f"  {k.name}, {k.cite}" for k in KNOWN)]
    return "\n".join(lines)
