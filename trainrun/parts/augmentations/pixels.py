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

_AT_ONCE = 1 << 18  # values, of which 1 MiB holds one float each
LUMA = (0.299, 0.587, 0.114)


def to_bytes(values: torch.Tensor) -> torch.Tensor:
    """Float levels, which are used up, to uint8: rounded to the nearest, limited to 0..255."""
    import torch

    return values.round_().clamp_(0, 255).to(torch.uint8)


def a_picture(values: torch.Tensor) -> torch.Tensor:
    """Numbers [B] in the shape that meets pictures."""
    return values[:, None, None, None]


def planes(images: torch.Tensor) -> torch.Tensor:
    """Pictures [B, C, H, W] with each channel in one piece of memory, for arithmetic between channels: three in a row are too few for it."""
    return images.contiguous()


def as_fed(images: torch.Tensor) -> torch.Tensor:
    """Pictures [B, C, H, W] with channels last in memory, as a feed gives them."""
    import torch

    return images.contiguous(memory_format=torch.channels_last)


def grey(pictures: torch.Tensor) -> torch.Tensor:
    """The luma of float pictures [B, 1 or 3, H, W], unrounded, as [B, 1, H, W] (ITU-R BT.601)."""
    if pictures.shape[1] == 1:
        return pictures
    red, green, blue = pictures.split(1, 1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def mean_grey(pictures: torch.Tensor) -> torch.Tensor:
    """The mean luma of uint8 pictures [B, 1 or 3, H, W], float32 [B]; sums of whole numbers, so the same in any order."""
    import torch

    means = pictures.sum((2, 3), dtype=torch.int64).double() / max(pictures.shape[2] * pictures.shape[3], 1)
    return grey(means[:, :, None, None])[:, 0, 0, 0].float()


def where_chosen(images: torch.Tensor, chosen: torch.Tensor, change: Callable[..., torch.Tensor], *numbers: torch.Tensor) -> torch.Tensor:
    """The pictures with those that are chosen (bool [B]) changed by `change(pictures, *numbers)`, where numbers have a row a picture.

    On a CPU only the chosen ones are computed, a few at a time, so that what is in between stays in the cache. To know how many they
    are would make the host wait for any other device, so there all are computed and the chosen ones kept; the results are
    the same. Channels stay last in memory.
    """
    import torch

    if images.device.type != "cpu":
        return as_fed(torch.where(a_picture(chosen), change(images, *numbers), images))
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return as_fed(images)
    found = images.permute(0, 2, 3, 1).contiguous()  # so that each picture is one piece
    found = found.clone() if found.data_ptr() == images.data_ptr() else found
    for few in rows.split(max(_AT_ONCE // found[0].numel(), 1)):
        changed = change(found.index_select(0, few).permute(0, 3, 1, 2), *(n.index_select(0, few) for n in numbers))
        found.index_copy_(0, few, changed.permute(0, 2, 3, 1))
    return found.permute(0, 3, 1, 2)


def in_colour(part: str, channels: int, but: str) -> None:
    """Refuse pictures that are neither grey nor red, green and blue, or that are grey where `but` says what to do instead."""
    if channels not in (1, 3):
        raise UserError(f"{part} works on pictures with 1 channel or with 3 (red, green, blue), and these have {channels}; leave it out")
    if channels == 1 and but:
        raise UserError(f"{part} would change colours, and these pictures have 1 channel; {but}")
