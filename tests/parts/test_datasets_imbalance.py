"""A training set thinned out on purpose: its counts against published ones, its pictures against those of the whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.engine.build import open_data
from trainrun.errors import UserError
from trainrun.parts.datasets.imbalance import imbalanced
from trainrun.parts.datasets.splits import Data, Split
from trainrun.recipe.registry import PartNode, registry


def opened(name: str, **options: Any) -> Data:
    part = registry.get("data", name)
    assert part is not None
    return open_data(PartNode("data", name, part.options.model_validate(options).model_dump()))


def labelled(*sizes: int) -> Split:
    """A split of which only the labels matter."""
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Split(labels, (1, 1, 1), lambda ids: np.zeros((len(ids), 1, 1, 1), np.uint8), "whole")


# Counts of the long-tailed CIFAR-10 and CIFAR-100 of Cao et al. 2019, who round down: the sums are 12,406 and 10,847.
CIFAR10_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_are_those_of_long_tailed_cifar() -> None:
    assert np.bincount(imbalanced(labelled(*[5000] * 10), 100, 0).labels).tolist() == CIFAR10_100
    hundred = np.bincount(imbalanced(labelled(*[500] * 100), 100, 0).labels)
    assert (hundred.sum(), hundred[0], hundred[-1]) == (10_847, 500, 5)
    assert np.bincount(imbalanced(labelled(100, 400, 200), 4, 0).labels).tolist() == [100, 50, 25]  # counted from the smallest class


def test_sizes_and_pictures_of_unequal_ones_stay_with_their_samples(tmp_path: Path) -> None:
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for n in range(8):
            Image.new("RGB", (10 + n, 20 + label), (n, label, 9)).save(tmp_path / name / f"{n}.png")
    split = opened("folder", root=str(tmp_path), imbalance=4, imbalance_seed=3).train
    assert len(split) == 10 and split.sizes is not None and split.decode is not None and split.shape == (21, 17, 3)
    again = pickle.loads(pickle.dumps(split))
    for i in range(len(split)):
        expected = np.asarray(Image.open(split.source(i)))
        assert np.array_equal(split.decode(i, 2), expected) and np.array_equal(again.decode(i, 1), expected)
        assert tuple(split.sizes[i]) == expected.shape[:2]


def test_what_stays_depends_on_the_seed_and_is_read_as_before() -> None:
    whole, data = opened("digits"), opened("digits", imbalance=10)
    assert data.validation and whole.validation and data.validation.digest == whole.validation.digest
    assert data.classes == whole.classes
    counts = np.bincount(data.train.labels).tolist()
    least = np.bincount(whole.train.labels).min()
    assert counts == [int(least * 10 ** (-k / 9) + 1e-9) for k in range(10)]
    ids = list(range(len(data.train)))
    pictures = data.train.read(ids)
    assert data.train.held is not None and np.array_equal(pictures, data.train.held)
    assert np.array_equal(pickle.loads(pickle.dumps(data.train)).read(ids[5:9]), pictures[5:9])
    # Each is a picture of the whole with its label, in the order of the whole and none twice.
    remaining = iter(zip(whole.train.labels, whole.train.read(range(len(whole.train))), strict=True))
    for label, picture in zip(data.train.labels, pictures, strict=True):
        assert any(label == other and np.array_equal(picture, seen) for other, seen in remaining)
    again, other, more = opened("digits", imbalance=10), opened("digits", imbalance=10, imbalance_seed=1), opened("digits", imbalance=20)
    assert len({d.train.digest for d in (whole, data, other, more)}) == 4
    assert data.train.digest == again.train.digest and np.array_equal(pictures, again.train.read(ids))
    assert not np.array_equal(pictures, other.train.read(ids))


def test_files_keep_their_names(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for n in range(8):
            Image.new("RGB", (4, 4), (n * 20, 0, 255 * (label == "b"))).save(tmp_path / label / f"{n}.png")
    train = opened("folder", root=str(tmp_path), imbalance=4).train
    assert train.cache
    for sample, label in enumerate(train.labels.tolist()):
        name = train.source(sample)
        (picture,) = train.read([sample])
        assert Path(name).parent.name == "ab"[label]
        assert picture[0, 0].tolist() == [int(Path(name).stem) * 20, 0, 255 * label]


def test_an_imbalance_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="30 leaves the last class no picture, the smallest class having 20; at most 20 is possible"):
        imbalanced(labelled(20, 40), 30, 0)
    assert np.bincount(imbalanced(labelled(20, 40), 20, 0).labels).tolist() == [20, 1]
    with pytest.raises(UserError, match="there is one class only"):
        imbalanced(labelled(20), 2, 0)
