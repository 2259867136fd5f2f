"""Optimizers in a run: rules over parameter names, the decay's schedule, the average of the schedule-free, and what a resume keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import equal, launched, lines, made, trained, weights

from trainrun.engine.fit import fit, train_step
from trainrun.engine.run import Run
from trainrun.engine.tasks import Classification
from trainrun.engine.use import evaluate_run
from trainrun.errors import UserError
from trainrun.parts.optimizers import summary
from trainrun.recipe.registry import registry
from trainrun.world import World

# tiny_convnet {width: 4, depth: 2, norm: none}: two convolutions and a linear layer, each with a bias.
NAMES = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
PACKAGES = {"lamb": "timm", "lion": "timm", "schedule_free_sgd": "schedulefree", "schedule_free_adamw": "schedulefree"}


def wanted(optimizer: str) -> None:
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer])


def by_name(run: Run, key: str) -> dict[str, Any]:
    """What the group of each parameter holds."""
    names = {p: name for name, p in run.model.named_parameters()}
    return {names[p]: group[key] for group in run.optimizer.param_groups for p in group["params"]}


def test_the_last_rule_that_gives_a_setting_has_the_say_on_it(tmp_path: Path) -> None:
    groups = [
        {"match": "*", "lr_scale": 2, "weight_decay": 0.3},
        {"match": "6.*", "lr_scale": 10},
        {"match": "[06].weight", "weight_decay": 0.0},
    ]
    run, _ = made(tmp_path, optimizer={"name": "sgd", "weight_decay": 0.1, "groups": groups})
    run.set_rates(0.5)
    assert list(run.model.state_dict()) == NAMES
    assert by_name(run, "lr") == dict(zip(NAMES, [1.0, 1.0, 1.0, 1.0, 5.0, 5.0], strict=True))
    # A bias is spared whatever the rules say, as in the whole model.
    assert by_name(run, "weight_decay") == dict(zip(NAMES, [0.0, 0.0, 0.3, 0.0, 0.0, 0.0], strict=True))
    # The first convolution's kernels and bias, the second's bias; its kernels; the linear layer.
    assert summary(run.optimizer, "sgd") == [
        "sgd: 48 parameters, lr x 2, no weight decay",
        "sgd: 288 parameters, lr x 2, weight decay 0.3",
        "sgd: 36 parameters, lr x 10, no weight decay",
    ]
    everything, _ = made(tmp_path, optimizer={"name": "sgd", "weight_decay": 0.1, "groups": groups, "decay_norms_and_biases": True})
    assert by_name(everything, "weight_decay") == dict(zip(NAMES, [0.0, 0.3, 0.3, 0.3, 0.0, 0.3], strict=True))


def test_rules_reach_the_norms_and_biases_that_a_second_optimizer_decays(tmp_path: Path) -> None:
    second = {"name": "adamw", "weight_decay": 0.2, "decay_norms_and_biases": True}
    groups = [{"match": "3.*", "weight_decay": 0.3}, {"match": "6.bias", "weight_decay": 0.0}]
    run, _ = made(tmp_path, optimizer={"name": "muon", "weight_decay": 0.1, "second": second, "groups": groups})
    assert list(run.model.state_dict()) == NAMES
    # Kernels are muon's, besides the last weight.
    assert by_name(run, "weight_decay") == dict(zip(NAMES, [0.1, 0.2, 0.3, 0.3, 0.2, 0.0], strict=True))


def test_a_group_learns_as_a_model_with_that_rate_and_the_rest_does_not_notice(tmp_path: Path) -> None:
    """The first step of plain SGD is linear in the rate."""
    optimizer = {"name": "sgd", "momentum": 0}
    plain, _ = made(tmp_path, optimizer=optimizer)
    scaled, _ = made(tmp_path, optimizer={**optimizer, "groups": [{"match": "6.*", "lr_scale": 4}]})
    start = weights(plain.model)
    for run in (plain, scaled):
        train_step(run, next(run.batches(0)), 0.125)
    for name, before in start.items():
        moved, expected = scaled.model.state_dict()[name] - before, plain.model.state_dict()[name] - before
        assert torch.allclose(moved, expected * (4 if name.startswith("6.") else 1), rtol=1e-4, atol=1e-7), name


def test_lr_scale_0_freezes(tmp_path: Path) -> None:
    run, _ = made(tmp_path, optimizer={"name": "adamw", "groups": [{"match": "*", "lr_scale": 0}, {"match": "6.*", "lr_scale": 1}]})
    before = weights(run.model)
    fit(run)
    assert {n for n, t in run.model.state_dict().items() if not torch.equal(t, before[n])} == {"6.weight", "6.bias"}
    assert [n for n, p in run.model.named_parameters() if p.requires_grad] == ["6.weight", "6.bias"]
    assert set(by_name(run, "lr")) == {"6.weight", "6.bias"}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"match": "66.*", "lr_scale": 2}], r"optimizer.groups.0.match: '66.\*' matches no parameter that learns; there are 0.weight, 0.bias, 3.weight, 3.bias and 2 more; did you mean 6.\*"),
        ([{"match": "6.*", "lr_scale": 2}, {"match": "*", "lr_scale": 3}], r"optimizer.groups.0: later groups overrule all that '6.\*' sets, so it has no effect"),
        ([{"match": "*", "lr_scale": 0}], "the model has no parameter that learns"),
        ([{"match": "*.bias", "weight_decay": 0.1}], r"optimizer.groups.0.weight_decay: '\*.bias' matches norms and biases alone, which do not decay; write decay_norms_and_biases: true"),
    ],
)  # fmt: skip
def test_rules_without_effect_are_refused(tmp_path: Path, groups: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, optimizer={"name": "sgd", "groups": groups})


def test_rules_may_spare_what_is_spared_and_decay_biases_where_all_decay(tmp_path: Path) -> None:
    bias = [{"match": "6.bias", "weight_decay": 0.1}]
    run, _ = made(tmp_path, optimizer={"name": "sgd", "groups": bias, "decay_norms_and_biases": True})
    assert by_name(run, "weight_decay")["6.bias"] == 0.1
    run, _ = made(tmp_path, optimizer={"name": "sgd", "weight_decay": 0.1, "groups": [{"match": "*.bias", "weight_decay": 0}]})
    assert by_name(run, "weight_decay")["6.bias"] == 0 and by_name(run, "weight_decay")["6.weight"] == 0.1


@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_rules_and_schedule_hold_for_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    """And the decay of step t of 8 is the plain decay times the factor, at t = 0 the plain one."""
    wanted(optimizer)
    options = {"name": optimizer, "weight_decay": 0.2, "weight_decay_schedule": {"name": "cosine", "end": 5}}
    run, _ = made(tmp_path, optimizer={**options, "groups": [{"match": "3.weight", "lr_scale": 0.5, "weight_decay": 0.4}]})
    assert run.plan.total == 8
    for step in (0, 3, 8):
        run.state.step = step
        run.set_rates(0.5)
        factor = 5 - 4 * (1 + math.cos(math.pi * step / 8)) / 2
        decay, rate = by_name(run, "weight_decay"), by_name(run, "lr")
        assert decay["0.weight"] == pytest.approx(0.2 * factor, rel=1e-12)
        assert decay["3.weight"] == pytest.approx(0.4 * factor, rel=1e-12)
        assert (rate["0.weight"], rate["3.weight"], rate["6.bias"]) == (0.5, 0.25, 0.5)
        if optimizer != "muon":
            assert {decay[n] for n in NAMES if n.endswith("bias")} == {0.0}


def test_a_scheduled_decay_is_a_bare_loop(tmp_path: Path) -> None:
    """Where the gradient is 0, plain SGD shrinks a weight by 1 - lr decay(t) at step t."""
    schedule = {"name": "linear", "end": 0.25}
    run, _ = made(tmp_path, optimizer={"name": "sgd", "momentum": 0, "weight_decay": 0.5, "weight_decay_schedule": schedule})
    run.task = Classification(lambda logits, labels: (logits * 0).sum(1))
    before = weights(run.model)
    fit(run)
    share = math.prod(1 - 0.1 * 0.5 * (1 - 0.75 * step / 8) for step in range(8))
    for name, tensor in weights(run.model).items():
        assert torch.allclose(tensor, before[name] * (share if name.endswith("weight") else 1), rtol=1e-5, atol=0), name


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "nadam", "lamb", "schedule_free_sgd", "schedule_free_adamw"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path: Path, optimizer: str) -> None:
    """Groups, schedule of the decay, accumulation, channels_last: weights, average, state and lines, to the last bit."""
    wanted(optimizer)
    fields: dict[str, Any] = {
        "optimizer": {
            "name": optimizer, "weight_decay": 0.1, "weight_decay_schedule": {"name": "cosine"},
            "groups": [{"match": "3.*", "lr_scale": 2}, {"match": "6.weight", "weight_decay": 0.3}],
        },
        "schedule": {"lr": 0.02, "warmup": {"name": "gradual", "for": "2st"}}, "micro_batch": 4, "memory_format": "channels_last",
        "log": {"every": "1st"},
    }  # fmt: skip
    launched(tmp_path, "whole", **fields)
    launched(tmp_path, "parts", **fields, stop_at="3st")
    launched(tmp_path, "parts", resume=True, **fields)
    for file in ("model.safetensors", "state.safetensors"):
        whole, parts = (load_file(tmp_path / run / "checkpoints" / "last" / file) for run in ("whole", "parts"))
        assert whole and equal(whole, parts)
    one, other = lines(tmp_path / "whole"), lines(tmp_path / "parts")
    assert [line for line in one if line["kind"] == "step"] == [line for line in other if line["kind"] == "step"]


@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_batch_10_is_5_times_2(tmp_path: Path, optimizer: str) -> None:
    wanted(optimizer)
    fields: dict[str, Any] = {"optimizer": {"name": optimizer}, "schedule": {"lr": 0.002}, "epochs": 1}
    whole, split = trained(tmp_path, **fields)[0], trained(tmp_path, micro_batch=2, **fields)[0]
    start = weights(made(tmp_path, **fields)[0].model)
    # Gradients differ in their last bits; dividing by their size, or taking their sign or their singular vectors, enlarges that.
    for name, tensor in weights(whole.model).items():
        off, moved = (tensor - weights(split.model)[name]).norm(), (tensor - start[name]).norm()
        assert off < 0.1 * moved, name


@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_no_optimizer_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """On a device that has no values whatever would wait for one raises: the first to do so is the log line at step 3."""
    wanted(optimizer)
    monkeypatch.setattr("trainrun.engine.resident.free_memory", lambda device: 1 << 30)  # of a device that has no memory either
    groups = [{"match": "6.*", "lr_scale": 2}]
    run, noted = made(
        tmp_path, World(torch.device("meta")), log={"every": "3st"}, clip=1.0, optimizer={"name": optimizer, "groups": groups}
    )
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit(run)
    assert (run.state.step, noted.said) == (3, [])


@pytest.mark.parametrize("optimizer", ["schedule_free_sgd", "schedule_free_adamw"])
def test_the_average_of_the_schedule_free_is_what_is_evaluated_and_kept(tmp_path: Path, optimizer: str) -> None:
    """Against the recursion x = (1 - 1 / t) x + z / t that a constant learning rate makes of it; batch statistics are the model's."""
    pytest.importorskip("schedulefree")
    fields: dict[str, Any] = {"optimizer": optimizer, "model": {"name": "tiny_convnet", "width": 4, "depth": 2}, "schedule": {"lr": 0.05}}
    run, _ = made(tmp_path, **fields)
    batches, x = run.batches(0), {name: p.detach().double() for name, p in run.model.named_parameters()}
    for step in range(8):
        train_step(run, next(batches), run.schedule(step))
        run.state.step += 1
        for name, p in run.model.named_parameters():
            x[name] = x[name] + (run.optimizer.state[p]["z"].double() - x[name]) / (step + 1)
    average = weights(run.average.model)
    for name, tensor in average.items():
        expected = x[name].float() if name in x else run.model.state_dict()[name]
        assert torch.allclose(tensor, expected, rtol=0, atol=2e-6), name  # y is stored in 24 bits, and x = y + (y - z) / 9
    assert not torch.allclose(average["0.weight"], run.model.state_dict()["0.weight"], atol=1e-5)

    launched(tmp_path, "run", **fields)
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())
    told = [line for line in lines(tmp_path / "run") if line["kind"] == "epoch"][-1]
    assert evaluate_run(tmp_path / "run", checkpoint="last")["val_loss"] == pytest.approx(told["val_loss"], rel=1e-6)
