"""Average precision against COCO's measure written out in NumPy, false positives against every threshold, and the cases that they must get right."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from trainrun.errors import UserError
from trainrun.parts.metrics import at_recall, evaluator, mean_average_precision

IOUS = np.linspace(0.5, 0.95, 10)


def overlaps(box: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU with each; of a crowd the share of the box that lies in it."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    return shared / np.where(crowd, area, area + areas - shared)


def average_precision(found: Any, truth: Any, label: int, iou: float, most: int = 100) -> float | None:
    """COCO's 101-point average precision of one class, from its definition."""
    scores, right, wrong, count = [], [], [], 0
    for got, true in zip(found, truth, strict=True):
        mine = true["labels"] == label
        boxes, crowd = true["boxes"][mine], true["ignored"][mine]
        count += int((~crowd).sum())
        free = np.ones(len(boxes), bool)
        rows = np.flatnonzero(got["labels"] == label)
        for row in rows[np.argsort(-got["scores"][rows], kind="stable")][:most]:
            with_each = overlaps(got["boxes"][row], boxes, crowd)
            able = (with_each >= min(iou, 1 - 1e-10)) & (free | crowd)
            real = able & ~crowd
            if real.any():  # the best of those still free; of equals the later
                best = np.flatnonzero(real)[::-1][np.argmax(with_each[np.flatnonzero(real)[::-1]])]
                free[best] = False
            scores.append(got["scores"][row])
            right.append(real.any())
            wrong.append(not able.any())
    if not count:
        return None
    order = np.argsort(-np.array(scores), kind="stable")
    hits, misses = np.cumsum(np.array(right, bool)[order]), np.cumsum(np.array(wrong, bool)[order])
    recall, precision = hits / count, hits / np.maximum(hits + misses, 1e-12)
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))


