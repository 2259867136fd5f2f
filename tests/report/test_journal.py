"""The journal: whole lines, none doubled or lost over resumes, kills and full disks, in metrics.jsonl and in TensorBoard."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainrun.report.journal import Journal

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["torch.utils.tensorboard"])


def line(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "lr": 0.1, "train_loss": float(step)}


def steps(file: Path) -> list[int]:
    """The steps of the file's lines, each of which has to be whole."""
    text = file.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(one)["step"] for one in text.splitlines()]


def test_goes_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("step", line(1))
    journal.sync()
    position = journal.position
    journal.write("step", line(2))
    journal.close()
    with open(tmp_path / "metrics.jsonl", "a") as out:
        out.write('{"kind": "st')  # what a kill may leave
    journal = Journal(tmp_path, position)
    assert journal.position == position
    journal.write("step", {**line(2), "val_loss": float("nan")})
    journal.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["val_loss"] is None


def test_lost_lines_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path, warn=told.append)
    for step in (1, 2):
        journal.write("step", line(step))
    position, length = journal.position, journal.position // 2
    journal.close()
    os.truncate(tmp_path / "metrics.jsonl", position - 3)
    journal = Journal(tmp_path, position, step=2, warn=told.append)
    journal.write("step", line(3))
    journal.close()
    assert told == [f"{tmp_path / 'metrics.jsonl'} has lost {length} of the {position} bytes that it had at step 2"]
    assert steps(tmp_path / "metrics.jsonl") == [1, 3]


def test_lines_wait_for_room_and_are_never_cut(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(tmp_path, warn=told.append)
    journal.write("step", line(1))
    try:
        # Room for a line and a half: the kernel writes half of the next one and says so, then refuses.
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.position * 5 // 2, hard))
        for step in (2, 3, 4):
            journal.write("step", line(step))
            assert steps(file) == [1, 2]
        assert journal.position > file.stat().st_size
        with pytest.raises(OSError):
            journal.sync()
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, hard))
        journal.write("step", line(5))
        assert steps(file) == [1, 2]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.write("step", line(6))
    journal.sync()
    assert journal.position == file.stat().st_size
    journal.close()
    assert steps(file) == [1, 2, 3, 4, 5, 6]
    assert len(told) == 1 and str(file) in told[0]


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by its own reader: steps and values by name."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return {tag: [(e.step, make_ndarray(e.tensor_proto).item()) for e in board.Tensors(tag)] for tag in board.Tags()["tensors"]}


def write(run: Path, position: int, step: int, lines: Sequence[tuple[str, int]], synced: int) -> None:
    """Write lines, sync after the first `synced` of them, and die as by kill -9."""
    journal = Journal(run, position, step=step, tensorboard=True)
    for n, (kind, at) in enumerate(lines, 1):
        journal.write(kind, line(at))
        if n == synced:
            journal.sync()
            (run / "position").write_text(str(journal.position))
    if synced < len(lines):  # the worst case: all that no checkpoint counts on is on disk
        journal.close()
    os.kill(os.getpid(), signal.SIGKILL)


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    # Checkpoints at 0, 4 and 4 again, the second with its evaluation owed: each process dies with lines that no checkpoint counts on.
    lives: list[tuple[int, list[tuple[str, int]], int]] = [
        (0, [("step", 2), ("step", 4)], 0),
        (0, [("step", 2), ("step", 4), ("epoch", 4), ("step", 6)], 2),
        (4, [("epoch", 4), ("step", 6), ("step", 8)], 0),
        (4, [("epoch", 4), ("step", 6), ("step", 8), ("epoch", 8)], 4),
    ]
    position = 0
    for step, lines, synced in lives:
        files = {f.name for f in (tmp_path / "tensorboard").glob("*")}
        # TensorBoard orders its files by the second in their names.
        while any(f"tfevents.{int(time.time()):010d}" in name for name in files):
            time.sleep(0.05)
        child = server.Process(target=write, args=(tmp_path, position, step, lines, synced))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        if synced:
            position = int((tmp_path / "position").read_text())
    assert [(kind["kind"], kind["step"]) for kind in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())] == [
        ("step", 2), ("step", 4), ("epoch", 4), ("step", 6), ("step", 8), ("epoch", 8),
    ]  # fmt: skip
    figures = shown(tmp_path)
    assert figures["step/train_loss"] == [(2, 2.0), (4, 4.0), (6, 6.0), (8, 8.0)]
    assert figures["epoch/train_loss"] == [(4, 4.0), (8, 8.0)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread dies of the full disk
def test_tensorboard_is_brought_up_to_date_after_a_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    told: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(tmp_path, tensorboard=True, warn=told.append)
    journal.write("step", line(1))
    journal.sync()
    (events,) = (tmp_path / "tensorboard").iterdir()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size, hard))
        for step in (2, 3):
            journal.write("step", line(step))
        journal.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    while any(f"tfevents.{int(time.time()):010d}" in f.name for f in (tmp_path / "tensorboard").iterdir()):
        time.sleep(0.05)
    journal.write("step", line(4))
    journal.sync()
    journal.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert shown(tmp_path)["step/train_loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert any("tensorboard" in text for text in told)
