"""What all tests of the engine share."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    """A run that a failed test leaves behind would keep the suite from ending."""
    yield
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            os.killpg(child.pid or 0, signal.SIGKILL) if os.getpgid(child.pid or 0) == child.pid else child.kill()
        child.join()
