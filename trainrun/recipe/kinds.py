"""The kinds of part a recipe can name, and the options that every part of a kind takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """A closed, frozen set of options: an unknown one is a mistake, no value is coerced into another type, no number is NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False, protected_namespaces=())


class DataOptions(Options):
    """What every data set takes besides its own options: how its pictures reach the device."""

    resident: Annotated[
        Literal["auto", "yes", "no"],
        Field(description="Hold the decoded pictures on the device; auto does where they fill at most half of its free memory."),
    ] = "auto"
    cache: Annotated[bool, Field(description="Keep decoded pictures on disk, so that the next start need not decode.")] = True
    workers: Annotated[
        int | None, Field(ge=0, le=256, description="Processes that decode; by default the usable cores, shared by a machine's processes, at most 8.")
    ] = None
    timeout: Annotated[float, Field(gt=0, description="Seconds without a batch after which a worker counts as stuck.")] = 120.0
    imbalance: Annotated[
        float | None,
        Field(gt=1, le=1e6, description="Thin out the training classes, from the first to the last, until that one has so many times fewer pictures."),
    ] = None
    imbalance_seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another number keeps other pictures.")] = 0


class ParameterGroup(Options):
    """A rule over parameter names; where several match, the last one that gives a setting has the say on it."""

    match: Annotated[str, Field(min_length=1, max_length=200, description="Parameter names, as a glob: fc.* or *.bias.")]
    lr_scale: Annotated[float | None, Field(ge=0, le=1e6, description="Factor of the learning rate; 0 freezes the parameters.")] = None
    weight_decay: Annotated[
        float | None, Field(ge=0, description="Weight decay of those that decay at all: norms and biases are spared here too.")
    ] = None


class WeightDecaySchedule(Options):
    """How the weight decay changes over the training, from the optimizer's own to `end` times that."""

    name: Annotated[Literal["linear", "cosine"], Field(description="In a straight line, or along half a cosine.")]
    end: Annotated[float, Field(ge=0, le=1e6, description="Factor that the weight decay has come to at the end.")] = 0.0


_GROUPS = "a list of mappings with match (a glob over parameter names), lr_scale and weight_decay"
_DECAYING = "a mapping with name (linear or cosine) and end"


class OptimizerOptions(Options):
    """What every optimizer takes besides its own options: which parameters it treats otherwise, and how its decay changes."""

    groups: Annotated[
        list[ParameterGroup],
        Field(description="Parameters with a learning rate or decay of their own; later ones win.", json_schema_extra={"errorMessage": _GROUPS}),
    ] = []
    weight_decay_schedule: Annotated[
        WeightDecaySchedule | None,
        Field(description="How the weight decay changes from the run's start to its end.", json_schema_extra={"errorMessage": _DECAYING}),
    ] = None


@dataclass(frozen=True)
class Kind:
    """A kind of part: what it is, in one line, and the options all its parts share."""

    summary: str
    common: type[Options] = Options


KINDS: dict[str, Kind] = {
    "data": Kind("where the pictures and labels come from", DataOptions),
    "model": Kind("the network"),
    "initializer": Kind("how weights are drawn before the first step"),
    "optimizer": Kind("how a gradient becomes an update", OptimizerOptions),
    "warmup": Kind("how the learning rate rises at the start"),
    "decay": Kind("how the learning rate falls afterwards"),
    "augment": Kind("what is done to each picture before the network sees it"),
    "sampler": Kind("which pictures an epoch has, and in which order"),
    "loss": Kind("what is minimised"),
}
