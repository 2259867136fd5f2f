"""The residual networks for 32x32 pictures of He et al. 2015, section 4.2."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra = channels - channels_in
        self.shortcut: nn.Module | None = None
        # The layer at whose zero weight the branch is silent. Padded channels have nothing but the branch: at zero the relu would keep them so.
        self.closing = None if shortcut == "A" and self.extra else "norm2"
        if shortcut == "B" and self.extra:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(out.add_(x), inplace=True)


class ResNetCifar(nn.Module):
    """A 3x3 convolution, three stages of `blocks` blocks with 16, 32 and 64 channels, the mean over the map, a linear layer."""

    def __init__(self, channels: int, classes: int, blocks: int, shortcut: Literal["A", "B"] = "A") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, 1, blocks, shortcut)
        self.stage2 = self._stage(16, 32, 2, blocks, shortcut)
        self.stage3 = self._stage(32, 64, 2, blocks, shortcut)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int, blocks: int, shortcut: Literal["A", "B"]) -> nn.Sequential:
        first = Block(channels_in, channels, stride, shortcut)
        return nn.Sequential(first, *(Block(channels, channels, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))
