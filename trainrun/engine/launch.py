"""`trainrun fit`: a recipe and a directory to a finished run, with every way of ending told and written down."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import torch

from trainrun.engine import directory
from trainrun.engine.checkpoint import Checkpoints, Snapshot, load_weights
from trainrun.engine.fit import fit
from trainrun.engine.inputs import statistics
from trainrun.engine.keeper import Keeper
from trainrun.engine.run import Run, build, closing, open_data, settle
from trainrun.engine.signals import Interrupted, Signals
from trainrun.engine.teller import Teller
from trainrun.errors import NonFinite, OutOfMemory, RecipeError, Stopped, TrainrunError, UserError
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.dump import dump
from trainrun.recipe.load import Loaded, load
from trainrun.recipe.schema import Recipe
from trainrun.report.console import Console, duration
from trainrun.report.journal import Journal
from trainrun.world import World, enter


def launch(
    loaded: Loaded, *, out: Path | None = None, resume: bool = False, exact: bool = False, allow_plugins: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train a recipe and return the contents of result.json; raises a TrainrunError that says why a run ended otherwise."""
    with Signals() as signals, enter() as world, contextlib.ExitStack() as stack:
        console = Console(quiet=quiet) if world.main else Console(stack.enter_context(open(os.devnull, "w")), quiet=True)
        stack.callback(console.close)
        try:
            with signals.at_once():
                data = open_data(loaded.recipe.data)
            recipe, _ = settle(loaded.recipe, world, data.train.shape)
            _check(loaded, recipe, data)
            where, going_on = world.tell(directory.find(recipe.name, out, resume) if world.main else None)
            if world.main:
                stack.enter_context(directory.claim(where))
            return _in_directory(recipe, where, going_on, world, data, signals, console, exact, allow_plugins)
        except Interrupted:
            number = signals.stop or signal.SIGINT
            raise Stopped(number, "stopped before the first step; nothing was lost, start the same command again") from None
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(_out_of_memory(loaded.recipe, str(error))) from error
        except RuntimeError as error:
            if "DefaultCPUAllocator" in str(error):
                raise OutOfMemory(_out_of_memory(loaded.recipe, str(error))) from error
            raise


