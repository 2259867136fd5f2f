"""Geometric augmentations that interpolate, alone and in sequence, against torchvision with the same parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from geometric import MODES, NUMPY, PARTS, alike, boxes, levels, numbers, pictures, shape
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import InterpolationMode, functional

from trainrun.draw import Draw, draws
from trainrun.parts.augmentations import crops, warps
from trainrun.parts.augmentations.geometry import Border, Move, Warp, then
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.augmentations.separable import cut_out

BILINEAR = InterpolationMode.BILINEAR


def angles(draw: Draw, degrees: float) -> list[float]:
    return ((2 * draw.uniform(1)[:, 0].double() - 1) * degrees).tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_is_torchvisions(channels: int) -> None:
    images, draw = pictures(channels=channels), numbers()
    found = transform(images, warps.rotation(shape(images), draw, degrees=70.0), "zero")
    expected = [functional.rotate(image, a, BILINEAR) for image, a in zip(images, angles(draw, 70.0), strict=True)]
    alike(found, torch.stack(expected))


def test_affine_is_torchvisions() -> None:
    images, draw = pictures(), numbers()
    options: dict[str, Any] = {"degrees": 50.0, "shift": [0.2, 0.1], "scale": [0.85, 1.4], "shear": [20.0, 15.0]}
    found = transform(images, warps.affine(shape(images), draw, **options), "zero")
    u = draw.uniform(6).double()
    expected = []
    for image, (turn, right, down, factor, along_x, along_y) in zip(images, u.tolist(), strict=True):
        translate = [(2 * right - 1) * 0.2 * 43, (2 * down - 1) * 0.1 * 30]
        sheared = [(2 * along_x - 1) * 20, (2 * along_y - 1) * 15]
        expected.append(functional.affine(image, (2 * turn - 1) * 50, translate, 0.85 + factor * 0.55, sheared, BILINEAR))  # type: ignore[arg-type]  # it takes floats
    alike(found, torch.stack(expected))


def test_random_scale_is_torchvisions_affine() -> None:
    images, draw = pictures(), numbers()
    found = transform(images, warps.random_scale(shape(images), draw, scale=[0.85, 2.0]), "zero")
    factors = [0.85 * (2.0 / 0.85) ** u for u in draw.uniform(1)[:, 0].tolist()]
    expected = [functional.affine(image, 0.0, [0, 0], f, [0.0, 0.0], BILINEAR) for image, f in zip(images, factors, strict=True)]
    alike(found, torch.stack(expected))


def test_perspective_is_torchvisions() -> None:
    images, draw = pictures(), numbers()
    found = transform(images, warps.perspective(shape(images), draw, distortion=0.6, p=0.7), "zero")
    u = draw.uniform(9).double()
    corners = [(0.0, 0.0), (42.0, 0.0), (42.0, 29.0), (0.0, 29.0)]
    tilted = 0
    for image, row, one in zip(images, u.tolist(), found, strict=True):
        if row[8] >= 0.7:
            assert torch.equal(one, image)
            continue
        tilted += 1
        moved = [(abs(x - row[2 * n] * 0.3 * 42), abs(y - row[2 * n + 1] * 0.3 * 29)) for n, (x, y) in enumerate(corners)]
        # torchvision counts from the outer edge of the first pixel, half a pixel before its centre.
        start, end = ([[x + 0.5, y + 0.5] for x, y in points] for points in (corners, moved))
        expected = functional.perspective(image, start, end, BILINEAR)  # type: ignore[arg-type]  # it takes floats
        alike(one, expected, 1, 0.02)
    assert 4 < tilted < 12


def test_perspective_keeps_its_corners_apart() -> None:
    """Whatever corners are drawn, no point of the picture lies behind the eye: w keeps its sign."""
    draw = draws(0, 0, torch.arange(20_000))
    m = warps.perspective((30, 40), draw, distortion=0.7, p=1.0).matrix
    quad = torch.linalg.inv(m)
    corners = torch.tensor([[0.0, 0, 1], [39, 0, 1], [39, 29, 1], [0, 29, 1]], dtype=torch.float64)
    w = (quad[:, None] @ corners[:, :, None])[..., 2, 0]
    assert ((w > 0).all(1) | (w < 0).all(1)).all()


def test_reflection_is_the_mirror_about_its_axis() -> None:
    images, draw = pictures(), numbers()
    for angle, axes in ((90.0, 3), (0.0, 2), (180.0, 2)):
        found = transform(images, warps.reflection(shape(images), draw, angles=[angle, angle], p=1.0), "zero")
        assert torch.equal(found, images.flip(axes))
    square = pictures(height=31, width=31)
    found = transform(square, warps.reflection((31, 31), draw, angles=[135.0, 135.0], p=1.0), "zero")
    assert torch.equal(found, square.transpose(2, 3))
    # Any other one is the flip, then a turn by twice the angle's way from the vertical.
    found = transform(images, warps.reflection(shape(images), draw, angles=[20.0, 130.0], p=1.0), "zero")
    drawn = 20 + 110 * draw.uniform(2)[:, 0].double()
    expected = [functional.rotate(image.flip(2), 2 * a - 180, BILINEAR) for image, a in zip(images, drawn.tolist(), strict=True)]
    alike(found, torch.stack(expected))
    left = transform(images, warps.reflection(shape(images), draw, p=0.4), "zero")
    kept = (draw.uniform(2)[:, 1] >= 0.4).tolist()
    assert [torch.equal(a, b) for a, b in zip(left, images, strict=True)] == kept and any(kept)


@pytest.mark.parametrize("mode", MODES)
def test_borders_of_a_warp_are_numpys(mode: Border) -> None:
    images, draw = pictures(), numbers()
    found = transform(images, warps.rotation(shape(images), draw, degrees=60.0), mode)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (20, 20), (20, 20)), mode=NUMPY[mode]))
    expected = [functional.rotate(image, a, BILINEAR) for image, a in zip(padded, angles(draw, 60.0), strict=True)]
    alike(found, torch.stack(expected)[..., 20:-20, 20:-20])


@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_crop_is_torchvisions(channels: int) -> None:
    images, draw = pictures(channels=channels), numbers()
    crop = crops.random_resized_crop(shape(images), draw, size=48)
    found = transform(images, crop, "edge")
    assert shape(found) == (48, 48)
    for image, one, box in zip(images, found, boxes(crop, 48), strict=True):
        top, left, height, width = (round(v) for v in box)
        assert max(abs(v - round(v)) for v in box) < 1e-9 and 0 <= top <= 30 - height and 0 <= left <= 43 - width
        expected = functional.resized_crop(image, top, left, height, width, [48, 48], BILINEAR, antialias=False)
        rim = math.ceil(48 / min(height, width) / 2)  # torchvision cuts first, so it repeats pixels where ours looks beyond the cut
        inside = slice(rim, -rim)
        alike(one[:, inside, inside], expected[:, inside, inside], 1, 0.4)  # its weights for bytes are whole numbers


@pytest.mark.parametrize("size", [24, 12, 7])
def test_shrinking_is_antialiased_nearly_as_torchvision_does(size: int) -> None:
    """Within 24 of 255 levels everywhere and 6 in the mean, on pictures where plain sampling is five times as far off."""
    images, draw = pictures(height=60, width=86), numbers()
    crop = crops.random_resized_crop(shape(images), draw, size=size, scale=[0.6, 1.0])
    found = transform(images, crop, "zero")
    plain = transform(images, Warp(crop.size, crop.matrix), "zero")
    expected = torch.stack(
        [
            functional.resized_crop(image, *(round(v) for v in box), [size, size], BILINEAR, antialias=True)
            for image, box in zip(images, boxes(crop, size), strict=True)
        ]
    )
    inside = (..., slice(1, -1), slice(1, -1))
    alike(found[inside], expected[inside], 24, 6)
    assert levels(plain[inside], expected[inside])[1] > 5 * levels(found[inside], expected[inside])[1]


@pytest.mark.parametrize("of", ["random_scale", "affine", "affine that turns"])
def test_what_shrinks_within_its_frame_is_antialiased_too(of: str) -> None:
    """To a quarter about the centre of 64 x 88 pixels, where pixels of the output meet those of a resized picture."""
    images, draw = pictures(height=64, width=88), numbers()
    motion = (
        warps.random_scale(shape(images), draw, scale=[0.25, 0.25])
        if of == "random_scale"
        else warps.affine(shape(images), draw, scale=[0.25, 0.25], degrees=1e-6 if of == "affine that turns" else 0.0)
    )
    assert motion.aligned == (of != "affine that turns")
    found = transform(images, motion, "zero")
    middle, expected = found[..., 24:40, 33:55], functional.resize(images, [16, 22], BILINEAR, antialias=True)
    plain = transform(images, replace(motion, shrink=1.0), "zero")[..., 24:40, 33:55]
    inside = (..., slice(1, -1), slice(1, -1))
    alike(middle[inside], expected[inside], 24, 6)
    assert levels(plain[inside], expected[inside])[1] > 5 * levels(middle[inside], expected[inside])[1]
    assert not found[..., :23, :].any() and not found[..., :, 56:].any()


@pytest.mark.parametrize("scale", [2, 4])
def test_a_picture_that_was_decoded_smaller_is_cut_nearly_alike(scale: int) -> None:
    images, draw = pictures(4, height=200, width=288), numbers(4)
    smooth = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 2, 2)))
    crop = crops.random_resized_crop((200, 288), draw, size=20, scale=[0.7, 1.0])
    expected = transform(smooth, crop, "edge")
    for n, image in enumerate(smooth):
        pixels = image.permute(1, 2, 0)
        small = pixels.unflatten(0, (-1, scale)).unflatten(2, (-1, scale)).double().mean((1, 3)).round().byte().numpy()
        found = cut_out(small, replace(crop, matrix=crop.matrix[n : n + 1]), scale)
        alike(torch.from_numpy(found).permute(2, 0, 1)[None], expected[n : n + 1], 12, 1.5)


def test_a_box_that_never_fits_is_the_largest_in_the_middle() -> None:
    crop = crops.random_resized_crop((10, 100), numbers(), size=8, scale=[0.9, 1.0], aspect=[0.5, 2.0])
    np.testing.assert_allclose(boxes(crop, 8), [(0, 40, 10, 20)] * 12, atol=1e-9)
    crop = crops.random_resized_crop((100, 10), numbers(), size=8, scale=[0.9, 1.0], aspect=[0.5, 2.0])
    np.testing.assert_allclose(boxes(crop, 8), [(40, 0, 20, 10)] * 12, atol=1e-9)


@pytest.mark.parametrize(("height", "width", "most", "mean"), [(30, 43, 1, 0.4), (43, 30, 1, 0.4), (120, 172, 24, 6)])
def test_scale_jitter_is_torchvisions_resize_and_crop(height: int, width: int, most: int, mean: float) -> None:
    """The last shrinks all pictures, to a quarter at least, and is antialiased."""
    images, draw = pictures(height=height, width=width), numbers()
    crop = crops.scale_jitter((height, width), draw, size=28, shorter=[28, 60])
    found = transform(images, crop, "edge")
    lengths = (draw.integers(1, 33)[:, 0] + 28).tolist()
    assert len(set(lengths)) > 6
    for image, one, length, (top, left, _, wide) in zip(images, found, lengths, boxes(crop, 28), strict=True):
        resized = functional.resize(image, [length], BILINEAR, antialias=height == 120)
        ratio = 28 / wide
        assert ratio == pytest.approx(resized.shape[2] / width)
        y, x = top * resized.shape[1] / height, left * ratio
        assert (y, x) == pytest.approx((round(y), round(x)), abs=1e-9)
        expected = functional.crop(resized, round(y), round(x), 28, 28)
        alike(one, expected, most, mean)


@pytest.mark.parametrize(("height", "width", "most", "mean"), [(30, 43, 1, 0.4), (43, 30, 1, 0.4), (61, 90, 24, 6)])
def test_evaluation_resizes_the_shorter_side_and_takes_the_middle(height: int, width: int, most: int, mean: float) -> None:
    images, draw = pictures(4, height=height, width=width), numbers(4)
    for motion, shorter in (
        (crops._resized_middle((height, width), draw, size=24, crop_pct=0.75, scale=[0.1, 1.0], aspect=[1.0, 1.0]), 32),
        (crops._middle_of_mean((height, width), draw, size=24, shorter=[26, 38]), 32),
    ):
        found = transform(images, motion, "edge")
        expected = functional.center_crop(functional.resize(images, [shorter], BILINEAR, antialias=True), [24, 24])
        # The longer side is not rounded to whole pixels here, and the middle may lie between two.
        alike(found, expected, most, mean)


SEQUENCE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rotation", {"degrees": 15.0}),
    ("horizontal_flip", {}),
    ("affine", {"shift": [0.05, 0.05], "scale": [0.95, 1.2], "shear": [8.0, 0.0]}),
    ("random_scale", {"scale": [1.0, 1.3]}),
)


def laplacian(images: torch.Tensor) -> torch.Tensor:
    """The mean energy of the discrete Laplacian of each picture."""
    x = images.double()
    centre = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (around - 4 * centre).square().mean((1, 2, 3))


def in_turn(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """SEQUENCE by torchvision, one function after the other, with the parameters that the parts draw."""
    height, width = shape(images)
    for n, (name, options) in enumerate(SEQUENCE):
        after = []
        for image, u in zip(images, draw.for_(n).uniform(6).double().tolist(), strict=True):
            if name == "rotation":
                after.append(functional.rotate(image, (2 * u[0] - 1) * options["degrees"], BILINEAR))
            elif name == "horizontal_flip":
                after.append(functional.horizontal_flip(image) if u[0] < 0.5 else image)
            elif name == "affine":
                to = [(2 * u[1] - 1) * 0.05 * width, (2 * u[2] - 1) * 0.05 * height]
                after.append(functional.affine(image, 0.0, to, 0.95 + 0.25 * u[3], [(2 * u[4] - 1) * 8, 0.0], BILINEAR))  # type: ignore[arg-type]  # it takes floats
            else:
                after.append(functional.affine(image, 0.0, [0, 0], 1.3 ** u[0], [0.0, 0.0], BILINEAR))
        images = torch.stack(after)
    return images


def test_the_fused_result_is_torchvisions_sequence_with_less_blur() -> None:
    """Every picture has at least 1.4 times the fine detail; the difference is under 9 levels in the mean, and with a blur of 0.7 pixels,
    about what two more interpolations do, under 3. All of it where the sequence saw only pixels of the picture.
    """
    images, draw = pictures(24, height=64, width=80), numbers(24)
    motion: Move | Warp = Move(shape(images))
    for n, (name, options) in enumerate(SEQUENCE):
        motion = then(motion, PARTS[name][0](shape(images), draw.for_(n), **options), draw.base)
    assert isinstance(motion, Warp)
    fused = transform(images, motion, "zero")
    sequence = in_turn(torch.cat((images, torch.full_like(images[:, :1], 255)), 1), draw)  # the fourth channel: what stayed inside
    inside = (sequence[:, 3:] == 255).expand(-1, 3, -1, -1)
    sequence = sequence[:, :3].double()
    assert inside.double().mean() > 0.6
    assert (fused - sequence).abs()[inside].mean() < 9
    blurred = torch.from_numpy(gaussian_filter(fused.double().numpy(), (0, 0, 0.7, 0.7)))
    assert (blurred - sequence).abs()[inside].mean() < 3
    middle = (..., slice(16, 48), slice(20, 60))
    assert (laplacian(fused[middle]) > 1.4 * laplacian(sequence[middle])).all()
