"""Augmentations of brightness and colour; all take and return uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.augmentations.pixels import a_picture, as_fed, grey, in_colour, mean_grey, planes, to_bytes, where_chosen
from trainrun.parts.augmentations.scale import Statistics
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import torch

    from trainrun.draw import Draw

Strength = Annotated[float, Field(ge=0, le=10)]


def blended(
    pictures: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """brightness (contrast (saturation x + (1 - saturation) grey(x)) + (1 - contrast) mean), in levels that may leave 0..255.

    pictures: uint8 [B, C, H, W]; factors and `mean`, the mean luma of each picture, [B]; returns float32.
    """
    x = pictures.float()
    own = a_picture(brightness * contrast * saturation)
    shift = a_picture(brightness * (1 - contrast) * mean)
    if pictures.shape[1] == 1:  # grey is its own luma, so the saturation cancels out
        return x * a_picture(brightness * contrast) + shift
    return x * own + (grey(x) * a_picture(brightness * contrast * (1 - saturation)) + shift)


def hue_turned(pictures: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Float pictures [B, 3, H, W] with their hue turned by `turn` [B], in whole turns of the HSV circle."""
    import torch

    red, green, blue = pictures.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    span = top - low
    divisor = torch.where(span == 0, 1.0, span)
    sixths = torch.where(
        top == red, (green - blue) / divisor, torch.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    )
    sixths = sixths + (turn * 6)[:, None, None]
    turned = []
    for place in (5, 3, 1):
        k = sixths + place
        k = k - torch.floor(k / 6) * 6
        turned.append(top - span * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(turned, 1)


@part("augment", levels=True)
class color_jitter:
    """Change brightness, contrast, saturation and hue of each picture by factors of its own.

    Each factor is uniform in [max(0, 1 - s), 1 + s] for its strength s, the hue's turn uniform in [-hue, hue] of the full circle:
    x' = brightness x (contrast x (saturation x + (1 - saturation) grey(x)) + (1 - contrast) mean grey), then the hue in HSV.
    The first three commute as long as nothing is clipped, so they have no order to draw: they are one linear map a picture,
    limited to 0..255 once, before the hue turns, and rounded once. (torchvision, with an order drawn per call, clips and
    truncates after each of the four; each alone gives its result to within one level, saturation to within two.)
    uint8 [B, C, H, W], C of 1 or 3; raises UserError for saturation or hue on pictures with one channel.
    Source: Howard 2013, Some Improvements on Deep Convolutional Neural Network Based Image Classification; torchvision ColorJitter.
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        brightness: Annotated[Strength, Field(description="Half width of the factors of brightness around 1.")] = 0.4,
        contrast: Annotated[Strength, Field(description="Half width of the factors of contrast around 1.")] = 0.4,
        saturation: Annotated[Strength, Field(description="Half width of the factors of saturation around 1.")] = 0.4,
        hue: Annotated[float, Field(ge=0, le=0.5, description="Largest turn of the hue, in full turns of the colour circle.")] = 0.0,
        p: Annotated[float, Field(gt=0, le=1, description="Share of the pictures that are changed.")] = 1.0,
    ) -> None:
        in_colour("color_jitter", statistics.channels, "write saturation: 0 and hue: 0" if saturation or hue else "")
        self.strengths, self.hue, self.p = (brightness, contrast, saturation), hue, p

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        drawn = draw.uniform(5)
        factors = []
        for lane, strength in enumerate(self.strengths):
            low, high = max(0.0, 1 - strength), 1 + strength
            factors.append(drawn[:, lane] * (high - low) + low)
        turn = (drawn[:, 3] * 2 - 1) * self.hue
        return where_chosen(images, drawn[:, 4] < self.p, self._changed, *factors, turn)

    def _changed(self, pictures: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
        brightness, contrast, saturation, turn = numbers
        pictures = planes(pictures)
        x = blended(pictures, brightness, contrast, saturation, mean_grey(pictures))
        return to_bytes(hue_turned(x.clamp_(0, 255), turn) if self.hue else x)


@part("augment", levels=True)
class pca_jitter:
    """Shift the colour of each picture along the principal components of the training set's pixels.

    shift_c = 255 x sum_k a_k eigenvalue_k eigenvector_kc with a_k normal of deviation `std`, one shift for all pixels of a picture;
    eigenvalues and eigenvectors are those of the covariance of pixel values in 0..1, over the training pictures
    that `normalize` would measure, largest first; `trainrun show RECIPE --pca` prints them. Or both are given.
    The shift grows with the eigenvalue itself, as the paper writes it, not with its root.
    uint8 [B, C, H, W], limited to 0..255 and rounded. Source: Krizhevsky et al. 2012, section 4.1.
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        std: Annotated[float, Field(gt=0, le=100, description="Standard deviation of the factors of the eigenvalues.")] = 0.1,
        eigenvalues: Annotated[
            list[Annotated[float, Field(ge=0)]] | None, Field(min_length=1, description="Variance along each component, of values in 0..1.")
        ] = None,
        eigenvectors: Annotated[
            list[list[float]] | None,
            Field(min_length=1, description="One row a component, one value a channel, in the order of eigenvalues."),
        ] = None,
    ) -> None:
        import torch

        if eigenvalues is None or eigenvectors is None:
            found = statistics.components
            # Only the training set can be measured; an evaluation builds the part and never applies it.
            eigenvalues, eigenvectors = ([], []) if found is None else ([*found[0]], [[*row] for row in found[1]])
        else:
            shape = [len(eigenvalues), *(len(row) for row in eigenvectors)]
            if shape != [len(eigenvectors)] + [statistics.channels] * len(eigenvectors):
                raise UserError(
                    f"pca_jitter has {len(eigenvalues)} eigenvalues and eigenvectors of {', '.join(map(str, shape[1:]))} values; "
                    f"expected as many of each, with {statistics.channels} values a vector, one for each channel of the pictures"
                )
        steps = torch.tensor(eigenvectors, dtype=torch.float64) * torch.tensor(eigenvalues, dtype=torch.float64)[:, None]
        self.steps = (255 * std * steps).float()

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        factors = draw.normal(len(self.steps))
        self.steps = self.steps.to(images.device, non_blocking=True)
        shift = factors[:, 0, None] * self.steps[0]
        for k in range(1, len(self.steps)):
            shift = shift + factors[:, k, None] * self.steps[k]
        return as_fed(to_bytes(planes(images).float() + shift[:, :, None, None]))


@part("augment", levels=True)
class grayscale:
    """Turn each picture grey with probability p; it keeps its three channels.

    All channels become the luma 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), rounded. uint8 [B, 3, H, W]; raises UserError for
    pictures with one channel. Source: Chen et al. 2020, A Simple Framework for Contrastive Learning, appendix A.
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        p: Annotated[float, Field(gt=0, le=1, description="Share of the pictures that turn grey.")] = 0.1,
    ) -> None:
        in_colour("grayscale", statistics.channels, "leave it out")
        self.p = p

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return where_chosen(images, draw.uniform(1)[:, 0] < self.p, _greyed)


def _greyed(pictures: torch.Tensor) -> torch.Tensor:
    return to_bytes(grey(planes(pictures).float())).expand_as(pictures)
