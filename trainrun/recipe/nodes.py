"""Part nodes: the name and options that a person wrote, validated against the part's signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from trainrun.errors import Mistake
from trainrun.recipe import words
from trainrun.recipe.explain import mistakes_of, unknown_option
from trainrun.recipe.layers import ANY, PART_LISTS, PARTS, Inner, Layer, default_part, optional_part, parts_within
from trainrun.recipe.registry import PartNode, Registry
from trainrun.recipe.yaml import Keys


def resolve_parts(layer: Layer, registry: Registry, mistakes: list[Mistake], complete: bool) -> dict[str, Any]:
    """The layer's data with a PartNode wherever the schema wants one; mistakes are noted and stand-ins put in their place.

    Where the registry is not `complete`, because a plugin could not be loaded, an unknown name is no mistake.
    """
    data: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in layer.data.items()}
    for at, kind in PARTS.items():
        parent = data if len(at) == 1 else data.get(str(at[0]))
        key = str(at[-1])
        if not isinstance(parent, dict) or (key not in parent and default_part(at) is None):
            continue
        raw = parent[key] if key in parent else default_part(at)
        if raw is None and optional_part(at):
            continue
        parent[key] = _node(layer, registry, kind, raw, at, mistakes, complete)
    for name, kind in PART_LISTS.items():
        if isinstance(data.get(name), list):
            data[name] = [_node(layer, registry, kind, raw, (name, n), mistakes, complete) for n, raw in enumerate(data[name])]
    return data


def _node(layer: Layer, registry: Registry, kind: str, raw: Any, at: Keys, mistakes: list[Mistake], complete: bool, bare: bool = False) -> PartNode:
    stand_in = PartNode(kind, "", {})
    expected = f"expected the name of a part (trainrun list {kind})"
    options = {k: v for k, v in raw.items() if k != "name"} if isinstance(raw, dict) else {}
    if isinstance(raw, dict) and "name" not in raw:
        hint = next((f"name: {key}" for key in raw if registry.get(kind, key)), None)
        mistakes.append(layer.missing((*at, "name"), f"missing; {expected}", hint))
        return stand_in
    name = raw["name"] if isinstance(raw, dict) else raw
    here = (*at, "name") if isinstance(raw, dict) else at
    part = registry.get(kind, name) if isinstance(name, str) and "*" not in name else None
    if part is None:
        if complete or not isinstance(name, str):
            near = registry.nearest(kind, name) if isinstance(name, str) else "none" if registry.get(kind, "none") and not raw else None
            mistakes.append(layer.at_value(here, f"found {words.found(name)}; {expected}", None if near and "*" in near else near))
        return stand_in
    model = part.bare_options if bare else part.options
    for path, inner in parts_within(model).items():

        def make(raw: Any, at: Keys, inner: Inner = inner) -> PartNode | None:
            if raw is None and inner.default is None:
                return None
            if isinstance(raw, str) and at in layer.values:
                layer.values.setdefault((*at, "name"), layer.values[at])
            return _node(layer, registry, inner.kind, raw, at, mistakes, complete, inner.bare)

        options = _replaced(options, path, at, inner.default, make)
    try:
        valid = model.model_validate(options)
    except ValidationError as error:
        mistakes += mistakes_of(error, model, options, at, layer, lambda key: unknown_option(layer, registry, part, key, len(at), bare))
        return stand_in
    return PartNode(kind, part.name, {option: getattr(valid, option) for option in type(valid).model_fields})


def _replaced(value: Any, path: Keys, at: Keys, default: str | None, make: Callable[[Any, Keys], Any]) -> Any:
    """A copy of `value`, which stands at `at`, with what is at `path` below it made anew; what has another shape stays for validation to refuse."""
    if not path:
        return make(value, at)
    key, rest = path[0], path[1:]
    if key == ANY:
        return [_replaced(v, rest, (*at, n), default, make) for n, v in enumerate(value)] if isinstance(value, list) else value
    if not isinstance(value, dict) or (key not in value and (rest or default is None)):
        return value
    return {**value, key: _replaced(value.get(key, default), rest, (*at, key), default, make)}
