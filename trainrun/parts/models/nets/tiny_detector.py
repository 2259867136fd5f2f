"""A small Faster R-CNN: an own backbone with torchvision's two stages around it."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from trainrun.errors import UserError
from trainrun.parts.models.nets.float32 import keep_places

# The side of what is cut out of the map for a box.
_POOLED = 7


class TinyBackbone(nn.Sequential):
    """[B, C, H, W] to [B, width x 2^(depth - 1), H / 2^depth, W / 2^depth]: `depth` blocks, each half as high and wide."""

    def __init__(self, channels: int, width: int, depth: int, norm: Literal["batch", "group"]) -> None:
        outs = [width * 2**block for block in range(depth)]
        super().__init__(*(Block(before, out, norm) for before, out in zip([channels, *outs], outs, strict=False)))
        self.out_channels = outs[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Block(nn.Module):
    """A 3x3 convolution of stride 2, and another added to it; a norm and relu after each."""

    def __init__(self, before: int, out: int, norm: Literal["batch", "group"]) -> None:
        super().__init__()
        self.halving = nn.Conv2d(before, out, 3, stride=2, padding=1, bias=False)
        self.norm1 = _norm(norm, out)
        self.conv = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, out)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.norm1(self.halving(x)))
        return relu(x + self.norm2(self.conv(x)))


def _norm(norm: Literal["batch", "group"], channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(gcd(8, channels), channels)


class AsTheyAre(GeneralizedRCNNTransform):
    """Pads pictures to one batch, and neither scales nor normalises them."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def build(
    shape: tuple[int, int, int],
    classes: int,
    width: int,
    depth: int,
    norm: Literal["batch", "group"],
    hidden: int,
    anchors: Sequence[int],
    min_size: int | None,
    max_size: int | None,
    **options: Any,
) -> FasterRCNN:
    """The detector for pictures of shape[0] channels and `classes` classes besides background."""
    if max_size is not None and min_size is None:
        raise UserError(
            "without min_size pictures keep their size, so max_size has no effect: set model.min_size too, or remove model.max_size"
        )
    channels = shape[0]
    backbone = TinyBackbone(channels, width, depth, norm)
    plain, unit = [0.0] * channels, [1.0] * channels
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator((tuple(anchors),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], _POOLED, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * _POOLED**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        **options,
    )
    scaling = AsTheyAre if min_size is None else GeneralizedRCNNTransform
    model.transform = scaling(min_size or 1, max_size or 10_000, plain, unit, size_divisible=2**depth)
    keep_places(model)
    return model
