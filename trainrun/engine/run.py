"""Composition root: a recipe becomes parts, parts become a run. The only module that knows all the kinds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from trainrun.draw import key, order
from trainrun.engine.average import Ema, Plain
from trainrun.engine.clock import Clock
from trainrun.engine.feed import Batch, Feed, budget, open_feed
from trainrun.engine.inputs import Inputs, make_inputs
from trainrun.engine.keeper import Keeper
from trainrun.engine.measure import Record, culprits, finite
from trainrun.engine.signals import Interrupted, Signals
from trainrun.engine.state import Plan, State
from trainrun.engine.teller import Silent
from trainrun.errors import NonFinite, UserError
from trainrun.parts.datasets.splits import Data
from trainrun.parts.initializers import initialize
from trainrun.parts.schedules import Schedule, make_schedule
from trainrun.recipe.registry import PartNode, Registry, registry
from trainrun.recipe.schema import EarlyStopping, Recipe
from trainrun.world import World, native_bf16


@dataclass
class Run:
    """A recipe as live objects: everything that the loop uses. Built by `build`, driven by `fit`, reusable for trials."""

    recipe: Recipe
    world: World
    data: Data
    plan: Plan
    training: Feed
    validation: Feed | None
    inputs: Inputs
    model: torch.nn.Module
    forward: torch.nn.Module
    average: Plain
    judged: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    loss: Callable[..., torch.Tensor]
    rule: EarlyStopping
    signals: Signals
    record: Record
    teller: Silent = field(default_factory=Silent)
    keeper: Keeper = field(init=False)
    state: State = field(default_factory=State)
    clock: Clock = field(default_factory=Clock)
    _compiled: bool = False

    def __post_init__(self) -> None:
        self.keeper = Keeper(self, None, {})

    @property
    def epoch(self) -> float:
        """Epochs done, with fractions."""
        return self.state.step / self.plan.steps_per_epoch

    @property
    def micro_batch_size(self) -> int:
        """Pictures that this process takes through the network at once."""
        share = -(-self.recipe.batch_size // self.world.size)
        return min(self.recipe.micro_batch or share, share)

    def batches(self, step: int) -> Iterator[Batch]:
        """The run's batches from `step` on, without end: this process's share of each."""
        while True:
            epoch, done = divmod(step, self.plan.steps_per_epoch)
            whole = order(self.recipe.seed, epoch, len(self.training)).split(self.recipe.batch_size)[done:]
            yield from self.training([self.world.share(ids) for ids in whole], epoch, [len(ids) for ids in whole])
            step = (epoch + 1) * self.plan.steps_per_epoch

    def seed_model_draws(self, seed: int) -> None:
        """Seed what the model itself draws (dropout and the like), at a cost of microseconds."""
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.default_generators[self.world.device.index].manual_seed(seed)

    def out_of_patience(self) -> bool:
        """Whether early stopping is on and its patience has run out."""
        return self.recipe.early_stopping is not None and self.state.waited >= self.rule.patience

    def read_record(self, batch: Batch | None = None) -> None:
        """Read what the steps measured; raises NonFinite, so that no state that holds a NaN is logged, evaluated or saved."""
        ago = self.record.read()
        if ago is None and finite(list(self.model.parameters())):
            return
        step = self.state.step - (ago or 0)
        lr = self.schedule(step - 1)
        sample = batch or next(self.batches(max(self.state.step - 1, 0)))
        layers = culprits(self.model, self.inputs(sample, training=True)[0])
        where = f"; first concerned: {', '.join(layers)}" if layers else ""
        raise NonFinite(
            f"the {'weights' if ago is None else 'loss'} became NaN or infinite at step {step}, with learning rate {lr:.6g}{where}"
        )

    def check(self) -> None:
        """Raise Interrupted if any process is asked to stop; called by all processes together."""
        if self.world.any(self.signals.stop is not None)[0]:
            raise Interrupted

    def compiling(self) -> Any:
        """The context of a step: while the first one compiles, a stop interrupts it at once, because nothing is lost by that."""
        if self.recipe.compile == "off" or self._compiled:
            return contextlib.nullcontext()
        self._compiled = True
        return self.signals.at_once()

    def close(self) -> None:
        """Let go of worker processes."""
        self.training.close()
        if self.validation:
            self.validation.close()


# On smaller pictures bf16 is slower than fp32 on a CPU, and oneDNN (torch 2.14) returns uninitialised memory as the weight
# gradient of a strided convolution over a map one pixel wide.
_SMALL = 16


def settle(
    recipe: Recipe, world: World, shape: tuple[int, int, int] | None = None, parts: Registry = registry
) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every automatic value decided for this machine, and the reason of each by its dotted path.

    shape: height, width and channels of the pictures, where the data set is at hand.
    """
    decided: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if recipe.precision == "auto":
        native = native_bf16(world.device)
        small = world.device.type == "cpu" and shape is not None and min(shape[:2]) <= _SMALL
        decided["precision"] = "bf16" if native and not small else "fp32"
        reasons["precision"] = f"this {world.device.type.upper()} {'has' if native else 'has no'} bf16 units"
        if native and small:
            reasons["precision"] = f"pictures of at most {_SMALL} pixels are faster in fp32 on a CPU"
    if recipe.memory_format == "auto":
        part = parts.get("model", recipe.model.name)
        fact = part.facts.get("memory_format", "contiguous") if part else "contiguous"
        decided["memory_format"] = fact(recipe.model.name) if callable(fact) else fact
        reasons["memory_format"] = f"what suits {recipe.model.name}"
    return recipe.model_copy(update=decided), reasons


