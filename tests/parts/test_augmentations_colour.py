"""Brightness and colour against torchvision, PIL and formulas in float64, with the drawn numbers computed anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batches import COUNT, given, numbers, ordinary, pictures, worst
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import functional

from trainrun.errors import UserError
from trainrun.parts.augmentations.colour import color_jitter, grayscale, pca_jitter

NONE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ADJUST = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


@pytest.mark.parametrize(
    ("name", "strength", "channels"),
    [("brightness", 0.7, 3), ("brightness", 0.7, 1), ("contrast", 0.8, 3), ("contrast", 0.8, 1), ("saturation", 0.9, 3), ("hue", 0.5, 3)],
)
def test_each_of_color_jitter_alone_is_torchvisions(name: str, strength: float, channels: int) -> None:
    """To one level, because torchvision truncates where we round; with saturation it truncates the grey too, so that two add up."""
    images, draw = pictures(channels), numbers()
    u = draw.uniform(5)[:, list(NONE).index(name)].double()
    factors = (2 * u - 1) * strength if name == "hue" else 1 - strength + 2 * strength * u
    expected = torch.stack([ADJUST[name](image, f) for image, f in zip(images, factors.tolist(), strict=True)])
    found = color_jitter(given(channels), **NONE | {name: strength})(images, draw)
    assert worst(found, expected) <= (2 if name == "saturation" else 1)
    assert worst(found, images) > 20


def test_brightness_contrast_and_saturation_commute_and_are_rounded_once() -> None:
    """Dim factors, so that nothing is clipped: then every order of the three, in float64, gives our result to half a level."""
    images, draw = pictures(), numbers()
    jitter = color_jitter(given(), brightness=0.3, contrast=0.3, saturation=0.3)
    found = jitter(images, draw).permute(0, 2, 3, 1).double().numpy()
    values = images.permute(0, 2, 3, 1).double().numpy()
    low = draw.uniform(5)[:, :3].double().numpy() * 0.6 + 0.7
    for order in itertools.permutations(range(3)):
        x = values
        for lane in order:
            grey = x @ np.array([[0.299], [0.587], [0.114]])
            other = (0 * x, grey.mean((1, 2), keepdims=True), grey)[lane]
            f = low[:, lane, None, None, None]
            x = f * x + (1 - f) * other
        kept = (x > 0) & (x < 255)
        assert kept.mean() > 0.85
        assert np.abs(found - x.clip(0, 255))[kept].max() < 0.501


def test_color_jitter_wraps_nothing_around() -> None:
    images = pictures()
    brighter = color_jitter(given(), **NONE | {"brightness": 10.0})(images, numbers())
    factors = numbers().uniform(5)[:, 0] * 11
    for image, found, factor in zip(images.numpy(), brighter.numpy(), factors.tolist(), strict=True):
        np.testing.assert_allclose(found, (image * factor).clip(0, 255), atol=0.501)


def test_the_factors_are_uniform_and_unrelated() -> None:
    """Grey of level 100 becomes 100 x its factor: Kolmogorov-Smirnov over 4,000 pictures, to be failed once in a million times."""
    count = 4000
    images = torch.full((count, 1, 1, 1), 100, dtype=torch.uint8)
    found = color_jitter(given(1), brightness=1.0, contrast=0, saturation=0)(images, numbers(count)).flatten().numpy()
    jittered = found + np.random.default_rng(0).uniform(-0.5, 0.5, count)
    assert ordinary(stats.kstest(jittered, stats.uniform(0, 200).cdf).pvalue)
    drawn = numbers(count).uniform(5).numpy()
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 5 / count**0.5


@pytest.mark.parametrize("p", [0.2, 1.0])
def test_color_jitter_leaves_those_that_are_not_drawn(p: float) -> None:
    images = pictures(count=1000)
    found = color_jitter(given(), hue=0.2, p=p)(images, numbers(1000))
    same = (found == images).flatten(1).all(1)
    expected = numbers(1000).uniform(5)[:, 4] >= p
    assert (same & ~expected).sum() <= 3 + 2  # the black picture cannot change, nor can the flat ones much
    assert not (~same & expected).any()


@pytest.mark.parametrize(
    ("channels", "options", "text"),
    [
        (1, {}, "color_jitter would change colours, and these pictures have 1 channel; write saturation: 0 and hue: 0"),
        (4, {}, "color_jitter works on pictures with 1 channel or with 3 (red, green, blue), and these have 4; leave it out"),
        (
            2,
            {"saturation": 0.0},
            "color_jitter works on pictures with 1 channel or with 3 (red, green, blue), and these have 2; leave it out",
        ),
    ],
)
def test_color_jitter_says_which_pictures_it_cannot_change(channels: int, options: dict[str, float], text: str) -> None:
    with pytest.raises(UserError) as caught:
        color_jitter(given(channels), **options)
    assert str(caught.value) == text


def test_grayscale_is_pils_luma() -> None:
    images = pictures()
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images.permute(0, 2, 3, 1).contiguous().numpy()])
    found = grayscale(given(), p=1.0)(images, numbers())
    assert worst(found, torch.from_numpy(expected)[:, None].expand_as(images)) <= 1
    assert (found[:, 0].numpy() == expected).mean() > 0.999
    some = grayscale(given(), p=0.5)(images, numbers())
    chosen = numbers().uniform(1)[:, 0] < 0.5
    assert 5 < chosen.sum() < 27
    assert torch.equal(some, torch.where(chosen[:, None, None, None], found, images))
    with pytest.raises(UserError, match="grayscale would change colours, and these pictures have 1 channel; leave it out"):
        grayscale(given(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_pca_jitter_is_the_papers_sum(channels: int) -> None:
    images, draw, known = pictures(channels), numbers(), given(channels).components
    assert known
    bits = draw.bits(channels).numpy().view(np.uint64) >> np.uint64(32)
    factors = stats.norm.ppf((bits + 0.5) / 2.0**32) * 0.3
    shift = 255 * (factors * np.array(known[0])) @ np.array(known[1])
    expected = images.double().numpy() + shift[:, :, None, None]
    assert expected.min() < -5 and expected.max() > 260
    found = pca_jitter(given(channels), std=0.3)(images, draw).double().numpy()
    assert np.abs(found - expected.clip(0, 255)).max() < 0.501
    same = pca_jitter(given(channels), std=0.3, eigenvalues=list(known[0]), eigenvectors=[list(row) for row in known[1]])(images, draw)
    assert np.array_equal(found, same.double().numpy())


@pytest.mark.parametrize("vectors", [[[1.0, 0.0, 0.0]] * 2, [[1.0, 0.0]] * 3])
def test_pca_jitter_says_what_does_not_fit(vectors: list[list[float]]) -> None:
    with pytest.raises(UserError, match="expected as many of each, with 3 values a vector"):
        pca_jitter(given(), eigenvalues=[0.1, 0.01, 0.001], eigenvectors=vectors)


def test_the_default_shift_of_a_training_set_is_visible_and_mild() -> None:
    images = torch.full((COUNT, 3, 2, 2), 128, dtype=torch.uint8)
    moved = (pca_jitter(given())(images, numbers()).double() - 128).std()
    assert 1 < moved < 10
