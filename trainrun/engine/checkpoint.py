"""The state of a run on disk: atomic, checksummed, free of pickle. The only writer under checkpoints/.

checkpoints/step-00000120/   model.safetensors   the weights to use: plain state_dict names, the average where there is one
                             state.safetensors   every other tensor of the run
                             state.json          everything else, with a SHA-256 of the two files and of itself
checkpoints/last, best       links to such folders, replaced in one rename

A folder appears under its name only when all of it is on disk, and nothing is removed before its successor is, so that
at every instant at least one complete checkpoint stands there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from trainrun.errors import UserError

Tensors = dict[str, torch.Tensor]
_TENSOR = "$tensor"
_PAIRS = "$pairs"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: the weights to use, all other tensors, and plain values (with `step` and `is_best` among them)."""

    model: Tensors
    tensors: Tensors
    values: dict[str, Any]
    folder: Path | None = None


class Damaged(Exception):
    """A checkpoint that is incomplete or does not match its checksums; the text names the file."""


def pack(tree: Any, tensors: Tensors, name: str) -> Any:
    """A nested state as JSON values, its tensors moved to `tensors` under names that start with `name`."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        packed = [[key, pack(value, tensors, f"{name}.{key}")] for key, value in tree.items()]
        return dict(packed) if all(isinstance(key, str) for key in tree) else {_PAIRS: packed}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]
    return tree


def unpack(packed: Any, tensors: Tensors) -> Any:
    """The nested state that `pack` took apart; tuples come back as lists."""
    if isinstance(packed, dict):
        if _TENSOR in packed:
            return tensors[packed[_TENSOR]]
        if _PAIRS in packed:
            return {key: unpack(value, tensors) for key, value in packed[_PAIRS]}
        return {key: unpack(value, tensors) for key, value in packed.items()}
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    return packed


def to_host(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies on the CPU that share no memory, which is what safetensors stores."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def load_weights(model: torch.nn.Module, tensors: Tensors) -> None:
    """Copy a checkpoint's weights into the model it was made from, in place and in the model's own memory layout."""
    state = OrderedDict(tensors)
    # Some modules (torchvision's MNASNet) take a state without version numbers for one of an older kind.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # torch keeps it there, and annotates it nowhere
    model.load_state_dict(state)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        # Reserving the room first makes a full disk fail at once, with OSError and before anything is half written.
        if data and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, len(data))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _json(state: Mapping[str, Any]) -> bytes:
    return json.dumps(state, indent=1).encode()


def _number(folder: Path) -> tuple[int, int] | None:
    """Step and count of saves at it, from the folder's name; None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})(?:-(\d{2,}))?", folder.name)
    return (int(match[1]), int(match[2] or 1)) if match else None


