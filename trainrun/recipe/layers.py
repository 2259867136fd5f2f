"""A recipe before validation: plain data joined with where each key and value was written, and how such layers combine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from trainrun.errors import Mistake
from trainrun.recipe.kinds import Options, PartOf
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Document, Keys, dotted


@dataclass(frozen=True)
class Source:
    """Where a value comes from; `file` holds the override as typed, or the reason of an automatic value, for those kinds."""

    kind: Literal["default", "file", "extended", "override", "automatic"]
    file: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        match self.kind:
            case "default":
                return "default"
            case "override":
                return f"override {self.file}"
            case "automatic":
                return f"automatic: {self.file}"
            case _:
                return f"{self.file}:{self.line}" + (" (extended)" if self.kind == "extended" else "")

    def mistake(self, path: str, message: str, suggestion: str | None = None) -> Mistake:
        """A mistake at this place; an override is named as it was typed, having no line."""
        file = f"override '{self.file}'" if self.kind == "override" else self.file
        return Mistake(file, self.line, self.column, path, message, suggestion)


@dataclass
class Layer:
    """Data of a recipe in the making, with the source of each key and each value by its path."""

    data: dict[str, Any]
    keys: dict[Keys, Source] = field(default_factory=dict)
    values: dict[Keys, Source] = field(default_factory=dict)

    def source(self, at: Keys) -> Source:
        """Where the value at a path was written, else the nearest value around it."""
        return next((self.values[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.values), Source("default"))

    def at_value(self, at: Keys, message: str, suggestion: str | None = None) -> Mistake:
        """A mistake that points at a value, or at the nearest one around it."""
        return self.source(at).mistake(dotted(at), message, suggestion)

    def at_key(self, at: Keys, message: str, suggestion: str | None = None) -> Mistake:
        """A mistake that points at a key, or at its value where it has none."""
        return self.keys.get(at, self.source(at)).mistake(dotted(at), message, suggestion)

    def missing(self, at: Keys, message: str, suggestion: str | None = None) -> Mistake:
        """A mistake about something not written, which points at the key of the mapping that lacks it."""
        parent = at[:-1]
        return self.keys.get(parent, self.source(parent)).mistake(dotted(at), message, suggestion)

    def forget(self, at: Keys) -> None:
        """Drop the places of a value that is about to be replaced, and of all within it."""
        for places in (self.keys, self.values):
            for place in [p for p in places if p[: len(at)] == at]:
                del places[place]

    def put(self, parent: dict[str, Any] | list[Any], at: Keys, value: Any, other: Layer) -> None:
        """Replace the value at a path, in `parent`, by that of another layer."""
        self.forget(at)
        parent[at[-1]] = value  # type: ignore[index, call-overload]  # a key of a mapping, or an index of a list
        self.keys.update({p: s for p, s in other.keys.items() if p[: len(at)] == at})
        self.values.update({p: s for p, s in other.values.items() if p[: len(at)] == at})


def of_document(document: Document, file: str, kind: Literal["file", "extended"]) -> Layer:
    """A file's layer."""

    def sources(marks: dict[Keys, Any]) -> dict[Keys, Source]:
        return {at: Source(kind, file, mark.line, mark.column) for at, mark in marks.items()}

    return Layer(document.data, sources(document.keys), sources(document.values))


def spread(at: Keys, value: Any) -> Iterator[Keys]:
    """The path of a value and of everything within it."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from spread((*at, key), item)


def merge(below: Layer, above: Layer) -> None:
    """Lay `above` over `below`: fields that are groups of settings merge by key, everything else is replaced whole."""
    replaced: set[Keys] = set()
    for key, value in above.data.items():
        old = below.data.get(key)
        if key in GROUPS and isinstance(value, dict) and isinstance(old, dict):
            below.data[key] = {**old, **value}
            replaced |= {(key, name) for name in value}
        else:
            below.data[key] = value
            replaced.add((key,))
    for mine, others in ((below.keys, above.keys), (below.values, above.values)):
        for place in [p for p in mine if p[:1] in replaced or p[:2] in replaced]:
            del mine[place]
        mine.update(others)


def _part_kind(metadata: list[Any]) -> str | None:
    return next((m.kind for m in metadata if isinstance(m, PartOf)), None)


@dataclass(frozen=True)
class Inner:
    """A part that an option of another part names: its kind, whether it takes its own options only, and its name where nothing is written."""

    kind: str
    bare: bool
    default: str | None


ANY = "*"  # stands for any entry of a list


def parts_within(options: type[BaseModel]) -> dict[Keys, Inner]:
    """The parts that a part's options name, by their paths below it."""
    found: dict[Keys, Inner] = {}
    for name, about in options.model_fields.items():
        if of := next((m for m in about.metadata if isinstance(m, PartOf)), None):
            found[(name,)] = Inner(of.kind, of.bare, about.default)
        elif get_origin(about.annotation) is list and (entry := _group(get_args(about.annotation)[0])):
            found |= {(name, ANY, *path): inner for path, inner in parts_within(entry).items()}
    return found


def _group(annotation: Any) -> type[Options] | None:
    types = [annotation, *get_args(annotation)]
    return next((t for t in types if isinstance(t, type) and issubclass(t, Options)), None)


# The shape of a recipe, read off the schema: groups of settings, part nodes by their path, lists of part nodes.
GROUPS: dict[str, type[Options]] = {name: g for name, f in Recipe.model_fields.items() if (g := _group(f.annotation))}
PARTS: dict[Keys, str] = {(name,): kind for name, f in Recipe.model_fields.items() if (kind := _part_kind(f.metadata))}
PARTS |= {(g, name): kind for g, model in GROUPS.items() for name, f in model.model_fields.items() if (kind := _part_kind(f.metadata))}
PART_LISTS: dict[str, str] = {
    name: kind
    for name, f in Recipe.model_fields.items()
    for argument in get_args(f.annotation)
    if (kind := _part_kind(list(getattr(argument, "__metadata__", ()))))
}


def group_at(at: Keys) -> type[Options] | None:
    """The group of settings that can stand at a path, if one can; a group's field may be one in turn."""
    group = GROUPS.get(str(at[0])) if at else None
    for key in at[1:]:
        field_ = group.model_fields.get(str(key)) if group else None
        group = _group(field_.annotation) if field_ else None
    return group


def part_kind(at: Keys) -> str | None:
    """The kind of part that stands at a path, if one does."""
    if len(at) == 2 and isinstance(at[1], int):
        return PART_LISTS.get(str(at[0]))
    return PARTS.get(at)


def optional_part(at: Keys) -> bool:
    """Whether nothing (null) can stand where a part goes."""
    model: type[Options] = GROUPS[str(at[0])] if len(at) == 2 else Recipe
    return type(None) in get_args(model.model_fields[str(at[-1])].annotation)


def default_part(at: Keys) -> str | None:
    """The name of the part that stands at a path when nothing is written there."""
    model: type[Options] = GROUPS[str(at[0])] if len(at) == 2 else Recipe
    default = model.model_fields[str(at[-1])].default
    return default if isinstance(default, str) else None
