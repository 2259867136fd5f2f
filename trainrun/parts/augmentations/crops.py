"""Crops of random size, resized to the size that the network sees. In evaluation their place is taken by a plain resize and the middle."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from trainrun.draw import Draw
from trainrun.parts.augmentations.geometry import Move, Warp, between, matrix
from trainrun.parts.augmentations.moves import center_crop
from trainrun.recipe.registry import part

Shape = tuple[int, int]
Size = Annotated[int, Field(ge=1, le=4096, description="Height and width of the result, in pixels.")]
_ATTEMPTS = 10


def _box(top: Any, left: Any, height: Any, width: Any, size: int, shrink: float) -> Warp:
    """The part of a picture, in pixels, enlarged or shrunk to a square."""
    down, right = height / size, width / size
    # Edges meet edges: the first pixel's centre is half a pixel inside on both sides.
    return Warp((size, size), matrix((right, 0.0, left + right / 2 - 0.5), (0.0, down, top + down / 2 - 0.5)), shrink, aligned=True)


def _middle(shape: Shape, draw: Draw, shorter: int, size: int) -> Warp | Move:
    """The shorter side resized to `shorter` pixels, then the middle square of `size`."""
    import torch

    if shorter == min(shape):
        return center_crop(shape, draw, size=size)
    sides = [shorter * side // min(shape) for side in shape]
    ones = torch.ones(len(draw.base), dtype=torch.float64, device=draw.base.device)
    (top, tall), (left, wide) = (
        (ones * (round((side - size) / 2) * before / side), ones * (size * before / side))
        for before, side in zip(shape, sides, strict=True)
    )
    return _box(top, left, tall, wide, size, max(1.0, min(shape) / shorter))


def _resized_middle(shape: Shape, draw: Draw, *, size: int, crop_pct: float, **_: Any) -> Warp | Move:
    return _middle(shape, draw, round(size / crop_pct), size)


@part("augment", geometry=True, cuts=True, evaluation=_resized_middle)
def random_resized_crop(
    shape: Shape,
    draw: Draw,
    *,
    size: Size,
    scale: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]],
        Field(min_length=2, max_length=2, description="Least and largest share of the picture's area that is cut out."),
    ] = [0.08, 1.0],  # noqa: B006  # frozen by the options model
    aspect: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]],
        Field(min_length=2, max_length=2, description="Least and largest width / height of what is cut out."),
    ] = [0.75, 4 / 3],  # noqa: B006  # frozen by the options model
    crop_pct: Annotated[
        float, Field(gt=0, le=1, description="In evaluation: the share of the shorter side that the middle square shows.")
    ] = 0.875,
) -> Warp:
    """Cut out a box of random area and aspect, and resize it to size x size.

    The area is uniform in `scale` x H x W, the logarithm of the aspect uniform between its ends; height and width are rounded to
    whole pixels, and the first of ten such draws that fits into the picture is taken, at a uniform place. Where none fits: the
    largest box in the middle whose aspect is allowed. Bilinear; antialiased where H or W is more than 1.25 x size.
    In evaluation the middle square of `crop_pct` of the shorter side is resized instead, so 0.875 with size 224 is the usual
    resize to 256 and crop of 224. The network is built for `size`.
    Source: Szegedy et al. 2015, Going Deeper with Convolutions, section 6; the draws are those of torchvision's RandomResizedCrop.
    """
    import torch

    height, width = shape
    numbers = draw.uniform(2 * _ATTEMPTS + 2).double()
    area = between(numbers[:, :_ATTEMPTS], *scale) * (height * width)
    ratio = between(numbers[:, _ATTEMPTS : 2 * _ATTEMPTS], *(math.log(a) for a in aspect)).exp()
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    widest = min(width, max(1, round(height * aspect[1])))
    tallest = min(height, max(1, round(width / aspect[0])))
    wide = torch.where(found, wide.gather(1, first)[:, 0], float(widest))
    tall = torch.where(found, tall.gather(1, first)[:, 0], float(tallest))
    top = torch.where(found, (numbers[:, -2] * (height - tall + 1)).floor(), float((height - tallest) // 2))
    left = torch.where(found, (numbers[:, -1] * (width - wide + 1)).floor(), float((width - widest) // 2))
    return _box(top, left, tall, wide, size, max(1.0, max(shape) / size))


def _middle_of_mean(shape: Shape, draw: Draw, *, size: int, shorter: list[int]) -> Warp | Move:
    return _middle(shape, draw, round(sum(shorter) / 2), size)


@part("augment", geometry=True, cuts=True, evaluation=_middle_of_mean)
def scale_jitter(
    shape: Shape,
    draw: Draw,
    *,
    size: Size,
    shorter: Annotated[
        list[Annotated[int, Field(ge=1, le=16384)]],
        Field(min_length=2, max_length=2, description="Least and largest length of the shorter side before the crop, in pixels."),
    ],
) -> Warp:
    """Resize each picture so that its shorter side has a random length, and cut out a random square of size x size.

    The length is a uniform integer between its two ends, the longer side int(longer x length / shorter side); the place is uniform
    over whole pixels. Bilinear; antialiased where the shorter side may shrink to less than 0.8 of itself.
    In evaluation the shorter side becomes the mean of the two ends, and the middle square is taken. The network is built for `size`.
    Source: Simonyan & Zisserman 2014, Very Deep Convolutional Networks, section 3.1 (224 of 256 .. 512; Q in section 4.1); He et al.
    2015, Deep Residual Learning, section 3.4 (224 of 256 .. 480).
    """
    low, high = shorter
    length = draw.integers(1, high - low + 1)[:, 0] + low
    sides = [length * side // min(shape) for side in shape]
    places = [(draw.integers(3, 1 << 24)[:, 1 + n] * (side - size + 1)) >> 24 for n, side in enumerate(sides)]
    (top, tall), (left, wide) = (
        (place * (side / after), size * (side / after))
        for place, side, after in zip(places, shape, (s.double() for s in sides), strict=True)
    )
    return _box(top, left, tall, wide, size, max(1.0, min(shape) / low))
