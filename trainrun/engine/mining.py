"""Which pictures of a batch are trained on, and notes of it: what `mining:` of a recipe does within a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch.nn.modules.batchnorm import _BatchNorm

from trainrun.draw import step_seed
from trainrun.engine.checkpoint import to_host
from trainrun.engine.directory import write_bytes
from trainrun.engine.feed import Batch
from trainrun.engine.state import Plan
from trainrun.parts.mining.ohem import Ohem, hardest
from trainrun.recipe.batches import pieces
from trainrun.world import World

if TYPE_CHECKING:
    from trainrun.engine.run import Run

LEDGER = "ledger.safetensors"
_PERIODS = ("interval", "period")


class KeepAll:
    """No mining: every picture of a batch is trained on, and no notes are taken."""

    def choose(self, run: Run, batch: Batch) -> Batch:
        """The part of a batch that goes through the network with gradients; its `whole` counts the pictures that the step's loss averages."""
        return batch

    def weigh(self, micro: Batch, logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """The losses of a micro-batch as they count: [B] -> [B]."""
        return losses

    def totals(self, trained: torch.Tensor) -> torch.Tensor:
        """The step's totals over all pictures of the batch, given those over what was trained on: summed loss, hits, gradient norm."""
        return trained

    def figures(self, period: str) -> dict[str, float]:
        """What was picked since this was last asked for an `interval` (a log line) or a `period` (an epoch line)."""
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold, by name."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what a checkpoint holds."""

    def mine(self, run: Run) -> bool:
        """Do what is owed between two steps, with the weights as they are; returns whether other pictures follow than would have.

        Raises Interrupted where the run is asked to stop; then it is owed still.
        """
        return False

    def mend(self, run: Path) -> list[str]:
        """Bring a run directory's files in line with what was taken up from the checkpoint; returns a line for each damaged one."""
        return []

    def write(self, run: Path, step: int) -> None:
        """Write what a run directory should have of it and has not yet; raises OSError."""

    def told(self) -> list[str]:
        """What a person should know before the first step."""
        return []


@dataclass(frozen=True)
class _Lot:
    """The numbers of one step, made on the host from the labels of the whole batch: they never wait for a loss.

    ids, labels: int64 [n], of the whole batch. shares: where each process's part begins and ends. groups, always: as in Quotas, with the
    groups of all sections numbered through; starts, quotas: int64 [groups], how many pictures stand in the groups before each, and how
    many of each are kept. sections: the parts that are chosen from apart, the whole batch or each process's share, and how many are kept of each.
    """

    ids: torch.Tensor
    labels: np.ndarray
    shares: list[tuple[int, int]]
    groups: np.ndarray
    starts: np.ndarray
    quotas: np.ndarray
    always: np.ndarray
    sections: list[tuple[int, int]]
    kept: list[int]

    @property
    def total(self) -> int:
        """Pictures kept, of all processes."""
        return sum(self.kept)

    @property
    def all(self) -> bool:
        """Whether nothing is left out."""
        return self.total == len(self.ids)

    def choose(self, hardness: torch.Tensor) -> torch.Tensor:
        """The places in the whole batch of the pictures kept, int64 [total] in rising order, from the hardness of all [n]."""

        def there(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(hardness.device, non_blocking=True)

        sections = np.repeat(np.arange(len(self.sections)), [last - first for first, last in self.sections])
        picks = np.concatenate([np.arange(first, first + kept) for (first, _), kept in zip(self.sections, self.kept, strict=True)])
        surely = hardness.masked_fill(there(self.always), torch.inf)
        return hardest(surely, *map(there, (self.groups, self.starts, self.quotas, sections, picks)))


class Ledger:
    """How often each training picture was trained on (int32 [N]), and its last loss (float32 [N], NaN where it was never seen)."""

    def __init__(self, pictures: int, device: torch.device) -> None:
        self.kept = torch.zeros(pictures, dtype=torch.int32, device=device)
        self.loss = torch.full((pictures,), torch.nan, device=device)

    def note(self, ids: torch.Tensor, losses: torch.Tensor, kept: torch.Tensor) -> None:
        """A step on the pictures `ids` (int64 [n], on the CPU) with their losses [n], of which those at the places `kept` were trained on."""
        there = ids.to(self.loss.device, non_blocking=True)
        chosen = there[kept]
        self.kept.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        # Of a picture that comes twice in a batch the last loss stands, whatever order a device writes in.
        _, from_end = np.unique(ids.numpy()[::-1], return_index=True)
        if len(from_end) < len(ids):
            last = torch.from_numpy(len(ids) - 1 - from_end).to(self.loss.device, non_blocking=True)
            there, losses = there[last], losses[last]
        self.loss.index_copy_(0, there, losses.float())


class Miner(KeepAll):
    """Trains on the pictures that a rule chooses, and keeps a ledger of them, the same in every process."""

    def __init__(self, rule: Ohem, labels: np.ndarray, plan: Plan, world: World, model: torch.nn.Module, forward: Any, micro_batch: int | None) -> None:
        """labels: int64 [N], of all training pictures. forward: the model as it is called to look at a batch without gradients."""
        self.rule, self.labels, self.plan, self.world, self.micro_batch = rule, labels, plan, world, micro_batch
        self.forward = forward
        self.ledger = Ledger(len(labels), world.device)
        # Of the interval and of the period: pictures seen, kept, loss of these, thresholds, steps that had one.
        self.sums = torch.zeros(2, 5, dtype=torch.float64, device=world.device)
        self._buffers = list(model.buffers())
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]
        self._normalises = any(isinstance(module, _BatchNorm) for module in model.modules())
        self._lot: _Lot
        self._found: list[torch.Tensor] = []  # loss and hardness [B, 2] of the micro-batches of this step, in their order
        self._seen: torch.Tensor | None = None

    def choose(self, run: Run, batch: Batch) -> Batch:
        self._found, self._seen = [], None
        self._lot = lot = self._draw_lot(batch, self.rule.strength(run.state.step, self.plan.steps_per_epoch, self.plan.total))
        if lot.all or self.rule.passes == 1:
            return replace(batch, whole=lot.total)
        self._seen = self._look(run, batch)
        return self._kept(batch, self._note(lot.choose))

    def weigh(self, micro: Batch, logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        if self._seen is not None:
            return losses
        self._find(micro, logits, losses)
        if self._lot.all:
            return losses
        kept = torch.zeros(len(self._lot.ids), dtype=torch.bool, device=losses.device)
        kept.index_fill_(0, self._note(self._lot.choose), True)
        first, last = self._lot.shares[self.world.rank]
        return losses.where(kept[first:last], 0.0)

    def totals(self, trained: torch.Tensor) -> torch.Tensor:
        if self._lot.all:
            self._note(lambda hardness: torch.arange(len(hardness), device=hardness.device))
        return trained if self._seen is None else torch.cat((self._seen, trained[-1:]))

    def _draw_lot(self, batch: Batch, strength: float) -> _Lot:
        """How many of each group are kept in this step, over all processes."""
        ids = batch.ids.cpu() if batch.everyone is None else batch.everyone
        shares = self.world.shares(len(ids))
        sections = shares if self.rule.scope == "rank" else [(0, len(ids))]
        labels = self.labels[ids.numpy()]
        quotas = [self.rule.quotas(labels[first:last], strength) for first, last in sections]
        before = np.cumsum([0, *(len(quota.kept) for quota in quotas)])
        groups = np.concatenate([quota.groups + n for quota, n in zip(quotas, before, strict=False)])
        sizes = np.bincount(groups, minlength=before[-1])
        kept = [self._enough(int(quota.kept.sum()), last - first) for quota, (first, last) in zip(quotas, sections, strict=True)]
        return _Lot(
            ids, labels, shares, groups, np.cumsum(sizes) - sizes, np.concatenate([quota.kept for quota in quotas]),
            np.concatenate([quota.always for quota in quotas]), sections, kept,
        )  # fmt: skip

    def _enough(self, kept: int, of: int) -> int:
        """`kept`, or the next number that leaves no single picture to batch norm, in a micro-batch that is made of kept ones."""
        if not self._normalises or self.rule.passes == 1:
            return kept
        processes = 1 if self.rule.scope == "rank" else self.world.size
        return next((n for n in range(kept, of) if min(pieces(n, n, self.micro_batch, processes)) > 1), of)

    @torch.no_grad()
    def _look(self, run: Run, batch: Batch) -> torch.Tensor:
        """Find the losses of a batch as in training, and leave no trace of it in the model; returns the task's sums."""
        totals = torch.zeros(len(run.task.sums), dtype=torch.float64, device=self.world.device)
        run.seed_model_draws(step_seed(run.recipe.seed, run.state.step, self.world.rank))
        _copy(self._before, self._buffers)
        for micro in batch.split(self.micro_batch):
            images, targets = run.inputs(micro, training=True)
            with self.world.autocast(run.recipe.precision):
                logits, losses, sums = run.task.learn(self.forward, images, targets, micro)
            self._find(micro, logits, losses)
            totals += sums
        _copy(self._buffers, self._before)
        return totals

    def _find(self, micro: Batch, logits: torch.Tensor, losses: torch.Tensor) -> None:
        logits, losses = logits.detach(), losses.detach()
        self._found.append(torch.stack((losses.float(), self.rule.hardness(logits, micro.labels, losses)), 1))

    def _note(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Choose from what was found, in all processes alike, and take notes; returns the places kept."""
        lot = self._lot
        losses, hardness = self.world.gather(torch.cat(self._found), lot.shares).unbind(1)
        kept = choose(hardness)
        self.ledger.note(lot.ids, losses, kept)
        always = torch.from_numpy(lot.always).to(hardness.device, non_blocking=True)
        threshold = hardness.masked_fill(always, torch.inf)[kept].min().double()
        self.sums[:, 0] += len(lot.ids)
        self.sums[:, 1] += lot.total
        self.sums[:, 2] += losses[kept].double().sum()
        self.sums[:, 3] += threshold.where(threshold.isfinite(), 0.0)
        self.sums[:, 4] += threshold.isfinite()
        return kept

    def _kept(self, batch: Batch, places: torch.Tensor) -> Batch:
        """This process's share of the pictures at some places of the whole batch."""
        lot, rank = self._lot, self.world.rank
        images, visits = batch.images.permute(0, 2, 3, 1), batch.visits
        if self.rule.scope == "rank":
            done = sum(lot.kept[:rank])
            mine = places[done : done + lot.kept[rank]]
            here = mine - lot.shares[rank][0]
        else:
            mine = here = self.world.share(places)
            images = self.world.gather(images, lot.shares)
            visits = visits if visits is None else self.world.gather(visits, lot.shares)
        ids = lot.ids.to(images.device, non_blocking=True)[mine]
        labels = torch.from_numpy(lot.labels).to(images.device, non_blocking=True)[mine]
        again = visits if visits is None else visits[here]
        return Batch(images.index_select(0, here).permute(0, 3, 1, 2), labels, ids, batch.epoch, lot.total, again)

    def figures(self, period: str) -> dict[str, float]:
        row = _PERIODS.index(period)
        seen, kept, loss, threshold, steps = self.sums[row].tolist()
        self.sums[row] = 0
        if not seen:
            return {}
        found = {"mining_kept": kept / seen, "mining_loss": loss / kept}
        return found | ({"mining_threshold": threshold / steps} if steps else {})

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mining.kept": self.ledger.kept, "mining.loss": self.ledger.loss, "mining.sums": self.sums}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])

    def told(self) -> list[str]:
        start, total = self.rule.start, self.plan.total
        first = 0 if start is None else start.steps(self.plan.steps_per_epoch, total)
        return [] if first < total else [f"start is step {first:,}, and training ends at step {total:,}: no picture is left out"]

    def write(self, run: Path, step: int) -> None:
        """Write the ledger, whole or not at all, as `kept` and `loss` with the step in the file's metadata; raises OSError."""
        write_bytes(run / LEDGER, save_tensors(to_host({"kept": self.ledger.kept, "loss": self.ledger.loss}), metadata={"step": str(step)}))


def _copy(into: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into), list(values))
