"""`trainrun show RECIPE --counts`: what it prints is what an epoch holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.cli import main
from trainrun.engine.build import open_data
from trainrun.recipe.load import load
from trainrun.trials.counts import counts_of

RECIPE = "data: {name: digits, imbalance: 20}\nmodel: tiny_convnet\nepochs: 2\nschedule: {lr: 0.1}\n"


def printed(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["trainrun", "show", "mine.yaml", "--counts", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_counts_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(printed(["sampler=label_shuffle", "--json"], tmp_path, monkeypatch, capsys))
    counts = np.bincount(open_data(load(tmp_path / "mine.yaml").recipe.data).train.labels).tolist()
    assert (found["sampler"], found["pictures"], found["epoch"]) == ("label_shuffle", sum(counts), 10 * counts[0])
    assert list(found["classes"]) == list("0123456789")
    for of, count in zip(found["classes"].values(), counts, strict=True):
        assert of == {"pictures": count, "epoch": counts[0], "least": counts[0] // count, "most": -(-counts[0] // count)}


def test_counts_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(["sampler=label_shuffle"], tmp_path, monkeypatch, capsys).splitlines()
    assert table[0].split() == ["class", "pictures", "an", "epoch", "each", "picture"]
    assert table[1].split() == ["0", "140", "140", "1"]
    assert table[-2].split()[:3] == ["9", "7", "140"] and table[-1].split() == ["all", "472", "1,400"]
    assert max(map(len, table)) <= 80


def test_a_class_without_pictures_has_none_to_count(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text(RECIPE.replace("{name: digits, imbalance: 20}", "{name: synthetic, classes: 9, size: 6, validation: 0}"))
    found = counts_of(load(tmp_path / "few.yaml", ["sampler={name: weighted, power: 0}"]).recipe)
    classes = found.document()["classes"]
    assert classes["class 8"] == {"pictures": 0, "epoch": 0, "least": None, "most": None}
    assert sum(of["epoch"] for of in classes.values()) == 6
    assert found.lines(30).splitlines()[-2].split() == ["class", "0", "0", "-"]
