"""metrics.jsonl: one JSON object a line, whole lines only, continued after a resume without a step doubled or missing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from trainrun.errors import UserError


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Journal:
    """Writes a run's figures to metrics.jsonl and, where asked for, to TensorBoard."""

    def __init__(self, run: Path, position: int = 0, *, tensorboard: bool = False, step: int = 0) -> None:
        """Go on at byte `position`, which the checkpoint gives; what was written after it is written again by the steps made again."""
        self.file = run / "metrics.jsonl"
        self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if os.fstat(self._handle).st_size > position:
            os.ftruncate(self._handle, position)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("log.tensorboard needs TensorBoard: pip install 'trainrun[tensorboard]'") from error
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._handle).st_size

    def write(self, kind: str, figures: dict[str, Any]) -> None:
        """One line, in one write, so that a kill leaves whole lines."""
        line = {"kind": kind, **{name: _plain(value) for name, value in figures.items()}}
        os.write(self._handle, (json.dumps(line, allow_nan=False) + "\n").encode())
        if self._board is not None and kind != "event":
            for name, value in line.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{kind}/{name}", value, figures["step"])

    def sync(self) -> None:
        """Put all lines on disk, before a checkpoint that counts on them."""
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
        if self._board is not None:
            self._board.close()
