"""Every memory that ships against its recurrence, written down here once more from the papers.

State and keys as in the papers and in flash-linear-attention: S is [dk, dv], answers are S' q, a
write is k e'. Each recurrence is plain torch in float64, token by token; the spec is run by the
reference interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from operations import Arrays, answers, gradients, system_of
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from nlc.backends.reference import Reference

B, T, H, N, M, R, C = 2, 7, 2, 3, 4, 3, 2  # R: pairs a token of delta_product; C: omega's window
SIZES = {
    "n": (N,), "m": (M,), "": (), "r": (R,), "rn": (R, N), "rm": (R, M), "c": (C,),
}  # fmt: skip
SHIPPED = Path(__file__).resolve().parent.parent / "specs/memory"


# ---- words ---------------------------------------------------------------------------------------


def outer(k: Tensor, e: Tensor) -> Tensor:
    return k.unsqueeze(-1) * e.unsqueeze(-2)


def ask(S: Tensor, k: Tensor) -> Tensor:
    """S' k."""
    return (S * k.unsqueeze(-1)).sum(-2)


def one(a: Tensor) -> Tensor:
    """A number a head, beside a vector."""
    return a.unsqueeze(-1)


def every(a: Tensor) -> Tensor:
    """A number a head, beside a matrix."""
    return a[..., None, None]


def rows(a: Tensor) -> Tensor:
    """A number a key channel, beside a matrix."""
    return a.unsqueeze(-1)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(B, H, *shape, dtype=torch.float64)


Naive = Callable[[Arrays, Arrays], Tensor]


def token_by_token(step: Callable[..., tuple[Tensor, Tensor]]) -> Naive:
    """The recurrence of one matrix that starts at nought."""

    def run(x: Arrays, start: Arrays) -> Tensor:
        S, reads = zeros(N, M), []
        for t in range(T):
            S, y = step(S, **{n: v[:, t] for n, v in x.items()})
            reads.append(y)
        return torch.stack(reads, 1)

    return run


# ---- a matrix, written by one outer product a token ----------------------------------------------


