"""Every detector by name makes a step of training and of evaluation through the task, at a tiny size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rectangles import made

from trainrun.engine.fit import train_step
from trainrun.parts.models.detection import ONE_STAGE, TWO_STAGES
from trainrun.recipe.registry import registry

SMALL = {"min_size": 64, "max_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    **{name: SMALL | {"proposals": 20, "rois": 16} for name in TWO_STAGES},
    **{name: SMALL for name in ONE_STAGE},
    "ssdlite320_mobilenet_v3_large": {},
    "tiny_fasterrcnn": {"width": 4, "depth": 2},
}
PARTS = {
    "fasterrcnn": {"train_loss_classifier", "train_loss_box_reg", "train_loss_objectness", "train_loss_rpn_box_reg"},
    "retinanet": {"train_classification", "train_bbox_regression"},
    "fcos": {"train_classification", "train_bbox_regression", "train_bbox_ctrness"},
    "ssdlite320": {"train_classification", "train_bbox_regression"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_every_name_is_tried_here() -> None:
    detectors = {name for name in registry.names("model") if registry.get("model", name).facts.get("task") == "detection"}  # type: ignore[union-attr]  # it was just listed
    assert detectors == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_and_an_evaluation(name: str, home: Path) -> None:
    two_stages = "fasterrcnn" in name
    run, _ = made(home, model={"name": name, **MODELS[name]}, batch_size=2, epochs=1, mining="ohem_rois" if two_stages else None, log={"every": "1st"})
    before = [p.detach().clone() for p in run.model.parameters() if p.requires_grad]
    gradients: list[bool] = []
    run.optimizer.register_step_pre_hook(lambda *_: gradients.extend(p.grad is not None for p in run.model.parameters() if p.requires_grad))
    run.record.write(train_step(run, next(run.batches(0)), 1e-3), 2)
    run.state.step = 1
    run.read_record()
    figures = run.record.interval.figures("train")
    family = "fasterrcnn" if two_stages else name.partition("_")[0]
    assert set(figures) == {"train_loss", *PARTS[family], *(["train_rois_scored", "train_rois_kept"] if two_stages else [])}
    assert figures["train_loss"] == pytest.approx(sum(figures[part] for part in PARTS[family]), rel=1e-5) and math.isfinite(figures["train_loss"])
    # Processes exchange gradients of all weights, so none may be left without one.
    assert all(gradients) and len(gradients) == len(before)
    assert not all(map(torch.equal, before, [p for p in run.model.parameters() if p.requires_grad]))
    assert set(run.validate()) == {"val_map", "val_map_50", "val_map_75"}
