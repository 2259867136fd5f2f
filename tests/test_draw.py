"""The random numbers against a plain-integer SplitMix64, and their statistics; every seed here is fixed."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from trainrun import draw
from trainrun.draw import draws, key, order, step_seed

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
# What the reference implementation (Vigna, splitmix64.c) prints first after the seed 1234567.
REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


class SplitMix64:
    """The reference generator, a state that walks in steps of the golden ratio, in Python's unbounded integers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        """The next 64 bits."""
        self.state = (self.state + GOLDEN) % 2**64
        z = self.state
        z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z // 2**31)


def mixed(value: int) -> int:
    """The finaliser of the generator alone."""
    return SplitMix64((value - GOLDEN) % 2**64).next()


def unsigned(x: torch.Tensor) -> list[int]:
    """int64 as the 64 bits that it stands for."""
    return [int(v) % 2**64 for v in x.flatten().tolist()]


def base_of(seed: int, epoch: int, sample: int) -> int:
    """The hash of (seed, epoch, sample id) as the module describes it."""
    return mixed(sample * GOLDEN + key(seed, "sample", epoch))


def ordinary(p: float) -> bool:
    """Neither too far from uniform nor suspiciously close to it."""
    return 1e-6 < p < 1 - 1e-6


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """|r| in units of its standard deviation 1 / sqrt(n)."""
    x, y = a.double().flatten().numpy(), b.double().flatten().numpy()
    return abs(float(np.corrcoef(x, y)[0, 1])) * len(x) ** 0.5


def test_the_independent_generator_prints_the_reference() -> None:
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in REFERENCE] == REFERENCE


def test_both_mixers_are_splitmix64() -> None:
    states = [(1234567 + n * GOLDEN) & MASK for n in range(1, len(REFERENCE) + 1)]
    assert [draw._mix(s) for s in states] == REFERENCE
    assert unsigned(draw._mix_tensor(torch.tensor([draw._signed(s) for s in states]))) == REFERENCE


def test_both_mixers_agree_with_big_integers_on_every_kind_of_word() -> None:
    generator = SplitMix64(99)
    words = [0, 1, MASK, 1 << 63, (1 << 63) - 1, *(1 << n for n in range(64)), *(generator.next() for _ in range(2000))]
    expected = [mixed(w) for w in words]
    assert [draw._mix(w) for w in words] == expected
    assert unsigned(draw._mix_tensor(torch.tensor([draw._signed(w) for w in words]))) == expected


@pytest.mark.parametrize("value", [0, 1, (1 << 63) - 1, 1 << 63, MASK, MASK + 5, -1, GOLDEN * 3])
def test_signed_keeps_the_bits(value: int) -> None:
    signed = draw._signed(value)
    assert -(1 << 63) <= signed < 1 << 63 and (signed - value) % 2**64 == 0


@pytest.mark.parametrize("purpose", [0, 1, key("augment", 0, "random_crop"), MASK])
def test_draws_are_the_documented_function(purpose: int) -> None:
    ids = [0, 1, 2, 49_999, 2**31 + 7, 2**40]
    found = draws(7, 3, torch.tensor(ids)).for_(purpose)
    expected = [[mixed(base_of(7, 3, s) + mixed(purpose + lane * GOLDEN)) for lane in range(4)] for s in ids]
    assert unsigned(found.bits(4)) == list(itertools.chain(*expected))
    assert found.uniform(4).tolist() == [[(v >> 40) / 2**24 for v in row] for row in expected]
    assert found.integers(4, 9).tolist() == [[(v >> 32) * 9 >> 32 for v in row] for row in expected]


def test_shapes_types_and_ranges() -> None:
    found = draws(0, 0, torch.arange(4096))
    bits, uniform, integers = found.bits(3), found.uniform(3), found.integers(3, 5)
    assert bits.shape == uniform.shape == integers.shape == (4096, 3)
    assert (bits.dtype, uniform.dtype, integers.dtype) == (torch.int64, torch.float32, torch.int64)
    assert (bits < 0).any() and (bits > 0).any()
    assert uniform.min() >= 0 and uniform.max() < 1 and integers.unique().tolist() == [0, 1, 2, 3, 4]
    assert draws(0, 0, torch.arange(0)).uniform(2).shape == (0, 2)


def test_integers_reach_both_ends_of_the_largest_count() -> None:
    found = draws(0, 0, torch.arange(100_000)).integers(1, 2**31 - 1)
    assert 0 <= found.min() < 2**31 / 5_000 and 2**31 * (1 - 1 / 5_000) < found.max() < 2**31 - 1


def test_fewer_lanes_are_the_first_of_more() -> None:
    found = draws(1, 2, torch.arange(10)).for_(5)
    assert torch.equal(found.bits(2), found.bits(6)[:, :2])


