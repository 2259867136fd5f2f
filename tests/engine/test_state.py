"""Where things fall: the plan's steps and the best evaluation, as tables of values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from small import written

from trainrun.engine.state import Plan, State
from trainrun.recipe.schema import EarlyStopping


def plan(folder: Path, samples: int = 100, **fields: Any) -> Plan:
    return Plan.of(written(folder, {"batch_size": 30, **fields}).recipe, samples)


@pytest.mark.parametrize(
    ("fields", "per_epoch", "total", "stop"),
    [
        ({"epochs": 3}, 4, 12, 12),
        ({"epochs": 3, "batch_size": 50}, 2, 6, 6),
        ({"epochs": 3, "batch_size": 1000}, 1, 3, 3),
        ({"epochs": "7st"}, 4, 7, 7),
        ({"epochs": "2.5ep"}, 4, 10, 10),
        ({"epochs": "0.1ep"}, 4, 1, 1),  # a run has at least one step
        ({"epochs": "0.375ep"}, 4, 2, 2),  # halves round up
        ({"epochs": 3, "stop_at": "5st"}, 4, 12, 5),
        ({"epochs": 3, "stop_at": "1.25ep"}, 4, 12, 5),
        ({"epochs": 3, "stop_at": "500st"}, 4, 12, 12),
    ],
)
def test_lengths(tmp_path: Path, fields: dict[str, Any], per_epoch: int, total: int, stop: int) -> None:
    made = plan(tmp_path, **fields)
    assert (made.steps_per_epoch, made.total, made.stop) == (per_epoch, total, stop)


@pytest.mark.parametrize(
    ("every", "evaluations", "reports"),
    [
        ("1ep", [4, 8, 12], [4, 8, 12]),
        ("2ep", [8, 12], [4, 8, 12]),
        ("5st", [5, 10, 12], [4, 5, 8, 10, 12]),
        ("50%", [6, 12], [4, 6, 8, 12]),
        ("0.01ep", list(range(1, 13)), list(range(1, 13))),
        ("9ep", [12], [4, 8, 12]),
    ],
)
@pytest.mark.parametrize("stop", [{}, {"stop_at": "7st"}])
def test_evaluations_and_reports_are_the_same_wherever_a_run_pauses(
    tmp_path: Path, every: str, evaluations: list[int], reports: list[int], stop: dict[str, Any]
) -> None:
    made = plan(tmp_path, epochs=3, evaluate={"every": every}, **stop)
    assert [step for step in range(13) if made.evaluation(step)] == evaluations
    assert [step for step in range(13) if made.report(step)] == reports


@pytest.mark.parametrize(
    ("every", "steps", "seconds"), [("3st", 3, None), ("1ep", 4, None), ("0.01ep", 1, None), ("90s", None, 90), ("off", None, None)]
)
def test_saves(tmp_path: Path, every: str, steps: int | None, seconds: float | None) -> None:
    made = plan(tmp_path, checkpoint={"every": every})
    assert (made.save_every, made.save_seconds) == (steps, seconds)


def test_pictures_of_a_stretch_of_steps(tmp_path: Path) -> None:
    """Steps of an epoch have 30, 30, 30 and 10 pictures."""
    made = plan(tmp_path)
    sizes = [30, 30, 30, 10] * 3
    assert all(made.pictures(a, b) == sum(sizes[a:b]) for a in range(13) for b in range(a, 13))


NAN = math.nan
UP, DOWN = "val_accuracy", "val_loss"


@pytest.mark.parametrize(
    ("monitor", "min_delta", "seen", "best", "waited"),
    [
        (UP, 0.0, [0.5, 0.6, 0.6, 0.7], [1, 2, 2, 4], [0, 0, 1, 0]),  # a tie is no improvement
        (UP, 0.0, [0.7, 0.6, 0.5, 0.6], [1, 1, 1, 1], [0, 1, 2, 3]),
        (UP, 0.125, [0.5, 0.625, 0.75, 0.75], [1, 1, 3, 3], [0, 1, 0, 1]),  # more than min_delta, counted from the best
        (DOWN, 0.0, [2.0, 1.0, 1.0, 0.5], [1, 2, 2, 4], [0, 0, 1, 0]),
        (DOWN, 0.25, [2.0, 1.75, 1.5, 1.0], [1, 1, 3, 4], [0, 1, 0, 0]),
        (DOWN, 0.0, [NAN, 2.0, NAN, 1.0], [None, 2, 2, 4], [1, 0, 1, 0]),
        (UP, 0.0, [0.0, 0.0, 0.25, NAN], [1, 1, 3, 3], [0, 1, 0, 1]),  # an accuracy of zero is a result as well
        (DOWN, 0.0, [math.inf, 2.0, -math.inf, 1.0], [None, 2, 2, 4], [1, 0, 1, 0]),
    ],
)
def test_the_best_evaluation(monitor: Any, min_delta: float, seen: list[float], best: list[int | None], waited: list[int]) -> None:
    state, rule = State(), EarlyStopping(monitor=monitor, min_delta=min_delta)
    for n, value in enumerate(seen):
        state.step = n + 1
        state.observe({"val_loss": 1.0, "val_accuracy": 0.5, monitor: value}, epoch=state.step / 2, rule=rule)
        assert (state.best["step"] if state.best else None, state.waited) == (best[n], waited[n])
        assert state.is_best == (state.waited == 0)
    assert state.best and state.best["epoch"] == state.best["step"] / 2
    assert state.best[monitor] == seen[state.best["step"] - 1]
