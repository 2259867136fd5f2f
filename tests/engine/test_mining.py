"""Mining in a run: the step is that of the kept pictures alone, the choice is that of a plain sort, and a run goes on bit for bit."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import RECIPE, at_steps, contents, die, finish
from safetensors.torch import load_file
from small import CPU, SMALL, equal, launched, lines, made, trained, weights
from test_laws import META, Reads
from torch.nn.functional import cross_entropy

from trainrun.draw import step_seed
from trainrun.engine.checkpoint import Checkpoints
from trainrun.engine.feed import Batch
from trainrun.engine.fit import fit, train_step
from trainrun.engine.mining import KeepAll, Miner, _Lot
from trainrun.engine.run import Run
from trainrun.engine.tasks import Classification
from trainrun.errors import RecipeError, UserError
from trainrun.recipe.batches import pieces

NORMED = {"name": "tiny_convnet", "width": 4, "depth": 2}
PLAIN = SMALL["model"]
AUGMENT = [{"name": "random_crop", "padding": 1}, "horizontal_flip", "normalize"]


def exact(run: Run) -> Run:
    """The run in float64, with its gradients left where they are."""
    model = run.model.double()
    run.forward = lambda images: model(images.double())
    if isinstance(run.miner, Miner):
        run.miner = Miner(run.miner.rule, run.miner.labels, run.plan, run.world, model, run.forward, run.recipe.micro_batch)
    run.task = Classification(lambda logits, targets: cross_entropy(logits, targets, reduction="none"))
    # Both left out, to look at the gradient.
    run.optimizer.step = lambda closure=None: None  # type: ignore[method-assign]  # the gradient is to be looked at
    run.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]  # as above
    return run


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def look(run: Run, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and logits of a batch in training mode, by a copy of the model, with the dropout of the step."""
    model = copy.deepcopy(run.model)
    torch.manual_seed(step_seed(run.recipe.seed, run.state.step))
    with torch.no_grad():
        found = [(model(run.inputs(micro, True)[0].double()), micro.labels) for micro in batch.split(run.recipe.micro_batch)]
    logits, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return cross_entropy(logits, labels, reduction="none"), logits


def alone(run: Run, batch: Batch, places: list[int]) -> torch.nn.Module:
    """A copy of the model with the gradient of the mean loss of some pictures, and batch statistics as they leave them."""
    model = copy.deepcopy(run.model)
    torch.manual_seed(step_seed(run.recipe.seed, run.state.step))
    images, labels = run.inputs(batch, True)
    size = run.recipe.micro_batch or len(places)
    for some in torch.tensor(places).split(size):
        (cross_entropy(model(images[some].double()), labels[some], reduction="sum") / len(places)).backward()
    return model


def hardest(values: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i].item(), i))[:count])


