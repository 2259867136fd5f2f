"""Run directories: found, claimed and described. One run, one directory; nothing in it is ever overwritten."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from trainrun.errors import UserError
from trainrun.recipe.dump import plain
from trainrun.recipe.plugins import digest
from trainrun.recipe.schema import HARMLESS, Recipe
from trainrun.world import World

# Ways to end after which there is nothing to go on with.
_FINAL = ("epochs", "early_stopping")
_REFUSED = ("error", "out_of_memory")


def result(run: Path) -> dict[str, Any] | None:
    """The run's result.json, or None while there is none."""
    try:
        return json.loads((run / "result.json").read_text())
    except (OSError, ValueError):
        return None


def finished(run: Path) -> bool:
    """Whether the run came to its end, so that there is nothing to go on with."""
    ended = result(run)
    return ended is not None and ended.get("stop") in _FINAL


def _refused(run: Path) -> bool:
    """Whether what lies there was refused before there was a run: nothing of it can be lost, and the directory is as good as new."""
    ended = result(run) or {}
    empty = not any((run / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    return empty and ended.get("stop") in _REFUSED and ended["steps"] is None


def _taken(run: Path) -> bool:
    """Whether there is a run in the directory."""
    return (run / "recipe.yaml").exists() and not _refused(run)


def unfinished(name: str, out: Path | None, resume: bool) -> Path | None:
    """The directory of the run to go on with, if there is one; raises UserError where `out` holds a run and `resume` is not given."""
    if out is None:
        runs = [run for run in _numbered(Path("runs") / name) if resume and _taken(run) and not finished(run)]
        return max(runs, key=lambda run: int(run.name), default=None)
    if not _taken(out):
        return None
    if not resume:
        with claim(out):
            raise _occupied(out)
    return out


def _occupied(out: Path) -> UserError:
    return UserError(f"{out} holds a run already; add --resume to go on with it, or choose another --out")


def _numbered(home: Path) -> list[Path]:
    return [folder for folder in home.glob("[0-9]*") if folder.name.isdecimal()]


@contextlib.contextmanager
def fresh(name: str, out: Path | None) -> Iterator[Path]:
    """A directory for a new run, held for this process: `out`, or the next number under runs/NAME."""
    if out is not None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        with claim(out):
            if _taken(out):  # another process was faster
                raise _occupied(out)
            yield out
        return
    home = Path("runs") / name
    with writing(home):
        run = _next_number(home)
    with claim(run):
        yield run


def _next_number(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    number = max((int(folder.name) for folder in _numbered(home)), default=0)
    while True:  # mkdir is atomic, so two runs that start together get two numbers
        number += 1
        with contextlib.suppress(FileExistsError):
            (home / f"{number:03d}").mkdir()
            break
    link = home / f".latest-{os.getpid()}"
    link.symlink_to(f"{number:03d}")
    link.replace(home / "latest")
    return home / f"{number:03d}"


@contextlib.contextmanager
def claim(run: Path) -> Iterator[None]:
    """Hold the directory for this process; raises UserError naming the process that holds it. A killed holder lets go at once."""
    lock = FileLock(run / ".lock")
    owner = run / ".owner"
    try:
        with writing(run):
            lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = json.loads(owner.read_text())
            who = f"process {told['pid']} on {told['host']}"
        raise UserError(f"{run} is in use by {who}; wait for it to end, or choose another --out") from None
    try:
        with writing(run):
            owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError in here into a UserError that names the folder."""
    try:
        yield
    except Timeout:  # an OSError too, that says that another process holds the lock
        raise
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}; choose another --out") from error


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all, so that it survives a power cut."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """The same for bytes."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _leaves(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}


def numbers(recipe: Recipe) -> dict[str, Any]:
    """The settings, by dotted path, that change a run's numbers."""
    leaves = _leaves(plain(recipe))
    return {path: value for path, value in leaves.items() if not any(path == h or path.startswith(h + ".") for h in HARMLESS)}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the settings that change a run's numbers."""
    return hashlib.sha256(json.dumps(numbers(recipe), sort_keys=True).encode()).hexdigest()


def differences(before: Recipe, now: Recipe) -> list[str]:
    """A line for each setting that changes the numbers and differs: `key: was A, is B`."""
    old, new = numbers(before), numbers(now)
    return [f"{k}: was {json.dumps(old.get(k))}, is {json.dumps(new.get(k))}" for k in sorted(old | new) if old.get(k) != new.get(k)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fingerprint(world: World, recipe: Recipe, data_digest: str) -> dict[str, Any]:
    """What must be equal for a resumed run to give the very same bits."""
    return {
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "pillow": _version("pillow"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": world.device_name,
        "processes": world.size,
        "memory_format": recipe.memory_format,
        "data": data_digest,
        "plugins": digest(recipe.plugins),
        "recipe": recipe_hash(recipe),
    }


def environment(recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """The contents of environment.json."""
    return {
        "trainrun": _version("trainrun"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
        "seed": recipe.seed,
        "recipe_sha256": facts["recipe"],
        "git": _git(),
        **{name: value for name, value in facts.items() if name != "recipe"},
    }


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the working directory, or None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status.strip())}
