"""A run that is killed and resumed equals one that was never stopped, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 320, resident: "RESIDENT", workers: 2}
model: {name: tiny_convnet, width: 8, dropout: 0.1}
batch_size: 32
micro_batch: 12
epochs: 6
schedule: {lr: 0.05, warmup: {name: gradual, for: 1ep}, decay: cosine}
augment: [{name: random_crop, padding: 1}, horizontal_flip, normalize]
ema: {decay: 0.99}
early_stopping: {patience: 20}
checkpoint: {every: 3st, keep: 2}
log: {every: 4st}
evaluate: {every: 7st}
clip: 1.0
"""
# One server imports torch once; its children start in a fraction of a second.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["trainrun.parts", "trainrun.engine.launch"])


def train(recipe: str, out: str, resume: bool) -> None:
    """Run `fit` in this process, as the command does."""
    import trainrun.parts  # noqa: F401
    from trainrun.engine.launch import launch
    from trainrun.recipe.load import load

    os.setpgrp()
    launch(load(recipe), out=Path(out), resume=resume, quiet=True)


def finish(recipe: Path, out: Path, resume: bool = False) -> None:
    child = server.Process(target=train, args=(str(recipe), str(out), resume))
    child.start()
    child.join(120)
    assert child.exitcode == 0


def contents(run: Path) -> tuple[Any, ...]:
    """Weights, every other tensor, state and figures, without what is measured by the clock."""
    last = run / "checkpoints" / "last"
    state = json.loads((last / "state.json").read_text())["values"]
    state = {k: v for k, v in state.items() if k not in ("seconds", "journal")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
    return (last / "model.safetensors").read_bytes(), (last / "state.safetensors").read_bytes(), state, figures


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_killed_at_random_instants_and_resumed_is_uninterrupted(tmp_path: Path, resident: str) -> None:
    recipe = tmp_path / "k.yaml"
    recipe.write_text(RECIPE.replace("RESIDENT", resident))
    finish(recipe, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    chance = random.Random(resident)
    steps: set[str] = set()
    for kill in range(5):
        run = tmp_path / f"killed-{kill}"
        child = server.Process(target=train, args=(str(recipe), str(run), False))
        child.start()
        deadline = time.monotonic() + 60
        while not (run / "checkpoints" / "last").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.5 if resident == "yes" else 4.0))  # worker processes take a while to start
        assert child.pid
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        steps.add(os.readlink(run / "checkpoints" / "last"))
        finish(recipe, run, resume=True)
        assert contents(run) == expected
    assert len(steps) > 1, f"all kills fell on the same checkpoint: {steps}"


def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = tmp_path / "k.yaml"
    recipe.write_text(RECIPE.replace("RESIDENT", "yes").replace("every: 3st", "every: off").replace(", keep: 2", "").replace("epochs: 6", "epochs: 60"))
    run = tmp_path / "run"
    child = server.Process(target=train, args=(str(recipe), str(run), False))
    child.start()
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.3)
    assert child.pid
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode not in (0, None)
    assert json.loads((run / "result.json").read_text())["stop"] == "signal"
    finish(recipe, run, resume=True)
    finish(recipe, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")
