"""Parts of a person's own: only with leave, only once, and with their own faults told at their own place."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import trainrun.parts  # noqa: F401  # registers the built-in parts
from trainrun.errors import RecipeError
from trainrun.recipe.dump import dump
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry

MAIN = "data: digits\nmodel: tiny_convnet\nepochs: 2\nschedule: {lr: 0.1}\n"
PART = """
from typing import Annotated
from pydantic import Field
from trainrun.recipe.registry import part

@part("model")
def NAME(shape, classes, *, hidden: Annotated[int, Field(ge=1)] = 10):
    "A network of one's own."
"""
numbers = itertools.count()


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plugin(text: str = PART, file: str = "my_parts.py") -> str:
    name = f"own_net_{next(numbers)}"
    Path(file).write_text(text.replace("NAME", name), encoding="utf-8")
    return name


def recipe(model: str, plugins: str = "[my_parts.py]", file: str = "run.yaml") -> str:
    Path(file).write_text(MAIN.replace("tiny_convnet", model) + f"plugins: {plugins}\n", encoding="utf-8")
    return file


def refused(file: str, allow: bool = True) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(file, allow_plugins=allow)
    return [str(m) for m in caught.value.mistakes]


def test_a_plugins_part_is_validated_and_its_file_stored_absolutely() -> None:
    name = plugin()
    loaded = load(recipe(f"{{name: {name}, hidden: 3}}"), allow_plugins=True)
    assert (loaded.recipe.model.name, loaded.recipe.model.hidden) == (name, 3)
    assert loaded.recipe.plugins == [str(Path("my_parts.py").resolve())]


@pytest.mark.parametrize(
    "field",
    [
        "data: mine", "model: mine", "optimizer: {name: mine, momentum: 2}", "optimizer: {name: muon, second: mine}", "sampler: mine",
        "augment: [horizontal_flip, {name: mine, p: 3}]", "loss: {name: mine}", "mining: mine", "initializer: mine",
        "initializer: {name: kaiming_normal, rules: [{match: fc.*, weights: mine}]}", "schedule: {lr: 0.1, decay: {name: mine, steps: 9}}",
        "schedule: {lr: 0.1, warmup: mine}",
    ],
)  # fmt: skip
def test_what_a_plugin_that_is_not_allowed_may_have_is_no_mistake(field: str) -> None:
    plugin()
    others = [line for line in MAIN.splitlines() if line.split(":")[0] != field.split(":")[0]]
    Path("run.yaml").write_text("\n".join([*others, field, "plugins: [my_parts.py]"]))
    (mistake,) = refused("run.yaml", allow=False)
    assert "plugins.0: my_parts.py runs code of its own; pass --allow-plugins" in mistake


def test_a_range_of_a_plugins_part_is_checked() -> None:
    name = plugin()
    (mistake,) = refused(recipe(f"{{name: {name}, hidden: 0}}"))
    assert mistake.endswith("model.hidden: found 0; expected a whole number of at least 1")


def test_loading_twice_and_from_the_dump_is_fine() -> None:
    name = plugin()
    first = load(recipe(name), allow_plugins=True)
    Path("sub").mkdir()
    Path("sub/again.yaml").write_text(dump(first.recipe), encoding="utf-8")
    assert load("sub/again.yaml", allow_plugins=True).recipe == first.recipe


def test_nothing_runs_without_leave() -> None:
    plugin("open('ran', 'w').close()\n")
    assert refused(recipe("whatever"), allow=False) == [
        "run.yaml:5:11: plugins.0: my_parts.py runs code of its own; pass --allow-plugins if you trust it"
    ]
    assert not Path("ran").exists()


def test_a_path_is_relative_to_the_file_that_lists_it() -> None:
    Path("lib").mkdir()
    name = plugin(file="lib/my_parts.py")
    Path("lib/base.yaml").write_text("plugins: [my_parts.py]\n", encoding="utf-8")
    Path("run.yaml").write_text(f"extends: lib/base.yaml\n{MAIN.replace('tiny_convnet', name)}", encoding="utf-8")
    assert load("run.yaml", allow_plugins=True).recipe.plugins == [str(Path("lib/my_parts.py").resolve())]


def test_an_override_can_list_plugins() -> None:
    name = plugin()
    Path("run.yaml").write_text(MAIN, encoding="utf-8")
    assert load("run.yaml", ["plugins=[my_parts.py]", f"model={name}"], allow_plugins=True).recipe.model.name == name


def test_a_module_is_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = plugin(file=f"own_module_{(number := next(numbers))}.py")
    monkeypatch.syspath_prepend(Path.cwd())
    assert load(recipe(name, f"[own_module_{number}]"), allow_plugins=True).recipe.plugins == [f"own_module_{number}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n\nraise KeyError('gone')\n", "does not import: KeyError: 'gone' ({file}:3)"),
        ("import json\njson.loads('{{')\n".replace("{{", "{"), "({file}:2)"),
        ("def f(:\n", "does not import: SyntaxError: invalid syntax ({file}:1)"),
        ("import no_such_module_anywhere\n", "does not import: ModuleNotFoundError: No module named 'no_such_module_anywhere' ({file}:1)"),
        ("raise SystemExit(3)\n", "does not import: SystemExit: 3 ({file}:1)"),
        (
            "from trainrun.recipe.registry import part\n\n@part('model')\ndef tiny_convnet(shape, classes): ...\n",
            "registered already, by trainrun.parts.models",
        ),
    ],
)
def test_a_plugin_that_fails_is_a_mistake_at_its_own_line(text: str, reason: str) -> None:
    plugin(text)
    (mistake,) = refused(recipe("not_known_yet"))  # the unknown name is no second mistake
    assert mistake.startswith("run.yaml:5:11: plugins.0: ")
    assert reason.format(file=Path("my_parts.py").resolve()) in mistake


def test_a_failed_plugin_leaves_nothing_behind() -> None:
    name = plugin(PART + "\n1 / 0\n")
    refused(recipe(name))
    assert registry.get("model", name) is None
    Path("my_parts.py").write_text(PART.replace("NAME", name), encoding="utf-8")
    assert load("run.yaml", allow_plugins=True).recipe.model.name == name  # repaired in the same process


@pytest.mark.parametrize(
    ("plugins", "mistake"),
    [
        ("[gone.py]", "there is no file {here}/gone.py"),
        ("['a b']", "found 'a b'; expected a file as my_parts.py or a module as my.parts"),
        ("[no_such_module_anywhere]", "does not import: ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    ],
)
def test_a_plugin_that_is_not_there(plugins: str, mistake: str) -> None:
    assert refused(recipe("tiny_convnet", plugins)) == [f"run.yaml:5:11: plugins.0: {mistake.format(here=Path.cwd())}"]


def test_a_plugin_listed_twice_has_no_effect() -> None:
    name = plugin()
    assert refused(recipe(name, "[my_parts.py, my_parts.py]")) == ["run.yaml:5:24: plugins.1: is listed twice"]
