"""Memories that no closed form covers: solved as a fixed point, or fired as they stand; exact."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.ops.recurrence import Span, Start, begin
from nlc.backends.ops.solving import Writes, solved
from nlc.backends.torch_source import build
from nlc.lower import lower
from nlc.testing.laws import varied
from nlc.verify.properties import later_tokens, off_the_clock, other_samples
from nlc.verify.streams import distance, gradients, random_streams, run_of, truth_of

SYSTEM = """nl 1
use "optim/gradient"
use "optim/momentum"
use "optim/dgd"
use "memory/gated_delta_2"
use "memory/rwkv7"
use "memory/longhorn"
use "memory/surprise_gate"
use "memory/sphere"
use "memory/elastic"
use "memory/oja"
use "memory/memora"
use "memory/titans"
use "memory/ttt_linear"
use "memory/momentum_delta"
use "memory/mesa"
use "memory/omega"
use "memory/delta_product"
use "optim/adam"
use "optim/muon"
{memory}
system test(vocab = 11, width = 8) {{
  level training every step {{
    objective loss
    learn gradient(rate = 0.01)
  }}
  level mem(x[n]) {clock} {{
    q = split(linear(x, n), 2)
    k = unit(split(linear(x, n), 2))
    v = split(linear(x, n), 2)
    alpha = sigmoid(linear(x, 2) + 2)
    eta = 0.3 * sigmoid(linear(x, 2))
    mu = 0.6 * sigmoid(linear(x, 2))
    a = sigmoid(split(linear(x, n), 2))
    b = sigmoid(split(linear(x, n), 2))
    read join({call})
  }}
  transfer backprop mem -> training
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    x = x + mem(x)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""

HEAD = "memory r(q[n], k[n], v[n]"

MEMORIES = {
    "l_p": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  objective sum(smooth_abs(M(k) - v)^3) / 20
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "huber, after retain": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  e = 0.3
  objective sum(where(abs(M(k) - v) <= e, (M(k) - v)^2 / 2, e * smooth_abs(M(k) - v))) after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "mlp with momentum": (
        HEAD
        + """, alpha, eta, mu) {
  state M : residual(mlp(n, 3*n))
  objective sum((M(k) - v)^2)
  retain alpha
  learn momentum(rate = eta, keep = mu)
  read M(q)
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "layer norm, read before": (
        HEAD
        + """, eta) {
  state M : residual(layernorm(mlp(n, 3*n)))
  objective sum((M(k) - v)^2) / 2
  learn gradient(rate = eta / n)
  read M(q) before write
}""",
        "r(q, k, v, eta)",
    ),
    "gated mlp": (
        HEAD
        + """, alpha, eta) {
  state M : gated_mlp(n, 2*n)
  objective -dot(M(k), v)
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "dgd on an mlp": (
        HEAD
        + """, alpha, eta) {
  state M : residual(mlp(n, 3*n))
  objective sum((M(k) - v)^2)
  retain alpha
  learn dgd(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "three steps": (
        HEAD
        + """, alpha, eta) {
  state M : residual(mlp(n, 3*n))
  objective sum((M(k) - v)^2)
  retain alpha
  learn gradient(rate = eta / 10, steps = 3)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a line through a state that stays": (
        HEAD
        + """, alpha, eta) {
  state K : matrix(n, n) = normal(0.5)
  w = unit(K(k))
  state M : matrix(n, n) {
    objective sum((M(w) - v)^2) / 2
    retain alpha
    learn gradient(rate = eta)
  }
  read M(K(q))
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "two writes a tick": (
        """memory r(q[n], k[n], v[n], k2[n], v2[n], alpha, eta) {
  state M : matrix(n, n)
  e1 = eta * (v - M(k))
  retain alpha
  e2 = eta * (v2 - M(k2) - e1 * dot(k, k2))
  write outer(e1, k) + outer(e2, k2)
  read M(q)
}""",
        "r(q, k, v, a, b, alpha, eta)",
    ),
    "a rate for each output": (
        HEAD
        + """, eta, a[n]) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2)
  retain a
  learn gradient(rate = column(eta * a))
  read M(q)
}""",
        "r(q, k, v, eta, a)",
    ),
    "its own keys and values": (
        """memory r(x[n], alpha, eta) {
  state M[a, b] : matrix(n, n) = normal(0.5)
  k = unit(M.a(x))
  v = M.b(x)
  retain alpha
  objective sum((M(k) - stop(v))^2)
  learn dgd(rate = eta)
  read M.a(x) + M.b(x)
}""",
        "r(v, alpha, eta)",
    ),
    "erase and write apart": ("", "gated_delta_2(q, k, v, a, b, a)"),
    "rwkv7": ("", "rwkv7(q, a, k, v, k, b)"),
    "asked for another key": (
        HEAD
        + """, p[n], alpha, eta) {
  state M : matrix(n, n) = normal(0.5)
  retain alpha
  write eta * outer(v - M(p) / 2 - alpha * M(k), k)
  read M(q) before write
}""",
        "r(q, k, v, a, alpha, eta)",
    ),
    "two errors and momentum": (
        HEAD
        + """, p[n], u[n], alpha, eta, mu) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - v)^2) / 2 + sum((M(p) - u)^2) / 4
  retain alpha
  learn momentum(rate = eta, keep = mu)
  read M(q)
}""",
        "r(q, k, v, a, b, alpha, eta, mu)",
    ),
    "two errors, cleared": (
        HEAD
        + """, p[n], u[n], alpha, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum((M(p) - u)^2) / 4
  retain alpha
  learn dgd(rate = eta / 4)
  read M(q)
}""",
        "r(q, k, v, a, b, alpha, eta)",
    ),
    "implicit on two pairs": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum((M(q) - v)^2) / 2
  learn implicit(rate = eta)
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "implicit on a window": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  objective sum((M(past(k, 3)) - past(v, 3))^2) / 2
  learn implicit(rate = eta)
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "a wrapped matrix that fades by channel": (
        HEAD
        + """, keep[n], eta) {
  state M : residual(layernorm(matrix(n, n)))
  objective sum((M(k) - v)^2) / 4
  retain keep
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, a, eta)",
    ),
    "a ridge": (
        HEAD
        + """, alpha, eta, ridge) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - v)^2) / 2 + ridge * sum(M^2) / 2 after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q) + q @ M before write
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "a ridge by channel": (
        HEAD
        + """, a[n], b[n], eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum(b * M^2) / 4 after retain
  retain a
  learn gradient(rate = eta * a)
  read M(q)
}""",
        "r(q, k, v, a, b, eta)",
    ),
    "a ridge and nothing that reads": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  objective sum(M^2) / 5 - dot(M(k), v)
  learn gradient(rate = eta)
  read q @ M
}""",
        "r(q, k, v, eta)",
    ),
    "a ridge beside an error that bends": (
        HEAD
        + """, alpha, eta, ridge) {
  state M : matrix(n, n)
  objective sum(smooth_abs(M(k) - v)^3) / 20 + ridge * sum(M^2) / 2 after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "a ridge of an implicit step": (
        HEAD
        + """, alpha, eta, ridge) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + ridge * sum(M^2) / 2
  retain alpha
  learn implicit(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "a ridge of two errors": (
        HEAD
        + """, p[n], alpha, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum((M(p) - q)^2) / 4 + sum(M^2) / 20 after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, a, alpha, eta)",
    ),
    "a ridge with momentum": (
        HEAD
        + """, alpha, eta, mu) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum(M^2) / 20
  retain alpha
  learn momentum(rate = eta, keep = mu)
  read M(q)
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "a rule that fades, after retain": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2 + sum(M^2) / 20 after retain
  retain alpha
  learn fading(rate = eta, shrink = 0.5)
  read M(q)
}
optimizer fading(weight, grad, rate = 1, shrink = 0.1) {
  retain 1 - rate * shrink
  write -rate * grad
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "asked twice, fading by channel": (
        HEAD
        + """, a[n], eta) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(M(k)) - v)^2) / 8
  retain a
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, a, eta)",
    ),
    "read from both sides": (
        HEAD
        + """, a[n], b[n]) {
  state S : matrix(n, n)
  retain a
  write outer(v, k) - outer(S(k), b * k)
  read S(q) + q @ S
}""",
        "r(q, k, v, a, b)",
    ),
    "a weight for each output": (
        HEAD
        + """, b[n], alpha, eta) {
  state M : matrix(n, n)
  objective sum(b * (M(k) - v)^2) after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q) before write
}""",
        "r(q, k, v, b, alpha, eta)",
    ),
    "implicit": ("", "longhorn(q, k, v, a)"),
    "gates made of the state": ("", "surprise_gate(q, k, v, alpha, eta)"),
    "a threshold after each write": ("", "elastic(q, k, v, alpha, eta)"),
    "read as a matrix": ("", "oja(q, k, v, a, eta)"),
    "a dual, linearised": ("", "memora(q, k, v, alpha, eta)"),
    "a vector beside a matrix": ("", "ttt_linear(q, k, v, eta)"),
    "frozen for one token": ("", "titans(q, k, v, alpha, eta / 9, mu, chunk = 1)"),
    "a vector beside a matrix, frozen for one token": ("", "ttt_linear(q, k, v, eta, chunk = 1)"),
    "momentum with a gain": ("", "momentum_delta(q, k, v, alpha, eta, mu)"),
    "least squares": ("", "mesa(q, k, v, eta, alpha, a + 0.2)"),
    "a window": ("", "omega(q, k, v, alpha, eta / 5, stack(eta, mu, alpha))"),
    "several writes a tick": (
        "",
        "delta_product(q, reshape(concat(k, a), 2, 2, 4), reshape(concat(v, b), 2, 2, 4), alpha, "
        "stack(eta, mu))",
    ),
    "a target it makes itself": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - stop(M(v) + M(k) / 2))^2) after retain
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a target it makes itself, at the start of a chunk": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - stop(M(v)))^2)
  retain alpha
  learn gradient(rate = eta)
  linearise every 4 tokens
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a dual with two errors, at every token": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n) = normal(0.5)
  objective sum((M(k) - v)^2) + sum((M(v) - k)^2) / 2
  retain alpha through softmax
  learn gradient(rate = eta)
  linearise every 1 tokens
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a dual at every token": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2
  retain alpha through softplus
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a vector, each by itself": (
        HEAD
        + """, alpha, eta, mu) {
  state M : matrix(n, n)
  state b : vector(n)
  u = M(k) + b
  objective sum((tanh(M(u) + b) - v)^2) after retain
  retain alpha
  learn momentum(rate = eta, keep = mu)
  read u + M(q) + b before write
}""",
        "r(q, k, v, alpha, eta, mu)",
    ),
    "a gradient by autograd": (
        HEAD
        + """, alpha, eta) {
  state M : residual(mlp(n, 2*n))
  objective sum((concat(M(k), k) - concat(v, q))^2) / 4
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "adam at every token": (
        HEAD
        + """, alpha, eta) {
  state M : residual(mlp(n, 2*n))
  objective sum((M(k) - v)^2)
  retain alpha
  learn adam(rate = eta / 10)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "muon every 4 tokens": (
        HEAD
        + """, alpha, eta) {
  state M : residual(mlp(n, 2*n))
  objective sum((M(k) - v)^2)
  retain alpha
  learn muon(rate = eta / 10)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
        "every 4 tokens",
    ),
    "a phase": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  retain alpha
  write eta * outer(v - M(k), k)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
        "every 4 tokens from 2",
    ),
    "rows of one length": ("", "sphere(q, k, v, eta)", "every 4 tokens"),
    "kept by its own norm": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  objective sum((M(k) - v)^2) / 2
  retain 1 / (1 + sum(M^2))
  learn gradient(rate = eta / (1 + frobenius(M)))
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "kept, channel by channel, as two other states say": (
        HEAD
        + """, eta) {
  state z : vector(n) { retain 0.9; objective -dot(z, k); learn gradient(rate = 0.1) }
  state R : matrix(n, n) { retain 0.9; objective -dot(R(k), v); learn gradient(rate = 0.1) }
  state M : matrix(n, n) {
    retain sigmoid(R(k) + 2) / (1 + z^2)
    objective sum((M(k) - v)^2) / 2
    learn gradient(rate = eta / (1 + sum(z^2)))
  }
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "a vector that gates what is frozen": (
        HEAD
        + """, eta) {
  state z : vector(n) { retain 0.9; objective -dot(z, k); learn gradient(rate = 0.1) }
  state M : matrix(n, n) {
    retain 1 / (1 + sum(z^2))
    objective sum((M(k) - v)^2) / 2
    learn gradient(rate = eta / (1 + sum(z^2)))
  }
  linearise every 4 tokens
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "gates and links of what is frozen": (
        """def shrink(A, c) { return A / (1 + c * sum(A^2)) }
"""
        + HEAD
        + """, eta) {
  state z : vector(n) { set tanh(0.5 * z + k * length(M(v))) }
  state M : matrix(n, n) {
    retain 1 / (1 + sum(M^2)) onto shrink(sum(M(k))^2 + frobenius(M) / (1 + position))
    objective sum((M(k) - v)^2) / 2
    learn gradient(rate = eta / (1 + sum(M^2)))
  }
  linearise every 4 tokens
  read M(q) * (1 + sum(z))
}""",
        "r(q, k, v, eta)",
    ),
    "a window that a softmax weighs, in a line": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  w = softmax(past(k, 3) @ q)
  objective sum(w * sum(smooth_abs(M(past(k, 3)) - past(v, 3))^3, 1)) / 20
  retain alpha
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "windows that are met at once": (
        HEAD
        + """, alpha, eta) {
  state M : matrix(n, n)
  K = past(k, 3)
  V = past(v, 3)
  s = softmax(K @ q)
  z = transpose(K) @ s + past(q, 2)[0] * min(position, 1)
  objective sum((M(z) - s @ V)^2) / 2
  retain alpha
  learn gradient(rate = eta)
  read M(q) + q @ (transpose(K) @ V) * (mean(s) + dot(s, K @ z) + length(K @ k))
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "windows that are met at once, tick by tick": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  K = past(k, 3)
  s = softmax(K @ q)
  objective sum((M(transpose(K) @ s) - s @ past(v, 3))^2) / 2
  learn adam(rate = eta)
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "by the place, solved": (
        HEAD
        + """, eta) {
  state M : matrix(n, n)
  g = position / (1 + position)
  retain position / (1 + position)
  write eta * outer(v - g * tanh(M(k)), k) / (1 + position)
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "by the place, several states frozen": (
        HEAD
        + """, eta) {
  state M[a, b] : matrix(n, n)
  retain position / (1 + position)
  write eta * outer(v - tanh(M(k)), k) / (1 + position)
  linearise every 4 tokens
  read M.a(q) + M.b(k)
}""",
        "r(q, k, v, eta)",
    ),
    "by the place, one system": (
        HEAD
        + """, eta) {
  state M : matrix(n, n) { write eta * outer(v - M(k), k) * min(position, 1) }
  read M(q)
}""",
        "r(q, k, v, eta)",
    ),
    "a momentum that a state makes": (
        HEAD
        + """, alpha, eta) {
  state z : vector(n) { retain 0.9; objective -dot(z, k); learn gradient(rate = 0.1) }
  state M : matrix(n, n) {
    retain alpha
    objective sum((M(k) - v)^2) / 2
    learn momentum(rate = eta, keep = sigmoid(sum(z)))
  }
  read M(q)
}""",
        "r(q, k, v, alpha, eta)",
    ),
    "a rate of a memory that is told what another says": (
        """memory rates(z[n], v[n]) {
  state E : matrix(n, n) { objective sum((E(z) - v)^2); learn gradient(rate = 0.2) }
  read E(z) before write
}
"""
        + HEAD
        + """) {
  state M : matrix(n, n) = normal(0.2)
  made = rates(k, M(v))
  eta = 0.2 * sigmoid(sum(made))
  objective sum((M(k) - v)^2) / 2
  learn gradient(rate = eta)
  read M(q)
}""",
        "r(q, k, v)",
    ),
    "a line of a line that a memory made of a frozen state": (
        """memory kept(z[n], v[n]) {
  state E : matrix(n, n) { retain 0.9; write outer(v, z) }
  read E(z)
}
"""
        + HEAD
        + """) {
  state M : mlp(n, n)
  a = kept(k, M(v))
  b = tanh(a + k)
  objective sum((M(b) - v)^2)
  learn gradient(rate = 0.1)
  linearise every 3 tokens
  read M(q) + b
}""",
        "r(q, k, v)",
    ),
    "states that are set": (
        """memory r(x[n], a[n]) {
  state h : vector(n) { set tanh(c) * a }
  state c : vector(n) { set 0.5 * c + x * sigmoid(h) }
  read h
}""",
        "r(v, a)",
    ),
    "a matrix that is set": (
        """memory r(q[n], k[n], v[n], alpha) {
  state M : matrix(n, n) { set tanh(alpha * M + outer(v, k)) }
  read q @ M
}""",
        "r(q, k, v, alpha)",
    ),
}


def written(name: str, folder: Path) -> Path:
    memory, call, *clock = MEMORIES[name]
    text = SYSTEM.format(memory=memory, call=call, clock=clock[0] if clock else "every token")
    unused = [
        line
        for line in text.split("\n")
        if (made := re.match(r"    (\w+) = .*\(", line))
        and made[1] in {"q", "k", "v", "alpha", "eta", "mu", "a", "b"}
        and not re.search(rf"\b{made[1]}\b", call)
    ]
    path = folder / "test.nl"
    path.write_text("\n".join(line for line in text.split("\n") if line not in unused))
    return path


@pytest.mark.parametrize("name", MEMORIES)
def test_compiled_equals_the_reference(name: str, tmp_path: Path) -> None:
    """Outputs and every gradient, over a chunk and a bit; the same in any split."""
    spec = nlc.load(written(name, tmp_path))
    model = nlc.compile(spec, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (2, 19), generator=draw)
    truth = nlc.reference(spec, model.state_dict())
    wanted, _ = truth(tokens)
    found, _ = model(tokens)
    assert near(found, wanted) < 1e-10

    loss, counted, _ = model.losses(tokens)
    loss[counted].mean().backward()  # type: ignore[no-untyped-call]
    for path, gradient in truth.gradients(tokens).items():
        weight = dict(model.named_weights())[path]
        assert weight.grad is not None, path
        assert near(weight.grad, gradient) < 1e-9, path

    state, parts = None, []
    for part in torch.split(tokens, [1, 3, 8, 7], 1):
        with torch.no_grad():
            answer, state = model(part, state)
        parts.append(answer)
    assert near(torch.cat(parts, 1), wanted) < 1e-10


AT_ONCE = (
    "asked for another key", "two errors and momentum", "two errors, cleared", "rwkv7",
    "erase and write apart", "several writes a tick", "a ridge by channel", "a ridge of two errors",
    "read from both sides",
)  # fmt: skip
SCANNED = (
    "implicit", "read as a matrix", "a ridge", "a ridge and nothing that reads",
    "a ridge of an implicit step", "a rule that fades, after retain", "a rate for each output",
    "a weight for each output",
)  # fmt: skip


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_is_affine_is_one_system(name: str, tmp_path: Path) -> None:
    """No rounds, and over several chunks what those say that run in rounds."""
    spec = nlc.load(written(name, tmp_path))
    plan, told = lower(spec.system)
    assert plan is not None and not told
    assert [len(l.writes) > 0 for l in plan.lowerings.values() if l.kind == "solved"] == [True]
    assert " = affine(" in build(spec) and "solved(" not in build(spec)
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 11, (1, 150), generator=torch.Generator().manual_seed(3))
    by_tick, state = [], None
    with torch.no_grad():
        for t in range(150):
            answer, state = model(tokens[:, t : t + 1], state)
            by_tick.append(answer)
        assert near(model(tokens)[0], torch.cat(by_tick, 1)) < 1e-10


