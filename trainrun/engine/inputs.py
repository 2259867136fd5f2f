"""A batch of uint8 pictures to what the network sees: the recipe's augmentations, on the device, in their order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.feed import Batch, Feed
from trainrun.errors import UserError
from trainrun.parts.augmentations import Statistics
from trainrun.parts.augmentations.geometry import Border, Move, Warp, then
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.registry import Part, PartNode, Registry

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


@dataclass(frozen=True)
class Photometric:
    """A part that takes pictures and returns pictures."""

    apply: Callable[..., torch.Tensor]
    purpose: int

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return self.apply(images, draw.for_(self.purpose))


@dataclass(frozen=True)
class Geometric:
    """Parts that stand together and say where pixels come from, with their purposes: carried out as one."""

    parts: tuple[tuple[Callable[..., Move | Warp], int], ...]
    border: Border | None

    def motion(self, shape: tuple[int, int], draw: Draw) -> Move | Warp:
        """Where the pixels of pictures of this height and width come from."""
        motion: Move | Warp = Move(shape)
        for part, purpose in self.parts:
            motion = then(motion, part(motion.size, draw.for_(purpose)), draw.base)
        return motion

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = images.shape[-2:]
        motion = self.motion((height, width), draw)
        # Without a mode there are only crops: of pixels, which may be smaller than the crop, or of boxes that lie in the picture,
        # whose rim must not be mixed with black.
        return transform(images, motion, self.border or ("zero" if isinstance(motion, Move) else "edge"))


Step = Photometric | Geometric


def make_inputs(nodes: Sequence[PartNode], seed: int, memory_format: str, statistics: Statistics, registry: Registry) -> Inputs:
    """The recipe's augmentations, ready to apply; a part that is a class is given the statistics of the data first."""
    training: list[Step] = []
    evaluation: list[Step] = []
    for place, node in enumerate(nodes):
        found = registry.get(node.kind, node.name)
        assert found is not None, node.name
        purpose = key("augment", place, node.name)
        if found.facts.get("geometry"):
            _join(training, found.call(node.options), purpose, node.options.get("mode"))
            if instead := _in_evaluation(found, node):
                _join(evaluation, instead, purpose, node.options.get("mode"))
            continue
        apply = found.call(node.options)
        if inspect.isclass(found.function):
            apply = apply(statistics)
        training.append(Photometric(apply, purpose))
        if found.facts.get("always", False):
            evaluation.append(training[-1])
    return Inputs(training, evaluation, seed, memory_format)


def _join(steps: list[Step], apply: Callable[..., Move | Warp], purpose: int, border: Border | None) -> None:
    """Add a geometric part to the one that stands before it; what have two kinds of border is carried out one after the other."""
    last = steps[-1] if steps else None
    if isinstance(last, Geometric) and (last.border == border or None in (last.border, border)):
        steps[-1] = Geometric((*last.parts, (apply, purpose)), last.border or border)
    else:
        steps.append(Geometric(((apply, purpose),), border))


def _in_evaluation(part: Part, node: PartNode) -> Callable[..., Move | Warp] | None:
    if part.facts.get("always"):
        return part.call(node.options)
    instead = part.facts.get("evaluation")
    return functools.partial(instead, **node.options) if instead else None


def network_shape(nodes: Sequence[PartNode], shape: tuple[int, int, int], registry: Registry) -> tuple[int, int, int]:
    """Height, width and channels of what the network sees of pictures of `shape`: crops and resizes change it."""
    geometric = [(found, node) for node in nodes if (found := registry.get(node.kind, node.name)) and found.facts.get("geometry")]
    size = evaluated = shape[:2]
    nobody = draws(0, 0, torch.empty(0, dtype=torch.int64))
    for found, node in geometric:
        size = found.call(node.options)(size, nobody).size
        instead = _in_evaluation(found, node)
        evaluated = instead(evaluated, nobody).size if instead else evaluated
    if size != evaluated:
        raise UserError(
            f"augment makes pictures of {size[0]} x {size[1]} pixels in training and of {evaluated[0]} x {evaluated[1]} in evaluation; "
            "a part that changes the size must also be applied in evaluation (always=True), or name what is (evaluation=...)"
        )
    return size[0], size[1], shape[2]


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
