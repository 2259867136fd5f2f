"""Which weights and biases of a network an initializer fills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trainrun.parts.initializers.fills import default

if TYPE_CHECKING:
    from torch import Tensor, nn


def initialize(model: nn.Module, initializer: Callable[[Tensor], None]) -> None:
    """Apply an initializer to every convolution and linear layer and set their biases to zero; norms are never touched.

    `default` leaves biases as they are too. The query, key and value projections of nn.MultiheadAttention count as linear layers.
    """
    import torch

    if getattr(initializer, "func", initializer) is default:
        return
    for module in model.modules():
        for kernel in _kernels(module):
            initializer(kernel)
            for name in ("bias", "in_proj_bias"):
                bias = getattr(module, name, None)
                if bias is not None:
                    with torch.no_grad():
                        bias.zero_()


def _kernels(module: nn.Module) -> Iterator[Tensor]:
    """The module's weight as kernels laid out [out, in, *kernel], each connecting all of its inputs with all of its outputs.

    One of a grouped convolution's groups is one kernel, and a transposed convolution's is given transposed, so that fans
    count true connections. torch.nn.init reads them off the whole weight, where groups make fan_out too large and a
    transposed convolution has fan_in and fan_out exchanged.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    if isinstance(module, _ConvNd):
        for group in module.weight.detach().chunk(module.groups):
            yield group.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else group
    elif isinstance(module, nn.Linear):
        yield module.weight.detach()
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield from module.in_proj_weight.detach().chunk(3)
