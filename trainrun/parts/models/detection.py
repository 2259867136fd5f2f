"""Detectors: torchvision's, by their names there, and a small one.

A detector is called as torchvision's are. In training `model(images, targets)`, with a list of float pictures [C, height, width] and for each
a dict of boxes (float32 [n, 4] in pixels: left, top, right, bottom) and labels (int64 [n], 1 to `classes`), returns a dict of scalar losses;
in evaluation `model(images)` returns for each picture boxes [n, 4], labels [n] (1 to `classes`) and scores [n]. Class 0 is background.
Pictures come as `normalize` made them: the scaling that torchvision builds into its detectors is taken out. Under autocast boxes and
scores are in float32 all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn

# Written out so that a recipe is checked without torchvision; a test holds them against torchvision.models.list_models.
TWO_STAGES = [
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]
ONE_STAGE = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]

Weights = Annotated[
    str | None,
    Field(description="Weights of the whole detector to start from: DEFAULT, COCO_V1, or a .safetensors or .pth file."),
]
BackboneWeights = Annotated[
    str | None,
    Field(
        description="ImageNet weights for the backbone: DEFAULT, a torchvision name such as IMAGENET1K_V1, or a .safetensors or .pth file."
    ),
]
TrainableLayers = Annotated[
    int | None,
    Field(
        ge=0, le=6, description="Stages of a backbone with weights that learn, counted from the last; 3 by default, without weights all."
    ),
]
Norm = Annotated[
    Literal["batch", "frozen", "group"] | None,
    Field(
        description="Normalisation: learned over the batch, fixed as in the weights, or over groups of channels; by default torchvision's own."
    ),
]
MinSize = Annotated[int | None, Field(ge=32, le=10_000, description="Pictures are scaled so that the shorter side has so many pixels.")]
MaxSize = Annotated[int | None, Field(ge=32, le=10_000, description="And shrunk further where the longer side would have more than this.")]
ScoreThreshold = Annotated[float | None, Field(ge=0, lt=1, description="Boxes with a lower score are not reported.")]
NmsIou = Annotated[
    float | None, Field(gt=0, le=1, description="Of reported boxes of a class that overlap by more than this, the best stays.")
]
Detections = Annotated[int | None, Field(ge=1, le=10_000, description="Most boxes reported for a picture.")]
Proposals = Annotated[
    int | None,
    Field(ge=1, le=10_000, description="Proposals of each picture that reach the RoI heads, of twice as many a level before suppression."),
]
ProposalThreshold = Annotated[
    float | None, Field(ge=0, lt=1, description="Proposals that are less likely an object are dropped, in training too.")
]
Rois = Annotated[int | None, Field(ge=1, le=10_000, description="Boxes of each picture, drawn at random, that the RoI heads train on.")]


@part("model", names=TWO_STAGES, task="detection", memory_format="channels_last")
def fasterrcnn(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: Weights = None,
    backbone_weights: BackboneWeights = None,
    trainable_backbone_layers: TrainableLayers = None,
    norm: Norm = None,
    min_size: MinSize = None,
    max_size: MaxSize = None,
    score_threshold: ScoreThreshold = None,
    nms_iou: NmsIou = None,
    detections: Detections = None,
    proposals: Proposals = None,
    proposal_threshold: ProposalThreshold = None,
    rois: Rois = None,
) -> nn.Module:
    """torchvision's {name}, a detector of two stages.

    Built for pictures of shape[0] channels and `classes` classes besides background. Options that are null are torchvision's own: of 2000
    proposals a picture 512 are trained on, with at most a quarter of foreground. Proposals below proposal_threshold are dropped by
    fasterrcnn_mobilenet_* at 0.05 when they start from weights, by all others, and from scratch, at 0.
    Without weights all layers learn, with batch norm over the few pictures of a micro-batch; norm: group does not depend on their number.
    With weights or backbone_weights the norms are frozen (v2: over the batch) and the last 3 stages of the backbone learn, as in torchvision.
    weights: where the number of classes differs, roi_heads.box_predictor.cls_score and .bbox_pred are drawn anew, and nothing else.
    Published weights expect `normalize` with mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225]. They are downloaded once, checked by
    hash and read as tensors only.
    Errors (UserError): unknown weights, no network, a file that does not fit, layers or norms that are frozen without weights.
    Source: Ren, He, Girshick & Sun 2015, Faster R-CNN; https://docs.pytorch.org/vision/stable/models/faster_rcnn.html
    """
    from trainrun.parts.models.nets.detectors import build

    if proposal_threshold is None and weights is None and backbone_weights is None:
        proposal_threshold = 0.0
    twice = None if proposals is None else 2 * proposals
    return build(
        name, shape, classes, weights, backbone_weights, trainable_backbone_layers, norm,
        min_size=min_size, max_size=max_size,
        box_score_thresh=score_threshold, box_nms_thresh=nms_iou, box_detections_per_img=detections,
        rpn_pre_nms_top_n_train=twice, rpn_pre_nms_top_n_test=twice, rpn_post_nms_top_n_train=proposals, rpn_post_nms_top_n_test=proposals,
        rpn_score_thresh=proposal_threshold, box_batch_size_per_image=rois,
    )  # fmt: skip


@part("model", names=ONE_STAGE, task="detection", rois=False, memory_format="channels_last")
def one_stage(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: Weights = None,
    backbone_weights: BackboneWeights = None,
    trainable_backbone_layers: TrainableLayers = None,
    norm: Norm = None,
    min_size: MinSize = None,
    max_size: MaxSize = None,
    score_threshold: ScoreThreshold = None,
    nms_iou: NmsIou = None,
    detections: Detections = None,
) -> nn.Module:
    """torchvision's {name}, a detector of one stage.

    Built for pictures of shape[0] channels and `classes` classes besides background. Options that are null are torchvision's own.
    Without weights all layers learn, with batch norm over the few pictures of a micro-batch; norm: group does not depend on their number.
    With weights or backbone_weights the backbone's norms are frozen (v2: over the batch) and its last 3 stages learn, as in torchvision.
    weights: where the number of classes differs, head.classification_head.cls_logits is drawn anew, and nothing else.
    Published weights expect `normalize` with mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225]. They are downloaded once, checked by
    hash and read as tensors only.
    Errors (UserError): unknown weights, no network, a file that does not fit, layers or norms that are frozen without weights.
    Sources: Lin et al. 2017, Focal Loss for Dense Object Detection; Tian et al. 2019, FCOS; https://docs.pytorch.org/vision/stable/models.html
    """
    from trainrun.parts.models.nets.detectors import build

    return build(
        name, shape, classes, weights, backbone_weights, trainable_backbone_layers, norm,
        min_size=min_size, max_size=max_size, score_thresh=score_threshold, nms_thresh=nms_iou, detections_per_img=detections,
    )  # fmt: skip


@part("model", task="detection", rois=False, memory_format="channels_last", batch_norm=lambda options: True)
def ssdlite320_mobilenet_v3_large(
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: Weights = None,
    score_threshold: ScoreThreshold = None,
    nms_iou: NmsIou = None,
    detections: Detections = None,
) -> nn.Module:
    """torchvision's ssdlite320_mobilenet_v3_large, a detector of one stage that scales every picture to 320 x 320.

    Built for pictures of shape[0] channels and `classes` classes besides background. Options that are null are torchvision's own. All
    layers learn, with batch norm over the few pictures of a micro-batch, of which there must be two, because the last maps are a pixel wide.
    weights: where the number of classes differs, the last convolution of each map under head.classification_head is drawn anew, and nothing else.
    Published weights expect `normalize` with mean [0.5] and std [0.5]. They are downloaded once, checked by hash and read as tensors only.
    Errors (UserError): unknown weights, no network, a file that does not fit.
    Sources: Liu et al. 2016, SSD; Howard et al. 2019, MobileNetV3, section 6.3; https://docs.pytorch.org/vision/stable/models/ssdlite.html
    """
    from trainrun.parts.models.nets.detectors import build

    return build(
        "ssdlite320_mobilenet_v3_large", shape, classes, weights, None, None, None,
        score_thresh=score_threshold, nms_thresh=nms_iou, detections_per_img=detections,
    )  # fmt: skip


@part("model", task="detection", memory_format="channels_last")
def tiny_fasterrcnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: Annotated[int, Field(ge=4, le=512, description="Channels of the first block; each later block has twice as many.")] = 16,
    depth: Annotated[int, Field(ge=1, le=6, description="Number of blocks; each halves the map.")] = 3,
    norm: Annotated[Literal["batch", "group"], Field(description="Normalisation after each convolution of the backbone.")] = "group",
    hidden: Annotated[int, Field(ge=1, le=8192, description="Units of the two hidden layers of the RoI head.")] = 128,
    anchors: Annotated[
        list[Annotated[int, Field(ge=1, le=10_000)]],
        Field(
            min_length=1,
            max_length=20,
            description="Sides of the square anchors in pixels; each has two more of its area, twice as wide as high and twice as high as wide.",
        ),
    ] = [8, 16, 32, 64],  # noqa: B006  # the schema copies it
    min_size: MinSize = None,
    max_size: MaxSize = None,
    score_threshold: Annotated[float, Field(ge=0, lt=1, description="Boxes with a lower score are not reported.")] = 0.05,
    nms_iou: Annotated[
        float, Field(gt=0, le=1, description="Of reported boxes of a class that overlap by more than this, the best stays.")
    ] = 0.5,
    detections: Annotated[int, Field(ge=1, le=10_000, description="Most boxes reported for a picture.")] = 100,
    proposals: Annotated[
        int, Field(ge=1, le=10_000, description="Proposals of each picture that reach the RoI head, of twice as many before suppression.")
    ] = 200,
    rois: Annotated[int, Field(ge=1, le=10_000, description="Boxes of each picture, drawn at random, that the RoI head trains on.")] = 64,
) -> nn.Module:
    """Small Faster R-CNN that learns from scratch on a CPU, for tests, small pictures and few classes.

    A backbone of `depth` residual blocks, each half as high and wide as the one before (2^depth pixels a step at the end), and around its last
    map torchvision's FasterRCNN. Group norm by default, because detectors train on few pictures at a time. Without min_size and
    max_size pictures keep their size.
    Convolutions of the backbone are drawn from N(0, 2 / fan_out). 0.53 million parameters by default with 2 classes.
    Errors (UserError): max_size without min_size.
    Source: Ren, He, Girshick & Sun 2015, Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
    """
    from trainrun.parts.models.nets.tiny_detector import build

    return build(
        shape, classes, width, depth, norm, hidden, anchors, min_size, max_size,
        box_score_thresh=score_threshold, box_nms_thresh=nms_iou, box_detections_per_img=detections,
        rpn_pre_nms_top_n_train=2 * proposals, rpn_pre_nms_top_n_test=2 * proposals,
        rpn_post_nms_top_n_train=proposals, rpn_post_nms_top_n_test=proposals, box_batch_size_per_image=rois,
    )  # fmt: skip
