"""Validation: every sample once, over all processes, with the augmentations that are always applied and no others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from trainrun.engine.feed import Feed
from trainrun.engine.inputs import Inputs
from trainrun.engine.measure import Sums
from trainrun.world import World


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    feed: Feed,
    inputs: Inputs,
    loss: Callable[..., torch.Tensor],
    world: World,
    batch_size: int,
    precision: str,
    check: Callable[[], None],
) -> dict[str, float]:
    """`val_loss` in nats and `val_accuracy` in 0..1; `check` is called before each batch and may raise."""
    everyone = torch.arange(len(feed))
    batches = world.share(everyone).split(batch_size)
    arriving = feed(batches, 0, [len(b) for b in batches])
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    was_training = model.training
    model.eval()
    try:
        # Every process makes as many rounds as the longest share needs, because checking may be a collective decision.
        for _ in range(math.ceil(math.ceil(len(everyone) / world.size) / batch_size)):
            check()
            batch = next(arriving, None)
            if batch is not None and len(batch):
                images, targets = inputs(batch, training=False)
                with world.autocast(precision):
                    logits = model(images)
                    losses = loss(logits, targets)
                totals += torch.stack((losses.double().sum(), (logits.argmax(1) == batch.labels).sum()))
    finally:
        model.train(was_training)
    loss_sum, correct = world.sum(totals).tolist()
    return Sums(loss_sum, correct, len(feed)).figures("val")
