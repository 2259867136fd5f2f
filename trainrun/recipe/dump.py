"""A resolved recipe as YAML: every setting written out, if wanted each with where it comes from, and itself a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from trainrun.recipe import yaml
from trainrun.recipe.durations import Duration
from trainrun.recipe.layers import Source
from trainrun.recipe.registry import PartNode
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Keys

_WIDEST = 60  # a longer line does not push the other comments to the right


def plain(value: Any) -> Any:
    """A value of a recipe as plain data: parts and groups as mappings, durations as text."""
    match value:
        case PartNode():
            return {"name": value.name, **{option: plain(item) for option, item in value.options.items()}}
        case BaseModel():
            return {name: plain(getattr(value, name)) for name in type(value).model_fields}
        case Duration():
            return str(value)
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def dump(recipe: Recipe, sources: Mapping[Keys, Source] | None = None) -> str:
    """The recipe as YAML that loads as the same recipe; with sources, each value's line ends in a comment with its origin."""
    written = list(yaml.lines(plain(recipe)))
    if sources is None:
        return "".join(f"{text}\n" for text, _ in written)
    inside: dict[Keys, list[Source]] = {}
    for place, source in sources.items():
        for n in range(1, len(place)):
            inside.setdefault(place[:n], []).append(source)
    width = max(len(text) for text, at in written if at and len(text) <= _WIDEST)
    return "".join(f"{text:{width}}  # {_origin(sources.get(at), inside.get(at, []))}\n" if at else f"{text}\n" for text, at in written)


def _origin(here: Source | None, inside: list[Source]) -> str:
    """Where a line's value comes from; for a list, which is one line, also the overrides of its entries."""
    text = "; ".join(dict.fromkeys(str(s) for s in [here or Source("default"), *(s for s in inside if s.kind == "override")]))
    return "".join(c if c.isprintable() else yaml.escaped(c) for c in text)
