"""Optimizers that torch has not and timm keeps; they need `pip install 'trainrun[timm]'`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.optimizers.groups import Betas, Decay, DecayAll, Eps, restorable, split
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def _timm(name: str) -> Any:
    try:
        from timm import optim
    except ImportError:
        raise UserError(f"optimizer {name} needs timm: pip install 'trainrun[timm]'") from None
    return optim


@part("optimizer")
def lamb(
    model: nn.Module,
    lr: float,
    *,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # frozen by the options model
    eps: Eps = 1e-6,
    trust_clip: Annotated[bool, Field(description="Let the trust ratio be 1 at most.")] = False,
    weight_decay: Decay = 0.01,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Adam whose update has, in each weight tensor, the tensor's own length: for very large batches.

    d = m / (sqrt(v) + eps) + weight_decay w, with m and v as in Adam (eps is added after v is corrected);
    w = w - lr d |w| / |d|, with the ratio 1 where a norm is 0. Parameters without decay take d as it is (ratio 1).
    The decay is part of the update before its length is set: neither L2 nor free of the trust ratio.
    It falls on kernels and matrices only; biases and norms are spared unless decay_norms_and_biases.
    The gradient is not clipped here: the recipe's `clip` does that, where the original clips to a norm of 1.
    Needs timm (UserError).
    Source: You et al. 2020, Large Batch Optimization for Deep Learning; timm.optim.Lamb.
    """
    groups = split(model, weight_decay, decay_norms_and_biases)
    optimizer = _timm("lamb").Lamb(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, max_grad_norm=None, trust_clip=trust_clip)
    return restorable(optimizer)


@part("optimizer")
def lion(
    model: nn.Module,
    lr: float,
    *,
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(min_length=2, max_length=2, description="Share of the momentum in the update, and share of it kept for the next step."),
    ] = [0.9, 0.99],  # noqa: B006  # as above
    weight_decay: Decay = 0.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Descend by the sign of the momentum: one buffer, every weight moves by lr; the decay is decoupled.

    w = w - lr weight_decay w - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g.
    The decay is decoupled, as in AdamW. It falls on kernels and matrices only; biases and norms are spared unless
    decay_norms_and_biases. The authors take a third to a tenth of AdamW's learning rate, and as much more decay.
    Needs timm (UserError).
    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms; timm.optim.Lion.
    """
    groups = split(model, weight_decay, decay_norms_and_biases)
    return restorable(_timm("lion").Lion(groups, lr=lr, betas=(betas[0], betas[1])))
