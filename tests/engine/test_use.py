"""What a trained run is good for: the figures of the run again, and the classes of pictures, from the run directory alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import CPU
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.cli import main
from trainrun.engine.feed import Batch
from trainrun.engine.launch import launch
from trainrun.engine.tasks import ByClass, Classification
from trainrun.engine.use import evaluate_run, predict
from trainrun.errors import NonFinite, UserError
from trainrun.recipe.load import load

SIDE = 16
CLASSES = ["\x1b[31mdog", "[red]cat", "fox"]  # as folders
NAMES = [r"\x1b[31mdog", "[red]cat", "fox"]  # as text, in the order of the labels
# No gain in accuracy is more than 1, so the best epoch is the first, and another than the last.
RECIPE = """
data: {name: folder, root: ROOT}
model: {name: tiny_convnet, width: 8, depth: 2, norm: none}
batch_size: 12
micro_batch: 5
epochs: 6
schedule: {lr: 0.1, warmup: {name: gradual, for: 2st}}
augment: [horizontal_flip, normalize]
early_stopping: {patience: 9, min_delta: 1.0}
precision: fp32
"""


def pictures(folder: Path, count: int, seed: int) -> Path:
    """A folder of class folders; the three classes are reddish, greenish and bluish noise."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            pixels = rng.integers(0, 156, (SIDE, SIDE, 3))
            pixels[..., channel] += rng.integers(0, 100)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a run that was trained on it."""
    home = tmp_path_factory.mktemp("use")
    pictures(home / "data" / "train", 16, 0)
    pictures(home / "data" / "val", 9, 1)
    (home / "k.yaml").write_text(RECIPE.replace("ROOT", str(home / "data")))
    launch(load(home / "k.yaml"), out=home / "run", quiet=True)
    return home


def epoch_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


def square(file: Path, mode: str, side: int) -> np.ndarray:
    """The middle square of a picture, scaled, in 0..1."""
    image = Image.open(file).convert(mode)
    small = min(image.size)
    left, top = (image.width - small) / 2, (image.height - small) / 2
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + small, top + small))
    return np.asarray(image, dtype=np.float64).reshape(side, side, -1) / 255


def network(weights: Path, pictures: np.ndarray) -> torch.Tensor:
    """The probabilities that a two-block tiny_convnet without norms gives to float pictures [B, H, W, C], written out."""
    w = load_file(weights)
    x = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    x = F.max_pool2d(F.conv2d(x, w["0.weight"], w["0.bias"], padding=1), 2).relu()
    x = F.conv2d(x, w["3.weight"], w["3.bias"], padding=1).relu().mean((2, 3))
    return (x @ w["6.weight"].T + w["6.bias"]).softmax(1)


def bare(home: Path, checkpoint: str = "best") -> Callable[[list[Path]], torch.Tensor]:
    """The run's probabilities for files, from its weights alone and with the statistics taken over the training files here."""
    seen = np.stack([square(file, "RGB", SIDE) for file in sorted((home / "data" / "train").rglob("*.png"))])
    mean, std = seen.mean((0, 1, 2)), seen.std((0, 1, 2))
    weights = home / "run" / "checkpoints" / checkpoint / "model.safetensors"
    return lambda files: network(weights, np.stack([(square(file, "RGB", SIDE) - mean) / std for file in files]))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_eval_gives_the_runs_own_figures_to_the_last_bit(home: Path) -> None:
    first, *_, last = epoch_lines(home / "run")
    assert first["val_loss"] != last["val_loss"]
    for checkpoint, line in ((None, first), ("best", first), ("last", last)):
        found = evaluate_run(home / "run", checkpoint=checkpoint)
        assert {name: found[name] for name in ("step", "val_loss", "val_accuracy")} == {name: line[name] for name in ("step", "val_loss", "val_accuracy")}
        assert (found["run"], found["samples"]) == (str(home / "run"), 27)


def test_eval_takes_no_more_pictures_at_once_than_the_run_did(home: Path) -> None:
    sizes: list[int] = []
    watched = register_module_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        evaluate_run(home / "run")
    finally:
        watched.remove()
    assert set(sizes) == {5, 27 % 5}


