"""Settings of warm-ups and decays that contradict each other, or that would have no effect."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from trainrun.recipe.durations import Duration
from trainrun.recipe.schema import Per256
from trainrun.recipe.sense import Check, Fault, Sense
from trainrun.recipe.sense_detection import MONITORS, task
from trainrun.recipe.sense_general import no_validation

# Decays that come to an end, by the option that says when: beyond the training, that end is never seen.
_ENDING = ("cosine", "linear_cosine", "noisy_linear_cosine", "polynomial", "linear", "one_cycle", "triangular")


def _decay(sense: Sense, *names: str) -> dict[str, Any] | None:
    """The options of the recipe's decay, if it is one of these."""
    decay = sense.recipe.schedule.decay
    return dict(decay.options) if decay.name in names else None


def _warmup(sense: Sense, *names: str) -> dict[str, Any] | None:
    warmup = sense.recipe.schedule.warmup
    return dict(warmup.options) if warmup.name in names else None


def _never(sense: Sense, length: Duration | None, or_equal: bool = True) -> bool:
    """Whether the training is known to end before this length does; a length that is not given is all of the training."""
    return or_equal if length is None else not sense.short_trial() and sense.longer(length, sense.recipe.epochs, or_equal)


def _not_below_the_base(sense: Sense, rate: float) -> bool:
    """Whether a rate is no lower than the base one, as far as that is known. An override of the base one is a trial of another, and leaves the rest as it was written."""
    source = sense.sources.get(("schedule", "lr"))
    known = not isinstance(sense.recipe.schedule.lr, Per256) or sense.recipe.batch_size != "full"
    return known and rate >= sense.recipe.base_lr and (source is None or source.kind != "override")


def per_256_has_a_batch(sense: Sense) -> Iterator[Fault]:
    if isinstance(sense.recipe.schedule.lr, Per256) and sense.recipe.batch_size == "full":
        yield "schedule.lr", "per_256 needs a batch_size in pictures, found full; write the learning rate itself", None


def constant_warmup_ends(sense: Sense) -> Iterator[Fault]:
    if (options := _warmup(sense, "constant")) is None:
        return
    if options["for"] is None and options["until_train_error"] is None:
        yield "schedule.warmup", "constant has no end; write for: a duration, or until_train_error: 0.8", None
    if options["for"] is not None and options["until_train_error"] is not None:
        yield "schedule.warmup.for", "has no effect where until_train_error is given; write one of the two", None
    if options["until_train_error"] is None and sense.wrote("schedule", "warmup", "over"):
        yield "schedule.warmup.over", "has no effect without until_train_error, the error that is measured over it", None
    if options["until_train_error"] is not None and _never(sense, options["over"]):
        yield "schedule.warmup.over", f"{options['over']} never pass before the end, epochs: {sense.recipe.epochs}", None


def warmup_is_lower(sense: Sense) -> Iterator[Fault]:
    for part, option in (("constant", "lr"), ("gradual", "start"), ("exponential", "start")):
        options = _warmup(sense, part)
        if options and _not_below_the_base(sense, options[option]):
            yield f"schedule.warmup.{option}", f"{options[option]:g} is no lower than schedule.lr, {sense.recipe.base_lr:g}", None


def rises_once(sense: Sense) -> Iterator[Fault]:
    warmup, decay = sense.recipe.schedule.warmup.name, sense.recipe.schedule.decay
    rises = decay.name == "one_cycle" or decay.options.get("rise") is not None or (decay.name == "triangular" and decay.options["peak"] > 0)
    if rises and decay.name in ("one_cycle", "trapezoid", "triangular") and warmup != "none":
        mend = ", or leave out schedule.decay.rise" if decay.name == "trapezoid" else ""
        yield "schedule.warmup", f"{warmup} comes before {decay.name}, which rises by itself; write warmup: none{mend}", None


def decay_ends(sense: Sense) -> Iterator[Fault]:
    options = _decay(sense, *_ENDING)
    if options and _never(sense, options["steps"], or_equal=False):
        yield "schedule.decay.steps", f"{options['steps']} is longer than the training, epochs: {sense.recipe.epochs}", None


def drops_come(sense: Sense) -> Iterator[Fault]:
    training = f"the training ends before, epochs: {sense.recipe.epochs}"
    if (options := _decay(sense, "step")) and _never(sense, options["every"]):
        yield "schedule.decay.every", f"{options['every']} brings no drop: {training}", None
    if (options := _decay(sense, "cosine_restarts")) and _never(sense, options["first"]):
        yield "schedule.decay.first", f"{options['first']} brings no restart: {training}", None
    for option in ("staircase", "cycle"):
        options = _decay(sense, "exponential", "natural_exponential", "polynomial")
        if options and options.get(option) and _never(sense, options["steps"]):
            steps = options["steps"]
            why = f": {steps} is no shorter than the training" if steps else " without steps: the span is all of the training"
            yield f"schedule.decay.{option}", f"has no effect{why}, epochs: {sense.recipe.epochs}", None


def decay_falls(sense: Sense) -> Iterator[Fault]:
    for part, option in (("polynomial", "end"), ("plateau", "min_lr")):
        options = _decay(sense, part)
        if options and _not_below_the_base(sense, options[option]):
            yield f"schedule.decay.{option}", f"{options[option]:g} is no lower than schedule.lr, {sense.recipe.base_lr:g}", None


def decay_changes_the_rate(sense: Sense) -> Iterator[Fault]:
    for part, option in (("step", "gamma"), ("multistep", "gamma"), ("linear", "alpha"), ("cosine", "alpha")):
        options = _decay(sense, part)
        if options and options[option] == 1 and options.get("values") is None:
            yield f"schedule.decay.{option}", "with 1 the learning rate never changes; write decay: constant", None


