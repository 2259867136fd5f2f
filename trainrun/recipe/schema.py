"""The whole recipe as frozen models: every field, every default, every range, in one place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from trainrun.recipe.durations import Epochs, Interval, Span, Steps
from trainrun.recipe.kinds import Options, PartNode, PartOf

Data = Annotated[PartNode, PartOf("data")]
Model = Annotated[PartNode, PartOf("model")]
Initializer = Annotated[PartNode, PartOf("initializer")]
Optimizer = Annotated[PartNode, PartOf("optimizer")]
Warmup = Annotated[PartNode, PartOf("warmup")]
Decay = Annotated[PartNode, PartOf("decay")]
Augmentation = Annotated[PartNode, PartOf("augment")]
Sampler = Annotated[PartNode, PartOf("sampler")]
Loss = Annotated[PartNode, PartOf("loss")]
Mining = Annotated[PartNode | None, PartOf("mining")]


class Per256(Options):
    """A base learning rate that follows the batch size."""

    per_256: Annotated[float, Field(gt=0, le=1e6, description="Base learning rate for a batch_size of 256.")]
    rule: Annotated[
        Literal["linear", "sqrt"], Field(description="How it follows: with batch_size / 256, or with the square root of that.")
    ] = "linear"

    def at(self, batch_size: int) -> float:
        """The base learning rate for a batch size: the linear rule is that of Goyal et al. 2017, the other that of Krizhevsky 2014."""
        ratio = batch_size / 256
        return self.per_256 * (ratio if self.rule == "linear" else ratio**0.5)


class Schedule(Options):
    """Learning rate = lr x warm-up x decay."""

    lr: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | Per256,
        Field(description="Base learning rate; or {per_256: ...}, the one for 256 pictures, which follows batch_size."),
    ]
    warmup: Annotated[Warmup, Field(description="How the learning rate rises at the start.")] = "none"  # type: ignore[assignment]  # the loader turns names into nodes
    decay: Annotated[Decay, Field(description="How the learning rate falls afterwards.")] = "constant"  # type: ignore[assignment]  # as above


class EarlyStopping(Options):
    """Stop when validation no longer improves."""

    monitor: Annotated[
        Literal["val_accuracy", "val_loss", "val_map", "val_map_50"] | None,
        Field(description="The validation figure that must improve; null is val_accuracy, for detection val_map."),
    ] = None
    patience: Annotated[int, Field(ge=1, description="Evaluations without improvement after which training stops.")] = 10
    min_delta: Annotated[float, Field(ge=0, description="An improvement counts when it is larger than this.")] = 0.0
    restore_best: Annotated[bool, Field(description="End with the best weights, also where patience never ran out.")] = True


class Ema(Options):
    """Keep and evaluate an exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1, description="Share of the old average kept at each step.")] = 0.999
    warmup: Annotated[bool, Field(description="Use min(decay, (1 + step) / (10 + step)), so that early averages follow the weights.")] = (
        True
    )


class Checkpoint(Options):
    """When the state of the run is saved, and how many of the saved states are kept."""

    every: Annotated[Interval | Literal["off"], Field(description="Time or steps between saves, or off.")] = "60s"  # type: ignore[valid-type]  # a checked type made by a function
    keep: Annotated[int, Field(ge=1, le=1000, description="How many of the latest checkpoints stay on disk.")] = 2


class Evaluate(Options):
    """When the validation set is gone through."""

    every: Annotated[Span, Field(description="Epochs or steps between evaluations; the end of training is always evaluated.")] = "1ep"  # type: ignore[valid-type]  # as above


class Log(Options):
    """What is written about the run while it goes."""

    every: Annotated[Steps, Field(description="Steps between lines in metrics.jsonl.")] = "50st"  # type: ignore[valid-type]  # as above
    tensorboard: Annotated[bool, Field(description="Also write TensorBoard event files.")] = False


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
NAME_WORDS: dict[str, Any] = {
    "errorMessage": "a name: up to 100 letters, digits, dots, dashes and underscores, the first a letter or digit"
}