def test_eval_by_class_is_what_the_bare_network_says(home: Path) -> None:
    found = evaluate_run(home / "run", checkpoint="last")
    assert list(found["classes"]) == NAMES
    right = 0
    for label, name in enumerate(NAMES):
        files = sorted((home / "data" / "val" / CLASSES[label]).iterdir())
        hits = int((bare(home, "last")(files).argmax(1) == label).sum())
        assert found["classes"][name] == {"accuracy": hits / 9, "samples": 9}
        right += hits
    assert found["val_accuracy"] == right / 27


def test_eval_on_other_pictures(home: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "train", 1, 2)
    pictures(tmp_path / "val", 5, 3)
    found = evaluate_run(home / "run", [f"data.root={tmp_path}"])
    files = [file for name in CLASSES for file in sorted((tmp_path / "val" / name).iterdir())]
    labels = torch.arange(3).repeat_interleave(5)
    told = bare(home)(files)
    assert found["samples"] == 15 and found["val_accuracy"] == int((told.argmax(1) == labels).sum()) / 15
    assert found["val_loss"] == pytest.approx(float(-told[torch.arange(15), labels].log().mean()), rel=1e-4)


def test_eval_refuses_other_classes_by_name(home: Path, tmp_path: Path) -> None:
    for side in ("train", "val"):
        (pictures(tmp_path / side, 2, 4) / "fox").rename(tmp_path / side / "owl")
    assert refused(lambda: evaluate_run(home / "run", [f"data.root={tmp_path}"])) == (
        "this data has other classes than the run was trained on: 'owl' is new, 'fox' is missing"
    )


def test_eval_refuses_pictures_of_another_size(home: Path) -> None:
    text = refused(lambda: evaluate_run(home / "run", ["data.size=12"]))
    assert "12 x 12 pixels and 3 channels" in text and "16 x 16 pixels and 3 channels" in text


def test_eval_refuses_another_network_than_the_weights_are_of(home: Path) -> None:
    for other, what in ((["model.width=9"], "size mismatch for "), (["model=resnet_cifar"], "issing key")):
        told = refused(lambda other=other: evaluate_run(home / "run", other))
        assert "the weights of this run do not fit model" in told and what in told and "\n" not in told


def test_eval_needs_validation_pictures_and_a_run(home: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "flat", 2, 5)
    assert "no validation pictures" in refused(lambda: evaluate_run(home / "run", [f"data.root={tmp_path / 'flat'}"]))
    assert "is no run directory" in refused(lambda: evaluate_run(tmp_path))
    assert "checkpoints/other does not exist" in refused(lambda: evaluate_run(home / "run", checkpoint="other"))
    with pytest.raises(NonFinite):
        launch(load(home / "k.yaml", ["schedule.lr=1e6", "optimizer.weight_decay=1e3", "checkpoint.every=off"]), out=tmp_path / "nan", quiet=True)
    assert "checkpoints/last does not exist" in refused(lambda: evaluate_run(tmp_path / "nan"))


def test_a_run_that_was_moved_is_used_where_it_is(home: Path, tmp_path: Path) -> None:
    before = evaluate_run(home / "run")
    shutil.copytree(home / "run", tmp_path / "moved", symlinks=True)
    assert evaluate_run(tmp_path / "moved") == {**before, "run": str(tmp_path / "moved")}