@pytest.mark.parametrize(("seed", "epoch", "purpose"), [(0, 0, 0), (1, 0, key("augment", 0, "horizontal_flip")), (0, 89, 1)])
def test_uniform_numbers_are_uniform(seed: int, epoch: int, purpose: int) -> None:
    found = draws(seed, epoch, torch.arange(600_000)).for_(purpose).uniform(2)
    for values in (found, found[:, :1], found[:, 1:]):  # 1.2 million, and each lane
        assert ordinary(stats.chisquare(torch.histc(values, 256, 0, 1).numpy()).pvalue)


def test_every_byte_of_the_bits_is_uniform() -> None:
    bits = draws(3, 1, torch.arange(1_000_000)).bits(1)
    for byte in range(8):
        counts = torch.bincount(((bits >> (8 * byte)) & 255).flatten(), minlength=256)
        assert ordinary(stats.chisquare(counts.numpy()).pvalue), byte


def test_one_sample_is_uniform_over_epochs_and_over_seeds() -> None:
    one = torch.tensor([17])
    for values in ([draws(0, e, one).uniform(1).item() for e in range(5000)], [draws(s, 0, one).uniform(1).item() for s in range(5000)]):
        assert ordinary(stats.chisquare(np.histogram(values, 50, (0, 1))[0]).pvalue)


def test_integers_are_uniform() -> None:
    found = draws(0, 0, torch.arange(500_000)).for_(key("augment", 0, "random_crop")).integers(2, 9)
    assert ordinary(stats.chisquare(torch.bincount(found.flatten(), minlength=9).numpy()).pvalue)
    pairs = torch.bincount(found[:, 0] * 9 + found[:, 1], minlength=81)  # both offsets of a crop together
    assert len(pairs) == 81 and ordinary(stats.chisquare(pairs.numpy()).pvalue)


def test_numbers_are_uncorrelated() -> None:
    ids = torch.arange(200_000)
    found = draws(0, 0, ids)
    lanes = found.uniform(4)
    for a, b in itertools.combinations(range(4), 2):
        assert correlation(lanes[:, a], lanes[:, b]) < 5, f"lanes {a} and {b}"
    other = {
        "purposes that are neighbours": found.for_(1).uniform(4),
        "purposes of parts": found.for_(key("augment", 1, "horizontal_flip")).uniform(4),
        "epochs": draws(0, 1, ids).uniform(4),
        "epochs far apart": draws(0, 100, ids).uniform(4),
        "seeds": draws(1, 0, ids).uniform(4),
    }
    for name, values in other.items():
        assert correlation(lanes, values) < 5, name
        assert correlation(lanes[:, 0], values[:, 1]) < 5, name
    for distance in (1, 2, 3, 32, 128):
        assert correlation(lanes[distance:], lanes[:-distance]) < 5, f"ids at distance {distance}"


def test_neighbouring_streams_never_share_a_number() -> None:
    ids = torch.arange(2000)
    all_bits = [draws(s, e, ids).for_(p).bits(3) for s in (0, 1) for e in (0, 1, 2) for p in (0, 1, 2)]
    together = torch.stack(all_bits).flatten()
    assert len(together.unique()) == len(together)


def test_one_bit_of_the_sample_id_turns_half_of_the_bits() -> None:
    ids = torch.arange(4096)
    before = draws(0, 0, ids).bits(1)
    for bit in range(16):
        turned = [v.bit_count() for v in unsigned(before ^ draws(0, 0, ids ^ (1 << bit)).bits(1))]
        assert abs(np.mean(turned) - 32) < 5 * 4 / 2048**0.5, bit  # each pair of ids counts twice


def test_a_sample_does_not_depend_on_its_batch() -> None:
    ids = order(0, 0, 1000)[:32]
    whole = draws(5, 2, ids).for_(11)
    parts = [draws(5, 2, piece).for_(11) for piece in ids.split(4)]
    assert len(parts) == 8
    assert torch.equal(whole.bits(3), torch.cat([p.bits(3) for p in parts]))
    assert torch.equal(whole.uniform(3), torch.cat([p.uniform(3) for p in parts]))
    assert torch.equal(whole.integers(3, 9), torch.cat([p.integers(3, 9) for p in parts]))
    assert torch.equal(whole.bits(3).flip(0), draws(5, 2, ids.flip(0)).for_(11).bits(3))


@pytest.mark.parametrize("count", [0, 1, 2, 10, 50_000])
def test_order_is_a_permutation(count: int) -> None:
    found = order(0, 0, count)
    assert found.dtype == torch.int64 and found.device.type == "cpu"
    assert torch.equal(found.sort().values, torch.arange(count))


def test_order_is_the_documented_function() -> None:
    hashes = [mixed(mixed(s * GOLDEN + key(4, "order", 6))) for s in range(300)]
    by_signed_hash = sorted(range(300), key=lambda s: hashes[s] - (hashes[s] >> 63 << 64))
    assert order(4, 6, 300).tolist() == by_signed_hash


