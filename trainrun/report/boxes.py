"""Boxes drawn into a picture, with what they are called and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainrun.report.console import clean

if TYPE_CHECKING:
    import numpy as np

# Eight colours that people with any colour vision tell apart, black left out. Source: Okabe & Ito 2008, Color Universal Design.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)
_LONGEST = 32  # characters of a name
_PAD = 2  # pixels between a text and the edge of its ground


def boxed(
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """The picture, uint8 [H, W, 3], with boxes [n, 4] (x0, y0, x1, y1 of edges), each in the colour of its class; a new array.

    labels: whole numbers [n], places in `classes`; one beyond them is shown as a number. scores: [n] in 0..1, or None where boxes are
    annotated ones. A line in the colour of the class runs along the inside of a box, between a black and a white one, so it is seen on
    any ground. Name and score stand on a ground of that colour, above the box, or in it where there is no room. The surest box is drawn last.
    What lies beyond the picture is cut off; a box with nothing in the picture is not drawn.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    sheet = Image.fromarray(np.ascontiguousarray(picture))  # it is copied before it is drawn on
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(min(max(11, min(height, width) // 40), 40))
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable").tolist()
    texts = []
    for n in order:
        if not np.isfinite(boxes[n]).all():
            continue
        x0, y0, x1, y1 = np.rint(np.clip(boxes[n], 0, (width, height, width, height))).astype(int).tolist()
        if x1 <= x0 or y1 <= y0:
            continue
        label = int(labels[n])
        name = clean(classes[label], keep="") if 0 <= label < len(classes) else str(label)
        name = name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."
        colour = COLOURS[label % len(COLOURS)]
        for inside, ink in enumerate((_DARK, colour, _LIGHT)):
            if x1 - x0 > 2 * inside and y1 - y0 > 2 * inside:
                draw.rectangle((x0 + inside, y0 + inside, x1 - 1 - inside, y1 - 1 - inside), outline=ink)
        texts.append((x0, y0, name if scores is None else f"{name} {scores[n]:.2f}", colour))
    for x, y, text, colour in texts:  # over all boxes, so that none is crossed out
        left, top, right, bottom = font.getbbox(text)
        wide, high = right - left + 2 * _PAD, bottom - top + 2 * _PAD
        x = max(min(x, width - wide), 0)
        y = y - high if y >= high else y
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
        draw.text((x + _PAD - left, y + _PAD - top), text, _DARK if _bright(colour) else _LIGHT, font)
    return np.asarray(sheet)


def _bright(colour: tuple[int, int, int]) -> bool:
    """Whether black is easier to read on it than white, by ITU-R 601."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 100
