"""Augmentations that mix two pictures and their labels.

They come last: they take what the network would see, float [B, C, H, W], with targets as float [B, classes], and return
both mixed. Partners are neighbours in the order of the epoch, which is drawn anew each epoch: the first picture of a batch and the second,
the third and the fourth, and so on. A pair is never parted, neither by micro-batches, which therefore have to be even, nor
among processes; so the result is the same however a batch is split. The last picture of a batch of an odd number has no
partner and stays as it is. Where the order of an epoch is not shuffled, partners may be alike.

Each picture of a pair draws its own mixture. The training accuracy counts hits of the undisturbed label, the loss sees the mixed one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.parts.augmentations.noise import within
from trainrun.parts.augmentations.pixels import a_picture
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import torch

    from trainrun.draw import Draw

Alpha = Annotated[float, Field(ge=0.05, le=20)]
Share = Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are mixed with another.")]


def partners(images: torch.Tensor) -> torch.Tensor:
    """The place of each picture's partner in the batch, int64 [B]; its own where there is none."""
    import torch

    place = torch.arange(len(images), device=images.device)
    other = place ^ 1
    return torch.where(other < len(images), other, place)


@functools.cache
def _table(alpha: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The lower half of Beta(alpha, alpha): points y = x^e from 0 to where x = 1/2, and how probable it is to lie below each.

    With e = min(alpha, 1) the density over y is bounded: (1 - x)^(alpha - 1) for alpha up to 1, x^(alpha - 1) (1 - x)^(alpha - 1) beyond.
    """
    import torch

    e = min(alpha, 1.0)
    fine = torch.linspace(0, 0.5**e, 2 * 4096 + 1, dtype=torch.float64)
    x = fine ** (1 / e)
    density = x ** (alpha - e) * (1 - x) ** (alpha - 1)
    parts = (density[:-2:2] + 4 * density[1::2] + density[2::2]).cumsum(0)  # Simpson's rule
    below = torch.cat((parts.new_zeros(1), parts / parts[-1] / 2))
    return fine[::2].contiguous().to(device, non_blocking=True), below.to(device, non_blocking=True), e


def beta(uniform: torch.Tensor, alpha: float) -> torch.Tensor:
    """The quantiles of Beta(alpha, alpha) at uniform numbers [B], float32: between 0 and 1, and 1 - q(u) = q(1 - u)."""
    import torch

    points, below, e = _table(alpha, uniform.device)
    u = uniform.double()
    lower = torch.minimum(u, 1 - u)
    place = torch.searchsorted(below, lower, right=True).clamp(1, len(below) - 1)
    width = below[place] - below[place - 1]
    y = points[place - 1] + (points[place] - points[place - 1]) * ((lower - below[place - 1]) / width)
    x = y.clamp(min=0) ** (1 / e)
    return torch.where(u < 0.5, x, 1 - x).float()


def _weights(draw: Draw, alpha: float, p: float, partner: torch.Tensor) -> torch.Tensor:
    """Each picture's own share of its mixture, float32 [B]: Beta(alpha, alpha), or 1 where it is not mixed."""
    import torch

    drawn = draw.uniform(2)
    own = torch.arange(len(partner), device=partner.device)
    return torch.where((drawn[:, 1] < p) & (partner != own), beta(drawn[:, 0], alpha), 1.0)


def _mixed(values: torch.Tensor, others: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """weight x own + (1 - weight) x other; `others` is used up."""
    return (values * weight).add_(others.mul_(1 - weight))


def _boxes(weight: torch.Tensor, shape: torch.Size, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that come from the partner, bool [B, H, W, C], and the share that does not, float32 [B]; shape: that of the pictures."""
    import torch

    _, channels, height, width = shape
    centre = draw.uniform(4)[:, 2:].double()
    side = torch.sqrt(1 - weight.double())
    edges = []
    for lane, size in ((0, height), (1, width)):
        middle, half = (centre[:, lane] * size).long(), (0.5 * side * size).long()
        edges += [(middle - half).clamp(min=0), (middle + half).clamp(max=size)]
    top, bottom, left, right = edges
    area = (bottom - top) * (right - left)
    inside = within(torch.stack((top, left, bottom - top, right - left), 1), height, width, channels)
    return inside, (1 - area.double() / (height * width)).float()


@part("augment", mixes=True)
def mixup(
    images: torch.Tensor,
    targets: torch.Tensor,
    draw: Draw,
    *,
    alpha: Annotated[Alpha, Field(description="Of Beta(alpha, alpha), from which each share is drawn; the smaller, the purer.")] = 0.2,
    p: Share = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture and its label with another's: w x own + (1 - w) x other, with w from Beta(alpha, alpha).

    images: float [B, C, H, W]; targets: float [B, classes]. The other is the neighbour in the order of the epoch; each picture
    draws its own w. Must come last in the list. Training accuracy counts against the unmixed label.
    Source: Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization (there one w a batch).
    """
    partner = partners(images)
    weight = _weights(draw, alpha, p, partner)
    pictures = images.permute(0, 2, 3, 1)
    pictures = _mixed(pictures, pictures.index_select(0, partner), a_picture(weight)).permute(0, 3, 1, 2)
    return pictures, _mixed(targets, targets.index_select(0, partner), weight[:, None])


@part("augment", mixes=True)
def cutmix(
    images: torch.Tensor,
    targets: torch.Tensor,
    draw: Draw,
    *,
    alpha: Annotated[Alpha, Field(description="Of Beta(alpha, alpha), from which the share that stays is drawn; 1 is uniform.")] = 1.0,
    p: Share = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a rectangle of another picture into each, and mix the labels by area.

    The rectangle has the picture's shape, sides of sqrt(1 - w) with w from Beta(alpha, alpha), and a uniform centre; what lies outside the
    picture is cut off, and the own label's share is that of the pixels that stay. images: float [B, C, H, W]; targets: float
    [B, classes]. The other is the neighbour in the order of the epoch; each picture draws its own rectangle. Must come last in
    the list. Training accuracy counts against the unmixed label. Source: Yun et al. 2019, CutMix.
    """
    import torch

    partner = partners(images)
    inside, weight = _boxes(_weights(draw, alpha, p, partner), images.shape, draw)
    pictures = images.permute(0, 2, 3, 1)
    pictures = torch.where(inside, pictures.index_select(0, partner), pictures).permute(0, 3, 1, 2)
    return pictures, _mixed(targets, targets.index_select(0, partner), weight[:, None])


@part("augment", mixes=True)
def mixup_or_cutmix(
    images: torch.Tensor,
    targets: torch.Tensor,
    draw: Draw,
    *,
    mixup_alpha: Annotated[Alpha, Field(description="The alpha of mixup.")] = 0.8,
    cutmix_alpha: Annotated[Alpha, Field(description="The alpha of cutmix.")] = 1.0,
    cutmix_share: Annotated[float, Field(gt=0, lt=1, description="Share of the mixed pictures that are mixed by cutmix.")] = 0.5,
    p: Share = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture with another by mixup or by cutmix, as it draws.

    images: float [B, C, H, W]; targets: float [B, classes]. See mixup and cutmix. Must come last in the list.
    Source: Touvron et al. 2021, Training data-efficient image transformers, table 9 (there one of the two a batch).
    """
    import torch

    cut = draw.uniform(5)[:, 4] < cutmix_share
    blended, soft = mixup(images, targets, draw, alpha=mixup_alpha, p=p)
    pasted, hard = cutmix(images, targets, draw, alpha=cutmix_alpha, p=p)
    return torch.where(a_picture(cut), pasted, blended), torch.where(cut[:, None], hard, soft)
