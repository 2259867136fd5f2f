"""What a network is taught and how it is judged. All that tells one task from another, for the one loop that trains both.

A task has `sums`, the names of what a step adds up over its pictures, the loss first; `monitor`, the validation figure that must
improve where the recipe names none; `shown`, the columns of the table of epochs; and three methods: `learn`, `look`, and `judge`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from trainrun.engine.feed import Batch
from trainrun.recipe.registry import Registry
from trainrun.recipe.schema import Recipe
from trainrun.world import World


def task_of(recipe: Recipe, parts: Registry) -> str:
    """The name of the task that a recipe's data is for: classification or detection."""
    part = parts.get("data", recipe.data.name)
    return part.facts.get("task", "classification") if part else "classification"


class Judge(Protocol):
    """Adds up what an evaluation finds, batch by batch."""

    def add(self, model: Callable[..., Any], images: Any, targets: Any, batch: Batch) -> None:
        """Ask the network about a batch."""

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

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss = loss

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
        """Mean loss in nats and share of hits."""
        return Hits(self, world)


class Hits:
    """`val_loss` in nats and `val_accuracy` in 0..1."""

    def __init__(self, task: Classification, world: World) -> None:
        self.task = task
        self.totals = torch.zeros(2, dtype=torch.float64, device=world.device)

    def add(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> None:
        self.totals += self.task.learn(model, images, targets, batch)[2]

    def figures(self, world: World, samples: int) -> dict[str, float]:
        loss, hits = world.sum(self.totals).tolist()
        return {"val_loss": loss / samples, "val_accuracy": hits / samples}


class ByClass(Hits):
    """Counts too, by class, the pictures it was asked about and those the network was right about: int64 [2, classes]."""

    def __init__(self, task: Classification, world: World, classes: int) -> None:
        super().__init__(task, world)
        self.counts = torch.zeros(2, classes, dtype=torch.int64, device=world.device)

    def add(self, model: Callable[..., Any], images: torch.Tensor, targets: torch.Tensor, batch: Batch) -> None:
        logits, _, sums = self.task.learn(model, images, targets, batch)
        self.totals += sums
        right = batch.labels[logits.argmax(1) == batch.labels]
        self.counts += torch.stack([found.bincount(minlength=self.counts.shape[1]) for found in (batch.labels, right)])

    def figures(self, world: World, samples: int) -> dict[str, float]:
        self.counts = world.sum(self.counts)
        return super().figures(world, samples)
