"""The moving average of the weights against its closed formula, and that it is what is evaluated and kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import launched, made, trained, weights
from torch import nn

from trainrun.engine.average import Ema
from trainrun.engine.fit import fit, train_step
from trainrun.engine.use import evaluate_run
from trainrun.recipe.schema import Ema as Options

NORMED: dict[str, Any] = {"model": {"name": "tiny_convnet", "width": 4, "depth": 2}, "schedule": {"lr": 0.5}, "epochs": 3}


def closed(sequence: list[dict[str, torch.Tensor]], decays: list[float]) -> dict[str, torch.Tensor]:
    """sum_k w_k x_k in float64 with w_k = (1 - d_k) prod_{j > k} d_j, and w_0 = prod d_j for the first weights."""
    shares = [(1 - decay) * math.prod(decays[k:]) for k, decay in enumerate([0.0, *decays])]
    assert sum(shares) == pytest.approx(1)
    mean = {name: sum(share * x[name].double() for share, x in zip(shares, sequence, strict=True)) for name in sequence[0]}
    return {name: mean[name].float() if x.is_floating_point() else x for name, x in sequence[-1].items()}


@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({"decay": 0.8, "warmup": False}, [0.8] * 12),
        ({"decay": 0.4, "warmup": True}, [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15] + [0.4] * 7),  # (1 + t) / (10 + t) reaches 0.4 at t = 5
    ],
)
def test_the_average_of_a_run_is_the_closed_formula(tmp_path: Path, options: dict[str, Any], decays: list[float]) -> None:
    """Over parameters and batch statistics; the counter of batch norm is copied."""
    run, _ = made(tmp_path, ema=options, **NORMED)
    batches = run.batches(0)
    sequence = [weights(run.model)]
    for step in range(12):
        train_step(run, next(batches), run.schedule(step))
        run.state.step += 1
        sequence.append(weights(run.model))
    expected, average = closed(sequence, decays), weights(run.average.model)
    assert not torch.equal(average["2.running_mean"], weights(run.model)["2.running_mean"])
    assert average["2.num_batches_tracked"] == 12
    for name, tensor in average.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name  # a dozen roundings of 6e-8


def test_the_average_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    with_, without = (trained(tmp_path, **more, **NORMED)[0] for more in ({"ema": {"decay": 0.9}}, {}))
    assert all(map(torch.equal, weights(with_.model).values(), weights(without.model).values()))
    assert without.average.model is without.model


def test_weights_that_are_shared_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    average = Ema(model, Options(decay=0.75, warmup=False))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    average.update(1)
    assert average.model[0].weight is average.model[1].weight
    assert average.model[0].weight.unique().tolist() == [1.25]


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**NORMED, "ema": {"decay": 0.9}}
    run, noted = made(tmp_path, **fields)
    fit(run)
    result = launched(tmp_path, "run", **fields)
    last = tmp_path / "run" / "checkpoints" / "last"
    saved, beside = load_file(last / "model.safetensors"), load_file(last / "state.safetensors")
    for name, tensor in weights(run.average.model).items():
        assert torch.equal(saved[name], tensor)
        assert torch.equal(beside[f"model.{name}"], run.model.state_dict()[name])
    told = noted.said[-1][2]
    assert result["steps"] == 12
    assert evaluate_run(tmp_path / "run", checkpoint="last")["val_loss"] == pytest.approx(told["val_loss"], rel=1e-6)
    run.average.model.load_state_dict(run.model.state_dict())
    assert run.validate()["val_loss"] != pytest.approx(told["val_loss"], rel=1e-2)  # the weights themselves give another figure
