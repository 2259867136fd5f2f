"""Augmentations that contradict each other, that come in an order that cannot be, or that would have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from trainrun.recipe.sense import Check, Fault, Sense


def _with(sense: Sense, fact: str) -> list[int]:
    """The places of augmentations that have a fact."""
    return [n for n, node in enumerate(sense.recipe.augment) if sense.fact(node, fact)]


def levels_before_normalize(sense: Sense) -> Iterator[Fault]:
    names = [node.name for node in sense.recipe.augment]
    if "normalize" in names:
        first = names.index("normalize")
        for n in _with(sense, "levels"):
            if n > first:
                what = f"{names[n]} works on levels 0..255, which normalize, augment.{first}, has scaled; put it before"
                yield f"augment.{n}", what, None


def mixing_comes_last(sense: Sense) -> Iterator[Fault]:
    names = [node.name for node in sense.recipe.augment]
    mixing = _with(sense, "mixes")
    for n in mixing[:1]:
        after = [name for m, name in enumerate(names) if m > n and m not in mixing]
        if after:
            yield f"augment.{n}", f"{names[n]} mixes what the network sees, and must come last, after {', '.join(after)}", None


def mixing_is_one(sense: Sense) -> Iterator[Fault]:
    names = [node.name for node in sense.recipe.augment]
    mixing = _with(sense, "mixes")
    for n in mixing[1:]:
        first, both = names[mixing[0]], {names[mixing[0]], names[n]} == {"mixup", "cutmix"}
        what = "; write mixup_or_cutmix, which draws one of the two for each picture" if both else ""
        yield f"augment.{n}", f"{names[n]} would mix what {first}, augment.{mixing[0]}, has mixed already{what}", None


def mixing_has_partners(sense: Sense) -> Iterator[Fault]:
    recipe = sense.recipe
    for n in _with(sense, "mixes")[:1]:
        name, micro = recipe.augment[n].name, recipe.micro_batch
        if recipe.batch_size == 1:
            yield f"augment.{n}", f"{name} has no effect with batch_size: 1, where no picture has a partner", None
        elif micro is not None and micro % 2 and (recipe.batch_size == "full" or micro < recipe.batch_size):
            yield "micro_batch", f"{micro} is odd and would part a pair that {name} mixes; expected an even number", None


def jitter_changes_something(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        if node.name == "color_jitter" and not any(node.options.get(name) for name in ("brightness", "contrast", "saturation", "hue")):
            yield f"augment.{n}", "color_jitter has no effect: brightness, contrast, saturation and hue are all 0", None


def components_are_whole(sense: Sense) -> Iterator[Fault]:
    names = ("eigenvalues", "eigenvectors")
    for n, node in enumerate(sense.recipe.augment):
        if node.name == "pca_jitter":
            missing = [name for name in names if node.options.get(name) is None]
            if len(missing) == 1:
                given = names[1 - names.index(missing[0])]
                yield f"augment.{n}.{given}", f"has no effect without {missing[0]}; write both, or none to have them measured", None


def limits_rise(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        for option in ("sigma", "scale", "ratio") if sense.fact(node, "levels") else ():
            limits = node.options.get(option)
            if isinstance(limits, list):
                for low, high in pairwise(limits):
                    if low > high:
                        yield f"augment.{n}.{option}", f"{low} to {high} is no range; expected the smaller number first", None


def cut_has_a_crop(sense: Sense) -> Iterator[Fault]:
    options, nodes = sense.recipe.data.options, sense.recipe.augment
    if options.get("cut") == "worker" and 0 not in _with(sense, "cuts"):
        crops = ", ".join(name for name in sense.registry.names("augment") if (part := sense.registry.get("augment", name)) and part.facts.get("cuts"))
        first = f"begins with {nodes[0].name}" if nodes else "is empty"
        yield "data.cut", f"worker has no effect, because augment {first}; expected one of {crops} there, or cut: auto", None
    elif options.get("cut") == "worker" and options.get("resident") == "yes":
        yield "data.resident", "yes contradicts data.cut: worker, which cuts other pieces out of the pictures in every epoch; expected auto or no", None


def normalize_once(sense: Sense) -> Iterator[Fault]:
    places = [n for n, node in enumerate(sense.recipe.augment) if node.name == "normalize"]
    for n in places[1:]:
        yield f"augment.{n}", f"normalizes a second time, after augment.{places[0]}", None


def statistics_are_of_unit_range(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        levels = node.name == "normalize" and max(node.mean or [0]) > 1  # a large std alone may be meant to make small numbers
        for option in ("mean", "std") if levels else ():
            for m, value in enumerate(node.options[option] or ()):
                if value > 1:
                    what = f"{value:g} is of levels 0..255, and pictures are divided by 255 first; expected a number from 0 to 1"
                    yield f"augment.{n}.{option}.{m}", what, f"{value / 255:.3g}" if value <= 255 else None


def crops_show_the_picture(sense: Sense) -> Iterator[Fault]:
    shape = sense.fact(sense.recipe.data, "shape")
    size = shape and shape(sense.recipe.data.options)
    for n, node in enumerate(sense.recipe.augment):
        if sense.fact(node, "cuts"):
            return
        if size and node.name == "random_crop" and node.padding >= min(size[:2]):
            side = f"pictures of {size[0]} x {size[1]} pixels"
            yield f"augment.{n}.padding", f"{node.padding} is as much as {side} are wide, so that crops may miss the picture; write a smaller one", None


def ranges_rise(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        for option in ("scale", "aspect", "angles", "shorter") if sense.fact(node, "geometry") else ():
            ends = node.options.get(option)
            if isinstance(ends, list) and len(ends) == 2 and ends[0] > ends[1]:
                yield f"augment.{n}.{option}", f"{ends[0]} is larger than {ends[1]}; write the least first", None


def crops_fit(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        size, shorter = node.options.get("size"), node.options.get("shorter")
        if node.name == "scale_jitter" and isinstance(size, int) and isinstance(shorter, list) and min(shorter) < size:
            yield f"augment.{n}.shorter", f"a shorter side of {min(shorter)} pixels has no crop of {size}; write at least the size", None


def augmentations_act(sense: Sense) -> Iterator[Fault]:
    nodes = sense.recipe.augment
    for n, node in enumerate(nodes):
        options = node.options
        if node.name == "shift" and options["x"] == options["y"] == 0:
            yield f"augment.{n}", "has no effect with x: 0 and y: 0", None
        if node.name == "random_scale" and options["scale"] == [1, 1]:
            yield f"augment.{n}.scale", "has no effect with [1, 1]", None
        if node.name == "affine" and options["degrees"] == 0 and options["scale"] == [1, 1] and not any((*options["shift"], *options["shear"])):
            yield f"augment.{n}", "has no effect without degrees, shift, scale or shear", None
        if node.name == "alternating_flip" and any(other.name == "horizontal_flip" for other in nodes):
            yield f"augment.{n}", "has no effect beside horizontal_flip, which mirrors at random; write one of the two", None


AUGMENT_CHECKS: tuple[Check, ...] = (
    cut_has_a_crop,
    levels_before_normalize,
    mixing_comes_last,
    mixing_is_one,
    mixing_has_partners,
    jitter_changes_something,
    components_are_whole,
    limits_rise,
    normalize_once,
    statistics_are_of_unit_range,
    crops_show_the_picture,
    ranges_rise,
    crops_fit,
    augmentations_act,
)
