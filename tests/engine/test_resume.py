"""A run that a signal stops saves its state, and goes on as if it had not been stopped."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from children import RECIPE, Mark, at_steps, contents, finish, noting, send, start

from trainrun.engine.checkpoint import Checkpoints


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Nothing is saved by itself, so that what goes on after a signal goes on from what the signal saved."""
    file = tmp_path / "k.yaml"
    file.write_text(RECIPE.replace("{every: 3st, keep: 2}", "{every: off}"))
    return file


def interrupt(number: int, recipe: Path, run: Path, step: int, resume: bool) -> int | None:
    """Train, and send a signal once `step` steps are made; returns the exit code."""
    mark = Mark(run.with_suffix(".mark"))
    mark.set("start", 0)
    child = start(recipe, run, resume, functools.partial(noting, run.with_suffix(".mark")))
    deadline = time.monotonic() + 120
    while mark.get()[1] < step and child.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    assert child.pid
    os.kill(child.pid, number)
    child.join(120)
    return child.exitcode


def test_signals_to_stop_cost_nothing(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("epochs: 6", "epochs: 60"))
    run, steps = tmp_path / "run", [0]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        assert interrupt(number, recipe, run, steps[-1] + 5, resume=len(steps) > 1) == 128 + number
        result = json.loads((run / "result.json").read_text())
        assert result["stop"] == "signal"
        steps.append(result["steps"])
        assert Checkpoints(run).named("last").values["step"] == steps[-1] >= steps[-2] + 4
    finish(recipe, run, resume=True)
    finish(recipe, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")


def test_a_signal_to_save_saves_and_the_run_goes_on(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("{every: 7st}", "{every: 6ep}"))  # no best weights to save before the end
    run = tmp_path / "run"
    finish(recipe, run, prepare=functools.partial(at_steps, tmp_path / "mark", {5: functools.partial(send, signal.SIGUSR1)}))
    assert sorted(folder.name for folder in (run / "checkpoints").glob("step-*")) == ["step-00000005", "step-00000048"]
    finish(recipe, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")
