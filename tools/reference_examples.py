"""An example of every part, as fields of a recipe that loads: from its docstring, from the table here, or from its options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainrun.errors import RecipeError
from trainrun.recipe import yaml
from trainrun.recipe.layers import GROUPS, PART_LISTS, PARTS
from trainrun.recipe.load import Loaded, load
from trainrun.recipe.registry import Part
from trainrun.report.catalogue import options

# Options of parts that cannot be written without, and have no value that goes without saying.
TABLE: dict[tuple[str, str], dict[str, Any]] = {
    ("data", "folder"): {"root": "pictures", "size": 224},
    ("data", "voc"): {"root": "VOCdevkit/VOC2007"},
    ("data", "photos10"): {"size": 10000, "validation_size": 2000},
    ("model", "timm/*"): {"name": "timm/resnet50d"},
    ("model", "alexnet"): {"name": "resnet18", "weights": "DEFAULT"},
    ("initializer", "constant"): {"value": 0.01},
    ("initializer", "normal"): {"std": 0.01},
    ("initializer", "uniform"): {"low": -0.05, "high": 0.05},
    ("initializer", "trunc_normal"): {"std": 0.02},
    ("initializer", "sparse"): {"sparsity": 0.9},
    ("optimizer", "sgd"): {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    ("optimizer", "adamw"): {"weight_decay": 0.05},
    ("warmup", "constant"): {"lr": 0.01, "for": "5ep"},
    ("warmup", "exponential"): {"for": "5ep", "start": 0.001},
    ("decay", "step"): {"every": "25ep", "gamma": 0.5},
    ("decay", "multistep"): {"at": ["50%", "75%"], "gamma": 0.1},
    ("decay", "exponential"): {"rate": 0.1},
    ("decay", "natural_exponential"): {"rate": 3.0},
    ("decay", "inverse_sqrt"): {"timescale": "5ep"},
    ("decay", "cosine_restarts"): {"first": "15ep", "multiplier": 2.0, "peaks": 0.8},
    ("augment", "random_resized_crop"): {"size": 48},
    ("augment", "scale_jitter"): {"size": 48, "shorter": [56, 80]},
    ("augment", "center_crop"): {"size": 48},
    ("augment", "affine"): {"degrees": 15.0, "shift": [0.1, 0.1], "scale": [0.9, 1.1], "shear": [10.0, 0.0]},
    ("augment", "grayscale"): {"p": 0.5},
    ("augment", "random_erasing"): {"p": 0.75},
    ("augment", "normalize"): {"mean": [0.5], "std": [0.25]},
    ("sampler", "weighted"): {"power": 0.5},
    ("sampler", "subset"): {"fraction": 0.1},
    ("loss", "cross_entropy"): {"label_smoothing": 0.1},
}
# Settings that a group needs before a part can stand in it.
GROUP_NEEDS: dict[tuple[str, str], Any] = {("schedule", "lr"): 0.1}
# What the examples are laid over to be tried: small real pictures, nothing that could contradict them.
GROUND = ("photos10", ["data={name: photos10, size: 1000, crop: 64}", "augment=[]", "epochs=100", "optimizer=sgd", "schedule={lr: 0.1}"])
# And what a detector, its data or its mining stand beside.
DETECTION = {"data": "data={name: voc, root: VOCdevkit/VOC2007}", "model": "model=tiny_fasterrcnn"}
_DURATION = re.compile(r"^a duration")
_IN_DOCSTRING = re.compile(r"^Example: *(.*)$", re.MULTILINE)


class NoExample(Exception):
    """A part for which an example must be written."""


def example(part: Part) -> tuple[str, Loaded]:
    """Fields of a recipe as one line of YAML, and the recipe that they make over the ground."""
    refused = ""
    beside = [words for kind, words in DETECTION.items() if part.facts.get("task") == "detection" and kind != part.kind]
    for fields in _candidates(part):
        over = [f"{key}={yaml.flow(value)}" for key, value in fields.items()]
        try:
            return "\n".join(f"{key}: {yaml.flow(value)}" for key, value in fields.items()), load(GROUND[0], [*GROUND[1], *beside, *over])
        except RecipeError as error:
            refused = refused or f" ({', '.join(over)} is refused: {error.mistakes[0].message})"
    raise wanted(part, refused)


def wanted(part: Part, why: str) -> NoExample:
    """What to write so that a part has an example."""
    required = [name for name, option in options(part).items() if option.get("required")]
    return NoExample(
        f"{part.kind} {part.name} needs an example for its reference page{why}: write a line `Example: {{name: {part.name}"
        f"{''.join(f', {name}: ...' for name in required)}}}` into its docstring, or {{field: value}} where other fields of a recipe belong to it"
    )


def without_example(manual: str) -> str:
    """A docstring without the line that holds its example, which the page shows in its own place."""
    return _IN_DOCSTRING.sub("", manual)


def _candidates(part: Part) -> Iterator[dict[str, Any]]:
    """Examples from the most telling to the barest."""
    if written := _IN_DOCSTRING.search(part.manual):
        value = yaml.read_value(written[1].strip().strip("`"))
        if not isinstance(value, Mapping):
            raise NoExample(f"{part.kind} {part.name}: the example in its docstring, {written[1]}, is no mapping")
        yield _placed(part.kind, dict(value)) if "name" in value else dict(value)
        return
    if (part.kind, part.name) in TABLE:
        yield _placed(part.kind, {"name": part.name, **TABLE[part.kind, part.name]})
        return
    required: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for name, option in options(part).items():
        if name not in part.own_options:
            continue
        if not option.get("required"):
            # What is 0, off or none by default tells nothing, and nobody writes eps.
            if option["default"] and isinstance(option["default"], (int, float, str, list)) and option["default"] is not True and name != "eps":
                optional[name] = option["default"]
        elif (value := _obvious(option)) is not None:
            required[name] = value
        else:
            return
    yield _placed(part.kind, {"name": part.name, **required, **dict(list(optional.items())[:2])})
    yield _placed(part.kind, {"name": part.name, **required})


def _obvious(option: dict[str, Any]) -> Any:
    """A value for a required option whose words leave no doubt what one looks like."""
    if _DURATION.match(option.get("expected", "")):
        return "5ep"
    if "enum" in option:
        return option["enum"][0]
    return True if option["type"] == "boolean" else None


def place(kind: str) -> str:
    """Where a part of a kind stands in a recipe, dotted."""
    found = next((".".join(map(str, at)) for at, of in PARTS.items() if of == kind), None) or next(
        (name for name, of in PART_LISTS.items() if of == kind), None
    )
    if found is None:
        raise NoExample(f"no field of a recipe takes a part of kind {kind}, so its page cannot say where it is written")
    return found


def _placed(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """The field of a recipe that holds a part."""
    part: Any = value["name"] if len(value) == 1 else value
    group, _, field = place(kind).partition(".")
    if not field:
        return {group: [part] if group in PART_LISTS else part}
    needed = {}
    for name, about in GROUPS[group].model_fields.items():
        if about.is_required():
            if (group, name) not in GROUP_NEEDS:
                raise NoExample(f"{group}.{name} is required: give GROUP_NEEDS in tools/reference_examples.py a value for it")
            needed[name] = GROUP_NEEDS[group, name]
    return {group: {**needed, field: part}}
