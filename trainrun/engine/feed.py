"""Data set to batches on the device: sample ids in, uint8 pictures out, from memory or from worker processes.

Which samples make a batch is decided elsewhere, as a function of (seed, epoch); a feed only fetches them. So the same
ids give the same pictures whether they lie on the device or are decoded on the way, and with any number of workers.
"""

from __future__ import annotations

import abc
import contextlib
import math
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from trainrun.engine.cut import Cut, Wanted
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Boxes, Split
from trainrun.world import World

PIECE = 8  # files that a worker reads between two notes of what it reads; so many are named when it dies


@dataclass(frozen=True)
class Batch:
    """Pictures on the device, or a part of them.

    images: uint8 [B, C, H, W], channels last in memory; of pictures with boxes a list of [C, H, W]. labels, ids: int64 [B]. epoch: the
    epoch that they are drawn for.
    whole: pictures of the step that they belong to, over all micro-batches and processes. visits: int64 [B], how often each came before
    in this epoch; None where a picture comes once only. everyone: int64 [whole] on the CPU, the ids of the step's whole batch in its order;
    None where nobody asks for them. boxes: those of each picture, in detection data only; they are moved on the CPU, so `ids` and `visits`
    are there too.
    """

    images: Any
    labels: torch.Tensor
    ids: torch.Tensor
    epoch: int
    whole: int
    visits: torch.Tensor | None = None
    everyone: torch.Tensor | None = None
    boxes: Sequence[Boxes] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, size: int | None) -> list[Batch]:
        """The micro-batches of at most `size` pictures, in order; an empty batch is one empty micro-batch."""
        if size is None or len(self) <= size:
            return [self]
        return [
            replace(
                self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows],
                visits=None if self.visits is None else self.visits[rows], boxes=None if self.boxes is None else self.boxes[rows],
            )
            for rows in (slice(first, first + size) for first in range(0, len(self), size))
        ]  # fmt: skip


