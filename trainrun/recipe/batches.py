"""In which pieces an epoch's pictures go through the network: whole numbers, known before the run."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(samples: int, batch: int, micro: int | None = None, processes: int = 1) -> set[int]:
    """The sizes of all micro-batches of an epoch: batches, the last of which may be smaller, shared by processes and split."""
    wholes = {min(batch, samples), samples % batch or min(batch, samples)}
    shares = {share for whole in wholes for share in (whole // processes, -(-whole // processes))}
    return {size for share in shares for size in ((share,) if micro is None or share <= micro else (micro, share % micro or micro))}


def without_single(samples: int, batch: int, micro: int | None = None, processes: int = 1) -> dict[str, int]:
    """The nearest setting by which no piece has fewer than two pictures: of micro_batch where that is the cause, else of batch_size; or none."""
    split = micro is not None and min(pieces(samples, batch, None, processes)) > 1
    name, start, most = ("micro_batch", micro or 0, batch) if split else ("batch_size", batch, max(samples, batch))
    for n in _around(start, most):
        if min(pieces(samples, batch, n, processes) if split else pieces(samples, n, micro, processes)) > 1:
            return {name: n}
    return {}


def _around(start: int, most: int) -> Iterator[int]:
    """The whole numbers from 2 to `most`, the nearest to `start` first, of two that are as near the smaller."""
    for step in range(1, max(most, start)):
        yield from (n for n in (start - step, start + step) if 2 <= n <= most)
