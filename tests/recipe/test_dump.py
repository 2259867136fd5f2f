"""A dumped recipe says everything and loads as the same recipe."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.errors import RecipeError
from trainrun.recipe import yaml
from trainrun.recipe.dump import dump, plain
from trainrun.recipe.durations import Duration
from trainrun.recipe.load import load
from trainrun.recipe.schema import Recipe

MAIN = "data: digits\nmodel: tiny_convnet\nepochs: 2\nschedule: {lr: 0.1}\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(text: str, *overrides: str, name: str = "run.yaml") -> Any:
    Path(name).write_text(text, encoding="utf-8")
    return load(name, overrides)


def test_every_setting_is_written_out() -> None:
    text = dump(loaded(MAIN, "schedule.warmup={name: gradual, for: 5%}").recipe)
    assert list(yaml.read(text, "f").data) == list(Recipe.model_fields)
    assert "  warmup:\n    name: gradual\n    for: 5%\n    start: 0.0\n" in text
    assert "\nclip: null\n" in text


def test_with_sources_each_value_has_its_origin_in_one_column() -> None:
    recipe = loaded(MAIN + "augment: [random_crop]\noptimizer: {name: adamw, betas: [0.9, 0.99]}\n", "seed=3", "optimizer.betas.1=0.95")
    lines = dump(recipe.recipe, recipe.sources).splitlines()
    told = dict(line.strip().split("  # ") if "  # " in line else (line, "") for line in lines)
    told = {text.strip(): origin for text, origin in told.items()}
    assert told["name: run"] == "automatic: the file's name"
    assert told["name: digits"] == "run.yaml:1"
    assert told["seed: 3"] == "override seed=3"
    assert told["- name: random_crop"] == "run.yaml:5"
    assert told["padding: 4"] == "default"
    assert told["betas: [0.9, 0.95]"] == "run.yaml:6; override optimizer.betas.1=0.95"
    assert told["schedule:"] == ""
    assert len({line.index("  # ") for line in lines if "  # " in line}) == 1


def test_a_comment_cannot_become_content() -> None:
    recipe = loaded(MAIN, "description=!!str 'a\n\nseed: 7'", name="a\nseed: 9.yaml")
    text = dump(recipe.recipe, recipe.sources)
    assert loaded(text).recipe == recipe.recipe
    assert recipe.recipe.seed == 0


PARTS: dict[str, list[str]] = {
    "data": [
        "digits",
        "{name: photos10, size: 100, crop: 16}",
        "{name: synthetic, shape: [1, 8, 8], noise: 0.1}",
        "{name: digits, resident: 'no', workers: 2, timeout: 1e-7}",
    ],
    "model": [
        "tiny_convnet",
        "{name: resnet_cifar, depth: 110, shortcut: B}",
        "{name: resnet18, weights: null}",
        "timm/resnet50d",
        "{name: tiny_convnet, norm: none}",
    ],
    "optimizer": ["sgd", "{name: sgd, nesterov: true, momentum: 0.85}", "{name: adamw, betas: [0.5, 0.999999999], eps: 1e-12}"],
    "initializer": [
        "default",
        "zeros",
        "{name: constant, value: 1e22}",
        "{name: normal, std: 5e-324}",
        "{name: kaiming_normal, mode: fan_out}",
        "{name: default, rules: [{match: '*.weight', weights: {name: orthogonal, gain: 1.4}}, {match: 1*, biases: zeros}], zero_init_residual: true}",
        "{name: lsuv, biases: {name: uniform, low: -1, high: 1}}",
    ],
    "epochs": ["1", "0.1", "33.333333333333336", "100ep", "1e-7", "123456789st", "'7 ep'"],
    "schedule": [
        "{lr: 1e-5}",
        "{lr: 1, decay: cosine}",
        "{lr: 0.30000000000000004, warmup: {name: gradual, for: 5.5%, start: 1e-9}}",
        "{lr: 3, decay: {name: multistep, at: [10%, 20%], values: [1, 0.1]}}",
    ],
    "augment": [
        "[]",
        "[random_crop, horizontal_flip]",
        "[{name: random_crop, padding: 2}, {name: normalize, mean: [0.1, 0.2, 0.3], std: [1, 2, 1e-3]}]",
    ],
    "loss": ["cross_entropy", "{name: cross_entropy, label_smoothing: 0.1}"],
    "description": ["''", "'yes'", "'1e3'", '"a\\nb\\t#: é😀\\x07"', "'null'", "'on: - x'", "0x1g", "'  spaces  '"],
    "clip": ["null", "1", "0.5", "1e-30"],
    "ema": ["null", "{}", "{decay: 0.9999, warmup: false}"],
    "early_stopping": ["null", "{}", "{monitor: val_loss, min_delta: 1e-4, restore_best: false, patience: 1}"],
    "evaluate": ["{}", "{every: 10%}", "{every: 3st}"],
    "checkpoint": ["{}", "{every: 'off'}", "{every: 10ep, keep: 7}", "{every: 0.5s}"],
    "log": ["{}", "{every: 10, tensorboard: true}", "{every: 1ep}"],
    "precision": ["auto", "fp32", "bf16"],
    "compile": ["on", "off"],
    "seed": ["0", "4294967295", "0x10"],
    "mining": ["null", "{name: ohem, keep: 0.5, start: 10%, ramp: 20st}", "{name: ohem, ratio: 3, within: negatives, negative_class: '1'}"],
    "sampler": ["label_shuffle", "{name: weighted, weights: {cat: 2, '1': 0.5}}", "{name: subset, fraction: 0.1}"],
    "batch_size": ["1", "128", "1000000", "full"],
    "name": ["'1e3'", "'007'", "a.b-c_d", "'true'", "'0x1'", "'2026-01-01'"],
}


def test_a_dumped_recipe_loads_as_the_same_recipe() -> None:
    dice = random.Random(3)
    good = 0
    for _ in range(150):
        optional = [key for key in PARTS if key not in ("data", "model", "epochs", "schedule") and dice.random() < 0.6]
        chosen = {key: dice.choice(PARTS[key]) for key in ["data", "model", "epochs", "schedule", *optional]}
        try:
            first = loaded("".join(f"{key}: {value}\n" for key, value in chosen.items()))
        except RecipeError as error:
            # The contradictions that these choices can hold.
            assert any(words in str(error) for words in ("early_stopping.patience", "mining: has no effect with batch_size: 1"))
            continue
        good += 1
        for text in (dump(first.recipe), dump(first.recipe, first.sources)):
            again = loaded(text, name="another-name.yaml")
            assert again.recipe == first.recipe
            assert repr(plain(again.recipe)) == repr(plain(first.recipe))
        assert pyyaml.safe_load(text) == plain(first.recipe)  # programs read it with any YAML library
    assert good > 100


def test_a_resolved_recipe_has_no_settings_without_effect() -> None:
    text = MAIN + "checkpoint: {every: 'off'}\n" + "optimizer: {name: sgd, momentum: 0}\n"
    first = loaded(
        text, "data={name: synthetic, validation: 0}", "schedule.decay={name: multistep, at: [1ep], values: [0.1]}", "data.workers=0"
    )
    assert loaded(dump(first.recipe)).recipe == first.recipe
    with pytest.raises(RecipeError, match=r"checkpoint.keep: has no effect"):
        loaded(dump(first.recipe), "checkpoint.keep=3")
    # That of a run older than a field, which is off without a word, is read as before.
    older = re.sub(r"^(mining|clip): null\n", "", dump(first.recipe), flags=re.MULTILINE)
    assert loaded(older).recipe == first.recipe and older != dump(first.recipe)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (Duration(90, "ep"), "90ep"),
        (Duration(0.1, "%"), "0.1%"),
        (Duration(1e-7, "ep"), "0.0000001ep"),
        (Duration(1e11, "st"), "100000000000st"),
        (Duration(0.1 + 0.2, "s"), "0.30000000000000004s"),
    ],
)
def test_durations_keep_their_exact_value(duration: Duration, text: str) -> None:
    assert str(duration) == text