class Feed(abc.ABC):
    """Fetches pictures of one split: call it with batches of ids, get uint8 pictures on the device in the same order.

    shape: height, width and channels of what it gives. cut: the crop that it makes, if any; then pictures are those of an epoch and a
    visit, and are cut by chance in training only.
    """

    resident = False

    def __init__(self, split: Split, world: World, cut: Cut | None = None) -> None:
        self.split, self.cut = split, cut
        self.shape = (*cut.size, split.shape[2]) if cut else split.shape
        self.device = world.device
        self.labels = torch.from_numpy(split.labels).to(self.device)

    def __len__(self) -> int:
        return len(self.split)

    @abc.abstractmethod
    def fetch(
        self, batches: Sequence[torch.Tensor], epoch: int = 0, visits: Sequence[torch.Tensor] | None = None, training: bool = False
    ) -> Iterator[torch.Tensor]:
        """uint8 [B, H, W, C] for each batch of ids, of pictures with boxes all levels one after the other [sum of H W C]; the rest matters
        to a feed that cuts, as in `__call__`.
        """

    def __call__(
        self,
        batches: Sequence[torch.Tensor],
        epoch: int,
        wholes: Iterable[int],
        visits: Sequence[torch.Tensor] | None = None,
        training: bool = False,
    ) -> Iterator[Batch]:
        """The batches of pictures for batches of ids (int64 [B], on the CPU), with the size of each step's whole batch.

        visits: as in `Batch`, for each batch, on the CPU. training: whether they are for `Inputs` in training.
        """
        times = [None] * len(batches) if visits is None else visits
        for ids, whole, images, which in zip(batches, wholes, self.fetch(batches, epoch, visits, training), times, strict=True):
            there = ids.to(self.device, non_blocking=True)
            labels = self.labels[there]
            if self.split.boxes is None:
                again = None if which is None else which.to(self.device, non_blocking=True)
                yield Batch(images.permute(0, 3, 1, 2), labels, there, epoch, whole, again)
            else:
                boxes = [self.split.boxes[sample] for sample in ids.tolist()]
                yield Batch(self._apart(images, ids), labels, ids, epoch, whole, which, boxes=boxes)

    def _apart(self, levels: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
        """Pictures of their own sizes, uint8 [C, H, W], from their levels one after the other."""
        assert self.split.sizes is not None
        shapes = [(height, width, self.split.shape[2]) for height, width in self.split.sizes[ids.numpy()].tolist()]
        return [piece.view(shape).permute(2, 0, 1) for piece, shape in zip(levels.split(list(map(math.prod, shapes))), shapes, strict=True)]

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of workers."""


class _Reader(Dataset[Any]):
    """What a worker process runs: a batch that is wanted in, a tensor or the UserError it met out.

    `reading` has a row for each worker, in memory that all share: the ids that it reads at the moment, -1 elsewhere.
    """

    def __init__(self, split: Split, cut: Cut | None, reading: torch.Tensor) -> None:
        self.split, self.cut, self.reading = split, cut, reading
        self.piece = reading.shape[1] if split.cache else None  # quick ones are quick because they read many at once

    def __getitem__(self, index: Wanted) -> torch.Tensor | UserError:
        try:
            worker = get_worker_info()
            if worker is None:
                return torch.from_numpy(self._read(index))
            piece, row = self.piece or max(len(index), 1), self.reading[worker.id].numpy()
            pictures = [self._note_and_read(index.part(slice(n, n + piece)), row) for n in range(0, max(len(index), 1), piece)]
            images = torch.from_numpy(pictures[0] if len(pictures) == 1 else np.concatenate(pictures))
        except UserError as error:  # a value, because an exception would come back wrapped in the worker's traceback
            return error
        try:
            return images.share_memory_()  # else it is shared on the way out, where a failure is not heard of
        except (RuntimeError, OSError) as error:
            return UserError(
                f"the shared memory of this machine (/dev/shm) has no room for a batch of {images.nbytes / 2**20:.1f} MiB "
                f"({str(error).splitlines()[0]}); enlarge it, or set data.workers=0"
            )

    def _note_and_read(self, wanted: Wanted, row: np.ndarray) -> np.ndarray:
        noted = wanted.ids[: len(row)]
        row[: len(noted)] = noted
        pictures = self._read(wanted)
        row[:] = -1
        return pictures

    def _read(self, wanted: Wanted) -> np.ndarray:
        if self.cut:
            return self.cut.read(self.split, wanted)
        pictures = self.split.read(wanted.ids.tolist())
        return pictures if self.split.boxes is None else np.concatenate([picture.ravel() for picture in pictures])


def _leave_signals_to_parent(_: int) -> None:
    # Ctrl-C reaches the whole process group; the run needs its workers to finish the step it is in.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Orders(list[Wanted]):
    """The batches of the coming pass; one loader with living workers serves pass after pass.

    Arrays, because a tensor would travel to the worker through shared memory and a connection of its own.
    """


class Streamed(Feed):
    """Worker processes read batches ahead of the device; without workers this process reads them.

    One pass at a time: to begin a pass ends the one before.
    """

    def __init__(self, split: Split, world: World, workers: int, timeout: float, cut: Cut | None = None) -> None:
        super().__init__(split, world, cut)
        self.workers, self.timeout = workers, timeout
        self._orders = _Orders()
        self._loader: DataLoader[Any] | None = None
        self._reading = torch.full((workers, PIECE), -1, dtype=torch.int64).share_memory_()
        self._pass = 0

    def _start(self) -> DataLoader[Any]:
        self._reading.fill_(-1)
        more: dict[str, Any] = {}
        if self.workers:
            more = {"timeout": self.timeout, "persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _leave_signals_to_parent}
        # A loader draws from the global stream at every pass unless it has a generator of its own.
        return DataLoader(
            _Reader(self.split, self.cut, self._reading), batch_size=None, sampler=self._orders, num_workers=self.workers,
            generator=torch.Generator(), pin_memory=self.device.type == "cuda", **more,
        )  # fmt: skip

    def fetch(
        self, batches: Sequence[torch.Tensor], epoch: int = 0, visits: Sequence[torch.Tensor] | None = None, training: bool = False
    ) -> Iterator[torch.Tensor]:
        self._pass += 1
        times = [None] * len(batches) if visits is None else [piece.numpy() for piece in visits]
        return self._fetch([Wanted(ids.numpy(), epoch, n, training) for ids, n in zip(batches, times, strict=True)], self._pass)

    def _fetch(self, batches: Sequence[Wanted], this_pass: int) -> Iterator[torch.Tensor]:
        done = 0
        for attempt in (1, 2):
            self._only(this_pass)
            self._orders[:] = batches[done:]
            self._loader = self._loader or self._start()
            try:
                with _watching(self._loader):
                    coming = iter(self._loader)
                while True:
                    self._only(this_pass)
                    with _watching(self._loader):
                        images = next(coming, None)
                    if images is None:
                        return
                    if isinstance(images, UserError):
                        raise images
                    done += 1
                    yield images.to(self.device, non_blocking=True)
            except (RuntimeError, OSError, EOFError) as error:
                what = self._lost_worker(error, batches[done : done + 1])
                if what is None:
                    raise
                self.close()
                if attempt == 2:
                    raise UserError(
                        f"{what}; it happened twice. Check these files and the memory of this machine (and /dev/shm), or set data.workers=0"
                    ) from error
                print(f"trainrun: {what}; going on once with fresh workers", file=sys.stderr)

    def _only(self, this_pass: int) -> None:
        if self._pass != this_pass:
            raise AssertionError("a feed gives one pass at a time, and a newer one has begun")

    def _lost_worker(self, error: BaseException, awaited: Sequence[Wanted]) -> str | None:
        """Which worker died or is stuck, and the files that it was reading; None where the error has another cause."""
        workers = getattr(getattr(self._loader, "_iterator", None), "_workers", [])
        text = str(error)
        if not workers or text.startswith("Caught "):  # what was raised inside a worker is a bug, not a loss
            return None
        stuck = "timed out" in text
        if not stuck:  # a broken connection may be noticed before the death behind it
            gone = wait([worker.sentinel for worker in workers], timeout=1)
            for worker in workers:
                worker.join(1 if worker.sentinel in gone else 0)
        dead = [n for n, worker in enumerate(workers) if not worker.is_alive()]
        if not dead and not stuck:
            return None
        rows = self._reading[dead] if dead else self._reading
        ids = rows[rows >= 0].tolist() or [int(i) for batch in awaited for i in batch.ids[:PIECE]]
        files = ", ".join(self.split.source(i) for i in ids)
        if dead:
            return f"a worker process died ({_ending(workers[dead[0]].exitcode)}) while reading among {files}"
        return f"a worker process gave no batch for {self.timeout:g} s while reading among {files}"

    def close(self) -> None:
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        if iterator is not None:
            # They hold nothing that must be saved, they ignore SIGTERM, and torch waits ten seconds for one that is stuck.
            for worker in iterator._workers:
                with contextlib.suppress(OSError):
                    worker.kill()
            iterator._shutdown_workers()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"{signal.Signals(-code).name}, perhaps for want of memory" if code == -signal.SIGKILL else signal.Signals(-code).name
    return f"exit code {code}"


_watched = False


@contextlib.contextmanager
def _watching(loader: DataLoader[Any]) -> Iterator[None]:
    """Let torch's SIGCHLD handler raise only in here: a worker's death must not surface in the middle of a training step."""
    global _watched
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and handler.__module__.endswith("signal_handling"):
        torch_handler = handler

        def quiet(number: int, frame: Any) -> None:
            if _watched:
                torch_handler(number, frame)

        signal.signal(signal.SIGCHLD, quiet)
    _watched = True
    try:
        # Batches of other workers may be waiting, so that torch would not notice for long.
        iterator = getattr(loader, "_iterator", None)
        if any(not worker.is_alive() for worker in getattr(iterator, "_workers", ())):
            raise RuntimeError("a DataLoader worker has died")
        yield
    finally:
        _watched = False
