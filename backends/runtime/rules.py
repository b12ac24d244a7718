"""The base of generated rules that stand alone: methods, and which serves arrays of which shape."""

from __future__ import annotations

from typing import Any, ClassVar

from .rule_words import RuleWords
from .serving import Rule

Row = tuple[Any, ...]


class Rules(RuleWords):
    """`RULES`: methods and what they keep. `SHAPES`: the row for each shape. `SETTINGS`: what every
    method is given, in this order.
    """

    RULES: ClassVar[tuple[Row, ...]] = ()
    SHAPES: ClassVar[tuple[tuple[tuple[int, ...], int], ...]] = ()
    SETTINGS: ClassVar[tuple[str, ...]] = ()
    SOURCE: ClassVar[str] = ""
    sizes: tuple[tuple[str, float], ...] = ()  # the settings that are compiled in

    def rule(self, shape: tuple[int, ...]) -> Rule:
        return Rule.of(self.RULES[dict(self.SHAPES)[shape]])
