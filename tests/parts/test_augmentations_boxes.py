"""Boxes follow their pictures: against what is painted and moved, against torchvision, and by the laws of moving."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from geometric import MOVES, PARTS, made, numbers
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

import trainrun.parts.augmentations as augmentations
from trainrun.draw import Draw, draws
from trainrun.parts.augmentations.boxes import follow, visible
from trainrun.parts.augmentations.geometry import Move, Warp, then
from trainrun.parts.augmentations.resample import transform
from trainrun.recipe.registry import registry

SHAPE = (60, 81)


def _row(sample: int) -> Draw:
    return draws(3, 2, torch.tensor([sample * 37 + 5])).for_(123456789)


def painted(box: tuple[int, int, int, int]) -> torch.Tensor:
    """A black picture with a white box, uint8 [1, 1, H, W]."""
    picture = torch.zeros(1, 1, *SHAPE, dtype=torch.uint8)
    picture[..., box[1] : box[3], box[0] : box[2]] = 255
    return picture


def extent(picture: torch.Tensor, level: int) -> list[int] | None:
    """The edges of what is at least so bright."""
    rows, columns = np.nonzero(picture[0, 0].numpy() >= level)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def some_boxes() -> list[tuple[int, int, int, int]]:
    places = np.random.default_rng(5)
    corners = [(*places.integers(0, 45, 2).tolist(), *places.integers(12, 35, 2).tolist()) for _ in range(12)]
    return [(x, y, min(x + w, SHAPE[1]), min(y + h, SHAPE[0])) for x, y, w, h in corners] + [(0, 0, SHAPE[1], SHAPE[0]), (20, 10, 60, 50)]


def boxed(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float32)


def test_every_geometric_part_is_tested_here() -> None:
    assert {name for name in registry.names("augment") if registry.get("augment", name).facts.get("geometry")} == set(PARTS)  # type: ignore[union-attr]  # it was just listed


@pytest.mark.parametrize("name", MOVES)
def test_a_moved_box_is_exactly_what_was_painted(name: str) -> None:
    whole = 0
    for sample, box in enumerate(some_boxes()):
        motion = made(name, SHAPE, _row(sample)) if name != "center_crop" else augmentations.moves.center_crop(SHAPE, _row(sample), size=50)
        assert isinstance(motion, Move)
        seen = extent(transform(painted(box), motion, "zero"), 255)
        moved = follow(motion, boxed(box))
        inside, keep = visible(boxed(box), moved, motion.size, 0.0)
        assert (inside[0].tolist() if keep[0] else None) == seen, (box, seen, moved)
        whole += bool(keep[0]) and torch.equal(inside, moved)
        # As a matrix it is the same motion.
        torch.testing.assert_close(follow(motion.warp(torch.zeros(1)), boxed(box)), moved)
    assert whole >= 3


@pytest.mark.parametrize("name", [name for name in PARTS if name not in MOVES])
def test_a_warped_box_is_what_was_painted_within_a_pixel(name: str) -> None:
    whole = 0
    for sample, box in enumerate(some_boxes() * 2):
        motion = made(name, SHAPE, _row(sample))
        _sandwiched(motion, box)
        moved = follow(motion, boxed(box))
        whole += bool((moved == visible(boxed(box), moved, motion.size, 0.0)[0]).all())
    assert whole >= 1


def _sandwiched(motion: Move | Warp, box: tuple[int, int, int, int]) -> None:
    picture = transform(painted(box), motion, "zero")
    moved = follow(motion, boxed(box))[0]
    inside = visible(boxed(box), moved[None], motion.size, 0.0)[0][0]
    bright, traces = extent(picture, 128), extent(picture, 1)
    if bright:  # no more than the box shows it
        assert (torch.tensor(bright) - inside).mul(torch.tensor([1, 1, -1, -1])).min() >= -1, (box, bright, moved)
    if torch.equal(inside, moved):  # and all of it, where none is cut off
        assert traces is not None
        assert (torch.tensor(traces) - inside).mul(torch.tensor([1, 1, -1, -1])).max() <= 1, (box, traces, moved)


@pytest.mark.parametrize("names", [("horizontal_flip", "rotation", "random_crop"), ("perspective", "center_crop"), ("affine", "vertical_flip")])
def test_boxes_follow_parts_that_are_joined(names: tuple[str, ...]) -> None:
    for sample, box in enumerate(some_boxes()):
        joined: Move | Warp = Move(SHAPE)
        steps, shape = boxed(box).double(), SHAPE
        for name in names:
            motion = made(name, shape, _row(sample))
            joined, shape = then(joined, motion, torch.zeros(1)), motion.size
            steps = follow(motion, steps)
        _sandwiched(joined, box)
        # In steps each upright box is laid around the one before, so at once is never larger.
        at_once = follow(joined, boxed(box).double())
        assert ((at_once - steps) * torch.tensor([1, 1, -1, -1])).min() > -1e-9


def test_there_and_back() -> None:
    box = torch.tensor([[3.25, 7.5, 40.0, 31.125]], dtype=torch.float64)
    for sample in range(8):
        for name in ("horizontal_flip", "vertical_flip", "alternating_flip"):
            motion = made(name, SHAPE, _row(sample))
            assert torch.equal(follow(motion, follow(motion, box)), box)
        motion = made("random_scale", SHAPE, _row(sample))
        assert isinstance(motion, Warp)
        back = Warp(SHAPE, torch.linalg.inv(motion.matrix))
        torch.testing.assert_close(follow(back, follow(motion, box)), box, rtol=0, atol=1e-10)
    turned = Warp(SHAPE, torch.tensor([[[0.0, 1, 0], [-1, 0, 80], [0, 0, 1]]], dtype=torch.float64))  # by a right angle
    torch.testing.assert_close(follow(Warp(SHAPE, torch.linalg.inv(turned.matrix)), follow(turned, box)), box, rtol=0, atol=1e-10)


def test_a_square_turned_by_45_degrees_grows_by_the_root_of_two() -> None:
    c = math.sqrt(0.5)
    motion = Warp((101, 101), torch.tensor([[[c, -c, 50 - 0.0], [c, c, 50 - 2 * c * 50], [0, 0, 1]]], dtype=torch.float64))
    moved = follow(motion, torch.tensor([[40.5, 40.5, 60.5, 60.5]], dtype=torch.float64))
    sides = moved[0, 2:] - moved[0, :2]
    torch.testing.assert_close(sides, torch.full((2,), 20 * math.sqrt(2), dtype=torch.float64))


def theirs(boxes: torch.Tensor) -> BoundingBoxes:
    return BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=SHAPE)  # type: ignore[call-arg]  # the stubs of its parent


def agree(motion: Move | Warp, boxes: torch.Tensor, expected: torch.Tensor, atol: float = 1e-3) -> None:
    found = visible(boxes, follow(motion, boxes), motion.size, 0.0)[0]
    torch.testing.assert_close(found, torch.as_tensor(expected).as_subclass(torch.Tensor).float(), rtol=0, atol=atol)


def test_boxes_are_torchvisions() -> None:
    boxes = boxed(*some_boxes(), (3.25, 4.5, 17.75, 59.5))
    mirrored = Move(SHAPE, x=torch.tensor([80]), right=torch.tensor([-1]))
    agree(mirrored, boxes, functional.horizontal_flip(theirs(boxes)))
    upside_down = Move(SHAPE, y=torch.tensor([59]), down=torch.tensor([-1]))
    agree(upside_down, boxes, functional.vertical_flip(theirs(boxes)))
    agree(Move((20, 30), y=11, x=7), boxes, functional.crop(theirs(boxes), 11, 7, 20, 30))
    seven, eleven, forward = (torch.tensor([value]) for value in (7, 11, 1))  # as where a flip that may come has not
    agree(Move((20, 30), y=eleven, x=seven, down=forward, right=forward), boxes, functional.crop(theirs(boxes), 11, 7, 20, 30))
    options: dict[str, Any] = {"degrees": 50.0, "shift": [0.2, 0.1], "scale": [0.85, 1.4], "shear": [20.0, 15.0]}
    for sample in range(6):
        draw = _row(sample)
        turn, right, down, factor, along_x, along_y = draw.uniform(6).double()[0].tolist()
        translate = [(2 * right - 1) * 0.2 * 81, (2 * down - 1) * 0.1 * 60]
        sheared = [(2 * along_x - 1) * 20, (2 * along_y - 1) * 15]
        expected = functional.affine(theirs(boxes), (2 * turn - 1) * 50, translate, 0.85 + factor * 0.55, sheared)  # type: ignore[arg-type]  # it takes floats
        agree(augmentations.warps.affine(SHAPE, draw, **options), boxes, expected)
        angle = (2 * draw.uniform(1)[0, 0].double().item() - 1) * 70
        agree(augmentations.warps.rotation(SHAPE, draw, degrees=70.0), boxes, functional.rotate(theirs(boxes), angle))


def test_boxes_of_a_perspective_are_torchvisions() -> None:
    boxes = boxed(*some_boxes())
    corners = [(0.0, 0.0), (80.0, 0.0), (80.0, 59.0), (0.0, 59.0)]
    for sample in range(6):
        draw = _row(sample)
        u = draw.uniform(9).double()[0].tolist()
        moved = [(abs(x - u[2 * n] * 0.3 * 80), abs(y - u[2 * n + 1] * 0.3 * 59)) for n, (x, y) in enumerate(corners)]
        start, end = ([[x + 0.5, y + 0.5] for x, y in points] for points in (corners, moved))  # it counts from edges
        expected = functional.perspective(theirs(boxes), start, end)  # type: ignore[arg-type]  # it takes floats
        agree(augmentations.warps.perspective(SHAPE, draw, distortion=0.6, p=1.0), boxes, expected, 0.02)


@pytest.mark.parametrize("sign", [1.0, -1.0, 7.0])
def test_what_lies_behind_the_horizon_is_cut_off(sign: float) -> None:
    """x' = x / (1 - x / 40), in edges: from 40 on the input lies behind. A matrix is the same map at any scale."""
    forward = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1 / 40, 0, 1]], dtype=torch.float64)
    half = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    matrix = torch.linalg.inv(torch.linalg.inv(half) @ forward @ half)[None] * sign
    motion = Warp(SHAPE, matrix, projective=True)
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 44, 20], [0, 10, 39, 20]], dtype=torch.float64)
    moved = follow(motion, boxes)
    torch.testing.assert_close(moved[0], torch.tensor([10 / 0.75, 10 / 0.75, 40, 40], dtype=torch.float64))
    assert moved[1, 2] > 1e5 and moved[1, 3] > 1e5 and moved.isfinite().all()  # it reaches to the horizon
    torch.testing.assert_close(moved[1, :2], moved[0, :2])
    torch.testing.assert_close(moved[2], torch.tensor([0, 10, 39 * 40, 20 * 40], dtype=torch.float64))
    assert visible(boxes, moved, SHAPE, 0.2)[1].tolist() == [True, False, False]


