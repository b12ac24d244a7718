"""Levels on tokens whose learning another level differentiates, or whose start one learns: what the
one graph that they share with training has to know (language.md 2.11), or NL701.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .lacking import NotLowered
from .plan import Joint, Lowering, Openness
from .system import Box, Level, System, Transfer

TRAINING = ""  # the levels on steps, whose gradient is taken from outside
Who = tuple[str, str]


def joint(
    system: System,
    learners: tuple[Level, ...],
    lowerings: dict[int, Lowering],
    training: Openness,
) -> Joint | None:
    """None where a learner's gradients are constants to all, and its starts training's alone."""
    if not any(is_joint(t, learners) for t in system.transfers):
        return None
    found = Joining(system, learners, lowerings, training)
    found.check()
    return found.made()


def is_joint(t: Transfer, learners: Sequence[Level]) -> bool:
    if t.kind == "init" and t.source.clock.unit not in ("step", "task"):
        return True
    inner = t.source if t.kind == "backprop" else t.target if t.kind == "init" else None
    return inner in learners and not t.first_order


class Joining:
    """The answers of the transfers, by names of levels."""

    def __init__(
        self,
        system: System,
        learners: tuple[Level, ...],
        lowerings: dict[int, Lowering],
        training: Openness,
    ) -> None:
        self.system, self.learners, self.lowerings = system, learners, lowerings
        self.training = training
        self.steps = [l for l in system.levels if l.clock.unit in ("step", "task")]

    def made(self) -> Joint:
        chains = {l.name: self.chain(l) for l in self.learners}
        first = {l.name: tuple(self.constant(l)) for l in self.learners}
        enters = {l.name: self.enters(l) for l in self.learners}
        second = {
            who[0]
            for l in self.learners for who in self.whose()
            if self.differentiates(who, first[l.name], enters[l.name], chains[l.name])
        }  # fmt: skip
        return Joint(enters, chains, first, (bool(second - {TRAINING}), TRAINING in second))

    def differentiates(
        self, who: Who, closed: Sequence[Who], enters: Sequence[str], chain: Sequence[str]
    ) -> bool:
        """Whether a learner passes through a gradient that a level was handed."""
        through = who[0] in enters or who[0] in chain and who[1] != "weights"
        return through and who not in closed

    def whose(self) -> Iterator[Who]:
        yield TRAINING, ""
        for l in self.learners:
            yield l.name, "weights"
            yield l.name, "starts"

    # ---- transfers -------------------------------------------------------------------------------

    def inits(self, level: Level) -> list[Transfer]:
        return [t for t in self.system.transfers if t.kind == "init" and t.target is level]

    def chain(self, level: Level) -> tuple[str, ...]:
        """The levels that learn a start of it, the fastest first; the last may be training."""
        found: list[str] = []
        edges = self.inits(level)
        while edges:
            source = edges[0].source
            if source in self.steps:
                return (*found, TRAINING)
            if source.name in found:
                break
            found.append(source.name)
            edges = self.inits(source)
        return tuple(found)

    def back(self, level: Level, who: str) -> list[Transfer]:
        return [
            t
            for t in self.system.transfers
            if t.kind == "backprop" and t.source is level and self.name(t.target) == who
        ]

    def name(self, level: Level) -> str:
        return TRAINING if level in self.steps else level.name

    def enters(self, level: Level) -> tuple[str, ...]:
        names = [TRAINING, *(l.name for l in self.learners)]
        return tuple(n for n in names if self.back(level, n))

    def constant(self, level: Level) -> Iterator[Who]:
        """To whom the gradients that a rule of this level is handed are constants (2.11.3): the
        starts go by the `init` line that reaches the level, all else by `backprop`.
        """
        inits = self.inits(level)
        for who, kind in self.whose():
            edges = self.back(level, who)
            own = [t for t in inits if self.name(t.source) == who]
            if kind != "weights" and inits and (own or who in self.chain(level)):
                if who != TRAINING or not edges:
                    edges = own or inits
            if edges and all(t.first_order for t in edges):
                yield who, kind

    # ---- what has no algorithm -------------------------------------------------------------------

    def check(self) -> None:
        for t in self.system.transfers:
            if t.kind == "init" and t.source not in self.steps:
                self.check_start(t)
            elif t.kind == "init" and t.target in self.learners:
                self.check_order(t)
        for l in self.learners:
            self.check_pasts(l)
        for lowering in self.lowerings.values():
            if lowering.kind == "solved":
                raise NotLowered(
                    "a second derivative through a memory that is solved exactly",
                    lowering.box.span,
                )

    def check_start(self, t: Transfer) -> None:
        told = f"a start that `{t.source.name}` learns while the stream runs"
        kinds = {self.lowerings[id(b)].kind for b in self.boxes(t.target) if b.states}
        if t.source not in self.learners or kinds != {"loss"}:
            raise NotLowered(told, t.span)
        if t.state is not None or len(self.inits(t.target)) > 1:
            raise NotLowered(f"{told}, of one state of several", t.span)
        mine, theirs = (reset_of(l) for l in (t.target, t.source))
        if theirs and (not mine or theirs % mine):
            raise NotLowered(
                f"{told}, where `{t.source.name}` starts anew and `{t.target.name}` does not",
                t.span,
            )
        enters, above = self.enters(t.target), self.enters(t.source)
        if TRAINING in above and TRAINING not in enters:
            raise NotLowered(
                f"a gradient of training that enters `{t.source.name}` and not the "
                f"`{t.target.name}` that starts from it",
                t.span,
            )
        self.check_order(t)
        chain = self.chain(t.target)
        if any(b.mapped for b in self.boxes(t.target)) and not set(chain) <= set(enters):
            raise NotLowered(f"{told}, for each head of a memory by itself", t.span)

    def check_order(self, t: Transfer) -> None:
        """Training's gradient is one for weights and starts."""
        edges = self.back(t.target, TRAINING)
        if TRAINING in self.chain(t.target) and edges:
            if all(e.first_order for e in edges) is not t.first_order:
                raise NotLowered(
                    f"`init` and `backprop` of `{t.target.name}`, one of them `first order`", t.span
                )

    def check_pasts(self, level: Level) -> None:
        others = [l.name for l in self.learners if self.back(level, l.name)]
        pasts = any(t.op in ("conv", "past") for b in self.boxes(level) for t in b.terms())
        if others and pasts:
            raise NotLowered(
                f"a past of `{level.name}` that the gradient of `{others[0]}` enters", level.span
            )

    def boxes(self, level: Level) -> list[Box]:
        return [b for b in self.system.boxes if b.level is level]


def reset_of(level: Level) -> int:
    """After how many tokens it starts anew; 0: with the sequence."""
    return level.resets.first if level.resets.unit == "token" else 0
