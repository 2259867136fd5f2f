"""Detectors: torchvision's own as the measure of what is built, loaded and frozen, and the small one that learns."""

from __future__ import annotations

import copy
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detecting import build, rectangles
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from trainrun.errors import UserError
from trainrun.parts.metrics import mean_average_precision
from trainrun.parts.mining.ohem_rois import ohem_rois
from trainrun.parts.models.detection import ONE_STAGE, TWO_STAGES
from trainrun.parts.models.nets import weights as files

NAMES = [*TWO_STAGES, *ONE_STAGE, "ssdlite320_mobilenet_v3_large"]
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def bare(name: str, **options: Any) -> Any:
    """torchvision's own builder, without its scaling of pictures."""
    return torchvision.models.get_model(name, weights_backbone=None, image_mean=[0.0] * 3, image_std=[1.0] * 3, **options)


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def learning(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def norms(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d))}


def test_the_names_are_torchvisions() -> None:
    published = torchvision.models.list_models(module=torchvision.models.detection)
    assert sorted(NAMES) == sorted(name for name in published if not name.startswith(("maskrcnn", "keypointrcnn", "ssd300")))


@pytest.mark.parametrize("name", NAMES)
def test_from_scratch_it_is_torchvisions_network_with_a_background_class(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(name, classes=4), bare(name, num_classes=5)
    assert kinds(ours) == kinds(theirs)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert learning(ours) == [key for key, _ in ours.named_parameters()]
    assert (ours.transform.image_mean, ours.transform.image_std) == ([0.0] * 3, [1.0] * 3)
    assert FrozenBatchNorm2d not in norms(ours)


def test_proposals_that_an_untrained_network_thinks_little_of_are_kept_from_scratch_only(coco: Any) -> None:
    assert build(SMALL).rpn.score_thresh == 0.0
    assert build(SMALL, weights="DEFAULT").rpn.score_thresh == bare(SMALL, num_classes=3).rpn.score_thresh == 0.05
    assert build(SMALL, weights="DEFAULT", proposal_threshold=0.01).rpn.score_thresh == 0.01


def test_options_reach_torchvision() -> None:
    with torch.device("meta"):
        two = build(
            "fasterrcnn_resnet50_fpn", min_size=96, max_size=128, score_threshold=0.2, nms_iou=0.4, detections=7, proposals=30, rois=16
        )
        one = build("retinanet_resnet50_fpn", min_size=96, max_size=128, score_threshold=0.2, nms_iou=0.4, detections=7)
        square = build("ssdlite320_mobilenet_v3_large", score_threshold=0.2, nms_iou=0.4, detections=7)
    for model in (two, one):
        assert (model.transform.min_size, model.transform.max_size) == ((96,), 128)
    for model in (two.roi_heads, one, square):
        assert (model.score_thresh, model.nms_thresh, model.detections_per_img) == (0.2, 0.4, 7)
    assert two.rpn._pre_nms_top_n == {"training": 60, "testing": 60} and two.rpn._post_nms_top_n == {"training": 30, "testing": 30}
    assert two.roi_heads.fg_bg_sampler.batch_size_per_image == 16


@pytest.mark.parametrize(
    ("name", "option"),
    [("retinanet_resnet50_fpn", "rois"), ("ssdlite320_mobilenet_v3_large", "min_size"), ("ssdlite320_mobilenet_v3_large", "norm")],
)
def test_what_a_network_does_not_have_is_refused(name: str, option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        build(name, **{option: 64})


@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torchvision would download, by the start of the file's name, drawn here; and the calls."""
    known: dict[str, Any] = {"calls": []}

    def download(url: str, **options: Any) -> Any:
        known["calls"].append((url, options))
        name = url.rsplit("/", 1)[1]
        if name not in known:
            torch.manual_seed(1)
            architecture = next(
                each for each in [*NAMES, "resnet50", "mobilenet_v3_large"] if name.startswith((f"{each}_coco", f"{each}-"))
            )
            if architecture in NAMES:
                known[name] = bare(architecture, num_classes=91).state_dict()
            else:
                known[name] = torchvision.models.get_model(architecture, weights=None).state_dict()
            for key, value in known[name].items():  # as after training: no norm is an identity
                if key.endswith(("running_mean", "running_var")):
                    value.add_(torch.rand(value.shape))
        return known[name]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    return known


@pytest.mark.parametrize("name", [SMALL, "ssdlite320_mobilenet_v3_large"])
def test_with_weights_for_the_same_classes_it_is_torchvisions_network(name: str, coco: Any) -> None:
    ours = build(name, classes=90, weights="DEFAULT", score_threshold=0.0)
    threshold = "box_score_thresh" if name == SMALL else "score_thresh"
    theirs = bare(name, weights="DEFAULT", **{threshold: 0.0})
    assert kinds(ours) == kinds(theirs) and learning(ours) == learning(theirs)
    images = rectangles(1, 96)[0]
    for one, other in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert len(one["boxes"]) and all(torch.equal(one[key], other[key]) for key in one)
    assert coco["calls"][0][1] == {"progress": True, "check_hash": True, "weights_only": True}


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in (SMALL, "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_fpn")]
)
def test_with_weights_the_same_layers_are_frozen_as_in_torchvision(name: str, coco: Any) -> None:
    with torch.device("meta"):
        ours, theirs = build(name, classes=90, weights="COCO_V1"), bare(name, weights="COCO_V1")
    assert kinds(ours) == kinds(theirs) and learning(ours) == learning(theirs)
    eps = [{m.eps for m in model.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))} for model in (ours, theirs)]
    assert eps[0] == eps[1]


