"""What only a network or the data can show to be wrong in a recipe: it is told at its line, as all that is wrong there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.cli import app
from trainrun.engine.launch import launch
from trainrun.errors import RecipeError
from trainrun.recipe.load import load
from trainrun.trials.schedule import look

RECIPE = """\
data: {name: synthetic, shape: [1, 8, 8], classes: 3, size: 60}
model: {name: tiny_convnet, width: 8}
epochs: 1
schedule: {lr: 0.1}
"""
GROUPS = "optimizer:\n  name: sgd\n  groups:\n    - {match: fc.*, lr_scale: 0.1}\n"


@pytest.mark.parametrize(
    ("more", "line", "path"),
    [
        (GROUPS, 8, "optimizer.groups.0.match"),
        ("initializer: {name: kaiming_normal, rules: [{match: fc.*, weights: zeros}]}\n", 5, "initializer.rules.0.match"),
        ("initializer: {name: default, zero_init_residual: true}\n", 5, "initializer.zero_init_residual"),
        ("sampler: {name: weighted, weights: {cat: 2}}\n", 5, "sampler.weights"),
        ("precision: fp16\n", 5, "precision"),
        ("batch_size: 8\nmicro_batch: 1\n", 6, "micro_batch"),
        ("optimizer: {name: muon, exclude: ['*']}\n", 5, "optimizer"),
        ("augment: [vertical_flip, {name: normalize, mean: [0.1, 0.2, 0.3]}]\n", 5, "augment.1"),
        ("model: alexnet\n", 5, "model"),
        ("model: {name: resnet18, weights: imagenet}\n", 5, "model.weights"),
    ],
)
def test_a_refusal_of_what_was_built_stands_at_its_line(tmp_path: Path, more: str, line: int, path: str) -> None:
    base = RECIPE if not more.startswith("model") else RECIPE.replace("model:", "# model:")
    (tmp_path / "run.yaml").write_text(base + more)
    with pytest.raises(RecipeError) as caught:
        launch(load(tmp_path / "run.yaml"), out=tmp_path / "run", quiet=True)
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.path, Path(mistake.file).name) == (line, path, "run.yaml")
    if (tmp_path / "run").exists():  # it was built in part
        assert f"run.yaml:{line}:" in json.loads((tmp_path / "run" / "result.json").read_text())["message"]


@pytest.mark.parametrize("words", [["show", "--init"], ["show", "--counts"], ["schedule"]])
def test_looking_at_it_beforehand_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    more = "initializer: {name: default, zero_init_residual: true}\n" if "--init" in words else "sampler: {name: weighted, weights: {cat: 2}}\n"
    Path("run.yaml").write_text(RECIPE + more)
    found = CliRunner().invoke(app, [words[0], "run.yaml", *words[1:]])
    assert isinstance(found.exception, RecipeError)
    assert re.match(r"run\.yaml:5:\d+: (initializer\.zero_init_residual|sampler\.weights): ", str(found.exception))


def test_lengths_of_two_kinds_are_compared_once_the_data_is_at_hand(tmp_path: Path) -> None:
    """Of a folder nothing is known beforehand: 12 pictures in batches of 4 are 3 steps an epoch, 6 in all."""
    for number in range(12):
        (tmp_path / "pictures" / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "pictures" / f"class {number % 2}" / f"{number}.png")
    (tmp_path / "run.yaml").write_text(
        f"data: {{name: folder, root: {tmp_path / 'pictures'}, size: 8, workers: 0, cache: false}}\n"
        "model: {name: tiny_convnet, width: 8}\nbatch_size: 4\nepochs: 2\n"
        "schedule:\n  lr: 0.1\n  warmup: {name: gradual, for: 7st}\n  decay: {name: multistep, at: [1ep, 3st, 6st]}\n"
    )
    loaded = load(tmp_path / "run.yaml")
    for begin in (lambda: launch(loaded, out=tmp_path / "run", quiet=True), lambda: look([("run", loaded)])):
        with pytest.raises(RecipeError) as caught:
            begin()
        found = {mistake.path: (mistake.line, mistake.message) for mistake in caught.value.mistakes}
        assert found == {
            "schedule.warmup.for": (7, "7st is longer than the training, epochs: 2ep"),
            "schedule.decay.at.1": (8, "3st does not come after 1ep; milestones must rise"),
            "schedule.decay.at.2": (8, "6st is never reached, epochs: 2ep, so it has no effect"),
        }
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError) as caught:
        launch(load(tmp_path / "run.yaml", ["schedule.warmup.for=5st", "schedule.decay.at=[1ep, 4st, 6st]"]), out=tmp_path / "run", quiet=True)
    assert [mistake.path for mistake in caught.value.mistakes] == ["schedule.decay.at.2"]
