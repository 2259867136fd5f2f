"""Initializers: variances against their formulas by a chi-square test, and which parameters they touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from initializing import draw, variance_is
from torch import nn

from trainrun.parts.initializers.fans import kaiming_normal
from trainrun.parts.initializers.fills import normal


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Linear(300, 200), 300, 200),
        (nn.Conv2d(32, 64, 3), 32 * 9, 64 * 9),
        (nn.Conv1d(40, 80, 5), 40 * 5, 80 * 5),
        (nn.Conv2d(64, 128, 3, groups=4), 16 * 9, 32 * 9),
        (nn.Conv2d(1024, 1024, 5, groups=1024), 25, 25),
        (nn.ConvTranspose2d(32, 64, 3), 32 * 9, 64 * 9),
        (nn.ConvTranspose2d(64, 128, 3, groups=4), 16 * 9, 32 * 9),
    ],
    ids=["linear", "conv2d", "conv1d", "grouped", "depthwise", "transposed", "transposed and grouped"],
)
@pytest.mark.parametrize(
    ("options", "gain2"),
    [({}, 2.0), ({"nonlinearity": "linear"}, 1.0), ({"nonlinearity": "leaky_relu", "slope": 0.5}, 2 / 1.25)],
    ids=["relu", "linear", "leaky_relu"],
)
def test_kaiming_variance(layer: Any, fan_in: int, fan_out: int, options: dict[str, Any], gain2: float) -> None:
    for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out)):
        torch.manual_seed(1)
        draw(layer, "kaiming_normal", mode=mode, **options)
        variance_is(layer.weight.detach(), gain2 / fan)
        assert not layer.bias.any()


def test_kaiming_agrees_with_torch_where_there_are_no_groups() -> None:
    ours, theirs = torch.empty(64, 32, 3, 3), torch.empty(64, 32, 3, 3)
    torch.manual_seed(0)
    kaiming_normal(ours, mode="fan_out", nonlinearity="leaky_relu", slope=0.1)
    torch.manual_seed(0)
    nn.init.kaiming_normal_(theirs, 0.1, "fan_out", "leaky_relu")
    torch.testing.assert_close(ours, theirs)


def test_kaiming_keeps_the_signal_through_a_grouped_and_transposed_stack() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [
            nn.Conv2d(64, 64, 3, padding=1, groups=4, padding_mode="circular"),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 64, 1, groups=2),
            nn.ReLU(),
        ]
    net = nn.Sequential(*layers)
    draw(net, "kaiming_normal")
    out = net(torch.randn(8, 64, 16, 16))
    assert 0.3 < out.square().mean().item() < 3  # 2^16 too large or small with torch's fans of one group in two


def test_normal_has_its_mean_and_variance() -> None:
    torch.manual_seed(0)
    weight = torch.empty(200, 300)
    normal(weight, std=0.03, mean=0.5)
    variance_is(weight, 0.03**2, 0.5)
    assert abs(weight.mean().item() - 0.5) < 4 * 0.03 / 60000**0.5


def test_constant_and_zeros_reach_every_layer_and_no_norm() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 4, 2), nn.LayerNorm(4), nn.Linear(4, 2)
    )
    for norm in (net[1], net[2], net[4]):
        nn.init.constant_(norm.weight, 3.0)
        nn.init.constant_(norm.bias, 2.0)
    for initializer, value in ((("constant", {"value": 0.25}), 0.25), (("zeros", {}), 0.0)):
        draw(net, initializer[0], **initializer[1])
        assert all((layer.weight == value).all() and not layer.bias.any() for layer in (net[0], net[3], net[5]))
        assert all((norm.weight == 3).all() and (norm.bias == 2).all() for norm in (net[1], net[2], net[4]))


def test_attention_projections_count_as_linear_layers() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(256, 4)
    nn.init.ones_(attention.in_proj_bias)
    draw(attention, "kaiming_normal", mode="fan_out", nonlinearity="linear")
    variance_is(attention.in_proj_weight.detach(), 1 / 256)
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()


def test_default_leaves_everything_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    draw(net, "default")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_weights_stay_leaves_that_learn() -> None:
    net = nn.Conv2d(2, 4, 3)
    draw(net, "kaiming_normal")
    assert net.weight.is_leaf and net.weight.requires_grad and net.weight.grad_fn is None