def test_order_differs_by_epoch_and_seed_only() -> None:
    first = order(0, 0, 10_000)
    assert torch.equal(first, order(0, 0, 10_000))
    for other in (order(0, 1, 10_000), order(1, 0, 10_000), order(1, 1, 10_000), torch.arange(10_000)):
        assert (first == other).sum() < 12  # a random pair of permutations agrees in one place on average
        assert correlation(first, other) < 5


def test_every_place_of_the_order_is_as_likely() -> None:
    count, epochs = 20, 4000
    orders = torch.stack([order(0, e, count) for e in range(epochs)])
    places = torch.zeros(count, count)
    for place in range(count):
        places[place] = torch.bincount(orders[:, place], minlength=count)
    for sample in range(count):
        assert ordinary(stats.chisquare(places[:, sample].numpy()).pvalue), sample
    # Neither a sample that often follows another one.
    follows = torch.bincount((orders[:, :-1] * count + orders[:, 1:]).flatten(), minlength=count**2).view(count, count)
    assert follows.diagonal().sum() == 0
    assert ordinary(stats.chisquare(follows[~torch.eye(count, dtype=torch.bool)].numpy()).pvalue)


def test_order_is_not_the_stream_of_the_augmentations() -> None:
    ids = torch.arange(50_000)
    place = torch.empty_like(ids).scatter_(0, order(0, 0, 50_000), ids)
    for purpose in (0, 1, key("augment", 0, "random_crop"), key("augment", 1, "horizontal_flip")):
        assert correlation(place, draws(0, 0, ids).for_(purpose).uniform(1)) < 5


def test_key_is_a_hash_of_the_sequence() -> None:
    text = b"int:1\x1fstr:sample\x1fint:-2"
    assert key(1, "sample", -2) == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def test_key_distinguishes_sequences() -> None:
    sequences: list[tuple[int | str, ...]] = [
        (), ("",), ("", ""), (1,), ("1",), (-1,), (11,), (1, 1), ("11",), ("1", "1"), (1, "1"), ("1", 1), ("a", "b"), ("ab",), ("b", "a"),
        ("a,b",), ("a b",), ("a", "b", ""), (0, "sample", 1), (1, "sample", 0), (0, "order", 1), (2**64 + 1,), (2**64,), (0,),
    ]  # fmt: skip
    keys = [key(*words) for words in sequences]
    assert len(set(keys)) == len(sequences) and all(0 <= k < 2**64 for k in keys)
    assert len({key(seed, "sample", epoch) for seed in range(100) for epoch in range(100)}) == 10_000


def test_step_seeds_are_a_generators_seeds_and_all_different() -> None:
    seeds = [step_seed(s, n, r) for s in range(3) for n in range(1000) for r in range(4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**63 for s in seeds)
    assert step_seed(5, 7, 2) == mixed(key(5, "step", 2) + 7 * GOLDEN) >> 1
    assert ordinary(stats.chisquare(np.histogram([s / 2**63 for s in seeds], 64, (0, 1))[0]).pvalue)
    torch.Generator().manual_seed(max(seeds))


def test_normal_numbers_are_the_quantiles_of_their_bits() -> None:
    found = draws(4, 1, torch.arange(500)).for_(9)
    bits = np.array([v >> 32 for v in unsigned(found.bits(3))]).reshape(500, 3)
    np.testing.assert_allclose(found.normal(3).numpy(), stats.norm.ppf((bits + 0.5) / 2**32), rtol=2e-7, atol=1e-9)
    assert found.normal(3).dtype == torch.float32 and draws(0, 0, torch.arange(0)).normal(2).shape == (0, 2)


def test_normal_numbers_are_normal_and_unrelated() -> None:
    """Kolmogorov-Smirnov and the share beyond four deviations over 600,000 numbers, to be failed once in a million times."""
    found = draws(7, 3, torch.arange(300_000)).for_(5).normal(2)
    assert all(ordinary(stats.kstest(lane.numpy(), "norm").pvalue) for lane in found.T)
    beyond = int((found.abs() > 4).sum())
    assert ordinary(stats.binomtest(beyond, found.numel(), 2 * stats.norm.sf(4)).pvalue * (1 - 1e-5))
    assert correlation(found[:, 0], found[:, 1]) < 5 and correlation(found[:-1, 0], found[1:, 0]) < 5


@pytest.mark.parametrize("lanes", [64, 65, 5000])
def test_many_lanes_are_the_documented_function_too(lanes: int) -> None:
    purpose = key("augment", 0, "gaussian_noise")
    found = unsigned(draws(3, 2, torch.tensor([11])).for_(purpose).bits(lanes))
    expected = [mixed(base_of(3, 2, 11) + mixed(purpose + lane * GOLDEN)) for lane in range(lanes)]
    assert found == [value % 2**64 for value in expected]
