"""Augmentations against plain numpy, picture by picture, with the drawn numbers computed anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from trainrun.draw import Draw, draws
from trainrun.errors import UserError
from trainrun.parts.augmentations import moves
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.augmentations.scale import Statistics, normalize

Apply = Callable[[torch.Tensor, Draw], torch.Tensor]

COUNT = 32


def random_crop(images: torch.Tensor, draw: Draw, **options: Any) -> torch.Tensor:
    """The part, carried out."""
    return transform(images, moves.random_crop((images.shape[2], images.shape[3]), draw, **options), "zero")


def horizontal_flip(images: torch.Tensor, draw: Draw, **options: Any) -> torch.Tensor:
    """The part, carried out."""
    return transform(images, moves.horizontal_flip((images.shape[2], images.shape[3]), draw, **options), "zero")


def pictures(channels: int, height: int = 10, width: int = 7) -> torch.Tensor:
    """Noise without any zero, uint8 [32, C, H, W], channels last in memory as a feed gives it."""
    array = np.random.default_rng(channels).integers(1, 256, (COUNT, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def numbers(ids: torch.Tensor | None = None) -> Draw:
    """The stream of one part, for samples whose ids are no range."""
    ids = torch.arange(COUNT) * 37 + 5 if ids is None else ids
    return draws(3, 2, ids).for_(123456789)


def values(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A mean and a standard deviation that differ for each channel."""
    return (0.4914, 0.4822, 0.4465)[:channels], (0.247, 0.2435, 0.2616)[:channels]


def given(channels: int) -> Statistics:
    """The same as a run supplies them."""
    return Statistics(channels, lambda: values(channels))


def named(name: str, channels: int) -> Apply:
    """An augmentation as a recipe would build it."""
    parts: dict[str, Apply] = {"random_crop": random_crop, "horizontal_flip": horizontal_flip, "normalize": normalize(given(channels))}
    return parts[name]


@pytest.mark.parametrize("padding", [1, 4, 12])  # 12 is more than the picture
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_random_crop_is_pad_and_slice(channels: int, padding: int) -> None:
    images, draw = pictures(channels), numbers()
    offsets = draw.integers(2, 2 * padding + 1).tolist()
    expected = []
    for image, (top, left) in zip(images.numpy(), offsets, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        expected.append(padded[:, top : top + 10, left : left + 7])
    found = random_crop(images, draw, padding=padding)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))
    assert len({tuple(o) for o in offsets}) > 4  # the pictures do move differently


def test_random_crop_reaches_every_offset_and_pads_four_by_default() -> None:
    images = pictures(1)[:1].expand(4000, -1, -1, -1)
    draw = numbers(torch.arange(4000))
    offsets = draw.integers(2, 9)
    assert len((offsets[:, 0] * 9 + offsets[:, 1]).unique()) == 81
    assert torch.equal(random_crop(images, draw), random_crop(images, draw, padding=4))
    black_rows = (random_crop(images, draw)[:, 0] == 0).all(2).sum(1)
    assert torch.equal(black_rows, (offsets[:, 0] - 4).abs())


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_horizontal_flip_is_a_flip_where_drawn(channels: int, p: float) -> None:
    images, draw = pictures(channels), numbers()
    mirrored = [u < p for u in draw.uniform(1)[:, 0].tolist()]
    expected = [np.flip(image, 2) if m else image for image, m in zip(images.numpy(), mirrored, strict=True)]
    found = horizontal_flip(images, draw, p=p)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))
    assert any(mirrored) and all(mirrored) == (p == 1)


