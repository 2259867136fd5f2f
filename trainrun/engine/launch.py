"""`trainrun fit`: a recipe and a directory to a finished run, and why it is not begun where it is not."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from trainrun.engine import directory
from trainrun.engine.build import build, open_data, seen_shape, settle
from trainrun.engine.checkpoint import Checkpoints, Snapshot
from trainrun.engine.cut import make_cut
from trainrun.engine.ending import Call, end, explain, finished, record, stopped
from trainrun.engine.fit import fit
from trainrun.engine.keeper import Keeper
from trainrun.engine.run import Run
from trainrun.engine.sampling import advice, make_sampler
from trainrun.engine.signals import Interrupted, Signals
from trainrun.engine.state import Plan
from trainrun.engine.teller import Teller
from trainrun.errors import OutOfMemory, RecipeError, Stopped, UserError
from trainrun.parts.datasets.splits import Data
from trainrun.parts.optimizers import summary
from trainrun.recipe.dump import dump
from trainrun.recipe.load import Loaded, load
from trainrun.recipe.registry import registry
from trainrun.recipe.schema import Recipe
from trainrun.report.console import Console
from trainrun.report.journal import Journal
from trainrun.world import World, enter


def launch(
    loaded: Loaded,
    *,
    out: Path | None = None,
    resume: bool = False,
    exact: bool = False,
    allow_plugins: bool = False,
    quiet: bool = False,
    again: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a recipe and return the contents of result.json; raises a TrainrunError that says why a run ended otherwise.

    again: the words of the command line that ask for this recipe, without --out and --resume.
    """
    call = Call(again or ("fit", str(loaded.file)), out, resume)
    with Signals() as signals, enter() as world, contextlib.ExitStack() as stack:
        console = Console(quiet=quiet) if world.main else Console(stack.enter_context(open(os.devnull, "w")), quiet=True)
        stack.callback(console.close)
        try:
            before = world.first(lambda: directory.unfinished(loaded.recipe.name, out, resume))
            if before:
                world.first(lambda: stack.enter_context(directory.claim(before)))
            with loaded.locating(), signals.at_once():
                data = open_data(loaded.recipe.data)
            recipe, _ = settle(loaded.recipe, world, data.train)
            _check(loaded, recipe, data)
            if before:
                _compare(before, recipe, allow_plugins, call)
                if directory.finished(before):
                    return finished(before, console) if world.main else {}
            where = before or world.first(lambda: stack.enter_context(directory.fresh(recipe.name, out)))
            return _in_directory(loaded, recipe, where, before is not None, world, data, signals, console, exact, call)
        except Interrupted:
            raise stopped(signals.stop, None).then(call.again()) from None
        except MemoryError as error:
            why = f"out of memory while the data was read ({error}); try data.resident=no"
            raise OutOfMemory(why).then(call.fresh("data.resident=no")) from error
        except UserError as error:
            error.then(_after(error, loaded.recipe, call))
            raise


def _after(error: UserError, recipe: Recipe, call: Call) -> str:
    """The command to run after a refusal, once what it says is mended."""
    if call.out is not None and (call.out / "recipe.yaml").exists():
        return call.going_on(call.out)
    if str(error).endswith("choose another --out"):
        return call.fresh()
    if recipe.data.options.get("download") is False and "download" in str(error):
        return call.again("data.download=true")
    return call.again()


def _check(loaded: Loaded, recipe: Recipe, data: Data) -> None:
    """Refuse settings that do not suit this data set, at their place in the file, and pictures that differ in size and are not cut."""
    make_cut(recipe, registry, data.train, data.validation)
    if data.validation is None:
        # A resolved recipe has everything written out, so what is as it would be anyhow is no mistake.
        idle = [name for name in ("early_stopping", "evaluate") if getattr(recipe, name) != Recipe.model_fields[name].default]
        if idle:
            what = f"data {recipe.data.name} has no validation pictures, so this has no effect; expected it to be left out"
            raise RecipeError([loaded.mistake(path, what) for path in idle])
    with loaded.locating():
        plan = Plan.of(recipe, len(make_sampler(recipe, data, registry)))
    loaded.check_lengths(plan.steps_per_epoch)


def _in_directory(
    loaded: Loaded,
    recipe: Recipe,
    where: Path,
    going_on: bool,
    world: World,
    data: Data,
    signals: Signals,
    console: Console,
    exact: bool,
    call: Call,
) -> dict[str, Any]:
    digest = "+".join(split.digest for split in (data.train, data.validation) if split is not None)
    facts = directory.fingerprint(world, recipe, digest)
    checkpoints = Checkpoints(where, recipe.checkpoint.keep)
    snapshot = _adopt(checkpoints, recipe, where, world, facts, exact, console) if going_on else None

    def describe() -> None:
        with directory.writing(where):
            console.log_to(where / "log.txt")
            _describe(recipe, where, facts, going_on, data, console)

    world.first(describe)
    with contextlib.ExitStack() as stack:
        run = None
        try:
            with loaded.locating():
                run = stack.enter_context(closing(build(recipe, world, data, signals, resumes=snapshot is not None)))
            run.keeper = Keeper(run, checkpoints, {"fingerprint": facts, "input": describe_input(run)})
            if snapshot:
                run.keeper.restore(snapshot)
            world.first(lambda: _room(run, where))
            world.first(lambda: _mend(run, where, console))
            if world.main:
                journal = Journal(where, snapshot.values["journal"] if snapshot else 0, tensorboard=recipe.log.tensorboard, step=run.state.step, warn=console.warn)
                run.teller = Teller(run, journal, console)
            _header(run, console, where, snapshot)
            run.clock.start()
            return end(run, fit(run), where, call, console)
        except Stopped:
            raise
        except (Exception, Interrupted) as error:
            console.close()
            told = explain(error, run, recipe, where, call, signals.stop)
            if world.main:
                record(error, told, run, where)
            if told is error:
                raise
            raise told from error


