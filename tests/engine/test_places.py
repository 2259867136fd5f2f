"""What only a network or the data can show to be wrong in a recipe: it is told at its line, as all that is wrong there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.cli import app
from trainrun.engine.launch import launch
from trainrun.errors import RecipeError
from trainrun.recipe.load import load

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
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"run.yaml:{line}:" in result["message"]


@pytest.mark.parametrize("words", [["show", "--init"], ["show", "--counts"], ["schedule"]])
def test_looking_at_it_beforehand_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    more = "initializer: {name: default, zero_init_residual: true}\n" if "--init" in words else "sampler: {name: weighted, weights: {cat: 2}}\n"
    Path("run.yaml").write_text(RECIPE + more)
    found = CliRunner().invoke(app, [words[0], "run.yaml", *words[1:]])
    assert isinstance(found.exception, RecipeError)
    assert re.match(r"run\.yaml:5:\d+: (initializer\.zero_init_residual|sampler\.weights): ", str(found.exception))
