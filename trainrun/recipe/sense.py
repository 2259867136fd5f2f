"""Settings that contradict each other, or that would have no effect: small checks on a recipe that is valid field by field."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from trainrun.recipe.batches import pieces, without_single
from trainrun.recipe.durations import Duration
from trainrun.recipe.layers import Source, default_part, part_kind
from trainrun.recipe.registry import PartNode, Registry
from trainrun.recipe.schema import Recipe
from trainrun.recipe.sense_augment import AUGMENT_CHECKS
from trainrun.recipe.sense_detection import DETECTION_CHECKS
from trainrun.recipe.sense_initializer import INITIALIZER_CHECKS
from trainrun.recipe.sense_mining import MINING_CHECKS
from trainrun.recipe.sense_optimizer import OPTIMIZER_CHECKS
from trainrun.recipe.yaml import Keys

Fault = tuple[str, str, str | None]  # dotted path, message, suggestion


@dataclass(frozen=True)
class Sense:
    """What a check looks at: the recipe, where its values come from, and the registry's facts."""

    recipe: Recipe
    sources: Mapping[Keys, Source]
    registry: Registry

    def wrote(self, *at: str | int) -> bool:
        """Whether the person asked for this value: written in the recipe, or in an override.

        A resolved recipe has everything written out, so there only what differs from its default counts.
        What an extended file sets is meant for many recipes and need not have an effect in each.
        """
        source = self.sources.get(at)
        if source is None or source.kind not in ("file", "override"):
            return False
        if source.kind == "override" or not self.complete:
            return True
        value = self.value(at)
        return (str(value) if isinstance(value, Duration) else value) != self.default(at)

    @property
    def complete(self) -> bool:
        """Whether every field is written, as in the recipe that a run directory holds; one that is off without a word may be newer than the run."""
        return all((name,) in self.sources for name, field in Recipe.model_fields.items() if field.default is not None)

    def value(self, at: Keys) -> Any:
        """The value at a path."""
        value: Any = self.recipe
        for key in at:
            value = value[key] if isinstance(key, int) else getattr(value, key)
        return value

    def default(self, at: Keys) -> Any:
        """The default at a path, as the schema or the part's signature writes it."""
        holder = self.value(at[:-1])
        if isinstance(holder, PartNode):
            part = self.registry.get(holder.kind, holder.name)
            if at[-1] == "name" or part is None:
                return default_part(at[:-1])
            return part.options.model_fields[str(at[-1])].default
        default = type(holder).model_fields[str(at[-1])].default
        return str(default) if part_kind(at) else default

    def short_trial(self) -> bool:
        """Whether the length was cut down for a quick look, which may leave milestones beyond the end."""
        source = self.sources.get(("epochs",))
        return self.complete or source is None or source.kind == "override"


Check = Callable[[Sense], Iterator[Fault]]


class _Unknown(Exception):
    """A check asked for a field that has a mistake of its own."""


class _Known:
    """A recipe of which some fields cannot be asked for."""

    def __init__(self, recipe: Recipe, unknown: frozenset[str]) -> None:
        self._recipe, self._unknown = recipe, unknown

    def __getattr__(self, name: str) -> Any:
        if name in self._unknown:
            raise _Unknown(name)
        return getattr(self._recipe, name)


def contradictions(
    recipe: Recipe, sources: Mapping[Keys, Source], registry: Registry, more: Iterable[Check] = (), unknown: frozenset[str] = frozenset()
) -> list[Fault]:
    """Every fault that a check finds, those of `more` included, in the order of the checks; one that needs any of the `unknown` fields is left out."""
    sense = Sense(cast(Recipe, _Known(recipe, unknown)) if unknown else recipe, sources, registry)
    faults: list[Fault] = []
    for check in (*CHECKS, *more):
        with contextlib.suppress(_Unknown):
            faults.extend(check(sense))
    return faults


def longer(a: Duration | None, b: Duration, or_equal: bool = True) -> bool:
    """Whether `a` is the longer of two lengths that can be compared without knowing the data."""
    return a is not None and a.unit == b.unit and (a.value > b.value or (or_equal and a.value == b.value))


def micro_batch_fits(sense: Sense) -> Iterator[Fault]:
    batch, micro = sense.recipe.batch_size, sense.recipe.micro_batch
    if micro is not None and batch != "full" and micro > batch:
        yield "micro_batch", f"{micro} is larger than batch_size, {batch}", None


def stop_at_stops(sense: Sense) -> Iterator[Fault]:
    if longer(sense.recipe.stop_at, sense.recipe.epochs):
        yield "stop_at", f"{sense.recipe.stop_at} is no earlier than the end, epochs: {sense.recipe.epochs}, so it has no effect", None


