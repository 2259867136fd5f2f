"""A recipe file and overrides to a validated Recipe, with the origin of every value, or with all the mistakes of one pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from trainrun.errors import Mistake, RecipeError, UserError
from trainrun.recipe import sense, words
from trainrun.recipe.checks import CHECKS
from trainrun.recipe.explain import mistakes_of, unknown_field
from trainrun.recipe.find import contents, find, shipped, shipped_file, shipped_names, shown
from trainrun.recipe.layers import Layer, Source, merge, of_document, part_kind
from trainrun.recipe.nodes import resolve_parts
from trainrun.recipe.overrides import apply_overrides
from trainrun.recipe.plugins import load_plugins
from trainrun.recipe.registry import PartNode, Registry, nearest, registry
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Keys, read


@dataclass(frozen=True)
class Loaded:
    """A resolved recipe and where its values come from; a leaf that `sources` does not hold is a default."""

    recipe: Recipe
    sources: Mapping[Keys, Source]
    file: Path

    def mistake(self, path: str, message: str, suggestion: str | None = None) -> Mistake:
        """A mistake at the value of a dotted path, or at the nearest value around it that someone wrote."""
        keys: Keys = tuple(int(key) if key.isdecimal() else key for key in path.split(".")) if path else ()
        places = (self.sources.get(keys[:n]) for n in range(len(keys), -1, -1))
        source = next((s for s in places if s and s.kind != "automatic"), Source("file", shown(self.file), 1, 1))
        return source.mistake(path, message, suggestion)

    def check_lengths(self, steps_per_epoch: int, registry: Registry = registry) -> None:
        """Refuse what contradicts itself once it is known how many steps an epoch has; raises RecipeError with every mistake."""
        faults = sense.contradictions(self.recipe, self.sources, registry, CHECKS, measured=steps_per_epoch)
        if faults:
            raise RecipeError([self.mistake(*fault) for fault in faults])

    def located(self, error: UserError) -> UserError:
        """An error that begins each line with a field, as a part that reads data does, with the places of these fields; any other as it is."""
        told = [line.partition(": ") for line in str(error).splitlines()]
        if isinstance(error, RecipeError) or not all(path.split(".")[0] in Recipe.model_fields and what for path, _, what in told):
            return error
        return RecipeError([self.mistake(path, what) for path, _, what in told]).then(error.next)

    @contextlib.contextmanager
    def locating(self) -> Iterator[None]:
        """Give what is raised within the places of the fields that it speaks of."""
        try:
            yield
        except UserError as error:
            raise self.located(error) from None


def load(recipe: str | Path, overrides: Sequence[str] = (), *, allow_plugins: bool = False, registry: Registry = registry) -> Loaded:
    """The recipe of a file or shipped name, with overrides; raises RecipeError with every mistake that one pass finds."""
    file = find(str(recipe))
    layer = _with_extended(_read(file, "file"), file)
    mistakes = apply_overrides(layer, overrides, registry)
    if "name" not in layer.data:
        layer.data["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:100] or "recipe"
        layer.values[("name",)] = Source("automatic", "the file's name")
    plugin_mistakes = load_plugins(layer, allow_plugins, registry)
    mistakes += plugin_mistakes
    data = resolve_parts(layer, registry, mistakes, complete=not plugin_mistakes)
    resolved: Recipe | None = None
    try:
        resolved = Recipe.model_validate(data)
    except ValidationError as error:
        mistakes += mistakes_of(error, Recipe, data, (), layer, lambda at: unknown_field(layer, registry, at))
    sources = _sources(layer)
    wrong = frozenset(m.path.split(".")[0] for m in mistakes) | frozenset(name for name, value in data.items() if _stands_in(value))
    known = resolved or _sound(data, wrong)
    if known is not None:
        faults = sense.contradictions(known, sources, registry, CHECKS, wrong)
        loaded = Loaded(known, sources, file)
        mistakes += [loaded.mistake(*fault) for fault in faults]
        if not mistakes:
            return loaded
    raise RecipeError(list(dict.fromkeys(mistakes)))


def _stands_in(value: Any) -> bool:
    """Whether there is a stand-in within: of a part with a mistake, or of one that a plugin which is not loaded may have."""
    match value:
        case PartNode():
            return not value.name or any(map(_stands_in, value.options.values()))
        case BaseModel():
            return any(map(_stands_in, vars(value).values()))
        case dict():
            return any(map(_stands_in, value.values()))
        case list():
            return any(map(_stands_in, value))
        case _:
            return False


def _sound(data: Mapping[str, Any], wrong: frozenset[str]) -> Recipe | None:
    """The recipe with something valid in place of the fields that are wrong, so that the others can be looked at together."""
    anything = PartNode("", "", {})
    stand_ins = {"data": anything, "model": anything, "epochs": "1ep", "schedule": {"lr": 1.0, "warmup": anything, "decay": anything}}
    sound = {name: value for name, value in data.items() if name in Recipe.model_fields and name not in wrong}
    try:
        return Recipe.model_validate({name: stand_in for name, stand_in in stand_ins.items() if name in wrong} | sound)
    except ValidationError:
        return None


def _read(path: Path, kind: Literal["file", "extended"]) -> Layer:
    name = shown(path)
    return of_document(read(contents(path, name), name), name, kind)


def _with_extended(main: Layer, file: Path) -> Layer:
    """The main file laid over those that it extends, in their order; raises RecipeError with the mistakes of all of them."""
    wanted = main.data.pop("extends", None)
    if wanted is None:
        return main
    single = isinstance(wanted, str)
    entries = [wanted] if single else wanted
    if not isinstance(entries, list):
        raise RecipeError([main.at_value(("extends",), f"found {words.found(wanted)}; expected the name of a recipe, or a list of them")])
    base = Layer({})
    mistakes: list[Mistake] = []
    for n, entry in enumerate(entries):
        at: Keys = ("extends",) if single else ("extends", n)
        path = _extended_file(file, entry) if isinstance(entry, str) else None
        if path is None:
            expected = "expected a shipped recipe's name, or a path relative to this file"
            near = nearest(entry, shipped_names("recipes")) if isinstance(entry, str) else None
            mistakes.append(main.at_value(at, f"found {words.found(entry)}; {expected}", near))
            continue
        try:
            merge(base, _partial(_read(path, "extended")))
        except RecipeError as error:
            mistakes += error.mistakes
    if mistakes:
        raise RecipeError(mistakes)
    main.forget(("extends",))
    merge(base, main)
    return base


def _extended_file(file: Path, entry: str) -> Path | None:
    beside = file.parent / entry
    return beside if beside.is_file() else shipped_file("recipes", entry)


def _partial(layer: Layer) -> Layer:
    """An extended file's layer without what speaks of that file only; raises RecipeError where it extends another in turn."""
    if "extends" in layer.data:
        raise RecipeError([layer.at_key(("extends",), "an extended file cannot extend another; list both in the file that is run")])
    for own in ("name", "description"):
        layer.data.pop(own, None)
        layer.forget((own,))
    return layer


def _sources(layer: Layer) -> dict[Keys, Source]:
    """The sources of all values; a part written as a bare name has its name's source under `name` too."""
    sources = dict(layer.values)
    for at in [at for at in sources if part_kind(at)]:
        if (*at, "name") not in sources:
            sources[(*at, "name")] = sources[at]
    return sources


__all__ = ["Loaded", "Source", "find", "load", "shipped"]
