"""Boxes drawn into pictures: every line where it belongs, to be seen on any ground, and texts that are only texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trainrun.report.boxes import _DARK, _LIGHT, COLOURS, _bright, boxed

CLASSES = ("cat", "dog", "owl")


def grey(level: int, height: int = 100, width: int = 140) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def luminance(colour: tuple[int, ...]) -> float:
    """Relative luminance by WCAG 2.1."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_lines_run_along_the_inside_of_a_box(label: int) -> None:
    before = grey(127)
    drawn = boxed(before, np.array([[30.0, 40, 90, 80]]), np.array([label]), CLASSES)
    assert (before == 127).all() and drawn.dtype == np.uint8 and drawn.shape == before.shape
    for inside, ink in enumerate((_DARK, COLOURS[label], _LIGHT)):
        x0, y0, x1, y1 = 30 + inside, 40 + inside, 89 - inside, 79 - inside
        for line in (drawn[y0, x0 : x1 + 1], drawn[y1, x0 : x1 + 1], drawn[y0 : y1 + 1, x0], drawn[y0 : y1 + 1, x1]):
            assert (line == ink).all()
    assert (drawn[43:77, 33:87] == 127).all()  # what is in the box is left alone
    changed = np.argwhere((drawn != 127).any(2))
    rest = changed[(changed[:, 0] < 40) | (changed[:, 0] >= 80) | (changed[:, 1] < 30) | (changed[:, 1] >= 90)]
    assert len(rest) and rest[:, 0].max() < 40 and rest[:, 0].min() > 20  # the name, above it
    assert (drawn[rest[:, 0], rest[:, 1]] == COLOURS[label]).all(1).mean() > 0.4


@pytest.mark.parametrize("level", [0, 60, 127, 190, 255])
def test_a_box_is_seen_on_any_ground(level: int) -> None:
    """One of its three lines has a contrast of at least 4.5, that of text by WCAG, with any grey."""
    drawn = boxed(grey(level), np.array([[30.0, 40, 90, 80]]), np.array([0]), CLASSES)
    inks = [tuple(map(int, drawn[60, 30 + inside])) for inside in range(3)]
    assert max(contrast(ink, (level,) * 3) for ink in inks) >= 4.5


def test_names_can_be_read_on_their_ground() -> None:
    assert all(contrast(_DARK if _bright(colour) else _LIGHT, colour) >= 4.5 for colour in COLOURS)
    assert len(set(COLOURS)) == len(COLOURS) == 7


def test_the_surest_box_is_on_top_and_no_box_crosses_out_a_name() -> None:
    boxes, labels = np.array([[30.0, 40, 90, 80], [30, 40, 90, 80], [20, 20, 130, 95]]), np.array([1, 0, 2])
    drawn = boxed(grey(127), boxes, labels, CLASSES, np.array([0.9, 0.3, 0.95]))
    assert (drawn[60, 31] == COLOURS[1]).all()
    assert (boxed(grey(127), boxes, labels, CLASSES, np.array([0.3, 0.9, 0.95]))[60, 31] == COLOURS[0]).all()
    alone = boxed(grey(127), boxes[:1], labels[:1], CLASSES, np.array([0.9]))
    text = np.argwhere((alone[:40] != 127).any(2))
    assert (drawn[text[:, 0], text[:, 1]] == alone[text[:, 0], text[:, 1]]).all()


def test_scores_make_names_longer() -> None:
    box, label = np.array([[5.0, 40, 130, 80]]), np.array([1])
    widths = []
    for scores in (None, np.array([0.5])):
        drawn = boxed(grey(127), box, label, CLASSES, scores)
        widths.append(int((drawn[:40] != 127).any((0, 2)).sum()))
    assert widths[1] > widths[0] + 10
    one, other = (boxed(grey(127), box, label, CLASSES, np.array([score])) for score in (0.5, 0.83))
    assert (one != other).any()


def test_what_lies_beyond_the_picture_is_cut_off() -> None:
    boxes = np.array([[-50.0, -50, 500, 500], [200, 5, 300, 50], [20, 20, 20, 50], [np.nan, 0, 9, 9], [1e30, 0, 1e31, 9]])
    whole = boxed(grey(127), boxes, np.zeros(5, int), CLASSES)
    assert (whole == boxed(grey(127), np.array([[0.0, 0, 140, 100]]), np.zeros(1, int), CLASSES)).all()
    assert (whole[-1] == _DARK).all() and (whole[-2, 1:-1] == COLOURS[0]).all()
    assert (boxed(grey(127), boxes[1:], np.zeros(4, int), CLASSES) == 127).all()
    assert (boxed(grey(127), np.zeros((0, 4)), np.zeros(0, int), CLASSES, np.zeros(0)) == 127).all()


@pytest.mark.parametrize("box", [[10.0, 10, 11, 11], [10, 10, 12, 12], [10, 10, 13, 40], [0, 0, 1, 1], [139, 99, 140, 100]])
def test_the_smallest_boxes_are_drawn(box: list[float]) -> None:
    drawn = boxed(grey(127), np.array([box]), np.array([2]), ("", "", " "))
    x0, y0, _, y1 = map(int, box)
    assert (drawn[y0:y1, x0] != 127).any()


def test_a_name_stays_in_the_picture() -> None:
    """At every corner as many pixels of its ground are there as in the middle."""
    name = ("a longer name",)
    grounds = [
        int((boxed(grey(127, 200, 300), np.array([box]), np.array([0]), name) == COLOURS[0]).all(2)[:, :].sum())
        for box in ([120.0, 80, 180, 120], [0, 0, 60, 40], [240, 0, 300, 40], [240, 160, 300, 200], [0, 160, 60, 200])
    ]
    lines = 2 * (58 + 36)
    assert max(grounds) - min(grounds) <= lines


def test_texts_are_only_texts() -> None:
    nasty = ("a\nb\x1b[31mc", "a\\nb\\x1b[31mc", "x" * 500, "x" * 600)
    box = np.array([[5.0, 60, 130, 90]])

    def drawn(label: int) -> np.ndarray:
        return boxed(grey(127, 100, 400), box, np.array([label]), nasty)

    assert (drawn(0)[:60] == drawn(1)[:60]).sum() > 0.9 * drawn(0)[:60].size
    letters = [(drawn(label)[:60] == _DARK).all(2) for label in (0, 1)]  # grounds differ by class, letters do not
    assert (letters[0] == letters[1]).all() and letters[0].any()
    # Too long a name is shortened, and both so to the same.
    assert ((drawn(2)[:60] == COLOURS[2]).all(2) == (drawn(3)[:60] == COLOURS[3]).all(2)).mean() > 0.99
    assert 150 < (drawn(2)[:60] == COLOURS[2]).all(2).any(0).sum() < 300
    for label in (4, -1):  # a label without a name
        assert (drawn(label) != 127).any()


def test_colours_of_classes_follow_each_other() -> None:
    boxes = np.array([[10.0 + 13 * n, 50, 20 + 13 * n, 90] for n in range(9)])
    drawn = boxed(grey(127), boxes, np.arange(9), [""] * 9)
    inks = [tuple(map(int, drawn[70, 11 + 13 * n])) for n in range(9)]
    assert all(a != b for a, b in pairwise(inks)) and inks[0] == inks[7] and inks[1] == inks[8]
