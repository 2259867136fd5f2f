"""Initializers that look at no shape: each number of a weight or a bias by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor

Std = Annotated[float, Field(ge=0, description="Standard deviation.")]
Mean = Annotated[float, Field(description="Mean.")]


@part("initializer", keeps=True)
def default(weight: Tensor) -> None:
    """Leave every weight and bias as the network's own constructor drew it."""


@part("initializer")
def zeros(weight: Tensor) -> None:
    """Set every weight to zero. Only for experiments: a network of zeros learns nothing below its last layer.

    Reference: torch.nn.init.zeros_.
    """
    constant(weight, value=0.0)


@part("initializer")
def constant(weight: Tensor, *, value: Annotated[float, Field(description="The value of every weight.")]) -> None:
    """Set every weight to one value. Units that are alike get gradients that are alike, and stay so.

    Reference: torch.nn.init.constant_; for the symmetry: Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4.
    """
    import torch

    with torch.no_grad():
        weight.fill_(value)


@part("initializer")
def normal(weight: Tensor, *, std: Std, mean: Mean = 0.0) -> None:
    """Draw every weight from N(mean, std^2).

    Reference: torch.nn.init.normal_; with std 0.01 the draw of Krizhevsky et al. 2012, section 5.
    """
    import torch

    with torch.no_grad():
        weight.normal_(mean, std)


@part("initializer")
def uniform(
    weight: Tensor,
    *,
    low: Annotated[float, Field(description="Smallest value.")],
    high: Annotated[float, Field(description="Largest value, above low.")],
) -> None:
    """Draw every weight uniformly between low and high; the variance is (high - low)^2 / 12.

    Reference: torch.nn.init.uniform_.
    """
    import torch

    with torch.no_grad():
        weight.uniform_(low, high)


@part("initializer")
def trunc_normal(
    weight: Tensor,
    *,
    std: Std,
    mean: Mean = 0.0,
    cut: Annotated[float, Field(gt=0, le=8, description="Standard deviations from the mean beyond which nothing is drawn.")] = 2.0,
) -> None:
    """Draw every weight from N(mean, std^2) without the tails beyond `cut` standard deviations on both sides.

    mean + std Q(u), where Q is the quantile of N(0, 1) and u is uniform between P(-cut) and P(cut). `std` is that of the whole normal
    distribution; what is drawn has the variance std^2 (1 - 2 cut phi(cut) / (2 P(cut) - 1)): 0.774 std^2 with a cut of 2.
    Source: torch.nn.init.trunc_normal_, whose a and b are the values mean - cut std and mean + cut std.
    """
    import torch

    edge = 0.5 * math.erfc(cut / math.sqrt(2))
    with torch.no_grad():
        u = torch.empty(weight.shape, dtype=torch.float64).uniform_(edge, 1 - edge)
        weight.copy_(torch.special.ndtri(u).clamp_(-cut, cut).mul_(std).add_(mean))
