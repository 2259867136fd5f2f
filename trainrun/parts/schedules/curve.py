"""The curve of a recipe: base x warm-up x decay at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainrun.parts.schedules.progress import Progress
from trainrun.recipe import schema
from trainrun.recipe.durations import Duration
from trainrun.recipe.registry import Registry, registry


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: base x warm-up x decay."""

    base: float
    warmup: Callable[[Progress], float]
    decay: Callable[[Progress], float]
    total: int
    steps_per_epoch: int
    warmup_steps: int

    def __call__(self, step: int) -> float:
        progress = Progress(step, self.total, self.steps_per_epoch, self.warmup_steps, self.base)
        return self.base * self.warmup(progress) * self.decay(progress)


def make_schedule(schedule: schema.Schedule, total: int, steps_per_epoch: int, registry: Registry = registry) -> Schedule:
    """The schedule of a recipe for a training of `total` steps; a warm-up's length is its option `for`.

    The first learning rate is computed here, so that options which do not go together are found before the run.
    """
    length: Duration | None = schedule.warmup.options.get("for")
    warmup_steps = length.steps(steps_per_epoch, total) if length else 0
    made = Schedule(schedule.lr, registry.build(schedule.warmup), registry.build(schedule.decay), total, steps_per_epoch, warmup_steps)
    made(0)
    return made
