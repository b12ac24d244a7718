"""Boxes whose gradients are frozen at the start of N tokens.

Lines that read no state are written for the whole span; then what a stretch writes, and reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nlc.derive import substitute
from nlc.diagnostics import InternalError
from nlc.foreign import reads_old
from nlc.lacking import NotLowered
from nlc.plan import ArrayRule
from nlc.system import Assign, Box, State, Term

from .bodies import Body, Module, all_mapped, reset_of, state_path
from .common import (
    begin_states,
    equation,
    head,
    keep_states,
    named,
    opening,
    rows,
    transparent,
    unique,
)
from .expressions import ATOM, Value
from .folding import Folder, Heads, Unfoldable
from .gates import Gates
from .lines import Lines, moves_on
from .stretch import StretchBody


@dataclass(frozen=True)
class Amount:
    """What is written into one array, or into those of states alike (`paths`), which are then
    side by side in the batch: the arguments of `span` as Python.
    """

    rule: ArrayRule
    names: tuple[str, ...]
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    x: str
    e: str
    arguments: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asked:
    """Of one group of amounts: the name of its span, the arrays and their keys, and what is handed
    to `span`.

    memories  the keys of S, where there is momentum
    given     state, x and e
    sizes     rows of each array, where they are rows of one matrix
    family    states alike, side by side in the batch
    """

    name: str
    names: list[str]
    keys: list[str]
    memories: list[str]
    given: tuple[str, ...] = ()
    S0: str = ""
    sizes: tuple[int, ...] = ()
    family: bool = False


class Frozen(Lines, Gates):
    """Writes a box that linearises: lines that read no state, then what each stretch writes, then
    what it reads. `anchored`: some lines have their value at the start of the stretch.
    """

    anchored = True

    def __init__(self, module: Module, box: Box) -> None:
        self.module = module
        self.box = box
        self.code = module.code
        self.known: dict[str, int] = {}  # what is left of writes, by its arguments
        self.left: dict[tuple[str, str], int] = {}  # and by the array
        self.shared: dict[tuple[str, str], dict[str, str]] = {}  # gates of states alike
        self.rules = module.plan.of(box).arrays
        self.handed: tuple[str, ...] = ()
        self.read_roots: list[Term] = []
        self.values = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
        self.touching = self.lines_touching_state()
        self.write_roots = self.roots_of_writes()
        self.used = self.reach(self.write_roots)
        self.heads = Heads(self.common_heads(), bool(all_mapped(box)))
        self.folder = self.folding()
        assert box.read is not None
        self.read_roots = [
            box.read,
            *(v for n, v in self.values.items() if n in self.touching and n not in self.used),
        ]
        self.handed = self.lines_handed()

    @property
    def period(self) -> int:
        """How many ticks a stretch has at most."""
        assert self.box.linearise is not None
        return self.box.linearise

    def told(self) -> list[str]:
        return [
            f"What at most {self.period} ticks write: lines and gradients are taken",
            "at the state where the stretch started.",
        ]

    # ---- heads ---------------------------------------------------------------------------------

    def common_heads(self) -> tuple[int, ...]:
        """The axes that join the batch in a stretch: those of the map, or the level's own heads."""
        mapped = all_mapped(self.box)
        per = {s.per for s in self.box.states}
        return mapped or (next(iter(per)) if len(per) == 1 else ())

    def folding(self) -> Callable[[Term], Term] | None:
        """How terms are rewritten for one head; None where some term sees the heads as an axis."""
        if not self.heads.sizes:
            return None
        if self.heads.mapped:
            lines = [self.values[n] for n in self.touching & self.used]
            whole = any(map(moves_on, lines)) or any(s.per for s in self.box.states)
            placed = {"dropout"} | ({"position", "rope"} if reset_of(self.box) else set())
            roots = [*lines, *self.write_roots]
            whole |= any(t.op in placed for root in roots for t in root.walk())  # they see the rows
            return None if whole else lambda t: t
        folder = Folder(self.heads.sizes)
        try:
            for name in self.touching & self.used:
                folder(self.values[name])
            for root in self.write_roots:
                folder(root)
            for rule in self.rules:
                folder(rule.input), folder(rule.surprise)
        except Unfoldable:
            return None
        return folder

    def fold(self, term: Term) -> Term:
        return self.folder(term) if self.folder is not None else term

    def into(self, code: str) -> str:
        """An array of the stream, as the stretch uses it."""
        return self.heads.into(code) if self.folder is not None else code

    def back(self, code: str, axis: int = 0) -> str:
        """An array for the stream."""
        return self.heads.back(code, axis) if self.folder is not None else code

    # ---- the method of the box -------------------------------------------------------------------

    def write(self) -> None:
        box, code = self.box, self.code
        keep_states(
            self.module,
            box,
            *([".start"] if self.anchored else []),
            *([".m"] if any(r.rule.momentum is not None for r in self.rules) else []),
        )
        body = Body(self.module, box)
        first, names = head(self.module, box, body)
        with code.function(first, names):
            opening(self.module, box)
            for line in box.lines:
                if isinstance(line, Assign) and line.name not in self.touching:
                    body.assign(line)
            self.lift(body)
            begin_states(self.module, box, body)
            self.stretches(body)
        code.add("")
        self.writes_method()
        self.read_method()

    def stretches(self, body: Body) -> None:
        """At most `period` ticks at a time; training's gradient may be cut at longer ones."""
        box, code = self.box, self.code
        method = self.module.method(box)
        cut = self.module.plan.training.truncate.get(box.level.name if box.level else "")
        lets_go = cut is not None and not self.module.plan.spans.every
        axis = body.lead - 1
        cuts, fresh, cut_here, part, asked, runs, reads = code.names(
            ["cuts", "new", "cut", "part", "asked", "runs", "reads"]
        )
        w = ", w" if box.path in self.module.has_weights else ""
        code.add(f"{cuts} = s.cuts({self.period}{'' if cut is None else f', {cut}'})")
        hoisted = self.hoisted(body, cuts)
        shown = [
            "_",
            "_",
            fresh if self.anchored else "_",
            cut_here if lets_go else "_",
        ]
        loop, over = [f"({', '.join(shown)})" if set(shown) != {"_"} else "_"], [cuts]
        for name in hoisted:
            loop.append(code.name(name.removesuffix("_all")))
            over.append(name)
        given = f"s, at{w}{f', {fresh}' if self.anchored else ''}"
        given += "".join(f", {name}" for name in loop[1:])
        deferred = self.reads_together() and not self.streams(body, self.read_roots)[1]
        written = self.split(body, self.roots_left(), cuts, axis, part, loop, over, gate=True)
        if not deferred:
            read = self.split(body, self.read_roots, cuts, axis, asked, loop, over)
        code.add(f"{runs if deferred else reads} = []")
        if len(over) > 1:
            each = code.name("each")
            code.add(f"{each} = zip({', '.join(over)}, strict=True)")
            over = [each]
        with code.block(f"for {', '.join(loop)} in {over[0]}:"):
            if lets_go:
                with code.block(f"if {cut_here}:"):
                    code.add("self.cut(s, at)")
            made = f"self.{method}_writes({given}{written})"
            if body.held_inside:
                made = f"s.writes(at, self.{method}_writes, {given}{written})"
            if deferred:
                code.add(f"{runs}.append({made})")
            else:
                code.add(f"{runs} = {made}")
                code.add(f"{reads}.append(self.{method}_read(s, at{w}, {runs}{read}))")
        if not deferred:
            code.add(f"return self.joined({reads}, {axis})")
            return
        streams, _ = self.streams(body, self.read_roots)
        own = f"(s, at{w})"
        code.add(f"return {cuts}.read({axis}, self.{method}_read, {own}, {runs}{streams})")

    def split(
        self, body: Body, roots: list[Term], cuts: str, axis: int, part: str, loop: list[str],
        over: list[str], gate: bool = False,
    ) -> str:  # fmt: skip
        """What these terms are given, as the arguments of a method of one stretch: the parts of its
        streams, and what is the same for all ticks.
        """
        streams, still = self.streams(body, roots, gate)
        if streams:
            loop.append(part)
            over.append(f"{cuts}.split({axis}{streams})")
        return f", *{part}{still}" if streams else still

    def streams(self, body: Body, roots: list[Term], gate: bool = False) -> tuple[str, str]:
        """What these terms are given: what changes with the ticks, and what does not."""
        values = [body.e.names[n] for n in self.given(roots)]
        closed = ".detach()" if gate and not body.open else ""
        parts = [
            [f", {v.code}{closed}" for v in values if v.lead is lead] for lead in (True, False)
        ]
        return "".join(parts[0]), "".join(parts[1])

    def reads_together(self) -> bool:
        """Whether the stretches can be read all at once, as one batch: the read sees of the states
        only what the spans hold, and nothing else that has a batch.
        """
        inner = [self.values[n] for n in self.reach(self.read_roots) & self.touching]
        frozen_lines = self.reach(self.read_roots) & self.touching & self.used
        known = {r.state for r in self.runs_read()}
        changing = {s.name for s in self.box.states if s.rule.changes}
        if any(s.rule.through for s in self.box.states):
            return False  # what is read is of the size of all its states
        return not (frozen_lines and self.anchored or self.handed) and all(
            t.op not in ("position", "rope", "dropout", "call", "conv", "state", "next")
            and (t.op != "apply" or t.info.box is self.box and t.info.name in known & changing)
            for root in [*self.read_roots, *inner]
            for t in root.walk()
        )

    def parameters(self, body: Body, names: list[str], taken: list[str]) -> str:
        """The names a method of one stretch is given, as its parameters."""
        out = []
        outer = Body(self.module, self.box)
        for name in names:
            known = self.lifted.get(name)
            if known is not None and name.startswith(("past ", "seen ")):
                given = unique(known.code, taken)
                taken.append(given)
                out.append(f", {given}: Tensor")
                body.e.names[name] = replace(known, code=given)
                continue
            if name.startswith("other "):
                path = name.removeprefix("other ")
                wish, own = next((w, n) for p, w, n in body.others(self.box) if p == path)
                given = unique(wish, taken)
                taken.append(given)
                out.append(f", {given}: Tensor")
                body.e.names[name] = Value(given, ATOM, False, own)
                continue
            given = unique(name.split(" ", 1)[1], taken)
            taken.append(given)
            out.append(f", {given}: Tensor")
            shape = (
                dict(self.box.inputs).get(name.split(" ", 1)[1], ())
                if name.startswith("input ")
                else self.values[name.split(" ", 1)[1]].shape
            )
            lead = name.startswith("input ") or self.leads(outer, name)
            body.e.names[name] = Value(given, ATOM, lead, len(shape))
        return "".join(out)

    # ---- what a stretch writes -------------------------------------------------------------------

    def writes_method(self) -> None:
        box, module, code = self.box, self.module, self.code
        body = StretchBody(module, box)
        taken = ["s", "at", "w", "fresh"]
        lefts = [f"left_{i}" if i else "left" for i in range(len(self.known))]
        taken += lefts
        parameters = "".join(f", {n}: Retention" for n in lefts)
        parameters += self.parameters(body, self.given(self.roots_left()), taken)
        w = ", w: Part" if box.path in module.has_weights else ""
        fresh = ", fresh: bool" if self.anchored else ""
        with code.function(
            f"def {module.method(box)}_writes"
            f"(self, s: Stream, at: str{w}{fresh}{parameters}) -> tuple[Span, ...]:",
            taken,
        ):
            code.docstring(self.told())
            if self.folder is not None:
                self.enter_batch(body)
            self.writes_body(body)
            wanted = [body.runs[r.state, r.array] for r in self.runs_read()]
            wanted += self.hand_over(body)
            code.add(
                f"return {', '.join(wanted)}{',' if len(wanted) == 1 else ''}"
                if wanted
                else "return ()"
            )
        code.add("")

    def hand_over(self, body: StretchBody) -> list[str]:
        if self.handed and (not body.open or body.held_inside):
            what = f"a call in `{self.handed[0]}`, of what a memory says,"
            raise NotLowered(f"{what} closed to a learner", self.box.span)
        return [body.e.names[f"local {name}"].code for name in self.handed]

    def writes_body(self, body: StretchBody) -> None:
        """Lines and gradients at the start of the stretch, and the recurrences made of them."""
        self.anchors(body, fresh=True)
        for name, value in self.values.items():
            if name in self.touching and name in self.used:
                body.assign(Assign(name, self.fold(value)))
        self.amounts(body)

    def enter_batch(self, body: StretchBody) -> None:
        """Every stream that is given, with its heads in the batch."""
        body.fold_lead(self.heads)
        for name, value in body.e.names.items():
            if value.lead:
                self.code.add(f"{value.code} = {self.heads.join(value.code)}")
                own = value.own if self.heads.mapped else value.own - len(self.heads.sizes)
                body.e.names[name] = replace(value, own=own)

    def anchors(self, body: StretchBody, fresh: bool) -> None:
        """The arrays as they were at the stretch's start."""
        code, box = self.code, self.box
        if fresh:
            with code.block("if fresh:"):
                for path in self.paths():
                    code.add(f"s[{body.key(path + '.start')}] = s[{body.key(path)}]")
        for state in box.states:
            for array in state.form.arrays:
                name = code.name(f"{state.name}_{array.name}" if array.name else state.name)
                start = f"s[{body.key(state_path(box, state.name, array.name) + '.start')}]"
                start = self.into(start) if body.folded else start
                start = f"{start}{turned(state.form.kind)}"
                link = (state.rule.through or {}).get(array.name)
                if link is not None:
                    start = f"self.{self.module.link(state.name, link)}({start})"
                code.add(f"{name} = {start}")
                body.anchors[state.name, array.name] = name

    def unchanging(self, body: StretchBody) -> None:
        """States that keep their start."""
        for state in self.box.states:
            if state.rule.changes or not self.named(state):
                continue
            for array in state.form.arrays:
                name = self.code.name(f"{state.name}_{array.name}" if array.name else state.name)
                key = body.key(state_path(self.box, state.name, array.name))
                start = f"{self.into(f's[{key}]')}{turned(state.form.kind)}"
                self.code.add(f"{name} = {start}")
                body.anchors[state.name, array.name] = name

    def named(self, state: State) -> bool:
        """Whether the lines or the read use the state."""
        roots = [*self.values.values(), *self.read_roots, *self.write_roots]
        return any(
            t.op in ("apply", "state") and t.info.box is self.box and t.info.name == state.name
            for root in roots
            for t in root.walk()
        )

    def paths(self) -> list[str]:
        return [
            state_path(self.box, s.name, a.name) for s in self.box.states for a in s.form.arrays
        ]

    # ---- amounts --------------------------------------------------------------------------------

    def amounts(self, body: StretchBody) -> None:
        """For each array the gradient as surprise and input; then the recurrences, those alike
        together.
        """
        transparent(body)
        found: list[Amount] = []
        families = self.families()
        chosen = {f[0].name for f in families}
        rules = [r for r in self.rules if r.state in chosen]
        body.e.count([self.fold(t) for r in rules for t in (r.surprise, r.input)])
        for family in families:
            objective = family[0].rule.objective or family[0].rule.write
            assert objective is not None
            body.cite_line(objective)
            mine = [r for r in self.rules if r.state == family[0].name]
            if len(family) == 1:
                found += [self.amount(body, family, r) for r in mine]
                continue
            self.join_anchors(body, family)
            self.share_gates(body, family, mine)
            apart = [r for r in mine if self.meets_one_input(r)]
            with body.together(len(family), self.used_by(mine)):
                body.e.count([self.fold(t) for r in mine for t in (r.surprise, r.input)])
                rows_of = {r.array: body.row(self.fold(r.surprise), (), "surprise") for r in apart}
                found += [self.amount(body, family, r) for r in mine if r not in apart]
            for r in apart:
                found += self.members(body, family, r, rows_of[r.array])
        for groups in at_once(together(found)):
            self.run(body, groups)

    def meets_one_input(self, rule: ArrayRule) -> bool:
        """Whether states alike are given the same input, and gates: they are then rows of one
        matrix, with each other and with any that are given it too.
        """
        parts = [rule.input] if rule.rule.erase is None else [rule.input, rule.rule.erase]
        return (
            (rule.state, rule.array) in self.shared
            and self.box.state(rule.state).form.kind != "vector"
            and not any(t.op in ("apply", "product", "product_back", "state")
                        for part in parts for t in substitute(part, rule.settings).walk())
        )  # fmt: skip

    def members(
        self, body: StretchBody, family: list[State], rule: ArrayRule, surprises: str
    ) -> list[Amount]:
        """What is written into one array of each of states alike."""
        e = body.code.name("each")
        body.code.add(f"{e} = {surprises}.chunk({len(family)})")
        found = self.amount(body, family, rule, e)
        held = found.e.removeprefix(e)
        return [
            replace(found, names=(name,), paths=(path,), e=f"{e}[{i}]{held}")
            for i, (name, path) in enumerate(zip(found.names, found.paths, strict=True))
        ]

    def join_anchors(self, body: StretchBody, family: list[State]) -> None:
        """One array for each that the states have: all of them side by side in the batch."""
        for array in family[0].form.arrays:
            parts = [body.anchors[s.name, array.name] for s in family]
            wish = family[0].name.split(".")[0]
            name = self.code.name(f"{wish}_{array.name}" if array.name else wish)
            self.code.add(f"{name} = torch.cat([{', '.join(parts)}])")
            body.joined[family[0].name, array.name] = name

    def used_by(self, rules: list[ArrayRule]) -> list[str]:
        """The inputs and lines that these rules name."""
        roots = [t for r in rules for t in (r.input, r.surprise)]
        if any((r.state, r.array) not in self.shared for r in rules):
            roots += [t for r in rules for t in r.settings.values()]
            roots += [r.keep for r in rules if r.keep is not None]
        found: dict[str, None] = {}
        for root in roots:
            for t in root.walk():
                if t.op in ("input", "local"):
                    found[f"{t.op} {t.info}"] = None
        return list(found)

    def amount(
        self, body: StretchBody, family: list[State], rule: ArrayRule, e: str = ""
    ) -> Amount:
        """What is written into one array; `e`: its surprise, where that is made already."""
        state = family[0]
        level = self.box.level.name if self.box.level is not None else ""
        per = () if body.folded else state.per
        e = e or body.row(self.fold(rule.surprise), per, "surprise")
        if state.form.kind == "vector":
            x = body.name_row(f"parts.ones({e})", "ones")
        else:
            x = body.row(self.fold(rule.input), per, "seen")
        if level in self.module.plan.training.first_order:
            x, e = f"{x}.detach()", f"{e}.detach()"
        arguments = self.shared.get((rule.state, rule.array)) or self.gates_of(body, rule)
        settings = {k: self.fold(t) for k, t in rule.settings.items()}
        if rule.rule.erase is not None:
            arguments["erase"] = rows(body, substitute(rule.rule.erase, settings), per, 0)
        array = next(a for a in state.form.arrays if a.name == rule.array)
        names = tuple(body.anchors[s.name, array.name] for s in family)
        paths = tuple(state_path(self.box, s.name, array.name) for s in family)
        shape = array.shape if len(array.shape) > 1 else (*array.shape, 0)  # no matrix's
        return Amount(rule, names, paths, shape, x, e, tuple(arguments.items()))

    def run(self, body: StretchBody, groups: list[list[Amount]]) -> None:
        """One call of `span` for arrays alike, or of `spans` for groups with the same gates."""
        made = [self.asked(body, group) for group in groups]
        arguments = dict(groups[0][0].arguments) | ({"S0": made[0].S0} if made[0].S0 else {})
        if len(made) == 1:
            given = f"{', '.join(made[0].given)}, {arguments['rate']}{named(arguments)}"
            self.code.add(f"{made[0].name} = span({given})")
        else:
            parts = ", ".join(f"({', '.join(one.given)})" for one in made)
            told = f"rate={arguments['rate']}{named(arguments)}"
            self.code.add(f"{', '.join(one.name for one in made)} = spans({parts}, {told})")
        for one, group in zip(made, groups, strict=True):
            self.ends(one, self.box.state(group[0].rule.state).form.kind)
            self.parts_of(body, one, group)

    def asked(self, body: StretchBody, group: list[Amount]) -> Asked:
        """Rows of one matrix where the input is the same, else side by side."""
        code = self.code
        first = group[0]
        names = [n for a in group for n in a.names]
        keys = [body.key(p) for a in group for p in a.paths]
        name = code.name("run" if len(names) > 1 else f"run_{names[0]}")
        family = len(first.paths) > 1
        shared = not family and all(a.x == first.x for a in group)
        told = ", ".join(names) if len(names) < 4 else f"{names[0]} .. {names[-1]}"
        code.comment(equation(first.rule, told))

        def gathered(parts: list[str], axis: int) -> str:
            if len(parts) == 1:
                return parts[0]
            joined = ", ".join(parts)
            if shared:
                return f"torch.cat([{joined}], {axis})"
            return f"torch.cat([{joined}])" if family else f"torch.stack([{joined}])"

        form = self.box.state(first.rule.state).form.kind
        state = gathered([self.into(f"s[{k}]") + turned(form) for k in keys], -2)
        x = first.x if shared or family else gathered([a.x for a in group], -1)
        e = first.e if family else gathered([a.e for a in group], -1)
        memories: list[str] = []
        if first.rule.rule.momentum is not None:
            memories = [body.key(p + ".m") for a in group for p in a.paths]
        S0 = (
            gathered([self.into(f"s[{k}]") + turned(form) for k in memories], -2)
            if memories
            else ""
        )
        sizes = tuple(a.shape[0] for a in group) if shared else ()
        return Asked(name, names, keys, memories, (state, x, e), S0, sizes, family)

    def ends(self, asked: Asked, form: str) -> None:
        """The arrays after the stretch, back where the stream keeps them."""
        code, name, keys, memories = self.code, asked.name, asked.keys, asked.memories
        flat = ".squeeze(-1)" if form == "vector" else ""
        if len(keys) == 1 and self.folder is None and not flat:
            code.add(f"s[{keys[0]}], {f's[{memories[0]}]' if memories else '_'} = {name}.end()")
            return
        end = code.name("end")
        kept = code.name("momentum") if memories else "_"
        code.add(f"{end}, {kept} = {name}.end()")
        for source, targets in ((end, keys), (kept, memories)):
            if len(targets) == 1:
                code.add(f"s[{targets[0]}] = {self.back(source)}{flat}")
            elif targets:
                into = ", ".join(f"s[{k}]" for k in targets)
                if asked.sizes:
                    parts = f"{self.back(source)}{flat}.split({asked.sizes}, {-1 if flat else -2})"
                elif asked.family:
                    parts = f"{self.heads.several(source, len(targets))}{flat}.unbind(0)"
                else:
                    parts = f"{self.back(source, 1)}{flat}.unbind(0)"
                if len(into) < 70:
                    code.add(f"{into} = {parts}")
                    continue
                each = code.name("each")
                code.add(f"{each} = {parts}")
                code.add(*(f"s[{k}] = {each}[{i}]" for i, k in enumerate(targets)))

    def parts_of(self, body: StretchBody, asked: Asked, group: list[Amount]) -> None:
        """The part of the run that belongs to each array which is read."""
        name, names, shared = asked.name, asked.names, bool(asked.sizes)
        wanted = {body.anchors[r.state, r.array]: (r.state, r.array) for r in self.runs_read()}
        row = 0
        for i, anchor in enumerate(names):
            rows_of = group[i].shape[0] if shared else 0
            part = f"{name}.rows({row}, {row + rows_of})" if shared else f"{name}.pick({i})"
            if asked.family:
                part = f"{name}.member({i}, {len(names)})"
            row += rows_of
            if anchor in wanted:
                body.runs[wanted[anchor]] = name if len(names) == 1 else part

    # ---- what a stretch reads --------------------------------------------------------------------

    def read_method(self) -> None:
        """Lines that only reads use see the running state before the write; the read sees the new
        one (2.8).
        """
        box, module, code = self.box, self.module, self.code
        body = StretchBody(module, box)
        taken = ["s", "at", "w", "runs"]
        parameters = self.parameters(body, self.given(self.read_roots), taken)
        w = ", w: Part" if box.path in module.has_weights else ""
        with code.function(
            f"def {module.method(box)}_read"
            f"(self, s: Stream, at: str{w}, runs: tuple[Span, ...]{parameters}) -> Tensor:",
            taken,
        ):
            when = "before" if reads_old(box) else "after"
            code.docstring([f"What the stretch answers, each tick {when} its own write."])
            names = [
                code.name(f"{r.state}_{r.array}" if r.array else r.state) for r in self.runs_read()
            ]
            over = code.names(self.handed)
            if names or over:
                listed = [*names, *over]
                code.add(f"{', '.join(listed)}{',' if len(listed) == 1 else ''} = runs")
            for name, given in zip(self.handed, over, strict=True):
                own = len(self.values[name].shape)
                body.e.names[f"local {name}"] = Value(given, ATOM, True, own)
            frozen_lines = self.reach(self.read_roots) & self.touching & self.used
            if frozen_lines and self.anchored:
                self.anchors(body, fresh=False)
                for name, value in self.values.items():
                    if name in frozen_lines:
                        body.assign(Assign(name, value))
            if not self.anchored:
                self.unchanging(body)
            body.runs = {
                (r.state, r.array): n for r, n in zip(self.runs_read(), names, strict=True)
            }
            body.heads = self.heads if self.folder is not None else None
            self.link_reads(body)
            self.reads(body)
        code.add("")

    def link_reads(self, body: StretchBody) -> None:
        """Where the memory is kept in the dual, what is read is a function of it."""
        for (state, array), run in body.runs.items():
            link = (self.box.state(state).rule.through or {}).get(array)
            if link is not None:
                name = self.code.name(f"{run}_read")
                self.code.add(f"{name} = Linked({run}, self.{self.module.link(state, link)})")
                body.runs[state, array] = name

    def reads(self, body: StretchBody) -> None:
        box = self.box
        assert box.read is not None
        body.running, body.before = True, True
        running = self.touching - self.used if self.anchored else self.needed()
        for name, value in self.values.items():
            if name in running:
                body.assign(Assign(name, value))
        body.before = reads_old(box)
        body.e.done.clear()
        body.cite_line(box.read)
        body.e.count([box.read])
        self.code.add(f"return {body.e(box.read).code}")


