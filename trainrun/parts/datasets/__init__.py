"""Data sets: each part returns a Data of one, two or three Splits."""

from __future__ import annotations

from trainrun.parts.datasets import embedded, folder, published, synthetic
from trainrun.parts.datasets.splits import Boxes, Data, Split, cache_folder

__all__ = ["Boxes", "Data", "Split", "cache_folder", "embedded", "folder", "published", "synthetic"]
