"""`nlc train`: a spec and text in, a run folder out, which a crash at any moment leaves whole."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, corpus, run_folder
from .backends.runtime.optimizer import GradientError
from .checks.transfers import clause_is_idle
from .diagnostics import Unsettled
from .files import CallError, Stopped, why, write_atomically
from .interrupts import Interrupts
from .learner import Learner, pick_device, prepare
from .loading import compile_spec, load_spec
from .logbook import Logbook
from .progress import Goal, Reporter, duration
from .run_folder import RunFolder
from .weights import WeightsError, start_from

SAVE_SECONDS = 60.0  # between checkpoints, if the call does not say


@dataclass(frozen=True)
class Options:
    """What a call says; None: it does not. Those in `FIXED` decide the numbers, for a whole run."""

    spec: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    tokenizer: str | None = None
    start: str | None = None  # --from: weights
    partial: bool | None = None
    out: str | None = None
    resume: str | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    length: int | None = None
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    val_every: int | None = None
    val_bytes: int | None = None
    save_every: int | None = None
    keep: int | None = None
    task: int | None = None  # steps of a task; None: the run is one


DEFAULTS: Mapping[str, Any] = {
    "batch": 8, "length": 256, "seed": 0, "dtype": "float32",
    "val_every": 100, "val_bytes": 65536, "keep": 3,
}  # fmt: skip
FIXED = (
    "settings", "data", "only", "skip", "tokenizer", "start", "partial",
    "batch", "length", "seed", "dtype", "val_bytes", "task",
)  # fmt: skip
WORDS = {"start": "--from", "partial": "--partial"}  # of those that a call names otherwise


def train(options: Options) -> int:
    """Do what the call says; the exit status."""
    trainer = _resumed(options) if options.resume is not None else _started(options)
    with trainer.run.locked(), Interrupts() as interrupts:
        return trainer.go(interrupts)


# ---- beginnings ------------------------------------------------------------------------------


def _started(given: Options) -> Trainer:
    """A new run; nothing is written before all that can be wrong in the call has been looked at."""
    if given.spec is None or not given.data:
        raise CallError("A run needs a spec and text: nlc train SPEC --data PATH...")
    chosen = {k: v for k, v in dataclasses.asdict(given).items() if v is not None}
    options = Options(**{**DEFAULTS, **chosen})
    if options.steps is None and options.minutes is None:
        options = dataclasses.replace(options, steps=1000)
    if options.out is not None:
        run_folder.refuse_existing(Path(options.out))
    spec = load_spec(given.spec, options.settings)
    device = pick_device(options.device)
    text = _text(options)
    _check_vocabulary(spec.system, text.vocab)
    threads = options.threads or torch.get_num_threads()
    prepare(device, threads, int(options.seed or 0))
    model = compile_spec(spec, device, int(options.seed or 0))
    brought = _brought(model, options)
    learner = Learner(model, device, options.dtype == "bfloat16")
    if not learner.optimizers:
        raise CallError(
            f"No level of {spec.system.name} learns on steps: there is nothing to train."
        )
    place = run_folder.free_folder(spec.system.name) if options.out is None else Path(options.out)
    record = {"options": _recorded(options, device, threads), "data_digest": text.digest}
    run = run_folder.create_run(place, spec.main, spec.files, model.source, record)
    if options.tokenizer is not None:
        write_atomically(place / "tokenizer.json", Path(options.tokenizer).read_bytes())
    trainer = Trainer(run, options, learner, text)
    trainer.notes = [text.summary, *brought, *length_notes(spec.system, int(options.length or 0))]
    trainer.notes += learner.task_notes(options.task)
    return trainer


def _resumed(given: Options) -> Trainer:
    """A run as its newest whole checkpoint left it."""
    run = RunFolder(Path(str(given.resume)))
    record = run.read_record()
    options = _merged(given, _as_options(record["options"]))
    spec = load_spec(str(run.main_spec()), options.settings)
    if given.spec is not None:
        _same_spec(load_spec(given.spec, options.settings).files, spec.files)
    text = _text(options)
    if text.digest != record["data_digest"]:
        raise CallError(
            f"The text in {', '.join(options.data)} is not what {run.path} was started with, so it "
            "cannot go on. Bring the text back, or start a new run."
        )
    device = pick_device(options.device)
    prepare(device, options.threads, int(options.seed or 0))
    model = compile_spec(spec, device, int(options.seed or 0))
    brought = [] if run.saved() else _brought(model, options)
    trainer = Trainer(run, options, Learner(model, device, options.dtype == "bfloat16"), text)
    trainer.notes = [*brought, *_drift(run, record, model.source)]
    trainer.take_up()
    return trainer


def _brought(model: Any, options: Options) -> list[str]:
    """The weights that a run starts from, if the call names some, and a note that says so."""
    if options.start is None:
        if options.partial:
            raise CallError(
                "--partial is about the weights that a run starts from: it needs --from."
            )
        return []
    try:
        started = start_from(model, options.start, partial=bool(options.partial))
    except WeightsError as error:
        raise CallError(str(error)) from None
    return [str(started).replace("brought", f"brought from {options.start}", 1)]


def _text(options: Options) -> corpus.Corpus:
    text = corpus.load_corpus(
        [Path(p) for p in options.data],
        None if options.tokenizer is None else Path(options.tokenizer),
        options.only,
        options.skip,
        int(options.val_bytes or 0),
    )
    corpus.check_lengths(text, int(options.length or 0))
    return text


def _check_vocabulary(system: Any, vocab: int) -> None:
    inputs = [name for name, _ in system.flow.inputs]
    if len(inputs) != 1 or system.flow.loss is None:
        raise CallError(
            f"nlc train feeds one stream of tokens to a flow that has a loss; the flow of "
            f"{system.name} takes {', '.join(inputs)}"
            + ("." if system.flow.loss is not None else " and binds no loss.")
        )
    logits = system.flow.result.shape
    if logits and logits[-1] < vocab:
        raise CallError(
            f"The text has ids up to {vocab - 1}, and {system.name} answers with {logits[-1]} "
            f"logits: --set vocab={vocab}, if the spec has that setting."
        )


def length_notes(system: Any, length: int) -> list[str]:
    """What the length of the run's sequences means to the spec."""
    notes = []
    if system.assume is not None and system.assume != length:
        notes.append(
            f"{system.name} assumes sequences of {system.assume} tokens; those of this run have "
            f"{length} (--length {system.assume})."
        )
    cuts = {t.truncate for t in system.transfers if t.truncate and not clause_is_idle(t)}
    notes += [
        f"`through {cut} tokens` never cuts: sequences of this run have {length} tokens (--length)."
        for cut in sorted(cuts)
        if cut >= length
    ]
    for level in system.levels:
        clock = level.clock
        if clock.unit == "sequence":
            notes.append(
                f"{level.name} ({clock}) stands while this run trains: each step is a sequence of "
                "its own, which no other goes on from."
            )
        if clock.unit == "token" and level.resets.unit == "sequence" and clock.first > length:
            notes.append(f"{level.name} ({clock}) never fires in sequences of {length} tokens.")
    return notes


