"""What a network is taught and how it is judged. All that tells one task from another, for the one loop that trains both.

A task has `sums`, the names of what a step adds up over its pictures, the loss first; `monitor`, the validation figure that must
improve where the recipe names none; `shown`, the columns of the table of epochs; and three methods: `learn`, `look`, and `judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from trainrun.engine.feed import Batch
from trainrun.parts.metrics import at_recall
from trainrun.recipe.registry import PartNode, Registry
from trainrun.recipe.schema import Recipe
from trainrun.world import World


def task_of(recipe: Recipe, parts: Registry) -> str:
    """The name of the task that a recipe's data is for: classification or detection."""
    part = parts.get("data", recipe.data.name)
    return part.facts.get("task", "classification") if part else "classification"


def negative_label(mining: PartNode | None, classes: Sequence[str]) -> int | None:
    """The class that is the background of the others: that of mining, else the first of two; None where there is none."""
    named = mining and mining.options.get("negative_class")
    return list(classes).index(str(named)) if named in classes else 0 if len(classes) == 2 else None


class Asks(Protocol):
    """Asks a network about pictures, batch by batch."""

    def add(self, model: Callable[..., Any], images: Any, targets: Any, batch: Batch) -> None:
        """Ask the network about a batch."""


class Judge(Asks, Protocol):
    """Adds up what an evaluation finds."""

    def figures(self, world: World, samples: int) -> dict[str, float]:
        """The validation figures over `samples` pictures of all processes."""


class Task(Protocol):
    """Classification, or another task of the same engine."""

    sums: tuple[str, ...]
    monitor: str
    shown: tuple[str, ...]

    def learn(self, forward: Callable[..., Any], images: Any, targets: Any, batch: Batch) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """A pass in training: what the network gives, losses whose sum is that of the pictures, and float64 [len(sums)] without gradient."""

    def look(self, model: Callable[..., Any], images: Any, targets: Any) -> object:
        """A pass for what it does to the layers."""

    def judge(self, world: World) -> Judge:
        """A new evaluation."""


class Classification:
    """One label a picture, a network that gives logits, and a loss that gives one number a picture."""

    sums: tuple[str, ...] = ("loss", "accuracy")
    monitor = "val_accuracy"
    shown: tuple[str, ...] = ("train loss", "train acc", "val loss", "val acc")

    def __init__(self, loss: Callable[..., torch.Tensor], negative: int | None = None) -> None:
        """negative: the label of the class that is the background of the others, against which false positives are counted."""
        self.loss, self.negative = loss, negative

    def learn(
        self, forward: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, losses [B], and their sum with the number of hits."""
        logits = forward(images)
        losses = self.loss(logits, targets)
        return logits, losses, torch.stack((losses.detach().double().sum(), (logits.detach().argmax(1) == batch.labels).sum()))

    def look(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return model(images)

    def judge(self, world: World) -> Hits:
        """Mean loss in nats and share of hits; and of false positives, where there is a negative class."""
        return Hits(self, world)


class Margins:
    """By how much the logit of the best positive class exceeds that of the negative one, in nats, of each picture asked about.

    Of two classes it rises with the probability of the positive one, and tells apart what rounds to a probability of 1.
    """

    def __init__(self, negative: int) -> None:
        self.negative = negative
        self.found: list[torch.Tensor] = []

    def add(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> None:
        self.note(model(images))

    def note(self, logits: torch.Tensor) -> None:
        """Add a batch by its logits."""
        logits = logits.float()
        negative = logits[:, self.negative]
        self.found.append(logits.index_fill(1, torch.tensor([self.negative], device=logits.device), -torch.inf).amax(1) - negative)

    def of_all(self, world: World, samples: int) -> torch.Tensor:
        """Those of `samples` pictures in their order, float32 [samples], in every process."""
        return world.gather(torch.cat([torch.empty(0, device=world.device), *self.found]), world.shares(samples))


class Hits:
    """`val_loss` in nats, `val_accuracy` in 0..1, and where there is a negative class `val_fp95`.

    That is the share of the negatives that are taken for positives where 95 % of the positives are found (see `at_recall`).
    """

    def __init__(self, task: Classification, world: World) -> None:
        self.task = task
        self.totals = torch.zeros(2, dtype=torch.float64, device=world.device)
        self.margins = None if task.negative is None else Margins(task.negative)
        self.labels = [torch.empty(0, dtype=torch.int64, device=world.device)]
        self.at_95: dict[str, Any] | None = None

    def add(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> None:
        logits, _, sums = self.task.learn(model, images, targets, batch)
        self.note(logits, sums, batch)

    def note(self, logits: torch.Tensor, sums: torch.Tensor, batch: Batch) -> None:
        """Add a batch by its logits and sums."""
        self.totals += sums
        if self.margins:
            self.margins.note(logits)
            self.labels.append(batch.labels)

    def figures(self, world: World, samples: int) -> dict[str, float]:
        loss, hits = world.sum(self.totals).tolist()
        figures = {"val_loss": loss / samples, "val_accuracy": hits / samples}
        if self.margins:
            positive = world.gather(torch.cat(self.labels), world.shares(samples)) != self.margins.negative
            self.at_95 = at_recall(self.margins.of_all(world, samples), positive, 95)
        return figures | ({} if self.at_95 is None else {"val_fp95": self.at_95["share"]})


class ByClass(Hits):
    """Counts too, by class, the pictures it was asked about and those the network was right about: int64 [2, classes]."""

    def __init__(self, task: Classification, world: World, classes: int) -> None:
        super().__init__(task, world)
        self.counts = torch.zeros(2, classes, dtype=torch.int64, device=world.device)

    def add(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> None:
        logits, _, sums = self.task.learn(model, images, targets, batch)
        self.note(logits, sums, batch)
        right = batch.labels[logits.argmax(1) == batch.labels]
        self.counts += torch.stack([found.bincount(minlength=self.counts.shape[1]) for found in (batch.labels, right)])

    def figures(self, world: World, samples: int) -> dict[str, float]:
        self.counts = world.sum(self.counts)
        return super().figures(world, samples)
