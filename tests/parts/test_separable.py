"""Warps along the axes, whose rows and columns are filtered one after the other, against NumPy, torchvision and the filter of both at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from geometric import MODES, NUMPY, PARTS, alike, boxes, made, numbers, pictures, shape
from torchvision.transforms.v2 import InterpolationMode, functional

from trainrun.draw import Draw
from trainrun.parts.augmentations import crops, moves, warps
from trainrun.parts.augmentations.geometry import Border, Move, Warp, then
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.augmentations.separable import cut_out

BILINEAR = InterpolationMode.BILINEAR


def joined(of: tuple[int, int], draw: Draw, *names: str) -> Warp:
    motion: Move | Warp = Move(of)
    for n, name in enumerate(names):
        motion = then(motion, made(name, motion.size, draw.for_(n)), draw.base)
    assert isinstance(motion, Warp)
    return motion


LISTS = (
    ("random_resized_crop",),
    ("random_resized_crop", "horizontal_flip"),
    ("scale_jitter", "vertical_flip", "random_crop"),
    ("random_scale", "shift"),
    ("horizontal_flip", "random_crop", "random_scale", "random_scale"),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("names", LISTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_after_the_other_is_both_at_once(channels: int, names: tuple[str, ...], mode: Border) -> None:
    for height, width in ((30, 43), (61, 50)):
        images, draw = pictures(channels=channels, height=height, width=width), numbers()
        warp = joined((height, width), draw, *names)
        assert warp.aligned
        alike(transform(images, warp, mode), transform(images, replace(warp, aligned=False), mode), 1, 0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "names"), [((30, 43), LISTS[3]), ((30, 43), LISTS[4]), ((20, 23), LISTS[1])])
def test_plain_samples_are_numpys_linear_interpolation(size: tuple[int, int], names: tuple[str, ...], mode: Border) -> None:
    images, draw = pictures(height=size[0], width=size[1]), numbers()
    warp = replace(joined(size, draw, *names), shrink=1.0)
    found = transform(images, warp, mode).numpy()
    far = 4 * max(size)
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (far, far), (far, far)), mode=NUMPY[mode])
    for one, image, m in zip(found, padded, warp.matrix.numpy(), strict=True):
        for axis, count in ((1, warp.size[0]), (0, warp.size[1])):
            at = m[axis, axis] * np.arange(count) + m[axis, 2] + far
            image = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), 2 - axis, image)
        difference = np.abs(one - image)
        assert difference.max() < 0.51, difference.max()


@pytest.mark.parametrize("size", [14, 25])
def test_the_filter_has_the_variance_of_the_triangle_that_resizing_uses(size: int) -> None:
    """The response to one bright column, over all output columns, is the filter: s pixels of the input to one of the output."""
    images = torch.zeros(1, 1, 9, 101, dtype=torch.uint8)
    images[..., 50] = 255
    step = 101 / size
    at = torch.arange(0, step, step / 64, dtype=torch.float64)
    matrices = torch.eye(3, dtype=torch.float64).repeat(len(at), 1, 1)
    matrices[:, 0, 0], matrices[:, 0, 2] = step, at
    found = transform(images.expand(len(at), -1, -1, -1), Warp((9, size), matrices, step, aligned=True), "zero")[:, 0, 4].double()
    places = (at[:, None] + step * torch.arange(size)) - 50
    weight = found / found.sum()
    assert (weight * places).sum() == pytest.approx(0, abs=0.1)
    assert (weight * places**2).sum() == pytest.approx(step**2 / 6, rel=0.05)


@pytest.mark.parametrize("size", [7, 12, 24])
def test_a_crop_and_a_flip_are_nearly_torchvisions_antialiased_ones(size: int) -> None:
    images, draw = pictures(height=60, width=86), numbers()
    crop = crops.random_resized_crop((60, 86), draw, size=size, scale=[0.6, 1.0])
    flip = moves.horizontal_flip((size, size), draw.for_(1))
    found = transform(images, then(crop, flip, draw.base), "edge")
    mirrored = (flip.right < 0).tolist()  # type: ignore[union-attr]  # a tensor
    assert any(mirrored) and not all(mirrored)
    for image, one, box, flipped in zip(images, found, boxes(crop, size), mirrored, strict=True):
        expected = functional.resized_crop(image, *(round(v) for v in box), [size, size], BILINEAR, antialias=True)
        expected = expected.flip(2) if flipped else expected
        alike(one[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], 24, 6)


@pytest.mark.parametrize("size", [60, 40, 24, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_that_is_cut_out_by_itself_is_the_same(channels: int, size: int) -> None:
    """Bitwise, though only what is seen of it is filtered."""
    images, draw = pictures(channels=channels, height=60, width=86), numbers()
    for crop in (crops.random_resized_crop((60, 86), draw, size=size), crops.scale_jitter((60, 86), draw, size=size, shorter=[size, 90])):
        found = [cut_out(image.permute(1, 2, 0).numpy(), replace(crop, matrix=m[None])) for image, m in zip(images, crop.matrix, strict=True)]
        assert torch.equal(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2), transform(images, crop, "edge"))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("height", "width"), [(201, 263), (35, 21)])
def test_neither_batch_nor_threads_change_a_bit(height: int, width: int, threads: int) -> None:
    count = 7 if height > 100 else 150  # more than are filtered at a time
    images, draw = pictures(12, height=height, width=width).repeat(math.ceil(count / 12), 1, 1, 1)[:count], numbers(count)
    warp = joined((height, width), draw, "random_scale", "horizontal_flip", "shift")
    whole = transform(images, warp, "reflect")
    for size in (1, 3) if count == 7 else (13, 64):
        apart = [
            transform(some, replace(warp, matrix=m), "reflect") for some, m in zip(images.split(size), warp.matrix.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(apart), whole)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(threads))
    assert torch.equal(transform(images[order], replace(warp, matrix=warp.matrix[order]), "reflect"), whole[order])
    torch.set_num_threads(3 - threads)
    assert torch.equal(transform(images, warp, "reflect"), whole)


def test_the_last_bits_of_a_matrix_change_nothing() -> None:
    """They may depend on the batch. Also where they decide which pixel is the first of two, as in the last rows here."""
    images, draw = pictures(), numbers()
    warp = joined(shape(images), draw, "random_scale", "shift")
    whole = torch.cat((warp.matrix[:9], moves.shift(shape(images), draw).warp(draw.base).matrix[9:]))
    for mode in MODES:
        expected = transform(images, replace(warp, matrix=whole), mode)
        for factor in (1 - 1e-15, 1 + 1e-15):
            assert torch.equal(transform(images, replace(warp, matrix=whole * factor), mode), expected)


@pytest.mark.parametrize("name", PARTS)
def test_what_is_said_to_be_aligned_is(name: str) -> None:
    of, draw = (30, 43), numbers()
    motion = made(name, of, draw)
    warp = motion.warp(draw.base) if isinstance(motion, Move) else motion
    turned = {"rotation", "reflection", "affine", "perspective"}
    assert warp.aligned == (name not in turned)
    if warp.aligned:
        m = warp.matrix
        assert not m[:, 0, 1].any() and not m[:, 1, 0].any() and torch.equal(m[:, 2], torch.tensor([0.0, 0, 1]).double().expand(12, 3))
    flip = moves.vertical_flip(warp.size, draw)
    for both in (then(warp, flip, draw.base), then(flip, warp, draw.base)):
        assert isinstance(both, Warp) and both.aligned == warp.aligned
    assert not then(warp, warps.rotation(warp.size, draw), draw.base).aligned  # type: ignore[union-attr]  # a Warp
    for options, straight in (({"shift": [0.1, 0.1], "scale": [0.5, 2.0]}, True), ({"degrees": 1.0}, False), ({"shear": [0.0, 1.0]}, False)):
        assert warps.affine(of, draw, **options).aligned == straight
