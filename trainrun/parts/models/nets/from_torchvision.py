"""torchvision's classification networks, built for other pictures and classes than ImageNet's."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from trainrun.errors import UserError
from trainrun.parts.models.nets import weights as files
from trainrun.recipe.registry import nearest

# The smallest picture side each family's poolings and strides leave something of; those not named take a single pixel.
SMALLEST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
}


def build(name: str, shape: tuple[int, int, int], classes: int, weights: str | None, dropout: float | None) -> nn.Module:
    """The network for pictures of `shape`, with its weights loaded."""
    channels, height, width = shape
    options = _options(name, height, width)
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    stem, head = files.ends(model)
    if channels != 3:
        model.set_submodule(stem, for_channels(model.get_submodule(stem), channels))
    if weights is not None:
        named = not files.is_path(weights)
        state = published(name, weights) if named else files.read(weights)
        if name in ("googlenet", "inception_v3"):
            state = _without_auxiliary(state)
            # torchvision ported these from TensorFlow, where pictures ran from -1 to 1.
            model.transform_input = named and channels == 3  # type: ignore[assignment]  # nn.Module's annotation knows modules and tensors only
        elif name.startswith("densenet"):
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}
        elif name.startswith("vit") and "encoder.pos_embedding" in state:
            state = interpolate_embeddings(height, _patch(name), OrderedDict(state))
        files.load(model, state, f"{name} {weights}", stem, [head])
    if dropout is not None:
        layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise UserError(f"model.dropout: {name} has no dropout layer; leave it out")
        for layer in layers:
            layer.p = dropout
    return model


def _patch(name: str) -> int:
    """The side of a vision transformer's patches, which ends its name."""
    return int(name.rsplit("_", 1)[1])


def _options(name: str, height: int, width: int) -> dict[str, Any]:
    """What torchvision's builder must be told about pictures of this size; a UserError where they do not suit the network."""
    smallest = next((side for prefix, side in SMALLEST.items() if name.startswith(prefix)), 1)
    if min(height, width) < smallest:
        raise UserError(f"model: {name} needs pictures of at least {smallest}x{smallest}, found {height}x{width}: set data.size={smallest}")
    if name.startswith("vit"):
        if height != width or height % _patch(name):
            good = max(round(min(height, width) / _patch(name)), 1) * _patch(name)
            raise UserError(f"model: {name} needs square pictures of a multiple of {_patch(name)}, found {height}x{width}: set data.size={good}")
        return {"image_size": height}
    if name == "maxvit_t":
        if height % 224 or width % 224:
            raise UserError(f"model: maxvit_t needs sides that are multiples of 224, found {height}x{width}: set data.size=224")
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def for_channels(conv: nn.Module, channels: int) -> nn.Conv2d:
    """A new convolution like `conv` for another number of input channels."""
    assert isinstance(conv, nn.Conv2d) and conv.groups == 1
    return nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=conv.bias is not None)  # type: ignore[arg-type]  # tuples of two, which torch annotates as of any length


def published(name: str, weights: str, option: str = "weights") -> Mapping[str, Tensor]:
    """The weights torchvision publishes under that name, from its cache or the network; within `unread` nothing. `option` is the one that asked for them."""
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        near = nearest(weights, known.__members__)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(known.__members__)}" if known.__members__ else "it has none"
        raise UserError(f"model.{option}: {name} has no weights {weights!r}; {hint} (or set model.{option} to a .safetensors or .pth file)")
    if not files.reads():
        return {}
    chosen = known[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rsplit("/", 1)[1]
    try:
        return chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise UserError(f"cannot download {chosen.url} ({error}): fetch it elsewhere and put it at {cached}") from None
    except RuntimeError as error:
        raise UserError(f"{chosen.url} arrived damaged ({error}): run again, or put a good copy at {cached}") from None


def _without_auxiliary(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}
