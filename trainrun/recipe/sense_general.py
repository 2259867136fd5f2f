"""Settings of the run as a whole, of data and samplers, that contradict each other or would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun.recipe.batches import pieces, without_single
from trainrun.recipe.sense import Check, Fault, Sense, longer


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


def timeout_has_workers(sense: Sense) -> Iterator[Fault]:
    if sense.recipe.data.options.get("workers") == 0 and sense.wrote("data", "timeout"):
        yield "data.timeout", "has no effect with workers: 0", None


def split_seed_splits(sense: Sense) -> Iterator[Fault]:
    data = sense.recipe.data
    if sense.wrote("data", "split_seed") and data.options.get("validation", 1) is None:
        yield "data.split_seed", "has no effect without data.validation, the fraction that it holds out", None


def last_batch_has_statistics(sense: Sense) -> Iterator[Fault]:
    model, batch, samples = sense.recipe.model, sense.recipe.batch_size, sense.samples
    batch_norm = sense.fact(model, "batch_norm")
    if batch == "full" or batch == 1 or samples is None or not batch_norm or not batch_norm(model.options):
        return
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
    sampler, pictures = sense.recipe.sampler, sense.pictures
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


GENERAL_CHECKS: tuple[Check, ...] = (
    micro_batch_fits,
    stop_at_stops,
    checkpoint_keep_counts,
    early_stopping_has_validation,
    evaluation_has_validation,
    early_stopping_can_stop,
    timeout_has_workers,
    split_seed_splits,
    last_batch_has_statistics,
    subset_has_a_size,
    subset_is_smaller,
    weighted_has_weights,
    imbalance_seed_chooses,
    label_noise_seed_chooses,
    plugins_once,
)
