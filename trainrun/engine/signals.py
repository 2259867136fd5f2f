"""Signals: the first one lets the step end and saves, the second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Raised where work that saves nothing is under way when the run is asked to stop."""


class Signals:
    """Notes SIGINT and SIGTERM (stop) and SIGUSR1 (save now) while the context lasts."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
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
            os._exit(128 + number)
        self.stop = number
        if self._raise:
            raise Interrupted

    def check(self) -> None:
        """Raise Interrupted if the run is asked to stop."""
        if self.stop is not None:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context a stop interrupts whatever runs: for long work that changes nothing that is saved."""
        self.check()
        self._raise = True
        try:
            yield
        finally:
            self._raise = False
