"""A crop made where pictures are read is the crop that the device would make: the same box, and the same picture but for rounding and filter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feeds import CPU, options
from PIL import Image, ImageOps
from small import equal, launched, lines, made, trained, weights, written
from torchvision.transforms.v2 import functional
from typer.testing import CliRunner

from trainrun.cli import app
from trainrun.draw import Draw, draws, key
from trainrun.engine import firsts
from trainrun.engine.build import open_data, settle
from trainrun.engine.cut import Wanted, make_cut
from trainrun.engine.feed import Batch, Feed, Streamed
from trainrun.engine.inputs import make_inputs
from trainrun.engine.resident import Resident, open_feed
from trainrun.engine.use import evaluate_run, predict
from trainrun.errors import RecipeError, UserError
from trainrun.parts.augmentations import Statistics, crops
from trainrun.parts.augmentations.geometry import Warp, centre, matrix
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.datasets.embedded import _DATA
from trainrun.parts.datasets.splits import Data, Split, differs
from trainrun.recipe.load import load
from trainrun.recipe.registry import part, registry
from trainrun.recipe.schema import Recipe
from trainrun.trials import augment, init, pca
from trainrun.world import World

PHOTOS = ("astronaut", "coffee", "rocket")
SIZES = [(60, 84), (75, 75), (96, 70), (61, 83), (128, 101), (60, 84)]  # height and width of each class's pictures
LISTS: dict[str, list[Any]] = {
    "random_resized_crop": [{"name": "random_resized_crop", "size": 40}, "horizontal_flip", {"name": "color_jitter", "brightness": 0.4}],
    "small crops": [{"name": "random_resized_crop", "size": 20, "scale": [0.3, 1.0]}, "vertical_flip"],
    "scale_jitter": [{"name": "scale_jitter", "size": 40, "shorter": [44, 90]}, "alternating_flip", {"name": "random_erasing", "p": 0.5}],
    "center_crop": [{"name": "center_crop", "size": 64}, "horizontal_flip", {"name": "gaussian_noise", "std": 0.1}],
}
FACTORS = {"random_resized_crop": 2.0}  # a brightness of at most 1.4 times, rounded once more


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path_factory.mktemp("cache")))


def photos(root: Path, sizes: list[tuple[int, int]], kind: str = "png") -> Path:
    """A class a photograph, which has each of these sizes once, showing another part of it; lossless, or JPEG."""
    for name in PHOTOS:
        (root / name).mkdir(parents=True)
        with Image.open(_DATA / "photos10" / f"{name}.webp") as photo:
            for n, (height, width) in enumerate(sizes):
                piece = photo.convert("RGB").crop((10 * n, 5 * n, 10 * n + 3 * width, 5 * n + 2 * height))
                piece.resize((width, height), Image.Resampling.LANCZOS).save(root / name / f"{n}.{kind}", quality=95)
    return root


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("unequal"), SIZES)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("alike"), [(96, 120)] * 6)


def recipe_of(folder: Path, root: Path, augment: list[Any], **more: Any) -> Recipe:
    data = {"name": "folder", "root": str(root), "validation": 0.34, "workers": 0, **more.pop("data", {})}
    return written(folder, {"data": data, "augment": augment, "seed": 5, **more}).recipe


def settled(recipe: Recipe, data: Data) -> Recipe:
    return settle(recipe, CPU, data.train)[0]


def fed(recipe: Recipe, feed: Feed, batches: list[torch.Tensor], training: bool, visits: list[torch.Tensor] | None = None, epoch: int = 3) -> torch.Tensor:
    """What the network is given, in levels of 0..255."""
    inputs = make_inputs(recipe.augment, recipe.seed, "channels_last", Statistics(3, lambda: ((0.5,) * 3, (0.5,) * 3)), registry, feed.cut is not None)
    try:
        return torch.cat([inputs(b, training)[0] * 255 for b in feed(batches, epoch, map(len, batches), visits, training)])
    finally:
        feed.close()


def close(found: torch.Tensor, expected: torch.Tensor, factor: float = 1.0) -> bool:
    """Whether two levels in a hundred at most were rounded to their neighbours, before they were multiplied by at most `factor`."""
    difference = (found - expected).abs()
    return found.shape == expected.shape and float(difference.max()) <= factor + 0.01 and float((difference > 0.01).float().mean()) < 0.02


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LISTS)
def test_cut_in_the_worker_is_cut_on_the_device(name: str, training: bool, alike: Path, tmp_path: Path) -> None:
    """Pictures of one size, held on the device whole, and the same ones cut as they are read."""
    recipe = recipe_of(tmp_path, alike, LISTS[name])
    data = open_data(recipe.data)
    ids = torch.tensor([3, 0, 3, 7, 2, 3])
    visits = torch.tensor([0, 0, 1, 0, 0, 2])
    whole = open_feed(data.train, options(), CPU, 1 << 30)
    assert isinstance(whole, Resident) and whole.cut is None and settled(recipe, data).data.cut == "device"
    expected = fed(recipe, whole, [ids], training, [visits])
    recipe = recipe.model_copy(update={"data": load(tmp_path / "small.yaml", ["data.cut=worker"]).recipe.data})
    feed = open_feed(data.train, options(), CPU, 1 << 30, make_cut(recipe, registry, data.train))
    assert isinstance(feed, Streamed) and feed.shape == (recipe.augment[0].size, recipe.augment[0].size, 3)
    found = fed(recipe, feed, [ids], training, [visits])
    assert torch.equal(found, expected) if name == "center_crop" else close(found, expected, FACTORS.get(name, 1.0))
    assert training == (not torch.equal(found[0], found[2])) or name == "center_crop"  # the second visit has another box
    assert not close(found.roll(1, 0), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LISTS)
def test_an_unequal_picture_is_cut_as_if_it_were_alone_on_the_device(name: str, training: bool, unequal: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, unequal, LISTS[name])
    data = open_data(recipe.data)
    recipe = settled(recipe, data)
    assert recipe.data.cut == "worker" and data.train.sizes is not None and data.train.shape == (128, 101, 3)
    ids = torch.arange(len(data.train))
    found = fed(recipe, open_feed(data.train, options(), CPU, 1 << 30, make_cut(recipe, registry, data.train)), list(ids.split(5)), training)
    inputs = make_inputs(recipe.augment, recipe.seed, "channels_last", Statistics(3, lambda: ((0.5,) * 3, (0.5,) * 3)), registry)
    for i in ids:
        picture = torch.from_numpy(np.asarray(Image.open(data.train.source(int(i)))).copy()).permute(2, 0, 1)[None]
        assert picture.shape[2:] == tuple(data.train.sizes[i])
        alone = inputs(Batch(picture, torch.zeros(1, dtype=torch.int64), i[None], 3, 1), training)[0] * 255
        # Of those that center_crop takes, some are smaller than the crop, with black around them.
        assert torch.equal(found[i : i + 1], alone) if name == "center_crop" else close(found[i : i + 1], alone, FACTORS.get(name, 1.0))


@pytest.mark.parametrize(("name", "given"), [("random_resized_crop", {"size": 14}), ("scale_jitter", {"size": 14, "shorter": [14, 30]})])
def test_the_box_is_the_parts_own(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    """A picture whose levels are its rows and columns shows where each pixel comes from: where the part's matrix, for this shape, says."""
    recipe = written(tmp_path, {"data": {"name": "synthetic", "shape": [3, 20, 20], "cut": "worker"}, "augment": [{"name": name, **given}], "seed": 9}).recipe
    cut = make_cut(recipe, registry)
    assert cut and cut.size == (14, 14)
    shapes = [(40, 31), (30, 43), (250, 175), (30, 43), (17, 250)]
    ramps = [np.stack([*np.mgrid[:height, :width], np.zeros((height, width))], 2).astype(np.uint8) for height, width in shapes]
    split = Split(np.zeros(5, np.int64), (250, 250, 3), lambda ids: ramps[ids[0]][None], "x", sizes=np.array(shapes, np.int32))
    ids, visits = torch.tensor([3, 1, 2, 0, 4, 1]), torch.tensor([0, 0, 1, 0, 5, 1])
    found = cut.read(split, Wanted(ids.numpy(), 4, visits.numpy(), True))
    draw = draws(9, 4, ids, visits).for_(key("augment", 0, name))
    row, column = np.mgrid[:14, :14]
    for n, i in enumerate(ids.tolist()):
        m = getattr(crops, name)(shapes[i], draw, **recipe.augment[0].options).matrix[n].numpy()
        x, y, _ = np.tensordot(m, np.stack([column, row, np.ones((14, 14))]), 1)
        inside = (slice(1, -1), slice(1, -1))  # at its edge a picture has nothing to be averaged with
        assert np.abs(found[n, ..., 0] - y)[inside].max() < 0.51 and np.abs(found[n, ..., 1] - x)[inside].max() < 0.51
    assert not np.array_equal(found[1], found[5])
    fixed = cut.read(split, Wanted(ids.numpy(), 4, visits.numpy(), False))
    assert np.array_equal(fixed, cut.read(split, Wanted(ids.numpy(), 1)))  # nothing is drawn in evaluation


