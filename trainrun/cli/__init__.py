"""The commands: parse, call one function, print. Nothing here imports torch before a recipe has been found sound."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from trainrun.cli.recipes import check, init, list_, schedule, schema, show
from trainrun.cli.runs import eval_, fit, hard, predict
from trainrun.cli.words import first_process, print_json
from trainrun.engine.signals import Interrupted, Signals
from trainrun.errors import RecipeError, Stopped, TrainrunError
from trainrun.report.command import command

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Image training from YAML recipes: checked before it runs, resumed bit for bit.",
)  # fmt: skip
for _command in (fit, check, show, schedule, list_, schema, init, eval_, predict, hard):
    app.command(name=_command.__name__.rstrip("_"))(_command)


def main() -> None:
    """Run a command; a TrainrunError ends it with its text and exit code, anything else is a bug and keeps its traceback."""
    signals = Signals()
    try:
        with signals, signals.at_once():
            app(standalone_mode=True)
    except TrainrunError as error:
        _refuse(error)
    except Interrupted:
        _refuse(Stopped(signals.stop or signal.SIGINT))
    except Exception as error:
        if not hasattr(error, "__notes__"):
            error.add_note(f"trainrun: stopped by a bug or an unexpected failure, {type(error).__name__}; next: {command(*sys.argv[1:])}")
        raise


def _refuse(error: TrainrunError) -> NoReturn:
    from trainrun.report.console import clean

    # A recipe's mistakes are the same in all processes of torchrun; of other errors the processes agree which of them tells.
    if error.told or (isinstance(error, RecipeError) and not first_process()):
        sys.exit(error.exit_code)
    mistakes = error.mistakes if isinstance(error, RecipeError) else []
    if mistakes:
        print(clean(str(error)), file=sys.stderr)
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "1 mistake"
        print(clean(f"trainrun: {count}, and nothing was run" + (f"; next: {error.next}" if error.next else "")), file=sys.stderr)
    else:
        print(clean(f"trainrun: {error.line}"), file=sys.stderr)
    if "--json" in sys.argv:
        names = ("file", "line", "column", "path", "message", "suggestion")
        errors = [{name: getattr(mistake, name) for name in names} for mistake in mistakes]
        print_json(error.result or {"ok": False, "exit_code": error.exit_code, "message": str(error), "errors": errors})
    sys.exit(error.exit_code)
