"""Feeds give the same pictures in whatever way they are fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from feeds import COUNT, CPU, Noted, expect, options, passes, read, split_of, streamed
from PIL import Image

import trainrun.parts  # noqa: F401 - registers the augmentations
from trainrun.draw import order
from trainrun.engine.feed import Batch
from trainrun.engine.inputs import make_inputs
from trainrun.engine.resident import Resident, default_workers, open_feed
from trainrun.errors import UserError
from trainrun.parts.augmentations import Statistics
from trainrun.parts.datasets import folder
from trainrun.recipe.registry import PartNode, registry
from trainrun.world import World

PARTS = [
    PartNode("augment", "random_crop", {"padding": 2, "mode": "zero"}),
    PartNode("augment", "horizontal_flip", {"p": 0.5}),
    PartNode("augment", "normalize", {"mean": None, "std": None}),
]


def wholes(batches: Sequence[torch.Tensor]) -> list[int]:
    """The sizes of the batches."""
    return [len(b) for b in batches]


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
    monkeypatch.setattr("trainrun.engine.resident.free_memory", lambda device: COUNT * 90 - 1)
    with pytest.raises(UserError, match="data.resident is yes, but .* set data.resident=auto"):
        open_feed(split_of(), options(resident="yes"), CPU, 0)


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
    statistics = Statistics(3, lambda: ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
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
    statistics = Statistics(3, lambda: ((0.4,) * 3, (0.2,) * 3))
    batch = batch_of_32()
    first = make_inputs(PARTS, 11, "channels_last", statistics, registry)(batch, True)[0]
    assert torch.equal(first, make_inputs(PARTS, 11, "channels_last", statistics, registry)(batch, True)[0])
    later = Batch(batch.images, batch.labels, batch.ids, 5, 32)
    assert not torch.equal(first, make_inputs(PARTS, 11, "channels_last", statistics, registry)(later, True)[0])
    assert not torch.equal(first, make_inputs(PARTS, 12, "channels_last", statistics, registry)(batch, True)[0])
    bare = make_inputs([], 11, "channels_last", statistics, registry)(batch, True)[0]
    torch.testing.assert_close(bare, batch.images.float() / 255, rtol=1e-6, atol=1e-7)


def test_jpegs_give_the_network_the_same_however_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    for k in range(70):
        (tmp_path / "data" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (48 + k % 3, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((56, 48 + k % 3)).save(tmp_path / "data" / "ab"[k % 2] / f"{k:02}.jpg", quality=80)
    split = folder.folder(root=str(tmp_path / "data"), size=12, verify="off").train
    inputs = make_inputs(PARTS, 3, "channels_last", Statistics(3, lambda: ((0.4,) * 3, (0.2,) * 3)), registry)
    ids = order(9, 1, 70).split(32)
    seen = []
    for resident, workers in (("yes", 0), ("no", 0), ("no", 1), ("no", 2)):
        for size in (32, 4):
            feed = open_feed(split, options(resident=resident, workers=workers), CPU, 0)
            pairs = [inputs(piece, True) for batch in feed(ids, 1, wholes(ids)) for piece in batch.split(size)]
            feed.close()
            seen.append((torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])))
    images, labels = seen[0]
    assert images.shape == (70, 3, 12, 12) and all(torch.equal(images, i) and torch.equal(labels, n) for i, n in seen[1:])
    assert len({image.numpy().tobytes() for image in images}) == 70


def test_workers_read_only_a_few_batches_ahead(tmp_path: Path) -> None:
    batches = torch.arange(COUNT).split(2)
    noted = Noted(tmp_path / "notes")
    with streamed(noted, 2) as feed:
        for taken, _ in enumerate(feed.fetch(batches), 1):
            assert noted.notes.read_text().count("\n") <= taken + 2 * 4
    assert noted.notes.read_text().count("\n") == len(batches)


def test_workers_are_shared_among_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cores: int, local_size: int) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        return default_workers(World(torch.device("cpu"), 0, 2 * local_size, local_size))

    assert [count(cores, local) for cores, local in ((2, 1), (64, 1), (16, 4), (64, 4), (8, 3), (2, 8))] == [2, 8, 4, 8, 2, 1]