def checkpoint_keep_counts(sense: Sense) -> Iterator[Fault]:
    if sense.recipe.checkpoint.every == "off" and sense.wrote("checkpoint", "keep"):
        yield "checkpoint.keep", "has no effect with checkpoint.every: off", None


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


def no_validation(sense: Sense) -> str | None:
    """Why the recipe's data has no validation samples, if that is known before it is read."""
    data = sense.recipe.data
    part = sense.registry.get("data", data.name)
    if part and part.facts.get("validation", True) is False:
        return f"{data.name} has no validation samples"
    for option in ("validation", "validation_size"):
        value = data.options.get(option)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0:
            return f"data.{option} is 0"
    return None


def early_stopping_has_validation(sense: Sense) -> Iterator[Fault]:
    if sense.recipe.early_stopping and (reason := no_validation(sense)):
        yield "early_stopping", f"needs validation samples, but {reason}", None


def evaluation_has_validation(sense: Sense) -> Iterator[Fault]:
    if (reason := no_validation(sense)) and sense.wrote("evaluate", "every"):
        yield "evaluate.every", f"has no effect: {reason}", None


def early_stopping_can_stop(sense: Sense) -> Iterator[Fault]:
    stopping, every, epochs = sense.recipe.early_stopping, sense.recipe.evaluate.every, sense.recipe.epochs
    if stopping and not stopping.restore_best and not sense.short_trial() and every.unit == epochs.unit and no_validation(sense) is None:
        evaluations = epochs.value / every.value
        if stopping.patience >= evaluations:
            yield "early_stopping.patience", f"{stopping.patience} evaluations never pass in {epochs} with one each {every}", None


def multistep_has_one_rule(sense: Sense) -> Iterator[Fault]:
    decay = sense.recipe.schedule.decay
    if decay.options.get("values") is not None and sense.wrote("schedule", "decay", "gamma"):
        yield "schedule.decay.gamma", "has no effect where values are given; write one of the two", None


def multistep_values_match(sense: Sense) -> Iterator[Fault]:
    options = sense.recipe.schedule.decay.options
    at, values = options.get("at"), options.get("values")
    if isinstance(at, list) and isinstance(values, list) and len(at) != len(values):
        yield "schedule.decay.values", f"found {len(values)}; expected one for each of the {len(at)} milestones in at", None


def milestones_rise(sense: Sense) -> Iterator[Fault]:
    milestones = sense.recipe.schedule.decay.options.get("at")
    for n, (before, after) in enumerate(_pairs(milestones)):
        if longer(before, after):
            yield f"schedule.decay.at.{n + 1}", f"{after} does not come after {before}; milestones must rise", None


def milestones_are_reached(sense: Sense) -> Iterator[Fault]:
    milestones = sense.recipe.schedule.decay.options.get("at")
    if not sense.short_trial():
        for n, milestone in enumerate(milestones if isinstance(milestones, list) else []):
            if longer(milestone, sense.recipe.epochs) or str(milestone) == "100%":
                yield f"schedule.decay.at.{n}", f"{milestone} is never reached, epochs: {sense.recipe.epochs}, so it has no effect", None


def _pairs(milestones: Any) -> Iterator[tuple[Duration, Duration]]:
    return itertools.pairwise(milestones) if isinstance(milestones, list) else iter(())


def warmup_ends(sense: Sense) -> Iterator[Fault]:
    length = sense.recipe.schedule.warmup.options.get("for")
    if isinstance(length, Duration) and not sense.short_trial() and longer(length, sense.recipe.epochs, or_equal=False):
        yield "schedule.warmup.for", f"{length} is longer than the training, epochs: {sense.recipe.epochs}", None


def timeout_has_workers(sense: Sense) -> Iterator[Fault]:
    if sense.recipe.data.options.get("workers") == 0 and sense.wrote("data", "timeout"):
        yield "data.timeout", "has no effect with workers: 0", None


def split_seed_splits(sense: Sense) -> Iterator[Fault]:
    data = sense.recipe.data
    if sense.wrote("data", "split_seed") and data.options.get("validation", 1) is None:
        yield "data.split_seed", "has no effect without data.validation, the fraction that it holds out", None


def normalize_once(sense: Sense) -> Iterator[Fault]:
    places = [n for n, node in enumerate(sense.recipe.augment) if node.name == "normalize"]
    for n in places[1:]:
        yield f"augment.{n}", f"normalizes a second time, after augment.{places[0]}", None


