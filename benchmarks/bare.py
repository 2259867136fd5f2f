"""What a person writes without a framework: one PyTorch script over a DataLoader of per-sample torchvision transforms.

It is the yardstick of all benchmarks here, so it imports nothing of trainrun, and it runs by itself.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipe import BATCH, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

_RECORD = 1 + 3 * 32 * 32


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The training pictures (uint8 [N, 32, 32, 3]) and labels (int64 [N]) of CIFAR-10's binary files."""
    files = sorted(folder.glob("data_batch_*.bin"))
    count = sum(file.stat().st_size for file in files) // _RECORD
    pictures, labels = np.empty((count, 32, 32, 3), np.uint8), np.empty(count, np.int64)
    done = 0
    for file in files:
        records = np.fromfile(file, np.uint8).reshape(-1, _RECORD)
        pictures[done : done + len(records)] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels[done : done + len(records)] = records[:, 0]
        done += len(records)
    return pictures, labels


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """An array of pictures, each turned into a PIL image and transformed, as torchvision's CIFAR10 does it."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.pictures, self.labels, self.transform = pictures, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[index])), self.labels[index]


def transform() -> v2.Compose:
    """Crop, flip and normalise one picture."""
    return v2.Compose([
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip


def make_loader(dataset: Dataset[tuple[torch.Tensor, int]], workers: int) -> DataLoader[tuple[torch.Tensor, int]]:
    """Shuffled batches."""
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)


def forever(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The loader's batches, epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def train(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], steps: int, after_step: Callable[[], None]) -> float:
    """Train for some steps; returns the last loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for images, labels in itertools.islice(batches, steps):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        after_step()
    return loss.item()


def convnet() -> nn.Module:
    """trainrun's tiny_convnet, written out."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(24), nn.ReLU(inplace=True),
        nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(48), nn.ReLU(inplace=True),
        nn.Conv2d(48, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of CIFAR-10's binary files, which pictures.py writes")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="DataLoader workers (default: %(default)s)")
    parser.add_argument("--mark", type=Path, help="file to write to after each step")
    given = parser.parse_args(arguments)
    loader = make_loader(Pictures(*read(given.folder), transform()), given.workers)
    with open(given.mark or "/dev/null", "a") as mark:
        loss = train(convnet(), forever(loader), given.steps, lambda: print("step", file=mark, flush=True))
    print(f"loss {loss:.4f}")


if __name__ == "__main__":
    main()
