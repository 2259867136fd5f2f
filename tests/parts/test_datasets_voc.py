"""The voc part: what it reads, what it refuses and how it says so, and that no file can make it do more than read."""

from __future__ import annotations

import os
import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from annotating import VOC, annotation, change, picture, voc_folder
from PIL import Image

from trainrun.errors import UserError
from trainrun.parts.datasets import Data, verify, voc, voc_xml
from trainrun.recipe.registry import registry

voc_part = voc.voc


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path_factory.mktemp("cache")))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        voc_part(root=str(root), **options)
    return str(caught.value).replace(f"{root}/", "")


def test_what_a_folder_holds(tmp_path: Path) -> None:
    data = voc_part(root=str(voc_folder(tmp_path)))
    assert data.classes == ("bird", "cat", "dog") and data.skipped == () and data.validation and data.test
    assert registry.get("data", "voc").facts == {"task": "detection"}  # type: ignore[union-attr]  # it is registered
    train = data.train
    assert train.shape == (33, 40, 3) and train.cache and train.labels.tolist() == [0] * 4 and train.labels.dtype == np.int64
    assert train.sizes is not None and train.sizes.tolist() == [[30, 40], [33, 21], [32, 32], [20, 25]] and train.sizes.dtype == np.int32
    assert train.boxes is not None and len(train.boxes) == 4
    assert train.boxes[0].boxes.tolist() == [[0, 0, 40, 30], [2, 3, 12, 9]] and train.boxes[0].labels.tolist() == [2, 1]
    assert train.boxes[1].ignored.tolist() == [True] and not train.boxes[0].ignored.any()
    assert train.boxes[2].boxes.shape == (0, 4) and len(train.boxes[2]) == 0
    assert train.boxes[3].boxes.tolist() == [[4.5, 0, 10, 20], [0, 2, 25, 19], [1, 1, 20, 9]]
    assert [array.dtype for array in (train.boxes[0].boxes, train.boxes[0].labels, train.boxes[0].ignored)] == [
        np.float32,
        np.int64,
        np.bool_,
    ]
    assert data.notes == ("1 of 9 boxes reached beyond their picture and are cut at its edge",)
    assert (
        data.validation.boxes
        and data.validation.boxes[0].labels.tolist() == [0]
        and data.validation.boxes[0].boxes.tolist() == [[10, 11, 20, 30]]
    )
    assert data.test.boxes and data.test.boxes[-1].labels.tolist() == [2, 1] and len(data.test.boxes[:]) == 1
    assert [train.source(n) for n in range(4)] == [str(tmp_path / "JPEGImages" / f"{name}.png") for name, *_ in VOC["train"]]


def test_pictures_are_read_in_any_order_and_in_another_process(tmp_path: Path) -> None:
    train = voc_part(root=str(voc_folder(tmp_path))).train
    again = pickle.loads(pickle.dumps(train))
    for split in (train, again):
        pictures = split.read([3, 0, 3])
        assert isinstance(pictures, list) and [p.shape for p in pictures] == [(20, 25, 3), (30, 40, 3), (20, 25, 3)]
        expected = [np.asarray(Image.open(split.source(n))) for n in (3, 0, 3)]
        assert all(p.dtype == np.uint8 and (p == e).all() for p, e in zip(pictures, expected, strict=True))
    assert again.boxes[3].boxes.tolist() == train.boxes[3].boxes.tolist()  # type: ignore[index]  # they have boxes
    os.remove(train.source(1))
    picture(Path(train.source(2)), 31, 32)
    with pytest.raises(UserError, match="2 of 4 pictures cannot be used") as caught:
        train.read([0, 1, 2, 3])
    assert "two.png: No such file" in str(
        caught.value
    ) and "three.png has 31 x 32 pixels (width x height), its annotation says 32 x 32" in str(caught.value)


def test_the_area_is_that_of_the_pixels(tmp_path: Path) -> None:
    """Painted by the inclusive numbers of the file, counted by the edges of the box."""
    train = voc_part(root=str(voc_folder(tmp_path))).train
    assert train.boxes
    for (_, width, height, objects), boxes in zip(VOC["train"][:2], train.boxes, strict=False):
        for (_, *sides), box in zip(objects, boxes.boxes, strict=True):
            first_column, first_row, last_column, last_row = map(int, sides)
            canvas = np.zeros((height + 1, width + 1))
            canvas[first_row : last_row + 1, first_column : last_column + 1] = 1
            assert canvas.sum() == (box[2] - box[0]) * (box[3] - box[1])


