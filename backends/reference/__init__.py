"""The reference interpreter: any system, token by token, in float64, straight from its meaning.

    truth = Reference(system)
    logits, state = truth(tokens)          # tokens [batch, time]; any split of a stream is the same
    state = truth.finish(state)            # the end of a sequence
    losses, labelled = truth.losses(tokens)
    truth.gradients(tokens)                # what each level on steps hands its optimizer
    truth.step(tokens)                     # one step of training
    truth.trace                            # every update (traced=EVENTS: reads too)

It is the definition that every fast path is tested against: one sample, one head and one token at a
time, gradients by autograd with a gate at each place where a transfer decides (see gates.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nlc.system import Flow, System, Term

from .. import parameters as P
from ..ids import check_ids, check_input, ids_of
from . import stream, training
from .boxes import Pass, Run, Sample
from .evaluate import Sayings
from .frames import EVENTS, UPDATES, Instance, Key, Record
from .gates import Transfers

Streams = Tensor | Mapping[str, Tensor | None] | Sequence[Tensor | None]


class HasSystem(Protocol):
    """A checked spec."""

    @property
    def system(self) -> System: ...


@dataclass(frozen=True)
class State:
    """What a batch of streams remembers between calls. It may be continued more than once."""

    samples: tuple[Sample, ...]
    flow: Flow  # whose it is: what it remembers is known by the places of one loaded spec


class Reference:
    """One system with its parameters. `traced`: the events that `trace` is to hold (EVENTS)."""

    def __init__(
        self,
        system: System,
        parameters: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        traced: Iterable[str] = UPDATES,
    ) -> None:
        self.system, self.seed, self.ids = system, seed, ids_of(system)
        self.specs = {p.name: p for p in P.parameters(system)}
        given = parameters or {}
        for n, p in self.specs.items():
            if n in given and tuple(given[n].shape) != p.shape:
                raise ValueError(f"`{n}` is {list(p.shape)} and was given {list(given[n].shape)}")
        self.values: dict[str, Tensor] = {
            n: given[n].detach().double().clone() if n in given else P.draw(p, seed)
            for n, p in self.specs.items()
        }
        self.starts = dict(self.values)
        self.leaves: dict[str, tuple[Tensor, int, Tensor]] = {}
        self.kept: dict[Any, dict[str, Tensor]] = dict(standing(system, self.specs, given))
        self.rules: dict[Any, dict[Any, Instance]] = {}
        self.firings: dict[Key, int] = {}
        self.steps = 0
        self.counts: dict[tuple[str, str], int] = {}  # a level's steps and tasks since its reset
        self.sums: dict[str, training.Found] = {}
        self.last_step: Pass | None = None
        self.trace: list[Record] = []
        self.traced = frozenset(traced)
        self.transfers, self.sayings = Transfers(system), Sayings()
        self.online = tuple(
            level
            for level in system.levels
            if stream.per_sample(level)
            and (level.owner and bool(level.learn) or learns_loss(system, level.name))
        )
        self.replayed = tuple(
            dict.fromkeys(
                b.level
                for b in P.boxes(system)
                if b.level in self.online
                and b.linearise
                and any(s.rule.uses_loss for s in b.states)
            )
        )
        self.examples = any(
            t.op == "input" and t.info in ("input", "surprise") for t in rule_terms(system)
        )

    # ---- running -------------------------------------------------------------------------------

    def __call__(self, tokens: Streams, state: State | None = None) -> tuple[Tensor, State]:
        """Answers [batch, time, ..] and the state that continues the streams."""
        _, outputs, state = self.run(tokens, state, False)
        return outputs, state

    def run(
        self, tokens: Streams, state: State | None, train: bool, drops: bool | None = None
    ) -> tuple[Pass, Tensor, State]:
        """`train`: its gradients may be asked for. `drops`: it is part of a step of training, so
        `dropout` drops; by default, if gradients may be asked for.
        """
        streams, batch, time = self.streams(tokens)
        self.check(state, batch)
        passing = self.passing(train, train if drops is None else drops)
        samples = [s.fork() for s in state.samples] if state else [Sample() for _ in range(batch)]
        runs = [Run(passing, sample, i) for i, sample in enumerate(samples)]
        for run in runs:
            stream.stand_anew(run)
        rows = []
        for run in runs:
            answers = [stream.tick(run, at(streams, run.index, t)) for t in range(time)]
            stream.end_of_call(run)
            rows.append(torch.stack([a.detach() for a in answers if isinstance(a, Tensor)]))
        return passing, torch.stack(rows), State(tuple(samples), self.system.flow)

    def check(self, state: State | None, batch: int | None = None) -> None:
        if state is None:
            return
        if not isinstance(state, State):
            kind = type(state).__name__
            raise TypeError(f"a state is what the reference returned before, not {kind}")
        if state.flow is not self.system.flow:
            raise ValueError(
                "this state belongs to another spec, to other settings of it, or to the same one "
                "loaded a second time"
            )
        if batch is not None and len(state.samples) != batch:
            many = len(state.samples)
            raise ValueError(f"this state is of a batch of {many}, and the input of {batch}")

    def passing(self, train: bool, drops: bool) -> Pass:
        leaves = {n: self.leaf(n) if train else x.clone() for n, x in self.values.items()}
        return Pass(
            self.system, self.transfers, leaves, self.kept, self.seed, self.steps,
            train or bool(self.online), train, drops, self.examples, self.trace, self.traced,
            self.online, self.replayed, self.rules, self.firings, self.sayings,
        )  # fmt: skip

    def leaf(self, name: str) -> Tensor:
        """The same node until the numbers change: what steps have written remembers it."""
        value = self.values[name]
        known = self.leaves.get(name)
        if known is None or known[0] is not value or known[1] != value._version:
            known = value, value._version, value.clone().requires_grad_()
            self.leaves[name] = known
        return known[2]

    def streams(self, tokens: Streams) -> tuple[dict[str, Tensor | None], int, int]:
        """The flow's inputs by name, each [batch, time, ..]; one that is None is not given."""
        names = [n for n, _ in self.system.flow.inputs]
        if isinstance(tokens, Tensor) or tokens is None:
            tokens = [tokens]
        given = (
            dict(tokens) if isinstance(tokens, Mapping) else dict(zip(names, tokens, strict=False))
        )
        streams = {n: given.get(n) for n in names}
        for name, shape in self.system.flow.inputs:
            if streams[name] is not None:
                check_input(name, shape, streams[name])
        some = next((x for x in streams.values() if x is not None), None)
        if some is None:
            raise ValueError(f"the reference takes {', '.join(names)}, and was given none of them")
        if not some.shape[0] or not some.shape[1]:
            raise ValueError(
                f"the reference runs a tick at a time, and was given {list(some.shape)}"
            )
        for name, rows in self.ids.items():
            ids = streams.get(name)
            if ids is not None:
                check_ids(name, ids, rows)
        doubles = {n: None if x is None else x.double() for n, x in streams.items()}
        return doubles, some.shape[0], some.shape[1]

    def finish(self, state: State, task: bool = False) -> State:
        """Ends the sequence of every stream (2.7.3), and with it a task."""
        self.check(state)
        passing = self.passing(False, False)
        samples = [s.fork() for s in state.samples]
        for i, sample in enumerate(samples):
            stream.finish(Run(passing, sample, i), task)
        return State(tuple(samples), self.system.flow)

    def losses(self, tokens: Streams, state: State | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each tick [batch, time], 0 where there is none, and which ticks have one."""
        before = [s.tick for s in state.samples] if state else None
        _, outputs, after = self.run(tokens, state, False)
        batch, time = outputs.shape[:2]
        values = torch.zeros(batch, time, dtype=torch.float64)
        known = torch.zeros(batch, time, dtype=torch.bool)
        for b, sample in enumerate(after.samples):
            for t in range(time):
                loss = sample.losses.get((before[b] if before else 0) + t + 1)
                if loss is not None:
                    values[b, t], known[b, t] = loss.detach(), True
        return values, known

    # ---- training ------------------------------------------------------------------------------

    def gradients(self, tokens: Streams, state: State | None = None) -> dict[str, Tensor]:
        """For each trained parameter, what its level's optimizer is given for one step (2.8)."""
        passing, _, _ = self.run(tokens, state, True)
        return training.gradients(self, passing)

    def step(self, tokens: Streams, state: State | None = None) -> dict[str, Tensor]:
        """One step of every level on steps; the gradients it was made from."""
        passing, _, _ = self.run(tokens, state, True)
        return training.step(self, passing)

    def end_task(self) -> None:
        """A run of steps of one kind is over: levels on tasks fire (2.6.1)."""
        training.end_task(self)


def standing(
    system: System, specs: Container[str], given: Mapping[str, Tensor]
) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """What is given of states on steps that are no parameters: they have been changed before."""
    for box in (b for b in P.boxes(system) if P.lives_on(b.level)):
        for state, path in product(box.states, P.paths(box.path, box.loops)):
            names = {a.name: P.start_name(path, state.name, a.name) for a in state.form.arrays}
            if any(n in specs or n not in given for n in names.values()):
                continue
            for heads in product(*(range(n) for n in P.mapped(box))):
                arrays = {a: given[n][heads].detach().double() for a, n in names.items()}
                yield ((path, heads), state.name), {a: x.clone() for a, x in arrays.items()}


def at(streams: Mapping[str, Tensor | None], sample: int, time: int) -> dict[str, Tensor | None]:
    return {n: None if x is None else x[sample, time] for n, x in streams.items()}


def learns_loss(system: System, level: str) -> bool:
    return any(
        box.level is not None
        and box.level.name == level
        and any(s.rule.uses_loss for s in box.states)
        for box in P.boxes(system)
    )


def rule_terms(system: System) -> list[Term]:
    """The terms of all optimizers and of the streams that replace theirs."""
    lines = [line for level in system.levels for line in level.learn]
    lines += [line for b in P.boxes(system) for s in b.states for line in s.rule.learn.values()]
    terms: list[Term] = []
    for line in lines:
        terms += [t for term in line.streams.values() for t in term.walk()]
        for box in line.optimizers.values():
            terms += box.terms()
    return terms


def reference(
    spec: System | HasSystem,
    parameters: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    traced: Iterable[str] = UPDATES,
) -> Reference:
    """The interpreter of a spec or a system, with parameters by the names of a compiled module.
    Raises TypeError for what is neither; `nlc.load` makes a spec of a path or a name.
    """
    if isinstance(spec, str | Path):
        raise TypeError(
            f"a spec is wanted, not its name: nlc.reference(nlc.load({str(spec)!r}), ..)"
        )
    return Reference(spec if isinstance(spec, System) else spec.system, parameters, seed, traced)


__all__ = ["EVENTS", "UPDATES", "Record", "Reference", "State", "reference"]
