"""Noise, blur and erasing against SciPy, NumPy and torchvision, with the drawn numbers computed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batches import given, numbers, ordinary, pictures, worst
from scipy import stats
from scipy.ndimage import correlate1d
from torchvision.transforms.v2 import functional

from trainrun.draw import draws
from trainrun.parts.augmentations.noise import gaussian_blur, gaussian_noise, random_erasing, salt_and_pepper


@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_noise_is_its_formula(channels: int) -> None:
    images, draw = pictures(channels), numbers()
    values = 70 * channels
    words = draw.bits(1 + -(-values // 4))[:, 1:].contiguous().numpy()
    # 16 bits in two's complement, counted from the lowest value.
    places = np.stack([((words >> s) + 0x8000) & 0xFFFF for s in (0, 16, 32, 48)], -1).reshape(len(words), -1)[:, :values]
    noise = stats.norm.ppf((places + 0.5) / 65536).reshape(-1, 10, 7, channels)
    expected = images.permute(0, 2, 3, 1).numpy() + 0.2 * 255 * noise
    assert expected.min() < -20 and expected.max() > 275
    found = gaussian_noise(images, draw, std=0.2).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected.clip(0, 255)).max() < 0.505


def test_gaussian_noise_is_normal_and_independent() -> None:
    """20 pictures of 64 x 64 x 3 values; each p-value or correlation would be refused by chance at most once in a million times."""
    images = torch.full((20, 3, 64, 64), 128, dtype=torch.uint8)
    found = gaussian_noise(images, numbers(20), std=0.1).double().numpy() - 128
    # A normal number rounded to whole levels: its distribution between two levels, spread evenly, is within 1e-4 of the normal one.
    spread = found + np.random.default_rng(0).uniform(-0.5, 0.5, found.shape)
    assert ordinary(stats.kstest(spread.ravel(), stats.norm(0, math.hypot(25.5, 0)).cdf).pvalue)
    flat = found.reshape(20, -1)
    for a, b in [(found[:, 0], found[:, 1]), (found[:, 0], found[:, 2]), (flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5


def test_noise_is_added_to_the_share_it_is_told() -> None:
    images = pictures(count=1000)
    for noisy, p in ((gaussian_noise(images, numbers(1000), p=0.3), 0.3), (salt_and_pepper(images, numbers(1000), amount=0.5, p=0.3), 0.3)):
        changed = (noisy != images).flatten(1).any(1).float().mean().item()
        assert abs(changed - p) < 5 * (p * (1 - p) / 1000) ** 0.5


@pytest.mark.parametrize("salt", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_salt_and_pepper_is_where_drawn(channels: int, salt: float) -> None:
    images, draw = pictures(channels, 40, 30), numbers()
    u = draw.uniform(1 + 1200)[:, 1:].numpy().reshape(-1, 1, 40, 30)
    expected = np.where(u < np.float32(0.1 * salt), 255, np.where(u < np.float32(0.1), 0, images.numpy()))
    found = salt_and_pepper(images, draw, amount=0.1, salt=salt)
    np.testing.assert_array_equal(found.numpy(), expected)
    white = (u < 0.1 * salt).mean(), (u < 0.1).mean()
    assert abs(white[1] - 0.1) < 5 * (0.09 / u.size) ** 0.5 and abs(white[0] - 0.1 * salt) < 5 * (0.09 / u.size) ** 0.5


def widths(low: float, high: float, count: int = 32) -> list[float]:
    return [low + (high - low) * u for u in numbers(count).uniform(2)[:, 0].tolist()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(10, 7), (3, 2), (1, 1), (24, 20)])  # a radius of six is more than most of these sides
def test_gaussian_blur_is_scipys(channels: int, size: tuple[int, int]) -> None:
    images, draw = pictures(channels, *size), numbers()
    distance = np.arange(-6, 7)
    expected = []
    for image, sigma in zip(images.double().numpy(), widths(0.1, 2.0), strict=True):
        kernel = np.exp(-(distance**2) / (2 * sigma**2))
        kernel /= kernel.sum()
        expected.append(correlate1d(correlate1d(image, kernel, 1, mode="mirror"), kernel, 2, mode="mirror"))
    found = gaussian_blur(images, draw, sigma=[0.1, 2.0], p=1.0)
    assert np.abs(found.double().numpy() - np.stack(expected)).max() < 0.501


def test_gaussian_blur_is_torchvisions() -> None:
    images, draw = pictures(3, 24, 20), numbers()
    expected = [functional.gaussian_blur(i, [9, 9], [s, s]) for i, s in zip(images, widths(0.5, 1.2), strict=True)]
    assert worst(gaussian_blur(images, draw, sigma=[0.5, 1.2], p=1.0), torch.stack(expected)) <= 1
    some = gaussian_blur(images, draw, sigma=[0.5, 1.2], p=0.5)
    chosen = draw.uniform(2)[:, 1] < 0.5
    assert torch.equal(some[~chosen], images[~chosen]) and 5 < chosen.sum() < 27
    assert worst(some[chosen], torch.stack(expected)[chosen]) <= 1


@pytest.mark.parametrize("fill", [0, 200, "mean"])
def test_random_erasing_is_torchvisions_erase(fill: int | str) -> None:
    images, draw = pictures(3, 32, 24), numbers()
    part = random_erasing(given(), fill=fill, p=0.7)
    boxes = part.boxes(32, 24, draw).tolist()
    value = torch.tensor([102, 128, 153] if fill == "mean" else [fill], dtype=torch.uint8)[:, None, None]  # 0.5 x 255 rounds to even
    expected = [functional.erase(i, *box, value) if box[2] else i for i, box in zip(images, boxes, strict=True)]
    assert torch.equal(part(images, draw), torch.stack(expected))
    assert 15 < sum(bool(box[2]) for box in boxes) < 30
    assert all(t >= 0 and t + h <= 32 and left >= 0 and left + w <= 24 for t, left, h, w in boxes)


def test_noise_fills_each_value_on_its_own() -> None:
    images, draw = pictures(3, 64, 64), numbers()
    part = random_erasing(given(), fill="noise", p=1.0, scale=[0.3, 0.5])
    found, inside = part(images, draw), torch.zeros(32, 1, 64, 64, dtype=torch.bool)
    for n, (top, left, h, w) in enumerate(part.boxes(64, 64, draw).tolist()):
        inside[n, :, top : top + h, left : left + w] = True
    inside = inside.expand_as(images)
    # Lanes of their own, eight values a word, after the 23 that drew the rectangles.
    values = draw.bits(23 + 64 * 64 * 3 // 8)[:, 23:].contiguous().numpy().view(np.uint8).reshape(32, 64, 64, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found[inside].numpy(), values[inside.numpy()])
    assert torch.equal(found[~inside], images[~inside])
    assert ordinary(stats.chisquare(found[inside].bincount(minlength=256).numpy()).pvalue)
    channels = [found[:, c][inside[:, 0]].double().numpy() for c in range(3)]
    assert abs(np.corrcoef(channels[0], channels[1])[0, 1]) < 5 / len(channels[0]) ** 0.5


def test_the_rectangles_are_drawn_as_the_paper_says() -> None:
    """On a picture of 4,000 pixels a side rounding is nothing; 5,000 rectangles, each p-value refused by chance once in a million times."""
    draw = draws(8, 0, torch.arange(5000)).for_(3)
    boxes = random_erasing(given(), p=1.0, scale=[0.02, 0.1]).boxes(4000, 4000, draw).double().numpy()
    top, left, h, w = boxes.T
    assert (h > 0).all()
    assert ordinary(stats.kstest(h * w / 4000**2, stats.uniform(0.02, 0.08).cdf).pvalue)
    ratio = stats.uniform(math.log(0.3), math.log(3.3) - math.log(0.3))
    assert ordinary(stats.kstest(np.log(h / w), ratio.cdf).pvalue)
    assert ordinary(stats.kstest(top / (4001 - h), "uniform").pvalue) and ordinary(stats.kstest(left / (4001 - w), "uniform").pvalue)
    assert max(abs(np.corrcoef(np.stack((h * w, np.log(h / w), top / (4001 - h), left / (4001 - w)))) - np.eye(4)).ravel()) < 5 / 5000**0.5


def test_a_rectangle_that_never_fits_erases_nothing() -> None:
    images = pictures(3, 64, 2)
    found = random_erasing(given(), p=1.0, scale=[0.6, 0.9], ratio=[0.3, 0.4])(images, numbers())
    assert torch.equal(found, images)
