"""Settings of mining that contradict each other or the rest of the recipe, or that would have no effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainrun.recipe.durations import Duration
from trainrun.recipe.sense import Check, Fault, Sense


def _mining(sense: Sense, name: str = "ohem") -> dict[str, Any] | None:
    """The options of the recipe's mining, if it is the one of this name."""
    mining = sense.recipe.mining
    return dict(mining.options) if mining is not None and mining.name == name else None


def _later(a: Duration | None, b: Duration) -> Duration | None:
    """The moment that comes `b` after `a`, or after the beginning; None where they are counted otherwise."""
    return b if a is None else Duration(a.value + b.value, a.unit) if a.unit == b.unit else None


def keep_or_ratio(sense: Sense) -> Iterator[Fault]:
    options = _mining(sense)
    if options and (options["keep"] is None) == (options["ratio"] is None):
        found = "found neither" if options["keep"] is None else "found both"
        yield "mining", f"{found}; expected keep (a share or number of the pictures) or ratio (negatives to a positive), one of the two", None


def pictures_are_whole(sense: Sense) -> Iterator[Fault]:
    mining = sense.recipe.mining
    part = mining and sense.registry.get("mining", mining.name)
    if part and part.facts.get("task") == "classification" and not part.facts.get("offline"):
        for node in sense.recipe.augment:
            mixes = sense.registry.get(node.kind, node.name)
            if mixes and mixes.facts.get("mixes"):
                yield "mining", f"{part.name} chooses pictures by their losses, and {node.name} mixes them; leave out one of the two", None
                return


def something_is_kept(sense: Sense) -> Iterator[Fault]:
    options, batch = _mining(sense), sense.recipe.batch_size
    if not options or batch == "full":
        return
    keep = options["keep"]
    if batch == 1:
        yield "mining", "has no effect with batch_size: 1, where there is nothing to choose from", None
    elif isinstance(keep, float) and options["within"] == "all" and keep * batch < 0.5:
        yield "mining.keep", f"{keep:g} of batch_size, {batch}, is no picture; expected at least {_rounded_up(0.5 / batch)}", None
    elif isinstance(keep, int) and keep >= batch:
        yield "mining.keep", f"{keep} is no part of batch_size, {batch}; write a smaller one, or keep: 1.0 to keep all", None


def _rounded_up(share: float) -> str:
    """A share with two digits, and no less than it was."""
    digits = 1 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:.{digits}f}".rstrip("0")


def one_pass_sees_the_batch(sense: Sense) -> Iterator[Fault]:
    options, micro, batch = _mining(sense), sense.recipe.micro_batch, sense.recipe.batch_size
    if options and options["passes"] == 1 and micro is not None and (batch == "full" or micro < batch):
        yield "mining.passes", f"1 needs the whole batch in one pass, and micro_batch is {micro}; write passes: 2, or leave out micro_batch", None


def negatives_have_a_class(sense: Sense) -> Iterator[Fault]:
    if not (options := _mining(sense)):
        return
    within, always, ratio = options["within"], options["always_keep"], options["ratio"]
    if within != "all" and always:
        why = "the positives stay anyway" if within == "negatives" else "classes compete by themselves; write within: negatives"
        yield "mining.always_keep", f"has no effect with within: {within}: {why}", None
    if ratio is not None and within != "negatives" and not (always and within == "all"):
        yield "mining.ratio", "needs positives that stay; write always_keep: positives", None
    needs = "within" if within == "negatives" else "always_keep" if always else None
    if needs and options["negative_class"] is None:
        yield f"mining.{needs}", f"{options[needs]} needs negative_class, the name of the class that is the background", None
    if not needs and options["negative_class"] is not None:
        yield "mining.negative_class", "has no effect without within: negatives or always_keep: positives", None


def mining_has_its_time(sense: Sense) -> Iterator[Fault]:
    if not (options := _mining(sense)):
        return
    start, end, ramp, whole = options["start"], options["end"], options["ramp"], sense.recipe.epochs
    if end is not None and sense.longer(start, end):
        yield "mining.end", f"{end} does not come after start, {start}", None
    elif end is not None and ramp is not None and sense.longer(_later(start, ramp), end, or_equal=False):
        yield "mining.ramp", f"{ramp} after {start or 'the beginning'} is longer than until end, {end}", None
    elif ramp is not None and not sense.short_trial() and sense.longer(_later(start, ramp), whole, or_equal=False):
        yield "mining.ramp", f"{ramp} after {start or 'the beginning'} is longer than the training, epochs: {whole}", None
    if not sense.short_trial():
        for name, moment in (("start", start), ("end", end)):
            if sense.longer(moment, whole) or str(moment) == "100%":
                yield f"mining.{name}", f"{moment} is never reached, epochs: {whole}, so it has no effect", None


def rounds_end_in_time(sense: Sense) -> Iterator[Fault]:
    if not (options := _mining(sense, "rounds")):
        return
    every, rounds, whole = options["every"], options["rounds"], sense.recipe.epochs
    if every.value != int(every.value):
        yield "mining.every", f"{every} is no whole number of epochs, at whose end the pictures of the next are chosen", None
    elif not sense.short_trial():
        last = Duration(rounds * every.value, "ep")
        if sense.longer(last, whole):
            when = f"round {rounds} comes after {last}" + (f", {every} each" if rounds > 1 else "")
            yield "mining.rounds", f"{when}, and epochs: {whole} leave nothing to train on what it adds", None


def rounds_choose_the_pictures(sense: Sense) -> Iterator[Fault]:
    if _mining(sense, "rounds") and sense.recipe.sampler.name != "shuffle":
        yield "sampler", f"{sense.recipe.sampler.name} has no effect: mining rounds says which pictures an epoch has; expected shuffle", "shuffle"


def rounds_choose_from_a_pool(sense: Sense) -> Iterator[Fault]:
    options = _mining(sense, "rounds") or {}
    if options.get("pool") is not None and _alike(options["pool"], options["add"]) and _number(options["pool"]) <= _number(options["add"]):
        yield "mining.pool", f"{options['pool']} is no more than add, {options['add']}, so that nothing is chosen", None


def _alike(a: Any, b: Any) -> bool:
    """Whether two amounts are counted alike."""
    return type(a) is type(b)


def _number(amount: Any) -> float:
    return float(str(amount).removesuffix("x"))


MINING_CHECKS: tuple[Check, ...] = (
    keep_or_ratio,
    pictures_are_whole,
    something_is_kept,
    one_pass_sees_the_batch,
    negatives_have_a_class,
    mining_has_its_time,
    rounds_end_in_time,
    rounds_choose_the_pictures,
    rounds_choose_from_a_pool,
)