def test_predict_is_the_bare_network_on_pictures_of_any_kind_and_size(home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    noise = Image.fromarray(rng.integers(0, 256, (48, 75, 3), dtype=np.uint8))
    noise.save(tmp_path / "wide.jpg")
    noise.convert("L").save(tmp_path / "grey.png")
    noise.resize((9, 9)).save(tmp_path / "small.bmp")
    noise.convert("P").save(tmp_path / "palette.gif")
    files = [*sorted(tmp_path.iterdir()), *sorted((home / "data" / "val").rglob("*.png"))]  # more than one batch
    found = predict(home / "run", files, top=9)
    expected, likely = bare(home)(files).sort(1, descending=True)
    assert [p["file"] for p in found] == [str(file) for file in files]
    assert [[c["class"] for c in p["classes"]] for p in found] == [[NAMES[n] for n in row] for row in likely.tolist()]
    assert [[c["probability"] for c in p["classes"]] for p in found] == [pytest.approx(row, abs=1e-5) for row in expected.tolist()]
    assert [len(p["classes"]) for p in predict(home / "run", files[:2], top=2)] == [2, 2]


def test_predict_with_a_network_that_sees_grey(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("data: digits\nmodel: {name: tiny_convnet, width: 4, depth: 2, norm: none}\nepochs: 1st\nschedule: {lr: 0.1}\n")
    launch(load(tmp_path / "g.yaml"), out=tmp_path / "run", quiet=True)
    colour = Image.fromarray(np.random.default_rng(7).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    colour.save(tmp_path / "colour.png")
    weights = tmp_path / "run" / "checkpoints" / "last" / "model.safetensors"
    expected = network(weights, square(tmp_path / "colour.png", "L", 8)[None])[0]
    (found,) = predict(tmp_path / "run", [tmp_path / "colour.png"], top=10)
    assert {int(c["class"]): c["probability"] for c in found["classes"]} == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)


def test_predict_takes_no_more_pictures_at_once_than_the_run_did(home: Path) -> None:
    sizes: list[int] = []
    watched = register_module_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        predict(home / "run", [home / "data" / "val" / "fox" / "0.png"] * 13)
    finally:
        watched.remove()
    assert set(sizes) == {5, 3}


def test_predict_with_pictures_that_are_no_squares(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    for side in ("train", "val"):
        for name in "ab":
            (tmp_path / "data" / side / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(tmp_path / "data" / side / name / "0.png")
    recipe = RECIPE.replace("ROOT", str(tmp_path / "data")).replace("batch_size: 12\nmicro_batch: 5\nepochs: 6", "epochs: 3")
    (tmp_path / "wide.yaml").write_text(recipe.replace("augment: [horizontal_flip, normalize]\n", ""))
    launch(load(tmp_path / "wide.yaml"), out=tmp_path / "run", quiet=True)
    file = tmp_path / "data" / "val" / "b" / "0.png"
    expected = network(tmp_path / "run" / "checkpoints" / "best" / "model.safetensors", np.asarray(Image.open(file))[None] / 255)[0]
    (found,) = predict(tmp_path / "run", [file])
    assert {c["class"]: c["probability"] for c in found["classes"]} == pytest.approx(dict(zip("ab", expected.tolist(), strict=True)), abs=1e-5)
    Image.open(file).resize((9, 9)).save(tmp_path / "other.png")
    assert refused(lambda: predict(tmp_path / "run", [tmp_path / "other.png"])).endswith(
        "other.png has 9 x 9 pixels (height x width), and the run was trained on 8 x 12"
    )


def test_predict_needs_the_run_directory_only(home: Path, tmp_path: Path) -> None:
    file = home / "data" / "val" / "fox" / "0.png"
    before = predict(home / "run", [file])
    shutil.copytree(home / "run", tmp_path / "run", symlinks=True)
    saved = tmp_path / "run" / "recipe.yaml"
    saved.write_text(saved.read_text().replace(str(home / "data"), str(tmp_path / "gone")))
    assert predict(tmp_path / "run", [file]) == before
    assert "gone" in refused(lambda: evaluate_run(tmp_path / "run"))


def test_predict_names_the_picture_that_cannot_be_read(home: Path, tmp_path: Path) -> None:
    good = home / "data" / "val" / "fox" / "0.png"
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:200])
    for file in (tmp_path / "broken.png", tmp_path / "gone.png", tmp_path):
        told = refused(lambda file=file: predict(home / "run", [good, file]))
        assert told.startswith(f"{file} cannot be read as a picture: ") and "Errno" not in told


def test_names_from_data_are_text_on_the_terminal(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trainrun", "predict", str(home / "run"), str(home / "data" / "val" / CLASSES[0] / "0.png")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = capsys.readouterr().out
    assert "[red]cat" in told and told.count(r"\x1b[31mdog") == 2 and "\x1b" not in told


def test_a_class_without_pictures_has_no_accuracy() -> None:
    counted = ByClass(Classification(lambda logits, labels: logits.sum(1)), CPU, 3)
    logits, labels = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0]]), torch.tensor([0, 2, 2])
    counted.add(lambda images: images, logits, labels, Batch(logits, labels, torch.arange(3), 0, 3))
    assert counted.figures(CPU, 3) == {"val_loss": 9.0, "val_accuracy": 1 / 3}
    assert counted.counts.tolist() == [[1, 0, 2], [1, 0, 0]]
