"""What geometric augmentations draw: distributions, by tests that fail a correct part with a chance of 1e-4."""

from __future__ import annotations

import math

import torch
from geometric import boxes
from scipy.stats import chisquare, kstest

from trainrun.draw import Draw, draws
from trainrun.parts.augmentations import crops, moves, warps

ODDS = 1e-4  # were the seed not fixed


def uniform(sample: torch.Tensor, low: float, high: float) -> None:
    assert kstest(sample.numpy(), "uniform", (low, high - low)).pvalue > ODDS


def even(sample: torch.Tensor, low: int, high: int) -> None:
    assert sample.min() >= low and sample.max() <= high
    assert chisquare(torch.bincount(sample.long() - low, minlength=high - low + 1).numpy()).pvalue > ODDS


MANY = 20_000


def many(purpose: int = 11) -> Draw:
    return draws(1, 0, torch.arange(MANY)).for_(purpose)


def test_the_distributions_of_moves() -> None:
    crop = moves.random_crop((30, 40), many(), padding=4)
    even((crop.y + 4) * 9 + crop.x + 4, 0, 80)  # both together: also independent
    moved = moves.shift((30, 40), many(), x=0.1, y=0.1)
    even((moved.y + 3) * 9 + moved.x + 4, 0, 62)
    for part in (moves.horizontal_flip, moves.vertical_flip):
        move = part((30, 40), many(), p=0.25)
        mirrored = move.right if part is moves.horizontal_flip else move.down
        share = (torch.as_tensor(mirrored) < 0).double().mean().item()
        assert abs(share - 0.25) < 4 * (0.25 * 0.75 / MANY) ** 0.5


def test_the_distributions_of_warps() -> None:
    m = warps.rotation((30, 40), many(), degrees=30.0).matrix
    uniform(torch.atan2(m[:, 1, 0], m[:, 0, 0]).rad2deg(), -30, 30)
    m = warps.random_scale((30, 40), many(), scale=[0.5, 2.0]).matrix
    uniform(-m[:, 0, 0].log(), math.log(0.5), math.log(2))
    m = warps.reflection((30, 40), many(), p=1.0).matrix
    uniform(torch.atan2(-m[:, 0, 1], m[:, 0, 0]).rad2deg() % 360 / 2, 0, 180)
    back = warps.affine((30, 40), many(), degrees=15.0, shift=[0.1, 0.2], scale=[0.5, 1.5], shear=[20.0, 0.0]).matrix
    m = torch.linalg.inv(back)
    turn = torch.atan2(m[:, 1, 0], m[:, 0, 0])
    factor = m[:, :2, 0].norm(dim=1)
    uniform(turn.rad2deg(), -15, 15)
    uniform(factor, 0.5, 1.5)
    uniform((-(m[:, 0, 1] * turn.cos() + m[:, 1, 1] * turn.sin()) / factor).arctan().rad2deg(), -20, 20)
    middle = m @ torch.tensor([19.5, 14.5, 1.0], dtype=torch.float64)
    uniform(middle[:, 0] - 19.5, -4, 4)
    uniform(middle[:, 1] - 14.5, -6, 6)
    back = warps.perspective((30, 40), many(), distortion=0.4, p=1.0).matrix
    corner = torch.linalg.solve(back, torch.tensor([39.0, 29, 1], dtype=torch.float64).expand(MANY, 3))
    uniform(corner[:, 0] / corner[:, 2], 39 * 0.8, 39)
    uniform(corner[:, 1] / corner[:, 2], 29 * 0.8, 29)


def test_the_distributions_of_crops() -> None:
    """On a picture so large that boxes always fit and rounding does not show."""
    crop = crops.random_resized_crop((40_000, 40_000), many(), size=10, scale=[0.1, 0.5], aspect=[0.5, 2.0])
    top, left, height, width = torch.tensor(boxes(crop, 10), dtype=torch.float64).unbind(1)
    uniform(height * width / 1.6e9, 0.1, 0.5)
    uniform((width / height).log(), -math.log(2), math.log(2))
    uniform((top + 0.5) / (40_001 - height), 0, 1)
    uniform((left + 0.5) / (40_001 - width), 0, 1)
    crop = crops.scale_jitter((20, 30), many(), size=10, shorter=[12, 19])
    top, left, height, _ = torch.tensor(boxes(crop, 10), dtype=torch.float64).unbind(1)
    length = 20 * 10 / height
    even(length.round(), 12, 19)
    place = (top * length / 20).round()
    for side in (12, 19):
        even(place[length.round() == side], 0, side - 10)


def test_a_box_of_one_size_has_every_place() -> None:
    crop = crops.random_resized_crop((10, 12), many(), size=5, scale=[0.3, 0.3], aspect=[1.0, 1.0])  # 6 x 6 pixels
    top, left, height, width = torch.tensor(boxes(crop, 5), dtype=torch.float64).round().unbind(1)
    assert (height == 6).all() and (width == 6).all()
    even(top * 7 + left, 0, 34)
