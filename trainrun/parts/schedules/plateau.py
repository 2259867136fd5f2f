"""The decay that looks at validation."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

from pydantic import Field

from trainrun.parts.schedules.progress import Progress
from trainrun.recipe.registry import part


@part("decay", watches="validation")
def plateau(
    progress: Progress,
    *,
    monitor: Annotated[
        Literal["val_accuracy", "val_loss", "val_map", "val_map_50"], Field(description="The validation figure that must improve.")
    ] = "val_accuracy",
    factor: Annotated[float, Field(gt=0, lt=1, description="Factor at each reduction.")] = 0.1,
    patience: Annotated[int, Field(ge=1, description="Evaluations without improvement after which the rate is reduced.")] = 5,
    min_delta: Annotated[float, Field(ge=0, description="An improvement counts when it is larger than this.")] = 0.0,
    cooldown: Annotated[int, Field(ge=0, description="Evaluations after a reduction in which none is counted as without improvement.")] = 0,
    min_lr: Annotated[float, Field(ge=0, description="Learning rate below which it is not reduced, in absolute terms.")] = 0.0,
) -> float:
    """Reduce the learning rate when validation no longer improves.

    lr = max(base x factor^n, min_lr) after n reductions. A reduction is made, from the next step on, when `patience` evaluations in
    turn were not better than the best one by more than `min_delta`; the count starts again after each. Evaluations count from the
    warm-up's end. All that it looks at is the list of evaluations, which is saved with the run, so that a resumed run reduces at the
    same steps; an event in metrics.jsonl tells of each. `trainrun schedule` draws it as it is without a reduction.
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, whose patience is one less for the same steps; the rule of VGG's
    training, Simonyan & Zisserman 2015, section 3.1.
    """
    sign = -1 if monitor == "val_loss" else 1
    heights = tuple([sign * seen[monitor] for seen in progress.evaluations if seen["step"] > progress.warmup])
    return max(factor ** _reductions(heights, patience, min_delta, cooldown), min(min_lr / progress.lr, 1.0))


@functools.lru_cache(maxsize=4)  # asked for at every step, and the same until the next evaluation
def _reductions(heights: tuple[float, ...], patience: int, min_delta: float, cooldown: int) -> int:
    best, waited, cooling, made = -math.inf, 0, 0, 0
    for height in heights:
        gained = height > best + min_delta
        best = height if gained else best
        waited = 0 if gained or cooling else waited + 1
        cooling = max(cooling - 1, 0)
        if waited >= patience:
            made += 1
            waited, cooling = 0, cooldown
    return made
