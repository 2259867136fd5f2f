"""The laws of a step and of a run, each against a loop written out here in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import equal, launched, lines, made, trained, weights
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from trainrun.draw import order
from trainrun.engine.evaluate import evaluate
from trainrun.engine.fit import fit, train_step
from trainrun.engine.measure import Record
from trainrun.engine.run import Run
from trainrun.world import World

Tensors = dict[str, torch.Tensor]


def bare_net() -> nn.Module:
    """tiny_convnet {width: 4, depth: 2, norm: none} on one channel and 4 classes, written out."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def bare_loop(
    run: Run, lr: Callable[[int], float], momentum: float = 0.0, weight_decay: float = 0.0, clip: float = math.inf
) -> Iterator[tuple[float, float, float, int]]:
    """Train `bare_net` from the run's first weights on whole batches; yields summed loss, hits, gradient norm and pictures a step.

    SGD with Nesterov momentum, by hand: the decay is part of the gradient and falls on kernels and matrices only. The net's weights
    end in `run.bare`.
    """
    net = bare_net()
    net.load_state_dict(dict(zip(net.state_dict(), weights(run.model).values(), strict=True)))
    run.bare = net  # type: ignore[attr-defined]  # a place to find it again
    pictures = torch.from_numpy(run.data.train.read(range(len(run.data.train)))).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(run.data.train.labels)
    speed = [torch.zeros_like(p) for p in net.parameters()]
    step = 0
    while True:
        for ids in order(run.recipe.seed, step // run.plan.steps_per_epoch, len(labels)).split(run.recipe.batch_size):
            logits = net(pictures[ids])
            loss = cross_entropy(logits, labels[ids])
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            norm = torch.cat([g.flatten() for g in gradients]).norm().item()
            with torch.no_grad():
                for p, g, m in zip(net.parameters(), gradients, speed, strict=True):
                    g = g * min(1.0, clip / norm) + (weight_decay * p if p.ndim > 1 else 0)
                    m.mul_(momentum).add_(g)
                    p -= lr(step) * (g + momentum * m)
            step += 1
            yield loss.item() * len(ids), (logits.argmax(1) == labels[ids]).sum().item(), norm, len(ids)


def close(ours: Tensors, theirs: Tensors, tolerance: float) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(ours.values(), theirs.values(), strict=True))


# Weights are of size 1 and float32 has 24 bits, so one rounding is 6e-8; sums in another order over a dozen steps stay within
# a few of them, and a wrong weight on one picture is off by more than 1e-4.
TOLERANCE = 2e-6


def test_batch_32_is_8_times_4(tmp_path: Path) -> None:
    fields = {"data": {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 96, "validation": 0}, "batch_size": 32, "epochs": 4}
    whole, _ = trained(tmp_path, **fields)
    split, _ = trained(tmp_path, micro_batch=4, **fields)
    assert split.state.step == 12
    assert close(weights(split.model), weights(whole.model), TOLERANCE)
    assert not close(weights(split.model), weights(made(tmp_path, **fields)[0].model), 1e-2)


def test_the_gradient_is_of_the_mean_over_the_batch_however_it_is_split(tmp_path: Path) -> None:
    """37 pictures make steps of 12 + 12 + 8 and of 5."""
    data = {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 37, "validation": 0}
    run, _ = made(tmp_path, data=data, batch_size=32, micro_batch=12, epochs=3, optimizer={"name": "sgd", "momentum": 0})
    bare = bare_loop(run, lambda step: 0.1)
    assert [next(bare)[3] for _ in range(6)] == [32, 5] * 3
    fit(run)
    assert close(weights(run.model), weights(run.bare), TOLERANCE)


def test_clip_shortens_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    run, _ = made(tmp_path, micro_batch=3, clip=0.05, optimizer={"name": "sgd", "momentum": 0})
    bare = bare_loop(run, lambda step: 0.1, clip=0.05)
    norms = [next(bare)[2] for _ in range(8)]
    assert min(norms) > 0.06
    fit(run)
    assert close(weights(run.model), weights(run.bare), TOLERANCE)


def test_a_clip_that_is_never_reached_changes_no_bit(tmp_path: Path) -> None:
    free, clipped = trained(tmp_path)[0], trained(tmp_path, clip=1e6)[0]
    assert equal(weights(free.model), weights(clipped.model))


