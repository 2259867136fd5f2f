"""A split of a hundred small pictures, and feeds of it, for the tests of feeds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from trainrun.draw import order
from trainrun.engine.feed import Streamed
from trainrun.parts.datasets.splits import Split
from trainrun.world import World

COUNT, SHAPE = 100, (6, 5, 3)
CPU = World(torch.device("cpu"))


def read(ids: Sequence[int]) -> np.ndarray:
    """Noise that is a function of the sample id alone."""
    return np.stack([np.random.default_rng(i).integers(0, 256, SHAPE, dtype=np.uint8) for i in ids])


@dataclass(frozen=True)
class Noted:
    """Reads, and appends the number of pictures to a file, which counts over processes."""

    notes: Path

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        with open(self.notes, "a") as out:
            out.write(f"{os.getpid()} {len(ids)}\n")
        return read(ids)

    def pids(self) -> set[str]:
        """Which processes have read."""
        return {line.split()[0] for line in self.notes.read_text().splitlines()}


def split_of(function: object = read, cache: bool = False, digest: str = "d1") -> Split:
    """A split of a hundred small pictures."""
    labels = np.random.default_rng(1).integers(0, 10, COUNT)
    return Split(labels, SHAPE, function, digest, source=lambda i: f"/pictures/{i}.png", cache=cache)  # type: ignore[arg-type]  # `function` is anything that reads


def passes(epoch: int, size: int = 16) -> tuple[torch.Tensor, ...]:
    """The batches of ids of an epoch; the last one is smaller."""
    return order(0, epoch, COUNT).split(size)


@contextmanager
def streamed(function: object, workers: int, timeout: float = 30, cache: bool = False) -> Iterator[Streamed]:
    """A streamed feed that is closed in the end."""
    feed = Streamed(split_of(function, cache), CPU, workers, timeout)
    try:
        yield feed
    finally:
        feed.close()


def expect(found: Sequence[torch.Tensor], batches: Sequence[torch.Tensor]) -> None:
    """Bitwise the pictures of these batches."""
    assert len(found) == len(batches)
    for images, ids in zip(found, batches, strict=True):
        assert images.dtype == torch.uint8
        np.testing.assert_array_equal(images.numpy(), read(ids.tolist()))


def options(**given: object) -> SimpleNamespace:
    """The data options that a feed reads."""
    return SimpleNamespace(**{"resident": "auto", "cache": True, "workers": 0, "timeout": 30.0, **given})
