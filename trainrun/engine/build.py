"""Composition root: a recipe becomes parts, parts become a run. The only module that knows all the kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from trainrun.draw import key
from trainrun.engine.average import make_average
from trainrun.engine.cut import make_cut, where_to_cut
from trainrun.engine.detection import BoxedInputs, Detection
from trainrun.engine.firsts import fit_to_data
from trainrun.engine.inputs import make_inputs, statistics, together
from trainrun.engine.measure import Record
from trainrun.engine.miners import make_miner
from trainrun.engine.resident import Resident, budget, open_feed
from trainrun.engine.run import Run
from trainrun.engine.sampling import make_sampler, refuse_single, takes_one
from trainrun.engine.signals import Signals
from trainrun.engine.state import Plan
from trainrun.engine.steps import network_shape
from trainrun.engine.tasks import Classification, Task, negative_label, task_of
from trainrun.errors import UserError
from trainrun.parts.datasets.imbalance import imbalanced
from trainrun.parts.datasets.label_noise import mislabelled
from trainrun.parts.datasets.one_against_rest import one_against_rest
from trainrun.parts.datasets.splits import Data, Split
from trainrun.parts.initializers import initialize
from trainrun.parts.optimizers import make_optimizer
from trainrun.parts.schedules import make_schedule
from trainrun.recipe.registry import PartNode, Registry, registry
from trainrun.recipe.schema import EarlyStopping, Per256, Recipe
from trainrun.world import World, native_bf16

# On smaller pictures bf16 is slower than fp32 on a CPU, and oneDNN (torch 2.14) returns uninitialised memory as the weight
# gradient of a strided convolution over a map one pixel wide.
_SMALL = 16


def settle(
    recipe: Recipe, world: World, pictures: Split | tuple[int, int, int] | None = None, parts: Registry = registry
) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every automatic value decided for this machine, and the reason of each by its dotted path.

    pictures: those of the data set where it is at hand, or height, width and channels that all have; else what its part knows of itself.
    """
    known = parts.get("data", recipe.data.name)
    unequal = isinstance(pictures, Split) and pictures.sizes is not None
    shape = pictures.shape if isinstance(pictures, Split) else pictures
    shape = shape or (known.facts.get("shape", lambda options: None)(recipe.data.options) if known else None)
    decided: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    detects = task_of(recipe, parts) == "detection"
    if recipe.data.options["cut"] == "auto" and detects:
        decided["data"], reasons["data.cut"] = replace(recipe.data, options={**recipe.data.options, "cut": "device"}), "boxes are moved with pixels"
    elif recipe.data.options["cut"] == "auto":
        where, reasons["data.cut"] = where_to_cut(recipe, parts, unequal if shape else None)
        decided["data"] = replace(recipe.data, options={**recipe.data.options, "cut": where})
    shape = shape and seen_shape(recipe, shape, parts)
    if recipe.precision == "auto":
        native = native_bf16(world.device)
        small = world.device.type == "cpu" and shape is not None and min(shape[:2]) <= _SMALL
        slow = world.device.type == "cpu" and detects
        decided["precision"] = "bf16" if native and not small and not slow else "fp32"
        reasons["precision"] = f"this {world.device.type.upper()} {'has' if native else 'has no'} bf16 units"
        if native and small:
            reasons["precision"] = f"pictures of at most {_SMALL} pixels are faster in fp32 on a CPU"
        elif native and slow:
            reasons["precision"] = "detectors are faster in fp32 on a CPU"
    if recipe.memory_format == "auto":
        part = parts.get("model", recipe.model.name)
        fact = part.facts.get("memory_format", "contiguous") if part else "contiguous"
        decided["memory_format"] = fact(recipe.model.name) if callable(fact) else fact
        reasons["memory_format"] = f"what suits {recipe.model.name}"
    lr = recipe.schedule.lr
    if isinstance(lr, Per256):
        decided["schedule"] = recipe.schedule.model_copy(update={"lr": recipe.base_lr})
        reasons["schedule.lr"] = f"{lr.per_256:g} per 256 pictures by the {lr.rule} rule, with batch_size {recipe.batch_size}"
    return recipe.model_copy(update=decided), reasons


def open_data(node: PartNode, parts: Registry = registry) -> Data:
    """The data set of a recipe: asked for one class against the rest, then thinned out, then mislabelled, as far as the recipe says so.

    Raises UserError where it cannot be used.
    """
    data = parts.build(node)()
    if not len(data.train):
        raise UserError(f"data {node.name} has no training pictures")
    if data.validation is not None and not len(data.validation):
        raise UserError(f"data {node.name} has an empty validation set")
    if (name := node.options.get("one_against_rest")) is not None:
        data = one_against_rest(data, name)
    if (ratio := node.options.get("imbalance")) is not None:
        data = replace(data, train=imbalanced(data.train, ratio, node.options["imbalance_seed"]))
    if (share := node.options.get("label_noise")) is not None:
        data = replace(data, train=mislabelled(data.train, share, node.options["label_noise_seed"], len(data.classes)))
    return data


def seen_shape(recipe: Recipe, shape: tuple[int, int, int], parts: Registry) -> tuple[int, int, int]:
    """Height, width and channels of what the network sees of pictures of `shape`; a detector sees pictures of any size."""
    return shape if task_of(recipe, parts) == "detection" else network_shape(recipe.augment, shape, parts)


