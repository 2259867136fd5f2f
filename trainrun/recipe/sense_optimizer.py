"""Checks of an optimizer's settings: contradictions, and what would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun.recipe.registry import PartNode
from trainrun.recipe.sense import Check, Fault, Sense


def _keeps_average(sense: Sense, node: PartNode) -> bool:
    part = sense.registry.get("optimizer", node.name)
    return part is not None and "averages" in part.facts


def _decays(node: PartNode) -> bool:
    """Whether anything under this optimizer decays, as far as the recipe tells; a plugin's optimizer may have options of its own."""
    inner = [value for value in node.options.values() if isinstance(value, PartNode)]
    own = node.options.get("weight_decay", 0 if "decay_norms_and_biases" in node.options else 1)
    return bool(own or any(rule.weight_decay for rule in node.options["groups"]) or any(map(_decays, inner)))


def averaged_once(sense: Sense) -> Iterator[Fault]:
    optimizer = sense.recipe.optimizer
    if _keeps_average(sense, optimizer) and sense.recipe.ema:
        yield "ema", f"{optimizer.name} averages the weights itself; write one of the two", None


def schedule_free_keeps_its_rate(sense: Sense) -> Iterator[Fault]:
    optimizer, decay = sense.recipe.optimizer, sense.recipe.schedule.decay
    if _keeps_average(sense, optimizer) and decay.name != "constant":
        message = f"{optimizer.name} takes the place of a decay, found {decay.name}; expected constant, with a warm-up if wanted"
        yield "schedule.decay", message, "constant"


def groups_set_something(sense: Sense) -> Iterator[Fault]:
    for n, rule in enumerate(sense.recipe.optimizer.options["groups"]):
        if rule.lr_scale is None and rule.weight_decay is None:
            yield f"optimizer.groups.{n}", "sets nothing; expected lr_scale, weight_decay or both", None
        if rule.lr_scale == 0 and rule.weight_decay is not None:
            yield f"optimizer.groups.{n}.weight_decay", "has no effect with lr_scale: 0, which freezes the parameters", None
        if rule.lr_scale == 1 and rule.weight_decay is None and n == 0:
            yield f"optimizer.groups.{n}.lr_scale", "1 is what it is without this group, so it has no effect", None


def weight_decay_is_there_to_change(sense: Sense) -> Iterator[Fault]:
    optimizer = sense.recipe.optimizer
    schedule = optimizer.options["weight_decay_schedule"]
    if schedule and not _decays(optimizer):
        yield "optimizer.weight_decay_schedule", "has no effect without weight decay", None
    elif schedule and schedule.end == 1:
        yield "optimizer.weight_decay_schedule.end", "with 1 the weight decay never changes, so it has no effect", None


def decay_options_have_decay(sense: Sense) -> Iterator[Fault]:
    optimizer = sense.recipe.optimizer
    for option in ("decay_norms_and_biases", "decoupled_weight_decay"):
        if optimizer.options.get(option) and not _decays(optimizer) and sense.wrote("optimizer", option):
            yield f"optimizer.{option}", "has no effect without weight decay", None


def second_suits_muon(sense: Sense) -> Iterator[Fault]:
    for option, inner in sense.recipe.optimizer.options.items():
        if not isinstance(inner, PartNode) or inner.kind != "optimizer":
            continue
        at = f"optimizer.{option}"
        if _keeps_average(sense, inner):
            yield at, f"{inner.name} keeps an average of all weights, which it cannot do for a part of them", None
        if any(isinstance(value, PartNode) for value in inner.options.values()):
            yield at, f"{inner.name} has a second optimizer in turn; expected one for all other parameters", None
        for common in ("groups", "weight_decay_schedule"):
            if inner.options[common]:
                yield f"{at}.{common}", f"has no effect here; write it as optimizer.{common}, which both optimizers go by", None


def nesterov_has_momentum(sense: Sense) -> Iterator[Fault]:
    options = sense.recipe.optimizer.options
    if options.get("nesterov") is True and options.get("momentum") == 0:
        yield "optimizer.nesterov", "has no effect with momentum: 0", None


def nesterov_without_dampening(sense: Sense) -> Iterator[Fault]:
    options = sense.recipe.optimizer.options
    if options.get("nesterov") is True and options.get("momentum") and options.get("dampening"):
        yield "optimizer.dampening", "nesterov momentum has no dampening; write dampening: 0", None


def dampening_has_momentum(sense: Sense) -> Iterator[Fault]:
    options = sense.recipe.optimizer.options
    if options.get("dampening") and options.get("momentum") == 0:
        yield "optimizer.dampening", "has no effect with momentum: 0", None


OPTIMIZER_CHECKS: tuple[Check, ...] = (
    nesterov_has_momentum,
    nesterov_without_dampening,
    dampening_has_momentum,
    averaged_once,
    schedule_free_keeps_its_rate,
    groups_set_something,
    weight_decay_is_there_to_change,
    decay_options_have_decay,
    second_suits_muon,
)
