"""How a run ends: result.json, the words for a person, and the command to run next, for every way there is."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainrun.engine import directory
from trainrun.engine.checkpoint import Tensors, load_weights
from trainrun.engine.run import Run
from trainrun.engine.signals import Interrupted
from trainrun.engine.teller import Teller
from trainrun.errors import NonFinite, OutOfMemory, Stopped, TrainrunError, UserError
from trainrun.recipe.schema import Recipe
from trainrun.report.command import command
from trainrun.report.console import Console, duration, told
from trainrun.world import LOST, lost

_DONE = {
    "epochs": "all epochs are done",
    "early_stopping": "validation stopped improving",
    "stop_at": "stop_at is reached",
}
# torch.OutOfMemoryError is a RuntimeError that says so; on a CPU the allocator, oneDNN and C++ each have words of their own.
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "could not create a memory object", "bad_alloc")


@dataclass(frozen=True)
class Call:
    """What was asked for: the words of the command line without --out and --resume, and those two."""

    words: Sequence[str]
    out: Path | None
    resume: bool

    def fresh(self, *more: str) -> str:
        """The command for a new run of the same recipe, with more settings."""
        return command(*self.words, *more)

    def again(self, *more: str) -> str:
        """The same command, with more settings."""
        return self.fresh(*more, *(["--out", str(self.out)] if self.out else []), *(["--resume"] if self.resume else []))

    def going_on(self, where: Path) -> str:
        """The command that goes on with the run in a directory."""
        return self.fresh("--out", str(where), "--resume")


def stopped(number: int | None, run: Run | None) -> Stopped:
    """What a signal did; `number` is None where another process of this run got it."""
    number = number or signal.SIGTERM
    when = f"at step {run.state.step:,}" if run else "before the first step"
    return Stopped(number, f"stopped by {signal.Signals(number).name} {when}; nothing is lost")


def explain(error: BaseException, run: Run | None, recipe: Recipe, where: Path, call: Call, number: int | None) -> BaseException:
    """What ended a run, as the error that a person reads: its reason, and the command to run next."""
    text = str(error)
    if isinstance(error, Interrupted):
        return stopped(number, run).then(call.going_on(where))
    if isinstance(error, NonFinite):
        last = where / "checkpoints" / "last"
        clean = f"the last clean state is {last.parent / os.readlink(last)}" if last.is_symlink() else "no state was saved before"
        told = NonFinite(f"{text}; {clean}; try a lower schedule.lr, a warm-up, clip=1.0 or precision=fp32")
        return told.then(call.fresh(f"schedule.lr={recipe.base_lr / 10:g}"))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)):
        return _out_of_memory(text.partition("\n")[0] or "MemoryError", run, recipe, call)
    if lost(error):
        return TrainrunError(LOST).then(call.going_on(where))
    if isinstance(error, TrainrunError):
        return error.then(call.going_on(where) if run else call.again())
    why = f"stopped by a bug or an unexpected failure, {type(error).__name__}; its traceback is in {where / 'crash.txt'} too"
    error.add_note(f"trainrun: {why}; next: {call.going_on(where)}")
    return error


def _out_of_memory(reason: str, run: Run | None, recipe: Recipe, call: Call) -> OutOfMemory:
    if run is None:
        error = OutOfMemory(f"out of memory before the first step ({reason}); try data.resident=no, or a smaller model")
        return error.then(call.fresh("data.resident=no"))
    batch = run.micro_batch_size
    at = f"out of memory at batch_size {recipe.batch_size}, {batch} pictures at once ({reason})"
    if batch == 1:
        return OutOfMemory(f"{at}; try smaller pictures or a smaller model").then(command("show", *call.words[1:]))
    smaller = f"micro_batch={batch // 2}"
    return OutOfMemory(f"{at}; try {smaller}, which keeps the batch and its gradient").then(call.fresh(smaller))


def record(error: BaseException, told: BaseException, run: Run | None, where: Path) -> None:
    """Write result.json, and crash.txt for a bug; what cannot be written must not hide why the run ended."""
    words: dict[type[BaseException], str] = {Stopped: "signal", NonFinite: "non_finite", OutOfMemory: "out_of_memory"}
    stop = words.get(type(told), "error" if isinstance(told, TrainrunError) else "crash")
    result = _result(run, stop, where, "last", told)
    with contextlib.suppress(OSError):
        directory.write_json(where / "result.json", result)
        if stop == "crash":
            (where / "crash.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    if isinstance(told, TrainrunError):
        told.result = {**result, "run": str(where)}
    if run and isinstance(run.teller, Teller):
        run.teller.journal.close()


def _result(run: Run | None, stop: str, where: Path, checkpoint: str, error: BaseException | None = None) -> dict[str, Any]:
    """The contents of result.json; `run` is None where it failed before it was built, `error` what a person reads of its end."""
    reason: dict[str, str] = {}
    if isinstance(error, TrainrunError):
        reason = {"message": str(error), "next": error.next}
    elif error:
        reason = {"message": f"{type(error).__name__}: {error}"}
    name = f"checkpoints/{checkpoint}"
    return {
        "stop": stop,
        "steps": run.state.step if run else None,
        "epochs": round(run.epoch, 6) if run else None,
        "best": run.state.best if run else None,
        "seconds": round(run.clock.total, 3) if run else None,
        "images_per_second": run.teller.rate if run and isinstance(run.teller, Teller) else None,
        "checkpoint": name if (where / name).exists() else None,
        **reason,
    }


def end(run: Run, stop: str, where: Path, call: Call, console: Console) -> dict[str, Any]:
    """Restore the best weights where asked for, write result.json, and say how it went; raises Stopped where a signal ended it."""
    error = None
    if stop == "signal":
        (interrupted,) = run.world.any(run.signals.stop == signal.SIGINT)  # in whichever process it arrived
        error = stopped(signal.SIGINT if interrupted else signal.SIGTERM, run).then(call.going_on(where))
    weights = run.world.tell(_best_weights(run, console) if run.world.main and not error else None)
    if weights is not None:
        load_weights(run.average.model, weights)
    result: dict[str, Any] = {}
    if run.world.main:
        assert isinstance(run.teller, Teller)
        result = _result(run, stop, where, "last" if weights is None else "best", error)
        with directory.writing(where):
            directory.write_json(where / "result.json", result)
        run.teller.journal.close()
        result |= {"run": str(where)}
        if not error:
            _summary(run, where, result, console)
    console.close()
    run.world.tell(None)  # the others wait until all is written, because torchrun ends what is left when one process has ended
    if error:
        error.result = result
        raise error
    return result


def _best_weights(run: Run, console: Console) -> Tensors | None:
    """The best weights, where the recipe wants to end with them and they are still whole."""
    best, checkpoints = run.state.best, run.keeper.checkpoints
    if best is None or checkpoints is None or not run.recipe.early_stopping or not run.rule.restore_best:
        return None
    try:
        snapshot = checkpoints.named("best")
    except UserError as error:
        console.warn(f"{error}; the weights of the last step are used")
        return None
    if snapshot.values["step"] != best["step"]:
        console.warn(f"{checkpoints.folder / 'best'} is that of step {snapshot.values['step']}; the weights of the last step are used")
        return None
    return snapshot.model


def _summary(run: Run, where: Path, result: dict[str, Any], console: Console) -> None:
    if best := result["best"]:
        console.say(f"  best        epoch {best['epoch']:g}: {told(best)}")
    if result["checkpoint"]:
        console.say(f"  weights     {where / result['checkpoint'] / 'model.safetensors'}")
    console.say(f"  figures     {where / 'metrics.jsonl'}")
    rate = f", {result['images_per_second']:,.0f} images/s" if result["images_per_second"] else ""
    how = f"{_DONE[result['stop']]}, {result['steps']:,} steps in {duration(result['seconds'])}{rate}"
    following = command("eval", where) if run.validation else command("predict", where, "IMAGE")
    console.say(f"done: {how}; next: {following}", "bold")


def finished(where: Path, console: Console) -> dict[str, Any]:
    """The result of a run that has nothing to go on with, and a line that says so."""
    result = directory.result(where) or {}
    console.say(f"{where} is finished already: {_DONE[result['stop']]}; next: {command('eval', where)}")
    return {**result, "run": str(where)}
