"""The commands as a person and a program meet them: exit codes, what stands on stdout and stderr, and what to run next."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RECIPE = """\
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 160}
model: {name: tiny_convnet, width: 8, depth: 2}
batch_size: 32
epochs: 3
schedule: {lr: 0.05}
augment: [normalize]
"""
PLUGIN = """\
from trainrun import part

@part("loss")
def broken(logits, targets):
    '''A loss with a bug.'''
    raise ZeroDivisionError("a bug of the person's own")
"""
NAME = "my recipe.yaml"
PROGRAM = [sys.executable, "-m", "trainrun"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def last(self) -> str:
        """The line that stderr ends with."""
        return self.err.splitlines()[-1]

    @property
    def next(self) -> list[str]:
        """The words, after `trainrun`, of the command to run next."""
        program, _, words = self.last.partition("next: ")[2].partition(" -m trainrun ")
        assert program == sys.executable, self.err
        return shlex.split(words)


def trainrun(folder: Path, *words: object, code: int = 0, memory: int | None = None) -> Done:
    """Run a command in a folder; it has to end with `code`, and with a traceback only where that is 1."""

    def limit() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    ended = subprocess.run(
        [*PROGRAM, *map(str, words)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, preexec_fn=limit
    )
    assert ended.returncode == code, ended.stderr
    assert ("Traceback" in ended.stderr) == (code == 1), ended.stderr
    return Done(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe, a plugin and a picture, all with spaces in their names."""
    folder = tmp_path_factory.mktemp("home of mine")
    (folder / NAME).write_text(RECIPE)
    (folder / "my plugin.py").write_text(PLUGIN)
    Image.new("RGB", (8, 8), (9, 99, 200)).save(folder / "a picture.png")
    return folder


@pytest.fixture(scope="module")
def fitted(home: Path) -> Done:
    """`fit --json`, which made runs/my-recipe/001."""
    return trainrun(home, "fit", NAME, "--json")


RUN = Path("runs/my-recipe/001")


def test_fit_prints_one_document_and_tells_a_person_where_the_run_is(home: Path, fitted: Done) -> None:
    result = fitted.json
    assert result == {**json.loads((home / RUN / "result.json").read_text()), "run": str(RUN)}
    assert result.keys() >= {"stop", "steps", "epochs", "best", "seconds", "images_per_second", "checkpoint"}
    assert (result["stop"], result["steps"], result["checkpoint"]) == ("epochs", 12, "checkpoints/last")
    assert fitted.last.startswith("done: all epochs are done, 12 steps")
    assert f"{RUN}/checkpoints/last/model.safetensors" in fitted.err
    assert fitted.next == ["eval", str(RUN)]
    assert os.readlink(home / RUN.parent / "latest") == "001"
    environment = json.loads((home / RUN / "environment.json").read_text())
    assert environment["command"][1:] == ["fit", NAME, "--json"]


def test_a_moved_run_is_evaluated_and_predicts(home: Path, fitted: Done) -> None:
    (home / RUN).rename(home / "moved here")
    try:
        evaluated = trainrun(home, "eval", "moved here", "--json")
        predicted = trainrun(home, *evaluated.next[:-1], "a picture.png", "--json")
        told = trainrun(home, "predict", "moved here", "a picture.png", "--top", 1)
    finally:
        (home / "moved here").rename(home / RUN)
    best = fitted.json["best"]
    assert evaluated.json["val_loss"] == pytest.approx(best["val_loss"], rel=1e-6)
    assert (evaluated.json["samples"], evaluated.json["step"], evaluated.json["run"]) == (32, 12, "moved here")
    [picture] = predicted.json
    assert picture["file"] == "a picture.png"
    assert sum(c["probability"] for c in picture["classes"]) == pytest.approx(1, abs=1e-5)
    first = picture["classes"][0]
    assert told.out == f"a picture.png: {first['class']} {first['probability']:.1%}\n"
    assert told.next == ["eval", "moved here"]


