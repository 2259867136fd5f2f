"""Several processes: the same run as one, counted once, stopped together, and resumed bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from children import contents, figures, server
from PIL import Image
from safetensors.torch import load_file
from test_full_disk import clear, fill, troubled

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.engine.use import evaluate_run

RECIPE = """
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 415, workers: 0}
model: {name: tiny_convnet, width: 8, norm: group}
batch_size: 32
micro_batch: 6
epochs: 4
schedule: {lr: 0.05, warmup: {name: gradual, for: 1ep}, decay: cosine}
augment: [{name: random_crop, padding: 1}, horizontal_flip, normalize]
ema: {decay: 0.99}
checkpoint: {every: 5st}  # and at the end of the second epoch, step 22, which is the best so far
log: {every: 4st}
clip: 1.0
"""  # 332 training pictures, 12 of them in the last of 11 batches, and 83 for validation
MIDDLE = 23


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "run.yaml"
    file.write_text(RECIPE)
    return file


def member(rank: int, size: int, port: int, words: Sequence[str], said: str, prepare: Callable[[int], None] | None) -> None:
    """The command in one of several processes, as torchrun starts it."""
    from trainrun.cli import main

    os.setpgrp()
    torch.set_num_threads(1)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    sys.stderr = open(f"{said}.{rank}", "w", buffering=1)  # noqa: SIM115 - open until the process ends
    sys.stdout = open(f"{said}.{rank}.out", "w", buffering=1)  # noqa: SIM115
    sys.argv = ["trainrun", *words]
    if prepare:
        prepare(rank)
    main()


class Processes:
    """A command in several processes, with this one in the place of torchrun: it holds the store. What they say goes to files beside `beside`."""

    def __init__(self, size: int, words: Sequence[str], beside: Path, prepare: Callable[[int], None] | None = None) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.said_to = f"{beside}.said"
        self.children = [
            server.Process(target=member, args=(rank, size, self.store.port, words, self.said_to, prepare)) for rank in range(size)
        ]
        for child in self.children:
            child.start()

    def codes(self) -> list[int | None]:
        """The exit code of each; None where one still runs after the 60 s in which all have to stop."""
        for child in self.children:
            child.join(60)
        return [child.exitcode for child in self.children]

    def said(self) -> str:
        """What all of them said on stderr, in the order of their ranks."""
        return "".join(Path(f"{self.said_to}.{rank}").read_text() for rank in range(len(self.children)))

    def printed(self) -> list[str]:
        """What each of them printed on stdout."""
        return [Path(f"{self.said_to}.{rank}.out").read_text() for rank in range(len(self.children))]


class Group(Processes):
    """`trainrun fit` in several processes."""

    def __init__(self, size: int, recipe: Path, out: Path, *more: str, prepare: Callable[[int], None] | None = None) -> None:
        super().__init__(size, ("fit", str(recipe), "--out", str(out), *more), out, prepare)


def finish(size: int, recipe: Path, out: Path, *more: str) -> Path:
    group = Group(size, recipe, out, *more)
    assert group.codes() == [0] * size, group.said()
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(1, recipe, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def pair(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(2, recipe, tmp_path_factory.mktemp("pair") / "run")


def agree(one: Path, several: Path, pictures: dict[str, int]) -> None:
    """The same lines: losses equal but for rounding, all else exactly, and accuracies that are whole hits among so many pictures."""
    for a, b in zip(figures(one), figures(several), strict=True):
        losses = [name for name in a if name.endswith(("_loss", "_threshold"))]
        assert [b.pop(name) for name in losses] == pytest.approx([a.pop(name) for name in losses], rel=1e-5)
        assert a == b
        for name, count in pictures.items():
            hits = b.get(f"{name}_accuracy", 0) * (count if a["kind"] == "epoch" else 0)
            assert hits == pytest.approx(round(hits), abs=1e-9)
    torch.testing.assert_close(weights(several), weights(one), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_give_the_run_of_one(recipe: Path, alone: Path, tmp_path: Path, size: int) -> None:
    agree(alone, finish(size, recipe, tmp_path / "run"), {"train": 332, "val": 83})


def test_pairs_that_are_mixed_are_not_parted(recipe: Path, tmp_path: Path) -> None:
    """Shares of 12, 10 and 10 pictures of a batch of 32, and of 4 each of the last one."""
    mixed = ("augment=[{name: random_crop, padding: 1}, normalize, mixup_or_cutmix]", "epochs=2")
    one, three = (finish(size, recipe, tmp_path / str(size), *mixed) for size in (1, 3))
    agree(one, three, {"train": 332, "val": 83})


def test_two_processes_share_an_epoch_in_which_pictures_come_again(recipe: Path, tmp_path: Path) -> None:
    more = ("sampler=label_shuffle", "data.imbalance=5", "epochs=2")  # 83 pictures of the first class and 16 of the last make 332 an epoch
    agree(finish(1, recipe, tmp_path / "one", *more), finish(2, recipe, tmp_path / "two", *more), {"train": 332, "val": 83})


def test_fewer_validation_pictures_than_processes_are_counted_once(recipe: Path, tmp_path: Path) -> None:
    few = ("data.size=34", "data.validation=0.06", "batch_size=16", "epochs=2")
    one, three = (finish(size, recipe, tmp_path / str(size), *few) for size in (1, 3))
    agree(one, three, {"train": 32, "val": 2})


def with_memory_for(pictures: Sequence[bool], cache: Path, rank: int) -> None:
    """In a child: some processes find room for all pictures, the others for none."""
    from trainrun.engine import resident

    os.environ["TRAINRUN_CACHE"] = str(cache)
    resident.free_memory = lambda device: (1 << 30) * pictures[rank]  # type: ignore[assignment]  # a machine as the test wants it


def test_processes_that_find_other_memory_hold_pictures_alike(recipe: Path, tmp_path: Path) -> None:
    """Only to hold decoded pictures do they wait for one another: where some did and some did not, the waiting was never answered."""
    for side, count in (("train", 16), ("val", 4)):
        for n, name in enumerate("ab"):
            (tmp_path / "data" / side / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (10 * k, 100 * n, 9)).save(tmp_path / "data" / side / name / f"{k}.png")
    data = f"data={{name: folder, root: {tmp_path / 'data'}, workers: 0}}"
    group = Group(2, recipe, tmp_path / "run", data, "epochs=1", prepare=partial(with_memory_for, (True, False), tmp_path / "cache"))
    assert group.codes() == [0, 0], group.said()
    assert "; streamed" in group.said()


def full_for_a_while(run: Path, rank: int) -> None:
    """In a child: the first process finds no room on the disk from step 13 to step 21, and tries failed saves again after a minute."""
    if rank == 0:
        troubled(run, {13: fill, 21: clear}, retry=60.0)


def test_a_failed_save_is_tried_again_by_the_clock_alone(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """By the steps it was due at 15, where it failed, and 20."""
    group = Group(2, recipe, tmp_path / "run", "--quiet", prepare=partial(full_for_a_while, tmp_path / "run"))
    assert group.codes() == [0, 0], group.said()
    assert group.said().count("could not be written to") == 1
    agree(alone, tmp_path / "run", {"train": 332, "val": 83})


def test_the_figures_are_those_of_the_weights_that_are_saved(recipe: Path, tmp_path: Path) -> None:
    # Batch norm's statistics differ from process to process, and so do their averages.
    run = finish(2, recipe, tmp_path / "run", "model.norm=batch", "epochs=2", "ema.decay=0.5")
    *_, last = (line for line in figures(run) if "val_loss" in line)
    found = evaluate_run(run, [], allow_plugins=False, checkpoint="last")
    assert found["val_loss"] == pytest.approx(last["val_loss"], rel=1e-5)
    assert found["val_accuracy"] == last["val_accuracy"]


def test_what_all_processes_know_is_printed_by_the_first_alone(pair: Path, tmp_path: Path) -> None:
    found = evaluate_run(pair)
    for name, told in (("eval", "val_loss"), ("hard", "png")):
        more = ["--png", str(tmp_path / "hard.png")] if name == "hard" else []
        group = Processes(2, [name, str(pair), "--json", *more], tmp_path / name)
        assert group.codes() == [0, 0], group.said()
        first, second = group.printed()
        document = json.loads(first)
        assert told in document and second == ""
        assert name != "eval" or document["val_loss"] == pytest.approx(found["val_loss"], rel=1e-5)
        assert group.said().count("next: ") == 1


@pytest.mark.parametrize("size", [2, 3])
def test_stopped_and_resumed_is_uninterrupted(recipe: Path, pair: Path, tmp_path: Path, size: int) -> None:
    whole = pair if size == 2 else finish(size, recipe, tmp_path / "whole")
    part = finish(size, recipe, tmp_path / "part", "stop_at=23st")
    assert contents(finish(size, recipe, part, "--resume")) == contents(whole)


def test_another_number_of_processes_goes_on_and_says_so(recipe: Path, alone: Path, tmp_path: Path) -> None:
    run = finish(2, recipe, tmp_path / "run", "stop_at=2ep")
    group = Group(1, recipe, run, "--resume")
    assert group.codes() == [0]
    assert "warning: the numbers may differ in their last bits: processes: was 2, is 1\n" in group.said()
    agree(alone, run, {"train": 332, "val": 83})


def in_the_middle(act: Callable[[], None], ranks: Sequence[int], rank: int) -> None:
    """In a child of one of the `ranks`: act within step 23, before its update."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    made = 0

    def before_update(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == MIDDLE:
            act()

    if rank in ranks:
        register_optimizer_step_pre_hook(before_update)


def signalled(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=str)
def test_a_killed_process_stops_all_and_the_run_goes_on_as_if_nothing_had_happened(
    recipe: Path, pair: Path, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    group = Group(2, recipe, run, prepare=partial(in_the_middle, partial(signalled, signal.SIGKILL), ranks))
    assert all(code == -signal.SIGKILL if rank in ranks else code not in (0, None) for rank, code in enumerate(group.codes()))
    assert os.readlink(run / "checkpoints" / "last") == "step-00000022"
    assert contents(finish(2, recipe, run, "--resume")) == contents(pair)


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=str)
def test_a_signal_to_any_process_stops_all_with_everything_saved(recipe: Path, pair: Path, tmp_path: Path, ranks: tuple[int, ...]) -> None:
    run = tmp_path / "run"
    group = Group(2, recipe, run, prepare=partial(in_the_middle, partial(signalled, signal.SIGTERM), ranks))
    assert group.codes() == [143, 143], group.said()
    assert os.readlink(run / "checkpoints" / "last") == f"step-{MIDDLE:08d}"
    result = json.loads((run / "result.json").read_text())
    assert (result["stop"], result["steps"]) == ("signal", MIDDLE)
    assert contents(finish(2, recipe, run, "--resume")) == contents(pair)


def test_a_second_signal_ends_a_process_at_once_and_the_others_with_it(recipe: Path, pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    group = Group(2, recipe, run, prepare=partial(in_the_middle, partial(signalled, signal.SIGINT, signal.SIGINT), (1,)))
    first, second = group.codes()
    assert (first not in (0, None), second) == (True, 130)
    assert contents(finish(2, recipe, run, "--resume")) == contents(pair)


def test_batches_that_cannot_be_shared_are_refused(recipe: Path, tmp_path: Path) -> None:
    group = Group(2, recipe, tmp_path / "run", "data.size=401")  # 321 for training
    assert group.codes() == [2, 2]
    assert "the last batch of an epoch has 1 pictures for 2 processes" in group.said()


PLUGIN = """
import os, signal
from torch.optim.optimizer import register_optimizer_step_pre_hook

made = 0


def before_update(*_):
    global made
    made += 1
    if made == 23:
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    register_optimizer_step_pre_hook(before_update)
"""


def test_torchrun_starts_a_run_again_after_a_death_and_its_weights_are_those_of_an_undisturbed_one(
    recipe: Path, pair: Path, tmp_path: Path
) -> None:
    (tmp_path / "dies_once.py").write_text(PLUGIN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m"]
    command = ["trainrun", "fit", str(recipe), f"plugins=[{tmp_path}/dies_once.py]", "--allow-plugins", "--out", "run", "--resume"]
    ended = subprocess.run([*torchrun, *command], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "resumed     at step 22" in ended.stderr
    assert contents(tmp_path / "run") == contents(pair)


def too_much() -> None:
    torch.empty(1 << 62, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (("epoch=3",), 2, "did you mean epochs?"),
        (("data.size=401",), 2, "the last batch of an epoch has 1 pictures"),
        (("schedule.lr=1e6", "optimizer.weight_decay=1e3"), 4, "became NaN or infinite"),
    ],
)
def test_a_mistake_or_a_number_that_is_none_ends_all_and_is_told_once(
    recipe: Path, tmp_path: Path, settings: tuple[str, ...], code: int, words: str
) -> None:
    group = Group(2, recipe, tmp_path / "run", *settings)
    assert group.codes() == [code, code], group.said()
    assert group.said().count(words) == 1
    assert "Traceback" not in group.said()


def test_a_directory_that_is_taken_is_refused_in_all_and_told_once(recipe: Path, pair: Path) -> None:
    group = Group(2, recipe, pair)
    assert group.codes() == [2, 2]
    assert group.said().count("holds a run already") == 1
    assert "Traceback" not in group.said()


def test_out_of_memory_in_one_process_is_told_and_ends_all(recipe: Path, tmp_path: Path) -> None:
    group = Group(2, recipe, tmp_path / "run", prepare=partial(in_the_middle, too_much, (1,)))
    assert group.codes() == [1, 5]
    assert group.said().count("out of memory") == 1
    assert "another process of this run has ended" in group.said()
    assert "Traceback" not in group.said()


def stopped_on_a_slow_disk(rank: int) -> None:
    """In a child: the first process gets a signal, and from then on each of its syncs takes a second."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(1)
        fsync(handle)

    def act() -> None:
        os.fsync = slow
        signalled(signal.SIGTERM)

    in_the_middle(act, (0,), rank)


def test_the_others_wait_until_all_is_written(recipe: Path, tmp_path: Path) -> None:
    # torchrun sends SIGTERM to what is left when one process has ended, which would be a second signal.
    run = tmp_path / "run"
    group = Group(2, recipe, run, prepare=stopped_on_a_slow_disk)
    writer, other = group.children
    other.join(60)
    with contextlib.suppress(ProcessLookupError):  # it has ended too
        os.kill(writer.pid, signal.SIGTERM)
    assert group.codes() == [143, 143]
    assert os.readlink(run / "checkpoints" / "last") == f"step-{MIDDLE:08d}"
    assert json.loads((run / "result.json").read_text())["stop"] == "signal"


def test_saves_by_the_clock_are_those_of_one_clock(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    group = Group(2, recipe, run, "checkpoint.every=1s", "checkpoint.keep=1000", "epochs=4000", "data.validation=0")
    folder = run / "checkpoints"
    while len(list(folder.glob("step-*"))) < 4 and group.children[0].is_alive():
        group.children[0].join(0.05)
    assert group.children[0].is_alive(), group.said()
    os.kill(group.children[0].pid, signal.SIGTERM)
    assert group.codes() == [143, 143]
    seconds = [json.loads((save / "state.json").read_text())["values"]["seconds"] for save in sorted(folder.glob("step-*"))]
    first, *timed, _signalled = seconds
    assert all(later - earlier >= 0.9 for earlier, later in zip([first, *timed], timed, strict=False))
