"""Two real data sets that come with trainrun, so that every recipe can be tried without a download."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.parts.datasets.splits import Data, Split
from trainrun.parts.datasets.synthetic import hashed
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import numpy as np

_DATA = Path(__file__).parents[2] / "data"
PHOTOS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "hubble", "retina", "rocket")


@dataclass(frozen=True)
class InMemory:
    """Pictures that are all in memory, uint8 [n, height, width, channels]."""

    pictures: np.ndarray

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        return self.pictures[np.asarray(ids, dtype=np.int64)]


def in_memory(pictures: np.ndarray, labels: np.ndarray) -> Split:
    """A split of pictures that are all in memory; the digest is that of the values themselves."""
    import numpy as np

    pictures, labels = np.ascontiguousarray(pictures), np.ascontiguousarray(labels, dtype=np.int64)
    digest = hashlib.sha256(repr(pictures.shape).encode())
    digest.update(labels.data)
    digest.update(pictures.data)
    _, height, width, channels = pictures.shape
    return Split(labels, (height, width, channels), InMemory(pictures), digest.hexdigest(), held=pictures)


@part("data", shape=lambda options: (8, 8, 1), pictures=lambda options: 1_442)
def digits() -> Data:
    """1,797 handwritten digits, grey, 8 x 8 pixels (UCI optdigits), 1,442 for training and 355 for validation.

    The pixels, which count 0..16 blackened points of a scan, become round(count * 255 / 16) in uint8 [8, 8, 1].
    The last fifth of each class, in the order of the file, is for validation. The file seems to be grouped by its 13
    writers (scikit-learn's own tests rely on it), so this is for the most part handwriting that the model has not seen,
    which is harder and more honest than a random fifth. Source: E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, CC BY 4.0.
    """
    import numpy as np

    with np.load(_DATA / "digits.npz", allow_pickle=False) as stored:
        counts, labels = stored["counts"], stored["labels"].astype(np.int64)
    pictures = np.rint(counts * (255 / 16)).astype(np.uint8)[..., None]
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        held_out[members[len(members) - len(members) // 5 :]] = True
    splits = [in_memory(pictures[chosen], labels[chosen]) for chosen in (~held_out, held_out)]
    return Data(splits[0], splits[1], tuple("0123456789"))


@dataclass(frozen=True)
class _Crops:
    """Crop i comes from photograph i mod 10, at a place given by the hash of (i, split)."""

    validation: bool
    crop: int

    def __getstate__(self) -> dict[str, Any]:
        return {"validation": self.validation, "crop": self.crop}  # each worker decodes the ten photographs itself

    @functools.cached_property
    def _windows(self) -> list[np.ndarray]:
        import numpy as np
        from PIL import Image

        windows = []
        for name in PHOTOS:
            with Image.open(_DATA / "photos10" / f"{name}.webp", formats=["WEBP"]) as photo:
                pixels = np.asarray(photo.convert("RGB"))
            border = pixels.shape[1] * 3 // 4
            half = np.ascontiguousarray(pixels[:, border:] if self.validation else pixels[:, :border])
            windows.append(np.lib.stride_tricks.sliding_window_view(half, (self.crop, self.crop), axis=(0, 1)).transpose(0, 1, 3, 4, 2))
        return windows

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        samples = np.asarray(ids, dtype=np.int64)
        places = hashed(samples, stream=5 if self.validation else 4)
        labels = samples % len(PHOTOS)
        pictures = np.empty((len(samples), self.crop, self.crop, 3), np.uint8)
        for label, windows in enumerate(self._windows):
            chosen = np.flatnonzero(labels == label)
            if len(chosen):
                rows, columns = windows.shape[:2]
                place = places[chosen] % np.uint64(rows * columns)
                pictures[chosen] = windows[(place // np.uint64(columns)).astype(np.int64), (place % np.uint64(columns)).astype(np.int64)]
        return pictures


@part("data", shape=lambda options: (options["crop"], options["crop"], 3), pictures=lambda options: options["size"])
def photos10(
    *,
    size: Annotated[int, Field(ge=10, le=10_000_000, description="Number of training samples.")] = 50_000,
    validation_size: Annotated[int, Field(ge=0, le=10_000_000, description="Number of validation samples; 0 for none.")] = 10_000,
    crop: Annotated[int, Field(ge=8, le=96, description="Height and width of a sample, in pixels.")] = 32,
) -> Data:
    """Which of ten photographs is this small colour crop from? Real pictures, balanced classes, as many as wanted.

    Samples are uint8 [crop, crop, 3]. Training crops come from the left three quarters of a photograph, validation crops
    from the right quarter, so no pixel is in both. Sample i is a pure function of i: photograph i mod 10, at a place that
    a hash of i gives. The photographs were packaged by scikit-image and are CC0 or in the public domain; data/LICENSES.md
    names author and source of each.
    """
    import numpy as np

    photos = hashlib.sha256()
    for name in PHOTOS:
        photos.update((_DATA / "photos10" / f"{name}.webp").read_bytes())

    def split(validation: bool, count: int) -> Split:
        words = json.dumps(["photos10", 1, photos.hexdigest(), validation, count, crop])
        return Split(
            labels=np.arange(count, dtype=np.int64) % len(PHOTOS),
            shape=(crop, crop, 3),
            read=_Crops(validation, crop),
            digest=hashlib.sha256(words.encode()).hexdigest(),
        )

    return Data(split(False, size), split(True, validation_size) if validation_size else None, PHOTOS)
