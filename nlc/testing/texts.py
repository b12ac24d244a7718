"""The texts that random systems are made of."""

from __future__ import annotations

# Kinds of levels, the frequent ones more than once.
KINDS = (
    "attention", "matrix", "matrix", "network", "network", "learner", "stateless", "adapter",
)  # fmt: skip

# What a system may have that most have not.
THEMES = (
    "",
    "streams",
    "resets",
    "periods",
    "cells",
    "top",
    "past",
    "sequences",
    "fade",
    "windows",
    "dropout",
    "fresh",
    "named",
    "rules",
    "rows",
    "labels",
    "lines",
    "asleep",
    "edges",
    "trained",
)
RARE = {
    "top": "({a}) * top({x}, {k})", "dropout": "dropout({a}, 0.{k})",
    "past": "mean(transpose(past({a}, {k})), 1)",
    "fade": "fade(sigmoid(mean({x}))) @ past({a}) / (1 + position)",
}  # fmt: skip
ACTIVATIONS = ("gelu", "tanh", "silu", "relu", "sigmoid", "softplus", "sin", "smooth_abs")
ELEMENTWISE = (
    "tanh({})", "sigmoid({})", "silu({})", "gelu({})", "relu({})", "sin({})", "cos({})",
    "softplus({})", "abs({})", "smooth_abs({})", "smooth_sign({})", "exp(-abs({}))",
    "log(1 + abs({}))", "sqrt(1 + abs({}))", "clip({}, -1, 0.5)", "-({})", "0.5 * ({})",
    "({})^2 / (1 + ({})^2)", "1 / (1 + abs({}))", "({}) * mod(floor(position / 2), 2)",
)  # fmt: skip
WHOLE = ("norm({})", "layernorm({})", "unit({})", "softmax({})", "({}) * stop(tanh({x}))")
PAIRS = (
    "{a} + {b}", "{a} - 0.7 * {b}", "tanh({a}) * {b}", "{a} / (2 + sin({b}))", "min({a}, {b})",
    "max({a}, {b})",
    "where({x} < 0.2, {a}, {b})", "dot({a}, {b}) * learned({n}, start = 0.1)",
)  # fmt: skip
# Of what M says of a key; `g` stands for a weight, and `v` is what it should say.
MATRIX_OBJECTIVES = (
    "-g * dot(M(k), v)", "g * sum((M(k) - v)^2) / 2", "g * length(M(k) - v)^2 / 2",
    "-g * sum(M(k) * v)", "g * sum((v - M(k))^2) / 2", "g * mean((M(k) - v)^2)",
    "-g * dot(v, M(k)) / 2", "-0.3 * dot(0.5 * v - k, M(k))", "g * sum((0.5 * M(k) - v)^2)",
    "g * sum((M(k) - stop(tanh(v)) + k)^2) / 2",
)  # fmt: skip
# Over the last ticks, with what ticks that never were would have no number for.
WINDOW_OBJECTIVES = (
    "length(M(past(k, 3)) - past(v, 3))^2", "length(M(past(k, 3)) - past(v, 3))^2 / past(h, 3)",
    "length(M(past(k, 3) / column(length(past(k, 3)))) - past(v, 3))^2",
    "g[position - past(position, 3)] * length(M(past(k, 3)) - past(v, 3))^2",
    "0.5^(position - past(position, 2)) * (past(h, 2) - length(M(past(k, 2)) - past(v, 2)))^2",
    "length(M(log(past(sigmoid(k), 4))) - past(v, 4))^2",
)  # fmt: skip
NETWORK_OBJECTIVES = (
    "g * sum((M(k) - v)^2) / 2", "-g * dot(M(k), v)", "g * sum(smooth_abs(M(k) - v)^3)",
    "g * sum(where(abs(M(k) - v) < 0.5, (M(k) - v)^2, abs(M(k) - v) - 0.25))",
    "g * robust(M(k) - v, 0.7)", "g * sum(softplus(-M(k) * v))", "g * length(M(k) - v)",
    "g * dot(M(k), stop(M(v)) - v)", "-g * dot(unit(M(k)), v)", "g * length(M(k) - v, 3)",
    "-g * dot(softmax(M(k)), v)", "g * sum(max(M(k), v))", "g * sum(sqrt(1 + (M(k) - v)^2))",
    "g * sum(exp(-(M(k) - v)^2))", "g * mean(clip(M(k), -0.5, 0.5) * v)",
    "g * sum(tanh(M(k) / 2 - v)^2)", "g * sum(log(1 + M(k)^2) / (1 + v^2))",
    "g * sum(relu(M(k) - v))", "g * sum(silu(v * M(k)))", "g * dot(gelu(M(k)), k)",
    "g * sum(min(v, sin(M(k))))", "-g * sum(cos(M(k) - v))", "g * sum(sigmoid(M(k)) * v)",
    "g * frobenius(M(k) - v)", "g * sum(M(k) / (2 + tanh(v)))", "g * sum(abs(M(k) - v))",
)  # fmt: skip
ROBUST = (
    "def robust(r, delta) "
    "{ return where(length(r) <= delta, sum(r^2), delta * sum(smooth_abs(r))) }"
)
# Of levels: plain ones, and some that the generated Python must not take as they are.
NAMES = ("{kind}{i}",) * 8 + ("train{i}", "lambda{i}", "λ{i}", "w", "forward", "half", "{kind}_")
SIZES = {"q": "[n]", "k": "[n]", "v": "[m]"}  # of the inputs of a memory
NUMBERS = (
    "mean({})", "sum({}) / 8", "length({})", "dot({}, {})", "length({}, 3)", "sum(({})^2) / 4",
    "frobenius({})", "({})[0]", "squeeze(linear({}, 1))",
)  # fmt: skip
