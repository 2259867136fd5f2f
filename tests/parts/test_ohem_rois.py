"""The hardest boxes of a Faster R-CNN: the set against the paper's algorithm written out, the gradients against a plain head on that set."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detecting import build, rectangles
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from trainrun.errors import UserError
from trainrun.parts.mining.ohem_rois import ohem_rois
from trainrun.parts.mining.roi_heads import HardRoIHeads

SHAPES = [(32, 40), (40, 32)]


def heads(box_head: nn.Module | None = None) -> RoIHeads:
    """Plain heads over one map of 4 channels, for 2 classes, in double precision."""
    torch.manual_seed(0)
    box_head = box_head or nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 8), nn.ReLU())
    made = RoIHeads(
        MultiScaleRoIAlign(["0"], 3, 2), box_head, FastRCNNPredictor(8, 3), 0.5, 0.4, 16, 0.25, None, 0.05, 0.5, 10
    )  # a background threshold of 0.4, which hard heads must not have
    return made.double().train()


def scene(seed: int, count: int = 30, ties: bool = False) -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """Two pictures: a map of features, proposals of which many lie on one another, true boxes (none in the second where the seed is odd)."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 24, (2, count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 9, (2, count, 2))], 2).astype(np.float64)
    if ties:  # each box comes four times, so with the same loss, and maps that are zero make the losses of background equal
        boxes = np.repeat(boxes[:, : count // 4], 4, 1)
    features = torch.from_numpy(rng.normal(size=(2, 4, 10, 10))) * (not ties)
    true = [torch.from_numpy(boxes[n, :3].copy()) for n in range(2)]
    if seed % 2:
        true[1] = true[1][:0]
    targets = [{"boxes": each, "labels": torch.from_numpy(rng.integers(1, 3, len(each)))} for each in true]
    return {"0": features}, list(torch.from_numpy(boxes)), targets


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(sides.clip(0).prod())
    return shared / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - shared)


def hardest(boxes: Sequence[np.ndarray], losses: Sequence[np.ndarray], rois: int, nms_iou: float, over_batch: bool) -> set[tuple[int, int]]:
    """The paper's choice, as pairs of picture and row: greedy suppression by loss in each picture, then the B with the largest loss."""
    survivors = []
    for picture, (of_picture, loss) in enumerate(zip(boxes, losses, strict=True)):
        kept: list[int] = []
        for row in sorted(range(len(loss)), key=lambda row: (-loss[row], row)):
            if all(iou(of_picture[row], of_picture[other]) <= nms_iou for other in kept):
                kept.append(row)
        survivors += [(-loss[row], picture, place, row) for place, row in enumerate(kept)]
    if over_batch:
        chosen = sorted(survivors)[: rois * len(boxes)]
    else:
        chosen = [each for each in survivors if each[2] < rois]
    return {(picture, row) for _, picture, _, row in chosen}


@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_chosen_are_those_of_the_paper(seed: int, ties: bool, over_batch: bool) -> None:
    rng = np.random.default_rng(seed)
    _, boxes, _ = scene(seed, count=40 + 4 * (seed % 3), ties=ties)
    losses = [torch.from_numpy(rng.integers(0, 6, len(of_picture)) / 4 if ties else rng.random(len(of_picture))) for of_picture in boxes]
    rois, nms_iou = int(rng.integers(1, 20)), float(rng.choice([0.3137, 0.5231, 0.7119, 1.0]))  # no IoU of whole pixels
    chosen = HardRoIHeads(heads(), rois, nms_iou, over_batch).hardest(boxes, losses)
    expected = hardest([b.numpy() for b in boxes], [v.numpy() for v in losses], rois, nms_iou, over_batch)
    assert {(picture, int(row)) for picture, rows in enumerate(chosen) for row in rows} == expected
    assert sum(map(len, chosen)) == len(expected)
    for loss, rows in zip(losses, chosen, strict=True):
        assert torch.equal(loss[rows], loss[rows].sort(descending=True).values)


def by_hand(plain: RoIHeads, features: Any, proposals: list[Tensor], targets: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Every box, its label by an IoU of 0.5 with the true boxes, and what its corrections should be."""
    boxes, labels, goals = [], [], []
    for of_picture, target in zip(proposals, targets, strict=True):
        every, true = torch.cat([of_picture, target["boxes"]]), target["boxes"]
        label, match = torch.zeros(len(every), dtype=torch.int64), torch.zeros(len(every), 4, dtype=torch.float64)
        for row, box in enumerate(every):
            with_each = [iou(box.numpy(), each.numpy()) for each in true]
            if with_each and max(with_each) >= 0.5:
                best = int(np.argmax(with_each))
                label[row], match[row] = target["labels"][best], true[best]
        boxes.append(every)
        labels.append(label)
        goals.append(plain.box_coder.encode_single(match, every))
    return boxes, labels, goals


def plain_losses(plain: RoIHeads, features: Any, boxes: list[Tensor], labels: list[Tensor], goals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """torchvision's losses over these boxes."""
    return fastrcnn_loss(*plain.box_predictor(plain.box_head(plain.box_roi_pool(features, boxes, SHAPES))), labels, goals)


def gradients(module: nn.Module, features: dict[str, Tensor], losses: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(sum(losses), [features["0"], *module.parameters()]))  # type: ignore[arg-type]  # of tensors


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_that_of_a_plain_head_on_the_chosen(seed: int) -> None:
    plain = heads()
    features, proposals, targets = scene(seed)
    features["0"].requires_grad_()
    boxes, labels, goals = by_hand(plain, features, proposals, targets)
    each = [
        sum(plain_losses(plain, {"0": features["0"][n : n + 1]}, [box[None]], [label[None]], [goal[None]])).item()  # type: ignore[union-attr]  # a sum of tensors
        for n in range(2)
        for box, label, goal in zip(boxes[n], labels[n], goals[n], strict=True)
    ]
    losses = torch.tensor(each, dtype=torch.float64).split([len(b) for b in boxes])
    expected = hardest([b.numpy() for b in boxes], [v.numpy() for v in losses], 6, 0.5, False)
    rows = [torch.tensor(sorted(row for picture, row in expected if picture == n)) for n in range(2)]
    of_chosen = plain_losses(plain, features, *([every[r] for every, r in zip(of, rows, strict=True)] for of in (boxes, labels, goals)))
    reference = gradients(plain, features, of_chosen)

    hard = HardRoIHeads(plain, 6, 0.5, False).train()
    _, found = hard(features, proposals, SHAPES, targets)
    torch.testing.assert_close(list(found.values()), list(of_chosen), rtol=1e-9, atol=1e-12)
    for got, wanted in zip(gradients(hard, features, list(found.values())), reference, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert hard.tally.tolist() == [sum(map(len, boxes)), len(expected)] and hard.tally.dtype == torch.float64


def test_the_others_have_no_part_in_the_gradient() -> None:
    """Boxes far apart: where only one of them is chosen, the map learns there alone."""
    plain = heads()
    features = {"0": torch.randn(1, 4, 40, 40, dtype=torch.float64).requires_grad_()}
    proposals = [torch.tensor([[0.0, 0, 8, 8], [28, 28, 36, 36]], dtype=torch.float64)]
    targets = [{"boxes": torch.zeros(0, 4, dtype=torch.float64), "labels": torch.zeros(0, dtype=torch.int64)}]
    hard = HardRoIHeads(plain, 1, 0.7, False).train()
    _, losses = hard(features, proposals, [(40, 40)], targets)
    (learned,) = torch.autograd.grad(sum(losses.values()), features["0"])
    corners = learned[0].abs().sum(0)
    halves = corners[:14, :14].sum(), corners[22:, 22:].sum()
    assert (halves[0] > 0) != (halves[1] > 0) and corners.sum() == max(halves)


def test_with_room_for_all_it_is_the_plain_loss_over_all() -> None:
    plain = heads()
    features, proposals, targets = scene(2)
    expected = plain_losses(plain, features, *by_hand(plain, features, proposals, targets))
    for over_batch in (False, True):
        _, found = HardRoIHeads(plain, 1000, 1.0, over_batch).train()(features, proposals, SHAPES, targets)
        torch.testing.assert_close(tuple(found.values()), expected, rtol=1e-9, atol=1e-12)


def test_scoring_leaves_norms_and_dropout_alone() -> None:
    box_head = nn.Sequential(FastRCNNConvFCHead((4, 3, 3), [4], [8], nn.BatchNorm2d), nn.Dropout(0.5))
    plain = heads(box_head)
    features, proposals, targets = scene(2)
    hard = HardRoIHeads(plain, 8, 0.7, False).train()
    boxes, _, labels, goals = hard.select_training_samples(list(proposals), targets)
    alone = copy.deepcopy(hard)
    torch.manual_seed(1)
    _, found = hard(features, proposals, SHAPES, targets)
    after = torch.rand(1)
    assert all(module.training for module in hard.modules())

    alone.eval()
    with torch.no_grad():
        of_class, of_box = alone.losses(features, boxes, SHAPES, labels, goals)
    rows = alone.hardest(boxes, (of_class + of_box).split([len(b) for b in boxes]))
    alone.train()
    torch.manual_seed(1)
    boxes, labels, goals = ([every[r] for every, r in zip(of, rows, strict=True)] for of in (boxes, labels, goals))
    of_class, _ = alone.losses(features, boxes, SHAPES, labels, goals)
    assert torch.equal(torch.rand(1), after)  # dropout drew for the chosen only
    assert torch.equal(of_class.mean(), found["loss_classifier"])
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), hard.state_dict().values(), strict=True))


