"""The learning rate that the optimizer gets: as previewed, as metrics.jsonl says, and the same wherever a run was stopped."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from children import RECIPE, TRAINING, Mark, at_steps, contents, die, finish, start
from PIL import Image
from small import CPU, launched, lines, made, trained, written
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainrun.engine.fit import fit
from trainrun.engine.measure import Record
from trainrun.errors import UserError
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry
from trainrun.trials.schedule import curve
from trainrun.world import World

# What a part needs to have an effect in 7 epochs of 4 steps; one that is not here is taken by its name alone.
DECAYS: dict[str, dict[str, Any]] = {
    "step": {"every": "2ep"},
    "multistep": {"at": ["1ep", "9st", "80%"]},
    "exponential": {"rate": 0.5, "steps": "6st"},
    "natural_exponential": {"rate": 2.0},
    "polynomial": {"power": 2.0, "steps": "6st", "cycle": True},
    "cosine_restarts": {"first": "6st"},
    "inverse_sqrt": {"timescale": "3st"},
    "noisy_linear_cosine": {"initial_variance": 0.1},
    "plateau": {"patience": 6, "monitor": "val_loss"},
    "trapezoid": {"rise": "1ep"},
}
WARMUPS: dict[str, dict[str, Any]] = {
    "constant": {"lr": 0.01, "until_train_error": 0.001, "over": "5st"},
    "gradual": {"for": "2ep"},
    "exponential": {"for": "2ep", "start": 0.001},
}
FIELDS: dict[str, Any] = {"epochs": 7, "log": {"every": "1st"}, "evaluate": {"every": "4st"}, "seed": 3}
BASE: dict[str, Any] = {"per_256": 2.0, "rule": "linear"}  # 0.078125 for 10 pictures


@contextmanager
def rates() -> Iterator[list[float]]:
    """The rates that optimizers step with, one a step."""
    got: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: got.append(optimizer.param_groups[0]["lr"]))
    yield got
    hook.remove()


@pytest.mark.parametrize(
    ("warmup", "decay"), [*(("none", name) for name in registry.names("decay")), *((name, "linear") for name in registry.names("warmup"))]
)
def test_what_is_previewed_is_what_is_used(tmp_path: Path, warmup: str, decay: str) -> None:
    nodes = {"warmup": {"name": warmup, **WARMUPS.get(warmup, {})}, "decay": {"name": decay, **DECAYS.get(decay, {})}}
    fields = FIELDS | {"schedule": {"lr": BASE, **nodes}}
    seen = curve("small.yaml", written(tmp_path, fields).recipe, CPU).document()
    with rates() as got:
        run = Path(launched(tmp_path, "run", **fields)["run"])
    used = {line["step"] - 1: line["lr"] for line in lines(run) if line["kind"] == "step"}
    assert {step["step"]: step["lr"] for step in seen["steps"]} == used == dict(enumerate(got))
    assert len(used) == 28
    assert curve("again", load(run / "recipe.yaml").recipe, CPU).document()["steps"] == seen["steps"]
    assert [step["epoch"] for step in seen["steps"]] == [step / 4 for step in range(28)]
    assert len(set(got)) > 1 or (warmup, decay) == ("none", "constant") or "drawn as if" in "".join(seen["notes"])


UNTIL: dict[str, Any] = {"name": "constant", "lr": 0.05, "until_train_error": 0.6, "over": "3st"}
WAITING: dict[str, Any] = FIELDS | {"epochs": 12, "schedule": {"lr": 0.1, "warmup": UNTIL, "decay": "linear"}}


def errors_by_hand(folder: Path) -> list[float]:
    """The training error of each three steps at the warm-up's rate, from the log's lines of single steps."""
    _, noted = trained(folder, **WAITING | {"schedule": {"lr": 0.05}})
    hits = [round(figures["train_accuracy"] * 10) for kind, _, figures in noted.said if kind == "step"]
    return [1 - sum(hits[n : n + 3]) / 30 for n in range(0, 48, 3)]


def test_the_warmup_ends_when_the_error_has_fallen(tmp_path: Path) -> None:
    errors = errors_by_hand(tmp_path)
    first = next(n for n, error in enumerate(errors) if error < 0.6)
    end = 3 * (first + 1)
    assert 6 <= end <= 36 and end % 4  # not at the end of an epoch
    with rates() as got:
        run = Path(launched(tmp_path, "run", **WAITING)["run"])
    assert got == pytest.approx([0.05] * end + [0.1 * (1 - (step - end) / (48 - end)) for step in range(end, 48)], rel=1e-12)
    (event,) = (line for line in lines(run) if line["kind"] == "event")
    assert (event["step"], event["event"], event["lr_before"]) == (end, "learning_rate", pytest.approx(0.05))
    assert event["lr"] == event["lr_before"]
    assert event["lr_after"] == got[end] and event["train_error"] == pytest.approx(errors[first], abs=1e-12)


@pytest.mark.parametrize("every", ["1st", "2st", "5st", "1000st"])
def test_the_warmup_ends_at_the_same_step_whatever_is_logged(tmp_path: Path, every: str) -> None:
    with rates() as whole:
        trained(tmp_path, **WAITING)
    with rates() as got:
        trained(tmp_path, **WAITING | {"log": {"every": every}, "micro_batch": 10})
    assert got == whole and len(set(got)) > 2


STOPS = {"plateau": [5, 13, 22], "until": [4, 8, 11, 25]}  # in the middle of windows and of waits


@pytest.mark.parametrize("what", ["until", "plateau"])
def test_a_resumed_run_decides_as_the_whole_one(tmp_path: Path, what: str) -> None:
    plateau = {"name": "plateau", "monitor": "val_accuracy", "patience": 2, "factor": 0.5, "cooldown": 1, "min_delta": 0.05}
    schedules = {"until": WAITING["schedule"], "plateau": {"lr": 0.1, "decay": plateau}}
    fields = WAITING | {"schedule": schedules[what], "evaluate": {"every": "2st"}}
    with rates() as whole:
        launched(tmp_path, "whole", **fields)
    with rates() as got:
        for n, stop in enumerate(STOPS[what]):
            launched(tmp_path, "parts", resume=n > 0, **fields, stop_at=f"{stop}st")
        launched(tmp_path, "parts", resume=True, **fields)
    assert got == whole and len(set(got)) > 2
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert any(line["kind"] == "event" for line in lines(tmp_path / "whole"))


def test_a_killed_run_decides_as_the_whole_one(tmp_path: Path) -> None:
    """Both decisions in one run of 48 steps, killed within windows of five steps and between evaluations, seven steps apart."""
    warmup = "{name: constant, lr: 0.02, until_train_error: 0.62, over: 5st}"
    decay = "{name: plateau, monitor: val_loss, patience: 1, min_delta: 0.9}"
    recipe = tmp_path / "k.yaml"
    recipe.write_text(RECIPE.replace("{name: gradual, for: 1ep}, decay: cosine", f"{warmup}, decay: {decay}"))
    finish(recipe, tmp_path / "whole")
    (first, error), *rest = [(line["step"], line.get("train_error")) for line in lines(tmp_path / "whole") if line["kind"] == "event"]
    assert error < 0.62 and first % 5 == 0 and 5 < first < 30 and [step % 7 for step, _ in rest] == [0] * len(rest) != []
    for step in (first - 1, first + 1, rest[0][0] + 1):
        start(recipe, tmp_path / "run", True, functools.partial(at_steps, tmp_path / "mark", {step: die})).join(120)
        assert Mark(tmp_path / "mark").get() == (TRAINING, step)
    finish(recipe, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_plateau_reduces_where_the_evaluations_say(tmp_path: Path) -> None:
    """By hand from the lines of metrics.jsonl: after two evaluations that are no better, from the next step on."""
    decay = {"name": "plateau", "monitor": "val_loss", "patience": 2, "factor": 0.5, "min_delta": 0.02}
    fields = FIELDS | {"schedule": {"lr": 0.1, "decay": decay}, "evaluate": {"every": "2st"}}
    run = Path(launched(tmp_path, "run", **fields)["run"])
    best, waited, lr, expected = float("inf"), 0, 0.1, {}
    reductions = []
    for line in lines(run):
        if line["kind"] == "step":
            expected[line["step"]] = lr
        if "val_loss" in line:
            best, waited = (line["val_loss"], 0) if line["val_loss"] < best - 0.02 else (best, waited + 1)
            if waited == 2:
                lr, waited = lr / 2, 0
                reductions += [line["step"]] if line["step"] < 28 else []  # after the last step there is none to reduce
    for line in lines(run):  # of every kind: the rate of the step before it
        assert line["lr"] == pytest.approx(expected[line["step"]], rel=1e-12), line
    assert [line["step"] for line in lines(run) if line["kind"] == "event"] == reductions and len(reductions) > 1


def test_plateau_needs_validation(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "pictures" / "train" / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "train" / name / "0.png")
    data = {"name": "folder", "root": str(tmp_path / "pictures"), "size": 8}
    with pytest.raises(UserError, match="schedule.decay: plateau watches validation, and data folder has no validation pictures"):
        launched(tmp_path, "run", data=data, schedule={"lr": 0.1, "decay": "plateau"}, epochs=10)


def test_the_error_is_that_of_all_processes(tmp_path: Path) -> None:
    class Two(World):
        """This process and another with 1 hit less in each step."""

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return 2 * tensor - torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) * (tensor[:, 2:] == 0)

    record = Record(10, Two(torch.device("cpu")), ("loss", "accuracy"), window=2)
    for hits in (3.0, 5.0):
        assert not record.full
        record.write(torch.tensor([1.0, hits, 0.0], dtype=torch.float64), 10)
    assert record.full
    record.read([torch.ones(1)])
    assert record.window.error == pytest.approx(1 - (3 + 2 + 5 + 4) / 20)


def test_a_run_without_such_a_warmup_is_not_read_more_often(tmp_path: Path) -> None:
    run, _ = made(tmp_path, **FIELDS | {"log": {"every": "1000st"}})
    reads = []
    read = run.record.read
    run.record.read = lambda tensors: reads.append(run.state.step) or read(tensors)  # type: ignore[method-assign, func-returns-value]  # counted
    fit(run)
    assert set(reads) <= {0, *range(4, 29, 4)}


@pytest.mark.parametrize(("rule", "lr"), [("linear", 0.1 * 10 / 256), ("sqrt", 0.1 * (10 / 256) ** 0.5)])
def test_a_rate_per_256_pictures_follows_the_batch(tmp_path: Path, rule: str, lr: float) -> None:
    fields = FIELDS | {"schedule": {"lr": {"per_256": 0.1, "rule": rule}}, "epochs": 1}
    with rates() as got:
        first = Path(launched(tmp_path, "run", **fields)["run"])
    assert got == pytest.approx([lr] * 4, rel=1e-12)
    assert launched(tmp_path, "run", resume=True, **fields)["steps"] == 4  # the resolved recipe is the same one
    assert f"lr: {got[0]!r}" in (first / "recipe.yaml").read_text()