def _more_than(sense: Sense, rise: Duration, fall: Duration, whole: Duration) -> bool:
    """Whether two lengths are known to be more than the whole together."""
    if rise.unit == fall.unit and fall.unit in ("%", whole.unit):
        return rise.value + fall.value > (100 if fall.unit == "%" else whole.value)
    up, down, room = map(sense.steps, (rise, fall, whole))
    return up is not None and down is not None and room is not None and up + down > room


def peaks_find_room(sense: Sense) -> Iterator[Fault]:
    whole = sense.recipe.epochs
    if (options := _decay(sense, "one_cycle")) and sense.longer(options["rise"], options["steps"] or whole):
        yield "schedule.decay.rise", f"{options['rise']} leaves no room for a fall in {options['steps'] or whole}", None
    if options := _decay(sense, "trapezoid"):
        rise, fall = options["rise"] or sense.recipe.schedule.warmup.options.get("for"), options["fall"]
        if isinstance(rise, Duration) and _more_than(sense, rise, fall, whole):
            yield "schedule.decay.fall", f"{fall} after a rise of {rise} is more than the training, epochs: {whole}", None
        if not sense.short_trial() and sense.longer(fall, whole, or_equal=False):
            yield "schedule.decay.fall", f"{fall} is longer than the training, epochs: {whole}", None


def shapes_are_used(sense: Sense) -> Iterator[Fault]:
    def idle(option: str, why: str) -> Iterator[Fault]:
        if sense.wrote("schedule", "decay", option):
            yield f"schedule.decay.{option}", f"has no effect {why}", None

    if (options := _decay(sense, "trapezoid")) and options["rise"] is None:
        yield from idle("initial", "without rise")
    if options := _decay(sense, "triangular"):
        if options["peak"] == 0:
            yield from idle("initial", "with peak: 0, which leaves no rise")
        if options["peak"] == 1:
            yield from idle("alpha", "with peak: 1, which leaves no fall")
        if options["steps"] is None:
            yield from idle("gamma", "without steps: there is one triangle")
    if (options := _decay(sense, "noisy_linear_cosine")) and options["initial_variance"] == 0:
        yield from idle("variance_decay", "with initial_variance: 0")


def inverse_sqrt_has_a_scale(sense: Sense) -> Iterator[Fault]:
    if (options := _decay(sense, "inverse_sqrt")) and options["timescale"] is None and sense.recipe.schedule.warmup.name == "none":
        yield "schedule.decay", "inverse_sqrt takes its timescale from the warm-up, and there is none; write timescale: a duration", None


def plateau_can_come(sense: Sense) -> Iterator[Fault]:
    recipe = sense.recipe
    if (options := _decay(sense, "plateau")) is None:
        return
    if reason := no_validation(sense):
        yield "schedule.decay", f"plateau needs validation samples, but {reason}", None
        return
    stopping, patience, every = recipe.early_stopping, options["patience"], recipe.evaluate.every
    if stopping and (stopping.monitor or MONITORS[task(sense)][0]) == options["monitor"] and stopping.patience <= patience and stopping.min_delta >= options["min_delta"]:
        message = f"early_stopping.patience, {stopping.patience}, ends the training no later than the first reduction would come"
        yield "schedule.decay.patience", f"{patience} has no effect: {message}", None
    elif not sense.short_trial() and every.unit == recipe.epochs.unit and patience + 1 >= recipe.epochs.value / every.value:
        yield "schedule.decay.patience", f"{patience} evaluations never pass in {recipe.epochs} with one each {every}", None


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
        if sense.longer(before, after):
            yield f"schedule.decay.at.{n + 1}", f"{after} does not come after {before}; milestones must rise", None


def milestones_are_reached(sense: Sense) -> Iterator[Fault]:
    milestones = sense.recipe.schedule.decay.options.get("at")
    if not sense.short_trial():
        for n, milestone in enumerate(milestones if isinstance(milestones, list) else []):
            if sense.longer(milestone, sense.recipe.epochs) or str(milestone) == "100%":
                yield f"schedule.decay.at.{n}", f"{milestone} is never reached, epochs: {sense.recipe.epochs}, so it has no effect", None


def _pairs(milestones: Any) -> Iterator[tuple[Duration, Duration]]:
    return itertools.pairwise(milestones) if isinstance(milestones, list) else iter(())


def warmup_ends(sense: Sense) -> Iterator[Fault]:
    length = sense.recipe.schedule.warmup.options.get("for")
    if isinstance(length, Duration) and not sense.short_trial() and sense.longer(length, sense.recipe.epochs, or_equal=False):
        yield "schedule.warmup.for", f"{length} is longer than the training, epochs: {sense.recipe.epochs}", None


def spans_have_steps(sense: Sense) -> Iterator[Fault]:
    for option, value in sense.recipe.schedule.decay.options.items():
        if isinstance(value, Duration) and not sense.short_trial() and sense.steps(value) == 0:
            yield f"schedule.decay.{option}", f"{value} is less than a step: an epoch has {sense.steps_per_epoch}", None


SCHEDULE_CHECKS: tuple[Check, ...] = (
    multistep_has_one_rule,
    multistep_values_match,
    milestones_rise,
    milestones_are_reached,
    warmup_ends,
    per_256_has_a_batch,
    constant_warmup_ends,
    warmup_is_lower,
    rises_once,
    decay_ends,
    drops_come,
    decay_falls,
    decay_changes_the_rate,
    peaks_find_room,
    shapes_are_used,
    inverse_sqrt_has_a_scale,
    plateau_can_come,
    spans_have_steps,
)
