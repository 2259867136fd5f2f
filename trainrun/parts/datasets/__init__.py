"""Data sets: each part returns a Data of one, two or three Splits."""

from __future__ import annotations

from trainrun.parts.datasets import coco, embedded, folder, published, synthetic, voc
from trainrun.parts.datasets.splits import Boxes, Data, Split, cache_folder

__all__ = ["Boxes", "Data", "Split", "cache_folder", "coco", "embedded", "folder", "published", "synthetic", "voc"]
