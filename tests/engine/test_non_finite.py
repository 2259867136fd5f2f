"""What is no number stops the run: within a logged interval, with its step and layers, and no trace of it is kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import launched, lines, made, trained
from torch.nn.functional import cross_entropy

from trainrun.engine.fit import fit, train_step
from trainrun.engine.run import Run
from trainrun.engine.tasks import Classification
from trainrun.errors import NonFinite
from trainrun.parts.losses import cross_entropy as loss_part

EXPLODES: dict[str, Any] = {
    "schedule": {"lr": 1e6},
    "epochs": 30,
    "model": {"name": "tiny_convnet", "width": 4, "depth": 4, "norm": "none"},
}


def first_bad_step(folder: Path) -> int:
    """The step after which a weight is no finite number, by looking after each one."""
    run, _ = made(folder, **EXPLODES)
    batches = run.batches(0)
    while True:
        train_step(run, next(batches), 1e6)
        run.state.step += 1
        if not all(p.norm().isfinite() for p in run.model.parameters()):
            return run.state.step


@pytest.mark.parametrize("log", [1, 3, 50])
def test_a_run_that_explodes_ends_clean(tmp_path: Path, log: int) -> None:
    bad = first_bad_step(tmp_path)
    with pytest.raises(NonFinite) as caught:
        launched(tmp_path, "run", **EXPLODES, log={"every": f"{log}st"}, checkpoint={"every": "1000st"}, evaluate={"every": "40ep"})
    assert caught.value.exit_code == 4
    run, text = tmp_path / "run", str(caught.value)
    result = json.loads((run / "result.json").read_text())
    assert result["stop"] == "non_finite"
    assert bad <= result["steps"] <= min(-(-bad // log) * log, -(-bad // 4) * 4)  # at the next log or epoch line
    told = int(text.split("at step ")[1].split(",")[0])
    assert told in (bad, bad + 1)  # the weights are bad now, or the next step's loss showed it
    assert "learning rate 1e+06" in text
    assert "first concerned: 0.weight" in text
    assert f"the last clean state is {run}/checkpoints/step-00000000" in text
    assert result["message"] in text


@pytest.mark.parametrize(("every", "names"), [("1st", {"last", "best"}), ("9ep", {"last"})])  # found before an evaluation; before a save
def test_no_number_that_is_none_is_written(tmp_path: Path, every: str, names: set[str]) -> None:
    saves = {"checkpoint": {"every": "1st", "keep": 50}, "log": {"every": "3st"}, "evaluate": {"every": every}}
    with pytest.raises(NonFinite) as caught:
        launched(tmp_path, "run", **EXPLODES, **saves)
    run = tmp_path / "run"
    kept = [folder for folder in (run / "checkpoints").iterdir() if folder.is_dir()]
    assert names <= {folder.name for folder in kept}
    for folder in kept:
        for file in ("model.safetensors", "state.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(folder / file).values()), folder
    bad = first_bad_step(tmp_path)
    assert json.loads((run / "result.json").read_text())["steps"] == bad
    assert os.readlink(run / "checkpoints" / "last") == f"step-{bad - 1:08d}"
    assert f"step-{bad - 1:08d}" in str(caught.value)
    for line in lines(run):
        figures = [value for name, value in line.items() if name != "kind"]
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in figures), line


Loss = Callable[..., torch.Tensor]


def at_step(step: int, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Any], Loss]:
    """A loss that is changed in one step."""

    def make(run: Any) -> Loss:
        def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            losses = cross_entropy(logits, targets, reduction="none")
            return change(losses, logits) if run.state.step == step - 1 else losses

        return loss

    return make


def infinite_gradient(losses: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Adds zero, whose slope is infinite: the loss stays what it was."""
    return losses + (logits - logits.detach()).abs().sqrt().sum(1)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        # A loss that is finite again at the next step, and no weight is touched.
        (lambda losses, logits: losses + math.inf, {}, "the loss became NaN or infinite at step 6,"),
        (lambda losses, logits: losses.detach() * math.nan + 0 * losses, {}, "the loss became NaN or infinite at step 6,"),
        (infinite_gradient, {}, "the loss became NaN or infinite at step 7,"),  # by way of the weights
        (infinite_gradient, {"clip": 1.0}, "the gradient norm became NaN or infinite at step 6,"),
        # Every element is finite, and the norm is not: clipped to nothing, it would leave no trace.
        (lambda losses, logits: losses * 1e25, {"clip": 1.0}, "the gradient norm became NaN or infinite at step 6,"),
        # Adam divides by the root of an infinite second moment: weights would stand still for ever, as finite as they were.
        (lambda losses, logits: losses * 1e25, {"optimizer": "adamw"}, "the weights or their moments became NaN or infinite at step 10,"),
    ],
)
def test_every_kind_is_found_at_the_next_log_line(tmp_path: Path, change: Any, fields: dict[str, Any], message: str) -> None:
    run, noted = made(tmp_path, **fields, epochs=5, log={"every": "5st"}, evaluate={"every": "10ep"}, batch_size=4)
    run.task = Classification(at_step(6, change)(run))
    with pytest.raises(NonFinite, match=message):
        fit(run)
    assert run.state.step == 10
    assert noted.steps("step") == [5]


