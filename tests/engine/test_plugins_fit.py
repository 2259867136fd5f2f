"""Parts of a person's own train, resume and are listed like the built-in ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.cli import main
from trainrun.engine.launch import launch
from trainrun.errors import UserError
from trainrun.recipe.load import load
from trainrun.recipe.plugins import digest

README = Path(__file__).parents[2] / "README.md"
RECIPE = """
plugins: [my_parts.py]
data: {name: synthetic, shape: [1, 6, 6], classes: 2, size: 40}
model: {name: tiny_convnet, width: 2, depth: 1, dropout: 0.2}
batch_size: 8
epochs: 15st
precision: fp32
augment: [horizontal_flip]
schedule:
  lr: 0.1
  decay: {name: halving, times: 4}
log: {every: 1st}
"""
EVERY_KIND = '''
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from trainrun import Data, Split, part

used = set()


class Stripes:
    """Pictures with rows (class 0) or columns (class 1) of light."""

    def __init__(self, labels):
        self.labels = labels

    def __call__(self, ids):
        pictures = np.zeros((len(ids), 8, 8, 3), np.uint8)
        for picture, label in zip(pictures, self.labels[list(ids)]):
            (picture if label == 0 else picture.transpose(1, 0, 2))[::2] = 200
        return pictures


@part("data")
def own_stripes(*, count: Annotated[int, Field(ge=4)] = 24):
    """Rows or columns."""
    used.add("data")
    labels = np.arange(count) % 2
    return Data(*(Split(part, (8, 8, 3), Stripes(part), f"stripes {len(part)}") for part in (labels, labels[:4])), ("rows", "columns"))


@part("model", memory_format="contiguous")
def own_linear(shape, classes, *, bias: bool = True):
    """One layer."""
    used.add("model")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes, bias=bias))


@part("initializer")
def own_constant(weight, *, value: float = 1.0):
    """All alike."""
    used.add("initializer")
    torch.nn.init.constant_(weight, value)


@part("optimizer")
def own_sgd(model, lr, *, momentum: float = 0.5):
    """Descent."""
    used.add("optimizer")
    return torch.optim.SGD(model.parameters(), lr, momentum)


@part("warmup")
def own_warmup(progress, *, start: float = 0.5):
    """Half at first."""
    used.add("warmup")
    return start if progress.step == 0 else 1.0


@part("decay")
def own_decay(progress):
    """Straight down."""
    used.add("decay")
    return 1 - progress.step / progress.total


@part("augment")
def own_darker(images, draw, *, most: Annotated[int, Field(ge=1, le=100)] = 10):
    """Take away up to `most`."""
    used.add("augment")
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
    amount = draw.integers(1, most + 1).to(torch.uint8).view(-1, 1, 1, 1)
    return torch.where(images > amount, images - amount, 0)


@part("loss")
def own_margin(logits, targets, *, margin: float = 1.0):
    """The hinge."""
    used.add("loss")
    return torch.nn.functional.multi_margin_loss(logits.float(), targets, margin=margin, reduction="none")
'''
OWN_RECIPE = """
plugins: [own.py]
data: {name: own_stripes, resident: "RESIDENT", workers: 1}
model: own_linear
initializer: {name: own_constant, value: 0.0}
optimizer: own_sgd
batch_size: 6
epochs: 3
augment: [{name: own_darker, most: 50}]
loss: {name: own_margin, margin: 0.5}
schedule: {lr: 0.05, warmup: {name: own_warmup, start: 0.25}, decay: own_decay}
log: {every: 1st}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the README's example and a recipe that uses it."""
    (example,) = re.findall(r"```python\n(from typing import .*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_parts.py").write_text(example)
    (tmp_path / "k.yaml").write_text(RECIPE)
    return tmp_path


