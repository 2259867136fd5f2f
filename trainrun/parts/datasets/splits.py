"""What a data set is to the rest of trainrun: labels, and a function from sample ids to uint8 pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def _numbered(sample: int) -> str:
    return f"sample {sample}"


@dataclass(frozen=True)
class Split:
    """One side of a data set, training or validation.

    labels: int64 array [n].
    shape: height, width, channels of every picture.
    read: sample ids -> uint8 array [len(ids), height, width, channels], a pure function of the ids that can be pickled
        for worker processes; raises UserError naming each picture that cannot be read.
    digest: changes whenever labels or pictures change.
    source: sample id -> what the picture is called in messages (a file's path).
    cache: whether reading is slow enough for decoded pictures to be worth keeping on disk.
    held: all pictures as uint8 [n, height, width, channels], where they are in memory anyway.
    originals: int64 array [n], the labels before some were made wrong on purpose; None where none were.
    """

    labels: np.ndarray
    shape: tuple[int, int, int]
    read: Callable[[Sequence[int]], np.ndarray]
    digest: str
    source: Callable[[int], str] = _numbered
    cache: bool = False
    held: np.ndarray | None = None
    originals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set: what to train on, what to validate on (or None), and the names of the classes in label order.

    mean, std: per channel, in 0..1, where they are published for this data set; else None.
    skipped: pictures left out because they could not be read, as (path, reason).
    """

    train: Split
    validation: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()


def cache_folder() -> Path:
    """Where decoded pictures and downloads are kept: $TRAINRUN_CACHE, else trainrun/ in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("TRAINRUN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainrun"
