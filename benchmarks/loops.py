"""The training of a comparison by trainrun, by a bare loop and by a loop on one fixed batch, each with a time stamp a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bare
import ours
import recipe
import torch
from torch import nn
from torch.utils.data import Dataset

from trainrun.recipe.registry import registry


@dataclass(frozen=True)
class Task:
    """What every row of a comparison does.

    net: a key of recipe.NETS. steps: optimizer steps, warm-up included. data: the recipe's data as a YAML flow mapping.
    dataset: the same pictures as a data set of PIL images under a transform. jpegs: the folder that they are read from, if they are.
    """

    net: str
    steps: int
    data: str
    dataset: Callable[[Any], Dataset[Any]]
    jpegs: Path | None = None

    def model(self) -> nn.Module:
        """The network, freshly drawn."""
        name, options = recipe.NETS[self.net]
        part = registry.get("model", name)
        assert part is not None, name
        return part.function((3, 32, 32), 10, **options)


class Stamps(list[float]):
    """The time of each step's end."""

    def mark(self) -> None:
        self.append(time.perf_counter())


def trainrun_fit(task: Task, overrides: Sequence[str] = ()) -> Stamps:
    """The engine as `trainrun fit` runs it."""
    stamps = Stamps()
    ours.trainrun_fit(task.data, task.net, task.steps, stamps.mark, overrides)
    return stamps


def bare_loop(task: Task, workers: int) -> Stamps:
    """bare.py on the task's model and pictures."""
    stamps = Stamps()
    bare.train(task.model(), bare.forever(bare.make_loader(task.dataset(bare.transform()), workers)), task.steps, stamps.mark)
    return stamps


def fixed_batch(task: Task) -> Stamps:
    """Forward, backward and update on one prepared batch: the bound of an fp32 loop with trainrun's memory format and fused update."""
    stamps = Stamps()
    images, labels = next(iter(bare.make_loader(task.dataset(bare.transform()), 0)))
    images = images.contiguous(memory_format=torch.channels_last)
    model = task.model().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.WEIGHT_DECAY, fused=True)
    for _ in range(task.steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        stamps.mark()
    return stamps


def rate(stamps: Sequence[float], warmup: int) -> float:
    """Images a second from the end of the last warm-up step to the end of the last step."""
    return recipe.BATCH * (len(stamps) - warmup) / (stamps[-1] - stamps[warmup - 1])