def test_the_pictures_are_the_same_with_any_workers_batches_and_processes(unequal: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, unequal, LISTS["random_resized_crop"], sampler="label_shuffle")
    data = open_data(recipe.data)
    recipe = settled(recipe, data)
    ids, visits = torch.tensor([1, 5, 1, 9, 8, 0, 1, 3, 11, 7]), torch.tensor([0, 0, 1, 0, 0, 0, 2, 0, 0, 0])

    def found(workers: int, size: int, ranks: int = 1) -> torch.Tensor:
        places = [[World(torch.device("cpu"), rank, ranks).share(piece) for piece in torch.arange(len(ids)).split(size)] for rank in range(ranks)]
        pictures = torch.empty(len(ids), 3, 40, 40)
        for mine in places:
            feed = open_feed(data.train, options(workers=workers), CPU, 0, make_cut(recipe, registry, data.train))
            pictures[torch.cat(mine)] = fed(recipe, feed, [ids[p] for p in mine], True, [visits[p] for p in mine])
        return pictures

    expected = found(0, 10)
    assert len({picture.numpy().tobytes() for picture in expected}) == len(ids)
    assert torch.equal(found(2, 3), expected) and torch.equal(found(1, 4, ranks=2), expected)
    assert torch.equal(found(1, 10), expected)  # which the worker reads in two pieces


