"""Amounts and sizes of rounds of mining, and who begins, is scored and is chosen, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.errors import UserError
from trainrun.parts.mining import make_rule
from trainrun.parts.mining.rounds import Rounds
from trainrun.recipe.registry import PartNode, registry

CLASSES = ("rest", "cat")


def node(**options: Any) -> PartNode:
    part = registry.get("mining", "rounds")
    assert part is not None
    chosen = part.options.model_validate({"negative_class": "rest"} | options)
    return PartNode("mining", "rounds", {name: getattr(chosen, name) for name in part.options.model_fields})


def ruled(**options: Any) -> Rounds:
    rule = registry.build(node(**options))(CLASSES)
    assert isinstance(rule, Rounds)
    return rule


@pytest.mark.parametrize(
    ("options", "first", "pools", "added"),
    [
        ({}, 100, (900, 850, 800), (50, 50, 50)),
        ({"start_with": "2.5x", "add": 30, "pool": 0.25}, 250, (250, 250, 250), (30, 30, 30)),
        ({"start_with": 0.0504, "add": "0.015x", "rounds": 2}, 50, (950, 948), (2, 2)),  # half a picture counts as one
        ({"start_with": 800, "add": 90, "pool": "1.5x", "rounds": 3}, 800, (150, 110, 20), (90, 90, 20)),  # the last round takes what is left
    ],
    ids=["defaults", "mixed", "rounded", "used up"],
)
def test_sizes_are_what_the_amounts_say(options: dict[str, Any], first: int, pools: tuple[int, ...], added: tuple[int, ...]) -> None:
    sizes = ruled(**options).sizes(100, 1000)
    assert (sizes.first, sizes.pools, sizes.added) == (first, pools, added)
    assert sizes.active == [100 + first + sum(added[:n]) for n in range(len(added) + 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_with": "10x"}, "mining.start_with: 10x is 1,000 negatives, and the data has 1,000, so that none is left to mine; write less"),
        ({"start_with": 1}, "mining.start_with: 1.0 is 1,000 negatives"),
        ({"start_with": 0.0004}, "mining.start_with: 0.0004 of 1,000 negatives is no picture; write more"),
        ({"add": "0.004x"}, "mining.add: 0.004x of 100 positives is no picture; write more"),
        ({"add": 900}, "mining.add: 900 is 900 negatives, and 900 are left after the start, so that nothing is chosen; write less"),
        ({"add": "1x", "pool": 0.1}, "mining.pool: 0.1 is 100 negatives, of which mining.add takes 100, so that nothing is chosen; write more"),
        ({"add": 500, "rounds": 3}, "mining.rounds: all 1,000 negatives are active after round 2; write rounds: 2, or a smaller add"),
    ],
)
def test_a_round_without_a_choice_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        ruled(**options).sizes(100, 1000)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(("labels", "words"), [([1, 1], "no training pictures of class 'rest'"), ([0, 0, 0], "so that none is positive")])
def test_data_of_one_kind_is_refused(labels: list[int], words: str) -> None:
    with pytest.raises(UserError, match=f"^mining.negative_class: .*{words}"):
        make_rule(node(), CLASSES, np.array(labels), registry)


def test_the_worst_are_those_of_a_plain_sort_and_ties_go_to_the_first() -> None:
    scores = np.random.default_rng(0).integers(0, 40, 500).astype(np.float32)
    chosen = ruled().choose(torch.from_numpy(scores), 120, 0, 1).tolist()
    assert chosen == sorted(range(500), key=lambda n: (-scores[n], n))[:120]
    assert len({scores[n] for n in chosen}) < 20 and scores[chosen[-1]] in scores[chosen[-1] + 1 :]  # there were ties, at the threshold too


def test_the_control_takes_as_many_whatever_the_scores() -> None:
    rule, one, other = ruled(pick="random"), torch.arange(400.0), torch.arange(400.0).flip(0)
    first = rule.choose(one, 100, 0, 1)
    assert one[first].tolist() == sorted(one[first].tolist(), reverse=True)
    assert sorted(first.tolist()) == sorted(rule.choose(other, 100, 0, 1).tolist())
    assert 150 < one[first].mean() < 250  # the worst would have 350
    assert set(first.tolist()) != set(rule.choose(one, 100, 0, 2).tolist()) and set(first.tolist()) != set(rule.choose(one, 100, 1, 1).tolist())


def test_start_and_pool_are_random_choices_of_the_seed() -> None:
    ids = torch.arange(1000) * 3
    rule = ruled()
    start = rule.begin(ids, 200, 5)
    assert torch.equal(start, rule.begin(ids, 200, 5)) and not torch.equal(start, rule.begin(ids, 200, 6))
    assert start.tolist() == sorted(set(start.tolist())) and set(start.tolist()) <= set(ids.tolist()) and 1200 < start.double().mean() < 1800
    pools = [rule.draw(ids, 200, 5, number) for number in (1, 2)]
    assert all(pool.tolist() == sorted(set(pool.tolist())) and len(pool) == 200 for pool in pools) and not torch.equal(*pools)
    assert rule.draw(ids, 1000, 5, 1) is ids
