"""Which picture files a folder holds: class folders, sorted, with everything that is no picture left alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainrun.errors import UserError
from trainrun.parts.datasets.pictures import SUFFIXES, printable

if TYPE_CHECKING:
    import numpy as np

VALIDATION_FOLDERS = ("val", "valid", "validation")


@dataclass(frozen=True)
class Files:
    """Picture files as one row of bytes, so that a million of them cost little to hold, to fork and to pickle."""

    root: str
    joined: bytes
    ends: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.ends)

    def relative(self, index: int) -> str:
        """The path below the root."""
        return os.fsdecode(self.joined[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])])

    def path(self, index: int) -> str:
        """The path to open."""
        return os.path.join(self.root, self.relative(index))

    def shown(self, index: int) -> str:
        """The path as messages show it."""
        return printable(self.path(index))


def _visible(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: os.fsencode(e.name))
    except OSError as error:
        raise UserError(f"data.root: cannot list {printable(folder)}: {error.strerror}") from None


def class_folders(folder: str) -> list[str]:
    """The names of the folders in it; a link to a folder counts where it leads out of this one, so that nothing counts twice."""
    here = os.path.realpath(folder)
    names = []
    for entry in _visible(folder):
        if entry.is_dir(follow_symlinks=False):
            names.append(entry.name)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            target = os.path.realpath(entry.path)
            if os.path.commonpath([here, target]) not in (here, target):
                names.append(entry.name)
    return names


def _picture_files(folder: str) -> list[tuple[bytes, int, int]]:
    """Path below `folder`, size and mtime of each picture file, sorted; links to folders, and what is no regular file, are passed over."""
    found: list[tuple[bytes, int, int]] = []
    waiting = [folder]
    while waiting:
        for entry in _visible(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                status = entry.stat()
                found.append((os.fsencode(os.path.relpath(entry.path, folder)), status.st_size, status.st_mtime_ns))
    found.sort()
    return found


def list_pictures(root: str, below: str = "") -> Files:
    """All picture files in the class folders of root/below; a class without any, and no class at all, are mistakes."""
    import numpy as np

    folder = os.path.join(root, below) if below else root
    names = class_folders(folder)
    if not names:
        loose = any(e.name.lower().endswith(SUFFIXES) for e in _visible(folder))
        what = "pictures but no class folders" if loose else "no class folders"
        raise UserError(
            f"data.root: {printable(folder)} holds {what}; put the pictures of each class into a folder of its name, or correct data.root"
        )
    paths: list[bytes] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    empty = []
    for label, name in enumerate(names):
        found = _picture_files(os.path.join(folder, name))
        if not found:
            empty.append(printable(os.path.join(folder, name)))
        prefix = os.fsencode(os.path.join(below, name)) + b"/"
        for path, size, changed in found:
            paths.append(prefix + path)
            digest.update(b"%s\0%d\0%d\0" % (prefix + path, size, changed))
        labels += [label] * len(found)
    if empty:
        shown = ", ".join(empty[:20]) + (f" and {len(empty) - 20} more" if len(empty) > 20 else "")
        raise UserError(f"data.root: no pictures ({', '.join(SUFFIXES[:6])} ...) in {shown}; add some or remove the folder")
    ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
    classes = tuple(printable(name) for name in names)
    return Files(root, b"".join(paths), ends, np.array(labels, dtype=np.int64), classes, digest.hexdigest())


def validation_folder(root: str) -> str | None:
    """The name of root's validation folder, if it has one; two are a mistake."""
    found = [name for name in VALIDATION_FOLDERS if os.path.isdir(os.path.join(root, name))]
    if len(found) > 1:
        raise UserError(f"data.root: {printable(root)} holds {' and '.join(found)}; keep one of them as the validation folder")
    return found[0] if found else None