@pytest.mark.parametrize(
    "name", ["frozen for one token", "a vector beside a matrix, frozen for one token"]
)
def test_a_chunk_of_one_token_is_the_recurrence(name: str, tmp_path: Path) -> None:
    """It is solved as the memory without `linearise` is, where it would go tick by tick."""
    path, kinds = written(name, tmp_path), []
    for chunk in (1, 2):
        path.write_text(path.read_text().replace("chunk = 1", f"chunk = {chunk}"))
        plan, told = lower(nlc.load(path).system)
        assert plan is not None and not told
        kinds += [l.kind for l in plan.lowerings.values() if l.gradients]
    assert kinds == ["solved", "frozen"]


@pytest.mark.parametrize("name", SCANNED)
def test_what_is_affine_output_by_output_is_scanned(name: str, tmp_path: Path) -> None:
    """One strength an output, a ridge as a retention, a read from the other side: over several
    chunks what a tick a call says, of keys that come again and again.
    """
    spec = nlc.load(written(name, tmp_path))
    assert " = scan(" in build(spec)
    model = nlc.compile(spec, dtype=torch.float64)
    tokens = torch.randint(0, 3, (1, 230), generator=torch.Generator().manual_seed(3))
    by_tick, state = [], None
    with torch.no_grad():
        for t in range(230):
            answer, state = model(tokens[:, t : t + 1], state)
            by_tick.append(answer)
        assert near(model(tokens)[0], torch.cat(by_tick, 1)) < 1e-10


