"""Pictures, numbers and geometric parts for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from trainrun.draw import Draw, draws
from trainrun.parts.augmentations import crops, moves, warps
from trainrun.parts.augmentations.geometry import Border, Move, Warp

MODES: tuple[Border, ...] = ("zero", "reflect", "edge")
NUMPY = {"zero": "constant", "reflect": "reflect", "edge": "edge"}  # what numpy.pad calls them


def pictures(count: int = 12, channels: int = 3, height: int = 30, width: int = 43) -> torch.Tensor:
    """Smooth and lively pictures over the whole range, uint8 [B, C, H, W], channels last in memory."""
    noise = np.random.default_rng(channels).normal(size=(count, height, width, channels))
    smooth = gaussian_filter(noise, (0, 1.2, 1.2, 0))
    array = np.clip(127.5 + 90 * smooth / smooth.std(), 0, 255).round().astype(np.uint8)
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def numbers(count: int = 12, epoch: int = 2) -> Draw:
    return draws(3, epoch, torch.arange(count) * 37 + 5).for_(123456789)


def shape(images: torch.Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def levels(found: torch.Tensor, expected: torch.Tensor) -> tuple[int, float]:
    """The largest and the mean difference in grey levels."""
    assert found.dtype == expected.dtype == torch.uint8 and found.shape == expected.shape
    difference = (found.int() - expected.int()).abs()
    return int(difference.max()), difference.double().mean().item()


def alike(found: torch.Tensor, expected: torch.Tensor, most: int = 1, mean: float = 0.01) -> None:
    """Grey levels differ by `most` at most, and by `mean` in the mean."""
    largest, average = levels(found, expected)
    assert largest <= most and average <= mean, f"{largest} levels at most, {average:.4f} in the mean"


# Every part, by a name, as a function of the shape and the draw, with its border.
PARTS: dict[str, tuple[Callable[..., Move | Warp], dict[str, Any]]] = {
    "random_crop": (moves.random_crop, {"padding": 5}),
    "center_crop": (moves.center_crop, {"size": 15}),
    "horizontal_flip": (moves.horizontal_flip, {}),
    "vertical_flip": (moves.vertical_flip, {}),
    "alternating_flip": (moves.alternating_flip, {}),
    "shift": (moves.shift, {"x": 0.2, "y": 0.3}),
    "rotation": (warps.rotation, {"degrees": 40.0}),
    "reflection": (warps.reflection, {}),
    "random_scale": (warps.random_scale, {"scale": [0.4, 1.5]}),
    "affine": (warps.affine, {"degrees": 20.0, "shift": [0.1, 0.2], "scale": [0.9, 1.2], "shear": [10.0, 5.0]}),
    "perspective": (warps.perspective, {}),
    "random_resized_crop": (crops.random_resized_crop, {"size": 14}),
    "scale_jitter": (crops.scale_jitter, {"size": 14, "shorter": [14, 30]}),
}
MOVES = ("random_crop", "center_crop", "horizontal_flip", "vertical_flip", "alternating_flip", "shift")


def made(name: str, of: tuple[int, int], draw: Draw) -> Move | Warp:
    part, options = PARTS[name]
    return part(of, draw, **options)


def boxes(warp: Move | Warp, size: int) -> list[tuple[float, float, float, float]]:
    """Top, left, height, width of what a crop shows, from its matrix."""
    assert isinstance(warp, Warp)
    m = warp.matrix
    high, wide = m[:, 1, 1] * size, m[:, 0, 0] * size
    return list(
        zip(
            (m[:, 1, 2] - m[:, 1, 1] / 2 + 0.5).tolist(),
            (m[:, 0, 2] - m[:, 0, 0] / 2 + 0.5).tolist(),
            high.tolist(),
            wide.tolist(),
            strict=True,
        )
    )
