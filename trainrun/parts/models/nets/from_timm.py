"""timm's networks by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainrun.errors import UserError
from trainrun.parts.models.nets import weights as files
from trainrun.recipe.registry import nearest


def build(architecture: str, shape: tuple[int, int, int], classes: int, weights: str | None) -> nn.Module:
    """The network of that name in timm, for pictures of `shape`, with its weights loaded."""
    try:
        import timm
    except ImportError:
        raise UserError(f"timm/{architecture} needs timm: pip install 'trainrun[timm]'") from None

    bare = architecture.split(".", 1)[0]
    if not timm.is_model(bare):
        near = nearest(bare, timm.list_models())
        hint = f"did you mean timm/{near}?" if near else "timm.list_models() lists them"
        raise UserError(f"timm has no model {bare!r}; {hint}")
    pretrained = weights == "pretrained"
    if weights is not None and not pretrained and not files.is_path(weights):
        raise UserError(
            f"timm/{architecture} takes weights pretrained or a .safetensors or .pth file, found {weights!r}: set model.weights=pretrained"
        )
    channels, height, width = shape
    config = timm.get_pretrained_cfg(architecture)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if config is not None and config.fixed_input_size and config.input_size[1:] != (height, width):
        options["img_size"] = (height, width)
    try:
        model = timm.create_model(architecture, pretrained=pretrained and files.reads(), **options)
    except Exception as error:  # the hub's clients raise their own types, and timm asserts on sizes
        fix = "set model.weights to a local file" if pretrained else "choose another data.size or model"
        raise UserError(
            f"timm could not build {architecture} for pictures {channels}x{height}x{width} ({type(error).__name__}: {error}): {fix}"
        ) from error
    if weights is None:
        return model
    built = model.pretrained_cfg if isinstance(getattr(model, "pretrained_cfg", None), dict) else {}
    heads = built.get("classifier") or files.ends(model)[1]
    heads = [heads] if isinstance(heads, str) else heads
    if pretrained:
        drawn = () if config is not None and config.num_classes == classes else {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
        model.covered = frozenset(model.state_dict()).difference(drawn)
    else:
        stem = built.get("first_conv") or None
        files.load(
            model,
            files.read(weights),
            f"timm/{architecture} {weights}",
            stem if isinstance(stem, str) else None,
            heads,
        )
    return model