TRAINING: dict[str, Any] = {
    "augment": [{"name": "random_resized_crop", "size": 12}, "horizontal_flip", "normalize"],
    "sampler": "label_shuffle",
    "batch_size": 8,
    "epochs": 3,
}


def data_of(root: Path, **more: Any) -> dict[str, Any]:
    return {"name": "folder", "root": str(root), "validation": 0.34, "imbalance": 3, **more}


def test_a_run_has_the_same_weights_with_any_workers_and_nearly_the_same_with_micro_batches(unequal: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, **TRAINING, data=data_of(unequal, workers=0))[0]
    assert first.training.cut and first.plan.samples > len(first.training)  # the rare classes come again in an epoch
    assert equal(weights(first.model), weights(trained(tmp_path, **TRAINING, data=data_of(unequal, workers=2))[0].model))
    split = weights(trained(tmp_path, **TRAINING, micro_batch=3, data=data_of(unequal, workers=0))[0].model)
    assert all(torch.allclose(a, b, rtol=0, atol=2e-6) for a, b in zip(weights(first.model).values(), split.values(), strict=True))
    assert not equal(weights(first.model), weights(made(tmp_path, **TRAINING, data=data_of(unequal, workers=0))[0].model))


def test_a_resumed_run_is_the_uninterrupted_one(unequal: Path, tmp_path: Path) -> None:
    fields = {**TRAINING, "data": data_of(unequal, workers=0), "checkpoint": {"every": "1st"}, "log": {"every": "1st"}}
    launched(tmp_path, "whole", **fields)
    launched(tmp_path, "parts", **fields, stop_at="5st")
    launched(tmp_path, "parts", resume=True, **fields)
    whole, parts = ((tmp_path / name / "checkpoints" / "last" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    steps = [[line for line in lines(tmp_path / name) if line["kind"] == "step"] for name in ("whole", "parts")]
    assert steps[0] == steps[1] and len(steps[0]) > 5
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert environment and "cut: worker" in (tmp_path / "whole" / "recipe.yaml").read_text()


def middle(file: str, size: int, shorter: int) -> np.ndarray:
    """What evaluation takes of a picture, by torchvision's v2: it resizes the shorter side and cuts out the middle."""
    image = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    return functional.center_crop(functional.resize(image, [shorter], antialias=True), [size, size]).permute(1, 2, 0).numpy()


def test_normalize_and_the_components_are_measured_on_what_evaluation_sees(unequal: Path, tmp_path: Path) -> None:
    run, _ = made(tmp_path, **TRAINING, data={**data_of(unequal, workers=0), "imbalance": None})
    seen = np.stack([middle(run.data.train.source(i), 12, 14) for i in range(len(run.data.train))]) / 255
    assert run.statistics.figures[0] == pytest.approx(seen.mean((0, 1, 2)), abs=2e-3)
    assert run.statistics.figures[1] == pytest.approx(seen.std((0, 1, 2)), abs=2e-3)
    found = pca.look(run.recipe, CPU)
    assert found.eigenvalues == pytest.approx(sorted(np.linalg.eigvalsh(np.cov(seen.reshape(-1, 3).T, bias=True)))[::-1], rel=0.03)


def test_a_finished_run_is_evaluated_and_asked_about_pictures_of_any_size(unequal: Path, tmp_path: Path) -> None:
    result = launched(tmp_path, "run", **TRAINING, data=data_of(unequal, workers=0))
    last = [line for line in lines(tmp_path / "run") if line["kind"] == "epoch"][-1]
    assert result["steps"] == last["step"]
    again = evaluate_run(tmp_path / "run", checkpoint="last")
    assert (again["val_loss"], again["val_accuracy"]) == (last["val_loss"], last["val_accuracy"])
    run, _ = made(tmp_path, **TRAINING, data=data_of(unequal, workers=0))
    files = [Path(run.validation.split.source(i)) for i in range(len(run.validation))] if run.validation else []
    losses = []
    for found in predict(tmp_path / "run", files, checkpoint="last"):
        probabilities = {c["class"]: c["probability"] for c in found["classes"]}
        losses.append(-np.log(probabilities[Path(found["file"]).parent.name]))
    assert np.mean(losses) == pytest.approx(last["val_loss"], rel=1e-5) and len({Image.open(file).size for file in files}) > 1
    other = photos(tmp_path / "other", [(30, 50)] * 3)  # of one size, and another than before: it is cut all the same
    assert evaluate_run(tmp_path / "run", [f"data.root={other}", "data.imbalance=null"], checkpoint="last")["samples"] == 3


def test_what_is_shown_is_what_training_feeds_the_network(unequal: Path, tmp_path: Path) -> None:
    fields = {**TRAINING, "data": data_of(unequal, workers=0)}
    found = augment.look(written(tmp_path, fields).recipe, CPU)
    run, _ = made(tmp_path, **fields)
    given: dict[tuple[int, int], list[torch.Tensor]] = {}
    for step in range(run.plan.total):
        batch = next(run.batches(step))
        for i, visit, picture in zip(batch.ids.tolist(), batch.visits.tolist(), run.inputs(batch, True)[0], strict=True):  # type: ignore[union-attr]  # label_shuffle repeats
            given.setdefault((i, batch.epoch), []).append(picture)
            assert len(given[i, batch.epoch]) == visit + 1
    for row, picture in zip(found.rows, found.fed, strict=True):
        assert any(torch.equal(picture, other) for other in given[row.sample, row.epoch])
    assert list(found.columns) == ["original", "random_resized_crop", "horizontal_flip", "all together"]
    for n, row in enumerate(found.rows):
        whole = np.asarray(ImageOps.contain(Image.open(row.source), (12, 12)))
        assert np.array_equal(found.columns["original"][n][: whole.shape[0], : whole.shape[1]], whole)
        flipped = found.columns["horizontal_flip"][n].astype(int)
        expected = middle(row.source, 12, 14).astype(int)
        assert min(np.abs(flipped - expected).max(), np.abs(flipped[:, ::-1] - expected).max()) <= 12
    assert init.look(written(tmp_path, fields).recipe, CPU).pictures == 8


def test_a_dry_look_says_where_a_crop_is_made_and_why(unequal: Path, alike: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, unequal, LISTS["scale_jitter"])
    told = CliRunner().invoke(app, ["show", str(tmp_path / "small.yaml"), "--why"]).stdout
    assert "cut: auto" in told and "the run finds out: worker where pictures differ in size" in told
    for root, where, why in ((unequal, "worker", "pictures differ in size, so scale_jitter"), (alike, "device", "all pictures have one size")):
        recipe = recipe_of(tmp_path, root, LISTS["scale_jitter"])
        data = open_data(recipe.data)
        found, reasons = settle(recipe, CPU, data.train)
        assert found.data.cut == where and reasons["data.cut"].startswith(why)
    for augment_list in ([], ["vertical_flip", *LISTS["scale_jitter"]], ["normalize"]):
        assert settle(recipe_of(tmp_path, alike, augment_list), CPU)[0].data.cut == "device"
    assert settle(written(tmp_path, {"augment": LISTS["scale_jitter"]}).recipe, CPU)[0].data.cut == "device"  # its size is known


@pytest.mark.parametrize("augment", [[], ["horizontal_flip"], ["horizontal_flip", {"name": "center_crop", "size": 8}], [{"name": "random_crop"}]])
def test_unequal_pictures_that_nothing_cuts_are_refused(augment: list[Any], unequal: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"astronaut/\d.png has \d+ x \d+ pixels .* write data.size=\d+ .* begin augment with a crop"):
        launched(tmp_path, "run", augment=augment, data={"name": "folder", "root": str(unequal), "validation": 0.34})
    assert not (tmp_path / "run").exists()
    photos(tmp_path / "two" / "train", [(20, 30)] * 2)
    other = photos(tmp_path / "two" / "val", [(20, 31)])
    with pytest.raises(UserError, match=rf"{other}/astronaut/0.png has 20 x 31 pixels \(height x width\), the first picture 20 x 30; .* begin augment"):
        launched(tmp_path, "run3", augment=augment, data={"name": "folder", "root": str(tmp_path / "two")})
    with pytest.raises(UserError, match="begin augment with a crop"):
        launched(tmp_path, "run2", augment=LISTS["center_crop"], data={"name": "folder", "root": str(unequal), "cut": "device"})


def test_the_way_out_names_all_parts_that_cut() -> None:
    named = str(differs("x", (1, 2), (3, 4)))
    parts = [registry.get("augment", name) for name in registry.names("augment")]
    assert [p.name for p in parts if p and p.facts.get("cuts")] == [name for name in registry.names("augment") if name in named]
    for p in parts:
        if p and p.facts.get("geometry") and not p.facts.get("cuts"):  # and no other has a size of its own
            node = {name: value for name, value in p.options().model_dump().items()}
            motions = [p.call(node)(shape, draws(0, 0, torch.arange(2))) for shape in ((30, 40), (50, 20))]
            assert [m.size for m in motions] == [(30, 40), (50, 20)]


@pytest.mark.parametrize(
    ("augment", "data", "path"),
    [([], {"cut": "worker"}, "data.cut"), (["horizontal_flip"], {"cut": "worker"}, "data.cut"), (LISTS["center_crop"], {"cut": "worker", "resident": "yes"}, "data.resident")],
)
def test_cutting_in_vain_is_a_mistake_of_the_recipe(augment: list[Any], data: dict[str, Any], path: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        written(tmp_path, {"augment": augment, "data": {"name": "digits", **data}})
    assert [mistake.path for mistake in caught.value.mistakes] == [path]


def test_unequal_pictures_cannot_be_held_on_the_device(unequal: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.resident is yes, .* set data.resident=auto"):
        made(tmp_path, augment=LISTS["center_crop"], data=data_of(unequal, resident="yes"))


def test_large_jpegs_are_decoded_smaller_only_where_pixels_are_left_over(tmp_path: Path) -> None:
    root = photos(tmp_path / "data", [(300, 400), (401, 303), (160, 170), (640, 480)], "jpg")
    recipe = recipe_of(tmp_path, root, [{"name": "random_resized_crop", "size": 32}])
    data = open_data(recipe.data)
    recipe = settled(recipe, data)
    cut = make_cut(recipe, registry)
    assert cut and data.train.decode and data.train.sizes is not None
    asked: dict[int, int] = {}

    def decode(sample: int, shrink: int) -> np.ndarray:
        asked[sample] = shrink
        return data.train.decode(sample, shrink)  # type: ignore[misc]  # it has one

    ids = torch.arange(len(data.train))
    draw = draws(5, 2, ids).for_(key("augment", 0, "random_resized_crop"))
    found = torch.from_numpy(cut.read(replace(data.train, decode=decode), Wanted(ids.numpy(), 2, None, True)))
    for i in ids.tolist():
        pixels = torch.from_numpy(np.asarray(Image.open(data.train.source(i))).copy()).permute(2, 0, 1)[None]
        motion = crops.random_resized_crop(tuple(data.train.sizes[i].tolist()), draw, **recipe.augment[0].options)
        step = min(motion.matrix[i, 0, 0], motion.matrix[i, 1, 1]).item()  # pixels of the picture to one that is wanted
        assert asked[i] == max(scale for scale in (1, 2, 4, 8) if scale == 1 or step / scale >= 2)
        expected = transform(pixels, Warp(motion.size, motion.matrix[i : i + 1], motion.shrink), "edge")[0].permute(1, 2, 0)
        assert (found[i].int() - expected.int()).abs().double().mean() < (2.5 if asked[i] > 1 else 0.02)
    assert len(set(asked.values())) > 2


def test_an_initializer_that_looks_at_data_sees_the_first_batch(unequal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(firsts, "adapt", lambda model, node, batches, parts: seen.extend(batches))
    run, _ = made(tmp_path, **TRAINING, initializer="lsuv", data=data_of(unequal, workers=0))
    assert torch.equal(seen[0], run.inputs(next(run.batches(0)), True)[0]) and len(seen) == 1


def test_a_part_of_ones_own_can_cut(unequal: Path, tmp_path: Path) -> None:
    def tilted(shape: tuple[int, int], draw: Draw) -> Warp:
        """A square about the centre, turned by a right angle: what is not along the axes is cut as well."""
        quarter = torch.zeros(len(draw.base), dtype=torch.float64)
        x, y = centre(shape)
        return Warp((11, 11), matrix((quarter, 1.0, x - 5.0), (-1.0, quarter, y + 5.0)))

    part("augment", geometry=True, cuts=True, always=True)(tilted)
    run, _ = made(tmp_path, augment=["tilted"], data=data_of(photos(tmp_path / "odd", [(31, 41), (51, 21), (61, 61)]), workers=0, imbalance=None))
    batch = next(run.batches(0))
    for i, picture in zip(batch.ids.tolist(), batch.images, strict=True):
        pixels = np.asarray(Image.open(run.data.train.source(i)))
        y, x = (pixels.shape[0] - 11) // 2, (pixels.shape[1] - 11) // 2
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), np.rot90(pixels[y : y + 11, x : x + 11], -1))


def test_a_picture_that_has_changed_since_it_was_looked_at_is_named(unequal: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(unequal, tmp_path / "data"))
    recipe = recipe_of(tmp_path, root, LISTS["center_crop"])
    data = open_data(recipe.data)
    path = data.train.source(2)
    with Image.open(path) as before:
        half = before.resize((before.width // 2, before.height // 2))
    half.save(path)
    feed = open_feed(data.train, options(), CPU, 0, make_cut(settled(recipe, data), registry, data.train))
    with pytest.raises(UserError, match=rf"{path} has {half.height} x {half.width} pixels .*, and \d+ x \d+ when it was looked at"):
        list(feed.fetch([torch.arange(5)]))


def test_pictures_that_are_no_files_are_read_whole_and_cut(tmp_path: Path) -> None:
    fields = {"augment": [{"name": "center_crop", "size": 4}], "data": {"name": "synthetic", "shape": [1, 6, 8], "classes": 4, "size": 48, "cut": "worker"}}
    run, _ = made(tmp_path, **fields)
    batch = next(run.batches(0))
    assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(run.data.train.read(batch.ids.tolist())[:, 1:5, 2:6]))
