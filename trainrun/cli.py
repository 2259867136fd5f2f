"""The commands: parse, call one function, print. Nothing here imports torch before a recipe has been found sound."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trainrun.errors import Mistake, RecipeError, TrainrunError, UserError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Image training from YAML recipes: checked before it runs, resumed bit for bit.",
)  # fmt: skip

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the recipe: schedule.lr=0.05")
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="The same, as an option.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything for people goes to stderr.")]
Plugins = Annotated[bool, typer.Option("--allow-plugins", help="Run the Python files that the recipe names under plugins.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Which = Annotated[str | None, typer.Option("--checkpoint", help="last or best; by default what result.json names.")]


def _load(recipe: str, overrides: list[str] | None, more: list[str] | None, allow_plugins: bool) -> Any:
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.load import load

    return load(recipe, [*(overrides or []), *(more or [])], allow_plugins=allow_plugins)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


@app.command()
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
    loaded = _load(recipe, overrides, set_, allow_plugins)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    from trainrun.engine.launch import launch

    result = launch(loaded, out=out, resume=resume, exact=exact, allow_plugins=allow_plugins, quiet=quiet)
    if as_json and result:
        _print_json(result)


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: Set = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and say what is wrong with it, and where."""
    try:
        loaded = _load(recipe, overrides, set_, allow_plugins)
    except RecipeError as error:
        if not as_json:
            raise
        _print_json({"ok": False, "errors": [_mistake(m) for m in error.mistakes]})
        raise typer.Exit(2) from None
    if as_json:
        _print_json({"ok": True, "errors": []})
    else:
        print(f"{loaded.file}: no mistakes\nnext: trainrun fit {recipe}")


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {name: getattr(mistake, name) for name in ("file", "line", "column", "path", "message", "suggestion")}


@app.command()
def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: Set = None,
    why: Annotated[bool, typer.Option("--why", help="Say after each value where it comes from.")] = False,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Print the resolved recipe with every default; what it prints is itself a recipe."""
    loaded = _load(recipe, overrides, set_, allow_plugins)
    from trainrun.engine.run import settle
    from trainrun.recipe.dump import dump, plain
    from trainrun.recipe.layers import Source
    from trainrun.world import enter

    with enter() as world:
        settled, reasons = settle(loaded.recipe, world)
    if as_json:
        _print_json(plain(settled))
        return
    sources = {**loaded.sources, **{(path,): Source("automatic", reason) for path, reason in reasons.items()}}
    print(dump(settled, sources if why else None), end="")
    print(f"next: trainrun fit {recipe}", file=sys.stderr)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="data, model, initializer, optimizer, warmup, decay, augment or loss.")
    ] = None,
    plugins: Annotated[list[str] | None, typer.Option("--plugins", help="Also run this Python file and list its parts.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the parts that a recipe can name, with their options."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.layers import Layer, Source
    from trainrun.recipe.plugins import load_plugins
    from trainrun.recipe.registry import KINDS, nearest, registry
    from trainrun.report.catalogue import catalogue, print_catalogue

    # Naming a file on the command line is the permission to run it.
    named = Layer(
        {"plugins": plugins or []}, values={("plugins", n): Source("override", f"--plugins {p}") for n, p in enumerate(plugins or [])}
    )
    if mistakes := load_plugins(named, True, registry):
        raise RecipeError(mistakes)
    plural = (kind or "").rstrip("s").replace("dataset", "data").replace("augmentation", "augment").replace("losse", "loss")
    chosen = kind if kind is None or kind in KINDS else plural if plural in KINDS else None
    if kind is not None and chosen is None:
        near = nearest(kind, KINDS)
        raise UserError(
            f"there is no kind of part called {kind!r}; there are {', '.join(KINDS)}" + (f"; did you mean {near}?" if near else "")
        )
    if as_json:
        _print_json(catalogue(chosen))
    else:
        print_catalogue(chosen)


@app.command()
def schema(
    partial: Annotated[bool, typer.Option("--partial", help="For recipes that others extend: nothing is required.")] = False,
) -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks them."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.jsonschema import json_schema

    _print_json(json_schema(partial=partial))


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A shipped config or recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
) -> None:
    """List the shipped configs and recipes, or write one here to start from."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.report.catalogue import print_shipped, write_shipped

    if name is None:
        print_shipped()
    else:
        file = write_shipped(name, Path.cwd(), force)
        print(f"wrote {file.name}\nnext: trainrun check {file.name}")


@app.command(name="eval")
def eval_(
    run: RunArgument,
    overrides: Overrides = None,
    set_: Set = None,
    checkpoint: Which = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's weights on its validation pictures."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.engine.use import evaluate_run

    found = evaluate_run(run, [*(overrides or []), *(set_ or [])], allow_plugins=allow_plugins, checkpoint=_which(checkpoint))
    if as_json:
        _print_json(found)
    else:
        print(
            f"{run}, step {found['step']:,}: val loss {found['val_loss']:.4f}, val accuracy {found['val_accuracy']:.2%} on {found['samples']:,} pictures"
        )
        print(f"next: trainrun predict {run} IMAGE", file=sys.stderr)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    checkpoint: Which = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Say which classes a run sees in pictures."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.engine.use import predict as predict_
    from trainrun.report.console import clean

    found = predict_(run, images, top=top, allow_plugins=allow_plugins, checkpoint=_which(checkpoint))
    if as_json:
        _print_json(found)
        return
    for picture in found:
        print(clean(picture["file"] + ": " + ", ".join(f"{c['class']} {c['probability']:.1%}" for c in picture["classes"])))


def _which(name: str | None) -> str | None:
    if name not in (None, "last", "best"):
        raise UserError(f"--checkpoint is last or best, found {name!r}")
    return name


def main() -> None:
    """Run a command; a TrainrunError ends it with its text and exit code, anything else is a bug and keeps its traceback."""
    try:
        app(standalone_mode=True)
    except TrainrunError as error:
        from trainrun.report.console import clean

        print(clean(f"trainrun: {error}" if not isinstance(error, RecipeError) else str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os._exit(141)