def _recorded(options: Options, device: torch.device, threads: int) -> dict[str, Any]:
    """The options as a later call needs them, wherever it is made from."""
    absolute = dataclasses.replace(
        options,
        data=tuple(_absolute(p) for p in options.data),
        tokenizer=None if options.tokenizer is None else _absolute(options.tokenizer),
        start=None if options.start is None else _absolute(options.start),
        device=str(device),
        threads=threads,
    )
    return dataclasses.asdict(absolute)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _as_options(recorded: Mapping[str, Any]) -> Options:
    names = {f.name for f in dataclasses.fields(Options)}
    known: dict[str, Any] = {k: v for k, v in recorded.items() if k in names}
    known.update((k, tuple(known[k])) for k in ("data", "only", "skip"))
    return Options(**known)


def _merged(given: Options, recorded: Options) -> Options:
    """The run's options with what this call may change; every other difference is told."""
    wrong = []
    for name in FIXED:
        now, then = getattr(given, name), getattr(recorded, name)
        if name == "data":
            now = tuple(_absolute(p) for p in now)
        if name in ("tokenizer", "start") and now is not None:
            now = _absolute(now)
        if name == "settings":
            then = {k: then.get(k, "the spec's own") for k in now}
        if now not in (None, (), {}) and now != then:
            word = WORDS.get(name, name)
            wrong.append(f"{word} is {_shown(then)} in the run, {_shown(now)} in this call")
    if wrong:
        raise CallError(
            f"{given.resume} goes on as it began: {'; '.join(wrong)}. Leave that out, or start a "
            "new run with another --out."
        )
    free = ("steps", "minutes", "device", "threads", "val_every", "save_every", "keep")
    changes = {n: getattr(given, n) for n in free if getattr(given, n) is not None}
    if "steps" in changes and "minutes" not in changes:
        changes["minutes"] = None
    if "minutes" in changes and "steps" not in changes:
        changes["steps"] = None
    return dataclasses.replace(recorded, resume=given.resume, **changes)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _same_spec(now: Mapping[str, str], then: Mapping[str, str]) -> None:
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) == then.get(name):
            continue
        lines = zip(now.get(name, "").splitlines(), then.get(name, "").splitlines(), strict=False)
        line = next((i for i, (a, b) in enumerate(lines, 1) if a != b), None)
        where = f"at line {line}" if line else "in its length"
        raise CallError(f"The spec is not the run's: {name} differs {where}.")


