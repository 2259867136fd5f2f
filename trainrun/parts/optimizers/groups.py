"""Which parameters learn how fast and decay how much: an optimizer's groups, the recipe's rules over them, and what a step writes into them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe.globs import matching
from trainrun.recipe.kinds import ParameterGroup, WeightDecaySchedule
from trainrun.recipe.registry import PartNode, Registry, registry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Decay = Annotated[float, Field(ge=0, description="Weight decay.")]
DecayAll = Annotated[bool, Field(description="Decay the parameters of norms and the biases too.")]
Decoupled = Annotated[bool, Field(description="Shrink the weights directly (as AdamW) instead of adding to the gradient (L2).")]
Betas = Annotated[
    list[Annotated[float, Field(ge=0, lt=1)]],
    Field(min_length=2, max_length=2, description="Share of the old averages of the gradient and of its square kept at each step."),
]
Eps = Annotated[float, Field(gt=0, description="Added to the root of the averaged square.")]


def learning(model: nn.Module) -> Mapping[str, Tensor]:
    """The parameters that learn, by name; UserError where there are none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise UserError("the model has no parameter that learns: name a model with weights, or unfreeze some")
    return found


def split(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """The parameters that learn as groups: those that decay (kernels and matrices), then those that are spared."""
    found = learning(model).values()
    decayed = [p for p in found if decay_all or p.ndim > 1]
    spared = [p for p in found if not decay_all and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fused(groups: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether torch has fused kernels for all parameters; None leaves the choice to torch."""
    every = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every) or None


def restorable(optimizer: Optimizer) -> Optimizer:
    """Make loaded state lie in memory as the state that was saved.

    The fused kernels walk parameter and state side by side as flat memory, so a contiguous buffer from a file beside a
    channels_last kernel would silently update the wrong weights (seen with torch 2.14 on CPU). And torch loads nadam's product
    of momenta onto the parameter's device, where reading it would make every step wait.
    """
    import torch

    def adopt(loaded: Optimizer) -> None:
        for parameter, state in loaded.state.items():
            for key, value in state.items():
                if key == "mu_product":
                    state[key] = value.to("cpu", torch.get_default_dtype())
                elif torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    optimizer.register_load_state_dict_post_hook(adopt)
    return optimizer


def make_optimizer(node: PartNode, model: nn.Module, lr: float, parts: Registry = registry) -> Optimizer:
    """The recipe's optimizer over a model, its groups split by the recipe's rules; freezes what a rule gives lr_scale 0.

    Every group holds `lr_scale`, and `full_weight_decay` where the optimizer has weight decay. Raises UserError for a rule
    without effect.
    """
    rules: Sequence[ParameterGroup] = node.options.get("groups", ())
    settings = _settings(rules, learning(model))
    named = dict(model.named_parameters())
    for name, (scale, _) in settings.items():
        named[name].requires_grad_(scale != 0)
    optimizer = parts.build(node)(model, lr)
    names = {p: name for name, p in named.items()}
    # A second optimizer says for its own parameters whether norms and biases decay.
    inner = {value.name: value for value in node.options.values() if isinstance(value, PartNode)}
    groups, decaying, spared = [], set(), set()
    for group in optimizer.param_groups:
        everything = inner.get(group.get("optimizer", ""), node).options.get("decay_norms_and_biases", False)
        alike: dict[tuple[float, float | None], list[Tensor]] = {}
        decaying |= {names[p] for p in group["params"] if everything or p.ndim > 1}
        spared |= {names[p] for p in group["params"]} - decaying
        for p in group["params"]:
            scale, decay = settings.get(names[p], (1.0, None))
            alike.setdefault((scale, decay if names[p] in decaying else None), []).append(p)
        for (scale, decay), parameters in alike.items():
            one = {**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * scale}
            if decay is not None and "weight_decay" not in group:
                raise UserError(f"{node.name} has no weight decay: leave weight_decay out of optimizer.groups")
            if "weight_decay" in group:
                one["weight_decay"] = one["full_weight_decay"] = group["weight_decay"] if decay is None else decay
            groups.append(one)
    optimizer.param_groups[:] = groups
    for n, rule in enumerate(rules):
        matched = set(matching(rule.match, named, f"optimizer.groups.{n}.match")) if rule.weight_decay else set()
        if matched & spared and not matched & decaying:
            what = f"{rule.match!r} matches norms and biases alone, which do not decay; write decay_norms_and_biases: true, or leave it out"
            raise UserError(f"optimizer.groups.{n}.weight_decay: {what}")
    return optimizer


def _settings(rules: Sequence[ParameterGroup], learning: Mapping[str, Tensor]) -> dict[str, tuple[float, float | None]]:
    """For each parameter that a rule matches its lr_scale, and its weight decay where a rule gives one; the last rule that says so wins."""
    scales: dict[str, tuple[int, float]] = {}
    decays: dict[str, tuple[int, float]] = {}
    for n, rule in enumerate(rules):
        for name in matching(rule.match, learning, f"optimizer.groups.{n}.match"):
            if rule.lr_scale is not None:
                scales[name] = n, rule.lr_scale
            if rule.weight_decay is not None:
                decays[name] = n, rule.weight_decay
    used = {n for n, _ in [*scales.values(), *decays.values()]}
    for n, rule in enumerate(rules):
        if n not in used:
            raise UserError(f"optimizer.groups.{n}: later groups overrule all that {rule.match!r} sets, so it has no effect")
    return {name: (scales.get(name, (0, 1.0))[1], decays.get(name, (0, None))[1]) for name in {**scales, **decays}}


def weight_decay_factor(schedule: WeightDecaySchedule | None, progress: float) -> float:
    """The factor of the weight decay after `progress` (0 to 1) of the training.

    linear: 1 + (end - 1) progress;  cosine: end + (1 - end) (1 + cos(pi progress)) / 2;  1 without a schedule.
    """
    if schedule is None:
        return 1.0
    if schedule.name == "linear":
        return 1 + (schedule.end - 1) * progress
    return schedule.end + (1 - schedule.end) * 0.5 * (1 + math.cos(math.pi * progress))


def write_rates(optimizer: Optimizer, lr: float, decay_factor: float) -> None:
    """Write a step's learning rate and weight decay into the optimizer's groups, each by the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if "full_weight_decay" in group:
            group["weight_decay"] = group["full_weight_decay"] * decay_factor


def summary(optimizer: Optimizer, name: str) -> list[str]:
    """A line for each way in which parameters are treated: how many, at which learning rate and decay."""
    alike: dict[tuple[str, float, float], int] = {}
    for group in optimizer.param_groups:
        key = group.get("optimizer", name), group.get("lr_scale", 1.0), group.get("full_weight_decay", 0.0)
        alike[key] = alike.get(key, 0) + sum(p.numel() for p in group["params"])
    lines = []
    for (who, scale, decay), count in alike.items():
        rate = f", lr x {scale:g}" if scale != 1 else ""
        lines.append(f"{who}: {count:,} parameters{rate}, {f'weight decay {decay:g}' if decay else 'no weight decay'}")
    return lines
