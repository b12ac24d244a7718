"""The names of a Llama-like checkpoint, for systems of its shape: `transformer`, `stacked`, and
what is written as they are.

In: the names of our arrays, the arrays of the checkpoint, its `config.json`. Out: which is which,
and the arrays as ours are laid out (a key head that several queries share is there once, and here
once for each query). What a model computes otherwise is refused: what `config.py` says of it,
biases, and any other array of a block that has no place here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import config as C
from .config import Config, UnlikeError

EMBED = "model.embed_tokens.weight"
BLOCK = "model.layers.{}."
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "read": "o_proj"}
FORWARD = {
    "linear": "gate_proj", "linear_2": "up_proj", "linear_3": "down_proj",
    "W1": "gate_proj", "W3": "up_proj", "W2": "down_proj",
}  # fmt: skip
# Arrays that must all have a place here, and those of them that say nothing new.
BLOCKS = re.compile(r"model\.(layers\.\d+|norm|embed_tokens)\..*|lm_head\..*")
DERIVED = re.compile(r".*\.rotary_emb\.inv_freq|lm_head\.weight")


def names(
    ours: list[str],
    theirs: dict[str, Tensor],
    said: Mapping[str, Any],
    numbers: Mapping[str, Collection[float]],
    partial: bool = False,
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Our name -> theirs, and their arrays, keys and values repeated for shared heads. `numbers`:
    all that the model has, by the keys of the config. `partial`: ours may have more.
    """
    config = C.read(said, numbers)
    unembed = table(config, theirs)
    found = {"x.embed": EMBED, "logits.norm": "model.norm.weight", "logits.unembed": unembed}
    found |= numbered(ours, r"x\.norm(?:_\d+)?", ["input_layernorm", "post_attention_layernorm"])
    for part, name in ATTENTION.items():
        found |= numbered(ours, rf"attention(?:_\d+)?\.{part}\.linear", [f"self_attn.{name}"])
    for part, name in FORWARD.items():
        found |= numbered(ours, rf"(?:swiglu(?:_\d+)?|\w+\.F)\.{part}", [f"mlp.{name}"])
    wrong = [n for n in ours if n not in found]
    if wrong and not partial:
        raise UnlikeError(f"{wrong[0]} of this model has no place in a Llama-like checkpoint")
    here = sum(name.endswith("input_layernorm.weight") for name in found.values())
    if here != config.layers:
        raise UnlikeError(f"the checkpoint has {config.layers} layers, and this model {here}")
    placed = set(found.values())
    left = [n for n in theirs if n not in placed and BLOCKS.fullmatch(n)]
    over = [n for n in left if not DERIVED.fullmatch(n)]
    if over:
        raise UnlikeError(f"the checkpoint has {over[0]}, which has no place in this model")
    fits(config, theirs)
    return found, repeated(theirs, config.heads // config.shared, config.shared)


def table(config: Config, theirs: Collection[str]) -> str:
    """The array that the logits are made with: that of the embedding only if the config says so."""
    if config.tied:
        return EMBED
    if "lm_head.weight" not in theirs:
        raise UnlikeError(
            "the checkpoint has no array lm_head.weight, and config.json does not say "
            "tie_word_embeddings = true: there is nothing to make logits with"
        )
    return "lm_head.weight"


def fits(config: Config, theirs: Mapping[str, Tensor]) -> None:
    """Raises UnlikeError where the sizes of the config are not those of the arrays."""
    width, keys = config.width, config.width // config.shared
    sizes = {
        "hidden_size": (r"model\.embed_tokens\.weight|lm_head\.weight", 1, width),
        "vocab_size": (r"model\.embed_tokens\.weight|lm_head\.weight", 0, config.vocab),
        "intermediate_size": (r".*\.mlp\.(gate|up)_proj\.weight", 0, config.hidden),
        "num_attention_heads / num_key_value_heads": (r".*\.self_attn\.[kv]_proj\.weight", 0, keys),
    }
    for key, (pattern, axis, wanted) in sizes.items():
        for name, x in theirs.items():
            if wanted is None or not re.fullmatch(pattern, name):
                continue
            if x.dim() != 2 or x.shape[axis] != wanted:
                where = ("rows", "columns")[axis]
                raise UnlikeError(
                    f"{name} of the checkpoint is {list(x.shape)}, and by {key} of config.json it "
                    f"must have {wanted} {where}"
                )


def heads(states: Iterable[tuple[Any, ...]]) -> set[int]:
    """How many heads the attention of a model has, by the rows of what it keeps of the past."""
    path = re.compile(r"(?:layers\.\{\}\.)?attention(?:_\d+)?\..*past(?:_\d+)?")
    shapes = [shape for name, _, shape, _ in states if path.fullmatch(name)]
    return {shape[0] if len(shape) == 3 else 1 for shape in shapes}


def numbered(ours: list[str], pattern: str, roles: list[str]) -> dict[str, str]:
    """Our arrays of a kind in their order, `roles` of them a layer."""
    mine = [n for n in ours if re.fullmatch(rf"(?:layers\.\d+\.)?{pattern}", n)]
    places = ((i // len(roles), roles[i % len(roles)]) for i in range(len(mine)))
    made = (f"{BLOCK.format(layer)}{role}.weight" for layer, role in places)
    return dict(zip(mine, made, strict=True))


def repeated(theirs: dict[str, Tensor], heads: int, shared: int) -> dict[str, Tensor]:
    """Keys and values once for each of the `shared` heads of queries that have them together."""
    if shared == 1:
        return theirs

    def laid_out(name: str, x: Tensor) -> Tensor:
        if not name.endswith(("k_proj.weight", "v_proj.weight")):
            return x
        own = torch.unflatten(x, 0, (heads, -1))
        return own.repeat_interleave(shared, 0).flatten(0, 1)

    return {n: laid_out(n, x) for n, x in theirs.items()}