def ranges_rise(sense: Sense) -> Iterator[Fault]:
    for n, node in enumerate(sense.recipe.augment):
        part = sense.registry.get(node.kind, node.name)
        for option in ("scale", "aspect", "angles", "shorter") if part and part.facts.get("geometry") else ():
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


def _fact(sense: Sense, node: PartNode, name: str) -> Any:
    """What a part says of itself, or None."""
    part = sense.registry.get(node.kind, node.name)
    return part.facts.get(name) if part else None


def _training_pictures(sense: Sense) -> int | None:
    """How many training pictures there are, if that is known before the data is read."""
    pictures = _fact(sense, sense.recipe.data, "pictures")
    return pictures(sense.recipe.data.options) if pictures and sense.recipe.data.options.get("imbalance") is None else None


def last_batch_has_statistics(sense: Sense) -> Iterator[Fault]:
    model, sampler, batch, pictures = sense.recipe.model, sense.recipe.sampler, sense.recipe.batch_size, _training_pictures(sense)
    batch_norm, length = _fact(sense, model, "batch_norm"), _fact(sense, sampler, "length")
    if batch == "full" or batch == 1 or pictures is None or not length or not batch_norm or not batch_norm(model.options):
        return
    if sense.recipe.mining and _fact(sense, sense.recipe.mining, "offline"):  # then an epoch is as long as the set that it begins with
        return
    samples = length(sampler.options, pictures)
    if 1 in pieces(samples, batch):
        left = f"{samples} pictures an epoch in batches of {batch} leave 1 for the last, too few for the batch norm of {model.name}"
        fix = without_single(samples, batch)
        yield "batch_size", f"{left}; write another batch_size, or a model without batch norm", str(fix["batch_size"]) if fix else None


def subset_has_a_size(sense: Sense) -> Iterator[Fault]:
    sampler = sense.recipe.sampler
    if sampler.name == "subset" and (sampler.fraction is None) == (sampler.count is None):
        wrote = "found neither" if sampler.count is None else "found both"
        yield "sampler", f"{wrote}; expected fraction or count, one of the two", None


def subset_is_smaller(sense: Sense) -> Iterator[Fault]:
    sampler, pictures = sense.recipe.sampler, _training_pictures(sense)
    if sampler.name == "subset" and sampler.count is not None and pictures is not None and sampler.count >= pictures:
        yield "sampler.count", f"{sampler.count} is no part of the {pictures} training pictures; write a smaller one, or sampler: shuffle", None


def weighted_has_weights(sense: Sense) -> Iterator[Fault]:
    sampler = sense.recipe.sampler
    if sampler.name == "weighted" and not sampler.weights and sampler.power == 1:
        yield "sampler", "weighted without weights and with power: 1 prefers no class; write weights or another power, or sampler: shuffle", None


def imbalance_seed_chooses(sense: Sense) -> Iterator[Fault]:
    if sense.wrote("data", "imbalance_seed") and sense.recipe.data.options.get("imbalance") is None:
        yield "data.imbalance_seed", "has no effect without data.imbalance", None


def label_noise_seed_chooses(sense: Sense) -> Iterator[Fault]:
    if sense.wrote("data", "label_noise_seed") and sense.recipe.data.options.get("label_noise") is None:
        yield "data.label_noise_seed", "has no effect without data.label_noise", None


def plugins_once(sense: Sense) -> Iterator[Fault]:
    first = {entry: n for n, entry in reversed(list(enumerate(sense.recipe.plugins)))}
    for n, entry in enumerate(sense.recipe.plugins):
        if first[entry] < n:
            yield f"plugins.{n}", "is listed twice", None


CHECKS: tuple[Check, ...] = (
    micro_batch_fits,
    stop_at_stops,
    checkpoint_keep_counts,
    nesterov_has_momentum,
    nesterov_without_dampening,
    dampening_has_momentum,
    early_stopping_has_validation,
    evaluation_has_validation,
    early_stopping_can_stop,
    multistep_has_one_rule,
    multistep_values_match,
    milestones_rise,
    milestones_are_reached,
    warmup_ends,
    timeout_has_workers,
    split_seed_splits,
    normalize_once,
    ranges_rise,
    crops_fit,
    augmentations_act,
    last_batch_has_statistics,
    subset_has_a_size,
    subset_is_smaller,
    weighted_has_weights,
    imbalance_seed_chooses,
    label_noise_seed_chooses,
    plugins_once,
    *AUGMENT_CHECKS,
    *OPTIMIZER_CHECKS,
    *INITIALIZER_CHECKS,
    *MINING_CHECKS,
    *DETECTION_CHECKS,
)
