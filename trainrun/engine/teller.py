"""What the loop says about itself: figures with their step and rate, to the journal and the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainrun.report.console import Console
from trainrun.report.journal import Journal

if TYPE_CHECKING:
    from trainrun.engine.run import Run


class Silent:
    """Says nothing: for trials, and for every process but the first."""

    position = 0

    def start(self) -> None:
        """The loop begins."""

    def step(self, figures: dict[str, float], samples: int) -> None:
        """A log line is due: training figures since the last one, over `samples` pictures."""

    def epoch(self, figures: dict[str, float]) -> None:
        """An epoch line is due: training figures of the period, and validation where it was made."""

    def progress(self) -> None:
        """A step is done."""

    def event(self, **figures: Any) -> None:
        """Something happened that changes the run."""

    def keep(self) -> None:
        """The miner has something for the run directory."""

    def warn(self, text: str) -> None:
        """Something that a person should know of, though the run goes on."""

    def sync(self) -> None:
        """A checkpoint is about to count on what was said."""


class Teller(Silent):
    """Tells a run's journal and console."""

    def __init__(self, run: Run, journal: Journal, console: Console) -> None:
        self.run, self.journal, self.console = run, journal, console
        self._rate: float | None = None
        self._loss: float | None = None
        # What this process trained: pictures, seconds of training, and seconds of all since it began.
        self._pictures = 0
        self._seconds = 0.0
        self._began = run.clock.total
        self._first_step = run.state.step

    def _place(self) -> dict[str, Any]:
        run = self.run
        # The learning rate of the step that was just made, which is the one the optimizer used.
        return {"step": run.state.step, "epoch": round(run.epoch, 6), "lr": run.schedule(max(run.state.step - 1, 0))}

    def start(self) -> None:
        self.run.clock.lap()
        self._began = self.run.clock.total
        self.console.table(self.run.plan.total / self.run.plan.steps_per_epoch, self.run.task.shown)

    def step(self, figures: dict[str, float], samples: int) -> None:
        self._measure()
        self._loss = figures.get("train_loss")
        self.journal.write("step", {**self._place(), **figures, "images_per_second": self._rate, "seconds": round(self.run.clock.total, 3)})

    def epoch(self, figures: dict[str, float]) -> None:
        self._measure()
        self._loss = figures.get("train_loss", self._loss)
        line = {**self._place(), **figures, "images_per_second": self._rate, "seconds": round(self.run.clock.total, 3)}
        self.journal.write("epoch", line)
        self.console.epoch(line, self.run.state.is_best)
        if self.run.state.step % self.run.plan.steps_per_epoch == 0:
            self.keep()

    def keep(self) -> None:
        """Write what the miner knows of each picture, once an epoch; the checkpoints hold it too, so a full disk costs nothing."""
        try:
            self.run.miner.write(self.journal.file.parent, self.run.state.step)
        except OSError as error:
            self.warn(f"what mining knows cannot be written to {self.journal.file.parent}: {error.strerror or error}; the checkpoints hold it")

    def _measure(self) -> None:
        """Pictures a second of training since this was last called, or as it was where no step was made since."""
        steps = self.run.state.step - self._first_step
        seconds = self.run.clock.lap()
        if steps > 0 and seconds > 0:
            pictures = self.run.plan.pictures(self._first_step, self.run.state.step)
            self._rate = pictures / seconds
            self._pictures += pictures
            self._seconds += seconds
        self._first_step = self.run.state.step

    @property
    def rate(self) -> float | None:
        """Pictures a second of training, over all that this process trained."""
        self._measure()
        return self._pictures / self._seconds if self._seconds else None

    def progress(self) -> None:
        self.console.progress(self.run.state.step, self.run.plan.stop, self._now)

    def _now(self) -> dict[str, Any]:
        run = self.run
        fresh, training = run.plan.pictures(self._first_step, run.state.step), run.clock.since_lap
        rate = self._rate or (fresh / training if fresh and training > 0 else None)
        # Evaluating and saving take their share of what is left, too.
        trained = self._seconds + training
        stretch = max((run.clock.total - self._began) / trained, 1.0) if trained > 0 else 1.0
        left = run.plan.pictures(run.state.step, run.plan.stop)
        return {
            **self._place(),
            "train_loss": self._loss,
            "images_per_second": rate,
            "seconds_left": left / rate * stretch if rate else None,
        }

    def event(self, **figures: Any) -> None:
        """Something that happened once, to the journal."""
        self.journal.write("event", {**self._place(), **figures})

    def warn(self, text: str) -> None:
        self.console.warn(text)

    def sync(self) -> None:
        self.journal.sync()

    @property
    def position(self) -> int:  # type: ignore[override]  # a silent one stands still
        return self.journal.position
