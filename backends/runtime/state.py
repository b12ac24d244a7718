"""What a model hands on between calls: it streams on, is saved, loaded, forked and detached.

A state is kept so that it can be rebuilt: the arrays at some tick, and the inputs since. What an
inner gradient
still waits for (a label, the rest of a period) is made again from these when a state is loaded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .rows import Learned
from .sums import Met, Sum, summed

if TYPE_CHECKING:
    from .model import Model

FORMAT = 1


class StateError(ValueError):
    """A state that does not belong to this model, or a file that holds none; the message says
    which.
    """


@dataclass
class Waiting:
    """The last tick, whose label has not arrived: what its loss is made of, in the graph of the
    levels on tokens, and the products of its span with what learns there.
    """

    kept: tuple[Tensor, ...]
    met: tuple[Met, ...] = ()


@dataclass(frozen=True)
class Played:
    """Ticks that ran: their inputs, whether the model made them itself, and the weights they ran
    with, by path, of those that a step of training may have changed since (replay.py).
    """

    inputs: tuple[Tensor, ...]
    own: bool
    weights: Mapping[str, Tensor]


@dataclass
class State:
    """Where a stream stands. `arrays`: what it keeps, by path, each [batch, ..]. `position`: ticks
    so far.

    `sequence`: how many sequences of the stream have ended, with `elapsed` ticks.
    `inner`: the same arrays in the graph of the levels on tokens; `sums`: their gradients since the
    last firing. `live`: they stand in the graph of training too (joint.py). `base`, `base_sums`,
    `base_position`, `replay`: from where, and with which inputs, all of this can be made again;
    `seen`: the weights' versions when it was made.
    `learned`: of the arrays, in the call that runs, those whose gradients wait for training.
    """

    arrays: dict[str, Tensor]
    position: int
    batch: int
    spec: str
    inner: dict[str, Tensor] | None = None
    waiting: Waiting | None = None
    owed: list[tuple[int, Tensor]] = field(default_factory=list)
    sums: dict[str, Sum] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    base_sums: dict[str, Sum] = field(default_factory=dict)
    base_position: int = 0
    replay: list[Played] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    live: bool = False
    rewind: bool = False  # its graph has to be made again
    sequence: int = 0
    elapsed: int = 0
    learned: Learned = field(default_factory=Learned)
    given: bool = False  # a caller's own arrays, which are no starts of this model (nlc.memory)

    def fork(self) -> State:
        """A second stream from the same place; neither sees what the other does."""
        copy = State(
            dict(self.arrays),
            self.position,
            self.batch,
            self.spec,
            None if self.inner is None else dict(self.inner),
        )
        copy.waiting, copy.owed, copy.sums = self.waiting, list(self.owed), dict(self.sums)
        copy.base, copy.base_sums, copy.base_position = (
            dict(self.base),
            dict(self.base_sums),
            self.base_position,
        )
        copy.replay, copy.seen = list(self.replay), self.seen
        copy.live, copy.rewind = self.live, self.rewind
        copy.sequence, copy.elapsed, copy.given = self.sequence, self.elapsed, self.given
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        """`copy.deepcopy` of what no call changes, graphs of levels on tokens included."""
        return self.fork()

    def detach(self) -> State:
        """The same state, a constant to gradients of what comes. What levels on tokens still owe
        for its ticks is owed for the weights those ran with, whatever a step of training does to
        them since (replay.py).
        """
        copy = self.fork()
        if self.live:
            copy.inner, copy.waiting, copy.owed, copy.rewind = None, None, [], True
        copy.arrays = detached(self.arrays)
        copy.base = detached(self.base)
        return copy

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one safetensors file, its JSON in the header; a file that is there is
        replaced whole.
        """
        tensors = {f"array {k}": v for k, v in self.base.items()}
        for k, owed in self.base_sums.items():
            tensors |= {f"{name} {k}": v for name, v in owed.tensors().items()}
        for i, played in enumerate(self.replay):
            tensors |= {f"input {i} {j}": x for j, x in enumerate(played.inputs)}
        header = {
            "format": FORMAT,
            "spec": self.spec,
            "position": self.base_position,
            "batch": self.batch,
            "ended": [self.sequence, self.elapsed],
            "own": [played.own for played in self.replay],
            "inputs": [len(played.inputs) for played in self.replay],
        }
        write_tensors(Path(path), tensors, header)


def detached(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach() if v.requires_grad else v for k, v in arrays.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Atomically: a temporary file in the same folder takes the place of the old one, or of what a
    link leads to.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} cannot be written: it is there, and is no file")
    path = path.resolve()
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(plain, name, metadata={"nlc": json.dumps(header)})
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_state(path: str | os.PathLike[str], model: Model) -> State:
    """A saved state, for the model of the same spec. Raises StateError with a plain sentence
    otherwise.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("nlc", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StateError(f"there is no state file {path}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise StateError(f"{path} is no state file, or is cut short ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StateError(f"{path} is no state of this version of nlc")
    if header.get("spec") != model.SPEC_HASH:
        raise StateError(f"{path} is a state of another spec, or of other settings of it")
    try:
        return rebuilt(header, tensors, model, path)
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise StateError(
            f"{path} is no state file: its parts do not fit each other ({error})"
        ) from None


def rebuilt(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: Model,
    path: str | os.PathLike[str],
) -> State:
    """The arrays as saved, then the inputs since, played again."""
    device, dtype = model.device, model.dtype
    arrays = {
        k.removeprefix("array "): v.to(device) for k, v in tensors.items() if k.startswith("array ")
    }
    owed: dict[str, dict[str, Tensor]] = {}
    for key, v in tensors.items():
        name, _, path = key.partition(" ")
        if name in ("sum", "seen", "surprise"):
            owed.setdefault(path, {})[name] = v.to(device)
    sums = {path: summed(parts) for path, parts in owed.items()}
    wanted = model.kept_arrays()
    if set(arrays) != set(wanted):
        raise StateError(f"{path} holds other arrays than this model keeps")
    wrong = next((k for k, v in arrays.items() if v.dtype != dtype and v.is_floating_point()), None)
    if wrong is not None:
        raise StateError(f"{path} is in {arrays[wrong].dtype} and the model in {dtype}")
    for key, v in arrays.items():
        # the length of a past that keeps all is not known beforehand
        if len(v) != header["batch"] or any(
            n not in (0, have) for n, have in zip(wanted[key][0], v.shape[1:], strict=True)
        ):
            raise StateError(
                f"{path} holds {key} as {list(v.shape)}, which does not fit this model"
            )
    state = model.state_from(arrays, int(header["position"]), int(header["batch"]), sums)
    state.sequence, state.elapsed = map(int, header.get("ended", (0, 0)))
    with torch.no_grad():
        for i, own in enumerate(header["own"]):
            inputs = tuple(tensors[f"input {i} {j}"].to(device) for j in range(header["inputs"][i]))
            _, state = model(*inputs, state=state, own=own)
    return state
