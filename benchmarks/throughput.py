"""Images a second of the same training by trainrun, bare PyTorch and other trainers, interleaved in one run; one JSON object a line.

README.md says what each row is. Every round goes once through all rows, each time beginning with another one; a ratio is the median
over the rounds of the ratio within a round, so that a machine that slows down for a minute shifts both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bare
import peers
import pictures
import torch
from loops import Stamps, Task, bare_loop, fixed_batch, rate, trainrun_fit
from recipe import NETS
from torchvision.datasets import ImageFolder

from trainrun.world import native_bf16

WARMUP = 10
STEPS = {"convnet": 80, "resnet20": 40, "jpeg": 40}
QUICK_STEPS = {"convnet": 20, "resnet20": 10, "jpeg": 15}
PEERS = ("lightning", "timm", "accelerate")


@dataclass(frozen=True)
class Row:
    """One way of doing the work."""

    name: str
    precision: str
    workers: int
    train: Callable[[Task], Stamps]
    needs: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.workers


def in_memory() -> list[Row]:
    """The rows over pictures in memory."""
    automatic = "bf16" if native_bf16(torch.device("cpu")) else "fp32"
    rows = [
        Row("trainrun", automatic, 0, trainrun_fit),
        Row("trainrun_fp32", "fp32", 0, functools.partial(trainrun_fit, overrides=["precision=fp32"])),
        Row("fixed_batch", "fp32", 0, fixed_batch),
    ]
    for workers in (0, 2):
        rows += [
            Row("bare", "fp32", workers, functools.partial(bare_loop, workers=workers)),
            Row("lightning", "fp32", workers, functools.partial(peers.lightning, workers=workers), "lightning"),
            Row("timm", "fp32", workers, functools.partial(peers.timm, workers=workers, prefetcher=False), "timm"),
            Row("timm_prefetcher", "fp32", workers, functools.partial(peers.timm, workers=workers, prefetcher=True), "timm"),
            Row("accelerate", "fp32", workers, functools.partial(peers.accelerate, workers=workers), "accelerate"),
        ]
    return rows


def from_jpeg() -> list[Row]:
    """The rows that decode every picture of every batch."""
    kept = ("trainrun", "trainrun_fp32", "bare", "timm", "timm_prefetcher")
    rows = [row for row in in_memory() if row.name in kept and (row.workers == 2 or not row.name.startswith("timm"))]
    return [replace(row, workers=2) if row.name.startswith("trainrun") else row for row in rows]


def tasks(folder: Path, source: Path | None, lengths: dict[str, int]) -> Iterator[tuple[str, Task, list[Row]]]:
    """Each comparison's name, work and rows, over pictures written below `folder`."""
    binary, jpegs = pictures.write(folder, source)
    arrays = bare.read(binary)
    for net in NETS:
        yield net, Task(net, WARMUP + lengths[net], f"{{name: cifar10, root: {binary}}}", functools.partial(bare.Pictures, *arrays)), in_memory()
    streamed = f"{{name: folder, root: {json.dumps(str(jpegs))}, resident: 'no', cache: false, workers: 2}}"
    dataset = functools.partial(ImageFolder, str(jpegs))
    yield "jpeg", Task("convnet", WARMUP + lengths["jpeg"], streamed, dataset, jpegs), from_jpeg()