def agrees(run: Run, batch: Batch, places: list[int]) -> None:
    """A step's gradient and buffers are those of the pictures at some places alone."""
    expected = alone(run, batch, places)
    wrong = alone(run, batch, [*places[1:], next(i for i in range(len(batch)) if i not in places)])
    train_step(run, batch, 0.0)
    ours, theirs = gradient(run.model), gradient(expected)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    assert (ours - gradient(wrong)).norm() > 1e-2 * theirs.norm()
    for mine, other in zip(run.model.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("model", [NORMED, {**NORMED, "dropout": 0.5}, PLAIN], ids=["norm", "dropout", "plain"])
def test_a_step_is_that_of_the_kept_pictures_alone(tmp_path: Path, model: Any, micro: int | None) -> None:
    mining = {"name": "ohem", "keep": 0.6}
    run = exact(made(tmp_path, model=model, mining=mining, augment=AUGMENT, micro_batch=micro)[0])
    for step, batch in enumerate(itertools.islice(run.batches(0), 3)):
        run.state.step = step
        run.model.zero_grad()
        agrees(run, batch, hardest(look(run, batch)[0], 6))


def test_a_picture_that_comes_again_is_augmented_as_it_was_when_it_was_chosen(tmp_path: Path) -> None:
    data = {**SMALL["data"], "imbalance": 6}
    fields = {"data": data, "sampler": "label_shuffle", "augment": AUGMENT, "batch_size": 16}
    run = exact(made(tmp_path, mining={"name": "ohem", "keep": 0.75}, **fields)[0])
    for step, batch in enumerate(itertools.islice(run.batches(0), 2)):
        run.state.step = step
        run.model.zero_grad()
        kept = hardest(look(run, batch)[0], 12)
        assert batch.visits is not None and batch.visits[kept].any()
        agrees(run, batch, kept)


def test_one_pass_back_propagates_the_kept_losses_only(tmp_path: Path) -> None:
    """Without batch norm: with it the pictures left out still have a part in the statistics by which the kept ones are normalised."""
    run = exact(made(tmp_path, mining={"name": "ohem", "keep": 0.6, "passes": 1}, augment=AUGMENT)[0])
    batch = next(run.batches(0))
    agrees(run, batch, hardest(look(run, batch)[0], 6))


def test_both_forms_choose_alike_and_train_alike(tmp_path: Path) -> None:
    two, one = (trained(tmp_path, mining={"name": "ohem", "keep": 0.4, "passes": passes}, augment=AUGMENT)[0] for passes in (2, 1))
    assert isinstance(one.miner, Miner) and isinstance(two.miner, Miner)
    assert torch.equal(one.miner.ledger.kept, two.miner.ledger.kept)
    torch.testing.assert_close(weights(one.model), weights(two.model), rtol=0, atol=2e-6)  # as in test_laws


def test_the_margin_counts_where_it_is_asked_for(tmp_path: Path) -> None:
    run = exact(made(tmp_path, mining={"name": "ohem", "keep": 0.3, "by": "margin"})[0])
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(3)  # logits far apart, of which loss and margin think differently
    for batch in itertools.islice(run.batches(0), 4):
        losses, logits = look(run, batch)
        right = logits[range(10), batch.labels]
        others = logits.clone()
        others[range(10), batch.labels] = -torch.inf
        by_margin = hardest(others.amax(1) - right, 3)
        if by_margin != hardest(losses, 3):
            return agrees(run, batch, by_margin)
    raise AssertionError("no batch of these tells the two apart")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"within": "class", "keep": 0.5}, lambda labels: {c: int(0.5 * (labels == c).sum() + 0.5) or 1 for c in range(4)}),
        ({"within": "negatives", "negative_class": "class 1", "keep": 2}, lambda labels: {0: 99, 1: 2, 2: 99, 3: 99}),
        ({"always_keep": "positives", "negative_class": "class 0", "ratio": 0.3}, lambda labels: {0: int(0.3 * (labels != 0).sum() + 0.5), 1: 99, 2: 99, 3: 99}),
    ],
    ids=["class", "negatives", "ratio"],
)  # fmt: skip
def test_who_competes(tmp_path: Path, options: dict[str, Any], count: Callable[[np.ndarray], dict[int, int]]) -> None:
    run = exact(made(tmp_path, mining={"name": "ohem", **options})[0])
    batch = next(run.batches(0))
    losses, labels = look(run, batch)[0], batch.labels.numpy()
    kept = []
    for label, most in count(labels).items():
        members = np.flatnonzero(labels == label)
        kept += [int(members[place]) for place in hardest(losses[members], most)]
    assert 2 < len(kept) < 10
    agrees(run, batch, sorted(kept))


@pytest.mark.parametrize("looks", [False, True], ids=["shortcut", "as if some were left out"])
@pytest.mark.parametrize(("passes", "micro"), [(2, None), (2, 4), (1, None)])
def test_keeping_all_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int, micro: int | None, looks: bool) -> None:
    """Batch norm, dropout, an average and figures too; also where nothing is known to be kept, and all goes the long way."""
    fields: dict[str, Any] = {"model": {**NORMED, "dropout": 0.2}, "augment": AUGMENT, "ema": {"decay": 0.9}, "clip": 1.0, "micro_batch": micro}
    without, said = trained(tmp_path, **fields)
    if looks:
        monkeypatch.setattr(_Lot, "all", False)
    for keep in (1.0, 1):
        run, noted = trained(tmp_path, **fields, mining={"name": "ohem", "keep": keep, "passes": passes})
        assert equal(weights(run.model), weights(without.model)) and equal(weights(run.average.model), weights(without.average.model))
        for (*mine, figures), (*other, plain) in zip(noted.said, said.said, strict=True):
            assert mine == other and plain == {name: value for name, value in figures.items() if not name.startswith("mining")}


