"""What several augmentations do with pixel values: round them, grey them, and change some pictures of a batch.

A picture's result must not depend on the batch around it, in any bit. So what acts on pixels is made of single additions,
multiplications and comparisons, which round alike wherever a value stands; fused multiply-adds (`add` with `alpha`,
`addcmul`, `lerp`), convolutions and matrix products do not. What needs a logarithm or a sine is computed in float64, once a
picture, and rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainrun.errors import UserError

if TYPE_CHECKING:
    import torch

LUMA = (0.299, 0.587, 0.114)


def to_bytes(values: torch.Tensor) -> torch.Tensor:
    """Float levels to uint8: rounded to the nearest, limited to 0..255."""
    import torch

    return values.round().clamp(0, 255).to(torch.uint8)


def a_picture(values: torch.Tensor) -> torch.Tensor:
    """Numbers [B] in the shape that meets pictures [B, H, W, C]."""
    return values[:, None, None, None]


def grey(pictures: torch.Tensor) -> torch.Tensor:
    """The luma of float pictures [B, H, W, 1 or 3], unrounded, as [B, H, W, 1] (ITU-R BT.601)."""
    if pictures.shape[-1] == 1:
        return pictures
    red, green, blue = pictures.split(1, -1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def mean_grey(pictures: torch.Tensor) -> torch.Tensor:
    """The mean luma of uint8 pictures [B, H, W, 1 or 3], float32 [B]; sums of whole numbers, so the same in any order."""
    import torch

    means = pictures.sum((1, 2), dtype=torch.int64).double() / max(pictures.shape[1] * pictures.shape[2], 1)
    return grey(means[:, None, None])[:, 0, 0, 0].float()


def where_chosen(images: torch.Tensor, chosen: torch.Tensor, change: Callable[..., torch.Tensor], *numbers: torch.Tensor) -> torch.Tensor:
    """The pictures with those that are chosen (bool [B]) changed by `change(pictures, *numbers)`, where numbers have a row a picture.

    On a CPU only the chosen ones are computed. To know how many they are would make the host wait for any other device, so
    there all are computed and the chosen ones kept; the results are the same.
    """
    import torch

    if images.device.type != "cpu":
        return torch.where(a_picture(chosen), change(images, *numbers), images)
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return images
    if len(rows) == len(images):
        return change(images, *numbers)
    changed = change(images.index_select(0, rows), *(n.index_select(0, rows) for n in numbers))
    return images.index_copy(0, rows, changed)


def in_colour(part: str, channels: int, but: str) -> None:
    """Refuse pictures that are neither grey nor red, green and blue, or that are grey where `but` says what to do instead."""
    if channels not in (1, 3):
        raise UserError(f"{part} works on pictures with 1 channel or with 3 (red, green, blue), and these have {channels}; leave it out")
    if channels == 1 and but:
        raise UserError(f"{part} would change colours, and these pictures have 1 channel; {but}")