@token_by_token
def linear_attention(S: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    S = S + outer(k, v)
    return S, ask(S, q)


@token_by_token
def scalar_decay(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, **gate: Tensor
) -> tuple[Tensor, Tensor]:
    (a,) = gate.values()
    S = every(a) * S + outer(k, v)
    return S, ask(S, q)


@token_by_token
def gla(S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    S = rows(alpha) * S + outer(k, v)
    return S, ask(S, q)


@token_by_token
def hgrn2(S: Tensor, q: Tensor, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    S = rows(f) * S + outer(1 - f, v)
    return S, ask(S, q)


@token_by_token
def mamba2(
    S: Tensor, x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    S = every(torch.exp(-dt * A)) * S + outer(B, one(dt) * x)
    return S, ask(S, C) + one(D) * x


@token_by_token
def delta(S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    S = S - outer(one(beta) * k, ask(S, k)) + outer(one(beta) * k, v)
    return S, ask(S, q)


@token_by_token
def gated_delta(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    eye = torch.eye(N, dtype=torch.float64)
    S = every(alpha) * ((eye - every(beta) * outer(k, k)) @ S) + every(beta) * outer(k, v)
    return S, ask(S, q)


@token_by_token
def kda(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    eye = torch.eye(N, dtype=torch.float64)
    S = (eye - every(beta) * outer(k, k)) @ (rows(alpha) * S) + every(beta) * outer(k, v)
    return S, ask(S, q)


@token_by_token
def gated_delta_2(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, b: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    eye = torch.eye(N, dtype=torch.float64)
    S = (eye - outer(k, b * k)) @ (rows(alpha) * S) + outer(k, w * v)
    return S, ask(S, q)


@token_by_token
def delta_product(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    S = every(alpha) * S
    for j in range(R):
        S = S + outer(one(beta[..., j]) * k[..., j, :], v[..., j, :] - ask(S, k[..., j, :]))
    return S, ask(S, q)


@token_by_token
def rwkv7(
    S: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    S = rows(w) * S - outer(a * kappa, ask(S, kappa)) + outer(k, v)
    return S, ask(S, r)


def comba(output: float, decayed_first: bool) -> Naive:
    @token_by_token
    def step(
        S: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, alpha: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        asked = every(alpha) * S if decayed_first else S
        S = every(alpha) * S + outer(one(beta) * k, v - ask(asked, p))
        return S, ask(S, q - output * p)

    return step


@token_by_token
def longhorn(S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    strength = beta / (1 + beta * (k * k).sum(-1, keepdim=True))
    columns = []
    for j in range(M):
        s, e = S[..., j], strength[..., j : j + 1]
        columns.append(s - e * k * (k * s).sum(-1, keepdim=True) + e * k * v[..., j : j + 1])
    S = torch.stack(columns, -1)
    return S, ask(S, q)


@token_by_token
def oja(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    S = S * alpha.unsqueeze(-2)
    S = S + every(beta) * outer(k - (S * v.unsqueeze(-2)).sum(-1), v)
    return S, ask(S, q)


@token_by_token
def surprise_gate(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    wrong = ask(S, k) - v
    moved = every(alpha) * S - every(beta) * outer(k, wrong)
    S = torch.where(every(wrong.norm(dim=-1) > 1), moved, S)
    return S, ask(S, q)


# ---- a matrix under another bias or retention (MIRAS) --------------------------------------------


def miras(error: Callable[..., Tensor]) -> Naive:
    """S = alpha S - eta k psi(S' k - v)', the state before it forgets."""

    @token_by_token
    def step(
        S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, eta: Tensor, **more: Tensor
    ) -> tuple[Tensor, Tensor]:
        S = every(alpha) * S - outer(one(eta) * k, error(ask(S, k) - v, **more))
        return S, ask(S, q)

    return step


def lp_error(p: float, smooth: float) -> Callable[[Tensor], Tensor]:
    return lambda r: p * r.sign() * r.abs() * (r * r + smooth) ** (p / 2 - 1)


def huber_error(r: Tensor, delta: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(r, -one(delta)), one(delta))


def huber_norm_error(r: Tensor, delta: Tensor) -> Tensor:
    return r * torch.clamp(one(delta) / r.norm(dim=-1, keepdim=True), max=1)


def shrunk(S: Tensor, by: float) -> Tensor:
    return S.sign() * torch.relu(S.abs() - by)


@token_by_token
def elastic(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, eta: Tensor
) -> tuple[Tensor, Tensor]:
    S = shrunk(every(alpha) * S - 2 * every(eta) * outer(k, ask(S, k) - v), 0.05)
    return S, ask(S, q)


@token_by_token
def elastic_ftrl(A: Tensor, q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    A = A - 2 * every(eta) * outer(k, ask(shrunk(A, 0.05), k) - v)
    return A, ask(shrunk(A, 0.05), q)


# ---- momentum, solutions, attention --------------------------------------------------------------


def with_momentum(factor: float, decayed: bool, gain: float = 1.0) -> Naive:
    def run(x: Arrays, start: Arrays) -> Tensor:
        S, P, reads = zeros(N, M), zeros(N, M), []
        for t in range(T):
            q, k, v, alpha, eta, mu = (x[n][:, t] for n in ("q", "k", "v", "alpha", "eta", "mu"))
            strength = x["beta"][:, t] if "beta" in x else torch.ones(B, H).double() * gain
            asked = every(alpha) * S if decayed else S
            P = every(mu) * P - factor * every(eta) * outer(k, v - ask(asked, k))
            S = every(alpha) * S - every(strength) * P
            reads.append(ask(S, q))
        return torch.stack(reads, 1)

    return run


def mesa(x: Arrays, start: Arrays) -> Tensor:
    gram, cross, reads = zeros(N, N), zeros(N, M), []
    for t in range(T):
        q, k, v, beta, gamma, ridge = (
            x[n][:, t] for n in ("q", "k", "v", "beta", "gamma", "ridge")
        )
        gram = every(gamma) * gram + every(beta) * outer(k, k)
        cross = every(gamma) * cross + every(beta) * outer(k, v)
        reads.append(ask(cross, torch.linalg.solve(gram + torch.diag_embed(ridge), q)))
    return torch.stack(reads, 1)


def attention(window: int) -> Naive:
    def run(x: Arrays, start: Arrays) -> Tensor:
        age = torch.arange(T)[:, None] - torch.arange(T)
        scores = torch.einsum("bthn,bshn->bhts", x["q"], x["k"]) / N**0.5
        seen = (age >= 0) & (age < window)
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("bhts,bshm->bthm", shares, x["v"])

    return run


# ---- deep memories: gradients by autograd, at the start of each chunk ----------------------------

Say = Callable[[Arrays, Tensor], Tensor]


def product(W: Tensor, x: Tensor) -> Tensor:
    """[B, H, out, in] and [B, H, in]."""
    return (W @ x.unsqueeze(-1)).squeeze(-1)


def two_layers(W: Arrays, x: Tensor) -> Tensor:
    return product(W["W2"], gelu(product(W["W1"], x)))


def plain(W: Arrays, x: Tensor) -> Tensor:
    return x + two_layers(W, x)


def normed(W: Arrays, x: Tensor) -> Tensor:
    return x + layer_norm(two_layers(W, x), (N,), eps=1e-6)


def slopes(loss: Tensor, at: Arrays) -> Arrays:
    found = torch.autograd.grad(loss.sum(), list(at.values()), create_graph=True)
    return dict(zip(at, found, strict=True))


@dataclass
class Deep:
    """A network written by its own gradients; `link` is from what is kept to the weights."""

    say: Say
    loss: Callable[..., Tensor]  # of the error, and of the other streams
    chunk: int
    link: Callable[[Tensor], Tensor] = lambda A: A
    rate: float = 1.0

    def __call__(self, x: Arrays, start: Arrays) -> Tensor:
        A = {n: a.expand(B, *a.shape) for n, a in start.items()}
        P = {n: torch.zeros_like(a) for n, a in A.items()}
        frozen, reads = A, []
        for t in range(T):
            now = {n: v[:, t] for n, v in x.items()}
            frozen = A if t % self.chunk == 0 else frozen
            grad = self.gradient(frozen, now)
            keep, mu = now.get("alpha", torch.ones(B, H)), now.get("mu", torch.zeros(B, H))
            for n in A:
                P[n] = every(mu) * P[n] - self.rate * every(now["eta"]) * grad[n]
            A = {n: every(keep) * A[n] + P[n] for n in A}
            reads.append(self.say(self.weights(A), now["q"]))
        return torch.stack(reads, 1)

    def weights(self, A: Arrays) -> Arrays:
        return {n: self.link(a) for n, a in A.items()}

    def gradient(self, A: Arrays, now: Arrays) -> Arrays:
        """With respect to the weights, at which the dual is."""
        W = {n: w + 0 for n, w in self.weights(A).items()}
        W = {n: w if w.requires_grad else w.requires_grad_() for n, w in W.items()}
        more = {n: now[n] for n in ("delta",) if n in now}
        return slopes(self.loss(self.say(W, now["k"]) - now["v"], **more), W)


def squares(r: Tensor) -> Tensor:
    return (r * r).sum(-1)


def soft_abs(r: Tensor) -> Tensor:
    return torch.sqrt(r * r + 1e-6)


def switched(r: Tensor, delta: Tensor) -> Tensor:
    return torch.where(squares(r) <= delta**2, squares(r), delta * soft_abs(r).sum(-1))


def size_of(A: Tensor, r: float) -> Tensor:
    return (A.abs() ** r).sum((-2, -1), keepdim=True) ** (1 / r) + 1e-6


def printed_link(A: Tensor) -> Tensor:
    return A / size_of(A, 4) ** 2


def mirror_link(A: Tensor) -> Tensor:
    """(q - 1) sign(A) |A|^(r - 1) / |A|_r^(r - 2), with q = 4/3 and r = 4."""
    return (4 / 3 - 1) * A.sign() * A.abs() ** 3 / size_of(A, 4) ** 2


def ttt_linear(x: Arrays, start: Arrays) -> Tensor:
    """A matrix and a bias; gradients at the chunk's start, W_c - sum of eta_i grad_i."""
    gain, bias = x.get("gain", torch.ones(B, T, H, N)), x.get("bias", torch.zeros(B, T, H, N))
    W, b = start["W"].expand(B, H, N, N), zeros(N)
    reads = []

    def say(W: Tensor, b: Tensor, x: Tensor, t: int) -> Tensor:
        return x + gain[:, t] * layer_norm(product(W, x) + b, (N,), eps=1e-6) + bias[:, t]

    for c in range(0, T, 3):
        at = {"W": (W + 0).requires_grad_(), "b": (b + 0).requires_grad_()}
        for t in range(c, min(c + 3, T)):
            r = say(at["W"], at["b"], x["k"][:, t], t) - x["v"][:, t]
            g = slopes(squares(r) / 2, at)
            eta = x["eta"][:, t] / N
            W, b = W - every(eta) * g["W"], b - one(eta) * g["b"]
            reads.append(say(W, b, x["q"][:, t], t))
    return torch.stack(reads, 1)


def omega(x: Arrays, start: Arrays) -> Tensor:
    W, reads = {n: a.expand(B, *a.shape) for n, a in start.items()}, []
    for t in range(T):
        at = {n: w + 0 for n, w in W.items()}
        at = {n: w if w.requires_grad else w.requires_grad_() for n, w in at.items()}
        loss = torch.zeros(B, H).double()
        for age in range(min(C, t + 1)):
            wrong = plain(at, x["k"][:, t - age]) - x["v"][:, t - age]
            loss = loss + x["gamma"][:, t, :, age] * squares(wrong)
        g = slopes(loss, at)
        W = {n: every(x["alpha"][:, t]) * W[n] - every(x["eta"][:, t]) * g[n] for n in W}
        reads.append(plain(W, x["q"][:, t]))
    return torch.stack(reads, 1)


# ---- the cases -----------------------------------------------------------------------------------

QKV = {"q": "n", "k": "n", "v": "m"}
DEEP = {"q": "n", "k": "n", "v": "n"}
GATES = {
    "alpha", "beta", "gamma", "f", "w", "a", "b", "eta", "mu", "dt", "A", "D", "ridge", "delta",
}  # fmt: skip


@dataclass
class Case:
    """`kinds`: the shape of each stream; `call`: settings, as the spec is called."""

    memory: str
    kinds: dict[str, str]
    naive: Naive
    call: str = ""
    clock: str = "every token"
    change: Callable[[Arrays], Arrays] = field(default=lambda x: x)

    def __str__(self) -> str:
        return self.memory + self.call.replace(", ", "-").replace(" = ", "")

    def data(self) -> Arrays:
        generator = torch.Generator().manual_seed(7)
        made = {}
        for n, kind in self.kinds.items():
            x = torch.randn(B, T, H, *SIZES[kind], generator=generator, dtype=torch.float64)
            made[n] = torch.sigmoid(x) if n in GATES else x
        return made


def decayed_probe(x: Arrays) -> Arrays:
    return x | {"p": one(x["alpha"]) * x["p"]}


def strength_in_rates(x: Arrays) -> Arrays:
    beta = x["beta"]
    before = torch.cat([beta[:, :1], beta[:, :-1]], 1)
    given = x | {"eta": x["eta"] * beta, "mu": x["mu"] * beta / before}
    return {n: s for n, s in given.items() if n != "beta"}


COMBA = {**QKV, "p": "n", "alpha": "", "beta": ""}
TITANS = {"alpha": "", "eta": "", "mu": ""}
STRENGTH = {**QKV, **TITANS, "beta": ""}
CASES = [
    Case("linear_attention", QKV, linear_attention),
    Case("retention", {**QKV, "alpha": ""}, scalar_decay),
    Case("retention", {**QKV, "alpha": "n"}, gla, " "),
    Case("retnet", {**QKV, "gamma": ""}, scalar_decay),
    Case("scalar_gated", {**QKV, "alpha": ""}, scalar_decay),
    Case("gla", {**QKV, "alpha": "n"}, gla),
    Case("hgrn2", {"q": "n", "f": "n", "v": "m"}, hgrn2),
    Case(
        "mamba2",
        {"x": "m", "B": "n", "C": "n", "dt": "", "A": "", "D": ""},
        mamba2,
    ),
    Case("delta", {**QKV, "beta": ""}, delta),
    Case("gated_delta", {**QKV, "alpha": "", "beta": ""}, gated_delta),
    Case("gated_delta_2", {**QKV, "alpha": "n", "b": "n", "w": "m"}, gated_delta_2),
    Case(
        "delta_product",
        {"q": "n", "k": "rn", "v": "rm", "alpha": "", "beta": "r"},
        delta_product,
    ),
    Case("kda", {**QKV, "alpha": "n", "beta": ""}, kda),
    Case("rwkv7", {"r": "n", "w": "n", "k": "n", "v": "m", "kappa": "n", "a": "n"}, rwkv7),
    Case("comba", COMBA, comba(0, False)),
    Case("comba", COMBA, comba(0.5, False), ", D = 0.5"),
    Case("comba", COMBA, comba(0, True), " ", change=decayed_probe),
    Case("longhorn", {**QKV, "beta": "m"}, longhorn),
    Case("mesa", {**QKV, "beta": "", "gamma": "", "ridge": "n"}, mesa, clock="always"),
    Case("oja", {**QKV, "alpha": "m", "beta": ""}, oja),
    Case("surprise_gate", {**QKV, "alpha": "", "beta": ""}, surprise_gate),
    Case("momentum_delta", {**QKV, **TITANS}, with_momentum(1, True)),
    Case("momentum_delta", STRENGTH, with_momentum(1, True), " ", change=strength_in_rates),
    Case("titans_linear", {**QKV, **TITANS}, with_momentum(2, False)),
    Case("lp", {**QKV, "alpha": "", "eta": ""}, miras(lp_error(3, 1e-6))),
    Case("lp", {**QKV, "alpha": "", "eta": ""}, miras(lp_error(2.5, 0)), ", p = 2.5, smooth = 0"),
    Case("huber", {**QKV, "alpha": "", "eta": "", "delta": ""}, miras(huber_error)),
    Case("huber_norm", {**QKV, "alpha": "", "eta": "", "delta": ""}, miras(huber_norm_error)),
    Case("elastic", {**QKV, "alpha": "", "eta": ""}, elastic, ", gamma = 0.05"),
    Case("elastic_ftrl", {**QKV, "eta": ""}, elastic_ftrl, ", gamma = 0.05"),
    Case("titans", {**DEEP, **TITANS}, Deep(plain, squares, 1), ", chunk = 1"),
    Case("titans", {**DEEP, **TITANS}, Deep(plain, squares, 3), ", chunk = 3"),
    Case("ttt_linear", {**DEEP, "eta": ""}, ttt_linear, ", chunk = 3"),
    Case(
        "ttt_linear",
        {**DEEP, "eta": "", "gain": "n", "bias": "n"},
        ttt_linear,
        ", chunk = 3",
    ),
    Case("ttt_mlp", {**DEEP, "eta": ""}, Deep(normed, squares, 3, rate=0.5 / N), ", chunk = 3"),
    Case(
        "moneta",
        {**DEEP, "alpha": "", "eta": ""},
        Deep(normed, lambda r: (soft_abs(r) ** 3).sum(-1), 3, printed_link),
        ", chunk = 3",
    ),
    Case(
        "moneta_ftrl",
        {**DEEP, "alpha": "", "eta": ""},
        Deep(normed, lambda r: (soft_abs(r) ** 3).sum(-1), 3, mirror_link),
        ", chunk = 3",
    ),
    Case(
        "yaad",
        {**DEEP, "alpha": "", "eta": "", "delta": ""},
        Deep(normed, switched, 3),
        ", chunk = 3",
    ),
    Case(
        "memora",
        {**DEEP, "alpha": "", "eta": ""},
        Deep(normed, squares, 3, lambda A: A.softmax(-1)),
        ", chunk = 3",
    ),
    Case("omega", {**DEEP, "alpha": "", "eta": "", "gamma": "c"}, omega),
    Case("attend", QKV, attention(T), clock="always"),
    Case("attend", QKV, attention(2), ", window = 2", clock="always"),
    Case("window", QKV, attention(3), ", size = 3", clock="always"),
]


def starts(case: Case, truth: Reference) -> Arrays:
    """The drawn numbers of its networks, by the names of its arrays: [H, ..]."""
    prefix = f"mixer.{case.memory}."
    named = {n.removeprefix(prefix): x for n, x in truth.values.items()}
    deep = {n.removeprefix("M."): x for n, x in named.items() if n.startswith("M.W")}
    return deep or named


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max()) / max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_memory_is_its_recurrence(case: Case) -> None:
    data = case.data()
    given = case.change(data)
    truth = Reference(system_of(case.memory, given, case.clock, case.call.rstrip()).system)
    wanted = case.naive(data, starts(case, truth))
    assert distance(truth(given)[0], wanted) <= 1e-9


DIFFERENTIATED = [
    "linear_attention", "gla", "hgrn2", "gated_delta", "delta_product", "kda", "rwkv7", "comba",
    "longhorn", "mesa", "oja", "momentum_delta", "lp", "huber", "titans", "ttt_linear", "memora",
    "omega", "elastic_ftrl", "window",
]  # fmt: skip
FIRST = {case.memory: case for case in reversed(CASES)}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_a_memory_has_the_gradients_of_its_recurrence(name: str) -> None:
    case = FIRST[name]
    data = {n: x.requires_grad_() for n, x in case.data().items()}
    truth = Reference(system_of(case.memory, data, case.clock, case.call.rstrip()).system)
    y = answers(truth, data)
    wanted = case.naive(data, starts(case, truth))
    up = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    ours = gradients(truth, y, up, list(data.values()))
    theirs = torch.autograd.grad(wanted, list(data.values()), up)
    for n, g, w in zip(data, ours, theirs, strict=True):
        assert distance(g, w) <= 1e-9, n


def test_every_memory_that_ships_is_here() -> None:
    """`continuum` learns the model's loss; `sphere` is for a level of many tokens; `titans_exact`
    is held against `titans` with chunks of one token (test_memory.py).
    """
    there = {path.stem for path in SHIPPED.glob("*.nl")}
    assert there - {case.memory for case in CASES} == {
        "continuum",
        "sphere",
        "titans_exact",
    }


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.nl")), ids=lambda p: p.stem)
def test_a_memory_names_its_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "cite " in text or path.stem == "surprise_gate"  # which is ours
