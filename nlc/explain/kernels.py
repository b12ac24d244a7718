"""What would run a box on a CUDA device, and when: the same choice as that of `backends/ops`."""

from __future__ import annotations

from ..derive import substitute
from ..kernels import TICKS, WIDTHS, Ticks, fla_kernel
from ..plan import ArrayRule, Lowering
from ..show import Writer
from ..system import Box, Shape, Term
from .lines import Row, said

TORCH = "torch's operations"
OURS = "kernels of backends/triton, where Triton is installed, in float32 and bfloat16"
SPANS = ("recurrence", "frozen", "solved")  # what they keep of a span is the same


def kernel_rows(w: Writer, box: Box, lowering: Lowering | None) -> list[Row]:
    text = None if lowering is None or not box.states else kernel(box, lowering)
    return [] if text is None else [said(w, "on GPU", text)]


def kernel(box: Box, lowering: Lowering) -> str | None:
    if lowering.kind == "attention" and lowering.attention is not None:
        found = lowering.attention
        return "torch's scaled_dot_product_attention" if found.plain else TORCH
    if lowering.kind not in SPANS:
        return TORCH
    state = next(s for s in box.states if s.rule.changes)
    gates = [g for r in lowering.arrays for g in (r.keep, r.error.factor if r.error else None)]
    gates += [] if lowering.arrays else [s.rule.retain for s in box.states]
    ours = not any(per_channel(g, state.per) for g in gates)
    if lowering.kind != "recurrence":
        return f"{OURS} (reads, and states from span to span); else {TORCH}" if ours else TORCH
    rest = f"else {OURS}; else {TORCH}" if ours else f"else {TORCH}"
    name = scan_kernel(box, lowering.arrays[0], state.per)
    if name is None:
        return rest.removeprefix("else ")
    widths = f"of {WIDTHS[0]} to {WIDTHS[-1]} channels, {TICKS} tokens or more"
    where = "where flash-linear-attention is installed, in bfloat16 and float16"
    return f"`{name}` {where} ({widths}); {rest}"


def scan_kernel(box: Box, rule: ArrayRule, per: Shape) -> str | None:
    """As `scan` of backends/ops/recurrence.py asks for it."""
    turned = box.read is not None and any(
        t.op == "matmul" and t.args[1].op == "state" for t in box.read.walk()
    )
    if rule.rule.momentum is not None or box.read_before or turned:
        return None
    parts = [p for p in (rule.error.factor if rule.error else None, rule.rule.erase) if p]
    constant = all(p.op == "const" for p in parts)
    ticks = Ticks(
        erase=sum(float(p.info) for p in parts) if constant else None,
        kept=rule.keep is None,
        channels=per_channel(rule.keep, per),
        retained=rule.late,
        rates=per_channel(substitute(rule.rule.rate, rule.settings), per),
    )
    found = fla_kernel(ticks)
    return None if found is None else ".".join(found)


def per_channel(term: Term | None, per: Shape) -> bool:
    return term is not None and len(term.shape) > len(per) and term.shape[-1] != 1
