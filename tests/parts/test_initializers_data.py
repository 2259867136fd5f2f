"""Initializers that look at pictures: variances and covariances measured again, and what must stay as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from initializing import bare, draw, node
from torch import nn

from trainrun.errors import UserError
from trainrun.parts.initializers import adapt, initialize
from trainrun.parts.models.nets.resnet_cifar import ResNetCifar
from trainrun.parts.models.nets.wide_resnet import WideResNet
from trainrun.recipe.kinds import InitializerRule


def stack(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, groups=4), nn.Tanh(), nn.ConvTranspose2d(32, 8, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10),
    )  # fmt: skip


def variances(net: nn.Module, pictures: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        def see(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            found[name] = output.detach().double().numpy().var()

        return see

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        net.train()(pictures)
    return found


@pytest.mark.parametrize("norm", [False, True])
def test_lsuv_gives_every_layer_variance_one(norm: bool) -> None:
    net, pictures = stack(norm), 5 * torch.rand(20, 3, 8, 8) + 1
    draw(net, "lsuv")
    first = net[0].weight.detach().flatten(1).clone()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.eval()
    adapt(net, node("lsuv", tol=1e-3), iter([pictures]))
    assert not net.training and all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    scaled = net[0].weight.detach().flatten(1)
    assert torch.allclose(scaled @ scaled.T, (scaled[0] @ scaled[0]) * torch.eye(16), atol=1e-5) and not torch.allclose(scaled, first)
    assert not any(hooks for m in net.modules() for hooks in (m._forward_hooks,))
    assert list(variances(net, pictures).values()) == pytest.approx([1.0] * 4, abs=1e-3)


@pytest.mark.parametrize("make", [lambda: ResNetCifar(3, 10, 1), lambda: WideResNet(3, 10, 1, 1)], ids=["norm closes", "convolution closes"])
def test_lsuv_leaves_alone_what_rules_and_silence_set(make: Any) -> None:
    torch.manual_seed(0)
    net = make()
    rules = [InitializerRule.model_validate({"match": "fc.*", "weights": bare("constant", value=0.5)})]
    mine = node("lsuv", zero_init_residual=True, rules=rules, tol=0.01)
    initialize(net, mine)
    pictures = torch.randn(8, 3, 16, 16)
    adapt(net, mine, iter([pictures]))
    assert (net.fc.weight == 0.5).all()
    assert not any(block.get_submodule(block.closing).weight.any() for block in net.modules() if getattr(block, "closing", None))
    found = variances(net, pictures)
    assert abs(found["conv"] - 1) < 0.01 and abs(found["stage2.0.conv1"] - 1) < 0.01 and found["fc"] != pytest.approx(1, abs=0.01)


def test_lsuv_scales_no_more_than_it_is_told() -> None:
    """Not at all within the tolerance, and so often at most: with biases, which it leaves alone, one division is not enough."""
    torch.manual_seed(0)
    net, pictures = nn.Sequential(nn.Linear(6, 2)), torch.randn(500, 6)
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([2.0, -2.0]))
        before = net[0].weight.clone()
        variance = net(pictures).double().var(correction=0)
    adapt(net, node("lsuv", max_iterations=1), [pictures])
    torch.testing.assert_close(net[0].weight.detach(), before / variance.sqrt().float())
    assert net(pictures).double().var(correction=0) > 2
    net[0].bias.detach().mul_(0.0)
    net[0].weight.detach().mul_(1.04 / net(pictures).double().var(correction=0).sqrt().float())  # a variance of 1.08
    after = net[0].weight.clone()
    adapt(net, node("lsuv", tol=0.1), [pictures])
    assert torch.equal(net[0].weight, after)
    adapt(net, node("lsuv", tol=0.05), [pictures])
    torch.testing.assert_close(net[0].weight, after / 1.04)


def test_layers_may_share_a_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    net[1].weight = net[0].weight
    draw(net, "lsuv")
    pictures = torch.randn(64, 3, 8, 8)
    adapt(net, node("lsuv", tol=1e-3), iter([pictures]))
    assert net[1].weight is net[0].weight and variances(net, pictures)["0"] == pytest.approx(1, abs=1e-3)  # the layer that runs first
    adapt(net, node("whitening"), [pictures])


def test_lsuv_names_the_layer_that_cannot_be_scaled() -> None:
    net = stack()
    draw(net, "lsuv")
    with pytest.raises(UserError, match="lsuv: the output of 0 has variance 0"):
        adapt(net, node("lsuv"), iter([torch.zeros(4, 3, 8, 8)]))
    assert not any(m._forward_hooks for m in net.modules())


def correlated(count: int, side: int = 9) -> torch.Tensor:
    torch.manual_seed(1)
    smooth = nn.functional.avg_pool2d(torch.randn(count, 3, side + 4, side + 4), 5, 1)
    return 3 * smooth + torch.tensor([0.5, -0.2, 0.1])[:, None, None] + smooth[:, :1]


@pytest.mark.parametrize(("channels", "stride"), [(64, 1), (24, 2), (9, 1)])
def test_whitening_makes_the_patches_uncorrelated(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3, stride, padding=1), nn.ReLU(), nn.Conv2d(channels, 4, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pictures, eps = correlated(500), 0.01
    draw(net, "whitening", eps=eps)
    adapt(net, node("whitening", eps=eps), pictures.split(64))
    # The patches taken by NumPy, and their covariance by np.cov.
    x = np.lib.stride_tricks.sliding_window_view(pictures.numpy(), (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    patches = x.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27).astype(np.float64)
    covariance = np.cov(patches.T, bias=True)
    pairs = min(27, channels // 2)
    kernels = net[0].weight.detach().double().reshape(channels, 27).numpy()
    out = kernels[:pairs] @ covariance @ kernels[:pairs].T
    values = np.linalg.eigvalsh(covariance)[::-1][:pairs]
    np.testing.assert_allclose(out, np.diag(values / (values + eps)), rtol=0, atol=1e-4)
    assert (kernels[pairs : 2 * pairs] == -kernels[:pairs]).all()
    assert (kernels[2 * pairs :] == before["0.weight"].double().reshape(channels, 27).numpy()[2 * pairs :]).all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name != "0.weight")


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(243, 4)), "needs a convolution over pictures"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), "without groups, and 0 has 3"),
        (nn.Sequential(nn.Conv2d(3, 6, 11, padding=5)), "pictures as large as the kernel of 0"),
    ],
)
def test_whitening_says_what_it_cannot_do(net: nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapt(net, node("whitening"), iter([torch.randn(4, 3, 9, 9)]))


def test_whitening_takes_a_kernel_as_large_as_the_pictures() -> None:
    net, pictures = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), correlated(400, 5)
    adapt(net, node("whitening", eps=1e-9), [pictures])
    torch.testing.assert_close(net(pictures).flatten(1)[:, :2].T.cov(), torch.eye(2), rtol=0, atol=0.02)
