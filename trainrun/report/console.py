"""What a person sees of a run: a live line and a table on a terminal, plain lines elsewhere, and always log.txt."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as Rich
from rich.live import Live
from rich.text import Text

COLUMNS = ("epoch", "step", "train loss", "train acc", "val loss", "val acc", "lr", "images/s", "time")
_WIDTHS = (8, 9, 10, 9, 9, 8, 10, 9, 9)
_EVERY = 30.0


def clean(text: str) -> str:
    """Text from data with control characters made visible, so that a file's name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """12 s, 3:05 min, 2:07:00 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"


def on_terminal(stream: TextIO) -> bool:
    """Whether a person looks at this stream: a terminal that can move its cursor, and no CI job's log."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")


def cells(values: Sequence[str]) -> str:
    """One row of the table of epochs."""
    return "  ".join(f"{v:>{w}}" for v, w in zip(values, _WIDTHS, strict=True))


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def row(figures: dict[str, Any], total_epochs: float) -> str:
    """The table's row of an epoch line."""
    epoch = f"{figures['epoch']:g}" if figures["epoch"] == int(figures["epoch"]) else f"{figures['epoch']:.2f}"
    return cells((
        f"{epoch}/{total_epochs:g}", f"{figures['step']}",
        _number(figures.get("train_loss"), ".4f"), _number(figures.get("train_accuracy"), ".2%"),
        _number(figures.get("val_loss"), ".4f"), _number(figures.get("val_accuracy"), ".2%"),
        _number(figures.get("lr"), ".3g"), _number(figures.get("images_per_second"), ",.0f"), duration(figures["seconds"]),
    ))  # fmt: skip


class Console:
    """Prints to a stream and to log.txt. `quiet` leaves only warnings on the stream."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self._log: TextIO | None = None
        self._spoke = time.monotonic()
        self._live_text = ""
        self._live: Live | None = None
        self.rich = Rich(file=self.stream, highlight=False, soft_wrap=True)
        self.terminal = on_terminal(self.stream)
        self._total_epochs = 0.0

    def log_to(self, file: Path) -> None:
        """Also append to this file from now on."""
        self._log = file.open("a", encoding="utf-8")

    def say(self, text: str, style: str = "", *, always: bool = False) -> None:
        """One or more lines, as text: nothing in them is markup."""
        text = clean(text)
        if self._log:
            self._log.write(text + "\n")
            self._log.flush()
        if self.quiet and not always:
            return
        self._spoke = time.monotonic()
        if self.terminal:
            self.rich.print(Text(text, style=style))
        else:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """A warning, shown also where the console is quiet."""
        self.say(f"warning: {text}", "bold yellow", always=True)

    def table(self, total_epochs: float) -> None:
        """The head of the table of epochs; on a terminal a live line below it from now on."""
        self._total_epochs = total_epochs
        self.say(cells(COLUMNS), "bold")
        if self.terminal and not self.quiet:
            self._live = Live(
                get_renderable=lambda: Text(self._live_text, style="cyan"), console=self.rich, refresh_per_second=4, transient=True
            )
            self._live.start()

    def epoch(self, figures: dict[str, Any], best: bool) -> None:
        """A row of the table, marked where it is the best so far."""
        self.say(row(figures, self._total_epochs) + ("  *" if best else ""), "green" if best else "")

    def progress(self, step: int, stop: int, tell: Any) -> None:
        """Where the run stands: on a terminal the live line, elsewhere a line every 30 s; `tell` gives loss, lr and the like."""
        if self._live:
            self._live_text = self._progress_text(step, stop, tell())
        elif time.monotonic() - self._spoke >= _EVERY:
            self.say(self._progress_text(step, stop, tell()))

    @staticmethod
    def _progress_text(step: int, stop: int, now: dict[str, Any]) -> str:
        parts = [f"step {step}/{stop} ({step / stop:.0%})", f"epoch {now['epoch']:.2f}"]
        if now.get("train_loss") is not None:
            parts.append(f"loss {now['train_loss']:.4f}")
        parts.append(f"lr {now['lr']:.3g}")
        if now.get("images_per_second"):
            parts.append(f"{now['images_per_second']:,.0f} images/s")
            parts.append(f"{duration(now['seconds_left'])} left")
        return "  ".join(parts)

    def close(self) -> None:
        """End the live line and the log."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._log:
            self._log.close()
            self._log = None
