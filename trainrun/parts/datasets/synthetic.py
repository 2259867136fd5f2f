"""Made-up pictures of any size, for benchmarks, smoke runs and tests."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data, Split
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import numpy as np

_CELLS = 4  # a class is a grid of 4 x 4 flat patches, coarse enough to survive any crop, flip or pooling


def hashed(numbers: np.ndarray, stream: int) -> np.ndarray:
    """64 well-mixed bits a number (the finalizer of SplitMix64), the same on every machine."""
    import numpy as np

    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream * 0xD1B54A32D192ED03 & (1 << 64) - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return mixed ^ mixed >> np.uint64(31)


@dataclass(frozen=True)
class _Pictures:
    """Sample i is the patches of class i mod classes plus a stretch of one long row of noise that starts where i's hash says."""

    channels: int
    height: int
    width: int
    classes: int
    noise: float
    first: int

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # the arrays are made again in each worker

    @functools.cached_property
    def _patches(self) -> np.ndarray:
        import numpy as np

        across, down = min(_CELLS, self.width), min(_CELLS, self.height)
        count = self.classes * down * across * self.channels
        grid = (64 + (hashed(np.arange(count), stream=1) >> np.uint64(57))).astype(np.uint8)  # 64..191
        return grid.reshape(self.classes, down, across, self.channels)

    @functools.cached_property
    def _noise(self) -> np.ndarray:
        import numpy as np

        length = max(1 << 20, 4 * self.channels * self.height * self.width)
        pairs = hashed(np.arange(length), stream=2)
        # The sum of four uniform bytes is close enough to a normal law: variance 4 x (256^2 - 1) / 12.
        total = sum(((pairs >> np.uint64(8 * byte)) & np.uint64(255)).astype(np.int32) for byte in range(4)) - 510
        levels = np.rint(total * (self.noise * 255 / 147.8))
        return np.clip(levels, -64, 64).astype(np.int8).view(np.uint8)  # so that adding it modulo 256 never overflows

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        samples = np.asarray(ids, dtype=np.int64) + self.first
        grid = self._patches[samples % self.classes]
        rows = np.arange(self.height) * grid.shape[1] // self.height
        columns = np.arange(self.width) * grid.shape[2] // self.width
        pictures = grid[:, :, columns][:, rows]
        if self.noise:
            row = self._noise
            length = self.height * self.width * self.channels
            starts = hashed(samples, stream=3) % np.uint64(len(row) - length)
            for picture, start in zip(pictures, starts.tolist(), strict=True):
                picture += row[start : start + length].reshape(picture.shape)
        return pictures


@part(
    "data",
    shape=lambda options: (*options["shape"][1:], options["shape"][0]),
    pictures=lambda options: options["size"] - int(options["size"] * options["validation"]),
)
def synthetic(
    *,
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=8192)]],
        Field(min_length=3, max_length=3, description="Channels, height and width in pixels, as PyTorch writes them."),
    ] = [3, 32, 32],  # noqa: B006  # a default that pydantic copies
    classes: Annotated[int, Field(ge=1, le=100_000, description="Number of classes.")] = 10,
    size: Annotated[int, Field(ge=1, le=1_000_000_000, description="Number of pictures, training and validation together.")] = 10_000,
    validation: Annotated[float, Field(ge=0, lt=1, description="Fraction of the pictures for validation; 0 for none.")] = 0.2,
    noise: Annotated[
        float, Field(ge=0, le=0.2, description="Standard deviation of the noise, as a fraction of 255; clipped at a quarter.")
    ] = 0.1,
) -> Data:
    """Made-up pictures of any shape and class count: a pattern of flat patches for each class, plus noise.

    Learnable in a few steps and cheap to make (about one pass over memory), so it suits benchmarks, smoke runs and tests;
    its accuracies mean nothing. Sample i is a pure function of i and of the options; its class is i mod `classes`.
    Pictures are uint8 [height, width, channels]. The last `validation` of the ids are the validation samples.
    """
    import numpy as np

    held_out = int(size * validation)
    if validation and not held_out:
        raise UserError(f"synthetic: validation={validation} of size={size} is no picture; write data.validation=0 or a larger data.size")
    channels, height, width = shape

    def split(first: int, count: int) -> Split:
        words = json.dumps(["synthetic", 1, shape, classes, noise, first, count])
        return Split(
            labels=(np.arange(first, first + count) % classes).astype(np.int64),
            shape=(height, width, channels),
            read=_Pictures(channels, height, width, classes, noise, first),
            digest=hashlib.sha256(words.encode()).hexdigest(),
        )

    train = size - held_out
    return Data(split(0, train), split(train, held_out) if held_out else None, tuple(f"class {k}" for k in range(classes)))