def test_accumulation_gives_the_same_step(tmp_path: Path) -> None:
    mining = {"name": "ohem", "keep": 0.5}
    whole, split = (trained(tmp_path, mining=mining, augment=AUGMENT, micro_batch=micro)[0] for micro in (None, 3))
    assert isinstance(whole.miner, Miner) and isinstance(split.miner, Miner)
    torch.testing.assert_close(weights(whole.model), weights(split.model), rtol=0, atol=2e-6)
    assert torch.equal(whole.miner.ledger.kept, split.miner.ledger.kept)
    assert not torch.allclose(weights(whole.model)["0.weight"], weights(trained(tmp_path, augment=AUGMENT)[0].model)["0.weight"], atol=1e-3)


def test_before_start_and_after_end_all_are_kept_and_the_ramp_lies_between(tmp_path: Path) -> None:
    mining = {"name": "ohem", "keep": 0.2, "start": "1ep", "end": "3ep", "ramp": "4st"}
    run, noted = trained(tmp_path, epochs=4, mining=mining, log={"every": "1st"})
    shares = [figures["mining_kept"] for kind, _, figures in noted.said if kind == "step"]
    assert shares == [1, 1, 1, 1, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2, 1, 1, 1, 1]
    plain = trained(tmp_path, stop_at="4st", epochs=4)[0]
    short = trained(tmp_path, stop_at="4st", epochs=4, mining=mining)[0]
    assert equal(weights(plain.model), weights(short.model)) and run.state.step == 16


def test_figures_are_of_all_pictures_and_tell_what_is_picked(tmp_path: Path) -> None:
    run, noted = made(tmp_path, mining={"name": "ohem", "keep": 0.3}, log={"every": "2st"}, augment=AUGMENT)
    expected = []
    batches = run.batches(0)
    reference, _ = made(tmp_path, mining={"name": "ohem", "keep": 0.3}, augment=AUGMENT)
    for step in range(8):
        batch = next(batches)
        reference.state.step = step
        with torch.no_grad():
            logits = reference.model(reference.inputs(batch, True)[0])
        losses = cross_entropy(logits, batch.labels, reduction="none")
        kept = losses[hardest(losses, 3)]
        expected.append((losses.sum().item(), (logits.argmax(1) == batch.labels).sum().item(), kept.sum().item(), kept.min().item()))
        train_step(reference, batch, 0.1)
    fit(run)
    for kind, step, figures in noted.said:
        span = expected[step - (2 if kind == "step" else 4) : step]
        loss, hits, kept, least = (sum(column) for column in zip(*span, strict=True))
        assert figures["train_loss"] == pytest.approx(loss / (10 * len(span)), rel=1e-5)
        assert figures["train_accuracy"] == hits / (10 * len(span))
        assert figures["mining_loss"] == pytest.approx(kept / (3 * len(span)), rel=1e-5)
        assert figures["mining_threshold"] == pytest.approx(least / len(span), rel=1e-5)
        assert figures["mining_kept"] == 0.3


def test_the_ledger_counts_what_was_kept_and_holds_the_last_losses(tmp_path: Path) -> None:
    """A sampler that shows some pictures twice in a batch and leaves others out."""
    fields: dict[str, Any] = {
        "sampler": {"name": "weighted", "weights": {"class 3": 0, "class 0": 9}}, "mining": {"name": "ohem", "keep": 4}, "batch_size": 16, "epochs": 3
    }  # fmt: skip
    run, _ = made(tmp_path, **fields)
    assert isinstance(run.miner, Miner)
    kept, last = np.zeros(40, np.int64), np.full(40, np.nan, np.float32)
    repeated = False
    for step, batch in enumerate(itertools.islice(run.batches(0), 9)):
        run.state.step = step
        with torch.no_grad():
            losses = cross_entropy(run.model(run.inputs(batch, True)[0]), batch.labels, reduction="none")
        ids = batch.ids.tolist()
        repeated |= len(set(ids)) < len(ids)
        for place in hardest(losses, min(4, len(ids))):
            kept[ids[place]] += 1
        for i, loss in zip(ids, losses.tolist(), strict=True):
            last[i] = loss
        train_step(run, batch, 0.1)
    assert repeated
    np.testing.assert_array_equal(run.miner.ledger.kept.numpy(), kept)
    np.testing.assert_allclose(run.miner.ledger.loss.numpy(), last, rtol=1e-6)
    assert np.isnan(last[run.data.train.labels == 3]).all() and kept.sum() == 36


