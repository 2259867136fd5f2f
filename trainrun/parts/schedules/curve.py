"""The curve of a recipe: base x warm-up x decay at every step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from trainrun.parts.schedules.progress import Progress
from trainrun.recipe import schema
from trainrun.recipe.durations import Duration
from trainrun.recipe.registry import Registry, registry


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: base x warm-up x decay.

    until, window: the training error that ends the warm-up instead of `warmup_steps`, and the steps over which it is measured.
    """

    base: float
    warmup: Callable[[Progress], float]
    decay: Callable[[Progress], float]
    total: int
    steps_per_epoch: int
    warmup_steps: int
    until: float | None = None
    window: int | None = None
    seed: int = 0

    def __call__(self, step: int, train_errors: Sequence[Sequence[float]] = (), evaluations: Sequence[Mapping[str, float]] = ()) -> float:
        """The rate of a step, by what was measured up to it: what came later has no say, so that the past can be asked for too.

        train_errors: (step, error) of each window that was better than all before it.
        """
        errors = train_errors[: bisect_right(train_errors, step, key=itemgetter(0))]
        seen = evaluations[: bisect_right(evaluations, step, key=itemgetter("step"))]
        end = self.warmup_steps
        if self.until is not None:
            end = next((int(at) for at, error in errors if error < self.until), step)
        best = {"best_train_error": errors[-1][1]} if errors else {}
        progress = Progress(step, self.total, self.steps_per_epoch, end, self.base, self.seed, evaluations=seen, **best)
        return self.base * self.warmup(progress) * self.decay(progress)


def make_schedule(schedule: schema.Schedule, total: int, steps_per_epoch: int, registry: Registry = registry, seed: int = 0) -> Schedule:
    """The schedule of a recipe for a training of `total` steps.

    A warm-up's length is its option `for`, or it has `until_train_error`, measured `over` some steps.
    The first learning rate is computed here, so that options which do not go together are found before the run.
    """
    assert isinstance(schedule.lr, float), "the recipe is not settled"
    options = schedule.warmup.options
    length: Duration | None = options.get("for")
    until: float | None = options.get("until_train_error")
    made = Schedule(
        schedule.lr,
        registry.build(schedule.warmup),
        registry.build(schedule.decay),
        total,
        steps_per_epoch,
        length.steps(steps_per_epoch, total) if length else 0,
        until,
        max(options["over"].steps(steps_per_epoch), 1) if until is not None else None,
        seed,
    )
    made(0)
    return made
