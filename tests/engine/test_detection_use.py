"""What a detection run is good for: its figures again, boxes in pictures, and the commands that look at its recipe."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rectangles
import torch
from PIL import Image
from rectangles import CLASSES, COUNTS, drawn, launched, model, written
from safetensors.torch import load_file, save_file
from small import CPU, lines

from trainrun.cli import main
from trainrun.engine.checkpoint import Snapshot
from trainrun.engine.use import evaluate_run, load_model, predict
from trainrun.errors import RecipeError, UserError
from trainrun.parts.metrics import mean_average_precision
from trainrun.recipe.registry import PartNode, registry
from trainrun.trials.augment import look
from trainrun.trials.counts import counts_of

MEAN, STD = 0.4, 0.25
AUGMENT = [{"name": "random_crop", "padding": 4}, "horizontal_flip", {"name": "normalize", "mean": [MEAN] * 3, "std": [STD] * 3}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures and a run on it that has learned something, whose best weights are not its last."""
    home = tmp_path_factory.mktemp("use")
    launched(
        home, "run", model=model(width=8, hidden=32), epochs=30, optimizer="adamw", schedule={"lr": 0.01}, augment=AUGMENT, micro_batch=3,
        evaluate={"every": "10ep"}, early_stopping={"patience": 9, "min_delta": 1.0}, checkpoint={"every": "60s"},
    )  # fmt: skip
    return home


def net(home: Path, checkpoint: str = "last") -> torch.nn.Module:
    part = registry.get("model", "tiny_fasterrcnn")
    assert part is not None
    made: torch.nn.Module = part.call(part.options(**{k: v for k, v in model(width=8, hidden=32).items() if k != "name"}).model_dump())((3, 44, 44), 2)
    made.load_state_dict(load_file(home / "run" / "checkpoints" / checkpoint / "model.safetensors"))
    return made.eval()


