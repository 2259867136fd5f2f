"""Checkpoints: what is damaged is found before it is used, and what is kept can be used without this program."""

from __future__ import annotations

import functools
import json
import os
import pickletools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import RECIPE, at_steps, contents, die, finish, start
from safetensors.torch import load_file

from trainrun.engine.checkpoint import Checkpoints, Snapshot, pack, unpack
from trainrun.errors import UserError

FILES = ("model.safetensors", "state.safetensors", "state.json")


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def cut(file: Path, length: int) -> None:
    os.truncate(file, length)


def swap(folder: Path) -> None:
    one, other = folder / FILES[0], folder / FILES[1]
    one.rename(folder / "one")
    other.rename(one)
    (folder / "one").rename(other)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[Any, ...]]:
    """A recipe, its run killed within step 11, and what the whole run leaves."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = folder / "k.yaml"
    recipe.write_text(RECIPE)
    finish(recipe, folder / "whole")
    start(recipe, folder / "run", prepare=functools.partial(at_steps, folder / "mark", {11: die})).join(120)
    return recipe, folder / "run", contents(folder / "whole")


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder, symlinks=True))


def newest_two(run: Path) -> tuple[Path, Path]:
    older, newest = sorted((run / "checkpoints").glob("step-*"))[-2:]
    return older, newest


def tree(run: Path) -> dict[str, bytes]:
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and f.name not in (".lock", ".owner")]
    return {str(f.relative_to(run)): f.read_bytes() for f in files}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_bit_or_a_cut_is_found_anywhere(tmp_path: Path, killed: Any, name: str) -> None:
    run = copied(killed[1], tmp_path / "run")
    older, newest = newest_two(run)
    file, chance = newest / name, random.Random(name)
    sound = file.read_bytes()
    damages: list[Callable[[], None]] = [functools.partial(flip, file, chance.randrange(8 * len(sound))) for _ in range(40)]
    damages += [functools.partial(cut, file, length) for length in (0, chance.randrange(len(sound)), len(sound) - 1)]
    damages += [functools.partial(os.remove, file)]
    for damage in damages:
        damage()
        snapshot, lines = Checkpoints(run).newest()
        assert snapshot is not None and snapshot.folder == older, damage
        cost = int(newest.name[5:]) - int(older.name[5:])
        assert len(lines) == 1 and str(file) in lines[0] and lines[0].endswith(f", which costs {cost} step{'s' * (cost > 1)}")
        file.write_bytes(sound)
    snapshot, lines = Checkpoints(run).newest()
    assert snapshot is not None and snapshot.folder == newest and not lines


def test_a_bit_that_changes_the_text_and_no_value_is_found(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path).save(Snapshot({}, {}, {"step": 3, "is_best": False, "eps": 1e-8}))
    file = folder / "state.json"
    file.write_bytes(file.read_bytes().replace(b"1e-08", b"1E-08"))
    with pytest.raises(UserError, match="state.json does not match its checksum"):
        Checkpoints(tmp_path).newest()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda older, newest: flip(newest / FILES[0], 4000), FILES[0]),
        (lambda older, newest: cut(newest / FILES[1], 1000), FILES[1]),
        (lambda older, newest: os.remove(newest / FILES[2]), FILES[2]),
        (lambda older, newest: swap(newest), FILES[0]),
        (lambda older, newest: shutil.copy(older / FILES[1], newest), FILES[1]),
        (lambda older, newest: shutil.copytree(older, newest, dirs_exist_ok=True), FILES[2]),
        (lambda older, newest: empty(newest), FILES[2]),
    ],
    ids=["bit", "cut", "missing", "swapped", "one file of another step", "all files of another step", "empty"],
)  # fmt: skip
def test_damage_is_told_and_the_run_goes_on_from_before_it(tmp_path: Path, killed: Any, damage: Any, named: str) -> None:
    recipe, run, whole = killed
    run = copied(run, tmp_path / "run")
    older, newest = newest_two(run)
    damage(older, newest)
    (run / "checkpoints" / ".writing-1").mkdir()
    (run / "checkpoints" / ".writing-1" / FILES[0]).write_bytes(b"half")
    said = finish(recipe, run, resume=True)
    cost = int(newest.name[5:]) - int(older.name[5:])
    assert f"warning: {newest / named} " in said and f"costs {cost} step" in said and f"at step {int(older.name[5:])}" in said
    assert contents(run) == whole
    assert not list((run / "checkpoints").glob(".*"))


def test_all_damaged_is_refused_and_nothing_is_touched(tmp_path: Path, killed: Any) -> None:
    recipe, run, _ = killed
    run = copied(run, tmp_path / "run")
    for folder in (run / "checkpoints").glob("step-*"):
        flip(folder / FILES[0], 5000)
    before = tree(run)
    said = finish(recipe, run, resume=True, code=2)
    assert all(str(folder / FILES[0]) in said for folder in (run / "checkpoints").glob("step-*"))
    assert tree(run) == before


def test_checkpoints_that_are_gone_are_not_taken_for_a_run_before_its_first(tmp_path: Path, killed: Any) -> None:
    recipe, run, _ = killed
    run = copied(run, tmp_path / "run")
    for folder in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    before = tree(run)
    assert "checkpoints/last is there" in finish(recipe, run, resume=True, code=2)
    assert tree(run) == before


def saved(run: Path, keep: int, steps: dict[int, bool]) -> Checkpoints:
    checkpoints = Checkpoints(run, keep)
    for step, best in steps.items():
        checkpoints.save(Snapshot({"w": torch.full((3,), float(step))}, {}, {"step": step, "is_best": best}))
    return checkpoints


def test_what_stands_after_pruning(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, {0: False, 10: True, 20: False, 30: False, 40: False})
    assert sorted(f.name for f in checkpoints.folder.iterdir()) == ["best", "last", "step-00000010", "step-00000030", "step-00000040"]
    assert os.readlink(checkpoints.folder / "best") == "step-00000010" and os.readlink(checkpoints.folder / "last") == "step-00000040"
    assert checkpoints.named("best").model["w"].tolist() == [10.0] * 3 and checkpoints.named("last").values["step"] == 40
    saved(tmp_path, 1, {50: True})
    assert sorted(f.name for f in checkpoints.folder.iterdir()) == ["best", "last", "step-00000050"]


def test_two_saves_at_one_step_stand_beside_each_other(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3, {5: False})
    saved(tmp_path, 3, {5: True})
    snapshot, _ = checkpoints.newest()
    assert snapshot is not None and snapshot.values["is_best"] and snapshot.folder == checkpoints.folder / "step-00000005-02"
    saved(tmp_path, 3, {123_456_789: False, 99_999_999: False})
    snapshot, _ = checkpoints.newest()
    assert snapshot is not None and snapshot.values["step"] == 123_456_789


def test_the_files_hold_no_pickle_and_load_into_the_bare_model(killed: Any) -> None:
    from trainrun.parts.models.nets.tiny_convnet import TinyConvNet

    best = killed[1] / "checkpoints" / "best"
    model = TinyConvNet((3, 8, 8), 4, width=8, depth=3, norm="batch", dropout=0.1)
    model.load_state_dict(load_file(best / FILES[0]), strict=True)
    json.loads((best / FILES[2]).read_text())
    for name in FILES:
        with pytest.raises(ValueError):
            list(pickletools.genops((best / name).read_bytes()))


def test_unpack_is_the_inverse_of_pack() -> None:
    chance = random.Random(0)

    def drawn(depth: int) -> Any:
        kind = chance.randrange(8 if depth else 5)
        if kind < 5:
            return [None, True, chance.randrange(100), chance.random(), torch.randn(chance.randrange(4), 2)][kind]
        count = chance.randrange(4)
        if kind == 5:
            return [drawn(depth - 1) for _ in range(count)]
        return {(f"k{n}" if kind == 6 else n): drawn(depth - 1) for n in range(count)}

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and torch.equal(a, b)
        if isinstance(a, dict):
            return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
        return type(a) is type(b) and a == b

    for _ in range(300):
        tree, tensors = drawn(4), {}
        packed = json.loads(json.dumps(pack(tree, tensors, "state")))
        assert equal(tree, unpack(packed, tensors))
