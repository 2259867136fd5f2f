"""The pictures of each epoch: a sampler with the labels of the data set at hand, and what must hold of its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from trainrun.engine.state import Plan
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data
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


def make_sampler(recipe: Recipe, data: Data, parts: Registry) -> Sampler:
    """The recipe's sampler for the training side of its data; raises UserError where the two do not suit."""
    labels = torch.from_numpy(data.train.labels)
    return Sampler(recipe.sampler.name, parts.build(recipe.sampler), recipe.seed, labels, data.classes)


def refuse_single(model: torch.nn.Module, recipe: Recipe, plan: Plan, shape: tuple[int, int, int], world: World) -> None:
    """Raise UserError where batch norm would see a single picture, whose statistics say nothing of others; names what to write.

    A batch_size of 1 was asked for, and is refused only where the network cannot normalise one picture of `shape` (height, width, channels).
    """
    if not _single(model, recipe, plan, world) or (plan.batch_size == 1 and _takes_one(model, shape, world)):
        return
    shared = f", shared by {world.size} processes" if world.size > 1 else ""
    split = f", in micro-batches of {recipe.micro_batch}" if recipe.micro_batch else ""
    fix = without_single(plan.samples, plan.batch_size, recipe.micro_batch, world.size)
    write = ", ".join(f"{name}={value}" for name, value in fix.items()) or "no batch_size that would do: take more pictures"
    raise UserError(
        f"batch norm would see a single picture ({plan.samples:,} pictures an epoch, batch_size {plan.batch_size}{shared}{split}); "
        f"write {write}, or a model without batch norm"
    )


def _single(model: torch.nn.Module, recipe: Recipe, plan: Plan, world: World) -> bool:
    """Whether some pass of the training has batch norm and one picture."""
    normalises = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    return normalises and 1 in pieces(plan.samples, plan.batch_size, recipe.micro_batch, world.size)


def _takes_one(model: torch.nn.Module, shape: tuple[int, int, int], world: World) -> bool:
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
        told.append("with batch_size 1 batch norm takes its statistics from one picture, in evaluation from many; better is a model without batch norm")
    return told