def scene(seed: int, pictures: int = 6, classes: int = 3, crowds: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Random boxes, and detections that lie near some of them; scores with ties."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(pictures):
        n, corner = rng.integers(0, 8), rng.integers(0, 60, (8, 2))
        boxes = np.concatenate([corner, corner + rng.integers(4, 40, (8, 2))], 1).astype(np.float64)[:n]
        labels = rng.integers(1, classes, n)  # the last class has no truth
        truth.append({"boxes": boxes, "labels": labels, "ignored": (rng.random(n) < 0.3) & crowds})
        near = boxes[rng.integers(0, n, 12)] + rng.normal(0, 2, (12, 4)) if n else np.zeros((0, 4))
        far = rng.integers(0, 40, (4, 2))
        got = np.concatenate([near, np.concatenate([far, far + 20], 1)]).astype(np.float64)
        got[:, 2:] = np.maximum(got[:, 2:], got[:, :2] + 1)
        found.append({"boxes": got, "labels": rng.integers(1, classes + 1, len(got)), "scores": rng.integers(1, 12, len(got)) / 12})
    return found, truth


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    return [{key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("crowds", [False, True])
def test_it_is_cocos_measure_written_out(seed: int, crowds: bool) -> None:
    found, truth = scene(seed, crowds=crowds)
    expected = [[average_precision(found, truth, label, iou) for iou in IOUS] for label in (1, 2, 3)]
    got = mean_average_precision(tensors(found), tensors(truth), 3)
    counted = [row for row in expected if row[0] is not None]
    assert expected[2][0] is None and got["per_class"][2] is got["per_class_50"][2] is None and counted
    for row, mine, mine_50 in zip(expected, got["per_class"], got["per_class_50"], strict=True):
        if row[0] is not None:
            assert mine == pytest.approx(np.mean(row), abs=1e-6) and mine_50 == pytest.approx(row[0], abs=1e-6)
    assert got["map"] == pytest.approx(np.mean(counted), abs=1e-6)
    assert got["map_50"] == pytest.approx(np.mean([row[0] for row in counted]), abs=1e-6)
    assert got["map_75"] == pytest.approx(np.mean([row[5] for row in counted]), abs=1e-6)


def boxes(
    *rows: list[float], label: int = 1, ignored: list[bool] | None = None, scores: list[float] | None = None
) -> dict[str, torch.Tensor]:
    kept = torch.tensor(rows).reshape(-1, 4)
    return {
        "boxes": kept, "labels": torch.full((len(rows),), label), "ignored": torch.tensor(ignored or [False] * len(rows), dtype=torch.bool),
        "scores": torch.tensor(scores or [0.5] * len(rows)),
    }  # fmt: skip


A, B = [0.0, 0, 10, 10], [20.0, 20, 40, 40]


def test_what_is_found_exactly_is_perfect_and_nothing_is_zero() -> None:
    assert mean_average_precision([boxes(A, B)], [boxes(A, B)], 2) == {
        "map": 1.0, "map_50": 1.0, "map_75": 1.0, "per_class": [1.0, None], "per_class_50": [1.0, None]
    }  # fmt: skip
    nothing = mean_average_precision([boxes(), boxes()], [boxes(A), boxes(B, label=2)], 2)
    assert (nothing["map"], nothing["per_class"]) == (0.0, [0.0, 0.0])
    assert mean_average_precision([boxes(A)], [boxes(A, label=2)], 2)["per_class"] == [None, 0.0]


def test_an_ignored_box_is_neither_counted_nor_punished() -> None:
    truth = boxes(A, B, ignored=[False, True])
    assert mean_average_precision([boxes(A)], [truth], 1)["map"] == 1.0
    # Found three times, and more surely than the other: as if it had not been found.
    assert mean_average_precision([boxes(B, B, B, A, scores=[0.9, 0.8, 0.7, 0.1])], [truth], 1)["map"] == 1.0
    assert mean_average_precision([boxes(B, A, scores=[0.9, 0.1])], [boxes(A)], 1)["map"] == 0.5
    only_ignored = mean_average_precision([boxes(A)], [boxes(A, ignored=[True])], 1)
    assert math.isnan(only_ignored["map"]) and only_ignored["per_class"] == [None]


def test_the_best_hundred_of_a_picture_count() -> None:
    many = boxes(*[[100.0 + n, 100, 110 + n, 110] for n in range(100)], A, scores=[0.9] * 100 + [0.1])
    assert mean_average_precision([many], [boxes(A)], 1)["map"] == 0.0


def test_it_does_not_depend_on_the_order_of_pictures_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    found, truth = scene(3)
    for n, picture in enumerate(found):  # without ties
        picture["scores"] = np.random.default_rng(n).random(len(picture["boxes"]))
    once = mean_average_precision(tensors(found), tensors(truth), 3)
    assert once == mean_average_precision(tensors(found), tensors(truth), 3)
    assert once == mean_average_precision(tensors(found[::-1]), tensors(truth[::-1]), 3)
    assert capfd.readouterr() == ("", "")


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install 'trainrun\[detection\]'"):
        evaluator()


@pytest.mark.parametrize("percent", [95, 50, 100, 1])
@pytest.mark.parametrize(("positives", "negatives"), [(20, 30), (19, 200), (1, 7), (101, 1)])
def test_false_positives_at_a_recall_are_those_of_trying_every_threshold(percent: int, positives: int, negatives: int) -> None:
    """The least share over all thresholds at which the recall is reached, with ties between the two and within each."""
    numbers = np.random.default_rng(positives)
    scores = np.concatenate([numbers.integers(2, 22, positives), numbers.integers(0, 18, negatives)]).astype(np.float32)
    positive = np.arange(len(scores)) < positives
    mixed = numbers.permutation(len(scores))
    scores, positive = scores[mixed], positive[mixed]
    reached = [t for t in np.unique(scores) if 100 * (scores[positive] >= t).sum() >= percent * positives]
    threshold = max(reached)
    found = at_recall(torch.from_numpy(scores), torch.from_numpy(positive), percent)
    wrong = int((scores[~positive] >= threshold).sum())
    expected = {"positives": positives, "negatives": negatives, "threshold": threshold, "false_positives": wrong, "share": wrong / negatives}
    assert found == expected


def test_without_positives_or_negatives_there_is_no_recall() -> None:
    for positive in (True, False):
        assert at_recall(torch.rand(5), torch.full((5,), positive), 95) is None
