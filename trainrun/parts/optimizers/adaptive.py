"""The Adam family: moving averages of the gradient and of its square."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.parts.optimizers.groups import Betas, Decay, DecayAll, Decoupled, Eps, fused, restorable, split
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Amsgrad = Annotated[bool, Field(description="Divide by the largest averaged square so far.")]


@part("optimizer")
def adam(
    model: nn.Module,
    lr: float,
    *,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # frozen by the options model
    eps: Eps = 1e-8,
    amsgrad: Amsgrad = False,
    weight_decay: Decay = 0.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam; the decay is an L2 penalty.

    g = gradient + weight_decay w;  w = w - lr m / (sqrt(v) + eps), where m and v are the bias-corrected moving averages of g and
    g^2; amsgrad takes the largest v so far, before the correction.
    The decay is added to the gradient (L2, not decoupled), so weights with a large gradient decay less; adamw decouples it.
    It falls on kernels and matrices only; biases and norms are spared unless decay_norms_and_biases.
    Source: Kingma & Ba 2015, Adam; Reddi et al. 2018, On the Convergence of Adam and Beyond (amsgrad); torch.optim.Adam.
    """
    from torch.optim import Adam

    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, amsgrad=amsgrad, fused=fused(groups)))


@part("optimizer")
def adamw(
    model: nn.Module,
    lr: float,
    *,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # as above
    eps: Eps = 1e-8,
    amsgrad: Amsgrad = False,
    weight_decay: Decay = 0.01,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam with decoupled weight decay.

    w = w - lr weight_decay w - lr m / (sqrt(v) + eps), where m and v are the bias-corrected moving averages of the gradient
    and of its square; amsgrad takes the largest v so far, before the correction.
    The decay is decoupled: it shrinks the weights directly, scaled by the learning rate but not by the gradient's history.
    It falls on kernels and matrices only; parameters with one dimension or none (biases, norms) are spared unless
    decay_norms_and_biases.
    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; torch.optim.AdamW.
    """
    from torch.optim import AdamW

    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, amsgrad=amsgrad, fused=fused(groups)))


@part("optimizer")
def nadam(
    model: nn.Module,
    lr: float,
    *,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # as above
    eps: Eps = 1e-8,
    momentum_decay: Annotated[float, Field(ge=0, description="How fast the momentum approaches betas[0].")] = 0.004,
    weight_decay: Decay = 0.0,
    decoupled_weight_decay: Decoupled = False,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam with Nesterov momentum; the decay is an L2 penalty unless decoupled.

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), with t from 1;  m and v as in Adam, and v corrected for its bias;
    w = w - lr [(1 - mu_t) g / (1 - prod mu_1..t) + mu_(t+1) m / (1 - prod mu_1..t+1)] / (sqrt(v) + eps).
    The decay is added to the gradient (L2); with decoupled_weight_decay it is w = w - lr weight_decay w first, as in AdamW.
    It falls on kernels and matrices only; biases and norms are spared unless decay_norms_and_biases.
    Source: Dozat 2016, Incorporating Nesterov Momentum into Adam; torch.optim.NAdam.
    """
    from torch.optim import NAdam

    groups = split(model, weight_decay, decay_norms_and_biases)
    b1, b2 = betas
    return restorable(
        NAdam(groups, lr=lr, betas=(b1, b2), eps=eps, momentum_decay=momentum_decay, decoupled_weight_decay=decoupled_weight_decay)
    )


@part("optimizer")
def radam(
    model: nn.Module,
    lr: float,
    *,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # as above
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.0,
    decoupled_weight_decay: Decoupled = False,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam that first waits until its averages can be trusted; the decay is an L2 penalty unless decoupled.

    rho_max = 2 / (1 - beta2) - 1;  rho_t = rho_max - 2 t beta2^t / (1 - beta2^t), with t from 1;  m and v are bias-corrected.
    While rho_t <= 5: w = w - lr m. Then w = w - lr m r / (sqrt(v) + eps), with
    r = sqrt((rho_t - 4) (rho_t - 2) rho_max / ((rho_max - 4) (rho_max - 2) rho_t)) (eps is added before v is corrected).
    The decay is added to the gradient (L2); with decoupled_weight_decay it is w = w - lr weight_decay w first, as in AdamW.
    It falls on kernels and matrices only; biases and norms are spared unless decay_norms_and_biases.
    Source: Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond; torch.optim.RAdam.
    """
    from torch.optim import RAdam

    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(RAdam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, decoupled_weight_decay=decoupled_weight_decay))
