"""Augmentations that hide detail: noise, blur and erased rectangles; all take and return uint8."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.parts.augmentations.pixels import a_picture, to_bytes, where_chosen
from trainrun.parts.augmentations.scale import Statistics
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import torch

    from trainrun.draw import Draw

P = Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are changed.")]


@functools.cache
def _quantiles(device: torch.device) -> torch.Tensor:
    """The normal distribution as 65,536 equally likely values of mean 0 and variance 1, float32; the largest is 4.3."""
    import torch

    values = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return (values / values.square().mean().sqrt()).float().to(device, non_blocking=True)


@part("augment", levels=True)
def gaussian_noise(
    images: torch.Tensor,
    draw: Draw,
    *,
    std: Annotated[float, Field(gt=0, le=1, description="Standard deviation of the noise, of values in 0..1.")] = 0.05,
    p: P = 1.0,
) -> torch.Tensor:
    """Add normal noise to every value of a picture, independent in every pixel and channel.

    x' = x + 255 std z, limited to 0..255 and rounded; z takes 65,536 equally likely values, at most 4.3 deviations from 0.
    uint8 [B, C, H, W]. Source: Sietsma & Dow 1991, Creating artificial neural networks that generalize.
    """
    import torch

    count = math.prod(images.shape[1:])
    # The first word decides whether, the others hold four values each.
    words = draw.bits(1 + -(-count // 4))
    chosen = ((words[:, 0] >> 40) & 0xFFFFFF).float() * 2.0**-24 < p

    def noisy(some: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        places = bits.view(torch.int16).int() + (1 << 15)
        noise = _quantiles(images.device).index_select(0, places[:, :count].reshape(-1))
        pictures = some.permute(0, 2, 3, 1)
        return to_bytes(pictures.float() + noise.view(pictures.shape) * (255 * std)).permute(0, 3, 1, 2)

    return where_chosen(images, chosen, noisy, words[:, 1:])


@part("augment", levels=True)
def salt_and_pepper(
    images: torch.Tensor,
    draw: Draw,
    *,
    amount: Annotated[float, Field(gt=0, le=1, description="Probability of each pixel to be replaced.")] = 0.02,
    salt: Annotated[float, Field(ge=0, le=1, description="Share of the replaced pixels that turn white; the others turn black.")] = 0.5,
    p: P = 1.0,
) -> torch.Tensor:
    """Turn single pixels white or black, in all channels at once.

    Each pixel is 255 with probability amount x salt, 0 with probability amount x (1 - salt), and as it was otherwise.
    uint8 [B, C, H, W]. Source: Gonzalez & Woods, Digital Image Processing, chapter 5.
    """
    import torch

    pictures = images.permute(0, 2, 3, 1)
    drawn = draw.uniform(1 + pictures.shape[1] * pictures.shape[2])
    pixel = torch.where(drawn[:, :1] < p, drawn[:, 1:], 1.0).view(*pictures.shape[:3], 1)
    black, white = ((pixel < limit).expand_as(pictures).contiguous() for limit in (amount, amount * salt))
    return pictures.masked_fill(black, 0).masked_fill(white, 255).permute(0, 3, 1, 2)


@part("augment", levels=True)
def gaussian_blur(
    images: torch.Tensor,
    draw: Draw,
    *,
    sigma: Annotated[
        list[Annotated[float, Field(ge=0.05, le=50)]],
        Field(min_length=2, max_length=2, description="Range of the blur's standard deviation, in pixels."),
    ] = [0.1, 2.0],  # noqa: B006  # frozen by the options model
    p: P = 0.5,
) -> torch.Tensor:
    """Blur each picture by a Gaussian whose width is uniform between two limits.

    Weights proportional to exp(-d^2 / (2 sigma^2)) for d up to 3 times the upper limit, normalised, along rows and then along columns; the
    picture goes on beyond its edges as in a mirror that leaves the edge single. uint8 [B, C, H, W], rounded once.
    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning, appendix A.
    """
    import torch

    drawn = draw.uniform(2)
    low, high = sigma
    radius = math.ceil(3 * high)
    distance = torch.arange(radius + 1, device=images.device, dtype=torch.float64)
    widths = drawn[:, :1].double() * (high - low) + low
    weights = torch.exp(-0.5 * (distance / widths).square())
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1)).float()

    def blurred(pictures: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        x = pictures.permute(0, 2, 3, 1).float()
        for dim in (2, 1):
            size = x.shape[dim]
            places = torch.arange(-radius, size + radius, device=x.device) % max(2 * size - 2, 1)
            around = x.index_select(dim, torch.minimum(places, 2 * size - 2 - places))
            x = x * a_picture(weights[:, 0])
            for d in range(1, radius + 1):
                x = x + (around.narrow(dim, radius - d, size) + around.narrow(dim, radius + d, size)) * a_picture(weights[:, d])
        return to_bytes(x).permute(0, 3, 1, 2)

    return where_chosen(images, drawn[:, 1] < p, blurred, weights)


_ATTEMPTS = 10


@part("augment", levels=True)
class random_erasing:
    """Fill a random rectangle of each picture, with probability p.

    The rectangle's area is uniform in `scale` (shares of the picture), the logarithm of its height / width uniform in that of `ratio`,
    its place uniform; of ten rectangles the first that is smaller than the picture both ways is taken, and without one nothing is erased.
    fill: a level, `mean` (the training set's mean of each channel, which normalizes to 0) or `noise` (uniform in 0..255, each value
    its own). uint8 [B, C, H, W]. Source: Zhong et al. 2017, Random Erasing Data Augmentation, algorithm 1.
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        p: P = 0.5,
        scale: Annotated[
            list[Annotated[float, Field(gt=0, lt=1)]],
            Field(min_length=2, max_length=2, description="Range of the erased share of a picture."),
        ] = [0.02, 0.33],  # noqa: B006  # frozen by the options model
        ratio: Annotated[
            list[Annotated[float, Field(gt=0, le=100)]],
            Field(min_length=2, max_length=2, description="Range of the rectangle's height divided by its width."),
        ] = [0.3, 3.3],  # noqa: B006  # frozen by the options model
        fill: Annotated[
            Annotated[int, Field(ge=0, le=255)] | Literal["mean", "noise"], Field(description="What is put there: a level, mean or noise.")
        ] = "mean",
    ) -> None:
        import torch

        self.p, self.scale, self.ratio = p, scale, ratio
        levels = statistics.figures[0] if fill == "mean" else [0 if fill == "noise" else fill / 255]
        self.noise = fill == "noise"
        self.fill = to_bytes(torch.tensor(levels, dtype=torch.float64) * 255)

    def boxes(self, height: int, width: int, draw: Draw) -> torch.Tensor:
        """Top, left, height and width of each picture's rectangle, int64 [B, 4]; of height 0 where nothing is erased."""
        import torch

        drawn = draw.uniform(3 + 2 * _ATTEMPTS).double()
        low, high = self.scale
        area = (drawn[:, 3 : 3 + _ATTEMPTS] * (high - low) + low) * (height * width)
        low, high = map(math.log, self.ratio)
        ratio = torch.exp(drawn[:, 3 + _ATTEMPTS :] * (high - low) + low)
        heights, widths = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(1, keepdim=True)
        erased = fits.any(1) & (drawn[:, 0] < self.p)
        h, w = (size.gather(1, first)[:, 0] * erased for size in (heights, widths))
        top, left = (drawn[:, 1] * (height - h + 1)).long(), (drawn[:, 2] * (width - w + 1)).long()
        return torch.stack((top, left, h, w), 1)

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        count, channels, height, width = images.shape
        self.fill = self.fill.to(images.device, non_blocking=True)
        fill = self.fill
        if self.noise:
            values, used = height * width * channels, 3 + 2 * _ATTEMPTS
            words = draw.bits(used + -(-values // 8))[:, used:].contiguous()
            fill = words.view(torch.uint8)[:, :values].reshape(count, height, width, channels)
        inside = within(self.boxes(height, width, draw), height, width, channels)
        fill = fill.expand(width, channels).contiguous() if not self.noise else fill
        return torch.where(inside, fill, images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def within(boxes: torch.Tensor, height: int, width: int, channels: int) -> torch.Tensor:
    """Which values lie in each picture's box of top, left, height, width (int64 [B, 4]): bool [B, H, W, C]."""
    import torch

    row, column = torch.arange(height, device=boxes.device), torch.arange(width * channels, device=boxes.device) // channels
    top, left, h, w = (b[:, None] for b in boxes.unbind(1))
    rows = (row >= top) & (row < top + h)
    columns = (column >= left) & (column < left + w)
    return (rows[:, :, None] & columns[:, None, :]).view(len(boxes), height, width, channels)