def test_horizontal_flip_mirrors_the_share_it_is_told() -> None:
    images = torch.tensor([1, 2], dtype=torch.uint8).view(1, 1, 1, 2).expand(20_000, -1, -1, -1)
    for p in (0.1, 0.5):
        share = (horizontal_flip(images, numbers(torch.arange(20_000)), p=p)[:, 0, 0, 0] == 2).float().mean().item()
        assert abs(share - p) < 5 * (p * (1 - p) / 20_000) ** 0.5
    default = horizontal_flip(images, numbers(torch.arange(20_000)))
    assert torch.equal(default, horizontal_flip(images, numbers(torch.arange(20_000)), p=0.5))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions(channels: int) -> None:
    images, (mean, std) = pictures(channels), values(channels)
    images[0] = 0
    images[1] = 255
    expected = functional.normalize(functional.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
    found = normalize(given(channels))(images, numbers())
    assert found.dtype == torch.float32 and found.shape == images.shape
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_normalize_takes_the_recipes_values_before_the_published() -> None:
    images, published = pictures(3), values(3)
    as_float = functional.to_dtype(images, torch.float32, scale=True)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    for made, (m, s) in {
        normalize(given(3), mean=mean, std=std): (mean, std),
        normalize(given(3), mean=mean): (mean, list(published[1])),
        normalize(given(3), std=std): (list(published[0]), std),
        normalize(given(3), mean=[0.5], std=[0.25]): ([0.5] * 3, [0.25] * 3),
        normalize(given(3), mean=[0.0]): ([0.0] * 3, list(published[1])),
    }.items():
        torch.testing.assert_close(made(images, numbers()), functional.normalize(as_float, m, s), rtol=1e-6, atol=1e-6)


def test_normalize_follows_pictures_of_another_width() -> None:
    made = normalize(given(3))
    for width in (7, 5, 7):
        images = pictures(3, width=width)
        torch.testing.assert_close(made(images, numbers()), normalize(given(3))(images, numbers()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("channels", "options", "text"),
    [
        (3, {"mean": [0.5, 0.5]}, "normalize has 2 values for pictures with 3 channels; write 3, or one for all"),
        (3, {"std": [0.5, 0.5, 0.5, 0.5]}, "normalize has 4 values for pictures with 3 channels; write 3, or one for all"),
        (1, {"mean": [0.5, 0.5, 0.5]}, "normalize has 3 values for pictures with 1 channels; write 1, or one for all"),
        (1, {"mean": [0.5], "std": [0.5, 0.5]}, "normalize has 2 values for pictures with 1 channels; write 1, or one for all"),
    ],
)
def test_normalize_refuses_another_number_of_channels(channels: int, options: dict[str, list[float]], text: str) -> None:
    with pytest.raises(UserError) as caught:
        normalize(given(channels), **options)
    assert str(caught.value) == text


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["random_crop", "horizontal_flip", "normalize"])
def test_a_picture_does_not_depend_on_its_batch(name: str, channels: int) -> None:
    images, ids = pictures(channels), torch.arange(COUNT) * 37 + 5
    whole = named(name, channels)(images, numbers(ids))
    for size in (1, 4, 5):
        pieces = [named(name, channels)(i, numbers(k)) for i, k in zip(images.split(size), ids.split(size), strict=True)]
        assert torch.equal(whole, torch.cat(pieces))
    assert torch.equal(whole.flip(0), named(name, channels)(images.flip(0), numbers(ids.flip(0))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["random_crop", "horizontal_flip", "normalize"])
def test_the_input_stays_and_memory_does_not_matter(name: str, channels: int) -> None:
    images, draw = pictures(channels), numbers()
    before, base = images.clone(), draw.base.clone()
    found = named(name, channels)(images, draw)
    assert torch.equal(images, before) and torch.equal(draw.base, base)
    assert found.data_ptr() != images.data_ptr()
    assert found.permute(0, 2, 3, 1).is_contiguous()  # still channels last
    assert torch.equal(found, named(name, channels)(images.contiguous(), draw))


@pytest.mark.parametrize("name", ["random_crop", "horizontal_flip", "normalize"])
def test_an_empty_batch_stays_empty(name: str) -> None:
    found = named(name, 3)(pictures(3)[:0], numbers(torch.arange(0)))
    assert found.shape == (0, 3, 10, 7)


def test_normalize_measures_nothing_where_the_recipe_says_it_all() -> None:
    def measure() -> tuple[tuple[float, ...], tuple[float, ...]]:
        raise AssertionError("measured")

    normalize(Statistics(3, measure), mean=[0.5], std=[0.25])
    with pytest.raises(AssertionError, match="measured"):
        normalize(Statistics(3, measure), mean=[0.5])
