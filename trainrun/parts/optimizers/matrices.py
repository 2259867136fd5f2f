"""Optimizers that see a weight as a matrix rather than as a list of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.optimizers.groups import Decay, learning, restorable
from trainrun.recipe.globs import matching
from trainrun.recipe.kinds import PartOf
from trainrun.recipe.registry import PartNode, part, registry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_MATRICES = (2, 4)  # dimensions of the weights of linear layers and of convolutions over pictures


@part("optimizer")
def muon(
    model: nn.Module,
    lr: float,
    *,
    momentum: Annotated[float, Field(ge=0, lt=1, description="Share of the old average of the gradient kept at each step.")] = 0.95,
    nesterov: Annotated[bool, Field(description="Look ahead along the momentum.")] = True,
    weight_decay: Decay = 0.1,
    ns_steps: Annotated[int, Field(ge=1, lt=100, description="Newton-Schulz iterations.")] = 5,
    adjust_lr: Annotated[
        Literal["match_rms_adamw", "original"],
        Field(description="Scale updates to the size of AdamW's, 0.2 sqrt(max(rows, columns)), or by sqrt(max(1, rows / columns))."),
    ] = "match_rms_adamw",
    exclude: Annotated[list[str], Field(description="Globs of further parameter names that go to the second optimizer.")] = [],  # noqa: B006  # frozen by the options model
    second: Annotated[PartNode, PartOf("optimizer"), Field(description="Optimizer of all other parameters.")] = "adamw",  # type: ignore[assignment]  # the loader turns names into nodes
    second_lr_scale: Annotated[float, Field(gt=0, le=1e6, description="Factor of the learning rate for the second optimizer.")] = 1.0,
) -> Optimizer:
    """Orthogonalize the momentum of each hidden weight matrix; a second optimizer has the rest; the decay is decoupled.

    m = momentum m + (1 - momentum) g;  u = (1 - momentum) g + momentum m with nesterov, else m;  w = w - lr weight_decay w - lr s O(u),
    where O(u) takes the singular values of u to about 1 by `ns_steps` quintic Newton-Schulz iterations in bf16, and s is by adjust_lr.
    Muon has the weights of 2 dimensions, and those of 4 (convolutions) as matrices [out, in x height x width]; columns may stand in any
    order, for it only reorders those of O(u). The last of these weights is taken for the output layer and goes to the second optimizer,
    with everything of other dimensions (biases, norms, class tokens) and what `exclude` names: tables of positions, embeddings.
    With match_rms_adamw one learning rate suits both optimizers; `original` wants about 0.02 and second_lr_scale near 0.05.
    The decay is decoupled (w shrinks by lr weight_decay); the second optimizer has its own. Of several processes each does the whole
    update on the averaged gradient. The iterations in bf16 enlarge its last bits: the same run over another number of processes, or in
    other micro-batches, agrees to about three digits.
    Errors (UserError): no such matrix, a glob that matches nothing.
    Source: Jordan et al. 2024, Muon: An optimizer for hidden layers, whose CIFAR-10 run flattens kernels in this way; Liu et al. 2025,
    Muon is Scalable for LLM Training (match_rms_adamw); torch.optim.Muon.
    """
    from trainrun.parts.optimizers.pair import Pair

    found = learning(model)
    matrices = [name for name, p in model.named_parameters() if p.ndim in _MATRICES][:-1]  # frozen or not, the last one is the output
    left_out = {name for n, pattern in enumerate(exclude) for name in matching(pattern, found, f"optimizer.exclude.{n}")}
    taken = [found[name] for name in matrices if name in found and name not in left_out]
    if not taken:
        raise UserError(
            "optimizer: muon finds no weight matrix or kernel before the output layer"
            + (", besides those that optimizer.exclude names" if matrices else f": use optimizer.name={second.name}")
        )
    other = registry.build(second)(model, lr)
    for group in other.param_groups:
        group["optimizer"], group["lr_scale"] = second.name, second_lr_scale
    group = {
        "params": taken, "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "ns_steps": ns_steps,
        "adjust_lr_fn": adjust_lr, "optimizer": "muon",
    }  # fmt: skip
    return restorable(Pair([group], other))
