"""What does not go together in detection: parts of two tasks, and settings that are for pictures with one label."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun.recipe.sense import Check, Fault, Sense

# What an evaluation measures, first what stands for nothing written.
MONITORS = {"classification": ("val_accuracy", "val_loss"), "detection": ("val_map", "val_map_50")}


def task(sense: Sense) -> str:
    """The task that the recipe's data is for."""
    return str(sense.fact(sense.recipe.data, "task", "classification"))


def _detects(sense: Sense) -> bool:
    return task(sense) == "detection"


def parts_share_a_task(sense: Sense) -> Iterator[Fault]:
    data, model, mining = sense.recipe.data, sense.recipe.model, sense.recipe.mining
    detects = _detects(sense)
    has = f"{data.name} has boxes" if detects else f"{data.name} has a label for each picture"
    if (sense.fact(model, "task", "classification") == "detection") != detects:
        wants = "finds boxes" if not detects else "gives each picture one label"
        instead = "a detector such as fasterrcnn_resnet50_fpn or tiny_fasterrcnn" if detects else "a classification network such as resnet18"
        yield "model", f"{model.name} {wants}, and data {has}; expected {instead}", None
    elif mining and sense.fact(mining, "task") == "detection" and sense.fact(model, "rois", True) is False:
        instead = "expected fasterrcnn_* or tiny_fasterrcnn, or no mining"
        yield "mining", f"{mining.name} chooses among the proposals of a first stage, and {model.name} has one stage only; {instead}", None
    if mining and (sense.fact(mining, "task", "classification") == "detection") != detects:
        chooses = "whole pictures by their labels" if detects else "the proposals of a detector"
        instead = "ohem_rois" if detects else "ohem"
        yield "mining", f"{mining.name} chooses among {chooses}, and data {has}; expected {instead}", None


def monitors_are_measured(sense: Sense) -> Iterator[Fault]:
    measured, recipe = MONITORS[task(sense)], sense.recipe
    stopping, decay = recipe.early_stopping, recipe.schedule.decay
    if stopping and stopping.monitor is not None and stopping.monitor not in measured:
        yield "early_stopping.monitor", f"{stopping.monitor} is not measured in {task(sense)}; expected {' or '.join(measured)}", None
    if sense.fact(decay, "watches") == "validation" and (watched := decay.options.get("monitor", measured[0])) not in measured:
        what = f"{watched} is not measured in {task(sense)}"
        if sense.wrote("schedule", "decay", "monitor"):
            yield "schedule.decay.monitor", f"{what}; expected {' or '.join(measured)}", None
        else:
            yield "schedule.decay", f"{decay.name} watches {watched} unless it is told otherwise, and {what}; write monitor: {' or '.join(measured)}", None


def labels_are_not_boxes(sense: Sense) -> Iterator[Fault]:
    """What looks at labels of whole pictures."""
    if not _detects(sense):
        return
    recipe = sense.recipe
    for option in ("one_against_rest", "imbalance", "label_noise"):
        if recipe.data.options.get(option) is not None:
            yield f"data.{option}", "is for pictures with one label each, and these have boxes; leave it out", None
    if recipe.data.options.get("cut") == "worker":
        yield "data.cut", "worker would leave the boxes where they were; boxes move with pixels on the device; expected auto or device", None
    chosen = recipe.sampler
    if chosen.name not in ("shuffle", "sequential") and not (chosen.name == "subset" and not chosen.options["stratified"]):
        yield "sampler", f"{chosen.name} goes by labels of whole pictures; expected shuffle, sequential or subset with stratified: false", None
    if recipe.schedule.warmup.options.get("until_train_error") is not None:
        yield "schedule.warmup.until_train_error", "detection has no training error; write for: and a duration", None
    if any(sense.wrote("loss", option) for option in ("name", *recipe.loss.options)):
        yield "loss", f"has no effect: {recipe.model.name} has a loss of its own; leave it out", None
    if sense.fact(recipe.initializer, "data"):
        yield "initializer", f"{recipe.initializer.name} looks at pictures of one size; expected one that does not, such as default", None
    if recipe.compile == "on":
        yield "compile", "pictures of many sizes would be compiled again and again; expected off", None


def augmentations_carry_boxes(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment if _detects(sense) else ()):
        if sense.fact(node, "mixes"):
            yield f"augment.{n}", f"{node.name} mixes labels of whole pictures, and these have boxes; leave it out", None
        elif sense.fact(node, "moves"):
            yield f"augment.{n}", f"{node.name} moves pixels without their boxes; expected parts such as horizontal_flip, affine or color_jitter", None


def sides_have_room(sense: Sense) -> Iterator[Fault]:
    least, most = (sense.recipe.model.options.get(option) for option in ("min_size", "max_size"))
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield "model.min_size", f"{least}, the shorter side, is larger than max_size, {most}, the longer one", None


DETECTION_CHECKS: tuple[Check, ...] = (
    parts_share_a_task,
    monitors_are_measured,
    labels_are_not_boxes,
    augmentations_carry_boxes,
    sides_have_room,
)
