"""Decays: how the learning rate falls after the warm-up."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.durations import Span
from trainrun.recipe.registry import part


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
