"""Every optimizer of the registry: the formula, a save in the middle, the loss scaler, who decays, and that it learns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import formulas
import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import trainrun.parts  # noqa: F401  # registers the parts
from trainrun.engine.checkpoint import pack, to_host, unpack
from trainrun.errors import UserError
from trainrun.parts.optimizers import make_optimizer
from trainrun.parts.optimizers.free import averages
from trainrun.recipe.registry import PartNode, registry

NAMES = registry.names("optimizer")
PACKAGES = {"lamb": "timm", "lion": "timm", "schedule_free_sgd": "schedulefree", "schedule_free_adamw": "schedulefree"}
# A learning rate with which the tiny problem below is learnt in 20 steps.
RATES = {"sgd": 0.1, "rmsprop": 0.01, "adagrad": 0.05, "radam": 0.1, "muon": 0.05, "lamb": 0.03, "lion": 0.005, "schedule_free_sgd": 0.5}


def node(name: str, /, needed: bool = True, **options: Any) -> PartNode:
    """The optimizer as a resolved recipe names it; skips the test where its package is `needed` and missing."""
    if name in PACKAGES and needed:
        pytest.importorskip(PACKAGES[name])
    part = registry.get("optimizer", name)
    assert part
    inner = {key: node(field.default) for key, field in part.options.model_fields.items() if field.default in NAMES}
    valid = part.options.model_validate(inner | options)
    return PartNode("optimizer", name, {key: getattr(valid, key) for key in type(valid).model_fields})


def network(dtype: torch.dtype = torch.float32, channels_last: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    ).to(dtype)
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]  # torch's overloads leave this one out


def loss(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step), dtype=next(net.parameters()).dtype)
    return nn.functional.cross_entropy(net(x), torch.arange(6) % 3)


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, lr: Callable[[int], float]) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = lr(step) * group["lr_scale"]
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()


def falling(rate: float) -> Callable[[int], float]:
    return lambda step: rate / (1 + step)


# (name, options, the formula with those options). Betas are small, so that every term weighs within five steps.
B: dict[str, Any] = {"betas": [0.7, 0.9], "weight_decay": 0.3}
FORMULAS: dict[str, tuple[str, dict[str, Any], formulas.Update]] = {
    "sgd": ("sgd", {"momentum": 0.8, "weight_decay": 0.3}, formulas.sgd(0.8)),
    "sgd plain": ("sgd", {"momentum": 0.0, "weight_decay": 0.3}, formulas.sgd(0.0)),
    "sgd nesterov": ("sgd", {"momentum": 0.8, "weight_decay": 0.3, "nesterov": True}, formulas.sgd(0.8, True)),
    "sgd dampening": ("sgd", {"momentum": 0.8, "weight_decay": 0.3, "dampening": 0.5}, formulas.sgd(0.8, False, 0.5)),
    "rmsprop": ("rmsprop", {"alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3}, formulas.rmsprop(0.8, 1e-3, 0, False)),
    "rmsprop centered": (
        "rmsprop",
        {"alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3, "momentum": 0.7, "centered": True},
        formulas.rmsprop(0.8, 1e-3, 0.7, True),
    ),
    "adagrad": (
        "adagrad",
        {"lr_decay": 0.5, "initial_accumulator_value": 0.01, "eps": 1e-3, "weight_decay": 0.3},
        formulas.adagrad(0.5, 0.01, 1e-3),
    ),
    "adam": ("adam", B, formulas.adam(0.7, 0.9, 1e-8, False)),
    "adam amsgrad": ("adam", {**B, "amsgrad": True}, formulas.adam(0.7, 0.9, 1e-8, False, True)),
    "adamw": ("adamw", {**B, "eps": 1e-3}, formulas.adam(0.7, 0.9, 1e-3, True)),
    "adamw amsgrad": ("adamw", {**B, "amsgrad": True}, formulas.adam(0.7, 0.9, 1e-8, True, True)),
    "nadam": ("nadam", {**B, "momentum_decay": 0.1}, formulas.nadam(0.7, 0.9, 1e-8, 0.1, False)),
    "nadam decoupled": ("nadam", {**B, "decoupled_weight_decay": True}, formulas.nadam(0.7, 0.9, 1e-8, 0.004, True)),
    "radam": ("radam", B, formulas.radam(0.7, 0.9, 1e-8, False)),
    "radam decoupled": ("radam", {**B, "decoupled_weight_decay": True}, formulas.radam(0.7, 0.9, 1e-8, True)),
    "lamb": ("lamb", B, formulas.lamb(0.7, 0.9, 1e-6)),
    "lion": ("lion", B, formulas.lion(0.7, 0.9)),
    "schedule_free_sgd": (
        "schedule_free_sgd",
        {"momentum": 0.8, "weight_decay": 0.3, "r": 1.0},
        formulas.schedule_free(0.8, None, 0, 1.0, 2.0),
    ),
    "schedule_free_adamw": (
        "schedule_free_adamw",
        {**B, "weight_lr_power": 1.0},
        formulas.schedule_free(0.7, 0.9, 1e-8, 0.0, 1.0),
    ),
}


def by_hand(net: nn.Module, update: Callable[[str, torch.Tensor], formulas.Update], decay: float, rate: float) -> dict[str, dict[str, Any]]:
    """Five steps on the net's own gradients with weights that NumPy computes; the states by parameter."""
    states: dict[str, dict[str, Any]] = {name: {} for name, _ in net.named_parameters()}
    for step in range(5):
        net.zero_grad()
        loss(net, step).backward()
        for name, p in net.named_parameters():
            w = p.detach().numpy().astype(np.float64)
            new = update(name, p)(
                w, p.grad.numpy().astype(np.float64), states[name], step + 1, falling(rate)(step), decay if p.ndim > 1 else 0
            )
            p.data.copy_(torch.from_numpy(new))
    return states


