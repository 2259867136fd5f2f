"""What a data set is to the rest of trainrun: labels, and a function from sample ids to uint8 pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def _numbered(sample: int) -> str:
    return f"sample {sample}"


@dataclass(frozen=True)
class Boxes:
    """The annotated boxes of one picture.

    boxes: float32 [n, 4] as x0, y0, x1, y1 in pixels of the upright picture, of its edges: 0 is the left edge of the first pixel, the
        width the right edge of the last. So the area is (x1 - x0) (y1 - y0), and a box around all of the picture is (0, 0, width, height).
    labels: int64 [n], 0 .. classes - 1.
    ignored: bool [n], those that are neither trained on nor counted in evaluation, where a detection of one is no mistake either.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """One side of a data set: training, validation or test.

    labels: int64 array [n]; zeros where pictures have boxes instead.
    shape: height, width, channels of every picture; with `sizes` the largest height and the largest width.
    read: sample ids -> uint8 array [len(ids), height, width, channels], a pure function of the ids that
        can be pickled for worker processes; raises UserError naming each picture that cannot be read.
    digest: changes whenever labels or pictures change.
    source: sample id -> what the picture is called in messages (a file's path).
    cache: whether reading is slow enough for decoded pictures to be worth keeping on disk.
    held: all pictures as uint8 [n, height, width, channels], where they are in memory anyway.
    sizes: int32 [n, 2], height and width of each upright picture, where those of the data set are not all of one size, and always where
        there are boxes. Then `read` takes samples of one size only, but with boxes gives a list of uint8 arrays [height, width, channels].
    decode: a sample id and 1, 2, 4 or 8 -> the whole upright picture, uint8 [height, width, channels], at that fraction of its height
        and width (rounded up) where the file can be decoded so in less time, else as it is. None where `read` has no quicker way.
    boxes: those of each picture, in detection data only.
    originals: int64 array [n], the labels before some were made wrong on purpose; None where none were.
    """

    labels: np.ndarray
    shape: tuple[int, int, int]
    read: Callable[[Sequence[int]], Any]
    digest: str
    source: Callable[[int], str] = _numbered
    cache: bool = False
    held: np.ndarray | None = None
    sizes: np.ndarray | None = None
    decode: Callable[[int, int], np.ndarray] | None = None
    boxes: Sequence[Boxes] | None = None
    originals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set: what to train on, what to validate on (or None), and the names of the classes in label order.

    mean, std: per channel, in 0..1, where they are published for this data set; else None.
    skipped: pictures left out because they could not be read, as (path, reason).
    test: what is looked at once, after all decisions; or None.
    notes: what else was found and repaired, or may surprise, a sentence each.
    """

    train: Split
    validation: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    test: Split | None = None
    notes: tuple[str, ...] = ()


def differs(name: str, found: Sequence[int], expected: Sequence[int]) -> UserError:
    """What to say of a picture that has not the height and width of the others."""
    return UserError(
        f"{name} has {found[0]} x {found[1]} pixels (height x width), the first picture {expected[0]} x {expected[1]}; all must have one size: "
        f"write data.size={min(expected[:2])} to resize the shorter side and cut out the middle square, or begin augment with a crop to one size "
        "(center_crop, random_resized_crop or scale_jitter), which is then cut out of the whole picture"
    )


def cache_folder() -> Path:
    """Where decoded pictures and downloads are kept: $TRAINRUN_CACHE, else trainrun/ in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("TRAINRUN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainrun"
