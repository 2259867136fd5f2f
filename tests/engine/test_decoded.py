"""Decoded pictures are kept between starts, checked, made anew when anything changed, and never the reason that a run ends."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from feeds import COUNT, CPU, Noted, options, read, split_of
from PIL import Image

from trainrun.engine import decoded
from trainrun.engine.resident import Resident, open_feed
from trainrun.parts.datasets import folder


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
    assert f"{file} is damaged; decoding again" in capsys.readouterr().err
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


def test_a_full_disk_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # less than the 9,000 bytes of pixels
    try:
        pictures, count = cached(tmp_path / "notes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert count == COUNT and torch.equal(pictures, torch.from_numpy(read(range(COUNT))))
    assert "decoded pictures are not kept" in capsys.readouterr().err and not list((tmp_path / "cache" / "decoded").iterdir())


def _keep(value: int, times: int) -> None:
    for _ in range(times):
        decoded.keep("same", torch.full((200, 6, 5, 3), value, dtype=torch.uint8))


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path))
    _keep(0, 1)
    writers = [multiprocessing.get_context("fork").Process(target=_keep, args=(value, 30)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        found = decoded.load("same")
        assert found is not None and found.unique().numel() == 1
        seen.add(int(found[0, 0, 0, 0]))
    assert int(decoded.load("same")[0, 0, 0, 0]) in (1, 2) and seen <= {0, 1, 2}  # type: ignore[index]  # it is there
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in (tmp_path / "decoded").iterdir()] == ["same.safetensors"]


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(decoded, "_MOST", 3500)
    pictures = torch.zeros(10, 10, 10, 1, dtype=torch.uint8)  # about 1.2 kB with its header, so two fit
    for number, name in enumerate(("a", "b")):
        decoded.keep(name, pictures)
        os.utime(tmp_path / "decoded" / f"{name}.safetensors", ns=(number, number))
    (tmp_path / "decoded" / ".leftover").write_bytes(bytes(100))
    os.utime(tmp_path / "decoded" / ".leftover", ns=(0, 0))
    assert decoded.load("a") is not None  # so b is now the older one
    decoded.keep("c", pictures)
    assert {file.stem for file in (tmp_path / "decoded").iterdir()} == {"a", "c"}
    decoded.keep("large", torch.zeros(10, 10, 100, 1, dtype=torch.uint8))  # more than all may take: kept alone
    assert {file.stem for file in (tmp_path / "decoded").iterdir()} == {"large"}


def test_pictures_that_changed_are_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "data" / "a" / "x.png"
    file.parent.mkdir(parents=True)

    def pixel(**more: object) -> int:
        feed = open_feed(folder.folder(root=str(tmp_path / "data"), **more).train, options(), CPU, 10**9)  # type: ignore[arg-type]  # options of any kind
        assert isinstance(feed, Resident)
        return int(feed.pictures[0, 0, 0, 0])

    for number, value in enumerate((10, 20, 30)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(file)
        os.utime(file, ns=(number, number))
        assert pixel() == value
    Image.fromarray(np.full((4, 4), 40, np.uint8)).save(file)
    os.utime(file, ns=(2, 2))
    assert pixel() == 30  # size and time are as before: what is kept is believed
    with open(file, "ab") as out:
        out.write(b"longer")
    os.utime(file, ns=(2, 2))
    assert pixel() == 40 and pixel(channels=1) == 40
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 5