def turned(form: str) -> str:
    """A vector is a matrix of one column, which multiplies 1."""
    return ".unsqueeze(-1)" if form == "vector" else ""


def together(amounts: list[Amount]) -> list[list[Amount]]:
    """Arrays that one `span` can run: the same gates and the same input, else the same gates and
    shape. States alike are together already.
    """
    out = [[a] for a in amounts if len(a.paths) > 1]
    groups: dict[tuple[object, ...], list[Amount]] = {}
    for a in (a for a in amounts if len(a.paths) == 1):
        groups.setdefault((a.x, a.arguments, a.shape[1]), []).append(a)
    out += [g for g in groups.values() if len(g) > 1]
    alone: dict[tuple[object, ...], list[Amount]] = {}
    for g in groups.values():
        if len(g) == 1:
            alone.setdefault((g[0].arguments, g[0].shape), []).append(g[0])
    return [*out, *alone.values()]


def at_once(groups: list[list[Amount]]) -> list[list[list[Amount]]]:
    """Groups that have the same gates, of the delta rule without momentum, run together."""
    found: dict[object, list[list[Amount]]] = {}
    for i, group in enumerate(groups):
        known = dict(group[0].arguments)
        same = known.keys() == {"rate", "retention", "erase"} and not group[0].rule.rule.momentum
        found.setdefault(group[0].arguments if same else i, []).append(group)
    return list(found.values())


def frozen(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Frozen(module, box).write()
