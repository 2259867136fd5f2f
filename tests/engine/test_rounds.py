"""Rounds of mining in a run: what is added is what a plain forward pass finds worst, the network stands still, and a run goes on bit for bit."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import contents, die, finish, noting, send
from safetensors.torch import load_file
from small import CPU, equal, launched, lines, made, trained, weights, written

from trainrun.draw import order
from trainrun.engine.build import open_data
from trainrun.engine.checkpoint import Checkpoints, Damaged
from trainrun.engine.fit import fit
from trainrun.engine.launch import launch
from trainrun.engine.rounds import Bootstrap, file_of, numbers, read_round
from trainrun.engine.sampling import Active
from trainrun.engine.state import Plan
from trainrun.errors import NonFinite, RecipeError, UserError
from trainrun.parts.mining.rounds import Rounds
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry

DATA: dict[str, Any] = {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 240, "validation": 0.17, "noise": 0.2, "one_against_rest": "class 2"}
MINING: dict[str, Any] = {"name": "rounds", "negative_class": "rest", "rounds": 3, "every": "2ep", "start_with": "1x", "add": "0.4x"}
FIELDS: dict[str, Any] = {
    "data": DATA, "epochs": 9, "batch_size": 16, "mining": MINING, "ema": {"decay": 0.7}, "log": {"every": "5st"},
    "model": {"name": "tiny_convnet", "width": 4, "depth": 2, "dropout": 0.1},
    "augment": [{"name": "random_crop", "padding": 1}, "horizontal_flip", "normalize"],
}  # fmt: skip
# 50 positives and 150 negatives; 100 pictures at first and in an epoch, which is 7 steps, and 20 more after the steps 14, 28 and 42 of 63.
STEPS = (0, 14, 28, 42)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(launched(tmp_path_factory.mktemp("rounds"), "run", **FIELDS)["run"])


def margins(run: Path, tensors: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """How far the positive class's logit exceeds the other, by a plain forward pass with some weights, and the labels."""
    recipe = load(run / "recipe.yaml").recipe
    data = open_data(recipe.data)
    model = registry.build(recipe.model)((1, 6, 6), 2)
    model.load_state_dict(load_file(tensors))
    pixels = data.train.read(range(len(data.train))).astype(np.float64) / 255
    of = data.train if split == "train" else data.validation
    assert of is not None
    pictures = (of.read(range(len(of))).astype(np.float64) / 255 - pixels.mean()) / pixels.std()
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    return (logits[:, 1] - logits[:, 0]).numpy(), of.labels


def rounds_of(run: Path) -> list[Any]:
    return [read_round(file_of(run, number)) for number in numbers(run)]


def events(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if line.get("event") == "round"]


def files(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in sorted((run / "rounds").iterdir())}


def same_files(one: Path, other: Path) -> bool:
    a, b = files(one), files(other)
    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


def test_what_is_added_is_the_worst_of_what_was_left(tmp_path: Path, whole: Path) -> None:
    """By the weights as a run that stops at the round's step leaves them: the average, which is what is judged and used."""
    data = open_data(load(whole / "recipe.yaml").recipe.data)
    positives, negatives = (set(np.flatnonzero(data.train.labels == label).tolist()) for label in (1, 0))
    first, *made_ = rounds_of(whole)
    active = set(first.active.tolist())
    assert active == positives | set(first.added.tolist()) and len(first.added) == len(positives) == 50 and not len(first.scores)
    for found, event, step in zip(made_, events(whole), STEPS[1:], strict=True):
        stopped = Path(launched(tmp_path, f"to-{step}", **FIELDS, stop_at=f"{step}st")["run"])
        scores, _ = margins(whole, stopped / "checkpoints" / "last" / "model.safetensors")
        left = sorted(negatives - active)
        worst = sorted(left, key=lambda i: (-scores[i], i))[:20]
        assert found.added.tolist() == worst and found.step == event["step"] == step
        np.testing.assert_allclose(found.scores.numpy(), scores[worst], rtol=1e-4, atol=1e-5)
        active |= set(worst)
        assert found.active.tolist() == sorted(active) and positives <= active
        assert (event["pool"], event["scored"], event["added"], event["active"]) == (len(left), len(left), 20, len(active))
        assert event["false_positives"] == (scores[left] > 0).sum()
        assert (event["threshold"], event["highest"]) == (pytest.approx(scores[worst[-1]], abs=1e-5), pytest.approx(scores[worst[0]], abs=1e-5))


