"""Derivatives written by hand, where torch's own would take many small operations.

Each has its plain form too: while tracing, under torch.func, and where a second derivative is asked
for, what runs is the plain form, so that nothing is lost but time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Plain = Callable[..., Tensor | tuple[Tensor, ...]]


def allowed() -> bool:
    """Not while tracing, as the tracer warns about every autograd.Function, nor under torch.func,
    whose gradients see the inputs and outputs of such a function alone.
    """
    return not (torch.compiler.is_compiling() or PLAINLY.get() or transformed())


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp) looks on."""
    return torch._C._are_functorch_transforms_active()


PLAINLY: ContextVar[bool] = ContextVar("PLAINLY", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """The plain forms, whose gradients can be taken many at once, and three times and more."""
    token = PLAINLY.set(True)
    try:
        yield
    finally:
        PLAINLY.reset(token)


def again(
    plain: Plain, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs through the plain form, which can be derived once more."""
    with torch.enable_grad():
        # Views, as one input may be made of another.
        seen = [None if t is None else t.view_as(t) for t in inputs]
        made = plain(*seen)
        pairs = zip((made,) if isinstance(made, Tensor) else made, grads, strict=True)
        known = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        asked = [t for t in seen if t is not None and t.requires_grad]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in known], asked, [g for _, g in known], create_graph=True,
                allow_unused=True,
            )
        )  # fmt: skip
    return tuple(next(found) if t is not None and t.requires_grad else None for t in seen)


def product_table(factor: Tensor) -> Tensor:
    """[..., C + 1, C + 1] from [..., C]: at (t, i) the product of factor_r over i < r <= t."""
    ticks = factor.shape[-1] + 1
    # A factor counts from the tick after i on. Row after row in memory, as all that meets it is.
    counted = factor.new_ones(*factor.shape[:-1], ticks, ticks)
    counted[..., 1:, :] = factor.unsqueeze(-1)
    above = torch.ones(ticks, ticks, dtype=torch.bool, device=factor.device).triu()
    return counted.masked_fill_(above, 1.0).cumprod(-2).tril_()


def products_back(grad: Tensor, table: Tensor) -> Tensor:
    """d factor_r = sum_{i < r <= t} P_{r-1, i} G_ti P_tr: one product of matrices, and one sum."""
    # at (t, r - 1): what comes from all starts i < r of tick t
    met = (grad @ table.mT)[..., :-1]
    return (met * table[..., 1:]).sum(-2)


class Products(torch.autograd.Function):
    """`product_table`, whose derivative is `products_back`."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, plain: Plain) -> Tensor:
        ctx.plain, table = plain, product_table(factor)
        ctx.save_for_backward(factor, table)
        return table

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, table = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *again(ctx.plain, [factor], [grad]), None
        return products_back(grad, table), None


SMALL = 1 << 14  # numbers of an array below which the set-up of oneDNN takes longer than its loop


def gelu(x: Tensor) -> Tensor:
    """x Phi(x). Of float32 that lies in one piece torch asks oneDNN, whose set-up takes 7 us and on
    the way back 22, as long as 4,000 to 8,000 numbers; a transposed view gets torch's own loop.
    """
    return _by_its_loop(functional.gelu, x)


def gelu_backward(bar: Tensor, x: Tensor) -> Tensor:
    """bar (Phi(x) + x phi(x)), as `gelu` asks for it."""
    return _by_its_loop(torch.ops.aten.gelu_backward, bar, x)


def _by_its_loop(run: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """Of small arrays, element by element: with an axis turned, they are not in one piece."""
    x = arrays[-1]
    small = x.dtype is torch.float32 and x.numel() < SMALL and x.is_cpu
    if small and not torch.compiler.is_compiling():
        axis = next((i for i, n in enumerate(x.shape[:-1]) if n > 1), None)
        if axis is not None:
            return run(*(t.transpose(axis, -1) for t in arrays)).transpose(axis, -1)
    return run(*arrays)


class GeluBack(torch.autograd.Function):
    """bar (Phi(x) + x phi(x)), whose derivative in x is bar phi(x) (2 - x^2). Where a graph is
    walked again and again, as for a fixed point, the two slopes are made once.
    """

    @staticmethod
    def forward(ctx: Any, bar: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(bar, x)
        ctx.slopes = None
        return gelu_backward(bar, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bar, x = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(torch.ops.aten.gelu_backward, [bar, x], [grad])
        if torch._C._autograd._get_current_graph_task_keep_graph():
            if ctx.slopes is None:
                ctx.slopes = gelu_backward(torch.ones_like(x), x), _curve(bar, x)
            return tuple(grad * slope for slope in ctx.slopes)
        of_bar = gelu_backward(grad, x) if ctx.needs_input_grad[0] else None
        return of_bar, _curve(bar, x).mul_(grad) if ctx.needs_input_grad[1] else None


def _curve(bar: Tensor, x: Tensor) -> Tensor:
    square = x.square()
    density = torch.exp(square * -0.5).mul_(0.3989422804014327)
    return density.mul_(square.neg_().add_(2.0)).mul_(bar)


class Shortened(torch.autograd.Function):
    """z = r x with r = (share sum x^2 + small)^-1/2; dx = r (dz - share z (z dz))."""

    @staticmethod
    def forward(ctx: Any, plain: Plain, share: float, small: float, x: Tensor) -> Tensor:
        r = x.square().sum(-1, keepdim=True).mul_(share).add_(small).rsqrt_()
        z = x * r
        ctx.plain, ctx.share = plain, share
        ctx.save_for_backward(x, z, r)
        return z

    @staticmethod
    def backward(ctx: Any, of_z: Tensor) -> tuple[Tensor | None, ...]:
        x, z, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, *again(ctx.plain, [x], [of_z])
        along = (of_z * z).sum(-1, keepdim=True)
        return None, None, None, torch.addcmul(of_z, z, along, value=-ctx.share).mul_(r)


class Chained(torch.autograd.Function):
    """From chunk to chunk: R_c = U_c + Y_c S_c', S_{c+1} = faded_c(S_c) + R_c' T_c.

    start [b, m, s]   U [b, N, C, m]   Y, or None where R is U, and T [b, N, C, s]; left as in
    `retention.faded`, each [b, N, 1, 1] or [b, N, 1, n]. Out: S [b, N, m, s], R, S_N.

    Backwards only g, which comes to each state, and what comes to each R go from chunk to chunk;
    all else is made of them for all chunks at once.
    """

    @staticmethod
    def forward(
        ctx: Any, plain: Plain, start: Tensor, U: Tensor, Y: Tensor | None, T: Tensor, *left: Tensor
    ) -> tuple[Tensor, ...]:
        chunks = U.shape[1]
        states, wrote = [start], []
        us, ys, ts = U.unbind(1), None if Y is None else Y.unbind(1), T.unbind(1)
        lefts = [part.unbind(1) for part in left]
        for c in range(chunks):
            S = states[-1]
            wrote.append(us[c] if ys is None else torch.baddbmm(us[c], ys[c], S.mT))
            kept = _faded(S, [part[c] for part in lefts])
            states.append(torch.baddbmm(kept, wrote[-1].mT, ts[c]))
        S, R = torch.stack(states[:-1], 1), U.view_as(U) if Y is None else torch.stack(wrote, 1)
        ctx.plain, ctx.affine = plain, Y is not None
        ctx.save_for_backward(start, U, Y, T, S, R, *left)
        return S, R, states[-1]

    @staticmethod
    def backward(ctx: Any, of_S: Tensor, of_R: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        start, U, Y, T, S, R, *left = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *again(ctx.plain, [start, U, Y, T, *left], [of_S, of_R, of_end])
        g, came, to_R = of_end, [], []
        ys, ts, of_Rs, of_Ss = Y.unbind(1) if ctx.affine else (), *_each_chunk(T, of_R, of_S)
        lefts = [part.unbind(1) for part in left]
        for c in reversed(range(U.shape[1])):
            came.append(g)
            to_R.append(torch.baddbmm(of_Rs[c], ts[c], g.mT))
            g = _unfaded(g, [part[c] for part in lefts]) + of_Ss[c]
            if ctx.affine:
                g.baddbmm_(to_R[-1].mT, ys[c])
        G, of_U = torch.stack(came[::-1], 1), torch.stack(to_R[::-1], 1)
        of_Y = product(of_U, S) if ctx.affine else None
        return None, g, of_U, of_Y, product(R, G), *of_left(G, S, left)


def _each_chunk(*arrays: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(x.unbind(1) for x in arrays)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A product for every chunk of every row of the batch."""
    made = torch.bmm(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))
    return made.view(*a.shape[:2], *made.shape[1:])


def _faded(state: Tensor, left: Sequence[Tensor]) -> Tensor:
    """As `retention.faded`, which has no use of `chunk` where there is no momentum."""
    if len(left) < 2:
        return state * left[0] if left else state
    w, s = state.chunk(2, -1)
    return torch.cat((w * left[0] + s * left[1], s * left[2]), -1)


def _unfaded(g: Tensor, left: Sequence[Tensor]) -> Tensor:
    """What comes to the state before it fades."""
    if len(left) < 2:
        return g * left[0] if left else g.clone()
    w, s = g.chunk(2, -1)
    return torch.cat((w * left[0], w * left[1] + s * left[2]), -1)


def of_left(G: Tensor, S: Tensor, left: Sequence[Tensor]) -> list[Tensor]:
    """What comes to each part of `left`."""
    if len(left) < 2:
        met = [G * S] if left else []
    else:
        (gw, gs), (w, s) = G.chunk(2, -1), S.chunk(2, -1)
        met = [gw * w, gw * s, gs * s]
    pairs = zip(met, left, strict=True)
    return [x.sum((-2, -1), keepdim=True) if p.shape[-1] == 1 else x.sum(-2, keepdim=True)
            for x, p in pairs]  # fmt: skip


def over(gate: Tensor, batch: int) -> Tensor:
    """A gate for all of a batch, of which it may have a part that repeats."""
    many = batch // gate.shape[0]
    return gate if many == 1 else torch.cat([gate] * many)


def sum_over(grad: Tensor, rows: int) -> Tensor:
    return grad if grad.shape[0] == rows else grad.view(-1, rows, *grad.shape[1:]).sum(0)


class Ended(torch.autograd.Function):
    """W and S at the end of a span with momentum: W_C = A W + F S + R' (l x), S_C = N S + R' (n x).

    w, s [b, m, k]   x [b, C, k]   wrote [b, C, m]; last l, n [b, C, 1]; rest A, F, N [b, 1, 1].
    """

    @staticmethod
    def forward(
        ctx: Any, plain: Plain, w: Tensor, s: Tensor, x: Tensor, wrote: Tensor, *left: Tensor
    ) -> tuple[Tensor, Tensor]:
        last, last_s, rest, rest_s, of_s = left
        end = (w * rest).addcmul_(s, rest_s).baddbmm_(wrote.mT, x * last)
        memory = (s * of_s).baddbmm_(wrote.mT, x * last_s)
        ctx.plain = plain
        ctx.save_for_backward(w, s, x, wrote, *left)
        return end, memory

    @staticmethod
    def backward(ctx: Any, of_end: Tensor, of_memory: Tensor) -> tuple[Tensor | None, ...]:
        w, s, x, wrote, last, last_s, rest, rest_s, of_s = given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *again(ctx.plain, given, [of_end, of_memory])
        seen, seen_s = torch.bmm(wrote, of_end), torch.bmm(wrote, of_memory)
        of_wrote = torch.bmm(x * last, of_end.mT).baddbmm_(x * last_s, of_memory.mT)
        return (
            None,
            of_end * rest,
            (of_end * rest_s).addcmul_(of_memory, of_s),
            (seen * last).addcmul_(seen_s, last_s),
            of_wrote,
            (seen * x).sum(-1, keepdim=True),
            (seen_s * x).sum(-1, keepdim=True),
            dot(of_end, w),
            dot(of_end, s),
            dot(of_memory, s),
        )


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[b, 1, 1]: the sum of a b. A product of a row and a column takes five times as long."""
    return (a * b).sum((-2, -1), keepdim=True)