def _drift(run: RunFolder, record: Mapping[str, Any], source: str) -> list[str]:
    """What is not as it was when the run began, and may change the last bits."""
    then, now = record["versions"], run_folder.versions()
    notes = [
        f"{name} is {now.get(name)} now and was {then[name]} when the run began: numbers may "
        "differ in their last bits."
        for name in then
        if now.get(name) != then[name]
    ]
    if (run.path / "model.py").read_text("utf-8") != source:
        notes.append("nlc generates other code from the spec than when the run began; it is used.")
    return notes


# ---- the run ---------------------------------------------------------------------------------


@dataclass
class Trainer:
    """A run in this process. `step` and `seconds` are those of the whole run."""

    run: RunFolder
    options: Options
    learner: Learner
    text: corpus.Corpus
    step: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    saved_step: int | None = None
    saved_at: float = 0.0

    def take_up(self) -> None:
        """Be what the newest checkpoint that can be read says; a run that has none yet begins."""
        if not self.run.saved():
            return
        path, tree, damaged = newest_checkpoint(self.run)
        self.notes += damaged
        self.learner.restore(tree)
        self.step, self.seconds = tree["step"], tree["seconds"]
        self.saved_step = self.step
        self.notes.append(f"going on from step {self.step:,} ({path.name})")

    def go(self, interrupts: Interrupts) -> int:
        """Train to the goal, or until a signal; the exit status."""
        minutes = self.options.minutes
        goal = Goal(self.options.steps, None if minutes is None else minutes * 60)
        if goal.reached(self.step, self.seconds):
            raise CallError(self._finished())
        report = Reporter(goal)
        try:
            self._loop(goal, report, interrupts)
        except OSError as error:
            raise Stopped(self._disk(error)) from None
        except (MemoryError, torch.OutOfMemoryError):
            raise Stopped(self._memory()) from None
        if interrupts.caught is None:
            report.note(f"run folder {self.run.path}; text from it: nlc generate {self.run.path}")
            return 0
        report.note(f"Stopped at step {self.step:,}, which is saved. To go on: {self._go_on()}")
        return 128 + interrupts.caught

    def _loop(self, goal: Goal, report: Reporter, interrupts: Interrupts) -> None:
        with Logbook(self.run, self.step) as logbook:
            for note in (f"run folder {self.run.path}", *self.notes):
                report.note(note)
            if self.saved_step is None:
                self._save()  # so that there is something to go on from, whatever comes
            with report.showing():
                self._steps(goal, report, interrupts, logbook)

    def _steps(
        self, goal: Goal, report: Reporter, interrupts: Interrupts, logbook: Logbook
    ) -> None:
        self.saved_at = time.monotonic()
        while interrupts.caught is None and not goal.reached(self.step, self.seconds):
            self._one_step(report, logbook)
            done = goal.reached(self.step, self.seconds) or interrupts.caught is not None
            if done or self._save_is_due():
                self._save()
            if done or self.step % int(self.options.val_every or 0) == 0:
                self._validate(report, interrupts, logbook)

    def _one_step(self, report: Reporter, logbook: Logbook) -> None:
        o = self.options
        batch, length = int(o.batch or 0), int(o.length or 0)
        began = time.monotonic()
        ids = corpus.window_batch(self.text.train, int(o.seed or 0), self.step, batch, length)
        try:
            nats = self.learner.step(ids)
        except GradientError as error:
            raise Stopped(self._not_finite(f"At step {self.step + 1:,} {error}")) from None
        except Unsettled as error:
            raise Stopped(f"At step {self.step + 1:,} {error}.") from None
        if not math.isfinite(nats):
            raise Stopped(self._not_finite(f"The loss is {nats} at step {self.step + 1:,}"))
        took = time.monotonic() - began
        self.step += 1
        if o.task is not None and self.step % o.task == 0:
            self.learner.end_task()
        self.seconds += took
        loss = corpus.bits(nats) / self._bytes_a_token()
        report.step(self.step, self.seconds, loss, took, ids.size)
        entry = {"bits_per_byte": loss, "tokens_per_second": ids.size / took}
        logbook.add("train", self.step, self.seconds, entry)

    def _validate(self, report: Reporter, interrupts: Interrupts, logbook: Logbook) -> None:
        """Held-out text, beside what simple means make of the very same text."""
        o = self.options
        began = time.monotonic()
        batches = corpus.validation_batches(
            self.text.validation, int(o.batch or 0), int(o.length or 0)
        )
        loss = self.learner.evaluate(batches, lambda: interrupts.caught is not None)
        self.seconds += time.monotonic() - began
        if loss is None:
            return
        beside = ", ".join(f"{name} {value:.3f}" for name, value in self.others.items())
        report.note(
            f"step {self.step:,}: held-out text {loss:.3f} bits/byte (the same text: {beside})"
        )
        logbook.add("validation", self.step, self.seconds, {"bits_per_byte": loss, **self.others})

    def _bytes_a_token(self) -> float:
        widths = self.text.train.widths
        return 1.0 if widths is None else float(widths.mean())

    @cached_property
    def others(self) -> dict[str, float]:
        return corpus.baselines(self.text.validation_text)

    # ---- saving ----

    def _save_is_due(self) -> bool:
        every = self.options.save_every
        if every is not None:
            return self.step % every == 0
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def _save(self) -> None:
        """A checkpoint; never one from which nothing can come."""
        broken = self.learner.not_finite()
        if broken:
            raise Stopped(self._not_finite(f"After step {self.step:,} {_listed(broken)}"))
        tree = {"step": self.step, "seconds": self.seconds, **self.learner.tree()}
        self.run.save(self.step, checkpoint.to_bytes(tree), int(self.options.keep or 1))
        self.saved_step, self.saved_at = self.step, time.monotonic()

    # ---- what is said when a run ends ----

    def _go_on(self) -> str:
        return f"nlc train --resume {self.run.path}"

    def _kept(self) -> str:
        if self.saved_step is None:
            return "Nothing was saved yet."
        return f"The checkpoint of step {self.saved_step:,} is whole."

    def _finished(self) -> str:
        return (
            f"{self.run.path} is finished: {self.step:,} steps in {duration(self.seconds)} of "
            f"training. To go further: {self._go_on()} --steps {2 * self.step}"
        )

    def _disk(self, error: OSError) -> str:
        what = why(error)
        return (
            f"The run cannot be written after step {self.step:,}: {what}. {self._kept()} "
            f"When that is mended: {self._go_on()}"
        )

    def _memory(self) -> str:
        o = self.options
        return (
            f"The memory of the {self.learner.device.type} is full at --batch {o.batch} --length "
            f"{o.length}. {self._kept()} Try a new run with half of either."
        )

    def _not_finite(self, what: str) -> str:
        return (
            f"{what}. {self._kept()} Going on from it gives the same numbers again, so change "
            "something in a new run: a smaller rate in the spec's `learn` line, a shorter "
            "--length, --dtype float32, another --seed."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"not all numbers of {', '.join(names[:3])}{more} are finite"


def newest_checkpoint(run: RunFolder) -> tuple[Path, checkpoint.Tree, list[str]]:
    """The newest checkpoint that can be read, and a note for each newer one that cannot."""
    notes: list[str] = []
    for path in reversed(run.saved()):
        try:
            return path, checkpoint.from_file(path), notes
        except checkpoint.DAMAGED as error:
            notes.append(f"{path.name} cannot be read ({error}); the one before it is used.")
    raise CallError(f"{run.path} has no checkpoint that can be read.")