def test_mistakes_are_two_without_a_traceback_and_with_a_way_on(home: Path, fitted: Done) -> None:
    override = trainrun(home, "fit", NAME, "epochs=2", "schedule.lr=-1", "--json", code=2)
    assert override.err.startswith("override 'schedule.lr=-1': schedule.lr: found -1; expected a number greater than 0")
    assert [e["path"] for e in override.json["errors"]] == ["schedule.lr"]
    assert override.next == ["check", NAME, "epochs=2"]
    trainrun(home, *override.next)
    unknown = trainrun(home, "fit", "digit", code=2)
    assert "there is no such file, and no shipped config of that name" in unknown.err and "did you mean digits?" in unknown.err
    assert unknown.next == ["init"]
    assert "No such option: --frobnicate" in trainrun(home, "fit", NAME, "--frobnicate", code=2).err
    assert "No such command 'fti'" in trainrun(home, "fti", code=2).err
    absent = trainrun(home, "fit", NAME, "data=cifar10", f"data.root={home / 'nothing here'}", code=2)
    assert absent.next == ["fit", NAME, "data=cifar10", f"data.root={home / 'nothing here'}", "data.download=true"]
    assert "no run directory" in trainrun(home, "eval", ".", code=2).err
    assert trainrun(home, "list", "modle", code=2).next == ["list", "model"]


@pytest.mark.skipif("timm" in sys.modules or __import__("importlib").util.find_spec("timm") is not None, reason="timm is installed here")
def test_a_missing_package_is_named_with_the_line_that_installs_it(home: Path) -> None:
    assert "needs timm: pip install 'trainrun[timm]'" in trainrun(home, "fit", NAME, "model=timm/resnet18", "--out", "no timm", code=2).last


def test_not_a_number_is_four_and_names_the_clean_state(home: Path) -> None:
    ended = trainrun(home, "fit", NAME, "schedule.lr=1e6", "model.norm=none", "--out", "diverged", "--json", code=4)
    assert ended.json["stop"] == "non_finite"
    assert re.search(r"became NaN or infinite at step \d+, with learning rate 1e\+06; .*the last clean state is diverged/checkpoints/", ended.last)
    assert ended.last == f"trainrun: {ended.json['message']}; next: {ended.json['next']}"
    assert ended.next == ["fit", NAME, "schedule.lr=1e6", "model.norm=none", "schedule.lr=100000"]


def test_out_of_memory_is_five_and_says_at_which_batch(home: Path) -> None:
    # One layer's output takes 32 GB, which the address space of this process has no room for.
    big = ["data.shape=[3, 256, 256]", "data.size=320", "batch_size=256", "model.width=512", "precision=fp32"]
    ended = trainrun(home, "fit", NAME, *big, "--out", "large", "--json", code=5, memory=24 * 2**30)
    assert ended.json["stop"] == "out_of_memory"
    assert "out of memory at batch_size 256, 256 pictures at once" in ended.last and "try micro_batch=128" in ended.last
    assert ended.next == ["fit", NAME, *big, "micro_batch=128"]
    assert not (home / "large" / "crash.txt").exists()


def test_a_bug_is_one_and_keeps_its_traceback(home: Path) -> None:
    ended = trainrun(home, "fit", NAME, 'plugins=["my plugin.py"]', "loss=broken", "--allow-plugins", "--out", "a bug", code=1)
    assert "ZeroDivisionError: a bug of the person's own" in ended.err
    assert ended.last.startswith("trainrun: stopped by a bug or an unexpected failure, ZeroDivisionError; its traceback is in a bug/crash.txt too")
    assert ended.next == ["fit", NAME, 'plugins=["my plugin.py"]', "loss=broken", "--allow-plugins", "--out", "a bug", "--resume"]
    assert 'in broken\n    raise ZeroDivisionError("a bug of the person\'s own")' in (home / "a bug" / "crash.txt").read_text()
    result = json.loads((home / "a bug" / "result.json").read_text())
    assert (result["stop"], result["message"]) == ("crash", "ZeroDivisionError: a bug of the person's own")


