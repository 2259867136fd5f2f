"""What each initializer draws: distributions against SciPy and closed formulas, forms against linear algebra, torch where it is right."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from initializing import ODDS, draw, variance_is
from scipy import stats
from torch import nn

from trainrun.parts.initializers.fans import kaiming_uniform, xavier_normal, xavier_uniform
from trainrun.parts.initializers.fills import trunc_normal, uniform
from trainrun.parts.initializers.structured import dirac, orthogonal, sparse

# layer, fan_in, fan_out of one kernel that connects all its inputs with all its outputs
LAYERS: list[Any] = [
    pytest.param(lambda: nn.Linear(300, 200), 300, 200, id="linear"),
    pytest.param(lambda: nn.Conv2d(32, 64, 3), 288, 576, id="conv"),
    pytest.param(lambda: nn.Conv2d(64, 128, 3, groups=4), 144, 288, id="grouped"),
    pytest.param(lambda: nn.Conv2d(1024, 2048, 5, groups=1024), 25, 50, id="depthwise"),
    pytest.param(lambda: nn.ConvTranspose2d(32, 64, 3), 288, 576, id="transposed"),
    pytest.param(lambda: nn.ConvTranspose2d(64, 128, 3, groups=4), 144, 288, id="transposed and grouped"),
]


def comes_from(sample: torch.Tensor, distribution: Any) -> None:
    """Accept by Kolmogorov and Smirnov's test at ODDS."""
    assert stats.kstest(sample.detach().flatten().double().numpy(), distribution.cdf).pvalue > ODDS


@pytest.mark.parametrize(("make", "fan_in", "fan_out"), LAYERS)
def test_xavier_and_kaiming_go_by_true_fans(make: Any, fan_in: int, fan_out: int) -> None:
    layer = make()
    torch.manual_seed(3)
    draw(layer, "xavier_normal", gain=1.5)
    variance_is(layer.weight.detach(), 2.25 * 2 / (fan_in + fan_out))
    bounds = {
        sqrt(6 / (fan_in + fan_out)): ("xavier_uniform", {}),
        sqrt(6 / fan_in): ("kaiming_uniform", {}),
        sqrt(3 / fan_out): ("kaiming_uniform", {"mode": "fan_out", "nonlinearity": "linear"}),
        sqrt(6 / 1.25 / fan_in): ("kaiming_uniform", {"nonlinearity": "leaky_relu", "slope": 0.5}),
    }
    for bound, (name, options) in bounds.items():
        draw(layer, name, **options)
        found = layer.weight.detach()
        # Of n uniform numbers the largest is below bound (1 - ln(1/ODDS)/n) with the chance ODDS.
        assert bound * (1 - 10 / found.numel()) < found.abs().max() <= bound
        comes_from(found[:100], stats.uniform(-bound, 2 * bound))


@pytest.mark.parametrize("shape", [(60, 50), (40, 20, 3, 3), (8, 90, 2)])
def test_they_are_torchs_where_every_input_meets_every_output(shape: tuple[int, ...]) -> None:
    pairs: list[tuple[Any, Any]] = [
        (lambda w: xavier_normal(w, gain=2.0), lambda w: nn.init.xavier_normal_(w, 2.0)),
        (xavier_uniform, nn.init.xavier_uniform_),
        (lambda w: kaiming_uniform(w, mode="fan_out"), lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
        (lambda w: orthogonal(w, gain=0.5), lambda w: nn.init.orthogonal_(w, 0.5)),
    ]
    for ours, theirs in pairs:
        a, b = torch.empty(shape), torch.empty(shape)
        torch.manual_seed(0)
        ours(a)
        torch.manual_seed(0)
        theirs(b)
        torch.testing.assert_close(a, b)


def test_uniform_and_truncated_normal() -> None:
    torch.manual_seed(0)
    weight = torch.empty(200, 100)
    uniform(weight, low=-0.1, high=0.3)
    comes_from(weight, stats.uniform(-0.1, 0.4))
    for cut in (0.5, 2.0, 8.0):
        trunc_normal(weight, std=0.2, mean=1.0, cut=cut)
        expected = stats.truncnorm(-cut, cut, loc=1.0, scale=0.2)
        comes_from(weight, expected)
        assert (weight - 1).abs().max() <= 0.2 * cut + 1e-6
        # The variance of a sample's variance is (m4 - var^2) / n.
        spread = sqrt((expected.moment(4) - 4 * expected.moment(3) + 6 * expected.moment(2) - 4 + 1 - expected.var() ** 2) / weight.numel())
        assert abs(weight.double().var() - expected.var()) < stats.norm.isf(ODDS / 2) * spread


@pytest.mark.parametrize(("make", "fan_in", "fan_out"), LAYERS)
def test_orthogonal_rows_or_columns(make: Any, fan_in: int, fan_out: int) -> None:
    layer = make()
    torch.manual_seed(0)
    draw(layer, "orthogonal", gain=3.0)
    weight = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    for kernel in weight.chunk(groups)[:5]:
        matrix = (kernel.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel).flatten(1).double() / 3
        small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        torch.testing.assert_close(small @ small.T, torch.eye(len(small), dtype=torch.float64), rtol=0, atol=1e-5)


def test_orthogonal_is_spread_over_all_directions() -> None:
    torch.manual_seed(0)
    first = []
    for _ in range(2000):
        weight = torch.empty(3, 3)
        orthogonal(weight)
        first.append(weight[0, 0])
    comes_from(torch.stack(first), stats.uniform(-1, 2))  # Archimedes: a coordinate of a uniform point on the sphere is uniform


def test_dirac_preserves_a_picture() -> None:
    picture = torch.rand(2, 4, 7, 6)
    for layer in (
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 5, padding=2), nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=1),
    ):  # fmt: skip
        draw(layer, "dirac")
        out = layer(picture)
        assert torch.equal(out[:, :4], picture) and not out[:, 4:].any()
    ours, theirs = torch.empty(5, 3, 3, 4), torch.empty(5, 3, 3, 4)
    dirac(ours)
    assert torch.equal(ours, nn.init.dirac_(theirs))
    linear = nn.Linear(4, 4)
    draw(linear, "dirac")
    assert torch.equal(linear(picture[:, :, 0, 0]), picture[:, :, 0, 0])


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.9, 90), (0.001, 0), (0.999, 99)])
def test_sparse_leaves_each_unit_so_many_weights(sparsity: float, zeros: int) -> None:
    torch.manual_seed(0)
    weight = torch.empty(400, 25, 2, 2)
    sparse(weight, sparsity=sparsity, std=0.5)
    assert ((weight.flatten(1) == 0).sum(1) == zeros).all()
    variance_is(weight[weight != 0], 0.25)
    if zeros == 90:  # in places of each row's own, spread evenly over the columns
        left = (weight.flatten(1) != 0).sum(0).numpy()
        assert stats.chisquare(left).pvalue > ODDS and len({tuple(row.nonzero()[:, 0].tolist()) for row in weight.flatten(1)}) > 390
