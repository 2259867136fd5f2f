"""Time spent, measured by the monotonic clock and carried over a resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """`total` seconds of the whole run, and seconds of training since `lap`, with pauses for evaluation and saving left out."""

    def __init__(self) -> None:
        self._before, self._began = 0.0, time.monotonic()
        self._lap, self._left_out = self._began, 0.0

    @property
    def total(self) -> float:
        return self._before + time.monotonic() - self._began

    @total.setter
    def total(self, seconds: float) -> None:
        self._before, self._began = seconds, time.monotonic()

    @property
    def since_lap(self) -> float:
        """Seconds of training since the last lap."""
        return time.monotonic() - self._lap - self._left_out

    def start(self) -> None:
        """Begin counting now."""
        self.total = self._before
        self.lap()

    def lap(self) -> float:
        """Seconds of training since the last lap, and begin the next one."""
        spent = self.since_lap
        self._lap, self._left_out = time.monotonic(), 0.0
        return spent

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._left_out += time.monotonic() - began
