"""The command that a person would run next, in words that work when they are pasted into the same shell."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command(*words: object) -> str:
    """A trainrun command as one line for a shell, with trainrun itself called the way it was called this time."""
    return shlex.join([*_program(), *(str(word) for word in words)])


def _program() -> list[str]:
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("trainrun", "__main__.py"):
        return [sys.orig_argv[0], "-m", "trainrun"]
    on_path = shutil.which("trainrun")
    if called.name == "trainrun" and not (on_path and Path(on_path).resolve() == called.resolve()):
        return [sys.argv[0]]
    return ["trainrun"]
