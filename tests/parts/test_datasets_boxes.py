"""What can be wrong with a box, to the pixel, and boxes as flat arrays against lists of lists."""

from __future__ import annotations

import numpy as np
import pytest

from trainrun.parts.datasets.boxes import BEYOND, DEGENERATE, GOOD, NOT_FINITE, OUTSIDE, clipped, faults, table, words

SIZE = np.array([[30, 50]])  # height, width


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((0, 0, 50, 30), GOOD), ((-1, -1, 51, 31), GOOD), ((49.5, 29.5, 50, 30), GOOD),
        ((-1.01, 0, 50, 30), BEYOND), ((0, -1.01, 50, 30), BEYOND), ((0, 0, 51.01, 30), BEYOND), ((0, 0, 50, 31.01), BEYOND),
        ((50, 0, 50.5, 30), OUTSIDE), ((0, 30, 50, 31), OUTSIDE), ((-1, 0, 0, 30), OUTSIDE), ((0, -3, 50, 0), OUTSIDE), ((90, 90, 99, 99), OUTSIDE),
        ((49.99999999, 0, 50.5, 30), OUTSIDE), ((40.00000001, 0, 40.00000002, 30), DEGENERATE),
        ((5, 5, 5, 9), DEGENERATE), ((5, 9, 8, 5), DEGENERATE), ((60, 60, 60, 60), DEGENERATE),
        ((np.nan, 0, 5, 5), NOT_FINITE), ((0, 0, np.inf, 5), NOT_FINITE), ((-np.inf, 0, np.inf, 5), NOT_FINITE), ((1e308, 0, -1e308, 5), DEGENERATE),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_box(box: tuple[float, ...], fault: int) -> None:
    boxes = np.array([box], np.float64)
    assert faults(boxes, SIZE, 0).tolist() == [fault]
    said = {OUTSIDE: "lies outside the picture, which has 50 x 30", BEYOND: "reaches more than a pixel beyond the picture, which has 50 x 30",
            DEGENERATE: "expected more than 0 in both directions", NOT_FINITE: "a number that is not finite"}  # fmt: skip
    assert not fault or said[fault] in words(fault, boxes[0], SIZE[0], 0)
    its = table(clipped(boxes, SIZE), np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(1, np.int64), np.zeros(1, np.int64))[0].boxes[0]
    assert fault or (its[:2] < its[2:]).all()  # what is good has an area as it is trained on


def test_least_side_and_cutting() -> None:
    boxes = np.array([[3, 3, 4, 9], [3, 3, 4.01, 9], [3, 3, 9, 4]], np.float64)
    assert faults(boxes, SIZE.repeat(3, 0), 1).tolist() == [DEGENERATE, GOOD, DEGENERATE]
    assert faults(boxes, SIZE.repeat(3, 0), 0.5).tolist() == [GOOD] * 3
    cut = clipped(np.array([[-5.0, -6, 70, 80], [1, 2, 3, 4]]), SIZE.repeat(2, 0))
    assert cut.tolist() == [[0, 0, 50, 30], [1, 2, 3, 4]]


def test_a_table_is_the_lists_of_its_pictures() -> None:
    drawn = np.random.default_rng(3)
    counts = [3, 0, 0, 5, 1, 0, 2, 7, 0]
    owner = np.repeat(np.arange(9), counts)
    boxes, labels, ignored = drawn.normal(size=(18, 4)), drawn.integers(0, 5, 18), drawn.random(18) < 0.5
    for pictures in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 7, 8], [0, 6], [2], []):
        made = table(boxes, labels, ignored, owner, np.array(pictures, np.int64))
        assert len(made) == len(list(made)) == len(pictures)
        for each, picture in zip(made, pictures, strict=True):
            its = [n for n in range(18) if owner[n] == picture]
            assert len(each) == len(its) and np.array_equal(each.boxes, boxes[its].astype(np.float32).reshape(-1, 4))
            assert each.labels.tolist() == labels[its].tolist() and each.ignored.tolist() == ignored[its].tolist()
    whole = table(boxes, labels, ignored, owner, np.arange(9))
    assert len(whole[-2]) == 7 and [len(each) for each in whole[3:5]] == [5, 1]
    with pytest.raises(IndexError):
        whole[9]
