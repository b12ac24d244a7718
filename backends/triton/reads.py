"""What a span answers, and what it leaves: the dual form, where a write is never made.

    y_t = left_t W_0 u_t + of_s_t S_0 u_t + sum_j table_tj (u_t' x_j) wrote_j
    W_C = rest W_0 + rest_s S_0 + sum_j last_j wrote_j x_j'          S_C = of_s S_0 + ...

u, x [b, C, n]   wrote, y [b, C, m]   w, s [b, m, n]   table [b, C, C]   left, last [b, C, 1]
rest [b, 1, 1]; for what a table is: ops/retention.py. One program for each row of the batch and
each block of outputs; backwards one for each row, which needs no two programs to add to one number.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import block, column, laid, launch, placed, put, put_column, tile

Read = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


@triton.jit
def _read(
    u, u_b, u_t, x, x_b, x_t, wrote, r_b, r_t, w, w_b, w_o, s, s_b, s_o, table, a_b, a_t,
    left, l_b, l_t, of_s, f_b, f_t, y, y_b, y_t, ticks,
    n: tl.constexpr, m: tl.constexpr, LEFT: tl.constexpr, MOMENTUM: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    o = tl.program_id(1) * BM + tl.arange(0, BM)
    met = tl.zeros([BC, BC], dtype=tl.float32)
    answer = tl.zeros([BC, BM], dtype=tl.float32)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        asked = tile(u + b * u_b, t, d, u_t, ticks, n)
        key = tile(x + b * x_b, t, d, x_t, ticks, n)
        met += tl.dot(asked, tl.trans(key), input_precision=PRECISION)
        if MOMENTUM:
            weighed = asked * column(of_s + b * f_b, t, f_t, ticks)
            memory = tile(s + b * s_b, o, d, s_o, m, n)
            answer += tl.dot(weighed, tl.trans(memory), input_precision=PRECISION)
        if LEFT:
            asked = asked * column(left + b * l_b, t, l_t, ticks)
        state = tile(w + b * w_b, o, d, w_o, m, n)
        answer += tl.dot(asked, tl.trans(state), input_precision=PRECISION)
    met = met * tile(table + b * a_b, t, t, a_t, ticks, ticks)
    written = tile(wrote + b * r_b, t, o, r_t, ticks, m)
    answer += tl.dot(met, written, input_precision=PRECISION)
    put(y + b * y_b, answer, t, o, y_t, ticks, m)


@triton.jit
def _read_back(
    u, u_b, u_t, x, x_b, x_t, wrote, r_b, r_t, w, w_b, w_o, s, s_b, s_o, table, a_b, a_t,
    left, l_b, l_t, of_s, f_b, f_t, y, y_b, y_t, to_u, to_x, to_wrote, to_table, to_left, to_of_s,
    ticks,
    n: tl.constexpr, m: tl.constexpr, LEFT: tl.constexpr, MOMENTUM: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y is what comes to the answer; what goes to w and s is two products more, made elsewhere."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    met = tl.zeros([BC, BC], dtype=tl.float32)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        asked = tile(u + b * u_b, t, d, u_t, ticks, n)
        key = tile(x + b * x_b, t, d, x_t, ticks, n)
        met += tl.dot(asked, tl.trans(key), input_precision=PRECISION)
    weight = tile(table + b * a_b, t, t, a_t, ticks, ticks)
    to_met = tl.zeros([BC, BC], dtype=tl.float32)
    for first in range(0, m, BM):
        o = first + tl.arange(0, BM)
        bar = tile(y + b * y_b, t, o, y_t, ticks, m)
        written = tile(wrote + b * r_b, t, o, r_t, ticks, m)
        to_met += tl.dot(bar, tl.trans(written), input_precision=PRECISION)
        back = tl.dot(tl.trans(met * weight), bar, input_precision=PRECISION)
        put(to_wrote + b * ticks * m, back, t, o, m, ticks, m)
    put(to_table + b * ticks * ticks, to_met * met, t, t, ticks, ticks, ticks)
    to_met = to_met * weight
    of_left = tl.zeros([BC], dtype=tl.float32)
    of_momentum = tl.zeros([BC], dtype=tl.float32)
    for first in range(0, n, BN):
        d = first + tl.arange(0, BN)
        asked = tile(u + b * u_b, t, d, u_t, ticks, n)
        key = tile(x + b * x_b, t, d, x_t, ticks, n)
        far = tl.zeros([BC, BN], dtype=tl.float32)
        further = tl.zeros([BC, BN], dtype=tl.float32)
        for over in range(0, m, BM):
            o = over + tl.arange(0, BM)
            bar = tile(y + b * y_b, t, o, y_t, ticks, m)
            state = tile(w + b * w_b, o, d, w_o, m, n)
            far += tl.dot(bar, state, input_precision=PRECISION)
            if MOMENTUM:
                memory = tile(s + b * s_b, o, d, s_o, m, n)
                further += tl.dot(bar, memory, input_precision=PRECISION)
        of_left += tl.sum(asked * far, 1)
        if LEFT:
            far = far * column(left + b * l_b, t, l_t, ticks)
        if MOMENTUM:
            of_momentum += tl.sum(asked * further, 1)
            far += further * column(of_s + b * f_b, t, f_t, ticks)
        far += tl.dot(to_met, key, input_precision=PRECISION)
        put(to_u + b * ticks * n, far, t, d, n, ticks, n)
        near = tl.dot(tl.trans(to_met), asked, input_precision=PRECISION)
        put(to_x + b * ticks * n, near, t, d, n, ticks, n)
    if LEFT:
        put_column(to_left + b * ticks, of_left, t, 1, ticks)
    if MOMENTUM:
        put_column(to_of_s + b * ticks, of_momentum, t, 1, ticks)


@placed
def read(
    u: Tensor, x: Tensor, wrote: Tensor, w: Tensor, s: Tensor | None, table: Tensor,
    left: Tensor | None, of_s: Tensor | None,
) -> Tensor:  # fmt: skip
    """[b, C, m], as on top; of_s goes with s."""
    batch, ticks, n = u.shape
    m = w.shape[1]
    y = torch.empty(batch, ticks, m, dtype=u.dtype, device=u.device)
    given = [z for v in (u, x, wrote, w, s, table, left, of_s, y) for z in laid(v, u)]
    how = launch(m, n, u)
    _read[batch, triton.cdiv(m, how.high)](
        *given, ticks, n, m, left is not None, s is not None, block(ticks), how.high, how.wide,
        how.precision, num_warps=how.warps, num_stages=2,
    )  # fmt: skip
    return y


@placed
def read_back(
    u: Tensor, x: Tensor, wrote: Tensor, w: Tensor, s: Tensor | None, table: Tensor,
    left: Tensor | None, of_s: Tensor | None, bar: Tensor,
) -> Read:  # fmt: skip
    """What comes to each argument of `read`, bar [b, C, m] coming to the answer."""
    batch, ticks, n = u.shape
    m, new = w.shape[1], table.new_empty
    to_u, to_x = torch.empty_like(u, memory_format=torch.contiguous_format), new(batch, ticks, n)
    to_wrote, to_table = new(batch, ticks, m), new(batch, ticks, ticks)
    to_left, to_of_s = new(batch, ticks, 1), new(batch, ticks, 1)
    given = [z for v in (u, x, wrote, w, s, table, left, of_s, bar) for z in laid(v, u)]
    how = launch(m, n, u)
    _read_back[batch,](
        *given, to_u, to_x, to_wrote, to_table, to_left, to_of_s, ticks, n, m, left is not None,
        s is not None, block(ticks), how.high, how.wide, how.precision, num_warps=how.warps,
        num_stages=2,
    )  # fmt: skip
    asked, come = u.to(w.dtype), bar.to(w.dtype).mT
    to_w = torch.bmm(come, asked if left is None else asked * left)
    to_s = None if of_s is None else torch.bmm(come, asked * of_s)
    return (
        to_u, to_x, to_wrote, to_w, to_s, to_table, None if left is None else to_left,
        None if of_s is None else to_of_s,
    )  # fmt: skip


@triton.jit
def _end(
    w, w_b, w_o, s, s_b, s_o, x, x_b, x_t, wrote, r_b, r_t, last, a_b, a_t, last_s, c_b, c_t,
    rest, e_b, e_t, rest_s, f_b, f_t, of_s, g_b, g_t, end, memory, ticks,
    n: tl.constexpr, m: tl.constexpr, LEFT: tl.constexpr, MOMENTUM: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BC)
    o = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.program_id(2) * BN + tl.arange(0, BN)
    key = tile(x + b * x_b, t, d, x_t, ticks, n)
    written = tl.trans(tile(wrote + b * r_b, t, o, r_t, ticks, m))
    made = tile(w + b * w_b, o, d, w_o, m, n)
    if LEFT:
        made = made * tl.load(rest + b * e_b).to(tl.float32)
        weighed = key * column(last + b * a_b, t, a_t, ticks)
    else:
        weighed = key
    if MOMENTUM:
        before = tile(s + b * s_b, o, d, s_o, m, n)
        made += before * tl.load(rest_s + b * f_b).to(tl.float32)
        later = key * column(last_s + b * c_b, t, c_t, ticks)
        kept = before * tl.load(of_s + b * g_b).to(tl.float32)
        kept += tl.dot(written, later, input_precision=PRECISION)
        put(memory + b * m * n, kept, o, d, n, m, n)
    made += tl.dot(written, weighed, input_precision=PRECISION)
    put(end + b * m * n, made, o, d, n, m, n)


@placed
def end(
    w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor, *left: Tensor
) -> tuple[Tensor, Tensor | None]:
    """W and S at the end; left: nothing; last, rest; or, with s, last, last_s, rest, rest_s,
    of_s.
    """
    batch, m, n = w.shape
    ticks = x.shape[1]
    last, last_s, rest, rest_s, of_s = left if s is not None else _one(*left)
    made = torch.empty(batch, m, n, dtype=w.dtype, device=w.device)
    memory = None if s is None else torch.empty_like(made)
    arrays = (w, s, x, wrote, last, last_s, rest, rest_s, of_s)
    given = [z for v in arrays for z in laid(v, w)]
    how = launch(m, n, x)
    _end[batch, triton.cdiv(m, how.high), triton.cdiv(n, how.wide)](
        *given, made, made if memory is None else memory, ticks, n, m, bool(left), s is not None,
        block(ticks), how.high, how.wide, how.precision, num_warps=how.warps, num_stages=1,
    )  # fmt: skip
    return made, memory


def _one(*left: Tensor) -> tuple[Tensor | None, ...]:
    last, rest = left or (None, None)
    return last, None, rest, None, None
