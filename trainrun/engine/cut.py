"""A crop that stands first among the augmentations, cut out of the decoded picture where that is read.

So a picture travels at the size that the crop gives it, pictures of unequal sizes can be trained on, and none is shrunk first and
enlarged afterwards. The box is the one that the part itself gives for this picture's height and width and this sample's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.steps import in_evaluation
from trainrun.parts.augmentations.geometry import Move, Warp
from trainrun.parts.datasets import pictures
from trainrun.parts.datasets.splits import Split, differs
from trainrun.recipe.registry import Part, PartNode, Registry
from trainrun.recipe.schema import Recipe

Shape = tuple[int, int]
_OUTSIDE = 1e-3  # pixels; more than a sum of numbers below 16,384 is rounded by


@dataclass(frozen=True)
class Wanted:
    """A batch of samples, and what their random numbers are drawn from: ids, visits int64 [B] (see `Batch`)."""

    ids: np.ndarray
    epoch: int = 0
    visits: np.ndarray | None = None
    training: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: slice) -> Wanted:
        """Some of the samples."""
        return replace(self, ids=self.ids[rows], visits=None if self.visits is None else self.visits[rows])


@dataclass(frozen=True)
class Cut:
    """The crop in training and what takes its place in evaluation; size: height and width of what both give."""

    training: Callable[..., Move | Warp]
    evaluation: Callable[..., Move | Warp]
    size: Shape
    seed: int
    purpose: int

    def read(self, split: Split, wanted: Wanted) -> np.ndarray:
        """The cuts, uint8 [B, *size, C]; raises UserError as the split does."""
        ids = wanted.ids.tolist()
        shapes = [split.shape[:2]] * len(ids) if split.sizes is None else [(height, width) for height, width in split.sizes[ids].tolist()]
        boxes = self.boxes(shapes, wanted)
        if split.cut:
            return split.cut(ids, boxes, self.size)
        found = np.empty((len(ids), *self.size, split.shape[2]), np.uint8)
        for n, (picture, box, shape) in enumerate(zip(split.read(ids), boxes.tolist(), shapes, strict=True)):
            found[n] = pictures.cut_out(picture, pictures.Window(tuple(box), self.size, shape))
        return found

    def boxes(self, shapes: Sequence[Shape], wanted: Wanted) -> np.ndarray:
        """Top, left, height and width of each sample's box, in pixels of a picture with this height and width: float64 [B, 4]."""
        visits = None if wanted.visits is None else torch.from_numpy(wanted.visits)
        draw = draws(self.seed, wanted.epoch, torch.from_numpy(wanted.ids), visits).for_(self.purpose)
        part = self.training if wanted.training else self.evaluation
        boxes = np.empty((len(shapes), 4))
        for n, shape in enumerate(shapes):
            boxes[n] = _box(part(shape, _row(draw, n)), shape)
        return boxes


def _row(draw: Draw, n: int) -> Draw:
    assert draw.ids is not None
    return replace(draw, base=draw.base[n : n + 1], ids=draw.ids[n : n + 1])


def _box(motion: Move | Warp, shape: Shape) -> tuple[float, float, float, float]:
    """What a motion of one sample shows of a picture of this shape."""
    height, width = motion.size
    if isinstance(motion, Move):
        return float(motion.y), float(motion.x), float(height), float(width)
    (right, _, x), (_, down, y), _ = motion.matrix[0].tolist()
    # The edge of a pixel lies half a pixel before its centre, in what is shown and in what shows it.
    top, left, tall, wide = y - down / 2 + 0.5, x - right / 2 + 0.5, down * height, right * width
    if min(top, left) < -_OUTSIDE or top + tall > shape[0] + _OUTSIDE or left + wide > shape[1] + _OUTSIDE:
        raise ValueError(f"a part with the fact `cuts` gave the box {top, left, tall, wide} of a picture of {shape}")
    return top, left, tall, wide


def first_crop(recipe: Recipe, parts: Registry) -> tuple[Part, PartNode] | None:
    """The part that stands first among the augmentations, if it can be carried out where pictures are decoded."""
    node = recipe.augment[0] if recipe.augment else None
    part = parts.get(node.kind, node.name) if node else None
    return (part, node) if part and node and part.facts.get("cuts") else None


def where_to_cut(recipe: Recipe, parts: Registry, unequal: bool | None) -> tuple[str, str]:
    """What data.cut: auto comes to and why; unequal: whether pictures differ in size, None where that is not known yet."""
    found = first_crop(recipe, parts)
    if found is None:
        return "device", "the first of augment is no crop to one size" if recipe.augment else "there is no crop"
    if unequal is None:
        return "auto", f"worker if the pictures differ in size, which shows when they are read: then {found[1].name} is cut out of the whole picture"
    return ("worker", f"pictures differ in size, so {found[1].name} is cut out of the whole picture") if unequal else ("device", "all pictures have one size")


def make_cut(recipe: Recipe, parts: Registry, *splits: Split | None) -> Cut | None:
    """The crop that a settled recipe has the workers make of these splits; None where all augmentations are made on the device.

    Raises UserError where that cannot be, because pictures differ in size, and names one.
    """
    found = first_crop(recipe, parts)
    if recipe.data.options["cut"] != "worker":
        _refuse_unequal(split for split in splits if split is not None and split.sizes is not None)
        return None
    assert found, "a check of the recipe refuses it"
    part, node = found
    training: Any = part.call(node.options)
    evaluation = in_evaluation(part, node)
    assert evaluation, f"{node.name} has no stand-in for evaluation"
    size = training((1 << 12, 1 << 12), draws(0, 0, torch.empty(0, dtype=torch.int64))).size
    return Cut(training, evaluation, size, recipe.seed, key("augment", 0, node.name))


def _refuse_unequal(splits: Iterable[Split]) -> None:
    first = None
    for split in splits:
        assert split.sizes is not None
        first = first or split.sizes[0].tolist()
        for other in np.flatnonzero((split.sizes != first).any(1))[:1]:
            raise differs(split.source(int(other)), split.sizes[other].tolist(), first)