def run(recipe: Path, out: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    return launch(load(recipe, overrides, allow_plugins=True), out=out, resume=resume, allow_plugins=True, quiet=True)


def figures(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def weights(out: Path) -> bytes:
    return (out / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_the_readmes_example_trains_and_resumes_bitwise(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder / "k.yaml", tmp_path / "whole")["stop"] == "epochs"
    steps = [line for line in figures(tmp_path / "whole") if line["kind"] == "step"]
    assert [line["lr"] for line in steps] == [0.1 / 2 ** (step // 3) for step in range(15)]  # five parts of three steps
    assert run(folder / "k.yaml", tmp_path / "parts", "stop_at=7st")["stop"] == "stop_at"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the plugin's path is relative to the recipe
    run(folder / "k.yaml", tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert [line for line in figures(tmp_path / "parts") if line["kind"] == "step"] == steps


def test_a_bad_option_is_refused_at_its_line_and_nothing_runs_without_leave(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "bad.yaml").write_text(RECIPE.replace("times: 4", "times: 0"))
    for arguments, message in (
        (["bad.yaml", "--allow-plugins"], "bad.yaml:11:33: schedule.decay.times: found 0; expected a whole number of at least 1"),
        (["k.yaml"], "k.yaml:2:11: plugins.0: my_parts.py runs code of its own; pass --allow-plugins if you trust it"),
    ):
        monkeypatch.setattr(sys, "argv", ["trainrun", "fit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[0] == message
        assert not (folder / "runs").exists()


def test_the_readmes_example_as_commands(folder: Path) -> None:
    def command(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "trainrun", *words], cwd=folder, check=True, text=True, stdout=subprocess.PIPE, timeout=300
        ).stdout

    told = json.loads(command("fit", "k.yaml", "--allow-plugins", "--out", "run", "--json"))
    assert (told["stop"], told["steps"]) == ("epochs", 15)
    listed = {p["name"]: p for p in json.loads(command("list", "decay", "--plugins", "my_parts.py", "--json"))["decay"]}
    assert listed["halving"] == {
        "name": "halving",
        "summary": "Halve the learning rate at equal intervals.",
        "options": {"times": {"type": "integer", "default": 3, "minimum": 1, "description": "How often the rate is halved."}},
    }


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_a_part_of_every_kind_trains(tmp_path: Path, resident: str) -> None:
    (tmp_path / "own.py").write_text(EVERY_KIND)
    (tmp_path / "k.yaml").write_text(OWN_RECIPE.replace("RESIDENT", resident))
    result = run(tmp_path / "k.yaml", tmp_path / "run")
    (module,) = [m for n, m in sys.modules.items() if n.startswith("trainrun_plugin_") and m.__file__ == str(tmp_path / "own.py")]
    assert module.used == {"data", "model", "initializer", "optimizer", "warmup", "decay", "augment", "loss"}
    assert (result["stop"], result["steps"]) == ("epochs", 12)
    told = figures(tmp_path / "run")
    expected = [0.05 * (0.25 if step == 0 else 1) * (1 - step / 12) for step in range(12)]
    assert [line["lr"] for line in told if line["kind"] == "step"] == pytest.approx(expected, rel=1e-12)
    # From zero weights the hinge of every picture is the margin over two classes; rows and columns are then soon told apart.
    assert told[0]["train_loss"] == pytest.approx(0.5 / 2, abs=1e-6)
    assert told[-1]["val_accuracy"] == 1.0


def test_a_changed_plugin_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "own_digest.py", tmp_path / "moved.py"
    file.write_text("x = 1\n")
    other.write_text("x = 1\n")
    before = digest([str(file)])
    assert before and len(before) == 64 and before == digest([str(other)])
    monkeypatch.syspath_prepend(tmp_path)
    __import__("own_digest")
    assert digest(["own_digest"]) == before
    file.write_text("x = 2\n")
    assert digest([str(file)]) == digest(["own_digest"]) != before
    assert digest([str(file), str(other)]) != digest([str(other), str(file)])
    assert digest([]) is None


def test_a_plugin_that_changed_is_noticed_when_the_run_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder / "k.yaml", tmp_path / "run", "stop_at=7st")
    plugin = folder / "my_parts.py"
    plugin.write_text(plugin.read_text() + "# changed\n")
    with pytest.raises(UserError, match="plugins: was"):
        launch(load(folder / "k.yaml", allow_plugins=True), out=tmp_path / "run", resume=True, exact=True, allow_plugins=True, quiet=True)
    capsys.readouterr()
    run(folder / "k.yaml", tmp_path / "run", resume=True)
    assert "plugins: was" in capsys.readouterr().err
