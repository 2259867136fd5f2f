"""Rounds of mining over several processes: they score their shares, make the choice of one process, and go on bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_processes import Group, figures, finish, weights

from trainrun.engine.rounds import file_of, numbers, read_round

RECIPE = """
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 415, noise: 0.2, workers: 0, one_against_rest: class 1}
model: {name: tiny_convnet, width: 8, norm: group}
batch_size: 32
micro_batch: 7
epochs: 5
schedule: {lr: 0.05}
augment: [{name: random_crop, padding: 1}, horizontal_flip, normalize]
ema: {decay: 0.9}
checkpoint: {every: 4st}
log: {every: 4st}
mining: {name: rounds, negative_class: rest, rounds: 2, every: 2ep, add: 31, pool: 101}
"""  # 83 positives of 332, so that 166 pictures make an epoch of 6 steps; rounds after steps 12 and 24 of 30


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "run.yaml"
    file.write_text(RECIPE)
    return file


def test_two_processes_are_one(recipe: Path, tmp_path: Path) -> None:
    """101 pictures are an odd number to share, and micro-batches of 7 leave one process a smaller last one."""
    one, two = (finish(size, recipe, tmp_path / str(size)) for size in (1, 2))
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=2e-6)
    for ours, theirs in zip(figures(one), figures(two), strict=True):
        close = {name: pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value for name, value in theirs.items()}
        assert {name: value for name, value in ours.items() if "weights" not in name} == {name: close[name] for name in close if "weights" not in name}
    assert numbers(two) == numbers(one) == [0, 1, 2]
    for number in (0, 1, 2):
        ours, theirs = (read_round(file_of(run, number)) for run in (two, one))
        assert torch.equal(ours.active, theirs.active) and set(ours.added.tolist()) == set(theirs.added.tolist())
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)
    rounds = [[line for line in figures(run) if line.get("event") == "round"] for run in (one, two)]
    assert [(line["step"], line["scored"], line["active"]) for line in rounds[0]] == [(12, 101, 197), (24, 101, 228)]
    for ours, theirs in zip(*rounds, strict=True):
        assert theirs["weights_before"] == theirs["weights_after"] and ours["false_positives"] == theirs["false_positives"]


def stopping(rank: int) -> None:
    """In the last of the processes: a signal comes while the second round is scored."""
    from trainrun.engine import rounds

    if rank == 1:
        from children import send

        go_through, made = rounds.go_through, []

        def within(*args: object) -> None:
            made.append(0)
            if len(made) == 2:
                send(signal.SIGTERM)
            go_through(*args)  # type: ignore[arg-type]  # what it was called with

        rounds.go_through = within


def test_processes_that_are_stopped_in_a_round_go_on_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    whole, halves = finish(2, recipe, tmp_path / "whole"), tmp_path / "halves"
    group = Group(2, recipe, halves, prepare=stopping)
    assert group.codes() == [143, 143], group.said()
    assert numbers(halves) == [0, 1]
    finish(2, recipe, halves, "--resume")
    assert all(map(torch.equal, weights(halves).values(), weights(whole).values()))
    for number in (0, 1, 2):
        ours, theirs = (load_file(file_of(run, number)) for run in (halves, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
