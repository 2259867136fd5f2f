"""Residual networks for small pictures: `resnet_cifar` and `wide_resnet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn


class _SixBlocks:
    """A validator of depths that are 6n + `rest` layers; it names the nearest ones."""

    def __init__(self, rest: int) -> None:
        self.rest = rest

    def __call__(self, depth: int) -> int:
        if depth < 6 + self.rest or (depth - self.rest) % 6:
            below = max(depth - (depth - self.rest) % 6, 6 + self.rest)
            near = f"{below}" if depth < below else f"{below} or {below + 6}"
            raise PydanticCustomError(
                "depth", "a depth of 6n+{rest} layers: nearest to {depth}: {near}", {"rest": self.rest, "depth": depth, "near": near}
            )
        return depth


@part("model", memory_format="channels_last", batch_norm=lambda options: True)
def resnet_cifar(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: Annotated[
        int, AfterValidator(_SixBlocks(2)), Field(le=1202, description="Layers with weights, 6n+2: 20, 32, 44, 56, 110.")
    ] = 20,
    shortcut: Annotated[
        Literal["A", "B"],
        Field(description="Where the width changes: A pads the input with zero channels, B projects it by a 1x1 convolution."),
    ] = "A",
) -> nn.Module:
    """Residual network for small pictures (ResNet-20 ... ResNet-110 of the CIFAR-10 experiments).

    A 3x3 convolution, then three stages of n blocks with 16, 32 and 64 channels, the second and third starting with stride 2,
    the mean over the map and a linear layer: 6n+2 layers with weights. Convolutions are drawn from N(0, 2 / fan_out).
    Any number of channels and any picture size; logits are [B, classes]. With initializer.zero_init_residual and shortcut A the two blocks
    that widen keep their branch, which is all that the channels of zeros have.
    0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M parameters at depths 20, 32, 44, 56 and 110 with shortcut A.

    Suggested: sgd {momentum: 0.9, weight_decay: 1e-4}, lr 0.1 at batch 128, multistep after 32k and 48k of 64k steps.
    Source: He, Zhang, Ren & Sun 2015, Deep Residual Learning for Image Recognition, section 4.2.
    """
    from trainrun.parts.models.nets.resnet_cifar import ResNetCifar

    return ResNetCifar(shape[0], classes, (depth - 2) // 6, shortcut)


@part("model", memory_format="channels_last", batch_norm=lambda options: True)
def wide_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: Annotated[int, AfterValidator(_SixBlocks(4)), Field(le=1000, description="Layers with weights, 6n+4: 16, 22, 28, 40.")] = 28,
    width: Annotated[int, Field(ge=1, le=64, description="Widening factor k: the stages have 16k, 32k and 64k channels.")] = 10,
    dropout: Annotated[float, Field(ge=0, lt=1, description="Probability of dropping an activation between a block's convolutions.")] = 0.0,
) -> nn.Module:
    """Wide residual network for small pictures (WRN-28-10 and its kin).

    Pre-activation blocks of two 3x3 convolutions in three stages; 6n+4 layers counting the three projections.
    Convolutions are drawn from N(0, 2 / fan_out). Any number of channels and any picture size; logits are [B, classes].
    WRN-28-10 has 36.5 M parameters.

    Suggested: sgd {momentum: 0.9, nesterov: true, weight_decay: 5e-4}, lr 0.1 at batch 128,
    multistep {gamma: 0.2} at epochs 60, 120 and 160 of 200.
    Source: Zagoruyko & Komodakis 2016, Wide Residual Networks.
    """
    from trainrun.parts.models.nets.wide_resnet import WideResNet

    return WideResNet(shape[0], classes, (depth - 4) // 6, width, dropout)
