"""Pictures in a folder for each class."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets.listing import Files, class_folders, list_pictures, validation_folder
from trainrun.parts.datasets.pictures import BadPicture, decode, printable, torchcodec_decoder
from trainrun.parts.datasets.splits import Data, Split, differs
from trainrun.parts.datasets.verify import OnBadImage, Verdict, Verify, left_out, unreadable, verify
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class _Pictures:
    """Decodes the files of a split: `members` are their indices among all files, `kept` holds all of these if they are decoded already."""

    files: Files
    members: np.ndarray
    shape: tuple[int, int, int]
    size: int | None
    decoder: str
    sizes: np.ndarray | None = None
    kept: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}  # a process that must be sent this decodes by itself

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        if self.kept is not None:
            return self.kept[self.members[np.asarray(ids, np.int64)]]
        shape = self.shape if self.sizes is None or not len(ids) else (*self.sizes[ids[0]].tolist(), self.shape[2])
        pictures = np.empty((len(ids), *shape), np.uint8)
        bad: list[tuple[str, str]] = []
        for place, sample in enumerate(ids):
            index = int(self.members[sample])
            try:
                picture = decode(self.files.path(index), shape[2], self.size, decoder=self.decoder)
            except BadPicture as error:
                bad.append((self.files.shown(index), printable(str(error))))
                continue
            except OSError as error:
                bad.append((self.files.shown(index), error.strerror or type(error).__name__))
                continue
            if picture.shape != shape:
                raise differs(self.files.shown(index), picture.shape, shape)
            pictures[place] = picture
        if bad:
            raise UserError(unreadable(bad, len(ids)))
        return pictures

    def decode(self, sample: int, shrink: int) -> np.ndarray:
        """The picture of a sample as it is, whatever its size, or a JPEG at 1 / shrink of it."""
        index = int(self.members[sample])
        try:
            return decode(self.files.path(index), self.shape[2], shrink=shrink, decoder=self.decoder)
        except (BadPicture, OSError) as error:
            reason = getattr(error, "strerror", None) or printable(str(error))
            raise UserError(f"{self.files.shown(index)} cannot be read: {reason}") from None

    def source(self, sample: int) -> str:
        """The file of a sample, as messages show it."""
        return self.files.shown(int(self.members[sample]))


def _held_out(files: Files, good: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which of the good files are for validation: of each class the given fraction, those with the smallest hash of (seed, path)."""
    import numpy as np

    words = (hashlib.blake2b(f"{seed}/{files.relative(int(i))}".encode("utf-8", "surrogateescape"), digest_size=8) for i in good)
    keys = np.array([int.from_bytes(word.digest()) for word in words], dtype=np.uint64)
    labels = files.labels[good]
    chosen = np.zeros(len(good), dtype=bool)
    order = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[order], np.arange(len(files.classes) + 1))
    for start, stop in itertools.pairwise(starts):
        count = int(stop - start)
        chosen[order[start : start + min(count - 1, max(1, round(count * fraction)))]] = True
    return chosen


@part("data", shape=lambda options: options["size"] and (options["size"], options["size"], options["channels"]))
def folder(
    *,
    root: Annotated[str, Field(min_length=1, description="The folder that holds train/ and val/, or the class folders.")],
    validation: Annotated[
        float | None, Field(gt=0, lt=1, description="Fraction of each class that is held out for validation, where there is no val folder.")
    ] = None,
    split_seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another number holds out other pictures.")] = 0,
    size: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Pixels: resize the shorter side to this and cut out the middle square; null takes pictures as they are.",
        ),
    ] = None,
    channels: Annotated[Literal[1, 3], Field(description="1 for grey, 3 for colour.")] = 3,
    on_bad_image: OnBadImage = "error",
    verify: Verify = "full",
    decoder: Annotated[Literal["pillow", "torchcodec"], Field(description="What decodes JPEG; torchcodec is an extra.")] = "pillow",
) -> Data:
    """Pictures in a folder for each class: root/train and root/val, or one folder of class folders and `validation`.

    The validation folder may be called val, valid or validation; a test folder takes its place only where there is none
    of these and `validation` is not given. With neither, there is no validation. Class names are the folder names, sorted.
    Pictures are uint8 [height, width, channels]; without `size` all must have one size, or `augment` begin with a crop, which is then
    cut out of the decoded picture (see `cut`). JPEG, PNG, WebP, BMP, GIF, TIFF
    and PPM are read, turned upright as their EXIF says, transparency laid on white, 16-bit grey scaled to 8 bits.
    Hidden files, links to folders inside root, FIFOs and files with other suffixes are passed over.
    Which pictures `validation` holds out depends on their paths and `split_seed` only, so adding some moves few others.
    """
    import numpy as np

    top = os.path.expanduser(root)
    if not os.path.isdir(top):
        what = "is not a folder" if os.path.exists(top) else f"does not exist (looked from {printable(os.getcwd())})"
        raise UserError(f"data.root: {printable(root)} {what}; write data.root=PATH with a folder of class folders")
    if decoder == "torchcodec":
        torchcodec_decoder()
    parts = _layout(top, validation)
    good, bad, shape, sizes, kept = _check(parts, size, channels, verify, decoder)
    skipped = left_out(bad, sum(len(files) for files in parts), on_bad_image)

    def split(side: int, members: np.ndarray) -> Split:
        files = parts[side]
        words = hashlib.sha256(json.dumps([files.digest, size, channels, decoder, shape]).encode())
        words.update(np.ascontiguousarray(members).data)
        of = sizes[side]
        read = _Pictures(files, members, shape, size, decoder, None if of is None else of[members], kept[side])
        whole = None if size else read.decode
        return Split(files.labels[members], shape, read, words.hexdigest(), read.source, cache=True, sizes=read.sizes, decode=whole)

    train, classes = parts[0], parts[0].classes
    if missing := sorted(set(range(len(classes))) - set(train.labels[good[0]].tolist())):
        raise UserError(f"data.root: no readable picture is left in class {classes[missing[0]]}")
    if validation is not None:
        chosen = _held_out(train, good[0], validation, split_seed)
        if not chosen.any():
            raise UserError("data.validation: every class has one picture only, so none can be held out; remove data.validation")
        return Data(split(0, good[0][~chosen]), split(0, good[0][chosen]), classes, skipped=skipped)
    held_out = split(1, good[1]) if len(parts) > 1 else None
    return Data(split(0, good[0]), held_out, classes, skipped=skipped)


