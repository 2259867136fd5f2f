"""Learning-rate schedules: warm-ups and decays as pure functions of progress, composed as lr = base x warm-up x decay.

Every part returns a factor of the base learning rate. Nothing is kept between calls, so a schedule can be drawn before the run
and a resumed run has nothing of it to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe import schema
from trainrun.recipe.durations import Duration, Span
from trainrun.recipe.registry import Registry, part, registry


@dataclass(frozen=True)
class Progress:
    """What a schedule may look at: the step about to be taken (from 0) and the run it belongs to, all in steps."""

    step: int
    total: int
    steps_per_epoch: int
    warmup: int
    lr: float

    @property
    def since_warmup(self) -> int:
        """Steps taken since the warm-up ended; 0 while it lasts."""
        return max(self.step - self.warmup, 0)

    def span(self, steps: Duration | None) -> int:
        """A duration in steps, at least 1; None stands for what the warm-up leaves of the training."""
        length = self.total - self.warmup if steps is None else steps.steps(self.steps_per_epoch, self.total)
        return max(length, 1)


@part("warmup")
def none(progress: Progress) -> float:
    """No warm-up: start at the base learning rate."""
    return 1.0


@part("warmup")
def gradual(
    progress: Progress,
    *,
    for_: Annotated[Span, Field(description="Length of the warm-up.")],  # type: ignore[valid-type]  # a checked type made by a function
    start: Annotated[float, Field(ge=0, description="Learning rate of the first step, in absolute terms.")] = 0.0,
) -> float:
    """Rise in a straight line from `start` to the base learning rate, step by step.

    Step t of a warm-up of W steps has lr(t) = start + (lr - start) t / W; step W is the first with the base learning rate.
    Decays that count from the warm-up's end begin at step W; those that count from the run's start are multiplied in during it.
    Source: Goyal et al. 2017, Accurate, Large Minibatch SGD, section 2.2.
    """
    length = for_.steps(progress.steps_per_epoch, progress.total)
    if progress.step >= length:
        return 1.0
    return (start + (progress.lr - start) * progress.step / length) / progress.lr


@part("decay")
def constant(progress: Progress) -> float:
    """Keep the learning rate where the warm-up left it."""
    return 1.0


@part("decay")
def multistep(
    progress: Progress,
    *,
    at: Annotated[list[Span], Field(min_length=1, description="Milestones, counted from the run's start.")],  # type: ignore[valid-type]  # as above
    gamma: Annotated[float, Field(gt=0, description="Factor at each milestone; not used where values are given.")] = 0.1,
    values: Annotated[
        list[Annotated[float, Field(ge=0)]] | None,
        Field(description="Learning rate from each milestone on, in absolute terms, one a milestone."),
    ] = None,
) -> float:
    """Drop the learning rate at given milestones.

    From a milestone's step on, lr = base x gamma^(milestones passed), or the milestone's own learning rate where `values` are given.
    Milestones count from the run's start, the warm-up included, and one that lies inside the warm-up scales what is left of it.
    `values` of another number than the milestones, or with milestones that do not rise, are a UserError.
    Source: the step schedule of He et al. 2015; torch.optim.lr_scheduler.MultiStepLR.
    """
    steps = [milestone.steps(progress.steps_per_epoch, progress.total) for milestone in at]
    passed = sum(progress.step >= step for step in steps)
    if values is None:
        return gamma**passed
    if len(values) != len(at):
        raise UserError(
            f"multistep has {len(at)} milestones and {len(values)} values: give schedule.decay.values one learning rate a milestone"
        )
    if steps != sorted(steps):
        raise UserError(f"multistep with values needs rising milestones, found {', '.join(map(str, at))}: sort schedule.decay.at")
    return values[passed - 1] / progress.lr if passed else 1.0


@part("decay")
def cosine(
    progress: Progress,
    *,
    alpha: Annotated[float, Field(ge=0, le=1, description="Factor that is left at the end.")] = 0.0,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Fall along half a cosine, flat at both ends.

    factor(t) = (1 - alpha) (1 + cos(pi min(t, S) / S)) / 2 + alpha, with t steps since the warm-up's end and S = steps;
    it stays at alpha afterwards.
    Source: Loshchilov & Hutter 2017, SGDR (without restarts); TensorFlow 1's cosine_decay.
    """
    length = progress.span(steps)
    fall = 0.5 * (1 + math.cos(math.pi * min(progress.since_warmup, length) / length))
    return (1 - alpha) * fall + alpha


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
