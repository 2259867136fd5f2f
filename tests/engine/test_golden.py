"""The same recipe gives the same numbers: as stored, in another process, and compiled."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import launched, trained, weights

GOLDEN = Path(__file__).with_name("golden.json")
RECIPE: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "tiny_convnet", "width": 16, "depth": 2, "norm": "group"},
    "batch_size": 48,
    "micro_batch": 20,
    "epochs": "10st",
    "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-3},
    "schedule": {"lr": 0.4, "warmup": {"name": "gradual", "for": "3st", "start": 0.1}, "decay": "cosine"},
    "augment": [{"name": "random_crop", "padding": 1}, "normalize"],
    "clip": 0.3,
    "log": {"every": "1st"},
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in an order that does not depend on how many cores the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_ten_losses_are_what_they_were(tmp_path: Path) -> None:
    """Guards refactors; that the numbers are right is shown by the laws.

    Another CPU or torch sums in another order, which moves them by 4e-7 at most (from AVX-512 to no vector units at all). A step
    whose draw or order differs moves a loss by 1e-2, a learning rate that is off by a fortieth by 1e-3.
    To store new ones, run this file as a script.
    """
    _, noted = trained(tmp_path, **RECIPE)
    losses = [figures["train_loss"] for kind, _, figures in noted.said if kind == "step"]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-4)


server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["trainrun.parts", "trainrun.engine.launch"])


def in_a_process(folder: Path, out: str) -> bytes:
    child = server.Process(target=launched, args=(folder, out), kwargs=RECIPE | {"ema": {"decay": 0.9}})
    child.start()
    child.join(120)
    assert child.exitcode == 0
    checkpoint = folder / out / "checkpoints" / "last"
    return (checkpoint / "model.safetensors").read_bytes() + (checkpoint / "state.safetensors").read_bytes()


def test_two_processes_give_the_same_bits(tmp_path: Path) -> None:
    assert in_a_process(tmp_path, "a") == in_a_process(tmp_path, "b")


def test_deterministic_is_at_home_on_a_cpu(tmp_path: Path) -> None:
    plain, strict = trained(tmp_path, **RECIPE)[0], trained(tmp_path, **RECIPE, deterministic=True)[0]
    assert all(map(torch.equal, weights(plain.model).values(), weights(strict.model).values()))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same_run(tmp_path: Path) -> None:
    """Fused operations round in other places: 1e-7 a step, where a step left out would show as 1e-3."""
    fields: dict[str, Any] = {
        "model": {"name": "tiny_convnet", "width": 2, "depth": 1, "norm": "none"},
        "epochs": 1,
        "log": {"every": "1st"},
    }
    eager, told = trained(tmp_path, **fields)
    compiled, said = trained(tmp_path, **fields, compile="on")
    for name, tensor in weights(eager.model).items():
        assert torch.allclose(weights(compiled.model)[name], tensor, rtol=0, atol=1e-5), name
    for (_, _, a), (_, _, b) in zip(told.said, said.said, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


if __name__ == "__main__":
    import platform
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _, noted = trained(Path(folder), **RECIPE)
    losses = [figures["train_loss"] for kind, _, figures in noted.said if kind == "step"]
    about = {"what": "train_loss of ten steps of RECIPE in test_golden.py", "torch": torch.__version__, "machine": platform.machine()}
    about |= {"capability": torch.backends.cpu.get_cpu_capability(), "threads": 1}
    GOLDEN.write_text(json.dumps({"about": about, "losses": losses}, indent=1) + "\n")
