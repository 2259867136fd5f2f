"""What several commands take, load and print."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from trainrun.errors import RecipeError
from trainrun.report.command import command
from trainrun.trials.look import Look

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the recipe: schedule.lr=0.05")
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="The same, as an option.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything for people goes to stderr.")]
Plugins = Annotated[bool, typer.Option("--allow-plugins", help="Run the Python files that the recipe names under plugins.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Which = Annotated[str | None, typer.Option("--checkpoint", help="last or best; by default what result.json names.")]


def load_recipe(recipe: str, overrides: list[str], allow_plugins: bool) -> Any:
    """A recipe, loaded; a RecipeError then says which command to run next."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.load import load

    try:
        return load(recipe, overrides, allow_plugins=allow_plugins)
    except RecipeError as error:
        sound = [text for text in overrides if not any(repr(text) in m.file for m in error.mistakes)]
        unknown = not Path(recipe).exists() and recipe in (m.file for m in error.mistakes)
        error.then(command("init") if unknown else command("check", recipe, *sound, *allowed(allow_plugins)))
        raise


def allowed(plugins: bool) -> list[str]:
    """The permission to run plugins, as words of a command that is run next."""
    return ["--allow-plugins"] if plugins else []


def print_json(value: Any) -> None:
    """The one document of --json; raises ValueError where a number is not finite, which is a bug."""
    _print(json.dumps(value, indent=1, allow_nan=False), sys.stdout)


def say_next(*words: object) -> None:
    """Print the command to run next, which is for people."""
    say(f"next: {command(*words)}")


def say(line: str, to: TextIO | None = None) -> None:
    """Print a line for people, on stderr unless told otherwise, in which no name steers the terminal."""
    from trainrun.report.console import clean

    _print(clean(line, keep=""), to or sys.stderr)


def _print(text: str, to: TextIO) -> None:
    if first_process():
        print(text, file=to)


def first_process() -> bool:
    """Whether this is the one process of torchrun's that says what all of them know alike."""
    return os.environ.get("RANK", "0") == "0"


def print_look(seen: Look, as_json: bool) -> None:
    """Print what a trial saw, for a program or for a person."""
    if as_json:
        print_json(seen.document())
    else:
        from trainrun.report.console import clean

        _print(clean(seen.lines(shutil.get_terminal_size().columns)), sys.stdout)
