"""Mixing against torchvision's MixUp and CutMix, and the distribution of the mixtures against SciPy's Beta."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from batches import numbers, ordinary, pictures
from scipy import stats
from torchvision.transforms import v2

from trainrun.draw import Draw
from trainrun.parts.augmentations.mixing import _boxes, _weights, beta, cutmix, mixup, mixup_or_cutmix, partners

Mix = Callable[..., tuple[torch.Tensor, torch.Tensor]]
MIXES: list[Mix] = [mixup, cutmix, mixup_or_cutmix]
CLASSES = 5


def seen(count: int = 32, size: tuple[int, int] = (10, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as the network would see them and their labels one-hot."""
    images = pictures(3, *size, count=count).float() / 128 - 1
    return images, torch.eye(CLASSES)[torch.arange(count) % CLASSES]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.8, 1.0, 1.5, 4.0, 20.0])
def test_the_shares_are_quantiles_of_beta(alpha: float) -> None:
    u = np.concatenate((np.linspace(0, 1, 1001), [2**-24, 1 - 2**-24, 1e-4, 1 - 1e-4]))
    found = beta(torch.from_numpy(u).float(), alpha)
    assert found.dtype == torch.float32 and ((found >= 0) & (found <= 1)).all()
    # Where the density is steep a quantile is soft, so it is the probability below it that must be right.
    below = stats.beta(alpha, alpha).cdf(found.double().numpy())
    # At both ends the quantiles of small alphas are nearer to 0 or 1 than float32 can tell, where many u have one quantile.
    told = (found > 1e-30) & (found < 1)
    assert np.abs(below - u)[told].max() < (1e-6 if alpha >= 1 else 1e-2)
    half = (u <= 0.5) & told.numpy()
    assert np.abs(below - u)[half].max() < 1e-6


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_drawn_shares_are_beta(alpha: float) -> None:
    """Kolmogorov-Smirnov over 20,000 pictures; refused by chance once in a million times."""
    images = torch.zeros(20_000, 1, 1, 1)
    weights = _weights(numbers(20_000), alpha, 1.0, partners(images)).double().numpy()
    assert ordinary(stats.kstest(np.minimum(weights, 1 - weights), lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue)
    assert abs((weights < 0.5).mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    assert abs(np.corrcoef(weights[::2], weights[1::2])[0, 1]) < 5 / 10_000**0.5


def test_partners_are_neighbours_and_the_last_of_an_odd_number_has_none() -> None:
    assert partners(torch.zeros(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert partners(torch.zeros(5)).tolist() == [1, 0, 3, 2, 4]
    assert partners(torch.zeros(1)).tolist() == [0] and partners(torch.zeros(0)).tolist() == []


def pair(images: torch.Tensor, targets: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and its partner, which torchvision rolls around."""
    return images[[n, n ^ 1]], targets[[n, n ^ 1]]


def test_mixup_is_torchvisions() -> None:
    images, targets = seen()
    found, soft = mixup(images, targets, numbers(), alpha=0.8)
    shares = stats.beta(0.8, 0.8).ppf(numbers().uniform(2)[:, 0].double().numpy()).tolist()
    theirs = v2.MixUp(num_classes=CLASSES)
    for n, share in enumerate(shares):
        both, labels = pair(images, targets, n)
        params = {"lam": share, "labels": labels, "batch_size": 2}
        torch.testing.assert_close(found[n], theirs.transform(both, params)[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(soft[n], theirs.transform(labels, params)[0], rtol=0, atol=2e-6)


def test_cutmix_is_torchvisions() -> None:
    images, targets = seen(size=(20, 14))
    found, soft = cutmix(images, targets, numbers(), alpha=1.0)
    drawn = numbers().uniform(4).double()
    sides = (1 - drawn[:, 0].float().double()).sqrt()  # Beta(1, 1) is uniform
    theirs = v2.CutMix(num_classes=CLASSES)
    areas = []
    for n in range(32):
        y, x = int(drawn[n, 2] * 20), int(drawn[n, 3] * 14)
        h, w = int(0.5 * sides[n] * 20), int(0.5 * sides[n] * 14)
        box = (max(x - w, 0), max(y - h, 0), min(x + w, 14), min(y + h, 20))
        areas.append((box[2] - box[0]) * (box[3] - box[1]) / 280)
        both, labels = pair(images, targets, n)
        params = {"box": box, "lam_adjusted": 1 - areas[-1], "labels": labels, "batch_size": 2}
        assert torch.equal(found[n], theirs.transform(both, params)[0])
        torch.testing.assert_close(soft[n], theirs.transform(labels, params)[0], rtol=0, atol=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_a_picture_draws_one_of_the_two() -> None:
    images, targets = seen(2000)
    found, soft = mixup_or_cutmix(images, targets, numbers(2000), mixup_alpha=0.4, cutmix_alpha=0.7, cutmix_share=0.3)
    cut = numbers(2000).uniform(5)[:, 4] < 0.3
    for chosen, (pictures_, labels) in (
        (cut, cutmix(images, targets, numbers(2000), alpha=0.7)),
        (~cut, mixup(images, targets, numbers(2000), alpha=0.4)),
    ):
        assert torch.equal(found[chosen], pictures_[chosen]) and torch.equal(soft[chosen], labels[chosen])
    assert abs(cut.float().mean().item() - 0.3) < 5 * (0.21 / 2000) ** 0.5


@pytest.mark.parametrize("mix", MIXES)
def test_targets_are_probabilities_and_the_mean_picture_stays(mix: Mix) -> None:
    """The expected mixture is half of each, so the mean over many pairs of one pair is that pair's; five standard deviations."""
    images, targets = seen(2)
    images, targets = images.repeat(3000, 1, 1, 1), targets.repeat(3000, 1)
    draw = numbers(6000)
    found, soft = mix(images, targets, draw)
    torch.testing.assert_close(soft.sum(1), torch.ones(6000), rtol=0, atol=1e-6)
    assert (soft >= 0).all() and ((soft > 0).sum(1) <= 2).all()
    assert found.amin() >= images.amin() and found.amax() <= images.amax()
    deviation = found.std(0) / 6000**0.5 + 1e-6
    assert ((found.mean(0) - images.mean(0)).abs() < 5.5 * deviation).all()  # 210 values: 5.5 deviations, or once in 10^5 times
    assert (soft.mean(0) - targets.mean(0)).abs().max() < 5 * 0.5 / 6000**0.5


@pytest.mark.parametrize("mix", MIXES)
def test_the_label_says_how_much_of_the_picture_is_whose(mix: Mix) -> None:
    """A black picture with a white partner: the mean level is the partner's share of the label."""
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 16, 12).repeat(50, 1, 1, 1)
    targets = torch.eye(2).repeat(50, 1)
    found, soft = mix(images, targets, numbers(100))
    torch.testing.assert_close(found.mean((1, 2, 3)), soft[:, 1], rtol=0, atol=1e-6)
    assert soft[:, 1].std() > 0.2


@pytest.mark.parametrize("mix", MIXES)
def test_pairs_do_not_depend_on_the_batch(mix: Mix) -> None:
    images, targets = seen()
    ids = torch.arange(32) * 37 + 5
    whole = mix(images, targets, numbers(ids), p=0.8)
    for size in (2, 4, 6):
        pieces = [mix(i, t, numbers(k), p=0.8) for i, t, k in zip(*(x.split(size) for x in (images, targets, ids)), strict=True)]
        for n in range(2):
            assert torch.equal(whole[n], torch.cat([piece[n] for piece in pieces]))


@pytest.mark.parametrize("mix", MIXES)
def test_what_is_not_mixed_stays_to_the_last_bit(mix: Mix) -> None:
    images, targets = seen(1001)
    draw = numbers(1001)
    found, soft = mix(images, targets, draw, p=0.4)
    same = draw.uniform(2)[:, 1] >= 0.4
    same[-1] = True
    assert torch.equal(found[same], images[same]) and torch.equal(soft[same], targets[same])
    assert abs(same.float().mean().item() - 0.6) < 5 * (0.24 / 1000) ** 0.5
    for count in (0, 1):
        few = mix(images[:count], targets[:count], numbers(count))
        assert torch.equal(few[0], images[:count]) and torch.equal(few[1], targets[:count])


def test_a_mixture_has_its_own_rectangle() -> None:
    """Neighbours in a pair do not share theirs: each picture draws its own."""
    inside, share = _boxes(torch.full((64,), 0.5), torch.Size((64, 3, 32, 32)), numbers(64))
    assert len({tuple(map(int, i.flatten().nonzero()[:1].flatten())) for i in inside}) > 40
    torch.testing.assert_close(1 - inside.float().mean((1, 2, 3)), share)
    assert isinstance(numbers(2), Draw)
