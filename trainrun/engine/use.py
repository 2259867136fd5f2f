"""What is done with a trained run: evaluate it again, or ask it about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainrun.draw import draws
from trainrun.engine.build import open_data, seen_shape, settle
from trainrun.engine.checkpoint import Checkpoints, Snapshot, load_weights
from trainrun.engine.cut import Cut, make_cut
from trainrun.engine.detection import BoxedInputs, Found
from trainrun.engine.directory import result
from trainrun.engine.draw_boxes import by_class, draw_found, find
from trainrun.engine.evaluate import evaluate
from trainrun.engine.inputs import make_inputs
from trainrun.engine.resident import budget, open_feed
from trainrun.engine.sampling import make_sampler
from trainrun.engine.signals import Interrupted, Signals
from trainrun.engine.tasks import ByClass, Classification, negative_label, task_of
from trainrun.errors import Stopped, UserError
from trainrun.parts.augmentations import Statistics
from trainrun.parts.datasets.pictures import BadPicture, decode, measure
from trainrun.parts.datasets.splits import Data, Split
from trainrun.parts.models.nets.weights import unread
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry
from trainrun.recipe.schema import Recipe
from trainrun.world import enter


def open_run(run: Path, overrides: Sequence[str], allow_plugins: bool, checkpoint: str | None) -> tuple[Recipe, Snapshot]:
    """The recipe of a run directory, with overrides, and its checkpoint `last`, `best` or the one that its result names; raises UserError."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run directory: it has no recipe.yaml. trainrun fit prints the directory it writes to")
    recipe = load(run / "recipe.yaml", overrides, allow_plugins=allow_plugins).recipe
    ended = result(run) or {}
    name = checkpoint or Path(ended.get("checkpoint") or "checkpoints/last").name  # null where nothing was saved
    return recipe, Checkpoints(run).named(name)


def load_model(recipe: Recipe, snapshot: Snapshot, device: torch.device) -> torch.nn.Module:
    """The network of a run with the checkpoint's weights, ready to evaluate; raises UserError where they are of another network."""
    about = snapshot.values["input"]
    channels, height, width = about["shape"]
    height, width, channels = seen_shape(recipe, (height, width, channels), registry)
    with unread():  # the run's own follow
        model = registry.build(recipe.model)((channels, height, width), len(about["classes"]))
    try:
        load_weights(model, snapshot.model)
    except RuntimeError as error:  # what load_state_dict finds, a line each
        found = (str(error).partition("\n\t")[2] or str(error)).splitlines()[0][:200].rstrip(".")
        raise UserError(f"the weights of this run do not fit model {recipe.model.name}: {found}; leave settings of model as they were") from None
    layout = torch.channels_last if recipe.memory_format == "channels_last" else torch.contiguous_format
    return model.to(device, memory_format=layout).eval()


