"""Detection: pictures with boxes, of any size, and a network that finds them. What differs from classification, for the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainrun.draw import Draw, draws
from trainrun.engine.feed import Batch
from trainrun.engine.inputs import Inputs
from trainrun.engine.steps import Geometric, Photometric
from trainrun.parts.augmentations.boxes import follow, visible
from trainrun.parts.augmentations.resample import transform
from trainrun.parts.datasets.splits import Boxes
from trainrun.parts.metrics import mean_average_precision
from trainrun.parts.mining.roi_heads import HardRoIHeads
from trainrun.world import World

# Of a box's area, so much must be left in the picture after an augmentation for it to be trained on.
LEAST_VISIBLE = 0.25

Target = dict[str, torch.Tensor]


class BoxedInputs(Inputs):
    """Augments pictures of any size, each with its boxes; in evaluation a picture is whole, and only its levels are scaled.

    A sample's numbers come from (seed, epoch, sample id), as they do for a batch of equal pictures.
    """

    @classmethod
    def of(cls, inputs: Inputs) -> BoxedInputs:
        """The same augmentations for pictures with boxes."""
        evaluation = [step for step in inputs.evaluation if isinstance(step, Photometric)]
        boxed = cls(inputs.training, evaluation, inputs.seed, "contiguous")
        boxed.layout = inputs.layout
        return boxed

    def __call__(self, batch: Batch, training: bool) -> tuple[Any, Any]:
        """Pictures, a list of float32 [C, height, width], and of each the boxes [n, 4], labels [n] from 1 and ignored [n]; in training those
        that are ignored are left out.
        """
        assert batch.boxes is not None
        images, targets = [], []
        for n, (image, boxes) in enumerate(zip(batch.images, batch.boxes, strict=True)):
            visits = None if batch.visits is None else batch.visits[n : n + 1]
            target = target_of(boxes)
            if training:
                target = _only(target, ~target["ignored"])
            seen, target = self.boxed(image, target, draws(self.seed, batch.epoch, batch.ids[n : n + 1], visits), training)
            images.append(seen)
            targets.append({name: value.to(image.device, non_blocking=True) for name, value in target.items()})
        return images, targets

    def boxed(self, image: torch.Tensor, target: Target, draw: Draw, training: bool) -> tuple[torch.Tensor, Target]:
        """One picture, uint8 [C, H, W] on any device to float32 there, with what is left of its boxes.

        target, draw: on the CPU, where it is decided which boxes are left, so that nobody waits for the device.
        """
        images, there = image[None], draw.to(image.device)
        for step in self.training if training else self.evaluation:
            if isinstance(step, Geometric):
                height, width = images.shape[-2:]
                motion = step.motion((height, width), draw)
                images = transform(images, motion.to(images.device), step.beyond(motion))
                moved, kept = visible(target["boxes"], follow(motion, target["boxes"]), motion.size, LEAST_VISIBLE)
                target = _only({**target, "boxes": moved}, kept)
            else:
                images = step(images, there)
        return self.scaled(images)[0], target


def _only(target: Target, kept: torch.Tensor) -> Target:
    return {name: value[kept] for name, value in target.items()}


def target_of(boxes: Boxes) -> Target:
    """The boxes of a picture as detectors take them, on the CPU: labels from 1, because 0 is background."""
    target = {"boxes": boxes.boxes, "labels": boxes.labels + 1, "ignored": boxes.ignored}
    return {name: torch.from_numpy(values) for name, values in target.items()}


class Detection:
    """Boxes of classes in pictures, and a network that has a loss of its own."""

    monitor = "val_map"
    shown: tuple[str, ...] = ("train loss", "val mAP", "val AP50")

    def __init__(self, model: torch.nn.Module, classes: int) -> None:
        """model: a detector as torchvision's are; what it tells of its loss goes by the kind of its heads."""
        self.classes = classes
        heads = getattr(model, "roi_heads", None)
        self.hard = heads if isinstance(heads, HardRoIHeads) else None
        if heads is not None:
            self.losses: tuple[str, ...] = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
        else:
            self.losses = ("classification", "bbox_regression", *(["bbox_ctrness"] if type(model).__name__ == "FCOS" else []))
        self.sums: tuple[str, ...] = ("loss", *self.losses, *(["rois_scored", "rois_kept"] if self.hard else []))

    def learn(
        self, forward: Callable[..., Any], images: list[torch.Tensor], targets: list[Target], batch: Batch
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The parts of the loss, their sum times the number of pictures, and what is told of each."""
        parts: Mapping[str, torch.Tensor] = forward(images, [{"boxes": each["boxes"], "labels": each["labels"]} for each in targets])
        loss = torch.stack([parts[name].float() for name in self.losses]).sum() * len(images)
        told = [loss.detach().double(), *(parts[name].detach().double() * len(images) for name in self.losses)]
        if self.hard:
            told += self.hard.tally.unbind()
        return parts, loss, torch.stack([each.to(loss.device) for each in told])

    def look(self, model: Callable[..., Any], images: list[torch.Tensor], targets: list[Target]) -> object:
        """The parts of the loss in training, what is found in evaluation."""
        return model(images, [{"boxes": each["boxes"], "labels": each["labels"]} for each in targets])

    def judge(self, world: World) -> Found:
        """Average precision."""
        return Found(self.classes)


class Found:
    """`val_map`, `val_map_50` and `val_map_75`, COCO's average precisions in 0..1; `by_class` holds those of each class.

    The network is asked about one picture at a time: in a batch a smaller one is padded, which it can see, so what is found would depend on
    batch size and number of processes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.pictures: list[tuple[Target, Target]] = []  # what was found and what is true, on the CPU
        self.by_class: Sequence[tuple[float | None, float | None]] = ()

    def add(self, model: Callable[..., Any], images: list[torch.Tensor], targets: list[Target], batch: Batch) -> None:
        for image, true in zip(images, targets, strict=True):
            (found,) = model([image])
            self.pictures.append(({name: value.float().cpu() for name, value in found.items()}, {name: value.cpu() for name, value in true.items()}))

    def figures(self, world: World, samples: int) -> dict[str, float]:
        self.pictures = [pair for of_process in world.each(self.pictures) for pair in of_process]
        found, true = zip(*self.pictures, strict=True)
        measured = world.first(lambda: mean_average_precision(found, true, self.classes))
        self.by_class = list(zip(measured["per_class"], measured["per_class_50"], strict=True))
        return {f"val_{name}": measured[name] for name in ("map", "map_50", "map_75")}
