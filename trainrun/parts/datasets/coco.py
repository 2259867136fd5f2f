"""Detection data in COCO's JSON format, as pycocotools reads it: one file a side, with images, annotations and categories."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.annotated import OnBadBox, Pictures, collect, leads_out, top_folder
from trainrun.parts.datasets.pictures import BadPicture, printable, read_file
from trainrun.parts.datasets.splits import Data
from trainrun.parts.datasets.verify import OnBadImage, Verify
from trainrun.recipe.registry import part

File = Annotated[str, Field(min_length=1)]
_MOST_BYTES = 4 << 30
_LONGEST = 200  # characters of a class's name
_LONGEST_PATH = 4096  # bytes
_LARGEST = 1 << 20  # pixels of a side


@part("data", task="detection")
def coco(
    *,
    root: Annotated[str, Field(min_length=1, description="The folder below which pictures and annotation files are.")],
    train: Annotated[File, Field(description="Annotation file of the training pictures, below the root.")],
    validation: Annotated[File | None, Field(description="Annotation file of the validation pictures; null for none.")] = None,
    test: Annotated[File | None, Field(description="Annotation file of the test pictures; null for none.")] = None,
    train_pictures: Annotated[str, Field(description="Folder below the root in which the training pictures are.")] = "",
    validation_pictures: Annotated[str, Field(description="Folder below the root in which the validation pictures are.")] = "",
    test_pictures: Annotated[str, Field(description="Folder below the root in which the test pictures are.")] = "",
    on_bad_box: OnBadBox = "error",
    on_bad_image: OnBadImage = "error",
    verify: Verify = "full",
) -> Data:
    """Pictures with boxes in COCO's JSON format: images, annotations and categories in one file for each side.

    The classes are the categories in the order of their ids, which may have gaps: COCO's 80 run from 1 to 90. A box x, y, width, height
    counts from the edge of the first pixel, so its edges are x, y, x + width, y + height, and nothing is shifted. Annotations with iscrowd: 1,
    which stand for a region full of objects, are neither trained on nor counted in evaluation. Outlines and keypoints are not read. All
    files must have the same categories. A box that reaches up to a pixel beyond its picture is cut. COCO 2017 is
    root: coco, train: annotations/instances_train2017.json, train_pictures: train2017, and so for validation with val2017.
    Source: Lin et al. 2014, Microsoft COCO: Common Objects in Context; the format: cocodataset.org/#format-data.
    Example: {name: coco, root: coco, train: annotations/instances_train2017.json, train_pictures: train2017}
    """
    top = top_folder(root)
    files = {"train": (train, train_pictures), "validation": (validation, validation_pictures), "test": (test, test_pictures)}
    sides: list[Pictures] = []
    wrong: list[str] = []
    names: dict[int, str] = {}
    for option, (file, folder) in files.items():
        if file is None:
            continue
        path = os.path.join(top, os.path.expanduser(file))
        content = _load(path, option)
        side = _Side(printable(path), wrong)
        found = side.categories(content["categories"])
        names = names or found
        if found != names:
            n = min(n for n in {*found, *names} if found.get(n) != names.get(n))
            side.tell(f"category {n} is {_or_none(found.get(n))}, in the training file {_or_none(names.get(n))}; all files must have the same")
        images = side.images(content["images"], folder)
        sides.append(side.pictures(option, images, content["annotations"], names))
    classes = tuple(printable(names[n]) for n in sorted(names))
    return collect(top, sides, classes, wrong, least=0, on_bad_box=on_bad_box, on_bad_image=on_bad_image, verify=verify)


def _or_none(name: str | None) -> str:
    return "missing" if name is None else printable(name)


def _lean(item: dict[str, Any]) -> dict[str, Any]:
    # Outlines are nine tenths of COCO's files; dropped at once they are never all in memory.
    item.pop("segmentation", None)
    item.pop("keypoints", None)
    return item


def _load(path: str, option: str) -> dict[str, list[Any]]:
    """The three lists of an annotation file."""
    shown = printable(path)
    try:
        content = json.loads(read_file(path, _MOST_BYTES), object_hook=_lean)
    except FileNotFoundError:
        without = "" if option == "train" else ", or null for none"
        raise UserError(f"data.{option}: {shown} is missing; write data.{option}=FILE below data.root{without}") from None
    except (OSError, BadPicture) as error:
        raise UserError(f"data.{option}: {shown} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"data.{option}: {shown} is not JSON: {printable(reason[:200])}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(name), list) for name in lists):
        lacking = [name for name in lists if not (isinstance(content, dict) and isinstance(content.get(name), list))]
        raise UserError(f"data.{option}: {shown} has no list of {', '.join(lacking)}; expected COCO's format of instances: {', '.join(lists)}")
    if not content["images"] or not content["categories"]:
        raise UserError(f"data.{option}: {shown} has no {'images' if content['categories'] else 'categories'}")
    return content


@dataclass(frozen=True)
class _Images:
    """The images of a file: paths below the root, (height, width), and the place of each id."""

    paths: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Side:
    """Reads the lists of one file, named `where`; each mistake joins `wrong`, and what has it is left out."""

    where: str
    wrong: list[str]

    def tell(self, text: str) -> None:
        """Note a mistake."""
        self.wrong.append(f"{self.where}: {text}")

    def _id(self, item: Any, what: str, n: int, seen: Mapping[int, Any]) -> int | None:
        """The id of an item that is a mapping and whose id is a whole number and new."""
        number = item.get("id") if isinstance(item, dict) else None
        if not _is_whole(number):
            self.tell(f"{what} number {n}: found {_shown(number)} as id, expected a whole number")
            return None
        if number in seen:
            self.tell(f"{what} {number} is there twice")
            return None
        return number

    def categories(self, items: list[Any]) -> dict[int, str]:
        """Names by id."""
        names: dict[int, str] = {}
        for n, item in enumerate(items, 1):
            number = self._id(item, "category", n, names)
            if number is None:
                continue
            name = item.get("name")
            if not isinstance(name, str) or not 0 < len(name.strip()) <= _LONGEST:
                self.tell(f"category {number}: found {_shown(name)} as name, expected text of 1 to {_LONGEST} characters")
                name = ""
            names[number] = name.strip()
        twice = [name for name, times in Counter(names.values()).items() if times > 1 and name]
        for name in twice:
            self.tell(f"two categories are called {printable(name)}")
        return names

    def images(self, items: list[Any], folder: str) -> _Images:
        """Those whose file and size are as they should be."""
        found = _Images()
        for n, item in enumerate(items, 1):
            number = self._id(item, "image", n, found.place)
            if number is None:
                continue
            name, size = item.get("file_name"), (item.get("height"), item.get("width"))
            found.place[number] = -1
            if not isinstance(name, str) or not _encodes(name):
                self.tell(f"image {number}: found {_shown(name)} as file_name, expected a path")
            elif leads_out(name):
                self.tell(f"image {number}: file_name {printable(name[:80])} leads out of the folder")
            elif not all(isinstance(side, int) and 0 < side <= _LARGEST for side in size):
                self.tell(f"image {number} ({printable(name[:80])}): found {_shown(size[1])} x {_shown(size[0])} as its width and height")
            else:
                found.place[number] = len(found.paths)
                found.paths.append(os.path.normpath(os.path.join(folder, name)))
                found.sizes.append((size[0], size[1]))
        return found

    def pictures(self, option: str, images: _Images, items: list[Any], names: Mapping[int, str]) -> Pictures:
        """The images with their boxes, in the order of the images, those of an image in the order of the file."""
        import numpy as np

        label_of = {number: label for label, number in enumerate(sorted(names))}
        label: dict[int, int] = {}
        owner, corners, crowd = [], [], []
        for n, item in enumerate(items, 1):
            number = self._id(item, "annotation", n, label)
            if number is None:
                continue
            picture, category, box = (item.get(key) for key in ("image_id", "category_id", "bbox"))
            where = f"annotation {number} of image {_shown(picture)}"
            if not _is_whole(picture) or picture not in images.place:
                self.tell(f"{where}: there is no such image")
            elif not _is_whole(category) or category not in label_of:
                self.tell(f"{where}: there is no category {_shown(category)}")
            elif not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
                self.tell(f"{where}: found {_shown(box)} as bbox, expected four numbers: x, y, width, height")
            elif images.place[picture] >= 0:
                label[number] = label_of[category]
                owner.append(images.place[picture])
                corners.append(box)
                crowd.append(bool(item.get("iscrowd", 0)))
        order = np.argsort(np.array(owner, np.int64), kind="stable")
        numbers = np.array([list(map(_float, box)) for box in corners], np.float64).reshape(-1, 4)[order]
        ids, labels = list(label), np.array(list(label.values()), np.int64)[order]
        owners = np.array(owner, np.int64)[order]

        def named(n: int) -> str:
            name = printable(names[sorted(names)[labels[n]]])
            sides = " ".join(f"{side:g}" for side in numbers[n])
            return f"{self.where}: annotation {ids[order[n]]} of {printable(images.paths[owners[n]])} ({name}, {sides})"

        with np.errstate(over="ignore", invalid="ignore"):
            edges = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], 1)
        sizes = np.array(images.sizes, np.int32).reshape(-1, 2)
        return Pictures(option, self.where, images.paths, sizes, edges, labels, np.array(crowd, bool)[order], owners, named)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encodes(name: str) -> bool:
    """Whether a system can have a file of this path."""
    try:
        return 0 < len(os.fsencode(name)) <= _LONGEST_PATH
    except UnicodeEncodeError:
        return False


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    """A value of the file, as messages show it."""
    text = "none" if value is None else repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    return printable(text if len(text) <= 60 else text[:57] + "...")
