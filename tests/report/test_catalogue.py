"""`trainrun list` and `trainrun init`: every part and every option, for people and for programs."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.cli import main
from trainrun.recipe.durations import Span
from trainrun.recipe.kinds import KINDS
from trainrun.recipe.registry import part, registry
from trainrun.report.catalogue import catalogue, options, print_catalogue, print_shipped, takes, write_shipped

# CONTRACT.md: {kind: [{"name", "summary", "options": {name: {"type", "default", "minimum"..., "description"}}}]}
TYPE = r"^(string|number|integer|boolean|array|object)( or (string|number|integer|boolean|array|object))*$"
CONTRACT = {
    "type": "object",
    "additionalProperties": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "summary", "options"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "summary": {"type": "string", "minLength": 10, "pattern": r"^[^\n{}]+$"},
                "options": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["type", "description"],
                        "properties": {
                            "type": {"type": "string", "pattern": TYPE},
                            "description": {"type": "string", "minLength": 5},
                            "minimum": {"type": "number"},
                            "maximum": {"type": "number"},
                            "exclusiveMinimum": {"type": "number"},
                            "exclusiveMaximum": {"type": "number"},
                            "enum": {"type": "array", "minItems": 2},
                        },
                        "oneOf": [{"required": ["default"]}, {"required": ["required"], "properties": {"required": {"const": True}}}],
                    },
                },
            },
        },
    },
}


@pytest.fixture(autouse=True)
def as_before() -> Any:
    before = registry.snapshot()
    yield
    registry.restore(before)


def printed(kind: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int = 80) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    print_catalogue(kind)
    return capsys.readouterr().out.splitlines()


def test_json_keeps_the_contract_and_names_every_part_and_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trainrun", "list", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    Draft202012Validator(CONTRACT).validate(told)
    assert list(told) == list(KINDS)
    for kind, parts in told.items():
        assert [p["name"] for p in parts] == registry.names(kind)
        for listed in parts:
            found = registry.get(kind, listed["name"])
            assert found is not None
            own = {n.rstrip("_"): p.default for n, p in inspect.signature(found.function).parameters.items() if p.kind is p.KEYWORD_ONLY}
            assert set(listed["options"]) == {*own, *KINDS[kind].common.model_fields}
            for name, default in own.items():
                option = listed["options"][name]
                assert option.get("required", False) == (default is inspect.Parameter.empty)
                assert "required" in option or option["default"] == default


def test_ranges_are_those_of_the_signature() -> None:
    folder = next(p for p in catalogue("data")["data"] if p["name"] == "folder")["options"]
    assert folder["validation"] == {
        "type": "number", "default": None, "exclusiveMinimum": 0, "exclusiveMaximum": 1,
        "description": "Fraction of each class that is held out for validation, where there is no val folder.",
    }  # fmt: skip
    assert folder["on_bad_image"]["enum"] == ["error", "skip"]
    (rise,) = (p["options"]["for"] for p in catalogue("warmup")["warmup"] if p["name"] == "gradual")
    assert rise["required"] is True and "10ep (epochs)" in rise["expected"]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("width", [70, 80, 300])
def test_lines_fit_the_terminal_and_hold_every_part(
    kind: str | None, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(kind, capsys, monkeypatch, width)
    assert max(map(len, lines)) <= min(width, 120)
    words = set(re.split(r"[ ,\n]+", "\n".join(lines)))
    for each in [kind] if kind else KINDS:
        assert f"{each}: {KINDS[each].summary}" in lines
        assert words >= set(registry.names(each))
        if kind:
            assert words >= {name for p in catalogue(kind)[kind] for name in p["options"]}


def test_an_option_says_meaning_range_and_default(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub(r"\s+", " ", " ".join(printed("data", capsys, monkeypatch)))
    assert "classes Number of classes. [whole number >= 1 and <= 100,000; default 10]" in text
    assert "[list of 3, each a whole number >= 1 and <= 8,192; default [3, 32, 32]]" in text
    assert "Another number holds out other pictures. [whole number >= 0; default 0]" in text
    assert 'full is remembered. [full, sample or off; default "full"]' in text
    assert "[text; required]" in text
    assert text.count("Hold the decoded pictures on the device") == 1  # what all take is told once
    assert text.count("[true or false; default false]") == 5  # what cifar10 takes is told of mnist too


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (list[int], "list, each a whole number"),
        (Annotated[list[Annotated[float, Field(gt=0, lt=1)]] | None, Field(min_length=1)], "list of 1 or more, each a number > 0 and < 1"),
        (Annotated[list[Literal["a", "b"]], Field(min_length=1, max_length=3)], "list of 1 to 3, each a or b"),
        (Annotated[float, Field(ge=0)] | Annotated[list[float], Field(min_length=2, max_length=2)], "number >= 0 or list of 2, each a number"),
        (list[Span], "list, each a duration such as 10ep (epochs), 500st (steps) or 5% (of the run)"),
        (Annotated[int, Field(ge=-5, lt=1 << 63)], "whole number >= -5"),
        (Annotated[float, Field(gt=0.5, le=1e6)], "number > 0.5 and <= 1,000,000"),
        (bool | None, "true or false"),
        (Annotated[int, Field(ge=0, le=255)] | Literal["mean", "noise"], "whole number >= 0 and <= 255, mean or noise"),
        (Literal[18, 34] | None, "18 or 34"),
        (dict[str, float], "mapping"),
    ],
)
def test_what_an_option_takes_is_said_in_words(annotation: Any, words: str) -> None:
    def odd(progress: Any, *, option: Any) -> float:
        "A decay with an odd option."
        return 1.0

    odd.__annotations__["option"] = annotation
    part("decay")(odd)
    found = registry.get("decay", "odd")
    assert found is not None
    assert takes(options(found)["option"]) == words


def test_the_members_of_a_family_stand_together(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed("model", capsys, monkeypatch)
    assert sum("torchvision's model of that name." in line for line in lines) == 1
    assert not any("{" in line for line in lines)


def test_the_names_and_words_of_a_plugin_are_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def function(progress: Any) -> float:
        "Evil \x1b[2J and \u202ereversed."
        return 1.0

    part("decay", "\x1b[31mred")(function)
    text = "\n".join(printed("decay", capsys, monkeypatch))
    assert r"\x1b[31mred" in text and r"Evil \x1b[2J and \u202ereversed." in text and not set(text) & {"\x1b", "\u202e"}


def test_every_shipped_file_is_listed_and_can_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_shipped()
    lines = capsys.readouterr().out.splitlines()
    root = Path(__file__).parents[2]
    for kind in ("configs", "recipes"):
        for file in (root / kind).glob("*.yaml"):
            assert any(line.split()[:1] == [file.stem] for line in lines)
            written = write_shipped(file.stem, tmp_path, force=False).read_text()
            assert written.endswith(file.read_text()) and written.splitlines()[0] == "# yaml-language-server: $schema=trainrun.schema.json"
            json.loads((tmp_path / "trainrun.schema.json").read_text())
    assert max(map(len, lines)) <= 80
