"""Plain convolutional networks: `tiny_convnet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn


@part("model", memory_format="channels_last", batch_norm=lambda options: options["norm"] == "batch")
def tiny_convnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=512, description="Channels of the first block; each later block has twice as many.")] = 24,
    depth: Annotated[int, Field(ge=1, le=8, description="Number of blocks.")] = 3,
    norm: Annotated[Literal["batch", "group", "none"], Field(description="Normalisation after each convolution.")] = "batch",
    dropout: Annotated[float, Field(ge=0, lt=1, description="Probability of dropping a feature before the linear layer.")] = 0.0,
) -> nn.Module:
    """Small plain convolutional network, for tests, digits and quick looks.

    Blocks of 3x3 convolution, 2x2 max-pooling (not in the last), norm and relu, then the mean over the map and a linear layer.
    Convolutions are drawn from N(0, 2 / fan_in). Any number of channels and any picture size; logits are [B, classes].
    54 thousand parameters by default on 3x32x32 pictures of 10 classes.
    """
    from trainrun.parts.models.nets.tiny_convnet import TinyConvNet

    return TinyConvNet(shape, classes, width, depth, norm, dropout)
