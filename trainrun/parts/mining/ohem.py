"""Online hard example mining: of each batch the hardest pictures, as numbers known beforehand and an order known afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.classes import label_of
from trainrun.recipe.durations import Duration, Span
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


_KEEP = "a share greater than 0 and at most 1, or a number of pictures from 2 on"

_CLASS = "the name of a class, in quotes where it is a number"


@dataclass(frozen=True)
class Quotas:
    """How many of some pictures are kept, which no loss has a say in.

    groups: int64 [n], the group in which each picture competes, from 0. kept: int64 [groups], how many of each group are kept.
    always: bool [n], the pictures that win in any case.
    """

    groups: np.ndarray
    kept: np.ndarray
    always: np.ndarray


@dataclass(frozen=True)
class Ohem:
    """A choice of the hardest pictures of a batch, as functions of the batch's labels, losses and logits.

    keep: a share in (0, 1], a number of pictures, or None where `ratio` says it. negative: the label of the negative class, or None.
    """

    keep: float | int | None
    start: Duration | None
    end: Duration | None
    ramp: Duration | None
    passes: int
    by: str
    within: str
    always_keep: str | None
    ratio: float | None
    scope: str
    negative: int | None

    def strength(self, step: int, steps_per_epoch: int, total: int) -> float:
        """How far the choice has come at a step: 0 where all are kept, 1 where `keep` holds, between them on the ramp."""
        start, end, ramp = (0 if d is None else d.steps(steps_per_epoch, total) for d in (self.start, self.end, self.ramp))
        if step < start or (self.end is not None and step >= end):
            return 0.0
        return min((step - start) / ramp, 1.0) if ramp else 1.0

    def quotas(self, labels: np.ndarray, strength: float) -> Quotas:
        """The numbers for pictures with these labels, int64 [n], of which at least one is kept.

        Of a pool of m pictures floor(m + strength (target - m) + 1/2) are kept, but at least one.
        """
        import numpy as np

        nobody = np.zeros(len(labels), bool)
        positive = nobody if self.negative is None else labels != self.negative
        positives = int(positive.sum())
        if self.within == "class":
            _, groups, sizes = np.unique(labels, return_inverse=True, return_counts=True)
            return Quotas(groups, np.array([self._kept(int(n), strength) for n in sizes]), nobody)
        if self.within == "all" and self.ratio is None:
            kept = max(self._kept(len(labels), strength), positives if self.always_keep else 0)
            return Quotas(np.zeros(len(labels), np.int64), np.array([kept]), positive if self.always_keep else nobody)
        negatives = len(labels) - positives
        kept = self._kept(negatives, strength, None if self.ratio is None else self.ratio * positives)
        if not positives:
            kept = max(kept, 1)
        return Quotas((~positive).astype(np.int64), np.array([positives, kept]), positive)

    def _kept(self, pool: int, strength: float, target: float | None = None) -> int:
        """How many of a pool stay: as many as `target`, or else as `keep` says and at least one."""
        least = min(pool, 1) if target is None else 0
        if target is None:
            assert self.keep is not None
            target = self.keep * pool if isinstance(self.keep, float) else self.keep
        return max(math.floor(pool + strength * (min(target, pool) - pool) + 0.5), least)

    def hardness(self, logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """How hard each picture is, float32 [n], from logits [n, classes], labels [n] and losses [n]: the loss, or minus the margin."""
        if self.by == "loss":
            return losses.float()
        logits, right = logits.float(), labels[:, None]
        return logits.scatter(1, right, -math.inf).amax(1) - logits.gather(1, right)[:, 0]


def hardest(hardness: Tensor, groups: Tensor, starts: Tensor, kept: Tensor, sections: Tensor, picks: Tensor) -> Tensor:
    """The places of the hardest, int64 [k] in rising order: of each group its `kept`, and beyond these the next hardest of all.

    hardness: float [n], NaN counts as hardest; of equals the one that comes first is taken first. groups: int64 [n], from 0 in any order;
    starts: int64 [groups], how many pictures stand in the groups before each. sections: int64 [n], rising, the parts of the batch that are
    chosen from apart. picks: int64 [k], where the chosen stand once each section has those of its groups first, hardest first.
    """
    import torch

    falling = torch.argsort(hardness, descending=True, stable=True)
    together = falling[torch.argsort(groups[falling], stable=True)]
    which = groups[together]
    beaten = torch.arange(len(hardness), device=hardness.device) - starts[which] >= kept[which]
    left = torch.empty_like(groups).scatter_(0, together, beaten.long())
    order = falling[torch.argsort((2 * sections + left)[falling], stable=True)]
    return order[picks].sort().values


@part("mining", task="classification")
def ohem(
    classes: Sequence[str],
    *,
    keep: Annotated[
        Annotated[int, Field(ge=2, le=1_000_000)] | Annotated[float, Field(gt=0, le=1)] | None,
        Field(description="Share of the pictures that are trained on, or their number; or give ratio.", json_schema_extra={"errorMessage": _KEEP}),
    ] = None,
    start: Annotated[Span | None, Field(description="Train on all pictures until then.")] = None,  # type: ignore[valid-type]  # a checked type made by a function
    end: Annotated[Span | None, Field(description="Train on all pictures again from then on.")] = None,  # type: ignore[valid-type]  # as above
    ramp: Annotated[Span | None, Field(description="How long, from start on, the number kept falls in a straight line from all.")] = None,  # type: ignore[valid-type]  # as above
    passes: Annotated[
        Literal[1, 2],
        Field(description="2 looks at the batch first and takes the kept ones through the network again; 1 leaves out losses of a single pass."),
    ] = 2,
    by: Annotated[
        Literal["loss", "margin"], Field(description="What is hard: a large loss, or a class whose logit exceeds that of the label by much.")
    ] = "loss",
    within: Annotated[
        Literal["all", "negatives", "class"],
        Field(description="Who competes: all pictures, those of the negative class (the others stay), or those of each class by themselves."),
    ] = "all",
    always_keep: Annotated[
        Literal["positives"] | None,
        Field(description="Keep all pictures of other classes than the negative one; they count as kept.", json_schema_extra={"errorMessage": "positives"}),
    ] = None,
    negative_class: Annotated[
        str | None,
        Field(min_length=1, description="Name of the class that is the background of the others.", json_schema_extra={"errorMessage": _CLASS}),
    ] = None,
    ratio: Annotated[
        float | None, Field(gt=0, le=1e6, description="So many negatives are kept to each positive, in place of keep.")
    ] = None,
    scope: Annotated[
        Literal["global", "rank"],
        Field(description="Where several processes share a batch: choose from all of it and share it out anew, or each from its own part."),
    ] = "global",
) -> Ohem:
    """Train on the hardest pictures of each batch only.

    The loss of a step is the mean over the pictures kept. Which ones is decided by their losses (or margins) under the weights of that
    moment, as in training: augmented, with batch statistics and dropout. Ties go to the picture that comes first in the batch. How many
    are kept follows from the labels alone: of n pictures floor(keep n + 1/2), in each class or among the negatives as `within` says.
    `train_loss` and `train_accuracy` stay those of all pictures; `mining_kept`, `mining_loss` and `mining_threshold` tell what is picked.
    Errors (UserError): the data has no pictures of negative_class.
    Source: Shrivastava, Gupta & Girshick 2016, Training Region-based Object Detectors with Online Hard Example Mining (there for regions);
    Loshchilov & Hutter 2015, Online Batch Selection for Faster Training of Neural Networks; Simo-Serra et al. 2015, Discriminative Learning
    of Deep Convolutional Feature Point Descriptors.
    Example: {name: ohem, keep: 0.5, start: 5ep}
    """
    negative = None if negative_class is None else label_of("mining.negative_class", negative_class, classes)
    return Ohem(keep, start, end, ramp, passes, by, within, always_keep, ratio, scope, negative)
