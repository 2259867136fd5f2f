"""Messages for what the built-in parts' options do not cover: unions of a value and a list, validators of a part's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field

import trainrun.parts  # registers the built-in parts
from trainrun.errors import RecipeError
from trainrun.recipe.load import load
from trainrun.recipe.registry import Part, Registry
from trainrun.recipe.registry import registry as builtin

assert trainrun.parts


def _even(number: int) -> int:
    if number % 2:
        raise ValueError("expected an even number")
    return number


def choosy(
    *,
    rates: Annotated[float | list[float], Field(description="One rate, or one a layer.")] = 1.0,
    even: Annotated[int, AfterValidator(_even)] = 2,
    mode: Literal["fast", "exact"] | None = None,
    table: dict[str, int] = {},  # noqa: B006  # copied by pydantic
) -> None:
    """A part with options of unusual shapes."""


@pytest.mark.parametrize(
    ("option", "mistake"),
    [
        ("rates: [1, x]", "rates.1: found 'x'; expected a number"),
        ("rates: x", "rates: found 'x'; expected a number or a list, each a number"),
        ("even: 3", "even: found 3; expected an even number"),
        ("mode: fsat", "mode: found 'fsat'; expected one of fast, exact or null; did you mean fast?"),
        ("table: {a: b}", "table.a: found 'b'; expected a whole number"),
        ("table: [a]", "table: found [a]; expected a mapping"),
    ],
)
def test_a_mistake_in_an_option(option: str, mistake: str, tmp_path: Path) -> None:
    registry = Registry()
    registry.restore(builtin.snapshot())
    registry.add(Part("loss", "choosy", choosy))
    file = tmp_path / "run.yaml"
    file.write_text(f"data: digits\nmodel: tiny_convnet\nepochs: 2\nschedule: {{lr: 0.1}}\nloss: {{name: choosy, {option}}}\n")
    with pytest.raises(RecipeError) as caught:
        load(file, registry=registry)
    (found,) = caught.value.mistakes
    assert str(found).split(": loss.", 1)[1] == mistake
    assert found.line == 5


def test_the_least_share_that_a_message_names_is_one_that_works(tmp_path: Path) -> None:
    for batch in [*range(2, 300), 1000, 4096, 65536]:
        file = tmp_path / "run.yaml"
        file.write_text(f"data: mnist\nmodel: resnet18\nepochs: 2\nschedule: {{lr: 0.1}}\nbatch_size: {batch}\nmining: {{name: ohem, keep: 1e-9}}\n")
        with pytest.raises(RecipeError, match="expected at least") as caught:
            load(file)
        share = float(str(caught.value).splitlines()[-1].rpartition("at least ")[2])
        assert 0.5 <= share * batch < 0.56
