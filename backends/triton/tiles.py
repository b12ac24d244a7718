"""What the kernels share: tiles of matrices, and how a tensor is handed to a kernel.

Every product is of tiles of at least 16 x 16, as the matrix units ask; a tile that is not filled
has nought where there is nothing. Numbers are float32 in all kernels, whatever they are read from.
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# Products of float32 as three of the matrix units' own, which is about as exact as float32.
EXACT = tl.constexpr("tf32x3")

# The side of a tile, and warps: what the compiler for compute capability 9.0 fits into registers,
# and what fits into the 99 KiB of shared memory of the smaller devices.
SIDE, WARPS = 32, {"tf32": 4, "tf32x3": 8}

P = ParamSpec("P")
R = TypeVar("R")


@triton.jit
def tile(at, rows, columns, stride, height, width):
    """[rows, columns] of a matrix whose rows are `stride` apart."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    places = at + rows[:, None] * stride + columns[None, :]
    return tl.load(places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def put(at, made, rows, columns, stride, height, width):
    """The same, written."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    places = at + rows[:, None] * stride + columns[None, :]
    tl.store(places, made.to(at.dtype.element_ty), mask=inside)


@triton.jit
def column(at, rows, stride, height):
    """[rows, 1]: one number a row."""
    return tl.load(at + rows * stride, mask=rows < height, other=0.0).to(tl.float32)[:, None]


@triton.jit
def put_column(at, made, rows, stride, height):
    tl.store(at + rows * stride, made.to(at.dtype.element_ty), mask=rows < height)


class Launch(NamedTuple):
    """How a kernel is cut, and how its products are taken."""

    precision: str
    high: int  # rows of a tile of a state, the outputs
    wide: int  # its columns
    warps: int


def launch(m: int, n: int, *given: Tensor | None) -> Launch:
    """As torch takes products of float32: exactly, if nothing else is asked for; what comes in
    bfloat16 has no more digits than the coarser ones.
    """
    half = any(x is not None and x.dtype == torch.bfloat16 for x in given)
    coarse = half or torch.backends.cuda.matmul.fp32_precision == "tf32"
    kind = "tf32" if coarse else "tf32x3"
    return Launch(kind, block(m, SIDE), block(n, SIDE), WARPS[kind])


def placed(launcher: Callable[P, R]) -> Callable[P, R]:
    """Kernels are launched on the device that is torch's at the time: that of the first tensor."""

    @wraps(launcher)
    def run(*given: P.args, **named: P.kwargs) -> R:
        first = next(x for x in given if isinstance(x, Tensor))
        if not first.is_cuda:
            return launcher(*given, **named)
        with torch.cuda.device(first.device):
            return launcher(*given, **named)

    return run


def laid(x: Tensor | None, instead: Tensor) -> tuple[Tensor, int, int]:
    """A matrix for each row of the batch: where, and how far apart these and its rows are; for one
    that is absent anything, which the kernel does not read.
    """
    if x is None:
        return instead, 0, 0
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x, x.stride(0), x.stride(1)


def block(size: int, most: int = 64) -> int:
    """How wide a tile is that holds `size`, or the first `most` of them."""
    return min(max(16, triton.next_power_of_2(size)), most)
