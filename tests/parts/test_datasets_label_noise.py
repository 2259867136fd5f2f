"""Labels made wrong on purpose: how many, which, and by what, against the laws that they should follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.engine.build import open_data
from trainrun.errors import UserError
from trainrun.parts.datasets.label_noise import mislabelled
from trainrun.parts.datasets.splits import Data, Split
from trainrun.recipe.registry import PartNode, registry


def opened(name: str, **options: Any) -> Data:
    part = registry.get("data", name)
    assert part is not None
    return open_data(PartNode("data", name, part.options.model_validate(options).model_dump()))


def labelled(labels: np.ndarray) -> Split:
    return Split(labels, (1, 1, 1), lambda ids: np.zeros((len(ids), 1, 1, 1), np.uint8), "whole")


def test_so_many_are_wrong_and_every_other_class_is_as_likely() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 50_000)
    split = mislabelled(labelled(labels), 0.05, 3, 10)
    wrong = split.labels != labels
    assert wrong.sum() == 2500
    assert split.originals is not None and np.array_equal(split.originals, labels)
    away = (split.labels - labels)[wrong] % 10
    assert chisquare(np.bincount(away, minlength=10)[1:]).pvalue > 0.01
    # Which ones has nothing to do with their label or place.
    assert chisquare(np.bincount(labels[wrong], minlength=10), np.bincount(labels, minlength=10) * 0.05).pvalue > 0.01
    assert chisquare(np.histogram(np.flatnonzero(wrong), 10, (0, 50_000))[0]).pvalue > 0.01


def test_it_is_a_function_of_the_seed_and_the_sample() -> None:
    labels = np.random.default_rng(1).integers(0, 4, 1000)
    first, again, other = (mislabelled(labelled(labels), 0.1, seed, 4) for seed in (0, 0, 1))
    assert np.array_equal(first.labels, again.labels) and first.digest == again.digest
    assert not np.array_equal(first.labels, other.labels) and first.digest != other.digest != "whole"
    # More of them are the same ones and others besides, and what a wrong label comes to does not hang on the others.
    more = mislabelled(labelled(labels), 0.2, 0, 4)
    wrong = first.labels != labels
    assert np.array_equal(more.labels[wrong], first.labels[wrong]) and (more.labels != labels).sum() == 200


def test_only_training_labels_change_and_pictures_stay() -> None:
    whole, data = opened("digits"), opened("digits", label_noise=0.05)
    assert data.validation and whole.validation and data.validation.originals is None
    assert data.validation.digest == whole.validation.digest and np.array_equal(data.validation.labels, whole.validation.labels)
    ids = list(range(len(whole.train)))
    assert np.array_equal(data.train.read(ids), whole.train.read(ids))
    assert (data.train.labels != whole.train.labels).sum() == round(0.05 * len(ids))


def test_an_imbalanced_set_is_thinned_by_its_true_labels() -> None:
    thin, both = opened("digits", imbalance=10), opened("digits", imbalance=10, label_noise=0.2)
    assert both.train.originals is not None and np.array_equal(both.train.originals, thin.train.labels)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.label_noise: there is one class only"):
        mislabelled(labelled(np.zeros(9, np.int64)), 0.5, 0, 1)
    with pytest.raises(UserError, match=r"data.label_noise: 0.01 of 9 training pictures is none; write a larger share"):
        mislabelled(labelled(np.zeros(9, np.int64)), 0.01, 0, 2)
