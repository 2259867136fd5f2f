"""The JSON Schema of recipes, for editors: what a person may write, with every registered part and its options."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from trainrun.recipe.kinds import KINDS
from trainrun.recipe.layers import GROUPS
from trainrun.recipe.registry import Part, Registry, registry
from trainrun.recipe.schema import Recipe

Schema = dict[str, Any]

_EXTENDS: Schema = {
    "description": "Recipes that this one builds on: shipped ones by name, or paths relative to this file; later ones win.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
}


def json_schema(registry: Registry = registry, *, partial: bool = False) -> Schema:
    """The schema, draft 2020-12; a recipe that extends another, or is `partial` for others to extend, may leave out what they have."""
    whole = copy.deepcopy(Recipe.model_json_schema())
    definitions: Schema = {name: _tidy(body) for name, body in whole.pop("$defs").items()}
    body = _tidy(whole)
    required = [name for name in body.pop("required") if name != "name"]
    groups_required = {group: definitions[model.__name__].pop("required", []) for group, model in GROUPS.items()}
    needs = [{"required": required}] + [
        {"properties": {group: {"anyOf": [{"not": {"type": "object"}}, {"required": names}]}}}
        for group, names in groups_required.items()
        if names
    ]
    for kind in KINDS:
        definitions[f"part.{kind}"] = _part(registry, kind)
    written = json.dumps(definitions)
    definitions |= {f"bare.{kind}": _part(registry, kind, bare=True) for kind in KINDS if f"#/$defs/bare.{kind}" in written}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "trainrun recipe",
        **body,
        "properties": {"extends": _EXTENDS, **body["properties"]},
        **({} if partial else {"anyOf": [{"required": ["extends"]}, {"allOf": needs}]}),
        "$defs": definitions,
    }


def _tidy(schema: Any) -> Any:
    """A schema without the titles that pydantic derives from field names, and with references where parts go."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "x-part" in schema:
        rest = {key: value for key, value in schema.items() if key not in ("x-part", "x-bare", "title")}
        return {**rest, "$ref": f"#/$defs/{'bare' if 'x-bare' in schema else 'part'}.{schema['x-part']}"}
    return {
        key: {name: _tidy(item) for name, item in value.items()} if key == "properties" else _tidy(value)
        for key, value in schema.items()
        if key != "title"
    }


def _part(registry: Registry, kind: str, bare: bool = False) -> Schema:
    """A part of a kind: its name alone where no option is required, or a mapping of its name and options, `bare` with its own ones only."""
    families: dict[Callable[..., Any], list[Part]] = {}
    for name in registry.names(kind):
        if part := registry.get(kind, name):
            families.setdefault(part.function, []).append(part)
    alone: list[Schema] = []
    full: list[Schema] = []
    for parts in families.values():
        model = parts[0].bare_options if bare else parts[0].options
        options = _tidy(copy.deepcopy(model.model_json_schema()))
        names = _names(parts)
        required = options.get("required", [])
        if not required:
            alone.append(names)
        full.append(
            {
                "type": "object",
                "description": parts[0].summary,
                "properties": {"name": names, **_inlined(options.get("properties", {}), options.get("$defs", {}))},
                "required": ["name", *required],
                "additionalProperties": False,
            }
        )
    return {"description": KINDS[kind].summary, "anyOf": [*_joined(alone), *full]}


def _names(parts: list[Part]) -> Schema:
    patterns = [f"^{part.name.removesuffix('*')}.+$" for part in parts if part.name.endswith("/*")]
    listed = [part.name for part in parts if not part.name.endswith("/*")]
    closed: Schema = {"const": listed[0]} if len(listed) == 1 else {"enum": listed}
    open_ones: list[Schema] = [{"type": "string", "pattern": pattern} for pattern in patterns]
    if not open_ones:
        return closed
    return open_ones[0] if not listed and len(open_ones) == 1 else {"anyOf": [*([closed] if listed else []), *open_ones]}


def _joined(bare: list[Schema]) -> list[Schema]:
    """All closed names as one enum, for an editor's completion, and the open families beside it."""
    names = [name for schema in bare for name in (schema.get("enum") or ([schema["const"]] if "const" in schema else []))]
    return [*([{"enum": names}] if names else []), *(schema for schema in bare if "enum" not in schema and "const" not in schema)]


def _inlined(schema: Any, definitions: Schema) -> Any:
    """A schema with its references to an option model's own definitions written out."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and schema["$ref"].rsplit("/", 1)[1] in definitions:  # a part within a part is found in the recipe's schema
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions), **rest}
    return {key: _inlined(value, definitions) for key, value in schema.items()}
