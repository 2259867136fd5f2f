"""The coco part: an expected table written by hand, what is refused and how, and that no file can make it do more than read."""

from __future__ import annotations

import copy
import json
import pickle
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotating import coco_folder, instances
from PIL import Image

from trainrun.errors import UserError
from trainrun.parts.datasets import coco
from trainrun.parts.datasets.splits import Split
from trainrun.recipe.registry import registry

coco_part = coco.coco


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path_factory.mktemp("cache")))


def made(root: Path, **options: Any) -> Any:
    return coco_part(**{"root": str(root), "train": "train.json", "train_pictures": "pictures", **options})


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        made(root, **options)
    return str(caught.value).replace(f"{root}/", "")


def rows(split: Split) -> dict[str, Any]:
    """By the name of each picture: height and width, and its boxes with label and whether they are ignored."""
    assert split.boxes is not None and split.sizes is not None
    found = {}
    for n, its in enumerate(split.boxes):
        boxes = list(zip(its.boxes.tolist(), its.labels.tolist(), its.ignored.tolist(), strict=True))
        found[split.source(n).partition("pictures/")[2]] = (split.sizes[n].tolist(), boxes)
    return found


# Classes in the order of ids 1, 2, 18: person, bicycle, dog. Boxes of a picture in the order of the file.
EXPECTED = {
    "b.png": ([20, 30], [([0, 0, 30, 20], 0, True), ([0, 4, 30, 4.5], 2, False)]),
    "deep/a.png": ([40, 24], [([1.5, 2.25, 11.5, 32.25], 2, False), ([0, 0, 24, 40], 1, False)]),
    "empty.png": ([10, 10], []),
}


def test_what_a_file_says(tmp_path: Path) -> None:
    data = made(coco_folder(tmp_path))
    assert data.classes == ("person", "bicycle", "dog") and data.validation is None and data.test is None and data.skipped == ()
    assert registry.get("data", "coco").facts == {"task": "detection"}  # type: ignore[union-attr]  # it is registered
    found = rows(data.train)
    assert list(found) == list(EXPECTED)
    for name, (size, boxes) in EXPECTED.items():
        assert found[name][0] == size and [each[1:] for each in found[name][1]] == [each[1:] for each in boxes]
        np.testing.assert_allclose([each[0] for each in found[name][1]], [each[0] for each in boxes], rtol=1e-6)
    assert data.train.shape == (40, 30, 3) and data.train.labels.tolist() == [0, 0, 0]
    assert data.notes == ("1 of 4 boxes reached beyond their picture and are cut at its edge", "no box to train on is of class person")
    again = pickle.loads(pickle.dumps(data.train))
    for split in (data.train, again):
        pictures = split.read([1, 0])
        assert [p.shape for p in pictures] == [(40, 24, 3), (20, 30, 3)]
        assert (pictures[0] == np.asarray(Image.open(tmp_path / "pictures" / "deep" / "a.png"))).all()


def held() -> dict[str, Any]:
    return {
        "images": [{"id": 90, "file_name": "held.png", "width": 12, "height": 14}],
        "annotations": [{"id": 5, "image_id": 90, "category_id": 2, "bbox": [1, 1, 5, 5]}],
        "categories": list(reversed(instances()["categories"])),
    }


def test_three_files_and_their_folders(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, train=instances(), val=held())
    (root / "more").symlink_to(root / "pictures")
    data = made(root, validation=str(root / "val.json"), validation_pictures="pictures")
    assert rows(data.validation) == {"held.png": ([14, 12], [([1, 1, 6, 6], 1, False)])}
    test = {**held(), "images": [{**held()["images"][0], "file_name": "./empty.png", "width": 10, "height": 10}]}
    (root / "test.json").write_text(json.dumps(test))
    data = made(root, validation="val.json", validation_pictures="pictures", test="test.json", test_pictures="more")
    assert data.test is not None and data.test.source(0).endswith("more/empty.png")
    told = refused(root, validation="val.json", validation_pictures="pictures", test="test.json", test_pictures="pictures")
    assert "test.json: pictures/empty.png in " in told and "train.json too; test must not see pictures of train" in told


