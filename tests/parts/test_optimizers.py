"""Optimizers against hand loops, torch's plain implementations and the law that a resumed run is the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainrun.errors import UserError
from trainrun.parts.optimizers import adamw, sgd


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).to(dtype)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads leave this one out


def backward(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=next(net.parameters()).dtype)
    net.zero_grad()
    net(x).square().mean().backward()


def hand_sgd(p: torch.Tensor, g: torch.Tensor, s: dict[str, Any], t: int, lr: float, wd: float, nesterov: bool, dampening: float) -> None:
    g = g + wd * p
    s["m"] = g.clone() if t == 1 else 0.8 * s["m"] + (1 - dampening) * g
    p -= lr * (g + 0.8 * s["m"] if nesterov else s["m"])


def hand_adamw(p: torch.Tensor, g: torch.Tensor, s: dict[str, Any], t: int, lr: float, wd: float) -> None:
    s["m"] = 0.8 * s.get("m", 0.0) + 0.2 * g
    s["v"] = 0.95 * s.get("v", 0.0) + 0.05 * g * g
    p -= lr * wd * p
    p -= lr * (s["m"] / (1 - 0.8**t)) / ((s["v"] / (1 - 0.95**t)).sqrt() + 1e-8)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize(
    ("make", "hand"),
    [
        (lambda m, a: sgd(m, 0.1, momentum=0.8, weight_decay=0.3, decay_norms_and_biases=a), lambda *x: hand_sgd(*x, False, 0.0)),
        (
            lambda m, a: sgd(m, 0.1, momentum=0.8, nesterov=True, weight_decay=0.3, decay_norms_and_biases=a),
            lambda *x: hand_sgd(*x, True, 0.0),
        ),
        (
            lambda m, a: sgd(m, 0.1, momentum=0.8, dampening=0.5, weight_decay=0.3, decay_norms_and_biases=a),
            lambda *x: hand_sgd(*x, False, 0.5),
        ),
        (lambda m, a: adamw(m, 0.1, betas=[0.8, 0.95], weight_decay=0.3, decay_norms_and_biases=a), hand_adamw),
    ],
    ids=["sgd", "nesterov", "dampening", "adamw"],
)
def test_updates_are_those_of_a_hand_loop(make: Callable[..., Any], hand: Callable[..., None], decay_all: bool) -> None:
    net, mirror = network(), network()
    optimizer, states = make(net, decay_all), [{} for _ in mirror.parameters()]
    for t in range(1, 6):
        backward(net, t)
        optimizer.step()
        backward(mirror, t)
        with torch.no_grad():
            for p, state in zip(mirror.parameters(), states, strict=True):
                hand(p, p.grad, state, t, 0.1, 0.3 if decay_all or p.ndim > 1 else 0.0)
    for ours, theirs in zip(net.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_sgd_is_torchs_plain_one() -> None:
    net, mirror = network(torch.float32), network(torch.float32)
    ours = sgd(net, 0.05, nesterov=True, weight_decay=0.01, decay_norms_and_biases=True)
    theirs = torch.optim.SGD(mirror.parameters(), 0.05, 0.9, nesterov=True, weight_decay=0.01, foreach=False, fused=False)
    for t in range(4):
        for n, o in ((net, ours), (mirror, theirs)):
            backward(n, t)
            o.step()
    for a, b in zip(net.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_kernels_and_matrices_decay_and_the_rest_does_not() -> None:
    groups = sgd(network(), 0.1, weight_decay=0.2).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.2, [4, 2]), (0.0, [1, 1, 1])]
    assert [group["weight_decay"] for group in adamw(network(), 0.1, decay_norms_and_biases=True).param_groups] == [0.01]


def test_frozen_parameters_are_left_out_and_a_frozen_model_is_refused() -> None:
    net = network()
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in sgd(net, 0.1).param_groups) == 4
    with pytest.raises(UserError, match="no parameter that learns"):
        adamw(net.requires_grad_(False), 0.1)


@pytest.mark.parametrize("options", [{"nesterov": True, "momentum": 0.0}, {"nesterov": True, "dampening": 0.1}])
def test_nesterov_without_momentum_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="nesterov=false"):
        sgd(network(), 0.1, **options)


def test_fused_kernels_are_used_where_there_are_any() -> None:
    assert all(group["fused"] for group in sgd(network(), 0.1).param_groups)
    assert not any(group["fused"] for group in adamw(network().to("meta"), 0.1).param_groups)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_state_loaded_in_another_memory_layout_gives_the_uninterrupted_run(make: Callable[..., Any]) -> None:
    uninterrupted, first = network(torch.float32), network(torch.float32)
    straight, before = make(uninterrupted, 0.1), make(first, 0.1)
    for t in range(3):
        for n, o in ((uninterrupted, straight), (first, before)):
            backward(n, t)
            o.step()
    saved = before.state_dict()
    for state in saved["state"].values():
        state.update({k: v.contiguous() for k, v in state.items() if torch.is_tensor(v)})
    after = make(first, 0.1)
    after.load_state_dict(saved)
    for t in range(3, 6):
        for n, o in ((uninterrupted, straight), (first, after)):
            backward(n, t)
            o.step()
    for a, b in zip(uninterrupted.parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_first_step_left_out_by_the_loss_scaler_leaves_no_trace(nesterov: bool) -> None:
    ends = []
    for left_out in (True, False):
        net = network(torch.float32)
        optimizer, scaler = sgd(net, 0.1, momentum=0.8, nesterov=nesterov), torch.amp.GradScaler("cpu", init_scale=1.0)
        for step in range(4):
            backward(net, step)
            if step == 0 and left_out:
                next(net.parameters()).grad.fill_(torch.inf)
            if step or left_out:
                scaler.scale(torch.zeros(()))  # the scaler counts a step from here
                scaler.step(optimizer)
                scaler.update(1.0)
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
