"""Policies: each operation against torchvision's, its ranges against torchvision's tables, and the draws against chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batches import given, numbers, ordinary, pictures, worst
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2._auto_augment import RandAugment, TrivialAugmentWide

from trainrun.parts.augmentations.policies import _MILD, _WIDE, NAMES, applied, rand_augment, strengths, trivial_augment

# Ours by theirs, in their order.
THEIRS = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY", "rotate": "Rotate",
    "brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize",
    "solarize": "Solarize", "identity": "Identity", "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


def reference(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    policy: Any = v2.TrivialAugmentWide()
    magnitude = strength / 255 if name == "solarize" else strength
    return policy._apply_image_or_video_transform(image, THEIRS[name], magnitude, v2.InterpolationMode.NEAREST, {torch.Tensor: None})


@pytest.mark.parametrize(("limits", "theirs"), [(_WIDE, TrivialAugmentWide), (_MILD, RandAugment)])
def test_ranges_are_torchvisions(limits: dict[str, float], theirs: Any) -> None:
    space = theirs._AUGMENTATION_SPACE
    assert sorted(space) == sorted(THEIRS[name] for name in NAMES)
    ours = strengths(limits, (40, 60) if limits is _MILD else None)
    for name, row in zip(NAMES, ours, strict=True):
        magnitudes, signed = space[THEIRS[name]]
        expected = magnitudes(31, 40, 60)
        expected = torch.zeros(31) if expected is None else expected.double() * (255 if name == "solarize" else 1)
        np.testing.assert_allclose(row, expected.tolist(), atol=1e-4)
        assert signed == (name in NAMES[:9])


@pytest.mark.parametrize("size", [(32, 20), (25, 25)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvisions(name: str, channels: int, size: tuple[int, int]) -> None:
    """To one level, two where torchvision truncates twice; where a source lies halfway between two pixels, either is right."""
    images = pictures(channels, *size)
    row = torch.tensor(strengths(_WIDE)[NAMES.index(name)])
    strength = row[torch.arange(32) % 31]
    if name in NAMES[:9]:
        strength[::2] *= -1
    expected = torch.stack([reference(name, image, s) for image, s in zip(images, strength.tolist(), strict=True)])
    found = applied(images, torch.full((32,), NAMES.index(name)), strength)
    if name in NAMES[:5]:
        assert found.dtype == torch.uint8
        assert (found != expected).float().mean() < 0.002
    else:
        assert worst(found, expected) <= {"color": 2, "posterize": 0, "solarize": 0, "equalize": 0, "identity": 0}.get(name, 1)
    assert (name == "identity" or (name == "color" and channels == 1)) == torch.equal(found, images)


def test_a_batch_of_many_operations_is_each_on_its_own() -> None:
    images = pictures(3, 16, 16)
    op = torch.arange(32) % len(NAMES)
    strength = torch.tensor(strengths(_WIDE))[op, torch.arange(32) % 31]
    whole = applied(images, op, strength)
    for n in range(32):
        assert torch.equal(whole[n : n + 1], applied(images[n : n + 1], op[n : n + 1], strength[n : n + 1]))


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_the_policies_apply_what_they_draw(policy: str) -> None:
    images, draw = pictures(3, 20, 20, count=64), numbers(64)
    made = trivial_augment(given()) if policy == "trivial" else rand_augment(given(), ops=3, magnitude=12)
    rounds, limits = (1, strengths(_WIDE)) if policy == "trivial" else (3, strengths(_MILD, (20, 20)))
    lanes = 3 * rounds
    ops, levels, signs = (draw.integers(lanes, count).tolist() for count in (14, 31, 2))
    expected = []
    for n, image in enumerate(images):
        x = image[None]
        for r in range(0, lanes, 3):
            op = ops[n][r]
            strength = limits[op][levels[n][r + 1] if policy == "trivial" else 12]
            strength *= -1 if op < 9 and signs[n][r + 2] else 1
            x = applied(x, torch.tensor([op]), torch.tensor([strength]))
        expected.append(x[0])
    assert torch.equal(made(images, draw), torch.stack(expected))


def test_operation_level_and_sign_are_uniform_and_independent() -> None:
    """20,000 pictures; chi-square over all 14 x 31 x 2 combinations, refused by chance once in a million times."""
    draw = numbers(20_000)
    op, level, sign = draw.integers(3, 14)[:, 0], draw.integers(3, 31)[:, 1], draw.integers(3, 2)[:, 2]
    counts = ((op * 31 + level) * 2 + sign).bincount(minlength=14 * 31 * 2)
    assert ordinary(stats.chisquare(counts.numpy()).pvalue)


def test_every_picture_changes_its_own_way() -> None:
    images = pictures(3, 32, 32)[5:6].expand(200, -1, -1, -1)
    for made in (trivial_augment(given()), rand_augment(given())):
        found = made(images, numbers(200))
        assert len({bytes(f.contiguous().numpy()) for f in found}) > 100
