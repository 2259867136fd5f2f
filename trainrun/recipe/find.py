"""Where recipes lie: files of the person's, and those that come with trainrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import trainrun
from trainrun.errors import Mistake, RecipeError
from trainrun.recipe.registry import nearest
from trainrun.recipe.yaml import MAX_BYTES


def shipped(kind: Literal["configs", "recipes"]) -> Path:
    """The folder of shipped files: inside the installed package, else beside it in the repository."""
    package = Path(trainrun.__file__).parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def shipped_names(kind: Literal["configs", "recipes"]) -> list[str]:
    """The names of the shipped files, without their ending."""
    return sorted(path.stem for path in shipped(kind).glob("*.yaml"))


def shipped_file(kind: Literal["configs", "recipes"], name: str) -> Path | None:
    """The shipped file of a name such as digits, digits.yaml or configs/digits.yaml, if there is one."""
    stem = name.removeprefix(f"{kind}/").removesuffix(".yaml")
    return shipped(kind) / f"{stem}.yaml" if stem in shipped_names(kind) else None


def find(recipe: str) -> Path:
    """The file of a recipe: a path, else a shipped config's name; raises RecipeError that names the nearest one."""
    path = Path(recipe)
    if path.is_file():
        return path
    config = shipped_file("configs", recipe)
    if config:
        return config
    if path.is_dir():
        raise RecipeError([Mistake(recipe, None, None, "", "is a folder; expected a recipe file")])
    if path.exists():
        raise RecipeError([Mistake(recipe, None, None, "", "is no regular file; expected a recipe file")])
    names = shipped_names("configs")
    near = nearest(path.name.removesuffix(".yaml"), names)
    known = f" (shipped: {', '.join(names)})" if names else ""
    raise RecipeError([Mistake(recipe, None, None, "", f"there is no such file, and no shipped config of that name{known}", near)])


def shown(path: Path) -> str:
    """A path as messages give it: relative where it lies below the working directory, without detours."""
    text = os.path.normpath(path)
    relative = os.path.relpath(text) if os.path.isabs(text) else text
    return text if relative.startswith("..") else relative


def contents(path: Path, name: str) -> bytes:
    """A recipe file's bytes, one more than allowed at most; raises RecipeError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([Mistake(name, None, None, "", f"cannot be read: {error.strerror or error}")]) from None
