"""Pictures a second of each augmentation and of three lists: trainrun, torchvision v2 and kornia in turn; one JSON object a line.

README.md says what is compared. Every round goes through the libraries in another order; a ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from throughput import machine, spread
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import trainrun.parts  # noqa: F401 - registers the augmentations
from trainrun.draw import order
from trainrun.engine.build import open_data
from trainrun.engine.inputs import make_inputs, statistics
from trainrun.engine.resident import Resident
from trainrun.recipe.registry import PartNode, registry
from trainrun.world import World

BATCH = {32: 128, 224: 32}
SAMPLES = {32: 8192, 224: 512}  # a round of torchvision's is one epoch of so many; starting its workers is not counted
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WORKERS = 2

Batches = Iterator[torch.Tensor]
Entry = tuple[str, dict[str, Any]]


def wanted(name: str, side: int) -> Entry:
    """A part with the options that it must have; the others keep their defaults."""
    smaller = side * 7 // 8
    options = {
        "center_crop": {"size": smaller},
        "random_resized_crop": {"size": smaller},
        "scale_jitter": {"size": smaller, "shorter": [smaller, side * 5 // 4]},
        "normalize": {"mean": MEAN, "std": STD},
    }
    return name, options.get(name, {})


def lists(side: int) -> dict[str, list[Entry]]:
    """Three lists that recipes have, by name."""
    return {
        "crop, flip": [wanted(n, side) for n in ("random_crop", "horizontal_flip", "normalize")],
        "resized crop, flip": [wanted(n, side) for n in ("random_resized_crop", "horizontal_flip", "normalize")],
        "rotation, affine, perspective, flip": [
            ("rotation", {"degrees": 15.0}),
            ("affine", {"shift": [0.1, 0.1], "scale": [0.9, 1.1], "shear": [10.0, 0.0]}),
            ("perspective", {"distortion": 0.3}),
            wanted("horizontal_flip", side),
            wanted("normalize", side),
        ],
    }


def by_torchvision(name: str, options: dict[str, Any], side: int) -> Any:
    """The same by torchvision v2 on one uint8 picture; None where it has no such transform."""
    bilinear: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR}
    size = options.get("size")
    made: dict[str, Callable[[], Any]] = {
        "random_crop": lambda: v2.RandomCrop(side, padding=4),
        "center_crop": lambda: v2.CenterCrop(size),
        "random_resized_crop": lambda: v2.RandomResizedCrop(size, antialias=True),
        "scale_jitter": lambda: v2.Compose(
            [v2.RandomShortestSize(list(range(options["shorter"][0], options["shorter"][1] + 1))), v2.RandomCrop(size)]
        ),
        "horizontal_flip": v2.RandomHorizontalFlip,
        "vertical_flip": v2.RandomVerticalFlip,
        "shift": lambda: v2.RandomAffine(0, translate=(0.1, 0.1)),
        "rotation": lambda: v2.RandomRotation(options.get("degrees", 10.0), **bilinear),
        "random_scale": lambda: v2.RandomAffine(0, scale=(0.8, 1.25), **bilinear),
        "affine": lambda: v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=10, **bilinear),
        "perspective": lambda: v2.RandomPerspective(options.get("distortion", 0.5), **bilinear),
        "color_jitter": lambda: v2.ColorJitter(0.4, 0.4, 0.4),
        "grayscale": lambda: v2.RandomGrayscale(0.1),
        "gaussian_blur": lambda: v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], 0.5),
        "random_erasing": v2.RandomErasing,
        "trivial_augment": v2.TrivialAugmentWide,
        "rand_augment": v2.RandAugment,
        "normalize": lambda: v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    }
    return made[name]() if name in made else None


def by_kornia(name: str, options: dict[str, Any], side: int) -> Any:
    """The same by kornia on float32 batches; None where it has no such augmentation."""
    import kornia.augmentation as K

    size = (options["size"],) * 2 if "size" in options else None
    made: dict[str, Callable[[], Any]] = {
        "random_crop": lambda: K.RandomCrop((side, side), padding=4, cropping_mode="slice"),
        "center_crop": lambda: K.CenterCrop(size),
        "random_resized_crop": lambda: K.RandomResizedCrop(size, cropping_mode="resample"),
        "horizontal_flip": lambda: K.RandomHorizontalFlip(),
        "vertical_flip": lambda: K.RandomVerticalFlip(),
        "shift": lambda: K.RandomAffine(0.0, translate=(0.1, 0.1), p=1.0),
        "rotation": lambda: K.RandomRotation(options.get("degrees", 10.0), p=1.0),
        "random_scale": lambda: K.RandomAffine(0.0, scale=(0.8, 1.25), p=1.0),
        "affine": lambda: K.RandomAffine(0.0, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=10.0, p=1.0),
        "perspective": lambda: K.RandomPerspective(options.get("distortion", 0.5)),
        "color_jitter": lambda: K.ColorJitter(0.4, 0.4, 0.4, p=1.0),
        "grayscale": lambda: K.RandomGrayscale(),
        "gaussian_noise": lambda: K.RandomGaussianNoise(std=0.05, p=1.0),
        "gaussian_blur": lambda: K.RandomGaussianBlur((17, 17), (0.1, 2.0)),
        "salt_and_pepper": lambda: K.RandomSaltAndPepperNoise(0.02, 0.5, p=1.0),
        "random_erasing": lambda: K.RandomErasing(),
        "normalize": lambda: K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    }
    return made[name]() if name in made else None


class Pictures(Dataset[torch.Tensor]):
    """uint8 pictures [C, H, W] through a transform, one at a time."""

    def __init__(self, pictures: torch.Tensor, transform: Any) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.pictures[index])


@dataclass(frozen=True)
class Work:
    """What is done to pictures of one size."""

    row: str
    side: int
    entries: list[Entry]


class Bench:
    """The pictures of one size, and the three ways through them."""

    def __init__(self, side: int) -> None:
        self.side = side
        part = registry.get("data", "synthetic")
        assert part is not None
        options = part.options(shape=[3, side, side], size=SAMPLES[side], validation=0.0).model_dump()
        self.data = open_data(PartNode("data", "synthetic", options))
        pictures = torch.from_numpy(self.data.train.read(range(SAMPLES[side])))
        self.feed = Resident(self.data.train, World(torch.device("cpu")), pictures)
        self.planes = pictures.permute(0, 3, 1, 2).contiguous()

    def trainrun(self, work: Work) -> Callable[[], Batches]:
        """Batches gathered from the resident pictures and augmented."""
        nodes = []
        for name, options in work.entries:
            part = registry.get("augment", name)
            assert part is not None
            nodes.append(PartNode("augment", name, part.options(**options).model_dump()))
        inputs = make_inputs(nodes, 0, "channels_last", statistics(self.data, self.feed), registry)
        epochs = itertools.count()

        def run() -> Batches:
            epoch = next(epochs)
            batches = order(0, epoch, SAMPLES[self.side]).split(BATCH[self.side])
            for batch in self.feed(batches, epoch, map(len, batches)):
                yield inputs(batch, training=True)[0]

        return run

    def torchvision(self, work: Work) -> Callable[[], Batches] | None:
        """A DataLoader whose two workers go on living."""
        parts = [by_torchvision(name, options, self.side) for name, options in work.entries]
        if None in parts:
            return None
        if work.entries[-1][0] != "normalize":
            parts.append(v2.ToDtype(torch.float32, scale=True))
        loader = DataLoader(
            Pictures(self.planes, v2.Compose(parts)), BATCH[self.side], shuffle=True, num_workers=WORKERS, persistent_workers=True
        )
        return lambda: iter(loader)

    def kornia(self, work: Work) -> Callable[[], Batches] | None:
        """Batches gathered from the same pictures, turned into float32."""
        from kornia.augmentation import AugmentationSequential

        parts = [by_kornia(name, options, self.side) for name, options in work.entries]
        if None in parts:
            return None
        through = AugmentationSequential(*parts, data_keys=["input"], same_on_batch=False)

        def run() -> Batches:
            for ids in torch.randperm(len(self.planes)).split(BATCH[self.side]):
                yield through(self.planes.index_select(0, ids).float().mul_(1 / 255))

        return run


def rate(run: Callable[[], Batches], seconds: float) -> float:
    """Pictures a second; the first batch, with which workers begin, is not counted."""
    done, batches = 0, iter(run())
    next(batches)
    began = time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - began < seconds:
            batch = next(batches, None)
            if batch is None:
                batches = iter(run())
                continue
            done += len(batch)
    return done / (time.perf_counter() - began)


def compare(bench: Bench, work: Work, rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of one piece of work."""
    ways: dict[str, Callable[[], Batches] | str] = {"trainrun": bench.trainrun(work)}
    ways["torchvision"] = bench.torchvision(work) or "torchvision has no such transform"
    if importlib.util.find_spec("kornia"):
        ways["kornia"] = bench.kornia(work) or "kornia has no such augmentation"
    else:
        ways["kornia"] = "kornia is not installed: pip install -e '.[bench]'"
    runs = {name: way for name, way in ways.items() if not isinstance(way, str)}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            torch.manual_seed(number)
            rates[name].append(rate(runs[name], seconds))
    for name, way in ways.items():
        line: dict[str, Any] = {"row": work.row, "by": name, "side": work.side, "batch": BATCH[work.side]}
        line["workers"] = WORKERS if name == "torchvision" else 0
        if isinstance(way, str):
            yield {**line, "skipped": way}
            continue
        ratios = [theirs / ours for theirs, ours in zip(rates[name], rates["trainrun"], strict=True)]
        yield {**line, "images_per_second": spread(rates[name], 1), "rounds": rounds, "ratio_to_trainrun": spread(ratios, 3)}


