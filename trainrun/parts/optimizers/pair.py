"""Muon for some parameters and another optimizer for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer


def columns(like: Tensor) -> list[int]:
    """The dimensions of a weight with the rows first and the others as they lie in memory, so that [rows, columns] can be a view."""
    return [0, *sorted(range(1, like.ndim), key=lambda n: -like.stride(n))]


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, which lies in memory as `like` does, as a view [rows, everything else]."""
    return tensor.detach().permute(columns(like)).view(len(tensor), -1)


class Pair(Optimizer):
    """Owns groups and state of both, in which the two take turns; a group's `optimizer` says whose it is."""

    def __init__(self, groups: list[dict[str, Any]], second: Optimizer) -> None:
        """groups: those of Muon, with its options. second: an optimizer over the whole model, of which Muon's parameters are taken out."""
        mine = {p for group in groups for p in group["params"]}
        self.second = second
        # Muon takes matrices only, so it never sees the parameters themselves.
        self.muon = Muon([{**group, "params": [as_matrix(p, p) for p in group["params"]]} for group in groups])
        rest = [{**group, "params": [p for p in group["params"] if p not in mine]} for group in second.param_groups]
        defaults = {name: value for name, value in self.muon.defaults.items() if name not in groups[0]}
        super().__init__([*({**defaults, **group} for group in groups), *(group for group in rest if group["params"])], {})
        self.state.update({p: state for p, state in second.state.items() if p not in mine})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # the loop has no closure
        """One update by both."""
        for group in self.param_groups:
            if group["optimizer"] == "muon":
                self._by_muon(group)
        self.second.param_groups = [group for group in self.param_groups if group["optimizer"] != "muon"]
        self.second.state = self.state
        self.second.step()

    def _by_muon(self, group: dict[str, Any]) -> None:
        matrices, state = [], {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            # A view of the weights, so that what Muon does to the matrix is done to them.
            matrix = as_matrix(p, p)
            matrix.grad = p.grad.permute(columns(p)).reshape(matrix.shape)  # a gradient may lie otherwise
            matrices.append(matrix)
            state[matrix] = {"momentum_buffer": as_matrix(self.state[p]["momentum_buffer"], p)}
        self.muon.param_groups = [{**group, "params": matrices}]
        self.muon.state = state  # type: ignore[assignment]  # torch annotates a defaultdict
        self.muon.step()
