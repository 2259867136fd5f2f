"""First weights made with data in view: functions of seed and data, the same in several processes, never made again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import CPU, equal, launched, made, weights, written

from trainrun.engine.use import evaluate_run
from trainrun.errors import UserError
from trainrun.world import World

AUGMENT = [{"name": "random_crop", "padding": 1}, "normalize"]
FIELDS: dict[str, Any] = {"augment": AUGMENT, "data": {"name": "synthetic", "shape": [2, 6, 6], "classes": 4, "size": 48, "validation": 0.17}}


@pytest.mark.parametrize("name", ["lsuv", "whitening"])
def test_they_hang_on_seed_and_data_alone(tmp_path: Path, name: str) -> None:
    one, _ = made(tmp_path, initializer=name, **FIELDS)
    torch.randn(3)
    again, _ = made(tmp_path, initializer=name, **FIELDS, epochs=9)
    assert equal(weights(one.model), weights(again.model))
    other, _ = made(tmp_path, initializer=name, **FIELDS, seed=1)
    assert not equal(weights(one.model), weights(other.model))
    plain, _ = made(tmp_path, initializer="default" if name == "whitening" else "orthogonal", **FIELDS)
    assert not torch.equal(one.model[0].weight, plain.model[0].weight)
    if name == "whitening":
        assert torch.equal(one.model[3].weight, plain.model[3].weight)


@pytest.mark.parametrize("name", ["lsuv", "whitening"])
@pytest.mark.parametrize("resident", ["yes", "no"])
def test_each_of_two_processes_makes_the_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resident: str) -> None:
    fields = {**FIELDS, "data": {**FIELDS["data"], "resident": resident, "workers": 0}, "initializer": name}
    monkeypatch.setattr(World, "wrap", lambda self, model: model)
    alone = weights(made(tmp_path, **fields)[0].model)
    for rank in range(2):
        member = dataclasses.replace(CPU, rank=rank, size=2, local_size=2)
        assert equal(alone, weights(made(tmp_path, member, **fields)[0].model))


def test_lsuv_sees_the_first_batch_as_training_does(tmp_path: Path) -> None:
    run, _ = made(tmp_path, initializer={"name": "lsuv", "tol": 1e-4}, **FIELDS)
    images, _ = run.inputs(next(run.batches(0)), training=True)
    found = []
    for module in run.model:
        images = module(images)
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            found.append(images.detach().double().numpy().var())
    assert found == pytest.approx([1.0] * 3, abs=1e-4)


def test_whitening_sees_normalised_pictures_without_what_is_random(tmp_path: Path) -> None:
    run, _ = made(tmp_path, initializer={"name": "whitening", "eps": 1e-3}, **{**FIELDS, "model": {"name": "tiny_convnet", "width": 36, "norm": "none"}})
    pixels = run.data.train.read(range(40)).astype(np.float64) / 255
    pictures = ((pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))).transpose(0, 3, 1, 2)
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (3, 3), axis=(2, 3))
    covariance = np.cov(windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 18).T, bias=True)
    kernels = run.model[0].weight.detach().double().numpy().reshape(36, 18)[:18]
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(kernels @ covariance @ kernels.T, np.diag(values / (values + 1e-3)), rtol=0, atol=1e-3)


def test_a_run_that_goes_on_and_an_evaluation_do_not_make_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**FIELDS, "initializer": "lsuv", "checkpoint": {"every": "2st"}}
    whole = launched(tmp_path, "whole", **fields)
    launched(tmp_path, "part", **fields, stop_at="3st")

    def never(*_: Any) -> None:
        raise AssertionError("the first weights were made again")

    monkeypatch.setattr("trainrun.engine.firsts.adapt", never)
    launched(tmp_path, "part", resume=True, **fields)
    from safetensors.torch import load_file

    files = [tmp_path / name / "checkpoints" / "last" / "model.safetensors" for name in ("whole", "part")]
    assert equal(load_file(files[0]), load_file(files[1]))
    assert evaluate_run(tmp_path / "part")["step"] == whole["steps"]


def test_a_rule_that_matches_nothing_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="initializer.rules.0.match: 'fc.*' matches no weight or bias"):
        made(tmp_path, initializer={"name": "default", "rules": [{"match": "fc.*", "weights": "zeros"}]})
    assert written(tmp_path, {"initializer": {"name": "default", "rules": [{"match": "fc.*", "weights": "zeros"}]}})
