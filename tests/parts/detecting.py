"""What tests of detectors share: parts built by name, and pictures with rectangles of two classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainrun.recipe.registry import registry


def build(name: str, shape: tuple[int, int, int] = (3, 64, 64), classes: int = 2, **options: Any) -> Any:
    part = registry.get("model", name)
    assert part is not None
    valid = part.options.model_validate(options)
    model: nn.Module = part.call({key: getattr(valid, key) for key in type(valid).model_fields})(shape, classes)
    return model


def rectangles(count: int, side: int = 64, seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noisy pictures [3, side, side] with one red rectangle (class 1) and one blue (class 2), in two halves of the picture."""
    draw = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for _ in range(count):
        image = torch.randn(3, side, side, generator=draw) * 0.1
        boxes = []
        for label in (1, 2):
            width, height = torch.randint(side // 6, side // 3, (2,), generator=draw).tolist()
            left = int(torch.randint(0, side // 2 - width, (1,), generator=draw)) + (label - 1) * side // 2
            top = int(torch.randint(0, side - height, (1,), generator=draw))
            image[2 * (label - 1), top : top + height, left : left + width] += 1.5
            boxes.append([left, top, left + width, top + height])
        images.append(image)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([1, 2])})
    return images, targets
