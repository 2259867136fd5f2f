"""What a detector found in pictures, as figures by class, as boxes in JSON, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainrun.draw import draws
from trainrun.engine.detection import BoxedInputs, Found, Target, target_of
from trainrun.errors import UserError
from trainrun.parts.datasets.pictures import BadPicture, decode
from trainrun.parts.datasets.splits import Boxes, Split
from trainrun.report.boxes import boxed
from trainrun.world import World

if TYPE_CHECKING:
    from trainrun.recipe.schema import Recipe

SURE = 0.5  # the least score of a box that is drawn
_DRAWN = 6  # pictures on a sheet
_GAP = 8


def by_class(judge: Found, classes: Sequence[str], split: Split) -> dict[str, dict[str, Any]]:
    """{name: {"map", "map_50", "boxes"}} of each class, None where the split has no box of it that counts."""
    assert split.boxes is not None
    labels = np.concatenate([each.labels[~each.ignored] for each in split.boxes])
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    rows = zip(classes, judge.by_class, counts, strict=True)
    return {name: {"map": whole, "map_50": half, "boxes": count} for name, (whole, half), count in rows}


def draw_found(judge: Found, split: Split, classes: Sequence[str], file: Path) -> None:
    """Write the first pictures of a split to a PNG file, each as annotated on the left and with what was found on the right."""
    assert split.boxes is not None
    rows = []
    for n in range(min(_DRAWN, len(split))):
        picture, true = split.read([n])[0], split.boxes[n]
        found, _ = judge.pictures[n]
        rows.append((boxed(picture, true.boxes, true.labels, classes), _drawn(picture, found, classes)))
    width = max(left.shape[1] for left, _ in rows)
    sheet = np.full((sum(len(left) + _GAP for left, _ in rows) - _GAP, 2 * width + _GAP, 3), 255, np.uint8)
    top = 0
    for left, right in rows:
        sheet[top : top + len(left), : left.shape[1]] = left
        sheet[top : top + len(left), width + _GAP : width + _GAP + right.shape[1]] = right
        top += len(left) + _GAP
    _save(sheet, file)


def find(
    model: torch.nn.Module, inputs: BoxedInputs, recipe: Recipe, world: World, files: Sequence[Path], classes: Sequence[str], folder: Path | None
) -> list[dict[str, Any]]:
    """The boxes in each picture, the surest first: [{"file", "boxes": [{"class", "score", "box": [x0, y0, x1, y1]}, ...]}].

    folder: where each picture is written with the boxes that have a score of at least 0.5, as NAME.png. Raises UserError naming a bad
    picture, or one whose drawing would take the place of a picture that is asked about or of another drawing.
    """
    told = []
    drawings = {} if folder is None else _drawings(files, folder)
    nobody = target_of(Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)))
    draw = draws(recipe.seed, 0, torch.zeros(1, dtype=torch.int64))
    for file in files:
        try:
            picture = decode(str(file), 3)
        except (BadPicture, OSError) as error:
            raise UserError(f"{file} cannot be read as a picture: {getattr(error, 'strerror', None) or error}") from None
        image = torch.from_numpy(np.array(picture)).to(world.device).permute(2, 0, 1)
        with torch.no_grad(), world.autocast(recipe.precision):
            (found,) = model([inputs.boxed(image, nobody, draw, training=False)[0]])
        found = {name: value.float().cpu() for name, value in found.items()}
        rows = zip(*(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
        boxes = [{"class": classes[int(label) - 1], "score": score, "box": box} for box, label, score in rows]
        line = {"file": str(file), "boxes": sorted(boxes, key=lambda each: -each["score"])}
        if file in drawings:
            line["png"] = str(drawings[file])
            _save(_drawn(picture, found, classes), drawings[file])
        told.append(line)
    return told


def _drawings(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each picture is drawn: `folder`/NAME.png."""
    given, taken = {file.resolve() for file in files}, dict[Path, Path]()
    drawings = {file: folder / f"{file.stem}.png" for file in files}
    for file, drawing in drawings.items():
        if drawing.resolve() in given:
            raise UserError(f"{file} would be drawn over the picture {drawing}; write another folder after --png")
        if (other := taken.setdefault(drawing.resolve(), file)) is not file:
            raise UserError(f"{other} and {file} would both be drawn as {drawing}; ask about one at a time, with a folder for each after --png")
    return drawings


def _drawn(picture: np.ndarray, found: Target, classes: Sequence[str]) -> np.ndarray:
    sure = found["scores"] >= SURE
    boxes, labels, scores = (found[name][sure].numpy() for name in ("boxes", "labels", "scores"))
    return boxed(picture, boxes, labels.astype(np.int64) - 1, classes, scores)


def _save(pixels: np.ndarray, file: Path) -> None:
    from PIL import Image

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None