@pytest.mark.parametrize("row", FORMULAS)
def test_five_steps_are_those_of_the_formula(row: str) -> None:
    """In float64 with a learning rate that changes: equal but for roundings."""
    name, options, update = FORMULAS[row]
    net, mirror = network(torch.float64), network(torch.float64)
    optimizer = make_optimizer(node(name, **options), net, 0.1)
    descend(net, optimizer, range(5), falling(0.1))
    states = by_hand(mirror, lambda name, p: update, options["weight_decay"], 0.1)
    for (name, ours), theirs in zip(net.named_parameters(), mirror.parameters(), strict=True):
        # Some keep step counts and products of momenta in float32.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    if "schedule_free" in row:
        kept = [torch.zeros_like(p) for p in net.parameters()]
        averages(optimizer, zip(kept, net.parameters(), strict=True))
        for x, state in zip(kept, states.values(), strict=True):
            np.testing.assert_allclose(x.detach().numpy(), state["x"], rtol=1e-9, atol=1e-12)


def test_every_optimizer_has_its_formula() -> None:
    assert {name for name, _, _ in FORMULAS.values()} | {"muon"} == set(NAMES)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("nesterov", "adjust"), [(True, "match_rms_adamw"), (False, "original")])
def test_muon_turns_the_singular_values_of_the_momentum_by_its_quintic(nesterov: bool, adjust: str, channels_last: bool) -> None:
    """Against an SVD, within what bf16 leaves (8 bits, five iterations); all but the hidden matrices go by AdamW, at half the rate."""
    options = {"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.3, "ns_steps": 3, "adjust_lr": adjust, "second_lr_scale": 0.5}
    net, mirror = network(torch.float64, channels_last), network(torch.float64, channels_last)
    optimizer = make_optimizer(node("muon", **options, second=node("adamw", **B)), net, 0.1)
    descend(net, optimizer, range(5), falling(0.1))
    first, second = formulas.muon(0.8, nesterov, 3, adjust == "match_rms_adamw"), formulas.adam(0.7, 0.9, 1e-8, True)

    def half(w: Any, g: Any, s: Any, t: int, lr: float, decay: float) -> Any:
        return second(w, g, s, t, lr / 2, decay)

    start = dict(network(torch.float64).named_parameters())
    by_hand(mirror, lambda name, p: first if name in ("0.weight", "4.weight") else half, 0.3, 0.1)
    for (name, ours), theirs in zip(net.named_parameters(), mirror.parameters(), strict=True):
        off, moved = (ours - theirs).norm().item(), (theirs - start[name]).norm().item()
        assert off < 0.03 * moved, f"{name}: {off} of {moved}"


def test_muon_gives_its_second_what_is_excluded() -> None:
    net = network()
    optimizer = make_optimizer(node("muon", exclude=["0.*"], second=node("sgd")), net, 0.1)
    names = {p: name for name, p in net.named_parameters()}
    taken = {names[p]: group["optimizer"] for group in optimizer.param_groups for p in group["params"]}
    assert taken == {n: "muon" if n == "4.weight" else "sgd" for n in names.values()}
    with pytest.raises(UserError, match=r"optimizer.exclude.0: '4.wieght' matches no parameter .* did you mean 4.weight"):
        make_optimizer(node("muon", exclude=["4.wieght"]), net, 0.1)
    with pytest.raises(UserError, match="muon finds no weight matrix .* use optimizer.name=adamw"):
        make_optimizer(node("muon"), nn.Linear(3, 2), 0.1)


def test_muon_takes_the_last_matrix_for_the_output_layer_where_that_is_frozen_too() -> None:
    net = network()
    optimizer = make_optimizer(node("muon", groups=[{"match": "6.*", "lr_scale": 0}]), net, 0.1)
    (taken,) = [group["params"] for group in optimizer.param_groups if group["optimizer"] == "muon"]
    assert [id(p) for p in taken] == [id(net[0].weight), id(net[4].weight)]


def saved_and_loaded(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer's state by way of a checkpoint's bytes: JSON and safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    values = json.loads(json.dumps(pack(optimizer.state_dict(), tensors, "optimizer"), allow_nan=False))
    return unpack(values, load(save(to_host(tensors))))


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("sgd", {"nesterov": True}),
    ("sgd", {"dampening": 0.5}),
    ("adam", {"amsgrad": True}),
    ("adamw", {"amsgrad": True}),
    ("rmsprop", {"momentum": 0.9, "centered": True}),
    ("nadam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("muon", {"second": "sgd"}),
    ("muon", {"second": "adagrad"}),
    ("muon", {"second": "lamb"}),
]


def made(name: str, options: dict[str, Any], net: nn.Module, **more: Any) -> torch.optim.Optimizer:
    inner = {"second": node(options["second"])} if "second" in options else {}
    return make_optimizer(node(name, **{**options, **inner, **more}), net, 0.01)


@pytest.mark.parametrize(("dtype", "channels_last"), [(torch.float32, False), (torch.float32, True), (torch.float64, True)])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)) or "plain")
@pytest.mark.parametrize("at", [0, 3])
def test_saved_at_a_step_and_loaded_is_bitwise_the_uninterrupted_run(
    name: str, options: dict[str, Any], dtype: torch.dtype, channels_last: bool, at: int
) -> None:
    rules = [{"match": "4.*", "lr_scale": 3.0}, {"match": "*.weight", "weight_decay": 0.2}]
    net = network(dtype, channels_last)
    optimizer = made(name, options, net, groups=rules)
    descend(net, optimizer, range(at), falling(0.01))
    saved, weights = saved_and_loaded(optimizer), {n: t.clone() for n, t in net.state_dict().items()}
    descend(net, optimizer, range(at, 8), falling(0.01))

    other = network(dtype, channels_last)
    other.load_state_dict(weights)
    resumed = made(name, options, other, groups=rules)
    resumed.load_state_dict(saved)
    descend(other, resumed, range(at, 8), falling(0.01))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(next(net.parameters()), weights["0.weight"])
    flat = [{k: v for k, v in group.items() if k != "params"} for group in json.loads(json.dumps(saved["param_groups"], default=str))]
    assert flat and all(group["lr_scale"] in (1.0, 3.0) for group in flat)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)) or "plain")
