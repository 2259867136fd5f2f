"""Checks of an initializer's settings: contradictions, and what would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun.recipe.registry import PartNode
from trainrun.recipe.sense import Check, Fault, Sense

Place = tuple[str | int, ...]


def _inner(sense: Sense) -> Iterator[tuple[Place, PartNode]]:
    """What the initializer names in turn, each by its path."""
    node = sense.recipe.initializer
    if node.options.get("biases"):
        yield ("initializer", "biases"), node.biases
    for n, rule in enumerate(node.options.get("rules", ())):
        for option in ("weights", "biases"):
            if chosen := getattr(rule, option):
                yield ("initializer", "rules", n, option), chosen


def _every(sense: Sense) -> Iterator[tuple[Place, PartNode]]:
    yield ("initializer",), sense.recipe.initializer
    yield from _inner(sense)


def _path(*at: str | int) -> str:
    return ".".join(map(str, at))


def pretrained_weights_stay(sense: Sense) -> Iterator[Fault]:
    node, model = sense.recipe.initializer, sense.recipe.model.options
    weights = next((f"model.{option}: {model[option]}" for option in ("weights", "backbone_weights") if model.get(option) is not None), None)
    if weights is None:
        return
    if node.name != "default":
        yield "initializer", f"{node.name} would overwrite {weights}; write one of the two", None
        return
    for option in ("biases", "zero_init_residual"):
        if node.options.get(option):
            yield f"initializer.{option}", f"would overwrite what {weights} has; write rules for what is new, as a head", None
    for n, rule in enumerate(node.options.get("rules", ())):
        if not rule.match.strip("*"):
            yield f"initializer.rules.{n}.match", f"{rule.match!r} is everything that {weights} has; name what is new, as fc.*", None


def rules_set_something(sense: Sense) -> Iterator[Fault]:
    for n, rule in enumerate(sense.recipe.initializer.options.get("rules", ())):
        if rule.weights is None and rule.biases is None:
            yield f"initializer.rules.{n}", "sets nothing; expected weights, biases or both", None


def data_is_seen_by_the_whole(sense: Sense) -> Iterator[Fault]:
    for at, node in _inner(sense):
        if sense.fact(node, "data"):
            yield _path(*at), f"{node.name} looks at data through the whole network; write it as initializer.name", None


def biases_have_no_fans(sense: Sense) -> Iterator[Fault]:
    for at, node in _inner(sense):
        if at[-1] == "biases" and sense.fact(node, "matrix"):
            alone = ", ".join(name for name in sense.registry.names("initializer") if _suits_biases(sense, name))
            yield _path(*at), f"{node.name} goes by a weight's inputs and outputs, which a bias does not have; expected one of {alone}", None


def _suits_biases(sense: Sense, name: str) -> bool:
    part = sense.registry.get("initializer", name)
    return part is not None and not part.facts.get("matrix") and not part.facts.get("data")


def biases_change(sense: Sense) -> Iterator[Fault]:
    node = sense.recipe.initializer
    if sense.fact(node, "keeps") and node.options.get("biases") and node.biases.name == "default":
        yield "initializer.biases", f"{node.name} leaves biases as the network drew them anyhow, so this has no effect", None


def slope_is_used(sense: Sense) -> Iterator[Fault]:
    for at, node in _every(sense):
        nonlinearity = node.options.get("nonlinearity", "leaky_relu")
        if nonlinearity != "leaky_relu" and sense.wrote(*at, "slope"):
            yield _path(*at, "slope"), f"has no effect with nonlinearity: {nonlinearity}", None


def uniform_has_room(sense: Sense) -> Iterator[Fault]:
    for at, node in _every(sense):
        if node.name == "uniform" and node.low >= node.high:
            yield _path(*at, "high"), f"{node.high:g} is not above low, {node.low:g}", None


INITIALIZER_CHECKS: tuple[Check, ...] = (
    pretrained_weights_stay,
    rules_set_something,
    data_is_seen_by_the_whole,
    biases_have_no_fans,
    biases_change,
    slope_is_used,
    uniform_has_room,
)