def evaluate_run(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    allow_plugins: bool = False,
    checkpoint: str | None = None,
    side: str = "validation",
    png: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run's weights on its validation set, or its test set: the task's figures, the step, and figures by class.

    Of labels, `val_loss` in nats, `val_accuracy` in 0..1 and in `classes` {name: {"accuracy", "samples"}}, with accuracy None for a class
    that has no pictures; where there is a negative class (the first of two, or that of mining), `val_fp95` and in
    `false_positives_at_95_recall` {"positives", "negatives", "threshold" in nats, "false_positives", "share"}; of boxes, `val_map`, `val_map_50`, `val_map_75` and {name: {"map", "map_50", "boxes"}}. On the test set the names
    begin with `test_`. png: where pictures are drawn with what was found in them, of boxes only. Raises UserError where the data does not
    suit the run.
    """
    with Signals() as signals, enter() as world:
        try:
            recipe, snapshot = open_run(run, overrides, allow_plugins, checkpoint)
            about = snapshot.values["input"]
            with signals.at_once():
                data = open_data(recipe.data)
                split = _split(data, side, recipe, run, about)
                if split.boxes is not None and all(each.ignored.all() for each in split.boxes):
                    raise UserError(f"data {recipe.data.name} of {run} has no boxes in its {side} pictures but ignored ones")
                cut = make_cut(recipe, registry)
                feed = open_feed(split, recipe.data, world, budget(world), cut)
            recipe, _ = settle(recipe, world, feed.shape)
            inputs = make_inputs(recipe.augment, recipe.seed, recipe.memory_format, statistics_of(about), registry, cut=cut is not None)
            model = load_model(recipe, snapshot, world.device)
            judge: ByClass | Found
            if split.boxes is None:
                task = Classification(registry.build(recipe.loss), negative_label(recipe.mining, data.classes))
                judge = ByClass(task, world, len(data.classes))
                if png is not None:
                    raise UserError(f"--png draws boxes, and data {recipe.data.name} has none; leave it out")
            else:
                inputs, judge = BoxedInputs.of(inputs), Found(len(data.classes))
            # Batches as in the run: then the figures are its own to the last bit.
            whole = len(make_sampler(recipe, data, registry)) if recipe.batch_size == "full" else recipe.batch_size
            batch = min(recipe.micro_batch or whole, whole)
            figures = evaluate(model, feed, inputs, judge, world, batch, recipe.precision, signals.check)
            feed.close()
        except Interrupted:
            raise Stopped(signals.stop or 2) from None
    more: dict[str, Any] = {}
    if isinstance(judge, ByClass):
        more = {"false_positives_at_95_recall": judge.at_95} if judge.at_95 else {}
        counts = zip(data.classes, *judge.counts.tolist(), strict=True)
        classes = {name: {"accuracy": right / samples if samples else None, "samples": samples} for name, samples, right in counts}
    else:
        classes = by_class(judge, data.classes, split)
        if png and world.main:
            draw_found(judge, split, data.classes, png)
    if side == "test":
        figures = {name.replace("val_", "test_", 1): value for name, value in figures.items()}
    return {"run": str(run), "step": snapshot.values["step"], "samples": len(split), **figures, **more, "classes": classes}


def _split(data: Data, side: str, recipe: Recipe, run: Path, about: dict[str, Any]) -> Split:
    """The validation or test pictures, which must have the classes and the shape that the run was trained on."""
    split = data.validation if side == "validation" else data.test
    if split is None:
        more = "; name some with data.root=... or data.validation=0.1" if side == "validation" else ", which only data with boxes can name"
        if data.train.boxes is not None:
            more = f"; name them with data.{side}=..."
        raise UserError(f"data {recipe.data.name} of {run} has no {side} pictures{more}")
    refuse_other(data, split, recipe, about)
    return split


def refuse_other(data: Data, split: Split, recipe: Recipe, about: dict[str, Any]) -> None:
    """Raise UserError where a split has other classes or another shape than the run was trained on."""
    wanted = about["classes"]
    if list(data.classes) != wanted:
        other = [*(f"{c!r} is new" for c in data.classes if c not in wanted), *(f"{c!r} is missing" for c in wanted if c not in data.classes)]
        told = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        raise UserError(f"this data has other classes than the run was trained on: {told or 'they come in another order'}")
    if split.boxes is not None:  # a detector takes pictures of any size
        return
    height, width, channels = split.shape
    cut = make_cut(recipe, registry, split)
    if cut is not None:  # then pictures may be of any size
        height, width = cut.size
    if [channels, height, width] != about["shape"]:
        raise UserError(
            f"this data has pictures of {_size([channels, height, width])}, and the run was trained on {_size(about['shape'])}; "
            "make them alike, with data.size=... where the data set takes it"
        )


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} pixels and {channels} channels"


def statistics_of(about: dict[str, Any]) -> Statistics:
    """The statistics of the training pictures, as the run measured them."""
    return Statistics(about["shape"][0], lambda: (tuple(about["mean"]), tuple(about["std"])))


def predict(
    run: Path, pictures: Sequence[Path], *, top: int = 5, allow_plugins: bool = False, checkpoint: str | None = None, png: Path | None = None
) -> list[dict[str, Any]]:
    """The most likely classes of each picture: [{"file", "classes": [{"class", "probability"}, ...]}], or the boxes found in it: [{"file",
    "boxes": [{"class", "score", "box"}, ...]}]; raises UserError naming a bad picture.

    png: the folder into which pictures are written with the boxes found in them.
    """
    with enter() as world:
        recipe, snapshot = open_run(run, (), allow_plugins, checkpoint)
        about = snapshot.values["input"]
        channels, height, width = about["shape"]
        recipe, _ = settle(recipe, world, (height, width, channels))
        cut = make_cut(recipe, registry)
        inputs = make_inputs(recipe.augment, recipe.seed, recipe.memory_format, statistics_of(about), registry, cut=cut is not None)
        model = load_model(recipe, snapshot, world.device)
        if task_of(recipe, registry) == "detection":
            return find(model, BoxedInputs.of(inputs), recipe, world, pictures, about["classes"], png)
        if png is not None:
            raise UserError(f"--png draws boxes, and {recipe.model.name} gives each picture a class; leave it out")
        found = []
        with torch.no_grad(), world.autocast(recipe.precision):
            size = recipe.micro_batch or (256 if recipe.batch_size == "full" else recipe.batch_size)
            for start in range(0, len(pictures), size):
                batch = np.stack([_picture(p, (height, width, channels), cut) for p in pictures[start : start + size]])
                images = torch.from_numpy(batch).to(world.device).permute(0, 3, 1, 2)
                prepared = inputs.pictures(images, draws(recipe.seed, 0, torch.arange(len(images), device=world.device)), training=False)
                found.append(model(prepared).float().softmax(1).cpu())
    likely = torch.cat(found).topk(min(top, len(about["classes"])), dim=1)
    return [
        {"file": str(file), "classes": [{"class": about["classes"][c], "probability": p} for p, c in zip(values, indices, strict=True)]}
        for file, values, indices in zip(pictures, likely.values.tolist(), likely.indices.tolist(), strict=True)
    ]


def _picture(file: Path, shape: tuple[int, int, int], cut: Cut | None) -> np.ndarray:
    height, width, channels = shape
    try:
        if cut:
            nobody = draws(0, 0, torch.zeros(1, dtype=torch.int64))
            return cut.of(lambda shrink: decode(str(file), channels, shrink=shrink), measure(str(file)), nobody, training=False)
        picture = decode(str(file), channels, height if height == width else None)  # only data.size resizes, and it makes squares
    except (BadPicture, OSError) as error:
        raise UserError(f"{file} cannot be read as a picture: {getattr(error, 'strerror', None) or error}") from None
    if picture.shape[:2] != (height, width):
        raise UserError(f"{file} has {picture.shape[0]} x {picture.shape[1]} pixels (height x width), and the run was trained on {height} x {width}")
    return picture
