"""Pictures that stay in memory on the device, and the choice of whether they do: the feed of a split."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trainrun.engine import decoded
from trainrun.engine.cut import Cut
from trainrun.engine.feed import PIECE, Feed, Streamed
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Split
from trainrun.report.console import no_bars
from trainrun.world import World, free_memory

_CHUNK = 256


class Resident(Feed):
    """All pictures in one uint8 tensor on the device, [N, H, W, C], a batch is one gather; those with boxes one after the other."""

    resident = True

    def __init__(self, split: Split, world: World, pictures: torch.Tensor) -> None:
        super().__init__(split, world)
        self.pictures = pictures.to(self.device)
        self._ends = ends(split)

    def fetch(
        self, batches: Sequence[torch.Tensor], epoch: int = 0, visits: Sequence[torch.Tensor] | None = None, training: bool = False
    ) -> Iterator[torch.Tensor]:
        for ids in batches:
            if self._ends is None:
                yield self.pictures.index_select(0, ids.to(self.device, non_blocking=True))
            else:
                yield torch.cat([self.pictures[self._ends[n] : self._ends[n + 1]] for n in ids.tolist()])

    def close(self) -> None:
        """There are no workers."""


def default_workers(world: World) -> int:
    """Usable cores, shared among the processes of this machine, at most 8 each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores // world.local_size, 8), 1)


def open_feed(split: Split, options: Any, world: World, budget: int, cut: Cut | None = None) -> Feed:
    """The feed of a split: resident where asked for or where it fits `budget` bytes in every process, streamed otherwise, and where it cuts."""
    if cut and options.resident == "yes":
        raise UserError("data.resident is yes, but every epoch cuts other pieces out of the pictures; set data.resident=auto, or data.cut=device")
    size = len(split) * math.prod(split.shape) if (places := ends(split)) is None else int(places[-1])
    workers = default_workers(world) if options.workers is None else options.workers
    # All processes do the same, though each finds other memory free: to hold decoded pictures, the others wait for the first.
    if cut or options.resident == "no" or (options.resident == "auto" and world.any(size > budget)[0]):
        return Streamed(split, world, workers, options.timeout, cut)
    if size > free_memory(world.device):
        raise UserError(
            f"data.resident is yes, but the decoded pictures take {size / 2**30:.1f} GiB and {free_memory(world.device) / 2**30:.1f} GiB are free; "
            "set data.resident=auto"
        )
    if split.held is not None:
        return Resident(split, world, torch.from_numpy(split.held))
    if split.cache and options.cache and split.boxes is None:
        # One process decodes and keeps the result; the others wait and read it.
        pictures = decoded.load(split.digest) if world.main else None
        if world.main and pictures is None:
            pictures = _decode(split, workers, options.timeout)
            decoded.keep(split.digest, pictures)
        world.tell(None)
        if not world.main:
            pictures = decoded.load(split.digest)
        if pictures is not None:
            return Resident(split, world, pictures)
    return Resident(split, world, _decode(split, workers if split.cache else 0, options.timeout))


def _decode(split: Split, workers: int, timeout: float) -> torch.Tensor:
    """All pictures of a split as `Resident` has them, uint8 on the CPU, with a progress bar on a terminal."""
    places = ends(split)
    pictures = torch.empty((len(split), *split.shape) if places is None else int(places[-1]), dtype=torch.uint8)
    pieces = torch.arange(len(split)).split(_CHUNK if places is None else PIECE)
    source = Streamed(split, World(torch.device("cpu")), workers, timeout)
    done = 0
    try:
        with tqdm(total=len(split), desc="decoding", unit=" pictures", disable=no_bars(), leave=False) as bar:
            for ids, piece in zip(pieces, source.fetch(pieces), strict=True):
                pictures[done : done + len(piece)] = piece
                done += len(piece)
                bar.update(len(ids))
    finally:
        source.close()
    return pictures


def ends(split: Split) -> np.ndarray | None:
    """Where each picture with boxes begins and the last one ends when their levels stand one after the other, int64 [N + 1]; else None."""
    if split.boxes is None or split.sizes is None:
        return None
    return np.concatenate(([0], np.cumsum(split.sizes.astype(np.int64).prod(1) * split.shape[2])))


def budget(world: World) -> int:
    """Bytes that resident data may take: half of what is free, shared among the processes of this machine."""
    sharing = world.local_size if world.device.type == "cpu" else 1
    return free_memory(world.device) // 2 // sharing
