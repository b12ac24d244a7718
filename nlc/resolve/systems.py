"""One `system` block: its settings, levels, flow, weights and transfers."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from .. import syntax as S
from ..system import (
    Assign,
    Box,
    Flow,
    Learn,
    Level,
    Shape,
    System,
    Term,
    Transfer,
    Weight,
)
from .blocks import Block, assigned, calls_in
from .bodies import Body
from .boxes import Boxes
from .functions import Stop
from .moving import lined_up
from .resolver import Resolver
from .settings import among, bounded, is_setting, listed
from .shapes import told
from .values import POISON, BoxValue, Declared, LevelValue, Names, Poison, StateValue, is_known
from .work import Placed, cites


class SystemStage:
    """One `system` block."""

    def __init__(
        self,
        r: Resolver,
        node: S.System,
        names: Mapping[str, Any],
        doc: str,
        docs: Mapping[int, str],
    ) -> None:
        self.r = r
        self.node = node
        self.docs = docs
        self.doc = doc
        self.body = Body(r, ChainMap({}, dict(names)))
        self.settings: dict[str, Any] = {}
        self.called_in_flow: set[str] = set()
        self.flow_node = next((s for s in node.body.statements if isinstance(s, S.Flow)), None)

    def system(self) -> System | None:
        self.read_settings()
        self.plain_lines()
        self.r.settings, self.r.system_names = set(self.settings), self.body.env.maps[0]
        self.declare_levels()
        self.callable_levels()
        self.uncalled_levels()
        flow = self.flow()
        self.weights_of_owner()
        transfers = self.transfers()
        assume = self.assume()
        for level in self.r.levels:
            level.boxes = tuple(self.r.level_boxes.get(level.name, ()))
        if flow is None:
            return None
        return System(
            self.node.name.id,
            self.settings,
            tuple(self.r.levels),
            flow,
            transfers,
            tuple(self.r.weights),
            tuple(self.r.boxes),
            assume,
            cites(self.node.body),
            self.doc,
            self.node.span,
        )

    # ---- settings and plain lines ----

    def read_settings(self) -> None:
        overrides = self.r.overrides
        known = {p.name.id for p in self.node.params}
        for name in overrides:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = (
                    f"; did you mean `{near[0]}`?"
                    if near
                    else f"; it has {', '.join(sorted(known)) or 'none'}"
                )
                self.r.report(
                    "NL101",
                    f"system `{self.node.name.id}` has no setting `{name}`{hint}",
                    self.node.name.span,
                )
        for p in self.node.params:
            self.read_setting(p, overrides)
        spans = {p.name.id: p.span for p in self.node.params}
        for node in self.node.body.statements:
            if isinstance(node, S.Among):
                among(self.body, spans, node, self.settings)
            elif isinstance(node, S.Bounded):
                bounded(self.body, spans, node, self.settings)

    def read_setting(self, p: S.Param, overrides: Mapping[str, Any]) -> None:
        name = p.name.id
        if name in self.settings or name in self.body.fixed:
            self.r.report("NL102", f"`{p.name.text or name}` is given twice", p.name.span)
            return
        self.body.fixed.add(name)
        if name in overrides:
            value = listed(overrides[name])
        elif p.default is None:
            self.r.report(
                "NL107",
                f"setting `{name}` of a system needs a default",
                p.span,
                f"write `{name} = ..`",
            )
            value = POISON
        else:
            value = self.body.value(p.default)
        if not (is_setting(value) or isinstance(value, Poison)):
            self.r.report("NL202", f"setting `{name}` is a number or a list of numbers", p.span)
            value = POISON
        self.settings[name] = value
        self.body.env[name] = value

    def plain_lines(self) -> None:
        """Lines between the levels (`n = width / heads`) are numbers."""
        for node in self.node.body.statements:
            if isinstance(node, S.Bind | S.Add | S.Repeat):
                self.body.line(node)
        for line in self.body.lines:
            if isinstance(line, Assign):
                self.r.report(
                    "NL003",
                    f"`{line.name}` changes while the system runs, so it belongs in the flow or a "
                    "level",
                    line.value.span,
                )
        self.body.lines.clear()

    # ---- levels ----

    def level_statements(self) -> list[S.Level]:
        return [s for s in self.node.body.statements if isinstance(s, S.Level)]

    def declare_levels(self) -> None:
        taken: set[str] = set()
        for node in self.level_statements():
            name = node.name.id
            if (
                name in taken
                or isinstance(self.body.env.get(name), (LevelValue, Declared))
                or name in self.settings
            ):
                self.r.report(
                    "NL102",
                    f"`{node.name.text or name}` is given twice",
                    node.name.span,
                    "levels, memories and settings share one name space",
                )
                continue
            taken.add(name)
            members = self.family(node)
            self.body.env[name] = LevelValue(name, members) if members else POISON
        for node in self.level_statements():
            value = self.body.env.get(node.name.id)
            if isinstance(value, LevelValue):
                for index, level in value.members.items():
                    extra = {node.index[0].id: index} if node.index is not None else {}
                    env = self.body.env.new_child(dict(extra))
                    self.r.level_nodes.setdefault(level.name, (node, env))

    def family(self, node: S.Level) -> dict[Any, Level]:
        if node.index is None:
            return {None: self.level(node, node.name.id, {})}
        values = self.body.value(node.index[1])
        if isinstance(values, Poison):
            return {}
        if not isinstance(values, list) or not all(is_known(v) for v in values):
            self.r.report(
                "NL202",
                "a family is made over a list of numbers known when compiled, not "
                f"`{node.index[1].span.text}`",
                node.index[1].span,
            )
            return {}
        if len(set(values)) != len(values):
            self.r.report(
                "NL102",
                f"`{node.index[1].span.text}` names a member twice: {values}",
                node.index[1].span,
            )
        return {
            v: self.level(node, f"{node.name.id}[{v}]", {node.index[0].id: v})
            for v in dict.fromkeys(values)
        }

    def level(self, node: S.Level, name: str, extra: Mapping[str, Any]) -> Level:
        body = Body(self.r, self.body.env.new_child(dict(extra)))
        self.streams(body, node)
        clock = self.r.clock(body, node.clock)
        made = Level(
            name,
            node.name.id,
            clock,
            owner=node.params is None,
            doc=self.docs.get(node.span.start, ""),
            span=node.span,
        )
        for s in node.body.statements:
            if isinstance(s, S.Reset):
                made.reset = self.r.clock(body, s.when)
            elif isinstance(s, S.Partial):
                made.partial = self.partial(s)
        self.r.levels.append(made)
        return made

    def streams(self, body: Body, node: S.Level) -> None:
        """The inputs are known by name to the clock, so that it can say that they change."""
        for p in node.params or ():
            body.env[p.name.id] = (
                body.value(p.default)
                if p.default is not None
                else body.term("input", (), (), p.name.id, span=p.span)
            )

    def partial(self, node: S.Partial) -> str:
        word = node.word.id
        if word not in ("carry", "flush", "drop"):
            near = get_close_matches(word, ["carry", "flush", "drop"], n=1)
            self.r.report(
                "NL001",
                f"`partial {word}` is none of carry, flush, drop"
                + (f"; did you mean `{near[0]}`?" if near else ""),
                node.word.span,
                fix=near[0] if near else None,
            )
        return word

    def uncalled_levels(self) -> None:
        """A level that is never called exists once; its states are seen by name (2.4.1)."""
        for level in self.r.levels:
            node, env = self.r.level_nodes.get(level.name, (None, self.body.env))
            if node is None or node.params or level.family in self.called_in_flow:
                continue
            box = Box(
                level.family,
                level.name,
                "level",
                level,
                cites=cites(node.body),
                doc=level.doc,
                span=node.span,
            )
            self.r.add_box(level, box, self.body)
            self.r.filled.add(id(box))
            inner = Body(self.r, env.new_child(), f"{box.path}.", (), box)
            try:
                self.r.boxes_stage.fill(inner, without_learning(node.body, level.owner))
            except Stop:
                continue
            states = self.r.states_of(box, foreign=True)
            for name, value in states.items():
                self.see(name, value, node)
            whole = {k: v for k, v in states.items() if isinstance(v, StateValue)}
            self.share(level.family, BoxValue(level.name, box, {**whole, **states}))

    def see(self, name: str, value: Any, node: S.Level) -> None:
        if name in self.body.env:
            self.r.report(
                "NL102",
                f"state `{name}` of `{node.name.id}` has the name of something else",
                node.span,
            )
            return
        self.share(name, value)

    def share(self, name: str, value: Any) -> None:
        self.body.env[name] = value

    # ---- the flow ----

    def callable_levels(self) -> None:
        """`level a()` has no inputs and is called; `level a` is not (2.4.1)."""
        empty = {s.name.id for s in self.level_statements() if s.params == ()}
        if self.flow_node is not None and empty:
            self.called_in_flow = empty & set(self.names_called(self.flow_node.body.statements))

    def names_called(self, statements: tuple[S.Statement, ...]) -> Iterator[str]:
        for node in statements:
            if isinstance(node, S.Repeat):
                yield from self.names_called(node.body.statements)
            for call in calls_in(getattr(node, "value", None)):
                if isinstance(call.function, S.Name):
                    yield call.function.id

    def flow(self) -> Flow | None:
        node = self.flow_node
        if node is None:
            self.r.absent(
                "NL308",
                f"system `{self.node.name.id}` has no flow",
                self.node.name.span,
                "add `flow(tokens) { .. return e }`",
            )
            return None
        body = Body(self.r, self.body.env.new_child())
        inputs = tuple(self.flow_inputs(body, node))
        body.blocks.append(Block(body, node.body.statements))
        body.taken.update(assigned(node.body))
        result: Term | None = None
        for s in node.body.statements:
            if isinstance(s, S.Return):
                body.where = "return"
                try:
                    result = body.whole(body.value(s.value), s.value.span)
                except Stop:
                    result = Term("const", (), (), 0.0, None, s.span)
            elif isinstance(s, S.Bind) and s.name.id == "loss":
                with self.r.objective():
                    body.line(s)
            else:
                body.line(s)
        if result is None:
            self.r.absent(
                "NL308",
                "the flow has no `return`",
                node.span,
                "end it with `return e`: what the model answers",
            )
            return None
        loss = body.env.get("loss")
        self.uncalled_inputs()
        lines = lined_up(body.lines, {*body.env})
        return Flow(inputs, tuple(lines), result, self.number(loss, node), node.span)

    def number(self, loss: Any, node: S.Flow) -> Term | None:
        if isinstance(loss, (int, float)):
            return Term("const", (), (), loss, None, node.span)
        if isinstance(loss, Term) and (loss.shape or loss.form):
            self.r.report(
                "NL603", "the loss is one number a tick", loss.span, "wrap it in `sum` or `mean`"
            )
        return loss if isinstance(loss, Term) else None

    def flow_inputs(self, body: Body, node: S.Flow) -> list[tuple[str, Shape]]:
        inputs: list[tuple[str, Shape]] = []
        for p in node.params:
            name = p.name.id
            if name in body.fixed:
                self.r.report("NL102", f"`{p.name.text or name}` is given twice", p.name.span)
                continue
            body.fixed.add(name)
            if isinstance(body.env.get(name), (LevelValue, StateValue)) or name in self.settings:
                self.r.report(
                    "NL102",
                    f"`{p.name.text or name}` is the name of something else here",
                    p.name.span,
                )
            try:
                shape = tuple(body.size(body.value(d), d.span) for d in p.dims)
            except Stop:
                body.env[name] = POISON
                continue
            inputs.append((name, shape))
            body.env[name] = body.term("input", (), shape, name, span=p.span)
        return inputs

    def uncalled_inputs(self) -> None:
        for level in self.r.levels:
            node = self.r.level_nodes.get(level.name, (None,))[0]
            if node is None or not node.params or level.name in self.r.called:
                continue
            if level.family in self.called_by_none():
                self.r.absent(
                    "NL308",
                    f"`{level.name}` is called only in a `repeat` of no round, so it never fires",
                    node.name.span,
                    "give the `repeat` a round, or remove the level",
                )
                continue
            if get_close_matches(level.family, self.r.unknown, n=1):
                continue  # its call is misspelt, which has been told
            self.r.absent(
                "NL308",
                f"`{level.name}` has inputs and is never called, so it never fires",
                node.name.span,
                "call it in the flow, or remove it",
            )

    def called_by_none(self) -> set[str]:
        """Levels whose calls stand in the flow, of which none was made."""
        statements = self.flow_node.body.statements if self.flow_node is not None else ()
        return set(self.names_called(statements))

    # ---- weights and their owner ----

    def weights_of_owner(self) -> None:
        owners = [l for l in self.r.levels if l.owner]
        weights = self.r.weights
        if weights and len(owners) != 1:
            self.no_owner(owners, weights[0])
        for level in owners:
            node, env = self.r.level_nodes[level.name]
            self.owner_rules(level, node, env, weights if len(owners) == 1 else [])

    def no_owner(self, owners: list[Level], weight: Weight) -> None:
        what = f"the weights of `{weight.maker}` at line {weight.span.line}"
        if owners:
            names = " and ".join(f"`{o.name}`" for o in owners[:2])
            self.r.report(
                "NL104",
                f"{what} have two owners, {names}: only one level may be written without inputs",
                owners[1].span,
                "give one of them inputs, or its own states",
            )
        else:
            self.r.absent(
                "NL104",
                f"{what} have no owner: no level is written without inputs",
                weight.span,
                "add `level training every step { objective loss; learn adamw(rate = 4e-4) }`",
            )

    def owner_rules(self, level: Level, node: S.Level, env: Names, weights: list[Weight]) -> None:
        body = Body(
            self.r,
            env.new_child(),
            f"{level.family}.",
            box=self.r.level_boxes[level.name][0] if level.name in self.r.level_boxes else None,
        )
        learned: list[Learn] = []
        left = list(weights)
        for s in node.body.statements:
            placed = Placed(s, body.env.copy())
            if isinstance(s, S.Objective):
                level.objective = self.r.boxes_stage.objective(body, placed, {}).get("objective")
                level.once = s.once
            elif isinstance(s, S.Retain):
                level.retain = self.owner_retains(body, placed)
            elif isinstance(s, S.Learn):
                left = self.serve(body, placed, level, left, learned)
        level.learn = tuple(learned)
        if learned and left and level.clock.unit != "never":
            self.r.report(
                "NL405",
                f"no `learn` line of `{level.name}` serves `{left[0].maker}` at line "
                f"{left[0].span.line}",
                learned[0].span,
                "add a `learn` without `for`, for the rest",
            )

    def owner_retains(self, body: Body, placed: Placed) -> Term | None:
        """What the weights keep at each firing: one number."""
        node = placed.node
        value = self.r.boxes_stage.in_env(body, placed, node.value)
        try:
            term = body.array(value, node.value.span)
        except Stop:
            return None
        if term.shape or node.through is not None or node.onto is not None:
            self.r.report(
                "NL602",
                f"weights keep one number of themselves, and this is {told(term.shape)}"
                if term.shape
                else "weights have no `through` or `onto`",
                node.span,
                "declare a state, as in `state E : table(vocab, width)`, for more",
            )
            return None
        return term

    def serve(
        self, body: Body, placed: Placed, level: Level, left: list[Weight], learned: list[Learn]
    ) -> list[Weight]:
        stage: Boxes = self.r.boxes_stage
        targets = stage.targets(body, placed.node)
        probe = Learn("", {}, {}, {}, targets)
        mine = [
            w
            for w in left
            if Level(level.name, level.family, level.clock, learn=(probe,)).line_for(w) is not None
        ]
        names = {w.shape: f"`{w.maker}` at line {w.span.line}" for w in reversed(mine)}
        shapes = list(dict.fromkeys(w.shape for w in mine))
        starts = {a.shape: None for b in self.r.boxes for s in b.states for a in s.form.arrays}
        line = stage.learn_line(
            body, placed, {}, shapes or [(1, 1)], (), targets,
            lambda s: names.get(s, "a weight"), starts,
        )  # fmt: skip
        if line is not None:
            learned.append(line)
        served = set(map(id, mine))
        return [w for w in left if id(w) not in served]

    # ---- transfers ----

    def transfers(self) -> tuple[Transfer, ...]:
        made: list[Transfer] = []
        for node in self.node.body.statements:
            if isinstance(node, S.Transfer):
                stages = [self.ends(paths, node.kind) for paths in node.stages]
                through = self.truncation(node)
                for before, after in pairwise(stages):
                    made += [self.edge(node, a, b, through) for a in before for b in after]
        return tuple(made)

    def edge(
        self,
        node: S.Transfer,
        a: tuple[Level, str | None],
        b: tuple[Level, str | None],
        through: int | None,
    ) -> Transfer:
        return Transfer(node.kind, a[0], b[0], b[1], a[1], through, node.first_order, node.span)

    def truncation(self, node: S.Transfer) -> int | None:
        if node.through is None:
            return None
        if node.through_unit != "token":
            self.r.report(
                "NL201",
                f"a gradient is cut after tokens, not {node.through_unit}s",
                node.through.span,
            )
        return self.r.period(
            self.body, node.through, None, "where no gradient is to pass, leave the edge out"
        )

    def ends(self, paths: tuple[S.Path, ...], kind: str) -> list[tuple[Level, str | None]]:
        ends = []
        for path in paths:
            found = self.end(path)
            if kind in ("init", "generate") or not any(state for _, state in found):
                ends += found
            else:
                self.no_level(path, kind)
        return ends

    def no_level(self, path: S.Path, kind: str) -> None:
        """`init` and `generate` take a level or a state, the others a level (2.11.4)."""
        names = [p for p, indexed in zip(path.rest, path.indexed, strict=True) if not indexed]
        level = path.span.text[: names[0].span.start - path.span.start].rstrip(" .")
        self.r.report(
            "NL101",
            f"`{path.span.text}` is no level, and `{kind}` passes between levels",
            path.span,
            f"write `{level}`, which stands for all its states",
            fix=level,
        )

    def end(self, path: S.Path) -> list[tuple[Level, str | None]]:
        """A level, a family (its members), a member, or a state of a level."""
        value = self.body.env.get(path.first.id)
        if isinstance(value, Poison):
            return []
        if isinstance(value, BoxValue):
            value = LevelValue(
                path.first.id, {None: next(l for l in self.r.levels if l.name == value.name)}
            )
        if not isinstance(value, LevelValue):
            if self.r.lost(path.first):
                return []
            names = [l.family for l in self.r.levels]
            near = get_close_matches(path.first.id, names, n=1)
            hint = (
                f"; did you mean `{near[0]}`?"
                if near
                else f"; levels here are {', '.join(dict.fromkeys(names)) or 'none'}"
            )
            self.r.report(
                "NL101",
                f"`{path.first.text or path.first.id}` is no level{hint}",
                path.first.span,
                fix=near[0] if near else None,
                once=("NL101", path.first.id),
            )
            return []
        members = dict(value.members)
        rest = list(zip(path.rest, path.indexed, strict=True))
        if rest and rest[0][1]:
            expr, _ = rest.pop(0)
            index = self.body.value(expr)
            if is_known(index) and index in members:
                members = {index: members[index]}
            else:
                self.r.report(
                    "NL101", f"`{path.span.text}`: `{value.name}` has no such member", path.span
                )
                return []
        state = ".".join(p.id for p, _ in rest if isinstance(p, S.Name)) or None
        if state is None:
            return [(level, None) for level in members.values()]
        named = [(level, self.state_named(level, state, path)) for level in members.values()]
        return [(level, name) for level, name in named if name is not None]

    def state_named(self, level: Level, state: str, path: S.Path) -> str | None:
        """A state of the level, or of a memory that it calls (2.11.4): its path, or that of a
        group. None after a mistake.
        """
        kept = self.states_kept(level)
        memory, _, own = state.partition(".")
        if means(state, kept[""]) or means(own, kept.get(memory, [])):
            return state
        owners = [o for o, names in kept.items() if means(state, names)]
        if len(owners) == 1:
            return f"{owners[0]}.{state}"
        if owners:
            self.of_several(level, state, owners, path)
        elif not self.unknown_memories(level):
            self.no_state(level, state, kept, path)
        return None

    def states_kept(self, level: Level) -> dict[str, list[str]]:
        """Names of states: the level's own, at "", and those of each memory that it calls."""
        node, _ = self.r.level_nodes[level.name]
        kept = {
            "": [n for s in node.body.statements if isinstance(s, S.State) for n in names_in(s)]
        }
        for box in self.r.boxes:
            if box.level is level and box.kind == "memory" and box.states:
                kept.setdefault(box.name, [s.name for s in box.states])
        return kept

    def unknown_memories(self, level: Level) -> bool:
        """Whether it calls memories that a mistake, told before, may have kept from being made."""
        node, env = self.r.level_nodes[level.name]
        called = (env.get(name) for name in self.names_called(node.body.statements))
        return bool(self.r.diagnostics) and any(isinstance(v, Declared) for v in called)

    def of_several(self, level: Level, state: str, owners: list[str], path: S.Path) -> None:
        shown = " and ".join(f"`{o}`" for o in owners[:2])
        self.r.report(
            "NL307",
            f"both {shown} have a state `{state}`: which `{path.span.text}` is meant?",
            path.span,
            f"write `{level.name}.{owners[0]}.{state}`, or `{level.name}` for all its states",
        )

    def no_state(
        self, level: Level, state: str, kept: Mapping[str, list[str]], path: S.Path
    ) -> None:
        names = [f"{o}.{n}" if o else n for o, found in kept.items() for n in found]
        near = get_close_matches(state, [*names, *(n for found in kept.values() for n in found)], 1)
        known = ", ".join(dict.fromkeys(names)) or "none"
        hint = f"; did you mean `{near[0]}`?" if near else f"; it has {known}"
        self.r.report("NL101", f"`{level.name}` has no state `{state}`{hint}", path.span)

    def assume(self) -> int | None:
        tokens: int | None = None
        for node in self.node.body.statements:
            if isinstance(node, S.Assume):
                amount = self.r.period(self.body, node.amount, None)
                if node.unit == "sequence" and node.of == "token":
                    tokens = amount
        return tokens


def names_in(node: S.State) -> list[str]:
    name = node.name.id
    return [f"{name}.{m.id}" for m in node.members] or [name]


def means(state: str, names: list[str]) -> bool:
    """Whether it names one of these states, or a group of them."""
    return any(n == state or n.startswith(f"{state}.") for n in names)


def without_learning(block: S.Block, owner: bool) -> S.Block:
    """An owner's `objective` and `learn` serve its weights; they reach its states too, if it has
    any.
    """
    if not owner or any(isinstance(s, S.State) for s in block.statements):
        return block
    return S.Block(
        tuple(s for s in block.statements if isinstance(s, S.Bind | S.Add | S.Cite)),
        span=block.span,
    )