def test_a_stopped_run_goes_on_by_the_command_that_it_names(home: Path) -> None:
    long = ["epochs=100000", "stop_at=2000000st", "checkpoint.every=off"]
    child = subprocess.Popen([*PROGRAM, "fit", NAME, *long], cwd=home, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert child.stderr
    lines = []
    for line in child.stderr:  # the table's first row tells that steps are made
        lines.append(line)
        if re.match(r" *1/100000 ", line):
            break
    child.send_signal(signal.SIGTERM)
    lines += child.stderr.readlines()
    assert child.wait(60) == 128 + signal.SIGTERM
    stopped = Done(child.returncode, "", "".join(lines))
    step = re.search(r"stopped by SIGTERM at step ([\d,]+); nothing is lost", stopped.last)
    assert step, stopped.err
    folder = re.search(r"^  run +(.*)$", stopped.err, re.MULTILINE)
    assert folder and stopped.next == ["fit", NAME, *long, "--out", folder[1], "--resume"]
    assert json.loads((home / folder[1] / "result.json").read_text())["stop"] == "signal"
    end = int(step[1].replace(",", "")) + 3
    resumed = trainrun(home, *stopped.next, f"stop_at={end}st", "--quiet", "--json")
    assert (resumed.json["stop"], resumed.json["steps"], resumed.err) == ("stop_at", end, "")


def test_a_signal_before_the_first_step_loses_nothing(home: Path) -> None:
    child = subprocess.Popen(
        [*PROGRAM, "fit", NAME, "--out", "early"], cwd=home, env={**ENVIRONMENT, "PYTHONVERBOSE": "1"}, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr
    for line in child.stderr:  # the import of torch takes seconds, and has just begun
        if line.startswith("import 'torch.") or "torch/__init__" in line:
            break
    child.send_signal(signal.SIGINT)
    told = [line for line in child.stderr if line.startswith("trainrun: ")]
    assert child.wait(60) == 128 + signal.SIGINT
    assert told == ["trainrun: stopped by SIGINT; nothing is lost, start the same command again\n"]
    assert not (home / "early").exists()


def test_what_show_prints_is_the_same_recipe(home: Path) -> None:
    first = trainrun(home, "show", NAME, "epochs=2", "--why", "precision=fp32")
    assert re.search(r"^epochs: 2ep +# override epochs=2$", first.out, re.MULTILINE)
    assert re.search(r"^  lr: 0.05 +# my recipe.yaml:5$", first.out, re.MULTILINE)
    assert re.search(r"^clip: null +# default$", first.out, re.MULTILINE)
    assert re.search(r"^memory_format: channels_last +# automatic: what suits tiny_convnet$", first.out, re.MULTILINE)
    assert first.next == ["fit", NAME, "epochs=2", "precision=fp32"]
    (home / "shown.yaml").write_text(first.out)
    again = trainrun(home, "show", "shown.yaml")
    assert again.out == re.sub(r" +# .*$", "", first.out, flags=re.MULTILINE)
    assert trainrun(home, "show", "shown.yaml", "--json").json["epochs"] == "2ep"


def test_show_pca(home: Path) -> None:
    seen = trainrun(home, "show", NAME, "--pca", "--json")
    assert len(seen.json["eigenvalues"]) == len(seen.json["eigenvectors"]) == len(seen.json["mean"])
    assert seen.next == ["fit", NAME]
    assert trainrun(home, "show", NAME, "--pca").out.startswith("principal components of the pixels of ")


def test_commands_without_a_run(home: Path, tmp_path: Path) -> None:
    checked = trainrun(home, "check", NAME, "epochs=2")
    assert checked.out == f"{NAME}: no mistakes\n" and checked.next == ["fit", NAME, "epochs=2"]
    wrong = trainrun(home, "check", NAME, "epochs=0ep", "seeed=1", "--json", code=2)
    assert wrong.json["ok"] is False
    assert [(e["path"], e["suggestion"]) for e in wrong.json["errors"]] == [("epochs", None), ("seeed", "seed")]
    assert wrong.json["errors"][0].keys() == {"file", "line", "column", "path", "message", "suggestion"}
    assert trainrun(home, "check", NAME, "--json").json == {"ok": True, "errors": []}
    listed = trainrun(home, "list", "decays", "--json").json
    assert [part["options"]["alpha"]["maximum"] for part in listed["decay"] if part["name"] == "cosine"] == [1]
    assert trainrun(home, "schema").json["title"] == "trainrun recipe"
    written = trainrun(tmp_path, "init", "digits")
    assert written.next == ["check", "digits.yaml"]
    assert trainrun(tmp_path, *written.next).next == ["fit", "digits.yaml"]
    assert "use --force" in trainrun(tmp_path, "init", "digits", code=2).err


def test_no_name_steers_the_terminal(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31mred.yaml").write_text(RECIPE)
    for words in (["check"], ["show"], ["schedule"]):
        done = trainrun(tmp_path, words[0], "a\x1b[31mred.yaml")
        assert "\x1b" not in done.out + done.err and "\\x1b[31mred" in done.err


def test_a_reader_that_goes_away_is_no_bug(home: Path) -> None:
    child = subprocess.Popen([*PROGRAM, "list", "--json"], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stderr
    child.stdout.close()
    assert "Traceback" not in child.stderr.read()
    child.wait(60)
