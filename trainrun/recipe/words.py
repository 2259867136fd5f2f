"""What validation found, in plain words: every message says what was found and what is expected, read off the JSON Schema."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from trainrun.recipe import yaml
from trainrun.recipe.registry import nearest
from trainrun.recipe.yaml import Keys

Schema = dict[str, Any]

_SPELT_UNITS = re.compile(r"([0-9.]+)\s*(e|epochs?|st?eps?|%|percent|s|secs?|seconds?)", re.IGNORECASE)
_UNIT = {"e": "ep", "p": "%", "%": "%", "s": "s"}
_YES, _NO = ("yes", "on", "y", "true", "1"), ("no", "off", "n", "false", "0")


@functools.lru_cache(maxsize=256)
def schema_of(model: type[BaseModel]) -> Schema:
    """The JSON Schema of an options model."""
    return model.model_json_schema()


def found(value: Any) -> str:
    """A value as a person would recognise it, in at most about 60 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else repr(value[:57]) + f"... ({len(value)} characters)"
    if isinstance(value, (dict, list)):
        text = yaml.flow(value) if len(value) <= 10 else ""
        return text if text and len(text) <= 60 else f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    return yaml.scalar(value)


def part_of(root: Schema, schema: Schema, at: Keys) -> Schema | None:
    """The schema of the value at a path below `schema`, through references and alternatives; None where there is none."""
    schema = _resolved(root, schema)
    if not at:
        return schema
    for each in schema.get("anyOf", [schema]):
        each = _resolved(root, each)
        inner = each.get("items") if isinstance(at[0], int) else each.get("properties", {}).get(at[0]) or each.get("additionalProperties")
        if isinstance(inner, dict) and (hit := part_of(root, inner, at[1:])) is not None:
            return hit
    return None


def _resolved(root: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def expected(root: Schema, schema: Schema) -> str:
    """What a schema admits, in words."""
    schema = _resolved(root, schema)
    if "errorMessage" in schema:
        return str(schema["errorMessage"])
    if "x-part" in schema:
        return f"the name of a part (trainrun list {schema['x-part']})"
    if "anyOf" in schema:
        sides = sorted(schema["anyOf"], key=lambda side: side.get("type") == "null")
        said = list(dict.fromkeys(expected(root, side) for side in sides))
        return (", or " if any(" or " in words for words in said[:-1]) else " or ").join(said)
    if (choices := choices_of(root, schema)) and "const" not in schema:
        return "one of " + ", ".join(choices)
    if "const" in schema:
        return str(schema["const"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "boolean":
            return "true or false"
        case "string":
            return "text" + (f" of at most {schema['maxLength']} characters" if "maxLength" in schema else "")
        case "array":
            return "a list" + _length(schema) + (f", each {expected(root, schema['items'])}" if schema.get("items") else "")
        case "object":
            return "a mapping" + (f" with {', '.join(schema['properties'])}" if "properties" in schema else "")
        case "null":
            return "null"
    return "another value"


def _range(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    bounds = [(above, "greater than"), (low, "of at least"), (high, "of at most"), (below, "less than")]
    said = [f"{words} {_number(bound)}" for bound, words in bounds if bound is not None]
    return f" {' and '.join(said).replace('and of ', 'and ')}" if said else ""


def _number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else repr(bound)


def _length(schema: Schema) -> str:
    low, high = schema.get("minItems"), schema.get("maxItems")
    if low is None and high is None:
        return ""
    if low == high:
        return f" of {low}"
    return f" of at least {low}" if high is None else f" of at most {high}" if low is None else f" of {low} to {high}"


def choices_of(root: Schema, schema: Schema) -> list[str]:
    """The words a schema admits, over all its alternatives."""
    schema = _resolved(root, schema)
    if "anyOf" in schema:
        return [choice for side in schema["anyOf"] for choice in choices_of(root, side)]
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def suggestion(root: Schema, schema: Schema, value: Any) -> str | None:
    """What the person most likely meant by a value that a schema refuses."""
    schema = _resolved(root, schema)
    sides = [_resolved(root, side) for side in schema.get("anyOf", [schema])]
    types = {side.get("type") for side in sides}
    choices = choices_of(root, schema)
    if choices and isinstance(value, bool):
        return next((c for c in (_YES if value else _NO) if c in choices), None)
    if choices and isinstance(value, str) and (close := nearest(value, choices)):
        return close
    if "boolean" in types and str(value).lower() in _YES + _NO:
        return "true" if str(value).lower() in _YES else "false"
    if "a duration" in json.dumps(schema) and isinstance(value, str) and (match := _SPELT_UNITS.fullmatch(value.strip())):
        unit = match[2].lower()
        spelt = match[1] + ("st" if unit.startswith("st") else _UNIT[unit[0]])
        return spelt if spelt != value.replace(" ", "") and any(re.search(s.get("pattern", "$^"), spelt) for s in sides) else None
    if types & {"integer", "number"} and "a duration" not in json.dumps(schema):
        return _as_number(value, schema, sides)
    if types == {"array"} and all(s.get("minItems", 0) <= 1 and _admits(root, s.get("items", {}), value) for s in sides):
        return f"[{yaml.flow(value)}]"
    return None


def _admits(root: Schema, schema: Schema, value: Any) -> bool:
    """Whether a value may well be what a schema asks for: of its type and written alike, of whatever size."""
    schema = _resolved(root, schema)
    if "x-part" in schema:
        return isinstance(value, str) or (isinstance(value, dict) and "name" in value)
    if "anyOf" in schema:
        return any(_admits(root, side, value) for side in schema["anyOf"])
    match schema.get("type"):
        case "string":
            return isinstance(value, str) and re.search(schema.get("pattern", ""), value) is not None
        case "integer" | "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
    return False


def _as_number(value: Any, schema: Schema, sides: list[Schema]) -> str | None:
    try:
        number = float(value.replace(",", ".")) if isinstance(value, str) else value
    except ValueError:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        return None
    side = next(s for s in sides if s.get("type") in ("integer", "number"))
    if side["type"] == "integer":
        if not float(number).is_integer():
            return None
        number = int(number)
    inside = (
        number >= side.get("minimum", -math.inf)
        and number <= side.get("maximum", math.inf)
        and side.get("exclusiveMinimum", -math.inf) < number < side.get("exclusiveMaximum", math.inf)
    )
    return yaml.scalar(number) if (inside and yaml.scalar(number) != str(value)) or (inside and isinstance(value, str)) else None


def place(loc: tuple[int | str, ...], data: Any, absent: bool) -> Keys:
    """An error's path in the data that was validated; pydantic mixes in the names of a union's alternatives, which are skipped."""
    at: list[str | int] = []
    for n, key in enumerate(loc):
        if isinstance(data, dict) and isinstance(key, str) and (key in data or (absent and n == len(loc) - 1)):
            at.append(key)
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            at.append(key)
            data = data[key]
    return tuple(at)


def value_at(data: Any, at: Keys) -> Any:
    """The value at a path that `place` gave."""
    for key in at:
        data = data[key]
    return data


def grouped(errors: list[ErrorDetails], data: Any) -> dict[Keys, ErrorDetails]:
    """One error a place: a union reports each alternative, of which the one that got deepest says most."""
    places: dict[Keys, ErrorDetails] = {}
    for error in errors:
        places.setdefault(place(error["loc"], data, error["type"] == "missing"), error)
    outer = {at[:n] for at in places for n in range(len(at))}
    return {at: error for at, error in places.items() if at not in outer or error["type"] == "missing"}
