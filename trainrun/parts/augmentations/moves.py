"""Augmentations that only move pixels: crops and flips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import torch

    from trainrun.draw import Draw


@part("augment")
def random_crop(
    images: torch.Tensor,
    draw: Draw,
    *,
    padding: Annotated[int, Field(ge=1, le=1024, description="Black pixels added on every side before the crop.")] = 4,
) -> torch.Tensor:
    """Pad every side with black and cut out a random window of the original size.

    images: uint8 [B, C, H, W]; the two offsets are uniform integers in 0 .. 2 x padding. A pure move of pixels, no
    resampling. Source: He et al. 2015, Deep Residual Learning, section 4.2 (4 pixels for CIFAR-10).
    """
    import torch

    count, channels, height, width = images.shape
    if not count:
        return images
    offsets = draw.integers(2, 2 * padding + 1)
    padded = images.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = images.permute(0, 2, 3, 1)
    # Every run of width x channels bytes is a window row; index_select then copies whole rows, which is the cheapest move.
    stride_sample, stride_row, stride_pixel, _ = padded.stride()
    sample = torch.arange(count, device=images.device)[:, None] * stride_sample
    row = (offsets[:, :1] + torch.arange(height, device=images.device)) * stride_row
    first = sample + row + offsets[:, 1:] * stride_pixel
    windows = padded.view(-1).unfold(0, width * channels, 1)
    return windows.index_select(0, first.view(-1)).view(count, height, width, channels).permute(0, 3, 1, 2)


@part("augment")
def horizontal_flip(
    images: torch.Tensor,
    draw: Draw,
    *,
    p: Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are mirrored.")] = 0.5,
) -> torch.Tensor:
    """Mirror each picture left to right with probability p.

    images: [B, C, H, W]. A pure move of pixels. Source: Krizhevsky et al. 2012, section 4.1.
    """
    import torch

    mirrored = draw.uniform(1)[:, 0] < p
    pictures = images.permute(0, 2, 3, 1)
    both = torch.cat((pictures, images.flip(-1).permute(0, 2, 3, 1)))
    # Picking whole pictures copies memory in one piece; a where() over pixels is seven times slower on a CPU.
    count = len(images)
    return both.index_select(0, torch.arange(count, device=images.device) + count * mirrored).permute(0, 3, 1, 2)
