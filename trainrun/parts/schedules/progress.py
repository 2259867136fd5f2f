"""What a schedule may look at."""

from __future__ import annotations

from dataclasses import dataclass

from trainrun.recipe.durations import Duration


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
