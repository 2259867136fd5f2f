"""Data sets: each part returns a Data of one or two Splits."""

from __future__ import annotations

from trainrun.parts.datasets import embedded, folder, published, synthetic
from trainrun.parts.datasets.splits import Data, Split, cache_folder

__all__ = ["Data", "Split", "cache_folder", "embedded", "folder", "published", "synthetic"]
