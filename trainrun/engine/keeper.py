"""Decides when a run is saved, puts its state together and takes it apart again; what happens when the disk fills."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from trainrun.engine.checkpoint import Checkpoints, Snapshot, load_weights, pack, to_host, unpack
from trainrun.engine.signals import Interrupted
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
        self._owed: Snapshot | None = None
        self._stretched = False

    def start(self) -> None:
        """Save the state that the run starts from, unless it was just loaded; from here on the clock runs."""
        if self.saved_step != self.run.state.step and (self.run.plan.save_every or self.run.plan.save_seconds):
            self.save()
        self._schedule(0.0)

    def due(self, step: int) -> bool:
        """Whether the clock or the number of steps asks for a save; after a failed one only the clock asks. The process that saves is asked."""
        if self.checkpoints is None or not self.run.world.main:
            return False
        by_steps = self.run.plan.save_every is not None and step % self.run.plan.save_every == 0 and step != self.saved_step
        return (by_steps and self._failing_since is None) or time.monotonic() >= self._next

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
        """Write the state as it is. Where that fails, as on a full disk, the older checkpoint stands and the run goes on, with a
        warning and another try in a minute; at its last step the run waits for room.

        Raises UserError after ten minutes of failures, at the first one after a signal to stop, and at step 0, because no step is
        made without a checkpoint to fall back to.
        """
        run = self.run
        run.read_record()  # raises where the state is not finite: such a state is never written
        if self.checkpoints is None or not run.world.main:
            self.saved_step = run.state.step
            return
        with run.clock.paused():
            while (error := self._attempt()) and self._waits(error):
                # A signal to stop ends the wait: then comes one more attempt, and its failure ends the run.
                with contextlib.suppress(Interrupted), run.signals.at_once():
                    time.sleep(_RETRY)

    def _attempt(self) -> OSError | None:
        """Save once; returns what went wrong."""
        assert self.checkpoints is not None
        began = time.monotonic()
        try:
            self.run.teller.sync()
            if self._owed:
                self.checkpoints.save(self._owed)
                self._owed = None
            self.checkpoints.save(self.snapshot())
        except OSError as error:
            # The best weights would be gone with the next step, so they wait in memory for room on the disk.
            if self.run.state.is_best:
                self._owed = self.snapshot()
            return error
        self._failing_since = None
        self.saved_step = self.run.state.step
        self._schedule(time.monotonic() - began)
        return None

    def _waits(self, error: OSError) -> bool:
        """Warn of a failed save, or raise if there is no sense in another; returns whether the run has to wait for the next one."""
        run, now = self.run, time.monotonic()
        assert self.checkpoints is not None
        self._failing_since = self._failing_since or now
        what = f"the checkpoint at step {run.state.step} could not be written to {self.checkpoints.folder}: {error.strerror or error}"
        if run.state.step == 0 and self.saved_step < 0:
            raise UserError(f"{what}. Nothing is lost: make room there, or choose another --out") from error
        older = f"the checkpoint at step {self.saved_step} stands" if self.saved_step >= 0 else "there is no older checkpoint"
        if now - self._failing_since > _GIVE_UP:
            raise UserError(f"{what}; it failed for ten minutes. Make room there and go on with --resume; {older}") from error
        if run.signals.stop is not None:
            raise UserError(f"{what}, and a signal asks to stop. Make room there and go on with --resume; {older}") from error
        self._next = now + _RETRY
        ends = run.state.step >= run.plan.stop or run.out_of_patience()
        run.teller.warn(f"{what}; {older}. The run {'waits here' if ends else 'goes on'} and tries again in a minute")
        return ends

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
        tensors |= run.miner.tensors()
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
        run.miner.load(snapshot.tensors)
        run.state = State(**{name: values[name] for name in State().as_dict()})
        # The mark belongs to the moment of the evaluation, which the snapshot has behind it.
        run.state.is_best = False
        run.clock.total = values["seconds"]
        self.saved_step = run.state.step
