"""From 0..255 to what a network likes to see: `normalize`, and the statistics of a data set."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from trainrun.draw import Draw


Components = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]


class Statistics:
    """Mean and standard deviation of each channel of the training pictures, in 0..1: `figures`, measured when they are first asked for.

    components: eigenvalues and eigenvectors (rows) of the covariance of pixels; None where there is no training set to measure.
    classes: how many there are, 0 where it does not matter.
    """

    def __init__(
        self,
        channels: int,
        measure: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]],
        components: Callable[[], Components] | None = None,
        classes: int = 0,
    ) -> None:
        self.channels, self._measure, self._components, self.classes = channels, measure, components, classes
        self.measured: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def figures(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The means and the standard deviations."""
        self.measured = self.measured or self._measure()
        return self.measured

    @functools.cached_property
    def components(self) -> Components | None:
        """The principal components of the pixels, the largest first."""
        return self._components() if self._components else None


def _checked(values: list[float] | None, channels: int) -> list[float] | None:
    if values is not None and len(values) not in (1, channels):
        raise UserError(f"normalize has {len(values)} values for pictures with {channels} channels; write {channels}, or one for all")
    return values


@part("augment", always=True)
class normalize:
    """Scale each channel to (x / 255 - mean) / std, in training and in evaluation.

    uint8 [B, C, H, W] to float32. Without mean and std those published for the data set are taken, else they are measured
    over the training pictures: all of them up to 10,000 or 2^26 pixels (CIFAR-10 whole), of more so many, evenly spaced. Where a
    crop is cut out as pictures are read, over what evaluation cuts out of them.
    Source: LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.3.
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
            mean, std = (torch.tensor(v, dtype=torch.float64).expand(channels) for v in (self.mean, self.std))
            scale, shift = (row.float().repeat(width).to(images.device, non_blocking=True) for row in (1 / (255 * std), -mean / std))
            self._rows = scale, shift
        # Whole rows of pixels at a time: a channel dimension of 3 is too short an inner loop for vector units.
        scale, shift = self._rows
        count, height = images.shape[0], images.shape[2]
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).float()
        return rows.mul_(scale).add_(shift).view(count, height, width, channels).permute(0, 3, 1, 2)