def measure(task: Task, rows: Sequence[Row], rounds: int, say: Callable[[str], None]) -> dict[tuple[str, int], list[float]]:
    """The rate of every row in every round."""
    rates: dict[tuple[str, int], list[float]] = {row.key: [] for row in rows}
    threads = torch.get_num_threads()
    for number in range(rounds):
        for place in range(len(rows)):
            row = rows[(place + number) % len(rows)]
            gc.collect()
            torch.manual_seed(number)
            # What others print would stand between the rows.
            with contextlib.redirect_stdout(io.StringIO()):
                stamps = row.train(task)
            assert len(stamps) == task.steps and torch.get_num_threads() == threads, row
            rates[row.key].append(rate(stamps, WARMUP))
            say(f"round {number + 1}: {row.name}, {row.workers} workers: {rates[row.key][-1]:,.0f} images/s")
    return rates


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, least and largest."""
    return {name: round(f(values), digits) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def ratio(rates: dict[tuple[str, int], list[float]], ours: tuple[str, int], theirs: tuple[str, int]) -> dict[str, float] | None:
    """The spread of the ratio within a round; None where the other row was not measured."""
    if theirs not in rates:
        return None
    return spread([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)], 3)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    named = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", *PEERS) if importlib.util.find_spec(name)}
    return {
        "cpu": named[0] if named else platform.processor(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
        "native_bf16": native_bf16(torch.device("cpu")), "python": platform.python_version(), **versions,
    }  # fmt: skip


def report(name: str, task: Task, row: Row, rates: dict[tuple[str, int], list[float]], data: str) -> dict[str, Any]:
    """A row's JSON object."""
    line: dict[str, Any] = {
        "row": row.name, "net": task.net, "pictures": "jpeg" if task.jpegs else "memory", "data": data,
        "parameters": sum(p.numel() for p in task.model().parameters()), "precision": row.precision, "workers": row.workers,
    }  # fmt: skip
    if row.key not in rates:
        return {**line, "skipped": f"{row.needs} is not installed: pip install -e '.[bench]'"}
    line |= {"images_per_second": spread(rates[row.key], 1), "rounds": len(rates[row.key]), "steps": task.steps - WARMUP}
    line["ratio_to_bare"] = {str(workers): ratio(rates, row.key, ("bare", workers)) for workers in (0, 2)}
    if name == "jpeg":
        return {**line, "ratio_to_timm": {peer: ratio(rates, row.key, (peer, 2)) for peer in ("timm", "timm_prefetcher")}}
    return {**line, "ratio_to_fixed": ratio(rates, row.key, ("fixed_batch", 0))}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pictures.add_option(parser)
    names = sorted({row.name for row in in_memory()})
    parser.add_argument("--nets", default="convnet,resnet20,jpeg", help="comparisons to make; jpeg: the convnet (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(names), help="rows to measure (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="times through all rows (default: 5, with --quick 2)")
    parser.add_argument("--steps", type=int, help=f"steps measured a row and round (default: {STEPS}, with --quick {QUICK_STEPS})")
    parser.add_argument("--quick", action="store_true", help="a look of about two minutes")
    given = parser.parse_args()
    given.nets, given.rows = given.nets.split(","), given.rows.split(",")
    if unknown := (set(given.nets) - set(STEPS)) | (set(given.rows) - set(names)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; nets are {', '.join(STEPS)}; rows are {', '.join(names)}")
    return given


def main() -> None:
    given = arguments()
    rounds = given.rounds or (2 if given.quick else 5)
    lengths = QUICK_STEPS if given.quick else STEPS
    lengths = {name: given.steps or steps for name, steps in lengths.items()}
    began, load_at_start = time.monotonic(), os.getloadavg()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRAINRUN_CACHE"] = str(Path(folder) / "cache")
        for name, task, rows in tasks(Path(folder), given.data, lengths):
            if name not in given.nets:
                continue
            rows = [row for row in rows if row.name in given.rows]
            say(f"{name}: {rounds} rounds of {len(rows)} rows, {task.steps} steps each, the first {WARMUP} not measured")
            rates = measure(task, [row for row in rows if not row.needs or importlib.util.find_spec(row.needs)], rounds, say)
            for row in rows:
                print(json.dumps(report(name, task, row, rates, "given" if given.data else "made up")), flush=True)
    facts = {**machine(), "load_average": {"start": load_at_start, "end": os.getloadavg()}, "seconds": round(time.monotonic() - began)}
    print(json.dumps({"row": "machine", **facts}))


if __name__ == "__main__":
    main()
