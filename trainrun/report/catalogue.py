"""What there is to name: the parts with their options, and the shipped configs and recipes."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

from trainrun.errors import UserError
from trainrun.recipe.find import shipped, shipped_file, shipped_names
from trainrun.recipe.jsonschema import json_schema
from trainrun.recipe.registry import KINDS, Part, nearest, registry
from trainrun.report.console import clean

SCHEMA_FILE = "trainrun.schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
_RANGES = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "pattern",
    "enum",
    "minItems",
    "maxItems",
    "items",
)


def _option(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """Type, default, range and meaning of one option, from its JSON Schema."""
    branches = [b for b in schema.get("anyOf", [schema]) if b.get("type") != "null"]
    found: dict[str, Any] = {"type": " or ".join(dict.fromkeys(str(b.get("type", "object" if "$ref" in b else "any")) for b in branches))}
    if required:
        found["required"] = True
    else:
        found["default"] = schema.get("default")
    for branch in branches:
        found |= {name: branch[name] for name in _RANGES if name in branch}
    if words := next((b["errorMessage"] for b in [schema, *branches] if "errorMessage" in b), None):
        found["expected"] = words
    if kind := next((b["x-part"] for b in [schema, *branches] if "x-part" in b), None):
        found |= {"type": "string or object", "expected": f"a part (trainrun list {kind}), with its options"}
    return {**found, "description": schema.get("description", "")}


def options(part: Part) -> dict[str, dict[str, Any]]:
    """A part's options by name."""
    schema = part.options.model_json_schema()
    return {name: _option(s, name in schema.get("required", [])) for name, s in schema.get("properties", {}).items()}


def catalogue(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """All parts of one kind or of all: {kind: [{"name", "summary", "options"}]}."""
    return {k: [_entry(k, name) for name in registry.names(k)] for k in ([kind] if kind else KINDS)}


def _entry(kind: str, name: str) -> dict[str, Any]:
    part = registry.get(kind, name)
    assert part is not None
    return {"name": name, "summary": part.summary, "options": options(part)}


def print_catalogue(kind: str | None) -> None:
    """The same for people, within the terminal's width: what each part is, and for one kind also its options."""
    for each in [kind] if kind else KINDS:
        print(f"{each}: {KINDS[each].summary}")
        common = list(KINDS[each].common.model_fields)
        for names, summary, found in told_together(each):
            _print(", ".join(names), summary, 2)
            if kind:
                _print_options({name: option for name, option in found.items() if name not in common})
        if kind and common:
            print("  each of these also takes")
            part = registry.get(each, registry.names(each)[0])
            assert part is not None
            _print_options({name: option for name, option in options(part).items() if name in common})


def told_together(kind: str) -> list[tuple[list[str], str, dict[str, Any]]]:
    """Names, summary and options of each part of a kind; the many names of one family stand together."""
    families: dict[Any, list[Part]] = {}
    for name in registry.names(kind):
        part = registry.get(kind, name)
        assert part is not None
        families.setdefault(part.function if part.family else name, []).append(part)
    return [
        (
            [part.name for part in parts],
            parts[0].summary if len(parts) == 1 else parts[0].manual.split("\n", 1)[0].replace("{name}", "model of that name"),
            options(parts[0]),
        )
        for parts in families.values()
    ]


def _print_options(found: dict[str, dict[str, Any]]) -> None:
    for name, option in found.items():
        _print(name, _told(option), 6)


def _print(name: str, text: str, indent: int) -> None:
    """A name and what it is: in two columns where the name is short, below it otherwise."""
    width = max(min(shutil.get_terminal_size().columns, 120), 60)
    column = 22
    name, text = clean(name, keep=""), clean(text, keep="")
    start = f"{' ' * indent}{name:<{column - indent}}  "
    if len(start) > column + 2:
        print(textwrap.fill(name, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_long_words=False))
        start = " " * (column + 2)
    print(textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * (column + 2), break_long_words=False, break_on_hyphens=False))


_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "array": "list", "object": "mapping"}
_ENDLESS = 2**53  # a whole number beyond it is no bound that a person meets


def _told(option: dict[str, Any]) -> str:
    """An option in words: what it means, what it takes, what it is where nothing is written."""
    return f"{option['description']} [{takes(option)}; {default(option)}]".lstrip()


def default(option: dict[str, Any]) -> str:
    """What an option is where nothing is written, as YAML has it."""
    return "required" if option.get("required") else f"default {json.dumps(option['default'], ensure_ascii=False)}"


def takes(option: dict[str, Any]) -> str:
    """What can be written for an option, in words."""
    if "expected" in option:
        return option["expected"]
    details, choices = {"array": _length, "integer": _range, "number": _range}, option.get("enum", [])
    listed = {"any", *("string" if isinstance(choice, str) else "integer" for choice in choices)} if choices else set()
    words = [_TYPES.get(t, t) + (details[t](option) if t in details else "") for t in option["type"].split(" or ") if t not in listed]
    *most, last = [*words, *map(str, choices)]
    return f"{', '.join(most)} or {last}" if most else last


def _range(option: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = {sign: option[name] for name, sign in signs.items() if name in option and abs(option[name]) < _ENDLESS}
    return " and".join(f" {sign} {int(bound) if bound == int(bound) else bound:,}" for sign, bound in found.items())


def _length(option: dict[str, Any]) -> str:
    """How many entries a list has, and what each of them is."""
    least, most = option.get("minItems", 0), option.get("maxItems")
    count = f" of {least}" if least == most else f" of {least} to {most}" if most else f" of {least} or more" if least else ""
    items = option.get("items", {})
    if not items.keys() & {"type", "anyOf", "errorMessage"}:
        return count
    each = takes(_option(items, True))
    return f"{count}, each {'a ' if each.startswith(('number', 'whole', 'list', 'mapping')) else ''}{each}"


def _about(file: Path) -> str:
    found = re.search(r"^description: (.*)$", file.read_text(), re.MULTILINE)
    return found[1].strip("\"'") if found else ""


def print_shipped() -> None:
    """The shipped configs and recipes, a line each."""
    for kind, what in (("configs", "complete experiments: trainrun fit NAME runs one"), ("recipes", "how to train, for `extends:`")):
        print(f"{kind}: {what}")
        for name in shipped_names(kind):
            _print(name, _about(shipped(kind) / f"{name}.yaml"), 2)


def write_shipped(name: str, folder: Path, force: bool) -> Path:
    """Copy a shipped config or recipe to `folder`, with the JSON Schema that its first line names; refuses to replace a file."""
    source = shipped_file("configs", name) or shipped_file("recipes", name)
    if source is None:
        known = [*shipped_names("configs"), *shipped_names("recipes")]
        near = nearest(name, known)
        raise UserError(
            f"there is no shipped config or recipe {name!r}; there are {', '.join(known)}" + (f"; did you mean {near}?" if near else "")
        )
    target = folder / source.name
    if target.exists() and not force:
        raise UserError(f"{target.name} is here already; use --force to replace it")
    text = source.read_text()
    if not text.startswith(SCHEMA_LINE):
        text = f"{SCHEMA_LINE}\n{text}"
    target.write_text(text)
    (folder / SCHEMA_FILE).write_text(json.dumps(json_schema(partial=source.parent == shipped("recipes")), indent=1) + "\n")
    return target
