"""A batch of uint8 pictures to what the network sees: the recipe's augmentations, on the device, in their order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.feed import Batch
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.registry import PartNode, Registry

# Mean and standard deviation of each channel.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_MEASURED = 10_000


class Inputs:
    """Augments and scales batches; in evaluation only the parts that are always applied.

    A sample's numbers come from (seed, epoch, sample id) and the part's place in the list, so they are the same in any
    batch, micro-batch, process or worker.
    """

    def __init__(self, parts: Sequence[tuple[Callable[..., torch.Tensor], int, bool]], seed: int, memory_format: str) -> None:
        self.parts = parts
        self.seed = seed
        self.layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format

    def __call__(self, batch: Batch, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as float32 [B, C, H, W] and the targets of the loss."""
        draw = draws(self.seed, batch.epoch, batch.ids)
        return self.pictures(batch.images, draw, training), batch.labels

    def pictures(self, images: torch.Tensor, draw: Draw, training: bool) -> torch.Tensor:
        """uint8 [B, C, H, W] to float32 [B, C, H, W]; without a `normalize` in the list, 0..255 becomes 0..1."""
        for apply, purpose, always in self.parts:
            if training or always:
                images = apply(images, draw.for_(purpose))
        if not images.is_floating_point():
            images = images.float().mul_(1 / 255)
        return images.contiguous(memory_format=self.layout)


def make_inputs(nodes: Sequence[PartNode], seed: int, memory_format: str, data: Data | Statistics, registry: Registry) -> Inputs:
    """The recipe's augmentations, ready to apply; a part that is a class is given the data's mean and standard deviation first."""
    parts = []
    for place, node in enumerate(nodes):
        found = registry.get(node.kind, node.name)
        assert found is not None, node.name
        apply = found.call(node.options)
        if inspect.isclass(found.function):
            apply = apply(data if isinstance(data, tuple) else statistics(data))
        parts.append((apply, key("augment", place, node.name), bool(found.facts.get("always", False))))
    return Inputs(parts, seed, memory_format)


def statistics(data: Data) -> Statistics:
    """Mean and standard deviation of each channel in 0..1: published, else over up to 10,000 training pictures, evenly spaced."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std
    ids = torch.linspace(0, len(data.train) - 1, min(_MEASURED, len(data.train))).long()
    sums: Any = torch.zeros(2, data.train.shape[2], dtype=torch.float64)
    pixels = 0
    for piece in ids.split(256):
        x = torch.from_numpy(data.train.read(piece.tolist())).double().div_(255).flatten(0, 2)
        sums += torch.stack((x.sum(0), x.square().sum(0)))
        pixels += len(x)
    mean = sums[0] / pixels
    std = (sums[1] / pixels - mean.square()).clamp(min=0).sqrt()
    # A channel without any contrast is only centred.
    return tuple(mean.tolist()), tuple(s if s > 0 else 1.0 for s in std.tolist())
