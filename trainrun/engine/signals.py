"""Signals: the first one lets the step end and saves, the second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Raised where work that saves nothing is under way when the run is asked to stop."""


class Signals:
    """Notes SIGINT and SIGTERM (stop) and SIGUSR1 (save now) while the context lasts."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._since = 0.0
        self._raise = False

    def __enter__(self) -> Signals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
            return
        if self.stop is not None:
            # A scheduler tells every process, and torchrun passes on what it was told: that is one wish, not two.
            if number == self.stop == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._since < 1:
                return
            os.write(2, f"trainrun: ended at once by a second signal, {signal.Signals(number).name}\n".encode())
            os._exit(128 + number)
        self.stop, self._since = number, time.monotonic()
        if self._raise:
            raise Interrupted

    def check(self) -> None:
        """Raise Interrupted if the run is asked to stop."""
        if self.stop is not None:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context a stop interrupts whatever runs: for long work that changes nothing that is saved."""
        self._raise = True  # before the check, so that no signal falls between the two
        try:
            self.check()
            yield
        finally:
            self._raise = False
