"""What is left at each tick of each write before it: products of what each tick keeps.

    table_ti = prod_{i < r <= t} keep_r,   0 <= i <= t <= C        keep [b, C]

Multiplied, as a keep of exactly nought has its exact derivative (ops/retention.py).
"""

import triton
import triton.language as tl
from torch import Tensor

from .tiles import block, launch, placed, put, tile


@triton.jit
def _products(keep, k_b, table, ticks, BC: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    row, col = t[:, None], t[None, :]
    factor = tl.load(keep + b * k_b + t - 1, mask=(t > 0) & (t <= ticks), other=1.0).to(tl.float32)
    counted = tl.where(row > col, factor[:, None], 1.0)
    made = tl.where(row >= col, tl.cumprod(counted, 0), 0.0)
    side = ticks + 1
    put(table + b * side * side, made, t, t, side, side, side)


@triton.jit
def _products_back(table, bar, g_b, g_t, to_keep, ticks, BC: tl.constexpr, PRECISION: tl.constexpr):
    """d keep_r = sum_{i < r <= t} table_{r-1, i} bar_ti table_tr."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    side = ticks + 1
    known = tile(table + b * side * side, t, t, side, side, side)
    # row r - 1 in row r
    inside = (t[:, None] > 0) & (t[:, None] < side) & (t[None, :] < side)
    places = table + b * side * side + (t[:, None] - 1) * side + t[None, :]
    before = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    come = tile(bar + b * g_b, t, t, g_t, side, side)
    met = tl.dot(come, tl.trans(before), input_precision=PRECISION)
    made = tl.sum(met * known, 0)
    tl.store(to_keep + b * ticks + t - 1, made, mask=(t > 0) & (t < side))


@placed
def products(keep: Tensor) -> Tensor:
    """[b, C + 1, C + 1]."""
    batch, ticks = keep.shape
    keep = keep.contiguous()
    table = keep.new_empty(batch, ticks + 1, ticks + 1)
    wide = block(ticks + 1, 128)
    _products[batch,](keep, ticks, table, ticks, wide, num_warps=4, num_stages=1)
    return table


@placed
def products_back(table: Tensor, bar: Tensor) -> Tensor:
    """[b, C]: what comes to keep."""
    batch, side, _ = table.shape
    bar = bar if bar.stride(-1) == 1 else bar.contiguous()
    to_keep = table.new_empty(batch, side - 1)
    _products_back[batch,](
        table.contiguous(), bar, bar.stride(0), bar.stride(1), to_keep, side - 1,
        block(side, 128), launch(side, side).precision, num_warps=8, num_stages=1,
    )  # fmt: skip
    return to_keep
