"""Which pictures are hardest, against the rule written out in plain Python; how many are kept, against figures by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from trainrun.errors import UserError
from trainrun.parts.mining.ohem import Ohem, hardest
from trainrun.recipe.durations import Duration
from trainrun.recipe.registry import registry

CLASSES = ("background", "cat", "dog")


def rule(**options: Any) -> Ohem:
    part = registry.get("mining", "ohem")
    assert part
    valid = part.options.model_validate(options)
    return part.call({name: getattr(valid, name) for name in type(valid).model_fields})(CLASSES)


def chosen(hardness: list[float], groups: list[int], kept: list[int], total: int | None = None) -> list[int]:
    """The places that `hardest` finds in one section."""
    counts = np.bincount(groups, minlength=len(kept))
    told = (np.array(groups), np.cumsum(counts) - counts, np.array(kept), np.zeros(len(groups), np.int64), np.arange(total or sum(kept)))
    return hardest(torch.tensor(hardness), *map(torch.from_numpy, told)).tolist()


def by_hand(hardness: list[float], groups: list[int], kept: list[int], total: int | None = None) -> list[int]:
    order = sorted(range(len(hardness)), key=lambda i: (-hardness[i], i))
    taken = {i for group, count in enumerate(kept) for i in [j for j in order if groups[j] == group][:count]}
    taken |= set([i for i in order if i not in taken][: (total or 0) - len(taken)] if total else [])
    return sorted(taken)


def test_the_hardest_of_each_group_with_ties_to_the_first() -> None:
    generator = np.random.default_rng(0)
    for case in range(200):
        n, kinds = int(generator.integers(1, 24)), int(generator.integers(1, 4))
        groups = generator.integers(0, kinds, n).tolist()
        hardness = (generator.integers(0, 5, n) / 4).tolist()  # five values, so that most are ties
        kept = [int(generator.integers(0, groups.count(group) + 1)) for group in range(kinds)]
        total = int(generator.integers(sum(kept), n + 1)) if case % 2 else None
        if sum(kept) or total:
            assert chosen(hardness, groups, kept, total) == by_hand(hardness, groups, kept, total)


def test_equals_are_taken_in_their_order_and_nan_is_hardest() -> None:
    assert chosen([0.0, -0.0, 0.0, 0.0], [0] * 4, [2]) == [0, 1]
    assert chosen([1.0, math.nan, 9.0, math.inf], [0] * 4, [2]) == [1, 3]


def test_sections_are_chosen_from_apart() -> None:
    """Two processes with 3 and 2 pictures, of which each keeps its hardest."""
    hardness, groups = torch.tensor([5.0, 6.0, 4.0, 1.0, 2.0]), torch.tensor([0, 0, 0, 1, 1])
    starts, kept, sections = torch.tensor([0, 3]), torch.tensor([1, 1]), torch.tensor([0, 0, 0, 1, 1])
    assert hardest(hardness, groups, starts, kept, sections, torch.tensor([0, 3])).tolist() == [1, 4]


LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 0])  # seven of background, two cats, a dog


@pytest.mark.parametrize(
    ("options", "strength", "kept", "always"),
    [
        ({"keep": 0.5}, 1.0, [5], 0),
        ({"keep": 0.25}, 1.0, [3], 0),  # 2.5 is rounded up
        ({"keep": 0.001}, 1.0, [1], 0),
        ({"keep": 4}, 1.0, [4], 0),
        ({"keep": 40}, 1.0, [10], 0),
        ({"keep": 0.5}, 0.0, [10], 0),
        ({"keep": 0.5}, 0.4, [8], 0),
        ({"keep": 0.5, "within": "class"}, 1.0, [4, 1, 1], 0),
        ({"keep": 3, "within": "class"}, 1.0, [3, 2, 1], 0),
        ({"keep": 0.5, "within": "class"}, 0.5, [5, 2, 1], 0),
        ({"keep": 0.4, "within": "negatives", "negative_class": "background"}, 1.0, [3, 3], 3),
        ({"keep": 0.4, "within": "negatives", "negative_class": "dog"}, 1.0, [9, 1], 9),
        ({"keep": 0.5, "always_keep": "positives", "negative_class": "background"}, 1.0, [5], 3),
        ({"keep": 0.2, "always_keep": "positives", "negative_class": "background"}, 1.0, [3], 3),
        ({"ratio": 2.0, "always_keep": "positives", "negative_class": "background"}, 1.0, [3, 6], 3),
        ({"ratio": 3.0, "always_keep": "positives", "negative_class": "background"}, 1.0, [3, 7], 3),
        ({"ratio": 0.1, "within": "negatives", "negative_class": "background"}, 1.0, [3, 0], 3),
        ({"ratio": 1.0, "within": "negatives", "negative_class": "background"}, 0.5, [3, 5], 3),
    ],
    ids=str,
)
def test_so_many_are_kept(options: dict[str, Any], strength: float, kept: list[int], always: int) -> None:
    found = rule(**options).quotas(LABELS, strength)
    assert found.kept.tolist() == kept
    assert found.always.sum() == always and (LABELS[found.always] != rule(**options).negative).all()
    for group in range(len(kept)):  # a group is one class, or positives, or negatives, or all
        assert (found.groups == group).sum() >= kept[group]
    assert found.groups.shape == LABELS.shape


def test_a_batch_without_positives_keeps_one_negative() -> None:
    only = rule(ratio=3.0, always_keep="positives", negative_class="background").quotas(np.zeros(5, np.int64), 1.0)
    assert only.kept.tolist() == [0, 1]


@pytest.mark.parametrize(("loss", "expected"), [("loss", [2.0, 1.0]), ("margin", [1.0, -3.0])])
def test_hardness_is_the_loss_or_minus_the_margin(loss: str, expected: list[float]) -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 1.0]])
    found = rule(keep=0.5, by=loss).hardness(logits, torch.tensor([0, 0]), torch.tensor([2.0, 1.0]))
    assert found.tolist() == expected


def test_strength_rises_from_start_to_the_end_of_the_ramp_and_ends() -> None:
    found = rule(keep=0.5, start="2ep", end="80%", ramp="4st")
    assert found.start == Duration(2.0, "ep")
    strengths = [found.strength(step, 5, 25) for step in range(25)]
    assert strengths == [0.0] * 10 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 6 + [0.0] * 5
    assert {rule(keep=0.5).strength(step, 5, 25) for step in range(25)} == {1.0}


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"mining.negative_class: the data has no class 'bakground'; did you mean background\?"):
        rule(keep=0.5, within="negatives", negative_class="bakground")


def test_each_is_chosen_whatever_the_order_of_the_batch() -> None:
    """Without ties the choice is of pictures, not of places."""
    values = [0.3, 0.1, 0.9, 0.5]
    for order in itertools.permutations(range(4)):
        kept = chosen([values[i] for i in order], [0] * 4, [2])
        assert sorted(order[place] for place in kept) == [2, 3]