def describe_input(run: Run) -> dict[str, Any]:
    """What a program needs to feed the saved weights: shape of the pictures (as they are cut, where they are cut when they are read) and
    of what the network sees of them, class names, and the statistics that were measured, if any.
    """
    height, width, channels = run.training.shape
    seen_height, seen_width, _ = seen_shape(run.recipe, run.training.shape, registry)
    mean, std = run.statistics.measured or (None, None)
    shapes = {"shape": [channels, height, width], "network_shape": [channels, seen_height, seen_width]}
    return {**shapes, "classes": list(run.data.classes), "mean": mean, "std": std}


def _compare(where: Path, recipe: Recipe, allow_plugins: bool, call: Call) -> None:
    saved = load(where / "recipe.yaml", allow_plugins=allow_plugins).recipe
    if found := directory.differences(saved, recipe):
        why = f"{where} was started with other settings ({'; '.join(found)}); put them back, or start a new run"
        raise UserError(why).then(call.fresh())


def _adopt(
    checkpoints: Checkpoints, recipe: Recipe, where: Path, world: World, facts: dict[str, Any], exact: bool, console: Console
) -> Snapshot | None:
    snapshot, damage = checkpoints.newest()
    for line in damage:
        console.warn(f"{line}; going on from the checkpoint before it" + (f", at step {snapshot.values['step']}" if snapshot else ""))
    if snapshot is None:
        figures = where / "metrics.jsonl"
        if recipe.checkpoint.every != "off" and figures.exists() and figures.stat().st_size:
            raise UserError(f"{where} has figures and no checkpoint: {checkpoints.folder} was removed; restore it, or choose another --out")
        console.warn("this run was stopped before its first checkpoint, so it starts at step 0")
        return None
    before = snapshot.values["fingerprint"]
    changed = [f"{name}: was {before.get(name)}, is {value}" for name, value in facts.items() if before.get(name) != value]
    if changed and exact:
        raise UserError(f"--exact: the run cannot go on bit for bit here ({'; '.join(changed)}); leave --exact out to go on all the same")
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
        directory.write_text(where / "recipe.yaml", dump(recipe))
    directory.write_json(where / "environment.json", environment)
    for note in data.notes:
        console.warn(note)
    if data.skipped:
        console.warn(f"{len(data.skipped)} unreadable pictures are left out: " + ", ".join(path for path, _ in data.skipped[:5]))


def _room(run: Run, where: Path) -> None:
    """Refuse to start where three checkpoints (weights, average, two moments) would not fit on the disk."""
    weights = sum(t.nbytes for t in run.model.state_dict().values())
    needed, free = 3 * weights * (4 if run.average.model is not run.model else 3), shutil.disk_usage(where).free
    if free < needed:
        raise UserError(
            f"{where} has {free / 2**20:,.0f} MiB free, and three checkpoints may take {needed / 2**20:,.0f} MiB; make room or choose --out"
        )


def _mend(run: Run, where: Path, console: Console) -> None:
    """Write what mining keeps in files of its own, and tell of those that are damaged."""
    with directory.writing(where):
        for line in run.miner.mend(where):
            console.warn(line)


def _header(run: Run, console: Console, where: Path, snapshot: Snapshot | None) -> None:
    recipe, world, plan = run.recipe, run.world, run.plan
    parameters = sum(p.numel() for p in run.model.parameters())
    accumulation = math.ceil(math.ceil(plan.batch_size / world.size) / run.micro_batch_size)
    place = "resident" if run.training.resident else "streamed"
    validation = f"{len(run.validation):,} for validation" if run.validation else "no validation"
    console.say(f"{recipe.name}: {recipe.model.name} on {recipe.data.name}", "bold")
    console.say(
        f"  device      {world.device_name}{f', {world.size} processes' if world.size > 1 else ''}; {recipe.precision}, {recipe.memory_format}"
    )
    console.say(f"  model       {parameters:,} parameters, {len(run.data.classes)} classes")
    for n, line in enumerate(summary(run.optimizer, recipe.optimizer.name)):
        console.say(f"  {'' if n else 'optimizer':11} {line}")
    most = "up to " if run.data.train.sizes is not None else ""
    cut = f", {recipe.augment[0].name} in the worker" if run.training.cut else ""
    console.say(f"  data        {len(run.training):,} pictures of {most}{'x'.join(map(str, run.data.train.shape))}, {validation}; {place}{cut}")
    if recipe.sampler.name != "shuffle":
        console.say(f"  sampler     {recipe.sampler.name}, {plan.samples:,} pictures an epoch")
    if recipe.mining:
        told = [f"{name} {value}" for name, value in recipe.mining.options.items() if value is not None]
        console.say(f"  mining      {recipe.mining.name}: {', '.join(told)}")
        for line in run.miner.told():
            console.say(f"              {line}")
    console.say(
        f"  batch       {plan.batch_size} = {run.micro_batch_size} x {accumulation} x {world.size} (micro-batch x accumulation x processes)"
    )
    console.say(
        f"  training    {plan.steps_per_epoch:,} steps an epoch, {plan.stop:,} steps"
        + (f" of {plan.total:,}" if plan.stop < plan.total else "")
    )
    console.say(f"  run         {where}")
    for line in advice(run.model, recipe, plan, world):
        console.warn(line)
    if snapshot:
        console.say(f"  resumed     at step {run.state.step:,}, epoch {run.epoch:.2f}")