def test_the_network_is_the_same_before_and_after_and_another_one_each_time(whole: Path) -> None:
    found = events(whole)
    assert [(event["round"], event["step"]) for event in found] == [(1, 14), (2, 28), (3, 42)]
    assert all(event["weights_before"] == event["weights_after"] for event in found)
    assert len({event["weights_before"] for event in found}) == 3 and all(len(event["weights_before"]) == 64 for event in found)


def test_a_network_that_changes_while_it_scores_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = made(tmp_path, **FIELDS)
    from trainrun.engine import rounds

    go_through = rounds.go_through

    def touching(model: torch.nn.Module, *args: Any) -> None:
        go_through(model, *args)
        list(run.model.buffers())[-1].add_(1)  # a count of batches, in the network that is not even the one that scores

    monkeypatch.setattr(rounds, "go_through", touching)
    with pytest.raises(AssertionError, match="the network changed while it was scoring, at step 14"):
        fit(run)


def test_an_evaluation_of_the_step_stands_in_the_event_and_is_that_of_a_plain_sort(tmp_path: Path, whole: Path) -> None:
    by_step = {line["step"]: line for line in lines(whole) if line["kind"] == "epoch"}
    for event in events(whole):
        assert {name: value for name, value in event.items() if name.startswith("val_")} == {
            name: value for name, value in by_step[event["step"]].items() if name.startswith("val_")
        }
    scores, labels = margins(whole, whole / "checkpoints" / "last" / "model.safetensors", "validation")
    found = np.sort(scores[labels == 1])[::-1]
    threshold = found[math.ceil(0.95 * len(found)) - 1]
    assert by_step[63]["val_fp95"] == pytest.approx((scores[labels == 0] >= threshold).mean()) and 0 < by_step[63]["val_fp95"] < 1
    seldom = Path(launched(tmp_path, "seldom", **FIELDS | {"evaluate": {"every": "3ep"}})["run"])
    assert [("val_loss" in event) for event in events(seldom)] == [False, False, True]


def test_a_round_stands_after_its_evaluation_and_before_a_save_that_holds_it(tmp_path: Path) -> None:
    run = Path(launched(tmp_path, "run", **FIELDS | {"checkpoint": {"every": "1000st", "keep": 1000}})["run"])
    kinds = [(line["kind"], line["step"]) for line in lines(run) if line["kind"] != "step"]
    for step in STEPS[1:]:
        at = kinds.index(("event", step))
        assert kinds[at - 1 : at + 2] == [("epoch", step), ("event", step), ("epoch", step + 7)]
        (saved,) = (run / "checkpoints").glob(f"step-{step:08d}")
        tensors = load_file(saved / "state.safetensors")
        assert len(tensors["mining.added"]) == 50 + 20 * STEPS.index(step) and len(tensors["mining.scores"]) == 20 * STEPS.index(step)


def seen(run: Any, epochs: int) -> np.ndarray:
    """How often each picture has come after each picture of some epochs: [pictures seen + 1, N]."""
    ids = torch.cat([run.sampler(epoch) for epoch in range(epochs)])
    counts = np.zeros((len(ids) + 1, len(run.sampler.labels)), np.int64)
    counts[np.arange(1, len(ids) + 1), ids.numpy()] = 1
    return counts.cumsum(0)


def test_between_rounds_every_active_picture_comes_as_often_as_any_other_within_one(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, **FIELDS)
    assert isinstance(run.sampler, Active)
    counts, length = seen(run, 9), len(run.sampler)
    assert length == 100 and {len(run.sampler(epoch)) for epoch in range(9)} == {100}
    for number, (first, last) in enumerate([(0, 2), (2, 4), (4, 6), (6, 9)]):
        active = run.sampler.sets[number]
        for place in range(first * length, last * length + 1):
            since = counts[place] - counts[first * length]
            assert np.ptp(since[active]) <= 1 and since.sum() == since[active].sum()
    orders = [tuple(run.sampler(epoch).tolist()) for epoch in range(9)]
    assert len(set(orders)) == 9


