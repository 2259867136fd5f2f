"""torchvision's detectors, built for other classes than COCO's, for pictures that are scaled already, and without its downloads by pickle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import gcd
from typing import Any, Literal

import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from trainrun.errors import UserError
from trainrun.parts.models.nets import weights as files
from trainrun.parts.models.nets.float32 import keep_places
from trainrun.parts.models.nets.from_torchvision import for_channels, published

Norm = Literal["batch", "frozen", "group"]

# What comes before the classes, and so is drawn anew for other classes.
HEADS = {
    "fasterrcnn": ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"],
    "retinanet": ["head.classification_head.cls_logits"],
    "fcos": ["head.classification_head.cls_logits"],
    "ssdlite320": [f"head.classification_head.module_list.{n}.1" for n in range(6)],
}
# torchvision trained these with batch norm that adds nothing to the variance, and sets it so when it loads them.
WITHOUT_EPS = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def build(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    weights: str | None,
    backbone_weights: str | None,
    trainable_layers: int | None,
    norm: Norm | None,
    **options: Any,
) -> nn.Module:
    """The detector for pictures of shape[0] channels, with its weights loaded; options that are None are torchvision's own."""
    channels, started = shape[0], weights is not None or backbone_weights is not None
    if weights is not None and backbone_weights is not None:
        raise UserError(
            "weights are those of the whole detector, so backbone_weights have no effect: remove one of model.weights and model.backbone_weights"
        )
    if not started and trainable_layers is not None:
        raise UserError(
            "trainable_backbone_layers would freeze layers that know nothing: set model.weights or model.backbone_weights, or remove it"
        )
    if not started and norm == "frozen":
        raise UserError("norm: frozen fixes what weights bring along: set model.weights or model.backbone_weights, or model.norm=group")
    if norm == "group" and any(given is not None and not files.is_path(given) for given in (weights, backbone_weights)):
        raise UserError(
            "published weights were trained with batch norm, which group norm cannot follow: set model.norm=frozen or model.norm=batch"
        )

    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes + 1, image_mean=[0.0] * channels, image_std=[1.0] * channels,
        **{option: value for option, value in options.items() if value is not None},
    )  # fmt: skip
    stem, _ = files.ends(model)
    if channels != 3:
        model.set_submodule(stem, for_channels(model.get_submodule(stem), channels))
    if norm == "group":
        _replace_norms(model, group_norm)
    if weights is not None:
        state = files.read(weights) if files.is_path(weights) else published(name, weights)
        files.load(model, state, f"{name} {weights}", stem, HEADS[name.split("_", 1)[0]])
    elif backbone_weights is not None:
        _load_backbone(model, name, backbone_weights)
    own = "batch" if name.endswith("_v2") or name.startswith("ssd") or not started else "frozen"
    if (norm or own) == "frozen":
        _replace_norms(model if weights is not None else model.get_submodule("backbone.body"), _frozen)
        if name in WITHOUT_EPS and weights is not None and not files.is_path(weights):
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0
    if started and not name.startswith("ssd"):
        _freeze(model, name, 3 if trainable_layers is None else trainable_layers)
    keep_places(model)
    return model


def group_norm(like: nn.Module) -> nn.GroupNorm:
    """Group norm in place of a batch norm: over 32 groups, or 8 where the channels do not fall into 32."""
    count = like.num_features
    assert isinstance(count, int)
    return nn.GroupNorm(32 if count % 32 == 0 else gcd(8, count), count)


def _frozen(like: nn.Module) -> FrozenBatchNorm2d:
    assert isinstance(like, nn.BatchNorm2d)
    fixed = FrozenBatchNorm2d(like.num_features, like.eps)
    fixed.load_state_dict({key: value for key, value in like.state_dict().items() if key != "num_batches_tracked"})
    return fixed


def _replace_norms(part: nn.Module, made: Callable[[nn.Module], nn.Module]) -> None:
    for name, module in list(part.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            part.set_submodule(name, made(module))


def _load_backbone(model: nn.Module, name: str, weights: str) -> None:
    """Load a classifier's weights into the backbone, which is that classifier without its last layers."""
    architecture = _architecture(name)
    state = files.read(weights) if files.is_path(weights) else published(architecture, weights, "backbone_weights")
    body = model.get_submodule("backbone.body")
    kept = OrderedDict((key.removeprefix("features."), value) for key, value in state.items() if not key.startswith(("fc.", "classifier.")))
    files.load(body, kept, f"{name} backbone_weights {weights}", files.ends(body)[0], [])


def _architecture(name: str) -> str:
    return "resnet50" if "resnet50" in name else "mobilenet_v3_large"


def _freeze(model: nn.Module, name: str, layers: int) -> None:
    """Let the last `layers` stages of the backbone learn, and what stands behind it, as torchvision counts them."""
    with torch.device("meta"):  # a backbone without weights or cost, to see which parameters torchvision freezes
        try:
            if _architecture(name) == "resnet50":
                like = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=layers)
            else:
                like = mobilenet_backbone(
                    backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=layers
                )
        except ValueError as error:
            raise UserError(f"{name} cannot have {layers} trainable_backbone_layers ({error})") from None
    learns = {of: parameter.requires_grad for of, parameter in like.named_parameters()}
    for of, parameter in model.get_submodule("backbone").named_parameters():
        parameter.requires_grad_(learns.get(of, True))
