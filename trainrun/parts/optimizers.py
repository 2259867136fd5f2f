"""Optimizers: torch's own, with the decay kept off norms and biases and the fused kernels where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Decay = Annotated[float, Field(ge=0, description="Weight decay.")]
DecayAll = Annotated[bool, Field(description="Decay the parameters of norms and the biases too.")]
Beta = Annotated[float, Field(ge=0, lt=1)]


@part("optimizer")
def sgd(
    model: nn.Module,
    lr: float,
    *,
    momentum: Annotated[float, Field(ge=0, le=1, description="Share of the last update's direction that is kept.")] = 0.9,
    nesterov: Annotated[bool, Field(description="Look ahead along the momentum.")] = False,
    weight_decay: Decay = 0.0,
    dampening: Annotated[float, Field(ge=0, le=1, description="Share of the new gradient that is left out of the momentum.")] = 0.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum; the decay is an L2 penalty.

    g = gradient + weight_decay w;  m = momentum m + (1 - dampening) g (m = g at the first step);  w = w - lr m,
    with nesterov w = w - lr (g + momentum m).
    The decay is added to the gradient (L2, not decoupled), so momentum and the learning rate act on it.
    It falls on kernels and matrices only; parameters with one dimension or none (biases, norms) are spared unless
    decay_norms_and_biases. Nesterov needs momentum and no dampening (UserError).
    Source: Sutskever et al. 2013, On the importance of initialization and momentum; torch.optim.SGD.
    """
    import torch
    from torch.optim import SGD

    if nesterov and (momentum == 0 or dampening != 0):
        raise UserError(f"nesterov needs momentum above 0 and dampening 0, found {momentum} and {dampening}: set optimizer.nesterov=false")
    groups, fused = _groups(model, weight_decay, decay_norms_and_biases)
    # With dampening the first step differs from the others (m = g), so there is no value that the momentum could start from.
    fused = fused if not (momentum and dampening) else None
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, dampening=dampening, fused=fused)
    if fused and momentum:
        # Fused SGD whose first step a loss scaler leaves out goes on with a momentum that was never written (torch 2.14).
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return _keeping_layout(optimizer)


@part("optimizer")
def adamw(
    model: nn.Module,
    lr: float,
    *,
    betas: Annotated[
        list[Beta],
        Field(min_length=2, max_length=2, description="Share of the old averages of the gradient and of its square kept at each step."),
    ] = [0.9, 0.999],  # noqa: B006  # frozen by the options model
    eps: Annotated[float, Field(gt=0, description="Added to the root of the averaged square.")] = 1e-8,
    weight_decay: Decay = 0.01,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam with decoupled weight decay.

    w = w - lr weight_decay w - lr m / (sqrt(v) + eps), where m and v are the bias-corrected moving averages of the gradient
    and of its square.
    The decay is decoupled: it shrinks the weights directly, scaled by the learning rate but not by the gradient's history.
    It falls on kernels and matrices only; parameters with one dimension or none (biases, norms) are spared unless
    decay_norms_and_biases.
    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; torch.optim.AdamW.
    """
    from torch.optim import AdamW

    groups, fused = _groups(model, weight_decay, decay_norms_and_biases)
    return _keeping_layout(AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused))


def _groups(model: nn.Module, weight_decay: float, decay_all: bool) -> tuple[list[dict[str, Any]], bool | None]:
    """The parameters that learn as groups, decayed first, and whether torch has fused kernels for all of them (None: torch's default)."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise UserError("the model has no parameter that learns: name a model with weights, or unfreeze some")
    decayed = [p for p in learning if decay_all or p.ndim > 1]
    spared = [p for p in learning if not decay_all and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in learning)
    return [g for g in groups if g["params"]], fused or None


def _keeping_layout(optimizer: Optimizer) -> Optimizer:
    """Make loaded state take the parameters' memory layout.

    The fused kernels walk parameter and state side by side as flat memory, so a contiguous buffer from a file beside a
    channels_last kernel would silently update the wrong weights (seen with torch 2.14 on CPU).
    """
    import torch

    def adopt(loaded: Optimizer) -> None:
        for parameter, state in loaded.state.items():
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    optimizer.register_load_state_dict_post_hook(adopt)
    return optimizer
