"""A batch of uint8 pictures to what the network sees: the recipe's augmentations, on the device, in their order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.feed import Batch, Feed
from trainrun.engine.steps import Photometric, Step, in_evaluation, join
from trainrun.errors import UserError
from trainrun.parts.augmentations import Statistics
from trainrun.parts.augmentations.scale import Components
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.registry import PartNode, Registry

_MEASURED, _PIXELS = 10_000, 1 << 26  # pictures that are always looked at, and pixels up to which all are: CIFAR-10 whole, in a second


class Inputs:
    """Augments and scales batches; in evaluation only the parts that are always applied, and what stands there for others.

    A sample's numbers come from (seed, epoch, sample id) and the part's place in the list, so they are the same in any
    batch, micro-batch, process or worker. Parts that mix come last and see what the network would see, in training only.
    """

    def __init__(
        self,
        training: Sequence[Step],
        evaluation: Sequence[Step],
        seed: int,
        memory_format: str,
        mixing: Sequence[tuple[Callable[..., Any], int]] = (),
        classes: int = 0,
        together: int = 1,
    ) -> None:
        self.training, self.evaluation = training, evaluation
        self.mixing, self.classes, self.together = mixing, classes, together
        self.seed = seed
        self.layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format

    def __call__(self, batch: Batch, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as float32 [B, C, H, W] and the targets of the loss: labels [B], or float32 [B, classes] where they are mixed."""
        draw = draws(self.seed, batch.epoch, batch.ids, batch.visits)
        images, targets = self.pictures(batch.images, draw, training), batch.labels
        if training and self.mixing:
            targets = (targets[:, None] == torch.arange(self.classes, device=targets.device)).float()
            for mix, purpose in self.mixing:
                images, targets = mix(images, targets, draw.for_(purpose))
        return images.contiguous(memory_format=self.layout), targets

    def pictures(self, images: torch.Tensor, draw: Draw, training: bool) -> torch.Tensor:
        """uint8 [B, C, H, W] to float32 [B, C, H, W]; without a `normalize` in the list, 0..255 becomes 0..1."""
        for step in self.training if training else self.evaluation:
            images = step(images, draw)
        return self.scaled(images)

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures that no `normalize` has scaled as 0..1, in the network's layout."""
        if not images.is_floating_point():
            images = images.float().mul_(1 / 255)
        return images.contiguous(memory_format=self.layout)


def make_inputs(
    nodes: Sequence[PartNode], seed: int, memory_format: str, statistics: Statistics, registry: Registry, cut: bool = False
) -> Inputs:
    """The recipe's augmentations, ready to apply; a part that is a class is given the statistics of the data first.

    cut: whether the first is made already, where the pictures are read.
    """
    training: list[Step] = []
    evaluation: list[Step] = []
    mixing: list[tuple[Callable[..., Any], int]] = []
    for place, node in enumerate(nodes):
        found = registry.get(node.kind, node.name)
        assert found is not None, node.name
        purpose = key("augment", place, node.name)
        if cut and place == 0:
            continue
        if found.facts.get("geometry"):
            join(training, found.call(node.options), purpose, node.options.get("mode"))
            if instead := in_evaluation(found, node):
                join(evaluation, instead, purpose, node.options.get("mode"))
            continue
        apply = found.call(node.options)
        if inspect.isclass(found.function):
            try:
                apply = apply(statistics)
            except UserError as error:
                raise UserError(f"augment.{place}: {error}") from None
        if found.facts.get("mixes"):
            mixing.append((apply, purpose))
            continue
        training.append(Photometric(apply, purpose))
        if found.facts.get("always", False):
            evaluation.append(training[-1])
    return Inputs(training, evaluation, seed, memory_format, mixing, statistics.classes, together(nodes, registry))


def together(nodes: Sequence[PartNode], registry: Registry) -> int:
    """How many neighbours in the order of an epoch stay in one micro-batch of one process: pairs that are mixed, or single pictures."""
    return 2 if any(part.facts.get("mixes") for node in nodes if (part := registry.get(node.kind, node.name))) else 1


def statistics(data: Data, training: Feed) -> Statistics:
    """The statistics of a data set: published, else measured once, over all training pictures, or some of very many or large ones, evenly spaced.

    Where pictures are cut as they are read, each shows what evaluation would take of it: mostly the middle, at the network's size.
    """
    published = (data.mean, data.std) if data.mean is not None and data.std is not None else None
    moments = functools.cache(lambda: _moments(training))
    return Statistics(
        data.train.shape[2], lambda: published or _figures(*moments()), lambda: _components(*moments()), classes=len(data.classes)
    )


def principal(training: Feed) -> tuple[tuple[float, ...], Components]:
    """The mean of the training pictures' pixels and their principal components, measured."""
    mean, products = _moments(training)
    return _figures(mean, products)[0], _components(mean, products)


def _moments(training: Feed) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each channel and of each product of two, over levels 0..255, in float64."""
    height, width, _ = training.shape
    looked_at = min(len(training), max(_MEASURED, _PIXELS // (height * width)))
    ids = torch.linspace(0, len(training) - 1, looked_at, dtype=torch.float64).round().long()
    # Whole numbers below 2^53 add up to the same in any order and on any device.
    sums: Any = 0
    products: Any = 0
    pixels = 0
    for pictures in training.fetch(ids.split(64 if training.split.boxes is None else 8)):
        x = pictures.reshape(-1, training.split.shape[2]).double()
        sums = sums + x.sum(0)
        products = products + x.T @ x
        pixels += len(x)
    return sums.cpu() / pixels, products.cpu() / pixels


def _figures(mean: torch.Tensor, products: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    std = (products.diagonal() - mean.square()).clamp(min=0).sqrt() / 255
    # A channel without any contrast is only centred.
    return tuple((mean / 255).tolist()), tuple(s if s > 0 else 1.0 for s in std.tolist())


def _components(mean: torch.Tensor, products: torch.Tensor) -> Components:
    """Eigenvalues of the covariance of values in 0..1, the largest first, and their vectors, each with its largest entry positive."""
    values, vectors = torch.linalg.eigh((products - mean[:, None] * mean) / 255**2)
    rows = vectors.T.flip(0)
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return tuple(values.flip(0).clamp(min=0).tolist()), tuple(tuple(row) for row in rows.tolist())
