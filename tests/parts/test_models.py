"""Networks written here: parameter counts by closed formulas, blocks against a second implementation, digits learned."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models.resnet import BasicBlock

from trainrun.parts import models  # noqa: F401  # registers
from trainrun.parts.losses import cross_entropy
from trainrun.parts.models.nets.resnet_cifar import Block
from trainrun.parts.optimizers.classic import sgd
from trainrun.recipe.registry import registry


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **options: Any) -> nn.Module:
    part = registry.get("model", name)
    assert part is not None
    valid = part.options.model_validate(options)
    return part.call({key: getattr(valid, key) for key in type(valid).model_fields})(shape, classes)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_cifar_has_the_papers_parameters(depth: int, millions: float) -> None:
    model, n = build("resnet_cifar", depth=depth), (depth - 2) // 6
    convolutions = 9 * (3 * 16 + 2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert count(model) == convolutions + norms + 65 * 10
    assert round(count(model) / 1e6, 2 if millions < 1 else 1) == millions
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


def test_shortcut_b_adds_the_projections() -> None:
    assert count(build("resnet_cifar", shortcut="B")) - count(build("resnet_cifar")) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_shortcut_a_subsamples_and_pads_with_zero_channels() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 32, 2, "A").eval(), torch.randn(2, 16, 7, 9)
    nn.init.zeros_(block.norm2.weight)  # only the shortcut is left
    out = block(x.clone())
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2].relu()) and not out[:, 16:].any()


def test_a_block_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = Block(16, 32, 2, "B")
    theirs = BasicBlock(16, 32, 2, nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32)))
    renamed = {"norm1": "bn1", "norm2": "bn2", "shortcut": "downsample"}
    theirs.load_state_dict({".".join(renamed.get(p, p) for p in key.split(".")): value for key, value in ours.state_dict().items()})
    x = torch.randn(4, 16, 8, 8)
    torch.testing.assert_close(ours(x.clone()), theirs(x.clone()))


@pytest.mark.parametrize(("depth", "width", "millions"), [(40, 1, 0.6), (16, 8, 11.0), (28, 10, 36.5), (40, 4, 8.9)])
def test_wide_resnet_has_the_papers_parameters(depth: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        model = build("wide_resnet", depth=depth, width=width)
    n, total, w_in = (depth - 4) // 6, 9 * 3 * 16, 16
    for w in (16 * width, 32 * width, 64 * width):
        total += 9 * (w_in * w + (2 * n - 1) * w * w) + (w_in * w if w_in != w else 0) + 2 * (w_in + (2 * n - 1) * w)
        w_in = w
    assert count(model) == total + 2 * w_in + (w_in + 1) * 10
    assert round(count(model) / 1e6, 1) == millions


def test_wide_resnet_drops_between_its_convolutions() -> None:
    torch.manual_seed(0)
    model, x = build("wide_resnet", (3, 8, 8), depth=10, width=1, dropout=0.5), torch.randn(2, 3, 8, 8)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 3
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("name", "depth", "near"), [("resnet_cifar", 21, "20 or 26"), ("resnet_cifar", 3, "8"), ("wide_resnet", 29, "28 or 34")]
)
def test_a_wrong_depth_names_the_nearest(name: str, depth: int, near: str) -> None:
    with pytest.raises(ValidationError, match=rf"nearest to {depth}: {near}"):
        build(name, depth=depth)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (4, 17, 5), (3, 3, 3)])
@pytest.mark.parametrize(
    ("name", "options"), [("resnet_cifar", {"depth": 8}), ("wide_resnet", {"depth": 10, "width": 2}), ("tiny_convnet", {})]
)
def test_any_picture_learns_under_bfloat16_and_channels_last(name: str, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = build(name, shape, 7, **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads leave this one out
    x = torch.randn(4, *shape).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    cross_entropy(logits, torch.arange(4)).mean().backward()
    assert logits.shape == (4, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.stride() == p.stride() for p in model.parameters())


def test_state_dict_names_stay() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv.weight", *(f"norm.{n}" for n in norm)]
    for stage in (1, 2, 3):
        for layer in (1, 2):
            names += [f"stage{stage}.0.conv{layer}.weight", *(f"stage{stage}.0.norm{layer}.{n}" for n in norm)]
    assert list(build("resnet_cifar", depth=8).state_dict()) == [*names, "fc.weight", "fc.bias"]
    wide = list(build("wide_resnet", depth=10, width=2).state_dict())
    assert wide[:2] == ["conv.weight", "stage1.0.norm1.weight"] and "stage2.0.shortcut.weight" in wide and wide[-1] == "fc.bias"
    assert list(build("tiny_convnet", norm="none").state_dict()) == [f"{n}.{k}" for n in (0, 3, 6, 9) for k in ("weight", "bias")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 9 * (3 * 24 + 24 * 48 + 48 * 96) + 2 * (24 + 48 + 96) + 97 * 10),
        ({"norm": "group"}, 9 * (3 * 24 + 24 * 48 + 48 * 96) + 2 * (24 + 48 + 96) + 97 * 10),
        ({"norm": "none", "width": 8, "depth": 2, "dropout": 0.2}, 9 * (3 * 8 + 8 * 16) + 8 + 16 + 17 * 10),
    ],
)
def test_tiny_convnet_parameters(options: dict[str, Any], expected: int) -> None:
    assert count(build("tiny_convnet", **options)) == expected


@pytest.mark.parametrize("options", [{}, {"norm": "group"}, {"norm": "none", "dropout": 0.1}], ids=str)
def test_tiny_convnet_learns_digits(options: dict[str, Any]) -> None:
    with np.load(str(resources.files("trainrun") / "data" / "digits.npz")) as digits:
        x = torch.from_numpy(digits["counts"]).float().div(16)[:, None]
        y = torch.from_numpy(digits["labels"]).long()
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1437], order[1437:]
    model = build("tiny_convnet", (1, 8, 8), 10, **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as above
    steps = 15 * (len(train) // 64)
    optimizer = sgd(model, 0.1, weight_decay=5e-4)
    for step in range(steps):
        if step % (len(train) // 64) == 0:
            train = train[torch.randperm(len(train))]
        batch = train[(step % (len(train) // 64)) * 64 :][:64]
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(x[test]).argmax(1) == y[test]).float().mean().item()
    assert accuracy >= 0.97
