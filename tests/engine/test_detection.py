"""Detectors in the one loop: its figures and laws, against loops written out here in plain PyTorch."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import rectangles
import torch
from children import contents
from rectangles import CLASSES, launched, made, model, trained, voc
from safetensors.torch import load_file
from small import CPU, equal, lines, weights

from trainrun.draw import order, step_seed
from trainrun.engine.detection import Detection, Found
from trainrun.engine.fit import fit, train_step
from trainrun.engine.run import Run
from trainrun.engine.sampling import advice
from trainrun.errors import NonFinite, OutOfMemory, UserError

PARTS = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
VALIDATION = {"val_map", "val_map_50", "val_map_75"}
MOVES = [{"name": "random_crop", "padding": 4}, "horizontal_flip", "normalize"]
OHEM = {"name": "ohem_rois", "rois": 4, "nms_iou": 1.0}
PLAIN = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_a_run_says_what_the_loss_is_made_of(home: Path) -> None:
    result = launched(home, "figures", evaluate={"every": "2ep"}, log={"every": "2st"}, mining=OHEM, checkpoint={"every": "60s"})
    said = lines(home / "figures")
    assert result["stop"] == "epochs" and [(line["kind"], line["step"]) for line in said] == [
        ("step", 2), ("epoch", 3), ("step", 4), ("step", 6), ("epoch", 6),
    ]  # fmt: skip
    for line in said:
        assert line["train_loss"] == pytest.approx(sum(line[f"train_{name}"] for name in PARTS), rel=1e-6)
        # The mean of a picture; all pictures have more than four proposals.
        assert line["train_rois_kept"] == 4 < line["train_rois_scored"] <= 20 + 3
        assert not {"train_accuracy", "val_accuracy", "val_loss"} & line.keys()
    assert [set(line) & VALIDATION for line in said] == [set(), set(), set(), set(), VALIDATION]
    assert "train_rois_kept" not in launched(home, "plain", epochs="1st")["best"]


def test_a_detector_learns(home: Path) -> None:
    """The pictures are noise until it does: AP50 of an untrained network is 0."""
    run, noted = trained(
        home, model=model(width=8, hidden=32), epochs=40, optimizer="adamw", schedule={"lr": 0.01, "decay": "cosine"},
        augment=["normalize", "horizontal_flip"], evaluate={"every": "20ep"},
    )  # fmt: skip
    assert run.state.best and run.state.best["val_map_50"] > 0.2
    first, last = noted.said[0][2]["train_loss"], noted.said[-1][2]["train_loss"]
    assert last < 0.7 * first


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[tuple[float, float]]) -> None:
    """Let the evaluations find these val_map and val_map_50, one after the other."""
    coming = iter(values)

    def figures(self: Found, world: Any, samples: int) -> dict[str, float]:
        whole, half = next(coming)
        return {"val_map": whole, "val_map_50": half, "val_map_75": 0.0}

    monkeypatch.setattr(Found, "figures", figures)


@pytest.mark.parametrize(("stopping", "best", "steps"), [({"patience": 2}, 6, 12), ({"patience": 2, "monitor": "val_map_50"}, 9, 15)])
def test_early_stopping_watches_average_precision(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: dict[str, Any], best: int, steps: int
) -> None:
    scripted(monkeypatch, [(0.1, 0.1), (0.4, 0.2), (0.3, 0.5), (0.3, 0.4), (0.6, 0.4), (0.2, 0.3), (0.9, 0.9)])
    out = f"stopped{best}"
    result = launched(home, out, epochs=7, early_stopping=stopping, checkpoint={"every": "60s"})
    assert (result["stop"], result["steps"], result["best"]["step"]) == ("early_stopping", steps, best)
    assert os.readlink(home / out / "checkpoints" / "best") == f"step-{best:08d}"


def hand_made(run: Run, steps: int, lr: float, micro: int, ranks: int = 1) -> dict[str, torch.Tensor]:
    """Plain SGD written out: a micro-batch's loss is what torchvision says of it, which is a mean over its RoIs; it counts by its pictures,
    and what a network draws is drawn anew each step by each process.
    """
    net = run.model.train()
    whole_of = run.data.train
    for step in range(steps):
        epoch, done = divmod(step, run.plan.steps_per_epoch)
        ids = order(run.recipe.seed, epoch, len(whole_of)).split(run.plan.batch_size)[done]
        gradients = [torch.zeros_like(p) for p in net.parameters()]
        for rank, share in enumerate(ids.chunk(ranks)):
            torch.manual_seed(step_seed(run.recipe.seed, step, rank))
            for some in share.split(micro):
                images = [torch.tensor(picture).permute(2, 0, 1).float() / 255 for picture in whole_of.read(some.tolist())]
                assert whole_of.boxes
                targets = [
                    {"boxes": torch.from_numpy(of.boxes[~of.ignored]), "labels": torch.from_numpy(of.labels[~of.ignored] + 1)}
                    for of in (whole_of.boxes[n] for n in some.tolist())
                ]
                loss = sum(net(images, targets).values()) * len(some) / len(ids)
                for total, found in zip(gradients, torch.autograd.grad(loss, list(net.parameters())), strict=True):
                    total += found
        with torch.no_grad():
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                p -= lr * gradient
    return weights(net)


@pytest.mark.parametrize("micro", [None, 2, 3])
@pytest.mark.parametrize("mining", [None, OHEM])
def test_a_step_is_that_of_the_micro_batches_weighed_by_their_pictures(home: Path, micro: int | None, mining: Any) -> None:
    fields = {"micro_batch": micro, "mining": mining, "optimizer": PLAIN, "epochs": "4st"}
    run, _ = trained(home, **fields)
    expected = hand_made(made(home, **fields)[0], 4, 0.02, micro or 4)
    torch.testing.assert_close(weights(run.model), expected, rtol=1e-4, atol=1e-6)


def test_what_a_detector_draws_is_a_function_of_seed_and_step(home: Path) -> None:
    one, _ = trained(home)
    other, _ = made(home)
    torch.rand(5)
    fit(other)
    assert equal(weights(one.model), weights(other.model))
    assert not equal(weights(one.model), weights(trained(home, seed=1)[0].model))


@pytest.mark.parametrize("more", [{}, {"sampler": {"name": "subset", "count": 6, "stratified": False}}])
def test_pictures_read_by_workers_are_those_in_memory(home: Path, more: dict[str, Any]) -> None:
    resident, _ = trained(home, augment=MOVES, **more)
    streamed, _ = trained(home, augment=MOVES, data=voc(home, resident="no", workers=2), **more)
    assert (resident.training.resident, streamed.training.resident) == (True, False)
    assert equal(weights(resident.model), weights(streamed.model))
    streamed.close()


def test_stopped_in_mid_epoch_and_resumed_is_never_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "epochs": 3, "micro_batch": 3, "mining": OHEM, "augment": MOVES, "ema": {"decay": 0.9}, "clip": 1.0, "early_stopping": {},
        "log": {"every": "2st"}, "evaluate": {"every": "4st"}, "checkpoint": {"every": "2st"}, "data": voc(home, resident="no", workers=1),
        "schedule": {"lr": 0.02, "warmup": {"name": "gradual", "for": "1ep"}, "decay": "cosine"}, "optimizer": "adamw",
    }  # fmt: skip
    launched(home, "whole", **fields)

    def dying(run: Run, *given: Any) -> torch.Tensor:
        if run.state.step == 7:
            raise KeyError("a death")
        return train_step(run, *given)

    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr("trainrun.engine.fit.train_step", dying)
        launched(home, "stopped", **fields)
    assert os.readlink(home / "stopped" / "checkpoints" / "last") == "step-00000006"
    torch.rand(3)
    launched(home, "stopped", resume=True, **fields)
    assert contents(home / "stopped") == contents(home / "whole")


def test_the_average_is_what_is_judged(home: Path) -> None:
    run, _ = trained(home, ema={"decay": 0.5}, epochs=1)
    assert not equal(weights(run.model), weights(run.average.model))
    seen: list[int] = []
    run.average.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run.validate()
    assert seen == [1] * 4


def test_clipping_bounds_the_step(home: Path) -> None:
    run, _ = made(home, clip=1e-3, optimizer=PLAIN)
    before = weights(run.model)
    totals = train_step(run, next(run.batches(0)), 0.5)
    moved = math.sqrt(sum((tensor - before[name]).double().square().sum().item() for name, tensor in run.model.state_dict().items()))
    assert moved == pytest.approx(0.5 * 1e-3, rel=1e-3) and totals[-1] > 1e-2


def test_bf16_is_fp32_but_for_its_digits(home: Path) -> None:
    found = {precision: trained(home, precision=precision, epochs=1)[1].said[-1][2] for precision in ("fp32", "bf16")}
    assert found["bf16"]["train_loss"] == pytest.approx(found["fp32"]["train_loss"], rel=0.05)
    assert found["bf16"]["train_loss"] != found["fp32"]["train_loss"]


def test_in_fp32_on_a_cpu_unless_asked(home: Path) -> None:
    run, _ = made(home, precision="auto")
    assert run.recipe.precision == "fp32" and run.recipe.data.options["cut"] == "device"


def test_a_batch_without_a_box_teaches_background(home: Path) -> None:
    """Every picture by itself, one of which has no box."""
    assert rectangles.drawn(0, "train", 1)[1] == []
    for mining in (None, OHEM):
        _, noted = trained(home, batch_size=1, epochs=1, mining=mining)
        assert math.isfinite(noted.said[-1][2]["train_loss"])


def nan_at(step: int, name: str = "loss_classifier") -> Any:
    """A task whose loss becomes NaN in one step, by way of a part of it."""

    def learn(self: Detection, forward: Any, images: Any, targets: Any, batch: Any) -> Any:
        nonlocal left
        left -= 1

        def bad(*given: Any) -> Any:
            parts = forward(*given)
            return parts | {name: parts[name] * math.nan} if left == 0 else parts

        return real(self, bad, images, targets, batch)

    left, real = step, Detection.learn
    return learn


def test_a_loss_that_is_no_number_stops_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detection, "learn", nan_at(5))
    with pytest.raises(NonFinite) as caught:
        launched(home, "nan", epochs=4, log={"every": "3st"}, checkpoint={"every": "1st", "keep": 50}, evaluate={"every": "4ep"})
    assert caught.value.exit_code == 4
    assert "the loss became NaN or infinite at step 5, with learning rate 0.02; first concerned: backbone.0.halving.weight" in str(caught.value)
    kept = [folder for folder in (home / "nan" / "checkpoints").iterdir() if folder.is_dir() and not folder.is_symlink()]
    assert max(folder.name for folder in kept) == "step-00000004"
    for folder in kept:
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())
    assert json.loads((home / "nan" / "result.json").read_text())["stop"] == "non_finite"


def test_layers_are_named_where_the_weights_are_finite(home: Path) -> None:
    run, _ = made(home)
    with torch.no_grad():
        for layer in (run.model.roi_heads.box_head.fc6, run.model.roi_heads.box_head.fc7, run.model.roi_heads.box_predictor.cls_score):
            layer.weight.fill_(1e15)
    told = run.non_finite("loss", 1, [next(run.batches(0))], training=True)
    assert str(told).endswith("; first concerned: roi_heads.box_predictor.cls_score")


def test_out_of_memory_says_what_to_try(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: Any) -> None:
        torch.empty(1 << 62, dtype=torch.uint8)

    monkeypatch.setattr(Detection, "learn", too_much)
    with pytest.raises(OutOfMemory, match=r"out of memory at batch_size 4, 4 pictures at once .*; try micro_batch=2, which keeps the batch") as caught:
        launched(home, "large")
    assert caught.value.exit_code == 5


def test_the_names_of_classes_are_those_of_the_boxes(home: Path) -> None:
    run, _ = made(home)
    assert run.data.classes == CLASSES
    assert run.model.roi_heads.box_predictor.cls_score.out_features == 3


def test_what_is_found_in_a_picture_does_not_depend_on_its_neighbours(home: Path) -> None:
    """Pictures of unequal sizes are padded where they share a batch, and group norm sees the padding."""
    run, _ = trained(home, model=model(width=8, hidden=32, score_threshold=0.0), epochs=15, optimizer="adamw", schedule={"lr": 0.01})
    figures = run.validate()
    assert figures["val_map_50"] > 0
    run.recipe = run.recipe.model_copy(update={"micro_batch": 1})
    assert run.validate() == figures


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 3}, r"some passes \(10 pictures an epoch, batch_size 3\), .* better is batch_size=2, or model.norm=group"),
        ({"micro_batch": 1}, r"every pass \(.*batch_size 4, in micro-batches of 1\), .* better is micro_batch=2, or model.norm=group"),
        ({"batch_size": 1}, r"every pass \(.*batch_size 1\), .*; better is model.norm=group"),
        ({"batch_size": 5}, None),
        ({"batch_size": 3, "model": model()}, None),
    ],
)
def test_batch_norm_over_a_single_picture_is_told_of(home: Path, fields: dict[str, Any], words: str | None) -> None:
    run, _ = made(home, **{"model": model(norm="batch"), **fields})
    told = advice(run.model, run.recipe, run.plan, CPU)
    assert len(told) == (words is not None) and all(re.fullmatch(f"batch norm takes its statistics from one picture in {words}", line) for line in told)


@pytest.mark.parametrize(("fields", "write"), [({"batch_size": 3}, "batch_size=2"), ({"batch_size": 10, "micro_batch": 9}, "micro_batch=8"), ({"batch_size": 1}, "batch_size=2")])
def test_a_detector_whose_maps_shrink_to_a_pixel_needs_two_pictures(home: Path, fields: dict[str, Any], write: str) -> None:
    with pytest.raises(UserError, match=f"batch norm would see a single picture .*; write {write}, or"):
        made(home, model={"name": "ssdlite320_mobilenet_v3_large"}, **fields)
