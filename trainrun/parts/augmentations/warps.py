"""Augmentations that turn, stretch and tilt pictures within their frame."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from trainrun.draw import Draw
from trainrun.parts.augmentations.geometry import Warp, about_centre, between, inverse, matrix, product
from trainrun.parts.augmentations.moves import Mode
from trainrun.recipe.registry import part

Shape = tuple[int, int]
Scale = Annotated[
    list[Annotated[float, Field(gt=0, le=100)]],
    Field(min_length=2, max_length=2, description="Least and largest factor; above 1 enlarges."),
]
Pair = list[Annotated[float, Field(ge=0, le=1)]]


@part("augment", geometry=True)
def rotation(
    shape: Shape,
    draw: Draw,
    *,
    degrees: Annotated[float, Field(gt=0, le=180, description="Largest angle to either side, in degrees.")] = 10.0,
    mode: Mode = "zero",
) -> Warp:
    """Turn each picture about its centre by a random angle.

    The angle is uniform in [-degrees, degrees); positive ones turn counter-clockwise. Bilinear; the frame keeps its size.
    Reference: RandomRotation of torchvision.
    """
    angle = between(draw.uniform(1)[:, 0], -math.radians(degrees), math.radians(degrees))
    cos, sin = angle.cos(), angle.sin()
    return Warp(shape, about_centre(shape, (cos, -sin), (sin, cos)))


@part("augment", geometry=True)
def reflection(
    shape: Shape,
    draw: Draw,
    *,
    angles: Annotated[
        list[Annotated[float, Field(ge=0, le=180)]],
        Field(min_length=2, max_length=2, description="Least and largest angle between the axis and the horizontal, in degrees."),
    ] = [0.0, 180.0],  # noqa: B006  # frozen by the options model
    p: Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are mirrored.")] = 0.5,
    mode: Mode = "zero",
) -> Warp:
    """Mirror each picture, with probability p, about a random axis through its centre.

    The axis's angle a, counter-clockwise from the horizontal, is uniform in [least, largest); the map is
    [[cos 2a, -sin 2a], [-sin 2a, -cos 2a]] with y pointing down: 90 degrees is a horizontal flip, 0 a vertical one. Bilinear.
    Source: the reflections of the plane; with `rotation` they make up its whole orthogonal group.
    """
    numbers = draw.uniform(2)
    angle = between(numbers[:, 0], *(2 * math.radians(a) for a in angles))
    mirrored = (numbers[:, 1] < p).double()
    cos, sin = angle.cos() * mirrored, angle.sin() * mirrored
    still = 1 - mirrored
    return Warp(shape, about_centre(shape, (cos + still, -sin), (-sin, still - cos)))


@part("augment", geometry=True)
def random_scale(shape: Shape, draw: Draw, *, scale: Scale = [0.8, 1.25], mode: Mode = "zero") -> Warp:  # noqa: B006  # frozen by the options model
    """Enlarge or shrink each picture about its centre by a random factor, within its frame.

    The factor is exp(u) with u uniform between the logarithms of the two ends, so that enlarging by 1.25 is as likely as
    shrinking by it. Bilinear; antialiased where the least factor is below 0.8. Reference: the scale of torchvision's
    RandomAffine, which is uniform.
    """
    factor = between(draw.uniform(1)[:, 0], *(math.log(s) for s in scale)).exp()
    return Warp(shape, about_centre(shape, (1 / factor, 0.0), (0.0, 1 / factor)), max(1.0, 1 / scale[0]), aligned=True)


@part("augment", geometry=True)
def affine(
    shape: Shape,
    draw: Draw,
    *,
    degrees: Annotated[float, Field(ge=0, le=180, description="Largest angle of rotation to either side, in degrees.")] = 0.0,
    shift: Annotated[
        Pair, Field(min_length=2, max_length=2, description="Largest shift sideways and up or down, as shares of width and height.")
    ] = [0.0, 0.0],  # noqa: B006  # frozen by the options model
    scale: Scale = [1.0, 1.0],  # noqa: B006  # frozen by the options model
    shear: Annotated[
        list[Annotated[float, Field(ge=0, lt=90)]],
        Field(min_length=2, max_length=2, description="Largest shear along x and along y to either side, in degrees."),
    ] = [0.0, 0.0],  # noqa: B006  # frozen by the options model
    mode: Mode = "zero",
) -> Warp:
    """Rotate, shift, scale and shear each picture at once.

    Each of angle r, shifts, scale s and shears a, b is uniform in its range. About the centre, with y pointing down, a point p of the
    picture goes to s R(r) [[1, 0], [-tan b, 1]] [[1, -tan a], [0, 1]] p + shift. Bilinear; antialiased where the least scale is below
    0.8. Reference: RandomAffine of torchvision, whose matrix this is; its shifts are rounded, these are not.
    """
    u = draw.uniform(6).double()
    turn = between(u[:, 0], -math.radians(degrees), math.radians(degrees))
    x, y = (between(u[:, 1 + n], -shift[n] * shape[1 - n], shift[n] * shape[1 - n]) for n in (0, 1))
    factor = between(u[:, 3], *scale)
    a, b = (between(u[:, 4 + n], -math.radians(shear[n]), math.radians(shear[n])).tan() for n in (0, 1))
    # The inverse of the linear part: the shears undone after the rotation, [[1, a], [0, 1]] [[1, 0], [b, 1]] R(-r) / s.
    cos, sin, both = turn.cos() / factor, turn.sin() / factor, 1 + a * b
    rows = (both * cos - a * sin, both * sin + a * cos), (b * cos - sin, b * sin + cos)
    return Warp(shape, about_centre(shape, *rows, (x, y)), max(1.0, 1 / scale[0]), aligned=not any((degrees, *shear)))


@part("augment", geometry=True)
def perspective(
    shape: Shape,
    draw: Draw,
    *,
    distortion: Annotated[
        float, Field(gt=0, le=0.7, description="How far a corner moves at most, as a share of the way to the middle of the picture.")
    ] = 0.5,
    p: Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are tilted.")] = 0.5,
    mode: Mode = "zero",
) -> Warp:
    """Tilt each picture, with probability p, as if it were seen from aside.

    Each corner moves inwards by two uniform shares, in x and in y, of up to `distortion` times half a side; the projective map that
    takes the old corners to the new ones is applied. Bilinear, not antialiased. Reference: RandomPerspective of torchvision;
    the map of a square to a quadrilateral: Heckbert 1989, Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    """
    height, width = max(shape[0] - 1, 1), max(shape[1] - 1, 1)  # a line of pixels is taken for two, or its corners would coincide
    numbers = draw.uniform(9).double()
    moved = (numbers[:, 8:] < p).double()
    inwards = numbers[:, :8] * moved * (distortion / 2)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (
        (abs(right - inwards[:, 2 * n]) * width, abs(below - inwards[:, 2 * n + 1]) * height)
        for n, (right, below) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1)))
    )
    # (0, 0), (1, 0), (1, 1), (0, 1) go to the four corners in this order.
    dx1, dx2, dy1, dy2 = x1 - x2, x3 - x2, y1 - y2, y3 - y2
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area
    quadrilateral = matrix((x1 - x0 + g * x1, x3 - x0 + h * x3, x0), (y1 - y0 + g * y1, y3 - y0 + h * y3, y0), (g, h, 1.0))
    square = matrix((width + 0 * g, 0.0, 0.0), (0.0, height, 0.0))
    back = product(square, inverse(quadrilateral))
    return Warp(shape, back / back[:, 2:, 2:], projective=True)
