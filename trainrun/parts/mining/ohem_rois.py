"""Online hard example mining among the boxes of a two-stage detector: `ohem_rois`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.errors import UserError
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn


@part("mining", task="detection")
def ohem_rois(
    model: nn.Module,
    *,
    rois: Annotated[int, Field(ge=1, le=100_000, description="Boxes of each picture that are trained on, B.")] = 128,
    nms_iou: Annotated[
        float, Field(gt=0, le=1, description="Of boxes that overlap by more than this, only the hardest stays; 1 keeps all of them.")
    ] = 0.7,
    over: Annotated[
        Literal["picture", "batch"],
        Field(description="Choose the hardest of each picture, or as many on average, from wherever they are in the micro-batch."),
    ] = "picture",
) -> None:
    """Train a Faster R-CNN's RoI heads on the boxes with the largest loss, in place of a random share of foreground and background.

    In each training step the heads, without gradients, score every proposal of a picture and its true boxes: a box is of the class
    that it overlaps by 0.5 or more, otherwise background, and its loss is that of the class plus that of the box. Non-maximum
    suppression by loss leaves one of those that lie on one another, and the B hardest go through the heads once more, with
    gradients. There is no share of foreground and no lower bound for background. Equal losses stay in the order of the proposals.
    The losses are those of torchvision: sums over the boxes that were chosen, divided by their number. The network scores as in
    evaluation, so dropout and running statistics are not touched. The paper has 2 pictures a batch and 64 boxes of each.
    Replaces `model.roi_heads` by one of the same parameters, whose `tally` is the number of boxes scored and kept at the last step.
    Errors (UserError): a model without such heads, or whose heads find masks or keypoints.
    Source: Shrivastava, Gupta & Girshick 2016, Training Region-based Object Detectors with Online Hard Example Mining, sections 4 and 5.
    """
    from torchvision.models.detection.roi_heads import RoIHeads

    from trainrun.parts.mining.roi_heads import HardRoIHeads

    plain = getattr(model, "roi_heads", None)
    if not isinstance(plain, RoIHeads) or plain.has_mask() or plain.has_keypoint():
        raise UserError(
            f"ohem_rois chooses the boxes that a Faster R-CNN's second stage trains on, and {type(model).__name__} has no such stage: "
            "set mining=null, or model to tiny_fasterrcnn or a fasterrcnn_*"
        )
    model.roi_heads = HardRoIHeads(plain, rois, nms_iou, over == "batch")
