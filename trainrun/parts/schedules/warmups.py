"""Warm-ups: how the learning rate gets to its base value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.durations import Span, Steps
from trainrun.recipe.registry import part


@part("warmup")
def none(progress: Progress) -> float:
    """No warm-up: start at the base learning rate."""
    return 1.0


@part("warmup")
def constant(
    progress: Progress,
    *,
    lr: Annotated[float, Field(gt=0, description="Learning rate of the warm-up, in absolute terms.")],
    for_: Annotated[Span | None, Field(description="Length of the warm-up, where no training error ends it.")] = None,  # type: ignore[valid-type]  # a checked type made by a function
    until_train_error: Annotated[
        float | None, Field(gt=0, lt=1, description="The warm-up ends when the training error, in 0..1, falls below this.")
    ] = None,
    over: Annotated[
        Steps, Field(description="Steps over which the training error is measured, and after which it is looked at.")
    ] = "100st",  # type: ignore[valid-type]  # as above
) -> float:
    """Keep a lower learning rate for a while, or until the training error has fallen; then the base learning rate.

    lr(t) = `lr` in the warm-up and the base learning rate after it. The training error is the share of pictures that the network gets
    wrong as it trains on them, over `over` steps and all processes. It is looked at after every `over` steps of the run, wherever the
    run was stopped and whatever it logs; once it was below the threshold, the warm-up is over for good, which an event in
    metrics.jsonl tells. Decays that count from the warm-up's end begin there; where they last to the end of training, they get shorter.
    Source: He et al. 2015, Deep Residual Learning, section 4.2: 0.01 until the error is below 80 %, then 0.1, for 110 layers.
    """
    if until_train_error is not None:
        ended = progress.best_train_error < until_train_error
    else:
        ended = for_ is None or progress.step >= for_.steps(progress.steps_per_epoch, progress.total)
    return 1.0 if ended else lr / progress.lr


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


@part("warmup")
def exponential(
    progress: Progress,
    *,
    for_: Annotated[Span, Field(description="Length of the warm-up.")],  # type: ignore[valid-type]  # a checked type made by a function
    start: Annotated[float, Field(gt=0, description="Learning rate of the first step, in absolute terms.")],
) -> float:
    """Rise by the same factor at every step, from `start` to the base learning rate.

    Step t of a warm-up of W steps has lr(t) = start x (lr / start)^(t / W); step W is the first with the base learning rate.
    It composes with decays as `gradual` does.
    Source: the geometric rise of a learning-rate range test, Smith 2017, Cyclical Learning Rates, taken as a warm-up.
    """
    length = for_.steps(progress.steps_per_epoch, progress.total)
    if progress.step >= length:
        return 1.0
    return (start / progress.lr) ** (1 - progress.step / length)
