"""Batches of pictures with their numbers, for tests of augmentations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from trainrun.draw import Draw, draws
from trainrun.parts.augmentations.scale import Statistics

COUNT = 32


def pictures(channels: int = 3, height: int = 10, width: int = 7, count: int = COUNT) -> torch.Tensor:
    """Smooth colours with noise, a black, a white and a flat picture, uint8 [32, C, H, W], channels last as a feed gives them."""
    random = np.random.default_rng(channels)
    slope = np.linspace(0, 1, height)[None, :, None, None] * random.uniform(-90, 90, (count, 1, 1, channels))
    array = random.uniform(40, 215, (count, 1, 1, channels)) + slope + random.normal(0, 30, (count, height, width, channels))
    for n, level in zip(range(count), (0, 255, 77), strict=False):
        array[n] = level
    return torch.from_numpy(array.round().clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def numbers(ids: torch.Tensor | int = COUNT) -> Draw:
    """The stream of one part, for as many samples, or for samples of these ids."""
    ids = torch.arange(ids) * 37 + 5 if isinstance(ids, int) else ids
    return draws(3, 2, ids).for_(123456789)


def given(channels: int = 3) -> Statistics:
    """Statistics as a run supplies them, the components being those of ImageNet's published colour shift."""
    values = (0.2175, 0.0188, 0.0045)[:channels]
    vectors = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
    rows = tuple(row[:channels] for row in vectors[:channels])
    return Statistics(channels, lambda: ((0.4, 0.5, 0.6)[:channels], (0.2,) * channels), lambda: (values, rows), classes=5)


def worst(found: torch.Tensor, expected: torch.Tensor) -> int:
    """The largest difference, in levels."""
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    return int((found.int() - expected.int()).abs().max())


def ordinary(p: float) -> bool:
    """Whether a test's p-value speaks neither against chance (one time in a million it would) nor of too good a fit."""
    return 1e-6 < p < 1 - 1e-6


class NoWaiting(TorchFunctionMode):
    """Within, values go from the host to a device only by copies that do not wait for what the device has still to do.

    The meta device has no values, and says so when it is asked for one; but it takes them as readily as torch.tensor does for a GPU, which waits.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        found = func(*args, **options)
        if func in (torch.tensor, torch.as_tensor):
            assert found.device.type == "cpu" or isinstance(args[0], torch.Tensor), "made of numbers on the device"
        if func is torch.Tensor.to:
            assert found.device == args[0].device or options.get("non_blocking"), "copied to the device"
        return found
