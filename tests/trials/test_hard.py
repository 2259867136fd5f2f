"""`trainrun hard`: what it lists is what a plain forward pass finds, wrong labels are told from right ones, and names are text."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.cli import main
from trainrun.engine.build import open_data
from trainrun.engine.checkpoint import Checkpoints
from trainrun.engine.launch import launch
from trainrun.errors import UserError
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry
from trainrun.report.pictures import Sheet
from trainrun.trials.hard import hardest, show

RECIPE = """
data: {name: digits, label_noise: 0.05}
model: {name: tiny_convnet, width: 24, depth: 2}
epochs: 6
schedule: {lr: 0.1}
augment: [{name: random_crop, padding: 1}, normalize]
mining: {name: ohem, keep: 0.5, start: 1ep}
precision: fp32
checkpoint: {every: off}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    (folder / "noisy.yaml").write_text(RECIPE)
    launch(load(folder / "noisy.yaml"), out=folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def losses(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Losses and predictions of all training pictures under the last weights, by a plain forward pass."""
    recipe = load(run / "recipe.yaml").recipe
    data = open_data(recipe.data)
    model = registry.build(recipe.model)((1, 8, 8), 10)
    model.load_state_dict(load_file(run / "checkpoints" / "last" / "model.safetensors"))
    pictures = torch.from_numpy(data.train.read(range(len(data.train)))).permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        logits = model.eval()(((pictures - pictures.mean()) / pictures.std(correction=0)).float())
    labels = torch.from_numpy(data.train.labels)
    return cross_entropy(logits, labels, reduction="none").numpy(), logits.argmax(1).numpy()


def told(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["trainrun", "hard", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_list_is_that_of_a_plain_forward_pass(
    run: Path, losses: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = json.loads(told([str(run), "--json", "--top", "30"], monkeypatch, capsys))
    loss, predicted = losses
    assert [row["id"] for row in found["hardest"]] == np.argsort(-loss, kind="stable")[:30].tolist()
    whole, noisy = open_data(load("digits").recipe.data).train, open_data(load(run / "recipe.yaml").recipe.data).train
    kept = load_file(run / "ledger.safetensors")
    for row in found["hardest"]:
        i = row["id"]
        assert row["loss"] == pytest.approx(float(loss[i]), rel=1e-4)
        assert (row["label"], row["predicted"]) == (str(noisy.labels[i]), str(predicted[i]))
        assert (row["flipped"], row["original"]) == (bool(noisy.labels[i] != whole.labels[i]), str(whole.labels[i]))
        assert row["kept"] == kept["kept"][i] and row["last_loss"] == pytest.approx(kept["loss"][i].item())
        assert row["source"] == f"sample {i}"
    first = round(0.05 * len(whole))
    among = sum(noisy.labels[i] != whole.labels[i] for i in np.argsort(-loss)[:first])
    assert found["flipped"] == {"pictures": 72, "first": first, "found": among, "share": among / 72}
    assert among > 36  # a guess would find four
    assert (found["samples"], found["by"], found["step"]) == (len(whole), "loss", 72)
    assert Path(found["png"]) == run / "report" / "hard.png" and Image.open(found["png"]).size[0] > 1000


def test_the_notes_of_mining_give_an_order_too(run: Path, losses: tuple[np.ndarray, np.ndarray]) -> None:
    notes = load_file(run / "ledger.safetensors")
    kept, last = notes["kept"].numpy(), notes["loss"].numpy()
    by_loss, by_kept = (hardest(run, top=20, by=by) for by in ("last-loss", "kept"))
    assert by_loss.ids.tolist() == np.argsort(-last, kind="stable")[:20].tolist()
    assert by_kept.ids.tolist() == sorted(range(len(kept)), key=lambda i: (-kept[i], -last[i], i))[:20]
    np.testing.assert_allclose(by_loss.losses, losses[0][by_loss.ids], rtol=1e-4)
    assert by_kept.flipped and by_kept.flipped["found"] > 36


def test_a_person_gets_a_table_and_a_sheet(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = told([str(run), "--top", "5", "--png", str(tmp_path / "a.png")], monkeypatch, capsys).splitlines()
    assert lines[0].split() == ["loss", "kept", "label", "predicted", "picture"]
    assert [line.split()[0] for line in lines[1:6]] == list("12345")
    assert "flipped labels" in lines[6] and lines[7] == f"wrote {tmp_path / 'a.png'}"
    assert max(map(len, lines[:7])) <= 80
    assert Image.open(tmp_path / "a.png").size == (8 + 5 * 136, 8 + 128 + 3 * 13 + 16)


def folder_of(root: Path, classes: list[str]) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(6):
            Image.new("L", (8, 8), 40 * number + n).save(root / name / f"{n}\x1b[31m.png")


def test_a_run_without_mining_is_judged_by_its_weights_and_names_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "pictures", ["a\x1b]0;x\x07", "b"])
    recipe = {"data": {"name": "folder", "root": str(tmp_path / "pictures"), "size": 8, "validation": 0.3, "workers": 0, "cache": False}}
    recipe |= {"model": {"name": "tiny_convnet", "width": 4, "depth": 1}, "epochs": 1, "schedule": {"lr": 0.1}, "batch_size": 4}
    (tmp_path / "plain.yaml").write_text(json.dumps(recipe))
    launch(load(tmp_path / "plain.yaml"), out=tmp_path / "run", quiet=True)
    out = told([str(tmp_path / "run")], monkeypatch, capsys)
    assert "\x1b" not in out and "\x07" not in out and "\\x1b" in out
    found: dict[str, Any] = json.loads(told([str(tmp_path / "run"), "--json"], monkeypatch, capsys))
    assert found["flipped"] is None and len(found["hardest"]) == found["samples"] < 12
    assert {row["kept"] for row in found["hardest"]} == {row["flipped"] for row in found["hardest"]} == {None}
    with pytest.raises(UserError, match="was trained without mining, which counts what it keeps; write --by loss"):
        hardest(tmp_path / "run", by="kept")


def test_pictures_that_differ_in_size_are_drawn_whole(tmp_path: Path) -> None:
    """One of 24 x 12 pixels (height x width) and one of 12 x 24, each of one grey: half as large, they leave the right or the lower half white."""
    for name, size in (("a", (12, 24)), ("b", (24, 12))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", size, (60, 60, 60)).save(tmp_path / "pictures" / name / "1.png")
    recipe = {"data": {"name": "folder", "root": str(tmp_path / "pictures"), "workers": 0}, "augment": [{"name": "random_resized_crop", "size": 12}]}
    recipe |= {"model": {"name": "tiny_convnet", "width": 4, "depth": 1, "norm": "none"}, "epochs": 1, "schedule": {"lr": 0.1}, "batch_size": 2}
    (tmp_path / "unequal.yaml").write_text(json.dumps(recipe))
    launch(load(tmp_path / "unequal.yaml"), out=tmp_path / "run", quiet=True)
    found = hardest(tmp_path / "run")
    white = {0: np.s_[:, 6:], 1: np.s_[6:]}  # by the sample: a is high, b is wide
    for sample, picture in zip(found.ids.tolist(), found.sheet.pictures, strict=True):
        expected = np.full((12, 12, 3), 60, np.uint8)
        expected[white[sample]] = 255
        np.testing.assert_array_equal(picture, expected)


def test_other_data_than_the_runs_is_refused_or_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"has notes of 1,442 training pictures, and the data has 1,011; write --by loss"):
        hardest(run, ["data.imbalance=2"], by="kept")
    assert hardest(run, ["data.imbalance=2"], top=3).document()["hardest"][0]["kept"] is None
    hardest(run, ["data.label_noise_seed=1"], by="kept", top=3)
    assert "have changed since the run" in capsys.readouterr().err
    with pytest.raises(UserError, match="other classes than the run was trained on"):
        hardest(run, ["data={name: synthetic, shape: [1, 8, 8], classes: 4}"])
    with pytest.raises(UserError, match="--by is loss, last-loss or kept, found 'los'"):
        hardest(run, by="los")


def test_notes_of_nothing_are_told(run: Path, tmp_path: Path) -> None:
    """The run's directory as it was at step 0, as a signal during the first batch leaves it."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    checkpoints = Checkpoints(tmp_path / "run")
    last = checkpoints.named("last")
    notes = {"mining.kept": torch.zeros_like(last.tensors["mining.kept"]), "mining.loss": torch.full_like(last.tensors["mining.loss"], torch.nan)}
    checkpoints.save(replace(last, tensors=last.tensors | notes))
    for by in ("kept", "last-loss"):
        with pytest.raises(UserError, match="stopped before its first step, so mining has noted nothing; write --by loss"):
            hardest(tmp_path / "run", by=by)


def test_a_run_in_which_nothing_can_be_drawn_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match=r"report/hard.png cannot be written: .*irectory"):
        show(replace(hardest(run, top=3), run=tmp_path), None, False)


def test_a_sheet_shows_each_picture_at_its_place(tmp_path: Path) -> None:
    """Twelve pictures of one colour each, in rows of ten, enlarged by a whole factor."""
    pictures = [np.full((4, 4, 3), 20 * n, np.uint8) for n in range(12)]
    Sheet([f"{n}" for n in range(12)], pictures).png(tmp_path / "sheet.png")
    drawn = np.asarray(Image.open(tmp_path / "sheet.png"))
    pitch = 128 + 13 + 16
    assert drawn.shape == (8 + 2 * pitch, 8 + 10 * 136, 3)
    for n in range(12):
        x, y = 8 + n % 10 * 136, 8 + n // 10 * pitch
        assert (drawn[y : y + 128, x : x + 128] == 20 * n).all()
        assert (drawn[y + 128 : y + 128 + 15, x : x + 40] < 100).any()  # its caption
