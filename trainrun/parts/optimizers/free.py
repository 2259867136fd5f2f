"""Schedule-free optimizers: an average of the weights takes the place of a decaying learning rate; they need the package schedulefree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.optimizers.groups import Decay, DecayAll, Eps, restorable, split
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Power = Annotated[float, Field(ge=0, description="Weigh step t by t^r in the average.")]
LrPower = Annotated[float, Field(ge=0, description="Weigh each step by this power of the largest learning rate so far.")]


def _schedulefree(name: str) -> Any:
    try:
        import schedulefree
    except ImportError:
        raise UserError(f"optimizer {name} needs schedulefree: pip install 'trainrun[schedulefree]'") from None
    return schedulefree


def averages(optimizer: Optimizer, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write the averaged weights x into the first of each pair, where the second is a parameter of the optimizer.

    The parameters hold y = (1 - beta) z + beta x, so x = y + (1 - 1 / beta) (z - y); before a first step there is no z, and x = y.
    The optimizer's own train() and eval() turn y into x and back in place, which costs bits at each turn.
    """
    import torch

    beta = {p: group.get("momentum", group.get("betas", [0.0])[0]) for group in optimizer.param_groups for p in group["params"]}
    paired = list(pairs)
    torch._foreach_copy_([x for x, _ in paired], [y for _, y in paired])
    for value in dict.fromkeys(beta.values()):
        moved = [(x, optimizer.state[p]["z"]) for x, p in paired if beta.get(p) == value and "z" in optimizer.state[p]]
        if moved:
            torch._foreach_lerp_([x for x, _ in moved], [z for _, z in moved], 1 - 1 / value)


@part("optimizer", averages=averages)
def schedule_free_sgd(
    model: nn.Module,
    lr: float,
    *,
    momentum: Annotated[float, Field(gt=0, lt=1, description="Where the gradient is taken: 0 at z, 1 at the average.")] = 0.9,
    weight_decay: Decay = 0.0,
    r: Power = 0.0,
    weight_lr_power: LrPower = 2.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """Gradient descent with an average of the weights instead of a decay of the learning rate; the decay is an L2 penalty.

    y = (1 - momentum) z + momentum x;  g = gradient at y + weight_decay y;  z = z - lr g;  x = (1 - c) x + c z, with
    c = step's weight / sum of weights so far, and a weight of t^r (largest lr so far)^weight_lr_power.
    The model holds y while it trains; x is what is evaluated and kept, and its statistics of batch norm are those of y.
    Goes with schedule.decay: constant and without ema, because the average stands for both; a warm-up is well.
    The decay is added to the gradient (L2, not decoupled). It falls on kernels and matrices only; biases and norms are spared
    unless decay_norms_and_biases. The authors take 10 to 50 times the learning rate of plain SGD. Needs schedulefree (UserError).
    Source: Defazio et al. 2024, The Road Less Scheduled; schedulefree.SGDScheduleFree.
    """
    groups = split(model, weight_decay, decay_norms_and_biases)
    optimizer = _schedulefree("schedule_free_sgd").SGDScheduleFree(groups, lr=lr, momentum=momentum, r=r, weight_lr_power=weight_lr_power)
    optimizer.train()
    return restorable(optimizer)


@part("optimizer", averages=averages)
def schedule_free_adamw(
    model: nn.Module,
    lr: float,
    *,
    betas: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]],
        Field(min_length=2, max_length=2, description="Where the gradient is taken (0 at z, 1 at the average); share of the old square."),
    ] = [0.9, 0.999],  # noqa: B006  # frozen by the options model
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.0,
    r: Power = 0.0,
    weight_lr_power: LrPower = 2.0,
    decay_norms_and_biases: DecayAll = False,
) -> Optimizer:
    """AdamW with an average of the weights instead of a decay of the learning rate; the decay is decoupled.

    y = (1 - beta1) z + beta1 x;  v is the bias-corrected average of g^2 at y;  z = z - lr (g / (sqrt(v) + eps) + weight_decay y);
    x = (1 - c) x + c z, with c = step's weight / sum of weights so far, and a weight of t^r (largest lr so far)^weight_lr_power.
    The model holds y while it trains; x is what is evaluated and kept, and its statistics of batch norm are those of y.
    Goes with schedule.decay: constant and without ema, because the average stands for both; a warm-up is well.
    The decay is decoupled: it is not divided by sqrt(v). It falls on kernels and matrices only; biases and norms are spared
    unless decay_norms_and_biases. Needs schedulefree (UserError).
    Source: Defazio et al. 2024, The Road Less Scheduled; schedulefree.AdamWScheduleFree.
    """
    groups = split(model, weight_decay, decay_norms_and_biases)
    optimizer = _schedulefree("schedule_free_adamw").AdamWScheduleFree(
        groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, r=r, weight_lr_power=weight_lr_power
    )
    optimizer.train()
    return restorable(optimizer)