def test_with_all_pictures_active_an_epoch_is_a_shuffle() -> None:
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    sampler = Active(Rounds(0, 1, 1000, 2, 1, None, "worst"), 7, labels, ("rest", "cat"))
    assert sorted(sampler(3).tolist()) == sampler.active.tolist() and len(sampler) == 5
    sampler.sets, sampler._length = [torch.arange(7)], 7
    assert all(torch.equal(sampler(epoch), order(7, epoch, 7)) for epoch in range(5))


def test_until_the_first_round_it_is_a_training_on_the_pictures_it_began_with(tmp_path: Path) -> None:
    mined, said = trained(tmp_path, **FIELDS, stop_at="2ep")
    assert isinstance(mined.sampler, Active)
    plain, other = made(tmp_path, **FIELDS | {"mining": None}, stop_at="2ep")
    first = mined.sampler.sets[0]
    plain.plan = Plan.of(plain.recipe, len(first))
    plain.sampler = lambda epoch: first[order(0, epoch, len(first))]  # type: ignore[assignment]  # a plain shuffle of them
    fit(plain)
    assert equal(weights(mined.model), weights(plain.model)) and equal(weights(mined.average.model), weights(plain.average.model))
    assert said.said == other.said


def test_the_seed_decides_who_begins(tmp_path: Path, whole: Path) -> None:
    other = Path(launched(tmp_path, "other", **FIELDS, seed=1, stop_at="1st")["run"])
    again = Path(launched(tmp_path, "again", **FIELDS, stop_at="1st")["run"])
    start, same, different = (read_round(file_of(run, 0)).added for run in (whole, again, other))
    assert torch.equal(start, same) and not torch.equal(start, different) and len(start) == len(different)


def test_the_control_begins_alike_and_adds_as_many_others(tmp_path: Path, whole: Path) -> None:
    control = Path(launched(tmp_path, "run", **FIELDS | {"mining": {**MINING, "pick": "random"}})["run"])
    ours, theirs = rounds_of(control), rounds_of(whole)
    assert torch.equal(ours[0].active, theirs[0].active) and [len(found.active) for found in ours] == [len(found.active) for found in theirs]
    (mine, *_), (worst, *_) = events(control), events(whole)
    kept = ("step", "pool", "scored", "false_positives", "added", "active", "weights_before", "val_fp95")
    assert {name: mine[name] for name in kept} == {name: worst[name] for name in kept} and mine["pick"] == "random"
    assert mine["threshold"] < worst["threshold"] and mine["highest"] <= worst["highest"]
    assert json.loads((control / "result.json").read_text())["steps"] == 63


def test_a_pool_bounds_what_is_scored(tmp_path: Path) -> None:
    run = Path(launched(tmp_path, "run", **FIELDS | {"mining": {**MINING, "pool": "0.8x"}})["run"])
    assert [(event["pool"], event["scored"], event["added"]) for event in events(run)] == [(100, 40, 20), (80, 40, 20), (60, 40, 20)]


@pytest.mark.parametrize("stop", ["10st", "14st", "17st", "28st", "50st"])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, whole: Path, stop: str) -> None:
    launched(tmp_path, "halves", **FIELDS, stop_at=stop)
    halves = Path(launched(tmp_path, "halves", resume=True, **FIELDS)["run"])
    for name in ("model", "state"):
        one, other = (run / "checkpoints" / "last" / f"{name}.safetensors" for run in (whole, halves))
        assert one.read_bytes() == other.read_bytes()
    assert same_files(halves, whole) and events(halves) == events(whole)


def test_streamed_pictures_are_scored_and_drawn_alike(tmp_path: Path, whole: Path) -> None:
    streamed = Path(launched(tmp_path, "run", **FIELDS | {"data": {**DATA, "resident": "no", "workers": 1}})["run"])
    assert same_files(streamed, whole)
    last = [load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (streamed, whole)]
    assert equal(*last)


