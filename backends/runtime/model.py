"""The base of every generated module: it cuts a call into spans, runs them, and lets the levels on
tokens fire.

A generated class gives the tables and the methods `flow`, `loss` and `fire`; nothing here knows a
spec.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ids import check_ids, check_input
from ..parameters import noise
from . import joint
from .ahead import Ahead, look_ahead, spans
from .beginning import begin_anew, begin_in_both, start_anew
from .chance import Chance
from .earlier import mended
from .ending import finish
from .examples import Examples, Watching
from .lives import let_go, lives
from .optimizer import Optimizer
from .owing import owe
from .replay import copied, ready
from .rows import Learned
from .serving import HALF
from .shared import Leaves, shareable, shared_span
from .state import Played, State, StateError, Waiting, detached
from .stream import Stream
from .sums import Met, Sum
from .tree import Part, Still
from .unusual import as_usual, nobody
from .words import Words

Row = tuple[Any, ...]


@dataclass
class Pass:
    """One call: its inputs whole, and what has been made of them so far."""

    inputs: tuple[Tensor, ...]
    own: bool
    outputs: list[Tensor]
    losses: list[Tensor]
    want_losses: bool
    first: int  # the position of its first tick
    watching: Watching | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    ahead: Ahead | None = None
    copies: dict[str, Tensor] = field(default_factory=dict)  # of weights, by path (replay.py)
    leaves: Leaves | None = None  # of the same (shared.py)

    @property
    def time(self) -> int:
        return self.inputs[0].shape[1]

    def played(self, a: int, b: int) -> Played:
        return Played(tuple(x[:, a:b] for x in self.inputs), self.own, self.copies)


class Model(Words, nn.Module):
    """A compiled nested learning system: `outputs, state = model(tokens, state)`.

    tokens [batch, time] (or one tensor [batch, time, ..] for each input of the flow). Every sample
    of the batch has its own memories. Any split into calls gives the same numbers, to rounding.
    """

    SPEC_HASH: ClassVar[str] = ""
    INPUTS: ClassVar[tuple[tuple[str, tuple[int, ...]], ...]] = ()
    PARAMETERS: ClassVar[tuple[Row, ...]] = ()
    STATES: ClassVar[tuple[Row, ...]] = ()
    LEARNERS: ClassVar[tuple[Row, ...]] = ()  # (level, period, paths of the arrays that learn)
    ONCE: ClassVar[tuple[str, ...]] = ()  # of these, those that learn the period's last loss alone
    NEEDS_NEXT: ClassVar[bool] = False
    HAS_LOSS: ClassVar[bool] = True
    INNER_OPEN: ClassVar[bool] = False
    AHEAD: ClassVar[bool] = False
    ALONE: ClassVar[bool] = False  # after that a span has one graph for all (shared.py)
    SOURCE: ClassVar[str] = ""
    IDS: ClassVar[tuple[tuple[str, int], ...]] = ()  # inputs that look up a row; of how many
    SPAN: ClassVar[int] = 0  # a call is cut at multiples of this many ticks; 0: nowhere
    BASES: ClassVar[tuple[float, ...]] = ()  # of the angles of `rope`
    EPS: ClassVar[tuple[float, ...]] = ()  # under the roots of `norm`
    CUTS: ClassVar[tuple[Row, ...]] = ()  # box, rounds, its reset, after how many ticks constant
    RESETS: ClassVar[tuple[Row, ...]] = ()  # (level, box, rounds, after how many ticks), at a cut
    DROPPED: ClassVar[tuple[Row, ...]] = ()  # (path, rounds) of what the end of a call forgets
    # Where training and the levels on tokens share a graph (joint.py):
    JOINT: ClassVar[bool] = False
    SECOND: ClassVar[tuple[bool, bool]] = (False, False)  # who differentiates what levels there
    # write: other such levels; training
    JOINED: ClassVar[tuple[Row, ...]] = ()  # (level, its arrays by state and the starts it learns)
    CHAINED: ClassVar[tuple[Row, ...]] = ()  # (array, level, the array it starts from)
    CHAINS: ClassVar[tuple[Row, ...]] = ()  # (level, who learns its starts)
    ENTERS: ClassVar[tuple[Row, ...]] = ()  # (level, whose gradients enter its states)
    FIRST: ClassVar[tuple[Row, ...]] = ()  # (level, to whom its gradients are constants)
    LASTING: ClassVar[tuple[Row, ...]] = ()  # (box, rounds) of levels that outlive a sequence

    # Picard rounds of memories that are solved exactly: None, until nothing changes.
    rounds: int | None = None
    like: Tensor

    def __init__(
        self, seed: int = 0, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.seed = seed
        self.weights = Part()
        self.examples = Examples()
        self.chance = Chance(seed)
        nothing = torch.empty(0, device=device, dtype=dtype)
        self.register_buffer("like", nothing, persistent=False)  # where and what a model is
        self.copies: dict[str, str] = {}  # what starts as another array does
        for path, loops, shape, std, value, trained in self.PARAMETERS:
            for rounds in product(*(range(n) for n in loops)):
                name = path.format(*rounds)
                if isinstance(value, str):
                    self.copies[name], value = value.format(*rounds), 0.0
                data = (
                    noise(name, shape, seed) * std
                    if std
                    else torch.full(shape, value, dtype=torch.float64)
                )
                self.plant(
                    name, nn.Parameter(data.to(device=device, dtype=dtype), requires_grad=trained)
                )
        self.begin_copies()

    # ---- weights ---------------------------------------------------------------------------------

    def plant(self, name: str, parameter: nn.Parameter) -> None:
        *path, last = name.split(".")
        part = self.weights
        for step in path:
            if step not in part._modules:
                part._modules[step] = Part()
            part = part._modules[step]  # type: ignore[assignment]
        part._parameters[last] = parameter

    @torch.no_grad()
    def begin_copies(self, done: Container[str] = ()) -> None:
        """What starts as a copy of another array is one; those in `done` stay as they are."""
        weights = dict(self.named_weights())
        for name in (n for n in self.copies if n not in done):
            source = self.copies[name]
            while source in self.copies and source not in done:
                source = self.copies[source]
            weights[name].copy_(weights[source])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights by the paths of the spec."""
        found = super().state_dict(*args, **kwargs)
        for key in [k for k in found if k.startswith("weights.")]:
            found[key.removeprefix("weights.")] = found.pop(key)
        return found

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(
            {f"weights.{k}": v for k, v in state_dict.items()}, *args, **kwargs
        )

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every array by its path, trained or not."""
        return self.weights.named_parameters()

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def kept_dtype(self) -> torch.dtype:
        """Of what a stream keeps: sums of many small amounts need more than 8 bits."""
        return torch.float32 if self.dtype in HALF else self.dtype

    def arithmetic(self) -> AbstractContextManager[Any]:
        """A model in half precision multiplies in it and adds up in float32, as under autocast."""
        if self.dtype not in HALF:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def source(self) -> str:
        """The Python that was generated for this module."""
        return self.SOURCE

    @property
    def steps(self) -> int:
        """Steps of training so far, on which `dropout` depends. The spec's own optimizers count
        them; after a step of another, add one.
        """
        return self.chance.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"`steps` is how many there were, a whole number, not {steps!r}")
        self.chance.steps = steps

    def dropout(self, s: Stream, path: str, chance: float, x: Tensor, *mapped: int) -> Tensor:
        """As it is, unless the model trains (`train`, `eval`: torch's words)."""
        return self.chance.dropout(s, path, chance, x, mapped) if self.training else x

    def drawn(
        self, s: Stream, path: str, deviation: float, mapped: tuple[int, ...], own: tuple[int, ...]
    ) -> Tensor:
        """A start that is drawn anew at each reset."""
        return self.chance.normal(s, path, deviation, mapped, own)

    def optimizers(self) -> list[Optimizer]:
        """What the spec's levels on steps train with: one object for each of them."""
        return []

    # ---- states ----------------------------------------------------------------------------------

    def kept_arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Path, shape (without batch) and start of each array that a stream keeps."""
        return {
            path.format(*rounds): (shape, start)
            for path, loops, shape, start in self.STATES
            for rounds in product(*(range(n) for n in loops))
        }

    @as_usual
    def reset(self, batch: int = 1) -> State:
        """The state before the first tick of a sequence."""
        return self.state_from(self.starts(batch), 0, batch, {})

    def starts(self, batch: int, at: str = "") -> dict[str, Tensor]:
        """The arrays of a box (of all, if none is named) at a reset."""
        weights = dict(self.named_weights())
        device, dtype = self.device, self.kept_dtype
        arrays = {}
        for path, (shape, start) in self.kept_arrays().items():
            if not path.startswith(at):
                continue
            if start == "weights":
                # a copy: what stands in a stream stays as it is when the parameter changes
                drawn = weights[path.partition("@")[0]].to(dtype, copy=True)
                arrays[path] = drawn.unsqueeze(0).expand(batch, *shape)
            else:
                arrays[path] = torch.zeros(batch, *shape, device=device, dtype=dtype)
        return arrays

    def state_from(
        self, arrays: dict[str, Tensor], position: int, batch: int, sums: dict[str, Sum]
    ) -> State:
        state = State(arrays, position, batch, self.SPEC_HASH, sums=dict(sums))
        self.rebase(state)
        return state

    def passed(self, state: State, time: int) -> State:
        """So many ticks later, of no samples or after no ticks."""
        return self.state_from(state.arrays, state.position + time, 0, {}) if time else state

    def rebase(self, state: State) -> None:
        """From here all that follows can be made again."""
        state.base, state.base_sums = dict(state.arrays), dict(state.sums)
        state.base_position, state.replay = state.position, []

    # ---- calls -----------------------------------------------------------------------------------

    @as_usual
    def forward(
        self, *inputs: Any, state: State | None = None, own: bool = False, **named: Tensor
    ) -> tuple[Tensor, State]:
        """Outputs [batch, time, ..] for these ticks, and the state after them.

        `own`: the model made these tokens itself, so they are context and no labels (2.10.3).
        """
        call, state = self.begin(inputs, state, named, own, want_losses=False)
        if call.time == 0:
            return self.nothing(call, state), state
        if not state.batch:
            made, _ = self.answered(*nobody(self, call))
            return made[:0], self.passed(state, call.time)
        before = state.fork()
        made, state = self.answered(call, state)

        def part(a: int, b: int, state: State) -> tuple[Tensor, State]:
            cut = tuple(x[:, a:b] for x in call.inputs)
            return self.answered(Pass(cut, own, [], [], False, state.position), state)

        return (made if self.DROPPED else mended(part, before, made)), state

    def answered(self, call: Pass, state: State) -> tuple[Tensor, State]:
        with self.arithmetic():
            state = self.advance(call, state)
        made = torch.cat(call.outputs, 1) if len(call.outputs) > 1 else call.outputs[0]
        return made.to(self.dtype) if self.dtype in HALF else made, state

    @as_usual
    def losses(
        self, *inputs: Any, state: State | None = None, **named: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """The loss of each tick [batch, time] (0 where it has no label), which have one, and the
        state after.
        """
        if not self.HAS_LOSS:
            raise ValueError("this system's flow binds no loss")
        call, state = self.begin(inputs, state, named, False, want_losses=True)
        mask = torch.ones(state.batch, call.time, dtype=torch.bool, device=self.device)
        if call.time == 0 or not state.batch:
            return mask.to(self.dtype), mask, self.passed(state, call.time)
        with self.arithmetic(), self.watching(call):
            state = self.advance(call, state)
        if self.NEEDS_NEXT:
            mask[:, -1] = False
        return torch.cat(call.losses, 1), mask, state

    def watching(self, call: Pass) -> AbstractContextManager[Any]:
        """Products are written down, where an optimizer asks for them."""
        if not self.examples.products or not torch.is_grad_enabled():
            return nullcontext()
        call.watching = Watching(self.examples, dict(self.named_weights()))
        return call.watching

    def begin(
        self,
        inputs: tuple[Any, ...],
        state: State | None,
        named: dict[str, Tensor],
        own: bool,
        want_losses: bool,
    ) -> tuple[Pass, State]:
        """The arguments checked: a wrong one is named, with the shapes given and wanted."""
        given = list(inputs)
        if len(given) == len(self.INPUTS) - len(named) + 1 and (
            given[-1] is None or isinstance(given[-1], State)
        ):
            state = given.pop()
        names = [n for n, _ in self.INPUTS]
        unknown = next((n for n in named if n not in names), None)
        if unknown is not None:
            raise TypeError(
                f"this model takes {', '.join(names)} (and a state), and has no input `{unknown}`"
            )
        if len(given) + len(named) != len(names):
            raise TypeError(
                f"this model takes {', '.join(names)} (and a state), "
                f"and was given {len(inputs) + len(named)} inputs"
            )
        left = iter(given)
        tensors = tuple(named[n] if n in named else next(left) for n in names)
        for (name, shape), x in zip(self.INPUTS, tensors, strict=True):
            check_input(name, shape, x)
            if x.shape[:2] != tensors[0].shape[:2]:
                raise ValueError(
                    f"`{name}` is {list(x.shape[:2])} in batch and time, "
                    f"and `{names[0]}` {list(tensors[0].shape[:2])}"
                )
            if name in (rows := dict(self.IDS)):
                check_ids(name, x, rows[name])
            elif not (isinstance(state, State) and state.given):  # nlc.memory knows its kernels
                self.check_type(name, x)
        batch = tensors[0].shape[0]
        state = self.reset(batch) if state is None else self.checked(state, batch)
        return Pass(tensors, own, [], [], want_losses, state.position), state

    def check_type(self, name: str, x: Tensor) -> None:
        if not x.is_floating_point() or x.dtype == self.dtype or self.dtype in HALF:
            return
        if not torch.is_autocast_enabled(self.device.type):
            raise TypeError(f"`{name}` is {x.dtype}, and the model {self.dtype}")

    def checked(self, state: State, batch: int) -> State:
        if not isinstance(state, State):
            raise TypeError(
                f"a state is what this model returned before, not {type(state).__name__}"
            )
        if state.spec != self.SPEC_HASH:
            raise StateError("this state belongs to another spec, or to other settings of it")
        if state.batch != batch:
            raise StateError(f"this state is of a batch of {state.batch}, and the input of {batch}")
        own = self.kept_dtype
        wrong = next(
            (v.dtype for v in state.arrays.values() if v.is_floating_point() and v.dtype != own),
            None,
        )
        if wrong is not None and not torch.is_autocast_enabled(self.device.type):
            raise StateError(f"this state is in {wrong}, and the model in {self.dtype}")
        return state.fork()

    @as_usual
    def finish(self, state: State) -> State:
        """The state after the end of the sequence, where the next one begins: the levels on
        sequences fire, and all that is not theirs starts anew (2.6.1). What they write is a
        constant to training. A sequence of no ticks is none.
        """
        return finish(self, self.checked(state, getattr(state, "batch", 0)))

    def ends(self, s: Stream, sequence: int) -> None:
        """The levels on sequences that are due at the end of this one fire."""

    def nothing(self, call: Pass, state: State) -> Tensor:
        """The outputs of no ticks: an empty tensor of the right width."""
        s = self.stream_of(state, 1)
        one = tuple(
            torch.zeros(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)
            for x in call.inputs
        )
        with torch.no_grad(), self.arithmetic():
            return self.flow(s, *one)[0][:, :0].to(self.dtype)

    # ---- spans -----------------------------------------------------------------------------------

    def advance(self, call: Pass, state: State) -> State:
        """Run the call's ticks in spans within which no level on tokens fires."""
        if not self.LEARNERS:
            begin_anew(self, state)
            a, every = 0, self.SPAN or call.time
            while a < call.time:
                b = min(call.time, a + every - state.position % every) if self.SPAN else call.time
                b = self.before_the_last(call, a, b)
                let_go(self, state)
                self.run(call, state, a, b)
                start_anew(self, state)
                a = b
            self.drop(state)
            self.rebase(state)
            return state
        learned: State = self.advance_learning(call, state)
        return learned

    def drop(self, state: State) -> None:
        """`partial drop`: a period that the call cuts short (2.6.5)."""
        for path, loops in self.DROPPED:
            for rounds in product(*(range(n) for n in loops)):
                name = path.format(*rounds)
                state.arrays[name] = torch.zeros_like(state.arrays[name])

    def before_the_last(self, call: Pass, a: int, b: int) -> int:
        """Where products are written down, the last tick, which has no label, is run by itself."""
        apart = call.watching is not None and self.NEEDS_NEXT and a < call.time - 1
        return min(b, call.time - 1) if apart else b

    def run(self, call: Pass, state: State, a: int, b: int) -> Stream:
        """One span: its outputs and losses join the call's, and its arrays the state."""
        if call.watching is not None:
            call.watching.on = not self.NEEDS_NEXT or b < call.time
        s = self.stream_of(state, b - a)
        s.made = None if call.ahead is None else call.ahead.part(a, b)
        result, kept = self.flow(s, *(x[:, a:b] for x in call.inputs))
        call.outputs.append(result)
        if call.want_losses:
            call.losses.append(self.labelled(kept, call, a, b))
        state.arrays = dict(s)
        state.position += b - a
        return s

    def stream_of(self, state: State, time: int) -> Stream:
        return self.placed(
            Stream(state.arrays, state.position, time, state.batch, self.device, self.dtype), state
        )

    def placed(self, s: Stream, state: State) -> Stream:
        s.sequence, s.elapsed, s.learned = state.sequence, state.elapsed, state.learned
        return s

    def labelled(self, kept: tuple[Tensor, ...], call: Pass, a: int, b: int) -> Tensor:
        """Losses of ticks a to b of the call; the call's last has no label, so its loss is 0."""
        following = tuple(x[:, a + 1 : b + 1] for x in call.inputs)
        missing = self.NEEDS_NEXT and b == call.time
        if missing:
            following = tuple(
                torch.cat([x, torch.zeros_like(y[:, :1])], 1)
                for x, y in zip(following, call.inputs, strict=True)
            )
        losses = self.loss(kept, *following)
        if not missing:
            return losses
        return torch.cat([losses[:, :-1], torch.zeros_like(losses[:, :1])], 1)

    # ---- levels on tokens that learn the model's own loss ----------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def advance_learning(self, call: Pass, state: State) -> State:
        """Spans end where some level fires. Gradients inside the run are eager: a compiled graph
        has none.
        """
        training = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        state = ready(self, state, training)
        call.copies = copied(self) if training else {}
        self.label_waiting(call, state)
        if self.JOINT:
            joint.begin_anew(self, state)
        else:
            begin_in_both(self, state)
            state.learned = Learned(state.arrays, self.learning_paths())
        call.spans = spans(self, call, state.position)
        run = partial(joint.span, self) if self.JOINT else self.span
        for a, b in call.spans:
            run(call, state, a, b, training)
        return state

    def weights_in(self, s: Stream) -> Any:
        """The weights; constants in a run for the levels on tokens."""
        return Still(self.weights, s.copies) if s.inner or s.shared else self.weights

    # ---- clocks of these levels ------------------------------------------------------------------

    def life_of(self, level: str) -> int:
        """After how many ticks a level starts anew; 0: with the sequence."""
        return next((int(every) for name, _, _, every in self.RESETS if name == level), 0)

    def starts_anew(self, level: str, position: int) -> bool:
        every = self.life_of(level)
        return bool(every) and position > 0 and position % every == 0

    def age(self, level: str, position: int) -> int:
        """Ticks since its reset, at the end of a tick: one that is due is yet to come."""
        every = self.life_of(level)
        return (position - 1) % every + 1 if every else position

    def due(self, position: int) -> list[Row]:
        return [row for row in self.LEARNERS if self.age(row[0], position) % row[1] == 0]

    def slowest_first(self) -> list[str]:
        return [level for level, _, _ in sorted(self.LEARNERS, key=lambda row: -int(row[1]))]

    def prefixes(self, level: str) -> tuple[str, ...]:
        """The places of a level's boxes."""
        rows = [(path, loops) for name, path, loops, _ in self.RESETS if name == level]
        return tuple(
            path.format(*rounds)
            for path, loops in rows
            for rounds in product(*(range(n) for n in loops))
        )

    def span(self, call: Pass, state: State, a: int, b: int, training: bool) -> None:
        """One span as training sees it, then in a graph of its own what the levels on tokens learn
        from it.

        The two are apart because a gradient walks all of the graph that it is asked of, back to the
        stream's start.
        """
        if not self.INNER_OPEN or state.inner is None:
            self.rebase(state)
            look_ahead(self, call, state, a, training)
            state.inner = self.standing(detached(state.arrays))
        else:
            # What is constant there may have been written in the run for training alone.
            fixed = {k: v for k, v in state.arrays.items() if not state.inner[k].requires_grad}
            state.inner.update(detached(fixed))
        state.replay.append(call.played(a, b))
        if training and shareable(self, call, b):
            shared_span(self, call, state, a, b)
            return
        at = state.position, b - a, state.batch, self.device, self.dtype
        s = self.placed(Stream(state.inner, *at, inner=True), state)
        s.copies = call.copies
        if training:
            s.remembered = self.run(call, state, a, b).remembered
        s.met = None if self.INNER_OPEN else []
        if call.ahead is not None:
            s.made = tuple(x.detach() for x in call.ahead.part(a, b))
        with torch.enable_grad():
            result, kept = self.flow(s, *(x[:, a:b] for x in call.inputs))
            self.learn_from(kept, tuple(s.met or ()), call, state, a, b)
        if not training:
            call.outputs.append(result.detach())
            if call.want_losses:
                call.losses.append(self.labelled(tuple(k.detach() for k in kept), call, a, b))
            state.arrays = detached(s)
            state.position += b - a
        if self.INNER_OPEN:
            state.inner = dict(s)
        if b < call.time or not self.NEEDS_NEXT:
            self.fire_due(state)

    def standing(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the levels on tokens differentiate with respect to: the states that stand over the
        span.
        """
        for path in self.learning_paths():
            arrays[path] = arrays[path].detach().requires_grad_()
        return arrays

    def learning_paths(self) -> list[str]:
        return [path for _, _, paths in self.LEARNERS for path in paths]

    def learn_from(
        self, kept: tuple[Tensor, ...], met: tuple[Met, ...], call: Pass, state: State, a: int,
        b: int,
    ) -> None:  # fmt: skip
        """Losses of this span whose labels are here; the call's last tick waits for its label."""
        last = self.NEEDS_NEXT and b == call.time
        end = b - 1 if last else b
        if not call.own and end > a:
            here = tuple(k[:, : end - a] for k in kept)
            following = tuple(x[:, a + 1 : end + 1] for x in call.inputs)
            owe(self, state, self.loss(here, *following), met, call.first + a, keep=last)
        state.waiting = Waiting(tuple(k[:, -1:] for k in kept), met) if last else None

    def label_waiting(self, call: Pass, state: State) -> None:
        """The label of the tick before has arrived: before anything else is read (2.7.3)."""
        if state.waiting is None:
            return
        kept, met = state.waiting.kept, state.waiting.met
        state.waiting = None
        if not call.own:
            with joint.differentiable() if self.JOINT else torch.enable_grad():
                losses = self.loss(kept, *(x[:, :1] for x in call.inputs))
                owe(self, state, losses, met, state.position - 1, keep=True)
        self.fire_due(state)

    def fire_due(self, state: State) -> None:
        """The levels whose period ends at this tick write (2.8), then those start anew whose time
        has come (2.7.3).
        """
        if self.JOINT:
            joint.fire(self, state)
            return
        due = self.due(state.position)
        found = [self.gathered(state, period, paths) for _, period, paths in due]
        for (level, period, paths), grads in zip(due, found, strict=True):
            s = self.stream_of(state, 0)
            self.fire(level, s, grads, self.age(level, state.position) // period)
            if self.INNER_OPEN and state.inner is not None:
                old = state.arrays
                state.inner |= {k: x.detach() for k, x in s.items() if x is not old.get(k)}
            state.arrays = dict(s)
            for path in paths:
                state.sums.pop(path, None)
        fresh = start_anew(self, state, whole=False)
        changed = {path for _, _, paths in due for path in paths}
        changed |= {path for path in self.learning_paths() if path in fresh}
        for path in changed & set(fresh):
            state.sums.pop(path, None)
            state.learned.begin(state.arrays, path)
        if self.INNER_OPEN and (changed or fresh):
            self.renew(state, changed, fresh)

    def gathered(self, state: State, period: int, paths: Sequence[str]) -> dict[str, Tensor]:
        if not self.INNER_OPEN:
            return {
                p: state.sums[p].total() if p in state.sums else torch.zeros_like(state.arrays[p])
                for p in paths
            }
        return joint.since(self, state, period, paths)

    def renew(self, state: State, changed: set[str], fresh: dict[str, Tensor]) -> None:
        """New leaves for those that fired or started anew; all of the graph is let go where every
        level did.
        """
        assert state.inner is not None
        if len(changed) == len(self.learning_paths()):
            state.owed, state.inner = [], None
            return
        state.inner |= detached(fresh)
        for path in changed:
            state.inner[path] = state.arrays[path].detach().requires_grad_()

    # ---- what a generated class gives ------------------------------------------------------------

    def flow(self, s: Stream, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs of a span, and what its losses are made of."""
        raise NotImplementedError

    def ahead(self, s: Stream, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The part of it that is made for many spans at once, if AHEAD."""
        raise NotImplementedError

    def loss(self, kept: tuple[Tensor, ...], *following: Tensor) -> Tensor:
        """The loss of each tick."""
        raise NotImplementedError

    def fire(self, level: str, s: Stream, grads: dict[str, Tensor], count: int) -> None:
        """One firing of a level on tokens: its new states go into the stream."""
        raise NotImplementedError

    def lives(
        self, s: Stream, every: int, box: Callable[..., Tensor], at: str, *given: Any
    ) -> Tensor:
        """What a box answers whose level is reset every so many ticks."""
        return lives(s, every, self.starts, box, at, *given)

    def life(
        self, s: Stream, every: int, box: Callable[..., Tensor], at: str, *given: Any
    ) -> Tensor:
        """The same, where no life ends within the span."""
        with s.life(0, s.time, s.position // every * every, f"{at}life"):
            return box(s, at, *given)
