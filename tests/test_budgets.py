"""What the commands and the loop may cost, in seconds of CPU and in lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trainrun"
NO_TORCH = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; from trainrun.cli import main; main()"


def cpu_seconds(words: list[str], expected: int, compiled: Path) -> float:
    """User and system time of one call, with the byte code of an earlier one at hand as users have it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.Popen(
        [sys.executable, "-m", "trainrun", *words],
        env={**environment, "PYTHONPYCACHEPREFIX": str(compiled)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == expected
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["check", "digits", "batch_size=0", "modell=x"], 2)], ids=["help", "check"])
@pytest.mark.alone
def test_what_needs_no_torch_answers_in_half_a_second(tmp_path: Path, words: list[str], code: int) -> None:
    # With torch made impossible to import, an import of it anywhere would be an error. The best of a few: the machine may be busy.
    assert subprocess.run([sys.executable, "-c", NO_TORCH, *words], capture_output=True).returncode == code
    assert min(cpu_seconds(words, code, tmp_path) for _ in range(6)) < 0.5


def test_the_loop_is_read_at_a_glance() -> None:
    assert len((PACKAGE / "engine" / "fit.py").read_text().splitlines()) <= 110


def test_no_module_is_long() -> None:
    long = {str(file.relative_to(PACKAGE)): n for file in PACKAGE.rglob("*.py") if (n := len(file.read_text().splitlines())) > 400}
    assert not long
