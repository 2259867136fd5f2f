"""Every picture is decoded once before the run, so that a bad one stops it now and by name, not at hour 30."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import tempfile
import warnings
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError
from trainrun.parts.datasets.pictures import BadPicture, decode, printable
from trainrun.parts.datasets.splits import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from multiprocessing.connection import Connection

    import numpy as np

    Shape = tuple[int, int, int]

_CHUNK = 32
_SAMPLE = 1000
_FEW = 256  # up to here, starting processes costs more than it gains
_MOST_KEPT = 2 << 30  # bytes


@dataclass(frozen=True)
class Verdict:
    """What was found: bad pictures as index -> reason, and of the good ones the shape of the first and the first that differs.

    pictures: all that were decoded, uint8 [count, height, width, channels], where this has just been done and they could be
        kept; of bad ones something. They lie in a nameless file of the cache folder, not in memory.
    sizes: int32 [count, 2], height and width of those that were decoded as they are, zeros elsewhere.
    """

    bad: dict[int, str]
    shape: Shape | None
    odd: int | None = None
    odd_shape: Shape | None = None
    pictures: np.ndarray | None = None
    sizes: np.ndarray | None = None


@dataclass(frozen=True)
class _Look:
    """What was found out about one file: its shape or the reason it is bad, whether that reason will last, its pixels if asked for."""

    index: int
    shape: Shape | None = None
    reason: str = ""
    lasting: bool = True
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class _Decoding:
    """Looks at files; with `keep` decodes them as they will be used, `size` included."""

    path: Callable[[int], str]
    channels: int
    size: int | None
    decoder: str
    turn: bool = True
    keep: bool = False

    def __call__(self, indices: Sequence[int]) -> list[_Look]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a broken EXIF block is no reason to write over the bar
            return [self.look(index) for index in indices]

    def look(self, index: int) -> _Look:
        """Decode one file."""
        try:
            size = self.size if self.keep else None
            pixels = decode(self.path(index), self.channels, size, decoder=self.decoder, thorough=True, turn=self.turn)
        except BadPicture as error:
            return _Look(index, reason=str(error))
        except OSError as error:
            return _Look(index, reason=error.strerror or type(error).__name__, lasting=False)
        height, width, channels = pixels.shape
        return _Look(index, (height, width, channels), pixels=pixels if self.keep else None)


def verify(
    path: Callable[[int], str], count: int, mode: str, channels: int, size: int | None, decoder: str, digest: str, boxes: bool = False
) -> Verdict:
    """Decode all files (`full`), 1,000 spread evenly (`sample`) or the first (`off`); a full pass is remembered under `digest`.

    Where pictures have `boxes`, those that EXIF turns are bad, and pixels are not kept, because sizes differ.
    """
    import PIL

    # Another Pillow may judge otherwise; pictures that are resized have no shape of their own to remember.
    key = hashlib.sha256(json.dumps([digest, decoder, channels, size is None, boxes, PIL.__version__]).encode()).hexdigest()
    file = cache_folder() / "verify" / f"{key}.json"
    if mode == "full" and (remembered := _recall(file, count)):
        return remembered
    asked = {"full": count, "sample": min(count, _SAMPLE), "off": 1}[mode]
    indices = [k * count // asked for k in range(asked)]
    decoding = _Decoding(path, channels, size, decoder, turn=not boxes)
    keeps = mode == "full" and not boxes
    with contextlib.closing(_Spool(decoding.look(0).shape, size, count)) if keeps else contextlib.nullcontext() as spool:
        verdict, lasting = _decode_all(replace(decoding, keep=bool(spool and spool.file)), indices, spool, count)
        if spool:
            verdict = replace(verdict, pictures=spool.pictures())
    if mode == "full" and lasting:
        _remember(file, count, verdict)
    return verdict


class _Spool:
    """Decoded pictures by the number of their file, in a file without a name, so that they need not be decoded again for the run."""

    def __init__(self, first: Shape | None, size: int | None, count: int) -> None:
        self.file: int | None = None
        if first is None:
            return
        self.shape = (count, *((size, size) if size else first[:2]), first[2])
        self.picture = math.prod(self.shape[1:])
        with contextlib.suppress(OSError):
            os.makedirs(cache_folder(), exist_ok=True)
            if count * self.picture <= min(_MOST_KEPT, shutil.disk_usage(cache_folder()).free // 2):
                self.file, name = tempfile.mkstemp(dir=cache_folder())
                os.unlink(name)
                os.truncate(self.file, count * self.picture)

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Write one picture; a full disk ends the keeping."""
        if self.file is None or pixels.shape != self.shape[1:]:
            return
        try:
            written = os.pwrite(self.file, pixels.tobytes(), index * self.picture)
        except OSError:
            written = 0
        if written != self.picture:
            self.close()

    def pictures(self) -> np.ndarray | None:
        """All pictures, mapped from the file."""
        import numpy as np

        if self.file is None:
            return None
        try:
            return np.frombuffer(mmap.mmap(self.file, 0, prot=mmap.PROT_READ), np.uint8).reshape(self.shape)
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Let go of the file; what is mapped stays."""
        if self.file is not None:
            os.close(self.file)
        self.file = None


def _decode_all(decoding: _Decoding, indices: list[int], spool: _Spool | None, count: int) -> tuple[Verdict, bool]:
    import numpy as np
    from tqdm import tqdm

    from trainrun.report.console import no_bars

    bad: dict[int, str] = {}
    firsts: dict[Shape, int] = {}
    sizes = np.zeros((count, 2), np.int32)
    lasting = True
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    with (
        contextlib.closing((_in_processes if len(indices) > _FEW else _here)(decoding, chunks)) as results,
        tqdm(total=len(indices), desc="checking pictures", unit="file", disable=no_bars(), leave=False) as bar,
    ):
        for looks in results:
            for look in looks:
                lasting = lasting and look.lasting
                if look.shape is None:
                    bad[look.index] = look.reason
                    continue
                sizes[look.index] = look.shape[:2]
                firsts[look.shape] = min(look.index, firsts.get(look.shape, look.index))
                if spool and look.pixels is not None:
                    spool.put(look.index, look.pixels)
            bar.update(len(looks))
    shapes = sorted(firsts, key=firsts.__getitem__)
    odd = shapes[1] if len(shapes) > 1 else None
    return Verdict(bad, shapes[0] if shapes else None, firsts[odd] if odd else None, odd, sizes=sizes), lasting


def _here(decoding: _Decoding, chunks: list[list[int]]) -> Generator[list[_Look]]:
    yield from map(decoding, chunks)


def _in_processes(decoding: _Decoding, chunks: list[list[int]]) -> Generator[list[_Look]]:
    """What is found in each chunk, in any order. Process n looks at the chunks n, n + count, ... and answers down a pipe of its own.

    When this process dies, their pipes break and they end; when one of them dies, its pipe ends and its files are named.
    """
    count = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(chunks))
    pipes: dict[Connection, Iterator[list[int]]] = {}
    processes = []
    try:
        for n in range(count):
            ours, theirs = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(target=_send_all, args=(decoding, chunks[n::count], theirs, [*pipes, ours]), daemon=True)
            process.start()
            processes.append(process)
            pipes[ours] = iter(chunks[n::count])
            theirs.close()  # or its end would never be seen, and the next process would hold it too
        while pipes:
            ready = wait(list(pipes))
            for pipe in [pipe for pipe in pipes if pipe in ready]:
                chunk = next(pipes[pipe], None)
                if chunk is None:
                    del pipes[pipe]
                    continue
                try:
                    found = pipe.recv()
                except (EOFError, OSError):
                    files = ", ".join(printable(decoding.path(index)) for index in chunk)
                    raise UserError(f"a process that checks pictures died at one of these files; remove it: {files}") from None
                yield found
    finally:
        for process in processes:
            process.kill()
            process.join()


def _send_all(decoding: _Decoding, chunks: list[list[int]], pipe: Connection, others: list[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides what to do
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    with contextlib.suppress(BrokenPipeError):
        for chunk in chunks:
            pipe.send(decoding(chunk))


def _recall(file: os.PathLike[str], count: int) -> Verdict | None:
    import numpy as np

    try:
        with open(file, encoding="utf-8") as stored:
            found: dict[str, Any] = json.load(stored)
        bad = {int(index): str(reason) for index, reason in found["bad"]}
        shape, odd_shape = (tuple(map(int, s)) if s else None for s in (found["shape"], found["odd_shape"]))
        sizes = np.zeros((count, 2), np.int32)
        if shape:
            sizes[:] = found["sizes"] or shape[:2]
            sizes[list(bad)] = 0
        odd = None if found["odd"] is None else int(found["odd"])
        usable = found["count"] == count and all(0 <= i < count for i in [*bad, odd or 0])
        usable = usable and (shape is None or len(shape) == 3) and (odd is None) == (odd_shape is None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError, IndexError):
        return None
    return Verdict(bad, shape, odd, odd_shape, sizes=sizes) if usable else None  # type: ignore[arg-type]  # `usable` has looked at them


def _remember(file: os.PathLike[str], count: int, verdict: Verdict) -> None:
    words: dict[str, Any] = {"count": count, "bad": sorted(verdict.bad.items()), "shape": verdict.shape}
    sizes = verdict.sizes.tolist() if verdict.sizes is not None and verdict.odd is not None else []  # all are those of `shape`
    words |= {"odd": verdict.odd, "odd_shape": verdict.odd_shape, "sizes": sizes}
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
