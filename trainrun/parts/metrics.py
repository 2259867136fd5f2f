"""How good detections are: `mean_average_precision`, COCO's measure; and how many false positives a recall costs: `at_recall`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST = 100  # detections of a picture that count, the best first, as COCO has it


def at_recall(scores: Tensor, positive: Tensor, percent: int) -> dict[str, Any] | None:
    """How many negatives are taken for positives where `percent` of the positives are found; None where one of the two is missing.

    scores: float [n], higher for what looks positive. positive: bool [n]. The threshold is the score of the k-th highest positive of P,
    k being percent P / 100 rounded up: the highest one that so many positives reach. A negative that reaches it counts.
    Returns {"positives", "negatives", "threshold", "false_positives", "share"}, share being false_positives / negatives.
    """
    found, others = scores[positive], scores[~positive]
    if not len(found) or not len(others):
        return None
    threshold = found.sort(descending=True).values[-(-percent * len(found) // 100) - 1]
    wrong = int((others >= threshold).sum())
    return {
        "positives": len(found), "negatives": len(others), "threshold": float(threshold), "false_positives": wrong, "share": wrong / len(others)
    }  # fmt: skip


def evaluator() -> Any:
    """The package that measures; raises UserError where it is not installed, which is better learned before training than after."""
    try:
        import faster_coco_eval
    except ImportError:
        raise UserError("average precision needs faster-coco-eval: pip install 'trainrun[detection]'") from None
    return faster_coco_eval


def mean_average_precision(found: Sequence[Mapping[str, Tensor]], truth: Sequence[Mapping[str, Tensor]], classes: int) -> dict[str, Any]:
    """Average precision of the boxes found in pictures, as COCO measures it: over 101 recalls, at IoUs of 0.5, 0.55 to 0.95.

    found: of each picture boxes [n, 4] (left, top, right, bottom), labels [n] from 1 to `classes`, scores [n]; of equal scores the earlier
    one counts first. truth: of the same pictures boxes, labels, and ignored [n] (bool). An ignored box need not be found, and boxes
    that lie in it by more than the threshold (as a share of their own area) are not held against the detector: COCO's crowds, VOC's difficult.
    Returns map, map_50 and map_75, means over the classes with boxes to be found, NaN where there are none; and per_class and
    per_class_50 by label - 1, None for a class without boxes to be found. All from 0 to 1.
    Errors (UserError): faster-coco-eval is not installed.
    Source: Lin et al. 2014, Microsoft COCO; https://cocodataset.org/#detection-eval
    """
    package = evaluator()
    annotations, results = [], []
    for picture, (got, true) in enumerate(zip(found, truth, strict=True), 1):
        for box, label, ignored in zip(true["boxes"].tolist(), true["labels"].tolist(), true["ignored"].tolist(), strict=True):
            annotations.append(_annotation(picture, label, box) | {"id": len(annotations) + 1, "iscrowd": int(ignored)})
        for box, label, score in zip(got["boxes"].tolist(), got["labels"].tolist(), got["scores"].tolist(), strict=True):
            results.append(_annotation(picture, label, box) | {"score": score})
    wanted = {each["category_id"] for each in annotations if not each["iscrowd"]}
    by_iou = _precision(package, len(truth), classes, annotations, results) if results and wanted else None
    rows = {}
    for name, ious in (("", slice(None)), ("_50", slice(0, 1)), ("_75", slice(5, 6))):
        rows[name] = [
            None if label not in wanted else 0.0 if by_iou is None else float(by_iou[ious, label - 1].mean())
            for label in range(1, classes + 1)
        ]
    means = {f"map{name}": _mean([value for value in row if value is not None]) for name, row in rows.items()}
    return means | {"per_class": rows[""], "per_class_50": rows["_50"]}


def _precision(package: Any, pictures: int, classes: int, annotations: list[dict[str, Any]], results: list[dict[str, Any]]) -> Any:
    """Average precision [IoU, class] over the recalls."""
    known = package.COCO({
        "images": [{"id": picture} for picture in range(1, pictures + 1)],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        "annotations": annotations,
    })  # fmt: skip
    measure = package.COCOeval_faster(known, known.loadRes(results), "bbox", print_function=_silent)
    measure.params.areaRng, measure.params.areaRngLbl, measure.params.maxDets = [[0, 1e10]], ["all"], [MOST]
    measure.evaluate()
    measure.accumulate()
    return measure.eval["precision"][..., 0, 0].mean(1)  # [IoU, recall, class, area, most]


def _annotation(picture: int, label: int, box: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {"image_id": picture, "category_id": label, "bbox": [left, top, width, height], "area": width * height}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _silent(*_: Any) -> None:
    pass
