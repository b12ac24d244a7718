"""From chunk to chunk: R_c = U_c + Y_c S_c', S_{c+1} = left_c S_c + R_c' T_c.

start [b, m, n]   U, R [b, N, C, m]   Y, T [b, N, C, n]   left [b, N, 1, 1 or n]   S [b, N, m, n]

One program for each row of the batch and each block of the rows of a state, which no other block
meets: the block stays where the arithmetic is, from the first chunk to the last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import block, launch, placed, put, tile

# For states of so many columns: the rows of them that stay in the registers of four warps, as the
# compiler for compute capability 9.0 tells; of 256 columns no 16 do.
ROWS = {16: 32, 32: 32, 64: 32, 128: 16}


@triton.jit
def _faded(at, d, n, stride):
    """[1, n]: what is left of a state, one number or one a channel."""
    return tl.load(at + d * stride, mask=d < n, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _chained(
    start, fixed, slope, tail, left, states, wrote, end, chunks, ticks, l_c, l_n,
    n: tl.constexpr, m: tl.constexpr, AFFINE: tl.constexpr, LEFT: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t, d = tl.arange(0, BC), tl.arange(0, BN)
    o = tl.program_id(1) * BM + tl.arange(0, BM)
    state = tile(start + b * m * n, o, d, n, m, n)
    for c in range(chunks):
        at = b * chunks + c
        put(states + at * m * n, state, o, d, n, m, n)
        amount = tile(fixed + at * ticks * m, t, o, m, ticks, m)
        if AFFINE:
            key = tile(slope + at * ticks * n, t, d, n, ticks, n)
            amount += tl.dot(key, tl.trans(state), input_precision=PRECISION)
            put(wrote + at * ticks * m, amount, t, o, m, ticks, m)
        if LEFT:
            state = state * _faded(left + at * l_c, d, n, l_n)
        key = tile(tail + at * ticks * n, t, d, n, ticks, n)
        state += tl.dot(tl.trans(amount), key, input_precision=PRECISION)
    put(end + b * m * n, state, o, d, n, m, n)


@triton.jit
def _chained_back(
    slope, tail, left, of_states, of_wrote, of_end, came, to_fixed, to_start, chunks, ticks, l_c,
    l_n,
    n: tl.constexpr, m: tl.constexpr, AFFINE: tl.constexpr, LEFT: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """came: what comes to the state after each chunk."""
    b = tl.program_id(0).to(tl.int64)
    t, d = tl.arange(0, BC), tl.arange(0, BN)
    o = tl.program_id(1) * BM + tl.arange(0, BM)
    bar = tile(of_end + b * m * n, o, d, n, m, n)
    for back in range(chunks):
        at = b * chunks + chunks - 1 - back
        put(came + at * m * n, bar, o, d, n, m, n)
        key = tile(tail + at * ticks * n, t, d, n, ticks, n)
        of_amount = tile(of_wrote + at * ticks * m, t, o, m, ticks, m)
        of_amount += tl.dot(key, tl.trans(bar), input_precision=PRECISION)
        put(to_fixed + at * ticks * m, of_amount, t, o, m, ticks, m)
        if LEFT:
            bar = bar * _faded(left + at * l_c, d, n, l_n)
        bar += tile(of_states + at * m * n, o, d, n, m, n)
        if AFFINE:
            key = tile(slope + at * ticks * n, t, d, n, ticks, n)
            bar += tl.dot(tl.trans(of_amount), key, input_precision=PRECISION)
    put(to_start + b * m * n, bar, o, d, n, m, n)


def fits(n: int) -> bool:
    """Whether a block of a state can stay where the arithmetic is."""
    return n <= max(ROWS)


def _blocks(ticks: int, n: int) -> tuple[int, int, int, int]:
    """Ticks, rows and columns of a program's tiles, and for how many chunks shared memory holds
    what comes next.
    """
    long, wide = block(ticks), block(n, 128)
    return long, ROWS[wide], wide, 2 if long * wide <= 4096 else 1


def _left(left: Tensor | None, instead: Tensor) -> tuple[Tensor, int, int]:
    if left is None:
        return instead, 0, 0
    n = left.shape[-1]
    return left.contiguous(), n, int(n > 1)


@placed
def chained(
    start: Tensor, fixed: Tensor, slope: Tensor | None, tail: Tensor, left: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """S, R and the last state; without Y, R is U."""
    batch, chunks, ticks, m = fixed.shape
    n = start.shape[-1]
    start, fixed, tail = start.contiguous(), fixed.contiguous(), tail.contiguous()
    given = tail if slope is None else slope.contiguous()
    states, end = start.new_empty(batch, chunks, m, n), torch.empty_like(start)
    wrote = fixed if slope is None else torch.empty_like(fixed)
    bc, bm, bn, ahead = _blocks(ticks, n)
    faded, l_c, l_n = _left(left, tail)
    _chained[batch, triton.cdiv(m, bm)](
        start, fixed, given, tail, faded, states, wrote, end, chunks, ticks, l_c, l_n, n, m,
        slope is not None, left is not None, bc, bm, bn, launch(m, n).precision, num_warps=4,
        num_stages=ahead,
    )  # fmt: skip
    return states, wrote, end


@placed
def chained_back(
    slope: Tensor | None, tail: Tensor, left: Tensor | None, of_states: Tensor, of_wrote: Tensor,
    of_end: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What comes to the state after each chunk, to U, and to the first state."""
    batch, chunks, ticks, m = of_wrote.shape
    n = tail.shape[-1]
    of_states, of_wrote, of_end = (v.contiguous() for v in (of_states, of_wrote, of_end))
    tail = tail.contiguous()
    given = tail if slope is None else slope.contiguous()
    came, to_fixed, to_start = map(torch.empty_like, (of_states, of_wrote, of_end))
    bc, bm, bn, ahead = _blocks(ticks, n)
    faded, l_c, l_n = _left(left, tail)
    _chained_back[batch, triton.cdiv(m, bm)](
        given, tail, faded, of_states, of_wrote, of_end, came, to_fixed, to_start, chunks, ticks,
        l_c, l_n, n, m, slope is not None, left is not None, bc, bm, bn, launch(m, n).precision,
        num_warps=4, num_stages=ahead,
    )  # fmt: skip
    return came, to_fixed, to_start