def _layout(top: str, validation: float | None) -> list[Files]:
    """The files of the training side and, if a folder of its own holds it, of the validation side, labelled by train's classes."""
    import numpy as np

    inside = os.path.join(top, "train")
    if not (os.path.isdir(inside) and class_folders(inside)):  # a class may be called train: then it holds pictures, not folders
        return [list_pictures(top)]
    side = validation_folder(top)
    if side and validation is not None:
        raise UserError(f"data.validation: {printable(top)} has a folder {side} for validation; remove data.validation, or the folder")
    if side is None and validation is None and os.path.isdir(os.path.join(top, "test")):
        side = "test"
    train = list_pictures(top, "train")
    if side is None:
        return [train]
    held_out = list_pictures(top, side)
    if extra := [name for name in held_out.classes if name not in set(train.classes)]:
        raise UserError(
            f"data.root: {printable(top)}/{side} has a class {extra[0]} that train lacks"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else "")
            + "; the class folders of both must have the same names"
        )
    label_of = np.array([train.classes.index(name) for name in held_out.classes], dtype=np.int64)
    return [train, Files(top, held_out.joined, held_out.ends, label_of[held_out.labels], train.classes, held_out.digest)]


def _check(
    parts: list[Files], size: int | None, channels: int, mode: str, decoder: str
) -> tuple[list[np.ndarray], list[tuple[str, str]], tuple[int, int, int], list[np.ndarray | None], list[np.ndarray | None]]:
    """The indices of the good files of each part, the bad ones by name, the shape all pictures get (the largest height and width where
    they differ), their sizes where they differ, and the pictures where they are kept.
    """
    import numpy as np

    good, bad, verdicts = [], [], []
    shape = (size, size, channels) if size else None
    for files in parts:
        if size and mode == "off":
            verdict = Verdict({}, shape)
        else:
            verdict = verify(files.path, len(files), mode, channels, size, decoder, files.digest)
        verdicts.append(verdict)
        bad += [(files.shown(index), printable(reason)) for index, reason in sorted(verdict.bad.items())]
        good.append(np.setdiff1d(np.arange(len(files), dtype=np.int64), np.fromiter(verdict.bad, np.int64, len(verdict.bad))))
        shape = shape or verdict.shape
    if shape is None:
        raise UserError(unreadable(bad, sum(len(files) for files in parts)))
    kept = [verdict.pictures for verdict in verdicts]
    if size or all(verdict.sizes is None and verdict.shape in (None, shape) for verdict in verdicts):
        return good, bad, shape, [None] * len(parts), kept
    sizes = []
    for files, verdict in zip(parts, verdicts, strict=True):
        of = np.full((len(files), 2), (verdict.shape or shape)[:2], np.int32) if verdict.sizes is None else verdict.sizes
        sizes.append(np.maximum(of, 1))  # what is bad has no size; it is left out, or told of by name when it is read
    height, width = np.concatenate(sizes).max(0).tolist()
    return good, bad, (height, width, channels), list(sizes), [None] * len(parts)
