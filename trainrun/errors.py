"""What a person can cause, as exceptions that carry their exit code; anything else is a bug and is left to raise."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Mistake:
    """One mistake in a recipe or an override: where it stands, what was found, what is expected.

    `line` and `column` count from 1 and are None for an override, which is named in `file` as it was typed.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        path = f"{self.path}: " if self.path else ""
        hint = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{place}: {path}{self.message}{hint}"


class TrainrunError(Exception):
    """A stop with a reason a person can act on; printed as its text and the command to run next, without a traceback."""

    exit_code = 1
    next = ""
    result: dict[str, Any] | None = None  # what result.json says, where a run was under way
    told = False  # whether another process of the run says the same

    def then(self, command: str) -> Self:
        """The same error, with the command to run next unless it has one already."""
        self.next = self.next or command
        return self

    @property
    def line(self) -> str:
        """Reason and what to do."""
        return f"{self}; next: {self.next}" if self.next else str(self)


class UserError(TrainrunError):
    """A mistake in the command line, the data or the environment (exit code 2)."""

    exit_code = 2


class RecipeError(UserError):
    """All the mistakes of a recipe, found in one pass (exit code 2)."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: (m.file, m.line or 0, m.column or 0, m.path))
        super().__init__("\n".join(str(m) for m in self.mistakes))


class NonFinite(TrainrunError):
    """The loss, a gradient or a weight became NaN or infinite (exit code 4)."""

    exit_code = 4


class OutOfMemory(TrainrunError):
    """The device ran out of memory (exit code 5)."""

    exit_code = 5


class Stopped(TrainrunError):
    """A signal asked the run to stop; its state is saved (exit code 128 + signal number)."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(message or f"stopped by {signal.Signals(signal_number).name}; nothing is lost, start the same command again")
