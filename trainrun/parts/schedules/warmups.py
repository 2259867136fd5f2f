"""Warm-ups: how the learning rate gets to its base value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.durations import Span
from trainrun.recipe.registry import part


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
