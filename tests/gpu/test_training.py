"""What only a GPU can show: each arithmetic, data on the device, compiling, and an exact resume with deterministic algorithms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trainrun.parts  # noqa: F401 - fills the registry
from trainrun.engine.launch import launch
from trainrun.recipe.load import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use")


def trained(out: Path, *settings: str, resume: bool = False) -> dict[str, Any]:
    """The demo's recipe for four epochs, with other settings; the contents of result.json."""
    return launch(load("digits", ["epochs=4", "early_stopping=null", *settings]), out=out, resume=resume, quiet=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("resident", ["yes", "no"])
def test_each_arithmetic_learns(tmp_path: Path, precision: str, resident: str) -> None:
    result = trained(tmp_path / "run", f"precision={precision}", f"data.resident={resident}", "clip=1.0", "ema={decay: 0.9}")
    assert result["stop"] == "epochs"
    assert result["best"]["val_accuracy"] > 0.9


def test_auto_is_bf16_where_the_gpu_has_it(tmp_path: Path) -> None:
    trained(tmp_path / "run", "stop_at=2st")
    saved = load(tmp_path / "run" / "recipe.yaml").recipe
    assert saved.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")


@pytest.mark.parametrize("mining", ["null", "{name: ohem, keep: 0.5, start: 1ep}"])
def test_a_deterministic_run_goes_on_bit_for_bit(tmp_path: Path, mining: str) -> None:
    exact = ("deterministic=true", "ema={decay: 0.9}", "micro_batch=24", f"mining={mining}")
    trained(tmp_path / "whole", *exact)
    trained(tmp_path / "halves", *exact, "stop_at=37st")
    trained(tmp_path / "halves", *exact, resume=True)
    for name in ("model.safetensors", "state.safetensors"):
        whole, halves = ((tmp_path / run / "checkpoints" / "last" / name).read_bytes() for run in ("whole", "halves"))
        assert whole == halves


def test_compiled_learns_the_same(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "precision=fp32")
    compiled = trained(tmp_path / "compiled", "precision=fp32", "compile=on")
    assert abs(plain["best"]["val_accuracy"] - compiled["best"]["val_accuracy"]) < 0.03


@pytest.mark.parametrize("more", ["ema=null", "mining={name: ohem, keep: 0.5}", "mining={name: ohem, keep: 0.5, passes: 1, within: class}"])
def test_steps_do_not_wait_for_the_gpu(tmp_path: Path, more: str) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):  # the switch works
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    from trainrun.engine import fit

    step = fit.train_step

    def watched(*args: Any) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "train_step", watched)
        trained(tmp_path / "run", "stop_at=20st", more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
