"""How often an epoch shows each class, and each picture of it: the sampler's first epoch, counted; of boxes, how many there are of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainrun.engine.build import open_data
from trainrun.engine.sampling import make_sampler
from trainrun.parts.datasets.splits import Boxes, Data
from trainrun.recipe.registry import Registry, registry
from trainrun.recipe.schema import Recipe
from trainrun.report.console import clean


@dataclass(frozen=True)
class Counts:
    """The counts of each class in label order: its pictures in the data, in an epoch, and of one of its pictures the least and the most."""

    sampler: str
    classes: tuple[str, ...]
    pictures: list[int]
    drawn: list[int]
    least: list[int | None]
    most: list[int | None]

    def document(self) -> dict[str, Any]:
        """{"sampler", "pictures", "epoch", "classes": {name: {"pictures", "epoch", "least", "most"}}}; null for a class without pictures."""
        rows = zip(self.classes, self.pictures, self.drawn, self.least, self.most, strict=True)
        return {
            "sampler": self.sampler,
            "pictures": sum(self.pictures),
            "epoch": sum(self.drawn),
            "classes": {name: {"pictures": n, "epoch": drawn, "least": least, "most": most} for name, n, drawn, least, most in rows},
        }

    def lines(self, width: int) -> str:
        """A table, with the names of the classes cut to fit."""
        rows = [("class", "pictures", "an epoch", "each picture")]
        for name, n, drawn, least, most in zip(self.classes, self.pictures, self.drawn, self.least, self.most, strict=True):
            times = "-" if least is None else f"{least}" if least == most else f"{least} to {most}"
            rows.append((clean(name, keep=""), f"{n:,}", f"{drawn:,}", times))
        rows.append(("all", f"{sum(self.pictures):,}", f"{sum(self.drawn):,}", ""))
        first = max(min(max(len(row[0]) for row in rows), width - 42), 5)
        return "\n".join(f"{name[:first]:{first}}  {n:>10}  {drawn:>10}  {times:>14}".rstrip() for name, n, drawn, times in rows)


@dataclass(frozen=True)
class BoxCounts:
    """Boxes of each class in label order: of the training pictures those that are trained on and those that are ignored, and how many
    pictures have one to train on; of the other sides those that count. None where there is no such side.
    """

    classes: tuple[str, ...]
    boxes: list[int]
    ignored: list[int]
    pictures: list[int]
    validation: list[int] | None
    test: list[int] | None
    all_pictures: int
    without: int

    def document(self) -> dict[str, Any]:
        """{"pictures", "without_boxes", "classes": {name: {"boxes", "ignored", "pictures", "validation", "test"}}}; null for a side that is not there."""
        names = ("boxes", "ignored", "pictures", "validation", "test")
        columns = [getattr(self, name) or [None] * len(self.classes) for name in names]
        rows = {name: dict(zip(names, row, strict=True)) for name, *row in zip(self.classes, *columns, strict=True)}
        return {"pictures": self.all_pictures, "without_boxes": self.without, "classes": rows}

    def lines(self, width: int) -> str:
        """A table, with the names of the classes cut to fit."""
        columns = {"boxes": self.boxes, "ignored": self.ignored, "pictures": self.pictures, "validation": self.validation, "test": self.test}
        shown = {title: counts for title, counts in columns.items() if counts is not None}
        first = max(min(max(5, *(len(clean(name, keep="")) for name in self.classes)), width - 12 * len(shown)), 5)
        rows = [("class", *shown)]
        rows += [(clean(name, keep=""), *(f"{n:,}" for n in row)) for name, *row in zip(self.classes, *shown.values(), strict=True)]
        rows += [("all", *("" if title == "pictures" else f"{sum(counts):,}" for title, counts in shown.items()))]
        told = "\n".join(f"{name[:first]:{first}}" + "".join(f"  {cell:>10}" for cell in cells) for name, *cells in rows)
        return f"{told}\n{self.without:,} of {self.all_pictures:,} training pictures have no box to train on"


def _box_counts(data: Data, boxes: Sequence[Boxes]) -> BoxCounts:
    import numpy as np

    kinds = len(data.classes)

    def each(sides: Sequence[np.ndarray]) -> list[int]:
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *sides]), minlength=kinds).tolist()

    def counted(split: Any) -> list[int] | None:
        return None if split is None else each([of.labels[~of.ignored] for of in split.boxes])

    good = [of.labels[~of.ignored] for of in boxes]
    return BoxCounts(
        data.classes, each(good), each([of.labels[of.ignored] for of in boxes]), each([np.unique(labels) for labels in good]),
        counted(data.validation), counted(data.test), len(boxes), sum(not len(labels) for labels in good),
    )  # fmt: skip


def counts_of(recipe: Recipe, parts: Registry = registry) -> Counts | BoxCounts:
    """Count the first epoch of a recipe's sampler, which if it draws differs from epoch to epoch; of pictures with boxes count these."""
    import torch

    data = open_data(recipe.data, parts)
    if data.train.boxes is not None:
        return _box_counts(data, data.train.boxes)
    sampler = make_sampler(recipe, data, parts)
    labels, ids = sampler.labels, sampler(0)
    times = ids.bincount(minlength=len(labels))
    kinds = len(data.classes)
    pictures = labels.bincount(minlength=kinds)
    least = torch.full((kinds,), len(ids) + 1).scatter_reduce_(0, labels, times, "amin")
    most = torch.zeros(kinds, dtype=torch.int64).scatter_reduce_(0, labels, times, "amax")
    bounds = [[bound if n else None for bound, n in zip(found.tolist(), pictures.tolist(), strict=True)] for found in (least, most)]
    return Counts(sampler.name, data.classes, pictures.tolist(), labels[ids].bincount(minlength=kinds).tolist(), *bounds)