def test_the_ledger_of_a_picture_that_comes_twice_holds_its_later_loss() -> None:
    from trainrun.engine.mining import Ledger

    ledger = Ledger(4, CPU.device)
    ledger.note(torch.tensor([2, 1, 2, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 2, 3]))
    assert ledger.kept.tolist() == [0, 1, 2, 0] and ledger.kept.dtype == torch.int32
    assert ledger.loss[1:3].tolist() == [4.0, 3.0] and ledger.loss[[0, 3]].isnan().all()


FIELDS: dict[str, Any] = {
    "model": {**NORMED, "dropout": 0.1}, "augment": AUGMENT, "epochs": 4, "ema": {"decay": 0.9}, "log": {"every": "3st"},
    "mining": {"name": "ohem", "keep": 0.5, "start": "2st", "ramp": "5st"},
}  # fmt: skip


@pytest.mark.parametrize("stop", ["6st", "1ep", "9st"])
def test_a_run_goes_on_bit_for_bit_with_its_ledger(tmp_path: Path, stop: str) -> None:
    whole = Path(launched(tmp_path, "whole", **FIELDS)["run"])
    launched(tmp_path, "halves", **FIELDS, stop_at=stop)
    halves = Path(launched(tmp_path, "halves", resume=True, **FIELDS)["run"])
    for name in ("model", "state"):
        one, other = (run / "checkpoints" / "last" / f"{name}.safetensors" for run in (whole, halves))
        assert one.read_bytes() == other.read_bytes()
    files = [load_file(run / "ledger.safetensors") for run in (whole, halves)]
    assert equal({"kept": files[0]["kept"]}, {"kept": files[1]["kept"]}) and torch.equal(files[0]["loss"], files[1]["loss"])
    told = [line for line in lines(halves) if not (line["step"] == int(stop[:-2]) and line["kind"] == "epoch" and stop != "1ep")]
    assert [line for line in lines(whole) if line in told] == told


