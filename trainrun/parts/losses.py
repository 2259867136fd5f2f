"""Losses: each returns one number a sample, so that whoever calls it can weight, select or average them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor


@part("loss")
def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Share of the target spread evenly over all classes.")] = 0.0,
) -> Tensor:
    """Cross-entropy of the softmax against the label, in nats.

    loss_i = -sum_c q_ic log softmax(logits_i)_c, where q_i = (1 - s) onehot(target_i) + s / classes and s is label_smoothing.
    logits [B, classes]; targets [B] as int64 labels, or [B, classes] as probabilities; losses [B].
    Computed and returned in float32 whatever the logits' type, under autocast too.
    Label smoothing: Szegedy et al. 2016, Rethinking the Inception Architecture, section 7.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
