"""`trainrun hard --round`: what a round added, with the scores of then and what the weights make of it now."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.cli import main
from trainrun.engine.launch import launch
from trainrun.engine.rounds import file_of, read_round
from trainrun.errors import UserError
from trainrun.recipe.load import load
from trainrun.trials.hard import hardest

RECIPE = """
data: {name: digits, one_against_rest: "8"}
model: {name: tiny_convnet, width: 8, depth: 2}
epochs: 6
batch_size: 32
schedule: {lr: 0.1}
augment: [normalize]
mining: {name: rounds, negative_class: rest, rounds: 2, every: 2ep, add: 40}
precision: fp32
checkpoint: {every: off}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    (folder / "eights.yaml").write_text(RECIPE)
    launch(load(folder / "eights.yaml"), out=folder / "run", quiet=True)
    return folder / "run"


def said(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(sys, "argv", ["trainrun", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    return capsys.readouterr()


def test_what_a_round_added_is_listed_and_drawn(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(["hard", str(run), "--round", "2", "--top", "12", "--png", str(tmp_path / "a.png"), "--json"], 0, monkeypatch, capsys).out)
    of = read_round(file_of(run, 2))
    assert found["by"] == "round" and found["round"] == {"round": 2, "step": of.step, "added": 40, "active": len(of.active)}
    assert [row["id"] for row in found["hardest"]] == of.added[:12].tolist()
    np.testing.assert_allclose([row["score"] for row in found["hardest"]], of.scores[:12].numpy())
    by_loss = {int(i): float(loss) for i, loss in zip(*(lambda h: (h.ids, h.losses))(hardest(run, top=2000)), strict=True)}
    assert [row["loss"] for row in found["hardest"]] == pytest.approx([by_loss[row["id"]] for row in found["hardest"]], rel=1e-4, abs=1e-6)
    assert {row["label"] for row in found["hardest"]} == {"rest"} and found["hardest"][0]["source"].startswith("sample ")
    assert Image.open(tmp_path / "a.png").size == (8 + 10 * 136, 8 + 2 * (128 + 3 * 13 + 16))


def test_a_person_gets_the_scores_and_the_start_has_none(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first, head, *rows = said(["hard", str(run), "--round", "1", "--top", "3"], 0, monkeypatch, capsys).out.splitlines()
    of = read_round(file_of(run, 1))
    assert first == f"round 1, step {of.step}: 40 added, {len(of.active)} active"
    assert head.split() == ["loss", "score", "label", "predicted", "picture"]
    assert [float(row.split()[2]) for row in rows[:3]] == pytest.approx(of.scores[:3].tolist(), abs=0.006)
    start = json.loads(said(["hard", str(run), "--round", "0", "--json"], 0, monkeypatch, capsys).out)
    assert [row["score"] for row in start["hardest"]] == [None] * 50 and start["round"]["step"] == 0
    assert json.loads(said(["hard", str(run), "--json", "--top", "2"], 0, monkeypatch, capsys).out)["round"] is None


def test_a_round_that_is_not_there_is_one_message(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(["hard", str(run), "--round", "3"], 2, monkeypatch, capsys)
    assert told.out == "" and told.err.count("\n") == 1 and f"{run} has rounds 0 to 2, found --round 3; next: " in told.err
    with pytest.raises(UserError, match="--round goes by the scores of that round; leave out --by kept"):
        hardest(run, round=1, by="kept")
    (tmp_path / "plain.yaml").write_text(RECIPE.replace("mining:", "#"))
    launch(load(tmp_path / "plain.yaml", ["epochs=1"]), out=tmp_path / "plain", quiet=True)
    with pytest.raises(UserError, match=r"has no rounds of mining, which are those of mining: \{name: rounds\}; leave out --round"):
        hardest(tmp_path / "plain", round=1)


def test_a_damaged_round_and_other_data_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(run, 1)
    before = file.read_bytes()
    file.write_bytes(before[:-3] + bytes([before[-3] ^ 4]) + before[-2:])
    with pytest.raises(UserError, match=r"001.safetensors does not match its checksum; restore it, or leave out --round"):
        hardest(run, round=1)
    file.write_bytes(before)
    with pytest.raises(UserError, match="rounds of more training pictures than the data, which has"):
        hardest(run, ["data.imbalance=30"], round=1)
    hardest(run, ["data.label_noise=0.1"], round=1, top=2)
    assert "have changed since the run, which its rounds cannot know" in capsys.readouterr().err


def test_evaluation_counts_false_positives(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(["eval", str(run), "--json"], 0, monkeypatch, capsys).out)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    at = found["false_positives_at_95_recall"]
    assert found["val_fp95"] == last["val_fp95"] == at["share"] == at["false_positives"] / at["negatives"]
    assert {name: of["samples"] for name, of in found["classes"].items()} == {"rest": at["negatives"], "8": at["positives"]}
    assert "val false positives at 95% recall" in said(["eval", str(run)], 0, monkeypatch, capsys).out
