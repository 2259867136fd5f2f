"""Globs over the names of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from trainrun.errors import UserError
from trainrun.recipe.registry import nearest


def matching(pattern: str, names: Iterable[str], path: str, what: str = "parameter that learns") -> list[str]:
    """The parameter names that a glob at `path` of the recipe matches; UserError, with the nearest name, where there are none."""
    listed = list(names)
    found = [name for name in listed if fnmatchcase(name, pattern)]
    if not found:
        inside = {name[:n] + ".*": None for name in listed for n, letter in enumerate(name) if letter == "."}
        near = nearest(pattern, [*listed, *inside])
        shown = ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{path}: {pattern!r} matches no {what}; there are {shown}{hint}")
    return found
