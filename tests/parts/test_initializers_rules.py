"""Biases, rules over parameter names, and residual branches that begin silent."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from initializing import bare, draw, variance_is
from torch import nn

from trainrun.errors import UserError
from trainrun.parts.models.nets.resnet_cifar import ResNetCifar
from trainrun.parts.models.nets.wide_resnet import WideResNet
from trainrun.recipe.kinds import InitializerRule


class Net(nn.Module):
    """A convolution, a norm, a body and a head, with names to match."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 50, 3)
        self.norm = nn.BatchNorm2d(50)
        self.body = nn.Sequential(nn.Linear(50, 60), nn.Linear(60, 70))
        self.fc = nn.Linear(70, 100)


def rule(match: str, **what: object) -> InitializerRule:
    return InitializerRule.model_validate({"match": match, **what})


def test_rules_draw_what_they_match_and_later_ones_win() -> None:
    torch.manual_seed(0)
    net = Net()
    rules = [
        rule("body.*", weights=bare("constant", value=0.5), biases=bare("constant", value=0.25)),
        rule("body.1.*", weights=bare("normal", std=0.1)),
        rule("*.bias", biases=bare("constant", value=2.0)),
        rule("fc.bias", biases=bare("zeros")),
    ]
    draw(net, "normal", std=3.0, biases=bare("constant", value=7.0), rules=rules)
    assert (net.body[0].weight == 0.5).all() and (net.norm.weight == 1).all() and (net.norm.bias == 0).all()
    variance_is(net.body[1].weight.detach(), 0.01)
    variance_is(net.fc.weight.detach(), 9.0)
    assert [float(p.detach().unique()) for p in (net.conv.bias, net.body[0].bias, net.body[1].bias, net.fc.bias)] == [2, 2, 2, 0]


def test_biases_are_zero_unless_told_and_the_networks_own_under_default() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    draw(net, "default", rules=[rule("fc.*", weights=bare("zeros"))])
    after = net.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight"}
    draw(net, "default", biases=bare("uniform", low=2.0, high=3.0))
    assert all(p.min() >= 2 for name, p in net.named_parameters() if name.endswith("bias") and "norm" not in name)
    draw(net, "kaiming_normal", rules=[rule("conv.*", weights=bare("default"))])
    assert torch.equal(net.conv.weight, before["conv.weight"]) and not net.conv.bias.any() and not net.fc.bias.any()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([rule("head.*", weights=bare("zeros"))], "initializer.rules.0.match: 'head.*' matches no weight or bias of a convolution"),
        ([rule("norm.*", weights=bare("zeros"))], "matches no weight or bias"),
        ([rule("bdy.*", weights=bare("zeros"))], "did you mean body.*?"),
        ([rule("fc.weight", biases=bare("zeros"))], "initializer.rules.0: 'fc.weight' matches nothing of the kind that it sets"),
        ([rule("fc.weight", weights=bare("zeros")), rule("fc.*", weights=bare("dirac"))], "initializer.rules.0: later rules overrule all"),
    ],
)
def test_rules_without_effect_are_refused(rules: list[InitializerRule], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        draw(Net(), "zeros", rules=rules)


@pytest.mark.parametrize(
    "make", [lambda: ResNetCifar(3, 10, 2, "B"), lambda: ResNetCifar(3, 10, 2), lambda: WideResNet(3, 10, 1, 2),
             lambda: torchvision.models.resnet18(num_classes=10), lambda: torchvision.models.resnet50(num_classes=10)],
    ids=["resnet_cifar B", "resnet_cifar A", "wide_resnet", "resnet18", "resnet50"],
)  # fmt: skip
def test_silent_branches_pass_the_shortcut_on_and_can_wake(make: object) -> None:
    torch.manual_seed(0)
    net = make()  # type: ignore[operator]  # parameters of a test are objects
    blocks = [m for m in net.modules() if hasattr(m, "conv2")]
    draw(net, "kaiming_normal", zero_init_residual=True)
    pictures = torch.randn(4, 3, 32, 32)
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    for block in blocks:
        block.register_forward_hook(lambda m, i, o: seen.append((m, i[0].clone(), o.clone())), prepend=True)
    loss = nn.functional.cross_entropy(net(pictures), torch.arange(4))
    loss.backward()
    plain = 0
    for block, entered, left in seen:
        shortcut = getattr(block, "shortcut", None) or getattr(block, "downsample", None)
        if shortcut is None and entered.shape == left.shape:
            plain += 1
            assert torch.equal(left, entered if isinstance(net, WideResNet) else entered.relu())
    assert plain or isinstance(net, WideResNet)
    # What closes a branch gets a gradient, or it would stay silent for good.
    if isinstance(net, ResNetCifar) and blocks[2].shortcut is None:
        # With A the channels of zeros have nothing but the branch, and a relu passes no gradient at zero.
        widening = [net.stage2[0], net.stage3[0]]
        assert all(block.norm2.weight.all() and block.norm2.weight.grad.all() for block in widening)
        blocks = [block for block in blocks if block not in widening]
    closing = [getattr(b, "bn3", None) or getattr(b, "bn2", None) or (b.conv2 if isinstance(net, WideResNet) else b.norm2) for b in blocks]
    assert all(not layer.weight.any() for layer in closing)
    # Hardly a channel is without a gradient: one whose shortcut is nowhere above zero.
    assert all((layer.weight.grad.flatten(1) if layer.weight.ndim > 1 else layer.weight.grad[:, None]).any(1).float().mean() > 0.7 for layer in closing)
    others = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) and m not in closing]
    assert all(m.weight.any() for m in others)


def test_silent_branches_need_residual_blocks() -> None:
    with pytest.raises(UserError, match="zero_init_residual: Net has no residual block"):
        draw(Net(), "default", zero_init_residual=True)


def test_rules_leave_what_pretrained_weights_bring_along() -> None:
    """Of a part of the network too, as a detector's backbone is; `default` overwrites nothing."""
    net = Net()
    net.body.covered = frozenset({"0.weight", "0.bias", "1.weight", "1.bias"})  # type: ignore[assignment]  # torch annotates attributes of a module as tensors and modules
    draw(net, "default", rules=[rule("*", weights=bare("default")), rule("fc.*", weights=bare("zeros"), biases=bare("zeros"))])
    assert not net.fc.weight.any() and net.body[0].weight.any()
    new = re.escape("which the model's weights bring along; new is conv.weight, conv.bias, fc.weight, fc.bias")
    for match, option, name in (("body.1.*", "weights", "body.1.weight"), ("*.bias", "biases", "body.0.bias")):
        with pytest.raises(UserError, match=rf"rules\.0: '.*' would overwrite {name}, {new}"):
            draw(net, "default", rules=[rule(match, **{option: bare("zeros")})])
