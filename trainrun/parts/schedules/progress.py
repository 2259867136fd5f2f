"""What a schedule may look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainrun.recipe.durations import Duration


@dataclass(frozen=True)
class Progress:
    """What a schedule may look at: the step about to be taken (from 0), the run it belongs to, and what was measured before it.

    warmup: the step at which the warm-up ends; where a training error ends it, that is `step` itself until it does.
    lr: the base learning rate. best_train_error: the lowest training error, in 0..1, of the windows that a warm-up asks for.
    evaluations: all evaluations so far, in their order: {"step", and the task's figures, as val_loss, val_accuracy or val_map}. Lengths are
    in steps.
    """

    step: int
    total: int
    steps_per_epoch: int
    warmup: int
    lr: float
    seed: int = 0
    best_train_error: float = math.inf
    evaluations: Sequence[Mapping[str, float]] = ()

    @property
    def since_warmup(self) -> int:
        """Steps taken since the warm-up ended; 0 while it lasts."""
        return max(self.step - self.warmup, 0)

    def span(self, steps: Duration | None) -> int:
        """A duration in steps, at least 1; None stands for what the warm-up leaves of the training."""
        length = self.total - self.warmup if steps is None else steps.steps(self.steps_per_epoch, self.total)
        return max(length, 1)
