"""PAGE: the four choices of a memory, as MIRAS has them (arXiv:2504.13173): what it is, what it is
asked to be right about, how it forgets, and by which rule it learns.

Each choice is the words for it and its piece of a spec; `writing.py` puts four pieces together.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 4  # pairs that a window of the past holds
CHUNK = 16  # tokens that the gradients of a network stand still for


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept. `network`: its answer is not linear in its weights. `square`: values are as
    long as keys. `zeros`: it starts from nothing.
    """

    name: str
    words: str
    form: str
    start: str = ""
    network: bool = False
    usual: bool = True

    @property
    def square(self) -> bool:
        return self.network

    @property
    def zeros(self) -> bool:
        return not self.network and not self.start


@dataclass(frozen=True, slots=True)
class Bias:
    """What a memory is asked to be right about. `streams`: names with the size in brackets, if one.

    `quadratic`: of a memory that multiplies. `dot`: linear in what the memory says. `past`: it asks
    about the last few pairs. `exchanged`: it finds the key of a value. `smooth`: convex, and with a
    slope everywhere. `most`: the largest rate that settles, for keys and values of length 1 (what
    `--recall` begins with).
    """

    name: str
    words: str
    objective: str
    streams: tuple[str, ...] = ()
    define: str = ""
    quadratic: bool = False
    dot: bool = False
    past: bool = False
    exchanged: bool = False
    smooth: bool = False
    most: float = 1.0


