"""The training that every row does, as trainrun's recipe: without torch, so that a program that only starts others stays small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
NETS: dict[str, tuple[str, dict[str, Any]]] = {"convnet": ("tiny_convnet", {"width": 24}), "resnet20": ("resnet_cifar", {"depth": 20})}

RECIPE = f"""
name: benchmark
batch_size: {BATCH}
epochs: 30ep
optimizer: {{name: sgd, momentum: {MOMENTUM}, weight_decay: {WEIGHT_DECAY}}}
schedule: {{lr: {LR}}}
augment: [{{name: random_crop, padding: 4}}, horizontal_flip, {{name: normalize, mean: {list(MEAN)}, std: {list(STD)}}}]
"""


def recipe_file(folder: Path, data: str, net: str) -> Path:
    """A recipe of the benchmark's training, written to a folder."""
    name, options = NETS[net]
    file = folder / "benchmark.yaml"
    model = ", ".join(f"{key}: {value}" for key, value in {"name": name, **options}.items())
    file.write_text(f"{RECIPE}data: {data}\nmodel: {{{model}}}\n")
    return file
