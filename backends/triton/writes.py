"""What a span writes, as a function of the state it starts from, for many spans at once.

    A = strength table (x x') strictly below the diagonal        T = (I + A)^-1
    U = T amount        Y = -T (strength left x)        and what is written is U + Y W_0'

x [b, C, n]   amount, U [b, C, m]   strength, left [b, C, 1]   table [b, C, C]   Y [b, C, n]
(UT transform, 2406.06484; with what is kept, 2412.06464.)

T is made of the inverses of halves: two blocks on the diagonal that are solved, and the corner
below them. It is as stable as substitution, where powers of A would cancel.
"""

import triton
import triton.language as tl
from torch import Tensor

from .tiles import EXACT, block, column, laid, launch, placed, put, put_column, tile


@triton.jit
def _joined(inverse, lower, t, HALF: tl.constexpr):
    """The inverse of the blocks on the diagonal, of 2 HALF ticks each, from those of HALF."""
    row, col = t[:, None], t[None, :]
    corner = (row // (2 * HALF) == col // (2 * HALF)) & (row // HALF > col // HALF)
    step = tl.dot(tl.where(corner, lower, 0.0), inverse, input_precision=EXACT)
    return inverse - tl.dot(inverse, step, input_precision=EXACT)


@triton.jit
def _solved(lower, t, LEVELS: tl.constexpr):
    """(I + lower)^-1."""
    row, col = t[:, None], t[None, :]
    inverse = tl.where(row == col, 1.0, 0.0)
    inverse -= tl.where((row == col + 1) & (row % 2 == 1), lower, 0.0)
    for level in tl.static_range(1, LEVELS):
        inverse = _joined(inverse, lower, t, 1 << level)
    return inverse


@triton.jit
def _affine(
    x, x_b, x_t, amount, m_b, m_t, strength, g_b, g_t, table, a_b, a_t, left, l_b, l_t,
    inverse, fixed, slope, ticks,
    n: tl.constexpr, m: tl.constexpr, LEFT: tl.constexpr, BC: tl.constexpr, LEVELS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    met = tl.zeros([BC, BC], dtype=tl.float32)
    for first in range(0, n, BN):
        key = tile(x + b * x_b, t, first + tl.arange(0, BN), x_t, ticks, n)
        met += tl.dot(key, tl.trans(key), input_precision=PRECISION)
    gate = column(strength + b * g_b, t, g_t, ticks)
    lower = met * gate * tile(table + b * a_b, t, t, a_t, ticks, ticks)
    solved = _solved(tl.where(t[:, None] > t[None, :], lower, 0.0), t, LEVELS)
    put(inverse + b * ticks * ticks, solved, t, t, ticks, ticks, ticks)
    for first in range(0, m, BM):
        o = first + tl.arange(0, BM)
        right = tile(amount + b * m_b, t, o, m_t, ticks, m)
        made = tl.dot(solved, right, input_precision=PRECISION)
        put(fixed + b * ticks * m, made, t, o, m, ticks, m)
    if LEFT:
        gate = gate * column(left + b * l_b, t, l_t, ticks)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        right = -gate * tile(x + b * x_b, t, d, x_t, ticks, n)
        made = tl.dot(solved, right, input_precision=PRECISION)
        put(slope + b * ticks * n, made, t, d, n, ticks, n)


@triton.jit
def _affine_back(
    x, x_b, x_t, strength, g_b, g_t, table, a_b, a_t, left, l_b, l_t, inverse, fixed, slope,
    of_fixed, u_b, u_t, of_slope, y_b, y_t, to_x, to_amount, to_strength, to_table, to_left,
    ticks,
    n: tl.constexpr, m: tl.constexpr, LEFT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    turned = tl.trans(tile(inverse + b * ticks * ticks, t, t, ticks, ticks, ticks))
    to_lower = tl.zeros([BC, BC], dtype=tl.float32)
    for first in range(0, m, BM):
        o = first + tl.arange(0, BM)
        bar = tile(of_fixed + b * u_b, t, o, u_t, ticks, m)
        back = tl.dot(turned, bar, input_precision=PRECISION)
        put(to_amount + b * ticks * m, back, t, o, m, ticks, m)
        made = tile(fixed + b * ticks * m, t, o, m, ticks, m)
        to_lower -= tl.dot(back, tl.trans(made), input_precision=PRECISION)
    met = tl.zeros([BC, BC], dtype=tl.float32)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        key = tile(x + b * x_b, t, d, x_t, ticks, n)
        met += tl.dot(key, tl.trans(key), input_precision=PRECISION)
        bar = tile(of_slope + b * y_b, t, d, y_t, ticks, n)
        back = tl.dot(turned, bar, input_precision=PRECISION)
        made = tile(slope + b * ticks * n, t, d, n, ticks, n)
        to_lower -= tl.dot(back, tl.trans(made), input_precision=PRECISION)
    gate = column(strength + b * g_b, t, g_t, ticks)
    weight = tile(table + b * a_b, t, t, a_t, ticks, ticks)
    to_lower = tl.where(t[:, None] > t[None, :], to_lower, 0.0)
    put(to_table + b * ticks * ticks, to_lower * gate * met, t, t, ticks, ticks, ticks)
    of_gate = tl.sum(to_lower * weight * met, 1)
    to_met = to_lower * weight * gate
    to_met += tl.trans(to_met)
    seen = tl.zeros([BC], dtype=tl.float32)
    far = gate
    if LEFT:
        far = gate * column(left + b * l_b, t, l_t, ticks)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        key = tile(x + b * x_b, t, d, x_t, ticks, n)
        bar = tile(of_slope + b * y_b, t, d, y_t, ticks, n)
        back = tl.dot(turned, bar, input_precision=PRECISION)
        seen -= tl.sum(back * key, 1)
        back = tl.dot(to_met, key, input_precision=PRECISION) - back * far
        put(to_x + b * ticks * n, back, t, d, n, ticks, n)
    if LEFT:
        weighed = tl.sum(column(left + b * l_b, t, l_t, ticks), 1)
        put_column(to_left + b * ticks, seen * tl.sum(gate, 1), t, 1, ticks)
        of_gate += seen * weighed
    else:
        of_gate += seen
    put_column(to_strength + b * ticks, of_gate, t, 1, ticks)


@placed
def affine(
    x: Tensor, amount: Tensor, strength: Tensor, table: Tensor, left: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """T, U and Y, as on top; left None is 1."""
    batch, ticks, n = x.shape
    m, new, wide = amount.shape[-1], table.new_empty, block(ticks)
    inverse, fixed, slope = new(batch, ticks, ticks), new(batch, ticks, m), new(batch, ticks, n)
    given = [z for v in (x, amount, strength, table, left) for z in laid(v, x)]
    how = launch(m, n, x)
    _affine[batch,](
        *given, inverse, fixed, slope, ticks, n, m, left is not None, wide, wide.bit_length() - 1,
        how.high, how.wide, how.precision, num_warps=4, num_stages=2,
    )  # fmt: skip
    return inverse, fixed, slope


@placed
def affine_back(
    x: Tensor, amount: Tensor, strength: Tensor, table: Tensor, left: Tensor | None,
    inverse: Tensor, fixed: Tensor, slope: Tensor, of_fixed: Tensor, of_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """What comes to each argument of `affine`."""
    batch, ticks, n = x.shape
    m, new = amount.shape[-1], table.new_empty
    to_x, to_amount = new(batch, ticks, n), new(batch, ticks, m)
    to_strength, to_left = new(batch, ticks, 1), new(batch, ticks, 1)
    to_table = new(batch, ticks, ticks)
    given = [z for v in (x, strength, table, left) for z in laid(v, x)]
    bars = [z for v in (of_fixed, of_slope) for z in laid(v, x)]
    how = launch(m, n, x)
    _affine_back[batch,](
        *given, inverse, fixed, slope, *bars, to_x, to_amount, to_strength, to_table, to_left,
        ticks, n, m, left is not None, block(ticks), how.high, how.wide, how.precision,
        num_warps=how.warps, num_stages=2,
    )  # fmt: skip
    return to_x, to_amount, to_strength, to_table, None if left is None else to_left