@dataclass(frozen=True, slots=True)
class Retention:
    """How a memory forgets. `after`: the error is that of the state which has already forgotten.

    `link`: it is kept in the dual and read through a function. `channel`: one number a channel.
    """

    name: str
    words: str
    line: str = ""
    streams: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    define: str = ""
    after: bool = False
    link: bool = False
    channel: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with the gradient."""

    name: str
    words: str
    line: str
    streams: tuple[str, ...] = ("eta",)
    linear: bool = True  # in the gradient
    usual: bool = True


MEMORIES = (
    Memory("matrix", "a matrix", "matrix(n, m)"),
    Memory("drawn", "a matrix that starts from a draw", "matrix(n, m)", "normal(0.1)"),
    Memory(
        "normed_matrix", "a matrix behind a layer norm, beside its input",
        "residual(layernorm(matrix(n, n)))", "normal(0.1)", network=True,
    ),
    Memory("mlp", "two layers", "mlp(n, 4*n)", network=True, usual=False),
    Memory("residual", "two layers beside their input", "residual(mlp(n, 4*n))", network=True),
    Memory(
        "normed", "two layers behind a layer norm, beside their input",
        "residual(layernorm(mlp(n, 4*n)))", network=True,
    ),
    Memory("gated", "two gated layers", "gated_mlp(n, 2*n)", network=True, usual=False),
)  # fmt: skip

HUBER = """def huber(r, delta) {
  return sum(where(abs(r) <= delta, r^2 / 2, delta * (abs(r) - delta / 2)))
}"""
HUBER_LENGTH = """def huber(r, delta) {
  return where(length(r) <= delta, length(r)^2 / 2, delta * (length(r) - delta / 2))
}"""
SWITCH = """def robust(r, delta) {
  return where(length(r) <= delta, sum(r^2), delta * sum(smooth_abs(r)))
}"""

BIASES = (
    Bias("dot", "agreement", "-dot(M(k), v)", dot=True),
    Bias("l2", "squared error", "sum((M(k) - v)^2) / 2", quadratic=True),
    Bias(
        "weighted", "squared error, one strength a value channel",
        "sum(beta * (M(k) - v)^2) / 2", ("beta[m]",), quadratic=True,
    ),
    Bias(
        "exchanged", "squared error of the key that the value finds",
        "sum((M(v) - k)^2) / 2", quadratic=True, exchanged=True,
    ),
    Bias("l1", "absolute error", "sum(smooth_abs(M(k) - v))", smooth=True),
    Bias("l1.5", "error to the power 1.5", "sum(smooth_abs(M(k) - v)^1.5)", smooth=True),
    Bias("l3", "cubed error", "sum(smooth_abs(M(k) - v)^3)", smooth=True, most=0.3),
    Bias(
        "huber", "error clipped coordinate by coordinate", "huber(M(k) - v, delta)",
        ("delta",), HUBER, smooth=True,
    ),
    Bias(
        "huber_norm", "error of clipped length", "huber(M(k) - v, delta)",
        ("delta",), HUBER_LENGTH, smooth=True,
    ),
    Bias(
        "switch", "squared error while small, absolute error beyond",
        "robust(M(k) - v, delta)", ("delta",), SWITCH,
    ),
    Bias(
        "shift", "squared error at the worst value within a distance",
        "sum((M(k) - v)^2) / 2 + delta * length(M(k) - v)", ("delta",),
    ),
    Bias("cosine", "the direction alone", "-dot(unit(M(k)), v)", most=0.3),
    Bias(
        "window", f"squared error of the last {WINDOW} pairs",
        f"sum((M(past(k, {WINDOW})) - past(v, {WINDOW}))^2) / 2", quadratic=True, past=True,
        most=0.25,
    ),
    Bias(
        "window_dot", f"agreement on the last {WINDOW} pairs",
        f"-sum(M(past(k, {WINDOW})) * past(v, {WINDOW}))", dot=True, past=True,
    ),
)  # fmt: skip

SOFT = "def soft_threshold(A, gamma) { return sign(A) * max(abs(A) - gamma, 0) }"
# the exact mirror map of l_q, q = r / (r - 1): of degree 1, so what is large stays large
MIRROR = """def lq(A, r) {
  return A * abs(A)^(r - 2) / ((r - 1) * (sum(abs(A)^r)^(1 / r) + 1e-6)^(r - 2))
}"""
PRINTED = "def lq(A, r) { return A / (sum(abs(A)^r)^(1 / r) + 1e-6)^(r - 2) }"
ROWS = "def same_rows(A, start) { return A * column(length(start) / length(A)) }"

RETENTIONS = (
    Retention("none", "nothing is forgotten"),
    Retention("scalar", "one fraction is kept", "alpha", ("alpha",)),
    Retention(
        "scalar_first", "one fraction is kept, then the error is taken", "alpha", ("alpha",),
        after=True,
    ),
    Retention("channel", "a fraction for each key channel", "alpha", ("alpha[n]",), channel=True),
    Retention(
        "channel_first", "a fraction for each key channel, then the error is taken", "alpha",
        ("alpha[n]",), after=True, channel=True,
    ),
    Retention(
        "value", "a fraction for each value channel", "column(alpha)", ("alpha[m]",), channel=True
    ),
    Retention(
        "value_first", "a fraction for each value channel, then the error is taken",
        "column(alpha)", ("alpha[m]",), after=True, channel=True,
    ),
    Retention(
        "kl", "rows are kept as logarithms and read as probabilities",
        "alpha through softmax", ("alpha",), link=True,
    ),
    Retention(
        "sigmoid", "weights are kept as logits and read between 0 and 1",
        "alpha through sigmoid", ("alpha",), link=True,
    ),
    Retention(
        "lq", "kept in the dual of l_q, by its exact mirror map",
        "alpha through lq(4)", ("alpha",), (), MIRROR, link=True,
    ),
    Retention(
        "lq_printed", "kept in the dual of l_q, by the map as printed",
        "alpha through lq(4)", ("alpha",), (), PRINTED, link=True,
    ),
    Retention(
        "elastic_ftrl", "a sum of all writes is read through a soft threshold",
        "1 through soft_threshold(gamma)", (), ("gamma = 1e-3",), SOFT, link=True,
    ),
    Retention(
        "elastic", "after each write a soft threshold",
        "alpha onto soft_threshold(gamma)", ("alpha",), ("gamma = 1e-3",), SOFT,
    ),
    Retention(
        "sphere", "after each write rows are as long as they were at the start",
        "1 onto same_rows", (), (), ROWS,
    ),
)  # fmt: skip

RULES = (
    Rule("gradient", "one gradient step", "gradient(rate = eta)"),
    Rule(
        "momentum", "gradient steps with momentum", "momentum(rate = eta, keep = mu)",
        ("eta", "mu"),
    ),
    Rule("steps", "two gradient steps on the same pair", "gradient(rate = eta, steps = 2)"),
    Rule("implicit", "the step that minimises error and change together", "implicit(rate = eta)"),
    Rule("dgd", "a gradient step that first clears what it says of this input", "dgd(rate = eta)"),
    Rule("adam", "Adam, at every token", "adam(rate = eta)", linear=False, usual=False),
    Rule(
        "muon", "momentum made orthogonal, at every token", "muon(rate = eta)",
        linear=False, usual=False,
    ),
    Rule("exact", "the best state for all that was seen", "exact", ("eta", "ridge[n]")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Combination:
    """One of each. `chunk`: tokens that the gradients of a network stand still for."""

    memory: Memory
    bias: Bias
    retention: Retention
    rule: Rule
    chunk: int = CHUNK

    @property
    def name(self) -> str:
        """The name of the memory, and of its file."""
        parts = (self.memory, self.bias, self.retention, self.rule)
        return "_".join(p.name for p in parts).replace(".", "_")

    @property
    def frozen(self) -> bool:
        return self.memory.network and self.chunk > 1


def combinations(
    memories: tuple[Memory, ...],
    biases: tuple[Bias, ...],
    retentions: tuple[Retention, ...],
    rules: tuple[Rule, ...],
    chunk: int = CHUNK,
) -> list[Combination]:
    """All of them, the simplest of each choice first."""
    return [
        Combination(memory, bias, retention, rule, chunk)
        for memory in memories
        for bias in biases
        for retention in retentions
        for rule in rules
    ]
