"""One run, one directory: numbered, held by one process, described, and never mixed up with another run."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import RECIPE, TRAINING, Mark, contents, kill, noting, server, start, state
from PIL import Image
from small import SMALL, written

from trainrun.engine import directory
from trainrun.engine.launch import launch
from trainrun.errors import RecipeError, TrainrunError, UserError
from trainrun.recipe.load import load


def run_in(folder: Path, out: Path | None, resume: bool = False, **fields: Any) -> dict[str, Any]:
    """`fit` of the recipe SMALL with other fields."""
    return launch(written(folder, fields), out=out, resume=resume, quiet=True)


def take_numbers(home: str, barrier: Any, taken: Any) -> None:
    os.chdir(home)
    for _ in range(100):
        barrier.wait()
        with directory.fresh("name", None) as run:
            taken.put(str(run))


def test_runs_that_start_together_get_numbers_of_their_own(tmp_path: Path) -> None:
    barrier, taken = server.Barrier(4, timeout=30), server.Queue()
    children = [server.Process(target=take_numbers, args=(str(tmp_path), barrier, taken), daemon=True) for _ in range(4)]
    for child in children:
        child.start()
    runs = [taken.get(timeout=60) for _ in range(400)]
    for child in children:
        child.join(60)
    assert sorted(runs) == [f"runs/name/{n:03d}" for n in range(1, 401)]
    assert os.readlink(tmp_path / "runs" / "name" / "latest") in ("397", "398", "399", "400")


def parent(file: Path) -> int:
    """The process that started the one whose /proc/PID/stat this is; 0 where that has just ended."""
    try:
        return int(file.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def forking(mark: Path) -> None:
    """In a child: start workers as a command on Linux does, so that they inherit what is open, and note the step in `mark`."""
    multiprocessing.set_start_method("fork", force=True)
    noting(mark)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Any]:
    """A run in tmp_path/run, under way in another process with two data workers."""
    recipe, mark = tmp_path / "held.yaml", Mark(tmp_path / "mark")
    recipe.write_text(RECIPE.replace('resident: "yes"', 'resident: "no"').replace("epochs: 6", "epochs: 100000"))
    child = start(recipe, tmp_path / "run", prepare=functools.partial(forking, tmp_path / "mark"))
    deadline = time.monotonic() + 120
    while mark.get() < (TRAINING, 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    yield child
    kill(child)


def test_a_directory_in_use_is_refused_at_once_and_free_at_once_after_a_kill(tmp_path: Path, held: Any) -> None:
    recipe, run = load(tmp_path / "held.yaml"), tmp_path / "run"
    for resume in (True, False):
        began = time.monotonic()
        with pytest.raises(UserError, match=f"run is in use by process {held.pid} on {re.escape(socket.gethostname())}; wait for it"):
            launch(recipe, out=run, resume=resume, quiet=True)
        assert time.monotonic() - began < 1  # what P6 promises; it takes some 10 ms
    workers = [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/stat") if parent(file) == held.pid]
    assert len(workers) >= 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # so that they outlive the holder, with all the files that they inherited from it
    os.kill(held.pid, signal.SIGKILL)
    held.join()
    with directory.claim(run):
        pass
    for worker in workers:
        os.kill(worker, signal.SIGKILL)


def test_a_run_is_not_overwritten_and_a_finished_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    first = run_in(tmp_path, run, resume=True)  # nothing is there: it starts afresh
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="holds a run already; add --resume to go on with it") as caught:
        run_in(tmp_path, run)
    assert caught.value.next.endswith(f"small.yaml --out {run} --resume")
    capsys.readouterr()
    assert launch(written(tmp_path, {}), out=run, resume=True) == first
    assert capsys.readouterr().err == f"{run} is finished already: all epochs are done; next: trainrun eval {run}\n"
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_in_which_a_run_was_refused_can_be_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = [{"name": "normalize", "mean": [0.5, 0.5]}]  # for pictures with one channel, which only building the run finds out
    for out in (tmp_path / "run", None):
        with pytest.raises(RecipeError, match="normalize has 2 values") as caught:
            run_in(tmp_path, out, augment=wrong)
        assert caught.value.next.endswith("small.yaml" + (f" --out {out}" if out else ""))
    assert run_in(tmp_path, tmp_path / "run", resume=resume)["steps"] == 8
    run_in(tmp_path, None, resume=resume)
    assert (tmp_path / "runs" / "small" / "002").exists()  # a number that was taken stays taken
    for file in ("recipe.yaml", "metrics.jsonl"):
        assert (tmp_path / "run" / file).read_text().count("normalize") == 0
    with pytest.raises(UserError, match="holds a run already"):
        run_in(tmp_path, tmp_path / "run")


def test_a_run_that_is_refused_when_it_goes_on_is_still_there(tmp_path: Path, paused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(paused, run, symlinks=True)
    monkeypatch.setattr("trainrun.engine.launch.build", lambda *words, **named: (_ for _ in ()).throw(UserError("the weights are gone")))
    with pytest.raises(UserError, match="the weights are gone"):
        run_in(tmp_path, run, resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        run_in(tmp_path, run)


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after 3 of its 8 steps."""
    folder = tmp_path_factory.mktemp("paused")
    run_in(folder, folder / "run", stop_at="3st")
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 5}, "seed: was 0, is 5"),
        ({"batch_size": 8}, "batch_size: was 10, is 8"),
        ({"micro_batch": 5}, "micro_batch: was null, is 5"),
        ({"epochs": 3}, 'epochs: was "2ep", is "3ep"'),
        ({"schedule": {"lr": 0.2, "decay": "cosine"}}, 'schedule.decay.alpha: was null, is 0.0; schedule.decay.name: was "constant", is "cosine"; .*lr: was 0.1, is 0.2'),
        ({"data": {**SMALL["data"], "noise": 0.2}}, "data.noise: was 0.1, is 0.2"),
        ({"ema": {"decay": 0.9}}, "ema.decay: was null, is 0.9"),
        ({"precision": "bf16"}, 'precision: was "fp32", is "bf16"'),
        ({"clip": 1.0}, "clip: was null, is 1.0"),
        ({"augment": ["normalize"]}, "augment: was "),
    ],
)  # fmt: skip
def test_going_on_with_other_numbers_is_refused_by_key(paused: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"was started with other settings .*{told}.*; put them back, or start a new run"):
        run_in(tmp_path, paused, resume=True, **change)