def test_a_run_killed_in_an_epoch_goes_on_with_its_ledger(tmp_path: Path) -> None:
    recipe, run = tmp_path / "k.yaml", tmp_path / "run"
    recipe.write_text(RECIPE + "mining: {name: ohem, keep: 0.4, start: 4st, within: class}\n")
    finish(recipe, run, prepare=partial(at_steps, tmp_path / "mark", {11: die}), code=-9)
    assert Checkpoints(run).named("last").values["step"] == 9
    finish(recipe, run, resume=True)
    finish(recipe, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")
    assert (run / "ledger.safetensors").read_bytes() == (tmp_path / "whole" / "ledger.safetensors").read_bytes()
    snapshot = Checkpoints(run).named("last")
    assert torch.equal(snapshot.tensors["mining.kept"], load_file(run / "ledger.safetensors")["kept"])
    assert snapshot.tensors["mining.kept"].sum() < 48 * 32


def test_bf16_and_an_average_go_along(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, **FIELDS | {"precision": "bf16", "epochs": 10})
    assert isinstance(run.miner, Miner) and run.miner.ledger.loss.dtype == torch.float32
    assert run.miner.ledger.loss.mean() < 1.2 < torch.tensor(4.0).log()  # that of a guess
    assert all(tensor.isfinite().all() for tensor in weights(run.average.model).values())


def test_no_value_is_read_between_log_lines(tmp_path: Path) -> None:
    for more in ({}, {"passes": 1, "micro_batch": None}, {"within": "class", "by": "margin"}, {"always_keep": "positives", "negative_class": "class 1"}):
        micro = more.pop("micro_batch", 4) if "micro_batch" in more else 4
        run, noted = made(tmp_path, epochs=5, log={"every": "3st"}, micro_batch=micro, model=NORMED, mining={"name": "ohem", "keep": 0.5, **more})
        with Reads(run) as reads:
            torch.ones(1).item()
            fit(run)
        assert reads.at.pop(0) == 0
        assert set(reads.at) <= {step for _, step, _ in noted.said}


@pytest.mark.parametrize("more", [{}, {"within": "class", "by": "margin"}], ids=["all", "class"])
def test_no_value_is_asked_for_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    monkeypatch.setattr("trainrun.engine.resident.free_memory", lambda device: 1 << 30)
    normalize = {"name": "normalize", "mean": [0.5], "std": [0.25]}
    run, _ = made(tmp_path, META, epochs=5, log={"every": "3st"}, micro_batch=4, augment=[normalize], mining={"name": "ohem", "keep": 0.5, **more})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit(run)
    assert run.state.step == 3


@pytest.mark.parametrize(
    ("keep", "micro", "expected"),
    [(3, None, 3), (3, 2, 4), (5, 4, 6), (9, 4, 10), (0.1, None, 2), (1.0, 4, 10)],
)
def test_batch_norm_never_sees_a_single_picture(tmp_path: Path, keep: Any, micro: int | None, expected: int) -> None:
    run, _ = made(tmp_path, model=NORMED, micro_batch=micro, mining={"name": "ohem", "keep": keep})
    batch = run.miner.choose(run, next(run.batches(0)))
    assert len(batch) == batch.whole == expected
    assert min(pieces(len(batch), len(batch), micro)) > 1
    plain, _ = made(tmp_path, micro_batch=micro, mining={"name": "ohem", "keep": keep})
    assert len(plain.miner.choose(plain, next(plain.batches(0)))) == (keep if isinstance(keep, int) else keep * 10)


def test_without_mining_there_is_no_ledger(tmp_path: Path) -> None:
    result = launched(tmp_path, "run")
    assert type(made(tmp_path)[0].miner) is KeepAll
    assert not (Path(result["run"]) / "ledger.safetensors").exists()
    assert not any(name.startswith("mining") for name in Checkpoints(Path(result["run"])).named("last").tensors)


@pytest.mark.parametrize(
    ("mining", "words"),
    [
        ({"keep": 0.5, "within": "negatives", "negative_class": "clas 1"}, "mining.negative_class: the data has no class 'clas 1'; did you mean class 1?"),
        ({"ratio": 3.0, "always_keep": "positives", "negative_class": "dog"}, "mining.negative_class: the data has no class 'dog'; there are class 0, class 1"),
        ({"keep": 0.5, "start": "5st", "end": "1ep"}, "mining.end: 1ep does not come after start, 5st"),
    ],
    ids=["near", "far", "end"],
)  # fmt: skip
def test_what_only_the_data_shows_is_refused(tmp_path: Path, mining: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        launched(tmp_path, "run", mining={"name": "ohem", **mining})
    assert words in str(caught.value) and caught.value.exit_code == 2
    assert isinstance(caught.value, RecipeError)
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.path) == (1, words.split(":")[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("start", "told"), [("15st", []), ("16st", ["start is step 16, and training ends at step 16: no picture is left out"]), (None, [])])
def test_a_start_that_is_never_reached_is_told_of(tmp_path: Path, start: str | None, told: list[str]) -> None:
    run = made(tmp_path, epochs=5, mining={"name": "ohem", "keep": 0.5, "start": start})[0]
    run.miner.plan = replace(run.plan, total=16)  # a trial of fewer epochs, which may leave out what the recipe says
    assert run.miner.told() == told


def test_a_class_without_training_pictures_is_no_negative_class(tmp_path: Path) -> None:
    few = {"name": "synthetic", "shape": [1, 6, 6], "classes": 9, "size": 6, "validation": 0}
    with pytest.raises(UserError, match="the data has no training pictures of class 'class 8'"):
        made(tmp_path, data=few, batch_size=4, mining={"name": "ohem", "keep": 0.5, "within": "negatives", "negative_class": "class 8"})


def test_a_disk_without_room_for_the_ledger_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    miner = made(tmp_path, **FIELDS)[0].miner
    with pytest.raises(OSError):
        miner.write(tmp_path, 3)
    assert not list(tmp_path.glob("*ledger*")) and not list(tmp_path.glob(".*ledger*"))
    monkeypatch.undo()
    monkeypatch.setattr(Miner, "write", full)
    result = launched(tmp_path, "run", **FIELDS)
    assert result["stop"] == "epochs" and "what mining knows cannot be written to" in capsys.readouterr().err
    assert "mining.kept" in Checkpoints(Path(result["run"])).named("last").tensors


def test_the_file_is_free_of_pickle_and_says_its_step(tmp_path: Path) -> None:
    run = Path(launched(tmp_path, "run", **FIELDS)["run"])
    data = (run / "ledger.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"step": "16"}
    assert {name: header[name]["dtype"] for name in ("kept", "loss")} == {"kept": "I32", "loss": "F32"}
