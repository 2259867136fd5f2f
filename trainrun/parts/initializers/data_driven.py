"""Initializers that look at training pictures: the run gives them the network, already drawn, and pictures as the network sees them.

Their facts: `data`; `pictures`, how many at most; `augmented`, whether as in training or without what is random; `first`, the
initializer that draws the weights before (where there is none the network's own draw stays).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.initializers.structured import orthogonal
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor, nn

_PATCHES = 1024  # of a picture; more of it tell little that is new


@part("initializer", data=True, pictures=256, augmented=True, first=orthogonal)
def lsuv(
    model: nn.Module,
    pictures: Iterable[Tensor],
    weights: Collection[str],
    *,
    tol: Annotated[float, Field(gt=0, lt=1, description="How far the variance of a layer's output may be from 1.")] = 0.1,
    max_iterations: Annotated[int, Field(ge=1, le=1000, description="How often a layer is scaled at most.")] = 10,
) -> None:
    """Draw orthonormal weights, then scale them layer by layer until each layer's output has variance 1 on a batch of training pictures.

    w = w / sqrt(Var(w x + b)), repeated until |Var - 1| < tol, for each convolution and linear layer in the order in which the network
    runs them; the next layer sees what the scaled one gives. A weight that layers share is scaled for the first of them. The batch is the
    first of the run, at most 256 pictures, augmented as in training. The network is in training mode; its batch norm statistics stay as they
    were. Left alone are what rules draw, layers that zero_init_residual silences, and the projections of nn.MultiheadAttention, whose output
    is not to be had.
    Errors (UserError): a layer whose output has no variance.
    Source: Mishkin & Matas 2016, All you need is a good init, algorithm 1.
    """
    import torch

    chosen = {module: f"{name}.weight" for name, module in model.named_modules() if f"{name}.weight".lstrip(".") in weights}

    def scale(module: Any, seen: Any, output: Tensor) -> Tensor | None:
        name = chosen.pop(module, None)
        if name is None:  # a layer that runs again, or whose weight another one has too
            return None
        for other in [other for other in chosen if other.weight is module.weight]:
            del chosen[other]
        for _ in range(max_iterations):
            variance = output.double().var(correction=0)
            if not (torch.isfinite(variance) and variance > 0):
                raise UserError(f"lsuv: the output of {name.removesuffix('.weight')} has variance {variance:.3g} on a batch of training pictures, and cannot be scaled to 1")
            if abs(variance - 1) < tol:
                break
            module.weight.div_(variance.sqrt().to(module.weight.dtype))
            output = module.forward(*seen)
        return output

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = [module.register_forward_hook(scale) for module in chosen]
    training = model.training
    try:
        with torch.no_grad():
            model.train()
            model(next(iter(pictures)))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


@part("initializer", data=True, pictures=5000, augmented=False, keeps=True)
def whitening(
    model: nn.Module,
    pictures: Iterable[Tensor],
    weights: Collection[str],
    *,
    eps: Annotated[float, Field(gt=0, description="Added to the eigenvalues, so that directions without variance are not blown up.")] = 5e-4,
) -> None:
    """Make the first convolution whiten the training set's patches; all else stays as the network's own constructor drew it.

    The covariance of the patches [in x kernel size] that the convolution sees has eigenvectors v and eigenvalues s; the first kernels
    are v / sqrt(s + eps), those of the largest s first, then the same with the other sign. Of n output channels and d values a patch
    that makes 2 min(d, n // 2) kernels; the others keep their draw. Each v has its largest entry positive.
    Measured over at most 5,000 training pictures, evenly spaced, with the recipe's normalize and nothing random.
    Errors (UserError): no convolution over pictures, one with groups, a kernel larger than the pictures.
    Source: Page 2019, How to train your ResNet 8: bag of tricks; Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU.
    """
    import torch
    from torch import nn

    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise UserError("whitening needs a convolution over pictures, and this model has none; choose another initializer")
    name, conv = found
    if conv.groups > 1:
        raise UserError(f"whitening needs a first convolution without groups, and {name} has {conv.groups}; choose another initializer")
    if f"{name}.weight".lstrip(".") not in weights:
        raise UserError(f"whitening has no effect: initializer.rules draw {name}.weight otherwise; choose initializer.name=default")
    total: Any = 0
    products: Any = 0
    count = 0
    for batch in pictures:
        if any((size - 1) * by + 1 > side for size, by, side in zip(conv.kernel_size, conv.dilation, batch.shape[2:], strict=True)):
            raise UserError(f"whitening needs pictures as large as the kernel of {name}, {conv.kernel_size}; choose another initializer")
        patches = nn.functional.unfold(batch, conv.kernel_size, conv.dilation, 0, conv.stride)  # type: ignore[arg-type]  # tuples of two, which torch annotates as of any length
        patches = patches[:, :, :: -(-patches.shape[2] // _PATCHES)].transpose(1, 2).flatten(0, 1).double()
        total, products, count = total + patches.sum(0), products + patches.T @ patches, count + len(patches)
    mean = total / count
    values, vectors = torch.linalg.eigh((products / count - mean[:, None] * mean).cpu())
    rows = vectors.T.flip(0)
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    scaled = rows / (values.flip(0).clamp(min=0) + eps).sqrt()[:, None]
    pairs = min(len(scaled), conv.out_channels // 2)
    kernels = scaled[:pairs].reshape(pairs, *conv.weight.shape[1:])
    with torch.no_grad():
        conv.weight[: 2 * pairs].copy_(torch.cat((kernels, -kernels)))
