"""The commands about recipes, before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trainrun.cli.words import (
    AsJson,
    Overrides,
    Plugins,
    RecipeArgument,
    Set,
    allowed,
    load_recipe,
    print_json,
    print_look,
    say,
    say_next,
)
from trainrun.errors import RecipeError, UserError
from trainrun.report.command import command


def _look(asked: str, recipe: Any, png: Path | None, as_json: bool) -> None:
    """Print what one of the options of `show` asks for."""
    from trainrun.world import enter

    if asked == "--augment":
        from trainrun.trials.augment import show

        told = show(recipe, png or Path(f"{recipe.name}-augment.png"), pictures=not as_json)
        if as_json:
            print_json(told)
    elif asked == "--pca":
        from trainrun.trials.pca import look

        with enter() as world:
            print_look(look(recipe, world), as_json)
    elif asked == "--init":
        from trainrun.trials.init import look as look_at_init

        with enter() as world:
            found = look_at_init(recipe, world)
        if png:
            found.png(png)
            say(f"wrote {png}")
        print_look(found, as_json)
    else:
        from trainrun.trials.counts import counts_of

        print_look(counts_of(recipe), as_json)


def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: Set = None,
    allow_plugins: Plugins = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and say what is wrong with it, and where."""
    words = [*(overrides or []), *(set_ or [])]
    loaded = load_recipe(recipe, words, allow_plugins)
    if as_json:
        print_json({"ok": True, "errors": []})
    else:
        say(f"{loaded.file}: no mistakes", sys.stdout)
    say_next("fit", recipe, *words, *allowed(allow_plugins))


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
    loaded = load_recipe(recipe, words, allow_plugins)
    asked = [option for option, given in (("--augment", augment), ("--pca", pca), ("--counts", counts), ("--init", init)) if given]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} show different things; give one").then(command("show", recipe, *words, asked[0]))
    if png and not (augment or init):
        raise UserError("--png says where --augment or --init draws; give one of the two").then(command("show", recipe, *words, "--augment", "--png", png))
    if asked:
        with loaded.locating():
            _look(asked[0], loaded.recipe, png, as_json)
        return say_next("fit", recipe, *words, *allowed(allow_plugins))
    from trainrun.engine.build import settle
    from trainrun.recipe.dump import dump, plain
    from trainrun.recipe.layers import Source
    from trainrun.world import enter

    with enter() as world:
        settled, reasons = settle(loaded.recipe, world)
    if as_json:
        print_json(plain(settled))
    else:
        sources = {**loaded.sources, **{tuple(path.split(".")): Source("automatic", reason) for path, reason in reasons.items()}}
        print(dump(settled, sources if why else None), end="")
    say_next("fit", recipe, *words, *allowed(allow_plugins))


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
    loaded = [(recipe, load_recipe(recipe, settings, allow_plugins)) for recipe in recipes]
    from trainrun.trials.schedule import look

    try:
        found = look(loaded)
        if png:
            found.png(png)
            say(f"wrote {png}")
    except UserError as error:
        # The data's size makes the steps, so it has to be there.
        more = ["data.download=true"] if "download" in str(error) and "data.download=true" not in settings else []
        error.then(command("schedule", *recipes, *settings, *more, *allowed(allow_plugins)))
        raise
    print_look(found, as_json)
    say_next("fit", recipes[0], *settings, *allowed(allow_plugins))


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
        print_json(catalogue(chosen))
    else:
        print_catalogue(chosen)
    say_next(*(("init",) if chosen else ("list", "augment")))


def schema(
    partial: Annotated[bool, typer.Option("--partial", help="For recipes that others extend: nothing is required.")] = False,
) -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks them."""
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.jsonschema import json_schema

    print_json(json_schema(partial=partial))
    say_next("init")


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
        say_next("init", "digits")
    else:
        file = write_shipped(name, Path.cwd(), force)
        print(f"wrote {file.name}")
        # A recipe says how to train, and becomes an experiment with data, a model and a length.
        needed = [] if shipped_file("configs", name) else ["data=digits", "model=tiny_convnet", "epochs=10"]
        say_next("check", file.name, *needed)