@pytest.mark.parametrize("empty", ["no truth", "no proposals", "neither"])
def test_pictures_without_boxes(empty: str) -> None:
    plain = heads()
    features, proposals, targets = scene(2)
    if empty != "no truth":
        proposals = [each[:0] for each in proposals]
    if empty != "no proposals":
        targets = [{key: value[:0] for key, value in each.items()} for each in targets]
    hard = HardRoIHeads(plain, 8, 0.7, True).train()
    _, found = hard(features, proposals, SHAPES, targets)
    assert all(torch.isfinite(value) for value in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]  # of tensors
    if empty != "no proposals":
        assert found["loss_box_reg"] == 0


def test_a_model_keeps_its_parameters_and_its_evaluation() -> None:
    torch.manual_seed(0)
    model = build("tiny_fasterrcnn", width=4, hidden=8)
    images, targets = rectangles(2)
    before, state = dict(model.named_parameters()), {key: value.clone() for key, value in model.state_dict().items()}
    plain = model.eval()(images)
    ohem_rois(model, rois=16, nms_iou=0.7, over="picture")
    assert isinstance(model.roi_heads, HardRoIHeads)
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(after[name] is parameter for name, parameter in before.items())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()) and model.state_dict().keys() == state.keys()
    for one, other in zip(plain, model.eval()(images), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    losses = [model.train()(images, targets) for _ in range(2)]
    assert losses[0].keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert torch.equal(losses[0]["loss_classifier"], losses[1]["loss_classifier"])  # nothing is drawn
    scored, kept = model.roi_heads.tally.tolist()
    assert scored > kept == 32


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_a_model_without_roi_heads_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    with pytest.raises(UserError, match=r"has no such stage: set mining=null, or model to tiny_fasterrcnn"):
        ohem_rois(model, rois=16, nms_iou=0.7, over="picture")
