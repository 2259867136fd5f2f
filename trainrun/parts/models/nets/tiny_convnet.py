"""A small plain convolutional network for tests, digits and quick looks."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import Tensor, nn


class TinyConvNet(nn.Sequential):
    """`depth` blocks of 3x3 convolution, 2x2 max-pooling (not in the last), norm and relu; the mean over the map; a linear layer.

    Pooling stands before the norm because max and the rising norm and relu commute up to the norm's sign, and the norm then
    goes over a quarter of the values. It is left out where the map is already a single pixel high or wide.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int, depth: int, norm: Literal["batch", "group", "none"], dropout: float
    ) -> None:
        channels, height, across = shape
        layers: list[nn.Module] = []
        for block in range(depth):
            out = width * 2**block
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none"))
            if block < depth - 1 and min(height, across) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, across = height // 2, across // 2
            if norm == "batch":
                layers.append(nn.BatchNorm2d(out))
            elif norm == "group":
                layers.append(nn.GroupNorm(gcd(8, out), out))
            layers.append(nn.ReLU(inplace=True))
            channels = out
        layers.append(MapMean())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(channels, classes))
        super().__init__(*layers)
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class MapMean(nn.Module):
    """[B, C, H, W] to [B, C]: the mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
