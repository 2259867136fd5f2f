"""Feeds give the same pictures in whatever way they are fetched, and survive what happens to worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import trainrun.parts  # noqa: F401 - registers the augmentations
from trainrun.draw import order
from trainrun.engine import decoded
from trainrun.engine.feed import Batch, Resident, Streamed, open_feed
from trainrun.engine.inputs import make_inputs
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Split
from trainrun.recipe.registry import PartNode, registry
from trainrun.world import World

COUNT, SHAPE = 100, (6, 5, 3)
CPU = World(torch.device("cpu"))
PARTS = [
    PartNode("augment", "random_crop", {"padding": 2}),
    PartNode("augment", "horizontal_flip", {"p": 0.5}),
    PartNode("augment", "normalize", {"mean": None, "std": None}),
]


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


@dataclass(frozen=True)
class Broken:
    """Cannot read one picture."""

    bad: int

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        if self.bad in ids:
            raise UserError(f"/pictures/{self.bad}.png cannot be read: truncated")
        return read(ids)


@dataclass(frozen=True)
class Deadly:
    """Kills its process at one picture, as often as there are marker files left to write."""

    folder: Path
    picture: int
    times: int

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        if self.picture in ids:
            for n in range(self.times):
                if not (marker := self.folder / f"died{n}").exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return read(ids)


@dataclass(frozen=True)
class Stuck:
    """Sleeps for a minute at one picture, once."""

    folder: Path
    picture: int

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        if self.picture in ids and not (marker := self.folder / "slept").exists():
            marker.touch()
            time.sleep(60)
        return read(ids)


def split_of(function: object = read, cache: bool = False, digest: str = "d1") -> Split:
    """A split of a hundred small pictures."""
    labels = np.random.default_rng(1).integers(0, 10, COUNT)
    return Split(labels, SHAPE, function, digest, source=lambda i: f"/pictures/{i}.png", cache=cache)  # type: ignore[arg-type]


def passes(epoch: int, size: int = 16) -> tuple[torch.Tensor, ...]:
    """The batches of ids of an epoch; the last one is smaller."""
    return order(0, epoch, COUNT).split(size)


def wholes(batches: Sequence[torch.Tensor]) -> list[int]:
    """The sizes of the batches."""
    return [len(b) for b in batches]


@contextmanager
def streamed(function: object, workers: int, timeout: float = 30) -> Iterator[Streamed]:
    """A streamed feed that is closed in the end."""
    feed = Streamed(split_of(function), CPU, workers, timeout)
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


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streamed_equals_resident_pass_after_pass(workers: int, tmp_path: Path) -> None:
    resident = Resident(split_of(), CPU, torch.from_numpy(read(range(COUNT))))
    noted = Noted(tmp_path / "notes")
    with streamed(noted, workers) as feed:
        assert len(feed) == len(resident) == COUNT and not feed.resident and resident.resident
        for epoch in range(3):
            batches = passes(epoch, 16 if epoch < 2 else 7)
            found, expected = (list(f(batches, epoch, wholes(batches))) for f in (feed, resident))
            assert len(found) == len(expected) == len(batches)
            for a, b, ids in zip(found, expected, batches, strict=True):
                assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.ids, b.ids)
                assert a.images.shape == (len(ids), 3, 6, 5) and a.images.dtype == b.images.dtype == torch.uint8
                assert a.images.is_contiguous(memory_format=torch.channels_last) and b.images.stride() == a.images.stride()
                assert torch.equal(a.ids, ids) and a.labels.tolist() == feed.split.labels[ids.numpy()].tolist()
                assert (a.epoch, a.whole) == (b.epoch, b.whole) == (epoch, len(ids))
                np.testing.assert_array_equal(a.images.permute(0, 2, 3, 1).numpy(), read(ids.tolist()))
        pids = noted.pids()
        assert len(pids) == max(workers, 1)  # the same processes in every pass
        assert (str(os.getpid()) in pids) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_pass_left_half_way_does_not_reach_the_next(workers: int) -> None:
    with streamed(read, workers) as feed:
        left = feed.fetch(passes(0))
        expect([next(left), next(left)], passes(0)[:2])
        left.close()
        expect(list(feed.fetch(passes(1))), passes(1))
        for _ in feed.fetch(passes(2)):
            break
        expect(list(feed.fetch(passes(2)[1:])), passes(2)[1:])
        feed.close()
        expect(list(feed.fetch(passes(3))), passes(3))  # closed feeds open again


def test_a_feed_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with streamed(read, 1) as feed:
        list(feed.fetch(passes(0)[:2]))
        list(feed.fetch(passes(1)[:2]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_user_error_arrives_as_it_was_raised(workers: int) -> None:
    batches = passes(0)
    bad = int(batches[3][2])
    with streamed(Broken(bad), workers) as feed:
        found = []
        with pytest.raises(UserError) as caught:
            for images in feed.fetch(batches):
                found.append(images)
        assert str(caught.value) == f"/pictures/{bad}.png cannot be read: truncated"
        expect(found, batches[:3])
        good = [b for b in passes(1) if bad not in b]
        expect(list(feed.fetch(good)), good)


def test_other_errors_of_a_worker_are_not_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    with streamed(len, 1) as feed, pytest.raises(TypeError, match="int"):  # a length is no array
        list(feed.fetch(passes(0)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pass_goes_on_once_after_a_worker_died(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)
    with streamed(Deadly(tmp_path, int(batches[3][0]), 1), workers) as feed:
        expect(list(feed.fetch(batches)), batches)
        assert (tmp_path / "died0").exists()
        said = capsys.readouterr().err
        assert said.count("going on once with fresh workers") == 1 and "a worker process died" in said and "/pictures/" in said
        expect(list(feed.fetch(passes(1))), passes(1))
    assert capsys.readouterr().err == ""


def test_a_worker_that_dies_while_the_network_computes_does_not_disturb_it() -> None:
    batches = passes(0)
    with streamed(read, 1) as feed:
        coming = feed.fetch(batches)
        found = [next(coming)]
        os.kill(feed._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
        time.sleep(0.5)  # where the training step would be
        expect([*found, *coming], batches)


def test_a_worker_that_dies_twice_is_an_error_that_names_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)
    with streamed(Deadly(tmp_path, int(batches[0][0]), 2), 1) as feed:
        with pytest.raises(UserError) as caught:
            list(feed.fetch(batches))
        text = str(caught.value)
        assert ", ".join(f"/pictures/{int(i)}.png" for i in batches[0][:3]) in text
        assert "it happened twice" in text and "data.workers=0" in text and "/dev/shm" in text
        assert capsys.readouterr().err.count("going on once") == 1
        expect(list(feed.fetch(passes(1))), passes(1))  # the markers are used up


def test_a_stuck_worker_is_reported_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)[:4]
    start = time.monotonic()
    with streamed(Stuck(tmp_path, int(batches[0][1])), 1, timeout=2) as feed:
        expect(list(feed.fetch(batches)), batches)
    said = capsys.readouterr().err
    assert "gave no batch for 2 s" in said and f"/pictures/{int(batches[0][0])}.png" in said and said.count("going on once") == 1
    assert 2 <= time.monotonic() - start < 20


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    noted = Noted(tmp_path / "notes")
    with streamed(noted, 2) as feed:
        list(feed.fetch(passes(0)))
        iterator = feed._loader._iterator  # type: ignore[union-attr]
        workers = list(iterator._workers)
        assert all(w.is_alive() for w in workers) and len(workers) == 2
        feed.close()
        feed.close()
        for worker in workers:
            worker.join(5)
        assert not any(w.is_alive() for w in workers)


def options(**given: object) -> SimpleNamespace:
    """The data options that a feed reads."""
    return SimpleNamespace(**{"resident": "auto", "cache": True, "workers": 0, "timeout": 30.0, **given})


@pytest.mark.parametrize(
    ("resident", "room", "expected"), [("auto", 0, True), ("auto", -1, False), ("yes", -1, True), ("no", 10**9, False)]
)
def test_what_is_resident(resident: str, room: int, expected: bool) -> None:
    size = COUNT * 6 * 5 * 3
    feed = open_feed(split_of(), options(resident=resident), CPU, size + room)
    assert feed.resident is expected
    expect(list(feed.fetch(passes(0))), passes(0))
    feed.close()


def test_resident_by_order_must_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainrun.engine.feed.free_memory", lambda device: COUNT * 90 - 1)
    with pytest.raises(UserError, match="data.resident is yes, but .* set data.resident=auto"):
        open_feed(split_of(), options(resident="yes"), CPU, 0)


def cached(notes: Path, digest: str = "d1", **given: object) -> tuple[torch.Tensor, int]:
    """The pictures of a resident feed, and how many were decoded for it."""
    notes.write_text("")
    feed = open_feed(split_of(Noted(notes), cache=True, digest=digest), options(**given), CPU, 10**9)
    assert isinstance(feed, Resident)
    return feed.pictures, sum(int(line.split()[1]) for line in notes.read_text().splitlines())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_start_reads_what_the_first_decoded(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    expected, notes = torch.from_numpy(read(range(COUNT))), tmp_path / "notes"
    first, decoded_first = cached(notes, workers=workers)
    second, decoded_second = cached(notes, workers=workers)
    assert (decoded_first, decoded_second) == (COUNT, 0)
    assert torch.equal(first, expected) and torch.equal(second, expected) and second.dtype == torch.uint8
    assert [p.name for p in (tmp_path / "cache" / "decoded").iterdir()] == ["d1.safetensors"]  # and no temporary file
    assert cached(notes, digest="d2")[1] == COUNT
    assert cached(notes, cache=False)[1] == COUNT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["pixels", "last pixel", "header", "cut", "empty"])
def test_a_damaged_file_is_decoded_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    notes, file = tmp_path / "notes", tmp_path / "cache" / "decoded" / "d1.safetensors"
    cached(notes)
    content = bytearray(file.read_bytes())
    if place in ("cut", "empty"):
        content = content[:-50] if place == "cut" else bytearray()
    else:
        content[{"pixels": -COUNT * 45, "last pixel": -1, "header": 8}[place]] ^= 1
    file.write_bytes(content)
    assert decoded.load("d1") is None
    assert ("damaged; decoding again" in capsys.readouterr().err) == ("pixel" in place)
    pictures, count = cached(notes)
    assert count == COUNT and torch.equal(pictures, torch.from_numpy(read(range(COUNT))))
    assert cached(notes)[1] == 0  # and kept anew


@pytest.mark.parametrize("obstacle", ["file", "proc"])
def test_a_folder_that_cannot_be_written_only_warns(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" if obstacle == "file" else Path("/proc/trainrun")  # modes do not stop root
    if obstacle == "file":
        folder.write_text("in the way")
    monkeypatch.setenv("TRAINRUN_CACHE", str(folder))
    for _ in range(2):
        pictures, count = cached(tmp_path / "notes")
        assert count == COUNT and torch.equal(pictures, torch.from_numpy(read(range(COUNT))))
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"decoded pictures are not kept in {folder}/decoded" in said


def batch_of_32() -> Batch:
    """The second batch of an epoch."""
    ids = passes(4, 32)[1]
    feed = Resident(split_of(), CPU, torch.from_numpy(read(range(COUNT))))
    return next(iter(feed([ids], 4, [32])))


def test_a_batch_splits_in_order() -> None:
    batch = batch_of_32()
    pieces = batch.split(5)
    assert [len(p) for p in pieces] == [5] * 6 + [2] and all((p.epoch, p.whole) == (4, 32) for p in pieces)
    for name in ("images", "labels", "ids"):
        assert torch.equal(torch.cat([getattr(p, name) for p in pieces]), getattr(batch, name))
    assert batch.split(None) == [batch] and batch.split(32) == [batch]
    empty = Batch(batch.images[:0], batch.labels[:0], batch.ids[:0], 4, 32)
    assert empty.split(4) == [empty]


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_32_is_eight_micro_batches_of_4(training: bool, memory_format: str) -> None:
    statistics = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    inputs = make_inputs(PARTS, 11, memory_format, statistics, registry)
    batch = batch_of_32()
    images, labels = inputs(batch, training)
    pieces = [inputs(piece, training) for piece in batch.split(4)]
    assert len(pieces) == 8 and images.dtype == torch.float32
    assert torch.equal(images, torch.cat([p[0] for p in pieces])) and torch.equal(labels, torch.cat([p[1] for p in pieces]))
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    assert all(x.is_contiguous(memory_format=layout) for x in (images, *(p[0] for p in pieces)))
    plain = make_inputs(PARTS[2:], 11, memory_format, statistics, registry)(batch, training)[0]
    assert torch.equal(images, plain) is not training  # only training moves pixels


def test_inputs_differ_by_epoch_and_seed_and_only_by_these() -> None:
    statistics = ((0.4,) * 3, (0.2,) * 3)
    batch = batch_of_32()
    first = make_inputs(PARTS, 11, "channels_last", statistics, registry)(batch, True)[0]
    assert torch.equal(first, make_inputs(PARTS, 11, "channels_last", statistics, registry)(batch, True)[0])
    later = Batch(batch.images, batch.labels, batch.ids, 5, 32)
    assert not torch.equal(first, make_inputs(PARTS, 11, "channels_last", statistics, registry)(later, True)[0])
    assert not torch.equal(first, make_inputs(PARTS, 12, "channels_last", statistics, registry)(batch, True)[0])
    bare = make_inputs([], 11, "channels_last", statistics, registry)(batch, True)[0]
    torch.testing.assert_close(bare, batch.images.float() / 255, rtol=1e-6, atol=1e-7)