@pytest.mark.parametrize("name", ["two errors and momentum", "a ridge"])
def test_first_order_is_not_one_system(name: str, tmp_path: Path) -> None:
    """What is written is a constant then, and its rate is not: gradients have other ways."""
    spec = nlc.load(written(name, tmp_path))
    edges = (replace(t, first_order=True) for t in spec.system.transfers)
    model = nlc.compile(first := varied(spec, tuple(edges)), dtype=torch.float64)
    assert " = scan(" not in build(first) and " = affine(" not in build(first)
    tokens = (torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3)),)
    wanted = truth_of(nlc.reference(first, model.state_dict()), tokens).gradients
    found = gradients(model, tokens)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < 1e-10, name


def near(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert wanted.abs().max() > 0
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


def test_as_many_rounds_as_ticks_are_exact(tmp_path: Path) -> None:
    model = nlc.compile(nlc.load(written("l_p", tmp_path)), dtype=torch.float64)
    tokens = torch.randint(0, 11, (1, 16), generator=torch.Generator().manual_seed(1))

    def off(rounds: int) -> float:
        model.rounds = rounds
        return near(model(tokens)[0], exact)

    with torch.no_grad():
        exact, _ = model(tokens)
        one, four, all_ = off(1), off(4), off(16)
    assert 1e-6 < four < one and all_ < 1e-12


def test_a_round_that_the_last_two_foretell_is_not_made() -> None:
    """Each tick is 1 and a 200th of the one before, so each round leaves a 200th of the error. The
    fifth changes 3e-12, of which the sixth would leave less than 1e-12.
    """
    x, rounds = torch.ones(1, 32, 2, dtype=torch.float64), []

    def ticks(run: Span) -> Writes:
        rounds.append(run)
        before = torch.cat((torch.zeros_like(run.wrote[:, :1]), run.wrote[:, :-1]), 1)
        return ((x, 1 + before / 200),)

    (found,) = solved(ticks, (begin(torch.zeros(1, 2, 2, dtype=torch.float64), x),))
    exact = x.new_tensor([sum(200.0**-i for i in range(t + 1)) for t in range(32)])
    assert (found.wrote[0, :, 0] - exact).abs().max() < 1e-12
    assert len(rounds) == 6


def test_a_sample_settles_by_itself() -> None:
    """What one sample holds, not a number included, does not change a bit of another."""
    x = torch.randn(3, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = torch.zeros(3, 4, 4, dtype=torch.float64)

    def run(x: torch.Tensor) -> torch.Tensor:
        def ticks(run: Span) -> Writes:
            return ((x, torch.tanh(x - run.read(x, before_write=True)) / 4),)

        (found,) = solved(ticks, (begin(memory[: x.shape[0]], x),))
        wrote: torch.Tensor = found.wrote
        return wrote

    alone = run(x[:1])
    x[1] *= 3
    x[2, 4] = torch.nan
    together = run(x)
    assert torch.equal(together[:1], alone)
    assert together[1].isfinite().all() and not together[2].isfinite().all()


def test_no_second_derivative_in_silence(tmp_path: Path) -> None:
    model = nlc.compile(nlc.load(written("l_p", tmp_path)), dtype=torch.float64)
    answer, _ = model(torch.arange(5)[None])
    weight = next(p for n, p in model.named_weights() if n == "mem.k.linear")
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(answer.sum(), weight, create_graph=True)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp with momentum", "least squares", "a window", "a phase"])
def test_what_else_always_holds(name: str, tmp_path: Path) -> None:
    """No later token and no other sample changes anything; what changes does so on its clock."""
    spec = nlc.load(written(name, tmp_path))
    model = nlc.compile(spec, dtype=torch.float64)
    system = spec.system
    streams = random_streams(system, 2, 17)
    for found in (
        later_tokens(run_of(model), system, streams),
        other_samples(run_of(model), system, streams),
        off_the_clock(model, system, streams),
    ):
        assert found.value == 0, found


def test_no_graph_is_kept_for_nothing() -> None:
    x = torch.randn(1, 8, 4, dtype=torch.float64)

    def ticks(run: Span) -> Writes:
        return ((x, (x - run.read(x, before_write=True)) / 4),)

    (found,) = solved(ticks, (begin(torch.zeros(1, 4, 4, dtype=torch.float64), x),))
    assert not found.wrote.requires_grad


def test_a_round_that_is_told_its_streams_is_the_same() -> None:
    """Given all that a round has from outside, its derivative ends where the span starts: nodes of
    the graph before the span are the arguments of one function.
    """
    draw = torch.Generator().manual_seed(1)
    x, v, rate = (torch.randn(2, 8, n, dtype=torch.float64, generator=draw) for n in (4, 3, 1))
    w = torch.randn(2, 3, 4, dtype=torch.float64, generator=draw) / 4
    keep, momentum = (torch.rand(2, 8, dtype=torch.float64, generator=draw) for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, v, rate, w, keep, momentum)]

    def ticks(run: Span, rate: Tensor, v: Tensor, x: Tensor) -> Writes:
        error = torch.tanh(run.read(x, before_write=True) - v)
        return ((x, run.retained(run.back(error, before_write=True)).sigmoid() * rate),)

    def closure(run: Span) -> Writes:
        return ticks(run, rate, v, x)

    def start() -> Start:
        return begin(w, x, keep, momentum / 2, torch.zeros_like(w))

    (told,) = solved(ticks, (start(),), None, (rate, v, x))
    (untold,) = solved(closure, (start(),))
    assert distance(told.wrote, untold.wrote) < 1e-12
    node = told.wrote.grad_fn
    assert node is not None and "Solution" in node.name()
    given = {getattr(n, "variable", None) for n, _ in node.next_functions if n is not None}
    assert {x, v, rate, w} <= given
    found, wanted = (
        torch.autograd.grad(run.read(x).square().sum(), leaves) for run in (told, untold)
    )
    for a, b in zip(found, wanted, strict=True):
        assert float(b.abs().max()) > 0 and distance(a, b) < 1e-11


@pytest.mark.parametrize("name, eta", [("titans_exact", 0.05), ("lp", 0.1), ("omega", 0.2)])
def test_large_writes_are_exact_all_the_same(name: str, eta: float) -> None:
    """Alike keys, written over and over: rounds of what has not settled grow beyond all bounds, and
    neither ticks before see it nor their gradients. A span and a half, beside a tick a call.
    """
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.nn.functional.normalize(
            torch.randn(1, 1 if i == 1 else 96, 2, 8, generator=draw, dtype=torch.float64), dim=-1
        ).expand(1, 96, 2, 8)
        for i in range(3)
    )
    ones = torch.ones(1, 96, 2, dtype=torch.float64)
    gates = {"alpha": 0.99 * ones, "eta": eta * ones}
    if name == "titans_exact":
        gates["mu"] = 0.9 * ones
    if name == "omega":
        gates["gamma"] = torch.rand(1, 96, 2, 4, generator=draw, dtype=torch.float64)
    given = {"q": q, "k": k, "v": v, **gates}
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    op = nlc.memory(name)

    def part(first: int, last: int) -> dict[str, Tensor]:
        return {n: x[:, first:last] for n, x in leaves.items()}

    whole, _ = op(**part(0, 96))
    state, by_tick = None, []
    for t in range(96):
        answer, state = op(**part(t, t + 1), state=state)
        by_tick.append(answer)
    stepped = torch.cat(by_tick, 1)
    assert distance(whole, stepped) < 1e-11
    found, wanted = (
        torch.autograd.grad(y.square().sum(), list(leaves.values())) for y in (whole, stepped)
    )
    for n, a, b in zip(leaves, found, wanted, strict=True):
        assert distance(a, b) < 1e-9, n


def test_a_line_that_asks_what_is_solved_at_its_tick() -> None:
    """Not compiled; the reference runs it."""
    memory = nlc.memory(
        "nl 1\nmemory m(q[n], k[n], v[n]) { state M : matrix(n, n)\nasked = q + M(q)\n"
        "objective sum(length(M(past(k)) - past(v))^2) / 2 + sum(M^2) / 2\nlearn exact\n"
        "read M(asked)\n}\n"
    )
    x = {n: torch.randn(1, 5, 1, 3).double() for n in "qkv"}
    with pytest.raises(nlc.SpecError, match=r"NL701.* a line of `m` that asks what `learn exact`"):
        memory(**x)
    y, _ = nlc.reference(memory.spec(**x))(x)
    k, v, q = (x[n][0, :, 0] for n in "kvq")
    for t in range(5):
        keys, values = k[: t + 1], v[: t + 1]
        M = torch.linalg.solve(keys.T @ keys + torch.eye(3), keys.T @ values).T
        assert near(y[0, t, 0], M @ (q[t] + M @ q[t])) < 1e-9
