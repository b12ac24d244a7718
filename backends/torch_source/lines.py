"""Which lines of a box go where: into what is written, into what is read, or before both."""

from __future__ import annotations

from nlc.foreign import NAMING, named_elsewhere
from nlc.plan import ArrayRule
from nlc.system import Box, Term
from nlc.windows import rows_of

from .bodies import Body, Module, state_path


class Lines:
    """What `Frozen` knows of its lines; what it is asked for here is set there."""

    module: Module
    box: Box
    rules: tuple[ArrayRule, ...]
    values: dict[str, Term]
    touching: set[str]
    used: set[str]
    read_roots: list[Term]
    handed: tuple[str, ...]
    anchored: bool

    def roots_of_writes(self) -> list[Term]:
        """What a write, a retention, an objective or a setting is made of (2.9.7)."""
        roots: list[Term] = []
        for state in self.box.states:
            rule = state.rule
            parts = (rule.objective, rule.retain, rule.write, rule.set)
            roots += [t for t in parts if t is not None]
            links = [*(rule.through or {}).values(), *(rule.onto or {}).values()]
            roots += [link.body for link in links]
            roots += [t for learn in rule.learn.values() for t in learn.settings.values()]
        return roots

    def lines_handed(self) -> tuple[str, ...]:
        """Frozen lines that move pasts on: made once, with the writes, and handed to the reads."""
        if not self.anchored:
            return ()
        wanted = self.reach(self.read_roots) & self.touching & self.used
        return tuple(n for n, v in self.values.items() if n in wanted and moves_on(v))

    def reach(self, roots: list[Term]) -> set[str]:
        """The lines that these terms use, directly or not; for reads, without what is handed."""
        found: set[str] = set()
        stop = self.handed if roots is self.read_roots else ()
        stack = list(roots)
        while stack:
            for t in stack.pop().walk():
                if t.op == "local" and t.info not in found and t.info not in stop:
                    found.add(t.info)
                    stack.append(self.values[t.info])
        return found

    def needed(self) -> set[str]:
        """The lines that read the states and are needed for what is read."""
        return self.reach(self.read_roots) & self.touching

    def lines_touching_state(self) -> set[str]:
        """Lines that depend on the box's own states."""
        touching: set[str] = set()
        for name, value in self.values.items():
            if any(
                t.op in ("apply", "state")
                and t.info.box is self.box
                or t.op == "local"
                and t.info in touching
                for t in value.walk()
            ):
                touching.add(name)
        return touching

    def given(self, roots: list[Term]) -> list[str]:
        """Inputs and lines made outside that these terms use, through lines that touch the states
        too.
        """
        found: dict[str, None] = {}
        inner = [self.values[n] for n in self.reach(roots) & self.touching]
        for root in [*roots, *inner]:
            for t in root.walk():
                if t.op == "past":
                    found[f"past {t.info.path}"] = None
                    found[f"seen {t.info.window}"] = None
                elif t.op == "input":
                    found[f"input {t.info}"] = None
                elif t.op == "local" and t.info not in self.touching:
                    found[f"local {t.info}"] = None
                    found |= {f"seen {n}": None for n in (rows_of(t),) if n}
                elif t.op in NAMING and named_elsewhere(t) is not None:
                    for array in t.info.state.form.arrays:
                        path = state_path(t.info.box, t.info.name, array.name)
                        found[f"other {path}"] = None
                elif t.op == "state" and t.info.state.form.kind == "vector":
                    found |= {f"input {n}": None for n, s in self.box.inputs[:1] if len(s) == 1}
        outer = Body(self.module, self.box)
        still = ("local ", "other ")
        lead = {n: not n.startswith(still) or self.leads(outer, n) for n in found}
        return sorted(found, key=lambda n: not lead[n])

    def runs_read(self) -> list[ArrayRule]:
        """The arrays that reads see as they run on."""
        inner = () if self.anchored else (self.values[n] for n in self.needed())
        names = {
            t.info.name
            for root in (*self.read_roots, *inner)
            for t in root.walk()
            if t.op in ("apply", "state") and t.info.box is self.box
        }
        return list({(r.state, r.array): r for r in self.rules if r.state in names}.values())

    def leads(self, outer: Body, name: str) -> bool:
        """Whether a line made outside changes with the ticks."""
        if name.startswith("other "):
            return False
        return any(
            t.op in ("input", "position", "call", "conv", "dropout")
            or t.op == "local"
            and self.leads(outer, f"local {t.info}")
            or t.op == "state"
            and outer.lowering(t.info.box).kind != "static"
            for t in self.values[name.split(" ", 1)[1]].walk()
        )


def moves_on(value: Term) -> bool:
    """Whether making it moves a past on, so that it can be made only once a tick."""
    return any(t.op in ("call", "conv", "past") for t in value.walk())
