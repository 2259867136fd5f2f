"""The kinds of part a recipe can name, and the options that every part of a kind takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema


class Options(BaseModel):
    """A closed, frozen set of options: an unknown one is a mistake, no value is coerced into another type, no number is NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True)
class PartNode:
    """A part as a resolved recipe names it: kind, name and every option with its value."""

    kind: str
    name: str
    options: Mapping[str, Any]

    def __getattr__(self, option: str) -> Any:
        try:
            return self.__dict__["options"][option]
        except KeyError:
            raise AttributeError(option) from None


@dataclass(frozen=True)
class PartOf:
    """Marks a field that names a part of `kind`; the loader turns what the person wrote into a PartNode first.

    A `bare` one takes the part's own options without those that all of its kind take. A field that may be None says so in its type.
    """

    kind: str
    bare: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema = core_schema.is_instance_schema(PartNode)
        return core_schema.nullable_schema(schema) if type(None) in get_args(source) else schema

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        named = {"x-part": self.kind, **({"x-bare": True} if self.bare else {})}  # jsonschema.py puts the parts in its place
        return {"anyOf": [named, {"type": "null"}]} if schema["type"] == "nullable" else named


class DataOptions(Options):
    """What every data set takes besides its own options: how its pictures reach the device, what is asked of them, and what is spoilt on purpose."""

    resident: Annotated[
        Literal["auto", "yes", "no"],
        Field(description="Hold the decoded pictures on the device; auto does where they fill at most half of its free memory."),
    ] = "auto"
    cache: Annotated[bool, Field(description="Keep decoded pictures on disk, so that the next start need not decode.")] = True
    workers: Annotated[
        int | None, Field(ge=0, le=256, description="Processes that decode; by default the usable cores, shared by a machine's processes, at most 8.")
    ] = None
    cut: Annotated[
        Literal["auto", "worker", "device"],
        Field(
            description="Where a crop to one size that stands first in augment is made: by the worker, from the decoded picture, or on the device, "
            "together with what follows it; auto is worker where pictures differ in size."
        ),
    ] = "auto"
    timeout: Annotated[float, Field(gt=0, description="Seconds without a batch after which a worker counts as stuck.")] = 120.0
    one_against_rest: Annotated[
        str | None,
        Field(
            min_length=1, description="Name of a class: it becomes the second of two classes, and all others together become the first, called rest.",
            json_schema_extra={"errorMessage": "the name of a class, in quotes where it is a number"},
        ),
    ] = None  # fmt: skip
    imbalance: Annotated[
        float | None,
        Field(gt=1, le=1e6, description="Thin out the training classes, from the first to the last, until that one has so many times fewer pictures."),
    ] = None
    imbalance_seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another number keeps other pictures.")] = 0
    label_noise: Annotated[
        float | None, Field(gt=0, lt=1, description="Share of the training pictures that get a wrong label, any other class being as likely.")
    ] = None
    label_noise_seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another number gives other pictures wrong labels.")] = 0


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


Filling = Annotated[PartNode | None, PartOf("initializer", bare=True)]


class InitializerRule(Options):
    """A rule over parameter names; where several match, the last one that speaks of a parameter has the say on it."""

    match: Annotated[str, Field(min_length=1, max_length=200, description="Parameter names, as a glob: fc.* or *.bias.")]
    weights: Annotated[Filling, Field(description="How the weights that match are drawn.")] = None
    biases: Annotated[Filling, Field(description="How the biases that match are drawn.")] = None


_RULES = "a list of mappings with match (a glob over parameter names), weights and biases (names of initializers)"


class InitializerOptions(Options):
    """What every initializer takes besides its own options: how biases are drawn, what is drawn otherwise, and which branches begin silent."""

    biases: Annotated[
        Filling,
        Field(description="How biases are drawn; null is zeros, or as the network drew them under default and whitening."),
    ] = None
    rules: Annotated[
        list[InitializerRule],
        Field(description="Parameters that are drawn otherwise; later ones win.", json_schema_extra={"errorMessage": _RULES}),
    ] = []
    zero_init_residual: Annotated[
        bool, Field(description="Begin with each residual branch at zero: the weight that closes it, of a norm if one does, is zero.")
    ] = False


@dataclass(frozen=True)
class Kind:
    """A kind of part: what it is, in one line, and the options all its parts share."""

    summary: str
    common: type[Options] = Options


KINDS: dict[str, Kind] = {
    "data": Kind("where the pictures and labels come from", DataOptions),
    "model": Kind("the network"),
    "initializer": Kind("how weights are drawn before the first step", InitializerOptions),
    "optimizer": Kind("how a gradient becomes an update", OptimizerOptions),
    "warmup": Kind("how the learning rate rises at the start"),
    "decay": Kind("how the learning rate falls afterwards"),
    "augment": Kind("what is done to each picture before the network sees it"),
    "sampler": Kind("which pictures an epoch has, and in which order"),
    "loss": Kind("what is minimised"),
    "mining": Kind("which examples are trained on"),
}
