"""Augmentations that only move pixels: crops, flips and shifts by whole pixels. Alone or together they never resample."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainrun.draw import Draw
from trainrun.parts.augmentations.geometry import Border, Move
from trainrun.recipe.registry import part

Shape = tuple[int, int]
Mode = Annotated[
    Border,
    Field(description="What lies beyond the picture: zero is black (after normalize: the mean), reflect mirrors it, edge repeats its outermost pixels."),
]
P = Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are mirrored.")]


@part("augment", geometry=True)
def random_crop(
    shape: Shape,
    draw: Draw,
    *,
    padding: Annotated[int, Field(ge=1, le=1024, description="Pixels added on every side before the crop.")] = 4,
    mode: Mode = "zero",
) -> Move:
    """Pad every side and cut out a random window of the original size.

    The two offsets are uniform integers in 0 .. 2 x padding. A pure move of pixels, no resampling. Modes are those of numpy.pad:
    constant 0 (what `normalize` makes of the mean where it comes before), reflect (the outermost pixel is not repeated) and edge. Source: He et al. 2015, Deep Residual Learning,
    section 4.2 (4 black pixels for CIFAR-10); reflect: Zagoruyko & Komodakis 2016, Wide Residual Networks.
    """
    offsets = draw.integers(2, 2 * padding + 1) - padding
    return Move(shape, y=offsets[:, 0], x=offsets[:, 1], margin=padding)


@part("augment", geometry=True, cuts=True, always=True)
def center_crop(
    shape: Shape,
    draw: Draw,
    *,
    size: Annotated[int, Field(ge=1, le=4096, description="Height and width of the result, in pixels.")],
) -> Move:
    """Cut out the middle square, in training and in evaluation.

    The first row is round((H - size) / 2), and so for columns; where the picture is smaller, black is added around it (or what the
    mode of the parts beside it says). A pure move of pixels. The network is built for the new size. Source: Krizhevsky et al. 2012,
    section 2; rounding as in torchvision's CenterCrop.
    """
    top, left = (round((side - size) / 2) if side >= size else -((size - side) // 2) for side in shape)
    return Move((size, size), y=top, x=left, margin=max(0, size - min(shape)))


@part("augment", geometry=True)
def horizontal_flip(shape: Shape, draw: Draw, *, p: P = 0.5) -> Move:
    """Mirror each picture left to right with probability p.

    A pure move of pixels. Source: Krizhevsky et al. 2012, section 4.1.
    """
    mirrored = (draw.uniform(1)[:, 0] < p).long()
    return Move(shape, x=(shape[1] - 1) * mirrored, right=1 - 2 * mirrored)


@part("augment", geometry=True)
def vertical_flip(shape: Shape, draw: Draw, *, p: P = 0.5) -> Move:
    """Mirror each picture top to bottom with probability p.

    A pure move of pixels, for pictures without an up and a down (microscopes, satellites). Reference: RandomVerticalFlip of torchvision.
    """
    mirrored = (draw.uniform(1)[:, 0] < p).long()
    return Move(shape, y=(shape[0] - 1) * mirrored, down=1 - 2 * mirrored)


@part("augment", geometry=True)
def alternating_flip(shape: Shape, draw: Draw) -> Move:
    """Mirror each picture left to right in every other epoch, half of them in the even ones and the rest in the odd ones.

    Whether a sample begins mirrored is a fair coin of (seed, sample id); then it alternates, so any two epochs in a row show both
    sides of every picture. A pure move of pixels. Source: Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, section 3.6.
    """
    mirrored = (draw.lasting().integers(1, 2)[:, 0] + draw.epoch) % 2
    return Move(shape, x=(shape[1] - 1) * mirrored, right=1 - 2 * mirrored)


@part("augment", geometry=True)
def shift(
    shape: Shape,
    draw: Draw,
    *,
    x: Annotated[float, Field(ge=0, le=1, description="Largest shift to either side, as a share of the width.")] = 0.1,
    y: Annotated[float, Field(ge=0, le=1, description="Largest shift up or down, as a share of the height.")] = 0.1,
    mode: Mode = "zero",
) -> Move:
    """Shift each picture by whole pixels, sideways and up or down.

    Each shift is a uniform integer in -n .. n, where n is the share times the side, rounded to whole pixels. A pure move of pixels.
    Reference: `translate` of torchvision's RandomAffine, which rounds the drawn shift instead.
    """
    most = round(y * shape[0]), round(x * shape[1])
    rows, columns = (draw.integers(2, 2 * n + 1)[:, lane] - n for lane, n in enumerate(most))
    return Move(shape, y=rows, x=columns, margin=max(most))
