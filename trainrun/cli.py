"""The commands: parse, call one function, print. Nothing here imports torch before a recipe has been found sound."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trainrun.engine.signals import Interrupted, Signals
from trainrun.errors import RecipeError, Stopped, TrainrunError, UserError
from trainrun.report.command import command
from trainrun.trials.look import Look

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


def _load(recipe: str, overrides: list[str], allow_plugins: bool) -> Any:
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.load import load

    try:
        return load(recipe, overrides, allow_plugins=allow_plugins)
    except RecipeError as error:
        sound = [text for text in overrides if not any(repr(text) in m.file for m in error.mistakes)]
        unknown = not Path(recipe).exists() and recipe in (m.file for m in error.mistakes)
        error.then(command("init") if unknown else command("check", recipe, *sound, *_allowed(allow_plugins)))
        raise


def _allowed(plugins: bool) -> list[str]:
    return ["--allow-plugins"] if plugins else []


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _next(*words: object) -> None:
    """The command to run next, which is for people."""
    print(f"next: {command(*words)}", file=sys.stderr)


def _print_look(seen: Look, as_json: bool) -> None:
    """What a trial saw, for a program or for a person."""
    if as_json:
        _print_json(seen.document())
    else:
        from trainrun.report.console import clean

        print(clean(seen.lines(shutil.get_terminal_size().columns)))


def _look(asked: str, recipe: Any, png: Path | None, as_json: bool) -> None:
    """Print what one of the options of `show` asks for."""
    from trainrun.world import enter

    if asked == "--augment":
        from trainrun.trials.augment import show

        told = show(recipe, png or Path(f"{recipe.name}-augment.png"), pictures=not as_json)
        if as_json:
            _print_json(told)
    elif asked == "--pca":
        from trainrun.trials.pca import look

        with enter() as world:
            _print_look(look(recipe, world), as_json)
    elif asked == "--init":
        from trainrun.trials.init import look as look_at_init

        with enter() as world:
            found = look_at_init(recipe, world)
        if png:
            found.png(png)
            print(f"wrote {png}", file=sys.stderr)
        _print_look(found, as_json)
    else:
        from trainrun.trials.counts import counts_of

        _print_look(counts_of(recipe), as_json)


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
    words = [*(overrides or []), *(set_ or [])]
    loaded = _load(recipe, words, allow_plugins)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    from trainrun.engine.launch import launch

    again = ["fit", recipe, *words, *_allowed(allow_plugins)]
    result = launch(loaded, out=out, resume=resume, exact=exact, allow_plugins=allow_plugins, quiet=quiet, again=again)
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
    words = [*(overrides or []), *(set_ or [])]
    loaded = _load(recipe, words, allow_plugins)
    if as_json:
        _print_json({"ok": True, "errors": []})
    else:
        print(f"{loaded.file}: no mistakes")
    _next("fit", recipe, *words, *_allowed(allow_plugins))


@app.command()
def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: Set = None,
    why: Annotated[bool, typer.Option("--why", help="Say after each value where it comes from.")] = False,
    augment: Annotated[bool, typer.Option("--augment", help="Instead, draw training pictures before and after each augmentation.")] = False,
    pca: Annotated[bool, typer.Option("--pca", help="Instead, print the principal components of the training pictures' pixels.")] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Instead, count the pictures of each class in the data and in an epoch, or the boxes.")] = False,
    init: Annotated[bool, typer.Option("--init", help="Instead, say what the first weights do to one batch, layer by layer.")] = False,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Where --augment draws, by default NAME-augment.png; --init draws into it too.")] = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Print the resolved recipe with every default; what it prints is itself a recipe."""
    words = [*(overrides or []), *(set_ or [])]
    loaded = _load(recipe, words, allow_plugins)
    asked = [option for option, given in (("--augment", augment), ("--pca", pca), ("--counts", counts), ("--init", init)) if given]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} show different things; give one").then(command("show", recipe, *words, asked[0]))
    if png and not (augment or init):
        raise UserError("--png says where --augment or --init draws; give one of the two").then(command("show", recipe, *words, "--augment", "--png", png))
    if asked:
        _look(asked[0], loaded.recipe, png, as_json)
        return _next("fit", recipe, *words, *_allowed(allow_plugins))
    from trainrun.engine.run import settle
    from trainrun.recipe.dump import dump, plain
    from trainrun.recipe.layers import Source
    from trainrun.world import enter

    with enter() as world:
        settled, reasons = settle(loaded.recipe, world)
    if as_json:
        _print_json(plain(settled))
    else:
        sources = {**loaded.sources, **{tuple(path.split(".")): Source("automatic", reason) for path, reason in reasons.items()}}
        print(dump(settled, sources if why else None), end="")
    _next("fit", recipe, *words, *_allowed(allow_plugins))


