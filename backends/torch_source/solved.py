"""Boxes whose writes are solved exactly: each tick's at the state that those before it have left.

The body of a stretch is a function `ticks` of the spans, which says what each tick writes if the
others write what the spans hold; `solved` (backends/ops/solving.py) finds the spans it agrees with.
Writes that are affine in one matrix are found at once (backends/ops/affine.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nlc.backward import add, make
from nlc.derive import substitute
from nlc.diagnostics import InternalError
from nlc.lacking import NotLowered
from nlc.plan import ArrayRule
from nlc.system import Assign, Box, State, Term
from nlc.windows import rows_of

from .bodies import Body, Module, state_path
from .common import equation, named, rows, transparent
from .expressions import Expressions
from .frozen import Asked, Frozen, turned
from .stretch import StretchBody

CHUNK = 64  # ticks solved at a time; no result depends on it
AT_ONCE = 1024  # where all chunks of so many are made at once


class Solved(Frozen):
    """Writes a box whose gradients are exact."""

    anchored = False

    @property
    def period(self) -> int:
        return AT_ONCE if self.module.plan.of(self.box).writes else CHUNK

    def hoisted(self, body: Body, cuts: str) -> list[str]:
        """What is affine makes it of chunks of its own; and is not read with other stretches."""
        return [] if self.module.plan.of(self.box).writes else super().hoisted(body, cuts)

    def reads_together(self) -> bool:
        return not self.module.plan.of(self.box).writes and super().reads_together()

    def told(self) -> list[str]:
        return ["What a few ticks write, each at the state that those before it have left."]

    def writes_body(self, body: StretchBody) -> None:
        code = self.code
        transparent(body)
        self.unchanging(body)
        arrays = [(s, a.name) for s in self.box.states if s.rule.changes for a in s.form.arrays]
        gates = [self.gates(body, *key) for key in arrays]
        runs = [code.name(f"{s.name}_{a}" if a else s.name) for s, a in arrays]
        body.runs = {(s.name, a): n for (s, a), n in zip(arrays, runs, strict=True)}
        self.keep_pasts(body)
        if self.module.plan.of(self.box).writes:
            self.at_once(body, arrays[0][0], gates[0], runs[0])
            self.hand_on(body, arrays)
            return
        begins = [self.begin(body, *key, g) for key, g in zip(arrays, gates, strict=True)]
        ticks = code.name("ticks")
        outer, taken = body.e, set(code.taken)
        code.add("")
        head = len(code.lines)
        with code.block(f"def {ticks}({', '.join(f'{n}: Span' for n in runs)}) -> Writes:"):
            body.e = Expressions(code, body.lead, dict(outer.names), outer.hooks)
            body.exact = body.running = body.before = True
            body.retained = {(r.state, r.array) for r in self.rules if r.late}
            for name, value in self.values.items():
                if name in self.touching and name in self.used:
                    body.assign(Assign(name, self.fold(value)))
            body.in_line = False
            made: dict[tuple[str, str], str] = {}
            for state in dict.fromkeys(s for s, _ in arrays):
                made |= self.of_state(body, state, dict(zip(body.runs, gates, strict=True)))
            code.add(f"return {', '.join(made[key] for key in body.runs)},")
        code.add("")
        body.e, code.taken = outer, taken | {ticks}
        body.running = False
        given = streams_of(code.lines[head + 1 :], taken - set(runs))
        shown = "".join(f", {n}: Tensor" for n in given or ())
        code.lines[head] = code.lines[head].replace(") -> Writes:", f"{shown}) -> Writes:")
        targets, listed = (", ".join(n) + "," * (len(n) == 1) for n in (runs, begins))
        alone = "" if given is None else f", {tuple_of(given)}"
        code.add(f"{targets} = solved({ticks}, ({listed}), self.rounds{alone})")
        self.hand_on(body, arrays)

    def hand_on(self, body: StretchBody, arrays: list[tuple[State, str]]) -> None:
        """The states at the end of the span."""
        for state, array in arrays:
            key = body.key(state_path(self.box, state.name, array))
            memory = body.key(state_path(self.box, state.name, array) + ".m")
            momentum = self.rules_of(state, array)[0].rule.momentum is not None
            run = body.runs[state.name, array]
            self.ends(Asked(run, [run], [key], [memory] if momentum else []), state.form.kind)

    def at_once(self, body: StretchBody, state: State, gates: dict[str, str], run: str) -> None:
        """Writes that are affine in one matrix: what they are made of, and their system."""
        told = state.rule.objective if state.rule.write is None else state.rule.write
        assert told is not None
        body.cite_line(told)
        writes = [
            (self.fold(w.row), w.rest and self.fold(w.rest),
             [(self.fold(f), self.fold(p)) for f, p in w.reads])
            for w in self.module.plan.of(self.box).writes
        ]  # fmt: skip
        terms = [t for x, rest, reads in writes for t in (x, rest, *(p for _, p in reads)) if t]
        body.e.count(terms)
        rows = [body.row(x, (), "row") for x, _, _ in writes]
        rests = ["None" if r is None else body.row(r, (), "rest") for _, r, _ in writes]
        known = [[(body.row(p, (), "asked"), f) for f, p in reads] for _, _, reads in writes]
        asked = list(dict.fromkeys(p for reads in known for p, _ in reads))
        table = []
        for reads in known:
            factors: dict[str, Term] = {}
            for p, f in reads:
                factors[p] = add(factors[p], f) if p in factors else f
            line = [self.gate(body, state, factors[p]) if p in factors else "None" for p in asked]
            table.append(line)
        shown = ", ".join(tuple_of(part) for part in (rows, rests, asked, map(tuple_of, table)))
        late = ", retained=True" if self.rules_of(state, "")[0].late else ""
        start, arguments = self.start(body, state, "", gates)
        self.code.add(f"{run} = affine({start}, {shown}{named(arguments)}{late})")

    def keep_pasts(self, body: StretchBody) -> None:
        """Every round convolves what came before the span, which the last one moves on."""
        rules = [s.rule for s in self.box.states]
        roots = [t for r in rules for t in (r.objective, r.write, r.retain) if t is not None]
        roots += [t for r in rules for line in r.learn.values() for t in line.settings.values()]
        roots += [t for n, t in self.values.items() if n in self.touching and n in self.used]
        for t in {id(t): t for root in roots for t in root.walk() if t.op == "conv"}.values():
            if self.touches(t.args[0]):
                raise NotLowered("`conv` of what a memory says, at every token,", t.span)
            key, name = body.key(t.info.path), self.code.name("before")
            self.code.add(f"{name} = s[{key}]")
            body.pasts[key] = name

    def rules_of(self, state: State, array: str) -> list[ArrayRule]:
        return [r for r in self.rules if (r.state, r.array) == (state.name, array)]

    # ---- before the ticks ------------------------------------------------------------------------

    def touches(self, term: Term | None) -> bool:
        """Whether a term depends on the box's own states."""
        return term is not None and any(
            t.op in ("apply", "state")
            and t.info.box is self.box
            or t.op == "local"
            and t.info in self.touching
            for t in term.walk()
        )

    def gates(self, body: StretchBody, state: State, array: str) -> dict[str, str]:
        """rate, keep, momentum and erase as Python; those that depend on the state are left out."""
        rule = self.rules_of(state, array)[0]
        parts = {
            "rate": (rule.rule.rate, True),
            "keep": (rule.keep, False),
            "momentum": (rule.rule.momentum, True),
            "erase": (rule.rule.erase, True),
        }
        found = {}
        for name, (term, settings) in parts.items():
            if name in ("keep", "momentum") and (state.name, array) in self.left:
                continue  # made for all spans before
            whole = substitute(term, rule.settings) if settings and term is not None else term
            if whole is not None and not self.touches(whole):
                found[name] = body.name_row(self.gate(body, state, whole), name)
        return found

    def gate(self, body: StretchBody, state: State, term: Term) -> str:
        """A number a tick, or one a channel, as the ops take it."""
        per = () if body.folded else state.per
        own = term.shape[len(state.per) :]
        column = len(own) == 2 and own[-1] == 1
        channels = 1 if len(own) == 1 and own != (1,) or column else 0
        if column:
            term = make("squeeze", term, shape=term.shape[:-1])
        return rows(body, self.fold(term), per, channels)

    def begin(self, body: StretchBody, state: State, array: str, gates: dict[str, str]) -> str:
        """The array's start, with its gates where they are known before the ticks."""
        name = self.code.name(f"start_{state.name}_{array}" if array else f"start_{state.name}")
        start, arguments = self.start(body, state, array, gates)
        self.code.add(f"{name} = begin({start}, {self.like(body, state)}{named(arguments)})")
        return name

    def start(
        self, body: StretchBody, state: State, array: str, gates: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        """The array where the stretch begins, and what is left of writes, as arguments."""
        box, rule = self.box, self.rules_of(state, array)[0]
        key = body.key(state_path(box, state.name, array))
        arguments = {k: v for k, v in gates.items() if k in ("keep", "momentum")}
        if rule.keep is not None and self.touches(rule.keep):
            arguments["keep"] = "None"
            if rule.keep.shape[len(state.per) :] not in ((), (1,)):
                arguments["channels"] = "True"
        left = self.left.get((state.name, array))
        if left is not None:
            arguments["retention"] = f"left_{left}" if left else "left"
        if rule.rule.momentum is not None:
            if "momentum" not in gates and left is None:
                raise NotLowered(f"a momentum of `{state.name}` that states make", state.span)
            memory = body.key(state_path(box, state.name, array) + ".m")
            arguments["S0"] = self.into(f"s[{memory}]")
        start = self.into(f"s[{key}]") + turned(state.form.kind)
        if "S0" in arguments:
            arguments["S0"] += turned(state.form.kind)
        self.code.comment(equation(rule, f"{state.name}.{array}" if array else state.name))
        return start, arguments

    def like(self, body: StretchBody, state: State) -> str:
        """Some stream with all the leading axes."""
        given = next((v for v in body.e.names.values() if v.lead and v.own), None)
        if given is None:
            raise NotLowered("a memory that is given no stream", self.box.span)
        per = () if body.folded else state.per
        code = f"{given.code}.flatten({body.lead})" if given.own > 1 else given.code
        if per:
            shape = f"{code}.unsqueeze({body.lead - 1})"
            return f"{shape}.expand(-1, {', '.join(map(str, per))}, -1, -1)"
        return code

    # ---- one tick
    # -------------------------------------------------------------------------------------

    def of_state(
        self, body: StretchBody, state: State, gates: dict[tuple[str, str], dict[str, str]]
    ) -> dict[tuple[str, str], str]:
        """What each array of a state is written at a tick, as Python: x, the amounts, and what is
        kept if that depends on the state.
        """
        told = state.rule.objective if state.rule.write is None else state.rule.write
        assert told is not None
        body.cite_line(told)
        rules = [r for r in self.rules if r.state == state.name]
        steps = max((l.steps for l in state.rule.learn.values()), default=1)
        pairs: dict[str, list[tuple[str, str, bool]]] = {r.array: [] for r in rules}
        for step in range(steps):
            if step:
                body.later_step(state.name, {a: list(ps) for a, ps in pairs.items()})
            folded = [(r, self.fold(r.input), self.fold(r.surprise)) for r in rules]
            body.e.count([t for _, x, e in folded for t in (x, e)])
            new = [(r.array, self.pair(body, state, r, x, e, gates)) for r, x, e in folded]
            for array, pair in new:
                pairs[array].append(pair)
        body.first_step()
        return {
            (state.name, a): self.together_of(body, state, a, ps, gates) for a, ps in pairs.items()
        }

    def pair(
        self, body: StretchBody, state: State, rule: ArrayRule, x: Term, e: Term,
        gates: dict[tuple[str, str], dict[str, str]],
    ) -> tuple[str, str, bool]:  # fmt: skip
        """One outer product of a tick: its row, its column, and whether they are several."""
        per = () if body.folded else state.per
        own = len(state.per) if not body.folded else 0
        several = len(x.shape) - own == 2
        window = rows_of(x)
        error = rows(body, e, per, 2 if several else 1)
        if state.form.kind == "vector":
            seen = body.ones()
        else:
            seen = body.row(x, per, "seen") if not several else rows(body, x, per, 2)
        if window:
            shown = body.e.names[f"seen {window}"].code
            error = f"parts.only({error}, {shown}.unsqueeze(-1))"
            if several:  # nor does a rule clear what it was asked there
                seen = f"parts.only({seen}, {shown}.unsqueeze(-1))"
        level = self.box.level.name if self.box.level is not None else ""
        if level in self.module.plan.training.first_order and state.rule.write is None:
            seen, error = f"{seen}.detach()", f"({error}).detach()"
        known = gates[state.name, rule.array]
        rate = known.get("rate") or self.gate(
            body, state, substitute(rule.rule.rate, rule.settings)
        )
        run = body.runs[state.name, rule.array]
        shape = substitute(rule.rule.rate, rule.settings).shape[len(state.per) :]
        given = (
            f", erase={known['erase']}, met={run}.read({seen}, before_write=True)"
            if "erase" in known
            else ""
        )
        if len(shape) == 1 and shape != (1,):
            seen = f"{rate}{'.unsqueeze(-2)' * several} * {seen}"
            rate = "1.0"
        elif len(shape) == 2:
            error = f"{rate}{'.unsqueeze(-2)' * several} * ({error})"
            rate = "1.0"
        name = self.code.name("written")
        self.code.add(f"{name} = amount({rate}, {bare(error)}{given})")
        return seen, name, several

    def together_of(
        self, body: StretchBody, state: State, array: str, pairs: list[tuple[str, str, bool]],
        gates: dict[tuple[str, str], dict[str, str]],
    ) -> str:  # fmt: skip
        """(x, amounts), side by side if a tick writes several times."""
        rule = self.rules_of(state, array)[0]
        parts = [", ".join(pairs[0][:2])]
        if len(pairs) > 1:
            parts = [
                side_by_side([(row, several) for row, _, several in pairs]),
                side_by_side([(column, several) for _, column, several in pairs]),
            ]
        if rule.keep is not None and self.touches(rule.keep):
            parts.append(self.gate(body, state, rule.keep))
        return f"({', '.join(parts)})"


def tuple_of(parts: Iterable[str]) -> str:
    listed = list(parts)
    return f"({', '.join(listed)}{',' * (len(listed) == 1)})"


def streams_of(lines: list[str], outside: set[str]) -> list[str] | None:
    """The names that these lines have from outside; None where they also see the model itself."""
    words = set(re.findall(r"(?<![.\w])[^\W\d]\w*", "\n".join(lines)))
    return None if words & {"self", "s", "w", "at"} else sorted(words & outside)


def side_by_side(parts: list[tuple[str, bool]]) -> str:
    """Vectors, or several of them, of one tick on one axis."""
    rows = [code if several else f"{atom(code)}.unsqueeze(-2)" for code, several in parts]
    return f"torch.cat([{', '.join(rows)}], -2)"


def atom(code: str) -> str:
    return code if code.isidentifier() else f"({code})"


def solved(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Solved(module, box).write()


def bare(code: str) -> str:
    """An argument without the brackets around the whole of it."""
    depth = 0
    for i, c in enumerate(code):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(code) - 1:
            return code
    return code[1:-1] if code.startswith("(") else code
