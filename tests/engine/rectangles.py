"""Detection at a tiny size, for tests of the loop: a VOC folder of a dozen pictures with coloured rectangles, and runs on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small import CPU, Noted

from trainrun.engine.build import build, open_data, settle
from trainrun.engine.fit import fit
from trainrun.engine.launch import launch
from trainrun.engine.run import Run
from trainrun.engine.signals import Signals
from trainrun.recipe.load import Loaded, load
from trainrun.world import World

CLASSES = ("blue", "red")
Box = tuple[str, int, int, int, int]
COUNTS = {"train": 10, "val": 4, "test": 3}
SMALL: dict[str, Any] = {
    "model": {
        "name": "tiny_fasterrcnn",
        "width": 4,
        "depth": 2,
        "hidden": 16,
        "anchors": [8, 16],
        "proposals": 20,
        "rois": 12,
        "detections": 10,
    },
    "batch_size": 4,
    "epochs": 2,
    "schedule": {"lr": 0.02},
    "precision": "fp32",
    "checkpoint": {"every": "off"},
}


def drawn(seed: int, side: str, n: int) -> tuple[np.ndarray, list[Box]]:
    """A picture of its own size with one to three rectangles, uint8 [H, W, 3]; the first of each side are `difficult!` and none at all."""
    rng = np.random.default_rng([seed, sum(map(ord, side)), n])
    height, width = rng.integers(30, 44, 2).tolist()
    pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    boxes: list[Box] = []
    for place in range(0 if n == 1 else int(rng.integers(1, 4))):
        name = CLASSES[int(rng.integers(2))]
        wide, high = rng.integers(8, 16, 2).tolist()
        x, y = int(rng.integers(0, width - wide)), int(rng.integers(0, height - high))
        pixels[y : y + high, x : x + wide] = (20, 40, 230) if name == "blue" else (230, 40, 20)
        boxes.append((f"{name}!" if n == 0 and place else name, x, y, x + wide, y + high))
    return pixels, boxes


def folder(root: Path, counts: Mapping[str, int] = COUNTS, seed: int = 0, keep: bool = True) -> Path:
    """The pictures of some sides in the layout of Pascal VOC; without `keep` no picture has a box that counts but the first for training."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for side, count in counts.items():
        (root / "ImageSets" / "Main" / f"{side}.txt").write_text("".join(f"{side}{n}\n" for n in range(count)))
        for n in range(count):
            pixels, boxes = drawn(seed, side, n)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{side}{n}.png")
            if not keep and (side, n) != ("train", 0):
                boxes = [(name.rstrip("!") + "!", *box) for name, *box in boxes]  # type: ignore[misc]  # four numbers again
            (root / "Annotations" / f"{side}{n}.xml").write_text(annotation(f"{side}{n}", pixels.shape, boxes))
    return root


def annotation(name: str, shape: Sequence[int], boxes: Sequence[Box]) -> str:
    """VOC's file on a picture: pixels are counted from 1, and the last belongs to the box; `!` marks difficult ones."""
    objects = "".join(
        f"<object><name>{label.rstrip('!')}</name><difficult>{int(label.endswith('!'))}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
        f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in boxes
    )
    size = f"<size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


def written(home: Path, **fields: Any) -> Loaded:
    """The recipe SMALL on the folder `home`/voc, with other fields, by way of a file."""
    data = {"name": "voc", "root": str(home / "voc"), "verify": "off", "workers": 0}
    if not (home / "voc").exists():
        folder(home / "voc")
    (home / "boxes.yaml").write_text(json.dumps({"data": data} | SMALL | fields))
    return load(home / "boxes.yaml")


def voc(home: Path, **options: Any) -> dict[str, Any]:
    """The data of that recipe with other options."""
    return {"name": "voc", "root": str(home / "voc"), "verify": "off", "workers": 0, **options}


def model(**options: Any) -> dict[str, Any]:
    """The model of that recipe with other options."""
    return {**SMALL["model"], **options}


def made(home: Path, world: World = CPU, **fields: Any) -> tuple[Run, Noted]:
    """A run at step 0 that keeps nothing on disk, and what it will say."""
    recipe = written(home, **fields).recipe
    data = open_data(recipe.data)
    run = build(settle(recipe, world, data.train)[0], world, data, Signals())
    run.teller = noted = Noted(run)
    return run, noted


def trained(home: Path, **fields: Any) -> tuple[Run, Noted]:
    """The same, driven to its end."""
    run, noted = made(home, **fields)
    fit(run)
    return run, noted


def launched(home: Path, out: str, resume: bool = False, **fields: Any) -> dict[str, Any]:
    """`trainrun fit` into a directory of `home`; the contents of result.json."""
    return launch(written(home, **fields), out=home / out, resume=resume, quiet=True)