def works(side: int, rows: Sequence[str]) -> Iterator[Work]:
    """Each part alone, then the lists."""
    for name in registry.names("augment"):
        if not rows or name in rows:
            yield Work(name, side, [alone(name, side)])
    for name, entries in lists(side).items():
        if not rows or "lists" in rows:
            yield Work(name, side, entries)


def alone(name: str, side: int) -> Entry:
    """A part alone; affine, which does nothing by default, as in the third list."""
    return (
        next(e for e in lists(side)["rotation, affine, perspective, flip"] if e[0] == "affine") if name == "affine" else wanted(name, side)
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="32,224", help="sizes of the pictures (default: %(default)s)")
    parser.add_argument("--rows", default="", help="parts to measure, by name, and lists for the lists (default: all)")
    parser.add_argument("--rounds", type=int, help="times through the libraries (default: 5, with --quick 2)")
    parser.add_argument("--seconds", type=float, help="measured a library and round (default: 1.5, with --quick 0.5)")
    parser.add_argument("--quick", action="store_true", help="a look of about three minutes")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    rounds, seconds = given.rounds or (2 if given.quick else 5), given.seconds or (0.5 if given.quick else 1.5)
    began, load = time.monotonic(), os.getloadavg()
    for side in map(int, given.sides.split(",")):
        bench = Bench(side)
        for work in works(side, [row for row in given.rows.split(",") if row]):
            for line in compare(bench, work, rounds, seconds):
                print(json.dumps(line), flush=True)
            print(f"{time.monotonic() - began:6.0f} s  {work.row}, {side} pixels", file=sys.stderr, flush=True)
    facts = {**machine(), "load_average": {"start": load, "end": os.getloadavg()}, "seconds": round(time.monotonic() - began)}
    print(json.dumps({"row": "machine", **facts}))


if __name__ == "__main__":
    main()
