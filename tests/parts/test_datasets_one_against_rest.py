"""One class against the rest: two labels, the same pictures, on every side of the data set, before what is spoilt on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.engine.build import open_data
from trainrun.engine.launch import launch
from trainrun.errors import RecipeError, UserError
from trainrun.parts.datasets.one_against_rest import one_against_rest
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.load import load
from trainrun.recipe.registry import PartNode, registry


def opened(name: str, **options: Any) -> Data:
    part = registry.get("data", name)
    assert part is not None
    return open_data(PartNode("data", name, part.options.model_validate(options).model_dump()))


def test_labels_become_two_and_pictures_stay() -> None:
    whole, data = opened("digits"), opened("digits", one_against_rest="3")
    assert data.classes == ("rest", "3") and data.validation and whole.validation
    for was, now in ((whole.train, data.train), (whole.validation, data.validation)):
        assert np.array_equal(now.labels, np.where(was.labels == 3, 1, 0)) and now.labels.dtype == np.int64
        assert np.array_equal(now.read(range(20)), was.read(range(20))) and now.source(7) == was.source(7)
    digests = {opened("digits", one_against_rest=name).train.digest for name in "345"}
    assert len(digests | {whole.train.digest}) == 4


def test_a_test_side_is_asked_too() -> None:
    whole = opened("digits")
    data = one_against_rest(replace(whole, test=whole.validation), "0")
    assert data.test and whole.validation and np.array_equal(data.test.labels, (whole.validation.labels == 0).astype(int))
    assert one_against_rest(replace(whole, validation=None), "0").validation is None


def test_the_rest_is_thinned_and_mislabelled_as_one_class() -> None:
    plain, rare = opened("digits", one_against_rest="3"), opened("digits", one_against_rest="3", imbalance=10)
    threes = int(plain.train.labels.sum())
    assert np.bincount(rare.train.labels).tolist() == [threes, threes // 10]  # the positives become rare
    noisy = opened("digits", one_against_rest="3", label_noise=0.1).train
    assert noisy.originals is not None and np.array_equal(noisy.originals, plain.train.labels)
    wrong = noisy.labels != noisy.originals
    assert wrong.sum() == round(0.1 * len(noisy)) and set(noisy.labels.tolist()) == {0, 1}


def test_a_class_that_is_not_there_is_told_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data:\n  name: digits\n  one_against_rest: three\nmodel: tiny_convnet\nepochs: 1\nschedule: {lr: 0.1}\n")
    with pytest.raises(RecipeError) as caught:
        launch(load(tmp_path / "r.yaml"), out=tmp_path / "run", quiet=True)
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.path) == (3, "data.one_against_rest") and not (tmp_path / "run").exists()
    assert mistake.message == "the data has no class 'three'; there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


def test_what_makes_no_two_classes_is_refused(tmp_path: Path) -> None:
    for name in ("rest", "b"):
        (tmp_path / name).mkdir()
        for n in range(4):
            Image.new("L", (8, 8), n).save(tmp_path / name / f"{n}.png")
    folder = {"root": str(tmp_path), "size": 8, "workers": 0, "cache": False}
    with pytest.raises(UserError, match="the class is called rest, as are all the others together"):
        opened("folder", **folder, one_against_rest="rest")
    assert opened("folder", **folder, one_against_rest="b").classes == ("rest", "b")
    with pytest.raises(UserError, match="there is one class only"):
        one_against_rest(replace(opened("folder", **folder), classes=("b",)), "b")
