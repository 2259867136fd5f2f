"""What a person who knows torch, torchvision, timm or Keras would write, and the word of ours that they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.errors import RecipeError
from trainrun.recipe import elsewhere
from trainrun.recipe.explain import known_paths
from trainrun.recipe.layers import Layer
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry

RECIPE = "data: digits\nmodel: resnet18\nepochs: 2\nschedule: {lr: 0.1}\n"


@pytest.mark.parametrize(
    "override, said",
    [
        ("schedule.decay=CosineAnnealingLR", "cosine"),
        ("schedule.decay=CosineAnnealingWarmRestarts", "cosine_restarts"),
        ("schedule.decay=ReduceLROnPlateau", "plateau"),
        ("schedule.decay=none", "constant"),
        ("schedule.warmup=linear", "gradual"),
        ("initializer=he_normal", "kaiming_normal"),
        ("initializer=HeUniform", "kaiming_uniform"),
        ("initializer=glorot_uniform", "xavier_uniform"),
        ("initializer=lecun_normal", "kaiming_normal with nonlinearity: linear"),
        ("augment=[RandomHorizontalFlip]", "horizontal_flip"),
        ("augment=[Cutout]", "random_erasing"),
        ("loss=SparseCategoricalCrossentropy", "cross_entropy"),
        ("sampler=WeightedRandomSampler", "weighted"),
        ("mining=hard_negative_mining", "rounds"),
        ("schedule.decay={name: multistep, milestones: [1ep], at: [1ep]}", "at"),
        ("schedule.decay={name: cosine, T_max: 1ep}", "steps"),
        ("schedule.decay={name: exponential, decay_rate: 0.5}", "rate"),
        ("schedule.decay={name: one_cycle, pct_start: 0.3}", "rise"),
        ("schedule.warmup={name: gradual, warmup_epochs: 1, for: 1ep}", "for"),
        ("model.pretrained=true", "weights"),
        ("optimizer={name: rmsprop, rho: 0.9}", "alpha"),
        ("optimizer={name: adam, learning_rate: 0.1}", "schedule.lr"),
        ("optimizer={name: sgd, groups: [{match: fc.*, lr: 0.1}]}", "lr_scale"),
        ("clip_grad_norm=1", "clip"),
        ("accumulate_grad_batches=2", "micro_batch"),
        ("amp=true", "precision"),
        ("ema_decay=0.9", "ema.decay"),
        ("early_stopping={metric: val_loss}", "early_stopping.monitor"),
    ],
)
def test_the_word_of_another_library_is_understood(override: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "run.yaml", [override])
    assert [m.suggestion for m in caught.value.mistakes if m.suggestion] == [said]


def test_a_word_that_is_far_from_all_is_answered_without_a_guess(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RECIPE)
    for override in ("model.num_classes=10", "data.year=2012", "early_stopping={mode: max}"):
        with pytest.raises(RecipeError) as caught:
            load(tmp_path / "run.yaml", [override])
        assert [m.suggestion for m in caught.value.mistakes] == [None], override


def test_all_schedulers_of_torch_that_have_a_counterpart_lead_to_it() -> None:
    other = {"ChainedScheduler", "SequentialLR", "LambdaLR", "MultiplicativeLR", "SWALR"}
    theirs = [n for n in torch.optim.lr_scheduler.__all__ if n not in other and not n.startswith("LR")]
    assert len(theirs) >= 10
    assert [name for name in theirs if registry.nearest("decay", name) is None] == []


@pytest.mark.parametrize("kind", list(elsewhere.PART_NAMES))
def test_names_lead_to_parts_that_are_there(kind: str) -> None:
    ours = set(registry.names(kind))
    assert {our.split()[0] for found in elsewhere.PART_NAMES[kind].values() for our in found} <= ours
    assert not {elsewhere._plain(name) for name in ours} & set(elsewhere.PART_NAMES[kind]), "a name of ours needs no other"


@pytest.mark.parametrize("kind", list(elsewhere.OPTION_NAMES))
def test_options_lead_to_options_that_are_there(kind: str) -> None:
    parts = [registry.get(kind, name) for name in registry.names(kind)]
    ours = {option for part in parts if part for option in part.options.model_fields} | {"match", "lr_scale"}
    assert {our for found in elsewhere.OPTION_NAMES[kind].values() for our in found} <= ours


def test_fields_lead_to_fields_that_are_there() -> None:
    assert {our for found in elsewhere.FIELD_NAMES.values() for our in found} <= set(known_paths(Layer({"schedule": {"decay": "cosine"}}), registry))
