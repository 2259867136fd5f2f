"""RoI heads that train on the hardest boxes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import nms


class HardRoIHeads(RoIHeads):
    """torchvision's RoI heads, with the same modules under the same names, and the B hardest boxes in place of the sampler's.

    `tally`: boxes scored and boxes kept at the last training step, float64 [2] on the device.
    """

    def __init__(self, plain: RoIHeads, rois: int, nms_iou: float, over_batch: bool) -> None:
        foreground = plain.proposal_matcher.high_threshold
        super().__init__(
            plain.box_roi_pool, plain.box_head, plain.box_predictor, foreground, foreground,
            plain.fg_bg_sampler.batch_size_per_image, plain.fg_bg_sampler.positive_fraction,
            plain.box_coder.weights, plain.score_thresh, plain.nms_thresh, plain.detections_per_img,
        )  # fmt: skip
        # Nothing between the two thresholds: what is no foreground is background, however little it overlaps.
        self.proposal_matcher = Matcher(foreground, foreground, allow_low_quality_matches=False)
        self.box_coder = plain.box_coder
        self.rois, self.nms_iou, self.over_batch = rois, nms_iou, over_batch
        self.tally = torch.zeros(2, dtype=torch.float64)

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """Every box of each picture."""
        return [torch.arange(len(of_picture), device=of_picture.device) for of_picture in labels]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation; in training the two losses of the boxes that were chosen."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        boxes, _, labels, goals = self.select_training_samples(proposals, targets)
        counts = [len(of_picture) for of_picture in boxes]
        with torch.no_grad(), as_in_evaluation(self.box_head, self.box_predictor):
            of_class, of_box = self.losses(features, boxes, image_shapes, labels, goals)
        chosen = self.hardest(boxes, (of_class + of_box).split(counts))
        boxes, labels, goals = ([each[rows] for each, rows in zip(every, chosen, strict=True)] for every in (boxes, labels, goals))
        of_class, of_box = self.losses(features, boxes, image_shapes, labels, goals)
        kept = len(of_class)
        self.tally = torch.tensor([sum(counts), kept], dtype=torch.float64).to(of_class.device, non_blocking=True)
        return [], {"loss_classifier": of_class.sum() / max(kept, 1), "loss_box_reg": of_box.sum() / max(kept, 1)}

    def losses(
        self,
        features: Mapping[str, Tensor],
        boxes: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        labels: Sequence[Tensor],
        goals: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Of each box the cross-entropy of its class, and the smooth L1 of the four numbers that correct a foreground box: [R] both."""
        logits, corrections = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        label, goal = torch.cat(list(labels)), torch.cat(list(goals))
        # At least float32, under autocast too.
        logits, corrections, goal = (values.to(torch.promote_types(values.dtype, torch.float32)) for values in (logits, corrections, goal))
        of_class = cross_entropy(logits, label, reduction="none")
        foreground = (label > 0).nonzero().squeeze(1)
        found = corrections.unflatten(1, (-1, 4))[foreground, label[foreground]]
        # 1/9 as in torchvision.
        of_foreground = smooth_l1_loss(found, goal[foreground].to(found.dtype), beta=1 / 9, reduction="none").sum(1)
        return of_class, torch.zeros_like(of_class).index_put((foreground,), of_foreground.to(of_class.dtype))

    def hardest(self, boxes: Sequence[Tensor], losses: Sequence[Tensor]) -> list[Tensor]:
        """For each picture the rows of the boxes [R, 4] that are chosen by their losses [R], the hardest first."""
        orders = []
        for of_picture, loss in zip(boxes, losses, strict=True):
            order = loss.argsort(descending=True, stable=True)
            if self.nms_iou < 1:
                # Places stand for losses, so that equal losses need no rule of the kernel's.
                places = torch.arange(len(order), 0, -1, device=loss.device, dtype=torch.float32)
                order = order[nms(of_picture[order].float(), places, self.nms_iou)]
            orders.append(order)
        if not self.over_batch:
            return [order[: self.rois] for order in orders]
        left = torch.cat([loss[order] for loss, order in zip(losses, orders, strict=True)])
        among = torch.zeros(len(left), dtype=torch.bool, device=left.device)
        among[left.argsort(descending=True, stable=True)[: self.rois * len(orders)]] = True
        return [order[hard] for order, hard in zip(orders, among.split([len(order) for order in orders]), strict=True)]


@contextlib.contextmanager
def as_in_evaluation(*parts: nn.Module) -> Iterator[None]:
    """The parts without dropout, and with running statistics that are used and not changed."""
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
