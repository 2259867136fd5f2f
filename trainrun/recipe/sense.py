"""What the checks of a recipe look at, and what they find: settings that contradict each other, or that would have no effect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from trainrun.recipe.durations import Duration
from trainrun.recipe.layers import Source, default_part, part_kind
from trainrun.recipe.registry import PartNode, Registry
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Keys

Fault = tuple[str, str, str | None]  # dotted path, message, suggestion


@dataclass(frozen=True)
class Sense:
    """What a check looks at: the recipe, where its values come from, and the registry's facts."""

    recipe: Recipe
    sources: Mapping[Keys, Source]
    registry: Registry
    measured: int | None = None  # steps of an epoch, where the data is at hand

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

    def fact(self, node: PartNode, name: str, default: Any = None) -> Any:
        """What the part of a node says of itself, or the default."""
        part = self.registry.get(node.kind, node.name)
        return part.facts.get(name, default) if part else default

    @property
    def pictures(self) -> int | None:
        """How many training pictures there are, if that is known before the data is read."""
        pictures = self.fact(self.recipe.data, "pictures")
        return pictures(self.recipe.data.options) if pictures and self.recipe.data.options.get("imbalance") is None else None

    @property
    def samples(self) -> int | None:
        """How many pictures an epoch has, if that is known before the data is read."""
        pictures, length, mining = self.pictures, self.fact(self.recipe.sampler, "length"), self.recipe.mining
        if pictures is None or not length or (mining and self.fact(mining, "offline")):  # then an epoch is as long as the set that it begins with
            return None
        return length(self.recipe.sampler.options, pictures)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch, if they are known."""
        if self.measured is not None:
            return self.measured
        with contextlib.suppress(_Unknown):
            batch, samples = self.recipe.batch_size, self.samples
            return None if samples is None else 1 if batch == "full" else -(-samples // batch)
        return None

    def steps(self, length: Duration) -> int | None:
        """A length in steps, if it is known how many that are."""
        per_epoch, whole = self.steps_per_epoch, self.recipe.epochs
        if per_epoch is None:
            return None
        total = max(whole.steps(per_epoch), 1)
        return total if length == whole else length.steps(per_epoch, total)

    def longer(self, a: Duration | None, b: Duration, or_equal: bool = True) -> bool:
        """Whether `a` is known to be the longer of two lengths: they are counted alike, or it is known how many steps each has."""
        if a is None or a.unit == b.unit:
            return longer(a, b, or_equal)
        if any(source and source.kind == "override" for source in map(self.sources.get, (("data", "name"), ("stop_at",)))):
            return False  # a quick look, or other data, on which steps and epochs are in another ratio
        x, y = self.steps(a), self.steps(b)
        return x is not None and y is not None and (x > y or (or_equal and x == y))


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
    recipe: Recipe, sources: Mapping[Keys, Source], registry: Registry, checks: Iterable[Check], unknown: frozenset[str] = frozenset(), measured: int | None = None
) -> list[Fault]:
    """Every fault that a check finds, in the order of the checks; one that needs any of the `unknown` fields is left out.

    measured: the steps of an epoch, where the data is at hand.
    """
    sense = Sense(cast(Recipe, _Known(recipe, unknown)) if unknown else recipe, sources, registry, measured)
    faults: list[Fault] = []
    for check in checks:
        with contextlib.suppress(_Unknown):
            faults.extend(check(sense))
    return faults


def longer(a: Duration | None, b: Duration, or_equal: bool = True) -> bool:
    """Whether `a` is the longer of two lengths that are counted alike."""
    return a is not None and a.unit == b.unit and (a.value > b.value or (or_equal and a.value == b.value))
