"""Pictures side by side: as a PNG file, and as half blocks on a terminal that has the colours and the width for it."""

from __future__ import annotations

import functools
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError
from trainrun.report.console import clean, on_terminal

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

_CELL = 128  # pixels that a small picture is enlarged to at most, by a whole factor
_GAP, _TITLE, _TEXT = 8, 13, 96  # pixels: between things, height of a line, least width for text
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_ACROSS = 10  # pictures in a row of a sheet
_COLUMN, _LEAST, _ROWS = 12, 8, 4  # of a terminal: least columns for a title and for a picture, most rows of pictures


@dataclass(frozen=True)
class _Layout:
    """Where things stand in the file: pixels to the first picture, from one to the next, and the lines of each text."""

    font: Any
    factor: int
    titles: list[list[str]]
    rows: list[list[str]]
    top: int
    left: int
    pitch: int
    step: int


@dataclass(frozen=True)
class Grid:
    """Titles of columns and of rows, and for each column its pictures from top to bottom: uint8 [H, W, C]."""

    titles: list[str]
    rows: list[str]
    columns: list[list[np.ndarray]]

    @functools.cached_property
    def _layout(self) -> _Layout:
        from PIL import ImageFont

        font = ImageFont.load_default(_TITLE - 2)
        height, width = self._largest()
        factor = max(_CELL // max(height, width), 1)
        cell = max(width * factor, _TEXT)
        titles = [_wrapped(title, cell, font) for title in self.titles]
        rows = [_wrapped(row, _TEXT, font) for row in self.rows]
        pitch = max(height * factor, max(map(len, rows)) * _TITLE) + _GAP
        return _Layout(font, factor, titles, rows, _GAP * 2 + max(map(len, titles)) * _TITLE, _GAP * 2 + _TEXT, pitch, cell + _GAP)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the PNG file."""
        at = self._layout
        return at.top + len(self.rows) * at.pitch, at.left + len(self.titles) * at.step

    def png(self, file: Path) -> None:
        """Write the grid; small pictures are enlarged by one whole factor for all, pixel by pixel."""
        from PIL import Image, ImageDraw

        at = self._layout
        sheet = Image.new("RGB", self.size[::-1], _PAPER)
        draw = ImageDraw.Draw(sheet)
        for n, lines in enumerate(at.rows):
            draw.multiline_text((_GAP, at.top + n * at.pitch), "\n".join(lines), _INK, at.font, spacing=2)
        for m, (lines, pictures) in enumerate(zip(at.titles, self.columns, strict=True)):
            x = at.left + m * at.step
            draw.multiline_text((x, _GAP), "\n".join(lines), _INK, at.font, spacing=2)
            for n, picture in enumerate(pictures):
                large = _colours(picture).repeat(at.factor, 0).repeat(at.factor, 1)
                sheet.paste(Image.fromarray(large), (x, at.top + n * at.pitch))
        _save(sheet, file)

    def half_blocks(self, width: int) -> Text | None:
        """The first rows as characters of two pixels each, large pictures made smaller; None where `width` columns are too few."""
        import numpy as np
        from rich.style import Style
        from rich.text import Text

        height, wide = self._largest()
        room = (width - 1) // len(self.titles) - 1
        factor = -(-wide // max(room, 1))
        if room < _COLUMN or wide // factor < min(wide, _LEAST):
            return None
        columns = [[_reduced(_colours(picture), factor) for picture in pictures[:_ROWS]] for pictures in self.columns]
        pitch, cell = -(-height // factor) // 2 * 2 + 2, max(_COLUMN, -(-wide // factor)) + 1
        canvas = np.zeros((pitch * len(columns[0]), cell * len(columns), 4), np.uint8)
        for n, pictures in enumerate(columns):
            for m, picture in enumerate(pictures):
                canvas[m * pitch : m * pitch + picture.shape[0], n * cell : n * cell + picture.shape[1]] = np.pad(
                    picture, ((0, 0), (0, 0), (0, 1)), constant_values=255
                )
        titles = [textwrap.wrap(title if len(title) < cell else title.replace("_", " "), cell - 1) for title in map(clean, self.titles)]
        deepest = max(map(len, titles))
        level = [title + [""] * (deepest - len(title)) for title in titles]
        drawn = Text("".join("".join(f"{line:{cell}}" for line in lines).rstrip() + "\n" for lines in zip(*level, strict=True)))
        for upper, lower in zip(canvas[::2].tolist(), canvas[1::2].tolist(), strict=True):
            for a, b in zip(upper, lower, strict=True):
                drawn.append("▀" if a[3] else " ", Style(color=_rgb(a), bgcolor=_rgb(b)) if a[3] else None)
            drawn.append("\n")
        drawn.rstrip()
        return drawn

    def show(self) -> None:
        """Print the grid where stdout is a terminal with colours enough and columns enough."""
        from rich.console import Console

        if not on_terminal(sys.stdout):
            return
        console = Console(file=sys.stdout)
        if console.color_system == "truecolor" and not console.no_color and (drawn := self.half_blocks(console.width)):
            console.print(drawn, soft_wrap=True)

    def _largest(self) -> tuple[int, int]:
        """The greatest height and width of a picture."""
        shapes = [picture.shape for pictures in self.columns for picture in pictures]
        return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


@dataclass(frozen=True)
class Sheet:
    """Pictures with a caption below each, in rows from left to right: uint8 [H, W, C], all of one size."""

    captions: list[str]
    pictures: list[np.ndarray]

    def png(self, file: Path) -> None:
        """Write the sheet, ten pictures a row; small ones are enlarged by a whole factor, pixel by pixel."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(_TITLE - 2)
        height, width = self.pictures[0].shape[:2]
        factor = max(_CELL // max(height, width), 1)
        cell = max(width * factor, _TEXT)
        captions = [_wrapped(caption, cell, font) for caption in self.captions]
        pitch = height * factor + max(map(len, captions)) * _TITLE + 2 * _GAP
        across = min(_ACROSS, len(self.pictures))
        sheet = Image.new("RGB", (_GAP + across * (cell + _GAP), _GAP + -(-len(self.pictures) // across) * pitch), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for n, (picture, lines) in enumerate(zip(self.pictures, captions, strict=True)):
            x, y = _GAP + n % across * (cell + _GAP), _GAP + n // across * pitch
            sheet.paste(Image.fromarray(_colours(picture).repeat(factor, 0).repeat(factor, 1)), (x, y))
            draw.multiline_text((x, y + height * factor + 2), "\n".join(lines), _INK, font, spacing=2)
        _save(sheet, file)

    def show(self) -> None:
        """Print the first pictures where stdout is a terminal that can show them, as many as stand beside one another."""
        count = min((shutil.get_terminal_size().columns - 1) // (_COLUMN + 1), len(self.pictures), _ACROSS)
        if count:
            Grid(self.captions[:count], [""], [[picture] for picture in self.pictures[:count]]).show()


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """All of a picture, uint8 [H, W, C], resized to lie at the top left of [height, width, C], with white beside it or below it."""
    import numpy as np
    from PIL import Image, ImageOps

    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image = ImageOps.pad(image, (width, height), color="white", centering=(0, 0))
    return np.asarray(image).reshape(height, width, picture.shape[2])


def _save(sheet: Any, file: Path) -> None:
    try:
        sheet.save(file, "PNG")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None


def _rgb(pixel: list[int]) -> str:
    return "rgb({},{},{})".format(*pixel) if pixel[3] else "default"


def _colours(picture: np.ndarray) -> np.ndarray:
    """Any number of channels as three: of one or two the first as grey, of more the first three."""
    return picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, :1].repeat(3, 2)


def _reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """A picture made smaller by a whole factor, each pixel the mean of those that it stands for."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).reduce(factor))


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """Text in lines of at most `width` pixels, broken at blanks and underscores, and within a word where it must be."""
    lines = [""]
    for piece in re.findall(r"\n|[^ _\n]*[ _]?", clean(text)):
        if piece == "\n" or (lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width):
            lines.append("")
        for character in piece.strip("\n"):
            if font.getlength(lines[-1] + character) > width and character != " ":
                lines.append("")
            lines[-1] += character
    return [line.rstrip() for line in lines]