def test_the_order_of_a_file_does_not_matter(tmp_path: Path) -> None:
    first = made(coco_folder(tmp_path))
    content = instances()
    content["categories"].reverse()
    order = sorted(content["annotations"], key=lambda each: each["image_id"])  # those of each picture stay in their order
    content["annotations"] = order
    (tmp_path / "train.json").write_text(json.dumps(content))
    second = made(tmp_path)
    assert second.train.digest == first.train.digest and rows(second.train) == rows(first.train)
    random.Random(0).shuffle(content["images"])
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "train.json").write_text(json.dumps(content))
    third = made(tmp_path)
    assert third.train.digest != first.train.digest and rows(third.train) != rows(first.train)


def test_pictures_are_verified_against_their_stated_size(tmp_path: Path) -> None:
    content = instances()
    content["images"][1].update(width=40, height=24)
    content["annotations"] = content["annotations"][1:3]
    told = refused(coco_folder(tmp_path, train=content))
    assert "deep/a.png has 24 x 40 pixels (width x height), its annotation says 40 x 24, so it was perhaps annotated before it was turned" in told
    with pytest.raises(UserError, match=r"deep/a.png has 24 x 40 pixels"):
        made(tmp_path, verify="off").train.read([1])


def edited(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Sets fields of the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


def _image(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update(changes)


def _category(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["categories"][0].update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edited(image_id=1), "train.json: annotation 5 of image 1: there is no such image"),
        (edited(image_id="7"), "annotation 5 of image '7': there is no such image"),
        (edited(category_id=99), "annotation 5 of image 7: there is no category 99"),
        (edited(category_id=None), "annotation 5 of image 7: there is no category none"),
        (edited(id=3), "annotation 3 is there twice"),
        (edited(id=1.5), "annotation number 1: found 1.5 as id, expected a whole number"),
        (edited(id=True), "annotation number 1: found True as id"),
        (edited(bbox=[1, 2, 3]), "annotation 5 of image 7: found list as bbox, expected four numbers: x, y, width, height"),
        (edited(bbox=[1, 2, 3, "4"]), "found list as bbox, expected four numbers"),
        (edited(bbox=[1, 2, 3, True]), "found list as bbox, expected four numbers"),
        (edited(bbox=None), "found none as bbox, expected four numbers"),
        (edited(bbox=[1, 2, 0, 5]), "annotation 5 of pictures/deep/a.png (dog, 1 2 0 5): 0 x 5 pixels, expected more than 0 in both directions"),
        (edited(bbox=[1, 2, 3, -5]), "annotation 5 of pictures/deep/a.png (dog, 1 2 3 -5): 3 x -5 pixels"),
        (edited(bbox=[1, 2, 3, float("nan")]), "(dog, 1 2 3 nan): a number that is not finite"),
        (edited(bbox=[float("-inf"), 2, 3, 3]), "(dog, -inf 2 3 3): a number that is not finite"),
        (edited(bbox=[1e308, 2, 1e308, 3]), "(dog, 1e+308 2 1e+308 3): a number that is not finite"),
        (edited(bbox=[10**400, 2, 3, 3]), "(dog, inf 2 3 3): a number that is not finite"),
        (edited(bbox=[20, 2, 5.5, 3]), "(dog, 20 2 5.5 3): reaches more than a pixel beyond the picture, which has 24 x 40 pixels"),
        (edited(bbox=[24, 2, 5, 3]), "(dog, 24 2 5 3): lies outside the picture"),
        (edited(bbox=[3, -9, 5, 9]), "(dog, 3 -9 5 9): lies outside the picture"),
        (_image(id=7), "train.json: image 7 is there twice"),
        (_image(id=None), "image number 1: found none as id, expected a whole number"),
        (_image(file_name="../b.png"), "image 90: file_name ../b.png leads out of the folder"),
        (_image(file_name="deep/../../../x"), "leads out of the folder"),
        (_image(file_name="/etc/passwd"), "image 90: file_name /etc/passwd leads out of the folder"),
        (_image(file_name="..\\b.png"), "leads out of the folder"),
        (_image(file_name="b\0.png"), "leads out of the folder"),
        (_image(file_name="\ud800.png"), r"image 90: found '\ud800.png' as file_name"),
        (_image(file_name="c\x1b[2J.png"), r"pictures/c\x1b[2J.png is missing"),
        (_image(file_name="deep/a.png"), "train.json: pictures/deep/a.png is listed twice"),
        (_image(file_name="./deep//a.png"), "train.json: pictures/deep/a.png is listed twice"),
        (_image(file_name=3), "image 90: found 3 as file_name, expected a path"),
        (_image(width=0), "image 90 (b.png): found 0 x 20 as its width and height"),
        (_image(height="20"), "image 90 (b.png): found 30 x '20' as its width and height"),
        (_category(id=2), "category 2 is there twice"),
        (_category(name="bicycle"), "two categories are called bicycle"),
        (_category(name=" "), "category 18: found ' ' as name, expected text of 1 to 200 characters"),
        (lambda content: content.update(annotations=[]), "train.json: no box in it"),
        (lambda content: content.update(images=[]), "data.train: train.json has no images"),
        (lambda content: content.pop("categories"), "data.train: train.json has no list of categories; expected COCO's format of instances"),
        (lambda content: content["images"].append(5), "image number 4: found none as id"),
        (lambda content: content["annotations"].append([]), "annotation number 5: found none as id"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    content = copy.deepcopy(instances())
    spoil(content)
    told = refused(coco_folder(tmp_path, train=content))
    assert message in told and all(line.isprintable() for line in told.splitlines()), told


def test_other_files_have_the_same_categories(tmp_path: Path) -> None:
    other = held()
    other["categories"][0]["name"] = "human"
    root = coco_folder(tmp_path, train=instances(), val=other)
    told = refused(root, validation="val.json", validation_pictures="pictures")
    assert "val.json: category 1 is human, in the training file person; all files must have the same" in told
    other["categories"] = other["categories"][1:]
    coco_folder(tmp_path, train=instances(), val=other)
    assert "val.json: category 1 is missing, in the training file person" in refused(root, validation="val.json", validation_pictures="pictures")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["category_id"] = 4
    content["annotations"][2]["bbox"][2] = 0
    content["images"][2]["file_name"] = "gone.png"
    told = refused(coco_folder(tmp_path, train=content))
    assert told.startswith("the annotations have 3 mistakes:\n") and "pictures/gone.png is missing" in told
    assert "data.validation: val.json is missing; write data.validation=FILE below data.root, or null for none" in refused(tmp_path, validation="val.json")
    assert "data.train: nothing.json is missing; write data.train=FILE below data.root" in refused(tmp_path, train="nothing.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 990_000, "is not JSON"),
        ("[" * 490_000 + "]" * 490_000, "is not JSON"),
        ('{"a":' * 150_000, "is not JSON"),
        ("[" + "{}," * 300_000 + "{}]", "has no list of images, annotations, categories"),
        ('{"images": [' + "1" * 900_000 + "]}", "is not JSON: Exceeds the limit"),
        ('{"images": [' + "[]," * 300_000 + '[]], "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "image number 1: found none as id"),
        ('{"images": [{"id": 1, "file_name": "' + "a/" * 400_000 + '", "width": 1, "height": 1}], "annotations": [], "categories": [1]}', "as file_name, expected a path"),
        ("\xff\xfe", "is not JSON"),
        ("", "is not JSON"),
        ('{"images": {}, "annotations": [], "categories": []}', "has no list of images"),
    ],
    ids=["open", "deep", "mappings", "empty-mappings", "number", "lists", "path", "bytes", "empty", "kinds"],
)  # fmt: skip
def test_no_small_file_costs_much(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(content.encode("latin-1"))
    assert file.stat().st_size < 1 << 20
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    told = refused(tmp_path)
    assert reason in told and len(told) < 10_000
    assert time.process_time() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_outlines_are_dropped_while_reading(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["segmentation"] = [[0.5] * 200_000]
    root = coco_folder(tmp_path, train=content)
    loaded = coco._load(str(root / "train.json"), "train")
    assert all("segmentation" not in each for each in loaded["annotations"]) and len(loaded["annotations"]) == 4
