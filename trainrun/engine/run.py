"""A run as live objects: what the loop uses, and what it asks of it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trainrun.draw import visits
from trainrun.engine.average import Plain
from trainrun.engine.clock import Clock
from trainrun.engine.evaluate import evaluate
from trainrun.engine.feed import Batch, Feed
from trainrun.engine.inputs import Inputs
from trainrun.engine.keeper import Keeper
from trainrun.engine.measure import Record, culprits
from trainrun.engine.mining import KeepAll
from trainrun.engine.sampling import Sampler
from trainrun.engine.signals import Interrupted, Signals
from trainrun.engine.state import Plan, State
from trainrun.engine.tasks import Task
from trainrun.engine.teller import Silent
from trainrun.errors import NonFinite
from trainrun.parts.augmentations import Statistics
from trainrun.parts.datasets.splits import Data
from trainrun.parts.optimizers import weight_decay_factor, write_rates
from trainrun.parts.schedules import Schedule
from trainrun.recipe.schema import EarlyStopping, Recipe
from trainrun.world import World

# fp16 starts with a loss scale of 65,536 and halves it at each overflow; a sound run stays above 1.
_LEAST_SCALE = 1e-4


@dataclass
class Run:
    """A recipe as live objects: everything that the loop uses. Built by `build`, driven by `fit`, reusable for trials."""

    recipe: Recipe
    world: World
    data: Data
    plan: Plan
    sampler: Sampler
    training: Feed
    validation: Feed | None
    inputs: Inputs
    statistics: Statistics
    model: torch.nn.Module
    forward: Any  # the model as it is called in training: compiled, shared among processes, or itself
    average: Plain
    judged: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    curve: Schedule
    task: Task
    rule: EarlyStopping
    signals: Signals
    record: Record
    miner: KeepAll = field(default_factory=KeepAll)
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
        share = -(-self.plan.batch_size // self.world.size)
        return min(self.recipe.micro_batch or share, share)

    def batches(self, step: int) -> Iterator[Batch]:
        """The run's batches from `step` on, without end: this process's share of each."""
        while True:
            epoch, done = divmod(step, self.plan.steps_per_epoch)
            ids = self.sampler(epoch)
            again = visits(ids)
            times = None if again is None else self._mine(again, done)
            wholes = ids.split(self.plan.batch_size)[done:]
            fetched = self.training(self._mine(ids, done), epoch, map(len, wholes), times, training=True)
            yield from (replace(batch, everyone=whole) for batch, whole in zip(fetched, wholes, strict=True))
            step = (epoch + 1) * self.plan.steps_per_epoch

    def _mine(self, rows: torch.Tensor, done: int) -> list[torch.Tensor]:
        """This process's share of each of an epoch's batches, after those that are done."""
        return [self.world.share(piece, self.inputs.together) for piece in rows.split(self.plan.batch_size)[done:]]

    def schedule(self, step: int) -> float:
        """The learning rate of a step, made or about to be made."""
        return self.curve(step, self.state.train_errors, self.state.evaluations)

    def set_rates(self, lr: float) -> None:
        """Write the step's learning rate and weight decay into the optimizer's groups."""
        schedule = self.recipe.optimizer.options.get("weight_decay_schedule")
        write_rates(self.optimizer, lr, weight_decay_factor(schedule, self.state.step / self.plan.total))

    def seed_model_draws(self, seed: int) -> None:
        """Seed what the model itself draws (dropout and the like), at a cost of microseconds."""
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.default_generators[self.world.device.index].manual_seed(seed)

    def out_of_patience(self) -> bool:
        """Whether early stopping is on and its patience has run out."""
        return self.recipe.early_stopping is not None and self.state.waited >= self.rule.patience

    def tensors(self) -> dict[str, torch.Tensor]:
        """The floating-point tensors that a checkpoint holds, each by the name of the weight that it belongs to."""
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        kept = dict(self.model.state_dict())
        if self.average.model is not self.model:
            kept |= {f"{name} (average)": tensor for name, tensor in self.average.model.state_dict().items()}
        for parameter, moments in self.optimizer.state.items():
            kept |= {f"{names[parameter]} ({word})": m for word, m in moments.items() if torch.is_tensor(m) and m.shape == parameter.shape}
        return {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}

    def read_record(self, batch: Batch | None = None) -> None:
        """Read what the steps measured; raises NonFinite, so that no state that holds a NaN is logged, evaluated or saved."""
        found = self.record.read(self.tensors().values())
        if found is None and self.scaler.get_scale() < _LEAST_SCALE:
            found = "gradient, at every loss scale,", 0
        if found:
            what, ago = found
            sample = next(self.batches(max(self.state.step - 1, 0))) if batch is None else batch
            raise self.non_finite(what, self.state.step - ago, [sample], training=True)
        error, self.record.window.error = self.record.window.error, None
        if error is not None:
            with self._telling("the training error ends the warm-up", train_error=error):
                self.state.observe_training(error)

    def observe(self, figures: dict[str, float]) -> None:
        """Note an evaluation: for the best weights, for early stopping, and for a schedule that looks at it."""
        with self._telling("validation does not improve"):
            self.state.observe(figures, self.epoch, self.rule)

    @contextlib.contextmanager
    def _telling(self, why: str, **figures: float) -> Iterator[None]:
        """Tell of an event where what is noted within changes the learning rate of the next step, if there is one."""
        before = self.schedule(self.state.step)
        yield
        if (after := self.schedule(self.state.step)) != before and self.state.step < self.plan.total:
            self.teller.event(event="learning_rate", why=why, **figures, lr_before=before, lr_after=after)

    def validate(self) -> dict[str, float]:
        """Evaluate the weights that are kept (the average where there is one); nothing without a validation set; raises NonFinite."""
        if self.validation is None:
            return {}
        self.world.align_buffers(self.average.model)
        with self.clock.paused(), self.answering():
            figures = evaluate(
                self.judged, self.validation, self.inputs, self.task.judge(self.world), self.world, self.micro_batch_size, self.recipe.precision, self.check
            )
        if not all(map(math.isfinite, figures.values())):
            ids = torch.arange(len(self.validation)).split(self.micro_batch_size)
            raise self.non_finite("validation loss", self.state.step, self.validation(ids, 0, map(len, ids)), training=False)
        return figures

    def non_finite(self, what: str, step: int, batches: Iterable[Batch], training: bool) -> NonFinite:
        """The error that tells what was not finite after which step, at which learning rate, and the first layers that show it on `batches`."""
        model = (self.model if training else self.average.model).train(training)
        micros = (micro for batch in batches for micro in batch.split(self.recipe.micro_batch))
        passes = (functools.partial(self.task.look, model, *self.inputs(micro, training)) for micro in micros)
        layers = culprits(model, self.tensors(), passes, self.world.autocast(self.recipe.precision))
        concerned = f"; first concerned: {', '.join(layers)}" if layers else ""
        lr = self.schedule(max(step - 1, 0))
        return NonFinite(f"the {what} became NaN or infinite at step {step}, with learning rate {lr:.6g}{concerned}")

    def check(self) -> None:
        """Raise Interrupted if any process is asked to stop; called by all processes together."""
        if self.world.any(self.signals.stop is not None)[0]:
            raise Interrupted

    def answering(self) -> Any:
        """A context in which a stop interrupts at once, where no other process waits for this one: for work of unknown length."""
        return self.signals.at_once() if self.world.size == 1 else contextlib.nullcontext()

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
