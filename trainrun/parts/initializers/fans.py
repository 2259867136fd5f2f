"""Initializers that scale with the number of connections, so that the signal or the gradient keeps its size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor


@part("initializer")
def kaiming_normal(
    weight: Tensor,
    *,
    mode: Annotated[
        Literal["fan_in", "fan_out"], Field(description="Keep the variance of the forward signal (fan_in) or of the gradient (fan_out).")
    ] = "fan_in",
    nonlinearity: Annotated[Literal["relu", "leaky_relu", "linear"], Field(description="What follows the layer.")] = "relu",
    slope: Annotated[float, Field(ge=0, description="Slope of leaky_relu below zero; not used by the others.")] = 0.01,
) -> None:
    """Draw every weight from N(0, gain^2 / fan), which keeps the signal's variance from layer to layer.

    gain^2 = 2 for relu, 2 / (1 + slope^2) for leaky_relu, 1 for linear. The weight comes as [out, in, *kernel];
    fan_in = in x kernel size, fan_out = out x kernel size. Strides are not counted, as in the paper.
    Source: He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, section 2.2.
    """
    import torch

    fan = weight.shape[mode == "fan_in"] * math.prod(weight.shape[2:])
    gain2 = {"relu": 2.0, "leaky_relu": 2 / (1 + slope**2), "linear": 1.0}[nonlinearity]
    with torch.no_grad():
        weight.normal_(0.0, math.sqrt(gain2 / fan))
