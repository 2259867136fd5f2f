"""Detection data in the Pascal VOC layout: an XML file a picture, and lists of pictures for training, validation and test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.annotated import OnBadBox, Pictures, collect, leads_out, repeated, top_folder
from trainrun.parts.datasets.pictures import SUFFIXES, BadPicture, measure, printable, read_file
from trainrun.parts.datasets.splits import Data
from trainrun.parts.datasets.verify import OnBadImage, Verify
from trainrun.parts.datasets.voc_xml import BadAnnotation, read_annotation
from trainrun.recipe.registry import nearest, part

List = Annotated[str, Field(min_length=1, max_length=200)]
_LONGEST = 200  # characters of a class's name
_MOST_BYTES = 64 << 20


@part("data", task="detection")
def voc(
    *,
    root: Annotated[str, Field(min_length=1, description="The folder that holds Annotations, ImageSets/Main and JPEGImages.")],
    train: Annotated[List, Field(description="Name of the list of training pictures, ImageSets/Main/NAME.txt.")] = "train",
    validation: Annotated[List | None, Field(description="Name of the list of validation pictures; null for none.")] = "val",
    test: Annotated[List | None, Field(description="Name of the list of test pictures; null for none.")] = "test",
    classes: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_LONGEST)]] | None,
        Field(min_length=1, description="Names of the classes in their order; null takes those of the training boxes, sorted."),
    ] = None,
    keep_difficult: Annotated[bool, Field(description="Take boxes marked difficult as any other; otherwise they are ignored.")] = False,
    on_bad_box: OnBadBox = "error",
    on_bad_image: OnBadImage = "error",
    verify: Verify = "full",
) -> Data:
    """Pictures with boxes in the Pascal VOC layout: Annotations/NAME.xml, JPEGImages/NAME.jpg, and lists of names in ImageSets/Main.

    A list has one name a line. Pictures may have any suffix of a format that trainrun reads. xmin, ymin, xmax, ymax count pixels from 1 and
    include the last: they become the edges xmin - 1, ymin - 1, xmax, ymax, so a box has the area that it covers (torchvision's VOCDetection
    gives them as they are). Boxes marked difficult are neither trained on nor counted in evaluation, as in the VOC challenge. A box of
    one pixel in width or height counts as degenerate: it is a slip of the hand. A box that reaches up to a pixel beyond its picture is
    cut. The picture's file is found by the name in the list; what an XML file says of its name, folder and path is not used. An XML file with
    a document type is refused. Source: Everingham et al. 2010, The Pascal Visual Object Classes (VOC) Challenge.
    """
    import numpy as np

    top = top_folder(root)
    options = {"train": train, "validation": validation, "test": test}
    lists = _lists(top, {option: name for option, name in options.items() if name is not None})
    pictures = _picture_files(top)
    where = {option: f"{printable(top)}/ImageSets/Main/{printable(str(options[option]))}.txt" for option in lists}
    read = {option: _read(top, where[option], names, pictures) for option, names in lists.items()}
    if classes is not None and len(set(classes)) < len(classes):
        raise UserError(f"data.classes: {printable(next(c for c in classes if classes.count(c) > 1))} is there twice")
    known = classes if classes is not None else sorted(set(read["train"].names))
    number = {name: n for n, name in enumerate(known)}
    sides: list[Pictures] = []
    wrong: list[str] = []
    for option, found in read.items():
        wrong += found.wrong
        labels = [number.get(name, -1) for name in found.names]
        if classes is not None or not read["train"].wrong:  # else its classes may be among what could not be read
            wrong += _unknown(found, labels, known, "data.classes" if classes is not None else "the training boxes")
        edges = np.array(found.sides, np.float64).reshape(-1, 4) - (1, 1, 0, 0)
        ignored = np.array(found.difficult, bool) & (not keep_difficult)
        owner, sizes = np.array(found.owner, np.int64), np.array(found.sizes, np.int32).reshape(-1, 2)
        sides.append(Pictures(option, where[option], found.pictures, sizes, edges, np.array(labels, np.int64), ignored, owner, found.named))
    return collect(
        top, sides, tuple(map(printable, known)), wrong, least=1, on_bad_box=on_bad_box, on_bad_image=on_bad_image, verify=verify
    )


@dataclass
class _Found:
    """What the annotations of a list say: of each picture its path and size, of each box its class, numbers, mark, picture and place."""

    wrong: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sides: list[tuple[float, float, float, float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    place: list[int] = field(default_factory=list)

    def named(self, n: int) -> str:
        """Where a box stands, and what it is."""
        numbers = " ".join(f"{side:g}" for side in self.sides[n])
        return f"{self.files[self.owner[n]]}: object {self.place[n]} ({printable(self.names[n])}, {numbers})"


def _unknown(found: _Found, labels: list[int], known: list[str], where: str) -> list[str]:
    """A line on each class that is not known, with the first box of it."""
    of: dict[str, list[int]] = {}
    for n in (n for n, label in enumerate(labels) if label < 0):
        of.setdefault(found.names[n], []).append(n)
    lines = []
    for name, boxes in of.items():
        near = nearest(name, known) if len(lines) < 20 else None
        more = f" and {len(boxes) - 1:,} more boxes" if len(boxes) > 1 else ""
        hint = f"; did you mean {printable(near)}?" if near else ""
        lines.append(f"{found.named(boxes[0])}{more}: a class that is not in {where}{hint}")
    return lines


def _lists(top: str, options: Mapping[str, str]) -> dict[str, list[str]]:
    """The names in each list, or all that is wrong with the lists."""
    lists, wrong = {}, []
    for option, name in options.items():
        try:
            lists[option] = _names(top, option, name)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return lists


def _names(top: str, option: str, name: str) -> list[str]:
    """The names in ImageSets/Main/`name`.txt."""
    file = os.path.join(top, "ImageSets", "Main", f"{name}.txt")
    if os.sep in name or "\0" in name:
        raise UserError(f"data.{option}: {printable(name)!r} is no name of a list in ImageSets/Main")
    try:
        lines = read_file(file, _MOST_BYTES).decode("utf-8", "surrogateescape").lstrip("\ufeff").splitlines()
    except (OSError, BadPicture) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        without = "" if option == "train" else ", or null for none"
        raise UserError(f"data.{option}: {printable(file)} {reason}; write data.{option}=NAME of a list in that folder{without}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"data.{option}: {printable(file)} lists no picture")
    return names


def _picture_files(top: str) -> dict[str, list[str]]:
    """The picture files in JPEGImages by their names without suffix."""
    folder = os.path.join(top, "JPEGImages")
    found: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault(stem, []).append(name)
    except OSError as error:
        raise UserError(f"data.root: cannot list {printable(folder)}: {error.strerror}") from None
    return found


def _read(top: str, where: str, names: list[str], pictures: dict[str, list[str]]) -> _Found:
    """Read the annotations of a list, each once; what is wrong is noted with its file, and its picture left out."""
    found = _Found(wrong=repeated(where, names))
    for name in dict.fromkeys(names):
        shown = f"{printable(top)}/Annotations/{printable(name)}.xml"
        try:
            _add(found, top, name, shown, pictures)
        except (BadAnnotation, BadPicture) as error:
            found.wrong.append(f"{shown}: {printable(str(error))}")
        except OSError as error:
            found.wrong.append(f"{shown}: {'is missing' if isinstance(error, FileNotFoundError) else error.strerror}")
    return found


def _add(found: _Found, top: str, name: str, shown: str, pictures: dict[str, list[str]]) -> None:
    if "/" in name or leads_out(name):
        raise BadAnnotation("the list names a path; expected a name without folder")
    files = pictures.get(name, [])
    if len(files) != 1:
        raise BadAnnotation(f"{' and '.join(files)} are two pictures of this name" if files else f"there is no picture JPEGImages/{name}.jpg")
    annotation = read_annotation(os.path.join(top, "Annotations", f"{name}.xml"))
    if leads_out(annotation.filename):
        raise BadAnnotation(f"filename {annotation.filename[:80]} leads out of the folder")
    path = f"JPEGImages/{files[0]}"
    size = annotation.shape or measure(os.path.join(top, path))
    sides, difficult = [], []
    for n, each in enumerate(annotation.objects, 1):
        try:
            sides.append(each.sides)
            difficult.append(each.difficult)
        except BadAnnotation as error:
            raise BadAnnotation(f"object {n} ({each.name[:40]}): {error}") from None
        if not 0 < len(each.name) <= _LONGEST:
            raise BadAnnotation(f"object {n} has {'a name of more than 200 characters' if each.name else 'no name'}")
    found.owner += [len(found.pictures)] * len(sides)
    found.place += range(1, len(sides) + 1)
    found.names += [each.name for each in annotation.objects]
    found.sides += sides
    found.difficult += difficult
    found.pictures.append(path)
    found.sizes.append(size)
    found.files.append(shown)
