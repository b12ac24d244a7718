"""Lines over arrays as one `torch.optim.Optimizer`: which rule serves which array, the options of
its groups, and its steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..backends.runtime import serving
from ..backends.runtime.optimizer import Group, Serves
from ..backends.runtime.rules import Rules
from ..backends.runtime.serving import Array, Firing
from ..system import Shape, serves
from . import given
from .declared import Line
from .examples import Examples
from .given import Given
from .making import asks_for_examples, fitted, open_settings, rules_of

FIRINGS = "firings so far"  # no name that a spec can give

RATE, LR = "rate", "lr"
ELSEWHERE = {  # options of torch's own optimizers, under the names that shipped rules have
    "weight_decay": ("shrink",),
    "betas": ("b1", "b2"),
    "momentum": ("keep",),
    "alpha": ("keep",),
    "lr_decay": ("slowing",),
    "momentum_decay": ("warm",),
}
PLAIN = ("params", "name", "initial_lr")  # options that are no rule's
OURS = ("names", "rule", "line", "spec")  # what a group says of itself
TORCHS = ("param_names", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")


class Composed(Serves):
    """A group of parameters is served by one line: a group that is given becomes one for each line
    that serves some of it. `rate` is the option `lr`.
    """

    def __init__(
        self, lines: Sequence[Line], params: Any, settings: Mapping[str, Any], seed: int
    ) -> None:
        for line in lines:
            check_settings(line)
        self.lines, self.seed, self.settings = tuple(lines), seed, dict(settings)
        self.arrays: dict[Tensor, Array] = {}
        self.examples: list[Examples] = []
        super().__init__(given.groups(params), {})

    # ---- groups ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """One more group, with options of its own; nothing is added if anything in it is wrong."""
        own = given.group(param_group)
        options = self.settings | {k: v for k, v in own.items() if k != "params"}
        self.check_options(options)
        found = given.arrays(own["params"], len(self.arrays))
        for one in found:
            if one.weight in self.arrays:
                old = self.arrays[one.weight].name
                raise ValueError(f"`{one.name}` is in two groups: it is `{old}` of another")
        parts: dict[int, list[Given]] = {}
        for one in found:
            parts.setdefault(self.line_of(one, options), []).append(one)
        made = [self.part(i, part, options) for i, part in sorted(parts.items())]
        for group, rules, part in made:
            super().add_param_group(group)
            for one in part:
                self.serve(one, rules, self.lines[group["line"]])

    def part(
        self, index: int, part: list[Given], options: Mapping[str, Any]
    ) -> tuple[Group, Rules, list[Given]]:
        """The arrays of a group that one line serves."""
        line = self.lines[index]
        own = self.options_of(line, options)
        group: Group = Options(
            {
                "params": [one.weight for one in part],
                "names": [one.name for one in part],
                "rule": line.rule,
                "line": index,
                "spec": mark(line),
                **{k: v for k, v in options.items() if k in PLAIN and k != "params"},
                **own,
            }
        )
        rules = rules_of(line, frozenset(one.shape for one in part), sizes_of(line, group))
        for rule in {rules.rule(one.shape) for one in part}:
            try_out(line, rules, rule, group)
        if asks_for_examples(line):
            for one in part:
                if one.layer is None:
                    raise ValueError(
                        f"`{line.rule}` reads the `input` of products, and none is known for "
                        f"`{one.name}`: give it a module, whose linear layers it serves"
                    )
        return group, rules, part

    def serve(self, one: Given, rules: Rules, line: Line) -> None:
        state = self.state[one.weight]
        state[FIRINGS] = 0
        array = Array(one.name, one.weight, rules, rules.rule(one.shape), state)
        if asks_for_examples(line) and one.layer is not None:
            examples = Examples(one.layer)
            self.examples.append(examples)
            array.examples = examples
        array.materialise(self.seed)
        self.arrays[one.weight] = array

    def line_of(self, one: Given, options: Mapping[str, Any]) -> int:
        """The first line that fits an array serves it (2.9.4)."""
        why: list[str] = []
        for i, line in enumerate(self.lines):
            if not serves(line.targets, one.kind, one.name):
                continue
            found = fitted(line, one.shape, sizes_of(line, self.options_of(line, options)))
            if found.fits:
                return i
            why = why or refused(line, one, found.told)
            if line.targets:
                raise ValueError(why[0])
        if why:
            raise ValueError(why[0])
        raise ValueError(
            f"no `learn` line serves `{one.name}`, {told(one.shape)}: add one without `for`"
        )

    # ---- options ---------------------------------------------------------------------------------

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Every option is some rule's, or a dict of those of one rule."""
        rules = {line.rule: line for line in self.lines}
        known = [key(n) for line in self.lines for n in line.settings]
        for name, value in options.items():
            if name in rules and isinstance(value, Mapping):
                self.check_names(name, value, [key(n) for n in rules[name].settings])
            elif name not in PLAIN and key(name) not in known:
                self.check_names(" and ".join(rules), {name: value}, known)

    def check_names(self, rule: str, options: Mapping[str, Any], known: list[str]) -> None:
        for name in options:
            if key(name) not in known:
                raise TypeError(f"`{rule}` has no setting `{name}`; {self.hint(name, known)}")

    def hint(self, name: str, known: list[str]) -> str:
        """What may have been meant."""
        for line in self.lines:
            for fixed in line.fixed:
                if key(name) == key(fixed):
                    return f"the line `{line.said}` sets `{fixed}` itself"
        other = ELSEWHERE.get(name, ())
        if other and set(other) <= set(known):
            return f"what torch calls `{name}` is {' and '.join(f'`{n}`' for n in other)} here"
        near = get_close_matches(name, [*known, RATE, *(line.rule for line in self.lines)], n=1)
        if near:
            return f"did you mean `{near[0]}`?"
        return f"it has {', '.join(dict.fromkeys(known)) or 'none'}"

    def options_of(self, line: Line, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a line's settings are, under the names of a group's options."""
        own = options.get(line.rule)
        mine = {**options, **own} if isinstance(own, Mapping) else dict(options)
        made = {}
        for name, default in line.settings.items():
            asked = [n for n in ({RATE, LR} if key(name) == LR else {name}) if n in mine]
            if len(asked) > 1:
                raise TypeError(f"`{line.rule}` is given both `{RATE}` and `{LR}`, which are one")
            if asked:
                made[key(name)] = checked(line.rule, name, mine[asked[0]])
                if key(name) == LR and (default is None or default >= 0):
                    check_rate(line.rule, name, made[LR])
            elif default is not None:
                made[key(name)] = default
        return made

    # ---- steps -----------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One firing of every array that has a gradient; the others stay as they are.

        Raises GradientError for a gradient that is not finite, and ValueError for options that are
        no numbers or with which a rule comes to none, and for a gradient whose examples a rule asks
        for and that has none: nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.follow()
        due: dict[int, list[Firing]] = {}
        for group in self.param_groups:
            numbers = self.numbers(group)
            line = due.setdefault(group["line"], [])
            for p in group["params"]:
                grad = self.gradient(p)
                if grad is not None:
                    array = self.arrays[p]
                    line.append(Firing(array, grad, array.state[FIRINGS] + 1, (), numbers))
        self.check_gradients((f.array.name, f.grad) for fs in due.values() for f in fs)
        self.check_examples(f.array for fs in due.values() for f in fs)
        for firings in due.values():
            sums = serving.across([f for f in firings if f.array.rule.measures])
            for one in firings:
                one.across = sums
        self.check_numbers(f for fs in due.values() for f in fs)
        for firings in due.values():
            for one in firings:
                one.array.state[FIRINGS] = one.count
            if firings:
                self.fire(firings)
        for examples in self.examples:
            examples.forget()
        return loss

    @torch.no_grad()
    def end_task(self) -> None:
        """The steps since the last call were a task, and it is over: levels of a rule that count
        tasks fire (2.6.1). Of rules without any, nothing changes.
        """
        self.follow()
        for group in self.param_groups:
            numbers = self.numbers(group)
            for array in (self.arrays[p] for p in group["params"]):
                if array.rule.tasks and array.state[FIRINGS]:
                    p, count = array.parameter, array.state[FIRINGS]
                    serving.end_task(Firing(array, p, count, (), numbers))

    def check_examples(self, due: Iterable[Array]) -> None:
        """A gradient came through products of the layer, or the rule cannot be served."""
        for array in due:
            if isinstance(array.examples, Examples) and not array.examples.pairs:
                raise ValueError(
                    f"`{array.rule.name}` reads the `input` of products, and the gradient of "
                    f"`{array.name}` came through no call of its layer: call the layer itself, "
                    "then `backward`; nothing was changed"
                )

    def numbers(self, group: Group) -> tuple[float, ...]:
        """The settings that a group's rule is given."""
        line = self.lines[group["line"]]
        self.check_sizes(line, group, group)
        return tuple(checked(line.rule, n, group[key(n)]) for n in open_settings(line))

    def check_sizes(self, line: Line, group: Group, asked: Mapping[str, Any]) -> None:
        """The settings that are compiled in are as they were."""
        sizes = self.arrays[next(iter(group["params"]))].owner.sizes
        if sizes_of(line, asked) != sizes:
            fixed = ", ".join(n for n, _ in sizes)
            raise ValueError(f"{fixed} of `{line.rule}` cannot change once the optimizer is made")

    def told(self, one: Firing) -> str:
        pairs = zip(one.array.owner.SETTINGS, one.given, strict=True)
        return ", ".join(f"{n} = {x:g}" for n, x in pairs) or "its settings"

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for examples in self.examples:
            examples.forget()

    # ---- copies, and what is saved ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Methods are made anew, from the lines."""
        return {k: v for k, v in self.__dict__.items() if k not in ("arrays", "examples")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.arrays, self.examples = {}, []
        for group in self.param_groups:
            line = self.lines[group["line"]]
            if asks_for_examples(line):
                raise ValueError(f"`{line.rule}` hangs on the layers of its module: make it anew")
            shapes = frozenset(tuple(p.shape) or (1,) for p in group["params"])
            rules = rules_of(line, shapes, sizes_of(line, group))
            for name, p in zip(group["names"], group["params"], strict=True):
                rule = rules.rule(tuple(p.shape) or (1,))
                self.arrays[p] = Array(name, p, rules, rule, self.state[p])

    def check_group(self, group: Group, saved: Mapping[str, Any]) -> None:
        if saved.get("spec") != group["spec"]:
            of = f"`{saved['rule']}`" if "rule" in saved else "another optimizer"
            where = "another text" if saved.get("rule") == group["rule"] else "here"
            raise ValueError(
                f"the state saved for `{group['names'][0]}` is of {of}, and {where} it is served "
                f"by `{group['rule']}`"
            )
        line = self.lines[group["line"]]
        for name in line.settings:
            if key(name) not in saved and key(name) in group:
                raise ValueError(f"the state saved for `{group['names'][0]}` has no `{key(name)}`")
            if key(name) in saved:
                checked(line.rule, name, saved[key(name)])
        self.check_sizes(line, group, saved)


class Options(dict[str, Any]):
    """A group. What its line sets is no option of it."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"`{self['rule']}` has no option `{name}` here: a scheduler sets what its `learn` line "
            "leaves open"
        )


# ---- words ---------------------------------------------------------------------------------------


def key(setting: str) -> str:
    """The option of a group that a setting is."""
    return LR if setting == RATE else setting


def check_settings(line: Line) -> None:
    """Each setting is an option of a group, under a name that nothing else there has."""
    if {RATE, LR} <= set(line.settings):
        raise ValueError(
            f"optimizer `{line.rule}` has both `{RATE}` and `{LR}`, and `{RATE}` is the option "
            f"`{LR}` of a group: rename one, or set one on the line, as in "
            f'nlc.optimizer("learn {line.rule}({LR} = 0.1)")'
        )
    for name in line.settings:
        if name in (*PLAIN, *OURS, *TORCHS):
            raise ValueError(
                f"optimizer `{line.rule}` has a setting `{name}`, and a group of "
                f"torch.optim keeps something else under that name: rename it"
            )


def sizes_of(line: Line, options: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The settings that are compiled in."""
    running = open_settings(line)
    return tuple(
        (n, options[key(n)]) for n in line.settings if n not in running and key(n) in options
    )


def checked(rule: str, name: str, value: Any) -> float:
    """A setting is a real number; True is 1."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"`{name}` of `{rule}` is a number, and was given {value!r}")
    return int(value) if isinstance(value, bool) else value


def check_rate(rule: str, name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(
            f"`{name}` of `{rule}` is how far a step goes, finite and not below 0, and was given "
            f"{value:g}"
        )


def mark(line: Line) -> str:
    """Whose states these are."""
    return hashlib.sha256(f"{line.text}\n{line.said}".encode()).hexdigest()[:16]


def told(shape: Shape) -> str:
    if len(shape) == 1:
        return f"a vector of {shape[0]}"
    return f"an array of {list(shape)}"


def refused(line: Line, one: Given, why: tuple[Any, ...]) -> list[str]:
    """Why a rule cannot serve an array."""
    if len(one.shape) != 2 and (not why or any(d.code == "NL605" for d in why)):
        help = "say `for matrices`" if one.kind == "matrices" else "name a second rule for the rest"
        return [
            f"optimizer `{line.rule}` multiplies matrices (or asks for `input`) and would serve "
            f"`{one.name}`, {told(one.shape)}: {help}, as in "
            f'nlc.optimizer("{line.rule}", "adamw")'
        ]
    first = why[0].message if why else "it does not fit"
    return [f"optimizer `{line.rule}` cannot serve `{one.name}`, {told(one.shape)}: {first}"]


def try_out(line: Line, rules: Rules, rule: serving.Rule, group: Group) -> None:
    """Two firings on two numbers: settings that come to no number are told at once."""
    if not rule.pointwise:
        return
    numbers = [group[key(n)] for n in rules.SETTINGS]
    defaults = [line.settings[n] for n in rules.SETTINGS]
    if not sound(rules, rule, numbers) and sound(rules, rule, defaults):
        said = ", ".join(f"{n} = {x:g}" for n, x in zip(rules.SETTINGS, numbers, strict=True))
        raise ValueError(f"`{line.rule}` comes to no number with {said}")


def sound(rules: Rules, rule: serving.Rule, numbers: Sequence[Any]) -> bool:
    w = torch.tensor([1.0, -1.0], dtype=torch.float64)
    kept = [torch.zeros_like(w) for _ in rule.kept]
    measured = ((1.0,) * len(rule.measures),) if rule.measures else ()
    try:
        for count in (1, 2):
            grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
            getattr(rules, rule.method)(w, grad, *kept, count, *measured, *numbers)
    except (ArithmeticError, ValueError, TypeError):
        return False
    return all(bool(x.isfinite().all()) for x in (w, *kept))
