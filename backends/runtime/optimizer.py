"""Optimizers whose rules are generated, as `torch.optim.Optimizer`s.

`Serves` is what they share: arrays that are served, checks before anything changes, and a state
that is saved and loaded to the bit. `Optimizer` is the base of a spec's levels on steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import serving
from .examples import means
from .rule_words import RuleWords
from .serving import Array, Firing, Rule
from .trial import failing

if TYPE_CHECKING:
    from .model import Model

Row = tuple[Any, ...]
Group = dict[str, Any]
Grads = dict[Tensor, Tensor | None]
UNSAVED = ("params", "names", "line", "rule", "spec")  # what a group is, wherever it is loaded
PENDING, NEXT = "pending gradients", "at the task's end"  # no names that a spec can give
ROWS = ("pending inputs", "pending surprises")  # as many as there were examples


class GradientError(ValueError):
    """A gradient that holds a number that is none; nothing has been changed."""


class Serves(RuleWords, torch.optim.Optimizer):
    """Arrays, each with the rule that serves it, in `arrays`."""

    arrays: dict[Tensor, Array]

    def __getstate__(self) -> dict[str, Any]:
        """All of it: a copy goes on as this one."""
        return dict(self.__dict__)

    # ---- before anything changes -----------------------------------------------------------------

    def check_gradients(self, found: Iterable[tuple[str, Tensor]]) -> None:
        name = serving.unsound(found)
        if name is not None:
            raise GradientError(
                f"the gradient of `{name}` holds numbers that are not finite; nothing was changed"
            )

    def gradient(self, p: Tensor) -> Tensor | None:
        """What the last backward pass left; a sparse one as it would be if it were not."""
        grad = p.grad
        if grad is None:
            return None
        grad = grad.to_dense() if grad.layout != torch.strided else grad
        return grad if grad.ndim else grad.view(1)

    def follow(self) -> None:
        """States are of the precision of their parameters."""
        for array in self.arrays.values():
            array.follow()

    # ---- firing ----------------------------------------------------------------------------------

    def fire(self, due: list[Firing]) -> None:
        try:
            serving.fire(due)
        except (ArithmeticError, ValueError) as error:
            raise self.no_number(
                due[0], error, "arrays of its line may have been changed"
            ) from None

    def check_numbers(self, due: Iterable[Firing]) -> None:
        found = failing(due)
        if found is not None:
            raise self.no_number(*found, "nothing was changed")

    def no_number(self, one: Firing, error: Exception, done: str) -> ValueError:
        return ValueError(
            f"`{one.array.rule.name}` comes to no number at firing {one.count} ({error}), with "
            f"{self.told(one)}; {done}"
        )

    def told(self, one: Firing) -> str:
        """The settings of a firing, in words."""
        return "the settings of its line"

    # ---- saved and loaded ------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, here or in another process; arrays keep their own precision.

        Raises ValueError for a state of other parameters, or of another rule; nothing is changed.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        pairs = list(self.matched(state_dict))
        self.follow()
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: deepcopy(v) for k, v in saved.items() if k not in UNSAVED})
        for state, given in pairs:
            for key, value in given.items():
                if key in ROWS:
                    state[key] = value.to(state[key], copy=True)
                elif isinstance(value, Tensor):
                    state[key].copy_(value)
                else:
                    state[key] = value
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def matched(
        self, saved: Mapping[str, Any]
    ) -> Iterable[tuple[dict[str, Any], Mapping[str, Any]]]:
        """Each array's state and the one saved for it."""
        if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
            raise ValueError("this is no state of an optimizer: it has no `param_groups`")
        groups = saved["param_groups"]
        if not isinstance(saved["state"], Mapping) or not all(map(is_group, groups)):
            raise ValueError("this is no state of an optimizer: it is damaged")
        sizes = [[len(g["params"]) for g in gs] for gs in (self.param_groups, groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"this state is of groups of {sizes[1]} parameters, and here they are of {sizes[0]}"
            )
        for group, old in zip(self.param_groups, groups, strict=True):
            self.check_group(group, old)
            for p, index in zip(group["params"], old["params"], strict=True):
                given = saved["state"].get(index, {})
                self.check_array(self.arrays[p], self.state[p], given)
                yield self.state[p], given

    def check_group(self, group: Group, saved: Mapping[str, Any]) -> None:
        """The options of a group, and its rule, where it has one."""
        for name in (n for n in ("steps", "count", "tasks", "since") if n in group):
            if not is_count(saved.get(name)):
                where = group["names"][0]
                raise ValueError(f"the state saved with `{where}` has no number of its {name}")

    def check_array(self, array: Array, state: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """A state of the same arrays, in the same shapes."""
        if not isinstance(given, Mapping) or set(state) != set(given):
            there = given if isinstance(given, Mapping) else {}
            has, kept = (", ".join(sorted(map(str, s))) or "nothing" for s in (there, state))
            raise ValueError(
                f"the state saved for `{array.name}` is of another rule: it holds {has}, and here "
                f"`{array.rule.name}` keeps {kept}"
            )
        for key, value in state.items():
            found, wanted = given[key], "a number of firings"
            if isinstance(value, Tensor):
                wanted = f"an array of {list(value.shape)}"
                if isinstance(found, Tensor) and found.is_floating_point():
                    if found.shape == value.shape or key in ROWS and alike(found, value):
                        continue
                    found = list(found.shape)
            elif is_count(found):
                continue
            raise ValueError(
                f"the state saved for `{array.name}` holds {key} as {found!r}, and here it is "
                f"{wanted}"
            )


def no_rows(p: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """Inputs are as wide as a row of the weight, surprises as a column."""
    return p.new_zeros(0, p.shape[-1 if key == ROWS[0] else -2], dtype=dtype)


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Rows of one width, however many."""
    return found.ndim == 2 and found.shape[1] == wanted.shape[1]


def is_group(saved: Any) -> bool:
    return isinstance(saved, Mapping) and isinstance(saved.get("params"), list | tuple)


def is_count(saved: Any) -> bool:
    return isinstance(saved, int) and not isinstance(saved, bool) and saved >= 0


class Optimizer(Serves):
    """One level on steps or tasks. A step is the mean over the batch; `every 8 steps` sums eight of
    them, and fires once; `every task` sums those since `end_task` was called.

    State of an array: gradients since the last firing (PENDING), and what its rule keeps; of one
    that a `set` gives, what it is to be at the task's end (NEXT).
    """

    UNIT: ClassVar[str] = "step"
    PERIOD: ClassVar[int] = 1
    FIRST: ClassVar[int] = 0  # 0: the period
    LINES: ClassVar[int] = 1
    RULES: ClassVar[tuple[Row, ...]] = ()
    ARRAYS: ClassVar[tuple[Row, ...]] = ()
    FOLLOWERS: ClassVar[tuple[Row, ...]] = ()

    def __init__(self, model: Model) -> None:
        weights = dict(model.named_weights())
        rules = [Rule.of(row) for row in self.RULES]
        rows = [
            (path.format(*rounds), rules[rule], lead, line)
            for path, loops, rule, lead, line in self.ARRAYS
            for rounds in product(*(range(n) for n in loops))
        ]
        self.followers = {
            path.format(*rounds): weights[path.format(*rounds)]
            for path, loops in self.FOLLOWERS
            for rounds in product(*(range(n) for n in loops))
        }
        self.all_weights = weights if self.followers else {}
        named = [[r[0] for r in rows if r[3] == line] for line in range(self.LINES)]
        named.append(list(self.followers))
        groups = [{"params": [weights[n] for n in names], "names": names} for names in named]
        counts = {"steps": 0, "count": 0} | ({"tasks": 0, "since": 0} if self.on_tasks else {})
        super().__init__([g for g in groups if g["params"]], counts)
        self.arrays = {}
        self.chance = model.chance
        self.watched: dict[Tensor, Callable[[], tuple[Tensor, Tensor]]] = {}
        self.forgets: list[Callable[[], None]] = []
        for name, rule, lead, _ in rows:
            p = weights[name]
            array = Array(name, p, self, rule, self.state[p], lead)
            if rule.examples:
                model.examples.watch(name)
                array.examples = partial(self.examples_of, p)
                self.watched[p] = partial(model.examples.of, name, p)
                self.forgets.append(partial(model.examples.forget, name))
            self.arrays[p] = array
            array.materialise(model.seed)
            if self.adds_up:
                array.state[PENDING] = torch.zeros_like(p, dtype=array.dtype)
                if rule.examples:
                    array.state |= {k: no_rows(p, array.dtype, k) for k in ROWS}
        for name, p in self.followers.items():
            self.arrays[p] = array = Array(name, p, self, Rule("set", ()), self.state[p])
            if self.on_tasks:
                array.state[NEXT] = torch.zeros_like(p, dtype=array.dtype)

    @property
    def on_tasks(self) -> bool:
        return self.UNIT == "task"

    @property
    def counts_tasks(self) -> bool:
        """Whether anything happens when a task is over."""
        return self.on_tasks or any(a.rule.tasks for a in self.arrays.values())

    @property
    def adds_up(self) -> bool:
        """Whether a firing is of more than the step it is at."""
        return self.on_tasks or self.PERIOD > 1 or self.FIRST > 1

    @property
    def rules(self) -> dict[str, str]:
        """The rule of each array, by name."""
        return {a.name: a.rule.name for a in self.arrays.values()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; arrays without a gradient have one of zero.

        Raises GradientError for a gradient that is not finite, and ValueError for a rule that comes
        to no number: nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.follow()
        grads = {p: self.gradient(p) for p in self.arrays if p.requires_grad}
        there = [(self.arrays[p].name, g) for p, g in grads.items() if g is not None]
        self.check_gradients(there)
        first = self.param_groups[0]
        due = not self.on_tasks and self.fires(first["steps"] + 1)
        new = self.new_states(first["count"] + 1) if due or self.on_tasks else {}
        waiting = self.due(grads) if due else []
        for i, group in enumerate(self.param_groups):
            group["steps"] += 1
            if self.on_tasks:
                group["since"] += 1
            if due:
                self.fire_group(group, waiting[i])
            elif self.adds_up:
                self.add_up(group, grads)
        for name, value in new.items():
            p = self.followers[name]
            (self.state[p][NEXT] if self.on_tasks else p).copy_(value)
        self.tell_steps()
        self.forget()
        return loss

    def tell_steps(self) -> None:
        """What the model draws depends on them."""
        self.chance.steps = max((g["steps"] for g in self.param_groups), default=0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.tell_steps()

    @torch.no_grad()
    def end_task(self) -> None:
        """The steps since the last call were a task, and it is over: a level on tasks fires, and
        then those inside its rules.
        """
        self.follow()
        ending = [g for g in self.param_groups if self.on_tasks and g["steps"] and g["since"]]
        due = {
            id(group): self.firings(group, {p: self.state[p].get(PENDING) for p in group["params"]})
            for group in ending
            if self.fires(group["tasks"] + 1)
        }
        self.check_numbers(one for found in due.values() for one in found)
        for group in self.param_groups:
            if self.on_tasks and group["steps"]:
                group["tasks"] += 1
            if id(group) in due:
                group["since"] = 0
                self.fire_group(group, due[id(group)])
                for p in (p for p in group["params"] if NEXT in self.state[p]):
                    p.copy_(self.state[p][NEXT])
            for p in group["params"]:
                if self.arrays[p].rule.tasks and group["count"]:
                    serving.end_task(Firing(self.arrays[p], p, group["count"]))

    def fires(self, ticks: int) -> bool:
        first = self.FIRST or self.PERIOD
        return ticks >= first and (ticks - first) % self.PERIOD == 0

    def new_states(self, count: int) -> dict[str, Tensor]:
        """What a `set` gives, by path."""
        return {}

    def standing(self, name: str) -> Tensor:
        """An array as it is, in the precision that it is served in."""
        p = self.all_weights[name]
        return p.float() if p.dtype in serving.HALF else p

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.forget()

    def forget(self) -> None:
        """Examples are of one step, as gradients are."""
        for forget in self.forgets:
            forget()

    def examples_of(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """input and surprise of all steps since the last firing, this one's last (2.9.6)."""
        x, s = self.watched[p]()
        if self.adds_up:
            before = [self.state[p][k] for k in ROWS]
            x, s = (torch.cat([a, b.to(a.dtype)]) for a, b in zip(before, (x, s), strict=True))
        return means(x, s)

    def add_up(self, group: Group, grads: Grads) -> None:
        """The gradients of the steps since the last firing, and what they came through."""
        for p in (p for p in group["params"] if PENDING in self.state[p]):
            state, grad = self.state[p], grads[p]
            if grad is not None:
                state[PENDING].add_(grad)
            if p in self.watched:
                for key, new in zip(ROWS, self.watched[p](), strict=True):
                    state[key] = torch.cat([state[key], new.to(state[key].dtype)])

    def summed(self, grads: Grads) -> Grads:
        """The gradients of the firing that this step ends."""
        found = dict(grads)
        for p in (p for p in grads if PENDING in self.state[p]):
            pending, grad = self.state[p][PENDING], grads[p]
            found[p] = pending.clone() if grad is None else pending + grad
        return found

    def due(self, grads: Grads) -> list[list[Firing]]:
        """The firings of each group; that all come to numbers is known before one changes."""
        grads = self.summed(grads)
        found = [self.firings(group, grads) for group in self.param_groups]
        self.check_numbers(one for due in found for one in due)
        return found

    def firings(self, group: Group, grads: Grads) -> list[Firing]:
        """What is due, before anything is changed."""
        due = []
        for p in (p for p in group["params"] if self.arrays[p].name not in self.followers):
            grad = grads[p]
            due.append(
                Firing(
                    self.arrays[p], torch.zeros_like(p) if grad is None else grad,
                    group["count"] + 1,
                )
            )  # fmt: skip
        sums = serving.across([f for f in due if f.array.rule.measures])
        for one in due:
            one.across = sums
        return due

    def fire_group(self, group: Group, due: list[Firing]) -> None:
        group["count"] += 1
        self.fire(due)
        for p in (p for p in group["params"] if PENDING in self.state[p]):
            state = self.state[p]
            state[PENDING].zero_()
            for key in (k for k in ROWS if k in state):
                state[key] = state[key][:0]
