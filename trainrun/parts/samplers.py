"""Samplers: which pictures an epoch has and in which order, as pure functions of (labels, classes, seed, epoch).

labels: int64 [N], of all training pictures, on the CPU; classes: their names. Each returns ids, int64 [n] in 0 .. N - 1, with n the
same in every epoch. What comes of it is the same for any batch size, any number of processes and wherever a run was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.draw import order, places
from trainrun.errors import UserError
from trainrun.recipe.classes import label_of
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor


def _all(options: Mapping[str, Any], count: int) -> int:
    """The length of an epoch that has as many pictures as the data set."""
    return count


@part("sampler", length=_all)
def shuffle(labels: Tensor, classes: Sequence[str], seed: int, epoch: int) -> Tensor:
    """Every picture once, in an order of each epoch's own."""
    return order(seed, epoch, len(labels))


@part("sampler", length=_all)
def sequential(labels: Tensor, classes: Sequence[str], seed: int, epoch: int) -> Tensor:
    """Every picture once, in the order of the data set, the same in every epoch. Classes that lie together come together."""
    import torch

    return torch.arange(len(labels))


@part("sampler")
def label_shuffle(labels: Tensor, classes: Sequence[str], seed: int, epoch: int) -> Tensor:
    """Every class as often as the largest, and the pictures of a class as often as one another, within one.

    With M pictures in the largest class, each class with n > 0 gets M places: the numbers 0 .. M - 1, shuffled, modulo n, point into its
    list of pictures, which is shuffled in each epoch, so that the same pictures are not always those that come once more. An epoch has
    M pictures of each class, in an order of its own; a picture comes floor(M / n) or ceil(M / n) times, augmented anew each time.
    Source: Hikvision's label shuffling in the ILSVRC 2016 scene classification challenge.
    """
    import torch

    shuffled = order(seed, epoch, len(labels), "lists")
    listed = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    starts, counts = starts[counts > 0, None], counts[counts > 0, None]
    balanced = listed[starts + torch.arange(int(counts.max())) % counts].flatten()
    # One shuffle of all places shuffles the numbers of each class too.
    return balanced[order(seed, epoch, len(balanced))]


@part("sampler", length=_all)
def weighted(
    labels: Tensor,
    classes: Sequence[str],
    seed: int,
    epoch: int,
    *,
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0)]], Field(description="Class names with weights, as {cat: 2}; a class that is not named has 1.")
    ] = {},  # noqa: B006  # a default that pydantic copies
    power: Annotated[
        float, Field(ge=-2, le=2, description="Power of a class's number of pictures: 1 as they are, 0.5 square root, 0 all classes alike.")
    ] = 1.0,
) -> Tensor:
    """Draw pictures with replacement, classes by given weights and by a power of their number of pictures.

    P(class c) = w_c n_c^power / sum_k w_k n_k^power over the classes that have pictures, and each of the n_c pictures is as likely. An epoch
    has as many draws as there are pictures. Raises UserError for a weight of a class that the data does not have, and where all are 0.
    Source for the power: Kang et al. 2020, Decoupling Representation and Classifier for Long-Tailed Recognition, section 3.
    """
    import torch

    for name in weights:
        label_of("sampler.weights", name, classes)
    counts = labels.bincount(minlength=len(classes)).double()
    chances = torch.tensor([weights.get(name, 1.0) for name in classes], dtype=torch.float64) * counts.pow(power)
    chances[counts == 0] = 0
    if not chances.any():
        raise UserError("sampler.weights: every class that has pictures has weight 0; give at least one a positive weight")
    return _drawn(labels, chances, seed, epoch)


@part("sampler", length=_all)
def class_balanced(
    labels: Tensor,
    classes: Sequence[str],
    seed: int,
    epoch: int,
    *,
    beta: Annotated[float, Field(gt=0, lt=1, description="How far to balance: near 0 hardly, near 1 until all classes are alike.")] = 0.999,
) -> Tensor:
    """Draw pictures with replacement, each with a weight of 1 / the effective number of pictures of its class.

    E_n = (1 - beta^n) / (1 - beta) for a class of n pictures; P(class) = (n / E_n) / sum over classes. It is the sampling that matches the
    paper's weighting of the loss: the expected share of a class in the gradient is the same. An epoch has as many draws as there are pictures.
    The paper tries beta 0.9, 0.99, 0.999 and 0.9999. Source: Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples.
    """
    import torch

    counts = labels.bincount(minlength=len(classes)).double()
    # expm1 keeps the digits that 1 - beta^n loses where beta is near 1; the factor 1 - beta is common to all.
    chances = torch.where(counts > 0, counts / -torch.expm1(counts * math.log(beta)), 0.0)
    return _drawn(labels, chances, seed, epoch)


def _drawn(labels: Tensor, chances: Tensor, seed: int, epoch: int) -> Tensor:
    """As many ids as there are labels, with replacement: a class by its chance (float64, any scale), then one of its pictures."""
    import torch

    counts = labels.bincount(minlength=len(chances))
    starts = counts.cumsum(0) - counts
    which, member = places(seed, epoch, len(labels)).bits(2).unbind(1)
    limits = chances.cumsum(0)
    uniform = ((which >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
    # Rounding may put the product on the last limit, beyond the last class that has a chance.
    chosen = torch.searchsorted(limits, uniform * limits[-1], right=True).clamp(max=int(chances.nonzero().max()))
    return torch.argsort(labels, stable=True)[starts[chosen] + ((((member >> 32) & 0xFFFFFFFF) * counts[chosen]) >> 32)]


def _size(options: Mapping[str, Any], count: int) -> int:
    """How many of `count` pictures a subset has."""
    return options["count"] or max(1, math.floor((options["fraction"] or 1) * count + 0.5))


@part("sampler", length=_size)
def subset(
    labels: Tensor,
    classes: Sequence[str],
    seed: int,
    epoch: int,
    *,
    fraction: Annotated[float | None, Field(gt=0, lt=1, description="Share of the training pictures; or give count.")] = None,
    count: Annotated[int | None, Field(ge=1, description="Number of training pictures; or give fraction.")] = None,
    stratified: Annotated[bool, Field(description="Take from each class its share, to within one picture.")] = True,
    subset_seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another number takes other pictures.")] = 0,
) -> Tensor:
    """Train on a part of the pictures, the same ones in every epoch, each once, in an order of each epoch's own.

    Which ones depends on `subset_seed` alone, not on the recipe's seed, so that seeds compare runs on the same pictures. Stratified, a
    class with n of N pictures gets floor(k n / N) of the k, and those with the largest remainders one more. Raises UserError where there
    are fewer pictures than `count`.
    Reference: the largest remainders, or Hamilton's method, by which parliaments share out seats.
    """
    import torch

    total = len(labels)
    size = _size({"count": count, "fraction": fraction}, total)
    if size > total:
        raise UserError(f"sampler.count: {size:,} is more than the {total:,} training pictures; write a smaller one, or sampler: shuffle")
    candidates = order(subset_seed, 0, total, "subset")
    if stratified:
        candidates = candidates[torch.argsort(labels[candidates], stable=True)]
        counts = labels.bincount()
        quotas, remainders = counts * size // total, counts * size % total
        quotas[torch.argsort(remainders, descending=True, stable=True)[: size - int(quotas.sum())]] += 1
        rank = torch.arange(total) - (counts.cumsum(0) - counts)[labels[candidates]]
        chosen = candidates[rank < quotas[labels[candidates]]]
    else:
        chosen = candidates[:size]
    return chosen.sort().values[order(seed, epoch, size)]