def test_a_run_is_a_bare_loop(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "epochs": 5,
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        "schedule": {"lr": 0.2, "warmup": {"name": "gradual", "for": "6st"}, "decay": "cosine"},
        "log": {"every": "3st"},
        "data": {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 45, "validation": 0.2},
    }
    run, _ = made(tmp_path, **fields)

    def lr(step: int) -> float:  # 5 epochs of 4 steps
        return 0.2 * step / 6 if step < 6 else 0.1 * (1 + math.cos(math.pi * (step - 6) / 14))

    bare = bare_loop(run, lr, momentum=0.9, weight_decay=0.01)
    steps = [next(bare) for _ in range(20)]
    result = launched(tmp_path, "run", **fields)
    saved = load_file(Path(result["run"]) / "checkpoints" / "last" / "model.safetensors")
    assert saved.keys() == run.model.state_dict().keys()
    assert close({name: saved[name] for name in run.model.state_dict()}, weights(run.bare), TOLERANCE)

    def means(first: int, last: int) -> tuple[float, float]:
        loss, hits, _, count = (sum(column) for column in zip(*steps[first:last], strict=True))
        return loss / count, hits / count

    told = lines(Path(result["run"]))
    expected = {("step", n): means(n - 3, n) for n in range(3, 20, 3)} | {("epoch", n): means(n - 4, n) for n in range(4, 21, 4)}
    assert {(line["kind"], line["step"]) for line in told} == set(expected)
    for line in told:
        loss, accuracy = expected[line["kind"], line["step"]]
        assert line["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert line["train_accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert line["lr"] == pytest.approx(lr(line["step"] - 1), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("every", "at"),
    [("3st", [3, 6, 9, 12, 15, 18, 20]), ("2ep", [8, 16, 20]), ("1ep", [4, 8, 12, 16, 20]), ("50%", [10, 20]), ("1.5ep", [6, 12, 18, 20])],
)
def test_evaluations_fall_on_their_steps_and_on_the_last(tmp_path: Path, every: str, at: list[int]) -> None:
    _, noted = trained(tmp_path, epochs=5, evaluate={"every": every})
    assert noted.steps("epoch", "val_loss") == at
    assert noted.steps("epoch") == sorted({*at, 4, 8, 12, 16, 20})


def test_an_evaluation_counts_every_picture_once(tmp_path: Path) -> None:
    """13 pictures in batches of 5, 5 and 3, with batch norm, against one forward pass over all."""
    data = {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 53, "validation": 0.25, "noise": 0.2}
    run, _ = trained(tmp_path, data=data, micro_batch=5, model={"name": "tiny_convnet", "width": 4, "depth": 2}, augment=["normalize"])
    assert run.validation and len(run.validation) == 13
    before = weights(run.model)
    figures = run.validate()
    assert run.model.training
    assert equal(weights(run.model), before)

    train = torch.from_numpy(run.data.train.read(range(40))).double() / 255
    pictures = torch.from_numpy(run.data.validation.read(range(13))).permute(0, 3, 1, 2).double() / 255
    labels = torch.from_numpy(run.data.validation.labels)
    with torch.no_grad():
        logits = run.model.eval()(((pictures - train.mean()) / train.std(correction=0)).float())
    assert figures["val_loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert figures["val_accuracy"] == (logits.argmax(1) == labels).sum().item() / 13
    evaluate(run.model, run.validation, run.inputs, run.task.judge(run.world), run.world, 5, "fp32", run.check)
    assert not run.model.training


def test_the_mode_is_put_back_where_an_evaluation_is_interrupted(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    assert run.validation

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run.model, run.validation, run.inputs, run.task.judge(run.world), run.world, 5, "fp32", stop)
    assert run.model.training


# A device that has no values: whatever would wait for one raises.
META = World(torch.device("meta"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loop_first_asks_for_a_value_where_it_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    monkeypatch.setattr("trainrun.engine.resident.free_memory", lambda device: 1 << 30)  # of a device that has no memory either
    run, noted = made(
        tmp_path, META, epochs=5, log={"every": "3st"}, micro_batch=4, clip=1.0, ema={"decay": 0.9}, optimizer=optimizer,
        augment=[{"name": "random_crop", "padding": 1}, "horizontal_flip", {"name": "normalize", "mean": [0.5], "std": [0.25]}],
        model={"name": "tiny_convnet", "width": 4, "depth": 2, "dropout": 0.1},
    )  # fmt: skip
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit(run)
    assert run.state.step == 3
    assert noted.said == []


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors, by step."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.at = run, list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.at.append(self.run.state.step)
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_between_log_lines(tmp_path: Path) -> None:
    run, noted = made(tmp_path, epochs=5, log={"every": "3st"}, micro_batch=4, clip=1.0, ema={"decay": 0.9}, augment=["normalize"])
    with Reads(run) as reads:
        torch.ones(1).item()
        fit(run)
    assert reads.at.pop(0) == 0
    assert set(reads.at) <= {step for _, step, _ in noted.said}


def test_a_run_that_keeps_nothing_reads_nothing_for_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read waits for the device: at the ends of two epochs and at the end of training, though a save is due at each step."""
    read: list[int] = []
    plain = Record.read
    for every in ("off", "1st"):
        run, _ = made(tmp_path, checkpoint={"every": every}, log={"every": "50st"})
        monkeypatch.setattr(Record, "read", lambda record, tensors, run=run: (read.append(run.state.step), plain(record, tensors))[1])
        fit(run)
        assert set(read) - {0} == {4, 8}
        read.clear()


def masks(run: Run) -> list[torch.Tensor]:
    """The dropout masks of the coming forward passes, filled as they happen: True where a feature is dropped."""
    found: list[torch.Tensor] = []
    layer = next(module for module in run.model if isinstance(module, nn.Dropout))
    layer.register_forward_pre_hook(lambda module, inputs: (torch.ones_like(inputs[0]),))
    layer.register_forward_hook(lambda module, inputs, output: found.append(output == 0))
    return found


def test_dropout_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "model": {"name": "tiny_convnet", "width": 16, "depth": 2, "norm": "none", "dropout": 0.5},
        "evaluate": {"every": "2ep"},
    }

    def drawn(**more: Any) -> list[torch.Tensor]:
        run, _ = made(tmp_path, **fields, **more)
        found = masks(run)
        fit(run)
        return found[:8]  # then comes the evaluation

    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert all(map(torch.equal, first, again))
    for a, b in [*pairwise(first), *zip(first, other, strict=True)]:  # two fair coins differ half of the time
        assert (a != b).float().mean() == pytest.approx(0.5, abs=0.15)  # 320 features: 5 standard deviations

    run, _ = made(tmp_path, **fields)
    found = masks(run)
    run.state.step = 5
    torch.rand(7)  # whatever else draws has no say in it
    train_step(run, next(run.batches(5)), 0.1)
    assert torch.equal(found[0], first[5])
