"""The pictures of each epoch: a sampler with the labels of the data set at hand, and what must hold of its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from trainrun.draw import order
from trainrun.engine.state import Plan
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data
from trainrun.parts.mining import make_rule
from trainrun.parts.mining.rounds import Rounds
from trainrun.recipe.batches import pieces, without_single
from trainrun.recipe.registry import Registry
from trainrun.recipe.schema import Recipe
from trainrun.world import World


class Sampler:
    """Call it with an epoch's number, get the ids of its pictures in their order, int64 on the CPU; `len` of them in every epoch."""

    def __init__(self, name: str, part: Callable[..., torch.Tensor], seed: int, labels: torch.Tensor, classes: Sequence[str]) -> None:
        self.name, self.seed, self.labels, self.classes = name, seed, labels, classes
        self._part = part
        self._length = len(part(labels, classes, seed, 0))
        if not self._length:
            raise UserError(f"sampler {name} gives no picture")

    def __len__(self) -> int:
        return self._length

    def __call__(self, epoch: int) -> torch.Tensor:
        ids = self._part(self.labels, self.classes, self.seed, epoch)
        if len(ids) != self._length:
            raise UserError(f"sampler {self.name} gives {len(ids)} pictures in epoch {epoch} and {self._length} in epoch 0; expected as many in each")
        return ids


class Active(Sampler):
    """The pictures of each epoch where rounds of mining add negatives: the active set, gone through again and again.

    An epoch has as many pictures as the set has at the start, so that steps, schedule and stopping point are known before the run, and the
    set may grow without changing them. Each pass through the set has an order of its own; between two rounds every active picture has
    come as often as any other, or once less. An epoch is a function of (seed, epoch, the set of its round); as a round falls on the end of
    an epoch, it never has two sets. While the set is as it was at the start, an epoch is a pass.
    """

    def __init__(self, rule: Rounds, seed: int, labels: torch.Tensor, classes: Sequence[str]) -> None:
        self.name, self.seed, self.labels, self.classes, self.rule = "rounds", seed, labels, classes, rule
        negative = labels == rule.negative
        self.sizes = rule.sizes(int((~negative).sum()), int(negative.sum()))
        self._positives, self._negatives = (~negative).nonzero()[:, 0], negative.nonzero()[:, 0]
        self.begin()
        self._length = len(self.active)

    def begin(self) -> None:
        """Go back to the start. added: the negatives of the start and of each round; sets: all active ids at the start and after each round, rising."""
        first = self.rule.begin(self._negatives, self.sizes.first, self.seed)
        self.added, self.sets = [first], [torch.cat((self._positives, first)).sort().values]

    @property
    def active(self) -> torch.Tensor:
        """The ids that are active now, int64 in rising order."""
        return self.sets[-1]

    def left(self) -> torch.Tensor:
        """The ids of the negatives that are not active, int64 in rising order."""
        return self._negatives[torch.isin(self._negatives, self.active, invert=True)]

    def add(self, ids: torch.Tensor) -> None:
        """Make more negatives active, from the epoch that follows the next round's step on."""
        self.added.append(ids)
        self.sets.append(torch.cat((self.active, ids)).sort().values)

    def __call__(self, epoch: int) -> torch.Tensor:
        number = min(epoch // self.rule.every, self.rule.rounds)
        active = self.sets[number]
        start = (epoch - number * self.rule.every) * self._length
        stream = f"round {number}" if number else "order"
        passes = range(start // len(active), (start + self._length - 1) // len(active) + 1)
        places = torch.cat([order(self.seed, n, len(active), stream) for n in passes])
        return active[places[start % len(active) :][: self._length]]


def make_sampler(recipe: Recipe, data: Data, parts: Registry) -> Sampler:
    """The recipe's sampler for the training side of its data; raises UserError where the two do not suit."""
    labels = torch.from_numpy(data.train.labels)
    rule = make_rule(recipe.mining, data.classes, data.train.labels, parts)
    if isinstance(rule, Rounds):
        return Active(rule, recipe.seed, labels, data.classes)
    return Sampler(recipe.sampler.name, parts.build(recipe.sampler), recipe.seed, labels, data.classes)


def refuse_single(model: torch.nn.Module, recipe: Recipe, plan: Plan, world: World, allowed: Callable[[], bool]) -> None:
    """Raise UserError, beginning with the field, where batch norm would see a single picture, whose statistics say nothing of others.

    allowed: asked where it would, whether that is all right.
    """
    if not _single(model, recipe, plan, world) or allowed():
        return
    fix = _write(recipe, plan, world) or "no batch_size that would do: take more pictures"
    field = "micro_batch" if fix.startswith("micro_batch") else "batch_size"
    raise UserError(f"{field}: batch norm would see a single picture ({_pieces(recipe, plan, world)}); write {fix}, or a model without batch norm")


def _pieces(recipe: Recipe, plan: Plan, world: World) -> str:
    """What an epoch is split into."""
    shared = f", shared by {world.size} processes" if world.size > 1 else ""
    split = f", in micro-batches of {recipe.micro_batch}" if recipe.micro_batch else ""
    return f"{plan.samples:,} pictures an epoch, batch_size {plan.batch_size}{shared}{split}"


def _write(recipe: Recipe, plan: Plan, world: World) -> str:
    """The setting by which no pass has a single picture, if there is one."""
    fix = without_single(plan.samples, plan.batch_size, recipe.micro_batch, world.size)
    return ", ".join(f"{name}={value}" for name, value in fix.items())


def _single(model: torch.nn.Module, recipe: Recipe, plan: Plan, world: World) -> bool:
    """Whether some pass of the training has batch norm and one picture."""
    normalises = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    return normalises and 1 in pieces(plan.samples, plan.batch_size, recipe.micro_batch, world.size)


def takes_one(model: torch.nn.Module, shape: tuple[int, int, int], world: World) -> bool:
    """Whether the network trains on one picture; a copy of it is asked, because a pass moves running statistics."""
    height, width, channels = shape
    try:
        with torch.no_grad():
            copy.deepcopy(model)(torch.zeros(1, channels, height, width, device=world.device))
    except ValueError:  # torch's word for a channel with one value
        return False
    return True


def advice(model: torch.nn.Module, recipe: Recipe, plan: Plan, world: World) -> list[str]:
    """What a person should know of a batch size that is allowed."""
    told = []
    if recipe.batch_size == "full" and recipe.micro_batch is None:
        told.append(
            f"batch_size full takes all {plan.samples:,} pictures through the network at once; "
            "where memory is short, write micro_batch=256, which keeps the step and its gradient"
        )
    if _single(model, recipe, plan, world):
        every = pieces(plan.samples, plan.batch_size, recipe.micro_batch, world.size) == {1}
        fix = "" if plan.batch_size == 1 else _write(recipe, plan, world)
        options = recipe.model.options
        norm = "frozen" if options.get("weights") or options.get("backbone_weights") else "group"
        other = f"model.norm={norm}" if "norm" in options else "a model without batch norm"
        told.append(
            f"batch norm takes its statistics from one picture in {'every pass' if every else 'some passes'} ({_pieces(recipe, plan, world)}), "
            f"in evaluation from many; better is {f'{fix}, or ' if fix else ''}{other}"
        )
    return told
