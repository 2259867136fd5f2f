"""Validation: every sample once, over all processes, with the augmentations that are always applied and no others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from trainrun.engine.feed import Feed
from trainrun.engine.inputs import Inputs
from trainrun.engine.tasks import Asks, Judge
from trainrun.world import World


def evaluate(
    model: torch.nn.Module,
    feed: Feed,
    inputs: Inputs,
    judge: Judge,
    world: World,
    batch_size: int,
    precision: str,
    check: Callable[[], None],
) -> dict[str, float]:
    """The figures of a judge that has seen all; `check` is called before each batch and may raise."""
    go_through(model, feed, torch.arange(len(feed)), inputs, judge, world, batch_size, precision, check)
    return judge.figures(world, len(feed))


@torch.no_grad()
def go_through(
    model: torch.nn.Module,
    feed: Feed,
    ids: torch.Tensor,
    inputs: Inputs,
    judge: Asks,
    world: World,
    batch_size: int,
    precision: str,
    check: Callable[[], None],
) -> None:
    """Ask a network, in evaluation mode, about the pictures `ids` (int64 [n], on the CPU): each process about its share of them."""
    batches = [piece for piece in world.share(ids).split(batch_size) if len(piece)]  # the share of a process may be empty
    arriving = feed(batches, 0, [len(b) for b in batches])
    was_training = model.training
    model.eval()
    try:
        # Every process makes as many rounds as the longest share needs, because checking may be a collective decision.
        for _ in range(math.ceil(math.ceil(len(ids) / world.size) / batch_size)):
            check()
            batch = next(arriving, None)
            if batch is not None:
                images, targets = inputs(batch, training=False)
                with world.autocast(precision):
                    judge.add(model, images, targets, batch)
    finally:
        model.train(was_training)
