"""`nlc generate`: text from a trained run, as it is made; its memory can be kept in a file."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .corpus import load_tokenizer
from .files import CallError, why
from .learner import Learner, pick_device, prepare
from .loading import compile_spec, load_spec, load_state
from .run_folder import RunFolder
from .train import newest_checkpoint


@dataclass(frozen=True)
class Options:
    run: str
    prompt: str = ""
    tokens: int = 400
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    memory: str | None = None
    device: str | None = None
    threads: int | None = None


def generate(options: Options, write: Callable[[str], None]) -> None:
    """Stream text to `write`. The memory is saved also when the stream is cut off."""
    if options.temperature < 0 or options.tokens < 0 or (options.top_k or 1) < 1:
        raise CallError("--temperature and --tokens cannot be negative; --top-k is at least 1.")
    run = RunFolder(Path(options.run))
    model, device = _trained(run, options)
    voice = _voice(run)
    state = _recalled(options.memory, model)
    stream = _stream(model, state, voice.encode(options.prompt), options, device)
    try:
        for token, after in stream:
            state = after
            write(voice.decode(token))
        write(voice.rest())
    finally:
        if options.memory is not None and state is not None:
            _keep(state, Path(options.memory))


def _trained(run: RunFolder, options: Options) -> tuple[Any, torch.device]:
    """The compiled spec of a run with the weights of its newest checkpoint."""
    record = run.read_record()
    device = pick_device(options.device)
    prepare(device, options.threads, options.seed)
    spec = load_spec(str(run.main_spec()), record["options"]["settings"])
    model = compile_spec(spec, device, int(record["options"]["seed"]))
    _, tree, _ = newest_checkpoint(run)
    Learner(model, device, mixed=False).restore_weights(tree)
    model.eval()
    return model, device


def _stream(
    model: Any, state: Any, prompt: list[int], options: Options, device: torch.device
) -> Iterator[tuple[int, Any]]:
    """Each new token, with the state after the model has read it."""
    chance = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        logits, state = model(torch.tensor([prompt], device=device), state=state)
        for _ in range(options.tokens):
            token = _draw(logits[0, -1].float().cpu(), options, chance)
            # What the model made itself is context and no label (2.10.3).
            logits, state = model(torch.tensor([[token]], device=device), state=state, own=True)
            yield token, state


def _draw(logits: torch.Tensor, options: Options, chance: torch.Generator) -> int:
    if options.temperature == 0:
        return int(logits.argmax())
    logits = logits / options.temperature
    if options.top_k is not None and options.top_k < len(logits):
        least = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return int(torch.multinomial(logits.softmax(0), 1, generator=chance))


# ---- text ------------------------------------------------------------------------------------


class _Bytes:
    """Tokens that are bytes; characters come out when they are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def encode(self, text: str) -> list[int]:
        return list((text or "\n").encode("utf-8"))

    def decode(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Ids:
    """Tokens of a tokenizers file; text comes out when more tokens would not change it."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = load_tokenizer(path)
        self._ids: list[int] = []
        self._said = 0

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text or "\n", add_special_tokens=False).ids
        return ids or [0]

    def decode(self, token: int) -> str:
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._said = text[self._said :], len(text)
        return new

    def rest(self) -> str:
        text: str = self._tokenizer.decode(self._ids)
        return text[self._said :]


def _voice(run: RunFolder) -> _Bytes | _Ids:
    path = run.path / "tokenizer.json"
    return _Ids(path) if path.exists() else _Bytes()


# ---- memory ----------------------------------------------------------------------------------


def _recalled(memory: str | None, model: Any) -> Any:
    """The state in a memory file; None if there is none yet."""
    if memory is None:
        return None
    path = Path(memory)
    if not path.parent.is_dir():
        raise CallError(f"There is no folder {path.parent} for the memory file.")
    if not path.exists():
        return None
    try:
        return load_state(path, model)
    except (ValueError, OSError) as error:
        raise CallError(f"The memory cannot be used: {error}.") from None


def _keep(state: Any, path: Path) -> None:
    """A state takes the place of an older one whole, or not at all."""
    try:
        state.save(path)
    except OSError as error:
        raise CallError(f"The memory cannot be saved to {path}: {why(error)}.") from None
