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
import json
import os
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
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
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


def read(folder: Path) -> Snapshot:
    """The checkpoint in `folder`, every byte of it verified; raises Damaged, naming the file."""
    try:
        state = json.loads((folder / "state.json").read_text())
        claimed = state.pop("sha256")
        sums = state["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / 'state.json'} cannot be read") from error
    if _digest(state) != claimed:
        raise Damaged(f"{folder / 'state.json'} does not match its checksum")
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


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, make it `last` (and `best`), then remove the ones that are no longer kept; raises OSError."""
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / f".writing-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            sums = {}
            for name, tensors in (("model.safetensors", snapshot.model), ("state.safetensors", snapshot.tensors)):
                data = save_tensors(tensors)
                sums[name] = hashlib.sha256(data).hexdigest()
                _write(temporary / name, data)
            state = {"format": 1, "files": sums, "values": snapshot.values}
            _write(temporary / "state.json", json.dumps(state | {"sha256": _digest(state)}, indent=1).encode())
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
        name, again = self.folder / f"step-{step:08d}", 1
        while name.exists():
            again += 1
            name = self.folder / f"step-{step:08d}-{again:02d}"
        return name

    def _link(self, name: str, target: Path) -> None:
        temporary = self.folder / f".{name}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(self.folder / name)

    def _newest_first(self) -> list[Path]:
        # By name, not by the link `last`: a kill may fall between the rename that completes a folder and the link to it.
        return sorted(self.folder.glob("step-*"), key=lambda p: p.name, reverse=True)

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
        """The newest checkpoint that verifies, or None where none was ever written; and a line for each damaged one passed over.

        Raises UserError where there are checkpoints and none verifies.
        """
        damage: list[str] = []
        for folder in self._newest_first():
            try:
                return read(folder), damage
            except Damaged as error:
                damage.append(str(error))
        if damage:
            raise UserError(
                "no checkpoint of this run can be used:\n" + "\n".join(damage) + "\nstart afresh with another --out, or restore these files"
            )
        return None, damage

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
        left = [f for f in self._newest_first() if f.name > folder.name] + [f for f in self.folder.glob(".*")]
        for path in left:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
