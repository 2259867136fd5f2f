"""Networks published with torchvision and timm, by their names there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import nn

# Written out so that a recipe is checked without torchvision; a test holds it against torchvision.models.list_models.
TORCHVISION = """
alexnet convnext_tiny convnext_small convnext_base convnext_large densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7
efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf
regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
regnet_y_128gf resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_t swin_s swin_b
swin_v2_t swin_v2_s swin_v2_b vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_l_16 vit_l_32
vit_h_14 wide_resnet50_2 wide_resnet101_2
""".split()  # noqa: SIM905  # eighty quoted names would hide what is there

_TOKENS = ("vit", "deit", "beit", "eva", "swin", "maxvit", "maxxvit", "cait", "xcit", "crossvit", "flexivit", "naflexvit", "samvit", "tnt",
           "twins", "pit_", "volo", "hiera", "mvit", "mixer", "resmlp", "gmlp")  # fmt: skip


def memory_format(name: str) -> str:
    """channels_last for convolutional networks; contiguous for those that work on sequences of tokens."""
    return "contiguous" if name.removeprefix("timm/").startswith(_TOKENS) else "channels_last"


@part("model", names=TORCHVISION, memory_format=memory_format)
def torchvision_model(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: Annotated[
        str | None,
        Field(description="Weights to start from: DEFAULT, a torchvision name such as IMAGENET1K_V2, or a .safetensors or .pth file."),
    ] = None,
    dropout: Annotated[
        float | None, Field(ge=0, lt=1, description="Probability in all dropout layers; by default the network's own.")
    ] = None,
) -> nn.Module:
    """torchvision's {name}.

    Built for `shape` and `classes`; logits are [B, classes]. Auxiliary classifiers are off.
    Without weights it is drawn as torchvision draws it; a first convolution for other than 3 channels as torch draws a new one.
    With weights, the last layer is drawn anew where the number of classes differs, and the first convolution's kernels are summed
    over the input channels for 1 channel and repeated and scaled to the same sum for others, as timm does.
    A vit_* follows the picture's size, which must be square and a multiple of the patch, and interpolates its position embedding;
    maxvit_t takes multiples of 224. googlenet and inception_v3 rescale their input when they start from torchvision's own weights,
    which expect it.
    Weights without a path are downloaded once, checked by hash and read as tensors only.
    Errors (UserError): unknown weights, no network, a file that does not fit, a picture too small, dropout for a network without any.
    Source: https://docs.pytorch.org/vision/stable/models.html
    """
    from trainrun.parts.models.nets.from_torchvision import build

    return build(name, shape, classes, weights, dropout)


@part("model", "timm/*", memory_format=memory_format)
def timm_model(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: Annotated[
        str | None, Field(description="Weights to start from: pretrained, or the path of a .safetensors or .pth file.")
    ] = None,
) -> nn.Module:
    """Any network of timm by its name there, as timm/resnet50d; needs `pip install 'trainrun[timm]'`.

    Built by timm.create_model for `shape` and `classes`; logits are [B, classes]. A name with a tag, as timm/resnet50d.ra2_in1k,
    picks those pretrained weights. Networks of a fixed picture size are built for the size given.
    Errors (UserError): timm is not installed, unknown name, no pretrained weights or no network, a file that does not fit.
    Source: https://huggingface.co/docs/timm
    """
    from trainrun.parts.models.nets.from_timm import build

    return build(name.removeprefix("timm/"), shape, classes, weights)
