"""Decides when a run is saved, puts its state together and takes it apart again; what happens when the disk fills."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from trainrun.engine.checkpoint import Checkpoints, Snapshot, load_weights, pack, to_host, unpack
from trainrun.engine.state import State
from trainrun.errors import UserError

if TYPE_CHECKING:
    from trainrun.engine.run import Run

_SHARE = 0.02  # of the time at most, for saves that are due by the clock
_RETRY, _GIVE_UP = 60.0, 600.0


class Keeper:
    """Saves one run to its checkpoints."""

    def __init__(self, run: Run, checkpoints: Checkpoints | None, facts: dict[str, Any]) -> None:
        """`checkpoints` is None for a trial, which keeps nothing; `facts` are stored with every checkpoint."""
        self.run, self.checkpoints, self.facts = run, checkpoints, facts
        self.saved_step = -1
        self._next = float("inf")
        self._failing_since: float | None = None
        self._stretched = False

    def start(self) -> None:
        """Save the state that the run starts from, unless it was just loaded; from here on the clock runs."""
        if self.saved_step != self.run.state.step and (self.run.plan.save_every or self.run.plan.save_seconds):
            self.save()
        self._schedule(0.0)

    def due(self, step: int) -> bool:
        """Whether this process's clock or the number of steps asks for a save."""
        by_steps = self.run.plan.save_every is not None and step % self.run.plan.save_every == 0 and step != self.saved_step
        return by_steps or time.monotonic() >= self._next

    def _schedule(self, took: float) -> None:
        wanted = self.run.plan.save_seconds
        if wanted is None:
            self._next = float("inf")
            return
        self._next = time.monotonic() + max(wanted, took / _SHARE)
        if took / _SHARE > wanted and not self._stretched:
            self._stretched = True
            self.run.teller.warn(f"a save takes {took:.1f} s, so checkpoints are {took / _SHARE:.0f} s apart instead of {wanted:g} s")

    def save(self) -> None:
        """Write the state as it is; a disk that is full leaves the older checkpoint, a warning and the run going, for ten minutes."""
        run = self.run
        run.read_record()  # raises where the state is not finite: such a state is never written
        if self.checkpoints is None or not run.world.main:
            self.saved_step = run.state.step
            return
        with run.clock.paused():
            began = time.monotonic()
            run.teller.sync()
            try:
                self.checkpoints.save(self.snapshot())
            except OSError as error:
                self._failed(error)
                return
            self._failing_since = None
            self.saved_step = run.state.step
            self._schedule(time.monotonic() - began)

    def _failed(self, error: OSError) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        assert self.checkpoints is not None
        what = f"the checkpoint at step {self.run.state.step} could not be written to {self.checkpoints.folder}: {error.strerror or error}"
        if now - self._failing_since > _GIVE_UP:
            raise UserError(f"{what}; it failed for ten minutes. Make room there and go on with --resume") from error
        self.run.teller.warn(f"{what}. The older checkpoint stands; the run goes on and tries again in a minute")
        self._next = now + _RETRY

    def snapshot(self) -> Snapshot:
        """Everything that the rest of the run depends on."""
        run = self.run
        tensors: dict[str, Any] = {}
        values = {
            **run.state.as_dict(),
            "seconds": run.clock.total,
            "record": run.record.state(),
            "optimizer": pack(run.optimizer.state_dict(), tensors, "optimizer"),
            "scaler": run.scaler.state_dict(),
            "journal": run.teller.position,
            **self.facts,
        }
        if run.average.model is not run.model:
            tensors |= {f"model.{name}": t for name, t in run.model.state_dict().items()}
        return Snapshot(to_host(run.average.model.state_dict()), to_host(tensors), values)

    def restore(self, snapshot: Snapshot) -> None:
        """Put the run where the snapshot stands."""
        run, values = self.run, snapshot.values
        load_weights(run.average.model, snapshot.model)
        if run.average.model is not run.model:
            load_weights(run.model, {n.removeprefix("model."): t for n, t in snapshot.tensors.items() if n.startswith("model.")})
        run.optimizer.load_state_dict(unpack(values["optimizer"], snapshot.tensors))
        run.scaler.load_state_dict(values["scaler"])
        run.record.load(values["record"])
        run.state = State(**{name: values[name] for name in State().as_dict()})
        # The mark belongs to the moment of the evaluation, which the snapshot has behind it.
        run.state.is_best = False
        run.clock.total = values["seconds"]
        self.saved_step = run.state.step
