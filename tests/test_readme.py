"""What the README shows is what the commands print."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from trainrun.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def shown(command: str) -> list[str]:
    """The lines that the README shows after a command."""
    block = next(block for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) if f"$ {command}\n" in block)
    return block.split(f"$ {command}\n")[1].split("\n$ ")[0].splitlines()


def printed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command prints, on both streams."""
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        main()
    return "".join(capsys.readouterr()).splitlines()


@pytest.mark.parametrize("command", ["trainrun check mine.yaml", "trainrun init digits", "trainrun show digits.yaml schedule.lr=0.05 --why"])
def test_output_is_as_shown(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text("# mine.yaml\n" + recipe)
    if "digits.yaml" in command:
        printed("trainrun init digits", monkeypatch, capsys)
    found, expected = printed(command, monkeypatch, capsys), shown(command)
    if "..." in expected:  # left out in the README
        pieces = "\n".join(expected).split("\n...\n")
        assert all(f"\n{piece.strip()}\n" in "\n" + "\n".join(found) + "\n" for piece in pieces)
    else:
        assert found == expected


def test_every_command_is_named_and_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed = "\n".join(printed("trainrun --help", monkeypatch, capsys))
    commands = set(re.findall(r"^. (\w+) ", listed, re.MULTILINE))
    assert {"fit", "check"} <= commands
    table = README.split("## Commands")[1].split("\n## ")[0]
    assert set(re.findall(r"`trainrun (\w+)", table)) == commands