def test_what_is_to_be_seen() -> None:
    before = boxed((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 0.5, 9), (0, 0, 9, 9), (0, 0, 9, 9))
    after = boxed((-4, 0, 6, 10), (-8, 0, 2, 10), (100, 0, 110, 10), (5, 5, 5.5, 14), (80.5, 0, 89.5, 9), (-3, -3, 90, 70))
    inside, keep = visible(before, after, SHAPE, 0.5)
    assert keep.tolist() == [True, False, False, True, False, True]
    assert inside.tolist()[:2] == [[0, 0, 6, 10], [0, 0, 2, 10]] and inside[5].tolist() == [0, 0, 81, 60]
    assert visible(before, after, SHAPE, 0.0)[1].tolist() == [True, True, False, True, False, True]
    assert visible(before, after, SHAPE, 0.65)[1].tolist() == [False, False, False, True, False, True]
    still = boxed(*some_boxes(), (0, 0, 0.25, 0.25))
    for motion in (Move(SHAPE), Warp(SHAPE, torch.eye(3, dtype=torch.float64)[None])):
        inside, keep = visible(still, follow(motion, still), SHAPE, 1.0)
        assert keep.all() and torch.equal(inside, still)


def test_none_and_many() -> None:
    empty = torch.zeros(0, 4)
    for name in PARTS:
        motion = made(name, SHAPE, _row(0))
        moved = follow(motion, empty)
        assert moved.shape == (0, 4) and visible(empty, moved, motion.size, 0.1)[1].shape == (0,)
        if name != "center_crop":
            with pytest.raises(ValueError, match="12 pictures"):
                follow(made(name, SHAPE, numbers()), empty)


@pytest.mark.parametrize("name", ["trivial_augment", "rand_augment", "color_jitter", "grayscale"])
def test_what_moves_pixels_without_saying_where_has_a_fact_for_it(name: str) -> None:
    """What changes colours alone leaves pixels of one colour alike, wherever they are."""
    part = registry.get("augment", name)
    assert part
    options = part.options().model_dump()
    apply = part.call(options | ({"brightness": 0.2, "contrast": 0.2} if name == "color_jitter" else {}))
    apply = apply(augmentations.Statistics(3, lambda: ((0.5,) * 3, (0.5,) * 3))) if isinstance(part.function, type) else apply
    pictures = torch.full((256, 3, 32, 32), 60, dtype=torch.uint8)
    pictures[:, :, :8, :8] = 200
    found = apply(pictures.contiguous(memory_format=torch.channels_last), numbers(256)).float()
    ground = torch.stack([found[..., y, x] for y, x in ((1, 30), (30, 1), (30, 30), (20, 20))])
    assert bool((ground == ground[0]).all()) != bool(part.facts.get("moves"))