def test_a_first_step_left_out_by_the_loss_scaler_leaves_no_trace(name: str, options: dict[str, Any]) -> None:
    """And gradients that come scaled by 1,024 give the same weights: powers of two cost no bit."""
    ends = []
    for scale in (0.0, 1.0, 1024.0):
        net = network()
        optimizer = made(name, options, net)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0)
        for step in range(4):
            if step == 0 and scale == 0:
                continue
            optimizer.zero_grad()
            scaler.scale(loss(net.eval(), step)).backward()
            if step == 0:
                next(net.parameters()).grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update(scale or 1.0)
        ends.append([p.detach().clone() for p in net.parameters()])
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], end, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_matrices_decay_and_norms_and_biases_only_where_asked(name: str) -> None:
    """On gradients that do not depend on the weights, so that a parameter moves otherwise only by its own decay."""

    def after(**options: Any) -> dict[str, torch.Tensor]:
        net = network()
        optimizer = make_optimizer(node(name, **options), net, 0.1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(memory_format=torch.preserve_format)
            optimizer.step()
        return dict(net.named_parameters())

    def moved(**options: Any) -> set[str]:
        other = {"second": node("sgd")} if name == "muon" else {}
        plain, decayed = after(weight_decay=0.0, **other), after(weight_decay=0.5, **other, **options)
        return {n for n, p in plain.items() if not torch.equal(p, decayed[n])}

    assert moved() == ({"0.weight", "4.weight"} if name == "muon" else {"0.weight", "4.weight", "6.weight"})
    if name != "muon":
        assert moved(decay_norms_and_biases=True) == set(dict(network().named_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_learn_six_pictures(name: str) -> None:
    net = network()
    optimizer = make_optimizer(node(name), net, 0.1)
    rate = RATES.get(name, 0.02)

    def descent() -> Iterator[float]:
        for _ in range(21):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            optimizer.zero_grad()
            value = loss(net, 0)
            value.backward()
            optimizer.step()
            yield value.item()

    first, *_, last = descent()
    assert last < first / 2


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_line_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (PACKAGES[name], f"{PACKAGES[name]}.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{name} needs {PACKAGES[name]}: pip install 'trainrun\[{PACKAGES[name]}\]'"):
        make_optimizer(node(name, needed=False), network(), 0.1)