def test_frozen_norms_are_those_that_weights_bring_along(coco: Any) -> None:
    with torch.device("meta"):
        whole = build("fasterrcnn_resnet50_fpn_v2", weights="COCO_V1", norm="frozen")
        body = build("fasterrcnn_resnet50_fpn_v2", backbone_weights="IMAGENET1K_V2", norm="frozen")
        batch = build("fasterrcnn_resnet50_fpn", weights="COCO_V1", norm="batch")
    assert norms(whole) == norms(body.backbone.body) == {FrozenBatchNorm2d}
    assert norms(body.backbone.fpn) == norms(body.roi_heads) == norms(batch) == {nn.BatchNorm2d}


@pytest.mark.parametrize("layers", [0, 1, 4, 5, 6, None])
def test_a_backbone_with_weights_learns_from_the_end(layers: int | None, coco: Any) -> None:
    ours = build(SMALL, backbone_weights="DEFAULT", trainable_backbone_layers=layers)
    theirs = torchvision.models.get_model(SMALL, weights_backbone="DEFAULT", num_classes=3, trainable_backbone_layers=layers)
    assert kinds(ours) == kinds(theirs) and learning(ours) == learning(theirs)
    body = theirs.backbone.body.state_dict()
    assert all(torch.equal(value, body[key]) for key, value in ours.backbone.body.state_dict().items())


