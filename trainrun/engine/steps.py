"""The steps that a list of augmentations comes to: geometric parts that stand together are one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainrun.draw import Draw, draws
from trainrun.errors import UserError
from trainrun.parts.augmentations.geometry import Border, Move, Warp, then
from trainrun.parts.augmentations.resample import transform
from trainrun.recipe.registry import Part, PartNode, Registry


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
        motion = None
        for part, purpose in self.parts:
            more = part(motion.size if motion else shape, draw.for_(purpose))
            motion = then(motion, more, draw.base) if motion else more
        assert motion is not None
        return motion

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = images.shape[-2:]
        motion = self.motion((height, width), draw)
        return transform(images, motion, self.beyond(motion))

    def beyond(self, motion: Move | Warp) -> Border:
        """What lies beyond the picture."""
        # Without a mode there are only crops: of pixels, which may be smaller than the crop, or of boxes that lie in the picture,
        # whose rim must not be mixed with black.
        return self.border or ("zero" if isinstance(motion, Move) else "edge")


Step = Photometric | Geometric


def join(steps: list[Step], apply: Callable[..., Move | Warp], purpose: int, border: Border | None) -> None:
    """Add a geometric part to the one that stands before it; those with another border are carried out one after the other."""
    last = steps[-1] if steps else None
    if isinstance(last, Geometric) and (last.border == border or None in (last.border, border)):
        steps[-1] = Geometric((*last.parts, (apply, purpose)), last.border or border)
    else:
        steps.append(Geometric(((apply, purpose),), border))


def in_evaluation(part: Part, node: PartNode) -> Callable[..., Move | Warp] | None:
    """What a geometric part does in evaluation: itself where it is always applied, what it names in its place, or nothing."""
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
        instead = in_evaluation(found, node)
        evaluated = instead(evaluated, nobody).size if instead else evaluated
    if size != evaluated:
        raise UserError(
            f"augment makes pictures of {size[0]} x {size[1]} pixels in training and of {evaluated[0]} x {evaluated[1]} in evaluation; "
            "a part that changes the size must also be applied in evaluation (always=True), or name what is (evaluation=...)"
        )
    return size[0], size[1], shape[2]
