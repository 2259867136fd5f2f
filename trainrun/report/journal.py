"""metrics.jsonl: one JSON object a line, whole lines only, continued after a resume without a step doubled or missing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainrun.errors import UserError


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class Journal:
    """Writes a run's figures to metrics.jsonl and, where asked for, to TensorBoard.

    Lines for which there is no room on the disk wait in memory, and are written in their order as soon as there is.
    """

    def __init__(
        self, run: Path, position: int = 0, *, tensorboard: bool = False, step: int = 0, warn: Callable[[str], None] = _to_stderr
    ) -> None:
        """Go on at byte `position`, which the checkpoint gives; what was written after it is written again by the steps made again."""
        self.file = run / "metrics.jsonl"
        self._warn = warn
        self._waiting: deque[bytes] = deque()
        self._failing = False
        self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        whole = self.file.read_bytes()[:position].rfind(b"\n") + 1
        os.ftruncate(self._handle, whole)
        if whole < position:
            warn(f"{self.file} has lost {position - whole:,} of the {position:,} bytes that it had at step {step}")
        self._board = _Board(run / "tensorboard", self.file, step, warn) if tensorboard else None

    @property
    def position(self) -> int:
        """Bytes written so far, those that wait included."""
        return os.fstat(self._handle).st_size + sum(len(line) for line in self._waiting)

    def write(self, kind: str, figures: dict[str, Any]) -> None:
        """One line, in one write, so that a kill leaves whole lines."""
        line = {"kind": kind, **{name: _plain(value) for name, value in figures.items()}}
        self._waiting.append((json.dumps(line, allow_nan=False) + "\n").encode())
        try:
            self._write_waiting()
        except OSError as error:
            if not self._failing:
                self._warn(f"{self.file} cannot be written: {error.strerror}. Its lines wait in memory until there is room")
            self._failing = True
        if self._board is not None:
            self._board.show(line)

    def _write_waiting(self) -> None:
        while self._waiting:
            end = os.fstat(self._handle).st_size
            if os.write(self._handle, self._waiting[0]) < len(self._waiting[0]):
                os.ftruncate(self._handle, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._waiting.popleft()
        self._failing = False

    def sync(self) -> None:
        """Put all lines on disk, before a checkpoint that counts on them; raises OSError where they do not fit."""
        self._write_waiting()
        os.fsync(self._handle)
        if self._board is not None:
            self._board.sync()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told by `write` already
            self._write_waiting()
        os.close(self._handle)
        if self._board is not None:
            self._board.close()


class _Board:
    """The journal's lines as TensorBoard event files; where a write failed, they are taken from the journal once more."""

    def __init__(self, folder: Path, journal: Path, step: int, warn: Callable[[str], None]) -> None:
        """Take back what event files hold from `step` on, and show the journal's lines from there."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("log.tensorboard needs TensorBoard: pip install 'trainrun[tensorboard]'") from error
        self._new, self._folder, self._journal, self._warn = SummaryWriter, folder, journal, warn
        self._writer: Any = None
        self._synced = self._step = step
        self.sync()

    def _open(self) -> Any:
        # TensorBoard takes the first such mark in a folder for the start of all, so that every file has one, even the first.
        self._writer = self._new(str(self._folder), purge_step=self._synced)
        for text in self._journal.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["step"] >= self._synced:
                self._add(line)
        return self._writer

    def _add(self, line: dict[str, Any]) -> None:
        if line["kind"] != "event":
            for name, value in line.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])
        self._step = line["step"]

    def show(self, line: dict[str, Any]) -> None:
        """Add one line of the journal."""
        if self._writer is not None:
            try:
                self._add(line)
            except OSError as error:
                self._lose(error)

    def sync(self) -> None:
        """Write out what was shown, so that a kill after this loses nothing of it; or begin anew after a failure."""
        try:
            writer = self._writer or self._open()
            writer.flush()
            self._synced = self._step
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._warn(f"{self._folder} cannot be written: {error.strerror}. It is brought up to date when there is room")
        self.close()
        self._writer = None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
