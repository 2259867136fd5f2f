"""Where a run ends, which weights it ends with, and that a run that pauses is the run that goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small import CPU, Noted, equal, launched, lines, made, trained, weights, written

from trainrun.engine.build import build, open_data
from trainrun.engine.checkpoint import Checkpoints
from trainrun.engine.fit import fit
from trainrun.engine.signals import Signals
from trainrun.errors import RecipeError, UserError

# Learns for 20 steps, and is then spoilt by a learning rate of 5: the best evaluation is in the middle, whatever the last bits are.
RISES_AND_FALLS: dict[str, Any] = {
    "data": {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 60, "validation": 0.34, "noise": 0.2},
    "model": {"name": "tiny_convnet", "width": 8, "depth": 2},
    "augment": ["normalize"],
    "epochs": 9,
    "evaluate": {"every": "2st"},
    "schedule": {"lr": 0.1, "decay": {"name": "multistep", "at": ["5ep"], "values": [5.0]}},
}
TOTAL = 36


def stopped(told: list[dict[str, Any]], monitor: str, patience: int, min_delta: float) -> tuple[int, int]:
    """Steps of the best evaluation and of the stop, by the definition of early stopping."""
    best, best_step, waited = None, 0, 0
    for line in told:
        if monitor not in line:
            continue
        value = line[monitor] if monitor == "val_accuracy" else -line[monitor]
        if best is None or value - best > min_delta:
            best, best_step, waited = value, line["step"], 0
        else:
            waited += 1
        if waited == patience:
            return best_step, line["step"]
    return best_step, TOTAL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The epoch lines of the run that is never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    launched(folder, "run", **RISES_AND_FALLS)
    return lines(folder / "run")


@pytest.mark.parametrize(
    ("monitor", "patience", "min_delta", "fires"),
    [
        ("val_loss", 1, 0.0, True),
        ("val_loss", 3, 0.0, True),
        ("val_loss", 2, 0.2, True),  # no step of the slow start is worth 0.2, so it ends there
        ("val_loss", 50, 0.0, False),
        ("val_accuracy", 4, 0.0, True),
        ("val_accuracy", 50, 0.0, False),
    ],
)
def test_the_best_weights_are_restored(
    tmp_path: Path, whole: list[dict[str, Any]], monitor: str, patience: int, min_delta: float, fires: bool
) -> None:
    """Whether patience runs out or not; they are those of a run that ends at the best step."""
    best, end = stopped(whole, monitor, patience, min_delta)
    assert (end < TOTAL) == fires
    assert 0 < best < end
    rule = {"monitor": monitor, "patience": patience, "min_delta": min_delta}
    result = launched(tmp_path, "run", **RISES_AND_FALLS, early_stopping=rule)
    assert (result["stop"], result["steps"], result["best"]["step"]) == ("early_stopping" if fires else "epochs", end, best)
    line = next(line for line in whole if line["step"] == best and "val_loss" in line)
    assert result["best"][monitor] == line[monitor]
    assert result["best"]["epoch"] == best / 4
    assert result["checkpoint"] == "checkpoints/best"
    named = load_file(tmp_path / "run" / result["checkpoint"] / "model.safetensors")
    there, _ = trained(tmp_path, **RISES_AND_FALLS, stop_at=f"{best}st")
    assert equal(named, weights(there.model))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == {k: v for k, v in result.items() if k != "run"}


def test_the_last_weights_are_kept_where_the_best_are_not_asked_for(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    best, end = stopped(whole, "val_loss", 3, 0.0)
    result = launched(tmp_path, "run", **RISES_AND_FALLS, early_stopping={"monitor": "val_loss", "patience": 3, "restore_best": False})
    assert (result["stop"], result["steps"], result["best"]["step"]) == ("early_stopping", end, best)
    assert result["checkpoint"] == "checkpoints/last"
    named = load_file(tmp_path / "run" / result["checkpoint"] / "model.safetensors")
    there, _ = trained(tmp_path, **RISES_AND_FALLS, stop_at=f"{end}st")
    assert equal(named, weights(there.model))


def test_patience_needs_validation(tmp_path: Path) -> None:
    data = {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 48}
    with pytest.raises(RecipeError, match="early_stopping: needs validation samples"):
        written(tmp_path, {"early_stopping": {"patience": 3}, "data": {**data, "validation": 0}})
    recipe = written(tmp_path, {"early_stopping": {"patience": 3}, "data": data}).recipe
    without = dataclasses.replace(open_data(recipe.data), validation=None)  # as of a data set that turns out to have none
    with pytest.raises(UserError, match="early_stopping: watches validation"):
        build(recipe, CPU, without, Signals())


@pytest.mark.parametrize("stop", [5, 8, 9, 11])
@pytest.mark.parametrize("patience", [2, 50])
def test_a_run_that_pauses_goes_on_as_if_it_had_not(tmp_path: Path, stop: int, patience: int) -> None:
    """Between evaluations (5, 11), at one (8), and at the end of an epoch without one (9): schedule, patience and figures are the same."""
    fields: dict[str, Any] = {
        **RISES_AND_FALLS,
        "batch_size": 14,  # 3 steps an epoch
        "epochs": 5,
        "evaluate": {"every": "4st"},
        "schedule": {"lr": 0.3, "warmup": {"name": "gradual", "for": "1ep"}, "decay": "cosine"},
        "early_stopping": {"monitor": "val_loss", "min_delta": 0.4, "patience": patience},
        "ema": {"decay": 0.8},
        "log": {"every": "2st"},
    }
    expected = launched(tmp_path, "whole", **fields)
    paused = launched(tmp_path, "run", **fields, stop_at=f"{stop}st")
    assert (paused["stop"], paused["steps"]) == ("stop_at", stop)
    told, all_told = lines(tmp_path / "run"), lines(tmp_path / "whole")
    assert [line["lr"] for line in told if line["kind"] == "step"] == [
        line["lr"] for line in all_told if line["kind"] == "step" and line["step"] <= stop
    ]
    assert told[-1]["step"] == stop
    assert "val_loss" in told[-1]  # whoever pauses sees how far it is

    result = launched(tmp_path, "run", resume=True, **fields)
    timed = ("seconds", "images_per_second", "run")
    assert {k: v for k, v in result.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert lines(tmp_path / "run") == all_told
    for name in ("last", "best"):
        for file in ("model.safetensors", "state.safetensors"):
            at = Path("checkpoints") / name / file
            assert (tmp_path / "run" / at).read_bytes() == (tmp_path / "whole" / at).read_bytes()


# No gain is larger than 10, so that the first evaluation is the best for good.
FIRST_IS_BEST: dict[str, Any] = RISES_AND_FALLS | {"early_stopping": {"monitor": "val_loss", "patience": 50, "min_delta": 10.0}}


def test_a_pause_at_the_best_evaluation_makes_no_later_one_the_best(tmp_path: Path) -> None:
    launched(tmp_path, "run", **FIRST_IS_BEST, stop_at="2st")
    launched(tmp_path, "run", resume=True, **FIRST_IS_BEST, stop_at="3st")
    assert Checkpoints(tmp_path / "run").named("best").values["step"] == 2


def spoilt(best: Path) -> None:
    weights = best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def another(best: Path) -> None:
    best.unlink()
    best.symlink_to(os.readlink(best.with_name("last")))


@pytest.mark.parametrize(("act", "why"), [(spoilt, "does not match its checksum"), (another, "is that of step 5")])
def test_best_weights_that_are_lost_are_told_and_the_last_ones_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], act: Callable[[Path], None], why: str
) -> None:
    launched(tmp_path, "run", **FIRST_IS_BEST, stop_at="5st")
    act(tmp_path / "run" / "checkpoints" / "best")
    result = launched(tmp_path, "run", resume=True, **FIRST_IS_BEST)
    assert (result["best"]["step"], result["checkpoint"]) == (2, "checkpoints/last")
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if why in line)
    assert warning.startswith("warning: ") and warning.endswith("; the weights of the last step are used")


def test_sigusr1_saves_once_and_goes_on(tmp_path: Path) -> None:
    with Signals() as signals:
        run, _ = made(tmp_path)
        run.signals = signals
        saves: list[int] = []
        save = run.keeper.save
        run.keeper.save = lambda: (saves.append(run.state.step), save())[1]  # type: ignore[method-assign]  # counts and saves

        class Asks(Noted):
            def progress(self) -> None:
                if run.state.step == 3:
                    os.kill(os.getpid(), signal.SIGUSR1)

        run.teller = Asks(run)
        assert fit(run) == "epochs"
    assert saves.count(3) == 1
    assert set(saves) <= {3, 4, 8}  # the others are the evaluations that were best, and the end