class Recipe(Options):
    """One experiment."""

    name: Annotated[
        str, Field(pattern=NAME, description="Name of the experiment, and of its folder under runs/.", json_schema_extra=NAME_WORDS)
    ]
    description: Annotated[str, Field(max_length=2000, description="What the experiment is for.")] = ""
    plugins: Annotated[
        list[str], Field(description="Python files or modules with parts of your own; honoured only with --allow-plugins.")
    ] = []
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Seed of everything random in the run.")] = 0
    data: Annotated[Data, Field(description="Where the pictures and labels come from.")]
    model: Annotated[Model, Field(description="The network.")]
    initializer: Annotated[Initializer, Field(description="How weights are drawn before the first step.")] = "default"  # type: ignore[assignment]  # the loader turns names into nodes
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=1_000_000)] | Literal["full"],
        Field(description="Pictures that make one step, over all micro-batches and processes; full is the whole epoch (see micro_batch)."),
    ] = 128
    micro_batch: Annotated[
        int | None,
        Field(ge=1, description="Pictures in one forward and backward pass of one process; gradients accumulate up to batch_size."),
    ] = None
    epochs: Annotated[Epochs, Field(description="Length of the training that the schedule is made for.")]  # type: ignore[valid-type]  # a checked type made by a function
    stop_at: Annotated[Epochs | None, Field(description="Stop here, with the schedule still made for the whole of epochs.")] = None  # type: ignore[valid-type]  # as above
    optimizer: Annotated[Optimizer, Field(description="How a gradient becomes an update.")] = "sgd"  # type: ignore[assignment]  # the loader turns names into nodes
    schedule: Annotated[Schedule, Field(description="Learning rate: base, warm-up, decay.")]
    augment: Annotated[list[Augmentation], Field(description="What is done to each picture, in order.")] = []
    sampler: Annotated[Sampler, Field(description="Which pictures an epoch has, and in which order.")] = "shuffle"  # type: ignore[assignment]  # as above
    loss: Annotated[Loss, Field(description="What is minimised.")] = "cross_entropy"  # type: ignore[assignment]  # as above
    mining: Annotated[Mining, Field(description="Train on the hardest examples only.")] = None
    clip: Annotated[float | None, Field(gt=0, description="Largest norm of the whole gradient; longer ones are scaled down to it.")] = None
    ema: Annotated[Ema | None, Field(description="Moving average of the weights.")] = None
    early_stopping: Annotated[EarlyStopping | None, Field(description="Stop when validation no longer improves.")] = None
    evaluate: Annotated[Evaluate, Field(description="When the validation set is gone through.")] = Evaluate()
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="Arithmetic of the forward pass; auto is bf16 where the hardware has it, else fp32."),
    ] = "auto"
    memory_format: Annotated[
        Literal["auto", "channels_last", "contiguous"],
        Field(description="Layout of pictures in memory; auto is channels_last for convolutional networks."),
    ] = "auto"
    compile: Annotated[Literal["off", "on"], Field(description="Compile the model with torch.compile.")] = "off"
    deterministic: Annotated[bool, Field(description="Use only deterministic algorithms on a GPU; a CPU run is deterministic anyway.")] = (
        False
    )
    checkpoint: Annotated[Checkpoint, Field(description="When the state of the run is saved.")] = Checkpoint()
    log: Annotated[Log, Field(description="What is written about the run while it goes.")] = Log()

    @property
    def base_lr(self) -> float:
        """The base learning rate as a number, for this batch size where it is written per 256 pictures."""
        lr = self.schedule.lr
        if not isinstance(lr, Per256):
            return lr
        assert self.batch_size != "full", "a check of the recipe refuses it"
        return lr.at(self.batch_size)


# Fields that change how a run is carried out or described, but none of its numbers: a resume may change them.
HARMLESS = ("name", "description", "plugins", "stop_at", "checkpoint", "log", "data.resident", "data.cache", "data.workers", "data.timeout", "data.download")
