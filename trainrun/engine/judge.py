"""What a run's weights make of its training pictures, and what the run noted of them on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainrun.engine.build import open_data, settle
from trainrun.engine.checkpoint import Checkpoints, Snapshot
from trainrun.engine.cut import make_cut
from trainrun.engine.inputs import make_inputs
from trainrun.engine.resident import budget, open_feed
from trainrun.engine.signals import Signals
from trainrun.engine.tasks import task_of
from trainrun.engine.use import load_model, open_run, refuse_other, statistics_of
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.registry import registry
from trainrun.recipe.schema import Recipe
from trainrun.report.command import command
from trainrun.world import World

_AT_ONCE = 256


@dataclass(frozen=True)
class Trained:
    """A run's recipe, data and weights, and the ledger of its miner where it had one.

    kept: int32 [N], how often each training picture was trained on. last_loss: float32 [N], NaN where it was never seen.
    same_data: whether the pictures are known to be those that the run was trained on.
    """

    recipe: Recipe
    data: Data
    snapshot: Snapshot
    kept: np.ndarray | None
    last_loss: np.ndarray | None
    same_data: bool


def reopen(run: Path, overrides: Sequence[str], *, allow_plugins: bool, checkpoint: str | None) -> Trained:
    """Open a run directory and its data; the ledger is that of the last checkpoint. Raises UserError where the data does not suit the run."""
    recipe, snapshot = open_run(run, overrides, allow_plugins, checkpoint)
    if task_of(recipe, registry) == "detection":
        found = f"hard orders pictures by the loss of their label, and data {recipe.data.name} has boxes; see what is found in them with eval --png"
        raise UserError(found).then(command("eval", run, "--png", "found.png"))
    data = open_data(recipe.data)
    refuse_other(data, data.train, recipe, snapshot.values["input"])
    tensors = Checkpoints(run).named("last").tensors
    ledger = [tensors[name].numpy() if name in tensors else None for name in ("mining.kept", "mining.loss")]
    digest = "+".join(split.digest for split in (data.train, data.validation) if split is not None)
    return Trained(recipe, data, snapshot, *ledger, same_data=digest == snapshot.values["fingerprint"]["data"])


@torch.no_grad()
def judge(trained: Trained, ids: np.ndarray, world: World, signals: Signals) -> tuple[np.ndarray, np.ndarray]:
    """The losses (float32 [n], in nats) and predicted labels (int64 [n]) of training pictures, without augmentation.

    ids: int64 [n]. Raises Interrupted where a signal asks to stop.
    """
    data, about = trained.data, trained.snapshot.values["input"]
    cut = make_cut(trained.recipe, registry, data.train)
    with signals.at_once():
        feed = open_feed(data.train, trained.recipe.data, world, budget(world), cut)
    recipe, _ = settle(trained.recipe, world, feed.shape)
    inputs = make_inputs(recipe.augment, recipe.seed, recipe.memory_format, statistics_of(about), registry, cut=cut is not None)
    model, loss = load_model(recipe, trained.snapshot, world.device), registry.build(recipe.loss)
    batches = torch.from_numpy(ids).split(recipe.micro_batch or _AT_ONCE)
    losses, predicted = [], []
    try:
        for batch in feed(batches, 0, map(len, batches)):
            signals.check()
            images, labels = inputs(batch, training=False)
            with world.autocast(recipe.precision):
                logits = model(images)
                losses.append(loss(logits, labels).float())
            predicted.append(logits.argmax(1))
    finally:
        feed.close()
    return torch.cat(losses).cpu().numpy(), torch.cat(predicted).cpu().numpy()
