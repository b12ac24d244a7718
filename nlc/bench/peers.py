"""What others made for the same work. None is needed by nlc: one that is not there is told.

`titans-pytorch` is installed without its requirements, which would bring another torch; see
bench/README.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 64  # tokens, where a peer has chunks


@dataclass(frozen=True)
class Shape:
    """Of a stream: samples, tokens, width."""

    batch: int
    time: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.time:,} x {self.width}"


class AbsentError(Exception):
    """A peer that is not here; the text says what it needs."""


@dataclass(frozen=True)
class Peer:
    """`layer(width, heads)`: x [batch, time, width] to the same shape."""

    name: str
    package: str
    layer: Callable[[int, int], nn.Module]
    needs_gpu: bool = False

    def made(self, width: int, heads: int, device: str) -> nn.Module:
        """The layer, or AbsentError."""
        if self.needs_gpu and not device.startswith("cuda"):
            raise AbsentError(f"{self.package} runs on a GPU only")
        try:
            return self.layer(width, heads)
        except ImportError as error:
            what = f"cannot be used: {error}" if version_of(self.package) else "is not installed"
            raise AbsentError(f"{self.package} {what}") from None

    @property
    def title(self) -> str:
        return f"{self.name} {version_of(self.package)}".strip()


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def package(name: str) -> Any:
    """A module of a peer."""
    return importlib.import_module(name)


# ---- titans-pytorch ------------------------------------------------------------------------------


class First(nn.Module):
    """Of what a layer answers, the first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x)[0]
        return answer


def neural_memory(width: int, heads: int, by_chunk: bool) -> nn.Module:
    """A network of two layers, four times as wide inside, with momentum and forgetting. By chunk:
    gradients at the state of each chunk's start. Otherwise all of them at the first state, which is
    another model.
    """
    made = package("titans_pytorch").NeuralMemory(
        dim=width,
        dim_head=width // heads,
        heads=heads,
        chunk_size=CHUNK,
        batch_size=CHUNK if by_chunk else None,
        qk_rmsnorm=True,
        default_step_transform_max_lr=1e-2,
    )
    return First(made)


# ---- the gated delta rule ------------------------------------------------------------------------


class GatedDelta(nn.Module):
    """A norm and projections around a function (q, k, v, log of the fraction kept, rate) -> (y, ..)
    of arrays [batch, time, heads, n] and [batch, time, heads].
    """

    def __init__(self, width: int, heads: int, rule: Callable[..., Any]) -> None:
        super().__init__()
        self.heads, self.rule, self.norm = heads, rule, nn.RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.keep, self.rate = (nn.Linear(width, heads, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        q, k, v = (part(z).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        kept, rate = F.logsigmoid(self.keep(z) + 8), torch.sigmoid(self.rate(z))
        y: Tensor = self.rule(q, k, v, kept, rate, use_qk_l2norm_in_kernel=True)[0]
        made: Tensor = self.out(y.flatten(-2))
        return made


def of_transformers(width: int, heads: int) -> nn.Module:
    """Qwen3-Next's own PyTorch, in chunks of 64."""
    package("transformers.utils.logging").set_verbosity_error()
    module = package("transformers.models.qwen3_next.modeling_qwen3_next")
    return GatedDelta(width, heads, module.torch_chunk_gated_delta_rule)


def of_fla(width: int, heads: int) -> nn.Module:
    rule = package("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return GatedDelta(width, heads, rule)


PEERS: dict[str, tuple[Peer, ...]] = {
    "titans": (
        Peer("titans-pytorch", "titans-pytorch", lambda w, h: neural_memory(w, h, True)),
        Peer("titans-pytorch W0", "titans-pytorch", lambda w, h: neural_memory(w, h, False)),
    ),
    "gated_delta": (
        Peer("transformers", "transformers", of_transformers),
        Peer("fla", "flash-linear-attention", of_fla, needs_gpu=True),
    ),
}


# ---- a transformer -------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Pre-norm, softmax attention by scaled_dot_product_attention, feed-forward four times as wide;
    ids [batch, time] to logits [batch, time, vocab].
    """

    def __init__(self, vocab: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width, self.depth, self.heads = width, depth, heads
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.unembed = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cache, i)
        logits: Tensor = self.unembed(self.norm(x))
        return logits

    def room(self, tokens: int) -> tuple[int, ...]:
        """The shape of the keys of one stream."""
        return self.depth, 1, self.heads, tokens, self.width // self.heads

    def loss(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(self(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())


@dataclass
class Cache:
    """Keys and values of every token so far, [depth, batch, heads, room, n], of which `used` are
    written.
    """

    keys: Tensor
    values: Tensor
    used: int

    def put(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values with those of the next token."""
        at = slice(self.used, self.used + 1)
        self.keys[layer, :, :, at], self.values[layer, :, :, at] = key, value
        return self.keys[layer, :, :, : at.stop], self.values[layer, :, :, : at.stop]


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.back = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, at: int) -> Tensor:
        split = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in split.unbind(2))
        if cache is not None:
            k, v = cache.put(at, k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        made: Tensor = x + self.back(F.gelu(self.wide(self.norm_2(x))))
        return made
