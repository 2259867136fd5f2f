"""Offline hard negative mining: the negatives that a training begins with, and those that each of its rounds adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.draw import order
from trainrun.errors import UserError
from trainrun.recipe.classes import label_of
from trainrun.recipe.durations import Duration, WholeEpochs
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor

_WORDS = "so many times the positives (1x, 0.5x), a number of pictures from 2 on, or a share of the negatives greater than 0 and at most 1"
_TIMES = r"^(0\.[0-9]{0,5}[1-9]|[1-9][0-9]{0,5}(\.[0-9]{1,6})?)x$"
_CLASS = "the name of a class, in quotes where it is a number"

Amount = Annotated[str, Field(pattern=_TIMES)] | Annotated[int, Field(ge=2, le=10**9)] | Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Sizes:
    """How many pictures are active when, which is known before the first of them is scored.

    first: negatives at the start. pools, added: of each round, how many negatives are scored and how many of them become active.
    """

    positives: int
    first: int
    pools: tuple[int, ...]
    added: tuple[int, ...]

    @property
    def active(self) -> list[int]:
        """Active pictures at the start and after each round."""
        return [self.positives + self.first + sum(self.added[:n]) for n in range(len(self.added) + 1)]


@dataclass(frozen=True)
class Rounds:
    """A start with some negatives, and rounds that add the worst of the others: all as functions of labels, seed and scores.

    negative: the label of the negative class. every: epochs between rounds.
    """

    negative: int
    rounds: int
    every: int
    start_with: str | int | float
    add: str | int | float
    pool: str | int | float | None
    pick: str

    def sizes(self, positives: int, negatives: int) -> Sizes:
        """The sizes for so many training pictures; raises UserError, beginning with the field, where they leave a round nothing to do."""
        if not positives:
            raise UserError("mining.negative_class: all training pictures are of this class, so that none is positive")
        first, add = (self._count(name, positives, negatives) for name in ("start_with", "add"))
        if first >= negatives:
            have = f"{first:,} negatives, and the data has {negatives:,}"
            raise UserError(f"mining.start_with: {self.start_with} is {have}, so that none is left to mine; write less, or mining: null")
        left, pools, added = negatives - first, [], []
        if add >= left:
            raise UserError(f"mining.add: {self.add} is {add:,} negatives, and {left:,} are left after the start, so that nothing is chosen; write less")
        most = left if self.pool is None else self._count("pool", positives, negatives)
        if most <= add:
            raise UserError(f"mining.pool: {self.pool} is {most:,} negatives, of which mining.add takes {add:,}, so that nothing is chosen; write more")
        for number in range(1, self.rounds + 1):
            if not left:
                raise UserError(f"mining.rounds: all {negatives:,} negatives are active after round {number - 1}; write rounds: {number - 1}, or a smaller add")
            pools.append(min(most, left))
            added.append(min(add, left))
            left -= added[-1]
        return Sizes(positives, first, tuple(pools), tuple(added))

    def _count(self, name: str, positives: int, negatives: int) -> int:
        """How many pictures an amount comes to: half a picture counts as one."""
        given = getattr(self, name)
        if isinstance(given, int):
            return given
        count = math.floor((float(given[:-1]) * positives if isinstance(given, str) else given * negatives) + 0.5)
        if not count:
            of = f"{positives:,} positives" if isinstance(given, str) else f"{negatives:,} negatives"
            raise UserError(f"mining.{name}: {given} of {of} is no picture; write more")
        return count

    def begin(self, negatives: Tensor, count: int, seed: int) -> Tensor:
        """The ids of the negatives that are active from the start, int64 [count] in rising order: a random choice of `negatives`."""
        return negatives[order(seed, 0, len(negatives), "first negatives")[:count]].sort().values

    def draw(self, left: Tensor, count: int, seed: int, number: int) -> Tensor:
        """The ids that a round scores, int64 [count] in rising order: a random choice of those that are `left`, or all of them."""
        return left if count == len(left) else left[order(seed, number, len(left), "pool")[:count]].sort().values

    def choose(self, scores: Tensor, count: int, seed: int, number: int) -> Tensor:
        """The places of those that a round adds, int64 [count], the highest score first, of equals the one that comes first; or random ones."""
        import torch

        if self.pick == "worst":
            return torch.argsort(scores, descending=True, stable=True)[:count]
        places = order(seed, number, len(scores), "control")[:count].sort().values
        return places[torch.argsort(scores[places], descending=True, stable=True)]


@part("mining", task="classification", offline=True)
def rounds(
    classes: Sequence[str],
    *,
    negative_class: Annotated[
        str, Field(min_length=1, description="Name of the class that is the background of the others.", json_schema_extra={"errorMessage": _CLASS})
    ],
    rounds: Annotated[int, Field(ge=1, le=1000, description="How often the pool is scored and negatives are added.")] = 3,
    every: Annotated[WholeEpochs, Field(description="Epochs before the first round, and from one to the next.")] = "5ep",  # type: ignore[valid-type]  # a checked type made by a function
    start_with: Annotated[
        Amount, Field(description="Negatives that are active from the start, chosen at random.", json_schema_extra={"errorMessage": _WORDS})
    ] = "1x",
    add: Annotated[Amount, Field(description="Negatives that a round adds.", json_schema_extra={"errorMessage": _WORDS})] = "0.5x",
    pool: Annotated[
        Amount | None,
        Field(description="Negatives that a round scores, chosen at random from those not active; null is all of them.", json_schema_extra={"errorMessage": _WORDS}),
    ] = None,
    pick: Annotated[
        Literal["worst", "random"],
        Field(description="Add those that look most like a positive; or random ones, as many, to see what mining is worth."),
    ] = "worst",
) -> Rounds:
    """Train on all positives and a growing part of the negatives: from time to time the worst false positives are added.

    The start is a random choice of negatives. At the end of every `every` epochs the network is frozen and scores the negatives that are not
    active, in evaluation mode and without augmentation; the score is the largest logit of a positive class less that of the negative
    one, which is above 0 for a false positive. The highest scores become active, of equals the picture that comes first.
    An epoch has as many pictures as are active at the start. So the length of the run is known before it, and a run that mines makes as many
    steps as one that adds random negatives. The active set is gone through again and again, each time in an order of its own.
    An amount is `0.5x` (so many times the positives), a number of pictures, or a share of all negatives; half a picture counts as one.
    Errors (UserError): no pictures of negative_class or of any other, and amounts that leave a round nothing to choose from.
    Source: Sung & Poggio 1998, Example-Based Learning for View-Based Human Face Detection (the bootstrap); Dalal & Triggs 2005, Histograms of
    Oriented Gradients for Human Detection; Felzenszwalb et al. 2010, Object Detection with Discriminatively Trained Part-Based Models.
    Example: {name: rounds, negative_class: "0", rounds: 3, every: 5ep}
    """
    assert isinstance(every, Duration)
    return Rounds(label_of("mining.negative_class", negative_class, classes), rounds, int(every.value), start_with, add, pool, pick)