def make_model(recipe: Recipe, data: Data, parts: Registry = registry) -> torch.nn.Module:
    """The recipe's network with its first weights, on the CPU: a function of the recipe's seed alone; those made with data come later."""
    height, width, channels = seen_shape(recipe, data.train.shape, parts)
    torch.manual_seed(key(recipe.seed, "init") >> 1)
    model = parts.build(recipe.model)((channels, height, width), len(data.classes))
    initialize(model, recipe.initializer, parts)
    if recipe.mining and task_of(recipe, parts) == "detection":
        parts.build(recipe.mining)(model)
    return model


def build(recipe: Recipe, world: World, data: Data, signals: Signals, parts: Registry = registry, resumes: bool = False) -> Run:
    """The run of a settled recipe, at step 0, with nothing on disk; one that `resumes` gets its weights afterwards."""
    sampler = make_sampler(recipe, data, parts)
    plan = Plan.of(recipe, len(sampler))
    _distinct(recipe, plan, data, world, parts)
    _arithmetic(recipe, world)
    cut = make_cut(recipe, parts, data.train, data.validation)
    with signals.at_once():
        room = budget(world)
        training = open_feed(data.train, recipe.data, world, room, cut)
        spent = training.pictures.nbytes if isinstance(training, Resident) else 0
        validation = open_feed(data.validation, recipe.data, world, room - spent, cut) if data.validation is not None else None
    layout = torch.channels_last if recipe.memory_format == "channels_last" else torch.contiguous_format
    model = make_model(recipe, data, parts).to(world.device).to(memory_format=layout)
    figures = statistics(data, training)
    inputs = make_inputs(recipe.augment, recipe.seed, recipe.memory_format, figures, parts, cut=cut is not None)
    task: Task
    if task_of(recipe, parts) == "detection":
        part = parts.get("model", recipe.model.name)
        inputs, task = BoxedInputs.of(inputs), Detection(model, len(data.classes))
        # Pictures of a detector are large; only where its part says so does a map shrink to the one pixel that cannot be normalised.
        refuse_single(model, recipe, plan, world, lambda: not (part and part.facts.get("batch_norm")))
    else:
        shape = network_shape(recipe.augment, training.shape, parts)
        # A batch_size of 1 was asked for, and most networks can normalise one picture.
        refuse_single(model, recipe, plan, world, lambda: plan.batch_size == 1 and takes_one(model, shape, world))
        task = Classification(parts.build(recipe.loss), negative_label(recipe.mining, data.classes))
    if not resumes:
        with signals.at_once():
            fit_to_data(model, recipe, training, inputs, sampler, parts)
    compiled: Callable[[torch.nn.Module], Any] = torch.compile if recipe.compile == "on" else lambda module: module
    curve = make_schedule(recipe.schedule, plan.total, plan.steps_per_epoch, parts, recipe.seed)
    optimizer = make_optimizer(recipe.optimizer, model, curve.base, parts)
    average = make_average(recipe, model, optimizer, parts)
    rule = recipe.early_stopping or EarlyStopping()
    return Run(
        recipe=recipe, world=world, data=data, plan=plan, sampler=sampler, training=training, validation=validation, inputs=inputs,
        statistics=figures, model=model, forward=compiled(world.wrap(model)), average=average, judged=compiled(average.model),
        optimizer=optimizer, scaler=world.scaler(recipe.precision),
        curve=curve,
        task=task, rule=rule.model_copy(update={"monitor": rule.monitor or task.monitor}), signals=signals,
        record=Record(min(plan.log_every, 1000), world, task.sums, curve.window),
        miner=make_miner(recipe, data, plan, sampler, world, model, compiled(model), parts),
    )  # fmt: skip


def _distinct(recipe: Recipe, plan: Plan, data: Data, world: World, parts: Registry) -> None:
    """Refuse what only the data can show to be a mistake."""
    last, neighbours = plan.samples - (plan.steps_per_epoch - 1) * plan.batch_size, together(recipe.augment, parts)
    if -(-min(last, plan.batch_size) // neighbours) < world.size:
        pairs = ", and pairs that are mixed stay together" if neighbours == 2 else ""
        raise UserError(
            f"the last batch of an epoch has {last} pictures for {world.size} processes{pairs}; "
            f"choose another batch_size than {plan.batch_size}"
        )
    if recipe.early_stopping and data.validation is None:
        raise UserError(f"early_stopping: watches validation, and data {recipe.data.name} has no validation pictures")
    for side, split in (("training", data.train), ("validation", data.validation)):
        if split and split.boxes is not None and all(each.ignored.all() for each in split.boxes):
            raise UserError(f"data {recipe.data.name} has no boxes in its {side} pictures but ignored ones")
    decay = parts.get("decay", recipe.schedule.decay.name)
    if decay and decay.facts.get("watches") == "validation" and data.validation is None:
        raise UserError(f"schedule.decay: {decay.name} watches validation, and data {recipe.data.name} has no validation pictures")


def _arithmetic(recipe: Recipe, world: World) -> None:
    if world.device.type != "cuda":
        if recipe.precision == "fp16":
            raise UserError("precision: fp16 needs a GPU; write auto, bf16 or fp32")
        return
    torch.backends.cudnn.benchmark = not recipe.deterministic
    # A run on a CPU is deterministic as it is; there the switch would only cost two seconds at the start.
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
