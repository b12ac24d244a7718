"""How a firing changes each state of a box: the gradient of its period, or what is written, given
to whatever rule the state learns by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from nlc.lacking import NotLowered
from nlc.rules import Example
from nlc.system import Array, Box, Learn, State, Term

from .bodies import Module, state_path
from .code import identifier
from .common import transparent
from .folding import Folder, Unfoldable
from .rule_streams import across_in, across_of, examples_asked
from .rules import Written, fitted
from .standing import FiredBody, Standing, body_varies, own_shape, rows_a_tick

Place = tuple[str, str]  # a state and one of its arrays


class Learned(Standing):
    """Writes the new states of a box that fires."""

    def __init__(self, module: Module, box: Box) -> None:
        super().__init__(module, box)
        self.sums: dict[Place, str] = {}  # the gradient of the period, or what is written
        self.rows: dict[Place, tuple[str, str]] = {}  # and its examples, where a rule asks for them
        self.memories: dict[Place, str] = {}  # of the rule of an array, while it fires
        self.numbers: dict[tuple[int, int], tuple[str, ...]] = {}  # `across`, by the line

    # ---- what is learned from --------------------------------------------------------------------

    def summed(self, body: FiredBody, state: State) -> dict[str, str]:
        """The gradient (or what is written) so far in this period, and its examples: what waits for
        the rest of it, by key.
        """
        rule = state.rule
        told = rule.objective if rule.write is None else rule.write
        if rule.set is not None or told is None or is_implicit(state):
            return {}
        body.cite_line(told)
        keys: dict[str, str] = {}
        with self.seen_by_objective(body, state):
            if rule.after_retain:
                for array, new in self.points(body, state, {}).items():
                    body.held[state.name, array] = new
            self.slopes_of(body, state, keys)
        return keys

    @contextmanager
    def seen_by_objective(self, body: FiredBody, state: State) -> Iterator[None]:
        outer = dict(body.held)
        body.see(dict(body.anchored))
        if state.rule.write is None:
            transparent(body)
        yield
        body.e.hooks.pop("stop", None)
        body.see(outer)

    def points(self, body: FiredBody, state: State, offsets: dict[str, str]) -> dict[str, str]:
        """The state at which a gradient is taken: retained, or where an earlier step on the same
        data has ended (2.8.3).
        """
        suffix = ".start" if self.box.linearise is not None else ""
        found = {}
        for array in state.form.arrays:
            kept = self.kept(body, state, array) if state.rule.after_retain else ""
            key = body.key(state_path(self.box, state.name, array.name) + suffix)
            text = f"{kept}s[{key}]{offsets.get(array.name, '')}"
            name = self.code.name("kept")
            self.code.add(f"{name} = {self.linked(body, state, array, text)}")
            found[array.name] = name
        return found

    def slopes_of(self, body: FiredBody, state: State, keys: dict[str, str] | None) -> None:
        """The gradient of each array, or what is written, under a name. `keys`: where sums wait;
        None: for a later step.
        """
        rule = state.rule
        gradient = self.module.plan.of(self.box).gradients.get(state.name)
        slopes = {}
        if rule.write is None and gradient is None:
            slopes = self.by_autograd(body, state)
        roots = [rule.write] if rule.write is not None else []
        if gradient is not None:
            roots = [t for e in gradient.examples for t in (e.surprise, e.input)]
            roots += [t for _, t in gradient.direct]
        body.e.count([t for t in roots if not body.e.uses[id(t)]])
        for array in state.form.arrays:
            if rule.write is not None:
                self.turn_to(body, state, array)
                code = self.whole(body, rule.write, False)
            elif gradient is None:
                code = slopes[array.name]
            else:
                mine = [e for e in gradient.examples if e.array == array.name]
                if asks(state, array):
                    parts = [self.by_rows(body, state, array, mine, keys)] if mine else []
                else:
                    parts = [self.outer(body, state, e) for e in mine]
                parts += [
                    self.whole(body, t, rule.once) for n, t in gradient.direct if n == array.name
                ]
                code = " + ".join(parts) or f"torch.zeros_like({body.held[state.name, array.name]})"
            name = self.code.name("grad" if rule.write is None else "written")
            path = state_path(self.box, state.name, array.name)
            if self.sums_up(state) and keys is not None:
                shape = self.held_shape(path)
                self.hold_back(f"{path}.sum", shape)
                keys[body.key(path + ".sum")] = name
                code = f"s[{body.key(path + '.sum')}] + {code}"
            self.code.add(f"{name} = {body.gate(f'({self.of_order(state, code)})')}")
            self.sums[state.name, array.name] = name

    def hold_back(self, path: str, shape: tuple[int, ...]) -> None:
        """What waits for the end of the period; with `partial drop` no longer than a call."""
        self.module.hold(path, self.box.loops, shape, "zeros")
        if self.box.level is not None and self.box.level.partial == "drop":
            self.module.dropped.append((path, self.box.loops))

    def sums_up(self, state: State) -> bool:
        return self.waits and not state.rule.once

    def of_order(self, state: State, code: str) -> str:
        """A gradient is a constant to training of first order."""
        level = self.box.level.name if self.box.level is not None else ""
        first = level in self.module.plan.training.first_order and state.rule.write is None
        return f"({code}).detach()" if first else code

    def held_shape(self, path: str) -> tuple[int, ...]:
        return next(h.shape for h in self.module.held if h.path == path)

    def by_rows(
        self, body: FiredBody, state: State, array: Array, examples: list[Example],
        keys: dict[str, str] | None,
    ) -> str:  # fmt: skip
        """The gradient of these ticks, and the examples of the period under a name (2.9.6)."""
        pairs = [self.pair(body, state, e) for e in examples]
        named, codes = [], []
        for wish, parts in zip(("seen", "surprise"), zip(*pairs, strict=True), strict=True):
            code = parts[0] if len(parts) == 1 else f"self.rows_of({', '.join(parts)})"
            name = self.code.name(wish)
            self.code.add(f"{name} = {body.gate(f'({self.of_order(state, code)})')}")
            codes.append(name)
            if self.sums_up(state) and keys is not None:
                name = self.waiting(body, state, array, wish, name, examples, keys)
            named.append(name)
        self.rows[state.name, array.name] = named[0], named[1]
        return f"{codes[1]}.mT @ {codes[0]}"

    def waiting(
        self, body: FiredBody, state: State, array: Array, kind: str, name: str,
        examples: list[Example], keys: dict[str, str],
    ) -> str:  # fmt: skip
        """The rows of all ticks since the last firing."""
        path = state_path(self.box, state.name, array.name)
        shape = self.held_shape(path)
        each = sum(rows_a_tick(state, e) for e in examples)
        room = each * max(self.clock)
        wide = shape[-1] if kind == "seen" else shape[-2]
        self.hold_back(f"{path}.{kind}", (*shape[:-2], room, wide))
        key = body.key(f"{path}.{kind}")
        kept = self.code.name(f"{kind}_so_far")
        self.code.add(f"{kept} = self.newest_rows(s[{key}], {name})")
        keys[key] = kept
        times = f"{each} * " if each > 1 else ""
        return f"{kept}[..., -{times}s.since({self.clock[0]}, {self.clock[1]}) :, :]"

    # ---- the new states --------------------------------------------------------------------------

    def new(self, body: FiredBody, state: State, keys: dict[str, str]) -> list[tuple[str, str]]:
        """The arrays after the firing, under the keys where they are kept; retention, settings and
        links see the states that gradients are taken at (2.9.7).
        """
        if body.held != body.anchored:
            body.see(body.anchored)
        made = [(key, f"torch.zeros_like({value})") for key, value in keys.items()]
        told = self.written(body, state, made)
        for array in state.form.arrays:
            path = state_path(self.box, state.name, array.name)
            old = f"s[{body.key(path)}]"
            name = self.code.name(f"new_{state.name}")
            if state.rule.set is not None:
                self.turn_to(body, state, array)
                value = body.e(state.rule.set)
                body.cite_line(state.rule.set)
                picked = f"{value.atom}.select({body.lead - 1}, -1)" if value.lead else value.code
                new = f"({picked}).expand_as({old})"
            else:
                new = told.get(array.name) or f"{self.kept(body, state, array)}{old}"
            onto = (state.rule.onto or {}).get(array.name)
            new = self.mapped_by(body, onto, state, array, new)
            self.code.add(f"{name} = {body.gate(f'({new})')}")
            made.append((body.key(path), name))
        return made

    def written(
        self, body: FiredBody, state: State, made: list[tuple[str, str]]
    ) -> dict[str, str]:  # fmt: skip
        """By array, retained state + amount (2.8); what else is kept goes into `made`."""
        rule = state.rule
        if rule.set is not None or rule.objective is None and rule.write is None:
            return {}
        if rule.write is not None:
            return {
                a.name: f"{self.kept(body, state, a)}s"
                f"[{body.key(state_path(self.box, state.name, a.name))}]"
                f" + {self.sums[state.name, a.name]}"
                for a in state.form.arrays
            }
        if is_implicit(state):
            return self.nearest(body, state)
        told: dict[str, str] = {}
        offsets: dict[str, str] = {}
        for learn, arrays in lines_of(state):
            for step in range(learn.steps):
                if step:
                    with self.seen_by_objective(body, state):
                        for name, at in self.points(body, state, offsets).items():
                            body.held[state.name, name] = at
                        self.slopes_of(body, state, None)
                across = self.across(body, state, learn, step, offsets)
                for array in arrays:
                    amount, own = self.optimized(body, state, array, learn, step, offsets, across)
                    if not step:
                        key = body.key(state_path(self.box, state.name, array.name))
                        told[array.name] = f"{own}{self.kept(body, state, array)}s[{key}]"
                    told[array.name] += f" + {amount}"
                    offsets[array.name] = f"{offsets.get(array.name, '')} + {amount}"
            for array in arrays:
                path = state_path(self.box, state.name, array.name)
                m = self.memories.pop((state.name, array.name))
                kept = self.rule_of(body, state, array, learn)[0].states
                made += [(body.key(f"{path}.{k}"), body.gate(f'{m}["{k}"]')) for k in kept]
        return told

    def optimized(
        self, body: FiredBody, state: State, array: Array, learn: Learn, step: int,
        offsets: dict[str, str], across: tuple[str, ...],
    ) -> tuple[str, str]:  # fmt: skip
        """What is added, and what the optimizer keeps, as a factor."""
        path = state_path(self.box, state.name, array.name)
        place, old = (state.name, array.name), f"s[{body.key(path)}]"
        method, given, passed = self.rule_of(body, state, array, learn)
        kept, amount = self.code.names(["kept", "amount"])
        if step == 0:
            for one in method.kept:
                shape = one.within(self.held_shape(path), array.shape)
                self.module.hold(f"{path}.{one.name}", self.box.loops, shape, "zeros")
            m = self.memories[place] = self.code.name("m")
            listed = ", ".join(f'"{k}": s[{body.key(f"{path}.{k}")}]' for k in method.states)
            self.code.add(f"{m} = {{{listed}}}" if listed else f"{m}: dict[str, Tensor] = {{}}")
        arguments = self.told_of(body, state, array, step, offsets)
        count = "count" if learn.steps == 1 else f"(count - 1) * {learn.steps} + {step + 1}"
        arguments += [self.memories[place], count]
        if across:
            arguments.append(beside_heads(across, state))
        self.code.add(f"{kept}, {amount} = self.{method.name}({', '.join(arguments)}{given})")
        beside = f"self.beside({kept}, {old})" if passed else kept
        return amount, "" if method.keeps_all else f"{beside} * "

    def told_of(
        self, body: FiredBody, state: State, array: Array, step: int, offsets: dict[str, str]
    ) -> list[str]:
        """`weight`, `grad`, and the examples of an array whose rule asks for them."""
        old = f"s[{body.key(state_path(self.box, state.name, array.name))}]"
        weight = f"{self.kept(body, state, array)}{old}" if state.rule.after_retain else old
        weight += offsets.get(array.name, "") if step else ""
        place = state.name, array.name
        if asks(state, array) and place not in self.rows:
            rule = state.rule.learn[array.name].rule
            why = f"`{rule}`, which asks for examples, where `{state.name}` is never called,"
            raise NotLowered(why, state.span)
        return [weight, self.sums[place], *(self.rows[place] if asks(state, array) else ())]

    def across(
        self, body: FiredBody, state: State, learn: Learn, step: int, offsets: dict[str, str]
    ) -> tuple[str, ...]:
        """The sums of `across` over all arrays of the line (2.9.4), under names."""
        terms = across_of(learn.streams)
        line = (learn.span.start, learn.span.end)
        if not terms or step == 0 and line in self.numbers:
            return self.numbers.get(line, ())
        served = [
            (s, a, s.rule.learn[a.name])
            for s in self.box.states
            for a in s.form.arrays
            if a.name in s.rule.learn and same_line(s.rule.learn[a.name], learn)
        ]
        if learn.steps > 1 and any(s is not state for s, _, _ in served):
            raise NotLowered(f"`across` of several states in `steps = {learn.steps}`", learn.span)
        names: list[str] = []
        for i in range(len(terms)):
            parts = []
            for other, array, own in served:
                streams = {k: fitted(t, array.shape) for k, t in own.streams.items()}
                known = numbered(own, streams)
                term = next(t for s in streams.values() for t in across_in(s) if known[id(t)] == i)
                lead = body.lead - 1 + len(other.per)
                asked = asks(other, array)
                method = self.module.rules.part_of_sum(term, lead, known, asked)
                given = self.told_of(body, other, array, step, offsets)
                count = "count" if own.steps == 1 else f"(count - 1) * {own.steps} + {step + 1}"
                told = beside_heads(tuple(names), other)
                text = f"self.{method}({', '.join([*given, count, told])})"
                axes = tuple(range(-len(other.per), 0))
                parts.append(f"{text}.sum({axes})" if axes else text)
            name = self.code.name("across")
            self.code.add(f"{name} = {' + '.join(parts)}")
            names.append(name)
        self.numbers[line] = tuple(names)
        return tuple(names)

    # ---- implicit steps --------------------------------------------------------------------------

    def nearest(self, body: FiredBody, state: State) -> dict[str, str]:
        """`implicit(rate)`: the arrays that minimise objective and change together (2.9.4)."""
        arrays, code = state.form.arrays, self.code
        objective = state.rule.objective
        assert objective is not None
        body.cite_line(objective)
        found = self.module.plan.of(self.box).gradients.get(state.name)
        rate = next(iter(state.rule.learn.values())).settings.get("rate")
        kept, rates, names = [], [], []
        for array in arrays:
            path = state_path(self.box, state.name, array.name)
            name = code.name("kept")
            code.add(f"{name} = {self.kept(body, state, array)}s[{body.key(path)}]")
            kept.append(name)
            rates.append("1.0" if rate is None else self.share(body, rate, state, array) or "1.0")
            names.append(code.name(f"{state.name}_{array.name}" if array.name else state.name))
        examples = self.seen_alone(state)
        seen = [self.seen(body, state, examples)] if examples else ["None"] * len(arrays)
        errors, new = code.name("errors"), code.name("nearest")
        given = ", ".join(f"{n}: Tensor" for n in names)
        head = f"def {errors}({given}) -> tuple[Tensor, tuple[Tensor, ...]]:"
        with code.block(head), self.seen_by_objective(body, state):
            for array, name in zip(arrays, names, strict=True):
                body.held[state.name, array.name] = name
            if found is not None:
                objective = found.value
            body.e.count([objective, *(e.surprise for e in examples)])
            value = body.e(objective)
            if examples:
                parts = [self.pair(body, state, e)[1] for e in examples]
                told = [parts[0] if len(parts) == 1 else f"self.rows_of({', '.join(parts)})"]
            else:
                self.slopes_of(body, state, None)
                told = [self.sums[state.name, a.name] for a in arrays]
            axes = tuple(range(-value.own - 1, 0))
            last = f".narrow({axes[0]}, -1, 1)" if state.rule.once else ""
            code.add(f"return {value.atom}{last}.sum({axes}), ({', '.join(told)},)")
        lead = body.lead - 1
        block = lead + len(state.per) * self.heads_apart(state)
        listed = [f"({', '.join(x)},)" for x in (kept, rates, seen)]
        code.add(f"{new} = self.nearest({errors}, {', '.join(listed)}, {lead}, {block})")
        return {a.name: f"{new}[{i}]" for i, a in enumerate(arrays)}

    def seen_alone(self, state: State) -> list[Example]:
        """The examples of a matrix, where what it is asked depends on no state: its errors are then
        all that is to be found.
        """
        found = self.module.plan.of(self.box).gradients.get(state.name)
        if found is None or found.direct or state.form.kind != "matrix":
            return []
        own = ("product", "product_back", "array", "apply", "state")
        asked = any(t.op in own for e in found.examples for t in e.input.walk())
        return [] if asked else list(found.examples)

    def seen(self, body: FiredBody, state: State, examples: list[Example]) -> str:
        with self.seen_by_objective(body, state):
            parts = [self.pair(body, state, e)[0] for e in examples]
            name = self.code.name("seen")
            together = parts[0] if len(parts) == 1 else f"self.rows_of({', '.join(parts)})"
            self.code.add(f"{name} = {together}")
        return name

    def heads_apart(self, state: State) -> bool:
        """Whether no error of a head depends on another head."""
        found = self.module.plan.of(self.box).gradients.get(state.name)
        if found is None or found.direct:
            return False
        folder = Folder(state.per)
        try:
            for example in found.examples:
                folder(example.surprise)
        except Unfoldable:
            return False
        return True

    def rule_of(
        self, body: FiredBody, state: State, array: Array, learn: Learn
    ) -> tuple[Written, str, bool]:
        """The method of the rule that serves an array, the settings it is given, and whether they
        change with the ticks.
        """
        rule = learn.optimizers[array.shape]
        passed, given = self.passed(body, state, learn)
        lead = body.lead - 1 + len(state.per)
        settings = {k: t for k, t in learn.settings.items() if k not in passed}
        streams = {k: fitted(t, array.shape) for k, t in learn.streams.items()}
        wish = f"rule_{identifier(learn.rule)}"
        across = numbered(learn, streams)
        method = self.module.rules.method(
            wish, rule, lead, settings, streams, passed, weights=True, across=across
        )
        given += "".join(f", {body.weight(t).code}" for t in method.weights)
        return method, given, bool(passed)

    def passed(self, body: FiredBody, state: State, learn: Learn) -> tuple[dict[str, int], str]:
        """Settings that change with the ticks: by name, how many axes; and as arguments."""
        passed: dict[str, int] = {}
        given = ""
        for name, term in learn.settings.items():
            if not body_varies(term):
                continue
            rest = own_shape(term, state)
            passed[name] = len(rest)
            given += f", {self.last(body, term, state)}"
        return passed, given


def lines_of(state: State) -> list[tuple[Learn, list[Array]]]:
    """The `learn` lines of a state, each with the arrays that it serves."""
    lines = dict.fromkeys(state.rule.learn[a.name] for a in state.form.arrays)
    return [(l, [a for a in state.form.arrays if state.rule.learn[a.name] is l]) for l in lines]


def is_implicit(state: State) -> bool:
    return any(learn.rule == "implicit" for learn in state.rule.learn.values())


def asks(state: State, array: Array) -> bool:
    """Whether the rule that serves an array asks for its examples."""
    learn = state.rule.learn.get(array.name)
    return learn is not None and examples_asked(
        learn.optimizers.get(array.shape), learn.streams.values()
    )


def same_line(a: Learn, b: Learn) -> bool:
    return a is b or a.span.end > 0 and (a.span.start, a.span.end) == (b.span.start, b.span.end)


def numbered(learn: Learn, streams: Mapping[str, Term]) -> dict[int, int]:
    """Which `across` of the line each one of its streams for an array is, the inner first."""
    order = {id(t): i for i, t in enumerate(across_of(learn.streams))}
    return {
        id(mine): order[id(said)]
        for key, stream in streams.items()
        for said, mine in zip(across_in(learn.streams[key]), across_in(stream), strict=True)
    }


def beside_heads(numbers: tuple[str, ...], state: State) -> str:
    """Numbers of a sample, beside those of each head."""
    heads = f"[(..., {', '.join(['None'] * len(state.per))})]" if state.per else ""
    listed = ", ".join(f"{n}{heads}" for n in numbers)
    return f"({listed},)" if numbers else "()"