def read(folder: Path) -> Snapshot:
    """The checkpoint in `folder`, every byte of it verified; raises Damaged, naming the file."""
    try:
        written = (folder / "state.json").read_bytes()
        state = json.loads(written)
        as_parsed = _json(state)
        claimed = state.pop("sha256")
        sums, step = state["files"], state["values"]["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{folder / 'state.json'} cannot be read") from error
    # Some changed bits leave the values as they are (1e-08 and 1E-08): the text is compared as well.
    if _digest(state) != claimed or as_parsed != written:
        raise Damaged(f"{folder / 'state.json'} does not match its checksum")
    number = _number(folder)
    if number and number[0] != step:
        raise Damaged(f"{folder / 'state.json'} is that of step {step}")
    tensors = []
    for name in ("model.safetensors", "state.safetensors"):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise Damaged(f"{folder / name} does not match its checksum")
        tensors.append(load_tensors(data))
    return Snapshot(tensors[0], tensors[1], state["values"], folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, make it `last` (and `best`), then remove the ones that are no longer kept; raises OSError."""
        self.folder.mkdir(exist_ok=True)
        sync_folder(self.folder.parent)
        self._sweep()
        temporary = self.folder / f".writing-{os.getpid()}"
        try:
            temporary.mkdir()
            sums = {}
            for name, tensors in (("model.safetensors", snapshot.model), ("state.safetensors", snapshot.tensors)):
                data = save_tensors(tensors)
                sums[name] = hashlib.sha256(data).hexdigest()
                _write(temporary / name, data)
            state = {"format": 1, "files": sums, "values": snapshot.values}
            _write(temporary / "state.json", _json(state | {"sha256": _digest(state)}))
            sync_folder(temporary)
            final = self._free_name(snapshot.values["step"])
            temporary.rename(final)
            sync_folder(self.folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._link("last", final)
        if snapshot.values["is_best"]:
            self._link("best", final)
        sync_folder(self.folder)
        self._prune()
        return final

    def _free_name(self, step: int) -> Path:
        name, count = self.folder / f"step-{step:08d}", 1
        while name.exists():
            count += 1
            name = self.folder / f"step-{step:08d}-{count:02d}"
        return name

    def _link(self, name: str, target: Path) -> None:
        temporary = self.folder / f".{name}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(self.folder / name)

    def _newest_first(self) -> list[Path]:
        # By name, not by the link `last`: a kill may fall between the rename that completes a folder and the link to it.
        return sorted((f for f in self.folder.glob("step-*") if _number(f)), key=lambda f: _number(f) or (0, 0), reverse=True)

    def _sweep(self) -> None:
        """Remove what a kill left half done."""
        for path in self.folder.glob(".*"):
            _remove(path)

    def _prune(self) -> None:
        kept = {*self._newest_first()[: self.keep], *(self._target(name) for name in ("last", "best"))}
        for folder in self._newest_first():
            if folder not in kept:
                # Renamed first, so that a half-removed folder is never taken for a checkpoint.
                doomed = self.folder / f".removing-{folder.name}"
                with contextlib.suppress(OSError):
                    folder.rename(doomed)
                    shutil.rmtree(doomed, ignore_errors=True)

    def _target(self, name: str) -> Path | None:
        link = self.folder / name
        return self.folder / os.readlink(link) if link.is_symlink() else (link if link.is_dir() else None)

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest checkpoint that verifies, or None where none was ever written; and a line for each damaged one passed over,
        with the steps that it costs.

        Raises UserError where there are checkpoints and none verifies.
        """
        damaged: list[tuple[int, Damaged]] = []
        for folder in self._newest_first():
            step, _ = _number(folder) or (0, 0)
            try:
                snapshot = read(folder)
            except Damaged as error:
                damaged.append((step, error))
                continue
            return snapshot, [f"{error}, which costs {_steps(at - step)}" for at, error in damaged]
        lines = [str(error) for _, error in damaged]
        if not lines and os.path.lexists(self.folder / "last"):
            lines = [f"{self.folder / 'last'} is there, and no checkpoint that it could lead to"]
        if lines:
            raise UserError(
                "no checkpoint of this run can be used:\n" + "\n".join(lines) + "\nstart afresh with another --out, or restore these files"
            )
        return None, []

    def named(self, name: str) -> Snapshot:
        """The checkpoint `last` or `best`; raises UserError where it is missing or damaged."""
        folder = self._target(name)
        if folder is None:
            raise UserError(f"{self.folder / name} does not exist")
        try:
            return read(folder)
        except Damaged as error:
            raise UserError(f"{error}; choose the other one with --checkpoint {'last' if name == 'best' else 'best'}") from error

    def adopt(self, snapshot: Snapshot) -> None:
        """Go on from `snapshot`: point the links at it, and remove what a kill left half done and what is newer and damaged."""
        folder = snapshot.folder
        assert folder is not None
        self._link("last", folder)
        if snapshot.values["is_best"]:
            self._link("best", folder)
        sync_folder(self.folder)
        for newer in itertools.takewhile(lambda other: other != folder, self._newest_first()):
            _remove(newer)
        self._sweep()
