"""Pictures of any size with their boxes on the way to a detector: boxes lie where the pixels are, whatever moves these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trainrun.draw import visits
from trainrun.engine.detection import LEAST_VISIBLE, BoxedInputs
from trainrun.engine.feed import Batch
from trainrun.engine.inputs import make_inputs
from trainrun.parts.augmentations import Statistics
from trainrun.parts.datasets.splits import Boxes
from trainrun.recipe.registry import PartNode, registry

SIZES = [(50, 61), (64, 40), (47, 47), (80, 55)]
COUNT = 24


def node(name: str, **options: Any) -> PartNode:
    part = registry.get("augment", name)
    assert part is not None
    return PartNode("augment", name, part.options(**options).model_dump())


NORMALIZE = node("normalize", mean=[0.5] * 3, std=[0.25] * 3)
# Every part that says where pixels come from, and some that stand together; the number is by how many pixels a box may be larger.
LISTS: dict[str, tuple[list[PartNode], float]] = {
    "random_crop": ([node("random_crop", padding=6)], 0),
    "center_crop": ([node("center_crop", size=40)], 0),
    "horizontal_flip": ([node("horizontal_flip")], 0),
    "vertical_flip": ([node("vertical_flip")], 0),
    "alternating_flip": ([node("alternating_flip")], 0),
    "shift": ([node("shift", x=0.3, y=0.2)], 0),
    "rotation": ([node("rotation", degrees=2.0)], 2.5),
    "reflection": ([node("reflection")], 60),
    "random_scale": ([node("random_scale", scale=[0.6, 1.4])], 1.5),
    "affine": ([node("affine", degrees=1.0, shift=[0.1, 0.1], scale=[0.8, 1.2])], 2.5),
    "perspective": ([node("perspective", distortion=0.1)], 4),
    "random_resized_crop": ([node("random_resized_crop", size=48)], 1.5),
    "scale_jitter": ([node("scale_jitter", size=48, shorter=[48, 60])], 1.5),
    "moves and colours": ([node("horizontal_flip"), node("grayscale", p=1.0), node("random_crop", padding=6)], 0),
    "two steps": ([node("random_crop", padding=6), node("grayscale", p=1.0), node("random_scale", scale=[0.8, 1.2]), node("vertical_flip")], 1.5),
}


def inputs(nodes: list[PartNode]) -> BoxedInputs:
    return BoxedInputs.of(make_inputs(nodes, 3, "channels_last", Statistics(3, lambda: ((0.5,) * 3, (0.25,) * 3)), registry))


def painted(count: int = COUNT, ignored: bool = False, device: str = "cpu", sizes: list[tuple[int, int]] = SIZES) -> Batch:
    """Black pictures of unequal sizes, each with one white box."""
    rng = np.random.default_rng(1)
    images, boxes = [], []
    for n in range(count):
        height, width = sizes[n % len(sizes)]
        x, y = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        box = (x, y, x + int(rng.integers(8, 20)), y + int(rng.integers(8, 20)))
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[:, box[1] : box[3], box[0] : box[2]] = 255
        images.append(image.to(device))
        boxes.append(Boxes(np.array([box], np.float32), np.array([n % 2]), np.array([ignored])))
    ids = torch.arange(count) * 7 + 1
    return Batch(images, torch.zeros(count, dtype=torch.int64, device=device), ids, 4, count, boxes=boxes)


def extent(picture: torch.Tensor, level: float) -> torch.Tensor:
    """The edges of what is at least so bright, as a box."""
    rows, columns = np.nonzero(picture[0].numpy() >= level)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32)


OUTWARD = torch.tensor([-1.0, -1, 1, 1])


def test_every_geometric_part_is_tested_here() -> None:
    geometric = {name for name in registry.names("augment") if registry.get("augment", name).facts.get("geometry")}  # type: ignore[union-attr]  # it was just listed
    assert geometric <= set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_a_box_is_where_its_pixels_are(name: str) -> None:
    nodes, looser = LISTS[name]
    batch = painted()
    images, targets = inputs(nodes)(batch, True)
    kept = moved = 0
    for n, (image, target) in enumerate(zip(images, targets, strict=True)):
        if not len(target["boxes"]):
            continue
        box = target["boxes"][0]
        assert target["labels"].tolist() == [n % 2 + 1] and image.shape[0] == 3
        if looser == 0:
            assert torch.equal(box, extent(image, 0.3)), (n, box)
        else:
            assert ((box - extent(image, 0.5)) * OUTWARD).min() >= -1, (n, box)  # all that is seen lies in the box
            assert ((box - extent(image, 0.02)) * OUTWARD).max() <= looser, (n, box)
        kept += 1
        moved += not np.array_equal(box.numpy(), batch.boxes[n].boxes[0])  # type: ignore[index]  # it has boxes
    assert kept >= COUNT // 2 and moved >= COUNT // 4


def test_a_box_of_which_too_little_is_left_is_not_trained_on() -> None:
    batch = painted(200)
    images, targets = inputs([node("shift", x=0.6, y=0.6)])(batch, True)
    shares = []
    for image, target, before in zip(images, targets, batch.boxes or (), strict=True):
        (x0, y0, x1, y1) = before.boxes[0]
        share = float((image[0] > 0.5).sum() / ((x1 - x0) * (y1 - y0)))
        if abs(share - LEAST_VISIBLE) > 1e-6:
            assert len(target["boxes"]) == len(target["labels"]) == (share > LEAST_VISIBLE)
        shares.append(share)
    assert min(shares) == 0 and sum(0 < share < LEAST_VISIBLE for share in shares) > 5 and sum(LEAST_VISIBLE < share < 1 for share in shares) > 5


def test_ignored_boxes_are_for_evaluation() -> None:
    for training, left in ((True, 0), (False, 1)):
        _, targets = inputs([node("horizontal_flip")])(painted(ignored=True), training)
        assert all(len(target["boxes"]) == left and target["ignored"].all() for target in targets)
    assert all(not target["ignored"].any() for target in inputs([])(painted(), False)[1])


@pytest.mark.parametrize("name", LISTS)
def test_evaluation_sees_whole_pictures(name: str) -> None:
    batch = painted()
    images, targets = inputs([*LISTS[name][0], NORMALIZE])(batch, False)
    for image, target, before, boxes in zip(images, targets, batch.images, batch.boxes or (), strict=True):
        torch.testing.assert_close(image, (before.float() / 255 - 0.5) / 0.25)
        assert np.array_equal(target["boxes"].numpy(), boxes.boxes)


@pytest.mark.parametrize("visited", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_a_picture_is_moved_as_without_boxes(name: str, visited: bool) -> None:
    """The same ids of pictures of one size, through the same list: the very pixels of a batch for classification."""
    nodes = [*LISTS[name][0], node("color_jitter", brightness=0.2, saturation=0.2), NORMALIZE, node("random_erasing", p=0.5)]
    batch = painted(sizes=[(50, 61)])
    again = visits(torch.arange(len(batch)) % 5) if visited else None
    batch = Batch(batch.images, batch.labels, batch.ids, 4, len(batch), again, boxes=batch.boxes)
    equal = Batch(torch.stack(batch.images), batch.labels, batch.ids, 4, len(batch), again)
    expected, _ = make_inputs(nodes, 3, "contiguous", Statistics(3, lambda: ((0.5,) * 3, (0.25,) * 3)), registry)(equal, True)
    images, _ = inputs(nodes)(batch, True)
    assert torch.equal(torch.stack(images), expected)


@pytest.mark.parametrize("name", LISTS)
def test_nothing_waits_for_the_device(name: str) -> None:
    """A device that has no values: whatever would wait for one raises."""
    nodes = [*LISTS[name][0], node("color_jitter", brightness=0.2), NORMALIZE]
    images, targets = inputs(nodes)(painted(4, device="meta"), True)
    expected, there = inputs(nodes)(painted(4), True)
    assert [image.shape for image in images] == [image.shape for image in expected] and {image.device.type for image in images} == {"meta"}
    assert [[value.shape for value in target.values()] for target in targets] == [[value.shape for value in target.values()] for target in there]
