"""The declared transfers as what gates ask: which gradients enter where (2.11)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nlc.system import Level, State, System, Transfer

from ..gates import OWN, Allowed, Learner, alias, gate, learning, sealed


@dataclass
class Transfers:
    """The declared transfers as what gates ask (2.11)."""

    system: System
    _policies: dict[Any, Allowed] = field(default_factory=dict)

    def of(self, kind: str, source: Level | None, target: Level | None) -> list[Transfer]:
        return [
            t
            for t in self.system.transfers
            if t.kind == kind and t.source is source and t.target is target
        ]

    def backprop(self, entered: Level | None, learner: Level | None) -> bool:
        return bool(self.of("backprop", entered, learner))

    # ---- what comes into a box, and into its pasts ---------------------------------------------

    def enters(self, box: Level | None) -> Allowed:
        """Into the states and pasts of a level: `backprop X -> L`. The flow's own pasts belong to
        the owner: open to levels on steps and tasks (2.10.1, 2.11.1).
        """

        def flow(who: Learner) -> bool:
            return who.level is not None and who.level.clock.unit in ("step", "task")

        def allowed(who: Learner) -> bool:
            return who.kind != "own" and self.backprop(box, who.level)

        return self._policies.setdefault(("enters", box), flow if box is None else allowed)

    def weights(self, box: Level | None) -> Allowed:
        """Unnamed weights used in a body: `condition` makes them constants there (2.11.2)."""
        if box is None:
            return lambda who: True
        return self.enters(box)

    def foreign(self, reader: Level | None, kept_by: Level | None) -> Allowed:
        """A state of another level in a body: a constant to that level without `backprop`."""

        def allowed(who: Learner) -> bool:
            return reader is None or who.level is not kept_by or self.backprop(reader, kept_by)

        return self._policies.setdefault(("foreign", reader, kept_by), allowed)

    def cut(self, box: Level, ticks: int, state: State | None) -> Allowed | None:
        """`through N`: states (or, without a state, pasts) become constants at multiples of N."""

        def lengths(who: Learner) -> list[int | None]:
            backs = self.of("backprop", box, who.level)
            inits = [t for t in self.inits(box, state) if t.source is who.level] if state else []
            chosen = inits if who.kind == "starts" and inits else backs
            return [t.truncate for t in chosen]

        if not any(t.truncate and ticks % t.truncate == 0 for t in self.system.transfers):
            return None
        return lambda who: not all(n and ticks % n == 0 for n in lengths(who) or [None])

    # ---- starts (2.11.4) -----------------------------------------------------------------------

    def inits(self, box: Level | None, state: State | None) -> list[Transfer]:
        return [
            t
            for t in self.system.transfers
            if t.kind == "init" and t.target is box and t.speaks_of(state)
        ]

    def chain(self, box: Level | None, state: State | None) -> tuple[Level, ...]:
        """The levels whose states a start is: M@A, then M@A@Z, up to the first that lives on."""
        found: list[Level] = []
        edges = self.inits(box, state)
        while edges and edges[0].source not in found:
            source = edges[0].source
            found.append(source)
            if source.clock.unit not in ("token", "sequence"):
                break
            edges = [t for t in self.inits(source, None) if t.state is None]
        return tuple(found)

    def starts(self, box: Level | None, chain: tuple[Level, ...]) -> Allowed:
        """From a state back into its start M@A: for the levels of its chain, learning starts; and
        for those that may enter both this box and A, whose state the start is.
        """

        def allowed(who: Learner) -> bool:
            if who.kind == "starts" and who.level in chain:
                return True
            return self.enters(box)(who) and self.enters(chain[0])(who)

        return allowed

    # ---- first order (2.11.3) ------------------------------------------------------------------

    def handed(self, box: Level | None, state: State | None) -> Allowed:
        """The gradient, input and surprise that a rule of this level is handed.

        The starts go by the `init` line that reaches this state (None: the starts that the level
        itself learns, which that line reaches too), all else by `backprop`.
        """

        def allowed(who: Learner) -> bool:
            edges = self.of("backprop", box, who.level)
            inits = self.inits(box, state)
            if who.kind == "starts" and inits:
                own = [t for t in inits if t.source is who.level]
                if own or who.level in self.chain(box, state):
                    edges = own or inits
            return not edges or not all(t.first_order for t in edges)

        return allowed


__all__ = ["OWN", "Allowed", "Learner", "Transfers", "alias", "gate", "learning", "sealed"]
