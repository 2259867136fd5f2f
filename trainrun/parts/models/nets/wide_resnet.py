"""The wide residual networks of Zagoruyko & Komodakis 2016: pre-activation blocks B(3,3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """norm, relu, conv, norm, relu, dropout, conv; where the width or the stride changes, a 1x1 convolution of the activated input."""

    closing = "conv2"  # the layer at whose zero weight the branch is silent; behind norm2 and its relu no gradient would wake a zero

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if channels_in != channels or stride != 1:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x), inplace=True)
        out = F.relu(self.norm2(self.conv1(active)), inplace=True)
        if self.dropout is not None:
            out = self.dropout(out)
        return self.conv2(out).add_(x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 convolution, three stages of `blocks` blocks with 16k, 32k and 64k channels, norm, relu, map mean, a linear layer."""

    def __init__(self, channels: int, classes: int, blocks: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.stage1 = self._stage(16, 16 * width, 1, blocks, dropout)
        self.stage2 = self._stage(16 * width, 32 * width, 2, blocks, dropout)
        self.stage3 = self._stage(32 * width, 64 * width, 2, blocks, dropout)
        self.norm = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int, blocks: int, dropout: float) -> nn.Sequential:
        first = Block(channels_in, channels, stride, dropout)
        return nn.Sequential(first, *(Block(channels, channels, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        return self.fc(F.relu(self.norm(x), inplace=True).mean((2, 3)))
