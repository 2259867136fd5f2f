"""What a person sees of a run: a live line and a table on a terminal, plain lines elsewhere, and always log.txt."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as Rich
from rich.live import Live
from rich.text import Text

# Columns of the table with their widths, between those of every task its own, and those that a terminal too narrow for all leaves
# out first: the live line has them too.
WIDTHS = {
    "epoch": 9, "step": 9, "train loss": 10, "train acc": 9, "val loss": 9, "val acc": 8, "val mAP": 8, "val AP50": 8, "lr": 9, "images/s": 9,
    "time": 10,
}  # fmt: skip
_FIGURES = {
    "train loss": ("train_loss", ".4f"), "train acc": ("train_accuracy", ".2%"), "val loss": ("val_loss", ".4f"), "val acc": ("val_accuracy", ".2%"),
    "val mAP": ("val_map", ".2%"), "val AP50": ("val_map_50", ".2%"), "lr": ("lr", ".3g"), "images/s": ("images_per_second", ",.0f"),
}  # fmt: skip
_LEFT_OUT = ("step", "images/s", "lr", "train acc", "val loss", "train loss")
_GAP, _MARK = "  ", "  *"
_EVERY = 30.0
_REFRESH = 0.2
_BAR, _TEXT = (8, 30), 94  # columns of the bar, least and most, and those that the figures may need
_ECHO = 2  # a terminal writes ^C behind the live line, which must not wrap


def clean(text: str, keep: str = "\n") -> str:
    """Text from data with control characters made visible, so that it cannot steer the terminal; a name keeps no line breaks either."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """12 s, 3:05 min, 2:07:00 h, 120 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h" if whole < 360_000 else f"{whole // 3600} h"


def on_terminal(stream: TextIO) -> bool:
    """Whether a person looks at this stream: a terminal that can move its cursor, and no CI job's log."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and os.environ.get("CI", "").lower() in ("", "0", "false")


def no_bars() -> bool:
    """Whether tqdm's bars stay away: nobody looks at stderr, or TQDM_DISABLE is set, as --quiet does."""
    return bool(os.environ.get("TQDM_DISABLE")) or not on_terminal(sys.stderr)


def columns(shown: Sequence[str], width: int | None = None) -> list[str]:
    """The columns of the table, with what a task shows, that fit `width` characters; all of them where it is None."""
    chosen = ["epoch", "step", *shown, "lr", "images/s", "time"]
    for name in _LEFT_OUT:
        if width is not None and name in chosen and len(cells(chosen, chosen)) + len(_MARK) > width:
            chosen.remove(name)
    return chosen


def cells(values: Sequence[str], chosen: Sequence[str]) -> str:
    """One row of the table of epochs."""
    return _GAP.join(f"{value:>{WIDTHS[name]}}" for value, name in zip(values, chosen, strict=True))


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _epochs(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:.2f}"


def row(figures: dict[str, Any], total_epochs: float, chosen: Sequence[str]) -> str:
    """The table's row of an epoch line."""
    told = {
        "epoch": f"{_epochs(figures['epoch'])}/{_epochs(total_epochs)}",
        "step": str(figures["step"]),
        **{column: _number(figures.get(name), form) for column, (name, form) in _FIGURES.items()},
        "time": duration(figures["seconds"]),
    }
    return cells([told[name] for name in chosen], chosen)


def told(figures: dict[str, Any]) -> str:
    """The figures of an evaluation in words."""
    words = {"loss": "loss {:.4f}", "accuracy": "accuracy {:.2%}", "fp95": "false positives at 95% recall {:.2%}", "map": "mAP {:.2%}", "map_50": "AP50 {:.2%}"}
    known = [(f"{side}_{name}", f"{side} {form}") for side in ("val", "test") for name, form in words.items()]
    return ", ".join(form.format(figures[name]) for name, form in known if name in figures)


def worst(classes: dict[str, dict[str, Any]]) -> str:
    """The three classes with the lowest figure, of accuracy or of average precision, in words."""
    shares = [(of.get("accuracy", of.get("map_50")), name, of.get("samples", of.get("boxes"))) for name, of in classes.items()]
    lowest = sorted((share, name, count) for share, name, count in shares if share is not None)[:3]
    return "worst classes: " + ", ".join(f"{name} {share:.2%} of {count:,}" for share, name, count in lowest)


def seen(picture: dict[str, Any]) -> str:
    """What was seen in a picture: its likely classes, or the boxes in it."""
    if "classes" in picture:
        told = [f"{of['class']} {of['probability']:.1%}" for of in picture["classes"]]
    else:
        told = [f"{of['class']} {of['score']:.2f} at {', '.join(format(side, '.0f') for side in of['box'])}" for of in picture["boxes"]]
    return f"{picture['file']}: {', '.join(told) or 'nothing'}"


def progress_parts(step: int, stop: int, now: dict[str, Any]) -> dict[str, str]:
    """What a progress line says, by name and in its order."""
    parts = {"step": f"step {step}/{stop} ({step / stop:.0%})", "epoch": f"epoch {now['epoch']:.2f}"}
    if now.get("train_loss") is not None:
        parts["loss"] = f"loss {now['train_loss']:.4f}"
    parts["lr"] = f"lr {now['lr']:.3g}"
    if now.get("images_per_second"):
        parts["rate"] = f"{now['images_per_second']:,.0f} images/s"
        parts["left"] = f"{duration(now['seconds_left'])} left"
    return parts


def live_line(parts: dict[str, str], share: float, width: int, bar: str) -> Text:
    """The progress line in less than `width` columns: what matters least goes first, and a wide terminal gets a bar too.

    bar: the two characters that it is made of, done and to do.
    """
    length = min(width - _TEXT, _BAR[1])  # of the width alone, so that it stands still while the figures change
    room = width - 1 - (length + len(_GAP) if length >= _BAR[0] else 0)
    kept = dict(parts)
    for name in ("epoch", "rate", "lr", "loss", "left"):
        if len(_GAP.join(kept.values())) > room:
            kept.pop(name, None)
    line = Text(_GAP.join(kept.values()))
    line.truncate(max(room, 1))
    if length >= _BAR[0]:
        done = round(share * length)
        line = Text.assemble((bar[0] * done, "cyan"), (bar[1] * (length - done), "bright_black"), _GAP, line)
    return line


class Console:
    """Prints to a stream and to log.txt. `quiet` leaves only warnings on the stream.

    Neither a log that cannot be written nor a stream whose reader has gone ends the run.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.rich = Rich(file=self.stream, highlight=False, soft_wrap=True)
        self.terminal = on_terminal(self.stream)
        self._log: Path | None = None
        self._log_failed = self._stream_failed = False
        self._spoke = self._drawn = time.monotonic()
        self._line = Text()
        self._live: Live | None = None
        self._total_epochs = 0.0
        self._whole: list[str] = []
        self._columns: list[str] = []

    def log_to(self, file: Path) -> None:
        """Also append to this file from now on."""
        self._log = file

    def say(self, text: str, style: str = "", *, always: bool = False) -> None:
        """One or more lines, as text: nothing in them is markup."""
        self._keep(text)
        if always or not self.quiet:
            self._show(text, style)

    def warn(self, text: str) -> None:
        """A warning, shown also where the console is quiet."""
        self.say(f"warning: {text}", "bold yellow", always=True)

    def _keep(self, text: str) -> None:
        self._spoke = time.monotonic()
        if self._log is None:
            return
        try:
            with self._log.open("a", encoding="utf-8") as log:  # each time anew: the file may be moved away or removed
                log.write(clean(text) + "\n")
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                self._show(f"warning: {self._log} cannot be written: {error.strerror or error}; the run goes on without it", "bold yellow")

    def _show(self, text: str, style: str = "") -> None:
        if self._stream_failed:
            return
        try:
            if self.terminal:
                self.rich.print(Text(clean(text), style=style))
            else:
                print(clean(text), file=self.stream, flush=True)
        except OSError:  # the terminal was closed, the pipe's reader ended, the disk under a redirection is full
            self._stream_failed = True
            self._live = None

    def table(self, total_epochs: float, shown: Sequence[str]) -> None:
        """The head of the table of epochs, with the columns that a task shows; on a terminal a live line below it from now on."""
        self._total_epochs = total_epochs
        self._whole = columns(shown)
        self._columns = columns(shown, self.rich.width if self.terminal else None)
        self._row(cells(self._whole, self._whole), cells(self._columns, self._columns), "bold")
        if self.terminal and not self.quiet:
            # Drawn by the loop itself: a thread that draws could hold the stream's lock while a worker process is forked.
            self._live = Live(get_renderable=lambda: self._line, console=self.rich, auto_refresh=False, transient=True)
            self._live.start()
            self.rich.show_cursor(True)  # a process that is killed cannot bring it back

    def epoch(self, figures: dict[str, Any], best: bool) -> None:
        """A row of the table, marked where it is the best so far."""
        mark = _MARK if best else ""
        whole, shown = (row(figures, self._total_epochs, chosen) + mark for chosen in (self._whole, self._columns))
        self._row(whole, shown, "green" if best else "")

    def _row(self, whole: str, shown: str, style: str) -> None:
        self._keep(whole)
        if not self.quiet:
            self._show(shown, style)

    def progress(self, step: int, stop: int, tell: Callable[[], dict[str, Any]]) -> None:
        """Where the run stands: on a terminal the live line, elsewhere a line every 30 s; `tell` gives loss, lr and the like."""
        now = time.monotonic()
        if now - self._spoke >= _EVERY:
            text = _GAP.join(progress_parts(step, stop, tell()).values())
            if self._live:
                self._keep(text)
            else:
                self.say(text)
        if self._live and now - self._drawn >= _REFRESH:
            self._drawn = now
            bar = "#-" if self.rich.options.ascii_only else "━─"
            self._line = live_line(progress_parts(step, stop, tell()), step / stop, self.rich.width - _ECHO, bar)
            try:
                self._live.refresh()
            except OSError:
                self._stream_failed, self._live = True, None

    def close(self) -> None:
        """End the live line and the log."""
        live, self._live, self._log = self._live, None, None
        if live:
            try:
                live.stop()
            except OSError:
                self._stream_failed = True
