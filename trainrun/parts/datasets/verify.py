"""Every picture is decoded once before the run, so that a bad one stops it now and by name, not at hour 30."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainrun.parts.datasets.pictures import BadPicture, decode
from trainrun.parts.datasets.splits import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CHUNK = 32
_SAMPLE = 1000


@dataclass(frozen=True)
class Verdict:
    """What was found: bad pictures as index -> reason, and of the good ones the shape of the first and the first that differs."""

    bad: dict[int, str]
    shape: tuple[int, int, int] | None
    odd: int | None = None
    odd_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _Decoding:
    """Decode a chunk of files; of each: its index, its shape or the reason it is bad, and whether that reason will last."""

    path: Callable[[int], str]
    channels: int
    decoder: str

    def __call__(self, indices: Sequence[int]) -> list[tuple[int, tuple[int, int, int] | str, bool]]:
        found: list[tuple[int, tuple[int, int, int] | str, bool]] = []
        for index in indices:
            try:
                height, width, channels = decode(self.path(index), self.channels, decoder=self.decoder, thorough=True).shape
                found.append((index, (height, width, channels), True))
            except BadPicture as error:
                found.append((index, str(error), True))
            except OSError as error:
                found.append((index, error.strerror or type(error).__name__, False))
        return found


def verify(path: Callable[[int], str], count: int, mode: str, channels: int, decoder: str, digest: str) -> Verdict:
    """Decode all files (`full`), 1,000 spread evenly (`sample`) or the first (`off`); a full pass is remembered under `digest`."""
    import PIL

    # Another Pillow may judge otherwise.
    key = hashlib.sha256(json.dumps([digest, decoder, channels, PIL.__version__]).encode()).hexdigest()
    file = cache_folder() / "verify" / f"{key}.json"
    if mode == "full" and (remembered := _recall(file, count)):
        return remembered
    asked = {"full": count, "sample": min(count, _SAMPLE), "off": 1}[mode]
    indices = [k * count // asked for k in range(asked)]
    verdict, lasting = _decode_all(_Decoding(path, channels, decoder), indices)
    if mode == "full" and lasting:
        _remember(file, count, verdict)
    return verdict


def _decode_all(decoding: _Decoding, indices: list[int]) -> tuple[Verdict, bool]:
    from tqdm import tqdm

    bad: dict[int, str] = {}
    shape = odd = odd_shape = None
    lasting = True
    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
    # Set once for all threads: filters are global, and a broken EXIF block is no reason to write over the bar.
    with warnings.catch_warnings(), tqdm(total=len(indices), desc="checking pictures", unit="file", disable=None, leave=False) as bar:
        warnings.simplefilter("ignore")
        try:
            for found in pool.map(decoding, chunks):
                for index, result, lasts in found:
                    lasting = lasting and lasts
                    if isinstance(result, str):
                        bad[index] = result
                    elif shape is None:
                        shape = result
                    elif result != shape and odd is None:
                        odd, odd_shape = index, result
                bar.update(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
    return Verdict(bad, shape, odd, odd_shape), lasting


def _recall(file: os.PathLike[str], count: int) -> Verdict | None:
    try:
        with open(file, encoding="utf-8") as stored:
            found: dict[str, Any] = json.load(stored)
        bad = {int(index): str(reason) for index, reason in found["bad"]}
        shape, odd_shape = (tuple(map(int, s)) if s else None for s in (found["shape"], found["odd_shape"]))
        odd = None if found["odd"] is None else int(found["odd"])
        usable = found["count"] == count and all(0 <= i < count for i in [*bad, odd or 0])
        usable = usable and (shape is None or len(shape) == 3) and (odd is None) == (odd_shape is None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Verdict(bad, shape, odd, odd_shape) if usable else None  # type: ignore[arg-type]


def _remember(file: os.PathLike[str], count: int, verdict: Verdict) -> None:
    words = {"count": count, "bad": sorted(verdict.bad.items()), "shape": verdict.shape, "odd": verdict.odd, "odd_shape": verdict.odd_shape}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        folder = os.path.dirname(file)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with open(handle, "w", encoding="utf-8") as out:
                json.dump(words, out)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)
            raise
