"""Training runs in processes of their own, which a test can kill, or let kill themselves at a chosen instant.

One server imports torch once; its children start in a fraction of a second.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TRAINING, SAVING, EVALUATING, RESUMING = "training", "inside a save", "evaluation", "taking up a checkpoint"
PHASES = ("start", TRAINING, SAVING, EVALUATING, RESUMING)
server = multiprocessing.get_context("forkserver")
# torch.optim imports torch._dynamo when the first optimizer is made, which takes a second.
server.set_forkserver_preload(["trainrun.parts", "trainrun.engine.launch", "trainrun.engine.fit", "torch._dynamo"])

RECIPE = """
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 320, resident: "yes", workers: 2}
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
"""  # 48 steps


class Mark:
    """What a child is at, in memory that outlives it: its phase and the steps that it has made."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 16)

    def set(self, phase: str, step: int) -> None:
        self._memory[:] = struct.pack("<qq", PHASES.index(phase), step)

    def get(self) -> tuple[str, int]:
        phase, step = struct.unpack("<qq", self._memory[:])
        return PHASES[phase], step


def noting(mark: Path) -> None:
    """In a child: note in `mark` what it is at."""
    from trainrun.engine import fit
    from trainrun.engine.checkpoint import Checkpoints
    from trainrun.engine.run import Run

    note, made = Mark(mark), 0
    note.set("start", 0)

    def within(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            note.set(phase, made)
            try:
                return function(*args)
            finally:
                note.set(TRAINING, made)

        return noted

    def step(run: Run, *args: Any) -> Any:
        nonlocal made
        made = run.state.step + 1
        note.set(TRAINING, made)
        return train_step(run, *args)

    train_step, fit.train_step = fit.train_step, step
    Checkpoints.save = within(SAVING, Checkpoints.save)  # type: ignore[method-assign]  # what the test is about is noted from outside
    Checkpoints.adopt = within(RESUMING, Checkpoints.adopt)  # type: ignore[method-assign]  # as above
    Run.validate = within(EVALUATING, Run.validate)  # type: ignore[method-assign]  # as above


def train(recipe: str, out: str, resume: bool, prepare: Callable[[], None] | None) -> None:
    """Run `fit` in this process, as the command does, with what it says in a file beside its folder."""
    import torch

    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.engine.launch import launch
    from trainrun.errors import TrainrunError
    from trainrun.recipe.load import load

    os.setpgrp()
    torch.set_num_threads(1)
    sys.stderr = open(f"{out}.stderr", "w", buffering=1)  # noqa: SIM115 - open until the process ends
    if prepare:
        prepare()
    try:
        launch(load(recipe), out=Path(out), resume=resume, quiet=True)
    except TrainrunError as error:
        print(f"trainrun: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def start(recipe: Path, out: Path, resume: bool = False, prepare: Callable[[], None] | None = None) -> Any:
    """A child that trains."""
    child = server.Process(target=train, args=(str(recipe), str(out), resume, prepare))
    child.start()
    return child


def finish(recipe: Path, out: Path, resume: bool = False, prepare: Callable[[], None] | None = None, code: int = 0) -> str:
    """Train to the end, which has to be `code`; returns what was said."""
    child = start(recipe, out, resume, prepare)
    child.join(120)
    late = child.exitcode is None and kill(child)
    said = Path(f"{out}.stderr").read_text()
    assert not late and child.exitcode == code, said
    return said


def kill(child: Any) -> bool:
    """Kill the child and its workers; returns whether it was still running."""
    if child.exitcode is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode == -signal.SIGKILL


def at_steps(mark: Path, acts: Mapping[int, Callable[[], None]]) -> None:
    """In a child: do something within certain steps, counted from 1, before their update, the first time that each is made."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    noting(mark)
    note, left = Mark(mark), dict(acts)

    def before_update(*_: Any) -> None:
        left.pop(note.get()[1], lambda: None)()

    register_optimizer_step_pre_hook(before_update)


def die() -> None:
    """End this process and its workers as by kill -9."""
    os.killpg(0, signal.SIGKILL)


def send(number: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


def state(folder: Path) -> tuple[Any, ...]:
    """A checkpoint's weights, every other tensor and values, without what is measured by the clock and the plugins by which a run dies."""
    values = json.loads((folder / "state.json").read_text())["values"]
    values["fingerprint"].pop("plugins")
    values = {name: value for name, value in values.items() if name not in ("seconds", "journal")}
    return (folder / "model.safetensors").read_bytes(), (folder / "state.safetensors").read_bytes(), values


def figures(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what is measured by the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")} for line in lines]


def contents(run: Path) -> tuple[Any, ...]:
    """All that a finished run must have in common with one that was never stopped."""
    links = run / "checkpoints"
    result = json.loads((run / "result.json").read_text())
    result = {name: value for name, value in result.items() if name not in ("seconds", "images_per_second")}
    return state(links / "last"), state(links / "best"), figures(run), result