@torch.no_grad()
def found_by_hand(home: Path, files: list[Path], checkpoint: str = "last") -> list[dict[str, torch.Tensor]]:
    """What torchvision's network says of the files, by themselves."""
    pictures = [(torch.tensor(np.asarray(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255 - MEAN) / STD for file in files]
    return [net(home, checkpoint)([picture])[0] for picture in pictures]


def truth(side: str) -> list[dict[str, torch.Tensor]]:
    """The rectangles as they were drawn."""
    found = []
    for n in range(COUNTS[side]):
        boxes = drawn(0, side, n)[1]
        found.append({
            "boxes": torch.tensor([box for _, *box in boxes], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([CLASSES.index(name.rstrip("!")) + 1 for name, *_ in boxes], dtype=torch.int64),
            "ignored": torch.tensor([name.endswith("!") for name, *_ in boxes], dtype=torch.bool),
        })  # fmt: skip
    return found


@pytest.mark.parametrize(("side", "prefix"), [("val", "val"), ("test", "test")])
def test_figures_are_those_of_the_network_on_the_files(home: Path, side: str, prefix: str) -> None:
    told = evaluate_run(home / "run", checkpoint="last", side="test" if side == "test" else "validation")
    files = [home / "voc" / "JPEGImages" / f"{side}{n}.png" for n in range(COUNTS[side])]
    expected = mean_average_precision(found_by_hand(home, files), truth(side), 2)
    assert told["samples"] == COUNTS[side] and told["step"] == 90
    for name in ("map", "map_50", "map_75"):
        assert told[f"{prefix}_{name}"] == pytest.approx(expected[name], abs=1e-6)
    assert told[f"{prefix}_map_50"] > 0.2
    boxes = Counter(name for n in range(COUNTS[side]) for name, *_ in drawn(0, side, n)[1] if not name.endswith("!"))
    for label, name in enumerate(CLASSES):
        assert told["classes"][name] == {
            "map": pytest.approx(expected["per_class"][label], abs=1e-6),
            "map_50": pytest.approx(expected["per_class_50"][label], abs=1e-6),
            "boxes": boxes[name],
        }
    assert {name for name in told if "map" in name} == {f"{prefix}_{name}" for name in ("map", "map_50", "map_75")}


def test_eval_gives_the_runs_own_figures_to_the_last_bit(home: Path) -> None:
    epochs = [line for line in lines(home / "run") if "val_map" in line]
    assert [line["step"] for line in epochs] == [30, 60, 90]
    for checkpoint, line in (("best", epochs[0]), ("last", epochs[-1])):
        found = evaluate_run(home / "run", checkpoint=checkpoint)
        assert {name: found[name] for name in line if name.startswith(("val_", "step"))} == {
            name: value for name, value in line.items() if name.startswith(("val_", "step"))
        }


def test_predict_is_the_network_on_the_files(home: Path, tmp_path: Path) -> None:
    files = [home / "voc" / "JPEGImages" / f"val{n}.png" for n in range(4)]
    with Image.open(files[0]) as picture:
        picture.convert("L").resize((90, 70)).save(tmp_path / "grey.jpg")
    files.append(tmp_path / "grey.jpg")
    told = predict(home / "run", files, checkpoint="last", png=tmp_path / "deep" / "found")
    assert sum(len(each["boxes"]) for each in told) > 4
    for file, each, found in zip(files, told, found_by_hand(home, files), strict=True):
        assert each["file"] == str(file)
        order = found["scores"].argsort(descending=True, stable=True)
        assert [of["score"] for of in each["boxes"]] == pytest.approx(found["scores"][order].tolist(), abs=1e-3)
        assert [of["class"] for of in each["boxes"]] == [CLASSES[label - 1] for label in found["labels"][order].tolist()]
        for of, box in zip(each["boxes"], found["boxes"][order].tolist(), strict=True):
            assert of["box"] == pytest.approx(box, abs=0.05)
        with Image.open(each["png"]) as shown, Image.open(file) as plain:
            same = np.array_equal(np.asarray(shown), np.asarray(plain.convert("RGB")))
            assert shown.size == plain.size and same == all(of["score"] < 0.5 for of in each["boxes"])


def test_a_run_that_began_with_weights_is_used_without_them(home: Path, tmp_path: Path) -> None:
    """With frozen norms, which are not those of a network from scratch, and with its own threshold for proposals."""
    part = registry.get("model", "fasterrcnn_mobilenet_v3_large_320_fpn")
    assert part is not None
    file, options = tmp_path / "w.safetensors", {"min_size": 64, "max_size": 96}
    state = part.call(part.options(**options).model_dump())((3, 64, 64), 5).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.add_(torch.rand(value.shape))
    save_file(state, file)
    network = part.call(part.options(**options, weights=str(file)).model_dump())((3, 64, 64), 2).eval()
    node = PartNode("model", part.name, part.options(**options, weights=str(file)).model_dump())
    recipe = written(home).recipe.model_copy(update={"model": node, "memory_format": "contiguous"})
    about = {"input": {"shape": [3, 64, 64], "classes": list(CLASSES)}}
    file.unlink()
    ours = load_model(recipe, Snapshot(network.state_dict(), {}, about), torch.device("cpu"))
    picture = torch.rand(3, 64, 80)
    (found,), (expected,) = ours([picture]), network([picture])
    assert len(expected["boxes"]) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_predict_names_the_picture_that_cannot_be_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((home / "voc" / "JPEGImages" / "val0.png").read_bytes()[:100])
    for file in (tmp_path / "broken.png", tmp_path / "gone.png"):
        with pytest.raises(UserError, match=f"{file} cannot be read as a picture: "):
            predict(home / "run", [home / "voc" / "JPEGImages" / "val0.png", file])


def test_a_drawing_takes_the_place_of_no_picture_and_of_no_other_drawing(home: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(home / "voc" / "JPEGImages" / "val0.png", tmp_path / folder / "cell.png")
    here, there = tmp_path / "a" / "cell.png", tmp_path / "b" / "cell.png"
    before = here.stat().st_mtime_ns
    with pytest.raises(UserError, match=f"{here} would be drawn over the picture .*; write another folder"):
        predict(home / "run", [here], png=tmp_path / "b" / ".." / "a")
    with pytest.raises(UserError, match=f"{here} and {there} would both be drawn as "):
        predict(home / "run", [here, there], png=tmp_path / "c")
    assert here.stat().st_mtime_ns == before and not (tmp_path / "c").exists()
    assert len(predict(home / "run", [here, here], png=tmp_path / "c")) == 2


def test_sides_that_are_not_there_or_have_nothing_to_be_found(home: Path, tmp_path: Path) -> None:
    for side in ("validation", "test"):
        with pytest.raises(UserError, match=f"has no {side} pictures; name them with data.{side}="):
            evaluate_run(home / "run", [f"data.{side}=null"], side=side)
    with pytest.raises(UserError, match="other classes than the run was trained on: 'green' is new"):
        evaluate_run(home / "run", ["data.classes=[blue,red,green]"])
    rectangles.folder(tmp_path / "voc", keep=False)
    with pytest.raises(UserError, match="has no boxes in its validation pictures but ignored ones"):
        evaluate_run(home / "run", [f"data.root={tmp_path / 'voc'}", "data.classes=[blue,red]"])
    with pytest.raises(UserError, match="has no boxes in its validation pictures but ignored ones"):
        launched(tmp_path, "run", data=rectangles.voc(tmp_path, classes=["blue", "red"]))


def test_a_list_that_is_missing_is_a_mistake_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rectangles.folder(tmp_path / "voc", {"train": 4})
    (tmp_path / "boxes.yaml").write_text(
        "model: tiny_fasterrcnn\ndata:\n  root: voc\n  name: voc\n  test: held-out\nepochs: 1\nschedule: {lr: 0.1}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert ran(monkeypatch, "fit", "boxes.yaml") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("boxes.yaml:3:3: data.validation: voc/ImageSets/Main/val.txt is missing; write data.validation=NAME of a list")
    assert told[1].startswith("boxes.yaml:5:9: data.test: voc/ImageSets/Main/held-out.txt is missing; write data.test=NAME of a list")
    assert told[2].startswith("trainrun: 2 mistakes, and nothing was run; next: ") and len(told) == 3
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError, match="override 'data.root=gone': data.root: gone does not exist"):
        from trainrun.engine.launch import launch
        from trainrun.recipe.load import load

        launch(load("boxes.yaml", ["data.root=gone"]), quiet=True)


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | None:
    monkeypatch.setattr(sys, "argv", ["trainrun", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0  # type: ignore[return-value]  # a number


def test_the_commands(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "voc", tmp_path / "voc")
    written(tmp_path)
    for words in (("check",), ("show",), ("schedule",), ("show", "--augment"), ("show", "--counts"), ("show", "--pca")):
        assert ran(monkeypatch, words[0], "boxes.yaml", *words[1:], "--json") == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)
        assert ran(monkeypatch, words[0], "boxes.yaml", *words[1:]) == 0
        capsys.readouterr()
    assert ran(monkeypatch, "show", "boxes.yaml", "--init") == 2
    assert ran(monkeypatch, "hard", str(home / "run")) == 2
    err = capsys.readouterr().err
    assert err.count("data voc has boxes") == 2 and "Traceback" not in err
    assert ran(monkeypatch, "eval", str(home / "run"), "--test", "--png", "found.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3
    with Image.open("found.png") as sheet:  # annotated on the left, found on the right
        pixels = np.asarray(sheet)
    first = np.asarray(Image.open(home / "voc" / "JPEGImages" / "test1.png"))  # which has no box
    top = drawn(0, "test", 0)[0].shape[0] + 8
    assert np.array_equal(pixels[top : top + first.shape[0], : first.shape[1]], first)
    assert ran(monkeypatch, "eval", str(home / "run")) == 0
    told = capsys.readouterr().out
    assert "val mAP" in told and "AP50" in told and "worst classes: " in told
    assert ran(monkeypatch, "predict", str(home / "run"), str(home / "voc" / "JPEGImages" / "val0.png")) == 0
    assert " at " in capsys.readouterr().out


def test_boxes_are_counted(home: Path) -> None:
    counted = counts_of(written(home).recipe).document()
    every = [drawn(0, "train", n)[1] for n in range(COUNTS["train"])]
    assert counted["pictures"] == 10 and counted["without_boxes"] == sum(not boxes for boxes in every) == 1
    for name in CLASSES:
        assert counted["classes"][name] == {
            "boxes": sum(label == name for boxes in every for label, *_ in boxes),
            "ignored": sum(label == f"{name}!" for boxes in every for label, *_ in boxes),
            "pictures": sum(any(label == name for label, *_ in boxes) for boxes in every),
            "validation": sum(label == name for n in range(4) for label, *_ in drawn(0, "val", n)[1]),
            "test": sum(label == name for n in range(3) for label, *_ in drawn(0, "test", n)[1]),
        }
    assert counts_of(written(home, data=rectangles.voc(home, test=None)).recipe).document()["classes"]["red"]["test"] is None


def test_boxes_are_drawn_where_augmentation_takes_them(home: Path) -> None:
    """Of a picture without boxes nothing is drawn over; of the others what is drawn moves as a mirrored picture does."""
    found = look(written(home, augment=["horizontal_flip", "normalize"]).recipe, CPU)
    assert list(found.columns) == ["original", "horizontal_flip", "all together"] and found.scaling == ["normalize"]
    assert len(found.rows) == 8 and {row.epoch for row in found.rows} == {0, 1}
    for n, row in enumerate(found.rows):
        pixels, boxes = drawn(0, "train", row.sample)
        assert row.boxes == len(boxes)
        assert np.array_equal(found.columns["original"][n], pixels) == (not boxes)
        assert np.array_equal(found.columns["horizontal_flip"][n], found.columns["all together"][n])
    assert {"sample", "source", "boxes", "epoch"} == set(found.document()["rows"][0])
    flipped = [n for n in range(8) if not np.array_equal(found.columns["original"][n], found.columns["horizontal_flip"][n])]
    assert 0 < len(flipped) < 8