def test_elementtree_reads_the_same(tmp_path: Path) -> None:
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!-- by hand -->\n'
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    for _, width, height, objects in VOC["train"]:
        text = annotation("naïve & <b>".replace("&", "&amp;").replace("<", "&lt;"), width, height, objects, part, head)
        ours, theirs = voc_xml.parse(text.encode()), ElementTree.fromstring(text)
        assert ours.filename == theirs.findtext("filename") == "naïve & <b>.png" and ours.shape == (height, width)
        found = theirs.findall("object")
        assert [each.name for each in ours.objects] == [each.findtext("name") for each in found]
        assert [each.difficult for each in ours.objects] == [each.findtext("difficult") == "1" for each in found]
        assert [each.sides for each in ours.objects] == [
            tuple(float(each.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")) for each in found
        ]


def test_classes_by_name_and_difficult_ones(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    data = voc_part(root=str(root), classes=["dog", "bird", "cow", "cat"], keep_difficult=True, test=None, validation=None)
    assert data.classes == ("dog", "bird", "cow", "cat") and data.validation is None and data.test is None
    assert data.train.boxes and data.train.boxes[0].labels.tolist() == [0, 3] and not data.train.boxes[1].ignored.any()
    assert data.notes[-1] == "no box to train on is of class cow"
    assert "data.classes: dog is there twice" in refused(root, classes=["dog", "cat", "dog"])
    told = refused(root, classes=["bird", "Cat"])
    assert "Annotations/one.xml: object 1 (dog, 1 1 40 30) and 2 more boxes: a class that is not in data.classes" in told
    assert "Annotations/one.xml: object 2 (cat, 3 4 12 9) and 1 more boxes: a class that is not in data.classes; did you mean Cat?" in told
    change(root, "six", "bird", "bat")
    assert "Annotations/six.xml: object 1 (bat, 11 12 20 30): a class that is not in the training boxes; did you mean cat?" in refused(root)


def test_a_digest_for_each_content(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)

    def digest(**options: Any) -> str:
        return voc_part(root=str(root), **options).train.digest

    first = digest()
    assert first == digest() == digest(verify="off") != digest(keep_difficult=True) != digest(classes=["dog", "cat", "bird"])
    change(root, "one", "<xmax>12</xmax>", "<xmax>13</xmax>")
    moved = digest()
    assert moved != first
    picture(root / "JPEGImages" / "one.png", 40, 30, 99)
    assert digest() != moved


LISTS = "ImageSets/Main"


def _named(root: Path, side: str, *names: str) -> None:
    (root / LISTS / f"{side}.txt").write_text("\n".join(names))


@pytest.mark.parametrize(
    ("spoil", "options", "messages"),
    [
        (lambda root: None, {"train": "trian"}, [f"data.train: {LISTS}/trian.txt is missing; write data.train=NAME of a list in that folder"]),
        (lambda root: [(root / LISTS / f"{side}.txt").unlink() for side in ("val", "test")], {},
         [f"data.validation: {LISTS}/val.txt is missing", "data.test=NAME of a list in that folder, or null for none"]),
        (lambda root: None, {"test": "../../x"}, ["data.test: '../../x' is no name of a list"]),
        (lambda root: _named(root, "val"), {}, [f"data.validation: {LISTS}/val.txt lists no picture"]),
        (lambda root: _named(root, "train", "one", "two", "one"), {}, [f"{LISTS}/train.txt: one is listed twice"]),
        (lambda root: _named(root, "val", "six", "two"), {}, [f"{LISTS}/val.txt: JPEGImages/two.png in ", f"{LISTS}/train.txt too; validation must not"]),
        (lambda root: _named(root, "train", "one", "../one", "/etc/passwd", "a\x1b[2J"), {},
         ["Annotations/../one.xml: the list names a path", "Annotations//etc/passwd.xml: the list names a path",
          r"Annotations/a\x1b[2J.xml: there is no picture JPEGImages/a\x1b[2J.jpg"]),
        (lambda root: _named(root, "val", "three"), {"train": "test", "test": None, "classes": ["dog", "cat"]}, [f"{LISTS}/val.txt: no box in it"]),
        (lambda root: (root / "JPEGImages/two.png").unlink(), {}, ["Annotations/two.xml: there is no picture JPEGImages/two.jpg"]),
        (lambda root: picture(root / "JPEGImages/two.bmp", 21, 33), {}, ["Annotations/two.xml: two.bmp and two.png are two pictures of this name"]),
        (lambda root: (root / "Annotations/two.xml").unlink(), {}, ["Annotations/two.xml: is missing"]),
        (lambda root: change(root, "two", "<xmin>2</xmin>", ""), {}, ["Annotations/two.xml: object 1 (cat): has no xmin"]),
        (lambda root: change(root, "two", "<xmin>2</xmin>", "<xmin>two</xmin>"), {}, ["object 1 (cat): xmin: found 'two', expected a number"]),
        (lambda root: change(root, "two", "<name>cat</name>", "<name> </name>"), {}, ["Annotations/two.xml: object 1 has no name"]),
        (lambda root: change(root, "two", "two.png", "../two.png"), {}, ["Annotations/two.xml: filename ../two.png leads out of the folder"]),
        (lambda root: change(root, "two", "<width>21</width>", "<width>big</width>"), {}, ["Annotations/two.xml: size/width: found 'big'"]),
        (lambda root: change(root, "two", "</annotation>", ""), {}, ["Annotations/two.xml: not XML: no element found in line"]),
        (lambda root: change(root, "two", "<annotation>", "<html>"), {}, ["its outermost element is html, expected annotation"]),
        (lambda root: change(root, "two", "<xmin>2</xmin>", "<xmin>2</xmin><xmin>3</xmin>"), {}, ["object 1 has two of xmin"]),
        (lambda root: change(root, "two", "<xmin>2</xmin>", "<xmin>nan</xmin>"), {}, ["object 1 (cat, nan 2 21 33): a number that is not finite"]),
        (lambda root: change(root, "two", "<xmin>2</xmin>", "<xmin>21</xmin>"), {}, ["object 1 (cat, 21 2 21 33): 1 x 32 pixels, expected more than 1"]),
        (lambda root: change(root, "two", "<ymax>33</ymax>", "<ymax>1</ymax>"), {}, ["object 1 (cat, 2 2 21 1): 20 x 0 pixels, expected more than 1"]),
        (lambda root: change(root, "two", "<ymax>33</ymax>", "<ymax>35</ymax>"), {},
         ["object 1 (cat, 2 2 21 35): reaches more than a pixel beyond the picture, which has 21 x 33 pixels", "write data.on_bad_box=drop"]),
        (lambda root: change(root, "four.five", "<xmin>0</xmin><ymin>3</ymin>", "<xmin>30</xmin><ymin>3</ymin>"), {}, ["object 2 (dog, 30 3 26 19): -3 x 17"]),
        (lambda root: [change(root, "six", "<xmin>11", "<xmin>50"), change(root, "six", "<xmax>20", "<xmax>60")], {},
         ["six.xml: object 1 (bird, 50 12 60 30): lies outside the picture, which has 30 x 30 pixels"]),
        (lambda root: change(root, "two", "<width>21</width>", "<width>22</width>"), {},
         ["1 pictures have another size than their annotation says", "two.png has 21 x 33 pixels (width x height), its annotation says 22 x 33"]),
        (lambda root: (root / "JPEGImages/two.png").write_bytes(b"GIF89a"), {"on_bad_image": "skip"},
         ["1 of 6 pictures cannot be read:", "two.png: ", "data.on_bad_image=skip leaves out at most 0.1 %"]),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, spoil: Callable[[Path], Any], options: dict[str, Any], messages: list[str]) -> None:
    spoil(voc_folder(tmp_path))
    told = refused(tmp_path, **options)
    for message in messages:
        assert message in told, told


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    change(root, "one", "<xmax>12</xmax>", "<xmax>inf</xmax>")
    change(root, "six", "bird", "bat")
    (root / "JPEGImages" / "seven.png").unlink()
    change(root, "four.five", "</object>", "")
    assert refused(root).startswith("the annotations have 3 mistakes:\n")
    assert refused(root).count("\n") == 4
    told = refused(root, classes=["cat", "bird", "dog"])
    assert told.startswith("the annotations have 4 mistakes:\n") and "six.xml: object 1 (bat, 11 12 20 30): a class" in told
    assert refused(tmp_path / "none").startswith("data.root: ") and "does not exist" in refused(tmp_path / "none")
    many = {"train": [("p", 9, 9, [("dog", 5, 5, 5, 5)] * 30)]}
    assert "  and 10 more" in refused(voc_folder(tmp_path / "many", many), validation=None, test=None)


def _hundred(root: Path, *bad: tuple[float, float, float, float]) -> Path:
    good = [("dog", 1.0, 1.0, 10.0, 10.0)] * (200 - len(bad))
    sides: dict[str, Any] = {"train": [("big", 50, 50, [*good, *(("cat", *box) for box in bad)])]}
    return voc_folder(root, sides)


def test_bad_boxes_are_dropped_or_cut(tmp_path: Path) -> None:
    root = _hundred(tmp_path / "a", (20, 20, 20, 40), (40, 41, 60, 70))
    options: dict[str, Any] = {"root": str(root), "validation": None, "test": None}

    def left(data: Data) -> list[list[float]]:
        assert data.train.boxes
        return data.train.boxes[0].boxes[198:].tolist()

    dropped, cut = voc_part(**options, on_bad_box="drop"), voc_part(**options, on_bad_box="clip")
    assert left(dropped) == [] and left(cut) == [[39, 40, 50, 50]]
    assert (
        dropped.notes[0].startswith("2 of 200 boxes are left out: ") and "object 199 (cat, 20 20 20 40): 1 x 21 pixels" in dropped.notes[0]
    )
    assert dropped.notes[1] == "no box to train on is of class cat"
    assert (
        cut.notes[0].startswith("1 of 200 boxes are left out: ")
        and cut.notes[1] == "1 of 200 boxes reached beyond their picture and are cut at its edge"
    )
    assert cut.train.digest != dropped.train.digest
    told = refused(root, validation=None, test=None)
    assert "the annotations have 2 mistakes" in told and "data.on_bad_box=drop" in told
    three = _hundred(tmp_path / "b", *[(20, 20, 20, 40)] * 3)
    assert "data.on_bad_box=drop leaves out at most 1 % of the boxes" in refused(three, validation=None, test=None, on_bad_box="drop")
    # What is left of this one after cutting is a line.
    line = _hundred(tmp_path / "c", (50.5, 20, 70, 40))
    assert left(voc_part(root=str(line), validation=None, test=None, on_bad_box="clip")) == [[0, 0, 10, 10]]


def test_unreadable_pictures_may_be_skipped_and_their_boxes_with_them(tmp_path: Path) -> None:
    sides: dict[str, Any] = {"train": [(f"p{n:04}", 8, 8, [("dog", 1, 1, 1 + n % 7 + 1, 8)]) for n in range(1000)]}
    root = voc_folder(tmp_path, sides)
    (root / "JPEGImages" / "p0500.png").write_bytes(b"")
    assert "p0500.png: an empty file\nrepair or remove them" in refused(root, validation=None, test=None)
    data = voc_part(root=str(root), validation=None, test=None, on_bad_image="skip")
    assert len(data.train) == 999 and data.skipped == ((str(root / "JPEGImages" / "p0500.png"), "an empty file"),)
    assert data.train.boxes and data.train.sizes is not None and len(data.train.boxes) == len(data.train.sizes) == 999
    for n, name in ((499, 499), (500, 501), (998, 999)):
        assert data.train.source(n).endswith(f"p{name:04}.png") and data.train.boxes[n].boxes[0, 2] == name % 7 + 2
    again = voc_part(root=str(root), validation=None, test=None, on_bad_image="skip")  # what was found is remembered, sizes included
    assert again.train.digest == data.train.digest and again.skipped == data.skipped
    change(root, "p0003", "<width>8</width>", "<width>9</width>")
    assert "p0003.png has 8 x 8 pixels" in refused(root, validation=None, test=None, on_bad_image="skip")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_that_exif_turns_is_refused(tmp_path: Path, orientation: int) -> None:
    root = voc_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30), "red").save(root / "JPEGImages" / "one.png", exif=exif)
    assert "one.png: EXIF turns it" in refused(root)
    data = voc_part(root=str(root), verify="off")
    with pytest.raises(UserError, match="one.png: EXIF turns it"):
        data.train.read([0])


def test_a_size_that_is_not_stated_is_the_pictures(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    change(root, "one", "<width>40</width>", "<width>0</width>")
    change(root, "two", "<size><width>21</width><height>33</height><depth>3</depth></size>", "")
    data = voc_part(root=str(root), verify="off")
    assert data.train.sizes is not None and data.train.sizes.tolist()[:2] == [[30, 40], [33, 21]]
    (root / "JPEGImages" / "two.png").write_bytes(b"\x89PNG")
    assert "Annotations/two.xml: " in refused(root, verify="off")


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "a\x1b[31m", {"train": [("ünï \x1b]0;x\x07", 9, 9, [("dog&#x202e;", 1, 1, 5, 5)])]})
    data = voc_part(root=str(root), validation=None, test=None)
    assert data.classes == ("dog\\u202e",) and data.train.source(0).isprintable()
    told = refused(root, validation=None, test=None, classes=["cat"])
    assert all(line.isprintable() for line in told.splitlines()) and "dog\\u202e" in told


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB + "<annotation><filename>&i;</filename></annotation>", "it has a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "it has a document type"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:1/x">]><annotation><filename>&x;</filename></annotation>', "it has a document type"),
        ("<annotation><filename>&x;</filename></annotation>", "not XML: undefined entity"),
        ("<annotation>" + "<a>" * 300_000, "elements stand more than 32 deep"),
        ("<annotation><a" + "".join(f' b{n}="1"' for n in range(80_000)) + "/></annotation>", ""),
        ("<annotation>" + "<object/>" * 110_000 + "</annotation>", "object 1 (): has no xmin"),
        ("<annotation><size><width>" + "9" * 900_000 + "</width><height>1</height></size></annotation>", "size/width: found '999"),
        ("<annotation><object><name>" + "x" * 900_000 + "</name></object></annotation>", "object 1 (xxx"),
        ('<?xml version="1.0" encoding="no such"?><annotation/>', "not XML"),
        ('<?xml version="1.0" encoding="zlib_codec"?><annotation/>', "not XML"),
        ("", "not XML: no element found"),
        ("\0" * 999_000, "not XML"),
    ],
    ids=["bomb", "external", "network", "entity", "deep", "attributes", "objects", "number", "name", "encoding", "codec", "empty", "zeros"],
)  # fmt: skip
def test_no_small_file_costs_much(tmp_path: Path, content: str, reason: str) -> None:
    root = voc_folder(tmp_path)
    file = root / "Annotations" / "one.xml"
    file.write_text(content)
    assert file.stat().st_size < 1 << 20
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if reason:
        told = refused(root)
        assert f"Annotations/one.xml: {reason}" in told and len(told) < 2000
    else:
        voc_part(root=str(root), classes=["dog", "cat", "bird"])
    assert time.process_time() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_a_list_of_a_megabyte_is_told_soon(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / LISTS / "train.txt").write_text("one\n" * 260_000)
    start = time.process_time()
    assert "one is listed 260,000 times" in refused(root) and time.process_time() - start < 5


def test_a_fifo_is_no_annotation(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "Annotations" / "one.xml").unlink()
    os.mkfifo(root / "Annotations" / "one.xml")
    assert "Annotations/one.xml: not a regular file" in refused(root)


@pytest.mark.parametrize("sides", [VOC, {"train": [(f"p{n}", 12, 9, [("dog", 1, 1, 9, 9)]) for n in range(3)]}], ids=["unequal", "equal"])
def test_sizes_are_remembered(tmp_path: Path, sides: Any) -> None:
    root = voc_folder(tmp_path, sides)
    files = [str(root / "JPEGImages" / f"{name}.png") for name, *_ in sides["train"]]
    Path(files[1]).write_bytes(b"no picture")
    verdicts = [verify.verify(files.__getitem__, len(files), "full", 3, None, "pillow", "digest", boxes=True) for _ in range(2)]
    for verdict in verdicts:
        assert verdict.sizes is not None and verdict.sizes.dtype == np.int32 and list(verdict.bad) == [1]
        assert verdict.sizes.tolist() == [[height, width] if n != 1 else [0, 0] for n, (_, width, height, _) in enumerate(sides["train"])]
    assert verdicts[0].pictures is verdicts[1].pictures is None
