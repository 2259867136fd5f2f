"""The pictures that all rows train on, written once in the forms that they read: CIFAR-10 of a folder, or made-up ones of its shape.

python benchmarks/pictures.py TO [--data PATH] writes TO/cifar-10-batches-bin, and class folders of JPEG files under TO/jpeg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

TRAINING, TEST, PER_FILE = 50_000, 10_000, 10_000
_JPEGS = 10_000  # of made-up pictures: more than the steps of a round go through


def write(to: Path, source: Path | None) -> tuple[Path, Path]:
    """Write pictures below `to`; returns the folder of CIFAR-10's binary files and that of class folders of JPEG files.

    source: a folder of class folders of 32 x 32 pictures, or one that holds such a folder as train; None makes pictures up.
    """
    if source is None:
        pictures, labels = _made_up()
        jpegs = to / "jpeg"
        _write_jpegs(jpegs, pictures[:_JPEGS], labels[:_JPEGS])
    else:
        jpegs = source / "train" if (source / "train").is_dir() else source
        pictures, labels = _decoded(jpegs)
    binary = to / "cifar-10-batches-bin"
    _write_binary(binary, pictures, labels)
    return binary, jpegs


def _made_up() -> tuple[np.ndarray, np.ndarray]:
    from trainrun.parts.datasets.synthetic import synthetic

    train = synthetic(size=TRAINING, validation=0.0).train
    return train.read(range(TRAINING)), train.labels


def _decoded(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())]
    if not files or len(classes) > 10:
        raise SystemExit(f"{folder}: expected up to 10 class folders with pictures, found {len(classes)}")
    files = [files[i] for i in np.resize(np.arange(len(files)), TRAINING)]
    pictures = np.empty((TRAINING, 32, 32, 3), np.uint8)
    for place, (file, _) in enumerate(files):
        with Image.open(file) as picture:
            if picture.size != (32, 32):
                raise SystemExit(f"{file}: expected 32 x 32 pixels, found {picture.width} x {picture.height}")
            pictures[place] = picture.convert("RGB")
    return pictures, np.array([label for _, label in files])


def _write_binary(folder: Path, pictures: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(TRAINING)
    records = np.concatenate((labels[:, None].astype(np.uint8), pictures.transpose(0, 3, 1, 2).reshape(TRAINING, -1)), axis=1)[order]
    for number, first in enumerate(range(0, TRAINING, PER_FILE), 1):
        records[first : first + PER_FILE].tofile(folder / f"data_batch_{number}.bin")
    records[:TEST].tofile(folder / "test_batch.bin")  # the reader wants a test set; no row evaluates


def _write_jpegs(folder: Path, pictures: np.ndarray, labels: np.ndarray) -> None:
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        Image.fromarray(picture).save(folder / str(label) / f"{place:05}.jpg", quality=95)


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option --data, the same in every benchmark."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a folder of class folders of CIFAR-10's pictures, or one that holds it as train; without it pictures are made up",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("to", type=Path, help="an empty folder")
    add_option(parser)
    given = parser.parse_args()
    write(given.to, given.data)
