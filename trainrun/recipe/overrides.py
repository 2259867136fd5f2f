"""Overrides from the command line, `key.sub=value`: the same values by the same rules as in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trainrun.errors import Mistake
from trainrun.recipe import words, yaml
from trainrun.recipe.explain import known_paths, near_path
from trainrun.recipe.kinds import KINDS
from trainrun.recipe.layers import ANY, GROUPS, Inner, Layer, Source, default_part, part_kind, parts_within, spread
from trainrun.recipe.registry import Registry
from trainrun.recipe.schema import Recipe
from trainrun.recipe.yaml import Keys, dotted

_KEY = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,20}")


def apply_overrides(layer: Layer, texts: Sequence[str], registry: Registry) -> list[Mistake]:
    """Write the overrides into the layer, and return the mistakes in them.

    Whole values go first and a part's name before its options, so the order on the command line does not matter;
    of two overrides of one key the later wins.
    """
    mistakes: list[Mistake] = []
    parsed: list[tuple[list[str], Any, Source]] = []
    for text in texts:
        source = Source("override", text)
        key, equals, value = text.partition("=")
        keys = key.strip().split(".")
        if not equals or not _KEY.fullmatch(key.strip()):
            mistakes.append(source.mistake("", "expected key=value, as schedule.lr=0.1"))
        elif not value.strip():
            mistakes.append(source.mistake(key.strip(), "no value after =; null stands for none"))
        elif unknown := _unknown(layer, keys, registry, source):
            mistakes.append(unknown)
        else:
            try:
                parsed.append((keys, yaml.read_value(value), source))
            except ValueError as error:
                mistakes.append(source.mistake(key.strip(), str(error)))
    for keys, value, source in sorted(parsed, key=lambda p: (len(p[0]), p[0][-1] != "name")):
        if fault := _write(layer, layer.data, (), keys, value, source, registry):
            mistakes.append(fault)
    return mistakes


def _unknown(layer: Layer, keys: list[str], registry: Registry, source: Source) -> Mistake | None:
    group = GROUPS.get(keys[0])
    if keys[0] == "extends":
        return source.mistake("extends", "can be written in a file only")
    if keys[0] not in Recipe.model_fields:
        return source.mistake(
            ".".join(keys), "a recipe has no such field", near_path(tuple(keys), known_paths(layer, registry), whole=True)
        )
    if group and len(keys) > 1 and keys[1] not in group.model_fields:
        near = near_path(tuple(keys[:2]), known_paths(layer, registry), whole=True)
        return source.mistake(".".join(keys), f"{keys[0]} has no such field; it has {', '.join(group.model_fields)}", near)
    return None


def _write(layer: Layer, holder: Any, at: Keys, keys: list[str], value: Any, source: Source, registry: Registry) -> Mistake | None:
    """Put a value at `keys` below the mapping or list `holder`, which stands at `at`."""
    step = _step(holder, keys[0])
    if step is None:
        return source.mistake(dotted((*at, *keys)), _no_entry(holder, keys[0]))
    here = (*at, step)
    if len(keys) == 1:
        kind, inner = part_kind(at), _inner(layer, at, registry)
        if step == "name" and (kind or inner) and holder.get("name") != value:
            kept = KINDS[kind].common.model_fields if kind else {}
            for option in [o for o in holder if o not in kept]:
                layer.forget((*at, option))
                del holder[option]
        places = dict.fromkeys(spread(here, value), source)
        layer.put(holder, here, value, Layer({}, places, places))
        return None
    written = isinstance(step, int) or step in holder
    child = holder[step] if written else None
    opened = _opened(layer, here, child, written, _inner(layer, here, registry))
    if opened is None:
        message = f"{dotted(here)} is {words.found(child)}, a single value with nothing inside"
        return source.mistake(dotted((*at, *keys)), message)
    if opened is not child:
        layer.values.setdefault(here, source)
    holder[step] = opened
    return _write(layer, opened, here, keys[1:], value, source, registry)


def _inner(layer: Layer, at: Keys, registry: Registry) -> Inner | None:
    """The part that can stand at a path inside another part; None where no part can."""
    outer = next((at[:n] for n in range(1, len(at)) if part_kind(at[:n])), None)
    if outer is None:
        return None
    holder: Any = layer.data
    for key in outer:
        holder = holder[key]
    part = registry.get(str(part_kind(outer)), str(holder.get("name"))) if isinstance(holder, dict) else None
    path = tuple(ANY if isinstance(key, int) else key for key in at[len(outer) :])
    return parts_within(part.options).get(path) if part else None


def _step(holder: Any, key: str) -> str | int | None:
    """A key as an index where a list is entered; None for one that the list does not have."""
    if not isinstance(holder, list):
        return key
    return int(key) if key.isdecimal() and len(key) < 10 and int(key) < len(holder) else None


def _no_entry(holder: list[Any], key: str) -> str:
    count = len(holder)
    has = f"{count} entries, 0 to {count - 1}" if count > 1 else "1 entry, 0" if count else "no entries"
    return f"no entry {key}; the list has {has}"


def _opened(layer: Layer, at: Keys, child: Any, written: bool, inner: Inner | None) -> dict[str, Any] | list[Any] | None:
    """The mapping or list to enter at a path; a bare part name becomes a mapping, what is absent an empty one.

    inner: what can stand there, where it is an option of another part.
    """
    if isinstance(child, (dict, list)):
        return child
    if (part_kind(at) or inner) and isinstance(child, str):
        if at in layer.values:
            layer.values[(*at, "name")] = layer.values[at]
        return {"name": child}
    if child is not None:
        return None
    default = None if written else default_part(at) if part_kind(at) else inner and inner.default
    return {"name": default} if default else {}
