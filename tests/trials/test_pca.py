"""The principal components of a training set against NumPy, as `show --pca` prints them and as pca_jitter uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainrun.engine.build import open_data, settle
from trainrun.engine.inputs import principal, statistics
from trainrun.engine.resident import open_feed
from trainrun.recipe.load import load
from trainrun.recipe.schema import Recipe
from trainrun.trials.pca import Pca, look
from trainrun.world import World

CPU = World(torch.device("cpu"))


def recipe(folder: Path, **fields: Any) -> Recipe:
    data = {"name": "synthetic", "shape": [3, 9, 8], "classes": 4, "size": 200, "validation": 0.2, "workers": 0} | fields
    (folder / "r.yaml").write_text(json.dumps({"data": data, "model": "tiny_convnet", "epochs": 1, "schedule": {"lr": 0.1}}))
    return settle(load(folder / "r.yaml").recipe, CPU)[0]


@pytest.mark.parametrize(("channels", "resident"), [(3, "yes"), (3, "no"), (1, "yes")])
def test_the_components_are_numpys(tmp_path: Path, channels: int, resident: str) -> None:
    made = recipe(tmp_path, shape=[channels, 9, 8], resident=resident)
    pixels = open_data(made.data).train.read(range(160)).reshape(-1, channels) / 255
    covariance = np.cov(pixels.T, bias=True).reshape(channels, channels)
    values, vectors = np.linalg.eigh(covariance)
    seen = look(made, CPU)
    np.testing.assert_allclose(seen.mean, pixels.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(seen.eigenvalues, values[::-1], rtol=0, atol=1e-10)
    for row, column in zip(np.array(seen.eigenvectors), vectors.T[::-1], strict=True):
        assert row[np.abs(row).argmax()] > 0
        np.testing.assert_allclose(row * np.sign(row @ column), column, rtol=0, atol=1e-5)
    assert seen.document() == json.loads(json.dumps(seen.document()))
    assert list(seen.document()) == ["data", "mean", "eigenvalues", "eigenvectors"]


def test_they_are_measured_once_with_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path)
    data = open_data(made.data)
    feed = open_feed(data.train, made.data, CPU, 1 << 30)
    passes: list[int] = []
    fetch = feed.fetch
    monkeypatch.setattr(feed, "fetch", lambda batches: passes.append(len(batches)) or fetch(batches))
    found = statistics(data, feed)
    pixels = data.train.read(range(160)).reshape(-1, 3) / 255
    assert passes == []
    np.testing.assert_allclose(found.figures[0], pixels.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.figures[1], pixels.std(0), rtol=0, atol=1e-12)
    assert found.components == found.components == (look(made, CPU).eigenvalues, look(made, CPU).eigenvectors)
    assert passes == [3]


@pytest.mark.parametrize(("shape", "seen"), [([3, 2, 2], 12_000), ([3, 100, 100], 10_000)], ids=["all", "10,000"])
def test_of_many_pictures_all_are_looked_at_unless_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int], seen: int
) -> None:
    made = recipe(tmp_path, shape=shape, size=15_000, validation=0.2, resident="no")
    feed = open_feed(open_data(made.data).train, made.data, CPU, 1 << 30)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(feed, "fetch", lambda batches: asked.extend(batches) or iter([some_pixels(3)]))
    assert principal(feed)[0]
    ids = torch.cat(asked)
    assert len(ids.unique()) == len(ids) == seen
    assert (ids[0], ids[-1]) == (0, 11_999)


def some_pixels(channels: int) -> torch.Tensor:
    """A few pixels that differ."""
    return torch.arange(12 * channels, dtype=torch.uint8).view(1, 3, 4, channels)


def test_what_people_read_fits_their_terminal() -> None:
    seen = Pca("photos", (0.5, 0.4), (0.03, 0.01), ((0.8, 0.6), (-0.6, 0.8)))
    assert seen.lines(80).splitlines() == [
        "principal components of the pixels of photos, values in 0..1",
        "eigenvalue    share  eigenvector",
        "  0.030000   75.00%   0.800000  0.600000",
        "  0.010000   25.00%  -0.600000  0.800000",
    ]
    assert max(map(len, seen.lines(30).splitlines())) <= 30
