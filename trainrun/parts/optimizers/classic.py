"""Stochastic gradient descent, and the methods that divide it by a running size of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.optimizers.groups import Decay, DecayAll, Eps, fused, restorable, split
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


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
    groups = split(model, weight_decay, decay_norms_and_biases)
    # With dampening the first step differs from the others (m = g), so there is no value that the momentum could start from.
    fast = fused(groups) if not (momentum and dampening) else None
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, dampening=dampening, fused=fast)
    if fast and momentum:
        # Fused SGD whose first step a loss scaler leaves out goes on with a momentum that was never written (torch 2.14).
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return restorable(optimizer)


@part("optimizer")
def rmsprop(
    model: nn.Module,
    lr: float,
    *,
    alpha: Annotated[float, Field(ge=0, lt=1, description="Share of the old average of the squared gradient kept at each step.")] = 0.99,
    eps: Eps = 1e-8,
    momentum: Annotated[float, Field(ge=0, le=1, description="Share of the last update's direction that is kept.")] = 0.0,
    centered: Annotated[bool, Field(description="Divide by the gradient's standard deviation instead of its root mean square.")] = False,
    weight_decay: Decay = 0.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Gradient descent by the gradient over its running root mean square; the decay is an L2 penalty.

    g = gradient + weight_decay w;  v = alpha v + (1 - alpha) g^2;  d = g / (sqrt(v) + eps), with `centered`
    d = g / (sqrt(v - a^2) + eps) where a is the running mean of g;  b = momentum b + d;  w = w - lr b.
    eps stands outside of the root, where TensorFlow has it inside.
    The decay is added to the gradient (L2, not decoupled), so it is divided as the gradient is. It falls on kernels and
    matrices only; biases and norms are spared unless decay_norms_and_biases.
    Source: Tieleman & Hinton 2012, lecture 6.5; Graves 2013, Generating Sequences (centered); torch.optim.RMSprop.
    """
    from torch.optim import RMSprop

    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(RMSprop(groups, lr=lr, alpha=alpha, eps=eps, momentum=momentum, centered=centered))


@part("optimizer")
def adagrad(
    model: nn.Module,
    lr: float,
    *,
    lr_decay: Annotated[float, Field(ge=0, description="At step t (from 0) the learning rate is divided by 1 + t lr_decay.")] = 0.0,
    initial_accumulator_value: Annotated[float, Field(ge=0, description="Where the sum of squares begins.")] = 0.0,
    eps: Eps = 1e-10,
    weight_decay: Decay = 0.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Gradient descent by the gradient over the root of the sum of all its squares; the decay is an L2 penalty.

    g = gradient + weight_decay w;  s = s + g^2 (from initial_accumulator_value);  w = w - lr g / (sqrt(s) + eps), where lr is
    also divided by 1 + t lr_decay at step t = 0, 1, ...
    The decay is added to the gradient (L2, not decoupled). It falls on kernels and matrices only; biases and norms are spared
    unless decay_norms_and_biases.
    Source: Duchi et al. 2011, Adaptive Subgradient Methods; torch.optim.Adagrad.
    """
    from torch.optim import Adagrad

    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(Adagrad(groups, lr=lr, lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value, eps=eps))
