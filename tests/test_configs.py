"""The shipped configs and recipes: each runs, each is used, each is where `init` and an editor look for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import trainrun.parts  # noqa: F401 - fills the registry
from trainrun.engine.build import settle
from trainrun.engine.launch import launch
from trainrun.errors import UserError
from trainrun.recipe.dump import dump
from trainrun.recipe.find import shipped, shipped_names
from trainrun.recipe.load import load
from trainrun.report.catalogue import SCHEMA_FILE, SCHEMA_LINE, write_shipped
from trainrun.world import World

CONFIGS, RECIPES = shipped_names("configs"), shipped_names("recipes")
CPU = World(torch.device("cpu"))
# Channels, height and width of what each data set holds, and its number of classes; a new one is added here.
SHAPES = {
    "digits": ([1, 8, 8], 10),
    "photos10": ([3, 64, 64], 10),
    "mnist": ([1, 28, 28], 10),
    "fashion_mnist": ([1, 28, 28], 10),
    "cifar10": ([3, 32, 32], 10),
    "cifar100": ([3, 32, 32], 100),
}


def boxes_in(root: Path) -> Path:
    """A folder in the layout of Pascal VOC: a grey picture with one box on each side."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    box = "<xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>40</ymax>"
    for n, side in enumerate(("train", "val", "test")):
        names = [f"{side}{k}" for k in range(4 if side == "train" else 1)]
        (root / f"ImageSets/Main/{side}.txt").write_text("\n".join(names))
        for name in names:
            Image.new("RGB", (64, 48), (n, 99, 99)).save(root / f"JPEGImages/{name}.png")
            (root / f"Annotations/{name}.xml").write_text(f"<annotation><object><name>cell</name><bndbox>{box}</bndbox></object></annotation>")
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_two_steps_on_made_up_data_of_its_shape(name: str, tmp_path: Path) -> None:
    recipe = load(name).recipe
    short = ["micro_batch=null", "stop_at=2st", "precision=fp32"]
    if recipe.data.name == "voc":
        short += [f"data.root={boxes_in(tmp_path / 'voc')}", "batch_size=2"]
    else:
        shape, classes = SHAPES[recipe.data.name]
        data = {"name": "synthetic", "shape": shape, "classes": classes, "size": 50, "validation": 0.2}
        data |= {"one_against_rest": "class 3"} if recipe.data.one_against_rest else {}
        short += [f"data={json.dumps(data)}", "batch_size=16"]
    result = launch(load(name, short), out=tmp_path / "run", quiet=True)
    assert (result["stop"], result["steps"]) == ("stop_at", 2)
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_written_out_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe, reasons = settle(load(name).recipe, CPU)
    assert "memory_format" in reasons
    (tmp_path / "shown.yaml").write_text(dump(recipe))
    assert load(tmp_path / "shown.yaml").recipe == recipe
    assert dump(load(tmp_path / "shown.yaml").recipe) == dump(recipe)


def test_every_recipe_is_used_by_a_config() -> None:
    extended = [re.search(r"^extends: (.*)$", (shipped("configs") / f"{name}.yaml").read_text(), re.MULTILINE) for name in CONFIGS]
    used = {word for found in extended if found for word in re.findall(r"[\w.-]+", found[1])}
    assert set(RECIPES) <= used


@pytest.mark.parametrize("name", [*CONFIGS, *RECIPES])
def test_init_writes_a_file_that_loads_and_that_an_editor_can_check(name: str, tmp_path: Path) -> None:
    kind = "configs" if name in CONFIGS else "recipes"
    assert (shipped(kind) / f"{name}.yaml").read_text().splitlines()[0] == SCHEMA_LINE
    file = write_shipped(name, tmp_path, force=False)
    assert file.read_text() == (shipped(kind) / f"{name}.yaml").read_text()
    assert json.loads((tmp_path / SCHEMA_FILE).read_text()) == json.loads((shipped(kind) / SCHEMA_FILE).read_text())
    # A recipe says how to train; with data, a model and a length it is an experiment.
    load(file, [] if kind == "configs" else ["data=digits", "model=tiny_convnet", "epochs=2"])
    with pytest.raises(UserError, match="is here already; use --force"):
        write_shipped(name, tmp_path, force=False)