def test_batch_statistics_are_part_of_the_state(tmp_path: Path) -> None:
    """The variance of a map overflows, the normalised output does not: only evaluation would tell."""
    run, _ = made(tmp_path, model={"name": "tiny_convnet", "width": 4, "depth": 2}, log={"every": "2st"})
    with torch.no_grad():
        run.model[0].weight.fill_(1e16)
    with pytest.raises(NonFinite, match=r"the weights or their moments .* first concerned: 2\.running_var"):
        fit(run)
    assert run.state.step == 2


def test_weights_that_are_bad_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match="at step 0, with learning rate 0;"):
        launched(
            tmp_path, "run", initializer={"name": "constant", "value": 3e38}, checkpoint={"every": "60s"},
            schedule={"lr": 0.1, "warmup": {"name": "gradual", "for": "3st"}},
        )  # fmt: skip


def test_a_validation_loss_is_neither_best_nor_no_improvement(tmp_path: Path) -> None:
    run, noted = made(tmp_path, epochs=5, early_stopping={"patience": 9})

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = loss_part(logits, targets)
        return losses if torch.is_grad_enabled() or run.state.step < 8 else losses * math.nan

    run.task = Classification(loss)
    with pytest.raises(NonFinite, match="the validation loss became NaN or infinite at step 8, with learning rate 0.1"):
        fit(run)
    assert run.state.best and run.state.best["step"] == 4
    assert run.state.waited == 0
    assert noted.steps("epoch") == [4]


def test_layers_are_named_where_only_evaluation_overflows(tmp_path: Path) -> None:
    """Statistics that fit no picture: finite, and the map normalised by them is not."""
    run, _ = made(tmp_path, model={"name": "tiny_convnet", "width": 4, "depth": 2}, ema={"decay": 0.9})
    with torch.no_grad():
        run.average.model[2].running_mean.fill_(-1e18)
        run.average.model[2].running_var.zero_()
        run.average.model[2].weight.fill_(2e18)
    with pytest.raises(NonFinite, match="the validation loss .* first concerned: 2, 3, 4"):
        run.validate()


def test_in_fp16_a_gradient_that_no_loss_scale_helps_ends_the_run(tmp_path: Path) -> None:
    """The scaler leaves out steps with an infinite gradient, which is its work; but not for ever."""

    def scaled() -> Run:
        run, _ = made(
            tmp_path, epochs=20, log={"every": "10st"}, clip=1.0, evaluate={"every": "9ep"}, optimizer={"name": "sgd", "momentum": 0}
        )
        run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        return run

    run = scaled()
    run.task = Classification(at_step(3, infinite_gradient)(run))
    fit(run)
    assert run.scaler.get_scale() == 2.0**15

    run = scaled()
    run.task = Classification(lambda logits, targets: infinite_gradient(cross_entropy(logits, targets, reduction="none"), logits))
    with pytest.raises(NonFinite, match="the gradient, at every loss scale, became NaN or infinite"):
        fit(run)
    assert 30 <= run.state.step <= 40


def test_a_sound_run_is_left_alone(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, log={"every": "1st"}, clip=1.0, ema={"decay": 0.9}, optimizer="adamw")
    assert run.state.step == 8
