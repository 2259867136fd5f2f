"""Samplers against plain constructions in Python and NumPy, and their frequencies against closed formulas.

Frequencies are judged by chi-square tests at p > 1e-6; draws are functions of the seed, so a test that passes passes always, and one of a
sampler that is right would have failed for one seed in a million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.draw import draws, order, visits
from trainrun.errors import UserError
from trainrun.recipe.registry import PartNode, registry

LEAST = 1e-6
CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIZES = (400, 150, 60, 0, 7)  # of the classes; there are no dogs


def labels_of(sizes: tuple[int, ...] = SIZES) -> torch.Tensor:
    """Labels in a mixed order, so that no class lies together."""
    mixed = np.random.default_rng(5).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return torch.from_numpy(mixed)


def sampler(name: str, labels: torch.Tensor, classes: tuple[str, ...] = CLASSES, seed: int = 3, **options: Any) -> Callable[[int], torch.Tensor]:
    """A part as a run builds it, with its defaults."""
    part = registry.get("sampler", name)
    assert part is not None
    node = PartNode("sampler", name, part.options.model_validate(options).model_dump())
    return lambda epoch: registry.build(node)(labels, classes, seed, epoch)


def fits(found: Any, chances: Any) -> bool:
    """Whether counts are those of draws by these chances."""
    found, chances = np.asarray(found), np.asarray(chances, dtype=float)
    assert not found[chances == 0].any()
    expected = chances / chances.sum() * found.sum()
    return stats.chisquare(found[chances > 0], expected[chances > 0]).pvalue > LEAST


ALL: dict[str, dict[str, Any]] = {
    "shuffle": {},
    "sequential": {},
    "label_shuffle": {},
    "weighted": {"power": 0.5},
    "class_balanced": {},
    "subset": {"fraction": 0.3},
}


def test_all_are_tested() -> None:
    assert list(ALL) == registry.names("sampler")


@pytest.mark.parametrize("name", ALL)
def test_ids_are_a_function_of_seed_and_epoch_and_as_many_in_each(name: str) -> None:
    labels = labels_of()
    draw = sampler(name, labels, **ALL[name])
    first = draw(0)
    assert first.dtype == torch.int64 and first.min() >= 0 and first.max() < len(labels)
    assert torch.equal(first, sampler(name, labels, **ALL[name])(0))
    assert {len(draw(epoch)) for epoch in range(5)} == {len(first)}
    part = registry.get("sampler", name)
    assert part and part.facts.get("length", lambda *_: len(first))({"fraction": 0.3, "count": None}, len(labels)) == len(first)
    for other in (draw(1), sampler(name, labels, seed=4, **ALL[name])(0)):
        assert torch.equal(first, other) == (name == "sequential")


def test_shuffle_is_the_order_of_the_draw_and_sequential_that_of_the_data() -> None:
    labels = labels_of()
    assert torch.equal(sampler("shuffle", labels)(4), order(3, 4, 617))
    assert sampler("sequential", labels)(4).tolist() == list(range(617))


def plainly_label_shuffled(labels: list[int]) -> list[int]:
    """The construction as it is told: for each class a shuffled list of the largest's length, modulo the class's size, into its pictures."""
    dice = np.random.default_rng(8)
    members: dict[int, list[int]] = {}
    for sample, label in enumerate(labels):
        members.setdefault(label, []).append(sample)
    largest = max(map(len, members.values()))
    drawn = []
    for pictures in members.values():
        mixed = dice.permutation(pictures)
        drawn += [int(mixed[number % len(pictures)]) for number in dice.permutation(largest)]
    return [int(sample) for sample in dice.permutation(drawn)]


LONG_TAIL = (*(int(40_000 * 0.8**k) for k in range(10)), 1, 2, 3000)


@pytest.mark.parametrize("sizes", [SIZES, (5,), (3, 3, 3), (1, 100), LONG_TAIL], ids=str)
def test_label_shuffle_is_the_construction(sizes: tuple[int, ...]) -> None:
    labels = labels_of(sizes)
    assert sizes is not LONG_TAIL or len(labels) > 100_000
    found = sampler("label_shuffle", labels)(1)
    times = found.bincount(minlength=len(labels)).numpy()
    plain = Counter(plainly_label_shuffled(labels.tolist()))
    for label, size in enumerate(sizes):
        mine = times[labels.numpy() == label]
        theirs = [plain[sample] for sample in np.flatnonzero(labels.numpy() == label).tolist()]
        assert mine.sum() == (max(sizes) if size else 0)
        assert not size or mine.max() - mine.min() <= 1
        assert sorted(mine.tolist()) == sorted(theirs)


def test_label_shuffle_mixes_classes_and_takes_turns_in_who_comes_once_more() -> None:
    labels = labels_of((60, 40, 7))
    draw = sampler("label_shuffle", labels)
    epochs = torch.stack([draw(epoch) for epoch in range(600)])
    # 60 = 40 + 20, so half of the 40 come twice in an epoch, and each of them in half of the epochs.
    times = torch.stack([ids.bincount(minlength=107) for ids in epochs])[:, labels == 1]
    twice = (times == 2).sum(0).numpy()
    # In each epoch 20 of the 40 without replacement: the counts have variance 600 / 4 and add up to 12,000, so 39 are free.
    statistic = ((twice - 300) ** 2).sum() / (600 / 4) * 39 / 40
    assert LEAST / 2 < stats.chi2(39).cdf(statistic) < 1 - LEAST / 2
    # Each class is as likely at each place.
    for place in (0, 1, 90, 179):
        assert fits(labels[epochs[:, place]].bincount(minlength=3), [1, 1, 1])


def many(draw: Callable[[int], torch.Tensor], epochs: int) -> torch.Tensor:
    return torch.cat([draw(epoch) for epoch in range(epochs)])


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-12])
def test_class_balanced_draws_by_the_effective_number(beta: float) -> None:
    labels = labels_of()
    ids = many(sampler("class_balanced", labels, beta=beta), 400)

    def effective(n: int) -> float:  # as a sum, which needs no digits that cancel: 1 + beta + ... + beta^(n - 1)
        return sum(beta**k for k in range(n))

    chances = [n / effective(n) if n else 0.0 for n in SIZES]
    assert fits(labels[ids].bincount(minlength=5), chances)
    if beta == 0.999:  # and the test can tell it from its neighbours
        for other in (SIZES, [1, 1, 1, 0, 1], [1 / effective(n) if n else 0 for n in SIZES]):
            assert not fits(labels[ids].bincount(minlength=5), other)


@pytest.mark.parametrize(
    ("options", "chances"),
    [
        ({"power": 0}, [1, 1, 1, 0, 1]),
        ({"power": 0.5}, [20, 150**0.5, 60**0.5, 0, 7**0.5]),
        ({"weights": {"eel": 10, "ant": 0.25}}, [100, 150, 60, 0, 70]),
        ({"weights": {"bee": 0, "dog": 3, "cat": 2}, "power": -1}, [1 / 400, 0, 2 / 60, 0, 1 / 7]),
    ],
    ids=str,
)
def test_weighted_draws_classes_by_weight_and_power_and_their_pictures_alike(options: dict[str, Any], chances: list[float]) -> None:
    labels = labels_of()
    ids = many(sampler("weighted", labels, **options), 400)
    assert fits(labels[ids].bincount(minlength=5), chances)
    times = ids.bincount(minlength=len(labels))
    for label, chance in enumerate(chances):
        if chance:
            assert fits(times[labels == label], [1] * SIZES[label])


def test_draws_with_replacement_do_not_hang_together() -> None:
    labels = labels_of((1,) * 8)
    ids = torch.stack([sampler("weighted", labels, tuple("abcdefgh"), power=0)(epoch) for epoch in range(4000)])
    for one, other in ((ids[:, 0], ids[:, 1]), (ids[:, 0], ids[:, 7]), (ids[:-1, 2], ids[1:, 2])):
        assert fits((one * 8 + other).bincount(minlength=64), [1] * 64)


def largest_remainders(sizes: tuple[int, ...], size: int) -> list[int]:
    """Shares of `size` for the classes, by NumPy's division and Python's sort."""
    whole, rest = np.divmod(np.array(sizes) * size, sum(sizes))
    shares = whole.tolist()
    for label in sorted(range(len(sizes)), key=lambda k: (-rest[k], k))[: size - sum(shares)]:
        shares[label] += 1
    return shares


@pytest.mark.parametrize("count", [1, 7, 61, 300, 616, 617])
def test_a_stratified_subset_has_each_class_in_its_share(count: int) -> None:
    labels = labels_of()
    ids = sampler("subset", labels, count=count)(2)
    assert labels[ids].bincount(minlength=5).tolist() == largest_remainders(SIZES, count)
    assert len(set(ids.tolist())) == len(ids) == count


def test_a_subset_is_the_same_in_every_epoch_and_for_every_seed_but_its_own() -> None:
    labels = labels_of()

    def members(seed: int = 3, epoch: int = 0, **options: Any) -> set[int]:
        return set(sampler("subset", labels, seed=seed, fraction=0.2, **options)(epoch).tolist())

    for stratified in (True, False):
        first = members(stratified=stratified)
        assert len(first) == 123  # of 123.4
        assert first == members(seed=9, epoch=5, stratified=stratified)
        assert len(first & members(subset_seed=1, stratified=stratified)) < 60  # 24.6 are expected, with a standard deviation of 4


def test_an_unstratified_subset_takes_every_picture_alike() -> None:
    labels = labels_of()
    taken = torch.stack([sampler("subset", labels, count=100, stratified=False, subset_seed=s)(0).bincount(minlength=617) for s in range(400)])
    # Each time 100 without replacement: the counts have variance 400 p (1 - p) and add up to 40,000, so 616 are free.
    share = 100 / 617
    statistic = float(((taken.sum(0) - 400 * share) ** 2).sum() / (400 * share * (1 - share)) * 616 / 617)
    assert LEAST / 2 < stats.chi2(616).cdf(statistic) < 1 - LEAST / 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("weighted", {"weights": {"bees": 2}}, "the data has no class 'bees'; did you mean bee?"),
        ("weighted", {"weights": {"zzz": 2}}, "the data has no class 'zzz'; there are ant, bee, cat, dog, eel"),
        ("weighted", {"weights": {"ant": 0, "bee": 0, "cat": 0, "eel": 0}}, "every class that has pictures has weight 0"),
        ("subset", {"count": 618}, "618 is more than the 617 training pictures"),
    ],
)
def test_what_does_not_suit_the_data_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        sampler(name, labels_of(), **options)(0)


def test_visits_count_from_zero_in_the_order_of_the_epoch() -> None:
    ids = sampler("label_shuffle", labels_of())(0)
    seen: Counter[int] = Counter()
    expected = []
    for sample in ids.tolist():
        expected.append(seen[sample])
        seen[sample] += 1
    found = visits(ids)
    assert found is not None and found.tolist() == expected
    assert visits(order(0, 0, 50)) is None and visits(torch.tensor([], dtype=torch.int64)) is None


def test_each_visit_draws_numbers_of_its_own_and_the_first_those_of_a_lone_one() -> None:
    ids = torch.arange(100).repeat(50)
    times = visits(ids)
    found = draws(1, 2, ids, times).bits(1)
    assert len(found.unique()) == 5000
    assert torch.equal(found[:100], draws(1, 2, torch.arange(100)).bits(1))
    assert fits(np.histogram(draws(1, 2, ids, times).uniform(1).numpy(), 20, (0, 1))[0], [1] * 20)
