"""`trainrun show RECIPE --pca`: the principal components of the training pictures' pixels, as pca_jitter uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainrun.recipe.registry import registry
from trainrun.recipe.schema import Recipe
from trainrun.world import World


@dataclass(frozen=True)
class Pca:
    """Mean, eigenvalues (the largest first) and eigenvectors (rows) of the covariance of pixel values in 0..1."""

    data: str
    mean: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    eigenvectors: tuple[tuple[float, ...], ...]

    def document(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {
            "data": self.data,
            "mean": list(self.mean),
            "eigenvalues": list(self.eigenvalues),
            "eigenvectors": [list(row) for row in self.eigenvectors],
        }

    def lines(self, width: int) -> str:
        """The findings for people: a row a component."""
        total = sum(self.eigenvalues) or 1.0
        lines = [f"principal components of the pixels of {self.data}, values in 0..1", "eigenvalue    share  eigenvector"]
        for value, row in zip(self.eigenvalues, self.eigenvectors, strict=True):
            lines.append(f"{value:10.6f}  {value / total:7.2%}  " + " ".join(f"{entry:9.6f}" for entry in row))
        return "\n".join(line[:width].rstrip() for line in lines)


def look(recipe: Recipe, world: World) -> Pca:
    """Measure the training set of a recipe; raises UserError where the data cannot be used."""
    from trainrun.engine.build import open_data, settle
    from trainrun.engine.cut import make_cut
    from trainrun.engine.inputs import principal
    from trainrun.engine.resident import budget, open_feed

    data = open_data(recipe.data)
    settled, _ = settle(recipe, world, data.train)
    feed = open_feed(data.train, settled.data, world, budget(world), make_cut(settled, registry, data.train))
    try:
        mean, (values, vectors) = principal(feed)
    finally:
        feed.close()
    return Pca(recipe.data.name, mean, values, vectors)
