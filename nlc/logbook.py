"""What a run writes down as it goes: JSON lines, and the same numbers for TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from .run_folder import RunFolder


class Logbook:
    """Opened at the step of a checkpoint: what was logged after it is forgotten, and done again."""

    def __init__(self, run: RunFolder, step: int) -> None:
        run.cut_log(step)
        run.tensorboard.mkdir(exist_ok=True)
        self._run = run
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self._hook = threading.excepthook

    def __enter__(self) -> Logbook:
        threading.excepthook = self._of_thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def add(self, kind: str, step: int, seconds: float, entry: Mapping[str, float]) -> None:
        """One line, and one curve for each number in it."""
        self._run.append_log({"step": step, "kind": kind, "seconds": round(seconds, 3), **entry})
        for name, value in entry.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def _of_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, and tells us of a full disk at the next call:
        what the thread itself would print is no news.
        """
        if not isinstance(args.exc_value, OSError):
            self._hook(args)