def _out_of_memory(recipe: Recipe, reason: str) -> str:
    at = f"micro_batch {recipe.micro_batch}" if recipe.micro_batch else f"batch_size {recipe.batch_size}"
    half = max((recipe.micro_batch or recipe.batch_size) // 2, 1)
    return f"out of memory at {at}: try micro_batch={half}, which keeps the batch and its gradient ({reason.splitlines()[0]})"


def _check(loaded: Loaded, recipe: Recipe, data: Data) -> None:
    """Refuse settings that have no effect on this data set, at their place in the file."""
    if data.validation is None:
        written = [path for path in ("early_stopping", "evaluate") if any(keys[0] == path for keys in loaded.sources)]
        if written:
            what = f"data {recipe.data.name} has no validation pictures, so this has no effect; expected it to be left out"
            raise RecipeError([loaded.mistake(path, what) for path in written])


def _in_directory(
    recipe: Recipe,
    where: Path,
    going_on: bool,
    world: World,
    data: Data,
    signals: Signals,
    console: Console,
    exact: bool,
    allow_plugins: bool,
) -> dict[str, Any]:
    digest = "+".join(split.digest for split in (data.train, data.validation) if split is not None)
    facts = directory.fingerprint(world, recipe, digest)
    checkpoints = Checkpoints(where, recipe.checkpoint.keep)
    snapshot = None
    if going_on:
        _compare(where, recipe, allow_plugins)
        if directory.finished(where):
            console.say(f"{where} is finished already; nothing to do")
            return directory.result(where) or {}
        snapshot = _adopt(checkpoints, world, facts, exact, console)
    if world.main:
        console.log_to(where / "log.txt")
        _describe(recipe, where, facts, going_on, data, console)
    with closing(build(recipe, world, data, signals)) as run:
        run.keeper = Keeper(run, checkpoints, {"fingerprint": facts, "input": describe_input(run)})
        if snapshot:
            run.keeper.restore(snapshot)
        if world.main:
            _room(run, where)
            journal = Journal(where, snapshot.values["journal"] if snapshot else 0, tensorboard=recipe.log.tensorboard, step=run.state.step)
            run.teller = Teller(run, journal, console)
        _header(run, console, where, snapshot)
        return _train(run, where, console)


def describe_input(run: Run) -> dict[str, Any]:
    """What a program needs to feed the saved weights: shape, class names, and the statistics that were measured, if any."""
    height, width, channels = run.data.train.shape
    needs = any(node.name == "normalize" for node in run.recipe.augment)
    mean, std = statistics(run.data) if needs else (None, None)
    return {"shape": [channels, height, width], "classes": list(run.data.classes), "mean": mean, "std": std}


def _compare(where: Path, recipe: Recipe, allow_plugins: bool) -> None:
    saved = load(where / "recipe.yaml", allow_plugins=allow_plugins).recipe
    if found := directory.differences(saved, recipe):
        raise UserError(
            f"{where} was started with other settings:\n  "
            + "\n  ".join(found)
            + "\nput them back to go on with it, or leave --resume out for a new run"
        )


def _adopt(checkpoints: Checkpoints, world: World, facts: dict[str, Any], exact: bool, console: Console) -> Snapshot | None:
    snapshot, damage = checkpoints.newest()
    for line in damage:
        console.warn(f"{line}; going on from the checkpoint before it" + (f", at step {snapshot.values['step']}" if snapshot else ""))
    if snapshot is None:
        console.warn("this run was stopped before its first checkpoint, so it starts at step 0")
        return None
    before = snapshot.values["fingerprint"]
    changed = [f"{name}: was {before.get(name)}, is {value}" for name, value in facts.items() if before.get(name) != value]
    if changed and exact:
        raise UserError("--exact: the run cannot go on bit for bit here:\n  " + "\n  ".join(changed))
    for line in changed:
        console.warn(f"the numbers may differ in their last bits: {line}")
    if world.main:
        checkpoints.adopt(snapshot)
    return snapshot


def _describe(recipe: Recipe, where: Path, facts: dict[str, Any], going_on: bool, data: Data, console: Console) -> None:
    """Write what the run is before it runs; a run that goes on adds a line to its history."""
    (where / "result.json").unlink(missing_ok=True)
    environment = directory.environment(recipe, facts)
    if going_on:
        with contextlib.suppress(OSError, ValueError):
            before = json.loads((where / "environment.json").read_text())
            environment = {**before, "resumed": [*before.get("resumed", []), environment]}
    else:
        temporary = where / ".recipe.yaml"
        temporary.write_text(dump(recipe))
        temporary.replace(where / "recipe.yaml")
    directory.write_json(where / "environment.json", environment)
    if data.skipped:
        console.warn(f"{len(data.skipped)} unreadable pictures are left out: " + ", ".join(path for path, _ in data.skipped[:5]))


def _room(run: Run, where: Path) -> None:
    """Refuse to start where three checkpoints (weights, average, two moments) would not fit on the disk."""
    weights = sum(t.nbytes for t in run.model.state_dict().values())
    needed, free = 3 * weights * (4 if run.recipe.ema else 3), shutil.disk_usage(where).free
    if free < needed:
        raise UserError(
            f"{where} has {free / 2**20:,.0f} MiB free, and three checkpoints may take {needed / 2**20:,.0f} MiB; make room or choose --out"
        )


def _header(run: Run, console: Console, where: Path, snapshot: Snapshot | None) -> None:
    recipe, world, plan = run.recipe, run.world, run.plan
    parameters = sum(p.numel() for p in run.model.parameters())
    accumulation = math.ceil(math.ceil(recipe.batch_size / world.size) / run.micro_batch_size)
    place = "resident on the device" if run.training.resident else "streamed by workers"
    validation = f"{len(run.validation):,} for validation" if run.validation else "no validation"
    console.say(f"{recipe.name}: {recipe.model.name} on {recipe.data.name}", "bold")
    console.say(
        f"  device      {world.device_name}{f', {world.size} processes' if world.size > 1 else ''}; {recipe.precision}, {recipe.memory_format}"
    )
    console.say(f"  model       {parameters:,} parameters, {len(run.data.classes)} classes")
    console.say(f"  data        {len(run.training):,} pictures of {'x'.join(str(n) for n in run.data.train.shape)}, {validation}; {place}")
    console.say(
        f"  batch       {recipe.batch_size} = {run.micro_batch_size} x {accumulation} x {world.size} (micro-batch x accumulation x processes)"
    )
    console.say(
        f"  training    {plan.steps_per_epoch:,} steps an epoch, {plan.stop:,} steps"
        + (f" of {plan.total:,}" if plan.stop < plan.total else "")
    )
    console.say(f"  run         {where}")
    if snapshot:
        console.say(f"  resumed     at step {run.state.step:,}, epoch {run.epoch:.2f}")


def _train(run: Run, where: Path, console: Console) -> dict[str, Any]:
    run.clock.start()
    try:
        stop = fit(run)
    except Interrupted:  # while compiling: the state on disk is the one that this process began with
        stop = "signal"
    except NonFinite as error:
        _end(run, where, "non_finite", console, str(error))
        raise NonFinite(f"{error}\n{_clean_state(where)}; try a lower schedule.lr, a warm-up, clip=1.0 or precision=fp32") from None
    except BaseException as error:
        console.close()
        if not isinstance(error, TrainrunError) and run.world.main:
            (where / "crash.txt").write_text(traceback.format_exc())
        raise
    result = _end(run, where, stop, console)
    if stop == "signal":
        number = run.signals.stop or signal.SIGTERM  # another process of this run was asked to stop
        raise Stopped(
            number,
            f"stopped by {signal.Signals(number).name} at step {run.state.step}; everything is saved. Go on with the same command and --resume",
        )
    return result


def _clean_state(where: Path) -> str:
    last = where / "checkpoints" / "last"
    return f"the last clean state is {last.parent / os.readlink(last)}" if last.is_symlink() else "no state was saved before"


def _end(run: Run, where: Path, stop: str, console: Console, message: str = "") -> dict[str, Any]:
    """Restore the best weights where asked for, write result.json, and say how it went and what comes next."""
    best = run.state.best
    use_best = bool(run.recipe.early_stopping and run.rule.restore_best and best and stop in ("epochs", "early_stopping", "stop_at"))
    if use_best and run.keeper.checkpoints:
        load_weights(run.average.model, run.world.tell(run.keeper.checkpoints.named("best").model if run.world.main else None))
    if not run.world.main:
        return {}
    assert isinstance(run.teller, Teller)
    name = "best" if use_best else "last"
    result = {
        "stop": stop,
        "steps": run.state.step,
        "epochs": round(run.epoch, 6),
        "best": best,
        "seconds": round(run.clock.total, 3),
        "images_per_second": run.teller.rate,
        "checkpoint": f"checkpoints/{name}",
        **({"message": message} if message else {}),
    }
    directory.write_json(where / "result.json", result)
    run.teller.journal.close()
    if stop not in ("non_finite", "signal"):
        _summary(run, where, result, console)
    console.close()
    return {**result, "run": str(where)}


_WHY = {
    "epochs": "all epochs are done",
    "early_stopping": "validation stopped improving",
    "stop_at": "stop_at is reached",
}


def _summary(run: Run, where: Path, result: dict[str, Any], console: Console) -> None:
    rate = f", {result['images_per_second']:,.0f} images/s" if result["images_per_second"] else ""
    console.say(f"done: {_WHY[result['stop']]}, {result['steps']:,} steps in {duration(result['seconds'])}{rate}", "bold")
    if best := result["best"]:
        console.say(f"  best        epoch {best['epoch']:g}: val loss {best['val_loss']:.4f}, val accuracy {best['val_accuracy']:.2%}")
    console.say(f"  weights     {where / result['checkpoint'] / 'model.safetensors'}")
    console.say(f"  figures     {where / 'metrics.jsonl'}")
    console.say(f"  next        trainrun {'eval' if run.validation else 'predict'} {where}{'' if run.validation else ' IMAGE'}")
