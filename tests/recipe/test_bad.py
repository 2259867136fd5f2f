"""The corpus of broken recipes: each file says at its top which mistakes are found in it, and nothing else may be."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.errors import Mistake, RecipeError
from trainrun.recipe.load import load

BAD = Path(__file__).parents[1] / "recipes" / "bad"
FILES = sorted(BAD.glob("*.yaml"))


def line_of(mistake: Mistake, file: Path) -> str:
    """A mistake as the corpus writes it: place, path, message, suggestion; the file only where it is another one."""
    place = "null" if mistake.line is None else f"{mistake.line}:{mistake.column}"
    own = Path(mistake.file).resolve() == file
    other = "" if own else f"{Path(mistake.file).resolve().relative_to(BAD)} "
    path = f"{mistake.path}: " if mistake.path else ""
    hint = f"; did you mean {mistake.suggestion}?" if mistake.suggestion else ""
    return f"{other}{place}: {path}{mistake.message}{hint}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_exactly_the_expected_mistakes_are_found(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    expected = [line.removeprefix("# expect: ") for line in text.splitlines() if line.startswith("# expect: ")]
    assert expected, f"{file.name} expects nothing"
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert sorted(line_of(m, file.resolve()) for m in caught.value.mistakes) == sorted(expected)


def test_the_corpus_is_whole() -> None:
    assert len(FILES) >= 120
