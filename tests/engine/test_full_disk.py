"""A disk that fills, goes away or turns read-only costs a warning and no work: the older checkpoint stands and the run goes on."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import RECIPE, at_steps, contents, figures, finish, send

from trainrun.engine.checkpoint import Checkpoints

FIRST, LAST = 10, 17  # the steps within which the trouble begins and ends; a checkpoint is due at 12 and 15, an evaluation at 14
WARNING = "could not be written to"
Act = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "k.yaml").write_text(RECIPE)
    finish(folder / "k.yaml", folder / "whole")
    return folder / "k.yaml", contents(folder / "whole")


def troubled(run: Path, acts: dict[int, Act], retry: float = 0.0, give_up: float = 600.0) -> None:
    """In a child: do something within some steps, and try failed saves again after `retry` seconds, for `give_up` at most."""
    from trainrun.engine import keeper

    keeper._RETRY, keeper._GIVE_UP = retry, give_up
    acts.pop(0, lambda _: None)(run)
    at_steps(run.with_suffix(".mark"), {step: functools.partial(act, run) for step, act in acts.items()})


def fill(run: Path) -> None:
    """From now on no file may grow beyond half a line more than the journal: neither that line nor the weights fit."""
    journal = run / "metrics.jsonl"
    limit = journal.stat().st_size + 100 if journal.exists() else 8192
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def clear(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def the_older_one_stands(run: Path) -> None:
    snapshot, damage = Checkpoints(run).newest()
    assert snapshot is not None and snapshot.values["step"] == 9 and not damage


def lock(run: Path) -> None:
    """Make the folder read-only, for this process too if it is root's: it gives up the right to pass over permissions."""
    (run / "checkpoints").chmod(0o555)
    if os.geteuid() == 0:
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, sets) == 0
        sets[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.capset(header, sets) == 0


def unlock(run: Path) -> None:
    (run / "checkpoints").chmod(0o755)


def the_best_was_kept(run: Path, expected: int) -> None:
    assert Checkpoints(run).named("best").values["step"] == expected


def best_at(whole: tuple[Any, ...], step: int) -> int:
    """The step of the best evaluation up to `step`."""
    seen = [line for line in whole[2] if "val_loss" in line and line["step"] <= step]
    return min(seen, key=lambda line: line["val_loss"])["step"]


@pytest.mark.parametrize(("begin", "end"), [(fill, clear), (lock, unlock)], ids=["full", "read-only"])
def test_the_run_goes_on_and_saves_when_it_can(tmp_path: Path, whole: Any, begin: Act, end: Act) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    best = best_at(expected, 18)
    assert FIRST < best < LAST  # the best weights so far fall into the time without room
    acts = {FIRST: begin, LAST - 1: the_older_one_stands, LAST: end, LAST + 2: functools.partial(the_best_was_kept, expected=best)}
    said = finish(recipe, run, prepare=functools.partial(troubled, run, acts))
    assert said.count(WARNING) > 1 and str(run / "checkpoints") in said and "the checkpoint at step 9 stands" in said
    assert said.count("metrics.jsonl cannot be written") == (begin is fill)
    assert contents(run) == expected


def test_a_failed_save_is_tried_again_after_a_minute_only(tmp_path: Path, whole: Any) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    said = finish(recipe, run, prepare=functools.partial(troubled, run, {FIRST: fill, LAST: clear}, retry=60.0))
    # At 12 by the steps and at 14 for the best evaluation; then nothing is tried before the next best one.
    assert said.count(WARNING) == 2
    assert contents(run) == expected


def test_a_disk_that_stays_full_ends_the_run_and_it_goes_on_later(tmp_path: Path, whole: Any) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    said = finish(recipe, run, prepare=functools.partial(troubled, run, {46: fill}, retry=0.1, give_up=1.0), code=2)
    assert "The run waits here" in said and "failed for ten minutes" in said and "the checkpoint at step 45 stands" in said
    assert str(run / "checkpoints") in said and "Traceback" not in said
    finish(recipe, run, resume=True)
    assert contents(run) == expected


def ask_to_stop(_: Path) -> None:
    send(signal.SIGTERM)


def test_a_signal_on_a_full_disk_does_not_claim_that_all_is_saved(tmp_path: Path, whole: Any) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    acts = {FIRST: fill, FIRST + 1: ask_to_stop}
    said = finish(recipe, run, prepare=functools.partial(troubled, run, acts), code=2)
    assert "a signal asks to stop" in said and "the checkpoint at step 9 stands" in said and "nothing is lost" not in said
    finish(recipe, run, resume=True)
    assert contents(run) == expected


def test_no_step_is_made_without_a_first_checkpoint(tmp_path: Path, whole: Any) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    said = finish(recipe, run, prepare=functools.partial(troubled, run, {0: fill}, give_up=5.0), code=2)
    assert "the checkpoint at step 0 could not be written" in said and "Traceback" not in said
    assert figures(run) == []
    finish(recipe, run, resume=True)
    assert contents(run) == expected


def remove(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def test_a_folder_that_a_person_removes_is_made_again(tmp_path: Path, whole: Any) -> None:
    recipe, expected = whole
    run = tmp_path / "run"
    finish(recipe, run, prepare=functools.partial(troubled, run, {FIRST: remove}))
    assert contents(run) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", str(disk)])
    if not mounted or mounted.returncode:
        pytest.skip("only root, where it may mount, can make a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_disk(run: Path) -> None:
    with (run.parent / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def clear_disk(run: Path) -> None:
    (run.parent / "filler").unlink()


def test_a_file_system_that_is_full(small_disk: Path, whole: Any) -> None:
    recipe, expected = whole
    run = small_disk / "run"
    acts = {FIRST: fill_disk, LAST - 1: the_older_one_stands, LAST: clear_disk}
    said = finish(recipe, run, prepare=functools.partial(troubled, run, acts))
    assert WARNING in said and "No space left on device" in said
    assert contents(run) == expected
    assert json.loads((run / "result.json").read_text())["stop"] == "epochs"
