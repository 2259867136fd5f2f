"""A run that is killed at any instant and resumed equals one that was never stopped, bit for bit, and always has a checkpoint."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from children import EVALUATING, RECIPE, RESUMING, SAVING, TRAINING, Mark, at_steps, contents, die, finish, kill, noting, start, state

from trainrun.engine.checkpoint import Checkpoints

# What a save changes on disk, it changes through these; a kill may fall between any two of them.
CALLS = ("mkdir", "posix_fallocate", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")


class Whole:
    """The run that was never stopped: its contents at the end, and all its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        (folder / "keep.yaml").write_text(RECIPE.replace("keep: 2", "keep: 1000"))
        self.calls = folder / "calls"
        finish(folder / "keep.yaml", folder / "whole", prepare=functools.partial(counting, folder / "mark", None, self.calls))
        self.contents = contents(folder / "whole")
        self.states: dict[int, list[Any]] = defaultdict(list)
        for saved in (folder / "whole" / "checkpoints").glob("step-*"):
            self.states[int(saved.name.split("-")[1])].append(state(saved))
        assert len(self.states) > 16

    def check(self, run: Path, after: int = 0) -> int:
        """What a kill left: a checkpoint that verifies and is that of the whole run, at step `after` or later; returns its step."""
        snapshot, damage = Checkpoints(run).newest()
        assert snapshot is not None and snapshot.folder is not None and not damage
        step = snapshot.values["step"]
        assert step >= after
        assert state(snapshot.folder) in self.states[step]
        return step

    def finish(self, run: Path) -> None:
        finish(self.recipe, run, resume=True)
        assert contents(run) == self.contents


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def counting(mark: Path, deadly: int | None, calls: Path | None = None) -> None:
    """In a child: die before the call number `deadly`, counted from 1, of those that save or take up a checkpoint; write them to `calls`."""
    noting(mark)
    note, made, last = Mark(mark), 0, ""

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal made, last
            phase, step = note.get()
            if phase in (SAVING, RESUMING):
                made += 1
                if made == deadly:
                    die()
                if calls:
                    with calls.open("a") as out:
                        out.write(f"{step} {name}\n")
            return function(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))


def dying_in_evaluation(mark: Path, batch: int) -> None:
    """In a child: die before the batch number `batch`, counted from 1, of the evaluations."""
    from trainrun.engine.run import Run

    noting(mark)
    seen, check = 0, Run.check

    def counted(run: Run) -> None:
        nonlocal seen
        seen += 1
        if seen == batch:
            die()
        check(run)

    Run.check = counted  # type: ignore[method-assign]  # this process is about to be killed there


@pytest.mark.parametrize(("resident", "kills"), [("yes", 16), ("no", 3)])
def test_kill_at_random_instants(tmp_path: Path, whole: Whole, resident: str, kills: int) -> None:
    recipe, mark = tmp_path / "k.yaml", Mark(tmp_path / "mark")
    recipe.write_text(RECIPE.replace('"yes"', f'"{resident}"'))
    chance = random.Random(kills)
    hits: list[tuple[str, int]] = []
    runs, saved = 1, 0
    while len(hits) < kills:
        run = tmp_path / f"run-{runs}"
        mark.set("start", 0)
        child = start(recipe, run, resume=True, prepare=functools.partial(noting, tmp_path / "mark"))
        aim = saved + chance.randint(1, 8)
        deadline = time.monotonic() + 120
        while mark.get()[1] < aim and child.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.03))
        if kill(child):
            hits.append(mark.get())
            saved = whole.check(run, saved)
        else:  # it was faster, and is at its end
            assert contents(run) == whole.contents
            runs, saved = runs + 1, 0
    finish(recipe, run, resume=True)
    assert contents(run) == whole.contents
    steps, phases = sorted({step for _, step in hits}), sorted({phase for phase, _ in hits})
    print(f"{kills} kills of {runs} runs at random instants: within steps {steps}; phases {phases}")
    assert len(steps) >= kills // 2 and steps[0] > 0 and TRAINING in phases


