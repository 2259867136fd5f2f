"""Small folders of annotated pictures for tests: in the Pascal VOC layout, and in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Object = tuple[str, float, float, float, float]


def picture(file: Path, width: int, height: int, seed: int = 0) -> None:
    """A picture of noise, of which no two are alike."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def annotation(name: str, width: Any, height: Any, objects: Sequence[Object], extra: str = "", head: str = "") -> str:
    """The text of a VOC file, with what others write into theirs around it."""
    boxes = "".join(
        f"<object><name>{label}</name><pose>Left</pose><truncated>1</truncated><difficult>{int(label.endswith('!'))}</difficult><bndbox>"
        f"<xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>{extra}</object>\n"
        for label, x0, y0, x1, y1 in objects
    ).replace("!</name>", "</name>")
    name = "".join(c for c in name if c.isprintable())  # XML has no others
    return (
        f"{head}<annotation>\n<folder>elsewhere</folder><filename>{name}.png</filename><path>C:\\pictures\\{name}.png</path>"
        f"<source><database>&lt;none&gt;</database></source><size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"<segmented>0</segmented>\n{boxes}</annotation>\n"
    )


VOC: dict[str, list[tuple[str, int, int, list[Object]]]] = {
    "train": [
        ("one", 40, 30, [("dog", 1, 1, 40, 30), ("cat", 3, 4, 3 + 9, 4 + 5)]),
        ("two", 21, 33, [("cat!", 2, 2, 21, 33)]),
        ("three", 32, 32, []),
        ("four.five", 25, 20, [("dog", 5.5, 1, 10, 20), ("dog", 0, 3, 26, 19), ("bird", 2, 2, 20, 9)]),
    ],
    "val": [("six", 30, 30, [("bird", 11, 12, 20, 30)])],
    "test": [("seven", 16, 50, [("dog", 1, 1, 8, 8), ("cat", 9, 9, 16, 50)])],
}  # fmt: skip


def voc_folder(root: Path, sides: Mapping[str, Sequence[tuple[str, int, int, list[Object]]]] = VOC) -> Path:
    """Annotations, lists and pictures."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for side, rows in sides.items():
        (root / "ImageSets" / "Main" / f"{side}.txt").write_text("".join(f"{name}\n" for name, *_ in rows))
        for seed, (name, width, height, objects) in enumerate(rows):
            picture(root / "JPEGImages" / f"{name}.png", width, height, seed)
            (root / "Annotations" / f"{name}.xml").write_text(annotation(name, width, height, objects))
    return root


def change(root: Path, name: str, old: str, new: str, count: int = 1) -> None:
    """Replace something in one annotation."""
    file = root / "Annotations" / f"{name}.xml"
    text = file.read_text()
    assert old in text, (old, text)
    file.write_text(text.replace(old, new, count))


def instances() -> dict[str, Any]:
    """COCO's format: ids with gaps and in no order, outlines, a crowd, a picture without boxes, fields that nobody needs."""
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": 90, "file_name": "b.png", "width": 30, "height": 20, "license": 1},
            {"id": 7, "file_name": "deep/a.png", "width": 24, "height": 40},
            {"id": 8, "file_name": "empty.png", "width": 10, "height": 10},
        ],
        "annotations": [
            {
                "id": 5,
                "image_id": 7,
                "category_id": 18,
                "bbox": [1.5, 2.25, 10, 30],
                "iscrowd": 0,
                "area": 300,
                "segmentation": [[1, 2, 3, 4, 5, 6]],
            },
            {
                "id": 3,
                "image_id": 90,
                "category_id": 1,
                "bbox": [0, 0, 30, 20],
                "iscrowd": 1,
                "segmentation": {"counts": [1], "size": [20, 30]},
            },
            {"id": 4, "image_id": 90, "category_id": 18, "bbox": [-0.3, 4, 30.5, 0.5], "area": 1},
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 24, 40], "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 2, "name": "bicycle"}, {"id": 1, "name": "person"}],
    }


def coco_folder(root: Path, **files: dict[str, Any]) -> Path:
    """Pictures below `pictures/`, and an annotation file of each name."""
    for seed, (name, width, height) in enumerate((("b.png", 30, 20), ("deep/a.png", 24, 40), ("empty.png", 10, 10), ("held.png", 12, 14))):
        picture(root / "pictures" / name, width, height, seed)
    for name, content in (files or {"train": instances()}).items():
        (root / f"{name}.json").write_text(json.dumps(content))
    return root
