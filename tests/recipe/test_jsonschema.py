"""The editors' schema against an independent validator: it accepts what loads and marks what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.recipe import yaml
from trainrun.recipe.dump import dump
from trainrun.recipe.jsonschema import json_schema
from trainrun.recipe.load import load

MAIN = "data: digits\nmodel: tiny_convnet\nepochs: 2\nschedule: {lr: 0.1}\n"
BAD = Path(__file__).parents[1] / "recipes" / "bad"
# What only we can see: faults of the text itself, meaning across fields, and depths by formula.
BEYOND = (
    "yaml_",
    "sense_",
    "extends_",
    "plugin_",
    "range_lr_",
    "range_depth",
    "type_batch_size_float",
    "duration_half",
    "duration_evaluate_over",
    "part_star",
)
SEEN = [file for file in sorted(BAD.glob("*.yaml")) if not file.stem.startswith(BEYOND)]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_the_schema_is_one(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(json_schema()), encoding="utf-8")
    run = subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--check-metaschema", file], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "optimizer: {name: adamw, betas: [0.9, 0.99]}\n",
        "optimizer: {name: muon, second: {name: sgd, momentum: 0.8}, groups: [{match: fc.*, lr_scale: 10}]}\n",
        "optimizer: {name: adamw, weight_decay_schedule: {name: cosine, end: 10}}\n",
        "augment: [random_crop, {name: horizontal_flip, p: 0.3}]\n",
        "initializer: {name: normal, std: 0.1}\nclip: null\nema: {decay: 0.9}\n",
        "initializer: {name: lsuv, biases: {name: normal, std: 0.1}, rules: [{match: fc.*, weights: dirac, biases: null}]}\n",
        "checkpoint: {every: 'off'}\nlog: {every: 10}\nstop_at: 10st\n",
        "early_stopping: {monitor: val_loss}\nprecision: bf16\ncompile: 'on'\n",
        "loss: {name: cross_entropy, label_smoothing: 0.1}\nplugins: [a.py]\n",
    ],
)
def test_what_loads_is_accepted(validator: jsonschema.Draft202012Validator, extra: str) -> None:
    assert list(validator.iter_errors(yaml.read(MAIN + extra, "f").data)) == []


@pytest.mark.parametrize(
    "model",
    ["resnet18", "timm/resnet50d", {"name": "resnet50", "weights": "DEFAULT"}, {"name": "timm/vit_tiny_patch16_224", "weights": None}],
)
def test_families_are_accepted_by_each_of_their_names(validator: jsonschema.Draft202012Validator, model: Any) -> None:
    assert list(validator.iter_errors({**yaml.read(MAIN, "f").data, "model": model})) == []


def test_a_dumped_recipe_is_accepted(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(MAIN + "augment: [normalize]\nema: {}\nearly_stopping: {}\noptimizer: {name: muon, groups: [{match: fc.*, lr_scale: 10}]}\n", encoding="utf-8")
    assert list(validator.iter_errors(yaml.read(dump(load(file).recipe), "f").data)) == []


@pytest.mark.parametrize(
    "recipe", [{"extends": "x"}, {"extends": ["x", "y"], "schedule": {"decay": "cosine"}}, {"extends": "x", "model": "resnet18"}]
)
def test_a_recipe_that_extends_may_leave_things_out(validator: jsonschema.Draft202012Validator, recipe: Any) -> None:
    assert list(validator.iter_errors(recipe)) == []


@pytest.mark.parametrize("file", SEEN, ids=lambda file: file.stem)
def test_what_is_wrong_field_by_field_is_marked(validator: jsonschema.Draft202012Validator, file: Path) -> None:
    data = yaml.read(file.read_bytes(), "f").data
    assert list(validator.iter_errors(data)) != []


def test_descriptions_defaults_and_ranges_reach_the_editor() -> None:
    schema = json_schema()
    (sgd,) = [each for each in schema["$defs"]["part.optimizer"]["anyOf"] if each.get("properties", {}).get("name") == {"const": "sgd"}]
    momentum = sgd["properties"]["momentum"]
    assert (momentum["minimum"], momentum["maximum"], momentum["default"]) == (0, 1, 0.9)
    assert momentum["description"]
    assert sgd["additionalProperties"] is False
    assert schema["properties"]["batch_size"]["default"] == 128
    assert "title" not in json.dumps(schema["properties"])
