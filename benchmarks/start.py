"""Seconds from the start of a process to its first optimizer step, for `trainrun fit` and for bare.py; one JSON object a line.

Both are run as their users run them and watched from outside: trainrun writes its first line of metrics.jsonl after the first step
(log.every=1st), bare.py a line to its mark file. The same CIFAR-10 files, the convnet, batch 128, no workers; interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pictures
from recipe import recipe_file

_HERE = Path(__file__).parent


def until_first_step(command: Sequence[str], file: Path) -> tuple[float, float]:
    """Seconds by the clock, and of all cores' work, until `file` holds something; the process is ended then."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not (file.exists() and file.stat().st_size):
                if process.poll() is not None:
                    said.seek(0)
                    raise SystemExit(f"{' '.join(command)} ended before its first step:\n{said.read()}")
                time.sleep(0.002)
            took = time.monotonic() - began
        finally:
            process.kill()
        _, process.returncode, usage = os.wait4(process.pid, 0)
    return took, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pictures.add_option(parser)
    parser.add_argument("--rounds", type=int, default=7, help="times that each is started; one start before is not counted (default: %(default)s)")
    given = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {"trainrun": [], "bare": []}
    load_at_start = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binary, _ = pictures.write(folder, given.data)
        recipe = recipe_file(folder, f"{{name: cifar10, root: {binary}}}", "convnet")
        for number in range(given.rounds + 1):
            out, mark = folder / f"run{number}", folder / f"mark{number}"
            commands = {
                "trainrun": (["-m", "trainrun", "fit", str(recipe), "log.every=1st", "--out", str(out)], out / "metrics.jsonl"),
                "bare": ([str(_HERE / "bare.py"), str(binary), "--mark", str(mark)], mark),
            }
            for row in sorted(commands, reverse=number % 2 == 1):
                took = until_first_step(*commands[row])
                if number:  # the first start reads the libraries from the disk
                    measured[row].append(took)
                    print(f"round {number}: {row} {took[0]:.2f} s, {took[1]:.2f} s of work", file=sys.stderr)
    for row, values in measured.items():
        line: dict[str, Any] = {"row": row, "rounds": given.rounds, "data": "given" if given.data else "made up"}
        for place, name in enumerate(("seconds", "cpu_seconds")):
            line[name] = spread([value[place] for value in values])
            line[f"{name}_after_bare"] = spread([a[place] - b[place] for a, b in zip(values, measured["bare"], strict=True)])
        print(json.dumps(line))
    print(json.dumps({"row": "machine", "cores": len(os.sched_getaffinity(0)), "load_average": {"start": load_at_start, "end": os.getloadavg()}}))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {name: round(f(values), 3) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
