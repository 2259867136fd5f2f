"""`trainrun show --augment`: the pictures are those of the run, to the bit, and the file holds what it says."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.cli import main
from trainrun.draw import Draw, draws, key
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.fit import fit
from trainrun.engine.inputs import Inputs
from trainrun.engine.signals import Signals
from trainrun.recipe.load import load
from trainrun.recipe.registry import part
from trainrun.recipe.schema import Recipe
from trainrun.report.pictures import Grid
from trainrun.trials.augment import Augmented, look
from trainrun.world import World

CPU = World(torch.device("cpu"))
RECIPE: dict[str, Any] = {
    "data": {"name": "photos10", "size": 50, "validation_size": 0, "crop": 12},
    "model": {"name": "tiny_convnet", "width": 1, "depth": 1, "norm": "none"},
    "batch_size": 20,
    "epochs": 3,
    "seed": 7,
    "schedule": {"lr": 1e-6},
    "precision": "fp32",
    "checkpoint": {"every": "off"},
    "augment": [{"name": "random_crop", "padding": 3}, "horizontal_flip", "normalize"],
}


def written(folder: Path, **fields: Any) -> Recipe:
    (folder / "my recipe.yaml").write_text(json.dumps(RECIPE | fields))
    return load(folder / "my recipe.yaml").recipe


def trained_on(recipe: Recipe) -> dict[tuple[int, int], torch.Tensor]:
    """What the network was fed in a whole training, by sample and epoch."""
    data = open_data(recipe.data)
    run = build(settle(recipe, CPU, data.train.shape)[0], CPU, data, Signals())
    fed: dict[tuple[int, int], torch.Tensor] = {}
    given: list[Any] = []
    inputs = Inputs.__call__

    def noted(self: Inputs, batch: Any, training: bool) -> Any:
        given.append(batch)
        return inputs(self, batch, training)

    def seen(module: torch.nn.Module, positional: tuple[torch.Tensor]) -> None:
        batch = given.pop()
        fed.update({(int(i), batch.epoch): picture.clone() for i, picture in zip(batch.ids, positional[0], strict=True)})

    run.model.register_forward_pre_hook(seen)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Inputs, "__call__", noted)
        fit(run)
    return fed


def neighbour(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """The mean of each picture and the one before it in the batch, as a mixing part would have it."""
    return ((images.long() + images.roll(1, 0)) // 2).byte()


def register(*functions: Callable[..., Any], **facts: Any) -> None:
    for function in functions:
        part("augment", **facts)(function)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory_format": "contiguous"},
        {"augment": [{"name": "horizontal_flip", "p": 0.3}]},
        {"augment": []},
        {"batch_size": 3},
        {"batch_size": 6, "micro_batch": 1},
        {"batch_size": 12, "micro_batch": 9, "augment": ["neighbour", "random_crop"]},
        {"data": {**RECIPE["data"], "size": 10}, "epochs": 1},
    ],
)
def test_all_together_is_what_training_feeds_the_network(fields: dict[str, Any], tmp_path: Path) -> None:
    register(neighbour)
    recipe = written(tmp_path, **fields)
    found = look(recipe, CPU)
    fed = trained_on(recipe)
    assert len(found.rows) == len(found.fed) == len({(r.sample, r.epoch) for r in found.rows}) == (8 if recipe.epochs.value > 1 else 4)
    for row, picture in zip(found.rows, found.fed, strict=True):
        assert torch.equal(fed[row.sample, row.epoch], picture)


def test_a_schedule_that_watches_the_run_changes_no_picture(tmp_path: Path) -> None:
    data = {**RECIPE["data"], "validation_size": 4}
    warmup = {"name": "constant", "lr": 1e-7, "until_train_error": 0.5, "over": "1st"}
    plain, watching = (look(written(tmp_path, data=data, **more), CPU) for more in ({}, {"schedule": {"lr": 1e-6, "warmup": warmup, "decay": {"name": "plateau", "patience": 1}}}))
    assert plain.rows == watching.rows and all(map(torch.equal, plain.fed, watching.fed))


def test_one_picture_in_two_epochs_unless_it_depends_on_its_batch(tmp_path: Path) -> None:
    register(neighbour)
    found = look(written(tmp_path), CPU)
    assert [r.epoch for r in found.rows] == [0, 1] * 4 and len({r.sample for r in found.rows}) == 4
    mixed = look(written(tmp_path, augment=["neighbour"]), CPU)
    assert [r.epoch for r in mixed.rows] == [0] * 8 and len({r.sample for r in mixed.rows}) == 8


def columns(found: Augmented) -> dict[str, np.ndarray]:
    return {title: np.stack(pictures) for title, pictures in found.columns.items()}


def test_a_part_alone_draws_what_it_draws_in_the_run(tmp_path: Path) -> None:
    found = look(written(tmp_path), CPU)
    shown = columns(found)
    assert list(shown) == ["original", "random_crop", "horizontal_flip", "all together"]
    assert found.scaling == ["normalize"]
    read = open_data(found.recipe.data).train.read
    flips = []
    for n, row in enumerate(found.rows):
        original = read([row.sample])[0]
        np.testing.assert_array_equal(shown["original"][n], original)
        draw = draws(7, row.epoch, torch.tensor([row.sample]))
        top, left = draw.for_(key("augment", 0, "random_crop")).integers(2, 7)[0].tolist()
        cut = np.pad(original, ((3, 3), (3, 3), (0, 0)))[top : top + 12, left : left + 12]
        np.testing.assert_array_equal(shown["random_crop"][n], cut)
        flipped = draw.for_(key("augment", 1, "horizontal_flip")).uniform(1).item() < 0.5
        np.testing.assert_array_equal(shown["horizontal_flip"][n], original[:, ::-1] if flipped else original)
        # Normalised and back again: the very bytes.
        np.testing.assert_array_equal(shown["all together"][n], cut[:, ::-1] if flipped else cut)
        flips.append(flipped)
    assert 0 < sum(flips) < len(flips)


def test_a_part_behind_normalize_gets_what_it_would_in_the_run(tmp_path: Path) -> None:
    kinds = []

    def brighter(images: torch.Tensor, draw: Draw) -> torch.Tensor:
        "Add a tenth of a standard deviation."
        kinds.append(images.dtype)
        return images + 0.1

    def middle(images: torch.Tensor, draw: Draw) -> torch.Tensor:
        "Cut out the middle."
        return images[:, :, 3:9, 4:8]

    register(brighter)
    register(middle, always=True)
    std, mean = [0.2, 0.25, 0.5], [0.5, 0.4, 0.3]
    found = look(written(tmp_path, augment=["middle", {"name": "normalize", "mean": mean, "std": std}, "brighter", "brighter"]), CPU)
    shown = columns(found)
    assert list(shown) == ["original", "middle", "brighter", "brighter 2", "all together"]
    assert set(kinds) == {torch.float32} and found.scaling == ["normalize"]
    original = shown["original"]
    np.testing.assert_array_equal(shown["middle"], original[:, 3:9, 4:8])
    expected = np.clip(np.round(original + 25.5 * np.array(std)), 0, 255)
    assert np.abs(shown["brighter"] - expected).max() <= 1
    np.testing.assert_array_equal(shown["brighter"], shown["brighter 2"])
    assert found.document()["columns"][1] == {"title": "middle", "size": [6, 4]}


def test_the_png_holds_every_picture_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    found = look(written(tmp_path), CPU)
    found.png(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as file:
        assert file.format == "PNG"
        sheet = np.asarray(file)
    assert sheet.shape == (*found.grid.size, 3)
    factor = 128 // 12
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (12 * factor, 12 * factor), axis=(0, 1))
    for pictures in found.columns.values():
        for picture in pictures:
            big = np.kron(picture, np.ones((factor, factor, 1), np.uint8)).transpose(2, 0, 1)
            corner = np.argwhere((windows[:, :, :, 0, 0] == big[:, 0, 0]).all(2) & (windows[:, :, :, -1, -1] == big[:, -1, -1]).all(2))
            assert any((windows[y, x] == big).all() for y, x in corner)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (2, 8), (3, 300), (5, 32)])
def test_any_channels_and_sizes_can_be_drawn(channels: int, side: int, tmp_path: Path) -> None:
    pictures = [np.full((side, side // 2, channels), 200, np.uint8)] * 2
    grid = Grid(["original", "a_long_name_of_an_augmentation " * 5], ["\x1b[31m" + "x" * 300, "b"], [pictures, [p[: side // 2] for p in pictures]])
    grid.png(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == grid.size[::-1] and (np.asarray(sheet) == 200).any()
    drawn = grid.half_blocks(80)
    assert drawn is not None and max(len(line) for line in drawn.plain.splitlines()) <= 80
    assert grid.half_blocks(20) is None


def test_half_blocks_hold_two_pixels_each() -> None:
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    drawn = Grid(["a"], ["b"], [[picture]]).half_blocks(40)
    assert drawn is not None
    spans = [span.style for span in drawn.spans]
    assert len(spans) == 32
    for n, style in enumerate(spans):
        assert style.color.triplet == tuple(picture[n // 8 * 2, n % 8]) and style.bgcolor.triplet == tuple(picture[n // 8 * 2 + 1, n % 8])


def shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["trainrun", "show", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("colours", ["truecolor", ""])
@pytest.mark.parametrize("width", [100, 30])
def test_pictures_are_for_a_terminal_with_colours_and_room(width: int, colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", colours)
    grid = look(written(tmp_path), CPU).grid
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        patched.setattr(sys, "__stdout__", terminal)
        # A pseudo-terminal holds 4 KiB, so what is printed is caught on its way.
        caught = io.StringIO()
        patched.setattr(terminal, "write", caught.write, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        grid.show()
    os.close(ours)
    assert ("▀" in caught.getvalue()) == (width == 100 and bool(colours))


def test_into_a_pipe_goes_text_and_into_json_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLORTERM", "truecolor")
    written(tmp_path)
    assert not shown(monkeypatch, "my recipe.yaml", "--augment")
    out, err = capsys.readouterr()
    assert not re.search("[\x1b▀]", out) and "wrote my-recipe-augment.png" in out and "next: " in err
    assert not shown(monkeypatch, "my recipe.yaml", "--augment", "--png", "other.png", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["png"] == "other.png" and [c["title"] for c in told["columns"]] == ["original", "random_crop", "horizontal_flip", "all together"]
    assert (tmp_path / "my-recipe-augment.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    assert shown(monkeypatch, "my recipe.yaml", "--png", "other.png") == 2
    assert "--augment" in capsys.readouterr().err
    assert shown(monkeypatch, "my recipe.yaml", "--augment", "--png", "nowhere/other.png") == 2
    assert "nowhere/other.png cannot be written: No such file or directory" in capsys.readouterr().err
