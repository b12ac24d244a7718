"""PAGE: what to emit: a lowering for each box, with its reason, and where gradients pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .rules import Affine, Gradient, LinearRule
from .system import Box, Level, System, Term


@dataclass(frozen=True, slots=True, eq=False)
class Lowering:
    """How one box is run. `kind`:

    stateless   lines only                     static     states that stand still in a stream
    (clocks on steps, never)
    attention   softmax over the past          recurrence a matrix written by rank-one amounts,
    exactly, in chunks
    frozen      gradients at the start of N tokens, in dual form
    squares     the matrix that fits all pairs seen, from their sums
    fired       gradients summed over a period, then any optimizer; each tick by itself if need be
    slept       at the end of a sequence, then any optimizer; it stands while one runs
    solved      any memory that multiplies, exactly: each write from those before it, a fixed point,
    or, where they are affine in one matrix, one triangular system
    loss        the model's own loss at a token clock: what it writes comes from the runtime
    """

    box: Box
    kind: str
    reason: str
    attention: Attention | None = None
    squares: Squares | None = None
    arrays: tuple[ArrayRule, ...] = ()
    gradients: Mapping[str, Gradient] = field(default_factory=dict)  # by state
    writes: tuple[AffineWrite, ...] = ()  # solved: of one matrix, if all are affine in it


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """`read z` with z the softmax-weighted mean: scores `scale * dot(past(k), q)`, values
    `past(v)`.
    """

    query: Term
    key: Term
    value: Term
    scale: float
    window: int | None
    key_path: str
    value_path: str
    weight: Term | None = None  # how much each pair counts, over the window [window] or [window, 1]
    beside: Beside | None = None

    @property
    def plain(self) -> bool:
        """One pair a tick, each counting 1, and none beside them."""
        return self.weight is None and self.beside is None and len(self.key.shape) == 1


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """Pairs of no past, [p, n] and [p, m], that every query sees."""

    key: Term
    value: Term
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Squares:
    """`learn exact` on squares of all pairs (key, value), each counting `weight`, and what is kept
    of that from tick to tick `keep` (None: all); `ridge`: what is added to the squares of the keys.
    """

    key: Term
    value: Term
    weight: Term
    keep: Term | None
    ridge: Term


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRule:
    """One array of one state: its gradient is `surprise input'`, and its optimizer is linear.
    `keep`: what is kept of it at a tick (None: all); `late`: the surprise asks it after that.
    """

    state: str
    array: str
    input: Term
    surprise: Term
    error: Affine | None  # surprise = factor * prediction + rest (recurrence only)
    rule: LinearRule
    settings: Mapping[str, Term]
    keep: Term | None = None
    late: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class AffineWrite:
    """One write of a tick, `amount row'`: amount = rest + the sum of factor * M(asked)."""

    row: Term
    rest: Term | None
    reads: tuple[tuple[Term, Term], ...]  # factor, asked


@dataclass(frozen=True, slots=True, eq=False)
class Openness:
    """Into the states and pasts of which levels a gradient enters (2.11.1). `truncate`: after how
    many tokens.
    """

    levels: frozenset[str]
    truncate: Mapping[str, int] = field(default_factory=dict)
    first_order: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Where a call is cut because one box names another's state: at multiples of `every` ticks (0:
    nowhere). `late`: the levels that are reset at the end of a span.
    """

    every: int = 0
    late: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Where the gradients of training and of the levels on tokens need one graph. By the name of
    such a level ("" is training): whose gradients enter what it writes; who learns its starts, the
    next slower first; and to whom its gradients are constants (with "weights" or "starts", "" for
    training). `second`: whether other such levels, and
    training, differentiate a gradient again.
    """

    enters: Mapping[str, tuple[str, ...]]
    chains: Mapping[str, tuple[str, ...]]
    first: Mapping[str, tuple[tuple[str, str], ...]]
    second: tuple[bool, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`learners`: levels at token clocks that learn the model's own loss. `trained`: openness to
    levels on steps.
    """

    system: System
    lowerings: Mapping[int, Lowering]  # by id of the box
    learners: tuple[Level, ...]
    training: Openness
    inner: Openness
    spans: Spans
    joint: Joint | None = None

    def of(self, box: Box) -> Lowering:
        return self.lowerings[id(box)]
