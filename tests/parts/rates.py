"""Learning rates as torch's own schedulers set them, to compare ours with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


def torch_lrs(lr: float, steps: int, make: Callable[[Any], Any]) -> list[float]:
    """The learning rate that a scheduler of torch, made by `make` of an optimizer, gives to each of the first steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = make(optimizer)
        lrs = []
        for _ in range(steps):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
    return lrs
