"""How often an epoch shows each class, and each picture of it: the sampler's first epoch, counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainrun.engine.run import open_data
from trainrun.engine.sampling import make_sampler
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


def counts_of(recipe: Recipe, parts: Registry = registry) -> Counts:
    """Count the first epoch of a recipe's sampler; a sampler that draws differs from epoch to epoch."""
    import torch

    data = open_data(recipe.data, parts)
    sampler = make_sampler(recipe, data, parts)
    labels, ids = sampler.labels, sampler(0)
    times = ids.bincount(minlength=len(labels))
    kinds = len(data.classes)
    pictures = labels.bincount(minlength=kinds)
    least = torch.full((kinds,), len(ids) + 1).scatter_reduce_(0, labels, times, "amin")
    most = torch.zeros(kinds, dtype=torch.int64).scatter_reduce_(0, labels, times, "amax")
    bounds = [[bound if n else None for bound, n in zip(found.tolist(), pictures.tolist(), strict=True)] for found in (least, most)]
    return Counts(recipe.sampler.name, data.classes, pictures.tolist(), labels[ids].bincount(minlength=kinds).tolist(), *bounds)
