"""What is done to a batch of pictures on the device before the network sees it.

An augmentation takes uint8 pictures [B, C, H, W] in channels-last memory and a Draw with a row of random numbers a
sample, and returns pictures of the same kind: a sample's result depends on its own pixels and numbers alone, never on
the batch around it. A part with the fact `always=True` is also applied in evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Statistics:
    """Mean and standard deviation of each channel of the training pictures, in 0..1: `figures`, measured when they are first asked for."""

    def __init__(self, channels: int, measure: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
        self.channels, self._measure = channels, measure
        self.measured: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def figures(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The means and the standard deviations."""
        self.measured = self.measured or self._measure()
        return self.measured


def _checked(values: list[float] | None, channels: int) -> list[float] | None:
    if values is not None and len(values) not in (1, channels):
        raise UserError(f"normalize has {len(values)} values for pictures with {channels} channels; write {channels}, or one for all")
    return values


@part("augment", always=True)
class normalize:
    """Scale each channel to (x / 255 - mean) / std, in training and in evaluation.

    uint8 [B, C, H, W] to float32. Without mean and std those published for the data set are taken, else they are measured
    over the training pictures (every one of up to 10,000, evenly spaced over the set).
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        mean: Annotated[list[float] | None, Field(min_length=1, description="Mean of each channel, in 0..1.")] = None,
        std: Annotated[
            list[Annotated[float, Field(gt=0)]] | None, Field(min_length=1, description="Standard deviation of each channel, in 0..1.")
        ] = None,
    ) -> None:
        self.mean = tuple(_checked(mean, statistics.channels) or statistics.figures[0])
        self.std = tuple(_checked(std, statistics.channels) or statistics.figures[1])
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        _, channels, _, width = images.shape
        if self._rows is None or self._rows[0].device != images.device or self._rows[0].shape[-1] != width * channels:
            mean, std = (torch.tensor(v, device=images.device, dtype=torch.float64).expand(channels) for v in (self.mean, self.std))
            self._rows = ((1 / (255 * std)).float().repeat(width), (-mean / std).float().repeat(width))
        # Whole rows of pixels at a time: a channel dimension of 3 is too short an inner loop for vector units.
        scale, shift = self._rows
        count, height = images.shape[0], images.shape[2]
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).float()
        return rows.mul_(scale).add_(shift).view(count, height, width, channels).permute(0, 3, 1, 2)
