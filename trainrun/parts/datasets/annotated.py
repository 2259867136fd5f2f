"""From annotated pictures, whatever file they were annotated in, to a Data: all that can be wrong is looked for first, and told at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.boxes import BEYOND, GOOD, BoxTable, clipped, faults, table, words
from trainrun.parts.datasets.listing import Files
from trainrun.parts.datasets.pictures import BadPicture, decode, printable
from trainrun.parts.datasets.splits import Data, Split
from trainrun.parts.datasets.verify import left_out, listed, verify

if TYPE_CHECKING:
    import numpy as np

OnBadBox = Annotated[
    Literal["error", "drop", "clip"],
    Field(
        description="What to do about boxes that are degenerate or reach beyond their picture: leave out up to 1 % of them, or cut what reaches beyond."
    ),
]
_DROPPED_AT_MOST = 0.01
_MENDING = (
    "\ncorrect or remove the boxes, or write data.on_bad_box=drop, which leaves out up to 1 % of them, or clip, which cuts what reaches beyond"
)


@dataclass(frozen=True)
class Pictures:
    """The annotated pictures of one side.

    option: train, validation or test, as the recipe names it. list: the file that lists them, as messages show it.
    pictures: their paths below the root. sizes: int32 [n, 2], height and width that the annotation states.
    boxes: float64 [N, 4] as x0, y0, x1, y1 of edges. labels: int64 [N]. ignored: bool [N]. owner: int64 [N], the picture of each, which rises.
    named: the number of a box -> where it stands, its class and its numbers as they are written there.
    """

    option: str
    list: str
    pictures: Sequence[str]
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    owner: np.ndarray
    named: Callable[[int], str]


@dataclass(frozen=True)
class _Reader:
    """Decodes the pictures of a side as they are: `members` are their indices among all of its files, `sizes` int32 [n, 2] those of the members."""

    files: Files
    members: np.ndarray
    sizes: np.ndarray

    def __call__(self, ids: Sequence[int]) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        bad: list[str] = []
        for sample in map(int, ids):
            try:
                picture = decode(self.files.path(int(self.members[sample])), 3, turn=False)
            except (BadPicture, OSError) as error:
                reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
                bad.append(f"{self.source(sample)}: {printable(reason)}")
                continue
            if picture.shape[:2] != tuple(self.sizes[sample]):
                bad.append(_differs(self.source(sample), picture.shape, self.sizes[sample]))
            pictures.append(picture)
        if bad:
            raise UserError(listed(f"{len(bad)} of {len(ids)} pictures cannot be used", bad))
        return pictures

    def source(self, sample: int) -> str:
        """The file of a sample, as messages show it."""
        return self.files.shown(int(self.members[sample]))


def repeated(where: str, names: Sequence[str]) -> list[str]:
    """A line on each name that `where` lists more than once."""
    often = [(name, times) for name, times in Counter(names).items() if times > 1]
    return [f"{where}: {printable(name)} is listed {'twice' if times == 2 else f'{times:,} times'}" for name, times in often]


def top_folder(root: str) -> str:
    """The folder that `root` names, or a UserError."""
    top = os.path.expanduser(root)
    if not os.path.isdir(top):
        what = "is not a folder" if os.path.exists(top) else f"does not exist (looked from {printable(os.getcwd())})"
        raise UserError(f"data.root: {printable(root)} {what}; write data.root=PATH with a folder of annotated pictures")
    return top


def leads_out(name: str) -> bool:
    """Whether a file name out of an annotation is no path below the folder it is meant for."""
    return os.path.isabs(name) or "\\" in name or "\0" in name or ".." in name.split("/")


def collect(
    root: str,
    sides: Sequence[Pictures],
    classes: tuple[str, ...],
    wrong: Sequence[str],
    *,
    least: float,
    on_bad_box: str,
    on_bad_image: str,
    verify: str,
) -> Data:
    """The data set of these pictures.

    First come the mistakes in the annotations, those already found (`wrong`) and those that need all sides to be seen; then the boxes, of
    which one with a side of at most `least` pixels is degenerate; then the pictures themselves, as `verify` says. UserError where any is
    wrong, unless the recipe asks to leave it out.
    """
    files = [_files(root, side) for side in sides]
    missing = [f"{side.list}: {each.shown(n)} is missing" for side, (each, absent) in zip(sides, files, strict=True) for n in absent]
    wrong = [*wrong, *missing, *_twice(sides), *(f"{side.list}: no box in it" for side in sides if side.pictures and not len(side.boxes))]
    sides, notes = _checked(sides, wrong, on_bad_box, least)
    splits, bad = {}, []
    for side, (each, _) in zip(sides, files, strict=True):
        good, unreadable = _readable(side, each, verify)
        bad += unreadable
        splits[side.option] = _split(side, each, good)
    skipped = left_out(bad, sum(len(each) for each, _ in files), on_bad_image)
    train = splits["train"]
    return Data(
        train, splits.get("validation"), classes, skipped=skipped, test=splits.get("test"), notes=(*notes, *_without_boxes(train, classes))
    )


def _files(root: str, side: Pictures) -> tuple[Files, list[int]]:
    """The picture files of a side, and which are missing."""
    import numpy as np

    paths = [os.fsencode(path) for path in side.pictures]
    digest, absent = hashlib.sha256(), []
    for n, path in enumerate(paths):
        try:
            status = os.stat(os.path.join(os.fsencode(root), path))
            digest.update(b"%s\0%d\0%d\0" % (path, status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            absent.append(n)
    ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
    return Files(root, b"".join(paths), ends, np.zeros(len(paths), np.int64), (), digest.hexdigest()), absent


def _twice(sides: Sequence[Pictures]) -> list[str]:
    """What is listed more than once, in one side or in two: there it would be judged on what it was trained on."""
    found = [line for side in sides for line in repeated(side.list, side.pictures)]
    for side, other in itertools.combinations(sides, 2):
        if shared := sorted(set(side.pictures) & set(other.pictures)):
            few = ", ".join(map(printable, shared[:3])) + (f" and {len(shared) - 3:,} more" if len(shared) > 3 else "")
            found.append(f"{other.list}: {few} in {side.list} too; {other.option} must not see pictures of {side.option}")
    return found


def _checked(sides: Sequence[Pictures], wrong: list[str], on_bad_box: str, least: float) -> tuple[list[Pictures], tuple[str, ...]]:
    """The sides with their good boxes, cut at the edges of their pictures, and sentences on what was done; or all that is wrong, at once."""
    import numpy as np

    lines: list[str] = []
    good: list[Pictures] = []
    total, cut = sum(len(side.boxes) for side in sides), 0
    for side in sides:
        sizes = side.sizes[side.owner]
        found, inside = faults(side.boxes, sizes, least), clipped(side.boxes, sizes)
        if on_bad_box == "clip":  # what is left of a box may be no more than a line
            found[(found == BEYOND) & (faults(inside, sizes, least) == GOOD)] = GOOD
        for n in np.flatnonzero(found).tolist():
            lines.append(f"{side.named(n)}: {words(found[n], side.boxes[n], sizes[n], least)}")
        keep = found == GOOD
        cut += int((inside != side.boxes).any(1)[keep].sum())
        good.append(replace(side, boxes=inside[keep], labels=side.labels[keep], ignored=side.ignored[keep], owner=side.owner[keep]))
    mistakes = [*wrong, *lines] if on_bad_box == "error" else wrong
    if mistakes:
        what = f"{listed(f'the annotations have {len(mistakes):,} mistake' + 's' * (len(mistakes) > 1), mistakes)}"
        raise UserError(what + (_MENDING if lines and on_bad_box == "error" else ""))
    if len(lines) > total * _DROPPED_AT_MOST:
        raise UserError(
            f"{listed(f'{len(lines):,} of {total:,} boxes cannot be used', lines)}\n"
            f"data.on_bad_box={on_bad_box} leaves out at most 1 % of the boxes; so many may mean that the numbers are of another kind"
        )
    notes = []
    if lines:
        notes.append(f"{len(lines):,} of {total:,} boxes are left out: " + "; ".join(lines[:5]) + ("; ..." if len(lines) > 5 else ""))
    if cut:
        notes.append(f"{cut:,} of {total:,} boxes reached beyond their picture and are cut at its edge")
    return good, tuple(notes)


def _differs(name: str, found: Sequence[int], stated: np.ndarray) -> str:
    turned = ", so it was perhaps annotated before it was turned" if (found[1], found[0]) == tuple(stated) else ""
    return f"{name} has {found[1]} x {found[0]} pixels (width x height), its annotation says {stated[1]} x {stated[0]}{turned}"


def _readable(side: Pictures, files: Files, mode: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The indices of the pictures that can be read, and those that cannot, with reasons; sizes that differ are mistakes."""
    import numpy as np

    if mode == "off":
        return np.arange(len(files), dtype=np.int64), []
    verdict = verify(files.path, len(files), mode, 3, None, "pillow", files.digest, boxes=True)
    assert verdict.sizes is not None
    odd = np.flatnonzero((verdict.sizes != 0).all(1) & (verdict.sizes != side.sizes).any(1))
    if len(odd):
        raise UserError(
            listed(
                f"{len(odd):,} pictures have another size than their annotation says, so their boxes may lie elsewhere",
                [_differs(files.shown(n), verdict.sizes[n].tolist(), side.sizes[n]) for n in odd.tolist()],
            )
        )
    good = np.setdiff1d(np.arange(len(files), dtype=np.int64), np.fromiter(verdict.bad, np.int64, len(verdict.bad)))
    return good, [(files.shown(index), printable(reason)) for index, reason in sorted(verdict.bad.items())]


