"""The boxes of a split as flat arrays, and what can be wrong with a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from trainrun.parts.datasets.splits import Boxes

if TYPE_CHECKING:
    import numpy as np

# What a box can be; only what reaches beyond its picture can be mended.
GOOD, NOT_FINITE, DEGENERATE, OUTSIDE, BEYOND = range(5)


@dataclass(frozen=True)
class BoxTable(Sequence[Boxes]):
    """The boxes of many pictures, those of a picture cut out when it is asked for.

    boxes: float32 [N, 4]. labels: int64 [N]. ignored: bool [N]. ends: int64 [n], how many boxes the pictures up to and with each have.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> Boxes: ...

    @overload
    def __getitem__(self, place: slice) -> list[Boxes]: ...

    def __getitem__(self, place: int | slice) -> Boxes | list[Boxes]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        n = range(len(self))[place]
        its = slice(int(self.ends[n - 1]) if n else 0, int(self.ends[n]))
        return Boxes(self.boxes[its], self.labels[its], self.ignored[its])


def table(boxes: np.ndarray, labels: np.ndarray, ignored: np.ndarray, owner: np.ndarray, pictures: np.ndarray) -> BoxTable:
    """The boxes of these pictures: `owner` int64 [N] is the picture of each box, and rises; `pictures` int64 [n] rises too."""
    import numpy as np

    counts = np.bincount(owner, minlength=int(pictures.max(initial=-1)) + 1)[pictures]
    kept = np.isin(owner, pictures)
    return BoxTable(boxes[kept].astype(np.float32), labels[kept], ignored[kept], np.cumsum(counts))


def faults(boxes: np.ndarray, sizes: np.ndarray, least: float) -> np.ndarray:
    """What is wrong with each box, int8 [N].

    boxes: float64 [N, 4] as x0, y0, x1, y1. sizes: [N, 2], height and width of the picture of each. A box whose width or height is at most
    `least` is degenerate; one that reaches at most a pixel beyond its picture is good, because rounding does that. Looked at is what is
    trained on, float32: what is thinner than its steps has no width.
    """
    import numpy as np

    found = np.zeros(len(boxes), np.int8)
    with np.errstate(invalid="ignore", over="ignore"):
        (x0, y0, x1, y1), (height, width) = boxes.astype(np.float32).T, sizes.T
        found[(x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1)] = BEYOND
        found[(x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)] = OUTSIDE
        found[(x1 - x0 <= least) | (y1 - y0 <= least)] = DEGENERATE
        found[~np.isfinite(boxes).all(1)] = NOT_FINITE
    return found


def words(fault: int, box: np.ndarray, size: np.ndarray, least: float) -> str:
    """What `faults` found wrong with a box, [4], of a picture of `size` (height, width)."""
    import numpy as np

    if fault == NOT_FINITE:
        return "a number that is not finite"
    if fault == DEGENERATE:
        with np.errstate(over="ignore"):
            x0, y0, x1, y1 = box.astype(np.float32).tolist()
        return f"{x1 - x0:g} x {y1 - y0:g} pixels, expected more than {least:g} in both directions"
    where = "lies outside" if fault == OUTSIDE else "reaches more than a pixel beyond"
    return f"{where} the picture, which has {size[1]} x {size[0]} pixels"


def clipped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The boxes cut at the edges of their pictures, float64 [N, 4]; `sizes` as for `faults`."""
    import numpy as np

    return np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])
