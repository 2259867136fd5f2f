"""What there is to name: the parts with their options, and the shipped configs and recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainrun.errors import UserError
from trainrun.recipe.find import shipped, shipped_file, shipped_names
from trainrun.recipe.jsonschema import json_schema
from trainrun.recipe.registry import KINDS, Part, nearest, registry

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
)


def _option(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """Type, default, range and meaning of one option, from its JSON Schema."""
    branches = [b for b in schema.get("anyOf", [schema]) if b.get("type") != "null"]
    found: dict[str, Any] = {"type": " or ".join(dict.fromkeys(str(b.get("type", "any")) for b in branches))}
    if required:
        found["required"] = True
    else:
        found["default"] = schema.get("default")
    for branch in branches:
        found |= {name: branch[name] for name in _RANGES if name in branch}
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
    """The same for people: a line a part, and for one kind a line an option."""
    for each, parts in catalogue(kind).items():
        print(f"{each}: {KINDS[each].summary}")
        common = KINDS[each].common.model_fields
        seen: set[str] = set()
        for part in parts:
            print(f"  {part['name']:<24} {part['summary']}")
            own = {name: o for name, o in part["options"].items() if name not in common}
            text = json.dumps(own)
            if kind and own and text not in seen:  # members of a family share theirs, which are told once
                seen.add(text)
                for name, option in own.items():
                    print(f"      {name:<20} {_told(option)}")
        if kind and common:
            print("  every one of them also takes")
            for name, option in parts[0]["options"].items():
                if name in common:
                    print(f"      {name:<20} {_told(option)}")
    print("next: trainrun list KIND shows the options" if kind is None else "next: trainrun init lists configs to start from")


def _told(option: dict[str, Any]) -> str:
    default = "required" if option.get("required") else f"default {json.dumps(option['default'])}"
    ranges = "".join(f", {name} {json.dumps(option[name])}" for name in _RANGES if name in option and name != "pattern")
    return f"{option['type']}, {default}{ranges}. {option['description']}"


def _about(file: Path) -> str:
    found = re.search(r"^description: (.*)$", file.read_text(), re.MULTILINE)
    return found[1].strip("\"'") if found else ""


def print_shipped() -> None:
    """The shipped configs and recipes, a line each."""
    for kind, what in (("configs", "complete experiments: trainrun fit NAME runs one"), ("recipes", "how to train, for `extends:`")):
        print(f"{kind}: {what}")
        for name in shipped_names(kind):
            print(f"  {name:<20} {_about(shipped(kind) / f'{name}.yaml')}")
    print("next: trainrun init NAME writes one here")


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
