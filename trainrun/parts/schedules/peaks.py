"""Schedules that rise by themselves before they fall, and so need no warm-up."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.durations import Span
from trainrun.recipe.registry import part


@part("decay")
def one_cycle(
    progress: Progress,
    *,
    rise: Annotated[Span, Field(description="Length of the rise.")] = "30%",  # type: ignore[valid-type]  # a checked type made by a function
    initial: Annotated[float, Field(ge=0, le=1, description="Factor of the first step.")] = 0.04,
    alpha: Annotated[float, Field(ge=0, le=1, description="Factor that is left at the end.")] = 4e-6,
    shape: Annotated[Literal["cosine", "linear"], Field(description="Along half a cosine, or straight.")] = "cosine",
    steps: Annotated[Span | None, Field(description="Length of rise and fall together; by default the whole training.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Rise to the base learning rate and fall far below where it started: one cycle for the whole training.

    The factor goes from `initial` at step 0 to 1 at step R = rise and to `alpha` at step S = steps, where it stays. Between two ends a
    and b it is b + (a - b) (1 + cos(pi x)) / 2 for `cosine` and a + (b - a) x for `linear`, with x from 0 to 1. The momentum stays as it is.
    It is its own warm-up. A rise that is not shorter than the cycle is a UserError.
    Source: Smith & Topin 2018, Super-Convergence; torch.optim.lr_scheduler.OneCycleLR, whose div_factor 25 and final_div_factor 10,000
    are initial = 1/25 and alpha = initial / 10,000.
    """
    top, length, t = progress.span(rise), progress.span(steps), progress.since_warmup
    if top >= length:
        raise UserError(f"one_cycle has {length} steps in all and spends {top} in the rise: shorten schedule.decay.rise")
    first, last, x = (initial, 1.0, t / top) if t < top else (1.0, alpha, min(t - top, length - top) / (length - top))
    return last + (first - last) * (0.5 * (1 + math.cos(math.pi * x)) if shape == "cosine" else 1 - x)


@part("decay")
def trapezoid(
    progress: Progress,
    *,
    fall: Annotated[Span, Field(description="Length of the fall, which ends with the training.")] = "20%",  # type: ignore[valid-type]  # as above
    rise: Annotated[Span | None, Field(description="Length of the rise, where there is no warm-up.")] = None,  # type: ignore[valid-type]  # as above
    initial: Annotated[float, Field(ge=0, lt=1, description="Factor that the rise starts from.")] = 0.0,
    alpha: Annotated[float, Field(ge=0, lt=1, description="Factor that is left at the end.")] = 0.0,
    shape: Annotated[Literal["linear", "sqrt"], Field(description="Of the fall: straight, or 1 - sqrt(x), steep at first.")] = "linear",
) -> float:
    """Rise, stay, and fall at the end: warm-up, stable, decay.

    With t steps since the warm-up's end, of S that it leaves: initial + (1 - initial) t / R up to R = rise, then 1, and
    alpha + (1 - alpha) (1 - x) over the last F = fall steps, x = (t - S + F) / F; for `sqrt` 1 - sqrt(x) in place of 1 - x.
    The rise is either this part's or the warm-up's. A rise and fall that do not find room are a UserError.
    Source: Zhai et al. 2022, Scaling Vision Transformers, section 3.5 (linear cooldown); Hägele et al. 2024, Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations (1 - sqrt).
    """
    length, t = progress.span(None), progress.since_warmup
    up, down = progress.span(rise) if rise else 0, progress.span(fall)
    if up + down > length:
        raise UserError(f"trapezoid rises for {up} steps and falls for {down}, and the training has {length}: shorten one of them")
    if t < up:
        return initial + (1 - initial) * t / up
    x = min(max(t - (length - down), 0), down) / down
    return alpha + (1 - alpha) * (1 - (math.sqrt(x) if shape == "sqrt" else x))


@part("decay")
def triangular(
    progress: Progress,
    *,
    peak: Annotated[float, Field(ge=0, le=1, description="Where the peak stands, as a share of the triangle.")] = 0.5,
    initial: Annotated[float, Field(ge=0, lt=1, description="Factor that the rise starts from.")] = 0.0,
    alpha: Annotated[float, Field(ge=0, lt=1, description="Factor that the fall ends at.")] = 0.0,
    gamma: Annotated[float, Field(gt=0, le=1, description="Height of each triangle, as a multiple of the one before.")] = 1.0,
    steps: Annotated[Span | None, Field(description="Length of a triangle, then comes the next; by default one for all.")] = None,  # type: ignore[valid-type]  # as above
) -> float:
    """Rise in a straight line to the base learning rate and fall in another, once or again and again.

    x = t / S is the place in triangle number i (from 0), with t steps since its start and S = steps. Up to the peak the factor is
    initial + (1 - initial) x / peak, then alpha + (1 - alpha) (1 - x) / (1 - peak); what it is above that triangle's ends is
    multiplied by gamma^i. One triangle over the whole training ends at alpha and stays there. Unless peak is 0, it is its own warm-up.
    Source: Smith 2017, Cyclical Learning Rates: `triangular`, and `triangular2` with gamma 0.5; the CIFAR-10 speed runs have one
    triangle with an early peak.
    """
    length = progress.span(steps)
    number, t = divmod(progress.since_warmup, length)
    if steps is None and number:
        number, t = 0, length
    x = t / length
    foot, height = (initial, x / peak) if x < peak else (alpha, (1 - x) / (1 - peak) if peak < 1 else 1.0)
    return foot + (1 - foot) * height * gamma**number