def test_accumulation_and_precision_leave_the_sizes_alone(tmp_path: Path) -> None:
    """And pictures may be mixed: only those that are scored have to be whole."""
    fields = FIELDS | {"micro_batch": 6, "precision": "bf16", "augment": ["normalize", "mixup"]}
    run = Path(launched(tmp_path, "run", **fields)["run"])
    assert [event["active"] for event in events(run)] == [120, 140, 160]
    assert all(found.scores.dtype == torch.float32 for found in rounds_of(run))


RECIPE = f"""
data: {json.dumps({**DATA, "workers": 0})}
model: {{name: tiny_convnet, width: 4, dropout: 0.1}}
batch_size: 16
micro_batch: 9
epochs: 7
schedule: {{lr: 0.05, decay: cosine}}
augment: [{{name: random_crop, padding: 1}}, normalize]
ema: {{decay: 0.9}}
checkpoint: {{every: 3st, keep: 2}}
log: {{every: 4st}}
evaluate: {{every: 7st}}
mining: {json.dumps(MINING)}
"""  # 49 steps, rounds after 14, 28 and 42


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled")
    (folder / "recipe.yaml").write_text(RECIPE)
    finish(folder / "recipe.yaml", folder / "run")
    return folder / "run"


def within_scoring(mark: Path, number: int, batch: int, act: Callable[[], None], looked: bool = False) -> None:
    """In a child: do something before a batch of the scoring of a round, or once the network has `looked` at it."""
    from trainrun.engine.rounds import Bootstrap
    from trainrun.engine.run import Run
    from trainrun.engine.tasks import Margins

    noting(mark)
    scoring, score, check, note = [0], Bootstrap._score, Run.check, Margins.note

    def scored(self: Bootstrap, *args: Any) -> Any:
        scoring[:] = [1] if self.done + 1 == number else [0]
        try:
            return score(self, *args)
        finally:
            scoring[:] = [0]

    def checked(run: Run) -> None:
        if scoring[0] == batch and not looked:
            act()
        check(run)

    def noted(self: Margins, logits: torch.Tensor) -> None:
        if scoring[0] == batch and looked:
            act()
        scoring[0] += scoring[0] > 0
        note(self, logits)

    Bootstrap._score, Run.check, Margins.note = scored, checked, noted  # type: ignore[method-assign]  # this process is about to end there


def before_the_save(mark: Path, number: int, written_: bool) -> None:
    """In a child: die when a round is made and not yet saved, before or after its file is written."""
    from trainrun.engine import rounds

    noting(mark)
    write = rounds.write_bytes

    def dying(file: Path, data: bytes) -> None:
        if file.name == f"{number:03d}.safetensors":
            if written_:
                write(file, data)
            die()
        write(file, data)

    rounds.write_bytes = dying  # type: ignore[assignment]  # as above


@pytest.mark.parametrize(
    "prepare",
    [
        functools.partial(within_scoring, number=1, batch=1, act=die),
        functools.partial(within_scoring, number=2, batch=5, act=die),
        functools.partial(before_the_save, number=1, written_=False),
        functools.partial(before_the_save, number=2, written_=True),
        functools.partial(before_the_save, number=3, written_=True),
    ],
    ids=["first batch", "later batch", "before the file", "after the file", "last round"],
)
def test_a_run_killed_in_a_round_goes_on_bit_for_bit(tmp_path: Path, unkilled: Path, prepare: Any) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    finish(recipe, run, prepare=functools.partial(prepare, tmp_path / "mark"), code=-signal.SIGKILL)
    number = prepare.keywords["number"]
    snapshot = Checkpoints(run).named("last")
    assert snapshot.values["step"] <= 14 * number and len(snapshot.tensors["mining.added"]) == 50 + 20 * (number - 1)
    assert numbers(run)[-1] == number - 1 + prepare.keywords.get("written_", False)
    finish(recipe, run, resume=True)
    assert contents(run) == contents(unkilled) and same_files(run, unkilled)
    assert not list((run / "rounds").glob(".*"))