def open_data(node: PartNode, parts: Registry = registry) -> Data:
    """The data set of a recipe; raises UserError where it cannot be used."""
    data = parts.build(node)()
    if not len(data.train):
        raise UserError(f"data {node.name} has no training pictures")
    if data.validation is not None and not len(data.validation):
        raise UserError(f"data {node.name} has an empty validation set")
    return data


def make_model(recipe: Recipe, data: Data, parts: Registry = registry) -> torch.nn.Module:
    """The recipe's network with its first weights, on the CPU: a function of the recipe's seed alone."""
    height, width, channels = data.train.shape
    torch.manual_seed(key(recipe.seed, "init") >> 1)
    model = parts.build(recipe.model)((channels, height, width), len(data.classes))
    initialize(model, parts.build(recipe.initializer))
    return model


def build(recipe: Recipe, world: World, data: Data, signals: Signals, parts: Registry = registry) -> Run:
    """The run of a settled recipe, at step 0, with nothing on disk."""
    plan = Plan.of(recipe, len(data.train))
    _distinct(recipe, plan, data, world)
    _arithmetic(recipe, world)
    with signals.at_once():
        room = budget(world)
        training = open_feed(data.train, recipe.data, world, room)
        spent = training.pictures.nbytes if training.resident else 0
        validation = open_feed(data.validation, recipe.data, world, room - spent) if data.validation is not None else None
    layout = torch.channels_last if recipe.memory_format == "channels_last" else torch.contiguous_format
    model = make_model(recipe, data, parts).to(world.device, memory_format=layout)
    inputs = make_inputs(recipe.augment, recipe.seed, recipe.memory_format, data, parts)
    average = Ema(model, recipe.ema) if recipe.ema else Plain(model)
    compiled: Callable[[torch.nn.Module], Any] = torch.compile if recipe.compile == "on" else lambda module: module
    optimizer = parts.build(recipe.optimizer)(model, recipe.schedule.lr)
    return Run(
        recipe=recipe, world=world, data=data, plan=plan, training=training, validation=validation, inputs=inputs,
        model=model, forward=compiled(world.wrap(model)), average=average, judged=compiled(average.model),
        optimizer=optimizer, scaler=world.scaler(recipe.precision),
        schedule=make_schedule(recipe.schedule, plan.total, plan.steps_per_epoch, parts),
        loss=parts.build(recipe.loss), rule=recipe.early_stopping or EarlyStopping(), signals=signals,
        record=Record(min(plan.log_every, 1000), world),
    )  # fmt: skip


def _distinct(recipe: Recipe, plan: Plan, data: Data, world: World) -> None:
    """Refuse what only the data can show to be a mistake."""
    last = len(data.train) - (plan.steps_per_epoch - 1) * recipe.batch_size
    if min(last, recipe.batch_size) < world.size:
        raise UserError(
            f"the last batch of an epoch has {last} pictures for {world.size} processes; choose another batch_size than {recipe.batch_size}"
        )
    if recipe.early_stopping and data.validation is None:
        raise UserError(f"early_stopping watches {recipe.early_stopping.monitor}, and data {recipe.data.name} has no validation pictures")


def _arithmetic(recipe: Recipe, world: World) -> None:
    if world.device.type != "cuda":
        if recipe.precision == "fp16":
            raise UserError("precision fp16 needs a GPU; write precision: auto, bf16 or fp32")
        return
    torch.backends.cudnn.benchmark = not recipe.deterministic
    # A run on a CPU is deterministic as it is; there the switch would only cost two seconds at the start.
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def closing(run: Run) -> Iterator[Run]:
    """The run, closed at the end."""
    try:
        yield run
    finally:
        run.close()