@app.command()
def schedule(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and settings that replace those of each.")
    ],
    set_: Set = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Also write the plot to this file.")] = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Draw the learning rate of every step; that of several recipes on one plot."""
    recipes = [word for word in words if "=" not in word or Path(word).exists()]
    settings = [*(word for word in words if word not in recipes), *(set_ or [])]
    if not recipes:
        raise UserError(f"found settings and no recipe: {' '.join(words)}").then(command("init"))
    loaded = [(recipe, _load(recipe, settings, allow_plugins)) for recipe in recipes]
    from trainrun.trials.schedule import look

    try:
        found = look(loaded)
        if png:
            found.png(png)
            print(f"wrote {png}", file=sys.stderr)
    except UserError as error:
        # The data's size makes the steps, so it has to be there.
        more = ["data.download=true"] if "download" in str(error) and "data.download=true" not in settings else []
        error.then(command("schedule", *recipes, *settings, *more, *_allowed(allow_plugins)))
        raise
    _print_look(found, as_json)
    _next("fit", recipes[0], *settings, *_allowed(allow_plugins))


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="data, model, initializer, optimizer, warmup, decay, augment, sampler, loss or mining.")
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
        found = f"there is no kind of part called {kind!r}; there are {', '.join(KINDS)}" + (f"; did you mean {near}?" if near else "")
        raise UserError(found).then(command("list", *([near] if near else [])))
    if as_json:
        _print_json(catalogue(chosen))
    else:
        print_catalogue(chosen)
    _next(*(("init",) if chosen else ("list", "augment")))


@app.command()
def schema(
    partial: Annotated[bool, typer.Option("--partial", help="For recipes that others extend: nothing is required.")] = False,
) -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks them."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.jsonschema import json_schema

    _print_json(json_schema(partial=partial))
    _next("init")


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A shipped config or recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
) -> None:
    """List the shipped configs and recipes, or write one here to start from."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.find import shipped_file
    from trainrun.report.catalogue import print_shipped, write_shipped

    if name is None:
        print_shipped()
        _next("init", "digits")
    else:
        file = write_shipped(name, Path.cwd(), force)
        print(f"wrote {file.name}")
        # A recipe says how to train, and becomes an experiment with data, a model and a length.
        needed = [] if shipped_file("configs", name) else ["data=digits", "model=tiny_convnet", "epochs=10"]
        _next("check", file.name, *needed)


@app.command(name="eval")
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
    from trainrun.report.console import clean, told, worst

    settings, side = [*(overrides or []), *(set_ or [])], "test" if test else "validation"
    found = evaluate_run(run, settings, allow_plugins=allow_plugins, checkpoint=_which(checkpoint), side=side, png=png)
    if as_json:
        _print_json(found)
    else:
        print(clean(f"{run}, step {found['step']:,}: {told(found)} on {found['samples']:,} pictures", keep=""))
        print(clean(worst(found["classes"]), keep=""))
    _next("predict", run, "IMAGE", *_allowed(allow_plugins))


@app.command()
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
    from trainrun.report.console import clean, seen

    found = predict_(run, images, top=top, allow_plugins=allow_plugins, checkpoint=_which(checkpoint), png=png)
    if as_json:
        _print_json(found)
    else:
        for picture in found:
            print(clean(seen(picture), keep=""))
    _next("eval", run, *_allowed(allow_plugins))


@app.command()
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
    shown = show(found, png, not as_json)
    if as_json:
        _print_json(shown)
    _next("eval", run, *_allowed(allow_plugins))


def _which(name: str | None) -> str | None:
    if name not in (None, "last", "best"):
        raise UserError(f"--checkpoint is last or best, found {name!r}")
    return name


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
    if error.told or (isinstance(error, RecipeError) and os.environ.get("RANK", "0") != "0"):
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
        _print_json(error.result or {"ok": False, "exit_code": error.exit_code, "message": str(error), "errors": errors})
    sys.exit(error.exit_code)
