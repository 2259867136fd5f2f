"""Offline hard negative mining: the rounds in which a frozen network scores negatives and the worst of them become active.

rounds/000.safetensors   the active set that the training begins with
rounds/001.safetensors   the active set after the first round, what that added, and how it was scored

These files are never changed. They are copies, for people and programs: a run goes on from what its checkpoint holds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from trainrun.engine.checkpoint import Damaged, to_host
from trainrun.engine.directory import write_bytes
from trainrun.engine.evaluate import go_through
from trainrun.engine.mining import KeepAll
from trainrun.engine.sampling import Active
from trainrun.engine.state import Plan
from trainrun.engine.tasks import Margins
from trainrun.world import World

if TYPE_CHECKING:
    from trainrun.engine.run import Run

FOLDER = "rounds"


@dataclass(frozen=True)
class Round:
    """A round as its file holds it; round 0 is the start.

    active: int64 [n], the ids of all active pictures after it, in rising order. added: int64 [k], the negatives that it added, the highest
    score first, or those of the start in rising order. scores: float32 [k], by how much the logit of the best positive class exceeded that
    of the negative one; empty at the start, where nothing was scored.
    """

    number: int
    step: int
    active: torch.Tensor
    added: torch.Tensor
    scores: torch.Tensor

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"active": self.active, "added": self.added, "scores": self.scores}

    @property
    def about(self) -> dict[str, str]:
        """What the file says beside its tensors, a checksum of all of it included."""
        plain = {"round": str(self.number), "step": str(self.step)}
        return plain | {"sha256": _digest(self.tensors, json.dumps(plain).encode())}

    def bytes(self) -> bytes:
        """The file."""
        return save_tensors(to_host(self.tensors), metadata=self.about)


def file_of(run: Path, number: int) -> Path:
    """The file of a round in a run directory."""
    return run / FOLDER / f"{number:03d}.safetensors"


def numbers(run: Path) -> list[int]:
    """The rounds of which a run directory has a file, rising; none where the run does not mine so."""
    return sorted(int(file.stem) for file in (run / FOLDER).glob("[0-9]*.safetensors") if file.stem.isdecimal())


def read_round(file: Path) -> Round:
    """A round from its file; raises Damaged, naming it, where it cannot be read or does not match its checksum."""
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in ("active", "added", "scores")}
        found = Round(int(about["round"]), int(about["step"]), **tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"{file} cannot be read") from error
    if found.about != about:
        raise Damaged(f"{file} does not match its checksum")
    return found


def _digest(tensors: Mapping[str, torch.Tensor], start: bytes = b"") -> str:
    """SHA-256 of tensors with their names, shapes and types."""
    whole = hashlib.sha256(start)
    for name, tensor in tensors.items():
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


class Bootstrap(KeepAll):
    """Scores the pool at the end of every so many epochs, and adds the worst false positives to what the sampler draws from.

    All processes know the same set: each scores its share of the pool, and the first one writes.
    """

    def __init__(self, sampler: Active, plan: Plan, world: World) -> None:
        self.sampler, self.rule, self.plan, self.world = sampler, sampler.rule, plan, world
        self.scores: list[torch.Tensor] = []  # float32, of what each round added
        self._unwritten = {0}
        self._resumed = False

    @property
    def done(self) -> int:
        """Rounds made."""
        return len(self.scores)

    def step_of(self, number: int) -> int:
        """The step at which a round is owed, the end of an epoch; 0 is the start."""
        return number * self.rule.every * self.plan.steps_per_epoch

    def mine(self, run: Run) -> bool:
        number, step = self.done + 1, run.state.step
        if number > self.rule.rounds or step != self.step_of(number) or step >= self.plan.stop or run.out_of_patience():
            return False
        began, left = time.monotonic(), self.sampler.left()
        pool = self.rule.draw(left, self.sampler.sizes.pools[number - 1], self.sampler.seed, number)
        with run.clock.paused(), run.answering():
            scores, weights = self._score(run, pool)
        places = self.rule.choose(scores, self.sampler.sizes.added[number - 1], self.sampler.seed, number)
        self._add(pool[places], scores[places])
        added, judged = self.scores[-1], run.state.evaluations[-1:]
        run.teller.event(
            event="round", round=number, pick=self.rule.pick, pool=len(left), scored=len(pool), false_positives=int((scores > 0).sum()), added=len(added),
            active=len(self.sampler.active), threshold=float(added[-1]), highest=float(added[0]), **weights,
            **{name: value for each in judged if each["step"] == step for name, value in each.items() if name != "step"},
            seconds=round(time.monotonic() - began, 3),
        )  # fmt: skip
        run.teller.keep()
        return True

    def _score(self, run: Run, pool: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
        """The scores of some pictures, float32 [n] on the CPU and the same in every process, and the hashes of the weights before and after.

        Raises Interrupted where the run is asked to stop, and NonFinite.
        """
        self.world.align_buffers(run.average.model)
        before, margins = _weights(run), Margins(self.rule.negative)
        go_through(
            run.judged, run.training, pool, run.inputs, margins, self.world, run.micro_batch_size, run.recipe.precision, run.check
        )  # fmt: skip
        scores = margins.of_all(self.world, len(pool)).cpu()
        after = _weights(run)
        if before != after:
            raise AssertionError(f"the network changed while it was scoring, at step {run.state.step}")
        if not scores.isfinite().all():
            batches = pool.split(run.micro_batch_size)
            raise run.non_finite("score of a negative", run.state.step, run.training(batches, 0, map(len, batches)), training=False)
        return scores, {"weights_before": before, "weights_after": after}

    def _add(self, ids: torch.Tensor, scores: torch.Tensor) -> None:
        self.sampler.add(ids)
        self.scores.append(scores)
        self._unwritten.add(self.done)

    def _round(self, number: int) -> Round:
        scores = self.scores[number - 1] if number else torch.empty(0)
        return Round(number, self.step_of(number), self.sampler.sets[number], self.sampler.added[number], scores)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mining.added": torch.cat(self.sampler.added), "mining.scores": torch.cat([torch.empty(0), *self.scores])}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up the rounds that a checkpoint holds; how many each added is known beforehand."""
        first, *added = tensors["mining.added"].split(self._lengths(len(tensors["mining.added"])))
        if not torch.equal(first, self.sampler.added[0]):
            raise AssertionError("the run began with other negatives")
        self.sampler.begin()
        self.scores, self._unwritten, self._resumed = [], {0}, True
        for ids, scores in zip(added, tensors["mining.scores"].split([len(ids) for ids in added]), strict=True):
            self._add(ids, scores)

    def _lengths(self, total: int) -> list[int]:
        """How many negatives the start and the rounds added, of so many in all."""
        lengths = [self.sampler.sizes.first]
        for added in self.sampler.sizes.added:
            if sum(lengths) == total:
                break
            lengths.append(added)
        return lengths

    def mend(self, run: Path) -> list[str]:
        told = []
        for number in sorted(self._unwritten):
            file, what = file_of(run, number), "differs from what the checkpoint holds"
            try:
                if read_round(file).about == self._round(number).about:
                    self._unwritten.discard(number)
                    continue
            except Damaged as error:
                what = str(error).removeprefix(f"{file} ") if file.exists() else "is missing"
            if file.exists() or self._resumed:
                told.append(f"{file} {what}; it is written anew from the checkpoint, which costs no step")
        self.write(run, 0)
        return told

    def write(self, run: Path, step: int) -> None:
        for number in sorted(self._unwritten):
            file = file_of(run, number)
            file.parent.mkdir(exist_ok=True)
            write_bytes(file, self._round(number).bytes())
            self._unwritten.discard(number)

    def told(self) -> list[str]:
        sizes, most = self.sampler.sizes, self.rule.rounds
        sets = ", ".join(f"{n:,}" for n in sizes.active)
        lines = [f"active set of {sets} pictures, {sizes.positives:,} of them positive; an epoch has {len(self.sampler):,}"]
        in_time = sum(self.step_of(number) < self.plan.total for number in range(1, most + 1))
        return lines + ([f"{in_time} of {most} rounds fall before the end of training"] if in_time < most else [])


def _weights(run: Run) -> str:
    """SHA-256 of all weights and buffers of the network and of the average that is judged."""
    states: dict[str, Any] = dict(run.model.state_dict())
    if run.average.model is not run.model:
        states |= {f"{name} (average)": tensor for name, tensor in run.average.model.state_dict().items()}
    return _digest(states)