def test_going_on_with_other_means_is_the_same_run(paused: Path, tmp_path: Path) -> None:
    data = {**SMALL["data"], "workers": 1, "resident": "no", "timeout": 60, "cache": False}
    other = {"name": "other", "description": "d", "checkpoint": {"every": "2st", "keep": 1}, "log": {"every": "50st", "tensorboard": True}}
    whole = run_in(tmp_path, tmp_path / "whole")
    moved = tmp_path / "moved"
    paused.rename(moved)
    moved_result = run_in(tmp_path, moved, resume=True, data=data, **other)
    moved.rename(paused)
    assert (moved_result["stop"], moved_result["steps"]) == ("epochs", 8)
    assert contents(paused)[0][:2] == contents(tmp_path / "whole")[0][:2]
    assert moved_result["best"] == whole["best"]


def test_a_download_that_was_made_is_not_asked_for_again(tmp_path: Path) -> None:
    mine = "data: mnist\nmodel: tiny_convnet\nepochs: 1\nschedule: {lr: 0.1}\n"
    (tmp_path / "k.yaml").write_text(mine)
    before, now = (load(tmp_path / "k.yaml", words).recipe for words in (["data.download=true"], []))
    assert before.data.options["download"] and not directory.differences(before, now)


def test_exact_refuses_where_the_machine_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, threads = tmp_path / "run", torch.get_num_threads()
    run_in(tmp_path, run, stop_at="3st")
    try:
        torch.set_num_threads(threads + 1)
        told = f"threads: was {threads}, is {threads + 1}"
        with pytest.raises(UserError, match=f"--exact: .*{told}.* leave --exact out"):
            launch(written(tmp_path, {}), out=run, resume=True, exact=True, quiet=True)
        launch(written(tmp_path, {}), out=run, resume=True, quiet=True)
        assert told in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)


def test_the_files_of_a_run_tell_what_it_is_and_running_its_recipe_is_the_same_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fields = {"precision": "auto", "memory_format": "auto", "name": "n", "augment": ["horizontal_flip", "normalize"], "seed": 3}
    run_in(tmp_path, run, **fields)
    environment = json.loads((run / "environment.json").read_text())
    assert environment.items() >= {"seed": 3, "torch": torch.__version__, "threads": torch.get_num_threads(), "processes": 1}.items()
    assert environment.keys() >= {"trainrun", "python", "platform", "command", "git", "device", "recipe_sha256", "data"}
    result = json.loads((run / "result.json").read_text())
    assert result.keys() == {"stop", "steps", "epochs", "best", "seconds", "images_per_second", "checkpoint"}
    assert (result["stop"], result["steps"], result["epochs"]) == ("epochs", 8, 2.0)
    assert result["best"].keys() == {"step", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    text = (run / "recipe.yaml").read_text()
    assert "precision: fp32\n" in text and "memory_format: channels_last\n" in text
    launch(load(run / "recipe.yaml"), out=tmp_path / "again", quiet=True)
    assert (tmp_path / "again" / "recipe.yaml").read_text() == text
    assert contents(tmp_path / "again") == contents(run)


def test_data_that_turn_out_to_have_no_validation_pictures(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (8, 8), (20 * n, 100 * label, 9)).save(tmp_path / "pictures" / name / f"{n}.png")
    data = {"name": "folder", "root": str(tmp_path / "pictures"), "size": 8, "workers": 0, "cache": False}
    assert run_in(tmp_path, tmp_path / "run", data=data)["best"] is None
    launch(load(tmp_path / "run" / "recipe.yaml"), out=tmp_path / "again", quiet=True)
    assert state(tmp_path / "again" / "checkpoints" / "last") == state(tmp_path / "run" / "checkpoints" / "last")
    with pytest.raises(RecipeError) as caught:
        run_in(tmp_path, tmp_path / "other", data=data, early_stopping={"patience": 3}, evaluate={"every": "2st"})
    assert [mistake.path for mistake in caught.value.mistakes] == ["early_stopping", "evaluate"]
    assert not (tmp_path / "other").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TrainrunError, match="cannot be written to: .*; choose another --out") as caught:
            run_in(tmp_path, out)
        assert caught.value.exit_code == 2