def test_a_resnet_counts_five_layers(coco: Any) -> None:
    with torch.device("meta"):
        ours = build("fcos_resnet50_fpn", backbone_weights="IMAGENET1K_V1", trainable_backbone_layers=2)
        theirs = torchvision.models.get_model("fcos_resnet50_fpn", weights_backbone="IMAGENET1K_V1", trainable_backbone_layers=2)
        assert learning(ours) == learning(theirs)
        with pytest.raises(UserError, match=r"cannot have 6 trainable_backbone_layers .*\[0,5\]"):
            build("fcos_resnet50_fpn", backbone_weights="IMAGENET1K_V1", trainable_backbone_layers=6)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (SMALL, ("cls_score", "bbox_pred")),
        ("ssdlite320_mobilenet_v3_large", tuple(f"classification_head.module_list.{n}.1." for n in range(6))),
    ],
)
def test_for_other_classes_the_head_alone_is_drawn_anew(name: str, heads: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build(name, classes=9)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build(name, classes=2, weights=str(tmp_path / "w.safetensors"))
    state = source.state_dict()
    changed = {key for key, value in loaded.state_dict().items() if value.shape != state[key].shape or not torch.equal(value, state[key])}
    assert changed and all(any(head in key for head in heads) for key in changed)
    assert {next(head for head in heads if head in key) for key in changed} == set(heads)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_every_family_takes_weights_of_other_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        state = build(name, classes=9).state_dict()
        monkeypatch.setattr(files, "read", lambda path: state)
        build(name, classes=2, weights="w.pth")
        with pytest.raises(UserError, match=r"is missing|is unknown"):
            monkeypatch.setattr(files, "read", lambda path: dict(list(state.items())[3:]))
            build(name, classes=2, weights="w.pth")


def test_old_names_of_published_files_are_read(coco: Any) -> None:
    """torchvision's older files call some convolutions otherwise, and say so by a version that is not there."""
    torch.manual_seed(0)
    state = bare(SMALL, num_classes=91).state_dict()
    for kind in ("weight", "bias"):
        state[f"rpn.head.conv.{kind}"] = state.pop(f"rpn.head.conv.0.0.{kind}")
    state._metadata["rpn.head"]["version"] = 1
    url = torchvision.models.get_model_weights(SMALL)["COCO_V1"].url
    coco[url.rsplit("/", 1)[1]] = state
    assert torch.equal(build(SMALL, weights="COCO_V1").rpn.head.conv[0][0].weight, state["rpn.head.conv.weight"])


def test_grey_pictures_have_one_channel() -> None:
    model = build(SMALL, (1, 64, 64))
    assert model.backbone.body["0"][0].in_channels == 1
    model([torch.rand(1, 64, 64)], [{"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}])


def test_group_norm_takes_the_place_of_batch_norm() -> None:
    with torch.device("meta"):
        model = build("fasterrcnn_resnet50_fpn_v2", norm="group")
    assert norms(model) == {nn.GroupNorm} and model.backbone.body.bn1.num_groups == 32
    model = build(SMALL, norm="group", rois=16, proposals=50)
    assert norms(model) == {nn.GroupNorm}
    images, _ = rectangles(2)
    both = model.eval()(images)
    alone = [model([image])[0] for image in images]  # a picture's boxes do not depend on its neighbours
    for one, other in zip(both, alone, strict=True):
        torch.testing.assert_close(one["boxes"][:5], other["boxes"][:5], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "frozen"}, r"set model\.weights or model\.backbone_weights, or model\.norm=group"),
        ({"trainable_backbone_layers": 2}, "would freeze layers that know nothing"),
        ({"weights": "DEFAULT", "backbone_weights": "DEFAULT"}, "backbone_weights have no effect"),
        ({"backbone_weights": "DEFAULT", "norm": "group"}, r"set model\.norm=frozen or model\.norm=batch"),
        ({"weights": "COCO_V2"}, r"has no weights 'COCO_V2'; did you mean COCO_V1\? \(or set model\.weights to"),
        ({"backbone_weights": "IMAGENET"}, r"mobilenet_v3_large has no weights .*\(or set model\.backbone_weights to"),
        ({"weights": "none.pth"}, "no weights at none.pth"),
    ],
)  # fmt: skip
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(SMALL, **options)


def test_no_network_says_where_the_file_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **options: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"cannot download https://\S+320_fpn-\w+\.pth .*put it at .*checkpoints/fasterrcnn_mobilenet"):
        build(SMALL, weights="DEFAULT")
    with pytest.raises(UserError, match=r"cannot download https://\S+\.pth .*put it at .*checkpoints/mobilenet_v3_large"):
        build(SMALL, backbone_weights="DEFAULT")


