"""A batch of uint8 pictures to what the network sees: the recipe's augmentations, on the device, in their order."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.feed import Batch, Feed
from trainrun.engine.steps import Photometric, Step, in_evaluation, join
from trainrun.parts.augmentations import Statistics
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.registry import PartNode, Registry

_MEASURED = 10_000


class Inputs:
    """Augments and scales batches; in evaluation only the parts that are always applied, and what stands there for others.

    A sample's numbers come from (seed, epoch, sample id) and the part's place in the list, so they are the same in any
    batch, micro-batch, process or worker.
    """

    def __init__(self, training: Sequence[Step], evaluation: Sequence[Step], seed: int, memory_format: str) -> None:
        self.training, self.evaluation = training, evaluation
        self.seed = seed
        self.layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format

    def __call__(self, batch: Batch, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as float32 [B, C, H, W] and the targets of the loss."""
        draw = draws(self.seed, batch.epoch, batch.ids)
        return self.pictures(batch.images, draw, training), batch.labels

    def pictures(self, images: torch.Tensor, draw: Draw, training: bool) -> torch.Tensor:
        """uint8 [B, C, H, W] to float32 [B, C, H, W]; without a `normalize` in the list, 0..255 becomes 0..1."""
        for step in self.training if training else self.evaluation:
            images = step(images, draw)
        if not images.is_floating_point():
            images = images.float().mul_(1 / 255)
        return images.contiguous(memory_format=self.layout)


def make_inputs(nodes: Sequence[PartNode], seed: int, memory_format: str, statistics: Statistics, registry: Registry) -> Inputs:
    """The recipe's augmentations, ready to apply; a part that is a class is given the statistics of the data first."""
    training: list[Step] = []
    evaluation: list[Step] = []
    for place, node in enumerate(nodes):
        found = registry.get(node.kind, node.name)
        assert found is not None, node.name
        purpose = key("augment", place, node.name)
        if found.facts.get("geometry"):
            join(training, found.call(node.options), purpose, node.options.get("mode"))
            if instead := in_evaluation(found, node):
                join(evaluation, instead, purpose, node.options.get("mode"))
            continue
        apply = found.call(node.options)
        if inspect.isclass(found.function):
            apply = apply(statistics)
        training.append(Photometric(apply, purpose))
        if found.facts.get("always", False):
            evaluation.append(training[-1])
    return Inputs(training, evaluation, seed, memory_format)


def statistics(data: Data, training: Feed) -> Statistics:
    """The statistics of a data set: published, else measured over up to 10,000 training pictures, evenly spaced."""
    published = (data.mean, data.std) if data.mean is not None and data.std is not None else None
    return Statistics(data.train.shape[2], lambda: published or _measure(training))


def _measure(training: Feed) -> tuple[tuple[float, ...], tuple[float, ...]]:
    ids = torch.linspace(0, len(training) - 1, min(_MEASURED, len(training))).long()
    # Whole numbers add up to the same in any order and on any device.
    sums: Any = 0
    pixels = 0
    for pictures in training.fetch(ids.split(64)):
        x = pictures.flatten(0, 2).long()
        sums += torch.stack((x.sum(0), x.square().sum(0)))
        pixels += len(x)
    mean, square = sums.double().cpu() / pixels
    std = (square - mean.square()).clamp(min=0).sqrt() / 255
    # A channel without any contrast is only centred.
    return tuple((mean / 255).tolist()), tuple(s if s > 0 else 1.0 for s in std.tolist())
