"""Initializers that give a weight as a whole a form: orthogonal, identity, sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trainrun.parts.initializers.fans import Gain
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    from torch import Tensor


@part("initializer", matrix=True)
def orthogonal(weight: Tensor, *, gain: Gain = 1.0) -> None:
    """Draw each weight as a matrix [out, in x kernel size] with orthonormal rows, or orthonormal columns where there are fewer.

    The Q of a matrix of normal numbers, with the signs that make R's diagonal positive, so that it is uniform over all such matrices;
    then times gain. A group of a grouped convolution is a matrix of its own.
    Source: Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear neural networks.
    """
    import torch

    drawn = torch.randn(weight.shape[0], weight[0].numel(), device=weight.device, dtype=weight.dtype)
    wide = drawn.shape[0] < drawn.shape[1]
    q, r = torch.linalg.qr(drawn.T if wide else drawn)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    with torch.no_grad():
        weight.copy_((q.T if wide else q).reshape(weight.shape) * gain)


@part("initializer", matrix=True)
def dirac(weight: Tensor) -> None:
    """Make each layer pass its first channels on as they are: one at the kernel's middle from channel i to channel i, zero elsewhere.

    A linear layer becomes the identity, a group of a grouped convolution passes on its own channels; outputs beyond the number of inputs
    are zero. With an odd kernel, padding to the same size and stride 1, a picture is preserved.
    Source: Zagoruyko & Komodakis 2017, DiracNets; torch.nn.init.dirac_.
    """
    import torch

    middle = tuple(size // 2 for size in weight.shape[2:])
    with torch.no_grad():
        weight.zero_()
        for n in range(min(weight.shape[:2])):
            weight[(n, n, *middle)] = 1.0


@part("initializer", matrix=True)
def sparse(
    weight: Tensor,
    *,
    sparsity: Annotated[float, Field(gt=0, lt=1, description="Share of each unit's incoming weights that are zero, rounded to the nearest number.")],
    std: Annotated[float, Field(gt=0, description="Standard deviation of the others.")] = 0.01,
) -> None:
    """Give each unit a few incoming weights from N(0, std^2), in places of its own, and zeros for the rest; one weight at least is left.

    A unit's incoming weights are a row of [out, in x kernel size]. torch.nn.init.sparse_ puts its zeros into columns instead, which
    may leave a unit without any connection.
    Source: Martens 2010, Deep learning via Hessian-free optimization, section 5.
    """
    import torch

    inputs = weight[0].numel()
    count = min(round(sparsity * inputs), inputs - 1)
    drawn = torch.randn(weight.shape[0], inputs, device=weight.device, dtype=weight.dtype) * std
    places = torch.rand(drawn.shape, device=weight.device).argsort(1)[:, :count]
    with torch.no_grad():
        weight.copy_(drawn.scatter_(1, places, 0.0).reshape(weight.shape))
