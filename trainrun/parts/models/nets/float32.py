"""Places in float32: bfloat16 knows only every second pixel from 256 on, and only every fourth from 512 on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# What a detector reads places and scores from: the maps that anchors are laid on, and what the heads say of them.
_SOURCES = ("backbone", "rpn.head", "roi_heads.box_predictor", "head")


class InFloat32(nn.Module):
    """Mixed into a module, gives out at least float32 also under autocast."""

    def forward(self, *inputs: Any) -> Any:
        return at_least_float32(super().forward(*inputs))


def at_least_float32(given: Any) -> Any:
    """Tensors, and those in dicts and lists, in float32 where they are of a shorter type."""
    if isinstance(given, Tensor):
        return given.to(torch.promote_types(given.dtype, torch.float32))
    if isinstance(given, dict):
        return {key: at_least_float32(value) for key, value in given.items()}
    return [at_least_float32(each) for each in given]


def keep_places(detector: nn.Module) -> None:
    """Let one of torchvision's detectors compute boxes and scores in float32 under autocast; its convolutions and matrices follow autocast."""
    for name in _SOURCES:
        try:
            module = detector.get_submodule(name)
        except AttributeError:  # one stage, or two
            continue
        # A class and not a function put in the place of forward, so that a copy of the module calls itself.
        module.__class__ = type(type(module).__name__, (InFloat32, type(module)), {})
