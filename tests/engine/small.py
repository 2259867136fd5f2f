"""Small runs in this process, for tests of the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.fit import fit
from trainrun.engine.launch import launch
from trainrun.engine.run import Run
from trainrun.engine.signals import Signals
from trainrun.engine.teller import Silent
from trainrun.recipe.load import Loaded, load
from trainrun.world import World

CPU = World(torch.device("cpu"))
# 40 training and 8 validation pictures of 6 x 6 pixels in 4 classes; no batch norm, so that a sample does not see its neighbours.
SMALL: dict[str, Any] = {
    "data": {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 48, "validation": 0.17},
    "model": {"name": "tiny_convnet", "width": 4, "depth": 2, "norm": "none"},
    "batch_size": 10,
    "epochs": 2,
    "schedule": {"lr": 0.1},
    "precision": "fp32",
    "checkpoint": {"every": "off"},
}


class Noted(Silent):
    """Keeps what a run says: (kind, step, figures)."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.said: list[tuple[str, int, dict[str, float]]] = []

    def step(self, figures: dict[str, float], samples: int) -> None:
        self.said.append(("step", self.run.state.step, figures))

    def epoch(self, figures: dict[str, float]) -> None:
        self.said.append(("epoch", self.run.state.step, figures))

    def steps(self, kind: str, figure: str = "train_loss") -> list[int]:
        """The steps whose lines of a kind hold a figure."""
        return [step for k, step, figures in self.said if k == kind and figure in figures]


def written(folder: Path, fields: dict[str, Any]) -> Loaded:
    """The recipe SMALL with other fields, by way of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(json.dumps(SMALL | fields))
    return load(folder / "small.yaml")


def made(folder: Path, world: World = CPU, **fields: Any) -> tuple[Run, Noted]:
    """A run at step 0 that keeps nothing on disk, and what it will say."""
    recipe = written(folder, fields).recipe
    data = open_data(recipe.data)
    run = build(settle(recipe, world, data.train)[0], world, data, Signals())
    run.teller = noted = Noted(run)
    return run, noted


def trained(folder: Path, **fields: Any) -> tuple[Run, Noted]:
    """The same, driven to its end."""
    run, noted = made(folder, **fields)
    fit(run)
    return run, noted


def launched(folder: Path, out: str, resume: bool = False, **fields: Any) -> dict[str, Any]:
    """`trainrun fit` into a directory of `folder`; the contents of result.json."""
    return launch(written(folder, fields), out=folder / out, resume=resume, quiet=True)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all tensors of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is measured by the clock."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")} for line in read]
