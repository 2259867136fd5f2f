"""Augmentation policies: one operation or a few a picture, drawn from a list that is the same for every data set.

Operations and ranges are those of torchvision's TrivialAugmentWide and RandAugment, which follow the papers' own code. They
take uint8 pictures [B, C, H, W] with a strength [B] and round where torchvision truncates, so they agree to within one level; the geometric ones
take the nearest pixel, as there, and are black beyond the edge. On pictures with one channel `color` changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.parts.augmentations.colour import blended
from trainrun.parts.augmentations.pixels import a_picture, in_colour, mean_grey, planes, to_bytes, where_chosen
from trainrun.parts.augmentations.scale import Statistics
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import torch

    from trainrun.draw import Draw

# Each operation's largest strength at each of the 31 levels 0..30, which rise evenly; signed ones go either way.
_TOP = 30
_SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
_WARPS = _SIGNED[:5]
_PLAIN = ("identity", "autocontrast", "equalize")
NAMES = (*_SIGNED, "posterize", "solarize", *_PLAIN)
_WIDE = {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "photometric": 0.99, "posterize": 6}
_MILD = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "photometric": 0.9, "posterize": 4}


def strengths(limits: Mapping[str, float], size: tuple[int, int] | None = None) -> list[list[float]]:
    """The strength of each operation of NAMES at each level; with a size (height, width) translations are shares of it.

    Posterize counts the bits that stay, solarize the level from which on values are inverted.
    """
    height, width = size or (1, 1)
    tops = {
        "shear_x": limits["shear"], "shear_y": limits["shear"], "rotate": limits["rotate"],
        "translate_x": limits["translate"] * width, "translate_y": limits["translate"] * height,
    }  # fmt: skip
    rows = [[level * tops.get(name, limits["photometric"]) / _TOP for level in range(_TOP + 1)] for name in _SIGNED]
    rows.append([float(8 - round(level * limits["posterize"] / _TOP)) for level in range(_TOP + 1)])
    rows.append([255 * (1 - level / _TOP) for level in range(_TOP + 1)])
    return rows + [[0.0] * (_TOP + 1)] * len(_PLAIN)


def warped(pictures: torch.Tensor, strength: torch.Tensor, op: torch.Tensor) -> torch.Tensor:
    """Shear about the corner, move by whole pixels, or turn counter-clockwise about the centre, by the place of `op` in NAMES."""
    import torch

    count, channels, height, width = pictures.shape
    s = strength.double()
    by = {name: torch.where(op == n, s, 0.0) for n, name in enumerate(_WARPS)}
    radians = torch.deg2rad(by["rotate"])
    # Rounded to float32, so that a last bit cannot decide between two pixels.
    cos, sin = torch.cos(radians).float().double()[:, None, None], torch.sin(radians).float().double()[:, None, None]
    shear_x, shear_y = by["shear_x"][:, None, None], by["shear_y"][:, None, None]
    move_x, move_y = by["translate_x"].trunc()[:, None, None], by["translate_y"].trunc()[:, None, None]
    x = torch.arange(width, device=pictures.device, dtype=torch.float64)[None, None, :] + 0.5
    y = torch.arange(height, device=pictures.device, dtype=torch.float64)[None, :, None] + 0.5
    u, v = x - width / 2, y - height / 2
    # Where a pixel comes from: pixel centres lie at halves. At most one of the five is not the identity.
    from_x = (u * cos - v * sin) + width / 2 + shear_x * y - move_x
    from_y = (u * sin + v * cos) + height / 2 + shear_y * x - move_y
    column, row = from_x.floor().long(), from_y.floor().long()
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    places = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    found = pictures.flatten(2).gather(2, places.view(count, 1, -1).expand(-1, channels, -1)).view(pictures.shape)
    return found.masked_fill(outside[:, None], 0)


def brightness(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return to_bytes(pictures.float() * a_picture(1 + strength))


def color(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    one = strength.new_ones(len(strength))
    return to_bytes(blended(planes(pictures), one, one, 1 + strength, one))


def contrast(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    one = strength.new_ones(len(strength))
    return to_bytes(blended(pictures, one, 1 + strength, one, mean_grey(pictures)))


def sharpness(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Away from, or towards, the mean of 3 x 3 pixels in which the middle counts five times; the outermost pixels stay."""
    import torch

    if min(pictures.shape[2:]) < 3:
        return pictures
    whole = pictures.int()
    middle = whole[..., 1:-1, 1:-1]
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    smooth = ((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle).float() / 13).round()
    sharp = pictures.clone()
    sharp[..., 1:-1, 1:-1] = to_bytes(smooth + (middle.to(torch.float32) - smooth) * a_picture(1 + strength))
    return sharp


