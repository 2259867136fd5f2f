"""Decoded pictures kept on disk, so that the second start need not decode: one safetensors file a split, keyed by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainrun.parts.datasets.splits import cache_folder

_MOST = 32 << 30  # bytes of all files together, from which on those not used for longest make room


def _file(digest: str) -> Path:
    return cache_folder() / "decoded" / f"{digest}.safetensors"


def _sum(pictures: torch.Tensor) -> str:
    return hashlib.sha256(pictures.numpy().reshape(-1).data).hexdigest()


def load(digest: str) -> torch.Tensor | None:
    """The pictures kept under `digest`, uint8 [N, H, W, C]; None where there are none or where they no longer match their checksum."""
    file = _file(digest)
    try:
        with safe_open(file, "np") as kept:  # for torch it would open the file twice, and between the two another may take its place
            pictures, expected = torch.from_numpy(kept.get_tensor("pictures")), (kept.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        pictures = expected = None
    if pictures is None or _sum(pictures) != expected:
        if file.is_file():
            print(f"trainrun: {file} is damaged; decoding again", file=sys.stderr)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return pictures


def keep(digest: str, pictures: torch.Tensor) -> None:
    """Keep pictures under `digest`, all or nothing; a disk that is full or read-only only costs the next start its time."""
    file = _file(digest)
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".")  # of its own, whoever else writes the same
        os.close(handle)
        save_file({"pictures": pictures}, temporary, {"sha256": _sum(pictures)})
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
        _make_room(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"trainrun: decoded pictures are not kept in {file.parent}: {reason}", file=sys.stderr)
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _make_room(newest: Path) -> None:
    """Remove what was not used for longest, leftovers of killed processes too, until all files are at most `_MOST` bytes."""
    found = []
    for file in newest.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be doing the same
            status = file.stat()
            found.append((file != newest, -status.st_mtime_ns, status.st_size, file))
    total = 0
    for _, _, size, file in sorted(found):
        total += size
        if total > _MOST and file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
