"""Initializers: how the weights of convolutions and linear layers are drawn before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor, nn


@part("initializer")
def default(weight: Tensor) -> None:
    """Leave every weight and bias as the network's own constructor drew it."""


@part("initializer")
def zeros(weight: Tensor) -> None:
    """Set every weight to zero. Only for experiments: a network of zeros learns nothing below its last layer."""
    constant(weight, value=0.0)


@part("initializer")
def constant(weight: Tensor, *, value: Annotated[float, Field(description="The value of every weight.")]) -> None:
    """Set every weight to one value."""
    import torch

    with torch.no_grad():
        weight.fill_(value)


@part("initializer")
def normal(
    weight: Tensor,
    *,
    std: Annotated[float, Field(ge=0, description="Standard deviation.")],
    mean: Annotated[float, Field(description="Mean.")] = 0.0,
) -> None:
    """Draw every weight from N(mean, std^2)."""
    import torch

    with torch.no_grad():
        weight.normal_(mean, std)


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


def initialize(model: nn.Module, initializer: Callable[[Tensor], None]) -> None:
    """Apply an initializer to every convolution and linear layer and set their biases to zero; norms are never touched.

    `default` leaves biases as they are too. The query, key and value projections of nn.MultiheadAttention count as linear layers.
    """
    import torch

    if getattr(initializer, "func", initializer) is default:
        return
    for module in model.modules():
        for kernel in _kernels(module):
            initializer(kernel)
            for name in ("bias", "in_proj_bias"):
                bias = getattr(module, name, None)
                if bias is not None:
                    with torch.no_grad():
                        bias.zero_()


def _kernels(module: nn.Module) -> Iterator[Tensor]:
    """The module's weight as kernels laid out [out, in, *kernel], each connecting all of its inputs with all of its outputs.

    One of a grouped convolution's groups is one kernel, and a transposed convolution's is given transposed, so that fans
    count true connections. torch.nn.init reads them off the whole weight, where groups make fan_out too large and a
    transposed convolution has fan_in and fan_out exchanged.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    if isinstance(module, _ConvNd):
        for group in module.weight.detach().chunk(module.groups):
            yield group.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else group
    elif isinstance(module, nn.Linear):
        yield module.weight.detach()
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield from module.in_proj_weight.detach().chunk(3)
