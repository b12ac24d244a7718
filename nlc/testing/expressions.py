"""Expressions of random systems, and the choices that all is drawn by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from .texts import ELEMENTWISE, NUMBERS, PAIRS, RARE, WHOLE

Names = dict[str, int]  # the vectors that a body may name, and their sizes


@dataclass
class Expressions:
    """Vectors and numbers as text. What is asked of `draw` is simplest first: examples shrink."""

    draw: st.DrawFn
    width: int
    heads: int
    theme: str = ""
    outside: list[str] = field(default_factory=list)  # of the system

    # ---- choices ----

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)

    # ---- expressions ----

    def vector(self, names: Names, n: int, depth: int = 2, weights: bool = True) -> str:
        """A vector of n, of the names given; `weights`: it may make unnamed weights."""
        if depth == 0 or self.chance(25):
            return self.leaf(names, n, weights)
        make = self.pick(
            self.leaf_projected, self.elementwise, self.paired, self.whole, self.scaled,
            self.shaped, self.remembered, *[self.rare] * (2 * (weights and self.theme in RARE)),
        )  # fmt: skip
        return str(make(names, n, depth - 1, weights))

    def rare(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a, x = self.vector(names, n, depth, weights), self.leaf(names, n, False)
        return f"({RARE[self.theme].format(a=a, x=x, k=self.pick(2, 1, 3) if n > 2 else 1)})"

    def leaf(self, names: Names, n: int, weights: bool) -> str:
        fitting = [name for name, size in names.items() if size == n]
        if fitting and (not weights or self.chance(70)):
            return str(self.pick(*fitting))
        if weights:
            return f"linear({self.pick(*names)}, {n})"
        name = self.pick(*names)
        return f"(mean({name}) + range({n}) / {n})"

    def leaf_projected(self, names: Names, n: int, depth: int, weights: bool) -> str:
        if not weights:
            return self.leaf(names, n, False)
        return f"linear({self.vector(names, self.pick(n, 2, 3), depth)}, {n})"

    def elementwise(self, names: Names, n: int, depth: int, weights: bool) -> str:
        inner = self.vector(names, n, depth, weights)
        text: str = self.pick(*ELEMENTWISE)
        return text.replace("{}", inner)

    def whole(self, names: Names, n: int, depth: int, weights: bool) -> str:
        text: str = self.pick(*(WHOLE if weights else WHOLE[2:]))
        inner = f"({self.vector(names, n, depth, weights)})"
        return f"({text.replace('{}', inner).replace('{x}', self.leaf(names, n, False))})"

    def paired(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a, b = (self.vector(names, n, depth, weights) for _ in range(2))
        text = self.pick(*(PAIRS if weights else PAIRS[:-1]))
        return str(
            "(" + text.format(a=f"({a})", b=f"({b})", x=self.leaf(names, n, False), n=n) + ")"
        )

    def scaled(self, names: Names, n: int, depth: int, weights: bool) -> str:
        return f"{self.number(names, depth, weights)} * ({self.vector(names, n, depth, weights)})"

    def number(self, names: Names, depth: int, weights: bool) -> str:
        """One bounded number."""
        if self.chance(25):
            return str(self.pick("sin(position)", "1 / (1 + position)", "mod(position, 3) / 3"))
        size = self.pick(self.width, 3)
        text: str = self.pick(*(NUMBERS if weights else NUMBERS[:-1]))
        inner = f"({self.vector(names, size, depth, weights)})"
        return f"tanh({text.replace('{}', inner)})"

    def shaped(self, names: Names, n: int, depth: int, weights: bool) -> str:
        """Through other shapes and back."""
        options = [self.parts, self.picked, self.products]
        if n % 2 == 0:
            options += [self.halves, self.turned]
        return str(self.pick(*options)(names, n, depth, weights))

    def parts(self, names: Names, n: int, depth: int, weights: bool) -> str:
        first = self.draw(st.integers(1, n - 1)) if n > 1 else 0
        if not first:
            return self.leaf(names, n, weights)
        a, b = (self.vector(names, m, depth, weights) for m in (first, n - first))
        return f"concat({a}, {b})"

    def picked(self, names: Names, n: int, depth: int, weights: bool) -> str:
        inner = self.vector(names, 2 * n, depth, weights)
        return f"split({inner}, 2)[{self.pick(0, 1)}]"

    def products(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a = self.vector(names, n, depth, weights)
        forms = [
            "outer({a}, {a}) @ tanh({a})",
            "({a}) @ outer(tanh({a}), {a})",
            f"2 * solve({{a}}, 2 * eye(range({n})))",
        ]
        if weights:
            forms += [f"({{a}}) @ learned({n}, {n}, start = normal(0.5))"]
        return f"tanh({self.pick(*forms).format(a=a)})"

    def halves(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a, b = (self.vector(names, n // 2, depth, weights) for _ in range(2))
        return f"join(stack({a}, {b}))"

    def turned(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a = self.vector(names, n, depth, weights)
        forms = ["join(transpose(split({a}, 2)))", f"reshape(split({{a}}, 2), {n})", "rope({a})"]
        forms += [f"join(split({{a}}, 2) * column(sum(split({{a}}, 2), 1) / {n}))"]
        forms += ["join(tanh(column(range(2)) + split({a}, 2)))", "join(softmax(split({a}, 2)))"]
        return str(self.pick(*forms)).replace("{a}", a)

    def remembered(self, names: Names, n: int, depth: int, weights: bool) -> str:
        if not weights:
            return self.elementwise(names, n, depth, False)
        return f"conv({self.vector(names, n, depth)}, {self.pick(2, 3, 4, 1)})"
