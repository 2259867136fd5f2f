"""A crop that stands first among the augmentations, cut out of the decoded picture where that is read.

So a picture travels at the size that the crop gives it, pictures of unequal sizes can be trained on, and none is shrunk first and
enlarged afterwards. The box is the one that the part itself gives for this picture's height and width and this sample's numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from trainrun.draw import Draw, draws, key
from trainrun.engine.steps import Geometric, in_evaluation
from trainrun.errors import UserError
from trainrun.parts.augmentations.geometry import Move, Warp
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.augmentations.separable import cut_out
from trainrun.parts.datasets.pictures import BadPicture
from trainrun.parts.datasets.splits import Split, differs
from trainrun.recipe.registry import Part, PartNode, Registry
from trainrun.recipe.schema import Recipe

Shape = tuple[int, int]


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

    training: Geometric
    evaluation: Geometric
    size: Shape
    seed: int = 0

    def read(self, split: Split, wanted: Wanted) -> np.ndarray:
        """The cuts, uint8 [B, *size, C]; raises UserError, as the split does, and where a picture has another size than it had."""
        visits = None if wanted.visits is None else torch.from_numpy(wanted.visits)
        draw = draws(self.seed, wanted.epoch, torch.from_numpy(wanted.ids), visits)
        found = np.empty((len(wanted), *self.size, split.shape[2]), np.uint8)
        for n, sample in enumerate(wanted.ids.tolist()):
            height, width = split.shape[:2] if split.sizes is None else split.sizes[sample].tolist()
            decode = functools.partial(split.decode, sample) if split.decode else functools.partial(_as_it_is, split, sample)
            try:
                found[n] = self.of(decode, (height, width), _row(draw, n), wanted.training)
            except BadPicture as error:
                raise UserError(f"{split.source(sample)} {error}") from None
        return found

    def of(self, decode: Callable[[int], np.ndarray], shape: Shape, draw: Draw, training: bool) -> np.ndarray:
        """The cut of one picture of this height and width, uint8 [*size, C], with the numbers of one sample.

        decode: takes the number by which it may shrink the picture, and returns it, uint8 [H, W, C].
        """
        step = self.training if training else self.evaluation
        motion = step.motion(shape, draw)
        shrink = _spare(motion)
        pixels = decode(shrink)
        scale = 1 if pixels.shape[:2] == shape else shrink
        if pixels.shape[:2] != tuple(-(-side // scale) for side in shape):
            raise BadPicture(f"has {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), and {shape[0]} x {shape[1]} when it was looked at")
        if isinstance(motion, Warp) and step.border is None and motion.aligned:
            return cut_out(pixels, motion, scale)
        images = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
        return transform(images, motion, step.beyond(motion))[0].permute(1, 2, 0).numpy()


def _row(draw: Draw, n: int) -> Draw:
    assert draw.ids is not None
    return replace(draw, base=draw.base[n : n + 1], ids=draw.ids[n : n + 1])


def _as_it_is(split: Split, sample: int, shrink: int) -> np.ndarray:
    return split.read([sample])[0]


def _spare(motion: Move | Warp) -> int:
    """By how much the decoder may shrink the picture: two of its pixels at least are left for one that is wanted."""
    if isinstance(motion, Move) or not motion.aligned:
        return 1
    least = min(abs(motion.matrix[0, n, n].item()) for n in (0, 1)) / 2
    return next((scale for scale in (8, 4, 2) if scale <= least), 1)


def _first_crop(recipe: Recipe, parts: Registry) -> tuple[Part, PartNode] | None:
    """The part that stands first among the augmentations, if it can be carried out where pictures are decoded."""
    node = recipe.augment[0] if recipe.augment else None
    part = parts.get(node.kind, node.name) if node else None
    return (part, node) if part and node and part.facts.get("cuts") else None


def where_to_cut(recipe: Recipe, parts: Registry, unequal: bool | None) -> tuple[str, str]:
    """What data.cut: auto comes to and why; unequal: whether pictures differ in size, None where that is not known yet."""
    found = _first_crop(recipe, parts)
    if found is None:
        return "device", "the first of augment is no crop to one size" if recipe.augment else "there is no crop"
    if unequal is None:
        return "auto", "the run finds out: worker where pictures differ in size, else device"
    return ("worker", f"pictures differ in size, so {found[1].name} cuts the decoded one") if unequal else ("device", "all pictures have one size")


def make_cut(recipe: Recipe, parts: Registry, *splits: Split | None) -> Cut | None:
    """The crop that a settled recipe has the workers make of these splits; None where all augmentations are made on the device.

    Raises UserError where that cannot be, because pictures differ in size, and names one.
    """
    if recipe.data.options["cut"] != "worker":
        _refuse_unequal(split for split in splits if split is not None and split.sizes is not None and split.boxes is None)
        return None
    found = _first_crop(recipe, parts)
    assert found, "a check of the recipe refuses it"
    part, node = found
    instead = in_evaluation(part, node)
    assert instead, f"{node.name} has nothing that takes its place in evaluation"
    purpose, border = key("augment", 0, node.name), node.options.get("mode")
    training, evaluation = (Geometric(((apply, purpose),), border) for apply in (part.call(node.options), instead))
    nobody = draws(0, 0, torch.empty(0, dtype=torch.int64))
    return Cut(training, evaluation, training.motion((1 << 12, 1 << 12), nobody).size, recipe.seed)


def _refuse_unequal(splits: Iterable[Split]) -> None:
    first = None
    for split in splits:
        assert split.sizes is not None
        first = first or split.sizes[0].tolist()
        for other in np.flatnonzero((split.sizes != first).any(1))[:1]:
            raise differs(split.source(int(other)), split.sizes[other].tolist(), first)
