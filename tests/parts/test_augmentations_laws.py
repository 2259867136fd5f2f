"""What holds for every augmentation of pixel values: independent of the batch, in range, of the same kind, and never in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from batches import COUNT, NoWaiting, given, numbers, pictures

from trainrun.draw import Draw
from trainrun.parts.augmentations import mixing, noise
from trainrun.parts.augmentations.pixels import where_chosen
from trainrun.recipe.registry import registry

Apply = Callable[[torch.Tensor, Draw], torch.Tensor]
PARTS = [name for name in registry.names("augment") if (part := registry.get("augment", name)) and part.facts.get("levels")]
CASES = [(name, channels) for name in PARTS for channels in (1, 3) if name != "grayscale" or channels == 3]


def made(name: str, channels: int) -> Apply:
    """A part as a recipe would build it, with colours where there are any."""
    part = registry.get("augment", name)
    assert part
    options = part.options().model_dump()
    if name == "color_jitter":
        options |= {"hue": 0.3} if channels == 3 else {"saturation": 0.0}
    if "p" in options:
        options["p"] = 0.7
    apply = part.call(options)
    return apply(given(channels)) if isinstance(part.function, type) else apply


def test_all_parts_are_here() -> None:
    assert len(PARTS) == 9


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_a_picture_does_not_depend_on_its_batch(name: str, channels: int) -> None:
    images, ids = pictures(channels, 13, 11), torch.arange(COUNT) * 37 + 5
    whole = made(name, channels)(images, numbers(ids))
    for size in (1, 3, 4, 5):
        pieces = [made(name, channels)(i, numbers(k)) for i, k in zip(images.split(size), ids.split(size), strict=True)]
        assert torch.equal(whole, torch.cat(pieces))
    assert torch.equal(whole.flip(0), made(name, channels)(images.flip(0), numbers(ids.flip(0))))
    assert not torch.equal(whole, images)


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_the_input_stays_and_memory_does_not_matter(name: str, channels: int) -> None:
    images, draw = pictures(channels, 13, 11), numbers()
    before, base = images.clone(), draw.base.clone()
    found = made(name, channels)(images, draw)
    assert torch.equal(images, before) and torch.equal(draw.base, base)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert found.permute(0, 2, 3, 1).is_contiguous()  # still channels last
    assert torch.equal(found, made(name, channels)(images.contiguous(), draw))


@pytest.mark.parametrize(("name", "channels"), CASES)
@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(name: str, channels: int, count: int) -> None:
    images = pictures(channels)[5 : 5 + count]
    found = made(name, channels)(images, numbers(count))
    assert found.shape == images.shape and found.dtype == torch.uint8


@pytest.mark.parametrize("name", PARTS)
def test_other_numbers_give_other_pictures(name: str) -> None:
    images, ids = pictures(3, 16, 16), torch.arange(COUNT)
    first, again, other = (made(name, 3)(images, numbers(k)) for k in (ids, ids, ids + 1000))
    assert torch.equal(first, again) and not torch.equal(first, other)


class Elsewhere(torch.Tensor):
    """A tensor that says it is not on the CPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


def test_where_all_are_computed_the_result_is_the_same() -> None:
    images = pictures()
    chosen = torch.arange(COUNT) % 3 == 0

    def change(some: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
        sizes.append(len(some))
        return some + add[:, None, None, None]

    sizes: list[int] = []
    add = torch.arange(COUNT, dtype=torch.uint8)
    here = where_chosen(images, chosen, change, add)
    there = where_chosen(images.as_subclass(Elsewhere), chosen, change, add).as_subclass(torch.Tensor)
    assert sum(sizes) == 11 + 32
    assert torch.equal(here, there) and not torch.equal(here, images)
    assert torch.equal(where_chosen(images, chosen & False, change, add), images)


@pytest.mark.parametrize(("name", "channels"), [*CASES, ("normalize", 3), ("mixup", 3), ("cutmix", 3), ("mixup_or_cutmix", 3)])
def test_the_host_never_waits_for_a_device(name: str, channels: int) -> None:
    """On a device that has no values, asking for one raises."""
    for cached in (noise._quantiles, mixing._table):
        cached.cache_clear()
    draw = Draw(torch.empty(8, dtype=torch.int64, device="meta"), 5)
    part = registry.get("augment", name)
    assert part
    images = torch.empty(8, 13, 11, channels, dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)
    if part.facts.get("mixes"):
        with NoWaiting():
            found, targets = part.call(part.options().model_dump())(images.float(), torch.empty(8, 5, device="meta"), draw)
        assert targets.shape == (8, 5)
    else:
        apply = made(name, channels)
        with NoWaiting():
            found = apply(images, draw)
        assert found.dtype == (torch.float32 if name == "normalize" else torch.uint8)
    assert found.device.type == "meta" and found.shape == images.shape
