"""Validation errors as mistakes: each at its own place, in plain words, with the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from trainrun.errors import Mistake
from trainrun.recipe import elsewhere, words
from trainrun.recipe.kinds import KINDS
from trainrun.recipe.layers import GROUPS, PART_LISTS, PARTS, Layer, default_part, group_at
from trainrun.recipe.registry import Part, Registry, nearest
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Keys, dotted


def mistakes_of(
    error: ValidationError, model: type[BaseModel], data: object, at: Keys, layer: Layer, unknown: Callable[[Keys], Mistake]
) -> list[Mistake]:
    """The mistakes in `data`, which stands at `at`; `unknown` words the one for a key that does not exist."""
    root = words.schema_of(model)
    listed = []
    for inner, details in words.grouped(error.errors(include_url=False), data).items():
        here = (*at, *inner)
        schema = words.part_of(root, root, inner) or {}
        if details["type"] == "extra_forbidden":
            message = "there is no such field"  # past so many, the nearest name would cost more than it helps
            listed.append(unknown(here) if len(listed) < 50 else layer.at_key(here, message))
        elif details["type"] == "missing":
            listed.append(layer.missing(here, f"missing; expected {words.expected(root, schema)}"))
        else:
            value = words.value_at(data, inner)
            found = f"found {words.found(value)}; {_expectation(details, root, schema)}"
            listed.append(layer.at_value(here, found, words.suggestion(root, schema, value)))
    return listed


def _expectation(details: ErrorDetails, root: words.Schema, schema: words.Schema) -> str:
    reason = details.get("ctx", {}).get("error")
    if details["type"] == "value_error" and reason is not None:
        return str(reason)  # the words of a part's own validator
    if details["type"] not in _PYDANTICS and details["type"] != "duration":
        return f"expected {details['msg']}"  # a PydanticCustomError of a part's own
    return f"expected {words.expected(root, schema)}"


_PYDANTICS = frozenset(get_args(ErrorType))


def unknown_field(layer: Layer, registry: Registry, at: Keys) -> Mistake:
    """The mistake for a key that a recipe, or a group of its settings, does not have."""
    group = group_at(at[:-1])
    fields = list((group or Recipe).model_fields)
    message = f"{dotted(at[:-1])} has no such field; it has {', '.join(fields)}" if group else "a recipe has no such field"
    return layer.at_key(at, message, near_path(at, known_paths(layer, registry)))


def unknown_option(layer: Layer, registry: Registry, part: Part, at: Keys, depth: int, bare: bool = False) -> Mistake:
    """The mistake for an option that a part does not have; `depth` is the length of the part's own path, `bare` says that it takes its own only."""
    name = str(at[-1])
    if len(at) > depth + 1:
        root = words.schema_of(part.options)
        beside = list((words.part_of(root, root, at[depth:-1]) or {}).get("properties", {}))
        message = "there is no such key" + (f"; expected {', '.join(beside)}" if beside else "")
        return layer.at_key(at, message, elsewhere.option_called(part.kind, name, beside) or nearest(name, beside))
    own = part.own_options if bare else option_names(part)
    message = f"{part.name} has no such option; " + (f"it has {', '.join(own)}" if own else "it has none")
    if called := elsewhere.option_called(part.kind, name, own):
        return layer.at_key(at, message, called)
    owners = _owners(registry, part.kind, name) if nearest(name, own) is None else None
    if owners:
        return layer.at_key(at, f"{message}; {name} is an option of {', '.join(owners)}")
    written = [f"{dotted(at[:-1])}.{option}" for option in own]
    return layer.at_key(at, message, near_path(at, [*known_paths(layer, registry), *written]))


def option_names(part: Part) -> list[str]:
    """The options of a part: its own, then those of its kind."""
    return [*part.own_options, *KINDS[part.kind].common.model_fields]


def _owners(registry: Registry, kind: str, option: str) -> list[str]:
    functions = {}
    for name in registry.names(kind):
        part = registry.get(kind, name)
        if part and option in part.own_options:
            functions.setdefault(part.function, name)  # one name stands for a family
    return list(functions.values())[:3]


def known_paths(layer: Layer, registry: Registry) -> list[str]:
    """Every dotted path that could be written: fields, and the options of the parts named here, then those of any part."""
    paths = [*Recipe.model_fields, *(f"{group}.{name}" for group, model in GROUPS.items() for name in model.model_fields)]
    inner = {path: found for path in paths if (found := group_at(tuple(path.split(".")))) and "." in path}
    paths += [f"{path}.{name}" for path, model in inner.items() for name in model.model_fields]
    others: list[str] = []
    for at, kind in PARTS.items():
        node = layer.data.get(str(at[0]))
        node = node.get(at[1]) if len(at) == 2 and isinstance(node, dict) else node
        name = node.get("name") if isinstance(node, dict) else node or default_part(at)
        chosen = registry.get(kind, name) if isinstance(name, str) else None
        if chosen:
            paths += [f"{dotted(at)}.{option}" for option in option_names(chosen)]
        else:
            others += [f"{dotted(at)}.{option}" for each in _distinct(registry, kind) for option in option_names(each)]
        paths.append(f"{dotted(at)}.name")
    for name, entries in ((name, layer.data.get(name)) for name in PART_LISTS):
        for n, entry in enumerate(entries if isinstance(entries, list) else []):
            part = registry.get(PART_LISTS[name], str(entry.get("name") if isinstance(entry, dict) else entry))
            paths += [f"{name}.{n}.{option}" for option in (option_names(part) if part else [])]
    return list(dict.fromkeys(paths + others))


def _distinct(registry: Registry, kind: str) -> Iterable[Part]:
    parts = (registry.get(kind, name) for name in registry.names(kind))
    return {part.function: part for part in parts if part}.values()


def near_path(at: Keys, known: Iterable[str], whole: bool = False) -> str | None:
    """The known path most likely meant: the same last word elsewhere, else what others call so, else a near word beside it, else a near path.

    A path beside the mistaken one is given by its last word, unless `whole`.
    """
    written, parent, leaf = dotted(at), dotted(at[:-1]), str(at[-1])
    split = [(path.rpartition(".")[0], path.rpartition(".")[2]) for path in known]
    same = [f"{p}.{n}" if p else n for p, n in split if n == leaf and p != parent and n not in ("name", "every")]
    called = elsewhere.field_called(leaf)
    beside = nearest(leaf, [n for p, n in split if p == parent])
    if same:
        return same[0]
    if called and called != parent:
        return called
    if beside:
        return f"{parent}.{beside}" if whole and parent else beside
    return nearest(written, [f"{p}.{n}" if p else n for p, n in split if nearest(leaf, [n])])
