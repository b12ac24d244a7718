"""The gates of a box whose gradients are frozen: rates, and what is left of writes, made once for
all stretches, or for all states alike, where they can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nlc.backward import constant
from nlc.derive import substitute
from nlc.plan import ArrayRule
from nlc.rules import LinearRule
from nlc.system import Box, State, Term

from .bodies import Body
from .code import Code
from .common import rates
from .folding import alike
from .stretch import StretchBody


class Gates:
    """What `Frozen` knows of gates; what it is asked for here is set there."""

    box: Box
    code: Code
    rules: tuple[ArrayRule, ...]
    touching: set[str]
    write_roots: list[Term]
    read_roots: list[Term]
    values: dict[str, Term]
    folder: Callable[[Term], Term] | None
    anchored: bool
    known: dict[str, int]
    left: dict[tuple[str, str], int]
    shared: dict[tuple[str, str], dict[str, str]]

    def fold(self, term: Term) -> Term:
        raise NotImplementedError

    def into(self, code: str) -> str:
        raise NotImplementedError

    # ---- what is left of each write --------------------------------------------------------------

    def retention(self, body: Body, rule: ArrayRule, fold: bool) -> str:
        """The arguments of `retained` as Python, or nothing where that is all or known numbers."""
        state = self.box.state(rule.state)
        per = () if fold else state.per
        keep = rule.keep
        unasked = replace(rule.rule, rate=constant(1.0, rule.rule.rate))  # states may make it
        asked = replace(rule, rule=unasked)
        given = rates(body, self.folded(asked) if fold else asked, per)
        known = [given[k] for k in ("keep", "momentum") if k in given]
        if all(is_number(v) for v in known):
            return ""
        own = len(keep.shape) - len(state.per) if keep is not None else 0
        channels = own == 1 and keep is not None and keep.shape[-1] != 1
        parts = [given.get("keep", "1.0")]
        parts += [given["momentum"]] if "momentum" in given else []
        if not fold:
            parts = [p if is_number(p) else self.into(p) for p in parts]
        return ", ".join(parts) + (", channels=True" if channels else "")

    def roots_left(self) -> list[Term]:
        """What writes are made of, without what was made for all stretches before."""
        if not self.left:
            return self.write_roots
        states = {r.state: self.box.state(r.state).rule for r in self.rules}
        roots = [t for rule in states.values() for t in (rule.objective, rule.write) if t]
        for rule in self.rules:
            roots.append(rule.surprise)
            parts = [rule.rule.rate, rule.rule.erase]
            if (rule.state, rule.array) not in self.left:
                parts += [rule.rule.momentum]
                roots += [rule.keep] if rule.keep is not None else []
            roots += [substitute(t, rule.settings) for t in parts if t is not None]
        return roots

    def gates_touch(self, rule: ArrayRule) -> bool:
        """Whether what is left of a write depends on the states."""
        momentum = rule.rule.momentum
        terms = [rule.keep, momentum and substitute(momentum, rule.settings)]
        return any(
            t.op in ("apply", "state")
            and t.info.box is self.box
            or t.op == "local"
            and t.info in self.touching
            for term in terms
            if term is not None
            for t in term.walk()
        )

    def hoisted(self, body: Body, cuts: str) -> list[str]:
        """What is left of the writes of all stretches, where no state has a hand in it."""
        names: list[str] = []
        if self.folder is None or not body.open:
            return names
        for rule in self.rules:
            if self.gates_touch(rule) or not self.anchored and not self.numbers_left(rule):
                continue
            given = self.retention(body, rule, fold=False)
            if not given:
                continue
            if given not in self.known:
                self.known[given] = len(names)
                names.append(self.code.name("left_all"))
                self.code.add(f"{names[-1]} = {cuts}.retained({given})")
            self.left[rule.state, rule.array] = self.known[given]
        return names

    def numbers_left(self, rule: ArrayRule) -> bool:
        """Whether one number is kept a tick."""
        per = len(self.box.state(rule.state).per)
        return rule.keep is None or rule.keep.shape[per:] in ((), (1,))

    def lift(self, body: Body) -> None:
        """Windows are made for the whole span, whatever uses them."""
        for root in [*self.write_roots, *self.read_roots, *self.values.values()]:
            for t in root.walk():
                if t.op == "past":
                    body.past(t)
        self.lifted = dict(body.e.names)

    def gates_of(self, body: StretchBody, rule: ArrayRule) -> dict[str, str]:
        """rate, and what is left of writes: made before, or by keep and momentum."""
        state = self.box.state(rule.state)
        per = () if body.folded else state.per
        folded = self.folded(rule)
        alone = replace(folded, rule=replace(rule.rule, momentum=None), keep=None)
        left = self.left.get((rule.state, rule.array))
        if left is not None:
            given = rates(body, alone, per)
            given["retention"] = f"left_{left}" if left else "left"
        elif body.folded and body.many == 1 and (kept := self.retention(body, rule, fold=True)):
            given = rates(body, alone, per)
            given["retention"] = body.name_row(f"retained({kept})", "left")
        else:
            given = rates(body, folded, per)
        return {k: body.name_row(v, k) for k, v in given.items()}

    def folded(self, rule: ArrayRule) -> ArrayRule:
        """Its gates, as one head sees them."""
        keep = None if rule.keep is None else self.fold(rule.keep)
        return replace(
            rule, settings={k: self.fold(t) for k, t in rule.settings.items()}, keep=keep
        )

    def share_gates(self, body: StretchBody, family: list[State], rules: list[ArrayRule]) -> None:
        """Gates that are the same for all states of a family are made once."""
        for rule in rules:
            parts = (rule.rule.rate, rule.rule.momentum)
            terms = [substitute(t, rule.settings) for t in parts if t is not None]
            terms += [rule.keep] if rule.keep is not None else []
            if not any(t.op in ("apply", "state") for term in terms for t in term.walk()):
                self.shared[rule.state, rule.array] = self.gates_of(body, rule)

    # ---- states alike ---------------------------------------------------------------------------

    def families(self) -> list[list[State]]:
        """States of one form whose rules say the same of each: they are written as one."""
        out: list[list[State]] = []
        for state in (s for s in self.box.states if any(r.state == s.name for r in self.rules)):
            home = next(
                (f for f in out if self.folder is not None and self.same(f[0], state)), None
            )
            if home is None:
                out.append([state])
            else:
                home.append(state)
        return out

    def same(self, a: State, b: State) -> bool:
        if a.form != b.form or a.per != b.per or a.rule.through or b.rule.through:
            return False
        ours, theirs = ([r for r in self.rules if r.state == s.name] for s in (a, b))
        pairs = []
        for x, y in zip(ours, theirs, strict=True):
            if x.settings.keys() != y.settings.keys() or not same_rule(x.rule, y.rule):
                return False
            pairs += [(x.input, y.input), (x.surprise, y.surprise), (x.keep, y.keep)]
            pairs += [(x.settings[k], y.settings[k]) for k in x.settings]
        return all(
            p is q or p is not None and q is not None and alike(p, q, a.name, b.name)
            for p, q in pairs
        )


def same_rule(a: LinearRule, b: LinearRule) -> bool:
    """Two optimizers in linear form, part by part."""
    parts = [(getattr(a, n), getattr(b, n)) for n in ("rate", "momentum", "erase")]
    return all(x is y or x is not None and y is not None and alike(x, y, "", "") for x, y in parts)


def is_number(code: str) -> bool:
    return code.replace(".", "").replace("e-", "").replace("-", "").isdigit()
