"""Gradients that add up until their level fires: as rows while those are the smaller."""

from __future__ import annotations

from pathlib import Path

import torch
from shipped import compiled, small, tokens
from test_random import Case, agrees

import nlc
from nlc.backends.runtime.sums import Sum, summed


def test_rows_wait_while_they_are_smaller_than_the_array() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, surprise = (
        torch.randn(2, 9, n, generator=generator, dtype=torch.float64) for n in (4, 6)
    )
    owed = Sum().plus(torch.ones(2, 6, 4, dtype=torch.float64))
    for t in range(9):
        owed = owed.after(seen[:, t : t + 1], surprise[:, t : t + 1])
        assert len(owed.seen) == (t + 1) % 3  # 3 rows of 6 + 4 numbers are more than 6 x 4
        wanted = 1 + surprise[:, : t + 1].mT @ seen[:, : t + 1]
        assert (owed.total() - wanted).abs().max() < 1e-14


def test_a_saved_sum_comes_to_the_same_bits() -> None:
    owed, loaded = Sum(), Sum()
    for x, g in zip(torch.randn(20, 1, 2, 32), torch.randn(20, 1, 2, 32), strict=True):
        owed, loaded = owed.after(x, g), summed(loaded.after(x, g).tensors())
        assert torch.equal(owed.total(), loaded.total())


def test_a_token_makes_no_array_of_gradients() -> None:
    """Of a level that does not fire: what its arrays are asked is kept, and no product of it."""
    model = nlc.compile(small("hope", width=16, periods=[4, 64]))
    with torch.no_grad():
        _, state = model(tokens(1, 9))
        for t in range(3):
            _, state = model(tokens(1, 1, seed=t), state)
    slow = {path: owed for path, owed in state.sums.items() if "cms_64" in path}
    assert len(slow) == 4
    assert all(owed.seen and owed.whole is None for owed in slow.values())


def test_what_is_asked_in_two_ways() -> None:
    """A product, whose rows wait, and the array itself, by heads and for two samples."""
    spec = """nl 1
system s(vocab = 7) {
  level training every step { objective loss; learn adamw(rate = 4e-4) }
  level slow(x) every 3 tokens {
    state M : matrix(2, 2) per 2
    state c : matrix(4, 4)
    objective loss
    learn gradient(rate = 0.3)
    read join(M(split(x, 2))) + c(x) + sum(M^2) * x
  }
  transfer backprop slow -> training first order
  transfer init training -> slow first order
  flow(tokens) {
    x = embed(tokens, vocab, 4)
    x += slow(norm(x))
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""
    assert agrees(Case(spec, 9, [4, 5, 6]))


def test_a_file_keeps_the_rows(tmp_path: Path) -> None:
    model = compiled("hope")
    with torch.no_grad():
        _, state = model(tokens(2, 1))
        for t in range(4):
            _, state = model(tokens(2, 1, seed=t), state)
        state.save(tmp_path / "state")
        loaded = nlc.load_state(tmp_path / "state", model)
        assert {p for p, owed in loaded.sums.items() if owed.seen}
        for path, owed in state.sums.items():
            assert torch.equal(loaded.sums[path].total(), owed.total())
