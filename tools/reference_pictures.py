"""What the reference pages show: a curve for a schedule, as SVG text, and pictures for an augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainrun.parts.schedules import make_schedule
from trainrun.recipe.durations import Duration
from trainrun.recipe.schema import Recipe
from trainrun.trials.augment import look
from trainrun.world import World

_WIDTH, _HEIGHT = 480, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34  # margins
_STEPS_PER_EPOCH = 10
# Midway between black and white, so that they are read on either.
_LINE, _GREY = "#2f81f7", "#808080"
_CUP, _EYE = 84, 23  # samples of photos10 whose sides and corners can be told apart
_DRAWS, _GAP = 5, 4


def curve(recipe: Recipe, length: Duration) -> str:
    """The learning rate of a recipe over a training of some length."""
    total = length.steps(_STEPS_PER_EPOCH)
    schedule = make_schedule(recipe.schedule, total, _STEPS_PER_EPOCH)
    rates = [schedule(step) for step in range(total)]
    top = _round_up(max(rates))
    points = [(_x(step, total), _HEIGHT - _BOTTOM - rate / top * (_HEIGHT - _TOP - _BOTTOM)) for step, rate in enumerate(rates)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in _corners(points))
    label = 'font-family="sans-serif" font-size="11"'
    ticks = [
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
        for y, text in ((_TOP, f"{top:g}"), (_HEIGHT - _BOTTOM, "0"))
    ] + [
        f'<text x="{_x(share * total, total):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{share * total / _STEPS_PER_EPOCH:g}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
            f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="{_GREY}"/>',
            f'<g fill="{_GREY}" {label}>',
            *ticks,
            f'<text x="{_LEFT - 6}" y="{_HEIGHT / 2:g}" text-anchor="end">lr</text>',
            f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>',
            "</g>",
            f'<polyline points="{drawn}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>',
            "</svg>\n",
        ]
    )


def _x(step: float, total: int) -> float:
    return _LEFT + step / total * (_WIDTH - _LEFT - _RIGHT)


def _round_up(value: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below a value."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(float(f"{n * power:.6g}") for n in (1, 2, 2.5, 5, 10) if n * power >= value * (1 - 1e-9))


def _corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those on a straight line between their neighbours, to a twentieth of a pixel."""
    kept = [points[0]]
    start = 0
    for end in range(2, len(points)):
        (x0, y0), (x1, y1) = points[start], points[end]
        if any(abs(y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y) > 0.05 for x, y in points[start + 1 : end]):
            start = end - 1
            kept.append(points[start])
    return [*kept, points[-1]]


def pictures(recipe: Recipe) -> Image.Image | None:
    """A picture as it is, and as a recipe augments it in its first epochs; None where nothing of that can be seen."""
    found = look(recipe, World(torch.device("cpu")), ids=[_CUP, _EYE], epochs=_DRAWS)
    if len(found.scaling) == len(recipe.augment):
        return None
    rows = [n for n, row in enumerate(found.rows) if row.sample == _CUP]
    first, *_, last = found.columns.values()
    return strip([first[rows[0]], *(last[n] for n in rows)])


def strip(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures beside one another, on a ground that lets every page shine through."""
    height, width = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)
    sheet = Image.new("RGBA", (len(pictures) * (width + _GAP) - _GAP, height))
    for n, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (n * (width + _GAP), 0))
    return sheet


def changes(drawn: Image.Image) -> bool:
    """Whether any picture of a strip differs from the first."""
    cells = np.asarray(drawn)
    step = (drawn.width + _GAP) // (_DRAWS + 1)
    return any((cells[:, n * step : (n + 1) * step - _GAP] != cells[:, : step - _GAP]).any() for n in range(1, _DRAWS + 1))


def same(file: Path, drawn: Image.Image) -> bool:
    """Whether a file holds a picture, up to what another version of torch rounds otherwise: at most 1 % of the values differ by more than 4."""
    try:
        with Image.open(file) as kept:
            a, b = np.asarray(kept.convert("RGBA"), np.int16), np.asarray(drawn.convert("RGBA"), np.int16)
    except OSError:
        return False
    return a.shape == b.shape and bool((np.abs(a - b) > 4).mean() <= 0.01)
