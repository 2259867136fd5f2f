"""What a person sees: a live line and a table on a terminal, plain lines elsewhere, and the same lines in log.txt."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.report import console
from trainrun.report.console import Console, clean, columns, duration, live_line, no_bars, on_terminal, progress_parts, row

SHOWN = ("train loss", "train acc", "val loss", "val acc")
ALL = ["epoch", "step", *SHOWN, "lr", "images/s", "time"]
FIGURES = {
    "epoch": 3.0, "step": 69, "train_loss": 0.13441, "train_accuracy": 0.96671, "val_loss": 0.16111, "val_accuracy": 0.9493,
    "lr": 0.000466, "images_per_second": 2021.4, "seconds": 185.4,
}  # fmt: skip
NOW = {"epoch": 1.35, "train_loss": 2.13914, "lr": 0.0652, "images_per_second": 4498.2, "seconds_left": 185.0}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOSTILE = ["[/]", "[red]x", "\x1b[2J", "[link=http://x]y[/link]", "a\u202egpj.exe", "\x9b31m", ":smile:", "\r over", "\x07", "\u2066b\u2069"]


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    moved = Time()
    monkeypatch.setattr(console, "time", moved)
    return moved


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def terminal() -> Iterator[tuple[Any, Callable[[], str]]]:
    """The stream of a pseudo-terminal, and a function that ends it and gives what was written."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    stream = os.fdopen(theirs, "w", encoding="utf-8", newline="")

    def read() -> str:
        stream.flush()
        os.write(theirs, b"\x04")
        data = b""
        while not data.endswith(b"\x04"):
            data += os.read(ours, 65536)
        return data[:-1].decode()

    yield stream, read
    stream.close()
    os.close(ours)


def screen(data: str, width: int) -> list[str]:
    """The lines that a terminal shows after these bytes; knows what a live line uses and refuses everything else."""
    lines, at, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", data, re.DOTALL):
        if piece == "\n":
            at, column = at + 1, 0
            lines += [""] * (at + 1 - len(lines))
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[2K":
            lines[at] = ""
        elif re.fullmatch(r"\x1b\[\d*A", piece):
            at -= int(piece[2:-1] or 1)
        elif piece.startswith("\x1b"):
            assert re.fullmatch(r"\x1b\[([0-9;]*m|\?25[lh])", piece), piece
        else:
            assert piece.isprintable() and column < width, (piece, lines[at])
            lines[at] = lines[at][:column].ljust(column) + piece + lines[at][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def tell_a_run(told: Console, clock: Time) -> None:
    """Three epochs of ten steps, four seconds a step."""
    told.table(3, SHOWN)
    for step in range(1, 31):
        clock.now += 4.0
        told.progress(step, 30, lambda: NOW)
        if step % 10 == 0:
            told.epoch({**FIGURES, "epoch": step / 10, "step": step}, best=step == 20)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TERM", "xterm", True), ("TERM", "dumb", False), ("TERM", "", True), ("CI", "1", False), ("CI", "true", False), ("CI", "false", True),
        ("NO_COLOR", "1", True), ("FORCE_COLOR", "1", True),
    ],
)  # fmt: skip
def test_a_terminal_is_known_by_itself_and_its_surroundings(
    terminal: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert on_terminal(terminal[0]) is expected


def test_a_terminal_without_a_kind_gets_plain_lines(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM")
    assert not on_terminal(terminal[0])


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "NO_COLOR", "CI", "TERM"])
def test_a_pipe_gets_a_line_an_epoch_and_one_every_30_s(clock: Time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    stream = io.StringIO()
    told = Console(stream)
    told.log_to(tmp_path / "log.txt")
    tell_a_run(told, clock)
    told.close()
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert [line.split()[0] for line in lines] == ["epoch", "step", "1/3", "step", "2/3", "step", "3/3"]
    # 30 s are over at the eighth step of 4 s; an epoch's line at 40 s starts them again.
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["8/30", "18/30", "28/30"]
    assert lines[1] == "step 8/30 (27%)  epoch 1.35  loss 2.1391  lr 0.0652  4,498 images/s  3:05 min left"
    assert (tmp_path / "log.txt").read_text() == stream.getvalue()


def test_a_dumb_terminal_gets_what_a_pipe_gets(terminal: Any, clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    piped = io.StringIO()
    for stream in (piped, terminal[0]):
        tell_a_run(Console(stream), clock)
    assert terminal[1]() == piped.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 85, 100, 120])
