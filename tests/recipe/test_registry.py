"""Parts: the signature is the schema."""

from __future__ import annotations

import pickle
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from trainrun.recipe.registry import Part, PartNode, Registry, nearest


def decayed(progress: float, *, rate: Annotated[float, Field(gt=0, description="Rate.")], for_: int = 3) -> tuple[float, float, int]:
    """Fall.

    More about it.
    """
    return progress, rate, for_


class Scaled:
    """Scale by {name}."""

    def __init__(self, name: str, mean: "NotImportedHere", *, std: Annotated[float, Field(gt=0)] = 1.0) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
        self.told = (name, mean, std)


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.add(Part("decay", "decayed", decayed))
    made.add(Part("model", "big", Scaled, family=True))
    made.add(Part("model", "open/*", Scaled, family=True, facts={"validation": False}))
    made.add(Part("data", "pictures", lambda: None))
    return made


def test_keyword_only_parameters_are_the_options(registry: Registry) -> None:
    part = registry.get("decay", "decayed")
    assert part is not None
    assert part.own_options == ["rate", "for"]
    assert part.options.model_validate({"rate": 2}).model_dump() == {"rate": 2.0, "for": 3}
    assert part.summary == "Fall."


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": 0},
        {"rate": "1"},
        {"rate": True},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 1, "for": 3.0},
        {"rate": 1, "x": 1},
    ],
)
def test_options_are_validated_strictly(registry: Registry, options: dict[str, Any]) -> None:
    part = registry.get("decay", "decayed")
    assert part is not None
    with pytest.raises(ValidationError):
        part.options.model_validate(options)


SPOILT = {"one_against_rest": None, "imbalance": None, "imbalance_seed": 0, "label_noise": None, "label_noise_seed": 0}


def test_a_kinds_common_options_are_checked_but_not_passed_on(registry: Registry) -> None:
    part = registry.get("data", "pictures")
    assert part is not None
    options = part.options.model_validate({"resident": "no"}).model_dump()
    assert options == {"resident": "no", "cache": True, "workers": None, "cut": "auto", "timeout": 120.0, **SPOILT}
    assert registry.build(PartNode("data", "pictures", options))() is None


def test_a_part_is_built_with_its_options_bound(registry: Registry) -> None:
    assert registry.build(PartNode("decay", "decayed", {"rate": 2.0, "for": 5}))(0.5) == (0.5, 2.0, 5)
    assert registry.build(PartNode("model", "big", {"std": 2.0}))("m").told == ("big", "m", 2.0)
    assert registry.build(PartNode("model", "open/any", {"std": 2.0}))("m").told == ("open/any", "m", 2.0)


def test_an_open_family_has_every_name_but_the_empty_one(registry: Registry) -> None:
    found = registry.get("model", "open/x")
    assert found is not None
    assert (found.name, found.summary, found.facts["validation"]) == ("open/x", "Scale by open/x.", False)
    assert registry.get("model", "open/") is None
    assert registry.get("model", "closed/x") is None


def test_a_name_is_taken_once(registry: Registry) -> None:
    registry.add(Part("decay", "decayed", decayed))  # the same function again is no conflict
    with pytest.raises(ValueError, match="registered already"):
        registry.add(Part("decay", "decayed", Scaled))
    with pytest.raises(ValueError, match="no kind of part"):
        registry.add(Part("deacy", "decayed", decayed))


def test_a_snapshot_takes_later_parts_back(registry: Registry) -> None:
    before = registry.snapshot()
    registry.add(Part("loss", "new", decayed))
    registry.restore(before)
    assert registry.names("loss") == []
    assert registry.names("decay") == ["decayed"]


def test_a_node_reads_like_an_object_and_survives_pickling() -> None:
    node = PartNode("optimizer", "sgd", {"momentum": 0.9})
    assert node.momentum == 0.9
    assert pickle.loads(pickle.dumps(node)) == node
    with pytest.raises(AttributeError):
        _ = node.nesterov


@pytest.mark.parametrize(
    ("word", "name"), [("resnet_cifr", "resnet_cifar"), ("SGD", "sgd"), ("cosin", "cosine"), ("zzz", None), ("", None)]
)
def test_the_nearest_name(word: str, name: str | None) -> None:
    assert nearest(word, ["resnet_cifar", "sgd", "cosine"]) == name


# What does nothing, or only what its name says, comes from nowhere.
PLAIN = {("initializer", "default"), ("warmup", "none"), ("decay", "constant"), ("sampler", "shuffle"), ("sampler", "sequential")}


@pytest.mark.parametrize("kind", ["initializer", "warmup", "decay", "optimizer", "augment", "sampler"])
def test_every_part_says_where_it_comes_from(kind: str) -> None:
    import trainrun.parts  # noqa: F401 - fills the registry
    from trainrun.recipe.registry import registry

    manuals = {name: registry.get(kind, name).manual for name in registry.names(kind)}  # type: ignore[union-attr]  # they are registered
    assert {name for name, text in manuals.items() if "Source" not in text and "Reference" not in text} == {name for of, name in PLAIN if of == kind}
