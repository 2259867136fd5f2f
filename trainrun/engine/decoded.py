"""Decoded pictures kept on disk, so that the second start need not decode: one safetensors file a split, keyed by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trainrun.parts.datasets.splits import cache_folder


def _file(digest: str) -> Path:
    return cache_folder() / "decoded" / f"{digest}.safetensors"


def _sum(pictures: torch.Tensor) -> str:
    return hashlib.sha256(pictures.numpy().reshape(-1).data).hexdigest()


def load(digest: str) -> torch.Tensor | None:
    """The pictures kept under `digest`, uint8 [N, H, W, C]; None where there are none or where they no longer match their checksum."""
    file = _file(digest)
    try:
        with safe_open(file, "pt") as kept:
            pictures, expected = kept.get_tensor("pictures"), (kept.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if _sum(pictures) != expected:
        print(f"trainrun: {file} is damaged; decoding again", file=sys.stderr)
        return None
    return pictures


def keep(digest: str, pictures: torch.Tensor) -> None:
    """Keep pictures under `digest`, all or nothing; a disk that is full or read-only only costs the next start its time."""
    file = _file(digest)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as out:
            out.write(save({"pictures": pictures}, {"sha256": _sum(pictures)}))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        print(f"trainrun: decoded pictures are not kept in {file.parent}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(OSError):
            temporary.unlink()