def posterize(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    import torch

    return pictures & a_picture(256 - 2 ** (8 - strength.long())).to(torch.uint8)


def solarize(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(pictures >= a_picture(strength), 255 - pictures, pictures)


def autocontrast(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255; one without contrast stays."""
    import torch

    low, top = pictures.amin((2, 3), keepdim=True).float(), pictures.amax((2, 3), keepdim=True).float()
    flat = low == top
    stretched = (pictures.float() - low) * 255 / torch.where(flat, 1.0, top - low)
    return torch.where(flat, pictures, to_bytes(stretched))


def equalize(pictures: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Make the histogram of each channel as level as it can be, by the integer arithmetic of PIL's ImageOps.equalize."""
    import torch

    count, channels, height, width = pictures.shape
    row = torch.arange(count * channels, device=pictures.device).view(count, channels, 1, 1) * 256
    places = (pictures.long() + row).flatten()
    histogram = torch.zeros(count * channels * 256, dtype=torch.int64, device=pictures.device)
    histogram = histogram.scatter_add_(0, places, torch.ones_like(places)).view(-1, 256)
    below = histogram.cumsum(1) - histogram
    brightest = histogram.gather(1, pictures.amax((2, 3)).long().view(-1, 1))
    step = (height * width - brightest) // 255
    level = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    level = torch.where(step == 0, torch.arange(256, device=pictures.device), level)
    return level.to(torch.uint8).flatten().index_select(0, places).view(pictures.shape)


_CHANGES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": brightness, "color": color, "contrast": contrast, "sharpness": sharpness, "posterize": posterize,
    "solarize": solarize, "autocontrast": autocontrast, "equalize": equalize,
}  # fmt: skip


def applied(pictures: torch.Tensor, op: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Each picture with its operation (a place in NAMES, int64 [B]) at its strength, float32 [B]."""
    if not pictures.numel():
        return pictures
    pictures = where_chosen(pictures, op < len(_WARPS), warped, strength, op)
    for name, change in _CHANGES.items():
        pictures = where_chosen(pictures, op == NAMES.index(name), change, strength)
    return pictures


class _Policy:
    """Draws `rounds` operations a picture, one after the other, at a level (0..30) that is given or drawn as well."""

    def __init__(self, limits: Mapping[str, float], rounds: int, level: int | None, relative: bool) -> None:
        self.rounds, self.level = rounds, level

        @functools.cache
        def table(height: int, width: int, device: torch.device) -> torch.Tensor:
            import torch

            return torch.tensor(strengths(limits, (height, width) if relative else None)).to(device, non_blocking=True)

        self.table = table

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        # A lane each of its own for operation, level and sign: three lanes a round.
        ops, levels = draw.integers(3 * self.rounds, len(NAMES)), draw.integers(3 * self.rounds, _TOP + 1)
        signs = draw.integers(3 * self.rounds, 2)
        table = self.table(*images.shape[2:], images.device)
        for n in range(self.rounds):
            op = ops[:, 3 * n]
            level = levels[:, 3 * n + 1] if self.level is None else torch.full_like(op, self.level)
            strength = table[op, level]
            back = (signs[:, 3 * n + 2] == 1) & (op < len(_SIGNED))
            images = applied(images, op, torch.where(back, -strength, strength))
        return images


@part("augment", levels=True, moves=True)
class trivial_augment(_Policy):
    """Change each picture by one operation of fourteen, at a strength that is drawn as well (TrivialAugment Wide).

    The operation is uniform among identity, shear_x, shear_y (up to 0.99), translate_x, translate_y (32 pixels), rotate (135 degrees),
    brightness, color, contrast, sharpness (0.99), posterize (2 bits), solarize, autocontrast and equalize; the strength uniform among 31 levels, its sign
    even where it has one. Made for pictures of 32 pixels and more. uint8 [B, 1 or 3, H, W].
    Source: Mueller & Hutter 2021, TrivialAugment; torchvision TrivialAugmentWide.
    """

    def __init__(self, statistics: Statistics) -> None:
        in_colour("trivial_augment", statistics.channels, "")
        super().__init__(_WIDE, 1, None, relative=False)


@part("augment", levels=True, moves=True)
class rand_augment(_Policy):
    """Change each picture by a few drawn operations, one after the other, all at one strength (RandAugment).

    Each operation is uniform among the fourteen of trivial_augment, repeats allowed; at magnitude 30 shears are 0.3, translations 45 % of the
    side, rotations 30 degrees, the photometric factors 1 +- 0.9, posterize keeps 4 bits and solarize inverts all; the sign is even
    where there is one. uint8 [B, 1 or 3, H, W]. Source: Cubuk et al. 2020, RandAugment; torchvision RandAugment.
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        ops: Annotated[int, Field(ge=1, le=14, description="Operations a picture, one after the other.")] = 2,
        magnitude: Annotated[int, Field(ge=0, le=_TOP, description="Strength of all of them, in thirtieths.")] = 9,
    ) -> None:
        in_colour("rand_augment", statistics.channels, "")
        super().__init__(_MILD, ops, magnitude, relative=True)
