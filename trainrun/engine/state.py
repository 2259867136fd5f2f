"""Where a run stands, and the steps at which something is due: plain values, the same in every process."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainrun.recipe.durations import Duration
from trainrun.recipe.schema import EarlyStopping, Recipe


@dataclass(frozen=True)
class Plan:
    """The run's lengths, all in steps; `samples` is the number of pictures in an epoch."""

    samples: int
    batch_size: int
    steps_per_epoch: int
    total: int
    stop: int
    evaluate_every: int
    save_every: int | None
    save_seconds: float | None
    log_every: int

    @staticmethod
    def of(recipe: Recipe, samples: int) -> Plan:
        """The plan of a recipe whose epochs have `samples` pictures."""
        batch_size = samples if recipe.batch_size == "full" else recipe.batch_size
        per_epoch = -(-samples // batch_size)
        total = max(recipe.epochs.steps(per_epoch), 1)
        stop = total if recipe.stop_at is None else min(max(recipe.stop_at.steps(per_epoch), 1), total)
        save: Duration | str = recipe.checkpoint.every
        timed = isinstance(save, Duration) and save.unit == "s"
        return Plan(
            samples,
            batch_size,
            per_epoch,
            total,
            stop,
            max(recipe.evaluate.every.steps(per_epoch, total), 1),
            max(save.steps(per_epoch, total), 1) if isinstance(save, Duration) and not timed else None,
            save.value if isinstance(save, Duration) and timed else None,
            max(recipe.log.every.steps(per_epoch), 1),
        )

    def pictures(self, start: int, stop: int) -> int:
        """Pictures that the steps from `start` up to `stop` train on."""
        counts = ((step // self.steps_per_epoch) * self.samples + (step % self.steps_per_epoch) * self.batch_size for step in (start, stop))
        first, last = counts
        return last - first

    def evaluation(self, step: int) -> bool:
        """Whether validation is due after this many steps; where `stop` lies has no say in it, so that a run that goes on is the same run."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.total)

    def report(self, step: int) -> bool:
        """Whether a line is due: at every epoch's end and every evaluation."""
        return step > 0 and (step % self.steps_per_epoch == 0 or self.evaluation(step))


@dataclass
class State:
    """What a run knows besides its tensors: it is saved with them, and goes on from there.

    step: updates made. reported: the last step whose epoch line is written. best: the best evaluation so far, with its step and
    epoch. waited: evaluations since then. is_best: whether the weights at `step` are the best.

    What the schedule may look at: evaluations, all of them, and train_errors, the (step, error) of each window of steps whose training
    error was lower than all before it. As both only grow, the rate of a step can be computed at any time later.
    """

    step: int = 0
    reported: int = 0
    best: dict[str, Any] | None = None
    waited: int = 0
    is_best: bool = False
    evaluations: list[dict[str, float]] = field(default_factory=list)
    train_errors: list[tuple[int, float]] = field(default_factory=list)

    def observe(self, figures: dict[str, float], epoch: float, rule: EarlyStopping) -> None:
        """Note an evaluation: better by more than min_delta starts the wait again; NaN is never better."""
        monitor = rule.monitor
        assert monitor is not None, "the run names the task's own where the recipe names none"
        sign = -1 if monitor == "val_loss" else 1
        gain = math.inf if self.best is None else sign * (figures[monitor] - self.best[monitor])
        self.is_best = math.isfinite(figures[monitor]) and gain > rule.min_delta
        if self.is_best:
            self.best = {"step": self.step, "epoch": epoch, **figures}
            self.waited = 0
        else:
            self.waited += 1
        self.evaluations.append({"step": self.step, **{name: value for name, value in figures.items() if name.startswith("val_")}})

    def observe_training(self, error: float) -> None:
        """Note the training error of the window of steps that ends here, if it is the lowest so far."""
        if not self.train_errors or error < self.train_errors[-1][1]:
            self.train_errors.append((self.step, error))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
