"""Decays along cosines."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from trainrun.draw import key
from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.durations import Span
from trainrun.recipe.registry import part


@part("decay")
def cosine(
    progress: Progress,
    *,
    alpha: Annotated[float, Field(ge=0, le=1, description="Factor that is left at the end.")] = 0.0,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # a checked type made by a function
) -> float:
    """Fall along half a cosine, flat at both ends.

    factor(t) = (1 - alpha) (1 + cos(pi min(t, S) / S)) / 2 + alpha, with t steps since the warm-up's end and S = steps;
    it stays at alpha afterwards.
    Source: Loshchilov & Hutter 2017, SGDR (without restarts); TensorFlow 1's cosine_decay.
    """
    length = progress.span(steps)
    fall = 0.5 * (1 + math.cos(math.pi * min(progress.since_warmup, length) / length))
    return (1 - alpha) * fall + alpha


@part("decay")
def cosine_restarts(
    progress: Progress,
    *,
    first: Annotated[Span, Field(description="Length of the first fall, which begins at the warm-up's end.")],  # type: ignore[valid-type]  # as above
    multiplier: Annotated[float, Field(ge=1, description="Length of each fall, as a multiple of the one before.")] = 2.0,
    peaks: Annotated[float, Field(gt=0, le=1, description="Height of each fall, as a multiple of the one before.")] = 1.0,
    alpha: Annotated[float, Field(ge=0, le=1, description="Factor that is left at the end of each fall.")] = 0.0,
) -> float:
    """Fall along half a cosine, jump back up, and fall again, each time longer.

    In fall number i (from 0), t steps after its start: factor = (1 - alpha) peaks^i (1 + cos(pi t / S)) / 2 + alpha, with
    S = first x multiplier^i steps. A length that is no whole number of steps is kept as it is.
    Source: Loshchilov & Hutter 2017, SGDR; TensorFlow 1's cosine_decay_restarts.
    """
    length, t = float(progress.span(first)), float(progress.since_warmup)
    fall = 0
    if multiplier == 1:
        fall, t = int(t // length), t % length
    while t >= length:
        t -= length
        length *= multiplier
        fall += 1
    return (1 - alpha) * peaks**fall * 0.5 * (1 + math.cos(math.pi * t / length)) + alpha


@part("decay")
def linear_cosine(
    progress: Progress,
    *,
    num_periods: Annotated[float, Field(gt=0, description="Periods of the cosine within the span.")] = 0.5,
    alpha: Annotated[float, Field(ge=0, description="Added to the straight line before the cosine is multiplied in.")] = 0.0,
    beta: Annotated[float, Field(ge=0, description="Added to everything: what is left at the end.")] = 0.001,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Fall along a straight line times a cosine.

    factor(t) = (alpha + 1 - t / S) (1 + cos(2 pi num_periods t / S)) / 2 + beta, with t steps since the warm-up's end and S = steps;
    it stays where it is afterwards. At t = 0 the factor is 1 + alpha + beta, above the base learning rate.
    Source: Bello et al. 2017, Neural Optimizer Search with Reinforcement Learning; TensorFlow 1's linear_cosine_decay.
    """
    return _linear_cosine(progress, num_periods, alpha, beta, progress.span(steps), 0.0)


@part("decay")
def noisy_linear_cosine(
    progress: Progress,
    *,
    initial_variance: Annotated[float, Field(ge=0, description="Variance of the noise at the first step.")] = 1.0,
    variance_decay: Annotated[float, Field(ge=0, description="Exponent by which the variance falls with the step.")] = 0.55,
    num_periods: Annotated[float, Field(gt=0, description="Periods of the cosine within the span.")] = 0.5,
    alpha: Annotated[float, Field(ge=0, description="Added to the straight line before the cosine is multiplied in.")] = 0.0,
    beta: Annotated[float, Field(ge=0, description="Added to everything: what is left at the end.")] = 0.001,
    steps: Annotated[Span | None, Field(description="Length of the fall; by default all that the warm-up leaves.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Fall as linear_cosine does, with noise on the straight line that gets smaller.

    factor(t) = (alpha + 1 - t / S + e) (1 + cos(2 pi num_periods t / S)) / 2 + beta, where e is normal with mean 0 and variance
    initial_variance / (1 + t)^variance_decay, a function of the recipe's seed and the step alone; t stays at S afterwards.
    TensorFlow's rate falls below zero where the noise is large, which would climb the loss; here such a factor is 0.
    Source: Bello et al. 2017, Neural Optimizer Search with Reinforcement Learning; TensorFlow 1's noisy_linear_cosine_decay.
    """
    length = progress.span(steps)
    variance = initial_variance / (1 + min(progress.since_warmup, length)) ** variance_decay
    uniform = ((key(progress.seed, "learning rate", progress.step) >> 11) + 0.5) / 2**53
    noise = NormalDist().inv_cdf(uniform) * math.sqrt(variance)
    return max(_linear_cosine(progress, num_periods, alpha, beta, length, noise), 0.0)


def _linear_cosine(progress: Progress, num_periods: float, alpha: float, beta: float, length: int, noise: float) -> float:
    done = min(progress.since_warmup, length) / length
    wave = 0.5 * (1 + math.cos(2 * math.pi * num_periods * done))
    return (alpha + 1 - done + noise) * wave + beta
