"""`trainrun schedule`: one document for programs, a plot for people that shows the numbers, a picture, and what it cannot know."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainrun.cli import main
from trainrun.trials.schedule import Curve, Curves

RECIPE = """\
data: {name: synthetic, shape: [1, 6, 6], classes: 4, size: 50}
model: tiny_convnet
batch_size: 10
epochs: 10
schedule: {lr: 0.2, decay: cosine}
"""  # 4 steps an epoch


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(RECIPE)
    (tmp_path / "b.yaml").write_text(RECIPE.replace("0.2, decay: cosine", "0.1, decay: linear"))
    return tmp_path


@pytest.fixture
def schedule(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["trainrun", "schedule", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        return tuple(capsys.readouterr())

    return call


def test_json_is_one_document_with_the_rate_of_every_step(schedule: Any) -> None:
    out, err = schedule("a.yaml", "epochs=5", "--json")
    document = json.loads(out)
    assert (document["recipe"], document["name"], document["notes"]) == ("a.yaml", "a", [])
    assert [step["step"] for step in document["steps"]] == list(range(20))
    assert [step["epoch"] for step in document["steps"]] == [n / 4 for n in range(20)]
    assert [step["lr"] for step in document["steps"]] == pytest.approx([0.1 * (1 + math.cos(math.pi * n / 20)) for n in range(20)])
    assert err.splitlines()[-1].startswith("next: ") and err.splitlines()[-1].endswith(" fit a.yaml epochs=5")


def test_json_of_several_recipes(schedule: Any) -> None:
    documents = json.loads(schedule("a.yaml", "b.yaml", "--json")[0])["recipes"]
    assert [document["recipe"] for document in documents] == ["a.yaml", "b.yaml"]
    assert documents[1]["steps"][20] == {"step": 20, "epoch": 5.0, "lr": pytest.approx(0.05)}


def test_what_cannot_be_known_is_noted(schedule: Any) -> None:
    until = "schedule.warmup={name: constant, lr: 0.01, until_train_error: 0.8}"
    document = json.loads(schedule("a.yaml", until, "schedule.decay=plateau", "stop_at=2", "--json")[0])
    assert [step["lr"] for step in document["steps"]] == pytest.approx([0.01] * 8)
    warmup, decay, stop = document["notes"]
    assert "as if the training error never fell below 0.8" in warmup
    assert "plateau looks at validation" in decay
    assert stop == "stop_at ends the run after 8 steps of the 40 that the schedule is made for"
    assert "note: schedule.decay plateau" in schedule("a.yaml", "schedule.decay=plateau")[0]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("words", [["a.yaml"], ["a.yaml", "b.yaml"]])
def test_the_plot_fits(schedule: Any, monkeypatch: pytest.MonkeyPatch, width: int, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out, _ = schedule(*words)
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in out


def test_one_curve_is_drawn_in_braille_where_that_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Curves([Curve("a.yaml", "a", [0.1, 0.05], 1, [])])

    class Stream:
        encoding = "UTF-8"

    monkeypatch.setattr(sys, "stdout", Stream())
    assert any(0x2800 < ord(c) < 0x2900 for c in drawn.lines(80))
    Stream.encoding = "ANSI_X3.4-1968"
    assert drawn.lines(80).isascii()


def test_the_plot_shows_the_numbers(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column of a mark stands within half a row of the formula; more where a step's stair falls within it."""
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = schedule("a.yaml", "b.yaml")
    rows = [line.partition("|")[2].ljust(68) for line in out.splitlines()[:16]]
    assert out.splitlines()[0].startswith("      0.2 |") and out.splitlines()[15].startswith("        0 |")
    for column in range(68):
        step = (column + 0.5) / 68 * 40
        seen = [15 - n for n, row in enumerate(rows) if row[column] == "1"]
        cosine = 0.1 * (1 + math.cos(math.pi * step / 40)) / 0.2 * 16
        if seen:  # the other's mark may lie on it
            assert min(seen) - 1 <= cosine - 0.5 <= max(seen) + 1, column
    # In the corner where both end, one mark lies on the other; half of the height is the border between two rows.
    assert sum("1" in row for row in rows) >= 15
    assert [n for n, row in enumerate(rows) if "2" in row][-8:] == list(range(8, 16)) and not any("2" in row for row in rows[:7])
    assert "1  a.yaml: 40 steps, 10 epochs of 4; lr first 0.2, highest 0.2 at step 0" in out and "2  b.yaml: " in out


@pytest.mark.parametrize("count", [1, 2])
def test_the_highest_rate_is_drawn_from_end_to_end(count: int) -> None:
    """A rate that stays is the whole first row, whether alone or the second of two."""
    curves = [Curve("a.yaml", "a", [0.01] * 40, 4, []), Curve("b.yaml", "b", [0.1] * 40, 4, [])][-count:]
    for width in (40, 80, 133):
        rows = [line.partition("|")[2] for line in Curves(curves).lines(width).split("\n")[:16]]
        assert len(rows[0]) == width - 12 and " " not in rows[0]
        assert not any(row.strip() for row in rows[1:14])
        assert len(rows[14]) == (width - 12 if count == 2 else 0)


def test_long_trainings_keep_their_peaks() -> None:
    rates = [0.001] * 100_000
    rates[54_321] = 0.5
    text = Curves([Curve("a.yaml", "a", rates, 100, [])]).lines(80)
    assert text.splitlines()[0].startswith("      0.5 |") and text.splitlines()[0].split("|")[1].strip()
    assert "highest 0.5 at step 54,321 (epoch 543.2)" in text.replace("\n   ", " ")


def test_png(schedule: Any, here: Path) -> None:
    pytest.importorskip("matplotlib")
    out, err = schedule("a.yaml", "b.yaml", "--png", "curve.png", "--json")
    with Image.open(here / "curve.png") as picture:
        assert picture.format == "PNG" and picture.size == (960, 540)
        assert len(set(picture.convert("RGB").getdata())) > 20
    assert json.loads(out) and err.startswith("wrote curve.png\n")
    _, err = schedule("a.yaml", "--png", "nowhere/curve.png", code=2)
    assert "nowhere/curve.png cannot be written: No such file or directory; choose another --png" in err


def test_png_without_matplotlib(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "--png needs Matplotlib: pip install 'trainrun[plots]'" in schedule("a.yaml", "--png", "x.png", code=2)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=5"], "found settings and no recipe: epochs=5"),
        (["a.yaml", "nothing.yaml"], "nothing.yaml: there is no such file"),
        (["a.yaml", "schedule.lr=0"], "schedule.lr: found 0; expected a number greater than 0"),
        (["a.yaml", "data={name: folder, root: nowhere, size: 8}"], "nowhere"),
    ],
)
def test_refusals(schedule: Any, words: list[str], message: str) -> None:
    out, err = schedule(*words, code=2)
    assert message in err and "next: " in err.splitlines()[-1] and not out