def test_kill_between_any_two_calls_of_a_save(tmp_path: Path, whole: Whole) -> None:
    # Each process takes up the checkpoint that the one before left, and dies one call later.
    by_step: dict[str, list[str]] = defaultdict(list)
    for line in whole.calls.read_text().splitlines():
        step, name = line.split()
        by_step[step].append(name)
    most = max(len(names) for names in by_step.values())
    begin = functools.partial(at_steps, tmp_path / "mark", {8: die})
    hits: list[tuple[str, int]] = []
    run, runs = tmp_path / "run-1", 1
    start(whole.recipe, run, prepare=begin).join(120)
    saved = whole.check(run)
    deadly = 1
    while deadly <= most or [phase for phase, _ in hits].count(SAVING) < most + 4:  # and the four that remove an old checkpoint
        child = start(whole.recipe, run, resume=True, prepare=functools.partial(counting, tmp_path / "mark", deadly))
        child.join(120)
        if child.exitcode == 0:
            assert contents(run) == whole.contents
            runs, saved = runs + 1, 0
            run = tmp_path / f"run-{runs}"
            start(whole.recipe, run, prepare=begin).join(120)
            continue
        assert child.exitcode == -signal.SIGKILL
        hits.append(Mark(tmp_path / "mark").get())
        saved = whole.check(run, saved)
        deadly += 1
    whole.finish(run)
    steps, phases = sorted({step for _, step in hits}), [phase for phase, _ in hits]
    counts = {phase: phases.count(phase) for phase in sorted(set(phases))}
    print(f"{len(hits)} kills of {runs} runs, each one call later: {counts}; steps {steps}; a save is {by_step[str(steps[-1])]}")
    assert set(phases) == {SAVING, RESUMING} and len(steps) > 3


def test_kill_in_the_first_save(tmp_path: Path, whole: Whole) -> None:
    run = tmp_path / "run"
    for deadly in (1, 3, 6, 9):  # before the folder, in it, before and after its rename
        child = start(whole.recipe, run, resume=True, prepare=functools.partial(counting, tmp_path / "mark", deadly))
        child.join(120)
        assert child.exitcode == -signal.SIGKILL and Mark(tmp_path / "mark").get() == (SAVING, 0)
    whole.finish(run)
    assert not list((run / "checkpoints").glob(".*"))


def test_kill_in_an_evaluation(tmp_path: Path, whole: Whole) -> None:
    run, saved, hits = tmp_path / "run", 0, []
    for batch in (1, 4, 8):
        child = start(whole.recipe, run, resume=True, prepare=functools.partial(dying_in_evaluation, tmp_path / "mark", batch))
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        hits.append(Mark(tmp_path / "mark").get())
        saved = whole.check(run, saved)
    whole.finish(run)
    print(f"3 kills in evaluations, after steps {[step for _, step in hits]}")
    assert {phase for phase, _ in hits} == {EVALUATING} and len({step for _, step in hits}) > 1


def forgetting() -> None:
    """In a child, a planted fault: what the optimizer has gathered is not restored."""
    import torch

    torch.optim.Optimizer.load_state_dict = lambda *_: None  # type: ignore[assignment, method-assign]  # the fault


def drawing_on(mark: Path, last: int | None) -> None:
    """In a child that dies within step `last`, a planted fault: the order of samples comes from a generator that lives on."""
    import torch

    from trainrun.parts import samplers

    generator = torch.Generator().manual_seed(0)
    samplers.order = lambda _seed, _epoch, count: torch.randperm(count, generator=generator)  # type: ignore[assignment]  # the fault
    at_steps(mark, {last: die} if last else {})


def test_a_lost_optimizer_state_is_seen(tmp_path: Path, whole: Whole) -> None:
    run = tmp_path / "run"
    start(whole.recipe, run, prepare=functools.partial(at_steps, tmp_path / "mark", {20: die})).join(120)
    assert Mark(tmp_path / "mark").get() == (TRAINING, 20)
    finish(whole.recipe, run, resume=True, prepare=forgetting)
    assert contents(run)[0][0] != whole.contents[0][0]


def test_a_sample_order_that_has_a_state_is_seen(tmp_path: Path, whole: Whole) -> None:
    run = tmp_path / "run"
    start(whole.recipe, run, prepare=functools.partial(drawing_on, tmp_path / "mark", 20)).join(120)
    assert Mark(tmp_path / "mark").get() == (TRAINING, 20)
    for out, resume in ((run, True), (tmp_path / "whole", False)):
        finish(whole.recipe, out, resume=resume, prepare=functools.partial(drawing_on, tmp_path / "mark", None))
    assert contents(run)[0][0] != contents(tmp_path / "whole")[0][0]
