"""Schedules against exact tables, closed formulas and torch's schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError
from rates import torch_lrs
from torch.optim import lr_scheduler

from trainrun.errors import UserError
from trainrun.parts.schedules import Progress, Schedule, make_schedule
from trainrun.recipe import schema
from trainrun.recipe.registry import PartNode, registry


def node(kind: str, name: str, **options: Any) -> PartNode:
    model = registry.get(kind, name).options.model_validate(options)  # type: ignore[union-attr]  # it is registered
    return PartNode(kind, name, {key: getattr(model, key) for key in type(model).model_fields})


def schedule(warmup: PartNode, decay: PartNode, lr: float = 0.4, total: int = 100, steps_per_epoch: int = 10) -> Schedule:
    return make_schedule(schema.Schedule(lr=lr, warmup=warmup, decay=decay), total, steps_per_epoch)


NONE = node("warmup", "none")
CONSTANT = node("decay", "constant")


@pytest.mark.parametrize(
    ("warmup", "decay", "table"),
    [
        (NONE, CONSTANT, {0: 0.4, 99: 0.4, 1000: 0.4}),
        (node("warmup", "gradual", **{"for": "10st"}), CONSTANT, {0: 0.0, 1: 0.04, 5: 0.2, 9: 0.36, 10: 0.4, 11: 0.4, 500: 0.4}),
        (node("warmup", "gradual", **{"for": "1ep"}, start=0.1), CONSTANT, {0: 0.1, 5: 0.25, 9: 0.37, 10: 0.4}),
        (node("warmup", "gradual", **{"for": "20%"}, start=0.8), CONSTANT, {0: 0.8, 10: 0.6, 20: 0.4, 21: 0.4}),
        (node("warmup", "gradual", **{"for": "0.1%"}), CONSTANT, {0: 0.4}),
        (NONE, node("decay", "multistep", at=["5ep", "80st"]), {0: 0.4, 49: 0.4, 50: 0.04, 79: 0.04, 80: 0.004, 500: 0.004}),
        (NONE, node("decay", "multistep", at=["50%"], gamma=0.5), {49: 0.4, 50: 0.2, 99: 0.2}),
        (NONE, node("decay", "multistep", at=["5ep", "8ep"], values=[0.1, 0.0]), {0: 0.4, 49: 0.4, 50: 0.1, 79: 0.1, 80: 0.0, 200: 0.0}),
        (node("warmup", "gradual", **{"for": "10st"}), node("decay", "multistep", at=["5st"]), {4: 0.16, 5: 0.02, 10: 0.04}),
        (NONE, node("decay", "cosine"), {0: 0.4, 50: 0.2, 100: 0.0, 101: 0.0, 10**6: 0.0}),
        (NONE, node("decay", "cosine", alpha=0.5), {0: 0.4, 50: 0.3, 100: 0.2, 150: 0.2}),
        (NONE, node("decay", "cosine", steps="2ep"), {0: 0.4, 10: 0.2, 20: 0.0, 99: 0.0}),
        (node("warmup", "gradual", **{"for": "20st"}), node("decay", "cosine"), {0: 0.0, 10: 0.2, 20: 0.4, 60: 0.2, 100: 0.0}),
    ],
)
def test_exact_learning_rates(warmup: PartNode, decay: PartNode, table: dict[int, float]) -> None:
    made = schedule(warmup, decay)
    assert {step: made(step) for step in table} == pytest.approx(table, abs=1e-15)


def test_gradual_then_cosine_is_torchs_sequence() -> None:
    made = schedule(node("warmup", "gradual", **{"for": "20st"}, start=0.04), node("decay", "cosine", alpha=0.1))

    def theirs(optimizer: Any) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, 80, eta_min=0.04)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], [20])

    assert [made(step) for step in range(101)] == pytest.approx(torch_lrs(0.4, 101, theirs), rel=1e-9)


def test_multistep_is_torchs() -> None:
    made = schedule(NONE, node("decay", "multistep", at=["3ep", "60st", "60st"], gamma=0.3))
    theirs = torch_lrs(0.4, 100, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [30, 60, 60], 0.3))
    assert [made(step) for step in range(100)] == pytest.approx(theirs, rel=1e-12)


def test_cosine_is_tensorflows_formula() -> None:
    made = schedule(node("warmup", "gradual", **{"for": "7st"}), node("decay", "cosine", alpha=0.2, steps="50st"))
    for step in range(7, 120):
        t = min(step - 7, 50)
        assert made(step) == pytest.approx(0.4 * (0.8 * 0.5 * (1 + math.cos(math.pi * t / 50)) + 0.2))


def test_a_schedule_is_a_pure_function_of_the_step() -> None:
    made = schedule(node("warmup", "gradual", **{"for": "20st"}), node("decay", "cosine"))
    forwards = [made(step) for step in range(100)]
    assert [made(step) for step in reversed(range(100))] == forwards[::-1]


def test_progress_counts_from_the_warmups_end_and_spans_are_never_empty() -> None:
    progress = Progress(step=5, total=30, steps_per_epoch=10, warmup=8, lr=1.0)
    assert (progress.since_warmup, progress.span(None)) == (0, 22)
    assert Progress(11, 30, 10, 8, 1.0).since_warmup == 3
    assert Progress(0, 30, 10, 30, 1.0).span(None) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": ["1ep", "2ep"], "values": [0.1]}, "2 milestones and 1 values"),
        ({"at": ["2ep", "1ep"], "values": [0.1, 0.2]}, "rising milestones, found 2ep, 1ep"),
    ],
)
def test_options_that_do_not_go_together_are_found_before_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(NONE, node("decay", "multistep", **options))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("warmup", "gradual", {}),
        ("warmup", "gradual", {"for": 5}),
        ("warmup", "gradual", {"for": "5s"}),
        ("decay", "multistep", {"at": []}),
        ("decay", "multistep", {"at": ["1ep"], "gamma": 0.0}),
        ("decay", "cosine", {"alpha": 1.5}),
        ("decay", "cosine", {"alpha": "0.5"}),
    ],
)
def test_wrong_options_are_refused(kind: str, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        node(kind, name, **options)
