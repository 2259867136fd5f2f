"""Initializers that scale with the number of connections, so that the signal or the gradient keeps its size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor

Gain = Annotated[float, Field(gt=0, description="Factor of the weights, as for what follows the layer: 1 for nothing or tanh, 1.41 for relu.")]
Mode = Annotated[
    Literal["fan_in", "fan_out"], Field(description="Keep the variance of the forward signal (fan_in) or of the gradient (fan_out).")
]
Nonlinearity = Annotated[Literal["relu", "leaky_relu", "linear"], Field(description="What follows the layer.")]
Slope = Annotated[float, Field(ge=0, description="Slope of leaky_relu below zero; not used by the others.")]


def fans(weight: Tensor) -> tuple[int, int]:
    """fan_in and fan_out of a weight [out, in, *kernel] that connects all its inputs with all its outputs."""
    size = math.prod(weight.shape[2:])
    return weight.shape[1] * size, weight.shape[0] * size


def _xavier_variance(weight: Tensor, gain: float) -> float:
    return gain**2 * 2 / sum(fans(weight))


def _kaiming_variance(weight: Tensor, mode: str, nonlinearity: str, slope: float) -> float:
    gain2 = {"relu": 2.0, "leaky_relu": 2 / (1 + slope**2), "linear": 1.0}[nonlinearity]
    return gain2 / fans(weight)[mode == "fan_out"]


def _normal(weight: Tensor, variance: float) -> None:
    import torch

    with torch.no_grad():
        weight.normal_(0.0, math.sqrt(variance))


def _uniform(weight: Tensor, variance: float) -> None:
    import torch

    bound = math.sqrt(3 * variance)
    with torch.no_grad():
        weight.uniform_(-bound, bound)


@part("initializer", matrix=True)
def xavier_normal(weight: Tensor, *, gain: Gain = 1.0) -> None:
    """Draw every weight from N(0, 2 gain^2 / (fan_in + fan_out)), between what the signal and what the gradient asks for.

    The weight comes as [out, in, *kernel]; fan_in = in x kernel size, fan_out = out x kernel size.
    Source: Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 4.2.1.
    """
    _normal(weight, _xavier_variance(weight, gain))


@part("initializer", matrix=True)
def xavier_uniform(weight: Tensor, *, gain: Gain = 1.0) -> None:
    """Draw every weight uniformly within +-gain sqrt(6 / (fan_in + fan_out)), which has the variance of xavier_normal.

    Source: Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, equation 16.
    """
    _uniform(weight, _xavier_variance(weight, gain))


@part("initializer", matrix=True)
def kaiming_normal(weight: Tensor, *, mode: Mode = "fan_in", nonlinearity: Nonlinearity = "relu", slope: Slope = 0.01) -> None:
    """Draw every weight from N(0, gain^2 / fan), which keeps the signal's variance from layer to layer.

    gain^2 = 2 for relu, 2 / (1 + slope^2) for leaky_relu, 1 for linear. The weight comes as [out, in, *kernel];
    fan_in = in x kernel size, fan_out = out x kernel size. Strides are not counted, as in the paper.
    Source: He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, section 2.2.
    """
    _normal(weight, _kaiming_variance(weight, mode, nonlinearity, slope))


@part("initializer", matrix=True)
def kaiming_uniform(weight: Tensor, *, mode: Mode = "fan_in", nonlinearity: Nonlinearity = "relu", slope: Slope = 0.01) -> None:
    """Draw every weight uniformly within +-gain sqrt(3 / fan), which has the variance of kaiming_normal.

    gain^2 = 2 for relu, 2 / (1 + slope^2) for leaky_relu, 1 for linear.
    Source: He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, section 2.2.
    """
    _uniform(weight, _kaiming_variance(weight, mode, nonlinearity, slope))