def _split(side: Pictures, files: Files, good: np.ndarray) -> Split:
    import numpy as np

    boxes: BoxTable = table(side.boxes, side.labels, side.ignored, side.owner, good)
    sizes = np.ascontiguousarray(side.sizes[good], np.int32)
    digest = hashlib.sha256(json.dumps([files.digest, len(good)]).encode())
    for array in (good, sizes, boxes.boxes, boxes.labels, boxes.ignored, boxes.ends):
        digest.update(np.ascontiguousarray(array).data)
    read = _Reader(files, good, sizes)
    shape = (int(sizes[:, 0].max(initial=0)), int(sizes[:, 1].max(initial=0)), 3)
    labels = np.zeros(len(good), np.int64)
    return Split(labels, shape, read, digest.hexdigest(), read.source, cache=True, sizes=sizes, boxes=boxes)


def _without_boxes(train: Split, classes: tuple[str, ...]) -> list[str]:
    """A sentence on the classes that nothing can be learned of."""
    import numpy as np

    boxes: Any = train.boxes
    seen = np.bincount(boxes.labels[~boxes.ignored], minlength=len(classes))
    empty = [name for name, count in zip(classes, seen, strict=True) if not count]
    return [f"no box to train on is of class {', '.join(empty[:10])}{' ...' if len(empty) > 10 else ''}"] if empty else []
