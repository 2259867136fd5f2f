"""Rates, seconds and learning rates that a run tells of itself, against a clock that the test moves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.nn.functional import cross_entropy

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.engine import clock as clock_module
from trainrun.engine import evaluate, fit, rounds
from trainrun.engine.checkpoint import Checkpoints
from trainrun.engine.clock import Clock
from trainrun.engine.fit import train_step
from trainrun.engine.launch import launch
from trainrun.engine.mining import KeepAll
from trainrun.engine.state import Plan, State
from trainrun.engine.tasks import Classification
from trainrun.engine.teller import Teller
from trainrun.recipe.load import load
from trainrun.report.console import Console
from trainrun.report.journal import Journal

# 10 pictures an epoch in steps of 4, 4 and 2, of which 6 epochs.
PLAN = Plan(
    samples=10, batch_size=4, steps_per_epoch=3, total=18, stop=18, evaluate_every=3, save_every=None, save_seconds=None, log_every=2
)  # fmt: skip


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    moved = Time()
    monkeypatch.setattr(clock_module, "time", moved)
    return moved


class Run(SimpleNamespace):
    """As much of a run as a teller looks at."""

    @property
    def epoch(self) -> float:
        return self.state.step / PLAN.steps_per_epoch


def begin(folder: Path, step: int = 0, seconds: float = 0.0) -> tuple[Any, Teller]:
    """A run at a step, with the seconds that it took so far."""
    run = Run(plan=PLAN, state=State(step=step), clock=Clock(), schedule=lambda step: 0.1 * (step + 1), miner=KeepAll(), task=Classification(cross_entropy))
    run.clock.total = seconds
    teller = Teller(run, Journal(folder), Console(io.StringIO()))  # type: ignore[arg-type]  # it looks like a Run
    run.clock.start()
    teller.start()
    return run, teller


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def now(teller: Teller) -> dict[str, Any]:
    """What the progress line would say."""
    told: list[dict[str, Any]] = []
    teller.console.progress = lambda step, stop, tell: told.append(tell())  # type: ignore[method-assign]  # the line itself is tested with the console
    teller.progress()
    return told[0]


def steps(run: Any, time: Time, count: int, seconds: float) -> None:
    run.state.step += count
    time.now += count * seconds


def test_a_clock_counts_training_without_pauses_and_everything_in_all(time: Time) -> None:
    clock = Clock()
    time.now += 100  # building the run is not running it
    clock.start()
    time.now += 7
    with clock.paused():
        time.now += 20
    time.now += 3
    assert clock.since_lap == 10 and clock.lap() == 10 and clock.total == 30
    with pytest.raises(ZeroDivisionError), clock.paused():
        time.now += 5
        raise ZeroDivisionError
    time.now += 1
    assert clock.lap() == 1 and clock.lap() == 0 and clock.total == 36


def test_a_clock_goes_on_after_a_resume(time: Time) -> None:
    clock = Clock()
    clock.total = 1234.5
    time.now += 60  # the start of the second process
    clock.start()
    time.now += 4
    assert clock.total == 1238.5 and clock.lap() == 4


def test_rates_are_pictures_over_seconds_of_training(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path)
    steps(run, time, 2, 0.5)
    teller.step({"train_loss": 1.0}, 8)
    steps(run, time, 1, 0.25)
    with run.clock.paused():
        time.now += 40
    teller.epoch({"train_loss": 0.9})
    steps(run, time, 1, 2.0)
    teller.step({"train_loss": 0.8}, 4)
    assert [(line["step"], line["images_per_second"], line["seconds"]) for line in lines(tmp_path)] == [
        (2, 8 / 1, 1.0), (3, 2 / 0.25, 41.25), (4, 4 / 2, 43.25)
    ]  # fmt: skip
    assert teller.rate == 14 / 3.25


def test_a_resumed_run_counts_only_what_this_process_trained(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path, step=7, seconds=1000.0)  # 20 + 4 pictures and 1000 s are behind it
    assert now(teller)["images_per_second"] is None
    steps(run, time, 2, 1.0)
    teller.epoch({})
    assert teller.rate == 6 / 2
    (line,) = lines(tmp_path)
    assert (line["images_per_second"], line["seconds"]) == (3.0, 1002.0)


def test_no_time_is_no_rate(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path)
    teller.epoch({})
    run.state.step = 3
    teller.epoch({})
    assert [line["images_per_second"] for line in lines(tmp_path)] == [None, None]
    assert teller.rate is None and now(teller)["seconds_left"] is None


def test_two_lines_at_one_step_have_one_rate(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path)
    steps(run, time, 3, 1.0)
    teller.step({}, 10)
    teller.epoch({})
    assert [line["images_per_second"] for line in lines(tmp_path)] == [10 / 3, 10 / 3]
    assert teller.rate == 10 / 3


def test_time_left_is_known_from_the_first_step_on(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path)
    steps(run, time, 1, 2.0)
    assert (now(teller)["images_per_second"], now(teller)["seconds_left"]) == (2.0, 56 / 2)


def test_time_left_holds_pauses_to_come(time: Time, tmp_path: Path) -> None:
    run, teller = begin(tmp_path)
    steps(run, time, 3, 1.0)
    with run.clock.paused():
        time.now += 1
    teller.epoch({"train_loss": 0.5})
    told = now(teller)
    # A third of the training time goes to evaluation on top, so five more epochs like this one take 20 s.
    assert told["seconds_left"] == pytest.approx(5 * (3 + 1)) and told["train_loss"] == 0.5
    run.state.step = 18
    assert now(teller)["seconds_left"] == 0


def test_evaluating_mining_and_saving_are_no_training(time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second; to go through pictures without training, and to save, takes a hundred each time."""
    called: list[str] = []

    def lasting(where: Any, name: str, seconds: float) -> None:
        plain = getattr(where, name)

        def call(*args: Any, **more: Any) -> Any:
            time.now += seconds
            called.append(f"{where.__name__} {name}")
            return plain(*args, **more)

        monkeypatch.setattr(where, name, call)

    lasting(fit, "train_step", 1.0)
    lasting(rounds, "go_through", 100.0)
    lasting(evaluate, "go_through", 100.0)
    lasting(Checkpoints, "save", 100.0)
    (tmp_path / "k.yaml").write_text(
        "data: {name: synthetic, shape: [1, 4, 4], classes: 2, size: 75, validation: 0.2}\nmodel: {name: tiny_convnet, width: 2, depth: 1}\nbatch_size: 8\n"
        "epochs: 4\nlog: {every: 2st}\nprecision: fp32\nschedule: {lr: 0.1}\nevaluate: {every: 3st}\ncheckpoint: {every: 2st}\n"
        "mining: {name: rounds, negative_class: class 0, rounds: 1, every: 2ep, start_with: 0.5x, add: 4}\n"
    )
    result = launch(load(tmp_path / "k.yaml"), out=tmp_path / "run", quiet=True)
    told = lines(tmp_path / "run")
    steps = [line for line in told if line["kind"] == "step"]
    assert [line["images_per_second"] for line in steps] == [8.0, 8.0, 6.5] * 4  # the last of an epoch has 5 pictures
    assert (called.count("trainrun.engine.rounds go_through"), called.count("trainrun.engine.evaluate go_through")) == (1, 8)
    assert result["images_per_second"] == 180 / 24
    assert result["seconds"] == 24 + 100 * (len(called) - 24) and called.count("Checkpoints save") >= 13


def test_the_rate_of_a_line_is_the_one_the_optimizer_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []

    def watched(run: Any, batch: Any, lr: float) -> Any:
        totals = train_step(run, batch, lr)
        used.append(run.optimizer.param_groups[0]["lr"])
        return totals

    monkeypatch.setattr("trainrun.engine.fit.train_step", watched)
    (tmp_path / "k.yaml").write_text(
        "data: {name: synthetic, shape: [1, 4, 4], classes: 2, size: 50}\nmodel: {name: tiny_convnet, width: 2, depth: 1}\nbatch_size: 8\n"
        "epochs: 3\nlog: {every: 1st}\nprecision: fp32\nschedule: {lr: 0.1, warmup: {name: gradual, for: 4st, start: 0.01}, decay: cosine}\n"
    )
    launch(load(tmp_path / "k.yaml"), out=tmp_path / "run", quiet=True)
    told = lines(tmp_path / "run")
    assert [line["lr"] for line in told if line["kind"] == "step"] == used and len(set(used)) > 10
    assert [line["lr"] for line in told if line["kind"] == "epoch"] == [used[4], used[9], used[14]]