@pytest.mark.parametrize(("batch", "looked"), [(3, False), (9, True)], ids=["before a batch", "in the last one"])
def test_a_signal_while_scoring_stops_at_once_and_the_round_is_owed(tmp_path: Path, unkilled: Path, batch: int, looked: bool) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    stop = functools.partial(send, signal.SIGTERM)
    said = finish(recipe, run, prepare=functools.partial(within_scoring, tmp_path / "mark", number=2, batch=batch, act=stop, looked=looked), code=143)
    assert "at step 28; nothing is lost" in said
    snapshot = Checkpoints(run).named("last")
    assert snapshot.values["step"] == 28 and len(snapshot.tensors["mining.added"]) == 70 and numbers(run) == [0, 1]
    finish(recipe, run, resume=True)
    assert contents(run) == contents(unkilled) and same_files(run, unkilled)


@pytest.mark.parametrize("harm", ["bit", "cut", "swapped", "missing"])
def test_a_damaged_file_is_told_of_and_written_anew(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str], harm: str) -> None:
    run = Path(launched(tmp_path, "run", **FIELDS, stop_at="30st")["run"])
    file = file_of(run, 1)
    before = file.read_bytes()
    if harm == "bit":
        file.write_bytes(before[:-5] + bytes([before[-5] ^ 1]) + before[-4:])
    elif harm == "cut":
        file.write_bytes(before[:-100])
    elif harm == "swapped":
        file.write_bytes(file_of(run, 2).read_bytes())
    else:
        file.unlink()
    if harm != "swapped":
        with pytest.raises(Damaged, match=r"001.safetensors (does not match its checksum|cannot be read)"):
            read_round(file)
    others = {number: os.stat(file_of(run, number)).st_mtime_ns for number in (0, 2)}
    launched(tmp_path, "run", resume=True, **FIELDS)
    told = " ".join(capsys.readouterr().err.split())
    words = {"bit": "does not match its checksum", "cut": "cannot be read", "swapped": "differs from what the checkpoint holds", "missing": "is missing"}
    assert f"{words[harm]}; it is written anew from the checkpoint, which costs no step" in told
    assert same_files(run, whole)
    assert {number: os.stat(file_of(run, number)).st_mtime_ns for number in (0, 2)} == others  # what is sound is not touched


def test_files_are_written_once_and_are_free_of_pickle(tmp_path: Path) -> None:
    run = Path(launched(tmp_path, "run", **FIELDS, stop_at="30st")["run"])
    stamps = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (run / "rounds").iterdir()}
    launched(tmp_path, "run", resume=True, **FIELDS)
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (run / "rounds").iterdir()}
    assert sorted(stamps) == ["000.safetensors", "001.safetensors", "002.safetensors"]
    assert {name: after[name] for name in stamps} == stamps and sorted(after) == [*sorted(stamps), "003.safetensors"]
    data = stamps["001.safetensors"][1]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"].keys() == {"round", "step", "sha256"} and header["__metadata__"]["step"] == "14"
    assert {name: header[name]["dtype"] for name in ("active", "added", "scores")} == {"active": "I64", "added": "I64", "scores": "F32"}


