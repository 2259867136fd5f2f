"""Peak memory of training beyond the data set and the model, for trainrun with resident data off and for bare.py; one JSON object a line.

Each row trains the convnet in fp32 in processes of its own. `peak` is the largest resident set of the training process (getrusage's
ru_maxrss), `worker` that of its largest worker (VmHWM), `together` what they all hold after the last step apart from program files,
each shared page counted once. `beyond` and `together_beyond` are these less the pictures, labels and weights; the ratios compare them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Imports nothing large: the largest resident set of a process is handed down to those that it starts.
_PICTURE = 3 * 32 * 32 + 8
_HELD = {"trainrun": 60_000 * _PICTURE, "bare": 50_000 * _PICTURE}  # trainrun reads the test set too
_WEIGHTS = 4 * 53_794
ROWS = [(name, workers) for workers in (0, 2) for name in ("bare", "trainrun")]


def _of_process(pid: int | str, file: str, fields: tuple[str, ...]) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))


def one(row: str, workers: int, folder: str, steps: int) -> dict[str, int]:
    """Train in this process and measure after the last step; bytes."""
    done = 0
    found: dict[str, int] = {}

    def look() -> None:
        nonlocal done
        done += 1
        if done == steps:
            others = [child.pid for child in multiprocessing.active_children() if child.pid]
            assert len(others) == workers, others
            found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            found["worker"] = max((_of_process(pid, "status", ("VmHWM:",)) for pid in others), default=0)
            found["together"] = sum(_of_process(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) for pid in ["self", *others])

    if row == "bare":
        import bare

        loader = bare.make_loader(bare.Pictures(*bare.read(Path(folder)), bare.transform()), workers)
        bare.train(bare.convnet(), bare.forever(loader), steps, look)
    else:
        import ours

        data = f"{{name: cifar10, root: {folder}, resident: 'no', workers: {workers}}}"
        ours.trainrun_fit(data, "convnet", steps, look, ["precision=fp32"])
    rest = _HELD[row] + _WEIGHTS
    return {**found, "beyond": found["peak"] - rest, "together_beyond": found["together"] - rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each row is run (default: %(default)s)")
    parser.add_argument("--one", nargs=3, metavar=("ROW", "WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        row, workers, folder = given.one
        print(json.dumps(one(row, int(workers), folder, given.steps)))
        return
    runs: dict[tuple[str, int], list[dict[str, int]]] = {key: [] for key in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, Path(__file__).with_name("pictures.py"), folder], check=True)
        for number in range(given.rounds):
            for row, workers in ROWS:
                command = [sys.executable, __file__, "--steps", str(given.steps), "--one", row, str(workers), f"{folder}/cifar-10-batches-bin"]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs[row, workers].append(json.loads(out.splitlines()[-1]))
                print(f"round {number + 1}: {row}, {workers} workers", file=sys.stderr)
    for (row, workers), measured in runs.items():
        line = {"row": row, "net": "convnet", "workers": workers, "rounds": given.rounds, "steps": given.steps}
        for name in measured[0]:
            values = sorted(run[name] for run in measured)
            line[f"{name}_bytes"] = {"median": int(statistics.median(values)), "min": values[0], "max": values[-1]}
        for name in ("beyond", "together_beyond"):
            both = (statistics.median(run[name] for run in side) for side in (measured, runs["bare", workers]))
            line[f"{name}_ratio_to_bare"] = round(next(both) / next(both), 3)
        print(json.dumps(line))


if __name__ == "__main__":
    main()