@pytest.mark.parametrize("name", ["tiny_fasterrcnn", SMALL, "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_under_autocast_places_are_in_float32(name: str) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"anchors": [256, 300]} if name == "tiny_fasterrcnn" else {} if name.startswith("ssd") else {"min_size": 320}
    model = copy.deepcopy(build(name, score_threshold=0.0, **given))  # as the average of the weights is made
    anchors: list[torch.Tensor] = []
    (model.rpn if hasattr(model, "rpn") else model).anchor_generator.register_forward_hook(lambda *call: anchors.append(call[-1][0]))
    images, targets = rectangles(2, 320)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
        with torch.no_grad():
            found = model.eval()(images)[0]
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    for places in (found["boxes"], found["scores"]):
        assert places.dtype == torch.float32 and len(places) and (places != places.bfloat16().float()).any()
    with torch.no_grad():
        model(images)
    assert torch.equal(anchors[1], anchors[2])  # with autocast and without


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        for name in NAMES:
            build(name)


def test_the_small_one_has_the_parameters_of_its_layers() -> None:
    model, width, hidden, classes, anchors = build("tiny_fasterrcnn", classes=4, width=8, hidden=24, anchors=[8, 16]), 8, 24, 4, 2 * 3
    count, before = 0, 3
    for out in (width, 2 * width, 4 * width):
        count += 9 * before * out + 9 * out * out + 4 * out
        before = out
    count += 9 * before * before + before + 5 * anchors * (before + 1)
    count += (49 * before + 1) * hidden + (hidden + 1) * hidden + 5 * (classes + 1) * (hidden + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_small_one_takes_pictures_as_they_are_or_scaled() -> None:
    seen: list[tuple[int, ...]] = []
    for options, expected in (({}, (1, 3, 48, 80)), ({"min_size": 96, "max_size": 128}, (1, 3, 80, 128))):
        model = build("tiny_fasterrcnn", **options).eval()
        model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        (found,) = model([torch.rand(3, 45, 75)])
        assert seen.pop() == expected
        assert (found["boxes"] <= torch.tensor([75, 45, 75, 45]) + 1e-3).all()
    with pytest.raises(UserError, match=r"set model\.min_size too"):
        build("tiny_fasterrcnn", max_size=128)


@pytest.mark.parametrize("mined", [False, True])
def test_the_small_one_learns_a_handful_of_pictures(mined: bool) -> None:
    """From scratch, with a random share of the boxes and with the hardest."""
    torch.manual_seed(0)
    model = build("tiny_fasterrcnn", width=8, hidden=64, anchors=[8, 16, 24], rois=32, proposals=64)
    if mined:
        ohem_rois(model, rois=32, nms_iou=0.7, over="picture")
    images, targets = rectangles(6)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(70):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (70 - step) / 35)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(images)
    truth = [target | {"ignored": torch.zeros(2, dtype=torch.bool)} for target in targets]
    assert mean_average_precision(found, truth, 2)["map_50"] > 0.9


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SMALL, {"weights": "DEFAULT", "trainable_backbone_layers": 2}),
        (SMALL, {"backbone_weights": "DEFAULT", "norm": "frozen"}),
        ("fasterrcnn_resnet50_fpn", {"weights": "DEFAULT"}),  # its norms add nothing to the variance
        (SMALL, {}),
    ],
)
def test_the_network_of_a_run_is_built_as_for_its_weights_and_without_them(name: str, options: dict[str, Any], coco: Any) -> None:
    with torch.device("meta"):
        trained = build(name, **options)
        coco["calls"].clear()
        with files.unread():
            ours = build(name, **options)
    assert not coco["calls"] and kinds(ours) == kinds(trained) and learning(ours) == learning(trained)
    assert [ours.state_dict().keys(), repr(ours), ours.rpn.score_thresh] == [trained.state_dict().keys(), repr(trained), trained.rpn.score_thresh]