def test_a_full_disk_costs_no_round(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from trainrun.engine import rounds

    write, failed = rounds.write_bytes, []

    def full(file: Path, data: bytes) -> None:
        if file.name == "001.safetensors" and not failed:
            failed.append(file)
            raise OSError(28, "No space left on device")
        write(file, data)

    monkeypatch.setattr(rounds, "write_bytes", full)
    run = Path(launched(tmp_path, "run", **FIELDS)["run"])
    assert failed and "No space left on device; the checkpoints hold it" in " ".join(capsys.readouterr().err.split())
    assert same_files(run, whole)


def test_a_score_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainrun.engine.tasks import Margins

    monkeypatch.setattr(Margins, "of_all", lambda self, world, samples: torch.full((samples,), torch.nan))
    run, _ = made(tmp_path, **FIELDS | {"evaluate": {"every": "9ep"}})
    with pytest.raises(NonFinite, match=r"the score of a negative became NaN or infinite at step 14"):
        fit(run)


def test_no_round_is_made_once_patience_is_out(tmp_path: Path) -> None:
    fields = FIELDS | {"early_stopping": {"patience": 2, "min_delta": 1.0}, "evaluate": {"every": "7st"}}
    run = Path(launched(tmp_path, "run", **fields)["run"])
    result = json.loads((run / "result.json").read_text())
    assert result["stop"] == "early_stopping" and result["steps"] == 21
    assert [event["step"] for event in events(run)] == [14]
    fields["early_stopping"] = {"patience": 1, "min_delta": 1.0}
    assert not events(Path(launched(tmp_path, "soon", **fields)["run"])) and numbers(tmp_path / "soon") == [0]


@pytest.mark.parametrize(
    ("mining", "field", "words"),
    [
        ({"negative_class": "class 1"}, "negative_class", "the data has no class 'class 1'; did you mean class 2?"),
        ({"start_with": "3x"}, "start_with", "3x is 150 negatives, and the data has 150, so that none is left to mine"),
        ({"add": "1x", "rounds": 3}, "rounds", "all 150 negatives are active after round 2; write rounds: 2"),
        ({"pool": 20}, "pool", "20 is 20 negatives, of which mining.add takes 20"),
        ({"add": "2x"}, "add", "2x is 100 negatives, and 100 are left after the start"),
    ],
    ids=["class", "start", "rounds", "pool", "add"],
)  # fmt: skip
def test_what_only_the_data_shows_is_told_at_its_line(tmp_path: Path, mining: dict[str, Any], field: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in (FIELDS | {"mining": MINING | mining, "schedule": {"lr": 0.1}}).items()))
    with pytest.raises(RecipeError) as caught:
        launch(load(tmp_path / "r.yaml"), out=tmp_path / "run", quiet=True)
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.path) == (4, f"mining.{field}") and words in mistake.message and caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_data_of_positives_only_is_refused(tmp_path: Path) -> None:
    """Six pictures of nine classes leave none of the last one."""
    few = {"name": "synthetic", "shape": [1, 6, 6], "classes": 9, "size": 6, "validation": 0}
    with pytest.raises(UserError, match="mining.negative_class: the data has no training pictures of class 'class 8'"):
        made(tmp_path, data=few, batch_size=4, epochs=9, mining=MINING | {"negative_class": "class 8"})


def test_several_positive_classes_are_scored_by_the_best_of_them(tmp_path: Path) -> None:
    data = {name: value for name, value in DATA.items() if name != "one_against_rest"}
    fields = FIELDS | {"data": data, "mining": MINING | {"negative_class": "class 1", "start_with": 0.3, "add": 8, "rounds": 1}}
    run, noted = made(tmp_path, **fields)
    miner = run.miner
    assert isinstance(miner, Bootstrap) and isinstance(run.sampler, Active)
    left = run.sampler.left().tolist()
    run.state.step = miner.step_of(1)
    assert miner.mine(run) and not miner.mine(run)
    batch = next(run.training([torch.tensor(left)], 0, [len(left)]))
    with torch.no_grad():
        logits = run.average.model.eval()(run.inputs(batch, training=False)[0]).numpy()
    scores = np.delete(logits, 1, axis=1).max(1) - logits[:, 1]
    assert run.sampler.added[1].tolist() == [left[n] for n in sorted(range(len(left)), key=lambda n: (-scores[n], n))[:8]]
    assert run.validate()["val_fp95"] > 0 and noted.said == []
    plain, _ = made(tmp_path, data=data)
    assert "val_fp95" not in plain.validate()


def test_a_short_trial_says_which_rounds_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, FIELDS)
    launch(load(tmp_path / "small.yaml", ["epochs=3"]), out=tmp_path / "run")
    told = " ".join(capsys.readouterr().err.split())
    assert "active set of 100, 120, 140, 160 pictures, 50 of them positive; an epoch has 100" in told
    assert "1 of 3 rounds fall before the end of training" in told and len(events(tmp_path / "run")) == 1


def test_the_schedule_and_the_counts_know_the_length(tmp_path: Path) -> None:
    from trainrun.trials.counts import counts_of
    from trainrun.trials.schedule import curve

    recipe = written(tmp_path, FIELDS).recipe
    assert len(curve("r", recipe, CPU).rates) == 63
    counts = counts_of(recipe)
    assert counts.drawn == [50, 50] and counts.pictures == [150, 50] and counts.sampler == "rounds"


def test_other_runs_have_no_rounds(tmp_path: Path) -> None:
    run = Path(launched(tmp_path, "run")["run"])
    assert not numbers(run) and not (run / "rounds").exists() and not events(run)