def test_a_terminal_shows_the_table_and_nothing_is_left_of_the_live_line(
    terminal: Any, clock: Time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream, read = terminal
    told = Console(stream)
    told.log_to(tmp_path / "log.txt")
    tell_a_run(told, clock)
    told.close()
    data = read()
    lines = [line for line in screen(data, width) if line]
    assert [line.split()[0] for line in lines] == ["epoch", "1/3", "2/3", "3/3"]
    drawn = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", data)) if "step " in line and not line.startswith(" ")]
    assert drawn[-1].lstrip("━─ ").startswith("step 30/30 (100%)")
    assert max(map(len, drawn)) <= width - 3  # ^C fits behind it
    # The cursor is shown while the run goes, since SIGKILL would leave it hidden, and after it.
    for part in (data[: data.index("step 1/30")], data):
        assert part.rfind("\x1b[?25h") > part.rfind("\x1b[?25l")
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["epoch", "step", "1/3", "step", "2/3", "step", "3/3"]
    assert log[0].split("  ")[-1].strip() == "time" and all(name in log[0] for name in ALL)


def test_no_color_leaves_no_color(terminal: Any, clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream, read = terminal
    told = Console(stream)
    tell_a_run(told, clock)
    told.warn("careful")
    told.close()
    codes = {int(n) for found in re.findall(r"\x1b\[([0-9;]*)m", read()) for n in found.split(";") if n}
    assert codes <= {0, 1}  # bold and its end


def test_colors_are_there_otherwise(terminal: Any, clock: Time) -> None:
    stream, read = terminal
    tell_a_run(told := Console(stream), clock)
    told.close()
    assert "\x1b[32m" in read()


def test_quiet_shows_warnings_only_and_logs_everything(clock: Time, tmp_path: Path) -> None:
    stream = io.StringIO()
    told = Console(stream, quiet=True)
    told.log_to(tmp_path / "log.txt")
    tell_a_run(told, clock)
    told.warn("careful")
    assert stream.getvalue() == "warning: careful\n"
    # One line every 30 s, not one a step from then on.
    words = [line.split()[0] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert words == ["epoch", "step", "1/3", "step", "2/3", "step", "3/3", "warning:"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_on_a_terminal_and_in_the_log(terminal: Any, tmp_path: Path, name: str) -> None:
    stream, read = terminal
    told = Console(stream)
    told.log_to(tmp_path / "log.txt")
    told.say(f"<{name}>")
    expected = "<" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name) + ">\n"
    assert read() == expected == (tmp_path / "log.txt").read_text()
    assert not set(expected) & set("\x1b\x9b\x07\r\u202e\u2066\u2069")


def test_a_name_keeps_no_line_break_and_a_message_does() -> None:
    assert clean("a\nb") == "a\nb"
    assert clean("a\nb", keep="") == "a\\nb"
    assert clean("\udcff é 猫") == "\\udcff é 猫"


@pytest.mark.parametrize("width", [None, 200, 120, 100, 80, 60, 40])
@pytest.mark.parametrize("figures", [FIGURES, {"epoch": 12.5, "step": 1_000_000, "lr": 1.2345e-10, "seconds": 359_999.0, "images_per_second": None}])
def test_rows_stand_below_the_head(width: int | None, figures: dict[str, Any]) -> None:
    chosen = columns(SHOWN, width)
    head, line = console.cells(chosen, chosen), row(figures, 300, chosen)
    assert len(line) == len(head) and (width is None or len(line + "  *") <= width)
    # Every column of the head ends where the row's value ends.
    ends = [m.end() for m in re.finditer(r"\S+( \S+)*", head)]
    assert [m.end() for m in re.finditer(r"\S+( \S+)*", line)] == ends and len(ends) == len(chosen)


def test_a_row_says_the_figures() -> None:
    words = re.split(r"  +", row(FIGURES, 30, ALL).strip())
    assert words == ["3/30", "69", "0.1344", "96.67%", "0.1611", "94.93%", "0.000466", "2,021", "3:05 min"]
    assert row({**FIGURES, "epoch": 0.7}, 500 / 93, ["epoch"]).strip() == "0.70/5.38"


def test_narrow_terminals_lose_what_the_live_line_has() -> None:
    assert columns(SHOWN, None) == columns(SHOWN, 120) == ALL
    assert set(ALL) - set(columns(SHOWN, 80)) == {"step", "images/s"}


def test_the_best_epochs_are_marked() -> None:
    stream = io.StringIO()
    told = Console(stream)
    told.table(2, SHOWN)
    told.epoch({**FIGURES, "epoch": 1.0}, best=True)
    told.epoch({**FIGURES, "epoch": 2.0}, best=False)
    assert [line.endswith("  *") for line in stream.getvalue().splitlines()] == [False, True, False]


@pytest.mark.parametrize("width", [*range(1, 130, 7), 80])
def test_the_live_line_stays_within_the_width(width: int) -> None:
    line = live_line(progress_parts(12_345, 69_000, NOW), 12_345 / 69_000, width, "━─")
    assert len(line) < max(width, 2)
    assert width < 39 or ("12345/69000 (18%)" in line.plain and line.plain.endswith("  3:05 min left"))


def test_the_bar_is_as_long_as_the_share() -> None:
    for now in (NOW, {**NOW, "train_loss": None, "images_per_second": None}):  # it stands still whatever the figures
        assert live_line(progress_parts(15, 30, now), 0.5, 112, "#-").plain.startswith("#" * 9 + "-" * 9 + "  step 15/30 (50%)  epoch")
    line = live_line(progress_parts(15, 30, NOW), 0.5, 200, "#-").plain
    assert line.startswith("#" * 15 + "-" * 15 + "  step 15/30 (50%)  epoch 1.35  loss 2.1391  lr 0.0652  4,498 images/s  3:05 min left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.5, "1:00 min"), (3599.4, "59:59 min"), (3600, "1:00:00 h"), (359_999, "99:59:59 h"), (360_000, "100 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_on_a_full_disk_warns_once_and_the_run_goes_on() -> None:
    stream = io.StringIO()
    told = Console(stream)
    told.log_to(Path("/dev/full"))
    told.say("one")
    told.say("two")
    told.close()
    assert stream.getvalue().splitlines() == [
        "warning: /dev/full cannot be written: No space left on device; the run goes on without it", "one", "two"
    ]  # fmt: skip


def test_a_log_that_a_person_removed_is_begun_again(tmp_path: Path) -> None:
    told = Console(io.StringIO())
    told.log_to(tmp_path / "log.txt")
    told.say("one")
    (tmp_path / "log.txt").unlink()
    told.say("two")
    assert (tmp_path / "log.txt").read_text() == "two\n"


def test_a_reader_that_has_gone_does_not_end_the_run(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as stream:
        told = Console(stream)
        told.log_to(tmp_path / "log.txt")
        told.say("one")
        told.say("two")
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # so that closing it does not fail in its turn
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


def test_a_terminal_that_is_closed_does_not_end_the_run(clock: Time, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    told = Console(stream)
    told.log_to(tmp_path / "log.txt")
    told.table(3, SHOWN)
    os.close(ours)
    clock.now += 1
    told.progress(1, 30, lambda: NOW)
    told.epoch(FIGURES, best=True)
    told.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)
    stream.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_ctrl_c_on_a_real_terminal_saves_and_gives_the_cursor_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "trainrun", "fit", "digits", "epochs=500", "schedule.warmup=none", "--out", "run"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True)
    os.close(theirs)
    data, asked = b"", False
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side was closed
            break
        if not piece:
            break
        data += piece
        if b" 2/500" in data and not asked:
            asked = True
            child.send_signal(signal.SIGINT)
    os.close(ours)
    assert child.wait(60) == 130
    text = data.decode()
    shown = screen(text.replace("\r\n", "\n"), 1000)
    assert any(line.split()[0] == "2/500" for line in shown if line)
    last = [line for line in shown if line][-1]
    assert "SIGINT" in last and last.endswith("--resume")
    assert not any(line.startswith(("step", "━", "─")) for line in shown)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    rows = [line for line in shown if "%" in line]
    assert rows and all(len(line) <= 80 for line in rows)


@pytest.mark.parametrize(("term", "ci", "quiet", "bars"), [("xterm", "", "", True), ("dumb", "", "", False), ("xterm", "1", "", False), ("xterm", "", "1", False)])
def test_bars_are_drawn_where_a_person_looks(monkeypatch: pytest.MonkeyPatch, term: str, ci: str, quiet: str, bars: bool) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        for name, value in {"TERM": term, "CI": ci, "TQDM_DISABLE": quiet}.items():
            monkeypatch.setenv(name, value)
        assert no_bars() is not bars
    os.close(ours)
