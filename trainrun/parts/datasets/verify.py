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
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.pictures import BadPicture, decode, measure, printable
from trainrun.parts.datasets.splits import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from multiprocessing.connection import Connection

    import numpy as np

    Shape = tuple[int, int, int]

OnBadImage = Annotated[
    Literal["error", "skip"], Field(description="What to do about pictures that cannot be read; skip leaves out up to 0.1 % of the files.")
]
Verify = Annotated[
    Literal["full", "sample", "off"], Field(description="Decode every file, 1,000 of them or none before the run; full is remembered.")
]
_SHOWN = 20
_SKIPPED_AT_MOST = 0.001
_CHUNK = 32
_SAMPLE = 1000
_FEW = 256  # up to here, starting processes costs more than it gains
_MOST_KEPT = 2 << 30  # bytes


@dataclass(frozen=True)
class Verdict:
    """What was found: bad pictures as index -> reason, and of the good ones the shape of the first.

    sizes: int32 [count, 2], height and width of every upright picture (0 where unknown), where two of those looked at differ, and always
        where there are boxes.
    pictures: all that were decoded, uint8 [count, height, width, channels], where this has just been done and they could be
        kept; of bad ones something. They lie in a nameless file of the cache folder, not in memory.
    """

    bad: dict[int, str]
    shape: Shape | None
    sizes: np.ndarray | None = None
    pictures: np.ndarray | None = None


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
    """Looks at files; with `keep` decodes them as they will be used, `size` included; with `headers` only reads how large they are."""

    path: Callable[[int], str]
    channels: int
    size: int | None
    decoder: str
    turn: bool = True
    keep: bool = False
    headers: bool = False

    def __call__(self, indices: Sequence[int]) -> list[_Look]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a broken EXIF block is no reason to write over the bar
            return [self.look(index) for index in indices]

    def look(self, index: int) -> _Look:
        """Decode one file."""
        try:
            if self.headers:
                return _Look(index, (*measure(self.path(index)), self.channels))
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

    Without `size` it matters how large they are: of 1,000 the headers are read first, and where two of these differ, of all those that
    are not decoded, which is remembered too. Where pictures have `boxes`, those that EXIF turns are bad, and no pixels are kept.
    """
    import PIL

    # Another Pillow may judge otherwise; pictures that are resized have no shape of their own to remember.
    key = hashlib.sha256(json.dumps([digest, decoder, channels, size is None, PIL.__version__, *(["boxes"] if boxes else [])]).encode()).hexdigest()
    file = cache_folder() / "verify" / f"{key}.json"
    if mode == "full" and (remembered := _recall(file, count)):
        return remembered
    asked = {"full": count, "sample": min(count, _SAMPLE), "off": 1}[mode]
    indices = [k * count // asked for k in range(asked)]
    decoding = _Decoding(path, channels, size, decoder, turn=not boxes)
    headers = replace(decoding, headers=True)
    few = [k * count // min(count, _SAMPLE) for k in range(min(count, _SAMPLE))]
    differ = size is None and not boxes and _decode_all(headers, few, count, None)[0].sizes is not None
    keeps = mode == "full" and not differ and not boxes
    with contextlib.closing(_Spool(decoding.look(0).shape, size, count)) if keeps else contextlib.nullcontext() as spool:
        verdict, lasting = _decode_all(replace(decoding, keep=bool(spool and spool.file)), indices, count, spool)
        if spool and verdict.sizes is None:
            verdict = replace(verdict, pictures=spool.pictures())
    if mode == "full" and lasting:
        _remember(file, count, verdict)
    if mode != "full" and differ:
        verdict = replace(verdict, sizes=_all_sizes(headers, count, cache_folder() / "sizes" / f"{key}.json"))
    return verdict


def listed(title: str, lines: Sequence[str]) -> str:
    """A title and up to 20 lines below it."""
    more = [f"  and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines[:_SHOWN]), *more])


def unreadable(bad: Sequence[tuple[str, str]], count: int) -> str:
    """What to say of bad pictures, as (name, reason), among `count`."""
    return listed(f"{len(bad):,} of {count:,} pictures cannot be read", [f"{name}: {reason}" for name, reason in bad])


def left_out(bad: Sequence[tuple[str, str]], count: int, on_bad_image: str) -> tuple[tuple[str, str], ...]:
    """The bad pictures where the recipe asks to leave them out, or a UserError that lists them."""
    if bad and on_bad_image == "error":
        hint = "repair or remove them, or write data.on_bad_image=skip, which leaves out up to 0.1 % of the files"
        raise UserError(f"{unreadable(bad, count)}\n{hint}")
    if len(bad) > count * _SKIPPED_AT_MOST:
        raise UserError(f"{unreadable(bad, count)}\ndata.on_bad_image=skip leaves out at most 0.1 % of the files; repair or remove some")
    return tuple(bad)


def _all_sizes(headers: _Decoding, count: int, file: os.PathLike[str]) -> np.ndarray | None:
    """The sizes of all pictures by their headers, remembered in `file`."""
    if remembered := _recall(file, count):
        return remembered.sizes
    found, lasting = _decode_all(headers, list(range(count)), count, None)
    if lasting:
        _remember(file, count, found)
    return found.sizes


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


def _decode_all(decoding: _Decoding, indices: list[int], count: int, spool: _Spool | None) -> tuple[Verdict, bool]:
    import numpy as np
    from tqdm import tqdm

    from trainrun.report.console import no_bars

    bad: dict[int, str] = {}
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
                if spool and look.pixels is not None:
                    spool.put(look.index, look.pixels)
            bar.update(len(looks))
    known = np.flatnonzero(sizes.any(1))
    if not len(known):
        return Verdict(bad, None, None if decoding.turn else sizes), lasting
    height, width = sizes[known[0]].tolist()
    differ = decoding.size is None and bool((sizes[known] != (height, width)).any())
    told = differ or not decoding.turn
    return Verdict(bad, (height, width, decoding.channels), sizes if told else None), lasting


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
        shape = tuple(map(int, found["shape"])) if found["shape"] else None
        sizes = None if found["sizes"] is None else np.array(found["sizes"], np.int32).reshape(count, 2)
        usable = found["count"] == count and all(0 <= i < count for i in bad) and (shape is None or len(shape) == 3)
        usable = usable and (sizes is None or bool((sizes >= 0).all()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return Verdict(bad, shape, sizes) if usable else None  # type: ignore[arg-type]  # `usable` has looked at them


def _remember(file: os.PathLike[str], count: int, verdict: Verdict) -> None:
    sizes = None if verdict.sizes is None else verdict.sizes.ravel().tolist()
    words = {"count": count, "bad": sorted(verdict.bad.items()), "shape": verdict.shape, "sizes": sizes}
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
