"""Initializers that look at no shape: each number of a weight by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor


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
