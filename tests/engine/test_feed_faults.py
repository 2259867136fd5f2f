"""What happens to a feed when its worker processes fail: it goes on once, in the same order, and names the files in flight."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest
from feeds import Noted, expect, passes, read, streamed

from trainrun.errors import UserError


def names(text: str) -> list[int]:
    """The pictures that a message names."""
    return [int(number) for number in re.findall(r"/pictures/(\d+)\.png", text)]


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


@dataclass(frozen=True)
class Wrong:
    """Has a bug."""

    error: type[Exception]

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        raise self.error("a bug")


@pytest.mark.parametrize("error", [TypeError, RuntimeError, FileNotFoundError])
def test_other_errors_of_a_worker_are_not_tried_again(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with streamed(Wrong(error), 1) as feed, pytest.raises(error, match="a bug"):
        list(feed.fetch(passes(0)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pass_goes_on_once_after_a_worker_died(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)
    with streamed(Deadly(tmp_path, int(batches[3][0]), 1), workers) as feed:
        expect(list(feed.fetch(batches)), batches)
        assert (tmp_path / "died0").exists()
        said = capsys.readouterr().err
        assert said.count("going on once with fresh workers") == 1 and "a worker process died (SIGKILL" in said
        assert names(said) == batches[3][:8].tolist()
        expect(list(feed.fetch(passes(1))), passes(1))
    assert capsys.readouterr().err == ""


def test_a_worker_that_dies_while_the_network_computes_does_not_disturb_it() -> None:
    batches = passes(0)
    with streamed(read, 1) as feed:
        coming = feed.fetch(batches)
        found = [next(coming)]
        os.kill(feed._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]  # where the processes are known
        time.sleep(0.5)  # where the training step would be
        expect([*found, *coming], batches)


def test_a_worker_that_dies_twice_is_an_error_that_names_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)
    with streamed(Deadly(tmp_path, int(batches[0][0]), 2), 1) as feed:
        with pytest.raises(UserError) as caught:
            list(feed.fetch(batches))
        text = str(caught.value)
        assert names(text) == batches[0][:8].tolist()
        assert "it happened twice" in text and "data.workers=0" in text and "/dev/shm" in text
        assert capsys.readouterr().err.count("going on once") == 1
        expect(list(feed.fetch(passes(1))), passes(1))  # the markers are used up


def test_a_stuck_worker_is_reported_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = passes(0)[:4]
    with streamed(Stuck(tmp_path, int(batches[0][1])), 1, timeout=2) as feed:
        expect(list(feed.fetch(batches)), batches)
    said = capsys.readouterr().err
    assert "gave no batch for 2 s" in said and names(said) == batches[0][:8].tolist() and said.count("going on once") == 1


def test_a_stuck_worker_is_not_waited_for(tmp_path: Path) -> None:
    with streamed(Stuck(tmp_path, int(passes(0)[1][0])), 1) as feed:
        next(feed.fetch(passes(0)))
        while not (tmp_path / "slept").exists():
            time.sleep(0.01)
        start = time.monotonic()
        feed.close()
        assert time.monotonic() - start < 4.5  # torch alone waits 5 s for it to leave and 5 s for SIGTERM to end it


@dataclass(frozen=True)
class DiesAhead:
    """The first process to read `last` dies there, once, while another one waits for that at `first`."""

    folder: Path
    first: int
    last: int

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        marker = self.folder / "died"
        if self.last in ids and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while self.first in ids and not marker.exists():
            time.sleep(0.01)
        return read(ids)


@pytest.mark.parametrize("cache", [False, True])
def test_the_files_of_the_dead_worker_are_named_not_those_waited_for(
    cache: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = passes(0, 40)
    deadly = batches[1][33]  # in the last but one of five pieces of eight
    with streamed(DiesAhead(tmp_path, int(batches[0][0]), int(deadly)), 2, cache=cache) as feed:
        expect(list(feed.fetch(batches)), batches)
    said = capsys.readouterr().err
    # A split that is slow to read is read in pieces, so that the file itself is among the few that are named.
    assert names(said) == (batches[1][32:40] if cache else batches[1][:8]).tolist()


def test_a_death_is_told_at_the_next_batch_though_others_are_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches, noted = passes(0), Noted(tmp_path / "notes")
    with streamed(noted, 2) as feed:
        coming = feed.fetch(batches)
        found = [next(coming)]
        iterator = feed._loader._iterator  # type: ignore[union-attr]  # where the processes are known
        while noted.notes.read_text().count("\n") < len(batches):
            time.sleep(0.01)
        os.kill(iterator._workers[1].pid, signal.SIGKILL)
        wait([iterator._workers[1].sentinel])
        found.append(next(coming))
        said = capsys.readouterr().err
        assert "a worker process died (SIGKILL" in said and names(said)
        expect([*found, *coming], batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_newer_pass_ends_the_one_before(workers: int) -> None:
    with streamed(read, workers) as feed:
        older, newer = feed.fetch(passes(0)), feed.fetch(passes(1))
        first = next(newer)
        with pytest.raises(AssertionError, match="one pass at a time"):
            next(older)
        expect([first, *newer], passes(1))


@dataclass(frozen=True)
class NoRoom:
    """Reads in a process that may write no file of a batch's size, as in a full /dev/shm."""

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
        return read(ids)


def test_shared_memory_without_room_is_an_error_at_once() -> None:
    with streamed(NoRoom(), 1) as feed, pytest.raises(UserError, match=r"/dev/shm\) has no room for a batch of .* data.workers=0"):
        list(feed.fetch(passes(0)))


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    noted = Noted(tmp_path / "notes")
    with streamed(noted, 2) as feed:
        list(feed.fetch(passes(0)))
        iterator = feed._loader._iterator  # type: ignore[union-attr]  # where the processes are known
        workers = list(iterator._workers)
        assert all(w.is_alive() for w in workers) and len(workers) == 2
        feed.close()
        feed.close()
        for worker in workers:
            worker.join(5)
        assert not any(w.is_alive() for w in workers)
