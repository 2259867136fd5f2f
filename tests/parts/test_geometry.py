"""The laws of geometric augmentations: moves are slices bit for bit, parts together are one, a sample does not see its batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batches import NoWaiting
from geometric import MODES, MOVES, NUMPY, PARTS, made, numbers, pictures, shape
from torchvision.transforms.v2 import functional

from trainrun.draw import Draw, draws
from trainrun.parts.augmentations import moves, warps
from trainrun.parts.augmentations.geometry import Border, Move, Warp, matrix, then
from trainrun.parts.augmentations.resample import transform


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_and_shifts_are_pad_and_slice(channels: int, mode: Border) -> None:
    images, draw = pictures(channels=channels), numbers()
    for move in (moves.random_crop(shape(images), draw, padding=7), moves.shift(shape(images), draw, x=0.3, y=0.2)):
        assert isinstance(move, Move)
        found = transform(images, move, mode)
        far = move.margin
        for image, y, x, one in zip(images.numpy(), move.y, move.x, found, strict=True):
            padded = np.pad(image, ((0, 0), (far, far), (far, far)), mode=NUMPY[mode])
            np.testing.assert_array_equal(one.numpy(), padded[:, y + far : y + far + 30, x + far : x + far + 43])
        assert len({(int(y), int(x)) for y, x in zip(move.y, move.x, strict=True)}) > 5


@pytest.mark.parametrize("mode", MODES)
def test_a_margin_may_be_wider_than_the_picture(mode: Border) -> None:
    images = pictures(height=3, width=4)
    move = Move((3, 4), y=torch.arange(-9, 3), x=torch.arange(12) - 4, margin=9)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (9, 9), (9, 9)), mode=NUMPY[mode])
    for n, one in enumerate(transform(images, move, mode)):
        np.testing.assert_array_equal(one.numpy(), padded[n, :, n : n + 3, n + 5 : n + 9])
    one_pixel = transform(images[..., :1, :1], Move((1, 1), y=torch.full((12,), 2), margin=2), mode)
    assert torch.equal(one_pixel, images[..., :1, :1] * (mode != "zero"))


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_numpys(channels: int) -> None:
    images, draw = pictures(channels=channels), numbers()
    for part, axis in ((moves.horizontal_flip, 2), (moves.vertical_flip, 1)):
        mirrored = [u < 0.3 for u in draw.uniform(1)[:, 0].tolist()]
        expected = [np.flip(image, axis) if m else image for image, m in zip(images.numpy(), mirrored, strict=True)]
        np.testing.assert_array_equal(transform(images, part(shape(images), draw, p=0.3), "zero").numpy(), np.stack(expected))
        assert any(mirrored) and not all(mirrored)


@pytest.mark.parametrize("size", [1, 20, 29, 30, 37, 50])
def test_center_crop_is_torchvisions(size: int) -> None:
    for height, width in ((30, 43), (43, 30), (31, 31)):
        images = pictures(2, height=height, width=width)
        assert torch.equal(
            transform(images, moves.center_crop((height, width), numbers(2), size=size), "zero"),
            functional.center_crop(images, [size, size]),
        )


def test_alternating_flip_mirrors_every_other_epoch() -> None:
    images, ids = pictures(1).expand(4000, -1, -1, -1)[..., :2, :3], torch.arange(4000)
    seen = []
    for epoch in range(4):
        found = transform(images, moves.alternating_flip((2, 3), draws(3, epoch, ids).for_(9)), "zero")
        mirrored = (found == images.flip(3)).flatten(1).all(1)
        assert (mirrored | (found == images).flatten(1).all(1)).all()
        seen.append(mirrored)
    assert torch.equal(seen[0], ~seen[1]) and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert abs(seen[0].float().mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_moves_together_are_one_move() -> None:
    """Bitwise that of slicing, also where pixels leave the picture in one part and come back in another."""
    images, draw = pictures(), numbers()
    motion: Move | Warp = Move(shape(images))
    for n, name in enumerate(("random_crop", "horizontal_flip", "shift", "vertical_flip", "center_crop", "random_crop", "horizontal_flip")):
        motion = then(motion, made(name, motion.size, draw.for_(n)), draw.base)
    assert isinstance(motion, Move)
    far = motion.margin
    for mode in MODES:
        found = transform(images, motion, mode)
        for n, image in enumerate(images.numpy()):
            padded = np.pad(image, ((0, 0), (far, far), (far, far)), mode=NUMPY[mode])
            rows = int(motion.y[n]) + int(motion.down[n]) * np.arange(15) + far  # type: ignore[index]  # tensors here
            columns = int(motion.x[n]) + int(motion.right[n]) * np.arange(15) + far  # type: ignore[index]  # as above
            np.testing.assert_array_equal(found[n].numpy(), padded[:, rows][:, :, columns])


def test_crop_and_flip_one_after_the_other_are_the_two_together() -> None:
    images, draw = pictures(), numbers()
    crop, flip = moves.random_crop(shape(images), draw), moves.horizontal_flip(shape(images), draw.for_(5))
    for mode in MODES:
        apart = transform(transform(images, crop, mode), flip, mode)
        assert torch.equal(transform(images, then(crop, flip, draw.base), mode), apart)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MOVES)
def test_the_resampler_makes_a_whole_move_bitwise(name: str, mode: Border) -> None:
    for count, height, width, shrink, projective, aligned in (
        (6, 30, 43, 1.0, False, False),
        (6, 30, 43, 1.0, True, False),
        (6, 30, 43, 2.0, False, False),
        (2, 224, 160, 1.0, False, False),
        (6, 30, 43, 1.0, False, True),
        (6, 30, 43, 2.9, False, True),
        (2, 224, 160, 2.0, False, True),
    ):
        images, draw = pictures(count, height=height, width=width), numbers(count)
        move = made(name, shape(images), draw)
        assert isinstance(move, Move)
        same = Warp(move.size, move.warp(draw.base).matrix, shrink, projective, aligned)  # shrink: as if others of the batch were shrunk
        assert torch.equal(transform(images, same, mode), transform(images, move, mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_composition_that_happens_to_be_whole_is_bitwise(mode: Border) -> None:
    images, draw = pictures(), numbers()
    x, y, none = 21.0, 14.5, draw.base * 0.0  # the middle of 43 x 30 pixels
    quarter = Warp(shape(images), matrix((none, -1.0, x + y), (1.0, 0.0, y - x)))
    whole = then(then(quarter, quarter, draw.base), moves.random_crop(shape(images), draw, mode=mode), draw.base)
    crop = moves.random_crop(shape(images), draw)
    assert isinstance(whole, Warp)
    assert torch.equal(transform(images, whole, mode), transform(images.flip(2, 3), crop, mode))
    for part, size in ((warps.rotation, {"degrees": 25.0}), (warps.affine, {"degrees": 9.0, "shear": [4.0, 2.0]})):
        there = part(shape(images), draw, **size)
        back = Warp(there.size, torch.linalg.inv(there.matrix))
        move = moves.shift(shape(images), draw.for_(3))
        together = then(then(there, back, draw.base), move, draw.base)
        assert torch.equal(transform(images, together, mode), transform(images, move, mode))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PARTS)
def test_a_picture_does_not_depend_on_its_batch(name: str, channels: int) -> None:
    levels, ids = pictures(11, channels, 18, 23), torch.arange(11) * 37 + 5
    scaled = (levels.float() / 255).contiguous(memory_format=torch.channels_last)
    for images, mode in itertools.product((levels, scaled), MODES):
        whole = transform(images, made(name, shape(images), draws(3, 2, ids).for_(9)), mode)
        for size in (1, 4):
            pieces = zip(images.split(size), ids.split(size), strict=True)
            apart = [transform(i, made(name, shape(images), draws(3, 2, k).for_(9)), mode) for i, k in pieces]
            assert torch.equal(whole, torch.cat(apart))
        turned = transform(images.flip(0), made(name, shape(images), draws(3, 2, ids.flip(0)).for_(9)), mode)
        assert torch.equal(whole.flip(0), turned)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PARTS)
def test_no_value_is_asked_of_the_device(name: str, mode: Border) -> None:
    """A tensor on the meta device has none, and says so: so no step waits for a device to know what to launch."""
    images = pictures().to("meta")
    motion = made(name, shape(images), numbers()).to(torch.device("meta"))
    with NoWaiting():
        found = transform(images, motion, mode)
        made(name, shape(images), Draw(torch.empty(12, dtype=torch.int64, device="meta"), ids=torch.empty(12, dtype=torch.int64, device="meta")))
    assert found.shape == (12, 3, *motion.size) and found.dtype == torch.uint8


@pytest.mark.parametrize("name", PARTS)
def test_matrices_do_not_depend_on_the_batch(name: str) -> None:
    """They may differ by the last bits of a float64 at most, and the same to float32, which is what pixels are computed with."""
    ids = torch.arange(1000)
    whole = made(name, (30, 43), draws(0, 0, ids).for_(1))
    some = made(name, (30, 43), draws(0, 0, ids[3:10]).for_(1))
    like = ids.double()
    a, b = (m.warp(like[:n]) if isinstance(m, Move) else m for m, n in ((whole, 1000), (some, 7)))
    assert torch.equal(a.matrix[3:10].float(), b.matrix.float())


@pytest.mark.parametrize("name", PARTS)
def test_layout_input_and_empty_batches(name: str) -> None:
    images, draw = pictures(), numbers()
    before = images.clone()
    motion = made(name, shape(images), draw)
    found = transform(images, motion, "zero")
    assert torch.equal(images, before) and found.data_ptr() != images.data_ptr()
    assert found.dtype == torch.uint8 and found.permute(0, 2, 3, 1).is_contiguous() and shape(found) == motion.size
    assert torch.equal(found, transform(images.contiguous(), motion, "zero"))
    nobody = transform(images[:0], made(name, shape(images), numbers(0)), "zero")
    assert nobody.shape == (0, 3, *motion.size)
    white = transform(torch.full_like(images, 255), motion, "edge")
    assert (white == 255).all()  # nothing wraps around
    tiny = pictures(height=1, width=1)
    for mode in MODES[1:]:
        if name not in ("scale_jitter", "center_crop"):
            assert (transform(tiny, made(name, (1, 1), draw), mode) == tiny).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PARTS)
def test_pictures_that_are_scaled_already_are_not_rounded(name: str, mode: Border) -> None:
    """Levels that are divided by 255 and then moved are the moved levels divided by 255, which only differ by their rounding."""
    images, draw = pictures(), numbers()
    scaled = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    motion = made(name, shape(images), draw)
    found, levels = transform(scaled, motion, mode), transform(images, motion, mode)
    assert found.dtype == torch.float32 and found.permute(0, 2, 3, 1).is_contiguous()
    assert (found * 255 - levels).abs().max() < 0.51


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_a_line_of_pixels_can_be_tilted(shape: tuple[int, int]) -> None:
    """A side of one pixel has no length between its corners."""
    images, draw = pictures(height=shape[0], width=shape[1]), numbers()
    motion = warps.perspective(shape, draw, p=0.6)
    assert motion.matrix.isfinite().all()
    still = draw.uniform(9)[:, 8] >= 0.6
    assert still.any() and not still.all()
    for mode in MODES:
        assert torch.equal(transform(images, motion, mode)[still], images[still])
