"""The commands that train, and those about what was trained."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainrun.cli.words import (
    AsJson,
    Overrides,
    Plugins,
    RecipeArgument,
    RunArgument,
    Set,
    Which,
    allowed,
    first_process,
    load_recipe,
    print_json,
    say,
    say_next,
)
from trainrun.errors import UserError


def fit(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; by default runs/NAME/NNN.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the last unfinished run of this recipe.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse to resume where the numbers could differ in a bit.")] = False,
    allow_plugins: Plugins = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe."""
    words = [*(overrides or []), *(set_ or [])]
    loaded = load_recipe(recipe, words, allow_plugins)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    from trainrun.engine.launch import launch

    again = ["fit", recipe, *words, *allowed(allow_plugins)]
    result = launch(loaded, out=out, resume=resume, exact=exact, allow_plugins=allow_plugins, quiet=quiet, again=again)
    if as_json and result:
        print_json(result)


def eval_(
    run: RunArgument,
    overrides: Overrides = None,
    set_: Set = None,
    test: Annotated[bool, typer.Option("--test", help="Evaluate on the test pictures, where the data has some.")] = False,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw pictures with annotated and found boxes.")] = None,
    checkpoint: Which = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's weights on its validation pictures."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.engine.use import evaluate_run
    from trainrun.report.console import told, worst

    settings, side = [*(overrides or []), *(set_ or [])], "test" if test else "validation"
    found = evaluate_run(run, settings, allow_plugins=allow_plugins, checkpoint=_which(checkpoint), side=side, png=png)
    if as_json:
        print_json(found)
    else:
        say(f"{run}, step {found['step']:,}: {told(found)} on {found['samples']:,} pictures", sys.stdout)
        say(worst(found["classes"]), sys.stdout)
    say_next("predict", run, "IMAGE", *allowed(allow_plugins))


def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    png: Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Draw each picture with the boxes found in it.")] = None,
    checkpoint: Which = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Say which classes a run sees in pictures, or which boxes."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.engine.use import predict as predict_
    from trainrun.report.console import seen

    found = predict_(run, images, top=top, allow_plugins=allow_plugins, checkpoint=_which(checkpoint), png=png)
    if as_json:
        print_json(found)
    else:
        for picture in found:
            say(seen(picture), sys.stdout)
    say_next("eval", run, *allowed(allow_plugins))


def hard(
    run: RunArgument,
    overrides: Overrides = None,
    set_: Set = None,
    top: Annotated[int, typer.Option(min=1, help="How many pictures to list and draw.")] = 50,
    by: Annotated[str | None, typer.Option(help="loss (the default): under the run's weights; last-loss, kept: as mining noted them.")] = None,
    round: Annotated[int | None, typer.Option(min=0, help="Instead, what this round of mining added; 0 are the negatives of the start.")] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Where to draw; by default RUN/report/hard.png.")] = None,
    checkpoint: Which = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """List and draw the training pictures that a run finds hardest, among which wrong labels stand."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.trials.hard import hardest, show

    words = [*(overrides or []), *(set_ or [])]
    found = hardest(run, words, top=top, by=by, round=round, allow_plugins=allow_plugins, checkpoint=_which(checkpoint))
    if not first_process():
        return
    shown = show(found, png, not as_json)
    if as_json:
        print_json(shown)
    say_next("eval", run, *allowed(allow_plugins))


def _which(name: str | None) -> str | None:
    if name not in (None, "last", "best"):
        raise UserError(f"--checkpoint is last or best, found {name!r}")
    return name
