"""Decays without bends: drops at given steps, powers and straight lines."""

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
def step(
    progress: Progress,
    *,
    every: Annotated[Span, Field(description="Length of each stage.")],  # type: ignore[valid-type]  # a checked type made by a function
    gamma: Annotated[float, Field(gt=0, description="Factor at the end of each stage.")] = 0.1,
) -> float:
    """Drop the learning rate by the same factor after every so many epochs or steps.

    lr(t) = base x gamma^floor(t / E), with t the step of the run and E = every.
    Stages count from the run's start, the warm-up included, as the milestones of multistep do.
    Source: torch.optim.lr_scheduler.StepLR; a factor of 10 every 30 epochs is the usual one for ImageNet.
    """
    return gamma ** (progress.step // progress.span(every))


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
def exponential(
    progress: Progress,
    *,
    rate: Annotated[float, Field(gt=0, lt=1, description="Factor over each span.")],
    steps: Annotated[Span | None, Field(description="The span; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
    staircase: Annotated[bool, Field(description="Fall only at the end of each span.")] = False,
) -> float:
    """Fall by the same factor over every span, without end.

    factor(t) = rate^(t / S), with t steps since the warm-up's end and S = steps; with `staircase`, rate^floor(t / S).
    Source: TensorFlow 1's exponential_decay.
    """
    length = progress.span(steps)
    return rate ** (progress.since_warmup // length if staircase else progress.since_warmup / length)


@part("decay")
def natural_exponential(
    progress: Progress,
    *,
    rate: Annotated[float, Field(gt=0, description="How many times the learning rate falls by the factor e over each span.")],
    steps: Annotated[Span | None, Field(description="The span; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
    staircase: Annotated[bool, Field(description="Fall only at the end of each span.")] = False,
) -> float:
    """Fall exponentially with base e, without end.

    factor(t) = exp(-rate x t / S), with t steps since the warm-up's end and S = steps; with `staircase`, exp(-rate x floor(t / S)).
    Source: TensorFlow 1's natural_exp_decay.
    """
    length = progress.span(steps)
    return math.exp(-rate * (progress.since_warmup // length if staircase else progress.since_warmup / length))


@part("decay")
def inverse_sqrt(
    progress: Progress,
    *,
    timescale: Annotated[
        Span | None, Field(description="Steps after which the factor is sqrt(1/2); by default the warm-up's length.")
    ] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Fall with the square root of the step, without end: the training need not have a length.

    factor(t) = sqrt(T / (T + t)), with t steps since the warm-up's end and T = timescale, 1 at the least. With T the length of the
    warm-up, that is sqrt(T / step).
    Source: Vaswani et al. 2017, Attention Is All You Need, section 5.3; Zhai et al. 2022, Scaling Vision Transformers, section 3.5.
    """
    length = max(progress.warmup, 1) if timescale is None else progress.span(timescale)
    return math.sqrt(length / (length + progress.since_warmup))


@part("decay")
def polynomial(
    progress: Progress,
    *,
    power: Annotated[float, Field(gt=0, description="1 is a straight line; above, the fall is steeper at first.")] = 1.0,
    end: Annotated[float, Field(ge=0, description="Learning rate at the end of the span, in absolute terms.")] = 0.0,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
    cycle: Annotated[bool, Field(description="After the span, start again from a lower height over a span that is longer.")] = False,
) -> float:
    """Fall to `end` along a power of what is left of the span.

    lr(t) = (base - end) (1 - t / S)^power + end, with t steps since the warm-up's end and S = steps; it stays at `end` afterwards.
    With `cycle`, S is multiplied by ceil(t / S), 1 at the least: after each span the rate jumps up, each time less.
    Source: TensorFlow 1's polynomial_decay, whose `end_learning_rate` is 0.0001 where nothing is said; here it is 0.
    """
    length, t = progress.span(steps), progress.since_warmup
    if cycle:
        length *= max(-(-t // length), 1)
    left = 1 - min(t, length) / length
    return ((progress.lr - end) * left**power + end) / progress.lr


@part("decay")
def linear(
    progress: Progress,
    *,
    alpha: Annotated[float, Field(ge=0, le=1, description="Factor that is left at the end.")] = 0.0,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Fall in a straight line.

    factor(t) = (1 - alpha) (1 - t / S) + alpha, with t steps since the warm-up's end and S = steps; it stays at alpha afterwards.
    Source: torch.optim.lr_scheduler.LinearLR.
    """
    length = progress.span(steps)
    return (1 - alpha) * (1 - min(progress.since_warmup, length) / length) + alpha
