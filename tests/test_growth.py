"""What a token costs does not grow with the tokens before it: numbers written, not seconds."""

from __future__ import annotations

from typing import Any

import pytest
from test_memory import LOWERED, OPS, grads, leaves
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nlc

QUADRATIC = {"attend", "softmax"}  # each token looks at all before it


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers all operations write; a view writes none."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))
        return found


def numbers(name: str, time: int) -> int:
    op = OPS[name]
    data = leaves(op.data(batch=1, time=time))
    memory = nlc.memory(name)
    with Written() as written:  # type: ignore[no-untyped-call]
        grads(memory(**data, **op.settings)[0], data)
    return int(written.numbers)


@pytest.mark.parametrize("name", sorted(set(LOWERED) - QUADRATIC))
def test_twice_the_tokens_are_twice_the_work(name: str) -> None:
    """Forward and backward. A slice of a stream for each token, whose derivative is as long as the
    stream, made it four times as much.
    """
    time = 32 if name == "sphere" else 256  # Newton-Schulz at every token
    assert numbers(name, 2 * time) < 2.2 * numbers(name, time)
