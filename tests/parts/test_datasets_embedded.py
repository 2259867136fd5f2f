"""The data sets that come with trainrun: their splits, and that a sample is a pure function of its id."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainrun.errors import UserError
from trainrun.parts.datasets import Split
from trainrun.parts.datasets.embedded import PHOTOS, digits, photos10
from trainrun.parts.datasets.synthetic import synthetic
from trainrun.recipe.registry import registry

DATA = Path(__file__).parents[2] / "trainrun" / "data"


def check_split(split: Split) -> None:
    everything = split.read(range(len(split)))
    assert everything.shape == (len(split), *split.shape) and everything.dtype == np.uint8
    assert split.labels.dtype == np.int64 and split.labels.shape == (len(split),)
    some = [len(split) - 1, 0, 3, 3]
    assert (split.read(some) == everything[some]).all()
    again = pickle.loads(pickle.dumps(split))
    assert (again.read(np.array(some)) == everything[some]).all() and again.digest == split.digest
    assert len(split.digest) == 64 and split.source(0)


def test_modules_import_nothing_heavy() -> None:
    code = "import sys, trainrun.parts.datasets; print([m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'tqdm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_part_has_a_manual_and_described_options() -> None:
    for name in ("digits", "photos10", "synthetic", "folder", "cifar10", "cifar100", "mnist", "fashion_mnist"):
        part = registry.get("data", name)
        assert part and len(part.manual.splitlines()) > 1
        assert all(field.description for field in part.options.model_fields.values())


def test_digits_are_the_published_ones() -> None:
    data = digits()
    check_split(data.train)
    assert data.validation
    check_split(data.validation)
    # Known of the whole set: 1,797 digits, and how many there are of each.
    counts = np.bincount(data.train.labels) + np.bincount(data.validation.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(data.validation.labels).tolist() == [n // 5 for n in counts]
    first = ["0 0 5 13 9 1 0 0", "0 0 13 15 10 15 5 0", "0 3 15 2 0 11 8 0", "0 4 12 0 0 8 8 0"]
    expected = [[round(int(v) * 255 / 16) for v in row.split()] for row in first]
    assert data.train.read([0])[0, :4, :, 0].tolist() == expected
    assert len(np.unique(data.train.read(range(len(data.train))))) == 17


def test_photos10_is_balanced_and_its_crops_are_where_they_should_be() -> None:
    data = photos10(size=300, validation_size=100)
    assert data.validation
    check_split(data.train)
    check_split(data.validation)
    assert np.bincount(data.train.labels).tolist() == [30] * 10 and data.classes == PHOTOS
    for split, training in ((data.train, True), (data.validation, False)):
        pictures = split.read(range(40))
        for picture, label in zip(pictures, split.labels, strict=False):
            photo = np.asarray(Image.open(DATA / "photos10" / f"{PHOTOS[label]}.webp").convert("RGB"))
            border = photo.shape[1] * 3 // 4
            half = photo[:, :border] if training else photo[:, border:]
            rows, columns = half.shape[0] - 31, half.shape[1] - 31
            here = np.ones((rows, columns), bool)
            for y, x in ((0, 0), (31, 31), (7, 19), (20, 3), (13, 13)):
                here &= (half[y : y + rows, x : x + columns] == picture[y, x]).all(2)
            assert any((half[y : y + 32, x : x + 32] == picture).all() for y, x in np.argwhere(here))


def test_photos10_crops_are_spread_and_do_not_depend_on_how_many_there_are() -> None:
    few, many = photos10(size=100, validation_size=0), photos10(size=5000)
    assert few.validation is None and few.train.digest != many.train.digest
    assert (few.train.read(range(100)) == many.train.read(range(100))).all()
    assert len(np.unique(many.train.read(range(1, 5000, 10)).reshape(500, -1), axis=0)) > 490
    assert photos10(size=10, crop=96).train.read([9]).shape == (1, 96, 96, 3)


def test_photos10_and_its_licences_are_complete_and_small() -> None:
    files = sorted(path.stem for path in (DATA / "photos10").iterdir())
    notes = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    assert files == sorted(PHOTOS) and all(f"{name}.webp" in notes for name in PHOTOS) and "digits.npz" in notes
    assert sum(path.stat().st_size for path in DATA.rglob("*.*")) < 700_000


@pytest.mark.parametrize(("shape", "classes"), [([3, 32, 32], 10), ([1, 3, 5], 2), ([4, 17, 9], 1000)])
def test_synthetic_has_any_shape(shape: list[int], classes: int) -> None:
    data = synthetic(shape=shape, classes=classes, size=2000)
    assert data.validation and len(data.train) == 1600 and len(data.validation) == 400 and len(data.classes) == classes
    assert data.train.shape == (shape[1], shape[2], shape[0])
    check_split(data.train)
    check_split(data.validation)
    whole = synthetic(shape=shape, classes=classes, size=2000, validation=0.0)
    assert whole.validation is None and (whole.train.read([1600, 1999]) == data.validation.read([0, 399])).all()
    assert whole.train.labels[1600] == data.validation.labels[0] == 1600 % classes


def test_synthetic_is_a_pattern_plus_noise_of_the_given_size() -> None:
    clean, noisy = (synthetic(shape=[3, 24, 24], noise=noise, size=500).train for noise in (0.0, 0.1))
    patterns, pictures = clean.read(range(400)).astype(float), noisy.read(range(400)).astype(float)
    assert (patterns[:10] == patterns[10:20]).all() and len(np.unique(patterns.reshape(400, -1), axis=0)) == 10
    noise = (pictures - patterns) / 255
    assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.002
    assert abs(np.corrcoef(noise[0].ravel(), noise[10].ravel())[0, 1]) < 0.1
    nearest = ((pictures[:, None] - patterns[None, :10]) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == noisy.labels[:400]).mean() > 0.99
    assert clean.digest != noisy.digest


def test_synthetic_refuses_a_validation_set_of_nothing() -> None:
    with pytest.raises(UserError, match=r"data\.validation=0"):
        synthetic(size=3)
