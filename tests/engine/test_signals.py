"""A signal is answered within seconds wherever it arrives, costs nothing, and a second one ends the process at once."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from children import EVALUATING, RECIPE, TRAINING, Mark, contents, finish, kill, noting, start

from trainrun.engine.checkpoint import Checkpoints

STEPS = 48
SOON = 20.0  # seconds; what is slow below takes a minute


def waited_for(child: Any, what: Any) -> None:
    """Return when `what()` holds, while the child runs."""
    deadline = time.monotonic() + 60
    while not what() and child.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if not what():
        kill(child)
        raise AssertionError("the run did not come to the place at which the test sends its signal")


def ended(child: Any, run: Path, number: int) -> dict[str, Any]:
    """Wait for the child, which has to end by the signal; returns result.json."""
    child.join(SOON)
    if child.exitcode is None:
        kill(child)
        raise AssertionError(f"the run did not end within {SOON:g} s of {signal.Signals(number).name}")
    said = Path(f"{run}.stderr").read_text()
    assert child.exitcode == 128 + number, said
    result = json.loads((run / "result.json").read_text())
    assert result["stop"] == "signal"
    assert said.splitlines()[-1] == f"trainrun: {result['message']}"
    assert signal.Signals(number).name in result["message"]
    return result


def stick(mark: Path, seconds: float) -> None:
    """Take this long, while the file MARK.slow is there."""
    if seconds and mark.with_suffix(".slow").exists():
        mark.touch()
        for _ in range(int(seconds * 100)):
            time.sleep(0.01)


class Pictures:
    """Random pictures, each reading of which takes its time."""

    def __init__(self, mark: Path, seconds: float) -> None:
        self.mark, self.seconds = mark, seconds

    def __call__(self, ids: Any) -> Any:
        import numpy as np

        stick(self.mark, self.seconds)
        return np.random.default_rng(0).integers(0, 256, (len(ids), 8, 8, 3), dtype=np.uint8)


def with_slow_parts(mark: Path, training: float, validation: float) -> None:
    """In a child: a data set whose readings take so many seconds, and a loss that takes minutes."""
    import numpy as np
    import torch

    from trainrun import Data, Split, part

    def split(seconds: float, size: int) -> Any:
        return Split(labels=np.arange(size) % 4, shape=(8, 8, 3), read=Pictures(mark, seconds), digest=f"{size}")

    @part("data")
    def slow_pictures() -> Data:
        """Pictures that take their time."""
        return Data(split(training, 64), split(validation, 2048), tuple("abcd"))

    @part("loss")
    def slow_loss(logits: Any, targets: Any) -> Any:
        """A loss that takes minutes."""
        stick(mark, 60.0)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def slow_recipe(tmp_path: Path) -> Path:
    file = tmp_path / "slow.yaml"
    file.write_text(
        "{data: {name: slow_pictures, workers: 0, resident: WHERE}, model: {name: tiny_convnet, width: 4}, batch_size: 16, epochs: 2,"
        " schedule: {lr: 0.01}, checkpoint: {every: off}}"
    )
    (tmp_path / "mark.slow").touch()
    return file


def test_ctrl_c_in_a_step_ends_it_saved_and_the_run_goes_on_as_if_nothing_had_been(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("every: 3st, keep: 2", "every: off"))
    mark = Mark(tmp_path / "mark")
    run = tmp_path / "run"
    child = start(recipe, run, prepare=functools.partial(noting, tmp_path / "mark"))
    waited_for(child, lambda: mark.get()[0] in (TRAINING, EVALUATING) and mark.get()[1] >= 3)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    result = ended(child, run, signal.SIGINT)
    assert 3 <= result["steps"] < STEPS
    assert json.loads((run / "checkpoints" / "last" / "state.json").read_text())["values"]["step"] == result["steps"]
    finish(recipe, run, resume=True)
    finish(recipe, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")


def test_usr1_saves_and_goes_on(tmp_path: Path, recipe: Path) -> None:
    long = RECIPE.replace("every: 3st, keep: 2", "every: 1000000st").replace("epochs: 6", "epochs: 100000")
    # Without validation, so that no best weights are saved.
    recipe.write_text(re.sub("(early_stopping|evaluate): .*\n", "", long).replace("size: 320", "size: 320, validation: 0"))
    mark, run = Mark(tmp_path / "mark"), tmp_path / "run"
    child = start(recipe, run, prepare=functools.partial(noting, tmp_path / "mark"))
    saved = functools.partial(lambda: sorted(folder.name for folder in (run / "checkpoints").glob("step-*")))
    waited_for(child, lambda: mark.get() >= (TRAINING, 3))
    before = saved()
    os.kill(child.pid, signal.SIGUSR1)
    waited_for(child, lambda: saved() != before)
    step = Checkpoints(run).newest()[0].values["step"]  # type: ignore[union-attr]  # there is one
    waited_for(child, lambda: mark.get()[1] > step)
    os.kill(child.pid, signal.SIGTERM)
    assert ended(child, run, signal.SIGTERM)["steps"] > step


@pytest.mark.parametrize(
    ("where", "training", "validation", "steps"),
    [("yes", 60.0, 0.0, None), ("no", 0.0, 0.5, 4), ("no", 60.0, 0.0, 0)],
    ids=["decoding", "evaluating", "waiting for a batch"],
)
def test_a_signal_is_answered_while_pictures_are_read(
    tmp_path: Path, slow_recipe: Path, where: str, training: float, validation: float, steps: int | None
) -> None:
    # The evaluation after step 4 reads 128 batches.
    slow_recipe.write_text(slow_recipe.read_text().replace("WHERE", f'"{where}"'))
    run, prepare = tmp_path / "run", functools.partial(with_slow_parts, tmp_path / "mark", training, validation)
    child = start(slow_recipe, run, prepare=prepare)
    waited_for(child, (tmp_path / "mark").exists)
    os.kill(child.pid, signal.SIGTERM)
    assert ended(child, run, signal.SIGTERM)["steps"] == steps
    (tmp_path / "mark.slow").unlink()
    finish(slow_recipe, run, resume=True, prepare=prepare)
    finish(slow_recipe, tmp_path / "whole", prepare=prepare)
    assert contents(run) == contents(tmp_path / "whole")


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, slow_recipe: Path) -> None:
    slow_recipe.write_text(slow_recipe.read_text().replace("WHERE", '"yes"}, loss: {name: slow_loss').replace("every: off", "every: 1st"))
    run = tmp_path / "run"
    child = start(slow_recipe, run, prepare=functools.partial(with_slow_parts, tmp_path / "mark", 0.0, 0.0))
    waited_for(child, (tmp_path / "mark").exists)
    os.kill(child.pid, signal.SIGTERM)
    child.join(1)
    assert child.exitcode is None, "the step that it is in takes minutes, and is to be ended properly"
    os.kill(child.pid, signal.SIGINT)
    child.join(SOON)
    assert child.exitcode == 128 + signal.SIGINT
    assert Checkpoints(run).newest()[0]
