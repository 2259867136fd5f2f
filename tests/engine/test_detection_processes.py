"""Detection over two processes: each draws its own RoIs, the step is the mean over all pictures, and what is found is found once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rectangles import COUNTS, folder, made, model, voc, written
from rectangles import drawn as pixels
from safetensors.torch import load_file
from test_detection import OHEM, PLAIN, hand_made
from test_processes import Processes, contents, figures, finish

from trainrun.engine.use import evaluate_run

FIELDS = {"optimizer": PLAIN, "micro_batch": 1, "mining": OHEM, "log": {"every": "2st"}, "checkpoint": {"every": "2st"}, "seed": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, and its recipe."""
    home = tmp_path_factory.mktemp("pair")
    finish(2, written(home, **FIELDS).file, home / "run")
    return home


def test_a_step_is_the_mean_of_what_both_have_drawn(pair: Path) -> None:
    expected = hand_made(made(pair, **FIELDS)[0], 6, 0.02, 1, ranks=2)
    torch.testing.assert_close(load_file(pair / "run" / "checkpoints" / "last" / "model.safetensors"), expected, rtol=1e-3, atol=1e-5)
    assert {line["train_rois_kept"] for line in figures(pair / "run")} == {4}


def test_two_that_were_stopped_go_on_bit_for_bit(pair: Path, tmp_path: Path) -> None:
    recipe = pair / "boxes.yaml"
    part = finish(2, recipe, tmp_path / "part", "stop_at=4st")
    assert contents(finish(2, recipe, part, "--resume")) == contents(pair / "run")


def test_fewer_pictures_than_processes_are_found_in_and_all_are_drawn(tmp_path: Path) -> None:
    """One picture for validation; and three for the test, two of them looked at by the process that draws."""
    folder(tmp_path / "voc", COUNTS | {"val": 1})
    for resident in ("yes", "no"):
        fields = {"data": voc(tmp_path, resident=resident), "epochs": 1, "optimizer": PLAIN}
        run = finish(2, written(tmp_path, **fields).file, tmp_path / resident)
        assert figures(run)[-1]["val_map"] >= 0
    group = Processes(2, ("eval", str(run), "--test", "--png", str(tmp_path / "found.png")), tmp_path / "eval")
    assert group.codes() == [0, 0], group.said()
    with Image.open(tmp_path / "found.png") as drawn:
        assert drawn.height == sum(8 + height for height, _, _ in (pixels(0, "test", n)[0].shape for n in range(3))) - 8


def test_two_find_what_one_finds(pair: Path, tmp_path: Path) -> None:
    """Four pictures for validation, with weights that have learned something."""
    learned = {"model": model(width=8, hidden=32), "epochs": 20, "optimizer": "adamw", "schedule": {"lr": 0.01}, "seed": 0}
    run = finish(2, written(tmp_path, **FIELDS | learned | {"evaluate": {"every": "20ep"}}).file, tmp_path / "run")
    last = figures(run)[-1]
    found = evaluate_run(run, checkpoint="last")
    assert found["val_map_50"] > 0.01
    assert {name: last[name] for name in ("val_map", "val_map_50", "val_map_75")} == {name: found[name] for name in ("val_map", "val_map_50", "val_map_75")}
