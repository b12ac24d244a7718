"""Small words of generated code: what a line of a generated module calls on `self`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.attention import attend
from ..ops.nearest import Errors, nearest
from ..ops.parts import causal_conv
from ..ops.recurrence import scan
from .stream import Stream


def wide(values: Sequence[Tensor]) -> torch.Size:
    """The shape that all broadcast to."""
    shape: torch.Size = torch.broadcast_shapes(*(v.shape for v in values))  # type: ignore[no-untyped-call]
    return shape


class Words:
    """What every generated module has; `Model` says where and in which precision."""

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError

    def range(self, n: int) -> Tensor:
        return torch.arange(n, device=self.device, dtype=self.dtype)

    def eye(self, n: int) -> Tensor:
        return torch.eye(n, device=self.device, dtype=self.dtype)

    def number(self, condition: Tensor) -> Tensor:
        """1 where it holds, else 0."""
        return condition.to(self.dtype)

    def counted(self, count: int) -> Tensor:
        """Firings so far, for a schedule."""
        return torch.tensor(float(count), dtype=torch.float64)

    def begun(self, kept: Tensor, start: Any) -> Tensor:
        """A start that was computed, for every sample, as wide as what it is the start of."""
        made = torch.as_tensor(start, dtype=kept.dtype, device=kept.device)
        return made.expand(kept.shape)

    def leaves(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The arrays, to differentiate by."""
        return tuple(
            a.view_as(a) if a.requires_grad else a.detach().requires_grad_() for a in arrays
        )

    def slopes(self, objective: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The gradient of an objective that no rule derives; it can be differentiated again."""
        total = objective.sum()
        if not total.requires_grad:
            return tuple(map(torch.zeros_like, arrays))
        found = torch.autograd.grad(total, arrays, create_graph=True, allow_unused=True)
        return tuple(
            torch.zeros_like(a) if g is None else g for a, g in zip(arrays, found, strict=True)
        )

    def nearest(
        self,
        errors: Errors,
        kept: Sequence[Tensor],
        rates: Sequence[Any],
        seen: Sequence[Tensor | None],
        lead: int,
        block: int,
    ) -> list[Tensor]:
        """The arrays of an `implicit` step."""
        found: list[Tensor] = nearest(errors, kept, rates, seen, lead, block)
        return found

    def full(self, value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.as_tensor(value, device=self.device, dtype=self.dtype).expand(shape)

    def listed(self, *values: float) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def maximum(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(*self.both(a, b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(*self.both(a, b))

    def clip(self, x: Any, low: Any, high: Any) -> Tensor:
        if isinstance(x, Tensor) and not isinstance(low, Tensor) and not isinstance(high, Tensor):
            return torch.clamp(x, low, high)
        return torch.clamp(*self.both(x, low, high))

    def both(self, *values: Any) -> tuple[Tensor, ...]:
        """Tensors and plain numbers, all as tensors."""
        like = next((v for v in values if isinstance(v, Tensor)), self.full(0.0, ()))
        return tuple(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values)

    def stack(self, *values: Any) -> Tensor:
        like = next(v for v in values if isinstance(v, Tensor))
        tensors = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values]
        shape = wide(tensors)
        return torch.stack([t.expand(shape) for t in tensors], -1)

    def concat(self, *values: Tensor) -> Tensor:
        shape = wide([v[..., 0] for v in values])
        return torch.cat([v.expand(*shape, v.shape[-1]) for v in values], -1)

    def cross_entropy(self, logits: Tensor, ids: Any) -> Tensor:
        """Of each tick, in nats."""
        ids = torch.as_tensor(ids, device=logits.device).expand(logits.shape[:-1])
        flat = F.cross_entropy(
            logits.flatten(0, -2).float()
            if logits.dtype in (torch.bfloat16, torch.float16)
            else logits.flatten(0, -2),
            ids.flatten().long(),
            reduction="none",
        )
        return flat.view(ids.shape)

    def beside(self, number: Any, array: Tensor) -> Any:
        """One number for each sample and head, as what multiplies their arrays."""
        if not isinstance(number, Tensor):
            return number
        return number[(..., *[None] * (array.ndim - number.ndim))]

    def stream(self, value: Any, s: Stream, lead: int) -> Tensor:
        """A value that no tick changes, as a stream."""
        x = torch.as_tensor(value, device=self.device, dtype=self.dtype)
        return x.expand(s.batch, *[1] * (lead - 2), s.time, *x.shape)

    def lasting(self, x: Tensor, s: Stream, axis: int) -> Tensor:
        """A value that stands while ticks pass."""
        return x.expand(*x.shape[:axis], s.time, *x.shape[axis + 1 :])

    def spread(self, x: Tensor, lead: int, mapped: tuple[int, ...]) -> Tensor:
        """Axes of 1 of a map, stretched."""
        return x.expand(*x.shape[:lead], *mapped, *x.shape[lead + len(mapped) :])

    def last(self, past: Tensor, x: Tensor, window: int) -> Tensor:
        """The last `window` ticks, for the span that follows."""
        if window == 0:
            return past
        return (
            torch.cat([past, x.to(past.dtype)], 1)[:, -window:]
            if x.shape[1] < window
            else x[:, -window:].to(past.dtype)
        )

    def window(self, s: Stream, key: str, x: Tensor, ticks: int, lead: int) -> Tensor:
        """The last `ticks` values at each tick, oldest first, on a new axis [.., time, ticks, ..].
        The newest are kept under `key`.
        """
        x = x.expand(*s[key].shape[: lead - 1], *x.shape[lead - 1 :])
        known = torch.cat([s[key].to(x.dtype), x], lead - 1)
        s[key] = known.narrow(lead - 1, known.shape[lead - 1] - (ticks - 1), ticks - 1)
        whole = self.filled(known, ticks - 1 - s.age, lead - 1)
        return whole.unfold(lead - 1, ticks, 1).movedim(-1, lead)

    def filled(self, x: Tensor, missing: int, axis: int) -> Tensor:
        """Ticks, of which the first `missing` never were: the first that was stands for them.

        Sums leave them out, but only after what is made of them; of 0 that may be 1 / 0, whose
        gradient no mask takes away. So each row of a window is one of a tick that was.
        """
        if missing <= 0:
            return x
        shape = list(x.shape)
        shape[axis] = missing
        here = x.narrow(axis, missing, x.shape[axis] - missing)
        return torch.cat([here.narrow(axis, 0, 1).expand(shape), here], axis)

    def remember(self, s: Stream, key: str, x: Tensor, lead: int, last: bool = False) -> None:
        """The newest ticks of a stream, as many as are kept under `key`; `last`: one, by itself.
        Constants, for the end of a sequence.
        """
        x = x.detach().expand(s.batch, *s[key].shape[1 : lead - 1], *x.shape[lead - 1 :])
        if last:
            s[key] = x.select(lead - 1, -1)
            return
        known = torch.cat([s[key].to(x.dtype), x], lead - 1)
        many = s[key].shape[lead - 1]
        s[key] = known.narrow(lead - 1, known.shape[lead - 1] - many, many)

    def firing(self, sequence: int, period: int, first: int) -> int:
        """Which firing of a clock the end of this sequence is; 0: none."""
        since = sequence - first
        return since // period + 1 if since >= 0 and since % period == 0 else 0

    def long(self, s: Stream, box: Callable[..., Tensor], at: str, *given: Any) -> Tensor:
        """What a box answers that outlives sequences."""
        with s.life(0, s.time, -s.elapsed, f"{at}long"):
            return box(s, at, *given)

    def newest(self, past: Tensor, window: int | None, axis: int = -2) -> Tensor:
        if window is None or past.shape[axis] <= window:
            return past
        return past.narrow(axis, past.shape[axis] - window, window)

    def rows_of(self, *examples: Tensor) -> Tensor:
        """Rows of several calls [.., r, n], those of the first before those of the next."""
        lead = wide([x[..., 0, 0] for x in examples])
        return torch.cat([x.expand(*lead, *x.shape[-2:]) for x in examples], -2)

    def newest_rows(self, known: Tensor, rows: Tensor) -> Tensor:
        """As many rows as are known, the newest last."""
        more = rows.to(known.dtype).expand(*known.shape[:-2], *rows.shape[-2:])
        return torch.cat([known, more], -2)[..., -known.shape[-2] :, :]

    def joined(self, reads: list[Tensor], axis: int) -> Tensor:
        return reads[0] if len(reads) == 1 else torch.cat(reads, axis)

    def cut(self, s: dict[str, Tensor], at: str) -> None:
        """What a box keeps becomes a constant (`through .. tokens`)."""
        for key in s:
            if key.startswith(at):
                s[key] = s[key].detach()

    def conv_cut(
        self, s: Stream, every: int, x: Tensor, weight: Tensor, past: Tensor, **hold: Any
    ) -> Tensor:
        """A convolution, with its past a constant at each multiple of `every` ticks."""
        parts = []
        for a, b, _, cut in s.stretches(every, every):
            before = torch.cat([past, x[:, :a]], 1)[:, a:] if past.shape[1] else past
            parts.append(causal_conv(x[:, a:b], weight, before.detach() if cut else before, **hold))
        return torch.cat(parts, 1) if parts else x

    def attend_cut(
        self, s: Stream, every: int, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor,
        scale: float, window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """`attend`, the pairs before each multiple of `every` ticks being constants from there on;
        and the pairs so far.
        """
        reads = []
        for a, b, _, cut in s.stretches(every, every):
            if cut:
                keys, values = keys.detach(), values.detach()
            past = keys.shape[-2]
            keys = torch.cat([keys, k[..., a:b, :]], -2)
            values = torch.cat([values, v[..., a:b, :]], -2)
            reads.append(attend(q[..., a:b, :], keys, values, scale, window, past))
        return self.joined(reads, -2), keys, values

    def scan_cut(
        self,
        W0: Tensor,
        q: Tensor,
        x: Tensor,
        e: Any,
        rate: Any,
        *,
        every: int,
        s: Stream,
        S0: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`scan`, with the state a constant at each multiple of `every` ticks."""

        def part(value: Any, a: int, b: int, features: bool) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value[..., a:b, :] if features and value.ndim == x.ndim else value[..., a:b]

        reads = []
        for a, b, _, cut in s.stretches(every, every):
            if cut:
                W0, S0 = W0.detach(), None if S0 is None else S0.detach()
            extra = {k: part(v, a, b, k in ("keep", "erase")) for k, v in more.items()}
            y, W0, S0 = scan(
                W0,
                q[..., a:b, :],
                x[..., a:b, :],
                part(e, a, b, True),
                part(rate, a, b, True),
                S0=S0,
                **extra,
            )
            reads.append(y)
        return torch.cat(reads, -2), W0, S0
